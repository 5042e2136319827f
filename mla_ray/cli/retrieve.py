"""What retrieves: `mla evaluate`, `mla index`, `mla search`."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mla_ray.cli.options import Captions, Json, NativeName, Skip, emit, one_language
from mla_ray.index.limits import MAX_K

if TYPE_CHECKING:
    from mla_ray.serving.schemas import Collection


def evaluate(
    captions: Captions,
    pack: Annotated[
        list[str] | None, typer.Option(help="Language pack to evaluate; may be repeated.")
    ] = None,
    native: NativeName = "emoji-clip",
    language: Annotated[
        str | None, typer.Option(callback=one_language, help="en measures the native itself.")
    ] = None,
    english: Annotated[
        bool, typer.Option("--english", help="Measure the native itself beside the packs.")
    ] = False,
    split: Annotated[str, typer.Option()] = "test",
    protocol: Annotated[
        str, typer.Option(help="full, or a data set's: multi30k, coco-5x1k, coco-cn, xtd, ...")
    ] = "full",
    k: Annotated[
        list[int] | None, typer.Option("-k", min=1, help="R@k besides 1, 5, 10; may be repeated.")
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="95 % intervals of AR and R@k, by bootstrap.")
    ] = False,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Recall@1, 5, 10 both ways of packs, or of the native on its English rows."""
    from functools import partial

    from mla_ray.evaluation.captions import CaptionTable
    from mla_ray.evaluation.evaluation import encode_query, printed, rows_of, unknown_in
    from mla_ray.evaluation.evaluation import evaluate as measure
    from mla_ray.evaluation.protocols import find
    from mla_ray.model.native import Native
    from mla_ray.packs.card import read_card
    from mla_ray.packs.store import load_packs
    from mla_ray.runtime.console import bars, tell_dropped
    from mla_ray.runtime.progress import counting

    chosen = find(protocol)
    if not pack and language not in (None, "en"):
        raise ValueError(f"--language {language} needs its --pack; the native knows English only")
    tongues = [] if pack and not english else ["en"]
    for folder in pack or []:
        tongue = read_card(folder).language
        if language not in (None, tongue):
            raise ValueError(f"{folder} is a pack for {tongue!r}, not for {language!r}")
        if tongue in tongues:
            raise ValueError(f"{folder}: {tongue!r} is measured already; give one pack a language")
        tongues.append(tongue)
    with bars() as report:
        table = CaptionTable.read(
            captions, tongues, split=split, skip_invalid=skip_invalid, report=report
        )
        tell_dropped(table.dropped, table.problems)
        sizes = {tongue: rows_of(table.rows, tongue, chosen).num_rows for tongue in tongues}
        frozen = Native.load(native)
        packs = load_packs(pack or [], frozen)
        gallery = table.gallery(frozen, report)
        found = []
        for tongue, size in sizes.items():
            found.append(
                measure(
                    partial(encode_query, frozen, packs, tongue),
                    tongue,
                    table.rows,
                    gallery,
                    counting(report, f"{tongue} captions", size),
                    protocol=chosen,
                    ranked=counting(report, f"{tongue} ranking", 2 * size),
                    unknown=partial(unknown_in, frozen, packs, tongue),
                )
            )
        result = printed(found, k or (), with_intervals=intervals)
    emit(result, as_json, _evaluation_text(result))


