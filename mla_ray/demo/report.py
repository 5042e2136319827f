"""The demo's tables, its HTML report and its contact sheet of retrieved drawings."""

import base64
import html
import json
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from mla_ray.datasets.npm import Package
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import as_path, write_bytes

KS = ("R@1", "R@5", "R@10")
STAGES = {"fresh": "before", "nlt": "after NLT", "le": "after LE"}
# Pillow's default font lacks umlauts. DejaVu Sans has Latin, Greek, Cyrillic, Arabic and more.
FONT = Package(
    "dejavu-fonts-ttf",
    "2.37.3",
    "b7013ac58f9225250619db82cfb72e99c37ca8195f2b5a06a9e6a95bc5e1c84a",
)


Result = dict[str, Any]
"""The content of result.json, the source of all tables and of the page."""
RecallResult = dict[str, Any]
"""The part of a `Result` for one language and stage, as `Evaluation.as_dict` returns it."""


class HitResult(TypedDict):
    """A search hit: its image, the English name of the image, and the score."""

    image_id: str
    english: str
    score: float


class DemoQuery(TypedDict):
    """A query, its English name, the wanted image, and the hits."""

    query: str
    english: str
    wanted: str
    hits: list[HitResult]


@dataclass(frozen=True)
class Files:
    """Paths of the HTML report and of the contact sheet."""

    html: Path
    sheet: Path


def parameters(native: Native, pack: LanguagePack) -> dict[str, int | float | str]:
    """Count the trainable parameters and compare them with the blocks of the text tower.

    The embedding rows are counted separately.
    """
    blocks = sum(w.numel() for block in native.text.blocks for w in block.parameters())
    rows = pack.encoder.embedding.rows.weight
    other = sum(w.numel() for w in pack.encoder.parameters()) - rows.numel()
    return {
        "text tower's blocks (frozen)": blocks,
        "acquirers + linear (trained)": other,
        "share of the blocks, %": round(100 * other / blocks, 1),
        "embedding rows (trained)": rows.numel(),
        "rows x width": f"{rows.shape[0]:,} x {rows.shape[1]}",
    }


def recall_rows(result: Result) -> list[tuple[str, RecallResult]]:
    """Return the labels and recalls of English and of each stage of the language."""
    language = result["language"]
    return [("en, the ceiling", result["recall"]["en"])] + [
        (f"{language}, {name}", result["recall"][stage]) for stage, name in STAGES.items()
    ]


def recall_table(result: Result) -> Table:
    """Return the table of R@k and AR per stage."""
    test = result["recall"]["en"]
    table = Table(
        title=f"{test['captions']} names of held-out emoji, {test['images']} held-out drawings"
    )
    table.add_column("\n", no_wrap=True)
    for direction in ("text→image", "image→text"):
        for k in KS:
            table.add_column(f"{direction if k == KS[0] else ''}\n{k}", justify="right")
    table.add_column("\nAR", justify="right")
    for name, recall in recall_rows(result):
        figures = [recall[d][k] for d in ("t2i", "i2t") for k in KS] + [recall["AR"]]
        table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    table.caption = f"{result['language']} reaches {result['share_of_english_AR']} % of English AR"
    return table


