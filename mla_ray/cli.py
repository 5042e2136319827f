"""The command line. Every command: results on standard output (`--json` for scripts), progress on
standard error, exit code 0 for success, 1 for bad input, 2 for bad usage.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mla_ray.config import AcquireConfig, load_config

if TYPE_CHECKING:
    from mla_ray.schemas import Collection

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Add a language to a frozen English CLIP in minutes.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make the tables of a data set.")
pack_app = typer.Typer(no_args_is_help=True, help="Look at language packs, share and export them.")
app.add_typer(data_app, name="data")
app.add_typer(pack_app, name="pack")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
NativeName = Annotated[
    str, typer.Option("--native", help="emoji-clip, a folder, hf-hub:owner/model, ViT-B-32/openai")
]
Skip = Annotated[bool, typer.Option("--skip-invalid", help="Drop and count bad rows.")]
DataFolder = Annotated[
    Path, typer.Option("--data", envvar="MLA_DATA", help="Where data sets and features are kept.")
]
Captions = Annotated[
    str, typer.Option("--captions", help="Caption table (Parquet, CSV, TSV, JSONL).")
]
Repo = Annotated[str, typer.Argument(help="hf-hub:owner/name, or a repository's folder or URL.")]


def _print(result: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else text)


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
        return "\n".join(lines)
    lines = [
        f"{result['language']}: AR {result['AR']:.1f}{_interval(result, 'AR')} over "
        f"{result['captions']:,} captions and {result['images']:,} images"
    ]
    for way, title in (("t2i", "text→image"), ("i2t", "image→text")):
        cells = [f"{k} {v:5.1f}{_interval(result, f'{way} {k}')}" for k, v in result[way].items()]
        ranks = f"median rank {result['median rank'][way]:g}"
        lines.append(f"  {title}  {'  '.join([*cells, ranks])}")
    return "\n".join(lines)


def _interval(result: dict[str, Any], name: str) -> str:
    if "intervals" not in result:
        return ""
    low, high = result["intervals"][name]
    return f" [{low:.1f}, {high:.1f}]"


@data_app.command("emoji")
def data_emoji(
    languages: Annotated[str, typer.Option(help="BCP-47 codes, comma-separated.")] = "en,de",
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("data/emoji/tables"),
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Emoji drawings with names from Unicode CLDR: captions.parquet, pairs-LANGUAGE.parquet."""
    from mla_ray.console import bars
    from mla_ray.demo import emoji_tables

    with bars() as report:
        made = emoji_tables(data, languages.split(","), out, report)
    result = {name: str(path) for name, path in made.items()}
    _print(result, as_json, "\n".join(f"{name}: {path}" for name, path in result.items()))


