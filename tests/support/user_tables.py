"""A user's tables as tests write them, and what is said of those that are refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_ray.data.problems import InvalidTable

PAIRS = [
    {"source": "dog", "target": "Hund", "language": "de"},
    {"source": "cat", "target": "chat", "language": "fr"},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows as a table in the format that the file ending names."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        separator = "," if path.suffix == ".csv" else "\t"
        lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
    return path


def text(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def refusal(read: object, path: Path, **options: object) -> list[str]:
    """The problems of a refused table, without the folder."""
    with pytest.raises(InvalidTable) as caught:
        read(path, **options)  # type: ignore[operator]
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]
