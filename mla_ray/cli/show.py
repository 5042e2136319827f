"""Commands `mla serve` and `mla demo`."""

from pathlib import Path
from typing import Annotated

import typer

from mla_ray.cli.options import (
    DataFolder,
    Json,
    NativeName,
    WorkerCount,
    absolute,
    emit,
    one_language,
    pictures_of,
)


def serve(
    packs: Annotated[
        str | None,
        typer.Option(
            help="Pack store: a folder or an fsspec URL. The default is the packs of the demo."
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            help="Index to serve: edge:folder, or http(s)://host:port of a Qdrant server."
        ),
    ] = None,
    pictures: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL of the pictures for the search page. The default is the folder "
            "where mla index keeps them."
        ),
    ] = None,
    native: NativeName = "emoji-clip",
    host: Annotated[
        str,
        typer.Option(help="Address to bind. Any address but loopback requires MLA_API_TOKEN."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name that requests may use, or '*' for any name. Repeat the option for more "
            "names."
        ),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Rate limit of one client, such as 100/second.")
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            help="Path prefix under which a reverse proxy publishes the server, such as /search."
        ),
    ] = "",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Port on loopback at which Prometheus finds the metrics of all replicas. Without "
            "it, Ray takes a free port.",
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the search page in a browser.")
    ] = True,
    run: Annotated[
        Path, typer.Option(help="Run folder of the demo, which is served without --packs.")
    ] = Path("runs/demo"),
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Serve the encoders, the index and the search page on this machine until interrupted.

    Without --packs and --index, the command serves the emoji of the demo. If no language has been
    acquired yet, it runs the demo first. Packs that are added to the store, replaced or removed
    take effect while the server runs.
    """
    from mla_ray.serving.local import serve_until_stopped
    from mla_ray.serving.settings import LOOPBACK, Settings

    if (packs is None) != (index is None):
        raise ValueError("--packs and --index go together; give both, or neither for the emoji")
    if packs is None or index is None:
        from mla_ray.demo.showcase import prepare

        shown = prepare(run, data)
        packs, index, pictures = shown.packs, shown.index, pictures or shown.pictures
    elif pictures is None and Path(kept := pictures_of(index)).is_dir():
        pictures = kept
    loopback = host in ("127.0.0.1", "::1", "localhost")
    settings = Settings(
        native=native,
        packs=absolute(packs),
        index=absolute(index),
        pictures=absolute(pictures) if pictures else None,
        hosts=name or (LOOPBACK if loopback else ["*"]),
        rate=rate,
        root_path=root_path,
    )
    settings.token()

    def ready(url: str) -> None:
        emit({"url": url}, as_json, f"mla-ray is at {url} – Ctrl-C stops it")
        if open_page and not as_json:
            import webbrowser

            webbrowser.open(url)

    serve_until_stopped(settings, host, port, ready, metrics_port)


def demo(
    language: Annotated[
        str,
        typer.Option(
            callback=one_language,
            help="BCP-47 code of a language in which Unicode CLDR has names of emoji.",
        ),
    ] = "de",
    run: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("runs/demo"),
    data: DataFolder = Path("data"),
    workers: WorkerCount = "1",
    as_json: Json = False,
) -> None:
    """Acquire a language on emoji, then evaluate, index and search it."""
    from mla_ray.demo.demo import print_result, run_demo
    from mla_ray.training.workers import Workers

    result = run_demo(language, run, data, Workers.parse(workers))
    if as_json:
        emit(result, as_json, "")
    else:
        print_result(result)
