"""Stamps of Tux Paint: photos and drawings, described by people in many languages; a test set.

The stamps are pictures of things for children to paint with, in one Debian package of 161 MB. The
bundled native and the packs that come of emoji have seen none of them, neither picture nor
sentence, so they test what was learned outside of its domain. All rows are of the split `test`.

- A description is there once: of stamps that say the same in English, however upper and lower
  case are, the first in the package's order is kept. Variants (another frog, mirrored, other
  colours) would make each other's query unanswerable.
- A translation that says the same as the English is left out, since an untranslated text looks
  no different; English of another country keeps it.
- Two stamps may still have one translation: where Czech has one word for duck and drake, the
  second is a harder query, as it is for people.
- Full stops at the end are dropped, in all scripts; exclamations and whole sentences stay.
- A stamp that is all white, to be coloured, could not be seen on white and is left out.
- The folder of a stamp is part of its image_id: `symbols/…` holds letters, coins and signs, for
  those who want to leave these out.

"""

import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import resvg_py
from PIL import Image

from mla_ray.data.parquet import write_parquet
from mla_ray.datasets import debian
from mla_ray.datasets.debian import Unavailable
from mla_ray.model.language import UnknownLanguage, canonical
from mla_ray.model.text import normalized
from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.storage import as_path

PACKAGE = "tuxpaint-stamps-default"
SIZE = 128
"""Pixels of a side."""
MARGIN = 9
"""On each side, 7 %: stamps are cut close, and are framed here as emoji are."""
MAX_BYTES = 16 << 20
"""Of a picture or text in the package."""
CAPTIONS = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.binary()),
        ("language", pa.string()),
        ("caption", pa.string()),
        ("split", pa.string()),
    ]
)
_FILE = re.compile(r"\./usr/share/tuxpaint/stamps/(?P<stamp>.+)\.(?P<kind>txt|png|svg)")
_LINE = re.compile(r"(?P<locale>[\w@]+)\.utf8=(?P<text>.*)")
# Where exchanging "_" for "-" is not enough.
_LANGUAGES: Mapping[str, str] = MappingProxyType(
    {"zh_CN": "zh", "sr@latin": "sr-Latn", "ca@valencia": "ca-valencia"}
)
_FULL_STOPS = " .。।|۔։።។"
_WHITE = 250
_DRAWN = 4 * SIZE
"""Pixels of an SVG's longer side, before what is empty is cut off."""


@dataclass(frozen=True)
class Stamp:
    """A description in all its languages by BCP-47 code, and the picture, PNG-encoded on white."""

    name: str
    texts: Mapping[str, str]
    image: bytes


def fetch(folder: Path) -> Path:
    """The package in `folder`, downloaded by apt-get (161 MB) unless one is there."""
    return debian.fetch(PACKAGE, folder)


def stamps(deb: Path, report: Report = lambda progress: None) -> list[Stamp]:
    """The stamps of a package in its order, one of each English description."""
    texts: dict[str, dict[str, str]] = {}
    pictures: dict[str, tuple[str, bytes]] = {}
    for path, content in _files(deb):
        name, kind = path["stamp"], path["kind"]
        if kind == "txt":
            texts[name] = _texts(content.decode("utf-8-sig"))
        elif kind == "png" or name not in pictures:
            pictures[name] = (kind, content)  # PNG before SVG: it needs no fonts for its letters
    drawn: dict[str, Stamp] = {}
    for name, described in texts.items():
        english = described["en"].casefold()
        if not english or english in drawn or name not in pictures:
            continue
        if image := _png(_picture(*pictures[name])):
            drawn[english] = Stamp(name, described, image)
            report(Progress("drawing stamps", len(drawn), None))
    if not drawn:
        raise Unavailable(f"{deb} holds no stamps; delete it to fetch it anew")
    return list(drawn.values())


