"""How well a language retrieves: captions of a table against its images."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mla_ray.data.feature_store import Features, encode_images, encode_texts
from mla_ray.evaluation.protocols import FULL, Figures, Protocol, intervals, resampled
from mla_ray.evaluation.recall import KS, Mask, Ranks, Subset, missing
from mla_ray.model.native import Native
from mla_ray.model.text import normalized
from mla_ray.model.tokenizers import Shares
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.progress import Advance

log = logging.getLogger(__name__)

BATCH = 256
SAME_PICTURE = 1e-4
"""Of a feature's length; nearer than that another is of the same picture, whose features differ by
1e-6 between batches.
"""
EncodeText = Callable[[Sequence[str]], Features]
UnknownTokens = Callable[[Sequence[str]], Shares]


@dataclass(frozen=True)
class Gallery:
    """The distinct images of a caption table and their frozen features [M, E]."""

    ids: list[str]
    features: Features

    @classmethod
    def of(cls, native: Native, captions: pa.Table, progress: Advance | None = None) -> "Gallery":
        """Of a table in memory, with the images' bytes; of one on disk `CaptionTable.gallery`."""
        first: dict[str, int] = {}
        for row, image_id in enumerate(captions["image_id"].to_pylist()):
            first.setdefault(image_id, row)
        column = captions["image"]
        images = (column[row].as_py() for row in first.values())
        return cls.encode(native, list(first), images, progress)

    @classmethod
    def encode(
        cls,
        native: Native,
        ids: list[str],
        images: Iterable[bytes],
        progress: Advance | None = None,
    ) -> "Gallery":
        """Of images that come one by one, in the order of `ids`; one batch of them is in memory."""
        features = np.empty((len(ids), native.dim), dtype=np.float32)
        coming, done = iter(images), 0
        while batch := list(islice(coming, BATCH)):
            features[done : done + len(batch)] = encode_images(native, batch, progress)
            done += len(batch)
        if done != len(ids):
            raise ValueError(f"{done:,} images came where {len(ids):,} were; read the table again")
        return cls(ids, features)

    def repeated(self) -> int:
        """How many images look like an earlier one: a caption cannot tell which of them it means.

        By features, so that the same picture in another file counts. Rows are compared with their
        neighbours along one direction, where equal ones lie together.
        """
        direction_E = np.random.default_rng(0).standard_normal(
            self.features.shape[1], dtype=np.float32
        )
        sorted_ME = self.features[np.argsort(self.features @ direction_E)]
        apart = np.linalg.norm(np.diff(sorted_ME, axis=0), axis=1)
        length = np.linalg.norm(sorted_ME[1:], axis=1)
        return int((apart < SAME_PICTURE * length).sum())


@dataclass(frozen=True)
class Evaluation:
    """Ranks of one language's captions, of which captions, and by which protocol.

    `unknown_tokens` [N] is the share of each caption's tokens that the language does not know.
    """

    language: str
    captions: list[str]
    image_ids: list[str]
    ranks: Ranks
    no_feature: Mask
    """Which captions [N] have none: it is zero or not finite, and counts as not found."""
    no_image: Mask
    """Of which captions [N] the image has none."""
    protocol: Protocol = FULL
    unknown_tokens: Shares | None = None

    def folds(self, mask: Mask | None = None) -> list[Ranks]:
        """The ranks of each gallery of the protocol; with a mask [N] of some captions."""
        return self.protocol.folds(self.ranks, mask)

    def figures(self, mask: Mask | None = None, ks: Sequence[int] = KS) -> Figures:
        """R@k, for `ks` besides 1, 5 and 10, and the ranks in the middle."""
        return Figures.of(self.folds(mask), ks)

    def as_dict(self, mask: Mask | None = None) -> dict[str, Any]:
        """Its recall in short, what had no feature, what was unknown; `printed` says more."""
        figures = self.figures(mask).recall.as_dict()
        figures = {"language": self.language, **figures, "missing_features": self.missing(mask)}
        return figures | self.unknown_as_dict()

    def missing(self, mask: Mask | None = None) -> dict[str, int]:
        """How many captions, and how many of their images, have no feature."""
        some = np.ones(len(self.captions), np.bool_) if mask is None else mask
        images = {self.image_ids[row] for row in np.flatnonzero(self.no_image & some)}
        return {"captions": int((self.no_feature & some).sum()), "images": len(images)}

    def unknown(self) -> dict[str, float]:
        """Share of the captions with an unknown token ("some"), and with no other ("all")."""
        if self.unknown_tokens is None:
            return {}
        shares = {"some": self.unknown_tokens > 0, "all": self.unknown_tokens == 1}
        return {name: round(float(mask.mean()), 4) for name, mask in shares.items()}

    def unknown_as_dict(self) -> dict[str, Any]:
        """`unknown` under its name, or nothing if it was not counted."""
        return {"unknown_tokens": shares} if (shares := self.unknown()) else {}


