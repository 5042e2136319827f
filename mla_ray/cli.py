"""The command line. Every command: results on standard output (`--json` for scripts), progress on
standard error, exit code 0 for success, 1 for bad input, 2 for bad usage.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mla_ray.config import AcquireConfig, load_config

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Add a language to a frozen English CLIP in minutes.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make the tables of a data set.")
pack_app = typer.Typer(no_args_is_help=True, help="Look at language packs.")
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
    Path, typer.Option("--captions", help="Caption table (Parquet, CSV, TSV, JSONL).")
]


def _print(result: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else text)


def _recall_text(name: str, result: dict[str, Any]) -> str:
    def row(part: dict[str, float]) -> str:
        return "  ".join(f"{k} {v:5.1f}" for k, v in part.items())

    return (
        f"{name}: AR {result['AR']:.1f} over {result['captions']:,} captions and "
        f"{result['images']:,} images\n  text→image  {row(result['t2i'])}\n"
        f"  image→text  {row(result['i2t'])}"
    )


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


@app.command()
def acquire(
    language: Annotated[str, typer.Option(help="BCP-47 code of the new language.")],
    pairs: Annotated[
        list[Path],
        typer.Option(help="Translation table; each of several has an equal share of every batch."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the language pack.")],
    captions: Annotated[
        Path | None, typer.Option(help="Caption table for LE; without it NLT alone.")
    ] = None,
    native: NativeName = "emoji-clip",
    workers: Annotated[int, typer.Option(min=1)] = 1,
    config: Annotated[Path | None, typer.Option(help="Settings, YAML.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run begun.")] = False,
    run: Annotated[
        Path | None, typer.Option(help="Run folder; runs/ and the name of --out if not given.")
    ] = None,
    skip_invalid: Skip = False,
    data: DataFolder = Path("data"),
    as_json: Json = False,
) -> None:
    """Acquire a language: NLT on translations, then LE on captioned images."""
    from mla_ray.console import bars, stderr
    from mla_ray.datasets.files import read_captions, read_pairs

    settings = load_config(config) if config else AcquireConfig()
    reads = [read_pairs(path, language=language, skip_invalid=skip_invalid) for path in pairs]
    shown = (
        read_captions(captions, language=language, split="train", skip_invalid=skip_invalid)
        if captions
        else None
    )
    dropped = [p for read in (*reads, shown) if read is not None for p in read.dropped]
    if dropped:
        stderr.print(f"dropped {len(dropped):,} invalid rows, the first: {dropped[0]}")
    if shown is None:
        settings = settings.model_copy(update={"le": settings.le.model_copy(update={"steps": 0})})

    from mla_ray.cluster import ray_session
    from mla_ray.training import Corpus
    from mla_ray.training import acquire as run_stages

    corpus = Corpus(language, [read.table for read in reads], shown.table if shown else None)
    with bars() as report, ray_session():
        made = run_stages(
            native,
            [corpus],
            settings,
            run or Path("runs") / out.name,
            store=data / "features",
            workers=workers,
            resume=resume,
            report=report,
        )
    from mla_ray.pack import copy_pack

    copy_pack(made[language], out)
    result = {"language": language, "pack": str(out), "dropped": len(dropped)}
    _print(result, as_json, f"{language}: pack in {out}")


@app.command()
def evaluate(
    captions: Captions,
    pack: Annotated[Path | None, typer.Option(help="Language pack to evaluate.")] = None,
    native: NativeName = "emoji-clip",
    language: Annotated[str | None, typer.Option(help="en measures the native itself.")] = None,
    split: Annotated[str, typer.Option()] = "test",
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Recall@1, 5, 10 both ways of a pack, or of the native on its English rows."""
    from mla_ray.console import bars, stderr
    from mla_ray.datasets.files import read_captions
    from mla_ray.evaluation import Gallery
    from mla_ray.evaluation import evaluate as measure
    from mla_ray.features import encode_texts
    from mla_ray.native import Native
    from mla_ray.pack import Pack, read_card
    from mla_ray.training import Progress

    if pack is None and language not in (None, "en"):
        raise ValueError(f"--language {language} needs its --pack; the native knows English only")
    tongue = read_card(pack).language if pack else "en"
    if language not in (None, tongue):
        raise ValueError(f"{pack} is a pack for {tongue!r}, not for {language!r}")
    read = read_captions(captions, language=tongue, split=split, skip_invalid=skip_invalid)
    if read.dropped:
        stderr.print(f"dropped {len(read.dropped):,} invalid rows, the first: {read.dropped[0]}")
    frozen = Native.load(native)
    encode: Any
    if pack:
        loaded = Pack.load(pack, frozen)
        encode = lambda texts: loaded.encode_text(texts).cpu().numpy()  # noqa: E731
    else:
        encode = lambda texts: encode_texts(frozen, texts)  # noqa: E731
    with bars() as report:
        total, done = len(set(read.table["image_id"].to_pylist())), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report(Progress("images", done, total))

        gallery = Gallery.of(frozen, read.table, advance)
        result = measure(encode, tongue, read.table, gallery).as_dict()
    _print(result, as_json, _recall_text(tongue, result))


