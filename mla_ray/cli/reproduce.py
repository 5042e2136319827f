"""Command `mla reproduce`, which repeats the ablations of the paper."""

from pathlib import Path
from typing import Annotated

import typer

from mla_ray.cli.options import DataFolder, Json, NativeName, emit, some_languages


def reproduce(
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="Names of ablation tables. The default is all tables."),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            callback=some_languages,
            help="Comma-separated BCP-47 codes. The default is 12 languages of several scripts.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds for each run, counted from seed 0.")
    ] = 3,
    run: Annotated[
        Path,
        typer.Option(help="Folder of the records. The same command continues with its records."),
    ] = Path("runs/reproduce"),
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the result page. The default is the folder of --run."),
    ] = None,
    records_file: Annotated[
        Path | None,
        typer.Option("--from", help="Existing records to start from, such as docs/results.jsonl."),
    ] = None,
    only_page: Annotated[
        bool,
        typer.Option("--page", help="Write the page from the existing records, without new runs."),
    ] = False,
    native: NativeName = "emoji-clip",
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Repeat the paper's ablations on emoji.

    The command writes tables and a plot, and says which of the paper's claims hold.
    """
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
