"""Implementation of the endpoints without HTTP: one method of `Service` for each endpoint."""

import asyncio
import base64
import logging
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

import orjson

from mla_ray.data.images import STRANGER, decode_image
from mla_ray.index import collection
from mla_ray.index.entry import ScoredEntry
from mla_ray.index.ingest import image_entry, owner
from mla_ray.index.lexical import QueryText
from mla_ray.index.limits import MAX_HYBRID, MAX_OFFSET
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.text import normalized
from mla_ray.packs.store import PackStore
from mla_ray.serving.backend import Backend
from mla_ray.serving.breaker import Absence
from mla_ray.serving.coalescing import Coalescer
from mla_ray.serving.detection import candidates, likeliest
from mla_ray.serving.engines import Encoded, Identity, Query, QueryResult, Text, Vectors
from mla_ray.serving.ingest import CaptionIngest
from mla_ray.serving.metrics import Metrics
from mla_ray.serving.problems import (
    FieldError,
    ProblemError,
    invalid,
    of_fault,
    several_sources,
)
from mla_ray.serving.schemas import (
    AUTO,
    EMBED_IMAGE_PATH,
    EMBED_TEXT_PATH,
    IMAGES_PATH,
    SEARCH_IMAGE_PATH,
    SEARCH_PATH,
    BrokenPack,
    Collection,
    Health,
    Hit,
    ImageWritten,
    IngestResult,
    Languages,
    Mode,
    ProblemKind,
    SearchResult,
    TextInput,
)
from mla_ray.serving.served_languages import ServedLanguages
from mla_ray.serving.settings import Settings

REPLICAS_EVERY_S = 5
"""Seconds between two queries of the number of replicas."""

log = logging.getLogger(__name__)


class Page(NamedTuple):
    """Page and filters of a search by text or image."""

    find: Collection
    k: int
    offset: int
    in_language: str | None
    source: str | None
    min_score: float | None
    mode: Mode = "vector"

    @property
    def max_offset(self) -> int:
        """Largest offset of a page of this search."""
        # A page asks for one hit more than it shows.
        return MAX_OFFSET if self.mode == "vector" else MAX_HYBRID - self.k - 1


@dataclass(frozen=True)
class EmbeddedRows:
    """Result of an embedding endpoint as arrays, before serialization to `schemas.Embeddings`."""

    native: Identity
    rows: Encoded

    def json(self, encoding: str) -> bytes:
        """Serialize to the JSON of `schemas.Embeddings`; `encoding` is a `schemas.Encoding`."""
        vectors: Vectors | str = self.rows.vectors
        if encoding == "base64":
            vectors = base64.b64encode(self.rows.vectors.astype("<f4").tobytes()).decode()
        body = {
            "native": self.native.native,
            "fingerprint": self.native.fingerprint,
            "dim": self.native.dim,
            "embeddings": vectors,
            "unknown_tokens": self.rows.unknown_tokens.tolist(),
        }
        # orjson writes float32 arrays directly: shorter and many times faster than lists of floats.
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


