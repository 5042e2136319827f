"""Options and output functions that several commands share."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
NativeName = Annotated[
    str,
    typer.Option(
        "--native",
        help="Native model: emoji-clip, a folder, hf-hub:owner/model, or an open_clip model and "
        "tag such as ViT-B-32/openai.",
    ),
]
Skip = Annotated[
    bool,
    typer.Option(
        "--skip-invalid", help="Drop and count invalid rows instead of rejecting the table."
    ),
]
DataFolder = Annotated[
    Path, typer.Option("--data", envvar="MLA_DATA", help="Folder of the data sets and features.")
]
Captions = Annotated[
    str, typer.Option("--captions", help="Caption table (Parquet, CSV, TSV, JSONL, …).")
]
Int8 = Annotated[
    bool,
    typer.Option("--int8", help="Quantize the vectors of new collections to int8, to save memory."),
]
WorkerCount = Annotated[
    str,
    typer.Option(
        help="Number of Ray Train workers, such as 2, or a range such as 1:4. A range uses as many "
        "workers as the cluster has resources for. 0 trains in this process without Ray."
    ),
]
Repo = Annotated[
    str,
    typer.Argument(help="Repository of the pack: hf-hub:owner/name, or a folder or URL."),
]


def one_language(tag: str | None) -> str | None:
    """Return the canonical BCP-47 code of a language. Use it as `typer.Option(callback=…)`.

    Raises:
        typer.BadParameter: The tag is not a language.

    """
    from mla_ray.model.language import UnknownLanguage, canonical

    try:
        return None if tag is None else canonical(tag)
    except UnknownLanguage as error:
        raise typer.BadParameter(str(error)) from error


def some_languages(tags: str | None) -> str | None:
    """Normalize comma-separated languages with `one_language` and remove duplicates.

    The value `all` is returned unchanged.
    """
    if tags is None or tags == "all":
        return tags
    return ",".join(dict.fromkeys(str(one_language(tag.strip())) for tag in tags.split(",")))


def emit(result: Any, as_json: bool, text: str) -> None:
    """Print the result as JSON if `as_json` is set, else print the text."""
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else text)


def pictures_of(index: str) -> str:
    """Return the default picture store of `mla index` and `mla serve` for an index."""
    return f"{index.removeprefix('edge:')}/pictures" if index.startswith("edge:") else "pictures"


def absolute(url: str) -> str:
    """Return a folder as an absolute path, for processes with another working directory.

    The prefix `edge:` is kept. Other URLs are returned unchanged.
    """
    if url.startswith("edge:"):
        return "edge:" + absolute(url.removeprefix("edge:"))
    return url if "://" in url else str(Path(url).expanduser().resolve())
