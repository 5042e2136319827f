"""Promises of mla_ray.datasets.emoji_tables: what has begun keeps its tables."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.datasets.emoji_tables import local_tables, table_files
from mla_ray.datasets.lexicons import Lexicon
from mla_ray.runtime.progress import Progress
from mla_ray.runtime.storage import as_path, names_in, remove, write_bytes, write_json
from mla_ray.training.run_spec import sources
from tests.support.emoji import Dictionaries, only_a_few
from tests.support.s3 import s3_bucket


def nothing(progress: Progress) -> None:
    pass


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    only_a_few(monkeypatch)


@pytest.fixture
def dictionaries(monkeypatch: pytest.MonkeyPatch) -> Dictionaries:
    return Dictionaries(monkeypatch)


def begun(folder: UPath, files: list[UPath]) -> UPath:
    """What a run of these tables writes first."""
    corpus = Corpus("de", [str(file) for file in files[1:]], str(files[0]))
    write_json(folder / "run.json", {"sources": sources([corpus])})
    return folder / "run.json"


def lexicon_of(files: list[UPath]) -> Lexicon:
    with files[2].open("rb") as file:
        return Lexicon.of_table(pq.read_table(file))


@pytest.fixture
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    if getattr(request, "param", "") == "S3":
        with s3_bucket() as url:
            yield as_path(f"{url}/data")
    else:
        yield as_path(tmp_path / "data")


@pytest.mark.parametrize("data", ["a folder", "S3"], indirect=True)
def test_a_run_that_has_begun_keeps_its_tables_and_a_new_one_has_the_better_lexicon(
    data: UPath, dictionaries: Dictionaries, tmp_path: Path
) -> None:
    first = table_files("de", data, nothing)
    assert lexicon_of(first).pairs.num_rows == 1
    assert lexicon_of(first).missing == {"flaky": "connection refused, try 1"}
    run = begun(as_path(tmp_path / "first"), first)
    before = [file.read_bytes() for file in first]
    dictionaries.away = False
    better = table_files("de", data, nothing, as_path(tmp_path / "new" / "run.json"))
    assert better[:2] == first[:2]
    assert lexicon_of(better).pairs.num_rows == 4
    assert not lexicon_of(better).missing
    assert table_files("de", data, nothing, run) == first
    assert [file.read_bytes() for file in first] == before
    asked = dictionaries.asked
    assert table_files("de", data, nothing) == better
    assert table_files("de", data, nothing, begun(as_path(tmp_path / "second"), better)) == better
    assert dictionaries.asked == asked, "nothing is missing any more"
    dictionaries.away = True
    assert table_files("de", data, nothing) == better


def test_a_source_that_stays_away_changes_nothing(
    data: UPath, dictionaries: Dictionaries, tmp_path: Path
) -> None:
    """Though it says each time in other words why."""
    first = table_files("de", data, nothing)
    before = [file.read_bytes() for file in first]
    assert table_files("de", data, nothing) == first
    assert dictionaries.asked == 2
    assert [file.read_bytes() for file in first] == before
    table_files("de", data, nothing, begun(as_path(tmp_path), first))
    assert dictionaries.asked == 2, "a run that has begun asks nobody"


def test_a_source_that_adds_nothing_is_not_asked_for_ever(
    data: UPath, dictionaries: Dictionaries
) -> None:
    dictionaries.words["flaky"] = {}
    first = table_files("de", data, nothing)
    dictionaries.away = False
    better = table_files("de", data, nothing)
    assert lexicon_of(better).pairs == lexicon_of(first).pairs
    asked = dictionaries.asked
    assert table_files("de", data, nothing) == better
    assert dictionaries.asked == asked


def test_a_lexicon_without_pairs_is_no_table(
    data: UPath, dictionaries: Dictionaries, tmp_path: Path
) -> None:
    dictionaries.words["steady"] = {}
    first = table_files("de", data, nothing)
    assert [file.name for file in first] == ["captions.parquet", "pairs-de.parquet"]
    run = begun(as_path(tmp_path), first)
    dictionaries.away = False
    assert len(table_files("de", data, nothing)) == 3
    assert table_files("de", data, nothing, run) == first


def test_tables_that_are_gone_are_made_anew(
    data: UPath, dictionaries: Dictionaries, tmp_path: Path
) -> None:
    """The run then says that its sources differ."""
    run = begun(as_path(tmp_path), table_files("de", data, nothing))
    for name in names_in(data / "emoji"):
        remove(data / "emoji" / name)
    dictionaries.away = False
    assert lexicon_of(table_files("de", data, nothing, run)).pairs.num_rows == 4


def test_a_run_of_the_first_split_goes_on_with_its_tables_and_others_do_not(
    tmp_path: Path, dictionaries: Dictionaries
) -> None:
    data = as_path(tmp_path / "data")
    made = table_files("de", data, nothing)
    old = data / "emoji" / "tables-de"  # as 0.1.0 called it
    for file, name in zip(made, ("captions", "pairs-de", "lexicon-de"), strict=True):
        with file.open("rb") as parquet:
            rows = pq.read_table(parquet)
        write_bytes(old / f"{name}.parquet", written(rows.slice(1)))
    theirs = [old / "captions.parquet", old / "pairs-de.parquet"]
    run = begun(as_path(tmp_path / "run"), theirs)
    assert table_files("de", data, nothing, run) == theirs
    assert table_files("de", data, nothing) == made
    kept = local_tables("de", Path(data.path), nothing, run)
    assert kept.captions.num_rows == pq.read_table(made[0].path).num_rows - 1
    assert kept.note == "no dictionary pairs"


def written(table: pa.Table) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
