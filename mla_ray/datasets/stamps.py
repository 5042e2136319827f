"""Tux Paint stamps: photos and drawings with human descriptions in many languages, a test set.

Stamps are pictures that children place in their paintings. One Debian package of 161 MB holds them.
The bundled native and the packs trained on emoji never saw these pictures or texts, so the stamps
test retrieval outside the training domain. All rows have the split `test`.

- Each English description occurs once, regardless of case. The first stamp in package order is
  kept. Variants (another frog, a mirrored one, other colors) would make a query ambiguous.
- A translation that equals the English text is skipped, because an untranslated text looks the
  same. Regional variants of English keep it.
- Two stamps may still share a translation. Czech has one word for duck and drake, for example. The
  second stamp is then a harder query, as it is for people.
- Full stops at the end are removed in all scripts. Exclamation marks and whole sentences are kept.
- A stamp that is all white (a coloring picture) is invisible on white and is skipped.
- The image_id starts with the folder of the stamp. The folder `symbols/` holds letters, coins and
  signs, so these can be filtered out.
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
"""Width and height of an image in pixels."""
MARGIN = 9
"""Pixels of margin on each side (7 %). Stamps are cropped tightly, and emoji have such a margin."""
MAX_BYTES = 16 << 20
"""Maximum size of a picture or text in the package, in bytes."""
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
# Locales that `canonical` does not map to the right BCP-47 code.
_LANGUAGES: Mapping[str, str] = MappingProxyType(
    {"zh_CN": "zh", "sr@latin": "sr-Latn", "ca@valencia": "ca-valencia"}
)
_FULL_STOPS = " .。।|۔։።។"
_WHITE = 250
_DRAWN = 4 * SIZE
"""Width and height in pixels at which an SVG is rendered, before empty borders are cropped."""


@dataclass(frozen=True)
class Stamp:
    """A stamp: its name, its description by BCP-47 code, and its picture as PNG on white."""

    name: str
    texts: Mapping[str, str]
    image: bytes


def fetch(folder: Path) -> Path:
    """Return the path of the package in `folder`, and download it (161 MB) if it is missing.

    Raises:
        Unavailable: apt-get failed or is not installed.

    """
    return debian.fetch(PACKAGE, folder)


def stamps(deb: Path, report: Report = lambda progress: None) -> list[Stamp]:
    """Return the stamps of a package in package order, one per English description.

    Args:
        deb: The package.
        report: Called for each drawn stamp.

    Raises:
        Unavailable: The package cannot be read or has no stamps.
        ValueError: A file in the package is larger than `MAX_BYTES`.

    """
    texts: dict[str, dict[str, str]] = {}
    pictures: dict[str, tuple[str, bytes]] = {}
    for path, content in _files(deb):
        name, kind = path["stamp"], path["kind"]
        if kind == "txt":
            texts[name] = _texts(content.decode("utf-8-sig"))
        elif kind == "png" or name not in pictures:
            pictures[name] = (kind, content)  # prefer PNG: an SVG needs fonts for its letters
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
    """Return the caption table, with one row per stamp and language that describes it.

    Args:
        deb: The package.
        languages: BCP-47 codes. Include `en` for English captions.
        report: Called for each drawn stamp.

    Raises:
        ValueError: No stamp is described in one of the languages.
        Unavailable: The package cannot be read or has no stamps.

    """
    described = stamps(deb, report)
    known = {language for stamp in described for language in stamp.texts}
    if unknown := [language for language in languages if language not in known]:
        raise ValueError(
            f"no stamp is described in {unknown[0]!r}; known: {', '.join(sorted(known))}"
        )
    return captions(described, languages)


def captions(described: Sequence[Stamp], languages: Sequence[str]) -> pa.Table:
    """Return the caption table of stamps that were already read.

    Unlike in `table`, a language without any description is no error. It has no rows.
    """
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
    """Write the caption table of `table` as a Parquet file, atomically, and return it."""
    written = table(deb, languages, report)
    # A large dictionary page stores each picture once instead of once per language.
    write_parquet(as_path(path), written, dictionary_pagesize_limit=1 << 30)
    return written


def _files(deb: Path) -> Iterator[tuple[re.Match[str], bytes]]:
    """Yield the matched path and the content of each text and picture of a package.

    Nothing is written to disk, and links are not followed. The package holds 226 MB of files, most
    of them sounds. One file at a time is in memory.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(deb.resolve())]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise Unavailable("dpkg-deb is not on PATH: use Debian or Ubuntu") from None
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
            while process.stdout.read(1 << 20):  # dpkg-deb fails if the padding is not read
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
    """Return a description by language. The first line is English, the others name their locale."""
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
    """Normalize a text and strip full stops from both ends.

    Some Arabic and Hebrew texts have their full stop on the wrong end.
    """
    return normalized(text).strip(_FULL_STOPS)


def _picture(kind: str, content: bytes) -> Image.Image:
    if kind == "svg":
        content = resvg_py.svg_to_bytes(
            content.decode(), width=_DRAWN, height=_DRAWN, dpi=96, skip_system_fonts=True
        )
    return Image.open(BytesIO(content), formats=["PNG"]).convert("RGBA")


def _png(picture: Image.Image) -> bytes | None:
    """Return the opaque part of a picture, centered on a white square, as PNG.

    Returns:
        The PNG bytes, or None if the image is all white.

    """
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
