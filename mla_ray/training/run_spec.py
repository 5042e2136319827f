"""Specification of a run, `run.json`. A run resumes only with the same data and settings."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypedDict

from upath import UPath

from mla_ray.data.blocks import fingerprint
from mla_ray.data.corpus import Corpus, Stage
from mla_ray.data.feature_store import Kind
from mla_ray.data.table_reader import Stream
from mla_ray.model.native import Native
from mla_ray.packs.card import read_card
from mla_ray.runtime.atomic import one_process
from mla_ray.runtime.storage import is_file, is_local, read_json
from mla_ray.training.config import AcquireConfig

KIND: dict[str, Kind] = {"nlt": "text", "le": "image"}
"""Kind of the frozen features on which a stage trains its texts."""
OF_TABLES = ("vocabulary", "vocab_size", "sample", "rows", "seed")
"""Settings that prepared tables depend on."""
GOES_ON = "The run continues, and what it saves has the current fingerprint."
"""Remedy for a run that has its native model's fingerprint by mla-ray 0.1.0: nothing to do."""
RUN = "run.json"


class RunSpec(TypedDict, total=False):
    """Content of an acquisition's `run.json`, and the form of it that the workers receive."""

    native: str
    fingerprint: str
    config: dict[str, Any]
    """Settings, as `AcquireConfig.model_dump` returns them."""
    sources: dict[str, dict[str, list[str]]]
    """Fingerprints of the files of each table, by language and table name."""
    start: dict[str, dict[str, Any]] | None
    """Part of the card of the pack from which a language starts, by language."""
    tables: dict[str, dict[str, dict[str, Any]]]
    """Rows and files of each table, by language and table name. Only workers receive it."""


def spec_of(native: Native, corpora: Sequence[Corpus], config: AcquireConfig) -> RunSpec:
    """Return the spec of a run. The run resumes only with the same spec."""
    starts = {c.language: _start_card(c.start) for c in corpora if c.start is not None}
    return {
        "native": native.name,
        "fingerprint": native.fingerprint,
        "config": config.model_dump(),
        "sources": sources(corpora),
        "start": starts or None,
    }


def _start_card(pack: str | Path) -> dict[str, Any]:
    """Return the part of a pack's card that identifies it and says how it was made."""
    card = read_card(pack)
    return card.model_dump(include={"sha256", "stages", "acquired_on", "started_from"})


def sources(corpora: Sequence[Corpus]) -> dict[str, dict[str, list[str]]]:
    """Return the fingerprints of the table files, by language and table name."""
    return {
        corpus.language: {
            name: [fingerprint(file) for file in stream_of(corpus, stage, table).files]
            for name, stage, table in corpus.tables()
        }
        for corpus in corpora
    }


def stream_of(corpus: Corpus, stage: Stage, table: str | Path, split: str = "train") -> Stream:
    """Return a stream of the rows of a corpus's table, in its language and this split."""
    if stage == "nlt":
        return Stream.pairs([table], corpus.language)
    return Stream.captions([table], corpus.language, split)


def tables_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a spec on which prepared tables depend.

    Runs that differ only in other parts can share prepared tables.
    """
    config = {name: spec["config"][name] for name in OF_TABLES}
    held = spec["config"]["held_out"]
    config["held_out"] = (held["of"], held["size"]) if held["every"] else None
    made_of = {name: spec.get(name) for name in ("fingerprint", "sources", "start")}
    return made_of | {"config": config}


def tables_key(spec: Mapping[str, Any]) -> str:
    """Return a folder name for prepared tables. Runs that can share tables have the same name."""
    document = json.dumps(tables_spec(spec), sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def with_todays_fingerprint(
    spec: Mapping[str, Any], native: Native, run: UPath
) -> Mapping[str, Any]:
    """Return a stored spec, with the current fingerprint if it has the one by mla-ray 0.1.0.

    The spec of another native model is returned unchanged.

    Args:
        spec: Spec that was read.
        native: Native model with both fingerprints.
        run: Folder of the spec, for the log.

    """
    if native.goes_by(spec.get("fingerprint", ""), run, GOES_ON):
        return {**spec, "fingerprint": native.fingerprint}
    return spec


@contextmanager
def only_run_in(run: UPath) -> Iterator[None]:
    """Lock a local run folder in the body of a `with` statement. A folder at a URL is not locked.

    Raises:
        BlockingIOError: Another run is active in the folder.

    """
    with ExitStack() as held:
        if is_local(run):
            try:
                held.enter_context(one_process(Path(run.path)))
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"{error}, another run; wait for it or stop it, or choose another run folder"
                ) from error
        yield


def check_goes_on(
    run: UPath, spec: Mapping[str, Any], native: Native, resume: bool, begun: bool = True
) -> bool:
    """Check that a folder has no run, or one that can resume. Return whether it has one.

    Args:
        run: Run folder.
        spec: Spec of the run that would start or resume.
        native: Native model of the run.
        resume: Whether to continue an existing run.
        begun: Whether the existing run has results. If not, its spec may differ.

    Raises:
        FileExistsError: There is a run and `resume` is False.
        ValueError: The existing run has another spec.

    """
    path = run / RUN
    if not is_file(path):
        return False
    if not resume:
        raise FileExistsError(
            f"{run} holds a run already; pass --resume to go on with it, or delete it"
        )
    if begun:
        before = with_todays_fingerprint(read_json(path), native, run)
        if changed := [key for key in spec if before.get(key) != spec[key]]:
            raise ValueError(
                f"{run}: cannot resume, {' and '.join(changed)} differ from the run begun there; "
                "choose another run folder, or delete it"
            )
    return True
