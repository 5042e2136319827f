"""What goes in and out over HTTP. Field names are the contract with clients; see docs/serving.md.

Server and client read and write these same models, within these same limits.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from mla_ray.index.limits import MAX_OFFSET
from mla_ray.model.text import normalized

TOKEN_VARIABLE = "MLA_API_TOKEN"  # noqa: S105  the name of the variable, not a token

SEARCH_PATH = "/v1/search"
SEARCH_IMAGE_PATH = "/v1/search/image"
EMBED_TEXT_PATH = "/v1/embeddings/text"
EMBED_IMAGE_PATH = "/v1/embeddings/image"
CAPTIONS_PATH = "/v1/captions"
IMAGES_PATH = "/v1/images"
LANGUAGES_PATH = "/v1/languages"
HEALTH_PATH = "/healthz"

MAX_TEXT = 1_000  # characters of a query or caption; the longest context holds about 77 tokens
MAX_TEXTS = 256  # texts of one embedding request
MAX_HITS = 100  # of one answer; an index itself gives more (`mla_ray.index.limits`)
MAX_ID = 512
MAX_SOURCE = 128
MAX_LANGUAGE = 35
MAX_ERRORS = 1_000  # rejected lines that an ingest names; all are counted
MAX_LINE = 64 << 10  # bytes of one line of an ingest, without its end
MAX_INGEST_BYTES = 64 << 20
MAX_IMAGE_BYTES = 8 << 20
MAX_BODY_BYTES = 4 << 20  # of any other request

JSON = "application/json"
NDJSON = "application/x-ndjson"
NDJSON_TYPES = (NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines")
"""Names of one format; none has been registered."""
PROBLEM_JSON = "application/problem+json"
IMAGE_TYPES = (
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/avif",
    "image/heic",
    "image/heif",
)

AUTO = "auto"
"""In place of a query's language: to have it detected."""
DEFAULT_K = 10
DEFAULT_SOURCE = "http"
NOT_BLANK = r"\S"
LANGUAGE_TAG = r"^[A-Za-z0-9]+([-_][A-Za-z0-9]+)*$"


def _says_something(text: str) -> str:
    if not normalized(text):
        raise PydanticCustomError("blank", "is empty: nothing in it can be seen")
    return text


SaysSomething = AfterValidator(_says_something)
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_TEXT, pattern=NOT_BLANK), SaysSomething
]
Language = Annotated[
    str, StringConstraints(min_length=2, max_length=MAX_LANGUAGE, pattern=LANGUAGE_TAG)
]
"""A BCP-47 code: `de`, `pt-BR`, `zh-Hant`. `de-AT` is answered by `de` where it has no pack."""
Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID)]


def _digits(number: object) -> object:
    """A whole number as text, as tables have it read."""
    return str(number) if isinstance(number, int) and not isinstance(number, bool) else number


GivenId = Annotated[Id, BeforeValidator(_digits), SaysSomething]
"""An id as people write it: `"7"` or `7`."""
Source = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SOURCE)]
Collection = Literal["images", "captions"]
Encoding = Literal["float", "base64"]


class ProblemKind(StrEnum):
    """The end of a problem's `type`, where HTTP's own words for a status say too little."""

    BAD_IMAGE = "bad-image"
    INTERNAL_ERROR = "internal-error"
    INDEX_NOT_WRITABLE = "index-not-writable"
    INVALID_REQUEST = "invalid-request"
    NOT_ENCODED = "not-encoded"
    OVERLOADED = "overloaded"
    PACK_UNAVAILABLE = "pack-unavailable"
    TIMEOUT = "timeout"
    TOO_LARGE = "too-large"
    TOO_MANY_REQUESTS = "too-many-requests"
    UNAUTHORIZED = "unauthorized"
    UNKNOWN_IMAGE = "unknown-image"
    UNKNOWN_LANGUAGE = "unknown-language"
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type"
    WRONG_HOST = "wrong-host"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextInput(Strict):
    text: Text
    language: Language = "en"


