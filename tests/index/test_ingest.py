"""Promises of mla_ray.index.ingest: an index can be made equal to a table, source by
source; what has no direction is left out, alone, and told."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mla_ray.data.problems import InvalidTable
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import (
    caption_entry,
    entries_of,
    index_captions,
    keep_pictures,
    keys_of,
    owner,
    space_of,
    sync,
)
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.native import Native
from tests.support.natives import MakePack

Row = tuple[str, bytes, str, str]


def table(*rows: Row) -> pa.Table:
    names = ("image_id", "image", "language", "caption")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def held(url: str, native: Native) -> tuple[set[tuple[str, str]], set[tuple[str, str, str, str]]]:
    """Source and id of the images; source, image, language and text of the captions."""
    with CaptionIndex.open(url, space_of(native), IMAGES, create=False) as index:
        images = {(entry.source, entry.id) for entry in index.entries()}
        assert len(images) == index.count()
    with CaptionIndex.open(url, space_of(native), CAPTIONS, create=False) as index:
        captions = {(e.source, e.image_id, e.language, e.caption) for e in index.entries()}
        assert len(captions) == index.count()
    return images, captions


def kept_by(store: PictureStore, image_id: str, source: str) -> tuple[int, int, int] | None:
    """The colour of a kept picture."""
    data = store.get(image_id, source)
    if data is None:
        return None
    pixel = Image.open(BytesIO(data)).convert("RGB").getpixel((5, 5))
    return tuple(int(round(part, -1)) for part in pixel)  # type: ignore[union-attr, return-value]


def drawn(colour: tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = (200, 0, 0), (0, 0, 200)


def test_tables_that_number_their_images_alike_are_all_kept(native: Native, tmp_path: Path) -> None:
    url, store = f"edge:{tmp_path / 'index'}", PictureStore(str(tmp_path / "pictures"))
    for source, colour in (("red", RED), ("blue", BLUE)):
        rows = table(("1", drawn(colour), "en", "a dog"), ("2", drawn(colour), "en", source))
        index_captions(url, native, {}, rows, source)
        keep_pictures(rows, source, store, lambda progress: None)
    images, captions = held(url, native)
    assert images == {(source, id_) for source in ("red", "blue") for id_ in "12"}
    assert captions == {
        (source, *row)
        for source in ("red", "blue")
        for row in (("1", "en", "a dog"), ("2", "en", source))
    }
    for source, colour in (("red", RED), ("blue", BLUE)):
        assert {kept_by(store, id_, source) for id_ in "12"} == {colour}
        vector = native_vector(native, drawn(colour))
        with CaptionIndex.open(url, space_of(native), IMAGES) as index:
            assert {hit.entry.source for hit in index.search(vector, 2)} == {source}


@torch.inference_mode()
def native_vector(native: Native, png: bytes) -> npt.NDArray[np.float32]:
    pixels = native.preprocess(Image.open(BytesIO(png)).convert("RGB"))
    vector: npt.NDArray[np.float32] = native.encode_image(pixels[None])[0].float().numpy()
    return vector


def test_sync_removes_what_left_the_table_and_nothing_of_others(
    native: Native, make_pack: MakePack, pngs: list[bytes], tmp_path: Path
) -> None:
    url, store = f"edge:{tmp_path / 'index'}", PictureStore(str(tmp_path / "pictures"))
    packs, space = {"de": make_pack("de")}, space_of(native)
    before = table(
        ("1", pngs[1], "en", "a dgo"),
        ("1", pngs[1], "de", "ein Hund"),
        ("2", pngs[2], "en", "a cat"),
        ("3", pngs[3], "en", "grapes"),
        ("3", pngs[3], "de", "Weintrauben"),
    )
    for source in ("ours", "theirs"):
        index_captions(url, native, packs, before, source)
        keep_pictures(before, source, store, lambda progress: None)
    after = table(  # a typo mended, image 2 gone, a caption of 3 gone, image 4 new
        ("1", pngs[1], "en", "a dog"),
        ("1", pngs[1], "de", "ein Hund"),
        ("3", pngs[3], "en", "grapes"),
        ("4", pngs[4], "en", "a cat"),
    )
    index_captions(url, native, packs, after, "ours")
    keep_pictures(after, "ours", store, lambda progress: None)
    keys = {entry.key for entry in entries_of(after, "ours")}
    assert sync(url, space, "ours", keys, store) == {"images": 1, "captions": 3, "pictures": 1}
    images, captions = held(url, native)
    assert images == {("ours", id_) for id_ in "134"} | {("theirs", id_) for id_ in "123"}
    wanted = {
        (source, row["image_id"], row["language"], row["caption"])
        for source, rows in (("ours", after), ("theirs", before))
        for row in rows.to_pylist()
    }
    assert captions == wanted
    assert [bool(store.get(id_, "ours")) for id_ in "1234"] == [True, False, True, True]
    assert [bool(store.get(id_, "theirs")) for id_ in "1234"] == [True, True, True, False]

    nothing = {"images": 0, "captions": 0, "pictures": 0}
    assert sync(url, space, "ours", keys, store) == nothing
    assert sync(url, space, "nobody's", set(), store) == nothing
    assert held(url, native) == (images, captions)
    assert sync(url, space, "ours", set()) == {"images": 3, "captions": 4, "pictures": 0}
    assert {entry[0] for entry in held(url, native)[1]} == {"theirs"}


@pytest.mark.slow
def test_a_table_synced_step_by_step_is_the_table_indexed_at_once(
    native: Native, pngs: list[bytes], tmp_path: Path
) -> None:
    """Ten random tables after one another, two sources in turn."""
    rng, url = np.random.default_rng(0), f"edge:{tmp_path / 'index'}"
    now: dict[str, set[tuple[str, str, str, str]]] = {}
    for step in range(10):
        source = "ab"[step % 2]
        size = int(rng.integers(1, 9))
        drawn_ = {(str(rng.integers(4)), f"text {rng.integers(4)}") for _ in range(size)}
        rows = table(*((id_, pngs[int(id_)], "en", text) for id_, text in sorted(drawn_)))
        index_captions(url, native, {}, rows, source)
        keys = {entry.key for entry in entries_of(rows, source)}
        removed = sync(url, space_of(native), source, keys)
        wanted = {(source, id_, "en", text) for id_, text in drawn_}
        assert removed["captions"] == len(now.get(source, set()) - wanted)
        now[source] = wanted
        images, captions = held(url, native)
        assert captions == set().union(*now.values())
        assert images == {(source, id_) for source, id_, *_ in captions}


def test_pictures_of_0_1_0_go_with_the_images_that_they_show(
    native: Native, pngs: list[bytes], tmp_path: Path
) -> None:
    url, store = f"edge:{tmp_path / 'index'}", PictureStore(str(tmp_path / "pictures"))
    for source, ids in (("a", "12"), ("b", "23")):
        rows = table(*((id_, pngs[int(id_)], "en", "a dog") for id_ in ids))
        index_captions(url, native, {}, rows, source)
    for id_ in "123":
        keep_as_before(store, id_, pngs[int(id_)])
    removed = sync(url, space_of(native), "a", set(), store)
    assert removed["pictures"] == 1  # of 2 it may be that of source b
    assert [bool(store.get_former(id_)) for id_ in "123"] == [False, True, True]
    assert sync(url, space_of(native), "b", set(), store)["pictures"] == 2


def keep_as_before(store: PictureStore, image_id: str, png: bytes) -> None:
    """As 0.1.0 did: the file's name is a hash of the id alone."""
    name = hashlib.sha256(image_id.encode()).hexdigest()
    path = Path(store.url) / name[:2] / f"{name}.webp"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(BytesIO(png)).save(path, "WEBP")


