"""One run: training on the data of some languages, and measurement on every test set.

A record contains the place of the right answer for every image, by test set and language. It has
one line for text-to-image and one for image-to-text. Each line has one character per image, in the
order of the test set's images. All figures and intervals are computed from these places.
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
"""By test set and language: a line for text-to-image and one for image-to-text."""


class Record(TypedDict, total=False):
    """Record of a run, stored as JSON."""

    run: str
    """Key of the run."""
    of: str
    """Hash of the data, settings and native of the run."""
    seconds: float
    """Wall-clock time in seconds."""
    places: Places
    """Places of the right answers."""


PLACES = "0123456789"
"""Characters for the first ten places, counted from 0."""
LATER, NOTHING = "x", "."
"""Characters for a place after the tenth, and for an image without a caption in the language."""


def measure(run: Run, data: AblationData, scratch: Path, shared: Path) -> Record:
    """Train and measure one run.

    Args:
        run: The run.
        data: Data sets of the run.
        scratch: Empty folder for the files of the run.
        shared: Folder of prepared tables. Runs that differ only in training share them.

    Returns:
        The wall-clock seconds and the places.

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
        if run.variant.how == "tower":  # tuning the tower changes English
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
"""English-only test set with Unicode's names: the images whose name `reworded` changes."""
BESIDE = "stamps beside {}"
"""English-only test sets: the stamps that have a description in the named language."""


def english(data: AblationData) -> Record:
    """Measure the native itself in English, on all test sets including the English-only ones."""
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
    """Inputs of a training: data, settings and prepared tables."""

    corpora: list[Corpus]
    config: AcquireConfig
    tables: UPath

    @classmethod
    def of(
        cls, run: Run, languages: list[str], native: Native, data: AblationData, shared: Path
    ) -> Self:
        """Return the inputs for some languages of a run. Missing tables are made.

        Two runs may make the same tables at the same time. The first one to finish moves its tables
        into place, and the other deletes its own.
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
        """Train both stages in this process.

        Returns:
            The pack folders by language.

        """
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
        """Write `run.json` to `folder`, and return the prepared run for a training there."""
        made = prepare(native, self.corpora, self.config, self.tables)
        write_json(as_path(folder) / "run.json", spec_of(native, self.corpora, self.config))
        return job_of(as_path(folder), as_path(store), made, self.tables)


def _english(native: Native) -> EncodeText:
    return partial(encode_query, native, {}, "en")


def _places(encoders: dict[str, EncodeText], data: AblationData) -> Places:
    """Measure each language's encoder on every test set that has captions in the language."""
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
    """Return the places of the right answers as lines, text-to-image and image-to-text.

    Each image must have at most one caption.
    """
    at_image = {image_id: index for index, image_id in enumerate(gallery.ids)}
    lines = []
    # The ranks are in the order in which images first appear among the captions.
    for ranks in (evaluation.ranks.t2i, evaluation.ranks.i2t):
        line = np.full(len(gallery.ids), NOTHING)
        for image_id, rank in zip(evaluation.image_ids, ranks, strict=True):
            line[at_image[image_id]] = PLACES[rank] if rank < len(PLACES) else LATER
        lines.append("".join(line))
    return lines
