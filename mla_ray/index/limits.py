"""How much one search may ask of an index; light to import, for all who check before they ask."""

MAX_K = 1000
"""Entries of one search."""
MAX_OFFSET = 10_000
"""Entries that a page may pass over."""