def evaluate(
    encode: EncodeText,
    language: str,
    captions: pa.Table,
    gallery: Gallery,
    progress: Advance | None = None,
    *,
    protocol: Protocol = FULL,
    ranked: Advance | None = None,
    unknown: UnknownTokens | None = None,
) -> Evaluation:
    """Rank the captions of `language` against the images that they caption.

    A caption or image without a feature counts as not found; a warning names the first.

    Args:
        encode: texts to features [B, E]: a pack's `encode_text`, or the native's.
        language: BCP-47.
        captions: columns image_id, language, caption; rows of other languages are passed over.
        gallery: has every image of those rows; images no such row captions are left out.
        progress: called with the number of captions just encoded.
        protocol: its galleries are cut by the order in which these rows first name the images.
        ranked: called with the number of captions just scored, twice for every caption.
        unknown: texts to the share of each one's tokens that is unknown: a pack's `unknown_tokens`,
            or the native's. They are counted if it is given.

    """
    rows = rows_of(captions, language, protocol)
    texts, image_ids = rows["caption"].to_pylist(), rows["image_id"].to_pylist()
    used = list(dict.fromkeys(image_ids))
    place = {image_id: index for index, image_id in enumerate(used)}
    in_gallery = {image_id: index for index, image_id in enumerate(gallery.ids)}
    images = Subset(gallery.features, np.array([in_gallery[image_id] for image_id in used]))
    features = np.empty((len(texts), gallery.features.shape[1]), dtype=np.float32)
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        features[start : start + BATCH] = np.asarray(encode(batch), dtype=np.float32)
        if progress:
            progress(len(batch))
    image_of = np.array([place[image_id] for image_id in image_ids])
    no_feature = missing(features)
    no_image = missing(gallery.features)[images.index][image_of]
    ranks = protocol.rank(features, images, image_of, ranked)
    shares = None if unknown is None else unknown(texts)
    result = Evaluation(language, texts, image_ids, ranks, no_feature, no_image, protocol, shares)
    for what, names, lost, of in (
        ("captions", texts, no_feature, f"the pack for {language!r}"),
        ("images", image_ids, no_image, "the native"),
    ):
        if count := result.missing()[what]:
            log.warning(
                "%d %s have no feature (it is zero or not finite) and count as not found, the "
                "first is %r; verify %s",
                *(count, what, names[np.flatnonzero(lost)[0]], of),
            )
    return result


def rows_of(captions: pa.Table, language: str, protocol: Protocol) -> pa.Table:
    """The rows that a protocol measures a language by; a ValueError if it is not defined on them.

    It is quick: ask before images are encoded.
    """
    rows = captions.filter(pc.equal(captions["language"], language))
    if not rows.num_rows:
        raise ValueError(f"no caption of {language!r} to evaluate")
    rows = rows.filter(pa.array(protocol.chosen(rows["image_id"].to_pylist())))
    protocol.check(language, len(pc.unique(rows["image_id"])), rows.num_rows)
    return rows


def printed(
    evaluations: Sequence[Evaluation], ks: Sequence[int] = KS, *, with_intervals: bool = False
) -> dict[str, Any]:
    """What `mla evaluate --json` prints: a language's figures; of several, the mean beside them.

    Intervals of the mean are of samples in which all languages have the same images drawn, as far
    as their rows name the same images in the same order.
    """
    protocol = evaluations[0].protocol
    figures = [each.figures(ks=ks) for each in evaluations]
    drawn = [resampled(each.folds(), ks) for each in evaluations] if with_intervals else []

    def as_shown(of: Figures, samples: Sequence[npt.NDArray[np.float64]]) -> dict[str, Any]:
        named = of.named()
        shown = of.as_dict() | {"published": {name: named[name] for name in protocol.published}}
        return shown | ({"intervals": intervals(np.mean(samples, 0), ks)} if samples else {})

    languages = [
        {
            "language": each.language,
            "protocol": protocol.name,
            **as_shown(of, drawn[n : n + 1]),
            "missing_features": each.missing(),
        }
        | each.unknown_as_dict()
        for n, (each, of) in enumerate(zip(evaluations, figures, strict=True))
    ]
    if len(languages) == 1:
        return languages[0]
    mean = as_shown(Figures.mean(figures), drawn)
    return {"protocol": protocol.name, "languages": languages, "mean": mean}


def encode_query(
    native: Native, packs: Mapping[str, LanguagePack], language: str, texts: list[str]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Features [B, E] of texts in a language: the native's for English, a pack's for others."""
    texts = [normalized(text) for text in texts]
    if language == "en":
        return encode_texts(native, texts)
    return packs[language].encode_text(texts).cpu().numpy()


def unknown_in(
    native: Native, packs: Mapping[str, LanguagePack], language: str, texts: list[str]
) -> Shares:
    """Share of each text's tokens that is unknown [B], 0 to 1: to the native, or to a pack."""
    return (native if language == "en" else packs[language]).unknown_tokens(texts)
