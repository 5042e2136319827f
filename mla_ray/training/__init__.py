"""Training: settings, data preparation, the training loop, and its execution on Ray Train."""
