"""Bulk ingest of captions: NDJSON lines are encoded and written to the index batch by batch."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from pydantic import ValidationError

from mla_ray.index.encoders import caption_hash
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import caption_entry
from mla_ray.model.text import fault_of, normalized
from mla_ray.packs.store import Listing
from mla_ray.serving.coalescing import Overloaded
from mla_ray.serving.engines import Encoded, Hashes, Text, Vectors
from mla_ray.serving.ndjson import lines_of
from mla_ray.serving.schemas import (
    MAX_ERRORS,
    MAX_LINE,
    CaptionRecord,
    IngestResult,
    RejectedLine,
    first_error,
)
from mla_ray.serving.served_languages import ServedLanguages

BATCH = 128
"""Number of captions that are encoded and written together."""
PATIENCE_S = 30
"""Longest time in seconds that a batch waits while the encoders are overloaded."""


class CaptionIngest:
    """Ingest of one request. Bad lines are skipped and reported.

    A batch is written before the next one is read, so memory is bounded. If the connection breaks,
    the written batches stay. Sending them again changes nothing, and encodes nothing: captions that
    the index has with the same hash are not encoded.

    Args:
        languages: Languages that the server can encode.
        fingerprint: Fingerprint of the server's native.
        encode: Encodes texts.
        stored: Returns the hash that each entry was written with, or None.
        upsert: Writes entries, their vectors and hashes, and returns the number of entries.

    """

    def __init__(
        self,
        languages: ServedLanguages,
        fingerprint: str,
        encode: Callable[[list[Text]], Awaitable[Encoded]],
        stored: Callable[[list[Entry]], Awaitable[list[str | None]]],
        upsert: Callable[[list[Entry], Vectors, Hashes], Awaitable[int]],
    ) -> None:
        self._languages = languages
        self._fingerprint = fingerprint
        self._encode = encode
        self._stored = stored
        self._upsert = upsert
        self._result = IngestResult(received=0, written=0, rejected=0, errors=[])
        self._batch: list[tuple[int, Entry]] = []  # line number and caption

    async def run(self, body: AsyncIterator[bytes]) -> IngestResult:
        """Read the body and write its captions. Call it once."""
        async for number, line in lines_of(body):
            if line is not None and not line.strip():
                continue
            self._result.received += 1
            try:
                self._batch.append((number, _entry(line, self._languages.listing)))
            except ValueError as error:
                self._reject(number, str(error))
            if len(self._batch) == BATCH:
                await self._write()
        if self._batch:
            await self._write()
        self._result.errors.sort(key=lambda rejected: rejected.line)
        return self._result

    async def _write(self) -> None:
        changed = await self._changed()
        unchanged = len(self._batch) - len(changed)
        self._result.written += unchanged
        self._result.unchanged += unchanged
        self._batch.clear()
        if not changed:
            return
        encoded = await self._encode_when_free([Text(e.language, e.caption) for _, e in changed])
        good: list[int] = []
        for row, (line, _) in enumerate(changed):
            if row in encoded.errors:
                self._reject(line, encoded.errors[row].detail)
            else:
                good.append(row)
        if good:
            entries = [changed[row][1] for row in good]
            # Of the packs that encoded them, which may be newer than the listing.
            hashes = [self._hash(e, encoded.files.get(e.language, {})) for e in entries]
            self._result.written += await self._upsert(entries, encoded.vectors[good], hashes)

    async def _changed(self) -> list[tuple[int, Entry]]:
        """Return the lines of the batch that the index does not have as they are."""
        stored = await self._stored([entry for _, entry in self._batch])
        packs = self._languages.listing.packs
        distinct = Counter(entry.key for entry in {entry for _, entry in self._batch})
        changed = []
        for (line, entry), hash_ in zip(self._batch, stored, strict=True):
            pack = packs.get(entry.language)
            now = self._hash(entry, pack.card.sha256 if pack else {})
            # Of several lines for one entry, the last one counts. So all of them are written.
            if now is None or now != hash_ or distinct[entry.key] > 1:
                changed.append((line, entry))
        return changed

    def _hash(self, entry: Entry, files: dict[str, str]) -> str | None:
        return caption_hash(entry, self._fingerprint, files)

    async def _encode_when_free(self, texts: list[Text]) -> Encoded:
        """Encode texts. While the encoders are overloaded, wait, so that searches go first.

        Raises:
            Overloaded: The encoders are overloaded for more than `PATIENCE_S`.

        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._encode(texts)
            except Overloaded as error:
                if time.monotonic() + error.retry_after_s > deadline:
                    raise
                await asyncio.sleep(error.retry_after_s)

    def _reject(self, line: int, error: str) -> None:
        self._result.rejected += 1
        if len(self._result.errors) < MAX_ERRORS:
            self._result.errors.append(RejectedLine(line=line, error=error))


def _entry(line: bytes | None, listing: Listing) -> Entry:
    """Parse one line. A ValueError describes what is wrong with it."""
    if line is None:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    try:
        record = CaptionRecord.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error
    language = listing.resolve(record.language)
    if language is None:
        raise ValueError(
            f"language: no pack for {record.language!r}; there are {', '.join(listing.languages)}"
        )
    for name, text in (("image_id", record.image_id), ("caption", record.caption)):
        if fault := fault_of(text):
            raise ValueError(f"{name}: {fault}")
    entry = caption_entry(normalized(record.image_id), language, record.caption, record.source)
    if not entry.caption:
        raise ValueError("caption: is empty")
    return replace(entry, id=record.id) if record.id else entry
