"""Limits of one search. Imports nothing, so that a client can check a request before sending it."""

MAX_K = 1000
"""Most entries that one search returns."""
MAX_OFFSET = 10_000
"""Most entries that a search skips."""
