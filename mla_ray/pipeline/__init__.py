"""The path of a plan: prepare, encode, acquire, evaluate and index, for many languages."""
