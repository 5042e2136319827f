"""Collections on a Qdrant server, through HTTP or gRPC, or in qdrant-client's local mode."""

import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models

from mla_ray.index.address import Address
from mla_ray.index.backend import (
    HASH,
    INDEXED,
    MAX_LANGUAGES,
    SCROLL,
    SCROLL_VECTORS,
    VECTOR,
    CollectionBackend,
    CollectionConfig,
    ForeignLayout,
    Nearest,
    Payload,
    PayloadFilter,
    Point,
    counts_by_value,
    hashes_by_id,
    payloads_and_next,
    payloads_and_scores,
    scrolled,
    whole_points,
)
from mla_ray.index.lexical import WORDS_RULE
from mla_ray.index.server_errors import API_KEY, CA_FILE, ERRORS, is_full, reaching
from mla_ray.index.server_requests import filter_of, request_of, row_of
from mla_ray.index.server_settings import creation_of, record_of, settings_of
from mla_ray.index.server_version import check_version
from mla_ray.index.server_words import add_words
from mla_ray.index.settings import IndexSettings
from mla_ray.index.versions import (
    check_kept,
    next_version,
    no_such_collection,
    version,
    versions,
)

log = logging.getLogger(__package__)

GRPC_CA_FILE = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
"""gRPC's own environment variable of the file of certificate authorities."""
RECONNECTION = {"grpc.initial_reconnect_backoff_ms": 200, "grpc.max_reconnect_backoff_ms": 1000}
"""Options of gRPC. By default it tries a server that was away again after up to two minutes."""
P = TypeVar("P", models.Record, models.ScoredPoint)

MAX_HITS = 10_000
"""Most hits of one response. They are about 5 MB of JSON."""
VACUUM_S = 3600
"""Seconds in which a server must have freed the space of removed points."""
VACUUM_POLL_S = 0.5
"""Seconds between two questions whether it has."""
_AT_WORK = (models.CollectionStatus.YELLOW, models.CollectionStatus.GREY)


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
        record = record_of(found, self.name)
        layout = ForeignLayout.of_record(record)
        stored = config.settings if self.local else settings_of(found, layout)
        self.config = config.of_record(record, stored, f"collection {self.name!r}")
        return self

    def _alias(self, aliases: dict[str, str]) -> str:
        """Return the native's alias for the collection: one that exists, or that of a new one.

        The alias contains the native's fingerprint. In mla-ray 0.1.0 it was the collection's name,
        for one native a server: such an alias is used by the native whose vectors it names.
        """
        space = self.config.space
        names = [alias_of(self.collection, found) for found in space.fingerprints]
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
        self.client.update_collection_aliases([point_alias(self.name, first)])
        if others:
            log.warning("made %s for native %r, beside that of %s", first, space.native, others)

    def _other_natives(self, aliases: dict[str, str]) -> str:
        """Return name and fingerprint of the natives that have a collection of this name."""
        ours = aliases_of(self.collection)
        records = [
            record_of(self.client.get_collection(name).config, name)
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
        with self._reaching():
            nobody = models.PointIdsList(points=[str(uuid.UUID(int=0))])
            self.client.delete(self.name, nobody)

    def upsert(self, points: list[Point]) -> None:
        """Write points, and wait until the server has applied them."""
        rows = [row_of(point, self.config) for point in points]
        with self._reaching():
            self.client.upsert(self.name, rows, wait=True)

    def delete(self, where: PayloadFilter, ids: list[str] | None = None) -> int:
        """Remove the points that match, or those of `ids` that match. Return how many."""
        chosen = filter_of(where, ids)
        with self._reaching():
            matching = self.client.count(self.name, count_filter=chosen, exact=True).count
            if matching:
                self.client.delete(self.name, models.FilterSelector(filter=chosen), wait=True)
        return matching

    def hashes(self, ids: list[str]) -> dict[str, str]:
        """Return the hashes of those points in `ids` that exist and have one, by id."""
        with self._reaching():
            found = self.client.retrieve(self.name, ids, with_payload=[HASH], with_vectors=False)
        return hashes_by_id(found)

    def search(self, queries: Sequence[Nearest]) -> list[list[tuple[Payload, float]]]:
        """Return payloads and scores of each query, best first, equal scores in any order.

        Queries share requests, because a request costs more than a search.
        """
        results = []
        for batch in _in_requests(queries):
            requests = [self._request(query) for query in batch]
            with self._reaching():
                responses = self.client.query_batch_points(self.name, requests)
            results += [payloads_and_scores(self._read(each.points)) for each in responses]
        return results

    def _request(self, query: Nearest) -> models.QueryRequest:
        return request_of(query, self.config, self.local)

    def _filter(self, where: PayloadFilter) -> models.Filter:
        return filter_of(where)

    def _read(self, points: Sequence[P]) -> Sequence[P]:
        """Return points with our payload, as these have it already."""
        return points

    def page(
        self, where: PayloadFilter, limit: int, start: str | None
    ) -> tuple[list[Payload], str | None]:
        """Return payloads of points that match, and the id of the point after them."""
        with self._reaching():
            points, following = self.client.scroll(
                self.name, scroll_filter=self._filter(where), limit=limit, offset=start
            )
        return payloads_and_next(points, following)

    def scroll(self, where: PayloadFilter) -> Iterator[Payload]:
        """Yield the payloads of all points that match, in the order of point ids."""
        return scrolled(lambda start: self.page(where, SCROLL, start))

    def points(self) -> Iterator[Point]:
        """Yield all points with their vectors, in the order of point ids."""
        return whole_points(
            scroll_records(
                self.client, self.url, self.name, limit=SCROLL_VECTORS, with_vectors=[VECTOR]
            )
        )

    def retrieve(self, ids: list[str]) -> list[Point]:
        """Return the points with these ids and their vectors, in any order; skip missing ones."""
        with self._reaching():
            return list(whole_points(self.client.retrieve(self.name, ids, with_vectors=[VECTOR])))

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
            try:
                self._create(fresh, config)
            except ERRORS as error:
                if is_full(error):  # the server has the collection all the same, empty
                    with suppress(*ERRORS):
                        self.client.delete_collection(fresh)
                raise
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
                    point_alias(self.name, fresh),
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

    def optimize(self, reclaim: bool = False) -> None:
        """Have the server free the space of removed points, and wait for it, if `reclaim` is set.

        Otherwise do nothing: a server builds the graph in the background, and local mode has none.
        """
        if reclaim and not self.local:
            with self._reaching():
                self._vacuum()

    def _vacuum(self) -> None:
        """Lower the limits of removed points until every segment is free of them."""
        name = self._version()
        usual = self.client.get_collection(name).config.optimizer_config
        eager = models.OptimizersConfigDiff(deleted_threshold=0, vacuum_min_vector_number=100)
        self.client.update_collection(name, optimizers_config=eager)
        try:
            deadline = time.monotonic() + VACUUM_S
            while (state := self.client.get_collection(name)).status in _AT_WORK:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"the Qdrant server at {self.url} has not rewritten {name} within "
                        f"{VACUUM_S} s; it continues by itself"
                    )
                time.sleep(VACUUM_POLL_S)
        finally:
            self.client.update_collection(
                name,
                optimizers_config=models.OptimizersConfigDiff(
                    deleted_threshold=usual.deleted_threshold,
                    vacuum_min_vector_number=usual.vacuum_min_vector_number,
                ),
            )
        if state.status == models.CollectionStatus.RED:
            raise RuntimeError(
                f"the Qdrant server at {self.url} cannot rewrite {name}: {state.optimizer_status}; "
                "see its log"
            )

    def add_words(self) -> None:
        """Give words to all captions that lack them. An interrupted call can be repeated."""
        if self.config.has_words:
            return
        with self._reaching():
            name = self._version()
            add_words(self.client, self.url, name, self.points())
            config = replace(self.config, words=WORDS_RULE)
            self.client.update_collection(name, metadata=config.record())
            self.config = config

    def _version(self) -> str:
        """Return the name of the version that requests use."""
        aliases = self.client.get_aliases().aliases
        names = {alias.alias_name: alias.collection_name for alias in aliases}
        return names.get(self.name, self.name)

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

    def _reaching(self) -> AbstractContextManager[None]:
        return reaching(self.url)

    def _names(self) -> list[str]:
        return [collection.name for collection in self.client.get_collections().collections]