def _evaluation_text(result: dict[str, Any]) -> str:
    """One language at length; several as a table, with the mean."""
    if "languages" in result:
        rows = [*result["languages"], {"language": "mean", **result["mean"]}]
        ks = list(result["mean"]["t2i"])
        titles = "".join(f"{k:>7}" for k in ks)
        lines = [
            f"{'':12}{'text→image':^{7 * len(ks)}}{'image→text':^{7 * len(ks)}}",
            f"{'':12}{titles}{titles}{'AR':>7}",
        ]
        for row in rows:
            cells = [row[way][k] for way in ("t2i", "i2t") for k in ks]
            figures = "".join(f"{cell:7.1f}" for cell in [*cells, row["AR"]])
            lines.append(f"{row['language']:12}{figures}{_interval(row, 'AR')}")
        told = [f"{row['language']}:{said}" for row in rows for said in _unknown_text(row)]
        return "\n".join([*lines, *told])
    lines = [
        f"{result['language']}: AR {result['AR']:.1f}{_interval(result, 'AR')} over "
        f"{result['captions']:,} captions and {result['images']:,} images"
    ]
    for way, title in (("t2i", "text→image"), ("i2t", "image→text")):
        cells = [f"{k} {v:5.1f}{_interval(result, f'{way} {k}')}" for k, v in result[way].items()]
        ranks = f"median rank {result['median rank'][way]:g}"
        lines.append(f"  {title}  {'  '.join([*cells, ranks])}")
    if any((lost := result["missing_features"]).values()):
        lines.append(
            f"  no feature, so not found: {lost['captions']:,} captions, {lost['images']:,} images"
        )
    return "\n".join([*lines, *_unknown_text(result)])


def _unknown_text(row: dict[str, Any]) -> list[str]:
    """A line on captions with unknown tokens; none if there are none."""
    found = row.get("unknown_tokens", {})
    if not found.get("some"):
        return []
    some, whole = (f"{100 * found[name]:.1f} %" for name in ("some", "all"))
    return [f"  {some} of the captions have an unknown token, {whole} no other"]


def _interval(result: dict[str, Any], name: str) -> str:
    if "intervals" not in result:
        return ""
    low, high = result["intervals"][name]
    return f" [{low:.1f}, {high:.1f}]"


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
        str | None, typer.Option(help="Keep small copies here, for the page of mla serve.")
    ] = None,
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
    from mla_ray.model.native import Native
    from mla_ray.packs.store import load_packs
    from mla_ray.runtime.console import bars, tell_dropped

    read = read_captions(captions, language=language, split=None, skip_invalid=skip_invalid)
    tell_dropped(len(read.dropped), read.dropped)
    frozen = Native.load(native)
    packs = load_packs(pack or [], frozen)
    source = source or PurePosixPath(captions).stem
    store = PictureStore(pictures) if pictures else None
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
    tell_dropped(len(rejected), rejected)
    result: dict[str, Any] = written | ({"rejected": len(rejected)} if rejected else {})
    told = "\n".join(f"{name}: {n:,} points" for name, n in written.items())
    if sync:
        kept = ingest.keys_of([captions], source, language)  # all, whatever was left out above
        removed = ingest.sync(index, ingest.space_of(frozen), source, kept, store)
        result["removed"] = removed
        told += "\nremoved: " + ", ".join(f"{n:,} {name}" for name, n in removed.items())
    emit(result, as_json, told)


def _of_query(tag: str | None) -> str | None:
    return tag if tag == "auto" else one_language(tag)