class TextEmbeddingRequest(Strict):
    """Texts of any languages, mixed as they come."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {"text": "Regenschirm", "language": "de"},
                        {"text": "umbrella", "language": "en"},
                    ],
                    "encoding": "float",
                }
            ]
        },
    )

    inputs: Annotated[list[TextInput], Field(max_length=MAX_TEXTS)]
    encoding: Encoding = Field(
        "float",
        description="`base64`: the rows of float32, little-endian, one after another, in one "
        "string; a tenth of the time to write and read, a third of the size",
    )


class Embeddings(BaseModel):
    """Unit vectors in the native's joint space: dot products are cosines."""

    native: str
    fingerprint: str
    dim: int = Field(description="E, numbers a vector")
    embeddings: list[list[float]] | str = Field(description="[N, E] in the order of the input")
    unknown_tokens: list[float] | None = Field(
        None,
        description="[N], 0 to 1: of each text's tokens the share that its language does not know; "
        "at 1 the vector says nothing of the text. 0 of an image. Null: a server before it told",
    )


class Hit(BaseModel):
    id: str = Field(description="its own within its source and language")
    image_id: str
    score: float = Field(
        description="cosine, -1 to 1; not a probability, and not to be compared between languages "
        "or natives"
    )
    language: str = Field(description="of the caption; empty for an image")
    caption: str = Field(description="empty for an image")
    source: str
    image_url: str | None = Field(description="where the picture is served, if it is kept here")


class SearchResult(BaseModel):
    language: str | None = Field(description="the query was read in; null for an image query")
    detected: bool = Field(description="whether that was found out rather than said")
    unknown_tokens: float | None = Field(
        None,
        description="of the query's tokens the share that its language does not know, 0 to 1; at "
        "1 the hits say nothing of the query. 0 of an image. Null: a server before it told",
    )
    hits: list[Hit] = Field(description="best first")
    offset: int
    next_offset: int | None = Field(
        description=f"of the next page; null where there is none, or it is past {MAX_OFFSET:,}"
    )


class CaptionRecord(Strict):
    """One line of a bulk ingest."""

    image_id: GivenId
    language: Language
    caption: Text
    source: Source = DEFAULT_SOURCE
    id: GivenId | None = Field(None, description="made of image_id and caption if not given")


class RejectedLine(BaseModel):
    line: int = Field(description="counted from 1, empty lines included")
    error: str


class IngestResult(BaseModel):
    received: int = Field(description="lines that were not empty")
    written: int
    rejected: int
    errors: list[RejectedLine] = Field(description=f"the first {MAX_ERRORS:,} rejected lines")


class ImageWritten(BaseModel):
    image_id: str
    image_url: str | None


class LanguageInfo(BaseModel):
    language: str = Field(description="BCP-47")
    name: str = Field(description="in English")
    autonym: str = Field(description="in itself")
    native: bool = Field(description="the native's own, English; no pack")
    captions: int = Field(description="in the collection `captions`")
    version: str | None = Field(description="hash of the pack's card; null for the native's own")
    rows: int | None = Field(description="embedding rows of the pack")
    metrics: dict[str, Any] = Field(description="what the pack's card says of its quality")


class BrokenPack(BaseModel):
    name: str
    error: str


class Languages(BaseModel):
    native: str
    fingerprint: str
    languages: list[LanguageInfo]
    broken: list[BrokenPack] = Field(description="packs in the store that cannot be served")


class Health(BaseModel):
    status: Literal["ok", "unavailable"]
    parts: dict[str, str] = Field(description="`ok`, or what is wrong, of each deployment")


class Problem(BaseModel):
    """Problem details (RFC 9457), sent as `application/problem+json`."""

    type: str = Field(description="a URI that names the kind of problem")
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = Field(
        None, description="where a request is malformed, or what of it has no answer"
    )


def media_type(content_type: str) -> str:
    """A Content-Type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def first_error(error: ValidationError) -> str:
    """Where the first thing is that is wrong, and what: `caption: String should have …`."""
    first = error.errors()[0]
    where = ".".join(str(name) for name in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
