"""Command `mla index`, which writes a caption table to an index, or removes what is in it."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from mla_ray.cli.options import Int8, Json, NativeName, Skip, emit, one_language, pictures_of

if TYPE_CHECKING:
    from mla_ray.index.indexed import Indexed
    from mla_ray.index.settings import IndexSettings


def index_command(
    index: Annotated[
        str,
        typer.Option(
            help="Index to write: http(s)://host:port of a Qdrant server, or edge:folder. "
            "?prefix=NAME after the port keeps projects on one server apart."
        ),
    ],
    captions: Annotated[
        str | None, typer.Option(help="Caption table to write (Parquet, CSV, TSV, JSONL, …).")
    ] = None,
    pack: Annotated[
        list[str] | None,
        typer.Option(
            help="Pack of a language in the table. Repeat the option for each language but English."
        ),
    ] = None,
    native: NativeName = "emoji-clip",
    language: Annotated[
        str | None,
        typer.Option(
            callback=one_language,
            help="Index only captions of this language. In a table without a language column, all "
            "captions are in this language.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Name of the source, stored with every point. The default is the name of the "
            "table's file."
        ),
    ] = None,
    int8: Int8 = False,
    index_settings: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with the settings of new collections: quantization, shard_number, "
            "replication_factor, write_consistency_factor, on_disk_vectors, on_disk_payload, "
            "hnsw_m, hnsw_ef_construct."
        ),
    ] = None,
    pictures: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL for small copies of the images, which mla serve shows. The default "
            "is pictures/ in the folder of the index, or in the current folder for a server."
        ),
    ] = None,
    no_pictures: Annotated[
        bool,
        typer.Option(
            "--no-pictures", help="Keep no copies of the images. The search page then shows none."
        ),
    ] = False,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync",
            help="Remove entries of the source that are in the index but not in the table.",
        ),
    ] = False,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete",
            help="Instead of writing a table, remove what meets all of --source, --language and "
            "--image-id: images, captions and pictures; with --language captions only.",
        ),
    ] = False,
    image_id: Annotated[
        str | None, typer.Option(help="With --delete: remove only this image and its captions.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --delete: only count what would be removed.")
    ] = False,
    optimize: Annotated[
        bool,
        typer.Option(
            "--optimize",
            help="Instead of writing a table, or after --delete, build the search graph and free "
            "the disk space of removed entries. Captions of an index that was made without words "
            "get them, for hybrid searches.",
        ),
    ] = False,
    status: Annotated[
        bool,
        typer.Option(
            "--status", help="Only print what the index has: collections, points, settings, state."
        ),
    ] = False,
    reencode: Annotated[
        bool,
        typer.Option(
            "--reencode", help="Encode all rows again, also those that the index has unchanged."
        ),
    ] = False,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Write the images and captions of a table to the collections `images` and `captions`.

    Only rows that are new or changed are encoded. With --delete or --optimize, remove entries or
    free space instead. With --status, only print what the index has.
    """
    if status:
        from mla_ray.index.status import status_of

        state = status_of(index)
        emit(state.model_dump(), as_json, state.text())
        return
    with_table = {"--captions": captions, "--pack": pack, "--int8": int8, "--sync": sync}
    _check_options(with_table, delete, optimize, bool(image_id or dry_run))
    if pictures and no_pictures:
        raise typer.BadParameter("--pictures does not go with --no-pictures")
    kept_at = None if no_pictures else pictures or pictures_of(index)
    if captions is None:
        from mla_ray.cli.index_upkeep import upkeep
        from mla_ray.index.entry import Conditions

        given = Conditions(image_id=image_id, language=language, source=source)
        gone = given if delete else None
        upkeep(index, native, kept_at, gone, dry_run=dry_run, optimize=optimize, as_json=as_json)
        return
    from mla_ray.data.table_reader import read_captions
    from mla_ray.index import ingest
    from mla_ray.index.encoders import Encoders
    from mla_ray.index.picture_store import PictureStore
    from mla_ray.packs.card import by_language
    from mla_ray.runtime.console import bars, print_dropped

    settings = _settings(index_settings, int8=int8)
    encoders = Encoders(native, by_language(pack or []))
    known, source = encoders.languages, source or PurePosixPath(captions).stem
    stored = ingest.stored_of_table(index, encoders, captions, source, language, reencode)
    read = read_captions(
        captions,
        language=language,
        languages=() if language else known,
        skip_invalid=skip_invalid,
        check_images=ingest.images_to_check(encoders, source, stored),
    )
    print_dropped(len(read.dropped), read.dropped)
    store = PictureStore(kept_at) if kept_at else None
    with bars() as report:
        done = ingest.index_rows(
            index,
            encoders,
            read.table,
            source,
            report,
            settings=settings,
            stored=stored,
            pictures=store,
        )
    print_dropped(done.rejected, done.reasons)
    result, text = _summary(done)
    if sync:
        # The keys of all rows, including those that were rejected above.
        kept = ingest.keys_of([captions], source, language, known)
        removed = ingest.sync(index, encoders.space, source, kept, store)
        result["removed"] = removed
        text += "\nremoved: " + ", ".join(f"{n:,} {name}" for name, n in removed.items())
    emit(result, as_json, text)


def _summary(done: "Indexed") -> tuple[dict[str, object], str]:
    """Return what `--json` prints of an indexed table, and the lines for a terminal."""
    result: dict[str, object] = {
        **done.written,
        "encoded": done.encoded,
        "unchanged": done.unchanged,
    }
    if done.rejected:
        result["rejected"] = done.rejected
    text = "\n".join(
        f"{name}: {count:,} points (encoded {done.encoded[name]:,}, "
        f"unchanged {done.unchanged[name]:,})"
        for name, count in done.written.items()
    )
    return result, text


def _check_options(
    with_table: Mapping[str, object], delete: bool, optimize: bool, narrowed: bool
) -> None:
    """Check that a table is given, or `--delete` or `--optimize`, and only what goes with it."""
    if narrowed and not delete:
        raise typer.BadParameter("--image-id and --dry-run go with --delete")
    if delete or optimize:
        for option, value in with_table.items():
            if value:
                raise typer.BadParameter(f"{option} does not go with --delete or --optimize")
    elif not with_table["--captions"]:
        raise typer.BadParameter("give --captions, --status, --delete or --optimize")


def _settings(file: Path | None, *, int8: bool) -> "IndexSettings":
    """Return the settings of new collections; `--int8` goes before the file."""
    from mla_ray.index.settings import IndexSettings
    from mla_ray.runtime.settings_file import load_settings

    settings = load_settings(file, IndexSettings) if file else IndexSettings()
    return IndexSettings(quantization="int8").over(settings) if int8 else settings
