"""Translation pairs of a caption table in which pictures have captions in English and another
language: what is said of a picture in both says the same.
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


def pairs_of_captions(
    captions: str | Path, language: str, folder: str | Path, *, skip_invalid: bool = False
) -> str:
    """The path of a translation table of a caption table's training rows, written to `folder`.

    The n-th caption of a picture goes with its n-th English one; if there are fewer of these, they
    are gone through again. A table without a column `split` is all for training. It is written
    once for the same captions.

    Raises:
        InvalidTable: a row is bad, or no picture has captions in both languages.

    """
    language = canonical(language)
    stream = Stream([captions], COLUMNS, {"split": TRAIN}, {}, [ENGLISH, language])
    digests = json.dumps([fingerprint(file) for file in stream.files])  # of every part
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
    pairs = [
        {"source": of[ENGLISH][number % len(of[ENGLISH])], "target": target, "language": language}
        for of in said.values()
        for number, target in enumerate(of[language])
        if of[ENGLISH]
    ]
    if not pairs:
        raise stream.invalid(
            f"no picture of split {TRAIN!r} has captions in both {ENGLISH!r} and {language!r}, of "
            "which pairs could be made; give a translation table (--pairs)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(path, pa.Table.from_pylist(pairs))
    return str(path)
