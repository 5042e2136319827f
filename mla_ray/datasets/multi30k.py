"""Multi30K: Flickr30K with captions in German, French and Czech.

- Source: the GitHub repository multi30k/dataset (Elliott et al. 2016, 2017; Barrault et al. 2018).
  Task 1 has one English caption per image and its human translations into German, French and Czech.
  Task 2 has five English and five German captions per image, written independently.
- Images: Flickr30K, on request from the University of Illinois.
- License: no license of the repository could be confirmed. The images belong to their authors on
  Flickr and are for research and teaching.
- Sizes: 29,000 images in train, 1,014 in validation, 1,000 in test (test_2016_flickr). The other
  test sets of the repository (2017, 2018, MSCOCO) are not read.

Layout below the root:

- `data/` of a checkout: `data/task1/raw/train.de.gz`, `data/task1/image_splits/train.txt`,
  `data/task2/raw/train.1.de.gz` … Line n of each file of a split belongs to the same image.
- `flickr30k-images/`, as its archive unpacks.

`multi30k` is the dataset of the paper's tables. Its English and German captions are from task 2,
its French and Czech ones from task 1. `multi30k-task1` has one caption per image in all four
languages. Both use the training sentences of task 1 as translation tables.

Not confirmed: the file names `train.txt` of task 1, and `val_images.txt` and `test_2016_images.txt`
of task 2. Programs that use the repository read these names. The checked copy of the repository
does not list them, because they have the same content as other files.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from mla_ray.datasets.layout import DataSet, Size, SourceFile, aligned, find_file, inside, names
from mla_ray.datasets.table_writer import Caption, Pair

REPOSITORY = "https://github.com/multi30k/dataset"
IMAGES = "flickr30k-images"
LANGUAGES = ("en", "de", "fr", "cs")
COUNTS = {"train": 29_000, "validation": 1_014, "test": 1_000}
INDEPENDENT = 5
"""Captions per image and language in task 2."""

# By split: the stem of the raw files, and the list of their images.
TASK1 = {
    "train": ("train", "train.txt"),
    "validation": ("val", "val.txt"),
    "test": ("test_2016_flickr", "test_2016_flickr.txt"),
}
TASK2 = {
    "train": ("train", "train_images.txt"),
    "validation": ("val", "val_images.txt"),
    "test": ("test_2016", "test_2016_images.txt"),
}
OF_TASK2 = ("en", "de")


def captions(root: Path, languages: Sequence[str], of_task2: Sequence[str]) -> Iterator[Caption]:
    """Yield caption rows in these languages, in the order of the image lists.

    Args:
        root: Folder of the unpacked dataset.
        languages: BCP-47 codes.
        of_task2: Languages whose captions are from task 2. The others are from task 1.

    """
    for language in languages:
        for split in COUNTS:
            if language in of_task2:
                yield from _independent(root, language, split)
            else:
                yield from _translated(root, language, split)


def _translated(root: Path, language: str, split: str) -> Iterator[Caption]:
    stem, listed = TASK1[split]
    listing = find_file(root, f"data/task1/image_splits/{listed}")
    images = names(listing)
    raw = find_file(root, f"data/task1/raw/{stem}.{language}.gz")
    for line, text in aligned(raw, images, listing):
        yield _caption(root, images[line - 1], listing, language, text, split, f"{raw} line {line}")


def _independent(root: Path, language: str, split: str) -> Iterator[Caption]:
    stem, listed = TASK2[split]
    listing = find_file(root, f"data/task2/image_splits/{listed}")
    images = names(listing)
    raws = [
        find_file(root, f"data/task2/raw/{stem}.{number}.{language}.gz")
        for number in range(1, INDEPENDENT + 1)
    ]
    for five in zip(*(aligned(raw, images, listing) for raw in raws), strict=True):
        for raw, (line, text) in zip(raws, five, strict=True):
            place = f"{raw} line {line}"
            yield _caption(root, images[line - 1], listing, language, text, split, place)


def _caption(
    root: Path, name: str, listing: Path, language: str, text: str, split: str, place: str
) -> Caption:
    image = inside(root / IMAGES, name, str(listing))
    return Caption(image.stem, image, language, text, split, place)


def pairs(root: Path, language: str) -> Iterator[Pair]:
    """Yield the training sentences of task 1 in English and `language`."""
    stem, listed = TASK1["train"]
    listing = find_file(root, f"data/task1/image_splits/{listed}")
    images = names(listing)
    english, foreign = (
        find_file(root, f"data/task1/raw/{stem}.{code}.gz") for code in ("en", language)
    )
    both = zip(aligned(english, images, listing), aligned(foreign, images, listing), strict=True)
    for (line, source), (_, target) in both:
        yield Pair(source, target, language, f"{foreign} line {line}")


def _task1(captioned: tuple[str, ...]) -> list[SourceFile]:
    """Return the files of task 1: captions in these languages, and training sentences for pairs."""
    parts = []
    for split, (stem, listed) in TASK1.items():
        count = COUNTS[split]
        path = f"data/task1/image_splits/{listed}"
        parts.append(
            SourceFile(path, REPOSITORY, count, languages=None if split == "train" else captioned)
        )
        for language in LANGUAGES:
            if split == "train" or language in captioned:
                raw = f"data/task1/raw/{stem}.{language}.gz"
                of_all = split == "train" and language == "en"  # the other side of every pair
                only = None if of_all else (language,)
                parts.append(SourceFile(raw, REPOSITORY, count, languages=only))
    return parts


def _task2() -> list[SourceFile]:
    parts = []
    for split, (stem, listed) in TASK2.items():
        count = COUNTS[split]
        parts.append(
            SourceFile(f"data/task2/image_splits/{listed}", REPOSITORY, count, languages=OF_TASK2)
        )
        for language in OF_TASK2:
            for number in range(1, INDEPENDENT + 1):
                raw = f"data/task2/raw/{stem}.{number}.{language}.gz"
                parts.append(SourceFile(raw, REPOSITORY, count, languages=(language,)))
    return parts


_FLICKR30K = SourceFile(
    IMAGES, "https://shannon.cs.illinois.edu/DenotationGraph/ (ask for Flickr30K)", 31_783
)
_LICENCE = "captions: none stated; images: their authors', for research and teaching"
_TRANSLATED = {
    (language, split): Size(count, count)
    for language in LANGUAGES
    for split, count in COUNTS.items()
}
_INDEPENDENT = {
    (language, split): Size(count, INDEPENDENT * count)
    for language in OF_TASK2
    for split, count in COUNTS.items()
}

MULTI30K = DataSet(
    name="multi30k",
    title="Multi30K as the paper uses it: five captions an image in en and de, one in fr and cs",
    licence=_LICENCE,
    languages=LANGUAGES,
    files=(*_task1(("fr", "cs")), *_task2(), _FLICKR30K),
    captions=partial(captions, of_task2=OF_TASK2),
    pairs=pairs,
    pair_languages=("de", "fr", "cs"),
    sizes=_TRANSLATED | _INDEPENDENT,
)
TASK1_ONLY = DataSet(
    name="multi30k-task1",
    title="Multi30K task 1: one caption an image, translated, in en, de, fr and cs",
    licence=_LICENCE,
    languages=LANGUAGES,
    files=(*_task1(LANGUAGES), _FLICKR30K),
    captions=partial(captions, of_task2=()),
    pairs=pairs,
    pair_languages=("de", "fr", "cs"),
    sizes=_TRANSLATED,
)