def parts_table(result: Result) -> Table:
    """Return the table of AR per part of the test, for English and the language."""
    language = result["language"]
    table = Table(title="The parts that an average hides (AR)")
    for column in ("part", "captions", "en", language, "share, %"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, part in result["parts"].items():
        english, own = part["en"], part[language]
        share = 100 * own["AR"] / english["AR"] if english["AR"] else 0.0
        row = (f"{english['AR']:.1f}", f"{own['AR']:.1f}", f"{share:.0f}")
        table.add_row(name, str(own["captions"]), *row)
    return table


def parameters_table(result: Result) -> Table:
    """Return the table of parameter counts."""
    table = Table(title="Parameters")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in result["parameters"].items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    return table


def write(result: Result, captions: pa.Table, run: Path, font: Path) -> Files:
    """Write report.html, contact-sheet.png and result.json.

    Args:
        result: Result of the demo.
        captions: The test's caption table, with the drawings as bytes.
        run: Folder of the files, created if it is missing.
        font: Downloaded archive of the package `FONT`.

    """
    images = dict(zip(captions["image_id"].to_pylist(), captions["image"].to_pylist(), strict=True))
    run.mkdir(parents=True, exist_ok=True)
    sheet = _sheet(result, images, font)
    environment = Environment(
        loader=PackageLoader("mla_ray.demo"), autoescape=True, trim_blocks=True
    )
    environment.filters["drawing"] = lambda image_id: _data_uri(images[image_id])
    page = environment.get_template("report.html.jinja").render(
        result=result,
        recall_rows=recall_rows(result),
        ks=KS,
        curves=_curves(run / "run" / "metrics.jsonl"),
    )
    files = Files(run / "report.html", run / "contact-sheet.png")
    document = json.dumps(result, indent=2, ensure_ascii=False)
    write_bytes(as_path(files.html), page.encode())
    write_bytes(as_path(files.sheet), sheet)
    write_bytes(as_path(run / "result.json"), document.encode())
    return files


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _sheet(result: Result, images: dict[str, bytes], font: Path) -> bytes:
    """Return a PNG with one row per query: its text, then the hits, the wanted one framed green."""
    cell, margin, left = 112, 12, 340
    queries = result["queries"]
    width = left + cell * max((len(query["hits"]) for query in queries), default=0) + margin
    canvas = Image.new("RGB", (width, 2 * margin + cell * len(queries)), "white")
    draw = ImageDraw.Draw(canvas)
    with tarfile.open(font) as archive:
        file = archive.extractfile("package/ttf/DejaVuSans.ttf")
        assert file  # noqa: S101  (the archive's hash was checked)
        data = file.read()
    large, small = (ImageFont.truetype(BytesIO(data), size) for size in (20, 14))
    for number, query in enumerate(queries):
        top = margin + number * cell
        if _drawable(query["query"], large):
            draw.text((margin, top + 28), _fit(draw, query["query"], large, left), "#111", large)
        draw.text((margin, top + 60), _fit(draw, query["english"], small, left), "#777", small)
        for place, hit in enumerate(query["hits"]):
            x = left + place * cell
            drawing = Image.open(BytesIO(images[hit["image_id"]])).convert("RGB")
            canvas.paste(
                drawing.resize((cell - 24, cell - 24), Image.Resampling.LANCZOS), (x + 8, top + 8)
            )
            if hit["image_id"] == query["wanted"]:
                box = (x + 2, top + 2, x + cell - 10, top + cell - 10)
                draw.rounded_rectangle(box, 10, outline="#1a9850", width=4)
    buffer = BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _drawable(text: str, font: ImageFont.FreeTypeFont) -> bool:
    """Return whether the font has every character. It would draw a box for a missing one."""
    box = bytes(font.getmask("\U0010ffff"))
    return all(bytes(font.getmask(character)) != box for character in text)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if draw.textlength(text, font) <= width - 24:
        return text
    while text and draw.textlength(text + "…", font) > width - 24:
        text = text[:-1]
    return text + "…"


def _curves(path: Path) -> list[dict[str, str]]:
    """Return the loss curve of each stage as the points of an SVG polyline, 600 x 160."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if row.get("loss") is None:  # an evaluation
            continue
        stages.setdefault(row["stage"], []).append(row)
    curves = []
    for stage, rows in stages.items():
        last, highest = max(row["step"] for row in rows), max(row["loss"] for row in rows)
        rows.sort(key=lambda row: int(row["step"]))
        points = " ".join(
            f"{600 * row['step'] / last:.1f},{160 - 150 * row['loss'] / highest:.1f}"
            for row in rows
        )
        note = f"{highest:.3g} → {rows[-1]['loss']:.3g} in {last:,} steps"
        curves.append({"stage": html.escape(stage.upper()), "points": points, "note": note})
    return curves
