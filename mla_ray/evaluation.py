"""How well a language retrieves: captions of a table against its images.

May import: `features`, `retrieval`, `native`; never Ray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mla_ray.features import Features, Progress, encode_images
from mla_ray.native import Native
from mla_ray.retrieval import Mask, Ranks, rank

BATCH = 256
EncodeText = Callable[[Sequence[str]], Features]


@dataclass(frozen=True)
class Gallery:
    """The distinct images of a caption table and their frozen features [M, E]."""

    ids: list[str]
    features: Features

    @classmethod
    def of(cls, native: Native, captions: pa.Table, progress: Progress | None = None) -> "Gallery":
        images = dict(
            zip(captions["image_id"].to_pylist(), captions["image"].to_pylist(), strict=True)
        )
        return cls(list(images), encode_images(native, list(images.values()), progress))


@dataclass(frozen=True)
class Evaluation:
    """Ranks of one language's captions, and of which captions."""

    language: str
    captions: list[str]
    image_ids: list[str]
    ranks: Ranks

    def as_dict(self, mask: Mask | None = None) -> dict[str, Any]:
        """What `mla evaluate --json` prints."""
        return {"language": self.language, **self.ranks.recall(mask).as_dict()}


def evaluate(
    encode: EncodeText,
    language: str,
    captions: pa.Table,
    gallery: Gallery,
    progress: Progress | None = None,
) -> Evaluation:
    """Rank the captions of `language` against the images that they caption.

    Args:
        encode: texts to features [B, E]: a pack's `encode_text`, or the native's.
        language: BCP-47.
        captions: columns image_id, language, caption; rows of other languages are passed over.
        gallery: has every image of those rows; images no such row captions are left out.
        progress: called with the number of captions just encoded.

    """
    rows = captions.filter(pa.compute.equal(captions["language"], language))
    if not rows.num_rows:
        raise ValueError(f"no caption of {language!r} to evaluate")
    texts, image_ids = rows["caption"].to_pylist(), rows["image_id"].to_pylist()
    used = list(dict.fromkeys(image_ids))
    place = {image_id: index for index, image_id in enumerate(used)}
    in_gallery = {image_id: index for index, image_id in enumerate(gallery.ids)}
    images = gallery.features[[in_gallery[image_id] for image_id in used]]
    parts = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        parts.append(np.asarray(encode(batch), dtype=np.float32))
        if progress:
            progress(len(batch))
    image_of = np.array([place[image_id] for image_id in image_ids])
    return Evaluation(language, texts, image_ids, rank(np.concatenate(parts), images, image_of))
