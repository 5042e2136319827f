"""Where tables come from: a module for each source, which yields translations and captions."""
