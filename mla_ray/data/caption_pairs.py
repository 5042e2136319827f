"""Translation pairs from a caption table whose images have captions in two languages.

The English caption and the other caption of an image serve as translations of each other.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pyarrow as pa

from mla_ray.data.blocks import fingerprint
from mla_ray.data.parquet import write_parquet
from mla_ray.data.table_reader import Stream
from mla_ray.model.language import ENGLISH, canonical
from mla_ray.runtime.storage import as_path

COLUMNS = ("image_id", "language", "caption", "split")
TRAIN = "train"
RULE = 2
"""Version of the rule below, part of the file name's hash. Rule 1 kept repeated pairs."""


def pairs_of_captions(
    captions: str | Path, language: str, folder: str | Path, *, skip_invalid: bool = False
) -> str:
    """Write a translation table from the training rows of a caption table.

    The n-th caption of an image is paired with its n-th English caption. If an image has fewer
    English captions, these are reused in order. A pair that several images have is written once.
    In a table without a `split` column, all rows are training rows. The file name contains a hash
    of the caption files and of `skip_invalid`. If this file exists, it is not written again.

    Args:
        captions: Caption table, a path or URL.
        language: Target language of the pairs.
        folder: Folder for the new file.
        skip_invalid: Skip bad rows instead of raising.

    Returns:
        Path of the translation table.

    Raises:
        InvalidTable: A row is bad and `skip_invalid` is False, or no image has captions in both
            languages.

    """
    language = canonical(language)
    stream = Stream([captions], COLUMNS, {"split": TRAIN}, {}, [ENGLISH, language])
    # One per part. A file that was written with `skip_invalid` is not valid without it.
    skip = ["skip"] if skip_invalid else []
    digests = json.dumps([RULE, *map(fingerprint, stream.files), *skip])
    digest = hashlib.sha256(digests.encode()).hexdigest()[:16]
    path = as_path(folder) / f"{language}-{digest}.parquet"
    if path.exists():
        return str(path)
    said: dict[str, dict[str, list[str]]] = defaultdict(lambda: {ENGLISH: [], language: []})
    rows = 0
    for chunk in stream:
        rows += chunk.num_rows
        cells = (chunk[column].to_pylist() for column in COLUMNS)
        for image_id, tag, caption, split in zip(*cells, strict=True):
            if split == TRAIN and tag in (ENGLISH, language):
                said[image_id][tag].append(caption)
    stream.check(rows, skip_invalid)
    pairs = dict.fromkeys(
        (of[ENGLISH][number % len(of[ENGLISH])], target)
        for of in said.values()
        for number, target in enumerate(of[language])
        if of[ENGLISH]
    )
    if not pairs:
        raise stream.invalid(
            f"no picture of split {TRAIN!r} has captions in both {ENGLISH!r} and {language!r}, so "
            "no pairs can be made; give a translation table (--pairs)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [{"source": source, "target": to, "language": language} for source, to in pairs]
    write_parquet(path, pa.Table.from_pylist(table))
    return str(path)
