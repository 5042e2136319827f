"""Whether the quotes of a TSV file are quoting, or just quotes: TSV has no standard that says it.

Corpora of translations hold quotes as text: `"Hello," he said`. pandas and Excel write a cell that
holds a quote, a tab or a line break in quotes, and double the quotes inside.
"""

from collections.abc import Iterable, Iterator

LONGEST = 1 << 20
"""Characters of a cell; a quote that is not closed by then was just a quote."""


def tsv_is_quoted(lines: Iterable[str]) -> bool:
    """Read a file's lines as pandas and Excel would have written them, and see whether they did.

    They did if every cell with a quote in it is quoted, and was in need of it: it holds a quote, a
    tab or a line break. A cell that needed no quotes, `"Hello"`, is one of a file whose quotes are
    text, unless the header is quoted as well, as by a program that quotes every cell.
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
    """The cells of each record with their quotes; a quoted cell may hold tabs and line breaks."""
    cells: list[str] = []
    open_cell: list[str] = []  # pieces of a quoted cell that has no end yet
    length = 0
    for line in lines:
        pieces = line.rstrip("\r\n").split("\t")
        for place, piece in enumerate(pieces):
            # Only the piece is looked at: the pieces before it hold an odd number of quotes.
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
