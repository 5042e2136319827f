"""Adoption of image vectors that other software made with the same native.

The vectors are copied to the collection `images`, or searched where they are. They are not encoded
again. First a sample of the images is encoded, and must agree with their vectors. Payload of the
other software is not copied.

Shapes: N images, E joint embedding size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from qdrant_client import QdrantClient, models

from mla_ray.data.feature_store import encode_images
from mla_ray.data.table_images import read_image
from mla_ray.index.address import Address
from mla_ray.index.backend import CollectionConfig, VectorSpace, is_ours
from mla_ray.index.batches import Reservoir
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.foreign import ForeignImage, ForeignVectors, QdrantVectors
from mla_ray.index.ingest import image_entry, space_of
from mla_ray.index.server import alias_of, point_alias
from mla_ray.index.server_errors import reaching
from mla_ray.index.server_settings import settings_of
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings
from mla_ray.index.writing import open_collections
from mla_ray.model.directions import Floats, faults, norms, units
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Report, counting
from mla_ray.runtime.storage import as_path, patiently

TOLERANCE = 1e-3
"""Largest difference of a cosine from 1 that counts as agreement."""
SAMPLE = 32
"""Images that are encoded for the check."""
CANDIDATES = 1000
"""Images drawn at random, of which the first `SAMPLE` that can be read are encoded."""
SIMILAR = 0.9
"""Cosine above which the native is probably the same, but the images were prepared differently."""


@dataclass(frozen=True)
class Adopted:
    """Result of an adoption."""

    written: int  # 0 in place
    rejected: int  # vectors that are zero or not finite; in place they are not looked at
    checked: int  # images that were encoded
    agreement: float  # lowest cosine of these


class Disagreement(ValueError):
    """Vectors that were not made by this native, or not from these images."""


def adopt(
    foreign: ForeignVectors,
    url: str,
    native: Native,
    source: str,
    images: Path | None,
    report: Report,
    *,
    settings: IndexSettings = ENGINE_DEFAULTS,
    reject: Callable[[str], None] = lambda reason: None,
) -> Adopted:
    """Copy image vectors of other software to the collection `images`, after a check.

    Safe to call again after an interruption.

    Args:
        foreign: The vectors.
        url: URL of the index to write, as for `CaptionIndex.open`.
        native: The native that made the vectors.
        source: Name of the source, stored with every point.
        images: Folder of the images. An image's path in `foreign` starts there. If `foreign` has
            no paths, an image is the file with its id as name, with or without an ending.
        report: Receives progress.
        settings: Settings of collections that are created.
        reject: Receives the reason for each vector that is left out.

    Raises:
        Disagreement: A sample of the images, encoded by `native`, has other vectors.
        ValueError: An id occurs twice, or no image of the sample can be read.

    """
    checked, agreement = _check(foreign, native, images, report)
    advance = counting(report, "adopting", foreign.total)
    written = rejected = 0
    with open_collections(url, space_of(native), settings) as collections:
        index = collections[IMAGES]
        for ids, vectors_NE in foreign.batches():
            bad = faults(norms(vectors_NE))
            for row, fault in bad.items():
                reject(f"{ids[row]!r}: its vector is {fault}")
            sound = [row for row in range(len(ids)) if row not in bad]
            entries = [image_entry(ids[row], source) for row in sound]
            upsert = partial(index.upsert, entries, vectors_NE[sound])
            written += patiently(upsert, what=f"writing {IMAGES}")
            rejected += len(bad)
            advance(len(ids))
        index.optimize()
    return Adopted(written, rejected, checked, agreement)


def adopt_in_place(
    foreign: QdrantVectors,
    url: str,
    native: Native,
    source: str,
    images: Path | None,
    report: Report,
) -> Adopted:
    """Make a collection of other software the collection `images` of an index on its server.

    Nothing is copied: searches read the collection itself, also what its software writes later.
    First the same check is made as by `adopt`, whose arguments these are. The collection `captions`
    is created beside it if it is missing.

    Raises:
        Disagreement: A sample of the images, encoded by `native`, has other vectors.
        ValueError: The collection is not compared by cosine, it is on another server than `url`,
            the index has other images of this native, an id occurs twice, or no image of the sample
            can be read.

    """
    if foreign.distance != models.Distance.COSINE:
        raise ValueError(
            f"{foreign.where} compares vectors by {foreign.distance.value}, so its scores are no "
            "cosines; copy the vectors: leave --in-place out"
        )
    if Address.parse(url).url.rstrip("/") != foreign.server:
        raise ValueError(
            f"{url} is not the server of {foreign.where}; a collection is adopted in place on its "
            f"own server: give {foreign.server}, or copy the vectors without --in-place"
        )
    _place_of(foreign.client, url, space_of(native), foreign.name)  # refused before the encoding
    checked, agreement = _check(foreign, native, images, report)
    layout = replace(foreign.layout, source=source)
    config = CollectionConfig(space_of(native), words=0, layout=layout)
    _attach(foreign.client, url, config, foreign.name)
    CaptionIndex.open(url, space_of(native), CAPTIONS).close()  # serving wants both
    return Adopted(0, 0, checked, agreement)


class _Place(NamedTuple):
    """Where a collection is attached."""

    alias: str  # the native's alias of the images
    former: str | None  # collection that the alias names now
    found: models.CollectionConfig  # configuration of the collection to attach


def _place_of(client: QdrantClient, url: str, space: VectorSpace, collection: str) -> _Place:
    """Return where a collection can be attached.

    Raises:
        ValueError: The index has images of this native elsewhere, or mla-ray made the collection.

    """
    alias = alias_of(Address.parse(url).prefixed(IMAGES), space.fingerprint)
    with reaching(url):
        found = client.get_collection(collection).config
        if is_ours(found.metadata):
            raise ValueError(
                f"mla-ray made the collection {collection!r}: it needs no adoption, and `mla "
                "collection copy` copies it"
            )
        aliases = {a.alias_name: a.collection_name for a in client.get_aliases().aliases}
        former = aliases.get(alias)
        if former is not None and former != collection:
            count = client.count(former, exact=True).count
            if count:
                raise ValueError(
                    f"{url} has {count:,} images of this native in {former!r}; give the adopted "
                    "ones a prefix of their own (?prefix=NAME)"
                )
    return _Place(alias, former, found)


def _attach(client: QdrantClient, url: str, config: CollectionConfig, collection: str) -> None:
    """Make a collection of other software the collection `images` of an index on its server.

    It gets our record beside its own metadata, and then the native's alias. Its points, vectors and
    settings stay as they are. Safe to call again after an interruption.

    Args:
        client: The client.
        url: URL of the index.
        config: Configuration of the collection, with its layout.
        collection: Name of the collection.

    Raises:
        ValueError: As `_place_of`.

    """
    alias, former, found = _place_of(client, url, config.space, collection)
    with reaching(url):
        record = replace(config, settings=settings_of(found, config.layout)).record()
        client.update_collection(collection, metadata={**(found.metadata or {}), alias: record})
        forget = models.DeleteAlias(alias_name=alias)
        client.update_collection_aliases(
            [
                *([models.DeleteAliasOperation(delete_alias=forget)] if former else []),
                point_alias(alias, collection),
            ]
        )
        replaced = former if former not in (None, collection) else None
        if replaced and is_ours(client.get_collection(replaced).config.metadata):
            client.delete_collection(replaced)  # the empty one that `mla serve` creates


def _candidates(foreign: ForeignVectors, folder: Path | None, report: Report) -> list[ForeignImage]:
    """Return a random sample of the images with a file, after a look at all ids.

    Raises:
        ValueError: An id occurs twice, or no image has a file.

    """
    advance = counting(report, "reading ids", foreign.total)
    names = _names(folder) if folder else {}
    sample: Reservoir[ForeignImage] = Reservoir(CANDIDATES)
    seen: set[bytes] = set()  # 16 bytes an id, however long they are
    example = ""
    for image in foreign.images():
        key = uuid5(NAMESPACE_OID, image.id).bytes
        if key in seen:
            raise ValueError(
                f"{foreign.where}: the id {image.id!r} occurs twice; name a field that has another "
                "id in every row with --id-field"
            )
        seen.add(key)
        example = example or image.id
        file = image.file or names.get(image.id)
        if file:
            sample.offer(image._replace(file=file))
        advance(1)
    if not sample.items:
        raise ValueError(
            f"{foreign.where}: there is no image to compare with; give --images FOLDER with files "
            f"that have the ids as names (such as {example + '.jpg'!r}), or --image-field"
        )
    order = np.random.default_rng().permutation(len(sample.items))
    return [sample.items[place] for place in order]


def _names(folder: Path) -> dict[str, str]:
    """Return the files in a folder by name, and by name without ending if that is no name."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    return {Path(name).stem: name for name in files} | {name: name for name in files}


