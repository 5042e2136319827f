"""What every cell of a user's table must be; each check takes the rows it refuses out of a chunk.

Text is here made what it is from then on: stripped, in Unicode's NFC, languages as BCP-47 writes
them.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from mla_ray.data.problems import OR_SKIP
from mla_ray.data.table_chunk import Chunk
from mla_ray.model.language import UnknownLanguage, canonical, nearest
from mla_ray.model.text import fault_of, normalized


def check_cells(chunk: Chunk, columns: Sequence[str]) -> None:
    """Text as `normalized` has it, no cell empty."""
    for column in columns:
        faults = {
            row: f"{column!r} {fault}; {OR_SKIP}"
            for row, cell in chunk.values("row", column)
            if isinstance(cell, str) and (fault := fault_of(cell))
        }
        chunk.refuse(faults)
    for column in columns:
        cells = chunk.table[column]
        if pa.types.is_string(cells.type):
            # A path is what the file system says, not what Unicode prefers.
            tidy = str.strip if column == "image" else normalized
            texts = [None if text is None else tidy(text) for text in cells.to_pylist()]
            chunk.set_column(column, pa.array(texts, pa.string()))
    for column in columns:
        empty = pc.equal(pc.fill_null(pc.binary_length(chunk.table[column]), 0), 0)
        rows = chunk.table["row"].filter(empty).to_pylist()
        chunk.refuse(dict.fromkeys(rows, f"{column!r} is empty; {OR_SKIP}"))


def check_languages(chunk: Chunk, languages: Collection[str] = ()) -> dict[tuple[str, str], int]:
    """Only BCP-47 tags, written as the standard does: 'DE-at' becomes 'de-AT'.

    One that means one of some `languages`, which are canonical, becomes that: 'de-AT' becomes 'de'.

    Returns:
        How many rows had which tag and were taken for which language.

    """
    standard: dict[str, str] = {}
    faults: dict[str, str] = {}
    for tag in pc.unique(chunk.table["language"]).to_pylist():
        try:
            standard[tag] = canonical(tag)
        except UnknownLanguage as error:
            faults[tag] = f"{error}; {OR_SKIP}"
    chunk.refuse(
        {row: faults[tag] for row, tag in chunk.values("row", "language") if tag in faults}
    )
    meant = {tag: nearest(tag, languages) or tag for tag in set(standard.values())}
    tags = [standard[tag] for tag in chunk.table["language"].to_pylist()]
    chunk.set_column("language", pa.array([meant[tag] for tag in tags], pa.string()))
    return {(tag, meant[tag]): count for tag, count in Counter(tags).items() if meant[tag] != tag}
