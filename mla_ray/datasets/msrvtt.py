"""MSR-VTT: web videos with captions in English, machine-translated into eight languages.

- Source: MSR-VTT (Xu et al. 2016). The lists of the 1k-A split (Yu et al. 2018) and all English
  captions are from the repository ArrowLuo/CLIP4Clip. The paper's video model is built on the model
  of that repository. The translations are those of Huang et al. 2021, which the repository
  berniebear/Multi-HT100M links, in the layout of the repository ludanruan/MCLIP4VLA.
- License: the videos belong to their authors on YouTube and are for research only. No license is
  stated for the rest.
- Sizes: 10,000 videos. Train has 9,000 with 20 captions each, test (1k-A) has 1,000 with one each.

Layout below the root, as the archives unpack:

- `msrvtt_data/MSRVTT_train.9k.csv` and `msrvtt_data/MSRVTT_JSFUSION_test.csv`: the column
  `video_id`. The test file also has the English captions in the column `sentence`.
- `msrvtt_data/MSRVTT_data.json`: `{"sentences": [{"video_id": …, "caption": …}, …], …}`.
- `annotations/multilingual_train/ref_captions_de.json` …,
  `annotations/multilingual_test/test_de.json` …: `{"video7020.mp4": ["…"], …}`.
- `MSRVTT/videos/all/video7020.mp4` … (from MSRVTT.zip).

The column `image` holds paths of videos. A translation belongs to the English caption at the same
position in `ref_captions_en.json`. To use the other common training list, MSRVTT_train.7k.csv,
rename that file to MSRVTT_train.9k.csv.

Not confirmed: that the training captions of two languages have the same order. A program that reads
related files assumes it. Also not confirmed: that the archive behind Multi-HT100M's link has the
layout of MCLIP4VLA.
"""

import csv
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
    members,
    records,
)
from mla_ray.datasets.table_writer import Caption, Pair

TRAIN = "msrvtt_data/MSRVTT_train.9k.csv"
TEST = "msrvtt_data/MSRVTT_JSFUSION_test.csv"
TEXTS = "msrvtt_data/MSRVTT_data.json"
VIDEOS = "MSRVTT/videos/all"
TRANSLATED = ("de", "fr", "cs", "zh", "ru", "vi", "sw", "es")


def captions(root: Path, languages: Sequence[str]) -> Iterator[Caption]:
    """Yield caption rows in these languages. The videos of a split keep the order of its list."""
    training, testing = _column(root, TRAIN, "video_id"), _column(root, TEST, "video_id")
    for language in languages:
        if language == "en":
            english = _english(root)
            tested = zip(testing, _column(root, TEST, "sentence"), strict=True)
            first = {video: [text] for video, text in tested}
            files = (find_file(root, TEXTS), find_file(root, TEST))
        else:
            files = (find_file(root, _train(language)), find_file(root, _test(language)))
            english, first = _of_files(files[0]), _of_files(files[1])
        yield from _rows(root, training, english, language, "train", files[0])
        # The 1k-A protocol uses one caption per video.
        one = {video: texts[:1] for video, texts in first.items()}
        yield from _rows(root, testing, one, language, "test", files[1])


def pairs(root: Path, language: str) -> Iterator[Pair]:
    """Yield pairs of training captions in English and `language`, matched by position.

    Raises:
        ValueError: The two files have different numbers of captions for a video.

    """
    source, target = find_file(root, _train("en")), find_file(root, _train(language))
    english, foreign = _of_files(source), _of_files(target)
    for video in _column(root, TRAIN, "video_id"):
        if len(english.get(video, ())) != len(foreign.get(video, ())):
            raise ValueError(
                f"{target} {video!r}: {len(foreign.get(video, ()))} captions, but "
                f"{len(english.get(video, ()))} in {source}; fetch both anew"
            )
        both = zip(english.get(video, ()), foreign.get(video, ()), strict=True)
        for number, (one, other) in enumerate(both, start=1):
            yield Pair(one, other, language, f"{target} {video!r} {number}")


def _rows(
    root: Path,
    videos: list[str],
    texts: dict[str, list[str]],
    language: str,
    split: str,
    file: Path,
) -> Iterator[Caption]:
    for video in videos:
        if not texts.get(video):
            raise ValueError(f"{file}: no {language} caption for {video!r}; fetch it anew")
        path = inside(root / VIDEOS, f"{video}.mp4", f"{file} {video!r}")
        for number, text in enumerate(texts[video], start=1):
            yield Caption(video, path, language, text, split, f"{file} {video!r} {number}")


def _column(root: Path, name: str, column: str) -> list[str]:
    """Return a column of a CSV file with one row per video.

    Raises:
        ValueError: The column is missing, a cell is empty, or a video occurs twice.

    """
    path = find_file(root, name)
    try:
        reader = csv.DictReader((text for _, text in lines(path)), strict=True)
        if column not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {column!r}; is it the right file?")
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}: not CSV ({error}); fetch it anew") from error
    first: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if not row.get("video_id") or not row.get(column):
            raise ValueError(f"{path} row {number}: {column!r} is empty; fetch the file anew")
        if (earlier := first.setdefault(row["video_id"], number)) != number:
            raise ValueError(f"{path} row {number}: repeats row {earlier}; take it out")
    return [row[column] for row in rows]


def _english(root: Path) -> dict[str, list[str]]:
    path = find_file(root, TEXTS)
    texts: dict[str, list[str]] = defaultdict(list)
    for number, record in enumerate(records(path, "sentences.item"), start=1):
        place = f"{path} sentence {number}"
        texts[member(record, "video_id", str, place)].append(member(record, "caption", str, place))
    return texts


def _of_files(path: Path) -> dict[str, list[str]]:
    """Return the captions by video. One language has at most 200,000."""
    return {name.removesuffix(".mp4"): texts for name, texts in members(path)}


def _train(language: str) -> str:
    return f"annotations/multilingual_train/ref_captions_{language}.json"


def _test(language: str) -> str:
    return f"annotations/multilingual_test/test_{language}.json"


_CLIP4CLIP = "https://github.com/ArrowLuo/CLIP4Clip (msrvtt_data.zip)"
_VIDEOS = "https://github.com/m-bain/frozen-in-time (MSRVTT.zip)"
_MULTI = "https://github.com/berniebear/Multi-HT100M or https://github.com/ludanruan/MCLIP4VLA"

MSRVTT = DataSet(
    name="msrvtt",
    title="MSR-VTT: videos, split 1k-A, captions in en and machine-translated into eight languages",
    licence="videos: their authors' on YouTube, for research; captions: none stated",
    languages=("en", *TRANSLATED),
    files=(
        SourceFile(TRAIN, _CLIP4CLIP, 9_000),
        SourceFile(TEST, _CLIP4CLIP, 1_000),
        SourceFile(TEXTS, _CLIP4CLIP, 200_000, "sentences.item", languages=("en",)),
        SourceFile(_train("en"), _MULTI, languages=TRANSLATED),
        *(SourceFile(_train(code), _MULTI, languages=(code,)) for code in TRANSLATED),
        *(SourceFile(_test(code), _MULTI, 1_000, languages=(code,)) for code in TRANSLATED),
        SourceFile(VIDEOS, _VIDEOS, 10_000),
    ),
    captions=captions,
    pairs=pairs,
    pair_languages=TRANSLATED,
    sizes={
        (code, split): size
        for code in ("en", *TRANSLATED)
        for split, size in (("train", Size(9_000, 180_000)), ("test", Size(1_000, 1_000)))
    },
    items="videos",
)
