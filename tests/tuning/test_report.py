"""What a sweep found is told whole and soundly, whatever the sweep was."""

import base64
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import yaml
from PIL import Image
from upath import UPath

from mla_ray.runtime.storage import as_path
from mla_ray.tuning import charts, report
from mla_ray.tuning.importance import importance
from mla_ray.tuning.outcome import Gain, Interval, Outcome, Trial
from mla_ray.tuning.report import write
from mla_ray.tuning.theme import LIGHT
from tests.support.trials import searched, trial

PICTURES = ("trials", "parallel", "importance", "curves")
HOSTILE = "ValueError: </td><script>alert('x')</script> & \"quoted\""
VOID = {"meta", "br", "img", "source"}


def outcome(trials: list[Trial], **more: Any) -> Outcome:
    best = max((t for t in trials if t.ar is not None), key=lambda t: t.ar or 0)
    fields = {
        "language": "sw",
        "native": "tiny-clip",
        "space": "standard",
        "validation": "pairs",
        "seed": 3,
        "trials": trials,
        "best": best.number,
        "config": {"nlt": {"lr": 0.00123456}, "rows": "random"},
        "seconds": 8343,
    }
    return Outcome.model_validate(fields | more)


def gain(low: float) -> Gain:
    return Gain(
        default=Interval(value=41.04, low=39.2, high=42.7),
        swept=Interval(value=43.9, low=42.1, high=45.6),
        difference=Interval(value=2.86, low=low, high=4.1),
        images=1000,
        captions=5000,
    )


@dataclass
class Page(HTMLParser):
    """What a browser would make of the page."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    best: list[str] = field(default_factory=list)
    """First cells of the rows marked as the best."""
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    text: str = ""
    _open: list[str] = field(default_factory=list)
    _table: str = ""
    _marked: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._table = given.get("id") or ""
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
            self._marked = given.get("class") == "best"
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        elif tag == "img":
            self.pictures.append(given["alt"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            row = self.tables[self._table][-1]
            row[-1] += data
            if self._marked and len(row) == 1:
                self.best.append(data)


def read(file: UPath) -> Page:
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    page.close()
    assert not page._open
    page.text = " ".join(page.text.split())
    return page


def opened(file: UPath) -> Image.Image:
    picture = Image.open(BytesIO(file.read_bytes()))
    picture.load()
    return picture


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Neither matplotlib nor optuna has anything to complain about to the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.fixture(scope="module")
def searched_file(tmp_path_factory: pytest.TempPathFactory) -> UPath:
    """The page of a search with a gain: to draw its pictures takes seconds."""
    folder = tmp_path_factory.mktemp("sweep") / "new" / "a"
    return write(outcome(searched(), gain=gain(1.8)), as_path(folder))


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what the page says."""
    monkeypatch.setattr(report, "CHARTS", ())


def names(folder: UPath) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FILES = sorted(["report.html", *(f"{name}.png" for name in PICTURES)])


def test_the_page_and_its_pictures_are_in_the_folder(searched_file: UPath) -> None:
    folder = searched_file.parent
    assert searched_file == folder / "report.html"
    assert names(folder) == FILES
    for name in PICTURES:
        picture = opened(folder / f"{name}.png")
        assert picture.format == "PNG"
        assert 900 <= picture.width <= 2400, name
        assert 300 <= picture.height <= 1200, name
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 8, name  # not blank


def test_the_folder_may_be_a_url() -> None:
    folder = as_path(f"memory://{uuid4().hex}")
    assert write(outcome([trial(0)]), folder) == folder / "report.html"
    assert names(folder) == FILES
    for name in PICTURES:
        assert opened(folder / f"{name}.png").format == "PNG"


def test_the_page_holds_everything_itself(searched_file: UPath) -> None:
    page = read(searched_file)
    links = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "data", "poster")
    ]
    assert len(links) == 2 * len(PICTURES)  # light and dark
    for link in links:
        assert link
        kind, data = link.split(",", 1)
        assert kind == "data:image/png;base64"
        Image.open(BytesIO(base64.b64decode(data, validate=True))).load()
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "url(" not in searched_file.read_text(encoding="utf-8")
    assert ("meta", "width=device-width, initial-scale=1") in [
        (tag, attributes.get("content")) for tag, attributes in page.tags
    ]


