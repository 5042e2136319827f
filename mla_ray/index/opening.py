"""Backends by the URL of an index."""

from contextlib import ExitStack
from pathlib import Path

from qdrant_client import QdrantClient

from mla_ray.index.address import Address
from mla_ray.index.backend import CollectionBackend, CollectionConfig
from mla_ray.index.edge import EdgeBackend
from mla_ray.index.server import ServerBackend, connect


def backend_at(
    url: str, config: CollectionConfig, collection: str, create: bool, timeout_s: int | None
) -> CollectionBackend:
    """Open a collection. Arguments and errors are those of `CaptionIndex.open`."""
    if not url.startswith(("http", "grpc")):
        config.settings.require_embedded(url)
    if url == ":memory:":
        return ServerBackend.open(QdrantClient(":memory:"), url, config, collection, create)
    scheme, _, rest = url.partition(":")
    if scheme == "edge" and rest:
        if "?prefix=" in rest:
            raise ValueError(f"index {url!r}: a folder has no prefix; give another folder")
        return EdgeBackend.open(Path(rest).expanduser().resolve() / collection, config, create)
    client = connect(url, timeout_s)
    with ExitStack() as undo:
        undo.callback(client.close)
        prefixed = Address.parse(url).prefixed(collection)
        backend = ServerBackend.open(client, url, config, prefixed, create)
        undo.pop_all()
    return backend
