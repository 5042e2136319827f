"""Evaluation of text-image retrieval: recall@k, protocols of published tables, caption tables."""
