"""Ray Serve deployments of the engines and of the FastAPI app in front of them.

Ingress (FastAPI) ──► TextEncoder, ImageEncoder     autoscaled; each replica holds the whole native
                 └──► Index                         one replica for the embedded engine
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypedDict, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from mla_ray.index.entry import Conditions, Contents, Entry, EntryPage
from mla_ray.model.native import Native
from mla_ray.serving.app import create_app
from mla_ray.serving.breaker import IndexUnavailable
from mla_ray.serving.coalescing import Overloaded
from mla_ray.serving.engines import (
    Encoded,
    Hashes,
    Identity,
    ImageEngine,
    IndexEngine,
    Query,
    QueryResult,
    Text,
    TextEngine,
    Vectors,
    torch_thread,
)
from mla_ray.serving.schemas import Collection
from mla_ray.serving.settings import Settings

T = TypeVar("T")
Replica = TypeVar("Replica")
log = logging.getLogger(__name__)


class DeploymentOptions(TypedDict, total=False):
    """Options of a Ray Serve deployment that this package sets. A Serve config may set any."""

    num_replicas: int
    max_ongoing_requests: int
    max_queued_requests: int
    health_check_period_s: float
    health_check_timeout_s: float
    graceful_shutdown_timeout_s: float
    ray_actor_options: Mapping[str, float]


OPEN_FOR_S = 30  # seconds in which the previous replica drains and releases the index folder
COMMON: DeploymentOptions = {
    "health_check_period_s": 5,
    "health_check_timeout_s": 15,
    "graceful_shutdown_timeout_s": 15,
    "ray_actor_options": {"num_cpus": 0.1},
}
DEPLOYMENTS: dict[str, DeploymentOptions] = {
    # The settings limit the concurrent requests of the ingress. These limits are a second bound.
    "Ingress": {"max_ongoing_requests": 2048},
    "TextEncoder": {"max_ongoing_requests": 16, "max_queued_requests": 64},
    "ImageEncoder": {"max_ongoing_requests": 32, "max_queued_requests": 64},
    "Index": {"max_ongoing_requests": 16, "max_queued_requests": 64},
}
ATTEMPTS = 3  # for a call whose replica died; every call can be repeated safely


def batched(
    encode: Callable[[Replica, list[list[Text]]], Awaitable[list[Encoded]]],
) -> Callable[[Replica, list[Text]], Awaitable[Encoded]]:
    """Join calls of several ingress replicas into one batch, as a typed `serve.batch`.

    Each call has a list of texts. At most 8 calls are joined, without a batching delay.
    """
    decorated: Callable[[Replica, list[Text]], Awaitable[Encoded]] = serve.batch(
        max_batch_size=8, batch_wait_timeout_s=0
    )(encode)
    return decorated


class TextEncoder:
    """Deployment that encodes texts, with packs from a store that it watches."""

    def __init__(self, settings: Settings) -> None:
        self._torch_thread = torch_thread()
        threads = _threads(settings)
        self._engine = self._torch_thread.submit(
            TextEngine, settings.native, settings.packs, settings.max_packs, threads
        ).result()
        self._scan_every_s = settings.scan_every_s
        self._store_watcher = asyncio.create_task(self._watch_store())

    async def encode(self, texts: list[Text]) -> Encoded:
        """Encode texts of any languages to unit vectors `[N, E]` float32."""
        return await self._encode_calls(texts)

    async def count_tokens(self, texts: list[Text]) -> list[int | None]:
        """Count the tokens of each text in its language; None if its pack is unavailable."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._torch_thread, self._engine.count_tokens, texts)

    @batched
    async def _encode_calls(self, calls: list[list[Text]]) -> list[Encoded]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._torch_thread, self._encode, calls)

    async def identity(self) -> Identity:
        """Return the identity of the native."""
        return self._engine.identity

    async def broken(self) -> dict[str, str]:
        """Return the errors of packs that cannot be served, by folder name."""
        return dict(self._engine.library.listing.broken)

    async def check_health(self) -> None:
        """Encode a test text. Ray Serve calls this method periodically.

        Raises:
            RuntimeError: The encoder fails, or the task that watches the pack store has ended.

        """
        if self._store_watcher.done():
            raise RuntimeError("the task that watches the pack store has ended")
        await asyncio.get_running_loop().run_in_executor(self._torch_thread, self._engine.check)

    def _encode(self, calls: list[list[Text]]) -> list[Encoded]:
        texts = [text for call in calls for text in call]
        prepared = self._engine.prepare({language for language, _ in texts})
        encoded = self._engine.encode(texts, prepared)
        results, start = [], 0
        for call in calls:
            results.append(encoded[start : start + len(call)])
            start += len(call)
        return results

    async def _watch_store(self) -> None:
        loop, library = asyncio.get_running_loop(), self._engine.library
        while True:
            await asyncio.sleep(self._scan_every_s)
            try:
                for changed in await asyncio.to_thread(library.rescan):
                    await loop.run_in_executor(self._torch_thread, library.renew, changed)
            except (
                Exception
            ) as error:  # if the store is unreachable, the packs in memory remain in service
                log.warning("pack store: %s", error)


