"""Promises of runtime.progress: what is counted in parts is reported in all."""

import pytest

from mla_ray.runtime.progress import Progress, counting


@pytest.mark.parametrize("total", [9, None])
def test_parts_are_reported_as_their_sum(total: int | None) -> None:
    reported: list[Progress] = []
    advance = counting(reported.append, "reading", total)
    for count in (4, 0, 5):
        advance(count)
    assert reported == [Progress("reading", done, total) for done in (4, 4, 9)]
