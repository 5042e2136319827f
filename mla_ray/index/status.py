"""Status of an index: what its server or its folder says about the collections of mla-ray."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import QdrantClient

from mla_ray.index.address import SEPARATOR, Address
from mla_ray.index.adopted import server_backend
from mla_ray.index.backend import (
    CollectionBackend,
    CollectionConfig,
    ForeignLayout,
    is_ours,
    recorded_space,
)
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.edge import EdgeBackend
from mla_ray.index.edge_folder import occupied
from mla_ray.index.edge_requests import HAS_WORDS as HAS_WORDS_HERE
from mla_ray.index.server import alias_of, connect
from mla_ray.index.server_errors import reaching
from mla_ray.index.server_requests import HAS_WORDS
from mla_ray.index.server_settings import record_of, settings_of
from mla_ray.index.server_version import check_version
from mla_ray.index.settings import IndexSettings


class Replica(BaseModel):
    """Copy of a shard on a node."""

    shard: int
    peer: int
    """Id of the node in the cluster."""
    state: str
    """`Active` if it answers searches; others while it is created, recovered or out of reach."""


class CollectionStatus(BaseModel):
    """Status of a collection."""

    collection: str
    """Name, with the prefix."""
    version: str
    """Name of the version that searches use, on the server or in the folder."""
    native: str
    fingerprint: str
    dim: int
    schema_number: int
    """Schema of the points."""
    points: int
    languages: dict[str, int]
    """Captions by language."""
    sources: dict[str, int]
    """Points by source."""
    hybrid: bool
    """Whether the captions have words, so that hybrid searches are possible."""
    settings: IndexSettings
    in_graph: int
    """Vectors in the search graph. The others are scanned."""
    vector_bytes: int
    """Bytes of the float32 vectors of one copy."""
    disk_bytes: int | None = None
    """Bytes that a folder takes on disk. A server does not tell."""
    state: str | None = None
    """A server's `green` (ready), `yellow` (building the graph), `grey` (waiting) or `red`."""
    optimizer: str | None = None
    """A server's `ok`, or the error of the last attempt to build the graph."""
    replicas: list[Replica] = []
    """A server's shards."""

    def text(self) -> str:
        """Return the status as lines for a terminal."""
        graph = f"{self.in_graph:,} in the graph"
        lines = [
            f"{self.collection} ({self.version}): {self.points:,} points, {graph}",
            f"  native: {self.native}, fingerprint {self.fingerprint}, {self.dim} dimensions, "
            f"schema {self.schema_number}",
            f"  languages: {_joined(self.languages)}",
            f"  sources: {_joined(self.sources)}",
            f"  hybrid search: {'yes' if self.hybrid else 'no; mla index --optimize adds it'}",
            f"  settings: {_joined(self.settings.given())}",
            f"  vectors: {self.vector_bytes / 1e6:,.1f} MB a copy"
            + (f"; on disk {self.disk_bytes / 1e6:,.1f} MB" if self.disk_bytes is not None else ""),
        ]
        if self.state is not None:
            lines.append(f"  state: {self.state}; optimizer {self.optimizer}")
        if self.replicas:
            shards = [f"{copy.shard} on {copy.peer} {copy.state}" for copy in self.replicas]
            lines.append(f"  shards: {', '.join(shards)}")
        return "\n".join(lines)


class IndexStatus(BaseModel):
    """Status of an index."""

    url: str
    server: str | None
    """Version of the Qdrant server; none for a folder."""
    collections: list[CollectionStatus]

    def text(self) -> str:
        """Return the status as lines for a terminal."""
        head = f"Qdrant {self.server} at {self.url}" if self.server else self.url
        lines = [each.text() for each in self.collections]
        return "\n".join([head, *(lines or ["no collections of mla-ray"])])


