"""Points, searches and filters as the embedded engine takes them."""

import json
from typing import Any

import qdrant_edge as edge

from mla_ray.index.backend import (
    CANDIDATES,
    HNSW_EF,
    OVERSAMPLING,
    RRF_K,
    VECTOR,
    WORDS,
    CollectionConfig,
    Nearest,
    PayloadFilter,
    Point,
    words_of,
)

HAS_WORDS = edge.Filter(must=[edge.HasVectorCondition(WORDS)])
"""Filter of the points with words."""


def row_of(point: Point, config: CollectionConfig) -> edge.Point:
    """Return a point of a collection, with its words if the collection has words."""
    vectors: dict[str, Any] = {VECTOR: point.vector}
    if config.has_words:
        vectors |= words_vector(point)
    return edge.Point(point.id, vectors, point.payload)


def words_vector(point: Point) -> dict[str, Any]:
    """Return the words of a point by the name of their vector, or nothing if it has none."""
    words = words_of(point)
    return {WORDS: edge.SparseVector(*words)} if words.hashes else {}


def size_written(point: Point) -> int:
    """Return an upper bound for the bytes of a point in its segment and in the log.

    A vector component takes 4 bytes in the segment, and 5 or more in the log. A word takes as much
    as two, twice.
    """
    words = 40 * len(words_of(point).hashes)
    return 10 * len(point.vector) + 3 * len(json.dumps(point.payload)) + words + 2048


def request_of(query: Nearest, config: CollectionConfig) -> edge.QueryRequest:
    """Return a search. With words, the engine fuses their hits with those of the vector."""
    rescored = edge.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
    params = edge.SearchParams(
        hnsw_ef=HNSW_EF, quantization=rescored if config.quantization else None
    )
    where = filter_of(query.where)
    nearest = edge.Query.Nearest(query.vector, VECTOR)
    if query.words is None:
        return edge.QueryRequest(
            limit=query.limit, query=nearest, filter=where, with_payload=True, params=params
        )
    by_words = edge.Query.Nearest(edge.SparseVector(*query.words), WORDS)
    return edge.QueryRequest(
        limit=query.limit,
        query=edge.Fusion.Rrf(RRF_K),  # type: ignore[arg-type]  # the stubs lack its base
        prefetches=[
            edge.Prefetch(CANDIDATES, nearest, params=params, filter=where),
            edge.Prefetch(CANDIDATES, by_words, filter=where),
        ],
        with_payload=True,
    )


def filter_of(where: PayloadFilter, ids: list[str] | None = None) -> edge.Filter:
    """Return a filter of points that match, or of those of `ids` that match."""
    must: list[Any] = [
        edge.IsEmptyCondition(field)
        if value is None
        else edge.FieldCondition(field, match=edge.MatchValue(value))
        for field, value in where.items()
    ]
    if ids is not None:
        must.append(edge.HasIdCondition(set(ids)))
    return edge.Filter(must=must)
