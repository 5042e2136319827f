"""Words of captions, added to a collection on a Qdrant server that was made without them."""

from collections.abc import Iterable

from qdrant_client import QdrantClient, models

from mla_ray.index.backend import SCROLL_VECTORS, WORDS, Point
from mla_ray.index.batches import batched
from mla_ray.index.server_requests import words_vector
from mla_ray.index.server_version import require_named_later


def add_words(client: QdrantClient, url: str, name: str, points: Iterable[Point]) -> None:
    """Write the words of points of a collection. The vector for them is created if it is missing.

    Args:
        client: Client of the server, or of local mode.
        url: URL of the index, for messages.
        name: Name of the collection, not an alias.
        points: All points of the collection.

    Raises:
        RuntimeError: The server is too old to create the vector.

    """
    if WORDS not in (client.get_collection(name).config.params.sparse_vectors or {}):
        if url != ":memory:":
            require_named_later(client.info().version, url)
        idf = models.SparseVectorConfig(modifier=models.Modifier.IDF)
        client.create_vector_name(name, WORDS, models.SparseVectorNameConfig(sparse=idf))
    for batch in batched(points, SCROLL_VECTORS):
        rows = [
            models.PointVectors(id=point.id, vector=words)
            for point in batch
            if (words := words_vector(point))
        ]
        if rows:
            client.update_vectors(name, rows, wait=True)