class Service:
    """Endpoints of one server, with its languages and its request queues.

    Methods raise `ProblemError` for requests that cannot be answered.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        metrics: Metrics,
        pictures: PictureStore | None,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._metrics = metrics
        self._pictures = pictures
        self._absence = Absence()
        self._identity: Identity
        self._languages: ServedLanguages
        batch, queue, wait_s = settings.max_batch, settings.max_queue, settings.max_wait_s
        self._texts: Coalescer[Text, Encoded] = Coalescer(
            backend.encode_texts, batch, queue, wait_s
        )
        self._counts: Coalescer[Text, list[int | None]] = Coalescer(
            backend.count_tokens, batch, queue, wait_s
        )
        self._images: Coalescer[bytes, Encoded] = Coalescer(
            backend.encode_images, settings.max_images, queue, wait_s
        )
        self._queries: Coalescer[Query, list[QueryResult]] = Coalescer(
            backend.search, batch, queue, wait_s
        )

    async def start(self) -> None:
        """Ask the backend for its native and scan the pack store. Call it before other methods."""
        self._identity = native = await self._backend.identity()
        store = PackStore(self._settings.packs, native.fingerprint, native.fingerprint_v1)
        self._languages = ServedLanguages(store)
        await self._languages.scan()

    async def follow_store(self) -> None:
        """Scan the pack store periodically, so that added, changed and removed packs take effect.

        Runs until the task is cancelled.
        """
        while True:
            await asyncio.sleep(self._settings.scan_every_s)
            try:
                await self._languages.scan()
                await self._backend.refresh()
            except Exception as error:  # if the store is unreachable, known packs stay in service
                log.warning("pack store %s: %s", self._settings.packs, error)

    def queued(self) -> dict[str, int]:
        """Return the number of items that wait for a batch, by queue."""
        return {
            "texts": self._texts.queued,
            "tokens": self._counts.queued,
            "images": self._images.queued,
            "queries": self._queries.queued,
        }

    def expected_wait_s(self, method: str, path: str) -> float:
        """Return the time in seconds that a new request would wait for an encoder."""
        if path in (SEARCH_PATH, EMBED_TEXT_PATH):
            return self._texts.expected_wait_s
        is_put = method == "PUT" and path.startswith(f"{IMAGES_PATH}/")
        if is_put or path in (SEARCH_IMAGE_PATH, EMBED_IMAGE_PATH):
            return self._images.expected_wait_s
        return 0.0

    async def follow_replicas(self) -> None:
        """Allow as many concurrent calls as there are replicas, whose number may change.

        Runs until the task is cancelled.
        """
        while True:
            try:
                replicas = await self._backend.replicas()
            except Exception as error:  # the number of before holds until the next answer
                log.warning("number of replicas: %s", error)
            else:
                for queue, running in (
                    (self._texts, replicas.texts),
                    (self._counts, replicas.texts),
                    (self._images, replicas.images),
                    (self._queries, replicas.searches),
                ):
                    queue.slots = self._settings.calls * max(running, 1)
            await asyncio.sleep(REPLICAS_EVERY_S)

    async def search_text(self, text: str, language: str, page: Page) -> SearchResult:
        """Search by a text in `language`, which is a BCP-47 tag or `AUTO` for detection."""
        in_language = self._language_filter(page)
        _check_mode(page)
        detected = language == AUTO
        with self._absence.watching():
            language = await self._detect(text) if detected else self._languages.resolve(language)
            encoded = await self._encode_texts([Text(language, text)])
            hybrid = QueryText(text, language) if page.mode == "hybrid" else None
            return await self._search(encoded, page, in_language, language, detected, hybrid)

    async def search_image(self, image: bytes, page: Page) -> SearchResult:
        """Search by an image in a file format such as PNG."""
        in_language = self._language_filter(page)
        with self._absence.watching():
            return await self._search(await self._encode_image(image), page, in_language)

    async def embed_texts(self, inputs: list[TextInput]) -> EmbeddedRows:
        """Encode texts of any languages, in the order of the inputs."""
        tags = dict.fromkeys(text.language for text in inputs)  # in order, without duplicates
        languages = {tag: self._languages.resolve(tag) for tag in tags}
        texts = [Text(languages[text.language], text.text) for text in inputs]
        return EmbeddedRows(self._identity, await self._encode_texts(texts))

    async def embed_image(self, image: bytes) -> EmbeddedRows:
        """Encode one image."""
        return EmbeddedRows(self._identity, await self._encode_image(image))

    async def put_captions(self, body: AsyncIterator[bytes]) -> IngestResult:
        """Encode caption records and write them to the index while the NDJSON body arrives."""
        stored = partial(self._backend.hashes, collection.CAPTIONS)
        upsert = partial(self._backend.upsert, collection.CAPTIONS)
        fingerprint = self._identity.fingerprint
        ingest = CaptionIngest(self._languages, fingerprint, self._texts, stored, upsert)
        return await ingest.run(body)

    async def put_image(self, image_id: str, source: str, image: bytes) -> ImageWritten:
        """Encode an image and write it to the index; store its small copy if pictures are kept."""
        encoded = await self._encode_image(image)
        if self._pictures:
            pictures = self._pictures
            await asyncio.to_thread(
                lambda: pictures.put(image_id, source, decode_image(image, STRANGER))
            )
        entries = [image_entry(image_id, source)]
        await self._backend.upsert(collection.IMAGES, entries, encoded.vectors)
        return ImageWritten(image_id=image_id, image_url=self._image_url(image_id, source))

    async def get_image(self, image_id: str, source: str | None) -> bytes:
        """Return the small copy of an image as WebP.

        If `source` is None or has no image with this id, and only one source has such an image,
        that image is returned.

        Raises:
            ProblemError: Status 404: no copy is stored. Status 422: `source` is None and several
                sources have an image with this id.

        """
        picture = await self._picture(self._pictures, image_id, source) if self._pictures else None
        if picture is None:
            detail = "no picture with that id is stored here"
            raise ProblemError(404, ProblemKind.UNKNOWN_IMAGE, detail)
        return picture

    async def languages(self) -> Languages:
        """List the languages and the packs that cannot be served."""
        captions = await self._backend.languages()
        # The error of the last scan replaces an earlier error of an encoder.
        broken = await self._backend.broken() | self._languages.listing.broken
        return Languages(
            native=self._identity.native,
            fingerprint=self._identity.fingerprint,
            languages=self._languages.infos(captions),
            broken=[BrokenPack(name=name, error=error) for name, error in sorted(broken.items())],
        )

    async def health(self) -> Health:
        """Check every part of the backend."""
        parts = await self._backend.health()
        ok = all(state == "ok" for state in parts.values())
        if ok:
            self._absence.end()
        return Health(status="ok" if ok else "unavailable", parts=parts)

    def _language_filter(self, page: Page) -> str | None:
        """Return the language that hits must have, as the index spells it, or None."""
        if page.in_language is None:
            return None
        if page.find != collection.CAPTIONS:
            message = f"images have no language; omit it, or set find={collection.CAPTIONS}"
            raise invalid(("query", "in_language"), message)
        return self._languages.resolve(page.in_language)

    async def _detect(self, text: str) -> str:
        """Return the most likely of the served languages."""
        text = normalized(text)
        possible = candidates(text, self._languages.listing.languages)
        if len(possible) == 1:
            return next(iter(possible))
        counts = await self._counts([Text(language, text) for language in possible])
        known = {
            language: count
            for language, count in zip(possible, counts, strict=True)
            if count is not None
        }
        return likeliest(possible, known)

    async def _encode_texts(self, texts: list[Text]) -> Encoded:
        """Encode texts. If any text fails, raise a problem that names every failed text."""
        if not texts:
            return Encoded.empty(0, self._identity.dim)
        written = [Text(language, normalized(text)) for language, text in texts]
        encoded = await self._texts(written)
        if encoded.errors:
            rows = sorted(encoded.errors)
            named = [
                FieldError(loc=["inputs", str(row)], msg=encoded.errors[row].detail) for row in rows
            ]
            raise of_fault(encoded.errors[rows[0]], named if len(texts) > 1 else None)
        for language, count in Counter(language for language, _ in texts).items():
            self._metrics.texts(language, count)
        return encoded

    async def _encode_image(self, image: bytes) -> Encoded:
        """Encode one image. Bytes that are not an image raise a problem with status 422."""
        encoded = await self._images([image])
        if encoded.errors:
            raise of_fault(encoded.errors[0])
        return encoded

    async def _search(
        self,
        encoded: Encoded,
        page: Page,
        in_language: str | None,
        language: str | None = None,
        detected: bool = False,
        hybrid: QueryText | None = None,
    ) -> SearchResult:
        """Search for the single row of `encoded` and return a page of hits.

        `language` is the language of the query, or None for an image. `hybrid` has its words.
        """
        query = Query(
            page.find,
            encoded.vectors[0],
            page.k + 1,  # an additional hit means that there is another page
            page.offset,
            in_language,
            page.source,
            page.min_score,
            hybrid,
        )
        (result,) = await self._queries([query])
        if result.fault:
            raise of_fault(result.fault)
        next_offset = page.offset + page.k
        more = len(result.hits) > page.k and next_offset <= page.max_offset
        return SearchResult(
            language=language,
            detected=detected,
            unknown_tokens=float(encoded.unknown_tokens[0]),
            hits=[self._hit(hit) for hit in result.hits[: page.k]],
            offset=page.offset,
            next_offset=next_offset if more else None,
        )

    def _hit(self, hit: ScoredEntry) -> Hit:
        entry = hit.entry
        return Hit.model_construct(  # these values need no validation
            id=entry.id,
            image_id=entry.image_id,
            score=hit.score,
            language=entry.language,
            caption=entry.caption,
            source=entry.source,
            image_url=self._image_url(entry.image_id, entry.source),
        )

    def _image_url(self, image_id: str, source: str) -> str | None:
        if not self._pictures:
            return None
        return f"{IMAGES_PATH}/{quote(image_id, safe='')}?source={quote(source, safe='')}"

    async def _picture(
        self, pictures: PictureStore, image_id: str, source: str | None
    ) -> bytes | None:
        picture = None
        if source is not None:
            picture = await asyncio.to_thread(pictures.get, image_id, source)
        if picture is not None:
            return picture
        sources = await self._backend.sources(image_id)
        if source is None and len(sources) > 1:
            raise several_sources(sources)
        if source not in sources and len(sources) == 1:
            source = next(iter(sources))
            picture = await asyncio.to_thread(pictures.get, image_id, source)
        if picture is None and source is not None and source == owner(sources):
            picture = await asyncio.to_thread(pictures.get_former, image_id)
        return picture


def _check_mode(page: Page) -> None:
    """Raise a problem with status 422 if the mode does not go with the rest of a request."""
    if page.mode == "vector":
        return
    if page.find != collection.CAPTIONS:
        message = f"images have no words; set find={collection.CAPTIONS}"
        raise invalid(("query", "mode"), message)
    if page.min_score is not None:
        message = "it is for cosines, and hybrid scores are those of ranks; omit it"
        raise invalid(("query", "min_score"), message)
    if page.offset > page.max_offset:
        message = f"with mode=hybrid and k={page.k} it is at most {page.max_offset}"
        raise invalid(("query", "offset"), message)
