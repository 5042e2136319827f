"""Limits of one request. Imports nothing, so that a client can check requests before sending."""

MAX_K = 1000
"""Most entries that one search returns."""
MAX_OFFSET = 10_000
"""Most entries that a search skips."""
MAX_PAGE = 1000
"""Most entries of one page of a listing."""
MAX_HYBRID = 200
"""Most entries that a hybrid search skips and returns."""
