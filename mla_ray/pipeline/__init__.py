"""Pipelines: prepare, encode, acquire, evaluate and index the languages of a plan."""
