"""Public data sets, a few images of each, in the layouts in which they are published."""

import gzip
import json
import shutil
import tracemalloc
import unicodedata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mla_ray.data.table_reader import Stream, read_captions, read_pairs
from mla_ray.datasets import (
    cc300k,
    coco,
    crossmodal3600,
    layout,
    msrvtt,
    multi30k,
    xtd,
)
from mla_ray.datasets import (
    table_writer as tables,
)
from mla_ray.datasets.catalog import CATALOG, WrittenTables, check, make
from mla_ray.datasets.table_writer import Caption, Incomplete, Pair, write_captions, write_pairs
from mla_ray.runtime.progress import Progress
from tests.support.commands import Mla


def silent(step: Progress) -> None:
    pass


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = sum(path.name.encode()) % 256
    Image.new("RGB", (8, 6), (shade, 0, 255 - shade)).save(path, "JPEG")


def text(path: Path, lines: list[str]) -> None:
    """A text file, in gzip if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def document(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def build(name: str, root: Path, out: Path, **options: Any) -> WrittenTables:
    return make(name, root, out, silent, **options)


def captions(out: Path, language: str, split: str) -> list[tuple[str, str]]:
    """Image and text of each row, read as everybody reads the table; every image is decoded."""
    table = read_captions(out / "captions.parquet", language=language, split=split).table
    for image in table["image"].to_pylist():
        assert Image.open(BytesIO(image)).size == (8, 6)
    return list(zip(table["image_id"].to_pylist(), table["caption"].to_pylist(), strict=True))


def pairs(out: Path, language: str) -> list[tuple[str, str]]:
    table = read_pairs(out / f"pairs-{language}.parquet", language=language).table
    return list(zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True))


def text_of(out: Path) -> pa.Table:
    """The rows of a table whose images nobody opens."""
    return pa.concat_tables(list(Stream.captions([out / "captions.parquet"])))


# The sets


FLICKR = {"train": ["100.jpg", "99.jpg", "7.jpg"], "validation": ["5.jpg"], "test": ["31.jpg"]}


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """Multi30K: three images, one and one."""
    root = tmp_path / "multi30k"
    for split, images in FLICKR.items():
        for image in images:
            jpeg(root / "flickr30k-images" / image)
        stem, listed = multi30k.TASK1[split]
        text(root / "data/task1/image_splits" / listed, images)
        for language in multi30k.LANGUAGES:
            said = [f"{language} {image} (translated)" for image in images]
            text(root / f"data/task1/raw/{stem}.{language}.gz", said)
        stem, listed = multi30k.TASK2[split]
        text(root / "data/task2/image_splits" / listed, images)
        for language in multi30k.OF_TASK2:
            for number in range(1, 6):
                said = [f"{language} {image} {number}" for image in images]
                text(root / f"data/task2/raw/{stem}.{number}.{language}.gz", said)
    return root


COCO_IMAGES = [
    ("val2014", 391895, "test"),
    ("val2014", 42, "restval"),
    ("train2014", 9, "train"),
    ("val2014", 7, "val"),
    ("val2014", 3, "test"),
]


def coco_name(folder: str, number: int) -> str:
    return f"COCO_{folder}_{number:012d}"


@pytest.fixture
def mscoco(tmp_path: Path) -> Path:
    """MSCOCO, STAIR and COCO-CN: five images, of which Chinese has three."""
    root, rng = tmp_path / "coco", np.random.default_rng(0)
    listed = []
    annotations: dict[str, list[dict[str, Any]]] = {"train2014": [], "val2014": []}
    for folder, number, split in COCO_IMAGES:
        name = coco_name(folder, number)
        jpeg(root / folder / f"{name}.jpg")
        sentences = [{"raw": "unread", "tokens": ["unread"], "sentid": 1}]
        listed.append(
            {
                "filepath": folder,
                "filename": f"{name}.jpg",
                "cocoid": number,
                "split": split,
                "sentences": sentences,
            }
        )
        annotations[folder] += [
            {"image_id": number, "id": number * 10 + i, "caption": f"en {number} {i}\n"}
            for i in range(5)
        ]
    document(root / "dataset_coco.json", {"dataset": "coco", "images": listed})
    for language in ("en", "ja"):
        for path, folder in zip(coco.ANNOTATIONS[language], annotations, strict=True):
            rows = [row | {"caption": row["caption"].replace("en", language)} for row in
                    annotations[folder]]  # fmt: skip
            rng.shuffle(rows)
            document(root / path, {"info": {}, "images": [{"id": 1}], "annotations": rows})
    chinese = root / coco.CHINESE
    text(chinese / "coco-cn_train.txt", [coco_name("train2014", 9)])
    text(chinese / "coco-cn_val.txt", [coco_name("val2014", 7)])
    text(chinese / "coco-cn_test.txt", [coco_name("val2014", 42)])
    text(
        chinese / "imageid.human-written-caption.txt",
        [
            f"{coco_name('val2014', 42)}#0\t一只 狗",
            f"{coco_name('train2014', 9)}#0\t托盘",
            f"{coco_name('val2014', 42)}#1 两只狗",
            f"{coco_name('val2014', 7)}#0\t猫",
        ],
    )
    return root


@pytest.fixture
def xtd_root(tmp_path: Path) -> Path:
    root = tmp_path / "xtd"
    images = [f"{coco_name('train2014', 12)}.jpg", f"{coco_name('val2014', 5)}.jpg"]
    for image in images:
        jpeg(root / image.split("_")[1] / image)
    text(root / xtd.IMAGES, images)
    for code, path in xtd.TEXTS.items():
        # A line separator is part of a caption, as it is for whoever counts the lines of a file.
        text(root / path, [f"{code} one\u2028more", f"{code} two"])
    return root


@pytest.fixture
def xm3600(tmp_path: Path) -> Path:
    root = tmp_path / "xm"
    lines = []
    for key in ("00a0b916fd5941a3", "04593c33db4a437b"):
        jpeg(root / "images" / f"{key}.jpg")
        record: dict[str, Any] = {"image/key": key, "image/locale": "de"}
        for code in crossmodal3600.LANGUAGES:
            said = [f"{code} {key} {i}" for i in range(1 if code == "bn" else 2)]
            record[code] = {"caption": said, "caption/tokenized": said}
        lines.append(json.dumps(record, ensure_ascii=False))
    text(root / "captions.jsonl", lines)
    return root


CC_NAMES = [f"{number:08d}.jpg" for number in (5, 3, 8, 1, 9)]


@pytest.fixture
def conceptual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five names, of which the authors had four; cut at three, of which one is not crawled."""
    monkeypatch.setattr(cc300k, "COUNT", 3)
    root = tmp_path / "cc"
    (root / cc300k.NAMES).parent.mkdir(parents=True)
    np.save(root / cc300k.NAMES, np.array(CC_NAMES))
    document(root / cc300k.EXISTING, sorted(set(CC_NAMES) - {"00000003.jpg"}))
    for code in cc300k.LANGUAGES:
        said = {name: [f"{code} {name}", "unread"] for name in sorted(CC_NAMES)}
        said |= {"00000077.jpg": [f"{code}, in no list"]}
        document(root / cc300k._file(code), said)
    for name in ("00000005.jpg", "00000008.jpg"):
        jpeg(root / cc300k.IMAGES / name)
    return root


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "msrvtt"
    text(root / msrvtt.TRAIN, ["video_id", "video3", "video1"])
    tested = ["ret0,msr7020,video7020,a person cooks", 'ret1,msr8,video8,"a man, singing"']
    text(root / msrvtt.TEST, ["key,vid_key,video_id,sentence", *tested])
    said = [("video1", "a car"), ("video3", "a dog"), ("video3", "a dog"), ("video1", "red car")]
    document(
        root / msrvtt.TEXTS,
        {"videos": [{"id": 1}], "sentences": [{"video_id": v, "caption": c} for v, c in said]},
    )
    for code in ("en", *msrvtt.TRANSLATED):
        train = {f"{v}.mp4": [f"{code} {v} {i}" for i in range(2)] for v in ("video1", "video3")}
        document(root / msrvtt._train(code), train)
        test = {f"{v}.mp4": [f"{code} {v}", "unread"] for v in ("video7020", "video8")}
        document(root / msrvtt._test(code), test)
    for video in ("video1", "video3", "video7020", "video8"):
        path = root / msrvtt.VIDEOS / f"{video}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no table opens it")
    return root