@pytest.mark.usefixtures("no_charts")
def test_every_trial_has_a_row_that_says_all_of_it(tmp_path: Path) -> None:
    trials = [
        trial(0, 40.06, settings={"nlt.lr": 0.001, "rows": "aligned"}),
        trial(1, 47.25, origin="best for de", settings={"nlt.lr": 3e-05, "rows": "random"}),
        trial(2, 12.5, status="stopped", percent=11, seconds=1234.5, settings={"nlt.lr": 0.5}),
        trial(3, None, status="failed", percent=0, error="OSError: disk full"),
        trial(4, None, status="diverged", percent=7),
    ]
    page = read(write(outcome(trials[::-1]), as_path(tmp_path)))
    head, *rows = page.tables["trials"]
    assert head == [
        *("trial", "origin", "status", "AR, %", "trained, %", "time, s"),
        *("nlt.lr", "rows"),
        "error",
    ]
    assert rows == [
        ["0", "defaults", "done", "40.1", "100", "61", "0.001", "aligned", ""],
        ["1", "best for de", "done", "47.2", "100", "61", "3e-5", "random", ""],
        ["2", "search", "stopped", "12.5", "11", "1,234", "0.5", "–", ""],
        ["3", "search", "failed", "–", "0", "61", "0.004", "aligned", "OSError: disk full"],
        ["4", "search", "diverged", "–", "7", "61", "0.005", "aligned", ""],
    ]
    assert page.best == ["1"]


def test_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    trials = [
        *searched(),
        trial(20, None, status="failed", error=HOSTILE, settings={"<b>": r"<i>$\nope{$"}),
        *(trial(n, 30.0 + n, settings={"<b>": rf"<i>$\nope{{$ {n}"}) for n in (21, 22)),
    ]
    found = outcome(trials, space="<u>mine</u>", config={"rows": "</pre><em>"})
    page = read(write(found, as_path(tmp_path)))
    assert not {"script", "b>", "i", "u", "em"} & {tag for tag, _ in page.tags}
    row = next(row for row in page.tables["trials"] if row[0] == "20")
    assert row[-1] == HOSTILE
    assert r"<i>$\nope{$" in row
    assert "<u>mine</u>" in page.text


def test_the_one_line_result_the_settings_and_the_gain_are_told(searched_file: UPath) -> None:
    found = outcome(searched(), gain=gain(1.8))
    page = read(searched_file)
    assert found.line in page.text
    assert page.tables["gain"][1:] == [
        ["the defaults", "41.0", "39.2", "42.7"],
        ["the best settings", "43.9", "42.1", "45.6"],
        ["difference", "+2.9", "+1.8", "+4.1"],
    ]
    assert "1,000 images and 5,000 captions" in page.text
    assert "The whole interval of the difference is above zero." in page.text
    text = re.search(r'<pre id="config">(.*?)</pre>', searched_file.read_text(), re.DOTALL)
    assert text
    assert yaml.safe_load(text[1]) == found.config


@pytest.mark.usefixtures("no_charts")
def test_a_difference_that_may_be_chance_is_called_no_gain(tmp_path: Path) -> None:
    page = read(write(outcome(searched(), gain=gain(-0.2)), as_path(tmp_path)))
    assert "No gain:" in page.text
    assert "The whole interval" not in page.text
    assert page.tables["gain"][-1] == ["difference", "+2.9", "-0.2", "+4.1"]


@pytest.mark.usefixtures("no_charts")
def test_a_sweep_without_a_test_split_says_that_gain_was_not_measured(tmp_path: Path) -> None:
    page = read(write(outcome(searched()), as_path(tmp_path)))
    assert "Not measured: there are no captions with the split test." in page.text
    assert "gain" not in page.tables


def test_one_trial_is_a_page_that_says_what_cannot_be_drawn(tmp_path: Path) -> None:
    page = read(write(outcome([trial(0)], config={}), as_path(tmp_path)))
    assert "1 trial of the space" in page.text
    assert "add up to 2 h 19 min" in page.text
    assert "parallel axes need at least 2 trials with an AR" in page.text
    assert "importance needs at least 4 trials with an AR and different settings" in page.text
    assert len(page.pictures) == 2
    assert "Trial 0, which has the default settings." in page.text
    assert len(page.tables["trials"]) == 2
    for name in PICTURES:  # a reader of the folder alone is told as well
        assert opened(as_path(tmp_path) / f"{name}.png").width > 900


def test_trials_that_came_to_nothing_are_left_out_of_the_pictures_not_of_the_page(
    tmp_path: Path,
) -> None:
    lost: list[dict[str, Any]] = [
        {"status": "failed", "error": "RuntimeError: x"},
        {"status": "diverged"},
    ]
    trials = [trial(0)] + [trial(n, None, percent=0, **lost[n % 2]) for n in range(1, 6)]
    page = read(write(outcome(trials), as_path(tmp_path)))
    assert len(page.tables["trials"]) == 7
    assert "importance needs at least 4 trials" in page.text
    assert "parallel axes need at least 2 trials" in page.text
    assert len(page.pictures) == 2