@pytest.mark.parametrize(
    ("sources", "whose"),
    [
        ({}, None),
        ({"a": 2}, "a"),
        ({"a": 1}, "a"),
        ({"a": 2, "b": 2}, None),
        ({"a": 2, "b": 1}, "b"),
    ],
)
def test_an_id_alone_means_the_source_that_had_it_first(
    sources: dict[str, int], whose: str | None
) -> None:
    assert owner(sources) == whose


def test_a_table_without_a_good_row_empties_no_source(tmp_path: Path) -> None:
    lines = {
        "no rows": "",
        "no good row": "1,x,,a dog\n2,x,en,\n",
        "one": "1,x,en,a dog\n,x,en,b\n",
    }
    for name, text in lines.items():
        table = tmp_path / f"{name}.csv"
        table.write_text("image_id,image,language,caption\n" + text)
        if name == "one":
            image, caption = Entry("1", "1", "", "", "s"), caption_entry("1", "en", "a dog", "s")
            assert keys_of([table], "s", None, []) == {image.key, caption.key}
        else:
            with pytest.raises(InvalidTable):
                keys_of([table], "s", None, [])


def test_the_entries_of_a_table_are_its_images_and_captions() -> None:
    rows = table(("1", b"", "en", "a dog"), ("1", b"", "de", "ein Hund"))
    image, english, again, german = entries_of(rows, "s")
    assert image == again == Entry("1", "1", "", "", "s")
    assert [(e.image_id, e.language, e.caption) for e in (english, german)] == [
        ("1", "en", "a dog"),
        ("1", "de", "ein Hund"),
    ]
    assert len({image.key, english.key, german.key}) == 3
    assert {len(entry.key) for entry in (image, english, german)} == {16}


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
    url = f"edge:{tmp_path / 'index'}"
    done = index_captions(url, native, {"sv": pack}, pa.Table.from_pylist(rows), "set")
    assert (done.written, done.rejected) == ({IMAGES: 3, CAPTIONS: 6}, 3)
    assert [reason.partition("#")[0].strip("'") for reason in done.reasons] == ["i0", "i1", "i2"]
    assert all("not finite" in reason for reason in done.reasons)
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
    url = f"edge:{tmp_path / 'index'}"
    done = index_captions(url, native, {}, pa.Table.from_pylist(rows), "set")
    assert done.written == {IMAGES: 0, CAPTIONS: 2}
    assert done.reasons == [f"'i{number}': its feature is not finite" for number in range(2)]
