"""Collections on a Qdrant server, through HTTP or gRPC, or in qdrant-client's local mode."""

import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from mla_ray.index.address import Address
from mla_ray.index.backend import (
    HNSW_EF,
    INDEXED,
    MAX_LANGUAGES,
    OVERSAMPLING,
    SCROLL,
    VECTOR,
    CollectionBackend,
    CollectionConfig,
    Payload,
    PayloadFilter,
    Point,
    check_kept,
    counts_by_value,
    next_version,
    no_such_collection,
    payloads_and_scores,
    scrolled,
    version,
    versions,
)
from mla_ray.index.server_errors import API_KEY, CA_FILE, ERRORS, reaching
from mla_ray.index.server_settings import creation_of, settings_of
from mla_ray.index.server_version import check_version
from mla_ray.index.settings import IndexSettings

log = logging.getLogger(__package__)

GRPC_CA_FILE = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
"""gRPC's own environment variable of the file of certificate authorities."""


class ServerBackend:
    """Backend of a Qdrant server, or of qdrant-client's local mode, which behaves like one."""

    def __init__(
        self, client: QdrantClient, url: str, config: CollectionConfig, collection: str, name: str
    ) -> None:
        """Use an existing collection.

        Args:
            client: The client.
            url: URL of the index, for messages.
            config: Configuration of the collection.
            collection: Name of the collection, with its prefix; names of versions begin with it.
            name: Used by requests: the alias, or a version that is being filled.

        """
        self.client = client
        self.url = url
        self.local = url == ":memory:"
        self.config = config
        self.collection = collection
        self.name = name

    @classmethod
    def open(
        cls, client: QdrantClient, url: str, config: CollectionConfig, collection: str, create: bool
    ) -> "ServerBackend":
        """Open a collection; create it if it is missing and `create` is set.

        Raises:
            LookupError: The collection does not exist, and `create` is False.
            ValueError: The collection does not match `config`.
            ConnectionError: The server does not answer.
            RuntimeError: The server refuses a request.

        """
        self = cls(client, url, config, collection, "")
        with self._reaching():
            if not self.local:
                check_version(client.info().version, url)
            aliases = {a.alias_name: a.collection_name for a in client.get_aliases().aliases}
            self.name = self._alias(aliases)
            if self.name not in aliases:
                self._create_first(aliases, create)
            found = client.get_collection(self.name).config
        stored = config.settings if self.local else settings_of(found)
        self.config = config.of_record(found.metadata, stored, f"collection {self.name!r}")
        return self

    def _alias(self, aliases: dict[str, str]) -> str:
        """Return the native's alias for the collection: one that exists, or that of a new one.

        The alias contains the native's fingerprint. In mla-ray 0.1.0 it was the collection's name,
        for one native a server: such an alias is used by the native whose vectors it names.
        """
        space = self.config.space
        names = [f"{self.collection}-{found[:12]}" for found in space.fingerprints]
        for name in names:
            if name in aliases:
                return name
        if self.collection in aliases:
            record = self.client.get_collection(self.collection).config.metadata or {}
            if record.get("fingerprint") in space.fingerprints:
                return self.collection
        return names[0]

    def _create_first(self, aliases: dict[str, str], create: bool) -> None:
        """Create the first version and its alias, or raise a LookupError unless `create` is set."""
        space = self.config.space
        others = self._other_natives(aliases)
        if not create:
            raise no_such_collection(
                f"collection {self.collection!r} of native {space.native!r} (fingerprint "
                f"{space.fingerprint}){f', beside that of {others},' if others else ''} at "
                f"{self.url}"
            )
        first = version(space, self.collection, 1)
        self._create(first, self.config, exist_ok=True)  # another process may create it, too
        self.client.update_collection_aliases([_point_alias(self.name, first)])
        if others:
            log.warning("made %s for native %r, beside that of %s", first, space.native, others)

    def _other_natives(self, aliases: dict[str, str]) -> str:
        """Return name and fingerprint of the natives that have a collection of this name."""
        ours = re.compile(re.escape(self.collection) + "(-[0-9a-f]{12})?")
        records = [
            self.client.get_collection(name).config.metadata or {}
            for name in sorted(aliases)
            if ours.fullmatch(name)
        ]
        return ", ".join(
            f"native {record['native']!r} (fingerprint {record['fingerprint']})"
            for record in records
            if record.keys() >= {"native", "fingerprint"}
        )

    def check_writable(self) -> None:
        """Raise a RuntimeError if the key may not write, by removing a point that never exists."""
        self.delete([str(uuid.UUID(int=0))], {})

    def upsert(self, points: list[Point]) -> None:
        """Write points, and wait until the server has applied them."""
        rows = [
            models.PointStruct(id=p.id, vector={VECTOR: p.vector}, payload=p.payload)
            for p in points
        ]
        with self._reaching():
            self.client.upsert(self.name, rows, wait=True)

    def delete(self, ids: list[str], where: PayloadFilter) -> None:
        """Remove the points in `ids` that match `where`."""
        chosen = models.FilterSelector(filter=self._filter(where, ids))
        with self._reaching():
            self.client.delete(self.name, chosen, wait=True)

    def search(
        self, vector: list[float], limit: int, where: PayloadFilter
    ) -> list[tuple[Payload, float]]:
        """Return payloads and cosines, best first, equal scores in any order."""
        params = models.SearchParams(hnsw_ef=HNSW_EF)
        if self.config.quantization:
            params.quantization = models.QuantizationSearchParams(
                rescore=True, oversampling=OVERSAMPLING
            )
        with self._reaching():
            response = self.client.query_points(
                self.name,
                query=vector,
                using=VECTOR,
                limit=limit,
                query_filter=self._filter(where),
                search_params=None if self.local else params,
            )
        return payloads_and_scores(response.points)

    def scroll(self, where: PayloadFilter) -> Iterator[Payload]:
        """Yield the payloads of all points that match, in the order of point ids."""

        def page_from(offset: Any) -> tuple[list[models.Record], Any]:
            with self._reaching():
                return self.client.scroll(
                    self.name, scroll_filter=self._filter(where), limit=SCROLL, offset=offset
                )

        return scrolled(page_from)

    def count(self, where: PayloadFilter) -> int:
        """Return the number of points that match."""
        with self._reaching():
            return self.client.count(self.name, count_filter=self._filter(where), exact=True).count

    def facet(self, field: str) -> dict[str, int]:
        """Return the number of points by value of a payload field."""
        with self._reaching():
            response = self.client.facet(self.name, field, limit=MAX_LANGUAGES, exact=True)
        return counts_by_value(response.hits)

    @contextmanager
    def rebuild(self, settings: IndexSettings | None = None) -> Iterator[CollectionBackend]:
        """Yield an empty next version that replaces this one when the `with` block ends.

        If the block raises, the next version is deleted and this one stays.
        """
        with self._reaching():
            space, config = self.config.space, self.config.rebuilt(settings)
            fresh = next_version(space, self.collection, self._names())
            self._create(fresh, config)
            try:
                yield ServerBackend(self.client, self.url, config, self.collection, fresh)
                check_kept(fresh, self._names())
            except BaseException:
                self.client.delete_collection(fresh)
                raise
            forget = models.DeleteAlias(alias_name=self.name)
            self.client.update_collection_aliases(  # one request, so that the swap is atomic
                [
                    models.DeleteAliasOperation(delete_alias=forget),
                    _point_alias(self.name, fresh),
                ]
            )
            self.config = config
            for name in versions(space, self.collection, self._names()):
                if name != fresh:  # the replaced version, and those of rebuilds that were killed
                    self.client.delete_collection(name)

    def ping(self) -> None:
        """Raise a ConnectionError or RuntimeError if the collection cannot be reached."""
        with self._reaching():
            self.client.get_collection(self.name)

    def optimize(self) -> None:
        """Do nothing: a server builds the graph in the background, and local mode has no graph."""

    def flush(self) -> None:
        """Do nothing: every write waits for the server."""

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def _create(self, name: str, config: CollectionConfig, *, exist_ok: bool = False) -> None:
        try:
            self.client.create_collection(name, **creation_of(config))
        except ERRORS:
            if not (exist_ok and self.client.collection_exists(name)):
                raise
        if not self.local:  # in local mode payload indexes have no effect and cause a warning
            for field in INDEXED:
                self.client.create_payload_index(name, field, models.PayloadSchemaType.KEYWORD)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Convert errors of the client in the `with` block.

        Raises:
            ConnectionError: The server does not answer, or the request may succeed later.
            RuntimeError: The server refuses the request.

        """
        with reaching(self.url):
            yield

    def _names(self) -> list[str]:
        return [collection.name for collection in self.client.get_collections().collections]

    @staticmethod
    def _filter(where: PayloadFilter, ids: list[str] | None = None) -> models.Filter:
        must: list[models.Condition] = [
            models.IsEmptyCondition(is_empty=models.PayloadField(key=field))
            if value is None
            else models.FieldCondition(key=field, match=models.MatchValue(value=value))
            for field, value in where.items()
        ]
        if ids is not None:
            must.append(models.HasIdCondition(has_id=list(ids)))
        return models.Filter(must=must)


def _point_alias(alias: str, name: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=name, alias_name=alias)
    )


def connect(url: str) -> QdrantClient:
    """Return a client for the server at `url`, which connects at the first request.

    The API key is `QDRANT_API_KEY`. `SSL_CERT_FILE` is the file of the certificate authorities, as
    for HTTP; gRPC's own variable has the last word there.

    Raises:
        ValueError: The URL is malformed, or it contains a user or password.

    """
    address = Address.parse(url)
    # mla-ray compares versions itself. The client's check also uses the HTTP port of a gRPC server.
    shared: dict[str, Any] = {"api_key": os.environ.get(API_KEY), "check_compatibility": False}
    if address.scheme.startswith("http"):
        return QdrantClient(address.url, **shared)
    options: dict[str, Any] = {}
    ca_file = os.environ.get(CA_FILE)
    if address.scheme == "grpcs" and ca_file and GRPC_CA_FILE not in os.environ:
        options["root_certificates"] = Path(ca_file).read_bytes()
    return QdrantClient(
        f"http{address.scheme.removeprefix('grpc')}://{address.host}",
        grpc_port=address.port or 6334,
        prefer_grpc=True,
        grpc_options=options,
        **shared,
    )
