"""`mla evaluate`: recall of packs and of the native."""

from typing import Annotated, Any

import typer

from mla_ray.cli.options import Captions, Json, NativeName, Skip, emit, one_language


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
            raise ValueError(f"{folder}: {tongue!r} is measured already; give one pack a language")
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
            f"mla: warning: {repeated:,} of {len(gallery.ids):,} images look like another of the "
            "table, so that their captions cannot be told apart; give a picture one image_id",
            err=True,
        )
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
    """A line on captions with unknown tokens; none if there are none."""
    shares = row.get("unknown_tokens", {})
    if not shares.get("some"):
        return []
    some, every = (f"{100 * shares[name]:.1f} %" for name in ("some", "all"))
    return [f"  {some} of the captions have an unknown token, {every} no other"]


def _interval(result: dict[str, Any], name: str) -> str:
    if "intervals" not in result:
        return ""
    low, high = result["intervals"][name]
    return f" [{low:.1f}, {high:.1f}]"