def table(deb: Path, languages: Sequence[str], report: Report = lambda progress: None) -> pa.Table:
    """The caption table: a row for each stamp and each of the languages that describe it.

    Args:
        deb: the package.
        languages: BCP-47 codes, `en` among them, if wanted; one without any text is a ValueError.
        report: called as stamps are drawn.

    """
    described = stamps(deb, report)
    known = {language for stamp in described for language in stamp.texts}
    if unknown := [language for language in languages if language not in known]:
        raise ValueError(f"no stamp is described in {unknown[0]!r}; {', '.join(sorted(known))} are")
    return captions(described, languages)


def captions(described: Sequence[Stamp], languages: Sequence[str]) -> pa.Table:
    """`table` of stamps that are read already; a language without any text has no rows."""
    rows = [
        {
            "image_id": stamp.name,
            "image": stamp.image,
            "language": language,
            "caption": stamp.texts[language],
            "split": "test",
        }
        for stamp in described
        for language in languages
        if language in stamp.texts
    ]
    return pa.Table.from_pylist(rows, CAPTIONS)


def write_table(
    deb: Path, languages: Sequence[str], path: Path, report: Report = lambda progress: None
) -> pa.Table:
    """Write `table` as Parquet, whole or not at all, and return it."""
    written = table(deb, languages, report)
    # With room for every picture in the dictionary, each is in the file once, not once a language.
    write_parquet(as_path(path), written, dictionary_pagesize_limit=1 << 30)
    return written


def _files(deb: Path) -> Iterator[tuple[re.Match[str], bytes]]:
    """Texts and pictures of a package: their path, matched, and their content.

    Nothing is written to disk, links are not followed, and of the 226 MB of files, most of them
    sounds, memory holds one at a time.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(deb.resolve())]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise Unavailable("dpkg-deb is not on PATH: it needs Debian or Ubuntu") from None
    with process:
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("dpkg-deb was started without pipes")
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = _FILE.fullmatch(member.name)
                    if not path or not member.isfile():
                        continue
                    if member.size > MAX_BYTES:
                        raise ValueError(f"{deb}: {member.name} has {member.size:,} bytes; refused")
                    if file := archive.extractfile(member):
                        yield path, file.read()
            while process.stdout.read(1 << 20):  # the padding, or dpkg-deb ends with an error
                pass
        except tarfile.ReadError as error:
            raise _unreadable(deb, process.stderr.read() or str(error).encode()) from error
        finally:
            process.stdout.close()
        if process.wait():
            raise _unreadable(deb, process.stderr.read())


def _unreadable(deb: Path, reason: bytes) -> Unavailable:
    why = reason.decode(errors="replace").strip()
    return Unavailable(f"{deb} can not be read ({why}); delete it to fetch it anew")


def _texts(document: str) -> dict[str, str]:
    """A description by language: the first line is English, the others say what they are."""
    first, *others = document.splitlines() or [""]
    english = _tidy(first)
    texts = {"en": english}
    for line in others:
        if not (translation := _LINE.fullmatch(line)):
            continue
        locale, text = translation["locale"], _tidy(translation["text"])
        try:
            language = canonical(_LANGUAGES.get(locale, locale))
        except UnknownLanguage:
            continue
        copied = text.casefold() == english.casefold() and not language.startswith("en-")
        if text and not copied:
            texts.setdefault(language, text)
    return texts


def _tidy(text: str) -> str:
    """As all text, and without full stops around it.

    In Arabic and Hebrew some full stops were typed on the wrong side, so both are looked at.
    """
    return normalized(text).strip(_FULL_STOPS)


def _picture(kind: str, content: bytes) -> Image.Image:
    if kind == "svg":
        content = resvg_py.svg_to_bytes(
            content.decode(), width=_DRAWN, height=_DRAWN, dpi=96, skip_system_fonts=True
        )
    return Image.open(BytesIO(content), formats=["PNG"]).convert("RGBA")


def _png(picture: Image.Image) -> bytes | None:
    """What is not transparent, in the middle of a white square, PNG-encoded; None if all white."""
    picture = picture.crop(picture.getchannel("A").getbbox())
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    scale = (SIZE - 2 * MARGIN) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    scaled = white.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(scaled, ((SIZE - width) // 2, (SIZE - height) // 2))
    if np.asarray(canvas).min() > _WHITE:
        return None
    buffer = BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()
