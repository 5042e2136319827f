"""Bulk ingest of captions: NDJSON lines are encoded and written to the index batch by batch."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from pydantic import ValidationError

from mla_ray.index.entry import Entry
from mla_ray.index.ingest import caption_entry
from mla_ray.model.text import fault_of, normalized
from mla_ray.packs.store import Listing
from mla_ray.serving.coalescing import Overloaded
from mla_ray.serving.engines import Encoded, Text, Vectors
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
    the written batches stay. Sending them again changes nothing.

    Args:
        languages: Languages that the server can encode.
        encode: Encodes texts.
        upsert: Writes entries and their vectors, and returns the number of entries.

    """

    def __init__(
        self,
        languages: ServedLanguages,
        encode: Callable[[list[Text]], Awaitable[Encoded]],
        upsert: Callable[[list[Entry], Vectors], Awaitable[int]],
    ) -> None:
        self._languages = languages
        self._encode = encode
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
        encoded = await self._encode_when_free(
            [Text(e.language, e.caption) for _, e in self._batch]
        )
        good: list[int] = []
        for row, (line, _) in enumerate(self._batch):
            if row in encoded.errors:
                self._reject(line, encoded.errors[row].detail)
            else:
                good.append(row)
        if good:
            entries = [self._batch[row][1] for row in good]
            self._result.written += await self._upsert(entries, encoded.vectors[good])
        self._batch.clear()

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
