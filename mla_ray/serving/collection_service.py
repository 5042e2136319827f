"""Implementation of the endpoints that list and remove entries, without HTTP."""

import asyncio

from mla_ray.index.collection import CAPTIONS, IMAGES
from mla_ray.index.entry import Conditions
from mla_ray.index.ingest import forget_picture
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.language import UnknownLanguage, canonical
from mla_ray.serving.backend import Backend
from mla_ray.serving.collection_schemas import (
    CaptionPage,
    CollectionInfo,
    Collections,
    ImagePage,
    ListedCaption,
    ListedImage,
    Removed,
)
from mla_ray.serving.problems import invalid, several_sources


class CollectionService:
    """Listing, removal and numbers of entries. Methods raise `ProblemError` as `Service` does."""

    def __init__(self, backend: Backend, pictures: PictureStore | None) -> None:
        self._backend = backend
        self._pictures = pictures

    async def images(self, conditions: Conditions, limit: int, cursor: str | None) -> ImagePage:
        """Return a page of the images that meet the conditions."""
        page = await self._backend.page(IMAGES, conditions, limit, cursor)
        images = [ListedImage(image_id=e.image_id, source=e.source) for e in page.entries]
        return ImagePage(images=images, next_cursor=page.next_cursor)

    async def captions(self, conditions: Conditions, limit: int, cursor: str | None) -> CaptionPage:
        """Return a page of the captions that meet the conditions."""
        conditions = _as_indexed(conditions)
        page = await self._backend.page(CAPTIONS, conditions, limit, cursor)
        captions = [
            ListedCaption(
                id=entry.id,
                image_id=entry.image_id,
                language=entry.language,
                caption=entry.caption,
                source=entry.source,
            )
            for entry in page.entries
        ]
        return CaptionPage(captions=captions, next_cursor=page.next_cursor)

    async def delete_image(self, image_id: str, source: str | None, captions: bool) -> Removed:
        """Remove an image and its small copy; if `captions` is set, also its captions.

        If the request is interrupted, the image is still there, so that it can be repeated.

        Raises:
            ProblemError: Status 422: `source` is None, and several sources have an image with this
                id.

        """
        removed = Removed(images=0, captions=0, pictures=0)
        sources = await self._backend.sources(image_id)
        if source is None:
            if len(sources) > 1:
                raise several_sources(sources)
            if not sources:
                return removed
            (source,) = sources
        one = Conditions(image_id=image_id, source=source)
        if captions:
            removed.captions = await self._backend.delete(CAPTIONS, one)
        if self._pictures:
            removed.pictures = await asyncio.to_thread(
                forget_picture, self._pictures, image_id, source, sources
            )
        removed.images = await self._backend.delete(IMAGES, one)
        return removed

    async def delete_captions(self, conditions: Conditions) -> Removed:
        """Remove the captions that meet every condition.

        Raises:
            ProblemError: Status 422: there is no condition.

        """
        if not any(value is not None for value in conditions.values()):
            message = "no condition; give at least one of id, image_id, source and language"
            raise invalid(("query",), message)
        captions = await self._backend.delete(CAPTIONS, _as_indexed(conditions))
        return Removed(images=0, captions=captions, pictures=0)

    async def collections(self) -> Collections:
        """Return what the collections hold."""
        contents = await self._backend.contents()
        return Collections(
            collections=[
                CollectionInfo(
                    name=name,
                    entries=held.entries,
                    languages=dict(held.languages),
                    sources=dict(held.sources),
                    native=held.space.native,
                    fingerprint=held.space.fingerprint,
                    dim=held.space.dim,
                    quantization=held.quantization,
                    schema_version=held.schema,
                )
                for name, held in contents.items()
            ]
        )


def _as_indexed(conditions: Conditions) -> Conditions:
    """Spell the language as the index does.

    Unlike in a search, a language stands for itself only, so that nothing else is removed. It need
    not be served: captions stay in the index when their pack is removed.
    """
    language = conditions.get("language")
    if language is None:
        return conditions
    try:
        return Conditions(**conditions | {"language": canonical(language)})
    except UnknownLanguage as error:
        raise invalid(("query", "language"), str(error)) from error
