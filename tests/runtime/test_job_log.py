"""Progress as log lines."""

from mla_ray.runtime.job_log import progress_lines
from mla_ray.runtime.progress import Progress


def test_progress_is_logged_at_its_ends_and_every_so_often() -> None:
    lines: list[str] = []
    now = 0.0
    report = progress_lines(lines.append, 10.0, lambda: now)
    for done in range(101):  # a second each
        now = float(done)
        report(Progress("training", done, 100, f"loss {done}"))
        if done == 100:
            report(Progress("training", done, 100))  # once more, of nothing new
    report(Progress("images", 3, 7))
    report(Progress("nothing", 0, 0))
    report(Progress("rows", 5, None))
    assert lines == [
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
