"""Progress as log lines."""

import logging

from mla_ray.runtime.job_log import progress_logger
from mla_ray.runtime.progress import Progress


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_progress_is_logged_at_its_ends_and_every_so_often() -> None:
    log, handler, now = logging.Logger("toy"), Lines(), 0.0
    log.addHandler(handler)
    report = progress_logger(10.0, log, lambda: now)
    for done in range(101):  # a second each
        now = float(done)
        report(Progress("training", done, 100, f"loss {done}"))
        if done == 100:
            report(Progress("training", done, 100))  # once more, of nothing new
    report(Progress("images", 3, 7))
    report(Progress("nothing", 0, 0))
    report(Progress("rows", 5, None))
    assert handler.lines == [
        "training 0/100 0% loss 0",
        *(
            f"training {done}/100 {done}% ETA 0:{(100 - done) // 60:02}:{(100 - done) % 60:02} "
            f"loss {done}"
            for done in range(10, 100, 10)
        ),
        "training 100/100 100% loss 100",
        "images 3/7 42%",
        "nothing 0/0 100%",
        "rows 5",
    ]
