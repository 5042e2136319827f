"""The kinds of places where collections are, each as tests open it."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient

from mla_ray.index.backend import CollectionConfig, VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.server import ServerBackend
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings

Vectors = npt.NDArray[np.float32]

SPACE = VectorSpace("emoji-clip", "0123456789abcdef", 16)
OTHER = VectorSpace("ViT-B-32/openai", "fedcba9876543210", 16)
INT8 = IndexSettings(quantization="int8")


class Place(Protocol):
    """Somewhere to open collections, several times over in one test."""

    def open(
        self,
        space: VectorSpace = SPACE,
        collection: str = "captions",
        *,
        create: bool = True,
        settings: IndexSettings = ENGINE_DEFAULTS,
    ) -> CaptionIndex: ...

    def leave(self, index: CaptionIndex) -> None:
        """Be done with `index`, its data staying in place."""


class Memory:
    """One local store shared by all that is opened: closing it would lose the data."""

    def __init__(self) -> None:
        self.client = QdrantClient(":memory:")

    def open(
        self,
        space: VectorSpace = SPACE,
        collection: str = "captions",
        *,
        create: bool = True,
        settings: IndexSettings = ENGINE_DEFAULTS,
    ) -> CaptionIndex:
        config = CollectionConfig(space, settings)
        backend = ServerBackend.open(self.client, ":memory:", config, collection, create)
        return CaptionIndex(backend, backend.config.space)

    def leave(self, index: CaptionIndex) -> None:
        pass


class Url:
    def __init__(self, url: str) -> None:
        self.url = url

    def open(
        self,
        space: VectorSpace = SPACE,
        collection: str = "captions",
        *,
        create: bool = True,
        settings: IndexSettings = ENGINE_DEFAULTS,
    ) -> CaptionIndex:
        return CaptionIndex.open(self.url, space, collection, create=create, settings=settings)

    def leave(self, index: CaptionIndex) -> None:
        index.close()


def forget(client: QdrantClient) -> None:
    """Delete what these tests make on a server: only names with a test fingerprint."""
    for collection in client.get_collections().collections:
        if any(f"-{space.fingerprint[:12]}-v" in collection.name for space in (SPACE, OTHER)):
            client.delete_collection(collection.name)


SERVERS = {"http": "MLA_TEST_QDRANT_URL", "grpc": "MLA_TEST_QDRANT_GRPC_URL"}
