"""The whole path once, on emoji: data, acquisition, evaluation, index, search, report.

Every step keeps what it made, so that a second run, or one after a kill, goes on from there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from mla_ray import report as reporting
from mla_ray.cluster import ray_session
from mla_ray.config import AcquireConfig
from mla_ray.console import bars, stderr, stdout
from mla_ray.datasets import emoji as emoji_data
from mla_ray.datasets.emoji import Emoji
from mla_ray.datasets.lexicons import Lexicon, lexicon
from mla_ray.datasets.npm import fetch
from mla_ray.evaluation import Evaluation, Gallery, evaluate
from mla_ray.features import encode_texts
from mla_ray.index import CaptionIndex
from mla_ray.indexing import IMAGES, index_captions, space_of
from mla_ray.native import Native
from mla_ray.pack import LanguagePack, copy_pack
from mla_ray.progress import Progress, Report
from mla_ray.retrieval import Mask
from mla_ray.training import Corpus, acquire

NATIVE = "emoji-clip"
CONFIG = AcquireConfig()
QUERIES, TOP = 6, 5
QUERIED = "no skin tone, name in no pair, all its words"
"""The part that the queries shown are of."""


@dataclass(frozen=True)
class Tables:
    """The emoji tables of one language."""

    captions: pa.Table
    pairs: list[pa.Table]
    files: list[Path]
    """Of `captions`, then of `pairs`."""
    note: str

    def corpus(self, language: str) -> Corpus:
        return Corpus(language, self.files[1:], self.files[0])

    def split(self, name: str) -> pa.Table:
        return self.captions.filter(pa.compute.equal(self.captions["split"], name))


def emoji_tables(
    data: Path, languages: Sequence[str], out: Path, report: Report
) -> dict[str, Path]:
    """Write captions.parquet, with all `languages`, and a pairs-LANGUAGE.parquet each."""
    emoji = Emoji(data / "emoji")
    total, done = len(emoji.concepts), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(Progress("drawing emoji", done, total))

    out.mkdir(parents=True, exist_ok=True)
    paths = {"captions": out / "captions.parquet"}
    _write(emoji_data.captions(emoji, languages, advance), paths["captions"])
    for language in languages:
        if language != "en":
            paths[language] = out / f"pairs-{language}.parquet"
            _write(emoji_data.pairs(emoji, language), paths[language])
    return paths


def tables(language: str, data: Path, report: Report) -> Tables:
    """The demo's tables, made unless they are there; with a lexicon where there is one."""
    out = data / "emoji" / f"tables-{language}"
    if not (out / f"pairs-{language}.parquet").exists():
        emoji_tables(data, ["en", language], out, report)
    files = [out / "captions.parquet", out / f"pairs-{language}.parquet"]
    pairs = [pq.read_table(files[1])]
    found, file = _lexicon(language, data, out)
    note = found.note
    if found.pairs.num_rows:
        files.append(file)
        pairs.append(found.pairs)
        note += ", in half of every NLT batch"
    return Tables(pq.read_table(files[0]), pairs, files, note)


def _lexicon(language: str, data: Path, out: Path) -> tuple[Lexicon, Path]:
    """Pairs of words the native knows; made anew while a source is missing."""
    path = out / f"lexicon-{language}.parquet"
    if path.exists() and not (kept := Lexicon.of_table(pq.read_table(path))).missing:
        return kept, path
    labels = Emoji(data / "emoji").labels("en").values()
    texts = (text for label in labels for text in (label.name, *label.keywords))
    known = {word for text in texts for word in words_of(text)}
    found = lexicon(language, data / "lexicons", known)
    _write(found.table(), path)
    return found, path


def words_of(text: str) -> list[str]:
    """Runs of letters and their marks, lower-cased; in Devanagari and Thai marks are vowels."""
    return "".join(c if category(c)[0] in "LM" else " " for c in text.lower()).split()


def _write(table: pa.Table, path: Path) -> None:
    scratch = path.with_suffix(".tmp")
    pq.write_table(table, scratch)
    scratch.replace(path)


def subsets(evaluation: Evaluation, pairs: Sequence[pa.Table]) -> dict[str, Mask]:
    """The parts of a test that an average over it would hide."""
    texts = {text.lower() for table in pairs for text in table["target"].to_pylist()}
    words = {word for text in texts for word in words_of(text)}
    names = [name.lower() for name in evaluation.captions]
    covered = np.array([words.issuperset(words_of(name)) for name in names])
    unseen = np.array([name not in texts for name in names])  # a dictionary may hold the name
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
    return emoji_data.Concept(image_id.partition("/")[2], "").skin_tone


def tell(language: str, run: Path, data: Path) -> dict[str, Any]:
    """Run the demo; writes report.html, contact-sheet.png and result.json into `run`."""
    began = time.perf_counter()
    with bars() as report:
        made = tables(language, data, report)
        stderr.print(made.note)
        native = Native.load(NATIVE)
        test = made.split("test")
        corpus = made.corpus(language)
        with ray_session():
            packs = acquire(
                NATIVE,
                [corpus],
                CONFIG,
                run / "run",
                store=data / "features",
                resume=True,
                report=report,
            )
        copy_pack(packs[language], run / "packs" / language)
        gallery = Gallery.of(native, test)
        stages = {
            stage: LanguagePack.load(run / "run" / "packs" / stage / language, native)
            for stage in ("fresh", "nlt", "le")
        }
        english = evaluate(lambda texts: encode_texts(native, texts), "en", test, gallery)
        evaluations = {
            stage: evaluate(_encode(pack), language, test, gallery)
            for stage, pack in stages.items()
        }
        pack = stages["le"]
        url = f"edge:{run / 'index'}"
        index_captions(url, native, {language: pack}, test, "emoji", report)

    final = evaluations["le"]
    parts = subsets(final, made.pairs)
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
        "pairs": [table.num_rows for table in made.pairs],
        "note": made.note,
        "seconds": round(time.perf_counter() - began, 1),
    }
    files = reporting.write(result, test, run, fetch(reporting.FONT, data / "fonts"))
    return result | {"report": str(files.html), "contact_sheet": str(files.sheet)}


def _of(captions: pa.Table, language: str) -> pa.Table:
    return captions.filter(pa.compute.equal(captions["language"], language))


def _encode(pack: LanguagePack) -> Any:
    return lambda texts: pack.encode_text(texts).cpu().numpy()


def _search(
    native: Native,
    pack: LanguagePack,
    evaluation: Evaluation,
    parts: dict[str, Mask],
    test: pa.Table,
    url: str,
) -> list[dict[str, Any]]:
    """The top five for the first few names that no pair holds, of words that the pairs cover.

    First in the order of the split, which is a hash: chosen before anyone saw how they do.
    """
    named = _of(test, "en")
    english = dict(zip(named["image_id"].to_pylist(), named["caption"].to_pylist(), strict=True))
    chosen = np.flatnonzero(parts[QUERIED])[:QUERIES]
    found = []
    with CaptionIndex.open(url, space_of(native), IMAGES, create=False) as index:
        for row in chosen:
            text, wanted = evaluation.captions[row], evaluation.image_ids[row]
            hits = index.search(pack.encode_text([text])[0].cpu().numpy(), TOP)
            found.append(
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
    return found


def show(result: dict[str, Any]) -> None:
    """Print the tables of what `tell` found."""
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
