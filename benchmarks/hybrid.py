"""Measure what a hybrid search finds of captions by their words, against a search by vector.

    python benchmarks/hybrid.py --captions de=captions.parquet --captions en=english.parquet \
        --pack packs/de [--index edge:FOLDER] [--json]

The captions are the distinct ones of each table, in the language before the "=", such as
`mla data emoji` writes. A made-up code (`QX-4711`) is appended to one caption in ten, so that there
are codes. All are encoded and written to one index. Each kind of query asks for one caption:

- less: a caption of three or more words without one of them, drawn at random;
- name: the one word of a caption that no other caption has;
- code: the code alone.

Recall@k is the share of queries with their caption among the first k hits of its language.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mla_ray.data.table_reader import read_captions
from mla_ray.evaluation.evaluation import encode_query
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import caption_entry, space_of
from mla_ray.index.lexical import QueryText
from mla_ray.index.search import Search
from mla_ray.model.native import Native
from mla_ray.packs.library import load_packs

AT = (1, 10)
SEED = 4711
TOGETHER = 32


class Asked(NamedTuple):
    """A query, and the caption that it asks for."""

    kind: str
    text: str
    target: Entry


def main() -> None:
    """Parse the options, index the captions, search them in both modes and print the recalls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", action="append", required=True, metavar="LANGUAGE=TABLE")
    parser.add_argument("--pack", action="append", default=[])
    parser.add_argument("--native", default="emoji-clip")
    parser.add_argument("--index")
    parser.add_argument("--queries", type=int, default=1000, help="of each kind and language")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    native = Native.load(arguments.native)
    packs = load_packs(arguments.pack, native)
    chance = np.random.default_rng(SEED)
    results = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        CaptionIndex.open(arguments.index or f"edge:{scratch}", space_of(native)) as index,
    ):
        asked: dict[str, list[Asked]] = {}
        for option in arguments.captions:
            language, _, table = option.partition("=")
            entries = list(captions_of(table, language, chance))
            texts = [entry.caption for entry in entries]
            index.upsert(entries, encode_query(native, packs, language, texts))
            asked[language] = list(queries_for(entries, arguments.queries, chance))
        index.optimize()
        for language, queries in asked.items():
            texts = [query.text for query in queries]
            vectors = encode_query(native, packs, language, texts)
            for mode in ("vector", "hybrid"):
                results += measured(index, language, mode, queries, vectors)
    if arguments.json:
        print(json.dumps(results))
    for row in () if arguments.json else results:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


def captions_of(table: str, language: str, chance: np.random.Generator) -> Iterator[Entry]:
    """Yield the distinct captions of a table, every tenth with a code."""
    texts = read_captions(table, language=language).table["caption"].to_pylist()
    for number, text in enumerate(dict.fromkeys(texts)):
        code = (
            f" {'QXZ'[chance.integers(3)]}{'ABC'[chance.integers(3)]}-{chance.integers(1000, 9999)}"
        )
        caption = text + (code if number % 10 == 0 else "")
        yield caption_entry(f"{language}{number}", language, caption, "emoji")


def queries_for(entries: list[Entry], most: int, chance: np.random.Generator) -> Iterator[Asked]:
    """Yield at most so many queries of each kind, for captions drawn at random."""
    counts = Counter(word for e in entries for word in set(e.caption.casefold().split()))
    left = Counter({"less": most, "name": most, "code": most})
    for entry in (entries[row] for row in chance.permutation(len(entries))):
        words = entry.caption.split()
        is_coded = words[-1][2:3] == "-" and words[-1][3:].isdecimal()
        plain = words[:-1] if is_coded else words
        found = {"code": words[-1]} if is_coded else {}
        if len(plain) > 2 and not is_coded:
            gone = int(chance.integers(len(plain)))
            found["less"] = " ".join(plain[:gone] + plain[gone + 1 :])
        if alone := [word for word in plain if counts[word.casefold()] == 1]:
            found["name"] = alone[0]
        for kind, text in found.items():
            if left[kind] > 0:
                left[kind] -= 1
                yield Asked(kind, text, entry)


def measured(
    index: CaptionIndex,
    language: str,
    mode: str,
    queries: list[Asked],
    vectors: npt.NDArray[np.float32],
) -> list[dict[str, object]]:
    """Search and return the recalls of each kind of query, and the milliseconds of a search."""
    ranks: dict[str, list[int]] = {}
    began = time.perf_counter()
    for start in range(0, len(queries), TOGETHER):
        part = queries[start : start + TOGETHER]
        searches = [
            Search(
                vector,
                max(AT),
                language,
                hybrid=QueryText(query.text, language) if mode == "hybrid" else None,
            )
            for query, vector in zip(part, vectors[start:], strict=False)
        ]
        for query, hits in zip(part, index.search_all(searches), strict=True):
            places = [n for n, hit in enumerate(hits, 1) if hit.entry.id == query.target.id]
            ranks.setdefault(query.kind, []).append(places[0] if places else max(AT) + 1)
    each_ms = 1000 * (time.perf_counter() - began) / len(queries)
    return [
        {"language": language, "mode": mode, "kind": kind, "queries": len(found)}
        | {f"recall@{k}": round(100 * float(np.mean(np.array(found) <= k)), 1) for k in AT}
        | {"ms": round(each_ms, 2)}
        for kind, found in sorted(ranks.items())
    ]


if __name__ == "__main__":
    main()
