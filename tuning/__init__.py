"""Hyperparameters for a language, found by Ray Tune. May import: everything below `cli`."""
