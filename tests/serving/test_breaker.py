"""Promises of the breakers: one probe or search at a time asks a server that is away."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from mla_ray.serving.breaker import Absence, Breaker, IndexUnavailable


class Probe:
    """A probe that waits to be told what it finds."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.told = threading.Semaphore(0)
        self.finds: BaseException | None = None
        self.running = 0
        self.most = 0

    def __call__(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.asked.release()
        self.told.acquire()
        self.running -= 1
        if self.finds:
            raise self.finds

    def find(self, error: BaseException | None) -> None:
        assert self.asked.acquire(timeout=60)
        self.finds = error
        self.told.release()


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def breaker(probe: Probe) -> Iterator[Breaker]:
    breaker = Breaker(probe, every_s=0.01)
    yield breaker
    breaker.close()
    probe.told.release()


def call(guard: AbstractContextManager[None], error: BaseException | None = None) -> bool:
    """Return whether the call in the guard ran, or raise what it raised."""
    ran = False
    try:
        with guard:
            ran = True
            if error:
                raise error
    except IndexUnavailable:
        pass
    return ran


def until_closed(breaker: Breaker) -> None:
    for _ in range(6000):
        if call(breaker.guarding()):
            return
        threading.Event().wait(0.01)
    raise AssertionError("the breaker is open after 60 s")


def test_calls_run_until_one_finds_no_connection(breaker: Breaker, probe: Probe) -> None:
    assert call(breaker.guarding())
    with pytest.raises(IndexUnavailable), breaker.guarding():
        raise ConnectionError("refused")
    for _ in range(5):
        assert not call(breaker.guarding())
        probe.find(ConnectionError("refused"))
    probe.find(None)
    until_closed(breaker)


def test_one_probe_at_a_time_looks_for_the_server(breaker: Breaker, probe: Probe) -> None:
    inside = threading.Barrier(8)

    def refused() -> None:
        inside.wait(60)
        raise ConnectionError("refused")

    def fail() -> None:
        with pytest.raises(IndexUnavailable), breaker.guarding():
            refused()

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(3):
        probe.find(ConnectionError("refused"))
    probe.find(None)
    until_closed(breaker)
    assert probe.most == 1


@pytest.mark.parametrize("error", [RuntimeError("refused: 404"), ValueError("k is 0")])
def test_an_answer_is_no_outage(breaker: Breaker, probe: Probe, error: Exception) -> None:
    with pytest.raises(type(error)), breaker.guarding():
        raise error
    assert call(breaker.guarding())
    call(breaker.guarding(), ConnectionError("refused"))
    assert not call(breaker.guarding())
    probe.find(error)
    until_closed(breaker)


def test_an_outage_can_follow_another(breaker: Breaker, probe: Probe) -> None:
    for _ in range(3):
        call(breaker.guarding(), ConnectionError("refused"))
        assert not call(breaker.guarding())
        probe.find(None)
        until_closed(breaker)


def test_one_search_at_a_time_tries_an_index_that_is_away() -> None:
    now = 100.0
    absence = Absence(every_s=0.25, clock=lambda: now)

    def search(error: BaseException | None = None) -> bool:
        return call(absence.watching(), error)

    def run_a_bad_one() -> None:  # it says nothing of the index
        with pytest.raises(ValueError, match="bad request"):
            search(ValueError("bad request"))

    assert [search() for _ in range(3)] == [True] * 3
    run_a_bad_one()
    assert search(IndexUnavailable("away"))
    assert [search() for _ in range(3)] == [False] * 3
    now += 0.25
    assert search(IndexUnavailable("away")), "the trial"
    assert not search(), "it failed"
    now += 0.25
    with absence.watching():  # the next trial, which takes its time
        assert not search()
        now += 0.25
        run_a_bad_one()
        assert not search()
    assert [search() for _ in range(3)] == [True] * 3, "the index answers"


def test_searches_go_on_at_once_when_the_index_is_known_to_be_back() -> None:
    absence = Absence(clock=lambda: 100.0)
    assert call(absence.watching(), IndexUnavailable("away"))
    assert not call(absence.watching())
    absence.end()
    assert call(absence.watching())
