"""Settings of a collection as the embedded engine takes and stores them."""

import json
from pathlib import Path

import qdrant_edge as edge

from mla_ray.index.backend import QUANTILE, VECTOR, WORDS, CollectionConfig
from mla_ray.index.settings import IndexSettings

HNSW_M, HNSW_EF_CONSTRUCT, FULL_SCAN = 16, 100, 10_000
"""The engine's defaults: edges per point, candidates while building, kilobytes that are scanned."""
CONFIG_FILE = "edge_config.json"
"""File of a shard with its settings."""


def creation_of(config: CollectionConfig) -> edge.EdgeConfig:
    """Return the engine's configuration of a new shard."""
    settings = config.settings
    int8 = edge.ScalarQuantizationConfig(
        type=edge.ScalarType.Int8, quantile=QUANTILE, always_ram=True
    )
    graph = None
    if settings.hnsw_m or settings.hnsw_ef_construct:
        graph = edge.HnswIndexConfig(
            settings.hnsw_m or HNSW_M, settings.hnsw_ef_construct or HNSW_EF_CONSTRUCT, FULL_SCAN
        )
    params = edge.EdgeVectorParams(
        size=config.space.dim,
        distance=edge.Distance.Cosine,
        on_disk=settings.on_disk_vectors,
        hnsw_config=graph,
        quantization_config=int8 if config.quantization else None,
    )
    words = edge.EdgeSparseVectorParams(
        modifier=edge.Modifier.Idf, on_disk=settings.on_disk_vectors
    )
    return edge.EdgeConfig(
        vectors={VECTOR: params},
        sparse_vectors={WORDS: words},
        on_disk_payload=settings.on_disk_payload,
    )


def has_words(shard: Path) -> bool:
    """Return whether the points in the folder of a shard may have words."""
    return WORDS in json.loads((shard / CONFIG_FILE).read_text()).get("sparse_vectors", {})


def settings_of(shard: Path) -> IndexSettings:
    """Return the settings in the folder of a shard."""
    stored = json.loads((shard / CONFIG_FILE).read_text())
    vectors = stored["vectors"].get(VECTOR, {})
    graph = vectors.get("hnsw_config") or {}
    return IndexSettings.model_construct(
        quantization="int8" if vectors.get("quantization_config") else None,
        on_disk_vectors=bool(vectors.get("on_disk")),
        on_disk_payload=stored.get("on_disk_payload", True),
        hnsw_m=graph.get("m", HNSW_M),
        hnsw_ef_construct=graph.get("ef_construct", HNSW_EF_CONSTRUCT),
    )
