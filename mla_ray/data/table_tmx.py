"""Reader of translation memories (TMX 1.4).

A unit becomes pairs of its English segment and each other segment. The library translate-toolkit is
not used, because it holds the whole file in memory.
"""

from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError, iterparse

from upath import UPath

from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_chunk import Chunk
from mla_ray.data.table_columns import OF_TRANSLATION, Columns, pairs_in
from mla_ray.data.table_text import RowBuffer, content_of

LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
MARKUP = ("bpt", "ept", "it", "ph", "ut")
"""Elements of a segment with codes of another format. They are not part of the text."""


def read_tmx(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """Yield the pairs of a TMX file in chunks, without the markup inside segments.

    A row number is the number of a unit, counted from 1.

    Raises:
        InvalidTable: The file is not XML or is truncated, or `columns` are not those of pairs.

    """
    columns.require(path, OF_TRANSLATION)
    buffer, row, body = RowBuffer(path), 0, None
    try:
        with content_of(path) as raw:
            # Python's expat refuses entities that expand without bound, and reads no other file.
            for event, element in iterparse(raw, events=("start", "end")):  # noqa: S314
                if event == "start":
                    body = element if element.tag == "body" else body
                elif element.tag == "tu":
                    row += 1
                    pairs = pairs_in(_texts(element))
                    if isinstance(pairs, str):
                        buffer.faults[row] = pairs
                    else:
                        for pair in pairs:
                            buffer.add(row, pair)
                    if body is not None:  # frees the units that were read
                        body.clear()
                if buffer.is_full:
                    yield buffer.chunk(columns.among(OF_TRANSLATION))
                    buffer = RowBuffer(path)
    except ParseError as error:
        raise InvalidTable.of_file(path, f"not XML, or truncated ({error})") from error
    yield buffer.chunk(columns.among(OF_TRANSLATION))


def _texts(unit: Element) -> dict[str, str]:
    """Return the segments of a unit by language, and the first one of a repeated language."""
    texts: dict[str, str] = {}
    for variant in unit.iter("tuv"):
        code = variant.get(LANGUAGE) or variant.get("lang") or ""
        segment = variant.find("seg")
        if segment is not None:
            texts.setdefault(code, "".join(_text(segment)))
    return texts


def _text(element: Element) -> Iterator[str]:
    if element.tag not in MARKUP:
        yield element.text or ""
        for child in element:
            yield from _text(child)
            yield child.tail or ""
