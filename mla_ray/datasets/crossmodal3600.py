"""Crossmodal-3600: captions written by people in 36 languages, for testing alone.

- Source: https://google.github.io/crossmodal-3600/ (Thapliyal et al. 2022).
- Licence: captions CC-BY-4.0; images are of Open Images, CC-BY as listed there.
- Sizes: 3,600 images, a hundred from where each language is spoken, and 261,375 captions: two an
  image and language, but one in Bengali and about 1.3 in Māori; split test.

Layout, below the root: `captions.jsonl` (of captions.zip), one image a line:
`{"image/key": …, "image/locale": …, "de": {"caption": [ … ], "caption/tokenized": …}, …}`; and
`images/KEY.jpg` (of images.tgz).

Languages are named as the set names them; all are BCP-47, `quz` being Cusco Quechua and `fil`
Filipino. Could not be confirmed: counts of single languages, and that no caption is empty (one
program that reads the set steps over those).
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
    """Rows in these languages, image by image."""
    path = find_file(root, TEXTS)
    first: dict[str, int] = {}
    for line, text in lines(path):
        place = f"{path} line {line}"
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: not JSON ({error}); fetch the file anew") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: {type(record).__name__} where an object is needed")
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
