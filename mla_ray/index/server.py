"""Collections on a Qdrant server, through HTTP or gRPC, or in qdrant-client's local mode."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from mla_ray.index.backend import (
    HNSW_EF,
    INDEXED,
    MAX_LANGUAGES,
    OVERSAMPLING,
    QUANTILE,
    SCROLL,
    SCROLL_VECTORS,
    VECTOR,
    CollectionBackend,
    CollectionConfig,
    Nearest,
    Payload,
    PayloadFilter,
    Point,
    check_kept,
    counts_by_value,
    next_version,
    no_such_collection,
    payloads_and_next,
    payloads_and_scores,
    scrolled,
    version,
    versions,
    whole_points,
)

_ERRORS = (
    ResponseHandlingException,  # no connection, or no response in time
    ResourceExhaustedResponse,  # 429
    UnexpectedResponse,
    grpc.RpcError,
)
VACUUM_S = 3600
"""Seconds in which a server must have freed the space of removed points."""
VACUUM_POLL_S = 0.5
"""Seconds between two questions whether it has."""
_AT_WORK = (models.CollectionStatus.YELLOW, models.CollectionStatus.GREY)

RECONNECTION = {"grpc.initial_reconnect_backoff_ms": 200, "grpc.max_reconnect_backoff_ms": 1000}
"""Options of gRPC. By default it tries a server that was away again after up to two minutes."""
MAX_HITS = 10_000
"""Most hits of one response. They are about 5 MB of JSON."""


class ServerBackend:
    """Backend of a Qdrant server, or of qdrant-client's local mode, which behaves like one."""

    def __init__(
        self, client: QdrantClient, url: str, config: CollectionConfig, collection: str, name: str
    ) -> None:
        self.client = client
        self.url = url
        self.local = url == ":memory:"
        self.config = config
        self.collection = collection  # the alias
        self.name = name  # used by requests: the alias, or a version that is being filled

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
        self = cls(client, url, config, collection, collection)
        with self._reaching():
            if collection not in {alias.alias_name for alias in client.get_aliases().aliases}:
                if not create:
                    raise no_such_collection(f"collection {collection!r}")
                first = version(config.space, collection, 1)
                self._create(first, config, exist_ok=True)  # another process may create it, too
                client.update_collection_aliases([_point_alias(collection, first)])
            record = client.get_collection(collection).config.metadata
        self.config = config.of_record(record, f"collection {collection!r}")
        return self

    def check_writable(self) -> None:
        """Do nothing: a server refuses the write request itself."""

    def upsert(self, points: list[Point]) -> None:
        """Write points, and wait until the server has applied them."""
        rows = [
            models.PointStruct(id=p.id, vector={VECTOR: p.vector}, payload=p.payload)
            for p in points
        ]
        with self._reaching():
            self.client.upsert(self.name, rows, wait=True)

    def delete(self, where: PayloadFilter, ids: list[str] | None = None) -> int:
        """Remove the points that match, or those of `ids` that match. Return how many."""
        chosen = self._filter(where, ids)
        with self._reaching():
            matching = self.client.count(self.name, count_filter=chosen, exact=True).count
            if matching:
                self.client.delete(self.name, models.FilterSelector(filter=chosen), wait=True)
        return matching

    def search(self, queries: Sequence[Nearest]) -> list[list[tuple[Payload, float]]]:
        """Return payloads and cosines of each query, best first, equal scores in any order.

        Queries share requests, because a request costs more than a search.
        """
        params = models.SearchParams(hnsw_ef=HNSW_EF)
        if self.config.quantization:
            params.quantization = models.QuantizationSearchParams(
                rescore=True, oversampling=OVERSAMPLING
            )
        results = []
        for batch in _in_requests(queries):
            requests = [
                models.QueryRequest(
                    query=query.vector,
                    using=VECTOR,
                    limit=query.limit,
                    filter=self._filter(query.where),
                    params=None if self.local else params,
                    with_payload=True,
                )
                for query in batch
            ]
            with self._reaching():
                responses = self.client.query_batch_points(self.name, requests)
            results += [payloads_and_scores(response.points) for response in responses]
        return results

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
    def rebuild(self) -> Iterator[CollectionBackend]:
        """Yield an empty next version that replaces this one when the `with` block ends.

        If the block raises, the next version is deleted and this one stays.
        """
        with self._reaching():
            space, config = self.config.space, self.config.rebuilt()
            fresh = next_version(space, self.collection, self._names())
            self._create(fresh, config)
            try:
                yield ServerBackend(self.client, self.url, config, self.collection, fresh)
                check_kept(fresh, self._names())
            except BaseException:
                self.client.delete_collection(fresh)
                raise
            forget = models.DeleteAlias(alias_name=self.collection)
            self.client.update_collection_aliases(  # one request, so that the swap is atomic
                [
                    models.DeleteAliasOperation(delete_alias=forget),
                    _point_alias(self.collection, fresh),
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
        aliases = self.client.get_aliases().aliases
        name = {alias.alias_name: alias.collection_name for alias in aliases}.get(
            self.name, self.name
        )
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

    def flush(self) -> None:
        """Do nothing: every write waits for the server."""

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def _create(self, name: str, config: CollectionConfig, *, exist_ok: bool = False) -> None:
        int8 = models.ScalarQuantizationConfig(
            type=models.ScalarType.INT8, quantile=QUANTILE, always_ram=True
        )
        params = models.VectorParams(
            size=config.space.dim,
            distance=models.Distance.COSINE,
            quantization_config=models.ScalarQuantization(scalar=int8)
            if config.quantization
            else None,
        )
        record = config.record()
        try:
            self.client.create_collection(name, vectors_config={VECTOR: params}, metadata=record)
        except _ERRORS:
            if not (exist_ok and self.client.collection_exists(name)):
                raise
        if not self.local:  # in local mode payload indexes have no effect and cause a warning
            for field in INDEXED:
                self.client.create_payload_index(name, field, models.PayloadSchemaType.KEYWORD)

    def _reaching(self) -> AbstractContextManager[None]:
        return reaching(self.url)

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


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Convert errors of the client of the server at `url` in the `with` block.

    Raises:
        ConnectionError: The server does not answer, or the request may succeed later.
        RuntimeError: The server refuses the request.

    """
    try:
        yield
    except _ERRORS as error:
        if _is_passing(error):
            raise ConnectionError(
                f"no Qdrant server answers at {url}: {_said(error)}; start one, or use edge:folder"
            ) from error
        raise RuntimeError(f"the Qdrant server at {url} refuses: {_said(error)}") from error


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


def _point_alias(alias: str, name: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=name, alias_name=alias)
    )


def _is_passing(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code in (408, 429, 502, 503, 504)
    if isinstance(error, grpc.RpcError):
        codes = grpc.StatusCode
        return error.code() in (
            codes.UNAVAILABLE,
            codes.DEADLINE_EXCEEDED,
            codes.RESOURCE_EXHAUSTED,
        )
    return True


def _said(error: Exception) -> str:
    return (
        f"{error.code().name}: {error.details()}"
        if isinstance(error, grpc.RpcError)
        else str(error)
    )


def connect(url: str, timeout_s: int | None = None) -> QdrantClient:
    """Return a client for the server at `url`, which connects at the first request.

    The API key is `QDRANT_API_KEY`. `timeout_s` is the time limit of one request in seconds, by
    default the 5 of qdrant-client.

    Raises:
        ValueError: The URL is malformed, or it contains a user or password.

    """
    address = urlsplit(url)
    if address.scheme not in ("http", "https", "grpc", "grpcs") or not address.hostname:
        raise ValueError(
            f"index {url!r} is not understood; give http(s)://host:port, grpc(s)://host:port, "
            "edge:folder or :memory:"
        )
    if "@" in address.netloc:
        raise ValueError(
            "the index URL contains a user or password; set QDRANT_API_KEY instead, because URLs "
            "are written to logs"
        )
    key = os.environ.get("QDRANT_API_KEY")
    if address.scheme.startswith("http"):
        return QdrantClient(url, api_key=key, timeout=timeout_s)
    return QdrantClient(
        f"http{address.scheme.removeprefix('grpc')}://{address.hostname}",
        grpc_port=address.port or 6334,
        prefer_grpc=True,
        api_key=key,
        timeout=timeout_s,
        grpc_options=dict(RECONNECTION),  # the client adds to it
        check_compatibility=False,  # the check uses the HTTP port, which may be closed
    )
