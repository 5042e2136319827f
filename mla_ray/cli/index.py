"""`mla index`: a caption table into the collections that are searched."""

from pathlib import PurePosixPath
from typing import Annotated

import typer

from mla_ray.cli.options import Captions, Json, NativeName, Skip, emit, one_language, pictures_of


def index_command(
    captions: Captions,
    index: Annotated[str, typer.Option(help="http(s)://host:port, or edge:folder")],
    pack: Annotated[list[str] | None, typer.Option(help="Packs of the table's languages.")] = None,
    native: NativeName = "emoji-clip",
    language: Annotated[
        str | None, typer.Option(callback=one_language, help="Index captions of this one only.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Name kept with every point.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Make new collections quantized: less memory.")
    ] = False,
    pictures: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL for small copies, which mla serve shows; pictures/ in the folder "
            "of the index if not given."
        ),
    ] = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Keep none; the page then has none to show.")
    ] = False,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync", help="Remove what the source has in the index and the table no longer has."
        ),
    ] = False,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Embed a table's images and captions into the collections `images` and `captions`."""
    from mla_ray.data.table_reader import read_captions
    from mla_ray.index import ingest
    from mla_ray.index.picture_store import PictureStore
    from mla_ray.model.language import ENGLISH
    from mla_ray.model.native import Native
    from mla_ray.packs.card import read_card
    from mla_ray.packs.library import load_packs
    from mla_ray.runtime.console import bars, print_dropped

    if pictures and no_pictures:
        raise typer.BadParameter("--pictures does not go with --no-pictures")
    known = [ENGLISH, *(read_card(folder).language for folder in pack or [])]
    read = read_captions(
        captions,
        language=language,
        languages=() if language else known,
        skip_invalid=skip_invalid,
    )
    print_dropped(len(read.dropped), read.dropped)
    frozen = Native.load(native)
    packs = load_packs(pack or [], frozen)
    source = source or PurePosixPath(captions).stem
    store = None if no_pictures else PictureStore(pictures or pictures_of(index))
    rejected: list[str] = []
    with bars() as report:
        written = ingest.index_captions(
            index,
            frozen,
            packs,
            read.table,
            source,
            report,
            quantization="int8" if int8 else None,
            reject=rejected.append,
        )
        if store:
            ingest.keep_pictures(read.table, source, store, report)
    print_dropped(len(rejected), rejected)
    result: dict[str, object] = {**written}
    if rejected:
        result["rejected"] = len(rejected)
    text = "\n".join(f"{name}: {n:,} points" for name, n in written.items())
    if sync:
        # Of all its rows, whatever was left out above.
        kept = ingest.keys_of([captions], source, language, known)
        removed = ingest.sync(index, ingest.space_of(frozen), source, kept, store)
        result["removed"] = removed
        text += "\nremoved: " + ", ".join(f"{n:,} {name}" for name, n in removed.items())
    emit(result, as_json, text)
