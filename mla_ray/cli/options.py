"""Options that commands share, and how they print."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
NativeName = Annotated[
    str, typer.Option("--native", help="emoji-clip, a folder, hf-hub:owner/model, ViT-B-32/openai")
]
Skip = Annotated[bool, typer.Option("--skip-invalid", help="Drop and count bad rows.")]
DataFolder = Annotated[
    Path, typer.Option("--data", envvar="MLA_DATA", help="Where data sets and features are kept.")
]
Captions = Annotated[
    str, typer.Option("--captions", help="Caption table (Parquet, CSV, TSV, JSONL, …).")
]
Repo = Annotated[str, typer.Argument(help="hf-hub:owner/name, or a repository's folder or URL.")]


def one_language(tag: str | None) -> str | None:
    """A language as BCP-47 writes it; what is none is bad usage. For `typer.Option(callback=…)`."""
    from mla_ray.model.language import UnknownLanguage, canonical

    try:
        return None if tag is None else canonical(tag)
    except UnknownLanguage as error:
        raise typer.BadParameter(str(error)) from error


def some_languages(tags: str | None) -> str | None:
    """Comma-separated languages in the same way, each once; `all` as it is."""
    if tags is None or tags == "all":
        return tags
    return ",".join(dict.fromkeys(str(one_language(tag.strip())) for tag in tags.split(",")))


def emit(result: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else text)


def pictures_of(index: str) -> str:
    """Where `mla index` keeps pictures and `mla serve` looks for them, if neither is told."""
    return f"{index.removeprefix('edge:')}/pictures" if index.startswith("edge:") else "pictures"


def absolute(url: str) -> str:
    """A folder as an absolute path, for processes that run elsewhere; other URLs as they are."""
    if url.startswith("edge:"):
        return "edge:" + absolute(url.removeprefix("edge:"))
    return url if "://" in url else str(Path(url).expanduser().resolve())
