"""The HTTP endpoints: each reads its request, calls one method of the service, gives its answer."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from mla_ray.index.limits import MAX_OFFSET
from mla_ray.model.text import normalized
from mla_ray.serving.gzip_body import content_of
from mla_ray.serving.metrics import Metrics
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


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


ServiceOf = Annotated[Service, Depends(_service)]
K = Annotated[int, Query(ge=1, le=MAX_HITS, description="hits wanted")]
Offset = Annotated[int, Query(ge=0, le=MAX_OFFSET, description="hits to pass over: a later page")]
Find = Annotated[Collection, Query(description="what to look for")]
InLanguage = Annotated[
    str | None,
    Query(
        pattern=LANGUAGE_TAG,
        max_length=MAX_LANGUAGE,
        description="captions of this language only",
        examples=["de"],
    ),
]
FromSource = Annotated[
    str | None,
    Query(min_length=1, max_length=MAX_SOURCE, description="entries of this source only"),
]
MinScore = Annotated[
    float | None,
    Query(ge=-1, le=1, allow_inf_nan=False, description="no hits of a lower cosine"),
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
            description="a text in any language served",
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
            description=f"the text's, BCP-47, or `{AUTO}` to have it detected",
            examples=["de"],
        ),
    ] = AUTO,
    find: Find = "images",
    k: K = DEFAULT_K,
    offset: Offset = 0,
    in_language: InLanguage = None,
    source: FromSource = None,
    min_score: MinScore = None,
) -> SearchResult:
    """Images, or captions of any language, nearest to a text."""
    page = Page(find, k, offset, in_language, source, min_score)
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
    """Captions of any language, or images, nearest to an image sent as the body."""
    page = Page(find, k, offset, in_language, source, min_score)
    return _under_root(request, await service.search_image(await _image(request), page))


@router.post(
    EMBED_TEXT_PATH,
    tags=["embeddings"],
    response_model=Embeddings,
    responses=problem_responses(400, 404),
)
async def embed_text(service: ServiceOf, request: TextEmbeddingRequest) -> Response:
    """Vectors of up to 256 texts, of one language or mixed."""
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
        str, Query(pattern="^(float|base64)$", description="as for texts")
    ] = "float",
) -> Response:
    """The vector of an image sent as the body."""
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
    """Embed captions and write them to the collection: NDJSON, one record a line.

    Rejected lines are named and cost nothing but themselves. The same record twice is one
    entry, so a request that broke off can be sent again as it was. A body may be gzip
    (`Content-Encoding: gzip`); its size is that of the content.
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
    source: Annotated[str, Query(min_length=1, max_length=MAX_SOURCE)] = DEFAULT_SOURCE,
) -> ImageWritten:
    """Embed an image sent as the body and write it to the collection `images`."""
    image_id = _given_id(image_id)
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
            description="whose image it is; may be left out where only one source has that id",
        ),
    ] = None,
) -> Response:
    """The picture of an image, at most 256 x 256 pixels."""
    image_id = _given_id(image_id)
    picture = await service.get_image(image_id, source)
    headers = {"Cache-Control": "private, max-age=300"}
    return Response(picture, media_type="image/webp", headers=headers)


@router.get(LANGUAGES_PATH, tags=["collections"])
async def languages(service: ServiceOf) -> Languages:
    """What is served: English, and every language that has a pack in the store."""
    return await service.languages()


@router.get(
    HEALTH_PATH,
    tags=["operations"],
    responses={503: {"model": Health, "description": "A part does not work."}},
)
async def healthz(service: ServiceOf, response: Response) -> Health:
    """Whether every part works: models loaded, index reachable."""
    health = await service.health()
    response.status_code = 200 if health.status == "ok" else 503
    return health


@router.get(
    "/metrics",
    tags=["operations"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def prometheus(metrics: Annotated[Metrics, Depends(_metrics)]) -> Response:
    """Prometheus metrics of the replica that answers."""
    return Response(metrics.render(), media_type="text/plain; version=0.0.4")


async def check_query(request: Request) -> None:
    """Refuse a query parameter that would be passed over: an unknown one, or one given twice."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            those = f"there are {', '.join(known)}" if known else "there are none"
            raise invalid(("query", name), f"no parameter of this endpoint; {those}")
        if given.count(name) > 1:
            raise invalid(("query", name), "given more than once")


def _under_root(request: Request, result: SearchResult) -> SearchResult:
    for hit in result.hits:
        hit.image_url = _public_url(request, hit.image_url)
    return result


def _public_url(request: Request, path: str | None) -> str | None:
    """A path of the app's, as clients have to ask for it."""
    return path and request.scope.get("root_path", "") + path


def _given_id(image_id: str) -> str:
    """As tables have it, and within its bounds."""
    image_id = normalized(image_id)
    if not 1 <= len(image_id) <= MAX_ID:
        detail = f"image_id: 1 to {MAX_ID} characters"
        raise ProblemError(422, ProblemKind.INVALID_REQUEST, detail)
    return image_id


async def _image(request: Request) -> bytes:
    _check_media_type(request, IMAGE_TYPES)
    return await request.body()


def _check_media_type(request: Request, types: tuple[str, ...]) -> None:
    # None of these is a type that a form elsewhere could send across origins unasked.
    if media_type(request.headers.get("content-type", "")) not in types:
        detail = f"Content-Type: {' or '.join(types)}"
        raise ProblemError(415, ProblemKind.UNSUPPORTED_MEDIA_TYPE, detail)
