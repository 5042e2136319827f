"""Where the HTTP app gets its answers: engines in this process, or deployments on a cluster."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from mla_ray.index.collection import Entry
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


class Backend(Protocol):
    """Raises Overloaded where a queue is full, TimeoutError where no answer comes in time."""

    async def identity(self) -> Identity: ...

    async def encode_texts(self, texts: list[Text]) -> Encoded: ...

    async def count_tokens(self, texts: list[Text]) -> list[int | None]:
        """Of each text its tokens in its language; None where its pack cannot be had now."""

    async def encode_images(self, images: list[bytes]) -> Encoded: ...

    async def search(self, queries: list[Query]) -> list[QueryResult]: ...

    async def upsert(self, collection: str, entries: list[Entry], vectors: Vectors) -> int: ...

    async def languages(self) -> dict[str, int]: ...

    async def sources(self, image_id: str) -> dict[str, int]: ...

    async def broken(self) -> dict[str, str]:
        """Why packs could not be loaded, by the name of their folder, as far as it was tried."""

    async def health(self) -> dict[str, str]:
        """`ok`, or what is wrong, of each part."""

    async def refresh(self) -> None:
        """Look at the pack store now, if it is this process that holds packs."""


class LocalBackend:
    """Everything in this process: what a server without Ray, and the tests, run on."""

    def __init__(self, settings: Settings) -> None:
        self._torch_thread = torch_thread()
        self._index_thread = ThreadPoolExecutor(1, "index")
        self._text = self._torch_thread.submit(
            TextEngine, settings.native, settings.packs, settings.max_packs, settings.threads
        ).result()
        self._image = self._torch_thread.submit(
            ImageEngine, settings.native, settings.threads
        ).result()
        self._index = IndexEngine(settings.index, self._text.native)

    async def identity(self) -> Identity:
        return self._text.identity

    async def encode_texts(self, texts: list[Text]) -> Encoded:
        languages = {text.language for text in texts}
        return await self._in(
            self._torch_thread, lambda: self._text.encode(texts, self._text.prepare(languages))
        )

    async def count_tokens(self, texts: list[Text]) -> list[int | None]:
        return await self._in(self._torch_thread, lambda: self._text.count_tokens(texts))

    async def encode_images(self, images: list[bytes]) -> Encoded:
        return await self._in(self._torch_thread, lambda: self._image.encode(images))

    async def search(self, queries: list[Query]) -> list[QueryResult]:
        return await self._in(self._index_thread, lambda: self._index.search(queries))

    async def upsert(self, collection: str, entries: list[Entry], vectors: Vectors) -> int:
        return await self._in(
            self._index_thread, lambda: self._index.upsert(collection, entries, vectors)
        )

    async def languages(self) -> dict[str, int]:
        return await self._in(self._index_thread, self._index.languages)

    async def sources(self, image_id: str) -> dict[str, int]:
        return await self._in(self._index_thread, partial(self._index.sources, image_id))

    async def broken(self) -> dict[str, str]:
        return dict(self._text.library.listing.broken)

    async def health(self) -> dict[str, str]:
        checks: dict[str, tuple[ThreadPoolExecutor, Callable[[], None]]] = {
            "text": (self._torch_thread, self._text.check),
            "image": (self._torch_thread, self._image.check),
            "index": (self._index_thread, self._index.check),
        }
        states = {}
        for name, (thread, check) in checks.items():
            try:
                await self._in(thread, check)
                states[name] = "ok"
            except Exception as error:  # whatever it is, it is this part's illness
                states[name] = type(error).__name__
        return states

    async def refresh(self) -> None:
        for changed in await asyncio.to_thread(self._text.library.rescan):
            await self._in(self._torch_thread, partial(self._text.library.renew, changed))

    def close(self) -> None:
        for pool in (self._torch_thread, self._index_thread):
            pool.shutdown()
        self._index.close()

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)
