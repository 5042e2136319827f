"""Multi30K: Flickr30K with captions in German, French and Czech.

- Source: the repository multi30k/dataset on GitHub (Elliott et al. 2016, 2017; Barrault et al.
  2018). Task 1 has one English caption of an image and its translations by people into German,
  French and Czech; task 2 has five captions of an image in English and five in German, written
  apart from each other.
- Images: Flickr30K, to be asked for at the University of Illinois.
- Licence: the repository states none that could be confirmed; images belong to their authors on
  Flickr, for research and teaching.
- Sizes: train 29,000 images, validation 1,014, test (test_2016_flickr) 1,000. Other test sets of
  the repository (2017, 2018, MSCOCO) are not read.

Layout, below the root: a checkout's `data/` (`data/task1/raw/train.de.gz`,
`data/task1/image_splits/train.txt`, `data/task2/raw/train.1.de.gz` …), line by line the same
images; and `flickr30k-images/`, as its archive unpacks.

`multi30k` is what the paper's tables are of: English and German of task 2, French and Czech of task
1. `multi30k-task1` has one caption an image in all four. The translation tables of both are task
1's training sentences.

Could not be confirmed: the names of task 1's `train.txt` and task 2's `val_images.txt` and
`test_2016_images.txt` are those that programs read which use the repository; the stored copy of it
lists them not, being the same files as others.
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
"""Captions of an image in task 2."""

# By split: stem of the raw files, and the list of their images.
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
    """Rows in these languages, those of `of_task2` from task 2; images as their lists have them."""
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
    """Task 1's training sentences in English and `language`."""
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
    """The parts of task 1: captions of these languages, and training sentences for the pairs."""
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
