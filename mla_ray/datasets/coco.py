"""MSCOCO captions in English, Japanese (STAIR captions) and Chinese (COCO-CN).

- Source: MSCOCO 2014 (Lin et al. 2014, Chen et al. 2015), split by Karpathy and Li (2015); STAIR
  captions v1.2 (Yoshikawa et al. 2017); COCO-CN 201805 v1.1 (Li et al. 2019).
- License: MSCOCO captions and STAIR captions CC-BY-4.0. COCO-CN MIT, according to a user's copy of
  its license. The images belong to their authors on Flickr.
- Sizes, as images / captions:

| language | train | validation | test |
| --- | --- | --- | --- |
| en | 113,287 / 566,747 | 5,000 / 25,010 | 5,000 / 25,010 |
| ja | 113,287 / 566,435 | 5,000 / 25,000 | 5,000 / 25,000 |
| zh | 18,341 / 20,065 | 1,000 / 1,100 | 1,000 / 1,053 |

Layout below the root, as the archives unpack:

- `train2014/` and `val2014/`: the images.
- `annotations/captions_train2014.json` and `annotations/captions_val2014.json`: English captions.
- `dataset_coco.json`: the splits by Karpathy. Its split `restval` counts as train, as is usual.
- `STAIR-captions/stair_captions_v1.2_*.json`: Japanese captions in COCO's format.
- `coco-cn-version1805v1.1/`: Chinese captions and their splits.

The images of a split keep the order of its list. Published tables average over five consecutive
folds of 1,000 test images, so this order matters.

People wrote the Chinese captions of COCO-CN while they looked at the image. The 5,000 translated
test captions of COCO-CN are not read. COCO-CN has its own splits, so an image may be in train in
English and in test in Chinese.

Not confirmed: the folder name in the STAIR archive, and how the Chinese captions divide into train
and validation. The counts 20,065 and 1,100 are from memory, but the total of 22,218 is right.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from mla_ray.datasets.layout import (
    DataSet,
    Size,
    SourceFile,
    find_file,
    inside,
    lines,
    member,
    names,
    records,
)
from mla_ray.datasets.table_writer import Caption

SPLITS = "dataset_coco.json"
# By language: the captions of train2014 and of val2014.
ANNOTATIONS = {
    "en": ("annotations/captions_train2014.json", "annotations/captions_val2014.json"),
    "ja": (
        "STAIR-captions/stair_captions_v1.2_train.json",
        "STAIR-captions/stair_captions_v1.2_val.json",
    ),
}
CHINESE = "coco-cn-version1805v1.1"
SPLIT_OF = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
CHINESE_LISTS = {
    "train": "coco-cn_train.txt",
    "validation": "coco-cn_val.txt",
    "test": "coco-cn_test.txt",
}
LANGUAGES = ("en", "ja", "zh")


def captions(root: Path, languages: Sequence[str]) -> Iterator[Caption]:
    """Yield caption rows in these languages.

    All captions of one language at a time are held in memory, about 0.2 GB.
    """
    for language in languages:
        if language == "zh":
            yield from _chinese(root)
        else:
            yield from _annotated(root, language)


def image_file(root: Path, name: str, place: str) -> Path:
    """Return the path of an image, by an id such as COCO_val2014_000000391895.

    Args:
        root: Folder of the unpacked dataset.
        name: The image id.
        place: File and row of the id, for the error message.

    Raises:
        ValueError: The id is not one of MSCOCO 2014.

    """
    folder = name.split("_")[1] if name.startswith("COCO_") and name.count("_") == 2 else ""
    if folder not in ("train2014", "val2014"):
        raise ValueError(f"{place}: {name!r} is no image of MSCOCO 2014; is it the right list?")
    return inside(root / folder, f"{name}.jpg", place)


def _annotated(root: Path, language: str) -> Iterator[Caption]:
    """Yield English or Japanese captions in the order of Karpathy's image list."""
    texts = _texts(root, language)
    splits = find_file(root, SPLITS)
    first: set[str] = set()
    for number, record in enumerate(records(splits, "images.item"), start=1):
        place = f"{splits} image {number}"
        name = member(record, "filename", str, place).removesuffix(".jpg")
        split = SPLIT_OF.get(member(record, "split", str, place))
        if split is None:
            raise ValueError(f"{place}: split {record['split']!r} is none of {', '.join(SPLIT_OF)}")
        if name in first:
            raise ValueError(f"{place}: {name!r} appears twice; fetch the file anew")
        first.add(name)
        image = image_file(root, name, place)
        cocoid = member(record, "cocoid", int, place)
        if cocoid not in texts:
            raise ValueError(
                f"{place}: no {language} caption for image {cocoid} in "
                f"{' or '.join(ANNOTATIONS[language])}; fetch them anew"
            )
        for text in texts.pop(cocoid):
            yield Caption(name, image, language, text, split, f"{place} ({name}, {language})")


