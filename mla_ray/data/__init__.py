"""Training data: tables, images and videos become blocks, batches and frozen features."""
