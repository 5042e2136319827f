"""Hyperparameter search for one or more languages, with Ray Tune and Optuna."""
