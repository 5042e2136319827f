"""Promises of index.ingest: what has no direction is left out, alone, and told."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mla_ray.index.collection import CaptionIndex
from mla_ray.index.ingest import CAPTIONS, IMAGES, index_captions, space_of
from mla_ray.model.native import Native
from tests.support.natives import MakePack


def test_an_ill_caption_costs_itself_alone(
    native: Native, make_pack: MakePack, pngs: list[bytes], tmp_path: Path
) -> None:
    pack = make_pack("sv", texts=["en hund", "katt"])
    with torch.no_grad():
        pack.encoder.embedding.rows.weight[pack.tokenizer(["katt"])[0][-2]] = 3e38
    rows = [
        {"image_id": f"i{number}", "image": png, "language": language, "caption": caption}
        for number, png in enumerate(pngs[:3])
        for language, caption in (("sv", "en hund"), ("sv", "katt"), ("en", "a dog"))
    ]
    url, rejected = f"edge:{tmp_path / 'index'}", list[str]()
    written = index_captions(
        url, native, {"sv": pack}, pa.Table.from_pylist(rows), "set", reject=rejected.append
    )
    assert written == {IMAGES: 3, CAPTIONS: 6}
    assert [reason.partition("#")[0].strip("'") for reason in rejected] == ["i0", "i1", "i2"]
    assert all("not finite" in reason for reason in rejected)
    with CaptionIndex.open(url, space_of(native), CAPTIONS, create=False) as index:
        assert index.languages() == {"en": 3, "sv": 3}
        found = index.search(np.ones(native.dim, np.float32), 10)
        assert {hit.entry.caption for hit in found} == {"en hund", "a dog"}


def test_ill_images_cost_no_caption(native_folder: Path, pngs: list[bytes], tmp_path: Path) -> None:
    native = Native.load(str(native_folder))
    with torch.no_grad():
        native.model.visual.proj.fill_(3e38)
    rows = [
        {"image_id": f"i{number}", "image": png, "language": "en", "caption": "a dog"}
        for number, png in enumerate(pngs[:2])
    ]
    url, rejected = f"edge:{tmp_path / 'index'}", list[str]()
    table = pa.Table.from_pylist(rows)
    written = index_captions(url, native, {}, table, "set", reject=rejected.append)
    assert written == {IMAGES: 0, CAPTIONS: 2}
    assert rejected == [f"'i{number}': its feature is not finite" for number in range(2)]
