"""Models and limits of the endpoints that list and remove entries, which server and client share.

Field names are part of the API (docs/serving.md).
"""

from pydantic import BaseModel, Field

from mla_ray.serving.schemas import Collection

COLLECTIONS_PATH = "/v1/collections"
DEFAULT_LIMIT = 100
CURSOR = r"^[A-Za-z0-9_-]{22}$"


class ListedImage(BaseModel):
    """An image of the collection `images`."""

    image_id: str = Field(description="Id of the image, unique within its source.")
    source: str = Field(description="Source that the image was indexed from.")


class ListedCaption(ListedImage):
    """A caption of the collection `captions`, with the fields of an ingest's line."""

    id: str = Field(description="Id of the caption, unique within its source and language.")
    language: str = Field(description="BCP-47 code of the caption's language.")
    caption: str = Field(description="The caption.")


NEXT_CURSOR = Field(description="Value of `cursor` for the next page. It is null on the last page.")


class ImagePage(BaseModel):
    """One page of a listing of images."""

    images: list[ListedImage] = Field(description="Images, in an order that never changes.")
    next_cursor: str | None = NEXT_CURSOR


class CaptionPage(BaseModel):
    """One page of a listing of captions."""

    captions: list[ListedCaption] = Field(description="Captions, in an order that never changes.")
    next_cursor: str | None = NEXT_CURSOR


class Removed(BaseModel):
    """Numbers of what was removed. They are 0 if it was not there, or no longer."""

    images: int = Field(0, description="Number of images removed.")
    captions: int = Field(0, description="Number of captions removed.")
    pictures: int = Field(0, description="Number of small copies removed.")


class CollectionInfo(BaseModel):
    """What a collection holds."""

    name: Collection = Field(description="Name of the collection.")
    entries: int = Field(description="Number of entries.")
    languages: dict[str, int] = Field(
        description="Number of entries by language. It is empty for images."
    )
    sources: dict[str, int] = Field(description="Number of entries by source.")
    native: str = Field(description="Name of the native whose vectors the collection holds.")
    fingerprint: str = Field(
        description="Fingerprint of the native, as the collection was created with it."
    )
    dim: int = Field(description="Length E of a vector.")
    quantization: str | None = Field(description="Quantization of the vectors: `int8`, or null.")
    schema_version: int = Field(description="Schema of the stored points.")


class Collections(BaseModel):
    """The collections of the server."""

    collections: list[CollectionInfo] = Field(description="`images` and `captions`.")
