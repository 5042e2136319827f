"""HTTP endpoints. Each one parses its request and calls one method of `Service`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from mla_ray.index.limits import MAX_OFFSET
from mla_ray.model.text import normalized
from mla_ray.serving.exporters import Registry
from mla_ray.serving.gzip_body import content_of
from mla_ray.serving.openapi import body, image_body, problem_responses
from mla_ray.serving.problems import ProblemError, invalid
from mla_ray.serving.schemas import (
    AUTO,
    CAPTIONS_PATH,
    DEFAULT_K,
    DEFAULT_SOURCE,
    EMBED_IMAGE_PATH,
    EMBED_TEXT_PATH,
    HEALTH_PATH,
    IMAGE_TYPES,
    IMAGES_PATH,
    JSON,
    LANGUAGE_TAG,
    LANGUAGES_PATH,
    MAX_HITS,
    MAX_ID,
    MAX_LANGUAGE,
    MAX_SOURCE,
    MAX_TEXT,
    NDJSON,
    NDJSON_TYPES,
    NOT_BLANK,
    SEARCH_IMAGE_PATH,
    SEARCH_PATH,
    Collection,
    Embeddings,
    Health,
    ImageWritten,
    IngestResult,
    Languages,
    Mode,
    ProblemKind,
    SaysSomething,
    SearchResult,
    TextEmbeddingRequest,
    media_type,
)
from mla_ray.serving.service import Page, Service

router = APIRouter()


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


ServiceOf = Annotated[Service, Depends(_service)]
K = Annotated[int, Query(ge=1, le=MAX_HITS, description="Maximum number of hits.")]
Offset = Annotated[
    int,
    Query(
        ge=0,
        le=MAX_OFFSET,
        description="Number of hits to skip. Use `next_offset` of the previous page.",
    ),
]
Find = Annotated[Collection, Query(description="Collection to search.")]
InLanguage = Annotated[
    str | None,
    Query(
        pattern=LANGUAGE_TAG,
        max_length=MAX_LANGUAGE,
        description="Return only captions of this language (BCP-47). It requires `find=captions`.",
        examples=["de"],
    ),
]
FromSource = Annotated[
    str | None,
    Query(min_length=1, max_length=MAX_SOURCE, description="Return only entries of this source."),
]
MinScore = Annotated[
    float | None,
    Query(
        ge=-1,
        le=1,
        allow_inf_nan=False,
        description="Return only hits with at least this score, which is a cosine.",
    ),
]
InMode = Annotated[
    Mode,
    Query(
        description="`vector` finds what is nearest in the joint space. `hybrid` also finds "
        "captions by their words (BM25), such as names and codes, and fuses both results. It "
        "requires `find=captions`, and goes without `min_score`.",
    ),
]


@router.get(SEARCH_PATH, tags=["search"], responses=problem_responses(404))
async def search(
    service: ServiceOf,
    request: Request,
    q: Annotated[
        str,
        Query(
            min_length=1,
            max_length=MAX_TEXT,
            pattern=NOT_BLANK,
            description="Text of the query, in any language of the server.",
            examples=["Regenschirm"],
        ),
        SaysSomething,
    ],
    language: Annotated[
        str,
        Query(
            pattern=LANGUAGE_TAG,
            min_length=2,
            max_length=MAX_LANGUAGE,
            description=f"Language of the text (BCP-47). `{AUTO}` detects it.",
            examples=["de"],
        ),
    ] = AUTO,
    find: Find = "images",
    k: K = DEFAULT_K,
    offset: Offset = 0,
    in_language: InLanguage = None,
    source: FromSource = None,
    min_score: MinScore = None,
    mode: InMode = "vector",
) -> SearchResult:
    """Return the images or captions nearest to a text. Captions may be in any language."""
    page = Page(find, k, offset, in_language, source, min_score, mode)
    return _under_root(request, await service.search_text(q, language, page))


@router.post(
    SEARCH_IMAGE_PATH,
    tags=["search"],
    openapi_extra=image_body(),
    responses=problem_responses(404, 415),
)
async def search_image(
    service: ServiceOf,
    request: Request,
    find: Find = "captions",
    k: K = DEFAULT_K,
    offset: Offset = 0,
    in_language: InLanguage = None,
    source: FromSource = None,
    min_score: MinScore = None,
) -> SearchResult:
    """Return the captions or images nearest to an image. The body is the image file."""
    page = Page(find, k, offset, in_language, source, min_score)
    return _under_root(request, await service.search_image(await _image(request), page))


@router.post(
    EMBED_TEXT_PATH,
    tags=["embeddings"],
    response_model=Embeddings,
    responses=problem_responses(400, 404),
)
async def embed_text(service: ServiceOf, request: TextEmbeddingRequest) -> Response:
    """Return the vectors of up to 256 texts. Each text has its own language."""
    embedded = await service.embed_texts(request.inputs)
    return Response(embedded.json(request.encoding), media_type=JSON)


@router.post(
    EMBED_IMAGE_PATH,
    tags=["embeddings"],
    response_model=Embeddings,
    openapi_extra=image_body(),
    responses=problem_responses(415),
)
async def embed_image(
    service: ServiceOf,
    request: Request,
    encoding: Annotated[
        str,
        Query(
            pattern="^(float|base64)$",
            description="`float` returns lists of numbers. `base64` returns one string of "
            "little-endian float32 values.",
        ),
    ] = "float",
) -> Response:
    """Return the vector of an image. The body is the image file."""
    embedded = await service.embed_image(await _image(request))
    return Response(embedded.json(encoding), media_type=JSON)


@router.post(
    CAPTIONS_PATH,
    tags=["collections"],
    openapi_extra=body(
        {
            NDJSON: {
                "schema": {"type": "string"},
                "example": '{"image_id": "emoji/1f302", "language": "de", '
                '"caption": "geschlossener Regenschirm", "source": "emoji"}\n',
            }
        }
    ),
    responses=problem_responses(415, 507),
)
async def put_captions(service: ServiceOf, request: Request) -> IngestResult:
    """Encode captions and write them to the collection `captions`.

    The body is NDJSON with one record per line. A bad line is rejected and reported; the other
    lines are written. A record that is sent twice is stored once, so an interrupted request can be
    repeated. The body may be compressed (`Content-Encoding: gzip`). The size limit applies to the
    uncompressed content.
    """
    _check_media_type(request, NDJSON_TYPES)
    encoding = request.headers.get("content-encoding", "")
    return await service.put_captions(content_of(request.stream(), encoding))


@router.put(
    IMAGES_PATH + "/{image_id:path}",
    tags=["collections"],
    openapi_extra=image_body(),
    responses=problem_responses(404, 415, 507),
)
async def put_image(
    service: ServiceOf,
    request: Request,
    image_id: str,
    source: Annotated[
        str, Query(min_length=1, max_length=MAX_SOURCE, description="Name of the data set.")
    ] = DEFAULT_SOURCE,
) -> ImageWritten:
    """Encode an image and write it to the collection `images`. The body is the image file.

    An image of the same source and id is replaced.
    """
    image_id = given_id(image_id)
    written = await service.put_image(image_id, source, await _image(request))
    written.image_url = _public_url(request, written.image_url)
    return written


@router.get(
    IMAGES_PATH + "/{image_id:path}",
    tags=["collections"],
    response_class=Response,
    responses={200: {"content": {"image/webp": {}}}, **problem_responses(404)},
)
async def get_image(
    service: ServiceOf,
    image_id: str,
    source: Annotated[
        str | None,
        Query(
            max_length=MAX_ID,
            description="Source of the image. Optional if only one source has this id.",
        ),
    ] = None,
) -> Response:
    """Return the stored small copy of an image, at most 256 x 256 pixels, as WebP."""
    image_id = given_id(image_id)
    picture = await service.get_image(image_id, source)
    headers = {"Cache-Control": "private, max-age=300"}
    return Response(picture, media_type="image/webp", headers=headers)


@router.get(LANGUAGES_PATH, tags=["collections"])
async def languages(service: ServiceOf) -> Languages:
    """List the languages of the server: English, and every language with a pack in its store."""
    return await service.languages()


@router.get(
    HEALTH_PATH,
    tags=["operations"],
    responses={503: {"model": Health, "description": "A part does not work."}},
)
async def healthz(service: ServiceOf, response: Response) -> Health:
    """Check that the models work and that the index is reachable."""
    health = await service.health()
    response.status_code = 200 if health.status == "ok" else 503
    return health


@router.get(
    "/metrics",
    tags=["operations"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def prometheus(registry: Annotated[Registry, Depends(_registry)]) -> Response:
    """Return the Prometheus metrics of the replica that answers."""
    return Response(registry.render(), media_type="text/plain; version=0.0.4")


async def check_query(request: Request) -> None:
    """Reject query parameters that the endpoint would ignore: unknown or repeated ones.

    Raises:
        ProblemError: Status 422: a parameter is unknown or repeated. The message has its name.

    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            those = f"there are {', '.join(known)}" if known else "there are none"
            raise invalid(("query", name), f"not a parameter of this endpoint; {those}")
        if given.count(name) > 1:
            raise invalid(("query", name), "given more than once")


def _under_root(request: Request, result: SearchResult) -> SearchResult:
    for hit in result.hits:
        hit.image_url = _public_url(request, hit.image_url)
    return result


def _public_url(request: Request, path: str | None) -> str | None:
    """Return a path of the app with the prefix that clients must use."""
    return path and request.scope.get("root_path", "") + path


def given_id(image_id: str) -> str:
    """Normalize an image id as tables do and check its length."""
    image_id = normalized(image_id)
    if not 1 <= len(image_id) <= MAX_ID:
        detail = f"image_id: must have 1 to {MAX_ID} characters"
        raise ProblemError(422, ProblemKind.INVALID_REQUEST, detail)
    return image_id


async def _image(request: Request) -> bytes:
    _check_media_type(request, IMAGE_TYPES)
    return await request.body()


def _check_media_type(request: Request, types: tuple[str, ...]) -> None:
    # A form of another origin cannot send any of these types without a CORS preflight request.
    if media_type(request.headers.get("content-type", "")) not in types:
        detail = f"Content-Type must be {' or '.join(types)}"
        raise ProblemError(415, ProblemKind.UNSUPPORTED_MEDIA_TYPE, detail)
