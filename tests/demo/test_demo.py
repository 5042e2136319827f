"""Promises of `mla demo`, on six pictures: every figure is worked out again from the pack."""

import base64
import json
import re
import tarfile
from collections.abc import Callable
from html import unescape
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mla_ray.data.feature_store import encode_images, encode_texts
from mla_ray.datasets.emoji_tables import EmojiTables
from mla_ray.demo import demo
from mla_ray.demo.report import Result
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.training.config import AcquireConfig, Stage
from mla_ray.training.workers import Workers

IMAGES = [f"twemoji/1f44{n}" for n in range(5)] + ["twemoji/1f44b-1f3fd"]
"""The last has a skin tone."""
GERMAN = ["roter Hund", "roter Fisch", "Hund", "Katze", "blauer Schirm", "rote Hand"]
"""Names of the test pictures: three are made of words in the pairs, one of these is in a pair."""
PAIRS = ["Hund", "roter Ball", "Fisch im Meer", "Katzen", "Trauben", "Boot"]
FEW = AcquireConfig(
    nlt=Stage(steps=12, batch=4, lr=1e-3),
    le=Stage(steps=4, batch=4, lr=1e-3),
    vocab_size=400,
)
Matrix = npt.NDArray[np.float64]


def written(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def tables(
    corpus: dict[str, list[str]], pngs: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> EmojiTables:
    folder = tmp_path_factory.mktemp("tables")
    rows = [
        {"image_id": image_id, "image": png, "language": language, "caption": text, "split": split}
        for split, ids, images, texts in (
            ("train", [f"noto/{n}" for n in range(6)], pngs[6:], (corpus["en"], PAIRS)),
            ("test", IMAGES, pngs[:6], (corpus["en"], GERMAN)),
        )
        for language, of_language in zip(("en", "de"), texts, strict=True)
        for image_id, png, text in zip(ids, images, of_language, strict=True)
    ]
    captions = pa.Table.from_pylist(rows)
    pairs = pa.table({"source": corpus["en"], "target": PAIRS, "language": ["de"] * 6})
    files = [
        written(folder / "captions.parquet", captions),
        written(folder / "pairs.parquet", pairs),
    ]
    return EmojiTables(captions, [pairs], files, "no dictionary pairs", {})


@pytest.fixture(scope="module")
def font(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as npm's, of the font that matplotlib has."""
    path = tmp_path_factory.mktemp("font") / "font.tgz"
    with tarfile.open(path, "w:gz") as archive:
        ttf = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        archive.add(ttf, "package/ttf/DejaVuSans.ttf")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


Demo = Callable[..., Result]


@pytest.fixture(scope="module")
def run_small(tables: EmojiTables, font: Path, native_folder: Path) -> Demo:
    """The demo on these tables, in a folder; without Ray, which takes longest to start."""

    def run(folder: Path, workers: int = 0) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "NATIVE", str(native_folder))
            patch.setattr(demo, "CONFIG", FEW)
            patch.setattr(demo, "local_tables", lambda *_: tables)
            patch.setattr(demo, "fetch", lambda *_: font)
            return demo.run_demo("de", folder, folder / "data", Workers(workers))

    return run


@pytest.fixture(scope="module")
def result(run: Path, run_small: Demo) -> Result:
    return run_small(run)


def unit(features: npt.NDArray[np.float32]) -> Matrix:
    wide = features.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def cosines(native: Native, texts: npt.NDArray[np.float32], pngs: list[bytes]) -> Matrix:
    """[captions, images]; the right image of each caption is on the diagonal."""
    return unit(texts) @ unit(encode_images(native, pngs[:6])).T


def average_recall(cosine: Matrix, rows: list[int]) -> float:
    """AR over some captions and their images, by counting what comes before the right answer.

    What is as near as the right answer comes before it, too.
    """
    hits = []
    for scores in (cosine, cosine.T):
        for row in rows:
            rank = sum(scores[row] > scores[row, row] - 1e-6) - 1
            hits += [rank < k for k in (1, 5, 10)]
    return 100 * sum(hits) / len(hits)


def german(native: Native, run: Path, stage: str) -> npt.NDArray[np.float32]:
    pack = LanguagePack.load(run / "run" / "packs" / stage / "de", native)
    return pack.encode_text(GERMAN).numpy()


def test_recall_is_that_of_the_packs_and_of_english(
    result: Result, native: Native, corpus: dict[str, list[str]], pngs: list[bytes], run: Path
) -> None:
    of_english = cosines(native, encode_texts(native, corpus["en"]), pngs)
    ars = {"en": average_recall(of_english, list(range(6)))}
    for stage in ("fresh", "nlt", "le"):
        ars[stage] = average_recall(cosines(native, german(native, run, stage), pngs), [*range(6)])
    assert {name: figures["AR"] for name, figures in result["recall"].items()} == pytest.approx(
        ars, abs=0.01
    )
    assert result["recall"]["le"]["captions"] == result["recall"]["le"]["images"] == 6
    assert result["share_of_english_AR"] == pytest.approx(100 * ars["le"] / ars["en"], abs=0.1)


def test_the_parts_are_those_of_the_names(
    result: Result, native: Native, pngs: list[bytes], run: Path
) -> None:
    cosine = cosines(native, german(native, run, "le"), pngs)
    rows = {
        "all words in the pairs": [0, 1, 2],
        "skin-tone variants": [5],
        "no skin tone": [0, 1, 2, 3, 4],
        "no skin tone, all words in the pairs": [0, 1, 2],
        "name in no pair": [0, 1, 3, 4, 5],
        "no skin tone, name in no pair, all its words": [0, 1],
    }
    assert {name: part["de"]["captions"] for name, part in result["parts"].items()} == {
        name: len(some) for name, some in rows.items()
    }
    for name, some in rows.items():
        expected = pytest.approx(average_recall(cosine, some), abs=0.01)
        assert result["parts"][name]["de"]["AR"] == expected, name


def test_queries_find_the_nearest_pictures(
    result: Result,
    native: Native,
    corpus: dict[str, list[str]],
    pngs: list[bytes],
    run: Path,
) -> None:
    cosine = cosines(native, german(native, run, "le"), pngs)
    assert [query["query"] for query in result["queries"]] == ["roter Hund", "roter Fisch"]
    for row, query in enumerate(result["queries"]):
        nearest = np.argsort(-cosine[row])[:5]
        assert (query["english"], query["wanted"]) == (corpus["en"][row], IMAGES[row])
        assert [hit["image_id"] for hit in query["hits"]] == [IMAGES[n] for n in nearest]
        scores = [hit["score"] for hit in query["hits"]]
        assert scores == pytest.approx(list(cosine[row][nearest]), abs=1e-5)


def cells(row: str) -> list[str]:
    return [unescape(re.sub("<.*?>", "", cell)) for cell in re.findall("<t[dh].*?</t[dh]>", row)]


def test_the_page_shows_these_figures_and_pictures(
    result: Result, pngs: list[bytes], run: Path
) -> None:
    page = Path(result["report"]).read_text()
    assert Path(result["report"]) == run / "report.html"
    lines = {line[0]: line[1:] for row in re.findall("<tr>.*?</tr>", page) if (line := cells(row))}
    for name, stage in (
        *(("en, the ceiling", "en"), ("de, before", "fresh")),
        *(("de, after NLT", "nlt"), ("de, after LE", "le")),
    ):
        recall = result["recall"][stage]
        figures = [recall[way][f"R@{k}"] for way in ("t2i", "i2t") for k in (1, 5, 10)]
        assert lines[name] == [f"{figure:.1f}" for figure in (*figures, recall["AR"])]
    assert lines["skin-tone variants"][0] == "1"
    figures = re.findall(r'<figure( class="right")?><img alt="[^"]*" src="([^"]*)"', page)
    assert len(figures) == 10, "five pictures of each of two queries"
    for (right, source), (query, hit) in zip(
        figures, [(q, h) for q in result["queries"] for h in q["hits"]], strict=True
    ):
        png = pngs[IMAGES.index(hit["image_id"])]
        assert source == "data:image/png;base64," + base64.b64encode(png).decode()
        assert bool(right) == (hit["image_id"] == query["wanted"])
    assert "Pairs: 6; no dictionary pairs." in page
    assert [stage for stage in ("NLT", "LE") if f"{stage} loss" in page] == ["NLT", "LE"]


def test_what_is_written_beside_the_page(result: Result, run: Path) -> None:
    kept = json.loads((run / "result.json").read_text())
    assert kept == {k: v for k, v in result.items() if k not in ("report", "contact_sheet")}
    with Image.open(result["contact_sheet"]) as sheet:
        assert sheet.size == (340 + 5 * 112 + 12, 2 * 112 + 2 * 12)
    assert (run / "packs" / "de" / "card.json").exists()


def test_a_second_run_trains_nothing(result: Result, run: Path, run_small: Demo) -> None:
    metrics = (run / "run" / "metrics.jsonl").read_bytes()
    again = run_small(run)
    assert (run / "run" / "metrics.jsonl").read_bytes() == metrics
    assert again["recall"] == result["recall"]
    assert again["queries"] == result["queries"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_with_ray_it_is_the_same(result: Result, run_small: Demo, tmp_path: Path) -> None:
    by_ray = run_small(tmp_path, workers=1)
    assert by_ray["recall"] == result["recall"]
    assert [query["wanted"] for query in by_ray["queries"]] == [
        query["wanted"] for query in result["queries"]
    ]
