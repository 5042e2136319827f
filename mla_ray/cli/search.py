"""Command `mla search`, which searches an index in this process or asks a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, cast

import typer

from mla_ray.cli.options import Json, emit, one_language
from mla_ray.index.limits import MAX_K

if TYPE_CHECKING:
    from mla_ray.index.entry import Entry
    from mla_ray.serving.schemas import Collection, Hit, Mode


class HitRow(TypedDict):
    """A hit as `mla search --json` prints it."""

    image_id: str
    score: float
    language: str
    caption: str
    source: str


def _of_query(tag: str | None) -> str | None:
    return tag if tag == "auto" else one_language(tag)


def search(
    query: Annotated[
        str | None,
        typer.Argument(help="Text of the query, in English or any acquired language."),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            help="Index to search in this process: http(s)://host:port of a Qdrant server, or "
            "edge:folder."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Address of an mla-ray server to ask instead, such as http://127.0.0.1:8000. "
            "MLA_API_TOKEN holds its token."
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            callback=_of_query,
            help="BCP-47 code of the query. The default is en with --index. With --url it is auto, "
            "and the server detects the language.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=MAX_K, help="Number of hits.")] = 10,
    pack: Annotated[
        Path | None,
        typer.Option(
            help="With --index: pack of the query's language. The default is packs/LANGUAGE."
        ),
    ] = None,
    native: Annotated[
        str | None,
        typer.Option(help="With --index: native, as for acquire. The default is emoji-clip."),
    ] = None,
    find: Annotated[
        str | None,
        typer.Option(
            help="Collection to search: images or captions. The default is images, or captions "
            "with --image or --mode hybrid."
        ),
    ] = None,
    in_language: Annotated[
        str | None,
        typer.Option(
            callback=one_language, help="With --url: return only captions of this language."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="With --url: return only entries of this source.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Return only hits with at least this cosine. docs/serving.md explains scores.",
        ),
    ] = None,
    mode: Annotated[
        Literal["vector", "hybrid"],
        typer.Option(
            help="hybrid finds captions also by their words, such as names and codes. Its scores "
            "are those of ranks.",
        ),
    ] = "vector",
    image: Annotated[
        Path | None, typer.Option(help="With --url: image file to search by instead of a text.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search images or captions by a text.

    A server (--url) can also search by an image.
    """
    if mode == "hybrid":
        _refuse("--mode hybrid", {"--min-score": min_score, "--image": image})
        find = find or "captions"
        if find == "images":
            raise typer.BadParameter("--mode hybrid is for captions: --find captions")
    if index is not None and url is None:
        _refuse("--index", {"--in-language": in_language, "--source": source, "--image": image})
        if query is None:
            raise typer.BadParameter("give a text to search for")
        if language == "auto":
            raise typer.BadParameter("--language auto needs a server: --url")
        native, find = native or "emoji-clip", find or "images"
        rows, unknown = _search_index(
            query, index, language or "en", k, min_score, pack, native, find, mode
        )
    elif url is not None and index is None:
        _refuse("--url", {"--pack": pack, "--native": native})
        if (query is None) == (image is None):
            raise typer.BadParameter("give either a text or --image to search for")
        if image is not None:
            _refuse("--image", {"--language": language})
        rows, unknown = _search_server(
            query, url, language, k, min_score, find, in_language, source, image, mode
        )
    else:
        raise typer.BadParameter("give either --index, to search here, or --url, to ask a server")
    if unknown:
        what = "so the hits ignore the query" if unknown == 1 else "the search used the others"
        typer.echo(f"mla: {unknown:.0%} of the query's tokens are unknown, {what}", err=True)
    result = [row | {"unknown_tokens": unknown} for row in rows]  # the same for all hits
    lines = [f"{hit['score']:.3f}  {hit['image_id']}  {hit['caption']}" for hit in result]
    emit(result, as_json, "\n".join(lines))


def _refuse(beside: str, options: dict[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"{option} does not go with {beside}")


def _search_index(
    query: str,
    index: str,
    language: str,
    k: int,
    min_score: float | None,
    pack: Path | None,
    native: str,
    find: str,
    mode: "Mode",
) -> tuple[list[HitRow], float | None]:
    """Search an index. Return the hits and the share of the query's tokens that is unknown."""
    from mla_ray.evaluation.evaluation import encode_query, unknown_in
    from mla_ray.index.collection import CaptionIndex
    from mla_ray.index.ingest import space_of
    from mla_ray.index.lexical import QueryText
    from mla_ray.model.native import Native
    from mla_ray.packs.library import load_packs

    frozen = Native.load(native)
    folders = [] if language == "en" else [pack or Path("packs") / language]
    packs = load_packs(folders, frozen)
    if language != "en" and language not in packs:
        raise ValueError(f"{folders[0]} is a pack for {next(iter(packs))!r}, not for {language!r}")
    vector = encode_query(frozen, packs, language, [query])[0]
    unknown = float(unknown_in(frozen, packs, language, [query])[0])
    with CaptionIndex.open(index, space_of(frozen), find, create=False) as collection:
        hybrid = QueryText(query, language) if mode == "hybrid" else None
        hits = collection.search(vector, k, min_score=min_score, hybrid=hybrid)
    return [_hit_row(hit.entry, hit.score) for hit in hits], unknown


def _search_server(
    query: str | None,
    url: str,
    language: str | None,
    k: int,
    min_score: float | None,
    find: str | None,
    in_language: str | None,
    source: str | None,
    image: Path | None,
    mode: "Mode",
) -> tuple[list[HitRow], float | None]:
    """Ask a server. Return the same as `_search_index`, or None for a share it does not report."""
    from mla_ray.serving.client import Client
    from mla_ray.serving.client_retries import Retry
    from mla_ray.serving.schemas import AUTO

    with Client(url, retry=Retry(attempts=3)) as client:  # few attempts, as a user is waiting
        # The server validates the language and the collection.
        if image is not None:
            page = client.search_image(
                image.read_bytes(),
                find=cast("Collection", find or "captions"),
                k=k,
                min_score=min_score,
                in_language=in_language,
                source=source,
            )
        else:
            page = client.search(
                query or "",
                language=language or AUTO,
                find=cast("Collection", find or "images"),
                k=k,
                min_score=min_score,
                in_language=in_language,
                source=source,
                mode=mode,
            )
    return [_hit_row(hit, hit.score) for hit in page.hits], page.unknown_tokens


def _hit_row(entry: "Entry | Hit", score: float) -> HitRow:
    return {
        "image_id": entry.image_id,
        "score": score,
        "language": entry.language,
        "caption": entry.caption,
        "source": entry.source,
    }
