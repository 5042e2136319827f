"""The HTTP app: the endpoints of `routes`, the search page, and what stands before both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from fastapi import Depends, FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles

from mla_ray.serving import problems, routes
from mla_ray.serving.backend import Backend
from mla_ray.serving.guard import Guard
from mla_ray.serving.head import HeadAsGet
from mla_ray.serving.metrics import Metrics
from mla_ray.serving.openapi import DocumentedApp, problem_responses
from mla_ray.serving.public_path import PublicPath
from mla_ray.serving.service import Service
from mla_ray.serving.settings import Settings

PAGE = Path(__file__).parent / "page"


def create_app(backend: Backend, settings: Settings, replica: str = "local") -> FastAPI:
    """The app in front of a backend; `replica` names it in metrics."""
    metrics = Metrics(replica)
    service = Service(backend, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        following = asyncio.create_task(service.follow_store())
        yield
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following

    app = DocumentedApp(
        title="mla-ray",
        summary="Search images and captions in every acquired language.",
        version=version("mla-ray"),
        lifespan=lifespan,
        dependencies=[Depends(routes.check_query)],
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        responses=problem_responses(401, 413, 421, 422, 429, 500, 503, 504),
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.needs_token = settings.token() is not None
    app.state.service, app.state.metrics = service, metrics
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    app.add_middleware(HeadAsGet)
    app.add_middleware(PublicPath, root_path=settings.root_path)  # the last is the outermost
    problems.install(app)
    app.include_router(routes.router)
    # Not of the router: its script reads the query, and no parameter is refused.
    app.add_route("/", _page, include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE), "page")
    return app


async def _page(request: Request) -> Response:
    html = (PAGE / "index.html").read_text()
    if root := request.scope.get("root_path", ""):  # else relative to where the page is
        html = html.replace('="page/', f'="{root}/page/')
    return Response(html, media_type="text/html")
