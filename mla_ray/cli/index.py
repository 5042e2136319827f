"""Command `mla index`, which writes a caption table to the collections of an index."""

from pathlib import PurePosixPath
from typing import Annotated

import typer

from mla_ray.cli.options import Captions, Json, NativeName, Skip, emit, one_language, pictures_of


def index_command(
    captions: Captions,
    index: Annotated[
        str,
        typer.Option(
            help="Index to write: http(s)://host:port of a Qdrant server, or edge:folder."
        ),
    ],
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
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantize the vectors of new collections to int8, to save memory."
        ),
    ] = False,
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

    Only rows that are new or changed are encoded.
    """
    from mla_ray.data.table_reader import read_captions
    from mla_ray.index import ingest
    from mla_ray.index.encoders import Encoders
    from mla_ray.index.picture_store import PictureStore
    from mla_ray.packs.card import by_language
    from mla_ray.runtime.console import bars, print_dropped

    if pictures and no_pictures:
        raise typer.BadParameter("--pictures does not go with --no-pictures")
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
    store = None if no_pictures else PictureStore(pictures or pictures_of(index))
    with bars() as report:
        done = ingest.index_rows(
            index,
            encoders,
            read.table,
            source,
            report,
            quantization="int8" if int8 else None,
            stored=stored,
            pictures=store,
        )
    print_dropped(done.rejected, done.reasons)
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
    if sync:
        # The keys of all rows, including those that were rejected above.
        kept = ingest.keys_of([captions], source, language, known)
        removed = ingest.sync(index, encoders.space, source, kept, store)
        result["removed"] = removed
        text += "\nremoved: " + ", ".join(f"{n:,} {name}" for name, n in removed.items())
    emit(result, as_json, text)
