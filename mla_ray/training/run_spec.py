"""What a run is made of: `run.json`. A run goes on only with the same data and settings."""

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
"""Of the frozen features that a stage's texts are to meet."""
OF_TABLES = ("vocabulary", "vocab_size", "sample", "rows", "seed")
"""Settings that prepared tables depend on."""
GOES_ON = "The run goes on, and what it saves has the fingerprint of today."
"""What to do about a run with a fingerprint of the rule of before: nothing."""
RUN = "run.json"


class RunSpec(TypedDict, total=False):
    """`run.json` of an acquisition, and what its workers are given."""

    native: str
    fingerprint: str
    config: dict[str, Any]
    """An AcquireConfig."""
    sources: dict[str, dict[str, list[str]]]
    """By language and table: what tells its files from other files."""
    start: dict[str, dict[str, Any]] | None
    """By language: of the card of the pack that it starts from."""
    tables: dict[str, dict[str, dict[str, Any]]]
    """By language and table: rows and files. For workers alone."""


def spec_of(native: Native, corpora: Sequence[Corpus], config: AcquireConfig) -> RunSpec:
    """What a run is made of; it goes on only with the same."""
    starts = {c.language: _start_card(c.start) for c in corpora if c.start is not None}
    return {
        "native": native.name,
        "fingerprint": native.fingerprint,
        "config": config.model_dump(),
        "sources": sources(corpora),
        "start": starts or None,
    }


def _start_card(pack: str | Path) -> dict[str, Any]:
    """Which pack a run starts from, and how that was made."""
    card = read_card(pack)
    return card.model_dump(include={"sha256", "stages", "acquired_on", "started_from"})


def sources(corpora: Sequence[Corpus]) -> dict[str, dict[str, list[str]]]:
    """What tells the tables of a run from other tables."""
    return {
        corpus.language: {
            name: [fingerprint(file) for file in stream_of(corpus, stage, table).files]
            for name, stage, table in corpus.tables()
        }
        for corpus in corpora
    }


def stream_of(corpus: Corpus, stage: Stage, table: str | Path, split: str = "train") -> Stream:
    """The rows of a corpus's table that are of its language and split."""
    if stage == "nlt":
        return Stream.pairs([table], corpus.language)
    return Stream.captions([table], corpus.language, split)


def tables_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What of a `spec_of` prepared tables depend on; runs that differ in the rest share them."""
    config = {name: spec["config"][name] for name in OF_TABLES}
    held = spec["config"]["held_out"]
    config["held_out"] = (held["of"], held["size"]) if held["every"] else None
    made_of = {name: spec.get(name) for name in ("fingerprint", "sources", "start")}
    return made_of | {"config": config}


def tables_key(spec: Mapping[str, Any]) -> str:
    """A name for a folder of prepared tables: the same for runs that may share them."""
    document = json.dumps(tables_spec(spec), sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def with_todays_fingerprint(
    spec: Mapping[str, Any], native: Native, run: UPath
) -> Mapping[str, Any]:
    """A spec as it was written, with today's fingerprint if it has the native's of before."""
    if native.goes_by(spec.get("fingerprint", ""), run, GOES_ON):
        return {**spec, "fingerprint": native.fingerprint}
    return spec


@contextmanager
def only_run_in(run: UPath) -> Iterator[None]:
    """Keep a run folder of this machine's file systems for this run, in the body of a `with`.

    BlockingIOError if another run is at work there. A URL has no locks.
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
    """See that there is no run in a folder yet, or one of this spec; returns whether there is one.

    Args:
        run: the run folder.
        spec: what the run would be made of.
        native: of it.
        resume: whether to go on with a run that is there.
        begun: whether anything was made of that run; if not, its spec may change.

    Raises:
        FileExistsError: there is a run, and `resume` is off.
        ValueError: the run there is of another spec.

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