def _texts(root: Path, language: str) -> dict[int, list[str]]:
    """Return the captions by COCO image number, in file order."""
    texts: dict[int, list[str]] = defaultdict(list)
    for annotations in ANNOTATIONS[language]:
        path = find_file(root, annotations)
        for number, record in enumerate(records(path, "annotations.item"), start=1):
            place = f"{path} annotation {number}"
            image = member(record, "image_id", int, place)
            texts[image].append(member(record, "caption", str, place))
    return texts


def _chinese(root: Path) -> Iterator[Caption]:
    """Yield the human-written Chinese captions in the order of COCO-CN's lists."""
    path = find_file(root, f"{CHINESE}/imageid.human-written-caption.txt")
    texts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line, written in lines(path):
        # A tab ends the key. Some files of COCO-CN have a space instead.
        parts = written.split(maxsplit=1)
        if len(parts) != 2 or "#" not in parts[0]:
            raise ValueError(f"{path} line {line}: expected 'IMAGE#NUMBER<tab>CAPTION'; fix it")
        texts[parts[0].partition("#")[0]].append((line, parts[1]))
    for split, listed in CHINESE_LISTS.items():
        listing = find_file(root, f"{CHINESE}/{listed}")
        for name in names(listing):
            image = image_file(root, name, str(listing))
            if name not in texts:
                raise ValueError(f"{listing}: {name!r} has no caption in {path}; fetch both anew")
            for line, text in texts[name]:
                yield Caption(name, image, "zh", text, split, f"{path} line {line}")


_COCO = "https://cocodataset.org/#download (2014)"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/ (caption_datasets.zip)"
_STAIR = "https://github.com/STAIR-Lab-CIT/STAIR-captions"
_COCO_CN = "https://github.com/li-xirong/coco-cn"
IMAGE_PARTS = (SourceFile("train2014", _COCO, 82_783), SourceFile("val2014", _COCO, 40_504))

COCO = DataSet(
    name="coco",
    title="MSCOCO captions in en, STAIR captions (ja) and COCO-CN (zh)",
    licence="captions: CC-BY-4.0 (en, ja), MIT (zh); images: their authors' on Flickr",
    languages=LANGUAGES,
    files=(
        *IMAGE_PARTS,
        SourceFile(SPLITS, _KARPATHY, 123_287, "images.item", languages=("en", "ja")),
        *(
            SourceFile(path, home, count, "annotations.item", languages=(language,))
            for language, home, counts in (
                ("en", _COCO, (414_113, 202_654)),
                ("ja", _STAIR, (413_915, 202_520)),
            )
            for path, count in zip(ANNOTATIONS[language], counts, strict=True)
        ),
        *(
            SourceFile(f"{CHINESE}/{name}", _COCO_CN, count, languages=("zh",))
            for name, count in (
                ("coco-cn_train.txt", 18_341),
                ("coco-cn_val.txt", 1_000),
                ("coco-cn_test.txt", 1_000),
                ("imageid.human-written-caption.txt", 22_218),
            )
        ),
    ),
    captions=captions,
    sizes={
        ("en", "train"): Size(113_287, 566_747),
        ("en", "validation"): Size(5_000, 25_010),
        ("en", "test"): Size(5_000, 25_010),
        ("ja", "train"): Size(113_287, 566_435),
        ("ja", "validation"): Size(5_000, 25_000),
        ("ja", "test"): Size(5_000, 25_000),
        ("zh", "train"): Size(18_341, 20_065),
        ("zh", "validation"): Size(1_000, 1_100),
        ("zh", "test"): Size(1_000, 1_053),
    },
)
