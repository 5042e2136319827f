"""Images and captions in Qdrant: collections on a server or embedded, and indexing."""