def _check(
    foreign: ForeignVectors, native: Native, folder: Path | None, report: Report
) -> tuple[int, float]:
    """Encode some of the images; return their number and their lowest cosine.

    Raises:
        Disagreement: A cosine is too low, or the vectors have another size.
        ValueError: An id occurs twice, or no image can be read.

    """
    if foreign.dim != native.dim:
        raise Disagreement(
            f"{foreign.where} has vectors of {foreign.dim} dimensions, native {native.name!r} "
            f"makes {native.dim}; they were made by another native: name it with --native"
        )
    candidates = _candidates(foreign, folder, report)
    advance = counting(report, "checking", min(SAMPLE, len(candidates)))
    root = as_path(folder or Path.cwd())
    encoded: list[Floats] = []
    sample: list[ForeignImage] = []
    theirs: list[Floats] = []
    problem = ""
    for image in candidates:
        vector_1E, bad = units(foreign.vectors([image.key]))
        if bad:
            continue
        try:
            data = read_image(image.file or "", root)
            encoded.append(encode_images(native, [data]))
        except (ValueError, OSError) as error:
            problem = problem or f"image {image.id!r}: {image.file}: {error}"
            continue
        sample.append(image)
        theirs.append(vector_1E)
        advance(1)
        if len(sample) == SAMPLE:
            break
    if not sample:
        problem = problem or "their vectors are zero or not finite"
        raise ValueError(
            f"{foreign.where}: none of {len(candidates):,} images can be compared: {problem}"
        )
    ours_NE, _ = units(np.concatenate(encoded))
    cosines_NN = np.concatenate(theirs) @ ours_NE.T
    _judge(foreign.where, native.name, sample, cosines_NN)
    return len(sample), float(cosines_NN.diagonal().min())


