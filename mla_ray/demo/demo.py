"""The demo on emoji: data, acquisition, evaluation, index, search and report.

The tables, features and checkpoints are kept. A repeated or interrupted run resumes from them.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.table import Table

from mla_ray.datasets import emoji as emoji_data
from mla_ray.datasets.emoji_tables import local_tables, words_of
from mla_ray.datasets.npm import fetch
from mla_ray.demo import report as reporting
from mla_ray.demo.report import DemoQuery, Result
from mla_ray.evaluation.evaluation import Evaluation, Gallery, encode_query, evaluate
from mla_ray.evaluation.recall import Mask
from mla_ray.index.collection import IMAGES, CaptionIndex
from mla_ray.index.ingest import index_captions, space_of
from mla_ray.model.native import Native
from mla_ray.model.text import identity
from mla_ray.packs.pack import LanguagePack, copy_pack
from mla_ray.runtime.cluster import ray_session
from mla_ray.runtime.console import bars, stderr, stdout
from mla_ray.runtime.storage import as_path
from mla_ray.training.acquisition import acquire
from mla_ray.training.config import AcquireConfig
from mla_ray.training.workers import Hooks, Workers

NATIVE = "emoji-clip"
CONFIG = AcquireConfig()
QUERIES, TOP = 6, 5
QUERIED = "no skin tone, name in no pair, all its words"
"""Name of the part of the test that the example queries come from."""


def subsets(evaluation: Evaluation, pairs: Sequence[pa.Table]) -> dict[str, Mask]:
    """Return masks of the test's parts, which an average over the whole test would hide.

    Args:
        evaluation: Evaluation of a language, with N captions.
        pairs: The translation tables that the language was trained on.

    Returns:
        A mask of the captions, `[N]` bool, by the name of the part.

    """
    texts = {text for table in pairs for text in table["target"].to_pylist()}
    words = {word for text in texts for word in words_of(text)}
    covered = np.array([words.issuperset(words_of(name)) for name in evaluation.captions])
    paired = {identity(text) for text in texts}  # a dictionary may hold the name
    unseen = np.array([identity(name) not in paired for name in evaluation.captions])
    tone = np.array([has_skin_tone(image_id) for image_id in evaluation.image_ids])
    return {
        "all words in the pairs": covered,
        "skin-tone variants": tone,
        "no skin tone": ~tone,
        "no skin tone, all words in the pairs": ~tone & covered,
        "name in no pair": unseen,
        QUERIED: ~tone & covered & unseen,
    }


def has_skin_tone(image_id: str) -> bool:
    """Return whether an image id, `style/key`, is of a skin-tone variant."""
    return emoji_data.Concept(image_id.partition("/")[2], "").skin_tone


def run_demo(language: str, run: Path, data: Path, workers: Workers = Workers()) -> Result:
    """Run the demo, and write report.html, contact-sheet.png and result.json.

    Args:
        language: BCP-47 code.
        run: Folder of the run, for the packs, the index and the reports.
        data: Folder of the datasets and the features.
        workers: Training workers. With a count of 0, nothing starts Ray.

    Returns:
        The content of result.json, and the paths of the report and the contact sheet.

    """
    began = time.perf_counter()
    with bars() as report:
        tables = local_tables(language, data, report, as_path(run / "run" / "run.json"))
        stderr.print(tables.note)
        native = Native.load(NATIVE)
        test = tables.split("test")
        corpus = tables.corpus(language)
        with ray_session() if workers.count else nullcontext():
            packs = acquire(
                NATIVE,
                [corpus],
                CONFIG,
                run / "run",
                store=data / "features",
                workers=workers,
                resume=True,
                hooks=Hooks(report=report),
            )
        copy_pack(packs[language], run / "packs" / language)
        gallery = Gallery.of(native, test)
        stages = {
            stage: LanguagePack.load(run / "run" / "packs" / stage / language, native)
            for stage in ("fresh", "nlt", "le")
        }
        english = evaluate(partial(encode_query, native, {}, "en"), "en", test, gallery)
        evaluations = {
            stage: evaluate(
                partial(encode_query, native, {language: pack}, language), language, test, gallery
            )
            for stage, pack in stages.items()
        }
        pack = stages["le"]
        url = f"edge:{run / 'index'}"
        index_captions(url, native, {language: pack}, test, "emoji", report)

    final = evaluations["le"]
    parts = subsets(final, tables.pairs)
    result = {
        "language": language,
        "recall": {"en": english.as_dict()} | {s: e.as_dict() for s, e in evaluations.items()},
        "share_of_english_AR": round(100 * final.ranks.recall().ar / english.ranks.recall().ar, 1),
        "parts": {
            name: {"en": english.as_dict(mask), language: final.as_dict(mask)}
            for name, mask in parts.items()
        },
        "parameters": reporting.parameters(native, pack),
        "queries": _search(native, pack, final, parts, test, url),
        "pairs": [table.num_rows for table in tables.pairs],
        "note": tables.note,
        "seconds": round(time.perf_counter() - began, 1),
    }
    files = reporting.write(result, test, run, fetch(reporting.FONT, data / "fonts"))
    return result | {"report": str(files.html), "contact_sheet": str(files.sheet)}


def _of(captions: pa.Table, language: str) -> pa.Table:
    return captions.filter(pa.compute.equal(captions["language"], language))


def _search(
    native: Native,
    pack: LanguagePack,
    evaluation: Evaluation,
    parts: dict[str, Mask],
    test: pa.Table,
    url: str,
) -> list[DemoQuery]:
    """Search the index for a few test names, and return the top hits of each.

    The names are in no pair, but all their words are. The first ones in the order of the split are
    used. This order is a hash, so results cannot influence the choice.
    """
    named = _of(test, "en")
    english = dict(zip(named["image_id"].to_pylist(), named["caption"].to_pylist(), strict=True))
    chosen = np.flatnonzero(parts[QUERIED])[:QUERIES]
    queries: list[DemoQuery] = []
    with CaptionIndex.open(url, space_of(native), IMAGES, create=False) as index:
        for row in chosen:
            text, wanted = evaluation.captions[row], evaluation.image_ids[row]
            (feature_E,) = encode_query(native, {pack.language: pack}, pack.language, [text])
            hits = index.search(feature_E, TOP)
            queries.append(
                {
                    "query": text,
                    "english": english[wanted],
                    "wanted": wanted,
                    "hits": [
                        {
                            "image_id": hit.entry.image_id,
                            "english": english[hit.entry.image_id],
                            "score": hit.score,
                        }
                        for hit in hits
                    ],
                }
            )
    return queries


def print_result(result: Result) -> None:
    """Print the result of `run_demo` as tables."""
    stdout.print(reporting.recall_table(result))
    stdout.print(reporting.parts_table(result))
    stdout.print(reporting.parameters_table(result))
    table = Table(title=f"Top {TOP} for names that were in no pair")
    for column in ("query", "means", *(str(place + 1) for place in range(TOP))):
        table.add_column(column)
    for query in result["queries"]:
        hits = (
            f"[green]{hit['english']}[/]" if hit["image_id"] == query["wanted"] else hit["english"]
            for hit in query["hits"]
        )
        table.add_row(query["query"], query["english"], *hits)
    stdout.print(table)
    place = f"{result['report']}\n{result['contact_sheet']}\n{result['seconds']:.0f} s"
    stdout.print(place, soft_wrap=True)
