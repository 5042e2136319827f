"""Collections that exist at a URL, opened without their native by the records beside them."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mla_ray.index.backend import CollectionConfig
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.server import connect, reaching


def config_at(url: str, collection: str) -> CollectionConfig | None:
    """Return the configuration of a collection, or None if it does not exist.

    Args:
        url: A Qdrant server, or `edge:folder`.
        collection: Name of the collection.

    Raises:
        ValueError: The collection was made by other software, or the URL is malformed.
        ConnectionError: No server answers.
        RuntimeError: The server refuses the request.

    """
    scheme, _, rest = url.partition(":")
    if scheme == "edge" and rest:
        file = Path(rest).expanduser() / collection / "space.json"
        if not file.exists():
            return None
        return CollectionConfig.read(json.loads(file.read_text()), str(file.parent))
    with closing(connect(url)) as client, reaching(url):
        if collection not in {alias.alias_name for alias in client.get_aliases().aliases}:
            return None
        record = client.get_collection(collection).config.metadata
    return CollectionConfig.read(record, f"collection {collection!r}")


def configs_at(url: str, collections: Sequence[str]) -> dict[str, CollectionConfig]:
    """Return the configurations of those of the collections that exist, by name.

    Raises:
        LookupError: None of them exists. For other errors see `config_at`.

    """
    found = {name: config for name in collections if (config := config_at(url, name))}
    if not found:
        raise LookupError(
            f"{url} has no collection {' or '.join(collections)}; check the address, or name the "
            "collection"
        )
    return found


def open_like(url: str, collection: str, config: CollectionConfig) -> CaptionIndex:
    """Open a collection for writing points of a collection with this configuration.

    A collection that is created gets the same native and quantization. One that exists keeps its
    quantization.

    Raises:
        ValueError: The collection holds vectors of another native.
        PermissionError: This process may not write to the collection's folder.

    """
    quantization = None if config_at(url, collection) else config.quantization
    index = CaptionIndex.open(url, config.space, collection, quantization=quantization)
    try:
        index.check_writable()
    except BaseException:
        index.close()
        raise
    return index
