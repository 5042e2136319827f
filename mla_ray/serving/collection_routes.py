"""HTTP endpoints that list and remove entries, and count them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from mla_ray.index.entry import Conditions
from mla_ray.index.limits import MAX_PAGE
from mla_ray.serving.collection_schemas import (
    COLLECTIONS_PATH,
    CURSOR,
    DEFAULT_LIMIT,
    CaptionPage,
    Collections,
    ImagePage,
    Removed,
)
from mla_ray.serving.collection_service import CollectionService
from mla_ray.serving.openapi import problem_responses
from mla_ray.serving.routes import given_id
from mla_ray.serving.schemas import (
    CAPTIONS_PATH,
    IMAGES_PATH,
    LANGUAGE_TAG,
    MAX_ID,
    MAX_LANGUAGE,
    MAX_SOURCE,
)

router = APIRouter(tags=["collections"])


async def _service(request: Request) -> CollectionService:
    service: CollectionService = request.app.state.collections
    return service


ServiceOf = Annotated[CollectionService, Depends(_service)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Maximum number of entries.")]
Cursor = Annotated[
    str | None,
    Query(pattern=CURSOR, description="Value of `next_cursor` of the previous page."),
]
OfImage = Annotated[
    str | None, Query(min_length=1, max_length=MAX_ID, description="Only those of this image.")
]
OfSource = Annotated[
    str | None, Query(min_length=1, max_length=MAX_SOURCE, description="Only those of this source.")
]
InLanguage = Annotated[
    str | None,
    Query(
        pattern=LANGUAGE_TAG,
        min_length=2,
        max_length=MAX_LANGUAGE,
        description="Only those of exactly this language (BCP-47). `de` does not stand for "
        "`de-AT`.",
        examples=["de"],
    ),
]


@router.get(IMAGES_PATH)
async def list_images(
    service: ServiceOf,
    image_id: OfImage = None,
    source: OfSource = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> ImagePage:
    """List images of the collection `images` that meet every condition, page by page.

    The order never changes. An image that exists during the whole listing is listed once.
    """
    return await service.images(_conditions(image_id, source), limit, cursor)


@router.get(CAPTIONS_PATH)
async def list_captions(
    service: ServiceOf,
    image_id: OfImage = None,
    source: OfSource = None,
    language: InLanguage = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> CaptionPage:
    """List captions of the collection `captions` that meet every condition, page by page.

    The order never changes. A caption that exists during the whole listing is listed once.
    """
    return await service.captions(_conditions(image_id, source, language), limit, cursor)


@router.delete(IMAGES_PATH + "/{image_id:path}", responses=problem_responses(507))
async def delete_image(
    service: ServiceOf,
    image_id: str,
    source: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=MAX_SOURCE,
            description="Source of the image. Optional if only one source has this id.",
        ),
    ] = None,
    captions: Annotated[
        bool, Query(description="Remove the captions of the image, too, those of its source.")
    ] = False,
) -> Removed:
    """Remove an image from the collection `images`, and its small copy.

    No search that starts after the answer finds it. An image that is not there is no error.
    """
    return await service.delete_image(given_id(image_id), source, captions)


@router.delete(CAPTIONS_PATH, responses=problem_responses(507))
async def delete_captions(
    service: ServiceOf,
    caption_id: Annotated[
        str | None,
        Query(
            alias="id", min_length=1, max_length=MAX_ID, description="Only captions with this id."
        ),
    ] = None,
    image_id: OfImage = None,
    source: OfSource = None,
    language: InLanguage = None,
) -> Removed:
    """Remove the captions that meet every condition. At least one condition is required.

    No search that starts after the answer finds them.
    """
    return await service.delete_captions(_conditions(image_id, source, language, caption_id))


@router.get(COLLECTIONS_PATH)
async def collections(service: ServiceOf) -> Collections:
    """Return what the collections hold: numbers by language and source, and their native."""
    return await service.collections()


def _conditions(
    image_id: str | None,
    source: str | None,
    language: str | None = None,
    entry_id: str | None = None,
) -> Conditions:
    image_id = None if image_id is None else given_id(image_id)
    return Conditions(id=entry_id, image_id=image_id, language=language, source=source)
