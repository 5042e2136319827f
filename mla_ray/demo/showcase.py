"""Default collection of `mla serve`: the emoji as Twemoji draws them, without skin-tone variants.

The variants of an emoji look so alike that they would fill a page of hits. The languages are those
that `mla demo` acquired. If there are none, the demo runs first.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from mla_ray.datasets.drawings import Drawing
from mla_ray.datasets.emoji import DRAWN_TOGETHER, SIZE, TEST_STYLE, Concept, Emoji
from mla_ray.demo import demo
from mla_ray.index.ingest import entries_of, index_captions, space_of, sync
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.native import Native
from mla_ray.packs.card import read_card
from mla_ray.packs.library import load_packs
from mla_ray.runtime.console import bars, stderr
from mla_ray.runtime.processes import map_in_processes
from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.storage import as_path, write_bytes

PICTURE_SIZE = 192


@dataclass(frozen=True)
class Showcase:
    """Locations of the packs, the index and the pictures."""

    packs: str
    index: str
    pictures: str


def prepare(run: Path, data: Path, language: str = "de") -> Showcase:
    """Create the packs, the index and the pictures if they are missing.

    The index and the pictures are rebuilt when the packs change.

    Args:
        run: Folder of the demo's run.
        data: Folder of the datasets.
        language: BCP-47 code of the language that the demo acquires if there are no packs.

    """
    packs = run / "packs"
    if not _packs(packs):
        stderr.print(f"no packs in {packs} yet: acquiring {language!r} first")
        demo.run_demo(language, run, data)
    folder = run / "showcase"
    showcase = Showcase(str(packs), f"edge:{folder / 'index'}", str(folder / "pictures"))
    record = folder / "made.json"
    cards = {pack.name: read_card(pack).sha256 for pack in _packs(packs)}
    if not record.exists() or json.loads(record.read_text()) != cards:
        with bars() as report:
            _make(showcase, _packs(packs), data, report)
        write_bytes(as_path(record), json.dumps(cards).encode())
    return showcase


def _image_id(concept: Concept) -> str:
    return f"{TEST_STYLE}/{concept.key}"


def _packs(folder: Path) -> list[Path]:
    return sorted(card.parent for card in folder.glob("[!.]*/card.json"))


def _make(showcase: Showcase, folders: list[Path], data: Path, report: Report) -> None:
    emoji = Emoji(data / "emoji")
    concepts = [concept for concept in emoji.concepts if not concept.skin_tone]
    native = Native.load(demo.NATIVE)
    packs = load_packs(folders, native)
    labels = {language: emoji.labels(language) for language in ("en", *packs)}
    starts = range(0, len(concepts), DRAWN_TOGETHER)
    drawings = [
        {_image_id(c): emoji.drawing(TEST_STYLE, c.key) for c in concepts[at : at + DRAWN_TOGETHER]}
        for at in starts
    ]
    images: dict[str, bytes] = {}
    for pngs in map_in_processes(partial(_draw, showcase.pictures), drawings):
        images |= pngs
        report(Progress("drawing emoji", len(images), len(concepts)))
    rows = [
        {
            "image_id": _image_id(concept),
            "image": images[_image_id(concept)],
            "language": language,
            "caption": known[concept.key].name,
        }
        for concept in concepts
        for language, known in labels.items()
        if concept.key in known
    ]
    table = pa.Table.from_pylist(rows)
    index_captions(showcase.index, native, packs, table, TEST_STYLE, report)
    kept = {entry.key for entry in entries_of(table, TEST_STYLE)}
    sync(showcase.index, space_of(native), TEST_STYLE, kept, PictureStore(showcase.pictures))


def _draw(pictures: str, drawings: Mapping[str, Drawing]) -> dict[str, bytes]:
    """Store pictures of drawings. Return them as PNG bytes in the size of the native's input."""
    store = PictureStore(pictures)
    for image_id, drawing in drawings.items():
        store.put(image_id, TEST_STYLE, drawing.image(PICTURE_SIZE))
    return {image_id: drawing.png(SIZE) for image_id, drawing in drawings.items()}
