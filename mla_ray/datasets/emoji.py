"""Emoji: real drawings with real human translations, under free licences, in 18 MB.

Drawings come from four icon sets, names and keywords from Unicode CLDR, all fetched from npm by
name and checked against pinned SHA-256 sums. The split is by concept (one emoji), seeded: 15 % are
test concepts. Twemoji is the held-out drawing style: nothing is ever trained on it.

"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image

from mla_ray.datasets.npm import Package, fetch
from mla_ray.model.language import NOT_A_LANGUAGE

TRAIN_STYLES = ("noto", "openmoji", "fluent")
TEST_STYLE = "twemoji"
STYLES = (*TRAIN_STYLES, TEST_STYLE)
TEST_SHARE = 0.15
SIZE = 64  # pixels of a side, the bundled native's
# Twemoji fills its canvas; the drawings of the other three reach over 94, 76 and 87 % of theirs.
# With their mean margin on each side it is framed as they are.
MARGINS = {"twemoji": 0.07}
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
    """One emoji. `key` is its code points in hex joined by '-', without U+FE0F."""

    key: str
    split: str

    @property
    def skin_tone(self) -> bool:
        return not SKIN_TONES.isdisjoint(self.key.split("-")[1:])


@dataclass(frozen=True)
class Label:
    """What CLDR says of one emoji in one language."""

    name: str
    keywords: tuple[str, ...]

    @property
    def captions(self) -> list[str]:
        """The name, and all keywords as one caption where they say more than the name."""
        listed = keyword_list(self.keywords)
        return [self.name] + ([listed] if listed and listed != self.name else [])


class Emoji:
    """The data set in `folder`; what is missing there is fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archives = {name: fetch(package, folder) for name, package in PACKAGES.items()}

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """BCP-47 codes that CLDR has annotations for."""
        with tarfile.open(self.archives["annotations"]) as archive:
            names = (Path(name).parts for name in archive.getnames())
            found = {p[2] for p in names if len(p) == 4 and p[1] == "annotations"}
            return tuple(sorted(found - NOT_A_LANGUAGE))

    def labels(self, language: str) -> dict[str, Label]:
        """Name and keywords by concept key; a language without any is a KeyError."""
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
                    keywords = tuple(word for word in entry.get("default", ()) if "↑" not in word)
                    labels[_key(emoji)] = Label(entry["tts"][0], keywords)
        if not labels:
            raise KeyError(
                f"CLDR has no emoji names for {language!r}; known: {', '.join(self.languages)}"
            )
        return labels

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """Every emoji with an English name, a Twemoji drawing and at least two others."""
        named = self.labels("en")
        drawn = [
            key
            for key in named
            if key in self._drawings[TEST_STYLE]
            and sum(key in self._drawings[style] for style in TRAIN_STYLES) >= 2
        ]
        # Ordered by hash: seeded, and a later Unicode version moves few concepts between splits.
        drawn.sort(key=lambda key: hashlib.sha256(f"mla-ray emoji split 0 {key}".encode()).digest())
        n_test = round(len(drawn) * TEST_SHARE)
        return tuple(
            Concept(key, "test" if rank < n_test else "train") for rank, key in enumerate(drawn)
        )

    def styles(self, key: str) -> tuple[str, ...]:
        """The training styles that draw this concept."""
        return tuple(style for style in TRAIN_STYLES if key in self._drawings[style])

    def draw(self, style: str, key: str, size: int) -> Image.Image:
        """One drawing as an RGBA image of `size` x `size` pixels, transparent where nothing is."""
        margin = round(size * MARGINS.get(style, 0.0))
        svg = self._drawings[style][key]
        png = resvg_py.svg_to_bytes(svg, width=size - 2 * margin, skip_system_fonts=True)
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(Image.open(BytesIO(png)).convert("RGBA"), (margin, margin))
        return canvas

    def pixels(self, style: str, key: str, size: int) -> npt.NDArray[np.uint8]:
        """One drawing on white, [S, S, 3]."""
        canvas = Image.new("RGBA", (size, size), "white")
        canvas.alpha_composite(self.draw(style, key, size))
        return np.asarray(canvas.convert("RGB"))

    def png(self, style: str, key: str, size: int) -> bytes:
        """One drawing on white, PNG-encoded."""
        buffer = BytesIO()
        Image.fromarray(self.pixels(style, key, size)).save(buffer, "PNG")
        return buffer.getvalue()

    def drawn(self, progress: Callable[[int], None] | None = None) -> dict[str, bytes]:
        """The PNGs of a caption table by image id, `style/key`; drawn once and kept.

        `progress` is called with the number of concepts just drawn.
        """
        path = self.folder / f"drawings-{SIZE}.parquet"
        kept: dict[str, bytes] = {}
        if path.exists():
            table = pq.read_table(path)
            columns = (table[name].to_pylist() for name in ("image_id", "image"))
            kept = dict(zip(*columns, strict=True))
        before = len(kept)
        for concept in self.concepts:
            test = concept.split == "test"
            for style in (TEST_STYLE,) if test else self.styles(concept.key):
                if (image_id := f"{style}/{concept.key}") not in kept:
                    kept[image_id] = self.png(style, concept.key, SIZE)
            if progress:
                progress(1)
        if len(kept) > before:
            scratch = path.with_suffix(".tmp")
            table = {"image_id": list(kept), "image": pa.array(kept.values(), pa.binary())}
            pq.write_table(pa.table(table), scratch)
            scratch.replace(path)
        return kept

    @cached_property
    def _drawings(self) -> dict[str, dict[str, str]]:
        """SVG text by style and concept key."""
        return {style: _read_drawings(self.archives[style]) for style in STYLES}


