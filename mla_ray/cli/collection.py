"""Commands `mla collection`, which move the collections of an index, and adopt those of others."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_ray.cli.options import Int8, Json, NativeName, emit

if TYPE_CHECKING:
    from mla_ray.index.foreign import NumpyVectors, QdrantVectors
    from mla_ray.index.transfer import Transferred

collection_app = typer.Typer(
    no_args_is_help=True,
    help="Copy, save and restore the collections of an index, and adopt vectors of other software.",
)

Index = Annotated[
    str, typer.Argument(metavar="INDEX", help="The index: http(s)://, grpc(s):// or edge:folder.")
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--collection",
        help="Name of a collection. Repeat the option for more. The default is images and "
        "captions.",
    ),
]


@collection_app.command("copy")
def collection_copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The index to read.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The index to write.")],
    collection: Names = None,
    as_json: Json = False,
) -> None:
    """Copy the collections of an index to another one, on any engine.

    Nothing is encoded again. Entries that TO has already are skipped, so the same command resumes
    an interrupted copy. At the end the numbers of points and a sample of them are compared.
    """
    from mla_ray.index.transfer import copy_index
    from mla_ray.runtime.console import bars

    with bars() as report:
        done = copy_index(source, target, _names(collection), report)
    _emit_transferred(done, as_json)


@collection_app.command("snapshot")
def collection_snapshot(
    index: Index,
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="New folder for the snapshot, or its URL.")
    ],
    collection: Names = None,
    as_json: Json = False,
) -> None:
    """Save the collections of an index in a folder of Parquet files."""
    from mla_ray.index.snapshot import write_snapshot
    from mla_ray.runtime.console import bars

    with bars() as report:
        counts = write_snapshot(index, _names(collection), folder, report)
    emit(counts, as_json, "\n".join(f"{name}: {n:,} points" for name, n in counts.items()))


@collection_app.command("restore")
def collection_restore(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder of the snapshot, or its URL.")
    ],
    index: Index,
    collection: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a collection. Repeat the option for more. The default is all of the "
            "snapshot."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the collections of a snapshot to an index, on any engine.

    All files are checked first. Entries that INDEX has already are skipped. At the end the numbers
    of points and a sample of them are compared.
    """
    from mla_ray.index.snapshot import restore_snapshot
    from mla_ray.runtime.console import bars

    with bars() as report:
        done = restore_snapshot(folder, index, collection, report)
    _emit_transferred(done, as_json)


@collection_app.command("adopt")
def collection_adopt(
    vectors: Annotated[
        str,
        typer.Argument(
            metavar="FROM",
            help="Image vectors: http(s)://host:port/COLLECTION or grpc(s)://host:port/COLLECTION "
            "of a Qdrant server, or a NumPy file (.npy).",
        ),
    ],
    index: Index,
    native: NativeName = "emoji-clip",
    vector: Annotated[
        str, typer.Option(help="Name of the vector in the collection. The default has no name.")
    ] = "",
    ids: Annotated[
        str | None,
        typer.Option(help="Table with the ids of a NumPy file, one row a vector, in their order."),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(
            help="Payload field or column of the images' ids. The default is the id of the point, "
            "or the column image_id."
        ),
    ] = None,
    image_field: Annotated[
        str | None,
        typer.Option(help="Payload field or column of the images' paths or URLs, for the check."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of the images, for the check. Without --image-field the files have the "
            "ids as names.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Name of the source, stored with every point. The default is the name of the "
            "collection or file."
        ),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Copy nothing: search the collection itself, on its own server. INDEX is then the "
            "same server.",
        ),
    ] = False,
    int8: Int8 = False,
    as_json: Json = False,
) -> None:
    """Make image vectors that other software made with the same native searchable.

    They are copied to the collection `images`, or searched where they are (--in-place). First some
    images are encoded and compared with their vectors, to be sure that the native is the same. The
    vectors are not encoded again.
    """
    from contextlib import closing

    from mla_ray.index.adopt import adopt, adopt_in_place
    from mla_ray.index.foreign import NumpyVectors
    from mla_ray.index.settings import IndexSettings
    from mla_ray.model.native import Native
    from mla_ray.runtime.console import bars, print_dropped

    rejected: list[str] = []
    with closing(_foreign(vectors, vector, ids, id_field, image_field)) as foreign:
        if in_place and (int8 or isinstance(foreign, NumpyVectors)):
            raise typer.BadParameter(
                "--in-place is for a collection as it is, not for a NumPy file or with --int8"
            )
        frozen = Native.load(native)
        with bars() as report:
            to = index, frozen, source or foreign.name, images, report
            if in_place and not isinstance(foreign, NumpyVectors):
                done = adopt_in_place(foreign, *to)
            else:
                done = adopt(
                    foreign,
                    *to,
                    settings=IndexSettings(quantization="int8" if int8 else None),
                    reject=rejected.append,
                )
    print_dropped(len(rejected), rejected)
    found = f"{foreign.total:,} points, in place" if in_place else f"{done.written:,} points"
    text = f"images: {found}\nchecked: {done.checked} images, lowest cosine {done.agreement:.6f}"
    emit(asdict(done), as_json, text)


def _foreign(
    vectors: str, vector: str, ids: str | None, id_field: str | None, image_field: str | None
) -> "NumpyVectors | QdrantVectors":
    from mla_ray.index.foreign import NumpyVectors, QdrantVectors

    if "://" in vectors:
        if ids:
            raise typer.BadParameter("--ids goes with a NumPy file; a collection has its own ids")
        return QdrantVectors(vectors, vector, id_field, image_field)
    if not ids:
        raise typer.BadParameter("a NumPy file needs --ids, a table with one row a vector")
    if vector:
        raise typer.BadParameter("--vector goes with a collection; a NumPy file has no names")
    return NumpyVectors(Path(vectors), ids, id_field or "image_id", image_field)


def _names(collection: list[str] | None) -> list[str]:
    from mla_ray.index.collection import CAPTIONS, IMAGES

    return collection or [IMAGES, CAPTIONS]


def _emit_transferred(done: "dict[str, Transferred]", as_json: bool) -> None:
    lines = [
        f"{name}: {each.points:,} points, {each.written:,} written, {each.checked:,} compared"
        for name, each in done.items()
    ]
    emit({name: asdict(each) for name, each in done.items()}, as_json, "\n".join(lines))
