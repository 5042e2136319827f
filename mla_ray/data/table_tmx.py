"""Translation memories (TMX 1.4): the English segment of each unit with each other one.

translate-toolkit reads TMX as well, but holds the whole file in memory.
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
"""Elements in a segment that hold codes of another format; its text is around them."""


def read_tmx(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """Rows are units, which count from 1. A segment's markup is left out.

    Raises:
        InvalidTable: not XML, without units, or not a table of pairs that is wanted.

    """
    columns.require(path, OF_TRANSLATION)
    buffer, row, body = RowBuffer(path), 0, None
    try:
        with content_of(path) as raw:
            # Python's expat refuses entities that grow without bound, and reads no other file.
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
                    if body is not None:  # what was read of it need not be held
                        body.clear()
                if buffer.is_full:
                    yield buffer.chunk(columns.among(OF_TRANSLATION))
                    buffer = RowBuffer(path)
    except ParseError as error:
        raise InvalidTable.of_file(path, f"not XML, or broken off ({error})") from error
    yield buffer.chunk(columns.among(OF_TRANSLATION))


def _texts(unit: Element) -> dict[str, str]:
    """The segments of a unit by language; of one that is there twice the first."""
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
