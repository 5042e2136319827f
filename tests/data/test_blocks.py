"""Promises of mla_ray.data.blocks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mla_ray.data.blocks import CACHED, ScratchTable, ShuffledTable, cut
from mla_ray.data.keys import hashes, key_of
from tests.support.tables import make_table


def spool_of(folder: Path, keys: list[str], piece: int = 100) -> ScratchTable:
    spool = ScratchTable(folder / "spool", pa.schema({"key": pa.string(), "row": pa.int64()}))
    table = pa.table({"key": keys, "row": range(len(keys))})
    for start in range(0, len(keys), piece):
        spool.add(table.slice(start, piece))
    return spool


def test_a_cut_keeps_every_row_once_and_no_block_is_too_large(tmp_path: Path) -> None:
    keys = [key_of(str(number)) for number in range(5000)]
    found: list[int] = []
    for prefix, block in cut(spool_of(tmp_path, keys), limit=60):
        table = block.read()
        assert 0 < len(table) <= 60
        bits = [f"{value:064b}" for value in hashes(table["key"].to_pylist()).tolist()]
        assert all(bit.startswith(prefix) for bit in bits)
        assert table["row"].to_pylist() == sorted(table["row"].to_pylist()), "order is kept"
        found += table["row"].to_pylist()
    assert sorted(found) == list(range(5000))


def test_a_small_table_is_one_block(tmp_path: Path) -> None:
    ((prefix, block),) = cut(spool_of(tmp_path, [key_of("a"), key_of("b")]), limit=2)
    assert prefix == ""
    assert block.rows == 2


def test_rows_of_one_key_stay_together_however_many_they_are(tmp_path: Path) -> None:
    keys = [key_of("often")] * 300 + [key_of(str(number)) for number in range(300)]
    blocks = list(cut(spool_of(tmp_path, keys), limit=50))
    with_it = [block for _, block in blocks if key_of("often") in block.read()["key"].to_pylist()]
    assert len(with_it) == 1
    assert sum(block.rows for _, block in blocks) == 600


def test_a_cut_leaves_no_scratch_but_its_blocks(tmp_path: Path) -> None:
    keys = [key_of(str(number)) for number in range(1000)]
    blocks = list(cut(spool_of(tmp_path, keys), limit=50))
    assert {block.path for _, block in blocks} == set(tmp_path.iterdir())


def test_a_walk_holds_few_blocks(tmp_path: Path) -> None:
    table = make_table(tmp_path, np.full(1000, 3), limit=50)
    assert len(table.sizes) > 15
    for start in range(0, 3000, 70):
        table.take(start, 70)
        assert len(table._cache) <= CACHED


def test_a_row_without_a_feature_is_replaced_by_another_of_its_block(tmp_path: Path) -> None:
    broken = frozenset({3, 77})
    table = make_table(tmp_path, np.full(100, 3), limit=40, broken=broken)
    seen = set(table.take(0, 100).frozen[:, 0].astype(int).tolist())
    assert seen == set(range(100)) - broken


def test_a_block_without_any_feature_is_refused_by_name(tmp_path: Path) -> None:
    table: ShuffledTable = make_table(tmp_path, np.full(5, 3), broken=frozenset(range(5)))
    with pytest.raises(ValueError, match=r"no row of block 0 has a feature"):
        table.take(0, 2)


def test_rows_and_their_features_belong_together(tmp_path: Path) -> None:
    lengths = np.arange(2, 202)
    rows = make_table(tmp_path, lengths, limit=30).take(0, 200)
    assert rows.lengths.tolist() == lengths[rows.frozen[:, 0].astype(int)].tolist()
