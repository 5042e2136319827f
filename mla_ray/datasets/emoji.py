"""Emoji: drawings with human translations under free licenses, an 18 MB dataset.

The drawings come from four icon sets, the names and keywords from Unicode CLDR. All are npm
packages with pinned SHA-256 digests. Twemoji is the held-out drawing style: no training uses it.

The split is by concept (one emoji), seeded, and the same for every language. A hash selects 15 % of
the concepts for the test. Some emoji with different code points share a drawing or an English name:
OpenMoji draws a man walking like a person walking, and all sets draw one family for several. A test
concept that shares with a training concept, directly or through others, becomes a training concept.
If a language gives a training concept the name of a test concept, the tables omit that text.

Run this command after a package version changes, to find again which concepts share a drawing:

    python -m mla_ray.datasets.emoji data/emoji > mla_ray/datasets/emoji_alike.txt
"""

import hashlib
import json
import sys
import tarfile
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mla_ray.data.parquet import write_parquet
from mla_ray.datasets.drawings import Drawing
from mla_ray.datasets.npm import Package, fetch
from mla_ray.model.language import NOT_A_LANGUAGE
from mla_ray.model.text import identity, normalized
from mla_ray.runtime.processes import map_in_processes
from mla_ray.runtime.storage import as_path

TRAIN_STYLES = ("noto", "openmoji", "fluent")
TEST_STYLE = "twemoji"
STYLES = (*TRAIN_STYLES, TEST_STYLE)
ALIKE = Path(__file__).with_name("emoji_alike.txt")
"""Output of `drawn_alike`: one line per group of concepts that share drawings.

The file is kept because the search takes minutes and the packages are pinned.
"""
TEST_SHARE = 0.15
SIZE = 64  # width and height in pixels, the input size of the bundled native
# Twemoji fills its canvas. The drawings of the other three sets fill 94, 76 and 87 % of theirs, so
# Twemoji gets their mean margin on each side.
MARGINS = {"twemoji": 0.07}
DRAWN_TOGETHER = 128  # concepts; a process needs a second for them
SKIN_TONES = frozenset(f"1f3f{digit}" for digit in "bcdef")

PACKAGES = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "annotations": Package(
        "cldr-annotations-full",
        "48.2.0",
        "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    ),
    "derived": Package(
        "cldr-annotations-derived-full",
        "48.2.0",
        "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
    ),
}


@dataclass(frozen=True)
class Concept:
    """One emoji.

    Args:
        key: Its code points in hex, joined by "-", without U+FE0F.
        split: "train" or "test".

    """

    key: str
    split: str

    @property
    def skin_tone(self) -> bool:
        """Whether the emoji is a skin-tone variant."""
        return not SKIN_TONES.isdisjoint(self.key.split("-")[1:])


@dataclass(frozen=True)
class Label:
    """CLDR name and keywords of one emoji in one language."""

    name: str
    keywords: tuple[str, ...]

    @property
    def captions(self) -> list[str]:
        """The name, and all keywords as a second caption if they differ from the name."""
        listed = keyword_list(self.keywords)
        return [self.name] + ([listed] if listed and listed != self.name else [])


