"""What reproduces: `mla reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from mla_ray.cli.options import DataFolder, Json, NativeName, emit, some_languages


def reproduce(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Tables of the ablations; all if none is named.")
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            callback=some_languages, help="Comma-separated; twelve of several scripts if not given."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each run, from 0 on.")] = 3,
    run: Annotated[
        Path, typer.Option(help="Where records are kept; the same again goes on with them.")
    ] = Path("runs/reproduce"),
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page; that of --run if not given.")
    ] = None,
    records_file: Annotated[
        Path | None,
        typer.Option("--from", help="Records of others to go on from, such as docs/results.jsonl."),
    ] = None,
    only_page: Annotated[
        bool, typer.Option("--page", help="Write the page of the records there are; run nothing.")
    ] = False,
    native: NativeName = "emoji-clip",
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Remake the paper's ablations on emoji: tables, a plot, and which of its claims held."""
    from mla_ray.reproduce import ablations, page
    from mla_ray.reproduce.ablation_data import prepare_data
    from mla_ray.reproduce.figures import Results
    from mla_ray.reproduce.grid import measure_all
    from mla_ray.reproduce.records import Records, begin_with
    from mla_ray.runtime.cluster import ray_session
    from mla_ray.runtime.console import bars

    unknown = sorted(set(tables or []) - set(ablations.TABLES))
    if unknown:
        known = ", ".join(ablations.TABLES)
        raise ValueError(f"no table {', '.join(unknown)}; there are {known}")
    chosen = [ablations.TABLES[name] for name in tables or ablations.TABLES]
    of = tuple(languages.split(",")) if languages else ablations.LANGUAGES
    every = ablations.runs(chosen, of, range(seeds))
    run = run.absolute()
    if records_file is not None:
        begin_with(records_file, run)
    with bars() as report:
        bert = not only_page and any(
            v.settings.get("vocabulary") for t in chosen for v in t.variants
        )
        made = prepare_data(native, of, data.absolute(), run, report, with_bert=bert)
        if only_page:
            records = Records.open(run, made)
        else:
            with ray_session():
                records = measure_all(every, made, run, report)
    found = records.of(every)
    results = Results(found, of, range(seeds))
    command = " ".join(["mla reproduce", *(tables or [])])
    if languages:
        command += f" --languages {languages}"
    if seeds != len(ablations.SEEDS):
        command += f" --seeds {seeds}"
    figures = page.write(results, chosen, out or run, command)
    done = len(found) - 1
    emit(figures, as_json, f"{done} of {len(every)} runs: {(out or run) / 'results.md'}")