@app.command("index")
def index_command(
    captions: Captions,
    index: Annotated[str, typer.Option(help="http(s)://host:port, or edge:folder")],
    pack: Annotated[list[Path] | None, typer.Option(help="Packs of the table's languages.")] = None,
    native: NativeName = "emoji-clip",
    language: Annotated[str | None, typer.Option(help="Index captions of this one only.")] = None,
    source: Annotated[str | None, typer.Option(help="Name kept with every point.")] = None,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Embed a table's images and captions into the collections `images` and `captions`."""
    from mla_ray.console import bars, stderr
    from mla_ray.datasets.files import read_captions
    from mla_ray.indexing import index_captions, load_packs
    from mla_ray.native import Native

    read = read_captions(captions, language=language, split=None, skip_invalid=skip_invalid)
    if read.dropped:
        stderr.print(f"dropped {len(read.dropped):,} invalid rows, the first: {read.dropped[0]}")
    frozen = Native.load(native)
    packs = load_packs(pack or [], frozen)
    with bars() as report:
        written = index_captions(index, frozen, packs, read.table, source or captions.stem, report)
    _print(written, as_json, "\n".join(f"{name}: {n:,} points" for name, n in written.items()))


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="A text in any acquired language, or English.")],
    index: Annotated[str, typer.Option(help="http(s)://host:port, or edge:folder")],
    language: Annotated[str, typer.Option(help="BCP-47 code of the query.")] = "en",
    k: Annotated[int, typer.Option("-k", min=1, max=1000)] = 10,
    pack: Annotated[
        Path | None, typer.Option(help="The language's pack; packs/LANGUAGE if not given.")
    ] = None,
    native: NativeName = "emoji-clip",
    find: Annotated[str, typer.Option(help="Collection: images or captions.")] = "images",
    as_json: Json = False,
) -> None:
    """Find images (or captions of any language) for a text."""
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
        hits = collection.search(vector, k)
    result = [
        {
            "image_id": hit.entry.image_id,
            "score": hit.score,
            "language": hit.entry.language,
            "caption": hit.entry.caption,
            "source": hit.entry.source,
        }
        for hit in hits
    ]
    lines = [f"{hit['score']:.3f}  {hit['image_id']}  {hit['caption']}" for hit in result]
    _print(result, as_json, "\n".join(lines))


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
    from mla_ray.pack import Pack

    pack = Pack.load(folder, Native.load(native))
    result = {"pack": str(folder), "language": pack.language, "ok": True}
    _print(result, as_json, f"{folder}: a sound pack for {pack.language!r} on {native}")


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