def _judge(where: str, native: str, sample: list[ForeignImage], cosines_NN: Floats) -> None:
    """Raise a Disagreement that says what differs, unless all images agree.

    Args:
        where: Where the vectors are.
        native: Name of the native.
        sample: N images.
        cosines_NN: Cosines of each vector (row) with each encoded image (column).

    """
    own_N = cosines_NN.diagonal()
    wrong = np.flatnonzero(~(own_N >= 1 - TOLERANCE))
    if not len(wrong):
        return
    first = wrong[0]
    found = (
        f"{where}: the vectors of {len(wrong)} of {len(sample)} images differ from those that "
        f"native {native!r} makes (image {sample[first].id!r}: cosine {own_N[first]:.4f}, needed "
        f"{1 - TOLERANCE:.3f})"
    )
    nearest_N = cosines_NN[wrong].argmax(axis=1)
    swapped = [
        (row, near)
        for row, near in zip(wrong, nearest_N, strict=True)
        if cosines_NN[row, near] >= 1 - TOLERANCE
    ]
    if swapped:
        row, near = swapped[0]
        raise Disagreement(
            f"{found}; the vector of {sample[row].id!r} is that of the image {sample[near].id!r}: "
            "ids and vectors are in different orders"
        )
    if len(wrong) < len(sample) / 2:
        raise Disagreement(f"{found}; the others agree: these images have changed since")
    if np.median(own_N) >= SIMILAR:
        raise Disagreement(
            f"{found}; they are similar, so the images were resized or normalized in another way, "
            "or the model computed at a low precision: encode the images again with mla index"
        )
    raise Disagreement(
        f"{found}; they were made by another native, or changed afterwards (centered, rotated): "
        "name their native with --native, or encode the images again with mla index"
    )