class Emoji:
    """The emoji dataset in a folder. Missing packages are downloaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archives = {name: fetch(package, folder) for name, package in PACKAGES.items()}
        self._labels: dict[str, dict[str, Label]] = {}

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """BCP-47 codes of the languages with CLDR annotations."""
        with tarfile.open(self.archives["annotations"]) as archive:
            names = (Path(name).parts for name in archive.getnames())
            folders = {p[2] for p in names if len(p) == 4 and p[1] == "annotations"}
            return tuple(sorted(folders - NOT_A_LANGUAGE))

    def labels(self, language: str) -> dict[str, Label]:
        """Return name and keywords by concept key.

        Raises:
            KeyError: CLDR has no emoji names in this language.

        """
        if language not in self._labels:  # cached because reading a compressed archive is slow
            self._labels[language] = self._read_labels(language)
        return self._labels[language]

    def _read_labels(self, language: str) -> dict[str, Label]:
        labels: dict[str, Label] = {}
        for archive, section in (("annotations", "annotations"), ("derived", "annotationsDerived")):
            try:
                document = _read_json(
                    self.archives[archive], f"{section}/{language}/annotations.json"
                )
            except KeyError:
                continue
            for emoji, entry in document[section]["annotations"].items():
                if "tts" in entry:
                    words = map(normalized, entry.get("default", ()))
                    keywords = tuple(word for word in words if "↑" not in word)
                    labels[_key(emoji)] = Label(normalized(entry["tts"][0]), keywords)
        if not labels:
            raise KeyError(
                f"CLDR has no emoji names for {language!r}; known: {', '.join(self.languages)}"
            )
        return labels

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """All emoji with an English name, a Twemoji drawing and at least two other drawings."""
        named = self.labels("en")
        drawn = [
            key
            for key in named
            if key in self._drawings[TEST_STYLE]
            and sum(key in self._drawings[style] for style in TRAIN_STYLES) >= 2
        ]
        # A hash gives a seeded order in which a new Unicode version moves few concepts between
        # splits.
        drawn.sort(key=lambda key: hashlib.sha256(f"mla-ray emoji split 0 {key}".encode()).digest())
        test = set(drawn[: round(len(drawn) * TEST_SHARE)])
        by_name = defaultdict(set)
        for key in drawn:
            by_name[identity(named[key].name)].add(key)
        drawings = [set(line.split()).intersection(drawn) for line in ALIKE.open()]
        test = _without_halves(test, [*drawings, *by_name.values()])
        return tuple(Concept(key, "test" if key in test else "train") for key in drawn)

    def texts(self, language: str) -> dict[str, list[str]]:
        """Return the captions of each concept by its key.

        A test concept has its name. A training concept has its name and its keywords, except texts
        that equal the name of a test concept. A language may use one name for two buttons, for
        example.
        """
        labels, held_out = self.labels(language), self.held_out_names(language)
        return {
            concept.key: [labels[concept.key].name]
            if concept.split == "test"
            else [t for t in labels[concept.key].captions if identity(t) not in held_out]
            for concept in self.concepts
            if concept.key in labels
        }

    def held_out_names(self, language: str) -> set[str]:
        """Return the names of the test concepts, as `identity` keys."""
        labels = self.labels(language)
        test = [concept.key for concept in self.concepts if concept.split == "test"]
        return {identity(labels[key].name) for key in test if key in labels}

    def styles(self, key: str) -> tuple[str, ...]:
        """Return the training styles that have a drawing of this concept."""
        return tuple(style for style in TRAIN_STYLES if key in self._drawings[style])

    def drawing(self, style: str, key: str) -> Drawing:
        """Return the drawing of a concept in a style."""
        return Drawing(self._drawings[style][key], MARGINS.get(style, 0.0))

    def draw(self, style: str, key: str, size: int) -> Image.Image:
        """Return one drawing as an RGBA image of `size` x `size` pixels, transparent around it."""
        return self.drawing(style, key).image(size)

    def pixels(self, style: str, key: str, size: int) -> npt.NDArray[np.uint8]:
        """Return one drawing on white, `[size, size, 3]` uint8."""
        return self.drawing(style, key).pixels(size)

    def png(self, style: str, key: str, size: int) -> bytes:
        """Return one drawing on white as PNG bytes."""
        return self.drawing(style, key).png(size)

    def drawn(self, progress: Callable[[int], None] | None = None) -> dict[str, bytes]:
        """Return the PNG images of the caption table by image id, `style/key`.

        The images are cached in `drawings-64.parquet`, so each is drawn once. Drawings of other
        versions of the packages are drawn again.

        Args:
            progress: Called with the number of concepts just drawn.

        """
        path = self.folder / f"drawings-{SIZE}.parquet"
        kept: dict[str, bytes] = {}
        table = pq.read_table(path) if path.exists() else pa.table({})
        versions = {b"packages": " ".join(PACKAGES[style].sha256 for style in STYLES).encode()}
        if table.schema.metadata == versions:
            cells = (table[name].to_pylist() for name in ("image_id", "image"))
            kept = dict(zip(*cells, strict=True))
        starts = range(0, len(self.concepts), DRAWN_TOGETHER)
        parts = [self.concepts[start : start + DRAWN_TOGETHER] for start in starts]
        lacking = [self._lacking(part, kept) for part in parts]
        if any(lacking):
            for part, pngs in zip(parts, map_in_processes(_pngs, lacking), strict=True):
                kept |= pngs
                if progress:
                    progress(len(part))
            columns = {"image_id": list(kept), "image": pa.array(kept.values(), pa.binary())}
            write_parquet(as_path(path), pa.table(columns).replace_schema_metadata(versions))
        elif progress:
            progress(len(self.concepts))
        return kept

    def _lacking(self, concepts: Sequence[Concept], kept: Container[str]) -> dict[str, Drawing]:
        """Return the drawings of the caption table that are not kept, by image id."""
        return {
            image_id: self.drawing(style, concept.key)
            for concept in concepts
            for style in ((TEST_STYLE,) if concept.split == "test" else self.styles(concept.key))
            if (image_id := f"{style}/{concept.key}") not in kept
        }

    @cached_property
    def _drawings(self) -> dict[str, dict[str, str]]:
        """SVG text by style and concept key."""
        return {style: _read_drawings(self.archives[style]) for style in STYLES}


def captions(
    emoji: Emoji, languages: Sequence[str], progress: Callable[[int], None] | None = None
) -> pa.Table:
    """Return the caption table of some languages.

    Training concepts are drawn in the three training styles, with name and keywords as captions.
    Test concepts are drawn in the held-out style, with the name as the caption.

    Args:
        emoji: The dataset.
        languages: BCP-47 codes. Include `en` for English captions.
        progress: Called with the number of concepts just drawn.

    """
    rows: dict[str, list[str]] = {n: [] for n in ("image_id", "language", "caption", "split")}
    images: list[bytes] = []
    texts = {language: emoji.texts(language) for language in languages}
    drawn = emoji.drawn(progress)
    for concept in emoji.concepts:
        test = concept.split == "test"
        for style in (TEST_STYLE,) if test else emoji.styles(concept.key):
            image = drawn[f"{style}/{concept.key}"]
            for language in languages:
                for text in texts[language].get(concept.key, ()):
                    rows["image_id"].append(f"{style}/{concept.key}")
                    rows["language"].append(language)
                    rows["caption"].append(text)
                    rows["split"].append(concept.split)
                    images.append(image)
    return pa.table({"image_id": rows["image_id"], "image": pa.array(images, pa.binary()), **rows})


def pairs(emoji: Emoji, language: str) -> pa.Table:
    """Return the translation table of a language.

    It pairs the names and the keyword lists of the training concepts with the English ones. A pair
    is omitted if one of its sides is the name of a test concept.
    """
    english, foreign = emoji.labels("en"), emoji.labels(language)
    held_out = emoji.held_out_names("en"), emoji.held_out_names(language)
    both = [
        texts
        for concept in emoji.concepts
        if concept.split == "train" and concept.key in foreign
        for texts in zip(english[concept.key].captions, foreign[concept.key].captions, strict=False)
        if not any(identity(text) in names for text, names in zip(texts, held_out, strict=True))
    ]
    both = list(dict.fromkeys(both))  # two emoji may have the same keywords
    sources, targets = zip(*both, strict=True)
    return pa.table({"source": sources, "target": targets, "language": [language] * len(both)})


def drawn_alike(
    emoji: Emoji, progress: Callable[[int], None] = lambda count: None
) -> list[list[str]]:
    """Return groups of concepts that share a pixel-identical drawing in any style.

    Sharing is transitive: a concept joins a group if it shares a drawing with one member. The
    search takes minutes.

    Args:
        emoji: The dataset.
        progress: Called with the number of concepts just compared.

    """
    first: dict[tuple[str, bytes], str] = {}
    group_of: dict[str, set[str]] = {}
    for concept in emoji.concepts:
        group_of[concept.key] = {concept.key}
        for style in (*emoji.styles(concept.key), TEST_STYLE):
            pixels = hashlib.sha256(emoji.pixels(style, concept.key, SIZE).tobytes()).digest()
            other = first.setdefault((style, pixels), concept.key)
            joined = group_of[concept.key] | group_of[other]
            group_of |= dict.fromkeys(joined, joined)
        progress(1)
    groups = {frozenset(group) for group in group_of.values() if len(group) > 1}
    return sorted(sorted(group) for group in groups)


def _pngs(drawings: Mapping[str, Drawing]) -> dict[str, bytes]:
    """Return drawings as PNG bytes by the same names, in the size of the caption table."""
    return {name: drawing.png(SIZE) for name, drawing in drawings.items()}


def _without_halves(test: set[str], groups: Iterable[set[str]]) -> set[str]:
    """Return the test concepts without those in a group that has a training concept.

    A shared drawing or name would leak such a test concept into the training.
    """
    groups = list(groups)
    while halves := [group for group in groups if test & group and not group <= test]:
        test = test.difference(*halves)
    return test


def _read_drawings(archive: Path) -> dict[str, str]:
    icons = _read_json(archive, "icons.json")
    characters = _read_json(archive, "chars.json")
    drawings = {}
    for code, name in characters.items():
        icon = icons["icons"].get(name)
        if icon is None:  # an alias of another icon
            icon = icons["icons"][icons["aliases"][name]["parent"]]
        width = icon.get("width", icons["width"])
        height = icon.get("height", icons["height"])
        drawings[_strip(code)] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
    return drawings


def _read_json(archive: Path, member: str) -> Any:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{member}")
        if file is None:
            raise KeyError(member)
        return json.load(file)


def _key(emoji: str) -> str:
    return _strip("-".join(f"{ord(character):04x}" for character in emoji))


def _strip(code: str) -> str:
    return "-".join(part for part in code.split("-") if part != "fe0f")


def keyword_list(keywords: Sequence[str]) -> str:
    """Return the keywords as one caption, separated by commas."""
    return ", ".join(keywords)


if __name__ == "__main__":
    for alike in drawn_alike(Emoji(Path(sys.argv[1]))):
        print(*alike)
