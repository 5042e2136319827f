"""The engines as Ray Serve deployments, and the app in front of them.

Ingress (FastAPI) ──► TextEncoder, ImageEncoder     autoscaled, each replica the whole native
                 └──► Index                         one replica for the embedded engine
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypedDict, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from mla_ray.index.collection import Entry
from mla_ray.model.native import Native
from mla_ray.serving.app import create_app
from mla_ray.serving.coalescing import Overloaded
from mla_ray.serving.engines import (
    Encoded,
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
from mla_ray.serving.settings import Settings

T = TypeVar("T")
Replica = TypeVar("Replica")
log = logging.getLogger(__name__)


class DeploymentOptions(TypedDict, total=False):
    """Those of Serve's that are set here or by callers; a Serve config may set any."""

    num_replicas: int
    max_ongoing_requests: int
    max_queued_requests: int
    health_check_period_s: float
    health_check_timeout_s: float
    graceful_shutdown_timeout_s: float
    ray_actor_options: Mapping[str, float]


OPEN_FOR_S = 30  # an index folder may have its former owner for as long as that takes to drain
COMMON: DeploymentOptions = {
    "health_check_period_s": 5,
    "health_check_timeout_s": 15,
    "graceful_shutdown_timeout_s": 15,
    "ray_actor_options": {"num_cpus": 0.1},
}
DEPLOYMENTS: dict[str, DeploymentOptions] = {
    # What the ingress has under way at a time is bounded by the settings; these are walls behind.
    "Ingress": {"max_ongoing_requests": 2048},
    "TextEncoder": {"max_ongoing_requests": 16, "max_queued_requests": 64},
    "ImageEncoder": {"max_ongoing_requests": 32, "max_queued_requests": 64},
    "Index": {"max_ongoing_requests": 16, "max_queued_requests": 64},
}
ATTEMPTS = 3  # of a call whose replica died: all calls may be made twice


def batched(
    encode: Callable[[Replica, list[list[Text]]], Awaitable[list[Encoded]]],
) -> Callable[[Replica, list[Text]], Awaitable[Encoded]]:
    """Calls of several ingress replicas, each of many texts, in one pass: `serve.batch`, typed."""
    decorated: Callable[[Replica, list[Text]], Awaitable[Encoded]] = serve.batch(
        max_batch_size=8, batch_wait_timeout_s=0
    )(encode)
    return decorated


class TextEncoder:
    def __init__(self, settings: Settings) -> None:
        self._torch_thread = torch_thread()
        threads = _threads(settings)
        self._engine = self._torch_thread.submit(
            TextEngine, settings.native, settings.packs, settings.max_packs, threads
        ).result()
        self._scan_every_s = settings.scan_every_s
        self._store_watcher = asyncio.create_task(self._watch_store())

    async def encode(self, texts: list[Text]) -> Encoded:
        return await self._encode_calls(texts)

    async def count_tokens(self, texts: list[Text]) -> list[int | None]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._torch_thread, self._engine.count_tokens, texts)

    @batched
    async def _encode_calls(self, calls: list[list[Text]]) -> list[Encoded]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._torch_thread, self._encode, calls)

    async def identity(self) -> Identity:
        return self._engine.identity

    async def broken(self) -> dict[str, str]:
        return dict(self._engine.library.listing.broken)

    async def check_health(self) -> None:
        if self._store_watcher.done():
            raise RuntimeError("the pack store is watched no longer")
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
            ) as error:  # a store out of reach: the packs in memory go on being served
                log.warning("pack store: %s", error)


class ImageEncoder:
    def __init__(self, settings: Settings) -> None:
        self._torch_thread = torch_thread()
        self._engine = self._torch_thread.submit(
            ImageEngine, settings.native, _threads(settings)
        ).result()

    async def encode(self, images: list[bytes]) -> Encoded:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._torch_thread, self._engine.encode, images)

    async def check_health(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._torch_thread, self._engine.check)


