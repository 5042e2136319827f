"""Requests to each endpoint and the parsing of their answers. Nothing is sent here.

Shapes: N texts, E joint embedding size.
"""

import base64
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import quote

import httpx2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from mla_ray.model.text import half_character
from mla_ray.serving.client_errors import ApiError
from mla_ray.serving.schemas import (
    AUTO,
    CAPTIONS_PATH,
    DEFAULT_K,
    DEFAULT_SOURCE,
    EMBED_IMAGE_PATH,
    EMBED_TEXT_PATH,
    HEALTH_PATH,
    IMAGES_PATH,
    JSON,
    LANGUAGES_PATH,
    MAX_TEXTS,
    NDJSON,
    SEARCH_IMAGE_PATH,
    SEARCH_PATH,
    Collection,
    Embeddings,
    Health,
    ImageWritten,
    IngestResult,
    Languages,
    Mode,
    SearchResult,
    TextEmbeddingRequest,
    TextInput,
    first_error,
    media_type,
)

INGEST_READ_TIMEOUTS = 10  # the server encodes thousands of texts per chunk
SIGNATURES = {  # first bytes of a file, for each of `schemas.IMAGE_TYPES`
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8"),
    "image/bmp": re.compile(rb"BM"),
    "image/avif": re.compile(rb".{4}ftypavi[fs]", re.DOTALL),
    "image/heic": re.compile(rb".{4}ftyphe[iv][cxms]", re.DOTALL),
    "image/heif": re.compile(rb".{4}ftypm[is]f1", re.DOTALL),
}

Vectors = npt.NDArray[np.float32]
Params = Mapping[str, str | int | float]
T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


class Embedded(NamedTuple):
    """Vectors of texts."""

    vectors: Vectors
    """Unit vectors `[N, E]` float32."""
    unknown_tokens: npt.NDArray[np.float64] | None
    """Share of each text's tokens that its language does not know, `[N]`, 0 to 1. At 1 the vector
    is that of a text without words. None if the server does not report it (version 0.1.0)."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the function that parses its answer."""

    method: str
    path: str
    """Percent-encoded path of the endpoint."""
    read: Callable[[httpx2.Response], T]
    """Parses an answer. Raises ValueError if the answer is not valid."""
    params: Params = field(default_factory=dict)
    body: bytes | None = None
    content_type: str | None = None
    accepted_status: int | None = None
    """Status besides 2xx whose answer is a result."""
    read_timeouts: int = 1
    """Number of read timeouts that the answer may take."""

    def is_answered_by(self, response: httpx2.Response) -> bool:
        """Return True if the response has a result, False if it is an error."""
        # An overloaded server or a proxy may send the accepted status too, but not with JSON.
        is_json = media_type(response.headers.get("Content-Type", "")) == JSON
        return response.is_success or (response.status_code == self.accepted_status and is_json)

    def answer(self, response: httpx2.Response) -> T:
        """Parse the response.

        Raises:
            ApiError: The response is not that of an mla-ray server.

        """
        try:
            return self.read(response)
        except ValueError as error:
            message = f"not an answer of an mla-ray server to {self.method} {self.path}"
            raise ApiError(response.status_code, None, message) from error


def search(
    query: str,
    *,
    language: str = AUTO,
    find: Collection = "images",
    k: int = DEFAULT_K,
    offset: int = 0,
    in_language: str | None = None,
    source: str | None = None,
    min_score: float | None = None,
    mode: Mode = "vector",
) -> Call[SearchResult]:
    """Search for the images or captions nearest to a text.

    Args:
        query: Text of the query.
        language: BCP-47 code of the query, or `auto` for detection.
        find: Collection to search: `images` or `captions`.
        k: Maximum number of hits.
        offset: Number of hits to skip. For the next page, use `next_offset` of the previous page.
            It is None after the last page.
        in_language: Return only captions of this language.
        source: Return only entries of this source.
        min_score: Return only hits with at least this cosine. It is not a probability, and its
            scale differs between languages and natives.
        mode: With `hybrid`, captions are also found by their words, such as names and codes. It
            requires `find="captions"`. Scores are then those of ranks.

    Returns:
        A page of hits, best first.

    """
    params = _page(find, k, offset, in_language, source, min_score)
    if mode != "vector":  # the default of all servers, also of those without modes
        params["mode"] = mode
    return get(SEARCH_PATH, SearchResult, {"q": query, "language": language} | params)


def search_image(
    image: bytes,
    *,
    find: Collection = "captions",
    k: int = DEFAULT_K,
    offset: int = 0,
    in_language: str | None = None,
    source: str | None = None,
    min_score: float | None = None,
) -> Call[SearchResult]:
    """Search for the captions or images nearest to an image (PNG, JPEG, WebP, AVIF, …).

    `image` is the content of the file. The other arguments are those of `search`.

    Raises:
        ValueError: The file format is not supported.

    """
    params = _page(find, k, offset, in_language, source, min_score)
    return _send_image("POST", SEARCH_IMAGE_PATH, image, parsed_as(SearchResult), params)


def embed_image(image: bytes) -> Call[Vectors]:
    """Encode an image file to a unit vector `[E]` float32.

    Raises:
        ValueError: The file format is not supported.

    """

    def read(response: httpx2.Response) -> Vectors:
        row: Vectors = _read_rows(response, 1).vectors[0]
        return row

    return _send_image("POST", EMBED_IMAGE_PATH, image, read, {"encoding": "base64"})


