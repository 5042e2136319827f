"""The HTTP app: routes, and what OpenAPI says of them. What they do is in `service`."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import orjson
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles

from mla_ray.index.collection import CAPTIONS
from mla_ray.index.collection import Hit as Found
from mla_ray.serving.backend import Backend, Row
from mla_ray.serving.engines import Query as IndexQuery
from mla_ray.serving.guard import Guard
from mla_ray.serving.metrics import Metrics
from mla_ray.serving.problems import MEDIA_TYPE, ProblemError, install
from mla_ray.serving.schemas import (
    MAX_ID,
    MAX_K,
    MAX_OFFSET,
    MAX_TEXT,
    Collection,
    Embeddings,
    Health,
    Hit,
    ImageWritten,
    IngestResult,
    Languages,
    Problem,
    SearchResult,
    TextEmbeddingRequest,
)
from mla_ray.serving.service import AUTO, Service
from mla_ray.serving.settings import Settings

PAGE = Path(__file__).parent / "page"
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
NDJSON = "application/x-ndjson"
TAG = r"^[A-Za-z0-9]+([-_][A-Za-z0-9]+)*$"

K = Annotated[int, Query(ge=1, le=MAX_K, description="hits wanted")]
Offset = Annotated[int, Query(ge=0, le=MAX_OFFSET, description="hits to pass over: a later page")]
Find = Annotated[Collection, Query(description="what to look for")]
InLanguage = Annotated[
    str | None,
    Query(
        pattern=TAG, max_length=35, description="captions of this language only", examples=["de"]
    ),
]
FromSource = Annotated[
    str | None, Query(min_length=1, max_length=128, description="entries of this source only")
]
MinScore = Annotated[
    float | None,
    Query(ge=-1, le=1, allow_inf_nan=False, description="no hits of a lower cosine"),
]


def create_app(backend: Backend, settings: Settings, replica: str = "local") -> FastAPI:
    """The app in front of a backend; `replica` names it in metrics."""
    service = Service(backend, settings)
    metrics = Metrics(replica)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        watching = asyncio.create_task(service.watch())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    app = FastAPI(
        title="mla-ray",
        summary="Search images and captions in every acquired language.",
        version=version("mla-ray"),
        lifespan=lifespan,
        dependencies=[Depends(_check_parameters)],
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        responses=_problems(401, 413, 421, 422, 429, 500, 503, 504),
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    install(app)
    _add_search(app, service, metrics)
    _add_embeddings(app, service, metrics)
    _add_collections(app, service)
    _add_operations(app, service, metrics)
    _complete_openapi(app, token=settings.token() is not None)
    return app


def _add_search(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/v1/search", tags=["search"], responses=_problems(404))
    async def search(
        q: Annotated[
            str,
            Query(
                min_length=1,
                max_length=MAX_TEXT,
                pattern=r"\S",
                description="a text in any language served",
                examples=["Regenschirm"],
            ),
        ],
        language: Annotated[
            str,
            Query(
                pattern=TAG,
                min_length=2,
                max_length=35,
                description=f"the text's, BCP-47, or `{AUTO}` to have it detected",
                examples=["de"],
            ),
        ] = AUTO,
        find: Find = "images",
        k: K = 10,
        offset: Offset = 0,
        in_language: InLanguage = None,
        source: FromSource = None,
        min_score: MinScore = None,
    ) -> SearchResult:
        """Images, or captions of any language, nearest to a text."""
        wanted = _wanted(find, in_language, service)
        detected = language == AUTO
        tongue = service.detect(q) if detected else service.resolve(language)
        vector, unknown_tokens = (await service.embed([(tongue, q)]))[0]
        metrics.texts(tongue, 1)
        hits, next_offset = await service.search(
            IndexQuery(find, vector, k, offset, wanted, source, min_score)
        )
        return SearchResult(
            language=tongue,
            detected=detected,
            unknown_tokens=unknown_tokens,
            hits=[_hit(hit, service) for hit in hits],
            offset=offset,
            next_offset=next_offset,
        )

    @app.post(
        "/v1/search/image",
        tags=["search"],
        openapi_extra=_image_body(),
        responses=_problems(404, 415),
    )
    async def search_image(
        request: Request,
        find: Find = "captions",
        k: K = 10,
        offset: Offset = 0,
        in_language: InLanguage = None,
        source: FromSource = None,
        min_score: MinScore = None,
    ) -> SearchResult:
        """Captions of any language, or images, nearest to an image sent as the body."""
        wanted = _wanted(find, in_language, service)
        vector, unknown_tokens = await service.embed_image(await _image(request))
        hits, next_offset = await service.search(
            IndexQuery(find, vector, k, offset, wanted, source, min_score)
        )
        return SearchResult(
            language=None,
            detected=False,
            unknown_tokens=unknown_tokens,
            hits=[_hit(hit, service) for hit in hits],
            offset=offset,
            next_offset=next_offset,
        )


def _add_embeddings(app: FastAPI, service: Service, metrics: Metrics) -> None:
    def answer(found: list[Row], encoding: str) -> Response:
        vectors = np.stack([row.vector for row in found])
        rows: Any = vectors
        if encoding == "base64":
            rows = base64.b64encode(vectors.astype("<f4").tobytes()).decode()
        who = service.identity
        body = {
            "native": who.native,
            "fingerprint": who.fingerprint,
            "dim": who.dim,
            "embeddings": rows,
            "unknown_tokens": [row.unknown_tokens for row in found],
        }
        # orjson writes float32 as it is: shortest, and many times as fast as a list of floats.
        return Response(
            orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
        )

    @app.post(
        "/v1/embeddings/text",
        tags=["embeddings"],
        response_model=Embeddings,
        responses=_problems(400, 404),
    )
    async def embed_text(request: TextEmbeddingRequest) -> Response:
        """Vectors of up to 256 texts, of one language or mixed."""
        tongues: dict[str, str] = {}
        for given in request.inputs:
            if given.language not in tongues:
                tongues[given.language] = service.resolve(given.language)
        texts = [(tongues[given.language], given.text) for given in request.inputs]
        found = await service.embed(texts)
        for tongue in set(tongues.values()):
            metrics.texts(tongue, sum(language == tongue for language, _ in texts))
        return answer(found, request.encoding)

    @app.post(
        "/v1/embeddings/image",
        tags=["embeddings"],
        response_model=Embeddings,
        openapi_extra=_image_body(),
        responses=_problems(415),
    )
    async def embed_image(
        request: Request,
        encoding: Annotated[
            str, Query(pattern="^(float|base64)$", description="as for texts")
        ] = "float",
    ) -> Response:
        """The vector of an image sent as the body."""
        return answer([await service.embed_image(await _image(request))], encoding)


def _add_collections(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/captions",
        tags=["collections"],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    NDJSON: {
                        "schema": {"type": "string"},
                        "example": '{"image_id": "emoji/1f302", "language": "de", '
                        '"caption": "geschlossener Regenschirm", "source": "emoji"}\n',
                    }
                },
            }
        },
        responses=_problems(415),
    )
    async def put_captions(request: Request) -> IngestResult:
        """Embed captions and write them to the collection: NDJSON, one record a line.

        Rejected lines are named and cost nothing but themselves. The same record twice is one
        entry, so a request that broke off can be sent again as it was.
        """
        _expect(request, (NDJSON,))
        return await service.ingest(request.stream())

    @app.put(
        "/v1/images/{image_id:path}",
        tags=["collections"],
        openapi_extra=_image_body(),
        responses=_problems(404, 415),
    )
    async def put_image(
        request: Request,
        image_id: str,
        source: Annotated[str, Query(min_length=1, max_length=128)] = "http",
    ) -> ImageWritten:
        """Embed an image sent as the body and write it to the collection `images`."""
        _check_id(image_id)
        await service.put_image(image_id, source, await _image(request))
        return ImageWritten(image_id=image_id, image_url=_image_url(image_id, source, service))

    @app.get(
        "/v1/images/{image_id:path}",
        tags=["collections"],
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}}, **_problems(404)},
    )
    async def get_image(
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
        _check_id(image_id)
        data = await service.picture(image_id, source)
        if data is None:
            raise ProblemError(404, "unknown-image", "no picture of that id is kept here")
        headers = {"Cache-Control": "private, max-age=300"}
        return Response(data, media_type="image/webp", headers=headers)

    @app.get("/v1/languages", tags=["collections"])
    async def languages() -> Languages:
        """What is served: English, and every language that has a pack in the store."""
        return await service.languages()


def _add_operations(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get(
        "/healthz",
        tags=["operations"],
        responses={503: {"model": Health, "description": "A part does not work."}},
    )
    async def healthz(response: Response) -> Health:
        """Whether every part works: models loaded, index reachable."""
        parts = await service.backend.health()
        ok = all(state == "ok" for state in parts.values())
        response.status_code = 200 if ok else 503
        return Health(status="ok" if ok else "unavailable", parts=parts)

    @app.get(
        "/metrics",
        tags=["operations"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def prometheus() -> Response:
        """Prometheus metrics of the replica that answers."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    async def page(request: Request) -> Response:
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html")

    app.add_route("/", page, include_in_schema=False)  # its script reads the query, none refuses it
    app.mount("/page", StaticFiles(directory=PAGE), "page")


