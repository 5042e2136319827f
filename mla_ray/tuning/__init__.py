"""Hyperparameters for a language, found by Ray Tune."""
