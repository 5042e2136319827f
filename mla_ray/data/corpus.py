"""The tables that one language is acquired from."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc

from mla_ray.data.table_reader import Stream
from mla_ray.model.language import canonical

Stage = Literal["nlt", "le"]


@dataclass(frozen=True)
class Corpus:
    """What one language is acquired from.

    Attributes:
        language: BCP-47, in any spelling; kept in the canonical one.
        pairs: translation tables, files or folders of Parquet, paths or URLs. Each has an equal
            share of every NLT batch.
        captions: a caption table, or None for NLT alone. Rows of its split `train` are learned
            from, those of `validation` are for held-out figures.
        start: a pack that the language goes on from: its rows, linear, acquirers and tokenizer.
            Tokens that have no row in it get none. For a run of one language.

    """

    language: str
    pairs: Sequence[str | Path]
    captions: str | Path | None = None
    start: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", canonical(self.language))

    def tables(self) -> Iterator[tuple[str, Stage, str | Path]]:
        """Name, stage and file of each table."""
        for number, pairs in enumerate(self.pairs):
            yield f"nlt-{number:04d}", "nlt", pairs
        if self.captions is not None:
            yield "le-0000", "le", self.captions

    def splits(self, language: str | None = None) -> Counter[str]:
        """How many captions each split has, in the corpus's language or another. No image is read.

        A table without a column `language` is all in the corpus's.
        """
        rows: Counter[str] = Counter()
        if self.captions is not None:
            wanted, columns = canonical(language or self.language), ("language", "split")
            default = {"language": self.language}
            for piece in Stream([self.captions], columns, default, {}, [wanted]):
                ours = piece.filter(pc.equal(piece["language"], wanted))
                rows.update(ours["split"].to_pylist())
        return rows


def named(splits: Counter[str]) -> str:
    """For messages: `train (300), validation (12)`."""
    return ", ".join(f"{split} ({rows:,})" for split, rows in sorted(splits.items())) or "none"
