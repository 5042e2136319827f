"""What the endpoints do, without HTTP: languages, embeddings, search, ingest."""

import asyncio
import logging
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import langcodes
import numpy as np
import py3langid
from pydantic import ValidationError

from mla_ray.data.images import open_image
from mla_ray.index.collection import CAPTIONS, IMAGES, Entry, Hit
from mla_ray.index.ingest import caption_entry, image_entry, owner
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.language import ENGLISH
from mla_ray.model.text import fault_of, normalized
from mla_ray.packs.store import Listing, PackStore
from mla_ray.serving.backend import Backend, Row, rows_of
from mla_ray.serving.coalescing import Coalescer
from mla_ray.serving.engines import (
    BAD_IMAGE,
    BAD_QUERY,
    NO_PACK,
    NOT_ENCODED,
    Fault,
    Identity,
    Query,
    Text,
    Vectors,
)
from mla_ray.serving.problems import ProblemError
from mla_ray.serving.schemas import (
    MAX_ERRORS,
    MAX_OFFSET,
    BrokenPack,
    CaptionRecord,
    IngestResult,
    LanguageInfo,
    Languages,
    RejectedLine,
)
from mla_ray.serving.settings import Settings

AUTO = "auto"
INGEST_BATCH = 128
MAX_LINE = 64 << 10  # bytes of one NDJSON line
STATUS = {NO_PACK: 503, NOT_ENCODED: 500, BAD_IMAGE: 422, BAD_QUERY: 422}
log = logging.getLogger(__name__)


