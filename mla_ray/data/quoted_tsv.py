"""Detection of whether the quotes in a TSV file enclose cells or are text.

No standard defines this. Translation corpora contain quotes as text: `"Hello," he said`. pandas and
Excel enclose a cell in quotes if it contains a quote, a tab or a line break, and they double the
quotes inside.
"""

from collections.abc import Iterable, Iterator

LONGEST = 1 << 20
"""Maximum length of a quoted cell in characters. A quote that is not closed by then is text."""


def tsv_is_quoted(lines: Iterable[str]) -> bool:
    """Return whether quotes enclose cells in a file, as pandas and Excel write them.

    This is the case if every cell that contains a quote is enclosed in quotes and needs them. A
    cell needs quotes if it contains a quote, a tab or a line break. A cell that does not need its
    quotes, such as `"Hello"`, shows that quotes are text in this file. The exception is a file
    whose header is quoted too, because some programs quote every cell.
    """
    any_quoted, whole_header, first = False, False, True
    for cells in _records(lines):
        quoted = [cell for cell in cells if '"' in cell]
        if first:
            whole_header, first = len(quoted) == len(cells), False
        for cell in quoted:
            inside = cell[1:-1]
            if (
                len(cell) < 2
                or cell[0] != '"'
                or cell[-1] != '"'
                or '"' in inside.replace('""', "")
            ):
                return False
            if not whole_header and not any(mark in inside for mark in '"\t\r\n'):
                return False
        any_quoted = any_quoted or bool(quoted)
    return any_quoted


def _records(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the cells of each record with their quotes.

    A quoted cell can contain tabs and line breaks.
    """
    cells: list[str] = []
    open_cell: list[str] = []  # pieces of a quoted cell without its end
    length = 0
    for line in lines:
        pieces = line.rstrip("\r\n").split("\t")
        for place, piece in enumerate(pieces):
            # The pieces before it in an open cell have an odd number of quotes, so only the
            # quotes of this piece are counted.
            odd = piece.count('"') % 2 == 1
            if open_cell:
                open_cell.append(("\t" if place else "\n") + piece)
                length += len(piece) + 1
                is_open = not odd and length < LONGEST
            else:
                open_cell, length = [piece], len(piece)
                is_open = odd and piece.startswith('"') and length < LONGEST
            if not is_open:
                cells.append("".join(open_cell))
                open_cell = []
        if not open_cell:
            yield cells
            cells = []
    if open_cell:
        yield [*cells, "".join(open_cell)]
