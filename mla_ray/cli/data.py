"""Commands `mla data`, which make and check the tables of data sets."""

from pathlib import Path
from typing import Annotated

import typer

from mla_ray.cli.options import DataFolder, Json, Skip, emit, some_languages

data_app = typer.Typer(no_args_is_help=True, help="Make and check the tables of data sets.")

Root = Annotated[Path, typer.Option("--root", help="Folder of the unpacked data set.")]
Languages = Annotated[
    str, typer.Option(callback=some_languages, help="Comma-separated BCP-47 codes.")
]
SomeLanguages = Annotated[
    str | None,
    typer.Option(
        "--languages",
        callback=some_languages,
        help="Comma-separated BCP-47 codes. The default is all languages of the data set.",
    ),
]


@data_app.command("emoji")
def data_emoji(
    languages: Languages = "en,de",
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("data/emoji/tables"),
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Make tables of emoji drawings with their names from Unicode CLDR.

    The command writes captions.parquet, and pairs-LANGUAGE.parquet for each language but English.
    """
    from mla_ray.datasets.emoji_tables import write_tables
    from mla_ray.runtime.console import bars

    with bars() as report:
        tables = write_tables(data, languages.split(","), out, report)
    _emit_paths(tables, as_json)


@data_app.command("animated")
def data_animated(
    languages: Languages = "en,de",
    out: Annotated[Path, typer.Option(help="Folder for tables and animations.")] = Path(
        "data/animated/tables"
    ),
    part: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=4,
            help="Number of a package of animations (165 to 197 MB). Repeat the option for more "
            "packages. The default is package 1.",
        ),
    ] = None,
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Make tables of animated emoji with their names from Unicode CLDR.

    The command writes captions.parquet, and pairs-LANGUAGE.parquet for each language but English.
    """
    from mla_ray.datasets import animated
    from mla_ray.runtime.console import bars

    with bars() as report:
        tables = animated.tables(data, languages.split(","), out, part or [1], report)
    _emit_paths(tables, as_json)


def _emit_paths(tables: dict[str, Path], as_json: bool) -> None:
    paths = {name: str(path) for name, path in tables.items()}
    emit(paths, as_json, "\n".join(f"{name}: {path}" for name, path in paths.items()))


@data_app.command("stamps")
def data_stamps(
    languages: Languages = "en,de",
    out: Annotated[Path, typer.Option(help="Path of the caption table (Parquet).")] = Path(
        "data/stamps/captions.parquet"
    ),
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Make a test set of Tux Paint's stamps with their descriptions.

    The stamps come from a Debian package of 161 MB.
    """
    from mla_ray.datasets import stamps
    from mla_ray.runtime.console import bars

    with bars() as report:
        deb = stamps.fetch(data / "stamps")
        table = stamps.write_table(deb, languages.split(","), out, report)
    counted = table["language"].value_counts().to_pylist()
    rows = {count["values"]: count["counts"] for count in counted}
    lines = [f"captions: {out}", *(f"{language}: {count:,}" for language, count in rows.items())]
    emit({"captions": str(out), "rows": rows}, as_json, "\n".join(lines))


@data_app.command("make")
def data_make(
    name: Annotated[
        str, typer.Argument(help="Name of a public data set. `mla data check` lists the names.")
    ],
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    languages: SomeLanguages = None,
    pairs_only: Annotated[
        bool, typer.Option("--pairs-only", help="Write only translations, which need no images.")
    ] = False,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Make the tables of a public data set that you have downloaded.

    The command writes captions.parquet. If the set has translations, it also writes
    pairs-LANGUAGE.parquet. `mla data check` prints where to download the set. docs/datasets.md
    shows the layout of its folder.
    """
    from mla_ray.datasets.catalog import make
    from mla_ray.runtime.console import bars, print_dropped, stderr

    with bars() as report:
        tables = make(
            name,
            root,
            out,
            report,
            languages=languages.split(",") if languages else None,
            pairs_only=pairs_only,
            skip_invalid=skip_invalid,
        )
    for warning in tables.warnings:
        stderr.print(f"warning: {warning}")
    print_dropped(tables.dropped, [tables.first_problem])
    lines = [line for tally in tables.tallies for line in tally.lines]
    emit(tables.as_dict(), as_json, "\n".join(lines))


@data_app.command("check")
def data_check(
    root: Root,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of the data set. Without it, the command checks all data sets, each in "
            "ROOT/NAME."
        ),
    ] = None,
    languages: SomeLanguages = None,
    as_json: Json = False,
) -> None:
    """Check which files of a public data set are present, missing, broken or different.

    For a missing file the command prints where to download it. The exit code is 1 if a data set is
    named and a required file is missing or broken.
    """
    from mla_ray.datasets.catalog import CATALOG, check
    from mla_ray.runtime.console import bars

    wanted = languages.split(",") if languages else None
    with bars() as report:
        parts_of = (
            {name: check(name, root, report, wanted)}
            if name
            else {each: check(each, root / each, report) for each in CATALOG}
        )
    result = {each: [part.as_dict() for part in parts] for each, parts in parts_of.items()}
    lines = [line for each, parts in parts_of.items() for line in (each, *(p.line for p in parts))]
    emit(result, as_json, "\n".join(lines))
    if name and any(part.needed for part in parts_of[name]):
        raise typer.Exit(1)
