"""Command `mla evaluate`, which measures the recall of packs and of the native."""

from typing import Annotated, Any

import typer

from mla_ray.cli.options import Captions, Json, NativeName, Skip, emit, one_language


def evaluate(
    captions: Captions,
    pack: Annotated[
        list[str] | None,
        typer.Option(help="Language pack to evaluate. Repeat the option for more packs."),
    ] = None,
    native: NativeName = "emoji-clip",
    language: Annotated[
        str | None,
        typer.Option(
            callback=one_language,
            help="Expected language of the pack. Without a pack it can only be en.",
        ),
    ] = None,
    english: Annotated[
        bool, typer.Option("--english", help="Measure the native in English besides the packs.")
    ] = False,
    split: Annotated[str, typer.Option(help="Split of the table to measure.")] = "test",
    protocol: Annotated[
        str,
        typer.Option(
            help="Evaluation protocol: full, or that of a data set (multi30k, coco-5x1k, coco-cn, "
            "xtd, ...)."
        ),
    ] = "full",
    k: Annotated[
        list[int] | None,
        typer.Option(
            "-k",
            min=1,
            help="Print R@k for this k besides 1, 5 and 10. Repeat the option for more values.",
        ),
    ] = None,
    intervals: Annotated[
        bool,
        typer.Option("--intervals", help="Print 95 % bootstrap intervals of AR and R@k."),
    ] = False,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Measure recall@1, 5 and 10 in both directions.

    The command measures packs on captions of their languages, or the native on English captions.
    """
    from functools import partial

    from mla_ray.evaluation.captions import CaptionTable
    from mla_ray.evaluation.evaluation import encode_query, printed, rows_of, unknown_in
    from mla_ray.evaluation.evaluation import evaluate as measure
    from mla_ray.evaluation.protocols import protocol_named
    from mla_ray.model.native import Native
    from mla_ray.packs.card import read_card
    from mla_ray.packs.library import load_packs
    from mla_ray.runtime.console import bars, print_dropped
    from mla_ray.runtime.progress import counting

    chosen = protocol_named(protocol)
    if not pack and language not in (None, "en"):
        raise ValueError(f"--language {language} needs its --pack; the native knows English only")
    tongues = [] if pack and not english else ["en"]
    for folder in pack or []:
        tongue = read_card(folder).language
        if language not in (None, tongue):
            raise ValueError(f"{folder} is a pack for {tongue!r}, not for {language!r}")
        if tongue in tongues:
            raise ValueError(f"{folder}: {tongue!r} is measured already; pass one per language")
        tongues.append(tongue)
    with bars() as report:
        table = CaptionTable.read(
            captions, tongues, split=split, skip_invalid=skip_invalid, report=report
        )
        print_dropped(table.dropped, table.problems)
        sizes = {tongue: rows_of(table.rows, tongue, chosen).num_rows for tongue in tongues}
        frozen = Native.load(native)
        packs = load_packs(pack or [], frozen)
        gallery = table.gallery(frozen, report)
        measured = []
        for tongue, size in sizes.items():
            measured.append(
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
        result = printed(measured, k or (), with_intervals=intervals)
    if repeated := gallery.repeated():
        typer.echo(
            f"mla: warning: {repeated:,} of {len(gallery.ids):,} images look like another image "
            "of the table, so their captions cannot be distinguished; use one image_id for each "
            "picture",
            err=True,
        )
    emit(result, as_json, _evaluation_text(result))


def _evaluation_text(result: dict[str, Any]) -> str:
    """Format one language in detail, or several languages as a table with their mean."""
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
        unknown = [f"{row['language']}:{line}" for row in rows for line in _unknown_text(row)]
        return "\n".join([*lines, *unknown])
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
    """Return a line about captions with unknown tokens, or no line if there are none."""
    shares = row.get("unknown_tokens", {})
    if not shares.get("some"):
        return []
    some, every = (f"{100 * shares[name]:.1f} %" for name in ("some", "all"))
    return [f"  {some} of the captions have an unknown token; {every} have only unknown tokens"]


def _interval(result: dict[str, Any], name: str) -> str:
    if "intervals" not in result:
        return ""
    low, high = result["intervals"][name]
    return f" [{low:.1f}, {high:.1f}]"