# What is made of them


def test_multi30k_is_task_2_in_english_and_german_and_task_1_elsewhere(
    flickr: Path, tmp_path: Path
) -> None:
    build("multi30k", flickr, tmp_path / "out")
    for language in ("en", "de"):
        for split, images in FLICKR.items():
            assert captions(tmp_path / "out", language, split) == [
                (image.removesuffix(".jpg"), f"{language} {image} {number}")
                for image in images
                for number in range(1, 6)
            ]
    for language in ("fr", "cs"):
        assert captions(tmp_path / "out", language, "train") == [
            (image.removesuffix(".jpg"), f"{language} {image} (translated)")
            for image in FLICKR["train"]
        ]
    assert pairs(tmp_path / "out", "de") == [
        (f"en {image} (translated)", f"de {image} (translated)") for image in FLICKR["train"]
    ]
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["captions.parquet", "pairs-cs.parquet", "pairs-de.parquet", "pairs-fr.parquet"]


def test_multi30k_task_1_has_one_caption_an_image(flickr: Path, tmp_path: Path) -> None:
    made = build("multi30k-task1", flickr, tmp_path / "out", languages=["en", "de"])
    assert captions(tmp_path / "out", "en", "test") == [("31", "en 31.jpg (translated)")]
    assert captions(tmp_path / "out", "de", "validation") == [("5", "de 5.jpg (translated)")]
    assert set(made.pairs) == {"de"}


