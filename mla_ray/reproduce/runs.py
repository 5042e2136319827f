"""One run: train on the data of some languages, measure on every test set.

A record keeps, for each test, set and language, where the right answer came in for every image: one
character for text-to-image and one for image-to-text, in the order of the test's images. All
figures and their intervals are worked out from these.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.data.feature_store import encode_texts
from mla_ray.evaluation.evaluation import Evaluation, Gallery, evaluate
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.reproduce.ablations import Run
from mla_ray.reproduce.material import Material, part_of
from mla_ray.reproduce.reworded import reworded
from mla_ray.reproduce.tower import tune
from mla_ray.runtime.storage import at, write_json
from mla_ray.training.acquisition import acquire, job_of
from mla_ray.training.acquisition_learner import PreparedRun
from mla_ray.training.config import AcquireConfig
from mla_ray.training.driver import Driver
from mla_ray.training.prepare import prepare
from mla_ray.training.run_spec import spec_of, tables_key
from mla_ray.training.workers import Hooks

Encode = Callable[[Sequence[str]], Any]

PLACES = "0123456789"
LATER, NOTHING = "x", "."
"""A place after the tenth; no caption in the language."""


def measure(run: Run, material: Material, scratch: Path, shared: Path) -> dict[str, Any]:
    """Do a run.

    Args:
        run: which.
        material: its data.
        scratch: an empty folder for what it makes.
        shared: prepared tables, which runs that differ in training only have in common.

    """
    began = time.perf_counter()
    native = Native.load(material.native, "cuda" if torch.cuda.is_available() else "cpu")
    languages = list(run.languages)
    ways: dict[str, Encode] = {}

    def add(group: list[str]) -> None:
        prepared = Prepared.of(run, group, native, material, shared)
        folder = scratch / "+".join(group)
        if run.variant.how.startswith("tower"):
            ways[group[0]] = tune(prepared.job(native, folder, material.store), native)
        else:
            for language, pack in prepared.packs(material, folder).items():
                ways[language] = LanguagePack.load(pack, native).encode_text

    if not run.variant.in_turn:
        add(languages)
        if run.variant.how == "tower":  # what became of English
            ways["en"] = _english(native)
        places = _places(ways, material)
    else:
        ways["en"] = _english(native)
        places = {f"{name} after 0": of for name, of in _places(ways, material).items()}
        for number, language in enumerate(languages, 1):
            add([language])
            for name, of in _places(ways, material).items():
                places[f"{name} after {number}"] = of
    return {"seconds": round(time.perf_counter() - began, 1), "places": places}


REWORDED = "emoji in other words"
"""Test set of English alone: places of the images that `reworded` has another name for."""
BESIDE = "stamps beside {}"
"""Test sets of English alone: stamps that are described in a language, for not all are in each."""


def english(material: Material) -> dict[str, Any]:
    """The native itself, which no run changes."""
    way = _english(Native.load(material.native))
    places = _places({"en": way}, material) | {REWORDED: {"en": _reworded(way, material)}}
    if "stamps" in material.sets:
        captions, gallery = material.test("stamps")
        described = set(captions["language"].unique().to_pylist())
        for language in [tag for tag in material.corpora if tag in described]:
            lines = _beside(way, language, captions, gallery)
            places[BESIDE.format(language)] = {"en": lines}
    return {"places": places}


def _reworded(way: Encode, material: Material) -> list[str]:
    captions, gallery = material.test("emoji")
    others, changed = reworded(captions)
    lines = written(evaluate(way, "en", others, gallery), gallery)
    return [
        "".join(
            place if image_id in changed else NOTHING
            for image_id, place in zip(gallery.ids, line, strict=True)
        )
        for line in lines
    ]


def _beside(way: Encode, language: str, captions: pa.Table, gallery: Gallery) -> list[str]:
    theirs = captions.filter(pc.equal(captions["language"], language))["image_id"]
    same = captions.filter(pc.is_in(captions["image_id"], theirs.combine_chunks()))
    return written(evaluate(way, "en", same, gallery), gallery)


@dataclass(frozen=True)
class Prepared:
    """What a training needs: data, settings and prepared tables."""

    corpora: list[Corpus]
    config: AcquireConfig
    tables: UPath

    @classmethod
    def of(
        cls, run: Run, languages: list[str], native: Native, material: Material, shared: Path
    ) -> Self:
        """Of some languages of a run; tables are made unless they are there.

        Two runs may make the same tables at once: the first to be ready puts its own in place.
        """
        variant = run.variant
        corpora = [material.corpora[language] for language in languages]
        if variant.share < 1:
            corpora = [
                part_of(c, variant.share, run.seed, shared / "share" / run.key) for c in corpora
            ]
        config = variant.config(run.seed, len(languages), material.bert)
        folder = shared / tables_key(native, corpora, config)
        if not folder.exists():
            scratch = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
            prepare(native, corpora, config, at(scratch))
            try:
                scratch.rename(folder)
            except OSError:
                shutil.rmtree(scratch)
        return cls(corpora, config, at(folder))

    def packs(self, material: Material, folder: Path) -> dict[str, UPath]:
        """Both stages, in this process."""
        return acquire(
            material.native,
            self.corpora,
            self.config,
            folder,
            store=material.store,
            prepared=self.tables,
            hooks=Hooks(in_process=Driver()),
        )

    def job(self, native: Native, folder: Path, store: str) -> PreparedRun:
        made = prepare(native, self.corpora, self.config, self.tables)
        write_json(at(folder) / "run.json", spec_of(native, self.corpora, self.config))
        return job_of(at(folder), at(store), made, self.tables)


def _english(native: Native) -> Encode:
    return lambda texts: encode_texts(native, texts)


def _places(ways: dict[str, Encode], material: Material) -> dict[str, dict[str, list[str]]]:
    """By test set and language."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in material.sets:
        captions, gallery = material.test(name)
        known = set(captions["language"].unique().to_pylist())
        found[name] = {
            language: written(evaluate(_numpy(way), language, captions, gallery), gallery)
            for language, way in ways.items()
            if language in known
        }
    return found


def _numpy(way: Encode) -> Encode:
    def encode(texts: Sequence[str]) -> Any:
        features = way(texts)
        return features.cpu().numpy() if isinstance(features, Tensor) else features

    return encode


def written(found: Evaluation, gallery: Gallery) -> list[str]:
    """Places of the right answers, text-to-image and image-to-text; one caption an image."""
    at_image = {image_id: index for index, image_id in enumerate(gallery.ids)}
    lines = []
    # The ranks' own order of images is that in which captions name them first.
    for ranks in (found.ranks.t2i, found.ranks.i2t):
        line = np.full(len(gallery.ids), NOTHING)
        for image_id, rank in zip(found.image_ids, ranks, strict=True):
            line[at_image[image_id]] = PLACES[rank] if rank < len(PLACES) else LATER
        lines.append("".join(line))
    return lines
