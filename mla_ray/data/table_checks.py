"""Checks of the cells of a user's table. Each check removes bad rows from a chunk.

The checks also normalize the cells: text is stripped and in Unicode's NFC, and language tags are
canonical BCP-47.
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
    """Normalize the text of these columns, and refuse rows with a bad or empty cell."""
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
            # A path must stay as the file system spells it, so it is only stripped.
            tidy = str.strip if column == "image" else normalized
            texts = [None if text is None else tidy(text) for text in cells.to_pylist()]
            chunk.set_column(column, pa.array(texts, pa.string()))
    for column in columns:
        empty = pc.equal(pc.fill_null(pc.binary_length(chunk.table[column]), 0), 0)
        rows = chunk.table["row"].filter(empty).to_pylist()
        chunk.refuse(dict.fromkeys(rows, f"{column!r} is empty; {OR_SKIP}"))


def check_languages(chunk: Chunk, languages: Collection[str] = ()) -> dict[tuple[str, str], int]:
    """Make language tags canonical BCP-47, and refuse rows with invalid tags.

    For example, 'DE-at' becomes 'de-AT'. A tag that means one of `languages` is then replaced by
    it: with 'de' in `languages`, 'de-AT' becomes 'de' (`language.nearest`).

    Args:
        chunk: Chunk with a column `language`.
        languages: Canonical tags.

    Returns:
        Number of rows by (canonical tag, language that replaced it), for replaced tags only.

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
