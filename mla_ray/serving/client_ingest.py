"""A stream of captions of any length as requests that a server takes, their results as one."""

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

CHUNK = 5_000  # records of one request

Record = CaptionRecord | Mapping[str, object]


class IngestStream:
    """Records as requests of at most `chunk` of them, and at most `max_bytes` each."""

    def __init__(self, chunk: int, max_bytes: int = MAX_INGEST_BYTES) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, must be at least 1")
        self.result = IngestResult(received=0, written=0, rejected=0, errors=[])
        self._chunk = chunk
        self._max_bytes = max_bytes
        self._before = 0  # records of the chunks before
        self._lines: list[bytes] = []  # of this chunk, each with its newline
        self._bytes = 0
        self._rejected: list[RejectedLine] = []  # here, of this chunk, the first MAX_ERRORS

    def calls(self, records: Iterable[Record]) -> Iterator[Call[IngestResult]]:
        """Each result must be added before the next call is taken."""
        for record in records:
            yield from self._take(record)
        yield from self._rest()

    async def calls_async(
        self, records: Iterable[Record] | AsyncIterable[Record]
    ) -> AsyncIterator[Call[IngestResult]]:
        """As `calls`."""
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
        """Count in the result of the chunk under way, and begin the next."""
        total = self.result
        total.received += result.received
        total.written += result.written
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
        """An empty line stands for one rejected here: a server passes over it, but counts it."""
        if len(self._lines) == self._chunk or self._bytes + len(line) > self._max_bytes:
            yield from self._rest()
        self._lines.append(line)
        self._bytes += len(line)

    def _rest(self) -> Iterator[Call[IngestResult]]:
        if self._lines:
            yield put_captions(self._lines)


def line_of(record: Record) -> bytes:
    """A record as a line of NDJSON. ValueError if it cannot be sent."""
    fields = record.model_dump(exclude_none=True) if isinstance(record, BaseModel) else record
    try:
        line = orjson.dumps(dict(fields), option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a record that JSON can hold: {error}") from error
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE:,} bytes")
    return line + b"\n"