def alias_of(collection: str, fingerprint: str) -> str:
    """Return the alias of a native's collection. `collection` has its prefix."""
    return f"{collection}-{fingerprint[:12]}"


def aliases_of(collection: str) -> re.Pattern[str]:
    """Return a pattern of the aliases of a collection for any native, that of 0.1.0 included."""
    return re.compile(re.escape(collection) + "(-[0-9a-f]{12})?")


def scroll_records(
    client: QdrantClient, url: str, name: str, **options: Any
) -> Iterator[models.Record]:
    """Yield the points of a collection in the order of their ids, page by page.

    `options` are those of `QdrantClient.scroll`.
    """

    def page_from(offset: Any) -> tuple[list[models.Record], Any]:
        with reaching(url):
            return client.scroll(name, offset=offset, **options)

    return scrolled(page_from)


def _in_requests(queries: Sequence[Nearest]) -> Iterator[list[Nearest]]:
    """Yield the queries in batches with at most `MAX_HITS` hits, or of one query."""
    batch: list[Nearest] = []
    hits = 0
    for query in queries:
        if batch and hits + query.limit > MAX_HITS:
            yield batch
            batch, hits = [], 0
        batch.append(query)
        hits += query.limit
    if batch:
        yield batch


def point_alias(alias: str, name: str) -> models.CreateAliasOperation:
    """Return the operation that makes an alias refer to a collection."""
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=name, alias_name=alias)
    )


def connect(url: str, timeout_s: int | None = None) -> QdrantClient:
    """Return a client for the server at `url`, which connects at the first request.

    The API key is `QDRANT_API_KEY`. `SSL_CERT_FILE` is the file of the certificate authorities, as
    for HTTP; gRPC's own variable has the last word there. `timeout_s` is the time limit of one
    request in seconds, by default the 5 of qdrant-client.

    Raises:
        ValueError: The URL is malformed, or it contains a user or password.

    """
    address = Address.parse(url)
    # mla-ray compares versions itself. The client's check also uses the HTTP port of a gRPC server.
    shared: dict[str, Any] = {"api_key": os.environ.get(API_KEY), "check_compatibility": False}
    if address.scheme.startswith("http"):
        return QdrantClient(address.url, timeout=timeout_s, **shared)
    options: dict[str, Any] = dict(RECONNECTION)  # the client adds to it
    ca_file = os.environ.get(CA_FILE)
    if address.scheme == "grpcs" and ca_file and GRPC_CA_FILE not in os.environ:
        options["root_certificates"] = Path(ca_file).read_bytes()
    return QdrantClient(
        f"http{address.scheme.removeprefix('grpc')}://{address.host}",
        grpc_port=address.port or 6334,
        prefer_grpc=True,
        timeout=timeout_s,
        grpc_options=options,
        **shared,
    )
