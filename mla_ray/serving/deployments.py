"""Ray Serve deployments of the engines and of the FastAPI app in front of them.

Ingress (FastAPI) ──► TextEncoder, ImageEncoder     autoscaled; each replica holds the whole native
                 └──► Index                         one replica for the embedded engine

On one machine, `JointEncoder` can take the place of both encoders. All processes import this
module, but only the encoders import torch, which takes 400 MB of each.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypedDict, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from mla_ray.index.encoders import Encoders
from mla_ray.index.entry import Conditions, Contents, Entry, EntryPage
from mla_ray.serving.app import create_app
from mla_ray.serving.breaker import IndexUnavailable
from mla_ray.serving.engines import (
    Encoded,
    Hashes,
    Identity,
    IndexEngine,
    Query,
    QueryResult,
    Text,
    Vectors,
    torch_thread,
)
from mla_ray.serving.exporters import RayExporter
from mla_ray.serving.handle_backend import HandleBackend
from mla_ray.serving.load import Load, LoopLoad, Sample
from mla_ray.serving.metrics import IndexMetrics, RecordedLoad
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
    autoscaling_config: Mapping[str, Any]


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
    "JointEncoder": {"max_ongoing_requests": 48, "max_queued_requests": 128},
    "Index": {"max_ongoing_requests": 16, "max_queued_requests": 64},
}


class Call(NamedTuple):
    """Texts of one call to a `TextEncoder`."""

    texts: list[Text]
    since: float
    """Time from which the texts wait, from `time.monotonic`."""


def batched(
    encode: Callable[[Replica, list[Call]], Awaitable[list[Encoded]]],
) -> Callable[[Replica, Call], Awaitable[Encoded]]:
    """Join calls of several ingress replicas into one batch, as a typed `serve.batch`.

    At most 8 calls are joined, without a batching delay.
    """
    decorated: Callable[[Replica, Call], Awaitable[Encoded]] = serve.batch(
        max_batch_size=8, batch_wait_timeout_s=0
    )(encode)
    return decorated


class Measured:
    """Base of the deployments. Their replicas tell Ray Serve their load for the autoscaling."""

    _load: Load | LoopLoad

    async def record_autoscaling_stats(self) -> Sample:
        """Return the load since the previous call. Ray Serve calls this method periodically."""
        return self._load.sample()


class Encoder(Measured):
    """Base of the encoders. They hold the native, which only their torch thread uses."""

    _load: Load

    def __init__(self, settings: Settings) -> None:
        from mla_ray.serving.encoders import load_native  # it imports torch

        self._load = RecordedLoad(RayExporter())
        self._torch_thread = torch_thread()
        self._native = self._torch_thread.submit(
            load_native, settings.native, _threads(settings)
        ).result()

    async def check_health(self) -> None:
        """Raise an error if the replica should be replaced. Ray Serve calls this periodically."""


class TextEncoder(Encoder):
    """Deployment that encodes texts, with packs from a store that it watches."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        from mla_ray.serving.encoders import TextEngine

        self._texts = TextEngine(self._native, settings.packs, settings.max_packs)
        self._torch_thread.submit(self._texts.warm).result()
        self._scan_every_s = settings.scan_every_s
        self._store_watcher = asyncio.create_task(self._watch_store())

    async def encode_texts(self, texts: list[Text], waited_s: float = 0.0) -> Encoded:
        """Encode texts of any languages to unit vectors `[N, E]` float32."""
        return await self._encode_calls(Call(texts, time.monotonic() - waited_s))

    async def count_tokens(self, texts: list[Text], waited_s: float = 0.0) -> list[int | None]:
        """Count the tokens of each text in its language; None if its pack is unavailable."""
        loop = asyncio.get_running_loop()
        call = Call(texts, time.monotonic() - waited_s)
        return await loop.run_in_executor(self._torch_thread, self._count, call)

    @batched
    async def _encode_calls(self, calls: list[Call]) -> list[Encoded]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._torch_thread, self._encode_together, calls)

    async def identity(self) -> Identity:
        """Return the identity of the native."""
        return self._texts.identity

    async def broken(self) -> dict[str, str]:
        """Return the errors of packs that cannot be served, by folder name."""
        return dict(self._texts.library.listing.broken)

    async def check_health(self) -> None:
        """Encode a test text. Ray Serve calls this method periodically.

        Raises:
            RuntimeError: The encoder fails, or the task that watches the pack store has ended.

        """
        if self._store_watcher.done():
            raise RuntimeError("the task that watches the pack store has ended")
        await asyncio.get_running_loop().run_in_executor(self._torch_thread, self._texts.check)
        await super().check_health()

    def _count(self, call: Call) -> list[int | None]:
        with self._load.processing(call.since, len(call.texts)):
            return self._texts.count_tokens(call.texts)

    def _encode_together(self, calls: list[Call]) -> list[Encoded]:
        now = time.monotonic()
        for call in calls:
            self._load.waited(now - call.since, len(call.texts))
        texts = [text for call in calls for text in call.texts]
        with self._load.busy():
            prepared = self._texts.prepare({language for language, _ in texts})
            encoded = self._texts.encode(texts, prepared)
        results, start = [], 0
        for call in calls:
            results.append(encoded[start : start + len(call.texts)])
            start += len(call.texts)
        return results

    async def _watch_store(self) -> None:
        loop, library = asyncio.get_running_loop(), self._texts.library
        while True:
            await asyncio.sleep(self._scan_every_s)
            try:
                for changed in await asyncio.to_thread(library.rescan):
                    await loop.run_in_executor(self._torch_thread, library.renew, changed)
            except (
                Exception
            ) as error:  # if the store is unreachable, the packs in memory remain in service
                log.warning("pack store: %s", error)


