"""Points, searches and filters as a Qdrant server takes them."""

from collections.abc import Mapping
from typing import Any

from qdrant_client import models

from mla_ray.index.backend import (
    CANDIDATES,
    HNSW_EF,
    OVERSAMPLING,
    VECTOR,
    WORDS,
    CollectionConfig,
    Nearest,
    PayloadFilter,
    Point,
    words_of,
)
from mla_ray.index.lexical import Words

HAS_WORDS = models.Filter(must=[models.HasVectorCondition(has_vector=WORDS)])
"""Filter of the points with words."""


def row_of(point: Point, config: CollectionConfig) -> models.PointStruct:
    """Return a point of a collection, with its words if the collection has words."""
    vectors: dict[str, models.Vector] = {VECTOR: point.vector}
    if config.has_words:
        vectors |= words_vector(point)
    return models.PointStruct(id=point.id, vector=vectors, payload=point.payload)


def words_vector(point: Point) -> dict[str, models.Vector]:
    """Return the words of a point by the name of their vector, or nothing if it has none."""
    words = words_of(point)
    return {WORDS: _sparse(words)} if words.hashes else {}


def request_of(query: Nearest, config: CollectionConfig, local: bool) -> models.QueryRequest:
    """Return a search. With words, the server fuses their hits with those of the vector.

    Args:
        query: The search.
        config: Configuration of the collection.
        local: The search is for qdrant-client's local mode, which takes no parameters.

    """
    params = models.SearchParams(hnsw_ef=HNSW_EF)
    if config.quantization:
        params.quantization = models.QuantizationSearchParams(
            rescore=True, oversampling=OVERSAMPLING
        )
    nearest = models.Prefetch(
        query=query.vector,
        using=VECTOR,
        limit=CANDIDATES,
        filter=filter_of(query.where),
        params=None if local else params,
    )
    if query.words is None:
        return models.QueryRequest(
            query=nearest.query,
            using=nearest.using,
            limit=query.limit,
            filter=nearest.filter,
            params=nearest.params,
            with_payload=True,
        )
    by_words = models.Prefetch(
        query=_sparse(query.words), using=WORDS, limit=CANDIDATES, filter=nearest.filter
    )
    return models.QueryRequest(
        query=models.FusionQuery(fusion=models.Fusion.RRF),
        prefetch=[nearest, by_words],
        limit=query.limit,
        with_payload=True,
    )


def filter_of(where: PayloadFilter, ids: list[str] | None = None) -> models.Filter:
    """Return a filter of points that match, or of those of `ids` that match."""
    must: list[models.Condition] = [
        models.IsEmptyCondition(is_empty=models.PayloadField(key=field))
        if value is None
        else models.FieldCondition(key=field, match=models.MatchValue(value=value))
        for field, value in where.items()
    ]
    if ids is not None:
        must.append(models.HasIdCondition(has_id=list(ids)))
    return models.Filter(must=must)


def _sparse(words: Words) -> models.SparseVector:
    return models.SparseVector(indices=words.hashes, values=words.weights)


def field_of(payload: Mapping[str, Any], field: str) -> Any:
    """Return the value of a payload field, or None; `a.b` is field `b` of the object `a`."""
    value: Any = payload
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
