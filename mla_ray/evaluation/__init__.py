"""How well a language retrieves: recall@k, the protocols of published tables, caption tables."""
