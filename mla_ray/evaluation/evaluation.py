"""Evaluation of a language: rank the captions of a table against its images."""

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
"""Maximum distance between features of the same picture, relative to the length of the feature.

Features of one picture differ by 1e-6 between batches.
"""
EncodeText = Callable[[Sequence[str]], Features]
UnknownTokens = Callable[[Sequence[str]], Shares]


@dataclass(frozen=True)
class Gallery:
    """Distinct images of a caption table, with their frozen features `[M, E]` float32."""

    ids: list[str]
    features: Features

    @classmethod
    def of(cls, native: Native, captions: pa.Table, progress: Advance | None = None) -> "Gallery":
        """Encode the distinct images of a table in memory, whose column `image` holds bytes.

        For a table on disk, use `CaptionTable.gallery`.

        Args:
            native: Model that encodes the images.
            captions: Columns image_id and image. The first row of an id has its image.
            progress: Called with the number of images just encoded.

        """
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
        """Encode images from an iterator, with one batch of images in memory.

        Args:
            native: Model that encodes the images.
            ids: Image ids.
            images: Encoded images (such as PNG) in the order of `ids`.
            progress: Called with the number of images just encoded.

        Raises:
            ValueError: The numbers of images and ids differ, or an image cannot be decoded.

        """
        features = np.empty((len(ids), native.dim), dtype=np.float32)
        coming, done = iter(images), 0
        while batch := list(islice(coming, BATCH)):
            features[done : done + len(batch)] = encode_images(native, batch, progress)
            done += len(batch)
        if done != len(ids):
            raise ValueError(f"found {done:,} images, expected {len(ids):,}; read the table again")
        return cls(ids, features)

    def repeated(self) -> int:
        """Count the images that look like an earlier one, which makes their captions ambiguous.

        Features are compared, so copies of a picture in different files count. The features are
        sorted by their projection onto a random direction, and only neighbors are compared. Equal
        features are neighbors in this order.
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
    """Ranks of one language's captions by a protocol.

    `captions` and `image_ids` have one entry per caption. `unknown_tokens`, `[N]`, is the share of
    each caption's tokens that the language does not know, or None if it was not counted.
    """

    language: str
    captions: list[str]
    image_ids: list[str]
    ranks: Ranks
    no_feature: Mask
    """`[N]` bool: captions without a feature. It is zero or not finite, and counts as not found."""
    no_image: Mask
    """`[N]` bool: captions whose image has no feature."""
    protocol: Protocol = FULL
    unknown_tokens: Shares | None = None

    def folds(self, mask: Mask | None = None) -> list[Ranks]:
        """Return the ranks per gallery of the protocol.

        Args:
            mask: `[N]` bool that selects captions. None selects all.

        """
        return self.protocol.folds(self.ranks, mask)

    def figures(self, mask: Mask | None = None, ks: Sequence[int] = KS) -> Figures:
        """Compute R@k, the median rank and the mean rank.

        Args:
            mask: `[N]` bool that selects captions. None selects all.
            ks: Values of k, in addition to 1, 5 and 10.

        """
        return Figures.of(self.folds(mask), ks)

    def as_dict(self, mask: Mask | None = None) -> dict[str, Any]:
        """Return the recall and the counts of missing features and unknown tokens.

        `printed` returns more figures.
        """
        figures = self.figures(mask).recall.as_dict()
        figures = {"language": self.language, **figures, "missing_features": self.missing(mask)}
        return figures | self.unknown_as_dict()

    def missing(self, mask: Mask | None = None) -> dict[str, int]:
        """Return how many captions, and how many of their distinct images, have no feature."""
        some = np.ones(len(self.captions), np.bool_) if mask is None else mask
        images = {self.image_ids[row] for row in np.flatnonzero(self.no_image & some)}
        return {"captions": int((self.no_feature & some).sum()), "images": len(images)}

    def unknown(self) -> dict[str, float]:
        """Return the shares of the captions with unknown tokens.

        The share "some" is of captions with any unknown token, and "all" is of captions without a
        known token. The dictionary is empty if tokens were not counted.
        """
        if self.unknown_tokens is None:
            return {}
        shares = {"some": self.unknown_tokens > 0, "all": self.unknown_tokens == 1}
        return {name: round(float(mask.mean()), 4) for name, mask in shares.items()}

    def unknown_as_dict(self) -> dict[str, Any]:
        """Return `unknown` under the key `unknown_tokens`, or an empty dictionary."""
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
    """Rank the captions of `language` against the images that they describe.

    A caption or image without a feature counts as not found. A warning names the first one.

    Args:
        encode: Maps texts to features `[B, E]`: a pack's `encode_text`, or the native's.
        language: BCP-47 code.
        captions: Columns image_id, language and caption. Rows of other languages are skipped.
        gallery: Features of every image of those rows. Other images are not ranked.
        progress: Called with the number of captions just encoded.
        protocol: Its galleries follow the order in which these rows first name the images.
        ranked: Called with the number of captions just scored, twice for every caption.
        unknown: Maps texts to the share of each text's unknown tokens: a pack's `unknown_tokens`,
            or the native's. None skips this count.

    Raises:
        ValueError: The table has no caption in `language`, or the protocol is not defined on it.

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
    """Return the rows of a language that a protocol counts.

    This is fast, so call it before images are encoded.

    Raises:
        ValueError: The table has no caption in `language`, or the protocol is not defined on these
            rows.

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
    """Return the document that `mla evaluate --json` prints.

    It has the figures of one language, or those of several languages and their mean. The intervals
    of the mean use bootstrap samples with the same images for all languages. This requires that
    the rows of all languages name the same images in the same order.

    Args:
        evaluations: One per language, all by the same protocol.
        ks: Values of k, in addition to 1, 5 and 10.
        with_intervals: Whether to add 95 % bootstrap intervals.

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
    """Encode texts with the native for English, and with a pack for other languages.

    Returns:
        Features `[B, E]` float32.

    """
    texts = [normalized(text) for text in texts]
    if language == "en":
        return encode_texts(native, texts)
    return packs[language].encode_text(texts).cpu().numpy()


def unknown_in(
    native: Native, packs: Mapping[str, LanguagePack], language: str, texts: list[str]
) -> Shares:
    """Return the share of unknown tokens per text, `[B]`, from 0 to 1.

    The native's tokenizer is used for English, and a pack's for other languages.
    """
    return (native if language == "en" else packs[language]).unknown_tokens(texts)
