"""What a request to each endpoint is, and how its answer is read. Nothing is sent here.

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
    SearchResult,
    TextEmbeddingRequest,
    TextInput,
    first_error,
    media_type,
)

INGEST_READ_TIMEOUTS = 10  # a chunk is thousands of texts to embed
SIGNATURES = {  # of `schemas.IMAGE_TYPES`, at the beginning of a file
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
    """What a server makes of texts."""

    vectors: Vectors  # [N, E], unit length
    unknown_tokens: npt.NDArray[np.float64] | None
    """[N]: of each text's tokens the share that its language does not know. At 1 the vector is that
    of a text without words, whatever the text. None of a server that does not tell it (0.1.0)."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str  # percent-encoded
    read: Callable[[httpx2.Response], T]
    params: Params = field(default_factory=dict)
    body: bytes | None = None
    content_type: str | None = None
    accepted_status: int | None = None  # beside success, of an answer that `read` takes
    read_timeouts: int = 1  # that it may take

    def is_answered_by(self, response: httpx2.Response) -> bool:
        # A server at its limit, or a proxy, may use that status as well.
        is_json = media_type(response.headers.get("Content-Type", "")) == JSON
        return response.is_success or (response.status_code == self.accepted_status and is_json)

    def answer(self, response: httpx2.Response) -> T:
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
) -> Call[SearchResult]:
    """Images, or captions of any language, nearest to a text: `k` hits, best first.

    `language` is the query's, BCP-47, or `auto` to have it detected. `in_language` and
    `source` restrict what is found, `min_score` to hits of that cosine or a higher one; it is
    no probability, and differs between languages and natives. `offset` is where the page
    begins: the `next_offset` of the one before, None where that was the last to be had.
    """
    params = _page(find, k, offset, in_language, source, min_score)
    return _get(SEARCH_PATH, SearchResult, {"q": query, "language": language} | params)


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
    """Captions of any language, or images, nearest to a picture (PNG, JPEG, WebP, AVIF, …)."""
    params = _page(find, k, offset, in_language, source, min_score)
    return _send_image("POST", SEARCH_IMAGE_PATH, image, _as(SearchResult), params)


def embed_image(image: bytes) -> Call[Vectors]:
    """The unit vector [E] of a picture."""

    def read(response: httpx2.Response) -> Vectors:
        row: Vectors = _read_rows(response, 1).vectors[0]
        return row

    return _send_image("POST", EMBED_IMAGE_PATH, image, read, {"encoding": "base64"})


def put_image(image_id: str, image: bytes, *, source: str = DEFAULT_SOURCE) -> Call[ImageWritten]:
    """Embed a picture and write it to the collection `images`; one of that source and id is
    replaced.
    """
    path, params = _image_path(image_id), {"source": source}
    return _send_image("PUT", path, image, _as(ImageWritten), params)


def get_image(image_id: str, *, source: str | None = None) -> Call[bytes]:
    """The small copy (WebP) of a picture that was put; `NotFound` if none is kept.

    Without `source` it is `Invalid` where several have an image of that id.
    """
    params = {} if source is None else {"source": source}
    return Call("GET", _image_path(image_id), lambda response: response.content, params)


def languages() -> Call[Languages]:
    """The languages served, and the native (its name and fingerprint) they belong to."""
    return _get(LANGUAGES_PATH, Languages)


def health() -> Call[Health]:
    """Whether every part of the server works; no error where one does not."""
    return Call("GET", HEALTH_PATH, _as(Health), accepted_status=503)


def put_captions(lines: Sequence[bytes]) -> Call[IngestResult]:
    """Embed captions and write them: NDJSON lines with their ends."""
    return Call(
        "POST",
        CAPTIONS_PATH,
        _as(IngestResult),
        body=b"".join(lines),
        content_type=NDJSON,
        read_timeouts=INGEST_READ_TIMEOUTS,
    )


class Rows(NamedTuple):
    """What one request made of texts."""

    fingerprint: str  # of the native
    vectors: Vectors  # [N, E]
    unknown_tokens: list[float] | None  # [N]


class PackedEmbeddings(Embeddings):
    """In base64, as they are asked for here."""

    embeddings: str


Texts = str | TextInput | Sequence[str | TextInput]
"""What is embedded: texts, or one."""


def embed_texts(texts: Texts, language: str) -> list[Call[Rows]]:
    """Requests for all texts, one at least; ValueError names what is none before any is sent."""
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
    for start in range(0, max(len(inputs), 1), MAX_TEXTS):  # the server knows E, of no text too
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
    """The answers to `embed_texts` as one."""
    if len({rows.fingerprint for rows in answers}) > 1:
        raise RuntimeError("the server changed its native in the middle; embed the texts again")
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


def _get(path: str, model: type[Model], params: Params | None = None) -> Call[Model]:
    return Call("GET", path, _as(model), params or {})


def _send_image(
    method: str,
    path: str,
    image: bytes,
    read: Callable[[httpx2.Response], T],
    params: Params,
) -> Call[T]:
    return Call(method, path, read, params, image, _image_type(image))


def _as(model: type[Model]) -> Callable[[httpx2.Response], Model]:
    """Reads an answer as `model`."""
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


def _image_path(image_id: str) -> str:
    if not image_id:
        raise ValueError("image_id is empty")
    name = quote(image_id, safe="")
    # These two would be taken for steps in the path.
    return f"{IMAGES_PATH}/{name.replace('.', '%2E') if name in ('.', '..') else name}"


def _image_type(image: bytes) -> str:
    for image_type, signature in SIGNATURES.items():
        if signature.match(image):
            return image_type
    raise ValueError("not a picture in PNG, JPEG, WebP, GIF, BMP, AVIF or HEIC")