def test_a_gz_may_lie_there_unpacked(flickr: Path, tmp_path: Path) -> None:
    packed = flickr / "data/task1/raw/train.fr.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    build("multi30k", flickr, tmp_path / "out", languages=["fr"])
    assert len(captions(tmp_path / "out", "fr", "train")) == 3


def test_coco_images_come_in_the_order_of_the_splits_and_restval_is_train(
    mscoco: Path, tmp_path: Path
) -> None:
    build("coco", mscoco, tmp_path / "out")
    # Worked out from the files as they are, in the other way round: captions, then their images.
    listed = json.loads((mscoco / "dataset_coco.json").read_text())["images"]
    for language in ("en", "ja"):
        rows = [
            row
            for path in coco.ANNOTATIONS[language]
            for row in json.loads((mscoco / path).read_text())["annotations"]
        ]
        for split, names in (
            ("train", ("train", "restval")),
            ("validation", ("val",)),
            ("test", ("test",)),
        ):
            expected = [
                (image["filename"].removesuffix(".jpg"), row["caption"].strip())
                for image in listed
                if image["split"] in names
                for row in rows
                if row["image_id"] == image["cocoid"]
            ]
            assert len(expected) in (5, 10)
            assert captions(tmp_path / "out", language, split) == expected


def test_coco_cn_has_its_own_splits_and_uneven_counts(mscoco: Path, tmp_path: Path) -> None:
    made = build("coco", mscoco, tmp_path / "out", languages=["zh"])
    dogs = coco_name("val2014", 42)
    assert captions(tmp_path / "out", "zh", "test") == [(dogs, "一只 狗"), (dogs, "两只狗")]
    assert captions(tmp_path / "out", "zh", "validation") == [(coco_name("val2014", 7), "猫")]
    assert made.captions.images["zh", "test"] == 1
    assert "zh test: 2 captions, but 1,053 are published" in made.warnings


def test_xtd_finds_every_language_where_it_comes_from(xtd_root: Path, tmp_path: Path) -> None:
    build("xtd", xtd_root, tmp_path / "out")
    for code in xtd.TEXTS:
        assert captions(tmp_path / "out", code, "test") == [
            (coco_name("train2014", 12), f"{code} one more"),
            (coco_name("val2014", 5), f"{code} two"),
        ]
    assert len(xtd.TEXTS) == 11


def test_crossmodal3600_has_36_languages_that_tables_may_have(xm3600: Path, tmp_path: Path) -> None:
    build("crossmodal3600", xm3600, tmp_path / "out")
    table = read_captions(tmp_path / "out/captions.parquet").table
    found = table.group_by("language").aggregate([("caption", "count")]).to_pylist()
    assert {row["language"]: row["caption_count"] for row in found} == {
        code: 2 if code == "bn" else 4 for code in crossmodal3600.LANGUAGES
    }
    assert len(found) == 36


