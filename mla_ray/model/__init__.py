"""The frozen native and what a language adds to it: PyTorch modules and tokenizers, without Ray."""
