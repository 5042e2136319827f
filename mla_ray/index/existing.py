"""Collections that exist at a URL, opened without their native by the records beside them."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mla_ray.index.address import Address
from mla_ray.index.backend import CollectionConfig
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.server import aliases_of, connect
from mla_ray.index.server_errors import reaching
from mla_ray.index.server_settings import record_of
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings


def config_at(
    url: str, collection: str, fingerprints: Sequence[str] = ()
) -> CollectionConfig | None:
    """Return the configuration of a collection, or None if it does not exist.

    Args:
        url: A Qdrant server, or `edge:folder`.
        collection: Name of the collection.
        fingerprints: Fingerprints of the native. Without them a server must have the collection of
            one native only.

    Raises:
        ValueError: The collection was made by other software, it is there for several natives, or
            the URL is malformed.
        ConnectionError: No server answers.
        RuntimeError: The server refuses the request.

    """
    scheme, _, rest = url.partition(":")
    if scheme == "edge" and rest:
        file = Path(rest).expanduser() / collection / "space.json"
        if not file.exists():
            return None
        return CollectionConfig.read(json.loads(file.read_text()), str(file.parent))
    names = aliases_of(Address.parse(url).prefixed(collection))
    with closing(connect(url)) as client, reaching(url):
        aliases = sorted(alias.alias_name for alias in client.get_aliases().aliases)
        records = {
            name: record_of(client.get_collection(name).config, name)
            for name in aliases
            if names.fullmatch(name)
        }
    found = [
        CollectionConfig.read(record, f"collection {name!r}") for name, record in records.items()
    ]
    if fingerprints:
        found = [config for config in found if config.space.fingerprint in fingerprints]
    if len(found) > 1:
        natives = ", ".join(repr(config.space.native) for config in found)
        raise ValueError(
            f"{url} has {collection!r} of several natives ({natives}); this command needs one: "
            "give each native a prefix of its own (?prefix=NAME)"
        )
    return found[0] if found else None


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
    there = config_at(url, collection, config.space.fingerprints)
    settings = ENGINE_DEFAULTS if there else IndexSettings(quantization=config.quantization)
    index = CaptionIndex.open(url, config.space, collection, settings=settings)
    try:
        index.check_writable()
    except BaseException:
        index.close()
        raise
    return index
