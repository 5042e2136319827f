"""Models and limits of the HTTP API, which server and client share.

Field names are part of the API (docs/serving.md).
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

from mla_ray.index.limits import MAX_HYBRID, MAX_OFFSET
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

MAX_TEXT = 1_000  # characters of a query or caption; the context of a native has about 77 tokens
MAX_TEXTS = 256  # texts of one embedding request
MAX_HITS = 100  # hits of one answer; the index itself allows more (`mla_ray.index.limits`)
MAX_ID = 512
MAX_SOURCE = 128
MAX_LANGUAGE = 35
MAX_ERRORS = 1_000  # rejected lines that an ingest lists; all are counted
MAX_LINE = 64 << 10  # bytes of one line of an ingest, without its newline
MAX_INGEST_BYTES = 64 << 20
MAX_IMAGE_BYTES = 8 << 20
MAX_BODY_BYTES = 4 << 20  # bytes of any other request

JSON = "application/json"
NDJSON = "application/x-ndjson"
NDJSON_TYPES = (NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines")
"""Media types in use for NDJSON; none of them is registered."""
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
"""Value of a query's language that requests language detection."""
DEFAULT_K = 10
DEFAULT_SOURCE = "http"
NOT_BLANK = r"\S"
LANGUAGE_TAG = r"^[A-Za-z0-9]+([-_][A-Za-z0-9]+)*$"


def _says_something(text: str) -> str:
    if not normalized(text):
        raise PydanticCustomError("blank", "is empty: it has no visible character")
    return text


SaysSomething = AfterValidator(_says_something)
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_TEXT, pattern=NOT_BLANK), SaysSomething
]
Language = Annotated[
    str, StringConstraints(min_length=2, max_length=MAX_LANGUAGE, pattern=LANGUAGE_TAG)
]
"""BCP-47 code such as `de`, `pt-BR` or `zh-Hant`. Without a pack for `de-AT`, `de` is used."""
Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID)]


def _digits(number: object) -> object:
    """Convert an integer to text, as the reader of tables does."""
    return str(number) if isinstance(number, int) and not isinstance(number, bool) else number


GivenId = Annotated[Id, BeforeValidator(_digits), SaysSomething]
"""Id as a JSON string or integer: `"7"` or `7`."""
Source = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SOURCE)]
Collection = Literal["images", "captions"]
Mode = Literal["vector", "hybrid"]
Encoding = Literal["float", "base64"]


class ProblemKind(StrEnum):
    """Last part of a problem's `type`, more specific than the HTTP status."""

    BAD_IMAGE = "bad-image"
    INTERNAL_ERROR = "internal-error"
    INDEX_NOT_WRITABLE = "index-not-writable"
    INDEX_UNAVAILABLE = "index-unavailable"
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
    """Base of request models. Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class TextInput(Strict):
    """A text and its language, a BCP-47 code."""

    text: Text = Field(description="The text to encode.")
    language: Language = Field(default="en", description="BCP-47 code of its language.")


class TextEmbeddingRequest(Strict):
    """Texts to encode, each with its own language."""

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

    inputs: Annotated[list[TextInput], Field(max_length=MAX_TEXTS)] = Field(
        description="Texts, each with its language. A request may mix languages."
    )
    encoding: Encoding = Field(
        "float",
        description="Format of the vectors. `float` returns lists of numbers. `base64` returns "
        "one string of all rows as little-endian float32, which has a third of the size and takes "
        "a tenth of the time to write and read.",
    )


class Embeddings(BaseModel):
    """Unit vectors in the native's joint space. Their dot products are cosines."""

    native: str = Field(description="Name of the native encoder.")
    fingerprint: str = Field(description="Fingerprint of the native encoder.")
    dim: int = Field(description="Length E of a vector.")
    embeddings: list[list[float]] | str = Field(
        description="Vectors [N, E] in the order of the input."
    )
    unknown_tokens: list[float] | None = Field(
        None,
        description="Share of each text's tokens that its language does not know, [N], 0 to 1. At "
        "1 the vector does not depend on the text. It is 0 for an image, and null if the server "
        "does not report it.",
    )


class Hit(BaseModel):
    """An image or a caption that a search found."""

    id: str = Field(description="Id of the hit, unique within its source and language.")
    image_id: str = Field(description="Id of the image, unique within its source.")
    score: float = Field(
        description="Cosine, -1 to 1. It is not a probability. Scores of different languages or "
        "natives are not comparable. With `mode=hybrid` it is the sum of 1 / (2 + rank), ranks "
        "from 0, by vector and by words: 0 to 1. It says nothing but the order."
    )
    language: str = Field(description="Language of the caption. It is empty for an image.")
    caption: str = Field(description="Text of the caption. It is empty for an image.")
    source: str = Field(description="Source that the hit was indexed from.")
    image_url: str | None = Field(
        description="Path of the image's small copy. It is null if the server keeps no copies."
    )