def status_of(url: str) -> IndexStatus:
    """Return the status of an index: a server, or `edge:folder`.

    With a prefix it has only that project's collections, otherwise all of mla-ray on the server.

    Raises:
        ValueError: The URL is malformed.
        LookupError: The folder does not exist.
        RuntimeError: Another process owns the folder, or the server refuses a request.
        ConnectionError: No server answers.

    """
    scheme, _, rest = url.partition(":")
    if scheme == "edge" and rest:
        root = Path(rest).expanduser().resolve()
        if not root.is_dir():
            raise LookupError(f"{root} does not exist; `mla index --captions …` makes an index")
        return IndexStatus(url=url, server=None, collections=list(_of_folder(root)))
    address = Address.parse(url)
    with closing(connect(url)) as client, reaching(url):
        found = client.info().version
        check_version(found, url)
        collections = list(_of_server(client, url, address.prefix))
    return IndexStatus(url=url, server=found, collections=collections)


def _of_folder(root: Path) -> Iterator[CollectionStatus]:
    for folder in sorted(path.parent for path in root.glob("*/current")):
        record = json.loads((folder / "space.json").read_text())
        space = recorded_space(record)
        with closing(EdgeBackend.open(folder, CollectionConfig(space), create=False)) as backend:
            shard = backend.shard
            indexed = shard.info().indexed_vectors_count
            if backend.config.has_words:  # the engine counts them, too
                indexed -= shard.count(edge.CountRequest(exact=True, filter=HAS_WORDS_HERE))
            yield _status(
                backend,
                collection=folder.name,
                version=(folder / "current").read_text(),
                in_graph=max(indexed, 0),
                disk_bytes=occupied(folder),
            )


def _of_server(client: QdrantClient, url: str, prefix: str) -> Iterator[CollectionStatus]:
    aliases = {a.alias_name: a.collection_name for a in client.get_aliases().aliases}
    for alias, version in sorted(aliases.items()):
        info = client.get_collection(version)
        record = record_of(info.config, alias)
        if not is_ours(record) or not alias.startswith(prefix + SEPARATOR if prefix else ""):
            continue
        space = recorded_space(record)
        layout = ForeignLayout.of_record(record)
        config = CollectionConfig(
            space,
            settings_of(info.config, layout),
            record["schema"],
            record.get("words", 0),
            layout,
        )
        cluster = client.collection_cluster_info(version)
        replicas = [
            Replica(shard=shard.shard_id, peer=cluster.peer_id, state=shard.state.value)
            for shard in cluster.local_shards
        ] + [
            Replica(shard=shard.shard_id, peer=shard.peer_id, state=shard.state.value)
            for shard in cluster.remote_shards
        ]
        optimizer = info.optimizer_status
        indexed = info.indexed_vectors_count or 0
        if config.has_words:  # the server counts them, too
            indexed -= client.count(version, count_filter=HAS_WORDS, exact=True).count
        yield _status(
            server_backend(client, url, config, alias, alias),
            collection=alias.removesuffix(alias_of("", space.fingerprint)),
            version=version,
            in_graph=max(indexed, 0),  # it was counted at different times
            state=info.status.value,
            optimizer=getattr(optimizer, "error", None) or "ok",
            replicas=sorted(replicas, key=lambda copy: (copy.shard, copy.peer)),
        )


def _status(backend: CollectionBackend, **found: object) -> CollectionStatus:
    """Return the status of a collection: what is asked for alike everywhere, and what was found."""
    contents = CaptionIndex(backend, backend.config.space).contents()
    space, points = contents.space, contents.entries
    return CollectionStatus.model_validate(
        {
            "native": space.native,
            "fingerprint": space.fingerprint,
            "dim": space.dim,
            "schema_number": contents.schema,
            "points": points,
            "languages": contents.languages,
            "sources": contents.sources,
            "hybrid": backend.config.has_words,
            "settings": backend.config.settings,
            "vector_bytes": points * space.dim * 4,
            **found,
        }
    )


def _joined(parts: dict[str, object] | dict[str, int]) -> str:
    """Return `name value, name value`, numbers with separators of thousands."""
    pairs = [
        f"{name} {value:,}" if type(value) is int else f"{name} {str(value).lower()}"
        for name, value in parts.items()
    ]
    return ", ".join(pairs) or "none"
