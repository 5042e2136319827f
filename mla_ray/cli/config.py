"""Command `mla config`, which prints the bundled configuration files."""

from typing import Annotated

import typer

from mla_ray.cli.options import Json, emit


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of a configuration, such as serve/config.yaml. Without it, the command "
            "lists all names."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a bundled configuration file, or list all of them.

    The option `--config` of other commands accepts a listed name in any folder. Ray's own commands
    need a file: `mla config serve/config.yaml > serve.yaml && serve deploy serve.yaml`.
    """
    from mla_ray.runtime.bundled import ROOT, configurations

    names = configurations()
    if name is None:
        emit(names, as_json, "\n".join(names))
        return
    if name not in names:
        raise ValueError(f"no bundled configuration {name!r}; `mla config` lists them")
    text = (ROOT / name).read_text()
    emit({"name": name, "text": text}, as_json, text.rstrip("\n"))
