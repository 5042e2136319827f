"""Training tables of one language."""

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
    """Training data of one language.

    Attributes:
        language: BCP-47 tag in any spelling. It is stored in its canonical form.
        pairs: Translation tables: files or folders of Parquet, paths or URLs. Each table has an
            equal share of every NLT batch.
        captions: Caption table, or None to train NLT only. Training uses the rows of split `train`.
            The rows of split `validation` are held out for metrics.
        start: Pack from which training starts: its rows, linear, acquirers and tokenizer. Tokens
            that have no row in the pack get none. Only for a run of one language.

    """

    language: str
    pairs: Sequence[str | Path]
    captions: str | Path | None = None
    start: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", canonical(self.language))

    def tables(self) -> Iterator[tuple[str, Stage, str | Path]]:
        """Yield the name, the stage and the file of each table."""
        for number, pairs in enumerate(self.pairs):
            yield f"nlt-{number:04d}", "nlt", pairs
        if self.captions is not None:
            yield "le-0000", "le", self.captions

    def splits(self, language: str | None = None) -> Counter[str]:
        """Count the captions of each split without reading the images.

        In a table without a `language` column, all rows are in the corpus's language.

        Args:
            language: Language to count. Defaults to the corpus's language.

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
    """Format the splits for a message, for example `train (300), validation (12)`."""
    return ", ".join(f"{split} ({rows:,})" for split, rows in sorted(splits.items())) or "none"