def test_cc300k_is_cut_from_what_the_authors_had(conceptual: Path, tmp_path: Path) -> None:
    made = build("cc300k", conceptual, tmp_path / "out", skip_invalid=True)
    # 5, 8 and 1 are chosen; there is no image of 1, which translations do not need.
    assert captions(tmp_path / "out", "ja", "train") == [
        ("00000005", "ja 00000005.jpg"),
        ("00000008", "ja 00000008.jpg"),
    ]
    assert pairs(tmp_path / "out", "cs") == [
        (f"en {name}", f"cs {name}") for name in ("00000001.jpg", "00000005.jpg", "00000008.jpg")
    ]
    assert made.dropped == len(cc300k.LANGUAGES)
    assert "00000001.jpg" in (made.first_problem or "")


def test_translations_alone_need_no_image(conceptual: Path, tmp_path: Path) -> None:
    shutil.rmtree(conceptual / cc300k.IMAGES)
    made = build("cc300k", conceptual, tmp_path / "out", languages=["de"], pairs_only=True)
    assert made.captions is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pairs-de.parquet"]
    assert len(pairs(tmp_path / "out", "de")) == 3
    with pytest.raises(ValueError, match="coco has no translations into ja"):
        build("coco", conceptual, tmp_path / "out", languages=["ja"], pairs_only=True)


def test_cc300k_without_the_authors_list_takes_the_first_names(
    conceptual: Path, tmp_path: Path
) -> None:
    (conceptual / cc300k.EXISTING).unlink()
    build("cc300k", conceptual, tmp_path / "out", languages=["de"], skip_invalid=True)
    assert [source for source, _ in pairs(tmp_path / "out", "de")] == [
        f"en {name}" for name in ("00000003.jpg", "00000005.jpg", "00000008.jpg")
    ]


def test_msrvtt_has_videos_in_its_image_column(videos: Path, tmp_path: Path) -> None:
    made = build("msrvtt", videos, tmp_path / "out")
    rows = [
        (row["image_id"], row["image"], row["language"], row["split"], row["caption"])
        for row in text_of(tmp_path / "out").to_pylist()
    ]
    folder = videos / msrvtt.VIDEOS
    assert rows[:5] == [
        ("video3", str(folder / "video3.mp4"), "en", "train", "a dog"),
        ("video1", str(folder / "video1.mp4"), "en", "train", "a car"),
        ("video1", str(folder / "video1.mp4"), "en", "train", "red car"),
        ("video7020", str(folder / "video7020.mp4"), "en", "test", "a person cooks"),
        ("video8", str(folder / "video8.mp4"), "en", "test", "a man, singing"),
    ]
    assert made.captions.repeats["en", "train"] == 1
    tested = [row for row in rows if row[2:4] == ("sw", "test")]
    assert [row[4] for row in tested] == ["sw video7020", "sw video8"]
    assert pairs(tmp_path / "out", "sw") == [
        (f"en {video} {i}", f"sw {video} {i}") for video in ("video3", "video1") for i in range(2)
    ]


# What is refused