def put_image(image_id: str, image: bytes, *, source: str = DEFAULT_SOURCE) -> Call[ImageWritten]:
    """Encode an image file and write it to the collection `images`.

    An image of the same source and id is replaced.

    Raises:
        ValueError: The file format is not supported, or `image_id` is empty.

    """
    path, params = image_path(image_id), {"source": source}
    return _send_image("PUT", path, image, parsed_as(ImageWritten), params)


def get_image(image_id: str, *, source: str | None = None) -> Call[bytes]:
    """Return the small copy of an image as WebP.

    Raises:
        NotFound: The server has no copy.
        Invalid: `source` is None and several sources have an image with this id.
        ValueError: `image_id` is empty.

    """
    params = {} if source is None else {"source": source}
    return Call("GET", image_path(image_id), lambda response: response.content, params)


def languages() -> Call[Languages]:
    """Return the languages of the server, and the name and fingerprint of its native."""
    return get(LANGUAGES_PATH, Languages)


def health() -> Call[Health]:
    """Return the state of every part of the server. A part that fails raises no error."""
    return Call("GET", HEALTH_PATH, parsed_as(Health), accepted_status=503)


def put_captions(lines: Sequence[bytes]) -> Call[IngestResult]:
    """Encode captions and write them to the index. Each line is NDJSON and ends with a newline."""
    return Call(
        "POST",
        CAPTIONS_PATH,
        parsed_as(IngestResult),
        body=b"".join(lines),
        content_type=NDJSON,
        read_timeouts=INGEST_READ_TIMEOUTS,
    )


class Rows(NamedTuple):
    """Answer to one embedding request."""

    fingerprint: str
    """Fingerprint of the server's native."""
    vectors: Vectors
    """Unit vectors `[N, E]` float32."""
    unknown_tokens: list[float] | None
    """Share of unknown tokens of each text, `[N]`."""


class PackedEmbeddings(Embeddings):
    """Embeddings with base64 vectors, which this client requests."""

    embeddings: str


Texts = str | TextInput | Sequence[str | TextInput]
"""One text or several."""


def embed_texts(texts: Texts, language: str) -> list[Call[Rows]]:
    """Build the requests that encode the texts; at least one, also without texts.

    Raises:
        ValueError: A text is invalid. The message has its position.

    """
    inputs = []
    for number, text in enumerate([texts] if isinstance(texts, str | TextInput) else texts):
        if isinstance(text, str) and (fault := half_character(text)):
            raise ValueError(f"texts[{number}]: text: {fault}")
        try:
            inputs.append(
                text if isinstance(text, TextInput) else TextInput(text=text, language=language)
            )
        except ValidationError as error:
            raise ValueError(f"texts[{number}]: {first_error(error)}") from error
    calls = []
    # Without texts one request is necessary as well, to get the embedding size E.
    for start in range(0, max(len(inputs), 1), MAX_TEXTS):
        request = TextEmbeddingRequest(inputs=inputs[start : start + MAX_TEXTS], encoding="base64")
        calls.append(
            Call(
                "POST",
                EMBED_TEXT_PATH,
                functools.partial(_read_rows, count=len(request.inputs)),
                body=request.model_dump_json().encode(),
                content_type=JSON,
            )
        )
    return calls


def stack(answers: Sequence[Rows]) -> Embedded:
    """Concatenate the answers to the requests of `embed_texts`.

    Raises:
        RuntimeError: The answers come from different natives.

    """
    if len({rows.fingerprint for rows in answers}) > 1:
        raise RuntimeError("the server changed its native during the call; embed the texts again")
    unknown = [rows.unknown_tokens for rows in answers if rows.unknown_tokens is not None]
    return Embedded(
        np.concatenate([rows.vectors for rows in answers]),
        np.concatenate(unknown) if len(unknown) == len(answers) else None,
    )


def _read_rows(response: httpx2.Response, count: int) -> Rows:
    answer = PackedEmbeddings.model_validate_json(response.content)
    flat = np.frombuffer(base64.b64decode(answer.embeddings, validate=True), "<f4")
    vectors = flat.reshape(count, answer.dim).astype(np.float32)
    return Rows(answer.fingerprint, vectors, answer.unknown_tokens)


def get(path: str, model: type[Model], params: Params | None = None) -> Call[Model]:
    """Return a GET request whose answer is parsed as `model`."""
    return Call("GET", path, parsed_as(model), params or {})


def _send_image(
    method: str,
    path: str,
    image: bytes,
    read: Callable[[httpx2.Response], T],
    params: Params,
) -> Call[T]:
    return Call(method, path, read, params, image, _image_type(image))


def parsed_as(model: type[Model]) -> Callable[[httpx2.Response], Model]:
    """Return a function that parses an answer as `model`."""
    return lambda response: model.model_validate_json(response.content)


def _page(
    find: str,
    k: int,
    offset: int,
    in_language: str | None,
    source: str | None,
    min_score: float | None,
) -> dict[str, str | int | float]:
    filters = {"in_language": in_language, "source": source, "min_score": min_score}
    given = {name: value for name, value in filters.items() if value is not None}
    return {"find": find, "k": k, "offset": offset, **given}


def image_path(image_id: str) -> str:
    """Return the path of an image.

    Raises:
        ValueError: The id is empty.

    """
    if not image_id:
        raise ValueError("image_id is empty")
    name = quote(image_id, safe="")
    # Clients and proxies resolve "." and ".." as path segments.
    return f"{IMAGES_PATH}/{name.replace('.', '%2E') if name in ('.', '..') else name}"


def _image_type(image: bytes) -> str:
    for image_type, signature in SIGNATURES.items():
        if signature.match(image):
            return image_type
    raise ValueError("not a picture in PNG, JPEG, WebP, GIF, BMP, AVIF or HEIC")
