"""`mla config`: the YAML files that come with mla-ray."""

from typing import Annotated

import typer

from mla_ray.cli.options import Json, emit


def config(
    name: Annotated[
        str | None, typer.Argument(help="Such as serve/config.yaml; lists them if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a configuration that comes with mla-ray, to change and to hand on; or list them.

    `--config` takes a name as it is listed from any folder. Ray's own commands take files:
    `mla config serve/config.yaml > serve.yaml && serve deploy serve.yaml`.
    """
    from mla_ray.runtime.bundled import ROOT, configurations

    names = configurations()
    if name is None:
        emit(names, as_json, "\n".join(names))
        return
    if name not in names:
        raise ValueError(f"no configuration {name!r} comes with mla-ray; `mla config` lists them")
    text = (ROOT / name).read_text()
    emit({"name": name, "text": text}, as_json, text.rstrip("\n"))
