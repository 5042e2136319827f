"""Collections on a Qdrant server, through HTTP or gRPC, or in qdrant-client's local mode."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from mla_ray.index.backend import (
    HASH,
    HNSW_EF,
    INDEXED,
    MAX_LANGUAGES,
    OVERSAMPLING,
    QUANTILE,
    SCROLL,
    VECTOR,
    CollectionBackend,
    CollectionConfig,
    Payload,
    PayloadFilter,
    Point,
    check_kept,
    counts_by_value,
    hashes_by_id,
    next_version,
    no_such_collection,
    payloads_and_scores,
    scrolled,
    version,
    versions,
)

_ERRORS = (
    ResponseHandlingException,  # no connection, or no response in time
    ResourceExhaustedResponse,  # 429
    UnexpectedResponse,
    grpc.RpcError,
)


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

    def delete(self, ids: list[str], where: PayloadFilter) -> None:
        """Remove the points in `ids` that match `where`."""
        chosen = models.FilterSelector(filter=self._filter(where, ids))
        with self._reaching():
            self.client.delete(self.name, chosen, wait=True)

    def hashes(self, ids: list[str]) -> dict[str, str]:
        """Return the hashes of those points in `ids` that exist and have one, by id."""
        with self._reaching():
            found = self.client.retrieve(self.name, ids, with_payload=[HASH], with_vectors=False)
        return hashes_by_id(found)

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

    def optimize(self) -> None:
        """Do nothing: a server builds the graph in the background, and local mode has no graph."""

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

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Convert errors of the client in the `with` block.

        Raises:
            ConnectionError: The server does not answer, or the request may succeed later.
            RuntimeError: The server refuses the request.

        """
        try:
            yield
        except _ERRORS as error:
            if _is_passing(error):
                raise ConnectionError(
                    f"no Qdrant server answers at {self.url}: {_said(error)}; start one, or use "
                    "edge:folder"
                ) from error
            raise RuntimeError(
                f"the Qdrant server at {self.url} refuses: {_said(error)}"
            ) from error

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


def connect(url: str) -> QdrantClient:
    """Return a client for the server at `url`, which connects at the first request.

    The API key is `QDRANT_API_KEY`.

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
        return QdrantClient(url, api_key=key)
    return QdrantClient(
        f"http{address.scheme.removeprefix('grpc')}://{address.hostname}",
        grpc_port=address.port or 6334,
        prefer_grpc=True,
        api_key=key,
        check_compatibility=False,  # the check uses the HTTP port, which may be closed
    )
