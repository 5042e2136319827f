"""A Hugging Face hub for tests: the few endpoints that push and pull need, on a real socket.

What stands in it is bytes in memory. `*.safetensors` go the way of large files (git LFS).
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TOKEN = "hf_test"  # noqa: S105
Files = dict[str, bytes]


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, Files] = field(default_factory=lambda: {"0" * 40: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def files(self, revision: str) -> tuple[str, Files] | None:
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None

    def commit(self, branch: str, files: Files) -> str:
        everything = self.commits[self.refs[branch]] | files
        commit = hashlib.sha1(repr(everything).encode(), usedforsecurity=False).hexdigest()
        self.commits[commit], self.refs[branch] = everything, commit
        return commit


@dataclass
class Hub:
    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large: Files = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    lies: dict[str, int | None] = field(default_factory=dict)
    """Sizes to list for files, whatever they are."""


def _refused(status: int, code: str) -> Response:
    return JSONResponse({"error": code}, status, headers={"X-Error-Code": code})


def _app(hub: Hub) -> FastAPI:
    app = FastAPI()

    def may(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {TOKEN}"

    @app.middleware("http")
    async def guard(request: Request, go_on):  # type: ignore[no-untyped-def]
        hub.requests.append(f"{request.method} {request.url.path}")
        name = next((n for n in hub.repos if f"/{n}" in request.url.path), None)
        if name and hub.repos[name].private and not may(request):
            return _refused(401, "RepoNotFound")
        if (
            request.method in ("POST", "PUT")
            and not may(request)
            and "/lfs/" not in str(request.url)
        ):
            return JSONResponse({"error": "Invalid username or password."}, 401)
        return await go_on(request)

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        known = name in hub.repos
        hub.repos.setdefault(name, Repo(asked.get("visibility") == "private"))
        return JSONResponse({"url": f"{hub.url}/{name}"}, 409 if known else 200)

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> Response:
        text = (await request.json())["content"]
        wrong = [{"message": '"license" must be one of …'}] if "license: my-own" in text else []
        return JSONResponse({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    @app.post("/api/models/{owner}/{name}/branch/{branch}")
    async def branch(owner: str, name: str, branch: str) -> Response:
        refs = hub.repos[f"{owner}/{name}"].refs
        known = branch in refs
        refs.setdefault(branch, refs["main"])
        return JSONResponse({}, 409 if known else 200)

    @app.post("/api/models/{owner}/{name}/preupload/{branch}")
    async def preupload(request: Request) -> Response:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in (await request.json())["files"]
        ]
        return JSONResponse({"files": files})

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request) -> Response:
        objects = (await request.json())["objects"]
        for item in objects:
            if item["oid"] not in hub.large:
                item["actions"] = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}
        return JSONResponse({"objects": objects, "transfer": "basic"})

    @app.put("/lfs/{oid}")
    async def put(oid: str, request: Request) -> Response:
        hub.large[oid] = await request.body()
        return Response()

    @app.post("/api/models/{owner}/{name}/commit/{branch}")
    async def commit(owner: str, name: str, branch: str, request: Request) -> Response:
        files: Files = {}
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
        oid = hub.repos[f"{owner}/{name}"].commit(branch, files)
        url = f"{hub.url}/{owner}/{name}/commit/{oid}"
        return JSONResponse({"commitUrl": url, "commitOid": oid, "success": True})

    @app.get("/api/models/{owner}/{name}")
    @app.get("/api/models/{owner}/{name}/revision/{revision}")
    async def info(owner: str, name: str, revision: str = "main") -> Response:
        if (repo := hub.repos.get(f"{owner}/{name}")) is None:
            return _refused(404, "RepoNotFound")
        if (found := repo.files(revision)) is None:
            return _refused(404, "RevisionNotFound")
        sizes = {name: len(data) for name, data in found[1].items()} | hub.lies
        siblings = [{"rfilename": n, "size": s} for n, s in sizes.items()]
        return JSONResponse(
            {
                "id": f"{owner}/{name}",
                "sha": found[0],
                "private": repo.private,
                "siblings": siblings,
            }
        )

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(owner: str, name: str, revision: str, path: str) -> Response:
        found = hub.repos[f"{owner}/{name}"].files(revision)
        if found is None or path not in found[1]:
            return _refused(404, "EntryNotFound")
        data = found[1][path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return Response(data, headers={"ETag": etag, "X-Repo-Commit": found[0]})

    return app


@contextmanager
def running_hub() -> Iterator[Hub]:
    """For the body of a `with`, at `Hub.url`."""
    hub = Hub()
    server = uvicorn.Server(
        uvicorn.Config(_app(hub), host="127.0.0.1", port=0, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the hub of the tests did not start")
            thread.join(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        hub.url = f"http://127.0.0.1:{port}"
        yield hub
    finally:
        server.should_exit = True
        thread.join(10)
