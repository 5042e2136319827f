"""Backends of the HTTP app: the `Backend` protocol and its implementation without Ray."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from mla_ray.index.entry import Conditions, Contents, Entry, EntryPage
from mla_ray.index.ingest import space_of
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
from mla_ray.serving.schemas import Collection
from mla_ray.serving.settings import Settings

T = TypeVar("T")


class Replicas(NamedTuple):
    """Number of running replicas of each part."""

    texts: int = 1
    images: int = 1
    searches: int = 1


class Backend(Protocol):
    """Interface between the HTTP app and the encoders and index.

    The items of some methods wait for their call. `waited_s` is the mean time in seconds that they
    waited. It is for the autoscaling of the replicas that take the call.

    A method raises `Overloaded` if a queue is full and `TimeoutError` if no result arrives in time.
    Methods that use the index raise `IndexUnavailable` if its server is away.
    """

    async def identity(self) -> Identity:
        """Return the identity of the native."""
        ...

    async def encode_texts(self, texts: list[Text], waited_s: float) -> Encoded:
        """Encode texts of any languages to unit vectors `[N, E]` float32."""
        ...

    async def count_tokens(self, texts: list[Text], waited_s: float) -> list[int | None]:
        """Count the tokens of each text in its language; None if its pack is unavailable."""

    async def encode_images(self, images: list[bytes], waited_s: float) -> Encoded:
        """Encode images in a file format such as PNG to unit vectors `[N, E]` float32."""
        ...

    async def search(self, queries: list[Query], waited_s: float) -> list[QueryResult]:
        """Search the index. Results are in the order of the queries."""
        ...

    async def hashes(self, collection: str, entries: list[Entry]) -> list[str | None]:
        """Return the hash that each entry of a collection was written with, or None."""
        ...

    async def upsert(
        self, collection: str, entries: list[Entry], vectors: Vectors, hashes: Hashes = None
    ) -> int:
        """Write entries, their vectors `[N, E]` and hashes to a collection. Return their number."""
        ...

    async def delete(self, collection: str, conditions: Conditions) -> int:
        """Remove the entries of a collection that meet every condition. Return their number."""
        ...

    async def page(
        self, collection: str, conditions: Conditions, limit: int, cursor: str | None
    ) -> EntryPage:
        """Return a page of the entries of a collection that meet every condition."""
        ...

    async def contents(self) -> dict[Collection, Contents]:
        """Return what each collection holds."""
        ...

    async def languages(self) -> dict[str, int]:
        """Return the number of captions in the index by language."""
        ...

    async def sources(self, image_id: str) -> dict[str, int]:
        """Return the sources that have an image with this id, as `CaptionIndex.sources` does."""
        ...

    async def broken(self) -> dict[str, str]:
        """Return the errors of packs that cannot be served, by folder name.

        A damaged pack has an entry only after an attempt to load it.
        """

    async def replicas(self) -> Replicas:
        """Return the number of running replicas of each part."""
        ...

    async def health(self) -> dict[str, str]:
        """Return `ok` or the type of the error for each part."""

    async def refresh(self) -> None:
        """Scan the pack store now. Do nothing if this process holds no packs."""


class LocalBackend:
    """Backend with all engines in this process, for servers without Ray and for tests."""

    def __init__(self, settings: Settings) -> None:
        from mla_ray.serving import encoders  # it imports torch

        self._torch_thread = torch_thread()
        self._index_thread = ThreadPoolExecutor(1, "index")
        native = self._torch_thread.submit(
            encoders.load_native, settings.native, settings.threads
        ).result()
        self._text = encoders.TextEngine(native, settings.packs, settings.max_packs)
        self._image = encoders.ImageEngine(native)
        space = space_of(self._text.native)
        self._index = IndexEngine(settings.index, space, settings.index_timeout_s)

    async def identity(self) -> Identity:
        """Return the identity of the native."""
        return self._text.identity

    async def encode_texts(self, texts: list[Text], waited_s: float) -> Encoded:
        """Encode texts on the torch thread; load their packs first if necessary."""
        languages = {text.language for text in texts}
        return await self._in(
            self._torch_thread, lambda: self._text.encode(texts, self._text.prepare(languages))
        )

    async def count_tokens(self, texts: list[Text], waited_s: float) -> list[int | None]:
        """Count the tokens of each text in its language; None if its pack is unavailable."""
        return await self._in(self._torch_thread, lambda: self._text.count_tokens(texts))

    async def encode_images(self, images: list[bytes], waited_s: float) -> Encoded:
        """Encode images on the torch thread."""
        return await self._in(self._torch_thread, lambda: self._image.encode(images))

    async def search(self, queries: list[Query], waited_s: float) -> list[QueryResult]:
        """Search the index on the index thread."""
        return await self._in(self._index_thread, lambda: self._index.search(queries))

    async def hashes(self, collection: str, entries: list[Entry]) -> list[str | None]:
        """Return the hash that each entry of a collection was written with, or None."""
        hashes = partial(self._index.hashes, collection, entries)
        return await self._in(self._index_thread, hashes)

    async def upsert(
        self, collection: str, entries: list[Entry], vectors: Vectors, hashes: Hashes = None
    ) -> int:
        """Write entries, their vectors `[N, E]` and hashes to a collection. Return their number."""
        upsert = partial(self._index.upsert, collection, entries, vectors, hashes)
        return await self._in(self._index_thread, upsert)

    async def delete(self, collection: str, conditions: Conditions) -> int:
        """Remove the entries of a collection that meet every condition. Return their number."""
        delete = partial(self._index.delete, collection, conditions)
        return await self._in(self._index_thread, delete)

    async def page(
        self, collection: str, conditions: Conditions, limit: int, cursor: str | None
    ) -> EntryPage:
        """Return a page of the entries of a collection that meet every condition."""
        page = partial(self._index.page, collection, conditions, limit, cursor)
        return await self._in(self._index_thread, page)

    async def contents(self) -> dict[Collection, Contents]:
        """Return what each collection holds."""
        return await self._in(self._index_thread, self._index.contents)

    async def languages(self) -> dict[str, int]:
        """Return the number of captions in the index by language."""
        return await self._in(self._index_thread, self._index.languages)

    async def sources(self, image_id: str) -> dict[str, int]:
        """Return the sources that have an image with this id."""
        return await self._in(self._index_thread, partial(self._index.sources, image_id))

    async def broken(self) -> dict[str, str]:
        """Return the errors of packs that cannot be served, by folder name."""
        return dict(self._text.library.listing.broken)

    async def replicas(self) -> Replicas:
        """Return 1 for each part."""
        return Replicas()

    async def health(self) -> dict[str, str]:
        """Run the check of each engine. Return `ok` or the type of the error by engine."""
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
            except Exception as error:  # any error marks this part unhealthy
                states[name] = type(error).__name__
        return states

    async def refresh(self) -> None:
        """Scan the pack store and reload packs in use that have changed."""
        for changed in await asyncio.to_thread(self._text.library.rescan):
            await self._in(self._torch_thread, partial(self._text.library.renew, changed))

    def close(self) -> None:
        """Stop the threads and close the index."""
        for pool in (self._torch_thread, self._index_thread):
            pool.shutdown()
        self._index.close()

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)