class ImageEncoder:
    """Deployment that encodes images."""

    def __init__(self, settings: Settings) -> None:
        self._torch_thread = torch_thread()
        self._engine = self._torch_thread.submit(
            ImageEngine, settings.native, _threads(settings)
        ).result()

    async def encode(self, images: list[bytes]) -> Encoded:
        """Encode images in a file format such as PNG to unit vectors `[N, E]` float32."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._torch_thread, self._engine.encode, images)

    async def check_health(self) -> None:
        """Raise an error if the image tower fails its check."""
        await asyncio.get_running_loop().run_in_executor(self._torch_thread, self._engine.check)


class Index:
    """Deployment that searches and writes the index.

    An `edge:` folder has one owner, so this deployment then needs exactly one replica. A Qdrant
    server accepts any number of replicas.
    """

    def __init__(self, settings: Settings) -> None:
        native = Native.load(settings.native)  # its fingerprint identifies the vectors of an index
        deadline = time.monotonic() + OPEN_FOR_S
        while True:
            try:
                self._engine = IndexEngine(settings.index, native, settings.index_timeout_s)
                break
            except RuntimeError:  # the previous replica still owns the folder
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    async def search(self, queries: list[Query]) -> list[QueryResult]:
        """Search the index. Results are in the order of the queries."""
        return await asyncio.to_thread(self._engine.search, queries)

    async def hashes(self, collection: str, entries: list[Entry]) -> list[str | None]:
        """Return the hash that each entry of a collection was written with, or None."""
        return await asyncio.to_thread(self._engine.hashes, collection, entries)

    async def upsert(
        self, collection: str, entries: list[Entry], vectors: Vectors, hashes: Hashes = None
    ) -> int:
        """Write entries, their vectors `[N, E]` and hashes to a collection. Return their number."""
        return await asyncio.to_thread(self._engine.upsert, collection, entries, vectors, hashes)

    async def delete(self, collection: str, conditions: Conditions) -> int:
        """Remove the entries of a collection that meet every condition. Return their number."""
        return await asyncio.to_thread(self._engine.delete, collection, conditions)

    async def page(
        self, collection: str, conditions: Conditions, limit: int, cursor: str | None
    ) -> EntryPage:
        """Return a page of the entries of a collection that meet every condition."""
        return await asyncio.to_thread(self._engine.page, collection, conditions, limit, cursor)

    async def contents(self) -> dict[Collection, Contents]:
        """Return what each collection holds."""
        return await asyncio.to_thread(self._engine.contents)

    async def languages(self) -> dict[str, int]:
        """Return the number of captions in the index by language."""
        return await asyncio.to_thread(self._engine.languages)

    async def sources(self, image_id: str) -> dict[str, int]:
        """Return the sources that have an image with this id."""
        return await asyncio.to_thread(self._engine.sources, image_id)

    async def check(self) -> None:
        """Raise an error if a collection is unreachable."""
        await asyncio.to_thread(self._engine.check)

    async def check_health(self) -> None:
        """Raise an error if another replica may answer better. Ray Serve then starts one.

        A server that is away is no reason: it is away from every replica.
        """
        with suppress(IndexUnavailable):
            await self.check()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


class HandleBackend:
    """Implementation of `mla_ray.serving.backend.Backend` with deployment handles.

    If a replica dies during a call, the call is repeated, at most `ATTEMPTS` times in total.

    Args:
        text: Handle of `TextEncoder`.
        image: Handle of `ImageEncoder`.
        index: Handle of `Index`.
        timeout_s: Time limit of one call in seconds, repetitions included.

    """

    def __init__(
        self,
        text: DeploymentHandle,
        image: DeploymentHandle,
        index: DeploymentHandle,
        timeout_s: float,
    ) -> None:
        self._text = text
        self._image = image
        self._index = index
        self._timeout_s = timeout_s

    async def identity(self) -> Identity:
        """Return the identity of the native. Wait up to 120 s for the encoder to start."""
        return await self._call(lambda: self._text.identity.remote(), 120)

    async def encode_texts(self, texts: list[Text]) -> Encoded:
        """Encode texts with `TextEncoder`."""
        return await self._call(lambda: self._text.encode.remote(texts))

    async def count_tokens(self, texts: list[Text]) -> list[int | None]:
        """Count the tokens of each text with `TextEncoder`."""
        return await self._call(lambda: self._text.count_tokens.remote(texts))

    async def encode_images(self, images: list[bytes]) -> Encoded:
        """Encode images with `ImageEncoder`."""
        return await self._call(lambda: self._image.encode.remote(images))

    async def search(self, queries: list[Query]) -> list[QueryResult]:
        """Search the index with `Index`."""
        return await self._call(lambda: self._index.search.remote(queries))

    async def hashes(self, collection: str, entries: list[Entry]) -> list[str | None]:
        """Return the hash of each entry with `Index`."""
        return await self._call(lambda: self._index.hashes.remote(collection, entries))

    async def upsert(
        self, collection: str, entries: list[Entry], vectors: Vectors, hashes: Hashes = None
    ) -> int:
        """Write entries, their vectors and hashes with `Index`. Return their number."""
        return await self._call(
            lambda: self._index.upsert.remote(collection, entries, vectors, hashes)
        )

    async def delete(self, collection: str, conditions: Conditions) -> int:
        """Remove entries with `Index`. Return the number of the last attempt."""
        return await self._call(lambda: self._index.delete.remote(collection, conditions))

    async def page(
        self, collection: str, conditions: Conditions, limit: int, cursor: str | None
    ) -> EntryPage:
        """Return a page of a listing with `Index`."""
        return await self._call(
            lambda: self._index.page.remote(collection, conditions, limit, cursor)
        )

    async def contents(self) -> dict[Collection, Contents]:
        """Return what each collection holds with `Index`."""
        return await self._call(lambda: self._index.contents.remote())

    async def languages(self) -> dict[str, int]:
        """Return the number of captions in the index by language."""
        return await self._call(lambda: self._index.languages.remote())

    async def sources(self, image_id: str) -> dict[str, int]:
        """Return the sources that have an image with this id."""
        return await self._call(lambda: self._index.sources.remote(image_id))

    async def broken(self) -> dict[str, str]:
        """Return the errors of packs that one replica cannot serve, by folder name."""
        return await self._call(lambda: self._text.broken.remote())

    async def health(self) -> dict[str, str]:
        """Check one replica of each deployment. Return `ok` or the type of the error by part."""
        checks = {
            "text": self._text.check_health,
            "image": self._image.check_health,
            "index": self._index.check,
        }

        async def state(check: DeploymentHandle) -> str:
            try:
                await self._call(lambda: check.remote(), 5)
                return "ok"
            except Exception as error:  # any error marks this part unhealthy
                return type(getattr(error, "cause", error)).__name__  # Ray's own has a cause

        states = await asyncio.gather(*(state(check) for check in checks.values()))
        return dict(zip(checks, states, strict=True))

    async def refresh(self) -> None:
        """Do nothing, as the encoders watch the pack store themselves."""

    async def _call(self, start: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
        async with asyncio.timeout(timeout_s or self._timeout_s):
            for attempt in range(ATTEMPTS):
                try:
                    return await start()
                except BackPressureError as error:
                    raise Overloaded("a deployment's queue is full") from error
                except (RayActorError, DeploymentUnavailableError):
                    # The replica died during the call. Another replica takes the next attempt.
                    if attempt + 1 == ATTEMPTS:
                        raise
                    await asyncio.sleep(0.1)
        raise AssertionError("unreachable")


@serve.ingress()
class Ingress:
    """Deployment that runs the FastAPI app and calls the other deployments."""

    def __init__(
        self,
        settings: Settings,
        text: DeploymentHandle,
        image: DeploymentHandle,
        index: DeploymentHandle,
    ) -> None:
        self._settings = settings
        self._backend = HandleBackend(text, image, index, settings.timeout_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        replica = serve.get_replica_context().replica_id.unique_id
        return create_app(self._backend, self._settings, replica)


def _threads(settings: Settings) -> int:
    """Return the number of PyTorch threads: as set, or the cores that Ray assigned to the replica.

    Less than one assigned core gives 0, which means all cores.
    """
    return settings.threads or int(
        ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
    )


def build(settings: Settings) -> serve.Application:
    """Build the application of a Serve config (`import_path: mla_ray.serving.deployments:build`).

    The `args` of the config are the settings. Its `deployments` override `DEPLOYMENTS`.
    """
    return assemble(settings, {})


def assemble(settings: Settings, options: Mapping[str, DeploymentOptions]) -> serve.Application:
    """Build the application with options by deployment name, which override `DEPLOYMENTS`.

    Raises:
        ValueError: The index is `:memory:`, or the server is open to other machines without a
            token.

    """
    settings.token()  # raises if the server is open to other machines without a token
    if settings.index == ":memory:":
        raise ValueError("index :memory: belongs to one process; use edge:FOLDER or a server")

    def deployed(replica: type[object], *handles: serve.Application) -> serve.Application:
        name = replica.__name__
        chosen = COMMON | DEPLOYMENTS[name] | options.get(name, DeploymentOptions())
        return serve.deployment(**chosen)(replica).bind(settings, *handles)

    engines = [deployed(replica) for replica in (TextEncoder, ImageEncoder, Index)]
    return deployed(Ingress, *engines)
