"""One run: train on the data of some languages, measure on every test set.

A record keeps, for each test, set and language, where the right answer came in for every image: one
character for text-to-image and one for image-to-text, in the order of the test's images. All
figures and their intervals are worked out from these.
"""

import secrets
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.evaluation.evaluation import EncodeText, Evaluation, Gallery, encode_query, evaluate
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.reproduce.ablation_data import AblationData, part_of
from mla_ray.reproduce.ablations import Run
from mla_ray.reproduce.reworded import reworded
from mla_ray.reproduce.tower import tune
from mla_ray.runtime.storage import as_path, write_json
from mla_ray.training.acquisition import acquire, job_of
from mla_ray.training.acquisition_learner import PreparedRun
from mla_ray.training.config import AcquireConfig
from mla_ray.training.prepare import prepare
from mla_ray.training.run_spec import spec_of, tables_key
from mla_ray.training.workers import Workers

Places = dict[str, dict[str, list[str]]]
"""By test set and language: a line text-to-image and one image-to-text."""


class Record(TypedDict, total=False):
    """What is kept of a run, as JSON."""

    run: str
    of: str
    """A hash of the data and settings it was made of."""
    seconds: float
    places: Places


PLACES = "0123456789"
LATER, NOTHING = "x", "."
"""A place after the tenth; no caption in the language."""


def measure(run: Run, data: AblationData, scratch: Path, shared: Path) -> Record:
    """Do a run.

    Args:
        run: which.
        data: its data.
        scratch: an empty folder for what it makes.
        shared: prepared tables, which runs that differ in training only have in common.

    """
    began = time.perf_counter()
    native = Native.load(data.native, "cuda" if torch.cuda.is_available() else "cpu")
    languages = list(run.languages)
    encoders: dict[str, EncodeText] = {}

    def add(group: list[str]) -> None:
        prepared = RunInputs.of(run, group, native, data, shared)
        folder = scratch / "+".join(group)
        if run.variant.how.startswith("tower"):
            tuned = tune(prepared.job(native, folder, data.store), native)
            encoders[group[0]] = lambda texts: tuned(texts).cpu().numpy()
        else:
            for language, pack in prepared.packs(data, folder).items():
                packs = {language: LanguagePack.load(pack, native)}
                encoders[language] = partial(encode_query, native, packs, language)

    if not run.variant.in_turn:
        add(languages)
        if run.variant.how == "tower":  # what became of English
            encoders["en"] = _english(native)
        places = _places(encoders, data)
    else:
        encoders["en"] = _english(native)
        places = {f"{name} after 0": of for name, of in _places(encoders, data).items()}
        for number, language in enumerate(languages, 1):
            add([language])
            for name, of in _places(encoders, data).items():
                places[f"{name} after {number}"] = of
    return {"seconds": round(time.perf_counter() - began, 1), "places": places}


REWORDED = "emoji in other words"
"""Test set of English alone: places of the images that `reworded` has another name for."""
BESIDE = "stamps beside {}"
"""Test sets of English alone: stamps that are described in a language, for not all are in each."""


def english(data: AblationData) -> Record:
    """The native itself, which no run changes."""
    encode = _english(Native.load(data.native))
    places = _places({"en": encode}, data) | {REWORDED: {"en": _reworded(encode, data)}}
    if "stamps" in data.sets:
        captions, gallery = data.test("stamps")
        described = set(captions["language"].unique().to_pylist())
        for language in [tag for tag in data.corpora if tag in described]:
            lines = _beside(encode, language, captions, gallery)
            places[BESIDE.format(language)] = {"en": lines}
    return {"places": places}


def _reworded(encode: EncodeText, data: AblationData) -> list[str]:
    captions, gallery = data.test("emoji")
    others, changed = reworded(captions)
    lines = written(evaluate(encode, "en", others, gallery), gallery)
    return [
        "".join(
            place if image_id in changed else NOTHING
            for image_id, place in zip(gallery.ids, line, strict=True)
        )
        for line in lines
    ]


def _beside(encode: EncodeText, language: str, captions: pa.Table, gallery: Gallery) -> list[str]:
    theirs = captions.filter(pc.equal(captions["language"], language))["image_id"]
    same = captions.filter(pc.is_in(captions["image_id"], theirs.combine_chunks()))
    return written(evaluate(encode, "en", same, gallery), gallery)


@dataclass(frozen=True)
class RunInputs:
    """What a training needs: data, settings and prepared tables."""

    corpora: list[Corpus]
    config: AcquireConfig
    tables: UPath

    @classmethod
    def of(
        cls, run: Run, languages: list[str], native: Native, data: AblationData, shared: Path
    ) -> Self:
        """Of some languages of a run; tables are made unless they are there.

        Two runs may make the same tables at once: the first to be ready puts its own in place.
        """
        variant = run.variant
        corpora = [data.corpora[language] for language in languages]
        if variant.share < 1:
            corpora = [
                part_of(c, variant.share, run.seed, shared / "share" / run.key) for c in corpora
            ]
        config = variant.config(run.seed, len(languages), data.bert)
        folder = shared / tables_key(spec_of(native, corpora, config))
        if not folder.exists():
            scratch = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
            prepare(native, corpora, config, as_path(scratch))
            try:
                scratch.rename(folder)
            except OSError:
                shutil.rmtree(scratch)
        return cls(corpora, config, as_path(folder))

    def packs(self, data: AblationData, folder: Path) -> dict[str, UPath]:
        """Both stages, in this process."""
        return acquire(
            data.native,
            self.corpora,
            self.config,
            folder,
            store=data.store,
            prepared=self.tables,
            workers=Workers(0),
        )

    def job(self, native: Native, folder: Path, store: str) -> PreparedRun:
        made = prepare(native, self.corpora, self.config, self.tables)
        write_json(as_path(folder) / "run.json", spec_of(native, self.corpora, self.config))
        return job_of(as_path(folder), as_path(store), made, self.tables)


def _english(native: Native) -> EncodeText:
    return partial(encode_query, native, {}, "en")


def _places(encoders: dict[str, EncodeText], data: AblationData) -> Places:
    """By each of these languages' encoders, in every test set that it has captions in."""
    places: Places = {}
    for name in data.sets:
        captions, gallery = data.test(name)
        captioned = set(captions["language"].unique().to_pylist())
        places[name] = {
            language: written(evaluate(encode, language, captions, gallery), gallery)
            for language, encode in encoders.items()
            if language in captioned
        }
    return places


def written(evaluation: Evaluation, gallery: Gallery) -> list[str]:
    """Places of the right answers, text-to-image and image-to-text; one caption an image."""
    at_image = {image_id: index for index, image_id in enumerate(gallery.ids)}
    lines = []
    # The ranks' own order of images is that in which captions name them first.
    for ranks in (evaluation.ranks.t2i, evaluation.ranks.i2t):
        line = np.full(len(gallery.ids), NOTHING)
        for image_id, rank in zip(evaluation.image_ids, ranks, strict=True):
            line[at_image[image_id]] = PLACES[rank] if rank < len(PLACES) else LATER
        lines.append("".join(line))
    return lines