class SearchResult(BaseModel):
    """One page of hits."""

    language: str | None = Field(
        description="Language in which the query was encoded. It is null for an image query."
    )
    detected: bool = Field(description="True if the server detected the language.")
    unknown_tokens: float | None = Field(
        None,
        description="Share of the query's tokens that its language does not know, 0 to 1. At 1 the "
        "hits do not depend on the query. It is 0 for an image, and null if the server does not "
        "report it.",
    )
    hits: list[Hit] = Field(description="Hits in descending order of their scores.")
    offset: int = Field(description="Number of hits before the first one of this page.")
    next_offset: int | None = Field(
        description="Value of `offset` for the next page. It is null if there are no more hits or "
        f"if it would exceed {MAX_OFFSET:,}, or {MAX_HYBRID:,} with `mode=hybrid`, `k` included."
    )


class CaptionRecord(Strict):
    """A caption of an image: one line of a bulk ingest."""

    image_id: GivenId = Field(description="Id of the image, unique within its source.")
    language: Language = Field(description="BCP-47 code of the caption's language.")
    caption: Text = Field(description="The caption.")
    source: Source = Field(default=DEFAULT_SOURCE, description="Name of the data set.")
    id: GivenId | None = Field(
        None, description="Id of the caption. By default it is made from image_id and caption."
    )


class RejectedLine(BaseModel):
    """A line of an ingest that was not written, and the reason."""

    line: int = Field(description="Line number, counted from 1. Empty lines count.")
    error: str = Field(description="Why the line was rejected.")


class IngestResult(BaseModel):
    """Number of lines that an ingest received, wrote and rejected."""

    received: int = Field(description="Number of lines that were not empty.")
    written: int = Field(description="Number of captions that the index has now.")
    unchanged: int = Field(
        default=0,
        description="How many of these it had before with the same text and pack. They were not "
        "encoded again.",
    )
    rejected: int = Field(description="Number of lines rejected.")
    errors: list[RejectedLine] = Field(description=f"The first {MAX_ERRORS:,} rejected lines.")


class ImageWritten(BaseModel):
    """An image that was written. `image_url` is null if the server keeps no small copies."""

    image_id: str = Field(description="Id of the image, unique within its source.")
    image_url: str | None = Field(
        description="Path of the small copy of the image. It is null if the server keeps none."
    )


class LanguageInfo(BaseModel):
    """A language of the server and its pack."""

    language: str = Field(description="BCP-47 code.")
    name: str = Field(description="Name of the language in English.")
    autonym: str = Field(description="Name of the language in the language itself.")
    native: bool = Field(description="True for English, which the native encodes without a pack.")
    captions: int = Field(description="Number of its captions in the collection `captions`.")
    version: str | None = Field(description="Hash of the pack's card. It is null without a pack.")
    rows: int | None = Field(
        description="Number of embedding rows of the pack. It is null without a pack."
    )
    metrics: dict[str, Any] = Field(description="Quality metrics from the pack's card.")


class BrokenPack(BaseModel):
    """A pack that cannot be served, by the name of its folder, and the reason."""

    name: str = Field(description="Folder of the pack in the store.")
    error: str = Field(description="Why it cannot be served.")


class Languages(BaseModel):
    """Languages of the server, and the native that they belong to."""

    native: str = Field(description="Name of the native encoder.")
    fingerprint: str = Field(description="Fingerprint of the native encoder.")
    languages: list[LanguageInfo] = Field(description="Languages served, English first.")
    broken: list[BrokenPack] = Field(description="Packs in the store that cannot be served.")


class Health(BaseModel):
    """State of the server and its parts."""

    status: Literal["ok", "unavailable"] = Field(
        description="`ok` if every part answers. The HTTP status is 503 otherwise."
    )
    parts: dict[str, str] = Field(description="State of each part: `ok`, or the type of the error.")


class Problem(BaseModel):
    """Problem details (RFC 9457), sent as `application/problem+json`."""

    type: str = Field(description="URI of the kind of problem: `urn:mla-ray:problem:` and a name.")
    title: str = Field(description="Short name of the kind of problem.")
    status: int = Field(description="HTTP status code.")
    detail: str = Field(description="What is wrong with this request.")
    errors: list[dict[str, Any]] | None = Field(
        None,
        description="Parts of the request that are malformed or have no result. Each has a "
        "location `loc` and a message `msg`.",
    )


def media_type(content_type: str) -> str:
    """Return a Content-Type in lower case, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def first_error(error: ValidationError) -> str:
    """Describe the first error with its location, such as `caption: String should have …`."""
    first = error.errors()[0]
    where = ".".join(str(name) for name in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
