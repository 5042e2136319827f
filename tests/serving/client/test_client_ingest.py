"""Promises of the ingest of streams: in chunks, counted once, rejected in place."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from mla_ray.serving.client import AsyncClient
from mla_ray.serving.client_ingest import IngestStream
from mla_ray.serving.schemas import (
    MAX_ERRORS,
    CaptionRecord,
    IngestResult,
)
from tests.serving.client.contract_server import (
    Ask,
    Fault,
    Server,
    problem,
    records,
)


def test_captions_go_in_chunks_and_come_back_as_one_result(ask: Ask, server: Server) -> None:
    rows: list[Any] = [*records(7)]
    rows[2] = {"image_id": "photo", "language": "de", "caption": " "}
    rows[3] = CaptionRecord(image_id="photo 3", language="de", caption="Wörter")
    rows[5] = {"image_id": "photo", "caption": "no language"}
    result = ask("ingest", iter(rows), chunk=3)
    assert (result.received, result.written, result.rejected) == (7, 5, 2)
    assert [(found.line, found.error.split(":")[0]) for found in result.errors] == [
        (3, "caption"),
        (6, "language"),
    ]
    assert [len(seen.body.splitlines()) for seen in server.seen] == [3, 3, 1]
    assert server.captions["photo 3#Wörter"] == rows[3]


def test_ingesting_again_changes_nothing(ask: Ask, server: Server) -> None:
    first = ask("ingest", records(5), chunk=2)
    kept = dict(server.captions)
    assert ask("ingest", records(5), chunk=2) == first
    assert server.captions == kept


def test_a_chunk_whose_answer_was_lost_is_counted_once(ask: Ask, server: Server) -> None:
    server.faults.extend([Fault(breaks_off=True, after_work=True), problem(429, "slow down")])
    result = ask("ingest", records(5), chunk=2)
    assert (result.received, result.written, result.rejected) == (5, 5, 0)
    assert len(server.captions) == 5
    assert [len(seen.body.splitlines()) for seen in server.seen] == [2, 2, 2, 2, 1]


def test_a_record_that_cannot_be_sent_is_rejected_in_its_place(ask: Ask, server: Server) -> None:
    rows: list[Any] = [*records(6)]
    rows[0]["caption"] = "\ud800"  # half of a surrogate pair
    rows[1]["language"] = "no language"
    rows[2]["caption"] = "x" * (64 << 10)
    rows[4]["image_id"] = object()
    rows[5] = "not a record"
    result = ask("ingest", rows, chunk=2)
    assert (result.received, result.written, result.rejected) == (6, 1, 5)
    assert [found.line for found in result.errors] == [1, 2, 3, 5, 6]
    assert result.errors[2].error == "longer than 65,536 bytes"
    assert all("x" * 1000 not in seen.body.decode() for seen in server.seen)


def test_the_first_thousand_rejections_are_named_and_all_counted(ask: Ask) -> None:
    rows: list[Any] = [{"caption": "alone"}, {"caption": object()}] * (MAX_ERRORS // 2 + 10)
    result = ask("ingest", rows, chunk=700)
    assert result.rejected == result.received == MAX_ERRORS + 20
    assert [found.line for found in result.errors] == list(range(1, MAX_ERRORS + 1))


def test_no_more_than_a_chunk_is_read_ahead(ask: Ask, server: Server) -> None:
    taken, ahead = 0, []
    server.on_request = lambda: ahead.append(taken)

    def stream() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for record in records(10):
            taken += 1
            yield record

    ask("ingest", stream(), chunk=3)
    assert ahead == [4, 7, 10, 10]


def test_a_chunk_stays_within_the_bytes_of_a_request() -> None:
    stream = IngestStream(chunk=5_000, max_bytes=200)
    bodies = []
    for call in stream.calls([*records(10), {"caption": object()}, *records(1)]):
        assert call.body is not None
        bodies.append(call.body)
        count = sum(bool(line) for line in call.body.split(b"\n"))
        stream.add(IngestResult(received=count, written=count, rejected=0, errors=[]))
    assert len(bodies) > 1
    assert all(len(body) <= 200 for body in bodies)
    result = stream.result
    assert (result.received, result.written, result.rejected) == (12, 11, 1)
    assert [rejected.line for rejected in result.errors] == [11]


def test_an_async_stream_is_ingested(server: Server) -> None:
    async def stream() -> AsyncIterator[dict[str, Any]]:
        for record in records(5):
            await asyncio.sleep(0)
            yield record

    async def ingest() -> IngestResult:
        async with AsyncClient(server.url) as client:
            return await client.ingest(stream(), chunk=2)

    assert asyncio.run(ingest()).written == 5
    assert len(server.seen) == 3


def test_nothing_to_ingest_is_nothing_sent(ask: Ask, server: Server) -> None:
    assert ask("ingest", []) == IngestResult(received=0, written=0, rejected=0, errors=[])
    assert server.seen == []
    with pytest.raises(ValueError, match="chunk is 0"):
        ask("ingest", [], chunk=0)
