"""Where the HTTP app gets its answers: engines in this process, or deployments on a cluster."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from mla_ray.index.collection import Entry, Hit
from mla_ray.serving.engines import (
    Encoded,
    Fault,
    Identity,
    ImageEngine,
    IndexEngine,
    Query,
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

    async def encode_images(self, images: list[bytes]) -> Encoded: ...

    async def search(self, queries: list[Query]) -> Sequence[list[Hit] | Fault]: ...

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
        self._torch = torch_thread()
        self._searcher = ThreadPoolExecutor(1, "index")
        self._text = self._torch.submit(
            TextEngine, settings.native, settings.packs, settings.max_packs, settings.threads
        ).result()
        self._image = self._torch.submit(ImageEngine, settings.native, settings.threads).result()
        self._index = IndexEngine(settings.index, self._text.native)

    async def identity(self) -> Identity:
        return self._text.identity

    async def encode_texts(self, texts: list[Text]) -> Encoded:
        languages = {language for language, _ in texts}
        return await self._in(
            self._torch, lambda: self._text.encode(texts, self._text.prepare(languages))
        )

    async def encode_images(self, images: list[bytes]) -> Encoded:
        return await self._in(self._torch, lambda: self._image.encode(images))

    async def search(self, queries: list[Query]) -> Sequence[list[Hit] | Fault]:
        return await self._in(self._searcher, lambda: self._index.search(queries))

    async def upsert(self, collection: str, entries: list[Entry], vectors: Vectors) -> int:
        return await self._in(
            self._searcher, lambda: self._index.upsert(collection, entries, vectors)
        )

    async def languages(self) -> dict[str, int]:
        return await self._in(self._searcher, self._index.languages)

    async def sources(self, image_id: str) -> dict[str, int]:
        return await self._in(self._searcher, partial(self._index.sources, image_id))

    async def broken(self) -> dict[str, str]:
        return dict(self._text.library.listing.broken)

    async def health(self) -> dict[str, str]:
        parts: dict[str, Callable[[], None]] = {
            "text": self._text.check,
            "image": self._image.check,
            "index": self._index.check,
        }
        found = {}
        for name, check in parts.items():
            try:
                await self._in(self._searcher if name == "index" else self._torch, check)
                found[name] = "ok"
            except Exception as error:  # whatever it is, it is this part's illness
                found[name] = type(error).__name__
        return found

    async def refresh(self) -> None:
        for listed in await asyncio.to_thread(self._text.library.rescan):
            await self._in(self._torch, partial(self._text.library.renew, listed))

    def close(self) -> None:
        for pool in (self._torch, self._searcher):
            pool.shutdown()
        self._index.close()

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)


class Row(NamedTuple):
    """One text or image."""

    vector: Vectors  # [E], unit length
    unknown_tokens: float


def rows_of(encoded: Encoded) -> list[Row | Fault]:
    """What came of each text or image."""
    pairs = zip(encoded.vectors, encoded.unknown_tokens.tolist(), strict=True)
    return [encoded.errors.get(n, Row(*pair)) for n, pair in enumerate(pairs)]
