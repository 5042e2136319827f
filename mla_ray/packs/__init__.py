"""Language packs: files, stores, sharing on the hub, ONNX export and mixed batches."""
