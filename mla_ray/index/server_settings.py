"""Settings of a collection as a Qdrant server takes and returns them."""

from typing import Any

from qdrant_client import models

from mla_ray.index.backend import (
    QUANTILE,
    VECTOR,
    WORDS,
    CollectionConfig,
    ForeignLayout,
    Record,
)
from mla_ray.index.settings import IndexSettings


def creation_of(config: CollectionConfig) -> dict[str, Any]:
    """Return the arguments of `create_collection` for a configuration."""
    settings = config.settings
    int8 = models.ScalarQuantizationConfig(
        type=models.ScalarType.INT8, quantile=QUANTILE, always_ram=True
    )
    graph = models.HnswConfigDiff(m=settings.hnsw_m, ef_construct=settings.hnsw_ef_construct)
    vectors = models.VectorParams(
        size=config.space.dim,
        distance=models.Distance.COSINE,
        on_disk=settings.on_disk_vectors,
        hnsw_config=graph,
        quantization_config=models.ScalarQuantization(scalar=int8) if config.quantization else None,
    )
    words = models.SparseVectorParams(
        modifier=models.Modifier.IDF,
        index=models.SparseIndexParams(on_disk=settings.on_disk_vectors),
    )
    return {
        "vectors_config": {VECTOR: vectors},
        "sparse_vectors_config": {WORDS: words},
        "shard_number": settings.shard_number,
        "replication_factor": settings.replication_factor,
        "write_consistency_factor": settings.write_consistency_factor,
        "on_disk_payload": settings.on_disk_payload,
        "metadata": config.record(),
    }


def record_of(config: models.CollectionConfig, alias: str) -> Record:
    """Return the record of a collection.

    A collection of other software that was adopted in place has one for each alias of ours. A
    collection of our own has one, which is its metadata.
    """
    metadata = config.metadata or {}
    adopted = metadata.get(alias)
    return adopted if isinstance(adopted, dict) else metadata


def vector_params(config: models.CollectionConfig) -> dict[str, models.VectorParams]:
    """Return the parameters of a collection's vectors by name. "" is a vector without one."""
    params = config.params.vectors
    return {"": params} if isinstance(params, models.VectorParams) else dict(params or {})


def settings_of(config: models.CollectionConfig, layout: ForeignLayout | None) -> IndexSettings:
    """Return the settings that a server reports for a collection.

    They are not validated: another program may have made the collection.
    """
    params, graph = config.params, config.hnsw_config
    vectors = vector_params(config).get(layout.vector if layout else VECTOR)
    own = (vectors and vectors.hnsw_config) or models.HnswConfigDiff()
    quantized = vectors and isinstance(vectors.quantization_config, models.ScalarQuantization)
    return IndexSettings.model_construct(
        quantization="int8" if quantized else None,
        shard_number=params.shard_number,
        replication_factor=params.replication_factor,
        write_consistency_factor=params.write_consistency_factor,
        on_disk_vectors=bool(vectors and vectors.on_disk),
        on_disk_payload=params.on_disk_payload,
        hnsw_m=graph.m if own.m is None else own.m,
        hnsw_ef_construct=graph.ef_construct if own.ef_construct is None else own.ef_construct,
    )