class Service:
    """One server's languages and its two queues, in front of a backend."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.backend = backend
        self.settings = settings
        self.listing = Listing()
        self.pictures = PictureStore(settings.pictures) if settings.pictures else None
        self.identity: Identity
        self._store: PackStore
        self._texts: Coalescer[Text, Row | Fault] = Coalescer(
            self._encode, settings.max_batch, settings.max_queue, settings.calls
        )
        self._queries: Coalescer[Query, list[Hit] | Fault] = Coalescer(
            backend.search, settings.max_batch, settings.max_queue, settings.calls
        )

    async def start(self) -> None:
        self.identity = await self.backend.identity()
        who = self.identity
        self._store = PackStore(self.settings.packs, who.fingerprint, who.fingerprint_v1)
        self.listing = await asyncio.to_thread(self._store.scan)

    async def watch(self) -> None:
        """Follow the pack store until cancelled."""
        while True:
            await asyncio.sleep(self.settings.scan_every_s)
            try:
                self.listing = await asyncio.to_thread(self._store.scan)
                await self.backend.refresh()
            except Exception as error:  # a store out of reach: what is known goes on being served
                log.warning("pack store %s: %s", self.settings.packs, error)

    def resolve(self, tag: str) -> str:
        """The language that answers `tag`; a 404 problem if none does."""
        language = self.listing.resolve(tag)
        if language is None:
            raise ProblemError(
                404,
                "unknown-language",
                f"no pack for language {tag!r}; there are {', '.join(self.listing.languages)}",
            )
        return language

    def detect(self, text: str) -> str:
        """The likeliest of the languages that are served."""
        codes = {ENGLISH: ENGLISH}
        for language in self.listing.packs:
            codes.setdefault(langcodes.get(language).language or language, language)
        if len(codes) > 1:
            for code, _ in py3langid.rank(text):
                if code in codes:
                    return codes[code]
        return ENGLISH

    async def embed(self, texts: list[Text]) -> list[Row]:
        """A unit vector a text; a problem that names every text which has none."""
        rows = await self._texts([(language, normalized(text)) for language, text in texts])
        faults = {number: row for number, row in enumerate(rows) if isinstance(row, Fault)}
        if faults:
            named = [{"loc": ["inputs", str(n)], "msg": f.detail} for n, f in faults.items()]
            raise _problem(next(iter(faults.values())), named if len(texts) > 1 else None)
        return [row for row in rows if isinstance(row, Row)]

    async def embed_image(self, data: bytes) -> Row:
        """A unit vector. Bytes that are no image are a 422 problem."""
        row = rows_of(await self.backend.encode_images([data]))[0]
        if isinstance(row, Fault):
            raise _problem(row)
        return row

    async def search(self, query: Query) -> tuple[list[Hit], int | None]:
        """A page of hits, and where the next begins, if there is one that may be asked for."""
        # One more than asked for tells whether there is another page.
        hits = (await self._queries([query._replace(k=query.k + 1)]))[0]
        if isinstance(hits, Fault):
            raise _problem(hits)
        following = query.offset + query.k
        more = len(hits) > query.k and following <= MAX_OFFSET
        return list(hits[: query.k]), following if more else None

    async def put_image(self, image_id: str, source: str, data: bytes) -> None:
        vector = (await self.embed_image(data)).vector
        if self.pictures:
            store = self.pictures
            await asyncio.to_thread(lambda: store.put(image_id, source, open_image(data)))
        await self.backend.upsert(IMAGES, [image_entry(image_id, source)], vector[None])

    async def picture(self, image_id: str, source: str | None) -> bytes | None:
        """The picture of a source's image, as WebP; None if none is kept.

        Without a source, or with one that has no image of that id, the only image there is of it is
        meant. Where a source is missing and there are several, a 422 problem names theirs.
        """
        store = self.pictures
        if store is None:
            return None
        data = None
        if source is not None:
            data = await asyncio.to_thread(store.get, image_id, source)
        if data is not None:
            return data
        sources = await self.backend.sources(image_id)
        if source is None and len(sources) > 1:
            named = ", ".join(sorted(sources))
            detail = f"query/source: images of {named} have that id; say whose is wanted"
            raise ProblemError(422, "invalid-request", detail)
        if source not in sources and len(sources) == 1:
            source = next(iter(sources))
            data = await asyncio.to_thread(store.get, image_id, source)
        if data is None and source is not None and source == owner(sources):
            data = await asyncio.to_thread(store.get_former, image_id)
        return data

    async def languages(self) -> Languages:
        counts = await self.backend.languages()
        listing = self.listing
        broken = await self.backend.broken() | listing.broken
        infos = []
        for language in listing.languages:
            listed = listing.packs.get(language)
            infos.append(
                LanguageInfo(
                    language=language,
                    name=langcodes.get(language).display_name(),
                    autonym=langcodes.get(language).autonym(),
                    native=listed is None,
                    captions=counts.get(language, 0),
                    version=listed.version if listed else None,
                    rows=listed.card.rows if listed else None,
                    metrics=listed.card.metrics if listed else {},
                )
            )
        return Languages(
            native=self.identity.native,
            fingerprint=self.identity.fingerprint,
            languages=infos,
            broken=[BrokenPack(name=name, error=error) for name, error in sorted(broken.items())],
        )

    async def ingest(self, body: AsyncIterator[bytes]) -> IngestResult:
        """Embed and write NDJSON caption records as they come in; bad lines are named and skipped.

        A batch is written before the next is read, so memory is bounded. What was written before
        a connection broke stays: sending it again changes nothing.
        """
        result = IngestResult(received=0, written=0, rejected=0, errors=[])
        batch: list[tuple[int, Entry]] = []

        def reject(line: int, error: str) -> None:
            result.rejected += 1
            if len(result.errors) < MAX_ERRORS:
                result.errors.append(RejectedLine(line=line, error=error))

        async def write() -> None:
            rows = await self._texts([(entry.language, entry.caption) for _, entry in batch])
            good: list[tuple[Entry, Vectors]] = []
            for (line, entry), row in zip(batch, rows, strict=True):
                if isinstance(row, Fault):
                    reject(line, row.detail)
                else:
                    good.append((entry, row.vector))
            if good:
                vectors = np.stack([vector for _, vector in good])
                entries = [entry for entry, _ in good]
                result.written += await self.backend.upsert(CAPTIONS, entries, vectors)
            batch.clear()

        async for number, line in _lines(body):
            if line is not None and not line.strip():
                continue
            result.received += 1
            try:
                batch.append((number, self._entry(line)))
            except ValueError as error:
                reject(number, str(error))
            if len(batch) == INGEST_BATCH:
                await write()
        if batch:
            await write()
        result.errors.sort(key=lambda found: found.line)
        return result

    def _entry(self, line: bytes | None) -> Entry:
        if line is None:
            raise ValueError(f"longer than {MAX_LINE} bytes")
        try:
            record = CaptionRecord.model_validate_json(line)
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(str(part) for part in found["loc"])
            raise ValueError(f"{where}: {found['msg']}" if where else found["msg"]) from error
        language = self.listing.resolve(record.language)
        if language is None:
            raise ValueError(
                f"language: no pack for {record.language!r}; there are "
                f"{', '.join(self.listing.languages)}"
            )
        for name, text in (("image_id", record.image_id), ("caption", record.caption)):
            if fault := fault_of(text):
                raise ValueError(f"{name}: {fault}")
        entry = caption_entry(record.image_id, language, record.caption, record.source)
        if not entry.caption:
            raise ValueError("caption: is empty")
        return replace(entry, id=record.id) if record.id else entry

    async def _encode(self, texts: list[Text]) -> Sequence[Row | Fault]:
        return rows_of(await self.backend.encode_texts(texts))


def _problem(fault: Fault, errors: list[dict[str, Any]] | None = None) -> ProblemError:
    status = STATUS[fault.kind]
    headers = {"Retry_After": "2"} if status == 503 else {}
    return ProblemError(status, fault.kind, fault.detail, errors, **headers)


async def _lines(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes | None]]:
    """Numbered lines of a stream; None for one that is too long, which is not kept."""
    number, kept, overlong, begun = 1, b"", False, False
    async for chunk in body:
        if not begun:  # a body may come byte by byte
            kept += chunk
            if len(kept) < len(BOM_UTF8) and BOM_UTF8.startswith(kept):
                continue
            chunk, kept, begun = kept.removeprefix(BOM_UTF8), b"", True
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            overlong = overlong or len(kept) + len(piece) > MAX_LINE
            yield number, None if overlong else kept + piece
            number, kept, overlong = number + 1, b"", False
        overlong = overlong or len(kept) + len(rest) > MAX_LINE
        kept = b"" if overlong else kept + rest
    if kept or overlong:
        yield number, None if overlong else kept