def test_a_nan_is_neither_drawn_nor_counted(tmp_path: Path) -> None:
    nan = [trial(n, math.nan, status="diverged", curve=[(10, math.nan)]) for n in (1, 2, 3, 4)]
    page = read(write(outcome([trial(0), *nan]), as_path(tmp_path)))
    assert [row[3] for row in page.tables["trials"][1:]] == ["40.0", *["–"] * 4]
    assert "nan" not in page.text.lower()
    assert importance([trial(0), *nan]) == {}


def test_a_parameter_that_never_varied_is_told_and_has_no_axis(searched_file: UPath) -> None:
    page = read(searched_file)
    assert "The same in every trial: warmup = 0.1." in page.text
    figure = charts.draw_parallel(outcome(searched()), LIGHT)
    assert not isinstance(figure, str)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "nlt.lr\n(log)" in words
    assert {"rows", "temperature", "native", "AR, %"} <= set(words)
    assert not any("warmup" in word for word in words)


def test_where_nothing_varied_only_the_settings_pictures_are_missing(tmp_path: Path) -> None:
    same = [trial(n, 40.0 + n, settings={"nlt.lr": 0.001}) for n in range(6)]
    page = read(write(outcome(same), as_path(tmp_path)))
    assert "no parameter has more than one value" in page.text
    assert "importance needs at least 4 trials with an AR and different settings" in page.text
    assert len(page.pictures) == 2


def test_where_all_ar_are_equal_importance_says_so(tmp_path: Path) -> None:
    page = read(write(outcome([trial(n, 40.0) for n in range(6)]), as_path(tmp_path)))
    assert "importance needs different AR" in page.text
    assert len(page.pictures) == 3


def test_trials_that_were_never_measured_on_the_way_have_no_curves(tmp_path: Path) -> None:
    page = read(write(outcome([trial(n, 40.0 + n, curve=[]) for n in range(6)]), as_path(tmp_path)))
    assert "no trial was measured while it trained" in page.text
    assert len(page.pictures) == 3


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    write(outcome(searched()), as_path(tmp_path))
    write(outcome([trial(0)]), as_path(tmp_path))
    assert len(read(as_path(tmp_path) / "report.html").tables["trials"]) == 2
    assert opened(as_path(tmp_path) / "importance.png").height < 250  # the words that say why not
    assert len(list(tmp_path.iterdir())) == 5


def test_the_running_best_rises_to_the_best_trial() -> None:
    trials = [trial(0, 40.0), trial(1, 45.0), trial(2, 99.0, status="diverged"), trial(3, 42.0)]
    figure = charts.draw_trials(outcome(trials, best=1), LIGHT)
    assert not isinstance(figure, str)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(np.asarray(lines["best so far"].get_ydata())) == [40, 45, 45, 45]
    assert set(np.asarray(lines["defaults"].get_ydata())) == {40}
    assert lines["defaults"].is_dashed()


def test_curves_show_the_best_bold_the_defaults_dashed_and_the_stopped_faint() -> None:
    trials = [trial(0), trial(1, 47.0), trial(2, 20.0, status="stopped", curve=[(11, 20.0)])]
    figure = charts.draw_curves(outcome(trials), LIGHT)
    assert not isinstance(figure, str)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["defaults"].is_dashed()
    assert not lines["best: trial 1"].is_dashed()
    assert lines["best: trial 1"].get_linewidth() > 2 * lines["defaults"].get_linewidth()
    assert (lines["stopped"].get_alpha() or 1) < 0.5
    assert lines["stopped"].get_marker() not in ("None", None)  # one point has no line


def test_the_colour_of_the_only_trial_that_diverged_is_kept(tmp_path: Path) -> None:
    lost = trial(200, 20.0, status="diverged", curve=[(11, 10.0), (22, 20.0)])
    write(outcome([*searched(count=200), lost]), as_path(tmp_path))
    wanted = np.array([int(LIGHT.status["diverged"][n : n + 2], 16) for n in (1, 3, 5)])
    for name in ("trials", "curves"):
        pixels = np.asarray(opened(as_path(tmp_path) / f"{name}.png").convert("RGB")).reshape(-1, 3)
        assert np.abs(pixels - wanted).sum(axis=1).min() < 12, name


def test_a_parameter_that_only_some_trials_have_does_no_harm(tmp_path: Path) -> None:
    trials = searched()
    trials[3] = trial(3, 50.0, settings={"nlt.lr": 0.001, "only here": 7})
    shares = importance(trials)
    assert shares["only here"] == 0
    assert sum(shares.values()) == pytest.approx(1)
    assert len(read(write(outcome(trials), as_path(tmp_path))).pictures) == 4
