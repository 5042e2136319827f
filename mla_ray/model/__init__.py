"""PyTorch modules and tokenizers of the frozen native and its acquired languages, without Ray."""
