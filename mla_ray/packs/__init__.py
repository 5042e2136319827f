"""Language packs: on disk, in a store, on the hub, as ONNX, and in one batch with others."""
