"""Crossmodal-3600: human-written captions in 36 languages, for tests only.

- Source: https://google.github.io/crossmodal-3600/ (Thapliyal et al. 2022).
- License: captions CC-BY-4.0. The images are from Open Images, CC-BY as listed there.
- Sizes: 3,600 images and 261,375 captions, all of the split `test`. 100 images come from the region
  of each language. An image has two captions per language, but one in Bengali and about 1.3 in
  Māori.

Layout below the root:

- `captions.jsonl` (from captions.zip): one image per line, as
  `{"image/key": …, "image/locale": …, "de": {"caption": [ … ], "caption/tokenized": …}, …}`.
- `images/KEY.jpg` (from images.tgz).

The language codes are those of the dataset. All are BCP-47: `quz` is Cusco Quechua and `fil` is
Filipino.

Not confirmed: the caption count of each language, and that no caption is empty. One program that
reads the dataset skips empty captions.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mla_ray.datasets.layout import DataSet, Size, SourceFile, find_file, inside, lines, member
from mla_ray.datasets.table_writer import Caption

TEXTS = "captions.jsonl"
IMAGES = "images"
COUNT = 3_600
LANGUAGES = (
    *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr"),
    *("hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw"),
    *("te", "th", "tr", "uk", "vi", "zh"),
)


def captions(root: Path, languages: Sequence[str]) -> Iterator[Caption]:
    """Yield caption rows in these languages, image by image."""
    path = find_file(root, TEXTS)
    first: dict[str, int] = {}
    for line, text in lines(path):
        place = f"{path} line {line}"
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: not JSON ({error}); fetch the file anew") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: expected an object, found {type(record).__name__}")
        key = member(record, "image/key", str, place)
        if (earlier := first.setdefault(key, line)) != line:
            raise ValueError(f"{place}: {key!r} is in line {earlier} too; fetch the file anew")
        image = inside(root / IMAGES, f"{key}.jpg", place)
        for language in languages:
            where = f"{place} ({language})"
            written = member(record, language, dict, where)
            for caption in member(written, "caption", list, where):
                if not isinstance(caption, str):
                    raise ValueError(f"{where}: a caption is {caption!r:.60}; fetch the file anew")
                yield Caption(key, image, language, caption, "test", where)


_HOME = "https://google.github.io/crossmodal-3600/"

CROSSMODAL3600 = DataSet(
    name="crossmodal3600",
    title="Crossmodal-3600: 3,600 images captioned by people in 36 languages",
    licence="captions: CC-BY-4.0; images: CC-BY, of Open Images",
    languages=LANGUAGES,
    files=(SourceFile(TEXTS, _HOME, COUNT), SourceFile(IMAGES, _HOME, COUNT)),
    captions=captions,
    sizes={(language, "test"): Size(COUNT) for language in LANGUAGES},
)
