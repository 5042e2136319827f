"""Backends by the URL of an index."""

from contextlib import ExitStack
from pathlib import Path

from mla_ray.index.address import Address
from mla_ray.index.backend import CollectionBackend, CollectionConfig
from mla_ray.index.edge import EdgeBackend


def backend_at(
    url: str, config: CollectionConfig, collection: str, create: bool, timeout_s: int | None
) -> CollectionBackend:
    """Open a collection. Arguments and errors are those of `CaptionIndex.open`."""
    if not url.startswith(("http", "grpc")):
        config.settings.require_embedded(url)
    if url.startswith("edge:") and url != "edge:":
        return _folder(url, config, collection, create)
    # Imported here, as qdrant_client takes a second that the processes of a folder would wait.
    from qdrant_client import QdrantClient

    from mla_ray.index.adopted import server_backend
    from mla_ray.index.server import ServerBackend, connect

    if url == ":memory:":
        return ServerBackend.open(QdrantClient(":memory:"), url, config, collection, create)
    client = connect(url, timeout_s)
    with ExitStack() as undo:
        undo.callback(client.close)
        prefixed = Address.parse(url).prefixed(collection)
        own = ServerBackend.open(client, url, config, prefixed, create)
        undo.pop_all()
    return server_backend(client, url, own.config, own.collection, own.name)


def _folder(url: str, config: CollectionConfig, collection: str, create: bool) -> EdgeBackend:
    folder = url.removeprefix("edge:")
    if "?prefix=" in folder:
        raise ValueError(f"index {url!r}: a folder has no prefix; give another folder")
    return EdgeBackend.open(Path(folder).expanduser().resolve() / collection, config, create)
