"""Results page: tables, a plot, and verdicts on the paper's claims.

Files:

    results.md      the page
    results.png     the plot
    results.json    the figures of the page
    results.jsonl   the records from which everything is computed

"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mla_ray.reproduce import ablations as ab
from mla_ray.reproduce.ablations import Table
from mla_ray.reproduce.claims import claims
from mla_ray.reproduce.figures import Figure, Results, Reworded, figure
from mla_ray.reproduce.plot import draw
from mla_ray.reproduce.runs import BESIDE

Document = dict[str, Any]
"""Content of `results.json`."""
Row = dict[str, Any]
"""Row of a table in `results.json`."""


def write(results: Results, tables: Sequence[Table], out: Path, command: str) -> Document:
    """Write the page, its plot, its figures as JSON, and the records.

    Args:
        results: All measurements.
        tables: Tables on the page.
        out: Output folder, created if necessary.
        command: Command that generates the page, for its first sentence.

    Returns:
        The content of `results.json`.

    """
    out.mkdir(parents=True, exist_ok=True)
    made = {table.name: rows(results, table) for table in tables}
    said = claims(results)
    draw(results).savefig(out / "results.png", dpi=160)
    english, others = results.english(), results.reworded(ab.DEFAULTS)
    parts = [
        "# Results: the paper's ablations on emoji",
        _intro(results, english, command),
        "## Which claims held",
        "The claims are those of the paper. The runs here are short, and the native has seen only "
        "emoji. A claim held if the whole interval of its difference is on the claimed side of "
        "zero. The claim about adding packs held if no figure changed.",
        "\n".join(f"- **{claim.verdict}**: {claim.text}" for claim in said),
        "![Differences, data, hidden size, languages in turn](results.png)",
    ]
    for table in tables:
        parts += [f"## {table.title}", _table(results, table, made[table.name])]
        if table.name == "defaults" and others:
            parts.append(_reworded(others))
    parts += ["## Language by language", _languages(results)]
    if results.english("stamps"):
        parts += ["## Out of domain: Tux Paint's stamps", _stamps(results)]
    (out / "results.md").write_text("\n\n".join(part for part in parts if part) + "\n")
    figures = {
        "command": command,
        "languages": list(results.languages),
        "seeds": list(results.seeds),
        "english": asdict(english) if english else None,
        "in other words": asdict(others) if others else None,
        "tables": made,
        "claims": [asdict(claim) for claim in said],
    }
    (out / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    lines = "".join(json.dumps(record) + "\n" for record in results.records.values())
    (out / "results.jsonl").write_text(lines)
    return figures


def rows(results: Results, table: Table) -> list[Row]:
    """Compute the rows of a table.

    For most tables, a row is a variant with its AR and its difference from the first variant. Both
    are means over the languages that the variant and the first variant have in common.
    """
    if table.name == "turn":
        return turns(results)
    if table.name == "defaults":
        return against_english(results)
    base, *_ = table.variants
    table_rows = []
    for variant in table.variants:
        languages = results.complete([base, variant])
        if not languages:
            continue
        row: Row = {
            "variant": variant.name,
            "languages": len(languages),
            "AR": asdict(figure(results.over(variant, languages))),
        }
        if variant is not base and (difference := results.difference(variant, base)):
            row["difference"] = asdict(difference)
        if variant.how == "tower":
            row["English"] = asdict(figure(results.over(variant, languages, of="en")))
        table_rows.append(row)
    return table_rows


def against_english(results: Results) -> list[Row]:
    """Compute the AR of each language with default settings, and its ratio to English AR.

    English is measured on the same images.
    """
    table_rows = []
    english = results.english_shares()
    for language in results.languages:
        shares = results.shares(ab.DEFAULTS, language)
        if shares is None or english is None:
            continue
        same = english + 0 * shares[:1]  # NaN for images without a caption in the language
        mine, theirs = figure([shares]), figure([same])
        row = {"language": language, "AR": asdict(mine), "English": theirs.mean}
        table_rows.append(row | {"share": mine.mean / theirs.mean})
    return table_rows


def turns(results: Results) -> list[Row]:
    """Compute the AR of English and of each language after each addition, as means over seeds."""
    table_rows = []
    for variant in (ab.PACKS_IN_TURN, ab.TOWER_IN_TURN):
        for number in range(ab.IN_TURN + 1):
            row: Row = {"variant": variant.name, "added": number}
            for language in ("en", *results.languages[: ab.IN_TURN]):
                shares = results.shares(
                    variant, results.languages[0], f"emoji after {number}", language
                )
                row[language] = None if shares is None else round(figure([shares]).mean, 1)
            if row["en"] is not None:
                table_rows.append(row)
    return table_rows


def _intro(results: Results, english: Figure | None, command: str) -> str:
    seeds = "seed" if len(results.seeds) == 1 else "seeds"
    return (
        f"`{command}` generates this page and resumes after an interruption. With `--from "
        "results.jsonl`, it starts from the records of this page. AR is measured on the emoji test "
        "split: names of test concepts against Twemoji images, a drawing style not used in "
        f"training. English, measured with the native itself, reaches {english}. The page covers "
        f"{len(results.languages)} languages with {seeds} "
        f"{', '.join(map(str, results.seeds))}. Unless a table says otherwise, all runs have "
        f"{ab.BASE.nlt.steps} steps of NLT and {ab.BASE.le.steps} steps of LE with a batch of "
        f"{ab.BASE.nlt.batch}, which is 0.15 of the default amount of training. The default "
        "settings were run in full, with the first seed only. Intervals are 95 % bootstrap "
        "intervals over test images and seeds, with the same samples for all variants."
    )


def _table(results: Results, table: Table, made: list[Row]) -> str:
    if not made or (len(made) == 1 and len(table.variants) > 1):
        return "Not run."
    if table.name == "defaults":
        lines = [["", "AR", "English", "ratio to English"]]
        for row in made:
            cells = [str(Figure(**row["AR"])), f"{row['English']:.1f}", f"{row['share']:.2f}"]
            lines.append([row["language"], *cells])
        mean = sum(row["share"] for row in made) / len(made)
        return markdown([*lines, ["mean", "", "", f"{mean:.2f}"]])
    if table.name == "turn":
        names = ["en", *results.languages[: ab.IN_TURN]]
        lines = [["", "languages added", *names]]
        for row in made:
            cells = ["–" if row[name] is None else f"{row[name]:.1f}" for name in names]
            lines.append([row["variant"], str(row["added"]), *cells])
        return markdown(lines)
    with_english = any("English" in row for row in made)
    lines = [["", "languages", "AR", "difference"] + (["English after"] if with_english else [])]
    for row in made:
        difference = Figure(**row["difference"]).signed if "difference" in row else ""
        cells = [row["variant"], str(row["languages"]), str(Figure(**row["AR"])), difference]
        if with_english:
            english = Figure(**row["English"]) if "English" in row else results.english()
            cells.append(str(english))
        lines.append(cells)
    return markdown(lines)


def _reworded(ars: Reworded) -> str:
    """Describe how much English loses by a change of wording, compared with the languages."""
    share, theirs = (of.mean / ars.english.mean for of in (ars.others, ars.languages))
    wording = (1 - share) / (1 - theirs) if theirs < 1 else 1.0
    return (
        f"English in other words: {ars.images} of the drawings have a different name in Unicode's "
        "own list of characters (CLDR's *shopping cart* is a *shopping trolley* there). With "
        f"Unicode's names and no other change, English itself reaches {ars.others} instead of "
        f"{ars.english} with CLDR's names, a ratio of {share:.2f}. The languages, with their own "
        f"names, reach {ars.languages} on the same drawings, a ratio of {theirs:.2f}. The native "
        "knows names like those it was trained on better than other names. A change of wording "
        f"costs English {100 * wording:.0f} % of what a new language loses."
    )


def _languages(results: Results) -> str:
    """Return a table of every variant in every language, as means over seeds."""
    variants = list(
        {
            v.name: v for table in ab.TABLES.values() for v in table.variants if not v.in_turn
        }.values()
    )
    lines = [["", *results.languages]]
    for variant in variants:
        cells = []
        for language in results.languages:
            shares = results.shares(variant, language)
            cells.append("–" if shares is None else f"{figure([shares]).mean:.1f}")
        if set(cells) != {"–"}:
            lines.append([variant.name, *cells])
    return markdown(lines)


def _stamps(results: Results) -> str:
    lines = [["", "stamps", "AR", "English on the same stamps"]]
    for language in results.languages:
        shares = results.shares(ab.FULL, language, "stamps")
        english = results.english(BESIDE.format(language))
        if shares is not None and english is not None:
            count = int((~np.isnan(shares[0])).sum())
            lines.append([language, str(count), str(figure([shares])), str(english)])
    return (
        "The stamps are photographs and drawings for a children's paint program, with "
        "descriptions. None of them is an emoji. The native was trained on emoji only and knows "
        f"little about them: it reaches {results.english('stamps')} in English. The gallery of a "
        "language contains all stamps that have a description in it. A smaller gallery is easier."
        "\n\n" + markdown(lines)
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table whose first line is the header."""
    head, *body = lines
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))
