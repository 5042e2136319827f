"""Removal of entries by conditions from both collections of an index, for `mla index --delete`."""

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import Conditions
from mla_ray.index.ingest import PICTURES, forget_picture
from mla_ray.index.picture_store import PictureStore


def remove(
    url: str,
    space: VectorSpace,
    conditions: Conditions,
    pictures: PictureStore | None = None,
    *,
    dry_run: bool = False,
) -> dict[str, int]:
    """Remove the images and captions that meet every condition, and the pictures of these images.

    With a language, only captions are removed, because images have none. An interrupted call can
    be repeated. `CaptionIndex.optimize(reclaim=True)` frees the disk space.

    Args:
        url: URL of the index, as for `CaptionIndex.open`.
        space: The native whose vectors the collections hold.
        conditions: At least one condition.
        pictures: Store of small copies.
        dry_run: Only count.

    Returns:
        The number of entries by collection, and of `pictures` if they were removed.

    Raises:
        LookupError: A collection does not exist. For other errors see `CaptionIndex.open`.
        ValueError: There is no condition.

    """
    removed = {}
    # Images last: if the call is interrupted, the next one still finds the pictures by them.
    for name in (CAPTIONS,) if conditions.get("language") else (CAPTIONS, IMAGES):
        with CaptionIndex.open(url, space, name, create=False) as index:
            if dry_run:
                removed[name] = index.count(**conditions)
                continue
            index.check_writable()
            if name == IMAGES and pictures:
                removed[PICTURES] = sum(
                    forget_picture(pictures, e.id, e.source, index.sources(e.id))
                    for e in index.entries(**conditions)
                )
            removed[name] = index.delete_matching(**conditions)
    return removed


def reclaim(url: str, space: VectorSpace) -> None:
    """Build the search graphs and free the disk space of removed entries, in both collections.

    Captions of an index that was made without words get them.

    Raises:
        LookupError: A collection does not exist. For other errors see `CaptionIndex.optimize`.

    """
    for name in (IMAGES, CAPTIONS):
        with CaptionIndex.open(url, space, name, create=False) as index:
            index.add_words()
            index.optimize(reclaim=True)