def test_lines_that_do_not_belong_together_are_refused(flickr: Path, tmp_path: Path) -> None:
    text(flickr / "data/task1/raw/train.cs.gz", ["jedna", "dvě"])
    with pytest.raises(ValueError, match=r"train\.cs\.gz: 2 lines, but .*train\.txt has 3"):
        build("multi30k", flickr, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("cut", [12, 30])
def test_a_broken_gzip_file_is_named(flickr: Path, tmp_path: Path, cut: int) -> None:
    path = flickr / "data/task2/raw/val.3.de.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"val\.3\.de\.gz: not gzip, or broken off"):
        build("multi30k", flickr, tmp_path / "out")


def test_text_that_is_not_utf8_is_named_by_line(xtd_root: Path, tmp_path: Path) -> None:
    (xtd_root / xtd.TEXTS["de"]).write_bytes(b"eins\nTr\xfcr\n")
    with pytest.raises(ValueError, match=r"test_1kcaptions_de\.txt line 2: byte 3 is not UTF-8"):
        build("xtd", xtd_root, tmp_path / "out")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a\\b.jpg", "a\x07.jpg"])
def test_a_name_that_leads_out_of_the_set_is_refused(
    flickr: Path, tmp_path: Path, name: str
) -> None:
    text(flickr / "data/task1/image_splits/val.txt", [name])
    with pytest.raises(ValueError, match=r"val\.txt: .* names no file in"):
        build("multi30k", flickr, tmp_path / "out", languages=["fr"])


def test_an_id_that_is_not_cocos_is_refused(xtd_root: Path, tmp_path: Path) -> None:
    text(xtd_root / xtd.IMAGES, ["COCO_../x_1.jpg", "COCO_val2014_000000000005.jpg"])
    with pytest.raises(ValueError, match=r"line 1: .* is no image of MSCOCO 2014"):
        build("xtd", xtd_root, tmp_path / "out")


def test_an_image_listed_twice_is_refused(xtd_root: Path, tmp_path: Path) -> None:
    text(xtd_root / xtd.IMAGES, [f"{coco_name('val2014', 5)}.jpg"] * 2)
    with pytest.raises(ValueError, match="line 2: repeats line 1"):
        build("xtd", xtd_root, tmp_path / "out")


def test_an_image_without_a_japanese_caption_is_named(mscoco: Path, tmp_path: Path) -> None:
    path = mscoco / coco.ANNOTATIONS["ja"][1]
    rows = json.loads(path.read_text())["annotations"]
    document(path, {"annotations": [row for row in rows if row["image_id"] != 42]})
    with pytest.raises(ValueError, match="image 2: no ja caption for image 42"):
        build("coco", mscoco, tmp_path / "out")


def test_a_broken_or_a_wrong_json_file_is_named(mscoco: Path, tmp_path: Path) -> None:
    path = mscoco / "dataset_coco.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"dataset_coco\.json: not JSON, or broken off"):
        build("coco", mscoco, tmp_path / "out", languages=["en"])
    document(path, {"annotations": []})
    with pytest.raises(ValueError, match=r"dataset_coco\.json: nothing in 'images'"):
        build("coco", mscoco, tmp_path / "out", languages=["en"])
    document(path, {"images": [{"filename": 7}]})
    with pytest.raises(ValueError, match="image 1: 'filename' is 7, and str is needed"):
        build("coco", mscoco, tmp_path / "out", languages=["en"])


def test_missing_images_and_empty_captions_are_refused_together_or_left_out(
    xm3600: Path, tmp_path: Path
) -> None:
    path = xm3600 / "captions.jsonl"
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    first["mi"]["caption"] = ["", "rua", "rua ", "half \ud800"]
    text(path, [json.dumps(first), json.dumps(second)])
    (xm3600 / "images" / f"{second['image/key']}.jpg").unlink()
    options = {"languages": ["mi", "bn"]}
    with pytest.raises(Incomplete) as caught:
        build("crossmodal3600", xm3600, tmp_path / "out", **options)
    said = str(caught.value).replace(f"{xm3600}/", "").splitlines()
    assert said == [
        "captions.jsonl line 1 (mi): the caption is empty",
        "captions.jsonl line 1 (mi): the caption holds half a character (a lone surrogate, U+D800)"
        " at position 5",
        *[f"captions.jsonl line 2 ({code}): there is no images/{second['image/key']}.jpg"
          for code in ("mi", "mi", "bn")],
        "Pass --skip-invalid to leave out 5.",
    ]  # fmt: skip
    assert not (tmp_path / "out/captions.parquet").exists()
    made = build("crossmodal3600", xm3600, tmp_path / "out", **options, skip_invalid=True)
    assert made.dropped == 5
    assert made.captions.repeats["mi", "test"] == 0
    table = pq.read_table(tmp_path / "out/captions.parquet")
    mine = table.filter(pc.equal(table["language"], "mi"))
    assert mine["caption"].to_pylist() == ["rua", "rua"], "as often as published"
    assert mine["image_id"].to_pylist() == [first["image/key"]] * 2


def test_a_refused_set_leaves_the_old_table(xtd_root: Path, tmp_path: Path) -> None:
    build("xtd", xtd_root, tmp_path / "out")
    before = (tmp_path / "out/captions.parquet").read_bytes()
    (xtd_root / "val2014" / f"{coco_name('val2014', 5)}.jpg").unlink()
    with pytest.raises(Incomplete, match="and 1 more"):
        build("xtd", xtd_root, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["captions.parquet"]
    assert (tmp_path / "out/captions.parquet").read_bytes() == before


def test_a_pickled_array_is_not_read(conceptual: Path, tmp_path: Path) -> None:
    np.save(conceptual / cc300k.NAMES, np.array(CC_NAMES, object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"shuffled_names\.npy: no NumPy array of plain text"):
        build("cc300k", conceptual, tmp_path / "out")


def test_an_image_without_a_translation_is_named(conceptual: Path, tmp_path: Path) -> None:
    path = conceptual / cc300k._file("fr")
    document(path, {"00000005.jpg": ["cinq"]})
    with pytest.raises(ValueError, match=r"no caption for 2 of 3 images, '00000001\.jpg'"):
        build("cc300k", conceptual, tmp_path / "out", skip_invalid=True)


def test_translations_that_can_not_be_paired_are_refused(videos: Path, tmp_path: Path) -> None:
    path = videos / msrvtt._train("vi")
    document(path, {"video1.mp4": ["một", "hai"], "video3.mp4": ["ba"]})
    with pytest.raises(ValueError, match=r"ref_captions_vi\.json 'video3': 1 captions, but 2 in"):
        build("msrvtt", videos, tmp_path / "out", languages=["vi"])


def test_unknown_sets_and_languages_are_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'flickr'; there are multi30k, multi30k-task1, coco"):
        build("flickr", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="xtd has no 'sw', 'cs'; it has de, en"):
        build("xtd", tmp_path, tmp_path, languages=["sw", "de", "cs"])


def test_a_line_without_end_is_refused(
    xtd_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_LINE", 64)
    text(xtd_root / xtd.TEXTS["it"], ["uno", "d" * 64])
    with pytest.raises(ValueError, match=r"test_1kcaptions_it\.txt line 2: longer than 64 bytes"):
        build("xtd", xtd_root, tmp_path / "out")


# Rows


@pytest.mark.parametrize("seed", range(5))
def test_tables_keep_what_their_readers_take_and_count_the_rest(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    said = ["a", "a ", "\u00e4", "a\u0308", "b", "", " \u2003", "c\nd"]
    rows = []
    for image in range(40):
        path = tmp_path / f"{image % 9}.jpg"
        if image % 9:
            jpeg(path)
        for language in ("de", "quz"):
            split = "test" if image % 3 else "train"
            for caption in rng.choice(said, rng.integers(1, 7)):
                rows.append(Caption(f"{image}", path, language, str(caption), split, "there"))
    kept: list[tuple[str, str, str]] = []
    repeats = refused = 0
    for row in rows:
        text = " ".join(unicodedata.normalize("NFC", row.text).split())
        key = (row.image_id, row.language, text)
        if not key[2] or not row.image.exists():
            refused += 1
        elif key in kept and row.split == "train":
            repeats += 1
        else:
            kept.append(key)
    tally = write_captions(rows, tmp_path / "t.parquet", silent, skip_invalid=True)
    table = pq.read_table(tmp_path / "t.parquet")
    columns = (table[name].to_pylist() for name in ("image_id", "language", "caption"))
    assert list(zip(*columns, strict=True)) == kept
    assert (tally.refused, sum(tally.repeats.values())) == (refused, repeats)
    assert sum(tally.rows.values()) == len(kept)
    of_language = {(image, language) for image, language, _ in kept}
    assert sum(tally.images.values()) == len(of_language)


def test_pairs_that_say_the_same_in_one_language_are_there_once(tmp_path: Path) -> None:
    rows = [
        Pair(source, target, language, "there")
        for language in ("de", "fr")
        for source, target in (("dog", "x"), ("cat", "x"), (" dog", "x "), ("dog", "y"))
    ]
    tally = write_pairs(rows, tmp_path / "t.parquet", silent)
    assert tally.rows == {("de", ""): 3, ("fr", ""): 3}
    assert tally.repeats == {("de", ""): 1, ("fr", ""): 1}
    assert read_pairs(tmp_path / "t.parquet").table.num_rows == 6


# Memory


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BATCH", 500)
    image = tmp_path / "a.jpg"
    jpeg(image)

    def peak(rows: int) -> int:
        made = (
            Caption(f"{number // 5}", image, "de", f"caption {number}" * 9, "train", "there")
            for number in range(rows)
        )
        tracemalloc.start()
        write_captions(made, tmp_path / "t.parquet", silent)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(1_000)  # imports
    assert peak(12_000) < 1.5 * peak(2_000)
    assert pq.read_metadata(tmp_path / "t.parquet").num_rows == 2_000


# What is there


def states(name: str, root: Path, languages: list[str] | None = None) -> dict[str, str]:
    return {found.file.path: found.state for found in check(name, root, silent, languages)}


def test_check_tells_apart_what_is_there_missing_broken_and_unlike(
    xtd_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (xtd_root / xtd.TEXTS["ko"]).unlink()
    (xtd_root / xtd.TEXTS["pl"]).write_bytes(b"\xff\xfe\n")
    text(xtd_root / xtd.TEXTS["ru"], [f"{number}" for number in range(1000)])
    assert states("xtd", xtd_root, ["ko", "pl", "ru", "de"]) == {
        xtd.IMAGES: "different",
        xtd.TEXTS["ko"]: "missing",
        xtd.TEXTS["pl"]: "broken",
        xtd.TEXTS["ru"]: "there",
        xtd.TEXTS["de"]: "different",
        "train2014": "different",
        "val2014": "different",
    }
    (images,) = (f for f in check("xtd", xtd_root, silent) if f.file.path == xtd.IMAGES)
    assert (images.count, images.file.count) == (2, 1000)


@pytest.mark.parametrize("name", ["multi30k", "coco", "xtd", "crossmodal3600", "cc300k", "msrvtt"])
def test_check_asks_for_what_make_reads_and_for_nothing_else(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fixtures = {
        "multi30k": "flickr",
        "coco": "mscoco",
        "xtd": "xtd_root",
        "crossmodal3600": "xm3600",
        "cc300k": "conceptual",
        "msrvtt": "videos",
    }
    root = request.getfixturevalue(fixtures[name])
    languages = CATALOG[name].pair_languages[:1] or ("ja" if name == "coco" else "de",)
    # Only a crawl lacks images that are none the less in the lists.
    options = {"languages": languages, "skip_invalid": name == "cc300k"}
    build(name, root, tmp_path / "out", **options)
    found = check(name, root, silent, languages)
    assert not [part for part in found if part.needed]
    for path in (part.file.path for part in found if not part.file.optional):
        (root / path).rename(tmp_path / "away")
        with pytest.raises((OSError, ValueError)):
            build(name, root, tmp_path / "out", **options)
        assert states(name, root, list(languages))[path] == "missing"
        (tmp_path / "away").rename(root / path)
    build(name, root, tmp_path / "out", **options)


# The command line


def test_mla_data_make_says_what_it_made(mla: Mla, flickr: Path, tmp_path: Path) -> None:
    (flickr / "flickr30k-images/7.jpg").unlink()
    command = ("data", "make", "multi30k", "--root", flickr, "--out", tmp_path / "t")
    code, _, err = mla(*command, "--languages", "fr,cs")
    assert code == 1
    assert "train.fr.gz line 3: there is no" in err
    code, out, err = mla(*command, "--languages", "fr,cs", "--skip-invalid", "--json")
    assert code == 0
    made = json.loads(out)
    assert made["captions"]["rows"][0] == {
        "language": "fr",
        "split": "train",
        "images": 2,
        "rows": 2,
        "repeats": 0,
    }
    assert made["pairs"]["cs"]["rows"] == [{"language": "cs", "rows": 3, "repeats": 0}]
    assert made["dropped"] == 2
    assert "fr train: 2 images, but 29,000 are published" in made["warnings"]
    assert "dropped 2 invalid rows" in err


def test_mla_data_check_ends_with_1_if_a_named_set_is_incomplete(
    mla: Mla, flickr: Path, tmp_path: Path
) -> None:
    code, out, _ = mla("data", "check", "multi30k", "--root", flickr, "--json")
    assert code == 0
    found = {part["path"]: part for part in json.loads(out)["multi30k"]}
    part = found["data/task1/raw/test_2016_flickr.fr.gz"]
    assert (part["state"], part["count"], part["expected"]) == ("different", 1, 1000)
    (flickr / "data/task1/raw/val.fr.gz").unlink()
    code, out, _ = mla("data", "check", "multi30k", "--root", flickr)
    assert code == 1
    assert "missing   data/task1/raw/val.fr.gz  https://github.com/multi30k/dataset" in out
    assert mla("data", "check", "multi30k", "--root", flickr, "--languages", "de")[0] == 0
    code, out, _ = mla("data", "check", "--root", tmp_path, "--json")
    assert code == 0
    assert set(json.loads(out)) == set(CATALOG)
