"""Backend of the HTTP app that calls the deployments of Ray Serve."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from mla_ray.index.entry import Conditions, Contents, Entry, EntryPage
from mla_ray.serving.backend import Replicas
from mla_ray.serving.coalescing import Overloaded
from mla_ray.serving.engines import Encoded, Hashes, Identity, Query, QueryResult, Text, Vectors
from mla_ray.serving.schemas import Collection

T = TypeVar("T")
CONTROLLER_WITHIN_S = 2
ATTEMPTS = 3  # for a call whose replica died; every call can be repeated safely


class HandleBackend:
    """Implementation of `mla_ray.serving.backend.Backend` with deployment handles.

    If a replica dies during a call, the call is repeated, at most `ATTEMPTS` times in total.

    Args:
        text: Handle of `TextEncoder`, or of `JointEncoder`.
        image: Handle of `ImageEncoder`, or of the same `JointEncoder`.
        index: Handle of `Index`.
        app: Name of the Ray Serve application.
        timeout_s: Time limit of one call in seconds, repetitions included.

    """

    def __init__(
        self,
        text: DeploymentHandle,
        image: DeploymentHandle,
        index: DeploymentHandle,
        app: str,
        timeout_s: float,
    ) -> None:
        self._text = text
        self._image = image
        self._index = index
        self._app = app
        self._timeout_s = timeout_s
        self._replicas = Replicas()

    async def identity(self) -> Identity:
        """Return the identity of the native. Wait up to 120 s for the encoder to start."""
        return await self._call(lambda: self._text.identity.remote(), 120)

    async def encode_texts(self, texts: list[Text], waited_s: float) -> Encoded:
        """Encode texts with `TextEncoder`."""
        return await self._call(lambda: self._text.encode_texts.remote(texts, waited_s))

    async def count_tokens(self, texts: list[Text], waited_s: float) -> list[int | None]:
        """Count the tokens of each text with `TextEncoder`."""
        return await self._call(lambda: self._text.count_tokens.remote(texts, waited_s))

    async def encode_images(self, images: list[bytes], waited_s: float) -> Encoded:
        """Encode images with `ImageEncoder`."""
        return await self._call(lambda: self._image.encode_images.remote(images, waited_s))

    async def search(self, queries: list[Query], waited_s: float) -> list[QueryResult]:
        """Search the index with `Index`."""
        return await self._call(lambda: self._index.search.remote(queries, waited_s))

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

    async def replicas(self) -> Replicas:
        """Return the number of running replicas, as the controller of Ray Serve has it."""
        status = await asyncio.to_thread(serve.status)
        deployments = status.applications[self._app].deployments

        def running(name: str) -> int:
            return int(deployments[name].replica_states.get(ReplicaState.RUNNING, 0))

        names = [handle.deployment_name for handle in (self._text, self._image, self._index)]
        self._replicas = Replicas(*map(running, names))
        return self._replicas

    async def health(self) -> dict[str, str]:
        """Check one replica of each deployment. Return `ok` or the type of the error by part.

        A deployment that has scaled to zero is `ok`. The check would start a replica.
        """
        with suppress(Exception):  # without an answer of the controller, the last numbers hold
            async with asyncio.timeout(CONTROLLER_WITHIN_S):
                await self.replicas()
        checks = {
            "text": self._text.check_health,
            "image": self._image.check_health,
            "index": self._index.check,
        }

        async def state(check: DeploymentHandle, replicas: int) -> str:
            if replicas == 0:
                return "ok"
            try:
                await self._call(lambda: check.remote(), 5)
                return "ok"
            except Exception as error:  # any error marks this part unhealthy
                return type(getattr(error, "cause", error)).__name__  # Ray's own has a cause

        states = await asyncio.gather(*map(state, checks.values(), self._replicas))
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
