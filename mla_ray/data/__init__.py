"""From tables, images and videos to what training reads: blocks, batches and frozen features."""
