"""`index_table` without Ray: its tasks and actors one after another in this process."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from mla_ray.index.stored import StoredHashes


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone. For an `edge:` folder, to which the caller writes."""
    from mla_ray.index import bulk  # imports Ray

    patch.setattr(bulk, "read_blocks", _read)
    patch.setattr(bulk, "_encode", _Encoded)


def _read(
    tables: Sequence[str], language: str | None, languages: set[str], wanted: set[str]
) -> Iterator[pa.Table]:
    from mla_ray.index.table_blocks import _files, _rows_of

    files = pa.table({"file": [str(file) for file in _files(tables)]})
    return _rows_of(files, language, sorted(languages), sorted(wanted))


class _Encoded:
    """What is asked of Ray Data's dataset of encoded points."""

    def __init__(
        self,
        native: str,
        packs: Mapping[str, str | Path],
        rows: Iterator[pa.Table],
        source: str,
        stored: StoredHashes,
    ) -> None:
        from mla_ray.index.bulk import PointEncoder

        folders = {language: str(folder) for language, folder in packs.items()}
        self._points = map(PointEncoder(native, folders, source, stored), rows)

    def iter_batches(self, *, batch_size: int, batch_format: str) -> Iterator[pa.Table]:
        return self._points
