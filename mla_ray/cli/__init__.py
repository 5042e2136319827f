"""Command line `mla`.

Every command writes its result to standard output (`--json` for scripts) and its progress to
standard error. The exit code is 0 for success, 1 for bad input and 2 for bad usage.
"""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from mla_ray.cli.collection import collection_app
from mla_ray.cli.config import config
from mla_ray.cli.data import data_app
from mla_ray.cli.evaluate import evaluate
from mla_ray.cli.index import index_command
from mla_ray.cli.job import job_app
from mla_ray.cli.pack import pack_app
from mla_ray.cli.reproduce import reproduce
from mla_ray.cli.search import search
from mla_ray.cli.show import demo, serve
from mla_ray.cli.train import acquire, finetune, sweep
from mla_ray.runtime.cluster import VERBOSE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Add a language to a frozen English CLIP in minutes.",
)
app.add_typer(data_app, name="data")
app.add_typer(pack_app, name="pack")
app.add_typer(collection_app, name="collection")
app.add_typer(job_app, name="job")
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "acquire": acquire,
    "sweep": sweep,
    "evaluate": evaluate,
    "index": index_command,
    "search": search,
    "serve": serve,
    "finetune": finetune,
    "reproduce": reproduce,
    "config": config,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mla-ray {version('mla-ray')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also print Ray's own log lines.")
    ] = False,
) -> None:
    if verbose:
        os.environ[VERBOSE] = "1"


def main() -> None:
    """Run the command line. Errors of the input are printed as one message, without a traceback."""
    try:
        app(prog_name="mla")
    except (ValueError, OSError, LookupError, RuntimeError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        typer.echo(f"mla: {message}", err=True)
        sys.exit(1)