def captions(
    emoji: Emoji, languages: Sequence[str], progress: Callable[[int], None] | None = None
) -> pa.Table:
    """The caption table of some languages (`en` among them, if wanted).

    Training concepts in the three training styles, each with its name and its keywords; test
    concepts in the held-out style, each with its name.
    """
    rows: dict[str, list[str]] = {n: [] for n in ("image_id", "language", "caption", "split")}
    images: list[bytes] = []
    labels = {language: emoji.labels(language) for language in languages}
    drawn = emoji.drawn(progress)
    for concept in emoji.concepts:
        test = concept.split == "test"
        for style in (TEST_STYLE,) if test else emoji.styles(concept.key):
            image = drawn[f"{style}/{concept.key}"]
            for language in languages:
                label = labels[language].get(concept.key)
                if label is None:
                    continue
                texts = [label.name] if test else label.captions
                for text in texts:
                    rows["image_id"].append(f"{style}/{concept.key}")
                    rows["language"].append(language)
                    rows["caption"].append(text)
                    rows["split"].append(concept.split)
                    images.append(image)
    return pa.table({"image_id": rows["image_id"], "image": pa.array(images, pa.binary()), **rows})


def pairs(emoji: Emoji, language: str) -> pa.Table:
    """The translation table of a language: names and keyword lists of the training concepts."""
    english, foreign = emoji.labels("en"), emoji.labels(language)
    both = [
        texts
        for concept in emoji.concepts
        if concept.split == "train" and concept.key in foreign
        for texts in zip(english[concept.key].captions, foreign[concept.key].captions, strict=False)
    ]
    both = list(dict.fromkeys(both))  # two emoji may have the same keywords
    sources, targets = zip(*both, strict=True)
    return pa.table({"source": sources, "target": targets, "language": [language] * len(both)})


def _read_drawings(archive: Path) -> dict[str, str]:
    icons = _read_json(archive, "icons.json")
    characters = _read_json(archive, "chars.json")
    drawings = {}
    for code, name in characters.items():
        icon = icons["icons"].get(name)
        if icon is None:  # an alias: another name for an icon that is there
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
    """Keywords as one caption."""
    return ", ".join(keywords)