class Index:
    """For `edge:` the one owner of its folder; for a server one of any number of clients."""

    def __init__(self, settings: Settings) -> None:
        native = Native.load(settings.native)  # its fingerprint, whose vectors these are
        deadline = time.monotonic() + OPEN_FOR_S
        while True:
            try:
                self._engine = IndexEngine(settings.index, native)
                break
            except RuntimeError:  # the replica before this one still holds the folder
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    async def search(self, queries: list[Query]) -> list[QueryResult]:
        return await asyncio.to_thread(self._engine.search, queries)

    async def upsert(self, collection: str, entries: list[Entry], vectors: Vectors) -> int:
        return await asyncio.to_thread(self._engine.upsert, collection, entries, vectors)

    async def languages(self) -> dict[str, int]:
        return await asyncio.to_thread(self._engine.languages)

    async def sources(self, image_id: str) -> dict[str, int]:
        return await asyncio.to_thread(self._engine.sources, image_id)

    async def check_health(self) -> None:
        await asyncio.to_thread(self._engine.check)

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


class HandleBackend:
    """`mla_ray.serving.backend.Backend` over deployment handles."""

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
        return await self._call(lambda: self._text.identity.remote(), 120)

    async def encode_texts(self, texts: list[Text]) -> Encoded:
        return await self._call(lambda: self._text.encode.remote(texts))

    async def count_tokens(self, texts: list[Text]) -> list[int | None]:
        return await self._call(lambda: self._text.count_tokens.remote(texts))

    async def encode_images(self, images: list[bytes]) -> Encoded:
        return await self._call(lambda: self._image.encode.remote(images))

    async def search(self, queries: list[Query]) -> list[QueryResult]:
        return await self._call(lambda: self._index.search.remote(queries))

    async def upsert(self, collection: str, entries: list[Entry], vectors: Vectors) -> int:
        return await self._call(lambda: self._index.upsert.remote(collection, entries, vectors))

    async def languages(self) -> dict[str, int]:
        return await self._call(lambda: self._index.languages.remote())

    async def sources(self, image_id: str) -> dict[str, int]:
        return await self._call(lambda: self._index.sources.remote(image_id))

    async def broken(self) -> dict[str, str]:
        return await self._call(lambda: self._text.broken.remote())

    async def health(self) -> dict[str, str]:
        handles = {"text": self._text, "image": self._image, "index": self._index}

        async def state(handle: DeploymentHandle) -> str:
            try:
                await self._call(lambda: handle.check_health.remote(), 5)
                return "ok"
            except Exception as error:  # whatever it is, it is this part's illness
                return type(error).__name__

        states = await asyncio.gather(*(state(handle) for handle in handles.values()))
        return dict(zip(handles, states, strict=True))

    async def refresh(self) -> None:
        """Nothing: encoders watch the store themselves."""

    async def _call(self, start: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
        async with asyncio.timeout(timeout_s or self._timeout_s):
            for attempt in range(ATTEMPTS):
                try:
                    return await start()
                except BackPressureError as error:
                    raise Overloaded("a deployment's queue is full") from error
                except (RayActorError, DeploymentUnavailableError):
                    # Its replica died with the call. Another takes it, or waits for the next one.
                    if attempt + 1 == ATTEMPTS:
                        raise
                    await asyncio.sleep(0.1)
        raise AssertionError("unreachable")


@serve.ingress()
class Ingress:
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
    """Of torch: as set, or the cores that Ray gave this replica; given a part of one, it may use
    all there are (0).
    """
    return settings.threads or int(
        ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
    )


def build(settings: Settings) -> serve.Application:
    """The application that a Serve config names, `import_path: mla_ray.serving.deployments:build`.

    Its `args` are the settings; its `deployments` change what `DEPLOYMENTS` says here.
    """
    return assemble(settings, {})


def assemble(settings: Settings, options: Mapping[str, DeploymentOptions]) -> serve.Application:
    """The application, with options of deployments, by name, over those of `DEPLOYMENTS`."""
    settings.token()  # refuses to be built open to the world
    if settings.index == ":memory:":
        raise ValueError("index :memory: belongs to one process; use edge:FOLDER or a server")

    def deployed(replica: type[object], *handles: serve.Application) -> serve.Application:
        name = replica.__name__
        chosen = COMMON | DEPLOYMENTS[name] | options.get(name, DeploymentOptions())
        return serve.deployment(**chosen)(replica).bind(settings, *handles)

    engines = [deployed(replica) for replica in (TextEncoder, ImageEncoder, Index)]
    return deployed(Ingress, *engines)