class ImageEncoder(Encoder):
    """Deployment that encodes images."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        from mla_ray.serving.encoders import ImageEngine

        self._images = ImageEngine(self._native)
        self._torch_thread.submit(self._images.warm).result()

    async def encode_images(self, images: list[bytes], waited_s: float = 0.0) -> Encoded:
        """Encode images in a file format such as PNG to unit vectors `[N, E]` float32."""
        loop, since = asyncio.get_running_loop(), time.monotonic() - waited_s
        return await loop.run_in_executor(self._torch_thread, self._encode_images, images, since)

    async def check_health(self) -> None:
        """Check the image tower.

        Raises:
            RuntimeError: A weight is not finite.

        """
        await asyncio.get_running_loop().run_in_executor(self._torch_thread, self._images.check)
        await super().check_health()

    def _encode_images(self, images: list[bytes], since: float) -> Encoded:
        with self._load.processing(since, len(images)):
            return self._images.encode(images)


class JointEncoder(TextEncoder, ImageEncoder):
    """Deployment that encodes texts and images by the same native, in one process.

    It takes 600 MB less than one replica of each, and starts sooner on a few cores. Texts wait
    while it encodes images, 8 at a time.
    """


class Index(Measured):
    """Deployment that searches and writes the index.

    An `edge:` folder has one owner, so this deployment then needs exactly one replica. A Qdrant
    server accepts any number of replicas.
    """

    _load: Load

    def __init__(self, settings: Settings) -> None:
        self._metrics = IndexMetrics(RayExporter())
        self._load = RecordedLoad(RayExporter())
        space = Encoders(settings.native, {}, "cpu").space  # loads no native that is known
        deadline = time.monotonic() + OPEN_FOR_S
        while True:
            try:
                self._engine = IndexEngine(settings.index, space, settings.index_timeout_s)
                break
            except RuntimeError:  # the previous replica still owns the folder
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    async def search(self, queries: list[Query], waited_s: float = 0.0) -> list[QueryResult]:
        """Search the index. Results are in the order of the queries."""
        return await asyncio.to_thread(self._search, queries, time.monotonic() - waited_s)

    async def hashes(self, collection: str, entries: list[Entry]) -> list[str | None]:
        """Return the hash that each entry of a collection was written with, or None."""
        return await asyncio.to_thread(self._engine.hashes, collection, entries)

    async def upsert(
        self, collection: str, entries: list[Entry], vectors: Vectors, hashes: Hashes = None
    ) -> int:
        """Write entries, their vectors `[N, E]` and hashes to a collection. Return their number."""
        with self._load.busy():
            return await asyncio.to_thread(
                self._engine.upsert, collection, entries, vectors, hashes
            )

    async def delete(self, collection: str, conditions: Conditions) -> int:
        """Remove the entries of a collection that meet every condition. Return their number."""
        with self._load.busy():
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
        with suppress(IndexUnavailable), self._metrics.check():
            await self.check()

    def _search(self, queries: list[Query], since: float) -> list[QueryResult]:
        with self._load.processing(since, len(queries)):
            return self._engine.search(queries)

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


@serve.ingress()
class Ingress(Measured):
    """Deployment that runs the FastAPI app and calls the other deployments."""

    def __init__(
        self,
        settings: Settings,
        text: DeploymentHandle,
        image: DeploymentHandle,
        index: DeploymentHandle,
    ) -> None:
        self._settings = settings
        app = serve.get_replica_context().app_name
        self._backend = HandleBackend(text, image, index, app, settings.timeout_s)
        self._load = LoopLoad()
        self._following = asyncio.create_task(self._load.follow())

    def __serve_build_asgi_app__(self) -> FastAPI:
        replica = serve.get_replica_context().replica_id.unique_id
        return create_app(self._backend, self._settings, replica, [RayExporter()])


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


def assemble(
    settings: Settings, options: Mapping[str, DeploymentOptions], joint: bool = False
) -> serve.Application:
    """Build the application with options by deployment name, which override `DEPLOYMENTS`.

    Args:
        settings: Settings of the application.
        options: Options by deployment name.
        joint: Whether `JointEncoder` takes the place of `TextEncoder` and `ImageEncoder`.

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

    if joint:
        text = image = deployed(JointEncoder)
    else:
        text, image = deployed(TextEncoder), deployed(ImageEncoder)
    return deployed(Ingress, text, image, deployed(Index))