def _hit(found: Found, service: Service) -> Hit:
    entry = found.entry
    return Hit.model_construct(  # of our own making, nothing to validate
        id=entry.id,
        image_id=entry.image_id,
        score=found.score,
        language=entry.language,
        caption=entry.caption,
        source=entry.source,
        image_url=_image_url(entry.image_id, entry.source, service),
    )


def _image_url(image_id: str, source: str, service: Service) -> str | None:
    if not service.pictures:
        return None
    return f"/v1/images/{quote(image_id, safe='')}?source={quote(source, safe='')}"


def _wanted(find: str, in_language: str | None, service: Service) -> str | None:
    """The filter on an entry's language."""
    if in_language is None:
        return None
    if find != CAPTIONS:
        raise _invalid("in_language", f"images have none; leave it out, or find={CAPTIONS}")
    return service.resolve(in_language)


async def _check_parameters(request: Request) -> None:
    """Refuse a query parameter that would be passed over: an unknown one, or one given twice."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none"
            raise _invalid(name, f"no parameter of this endpoint; {there}")
        if given.count(name) > 1:
            raise _invalid(name, "given more than once")


def _invalid(parameter: str, what: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("query", parameter), "msg": what}])


def _check_id(image_id: str) -> None:
    if not 1 <= len(image_id) <= MAX_ID:
        raise ProblemError(422, "invalid-request", f"image_id: 1 to {MAX_ID} characters")


async def _image(request: Request) -> bytes:
    _expect(request, IMAGE_TYPES)
    return await request.body()


def _expect(request: Request, types: tuple[str, ...]) -> None:
    # None of these is a type that a form elsewhere could send across origins unasked.
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in types:
        raise ProblemError(415, "unsupported-media-type", f"Content-Type: {' or '.join(types)}")


def _image_body() -> dict[str, Any]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    content = dict.fromkeys(IMAGE_TYPES, schema)
    return {"requestBody": {"required": True, "content": content}}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meanings = {
        400: "The body cannot be read as JSON.",
        401: "The bearer token is missing or wrong.",
        404: "Unknown language or image.",
        413: "The request is too large.",
        415: "The body is of another type.",
        421: "The server does not answer to that host name.",
        422: "The request is malformed, or the image cannot be read.",
        429: "Too many requests of one client; see Retry-After.",
        500: "The server failed.",
        503: "The server is at its limit; see Retry-After.",
        504: "No answer in time.",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": meanings[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def _complete_openapi(app: FastAPI, token: bool) -> None:
    """Add to the schema what FastAPI cannot know: problems, and the token if there is one."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            if token:
                components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"token": []}]
                schema["paths"]["/healthz"]["get"]["security"] = []
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