@data_app.command("animated")
def data_animated(
    languages: Annotated[str, typer.Option(help="BCP-47 codes, comma-separated.")] = "en,de",
    out: Annotated[Path, typer.Option(help="Folder for tables and animations.")] = Path(
        "data/animated/tables"
    ),
    part: Annotated[
        list[int] | None,
        typer.Option(min=1, max=4, help="Package, 165 to 197 MB; may be repeated. 1 if not given."),
    ] = None,
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Animated emoji with names from Unicode CLDR: captions.parquet, pairs-LANGUAGE.parquet."""
    from mla_ray.console import bars
    from mla_ray.datasets import animated

    with bars() as report:
        made = animated.tables(data, languages.split(","), out, part or [1], report)
    result = {name: str(path) for name, path in made.items()}
    _print(result, as_json, "\n".join(f"{name}: {path}" for name, path in result.items()))


Root = Annotated[Path, typer.Option("--root", help="Where the data set lies, unpacked.")]
SomeLanguages = Annotated[
    str | None, typer.Option("--languages", help="BCP-47, comma-separated; all if not given.")
]


@data_app.command("make")
def data_make(
    name: Annotated[str, typer.Argument(help="Of a public data set; `mla data check` lists them.")],
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    languages: SomeLanguages = None,
    pairs_only: Annotated[
        bool, typer.Option("--pairs-only", help="Translations alone, which need no images.")
    ] = False,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """The tables of a public data set: captions.parquet, and pairs-LANGUAGE.parquet if it has them.

    The set is fetched by hand: `mla data check` says from where, and docs/datasets.md how it lies.
    """
    from mla_ray.console import bars, stderr
    from mla_ray.datasets.catalog import make

    with bars() as report:
        made = make(
            name,
            root,
            out,
            report,
            languages=languages.split(",") if languages else None,
            pairs_only=pairs_only,
            skip_invalid=skip_invalid,
        )
    for warning in made.warnings:
        stderr.print(f"warning: {warning}")
    if made.dropped:
        stderr.print(f"dropped {made.dropped:,} invalid rows, the first: {made.first_problem}")
    lines = [line for tally in made.tallies for line in tally.lines]
    _print(made.as_dict(), as_json, "\n".join(lines))


@data_app.command("check")
def data_check(
    root: Root,
    name: Annotated[
        str | None,
        typer.Argument(help="Data set; if not given all are looked for, each in ROOT/NAME."),
    ] = None,
    languages: SomeLanguages = None,
    as_json: Json = False,
) -> None:
    """What of a public data set is there, is missing (and where it is to be had), or is unlike it.

    Ends with exit code 1 if a data set is named and something that it needs is missing or broken.
    """
    from mla_ray.console import bars
    from mla_ray.datasets.catalog import CATALOG, check

    wanted = languages.split(",") if languages else None
    with bars() as report:
        found = (
            {name: check(name, root, report, wanted)}
            if name
            else {each: check(each, root / each, report) for each in CATALOG}
        )
    result = {each: [part.as_dict() for part in parts] for each, parts in found.items()}
    lines = [line for each, parts in found.items() for line in (each, *(p.line for p in parts))]
    _print(result, as_json, "\n".join(lines))
    if name and any(part.needed for part in found[name]):
        raise typer.Exit(1)


@app.command()
def acquire(
    language: Annotated[str, typer.Option(help="BCP-47 code of the new language.")],
    out: Annotated[str, typer.Option(help="Folder for the language pack.")],
    pairs: Annotated[
        list[str] | None,
        typer.Option(help="Translation table; each of several has an equal share of every batch."),
    ] = None,
    captions: Annotated[
        str | None, typer.Option(help="Caption table for LE; without it NLT alone.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Pack to go on from; then LE alone if no --pairs.")
    ] = None,
    native: NativeName = "emoji-clip",
    workers: Annotated[
        str, typer.Option(help="Ray Train workers: 2, or 1:4 for as many as there is room for.")
    ] = "1",
    config: Annotated[Path | None, typer.Option(help="Settings, YAML.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run begun.")] = False,
    run: Annotated[
        str | None, typer.Option(help="Run folder; runs/ and the name of --out if not given.")
    ] = None,
    skip_invalid: Skip = False,
    data: Annotated[
        str,
        typer.Option("--data", envvar="MLA_DATA", help="Where features are kept."),
    ] = "data",
    as_json: Json = False,
) -> None:
    """Acquire a language: NLT on translations, then LE on captioned images."""
    from mla_ray.cluster import ray_session
    from mla_ray.console import bars, stderr
    from mla_ray.pack import copy_pack
    from mla_ray.preparing import read_prepared
    from mla_ray.training import Corpus, Workers
    from mla_ray.training import acquire as run_stages

    if not pairs and start is None:
        raise typer.BadParameter("give --pairs, or --from a pack to go on from")
    settings = load_config(config) if config else AcquireConfig()
    if not pairs:
        none = settings.nlt.model_copy(update={"steps": 0})
        settings = settings.model_copy(update={"nlt": none})
    if captions is None:
        settings = settings.text_only()
    folder = run or f"runs/{PurePosixPath(out).name}"
    with bars() as report, ray_session():
        made = run_stages(
            native,
            [Corpus(language, pairs or [], captions, start)],
            settings,
            folder,
            store=f"{data}/features",
            workers=Workers.parse(workers),
            resume=resume,
            skip_invalid=skip_invalid,
            report=report,
        )
    copy_pack(made[language], out)
    prepared = read_prepared(folder)
    if prepared.dropped:
        stderr.print(
            f"dropped {prepared.dropped:,} invalid rows, the first: {prepared.problems[0]}"
        )
    result = {"language": language, "pack": out, "dropped": prepared.dropped}
    _print(result, as_json, f"{language}: pack in {out}")


@app.command()
def finetune(
    captions: Captions,
    out: Annotated[str, typer.Option(help="Folder for the fine-tuned native.")],
    native: NativeName = "emoji-clip",
    workers: Annotated[
        str, typer.Option(help="Ray Train workers: 2, or 1:4 for as many as there is room for.")
    ] = "1",
    config: Annotated[Path | None, typer.Option(help="Settings, YAML.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run begun.")] = False,
    run: Annotated[
        str | None, typer.Option(help="Run folder; runs/ and the name of --out if not given.")
    ] = None,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a native on a table's English captions; packs are then plugged or acquired."""
    from mla_ray.cluster import ray_session
    from mla_ray.config import FinetuneConfig, load_finetune_config
    from mla_ray.console import bars, stderr
    from mla_ray.finetuning import finetune as run_finetuning
    from mla_ray.lineage import copy_native
    from mla_ray.training import Workers

    settings = load_finetune_config(config) if config else FinetuneConfig()
    with bars() as report, ray_session():
        made = run_finetuning(
            native,
            captions,
            settings,
            run or f"runs/{PurePosixPath(out).name}",
            workers=Workers.parse(workers),
            resume=resume,
            skip_invalid=skip_invalid,
            report=report,
        )
    copy_native(made.native, out)
    if made.dropped:
        stderr.print(f"dropped {made.dropped:,} invalid rows, the first: {made.problem}")
    result: dict[str, Any] = {"native": out, "fingerprint": made.fingerprint, **made.figures}
    _print(result | {"dropped": made.dropped}, as_json, f"fine-tuned native in {out}")


@app.command()
def evaluate(
    captions: Captions,
    pack: Annotated[
        list[str] | None, typer.Option(help="Language pack to evaluate; may be repeated.")
    ] = None,
    native: NativeName = "emoji-clip",
    language: Annotated[str | None, typer.Option(help="en measures the native itself.")] = None,
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

    from mla_ray.captions import CaptionTable
    from mla_ray.console import bars, stderr
    from mla_ray.evaluation import evaluate as measure
    from mla_ray.evaluation import printed, rows_of
    from mla_ray.features import encode_texts
    from mla_ray.indexing import load_packs
    from mla_ray.native import Native
    from mla_ray.pack import read_card
    from mla_ray.progress import counting
    from mla_ray.protocols import find

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
        if table.dropped:
            stderr.print(f"dropped {table.dropped:,} invalid rows, the first: {table.problems[0]}")
        sizes = {tongue: rows_of(table.rows, tongue, chosen).num_rows for tongue in tongues}
        frozen = Native.load(native)
        packs = load_packs(pack or [], frozen)
        gallery = table.gallery(frozen, report)
        found = []
        for tongue, size in sizes.items():
            encode: Any = partial(encode_texts, frozen)
            if tongue in packs:
                encode = lambda texts, of=packs[tongue]: of.encode_text(texts).cpu().numpy()  # noqa: E731
            found.append(
                measure(
                    encode,
                    tongue,
                    table.rows,
                    gallery,
                    counting(report, f"{tongue} captions", size),
                    protocol=chosen,
                    ranked=counting(report, f"{tongue} ranking", 2 * size),
                )
            )
        result = printed(found, k or (), with_intervals=intervals)
    _print(result, as_json, _evaluation_text(result))


@app.command("index")
def index_command(
    captions: Captions,
    index: Annotated[str, typer.Option(help="http(s)://host:port, or edge:folder")],
    pack: Annotated[list[str] | None, typer.Option(help="Packs of the table's languages.")] = None,
    native: NativeName = "emoji-clip",
    language: Annotated[str | None, typer.Option(help="Index captions of this one only.")] = None,
    source: Annotated[str | None, typer.Option(help="Name kept with every point.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Make new collections quantized: less memory.")
    ] = False,
    pictures: Annotated[
        str | None, typer.Option(help="Keep small copies here, for the page of mla serve.")
    ] = None,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Embed a table's images and captions into the collections `images` and `captions`."""
    from mla_ray.console import bars, stderr
    from mla_ray.datasets.files import read_captions
    from mla_ray.indexing import index_captions, keep_pictures, load_packs
    from mla_ray.native import Native
    from mla_ray.pictures import PictureStore

    read = read_captions(captions, language=language, split=None, skip_invalid=skip_invalid)
    if read.dropped:
        stderr.print(f"dropped {len(read.dropped):,} invalid rows, the first: {read.dropped[0]}")
    frozen = Native.load(native)
    packs = load_packs(pack or [], frozen)
    with bars() as report:
        written = index_captions(
            index,
            frozen,
            packs,
            read.table,
            source or PurePosixPath(captions).stem,
            report,
            quantization="int8" if int8 else None,
        )
        if pictures:
            keep_pictures(read.table, PictureStore(pictures), report)
    _print(written, as_json, "\n".join(f"{name}: {n:,} points" for name, n in written.items()))


@app.command()
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
        typer.Option(help="BCP-47 code of the query; en if not given. With --url also auto."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000)] = 10,
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
        str | None, typer.Option(help="With --url: captions of this language only.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="With --url: entries of this source only.")
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
        result = _search_index(
            query, index, language or "en", k, pack, native or "emoji-clip", find or "images"
        )
    elif url is not None and index is None:
        _refuse("--url", {"--pack": pack, "--native": native})
        if (query is None) == (image is None):
            raise typer.BadParameter("give either a text or --image to search for")
        if image is not None:
            _refuse("--image", {"--language": language})
        result = _search_server(query, url, language, k, find, in_language, source, image)
    else:
        raise typer.BadParameter("give either --index, to search here, or --url, to ask a server")
    lines = [f"{hit['score']:.3f}  {hit['image_id']}  {hit['caption']}" for hit in result]
    _print(result, as_json, "\n".join(lines))


def _refuse(beside: str, options: dict[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"{option} does not go with {beside}")


def _search_index(
    query: str, index: str, language: str, k: int, pack: Path | None, native: str, find: str
) -> list[dict[str, Any]]:
    from mla_ray.index import CaptionIndex
    from mla_ray.indexing import encode_query, load_packs, space_of
    from mla_ray.native import Native

    frozen = Native.load(native)
    folders = [] if language == "en" else [pack or Path("packs") / language]
    packs = load_packs(folders, frozen)
    if language != "en" and language not in packs:
        raise ValueError(f"{folders[0]} is a pack for {next(iter(packs))!r}, not for {language!r}")
    vector = encode_query(frozen, packs, language, [query])[0]
    with CaptionIndex.open(index, space_of(frozen), find, create=False) as collection:
        return [_hit_row(hit.entry, hit.score) for hit in collection.search(vector, k)]


def _search_server(
    query: str | None,
    url: str,
    language: str | None,
    k: int,
    find: str | None,
    in_language: str | None,
    source: str | None,
    image: Path | None,
) -> list[dict[str, Any]]:
    from mla_ray.client import Client, Retry

    with Client(url, retry=Retry(attempts=3)) as client:  # someone waits
        # What is no language or collection, the server says.
        if image is not None:
            page = client.search_image(
                image.read_bytes(),
                find=cast("Collection", find or "captions"),
                k=k,
                in_language=in_language,
                source=source,
            )
        else:
            page = client.search(
                query or "",
                language=language or "en",
                find=cast("Collection", find or "images"),
                k=k,
                in_language=in_language,
                source=source,
            )
    return [_hit_row(hit, hit.score) for hit in page.hits]


def _hit_row(entry: Any, score: float) -> dict[str, Any]:
    return {
        "image_id": entry.image_id,
        "score": score,
        "language": entry.language,
        "caption": entry.caption,
        "source": entry.source,
    }


@app.command()
def serve(
    packs: Annotated[
        str | None, typer.Option(help="Pack store: a folder or an fsspec URL. Emoji if not given.")
    ] = None,
    index: Annotated[str | None, typer.Option(help="edge:folder, or http(s)://host:port")] = None,
    pictures: Annotated[
        str | None, typer.Option(help="Pictures for the page: a folder or an fsspec URL.")
    ] = None,
    native: NativeName = "emoji-clip",
    host: Annotated[
        str, typer.Option(help="Address to bind; other than loopback needs MLA_API_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="Host name that requests may use, or '*' for any.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="A client's limit, such as 100/second.")] = None,
    open_page: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the search page in a browser.")
    ] = True,
    run: Annotated[Path, typer.Option(help="Run of the demo to show.")] = Path("runs/demo"),
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Serve encoders, index and search page on this machine until interrupted.

    With neither --packs nor --index it shows the emoji, acquiring a language first if there is
    none. Packs put into the store, replaced or removed while it runs are followed.
    """
    from serve.local import serve_until_stopped
    from serve.settings import LOOPBACK, Settings

    if (packs is None) != (index is None):
        raise ValueError("--packs and --index go together; give both, or neither for the emoji")
    if packs is None or index is None:
        from mla_ray.showcase import prepare

        shown = prepare(run, data)
        packs, index, pictures = shown.packs, shown.index, pictures or shown.pictures
    loopback = host in ("127.0.0.1", "::1", "localhost")
    settings = Settings(
        native=native,
        packs=_absolute(packs),
        index=_absolute(index),
        pictures=_absolute(pictures) if pictures else None,
        hosts=name or (LOOPBACK if loopback else ["*"]),
        rate=rate,
    )
    settings.token()

    def ready(url: str) -> None:
        _print({"url": url}, as_json, f"mla-ray is at {url} – Ctrl-C stops it")
        if open_page and not as_json:
            import webbrowser

            webbrowser.open(url)

    serve_until_stopped(settings, host, port, ready)


def _absolute(url: str) -> str:
    """A folder as an absolute path, for processes that run elsewhere; other URLs as they are."""
    if url.startswith("edge:"):
        return "edge:" + _absolute(url.removeprefix("edge:"))
    return url if "://" in url else str(Path(url).expanduser().resolve())


@app.command()
def sweep(
    language: Annotated[str | None, typer.Option(help="BCP-47 code.")] = None,
    languages: Annotated[
        str | None, typer.Option(help="Or several, comma-separated; all of the tables: all.")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(help="Translation table; may be repeated. Emoji names if there is none."),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(help="Caption table; its split test measures the gain, validation chooses."),
    ] = None,
    native: NativeName = "emoji-clip",
    space: Annotated[
        str, typer.Option(help="quick, standard, low-resource, a YAML file, or auto.")
    ] = "auto",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Of a language; the space's own if not given.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Most trials of all languages together.")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; as many as there is room for.")
    ] = None,
    worker_gpus: Annotated[
        float | None, typer.Option(min=0, help="Of a trial; 0.25 puts four on a GPU.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    run: Annotated[str, typer.Option(help="Run folder; the same again goes on.")] = "runs/sweep",
    results: Annotated[
        str, typer.Option(help="Best settings by language, for `mla acquire --config`.")
    ] = "tuning/results",
    data: DataFolder = Path("data"),
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Find settings for languages, and say on the test split what they are worth."""
    import threading
    from contextlib import redirect_stdout

    from mla_ray.cluster import ray_session
    from mla_ray.console import bars, stdout
    from tuning.sweep import SweepPlan
    from tuning.sweep import sweep as run_sweep
    from tuning.table import table

    if (language is None) == (languages is None):
        raise typer.BadParameter("give either --language or --languages")
    plan = SweepPlan(
        languages=[language] if language else (languages or "").split(","),
        native=native,
        dataset=None if pairs else "emoji",
        pairs=pairs or [],
        captions=captions,
        space=space,
        trials=trials,
        budget=budget,
        concurrent=concurrent,
        worker_gpus=worker_gpus,
        seed=seed,
        run=_absolute(run),
        results=results,
        data=str(data),
        skip_invalid=skip_invalid,
    )
    # Ray's warnings go to standard output, which is for the result.
    with redirect_stdout(sys.stderr), bars() as report, ray_session(dashboard=True):
        outcomes = run_sweep(plan, report, threading.Event())
    if as_json:
        found = {o.language: o.model_dump(mode="json", exclude={"trials"}) for o in outcomes}
        _print(found, as_json, "")
        return
    stdout.print(table(outcomes))
    for outcome in outcomes:
        _print(None, as_json, outcome.line)


@pack_app.command("show")
def pack_show(folder: Path, as_json: Json = False) -> None:
    """Print the card of a pack."""
    from mla_ray.pack import read_card

    card = read_card(folder)
    _print(card.model_dump(), as_json, card.model_dump_json(indent=2))


@pack_app.command("verify")
def pack_verify(folder: Path, native: NativeName = "emoji-clip", as_json: Json = False) -> None:
    """Check hashes, shapes and fingerprint of a pack against its native."""
    from mla_ray.native import Native
    from mla_ray.pack import LanguagePack

    pack = LanguagePack.load(folder, Native.load(native))
    result = {"pack": str(folder), "language": pack.language, "ok": True}
    _print(result, as_json, f"{folder}: a sound pack for {pack.language!r} on {native}")


@pack_app.command("plug")
def pack_plug(
    folder: Annotated[str, typer.Argument(help="Pack of the native that was fine-tuned.")],
    native: Annotated[str, typer.Option("--native", help="Folder that mla finetune made.")],
    out: Annotated[str, typer.Option(help="Folder for the new pack.")],
    as_json: Json = False,
) -> None:
    """Make a pack of the same weights for a native that was fine-tuned from the pack's own."""
    from mla_ray.native import Native
    from mla_ray.plugging import plug

    card = plug(folder, Native.load(native), out)
    result: dict[str, Any] = {"pack": out, "language": card.language, "native": native}
    result |= {"acquired_on": card.acquired_on}
    _print(result, as_json, f"{card.language}: pack in {out}, for {native}")


@pack_app.command("import-official")
def pack_import_official(
    checkpoint: Annotated[Path, typer.Argument(help="pytorch_model.bin of the paper's code.")],
    languages: Annotated[str, typer.Option(help="As the checkpoint names them: de,fr.")],
    tokenizer: Annotated[
        str, typer.Option(help="M-BERT's: tokenizer.json, a folder or a hub name.")
    ] = "bert-base-multilingual-cased",
    native: Annotated[
        str | None, typer.Option("--native", help="What it was trained on: ViT-B-32/openai")
    ] = None,
    with_native: Annotated[
        Path | None, typer.Option(help="Folder to write the CLIP inside the checkpoint to.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the packs.")] = Path("packs"),
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the paper's released code into language packs."""
    from mla_ray.pack import import_official

    if (native is None) == (with_native is None):
        raise typer.BadParameter("give either --native or --with-native")
    frozen, packs = import_official(
        checkpoint, languages.split(","), native, tokenizer, with_native
    )
    for language, pack in packs.items():
        pack.save(out / language)
    result = {
        "native": frozen.name,
        "fingerprint": frozen.fingerprint,
        "packs": {language: str(out / language) for language in packs},
    }
    lines = [f"{language}: pack in {out / language}" for language in packs]
    _print(result, as_json, "\n".join([f"native {frozen.name}", *lines]))


@pack_app.command("push")
def pack_push(
    pack: Annotated[str, typer.Argument(help="A pack: a folder or a URL.")],
    repo: Repo,
    native: NativeName = "emoji-clip",
    license_: Annotated[
        str | None, typer.Option("--license", help="Of the pack: apache-2.0, cc-by-4.0 …")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="On the hub, yours alone.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Share a pack with its model card; the hub's token is read from HF_TOKEN."""
    from mla_ray.native import Native
    from mla_ray.sharing import push

    frozen = Native.load(native)
    shared = push(pack, repo, frozen, license=license_, private=private, revision=revision)
    _print(asdict(shared), as_json, f"{shared.language}: shared at {shared.url}")


@pack_app.command("pull")
def pack_pull(
    repo: Repo,
    out: Annotated[str, typer.Argument(help="Folder or URL for the pack.")],
    native: NativeName = "emoji-clip",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Take a shared pack, after sizes, hashes and its native have been checked."""
    from mla_ray.native import Native
    from mla_ray.sharing import pull

    shared = pull(repo, out, Native.load(native), revision=revision)
    _print(asdict(shared), as_json, f"{shared.language}: pack in {shared.url}")


@pack_app.command("export")
def pack_export(
    pack: Annotated[str, typer.Argument(help="A pack: a folder or a URL.")],
    onnx: Annotated[str, typer.Option(help="Folder or URL for the ONNX graphs.")],
    native: NativeName = "emoji-clip",
    language: Annotated[
        str | None, typer.Option(help="en: the native's English text tower, too.")
    ] = None,
    image: Annotated[bool, typer.Option("--image", help="The image tower, too.")] = False,
    as_json: Json = False,
) -> None:
    """Write native and pack as ONNX graphs that agree with PyTorch to 1e-4."""
    from mla_ray.console import bars
    from mla_ray.export import export_onnx
    from mla_ray.native import Native
    from mla_ray.pack import LanguagePack

    if language not in (None, "en"):
        raise typer.BadParameter("the pack's own language is always there; --language adds en")
    frozen = Native.load(native)
    loaded = LanguagePack.load(pack, frozen)
    with bars() as report:
        made = export_onnx(
            loaded, frozen, onnx, image=image, english=language == "en", report=report
        )
    lines = [f"{n}.onnx: within {worst:.0e} of PyTorch" for n, worst in made.differences.items()]
    _print(asdict(made), as_json, "\n".join([f"{loaded.language}: in {made.out}", *lines]))


@app.command()
def demo(
    language: Annotated[str, typer.Option(help="A language that CLDR names emoji in.")] = "de",
    run: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    data: DataFolder = Path("data"),
    ablation: Annotated[
        bool, typer.Option("--ablation", help="NLT, LE and both at equal steps, three seeds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Acquire a language on emoji, measure it, index it and search it."""
    from mla_ray import demo as story

    if ablation:
        rows = story.ablate(language, run, data)
        _print(rows, as_json, story.ablation_text(rows))
    else:
        result = story.tell(language, run, data)
        if as_json:
            _print(result, as_json, "")
        else:
            story.show(result)


def main() -> None:
    """Entry point: faults of the input are one message, not a traceback."""
    try:
        app()
    except (ValueError, OSError, LookupError, RuntimeError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        typer.echo(f"mla: {message}", err=True)
        sys.exit(1)
