"""Splitting of a stream of captions into requests, and the sum of their results."""

import heapq
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping

import orjson
from pydantic import BaseModel

from mla_ray.serving.client_calls import Call, put_captions
from mla_ray.serving.schemas import (
    MAX_ERRORS,
    MAX_INGEST_BYTES,
    MAX_LINE,
    CaptionRecord,
    IngestResult,
    RejectedLine,
)

CHUNK = 5_000  # default number of records per request

Record = CaptionRecord | Mapping[str, object]


class IngestStream:
    """Requests for a stream of records, with their total result.

    Args:
        chunk: Maximum number of records per request.
        max_bytes: Maximum size of a request body in bytes.

    """

    def __init__(self, chunk: int, max_bytes: int = MAX_INGEST_BYTES) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, must be at least 1")
        self.result = IngestResult(received=0, written=0, rejected=0, errors=[])
        self._chunk = chunk
        self._max_bytes = max_bytes
        self._before = 0  # number of records in earlier chunks
        self._lines: list[bytes] = []  # lines of this chunk with their newlines
        self._bytes = 0
        self._rejected: list[RejectedLine] = []  # rejected by this client, first MAX_ERRORS

    def calls(self, records: Iterable[Record]) -> Iterator[Call[IngestResult]]:
        """Yield the requests. Pass each result to `add` before taking the next request."""
        for record in records:
            yield from self._take(record)
        yield from self._rest()

    async def calls_async(
        self, records: Iterable[Record] | AsyncIterable[Record]
    ) -> AsyncIterator[Call[IngestResult]]:
        """Yield the requests as `calls` does. `records` may be an asynchronous iterable."""
        if isinstance(records, AsyncIterable):
            async for record in records:
                for call in self._take(record):
                    yield call
            for call in self._rest():
                yield call
        else:
            for call in self.calls(records):
                yield call

    def add(self, result: IngestResult) -> None:
        """Add the result of the current chunk to the total and start the next chunk."""
        total = self.result
        total.received += result.received
        total.written += result.written
        total.unchanged += result.unchanged
        total.rejected += result.rejected
        room = MAX_ERRORS - len(total.errors)
        by_server = [RejectedLine(line=self._before + e.line, error=e.error) for e in result.errors]
        errors = heapq.merge(by_server, self._rejected, key=lambda rejected: rejected.line)
        total.errors.extend(itertools.islice(errors, room))
        self._before += len(self._lines)
        self._lines, self._bytes, self._rejected = [], 0, []

    def _take(self, record: Record) -> Iterator[Call[IngestResult]]:
        try:
            line = line_of(record)
        except ValueError as error:
            yield from self._keep(b"\n")
            self.result.received += 1
            self.result.rejected += 1
            if len(self._rejected) < MAX_ERRORS:
                number = self._before + len(self._lines)
                self._rejected.append(RejectedLine(line=number, error=str(error)))
        else:
            yield from self._keep(line)

    def _keep(self, line: bytes) -> Iterator[Call[IngestResult]]:
        """Append a line to the chunk. An empty line stands for a record that was rejected here.

        The server skips empty lines but includes them in its line numbers.
        """
        if len(self._lines) == self._chunk or self._bytes + len(line) > self._max_bytes:
            yield from self._rest()
        self._lines.append(line)
        self._bytes += len(line)

    def _rest(self) -> Iterator[Call[IngestResult]]:
        if self._lines:
            yield put_captions(self._lines)


def line_of(record: Record) -> bytes:
    """Return a record as a line of NDJSON with its newline.

    Raises:
        ValueError: The record cannot be written as JSON, or the line is too long.

    """
    fields = record.model_dump(exclude_none=True) if isinstance(record, BaseModel) else record
    try:
        line = orjson.dumps(dict(fields), option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record cannot be written as JSON: {error}") from error
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE:,} bytes")
    return line + b"\n"