def search(
    query: Annotated[
        str | None, typer.Argument(help="A text in any acquired language, or English.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="Search here: http(s)://host:port, or edge:folder.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Or ask a server: http://127.0.0.1:8000; its token in MLA_API_TOKEN."),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            callback=_of_query,
            help="BCP-47 code of the query; en if not given. With --url also auto.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=MAX_K)] = 10,
    pack: Annotated[
        Path | None, typer.Option(help="The language's pack; packs/LANGUAGE if not given.")
    ] = None,
    native: Annotated[
        str | None, typer.Option(help="As for acquire; emoji-clip if not given.")
    ] = None,
    find: Annotated[
        str | None,
        typer.Option(help="images or captions; if not given, images, for --image captions."),
    ] = None,
    in_language: Annotated[
        str | None,
        typer.Option(callback=one_language, help="With --url: captions of this language only."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="With --url: entries of this source only.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Nothing of a lower cosine; docs/serving.md on scores."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="With --url: a picture to search by, instead of a text.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find images, or captions of any language, for a text; by a server also for a picture."""
    if index is not None and url is None:
        _refuse("--index", {"--in-language": in_language, "--source": source, "--image": image})
        if query is None:
            raise typer.BadParameter("give a text to search for")
        if language == "auto":
            raise typer.BadParameter("--language auto needs a server: --url")
        native, find = native or "emoji-clip", find or "images"
        rows, unknown = _search_index(
            query, index, language or "en", k, min_score, pack, native, find
        )
    elif url is not None and index is None:
        _refuse("--url", {"--pack": pack, "--native": native})
        if (query is None) == (image is None):
            raise typer.BadParameter("give either a text or --image to search for")
        if image is not None:
            _refuse("--image", {"--language": language})
        rows, unknown = _search_server(
            query, url, language, k, min_score, find, in_language, source, image
        )
    else:
        raise typer.BadParameter("give either --index, to search here, or --url, to ask a server")
    if unknown:
        what = "so that hits say nothing of it" if unknown == 1 else "the rest was searched for"
        typer.echo(f"mla: {unknown:.0%} of the query's tokens are unknown, {what}", err=True)
    result = [row | {"unknown_tokens": unknown} for row in rows]  # of the query
    lines = [f"{hit['score']:.3f}  {hit['image_id']}  {hit['caption']}" for hit in result]
    emit(result, as_json, "\n".join(lines))


def _refuse(beside: str, options: dict[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"{option} does not go with {beside}")


def _search_index(
    query: str,
    index: str,
    language: str,
    k: int,
    min_score: float | None,
    pack: Path | None,
    native: str,
    find: str,
) -> tuple[list[dict[str, Any]], float | None]:
    """Hits, and the share of the query's tokens that is unknown."""
    from mla_ray.evaluation.evaluation import encode_query, unknown_in
    from mla_ray.index.collection import CaptionIndex
    from mla_ray.index.ingest import space_of
    from mla_ray.model.native import Native
    from mla_ray.packs.store import load_packs

    frozen = Native.load(native)
    folders = [] if language == "en" else [pack or Path("packs") / language]
    packs = load_packs(folders, frozen)
    if language != "en" and language not in packs:
        raise ValueError(f"{folders[0]} is a pack for {next(iter(packs))!r}, not for {language!r}")
    vector = encode_query(frozen, packs, language, [query])[0]
    unknown = float(unknown_in(frozen, packs, language, [query])[0])
    with CaptionIndex.open(index, space_of(frozen), find, create=False) as collection:
        hits = collection.search(vector, k, min_score=min_score)
    return [_hit_row(hit.entry, hit.score) for hit in hits], unknown


def _search_server(
    query: str | None,
    url: str,
    language: str | None,
    k: int,
    min_score: float | None,
    find: str | None,
    in_language: str | None,
    source: str | None,
    image: Path | None,
) -> tuple[list[dict[str, Any]], float | None]:
    """As `_search_index`; None from a server of before it told."""
    from mla_ray.serving.client import Client
    from mla_ray.serving.client_retries import Retry

    with Client(url, retry=Retry(attempts=3)) as client:  # someone waits
        # What is no language or collection, the server says.
        if image is not None:
            page = client.search_image(
                image.read_bytes(),
                find=cast("Collection", find or "captions"),
                k=k,
                min_score=min_score,
                in_language=in_language,
                source=source,
            )
        else:
            page = client.search(
                query or "",
                language=language or "en",
                find=cast("Collection", find or "images"),
                k=k,
                min_score=min_score,
                in_language=in_language,
                source=source,
            )
    return [_hit_row(hit, hit.score) for hit in page.hits], page.unknown_tokens


def _hit_row(entry: Any, score: float) -> dict[str, Any]:
    return {
        "image_id": entry.image_id,
        "score": score,
        "language": entry.language,
        "caption": entry.caption,
        "source": entry.source,
    }
