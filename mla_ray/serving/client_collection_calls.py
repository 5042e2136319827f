"""Requests to the endpoints that list and remove entries. Nothing is sent here."""

from mla_ray.serving.client_calls import Call, Params, get, image_path, parsed_as
from mla_ray.serving.collection_schemas import (
    COLLECTIONS_PATH,
    DEFAULT_LIMIT,
    CaptionPage,
    Collections,
    ImagePage,
    Removed,
)
from mla_ray.serving.schemas import CAPTIONS_PATH, IMAGES_PATH


def list_images(
    *,
    image_id: str | None = None,
    source: str | None = None,
    limit: int = DEFAULT_LIMIT,
    cursor: str | None = None,
) -> Call[ImagePage]:
    """Return a page of the images in the collection `images`.

    Args:
        image_id: List only images with this id.
        source: List only images of this source.
        limit: Maximum number of images.
        cursor: `next_cursor` of the previous page. It is None after the last page.

    """
    params = _given(image_id=image_id, source=source, cursor=cursor)
    return get(IMAGES_PATH, ImagePage, {"limit": limit, **params})


def list_captions(
    *,
    image_id: str | None = None,
    source: str | None = None,
    language: str | None = None,
    limit: int = DEFAULT_LIMIT,
    cursor: str | None = None,
) -> Call[CaptionPage]:
    """Return a page of the captions in the collection `captions`.

    Args:
        image_id: List only captions of this image.
        source: List only captions of this source.
        language: List only captions of exactly this language.
        limit: Maximum number of captions.
        cursor: `next_cursor` of the previous page. It is None after the last page.

    """
    params = _given(image_id=image_id, source=source, language=language, cursor=cursor)
    return get(CAPTIONS_PATH, CaptionPage, {"limit": limit, **params})


def delete_image(
    image_id: str, *, source: str | None = None, captions: bool = False
) -> Call[Removed]:
    """Remove an image and its small copy. An image that is not there is no error.

    Args:
        image_id: Id of the image.
        source: Source of the image. None is enough if only one source has this id.
        captions: Remove the captions of the image, too.

    Raises:
        Invalid: `source` is None and several sources have an image with this id.
        ValueError: `image_id` is empty.

    """
    params = _given(source=source, captions="true" if captions else None)
    return Call("DELETE", image_path(image_id), parsed_as(Removed), params)


def delete_captions(
    *,
    id: str | None = None,  # noqa: A002  the name of the field
    image_id: str | None = None,
    source: str | None = None,
    language: str | None = None,
) -> Call[Removed]:
    """Remove the captions that meet every condition.

    A request that is retried after a broken connection counts only what was left.

    Args:
        id: Remove only captions with this id.
        image_id: Remove only captions of this image.
        source: Remove only captions of this source.
        language: Remove only captions of exactly this language.

    Raises:
        ValueError: There is no condition.

    """
    params = _given(id=id, image_id=image_id, source=source, language=language)
    if not params:
        raise ValueError("no condition; give at least one of id, image_id, source and language")
    return Call("DELETE", CAPTIONS_PATH, parsed_as(Removed), params)


def collections() -> Call[Collections]:
    """Return the number of entries by collection, language and source, and their native."""
    return get(COLLECTIONS_PATH, Collections)


def _given(**params: str | None) -> Params:
    return {name: value for name, value in params.items() if value is not None}
