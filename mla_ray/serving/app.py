"""Construction of the HTTP app: endpoints, search page and middleware."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Lifespan

from mla_ray.index.picture_store import PictureStore
from mla_ray.serving import collection_routes, problems, routes
from mla_ray.serving.backend import Backend
from mla_ray.serving.collection_service import CollectionService
from mla_ray.serving.exporters import Exporter, Registry, Several
from mla_ray.serving.guard import Guard
from mla_ray.serving.head import HeadAsGet
from mla_ray.serving.metrics import Metrics
from mla_ray.serving.openapi import DocumentedApp, problem_responses
from mla_ray.serving.public_path import PublicPath
from mla_ray.serving.service import Service
from mla_ray.serving.settings import Settings

PAGE = Path(__file__).parent / "page"
QUEUES_EVERY_S = 1.0
"""Seconds between two measurements of the queues."""


def create_app(
    backend: Backend, settings: Settings, replica: str = "local", exporters: Sequence[Exporter] = ()
) -> FastAPI:
    """Create the app in front of a backend.

    Args:
        backend: Encoders and index.
        settings: Settings of the server.
        replica: Value of the label `replica` in the metrics at `/metrics`.
        exporters: Further destinations of the metrics.

    """
    registry = Registry(replica)
    metrics = Metrics(Several(registry, *exporters))
    pictures = PictureStore(settings.pictures) if settings.pictures else None
    service = Service(backend, settings, metrics, pictures)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        following = [
            asyncio.create_task(follow)
            for follow in (
                service.follow_store(),
                service.follow_replicas(),
                _follow_queues(service, metrics),
            )
        ]
        yield
        for task in following:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = _documented_app(lifespan)
    app.needs_token = settings.token() is not None
    app.state.service, app.state.registry = service, registry
    app.state.collections = CollectionService(backend, pictures)
    app.add_middleware(
        Guard, settings=settings, metrics=metrics, expected_wait_s=service.expected_wait_s
    )
    app.add_middleware(HeadAsGet)
    # The middleware that is added last runs first.
    app.add_middleware(PublicPath, root_path=settings.root_path)
    problems.install(app)
    # A plain route, so that `check_query` does not apply: the page's script reads the query.
    app.add_route("/", _page, include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE), "page")
    return app


def openapi_schema() -> dict[str, Any]:
    """Return the OpenAPI schema that a server without a token has at `/openapi.json`."""
    return _documented_app().openapi()


def _documented_app(lifespan: Lifespan[DocumentedApp] | None = None) -> DocumentedApp:
    app = DocumentedApp(
        title="mla-ray",
        summary="Search images and captions in every acquired language.",
        version=version("mla-ray"),
        lifespan=lifespan,
        dependencies=[Depends(routes.check_query)],
        docs_url=None,  # FastAPI's page loads scripts from another origin
        redoc_url=None,
        responses=problem_responses(401, 413, 421, 422, 429, 500, 503, 504),
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(routes.router)
    app.include_router(collection_routes.router)
    return app


async def _follow_queues(service: Service, metrics: Metrics) -> None:
    while True:
        metrics.queued(service.queued())
        await asyncio.sleep(QUEUES_EVERY_S)


async def _page(request: Request) -> Response:
    html = (PAGE / "index.html").read_text()
    if root := request.scope.get("root_path", ""):  # without it, relative addresses are right
        html = html.replace('="page/', f'="{root}/page/')
    return Response(html, media_type="text/html")
