"""The whole path for one language or twenty: what the jobs of a cluster run.

    tables -> prepare -> encode -> acquire -> evaluate -> index

A `Plan` says what, in one YAML file for all steps. Each step keeps what it made under the plan's
`run`, does only what is missing, and may be run alone. Languages are independent of each other:
each has a run folder and a pack of its own, so that one that fails takes no other with it.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from upath import UPath

from mla_ray.data.corpus import Corpus, named
from mla_ray.datasets.emoji_tables import table_files
from mla_ray.evaluation.captions import CaptionTable
from mla_ray.evaluation.evaluation import encode_query, evaluate, unknown_in
from mla_ray.model.language import ENGLISH, Language
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack, copy_pack
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import at, write_json
from mla_ray.training.acquisition import acquire, begin, encode
from mla_ray.training.config import AcquireConfig
from mla_ray.training.encode_features import Encoders
from mla_ray.training.prepare import Prepared, prepare
from mla_ray.training.workers import Hooks, Workers

log = logging.getLogger(__name__)

SHOWN_REASONS = 10
STEPS = ("prepare", "encode", "acquire", "evaluate", "index")
TEST = "test"
"""Split that packs are measured on."""


class Material(BaseModel):
    """Languages, what they are acquired from, and on what part of a cluster. Paths may be URLs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    languages: list[Language] = Field(min_length=1)
    """BCP-47 codes."""
    native: str = "emoji-clip"
    """A bundled name, a folder that every node has, `hf-hub:owner/model` or `ViT-B-32/openai`."""
    dataset: Literal["emoji"] | None = None
    """Tables made from free data instead of `pairs` and `captions`."""
    pairs: list[str] = []
    """Translation tables; `{language}` in a name stands for the code."""
    captions: str | None = None
    """A caption table; without it a language is acquired from text alone."""
    skip_invalid: bool = False
    """Leave bad rows and images out, and count them."""
    data: str = "data"
    """Data sets and frozen features."""
    workers: str = "1"
    """Ray Train workers of a language: `2`, or `1:4` for as many as there is room for."""
    worker_cpus: float | None = Field(default=None, gt=0)
    """Of each; an equal share of the cluster's cores if not given."""
    worker_gpus: float | None = Field(default=None, ge=0)
    """Of each. A cluster whose GPU nodes have yet to appear has to be asked for them."""
    encoders: int | None = Field(default=None, ge=1)
    """Most actors that encode; one for each GPU, or core, if not given."""
    encoder_cpus: float = Field(default=1.0, gt=0)
    encoder_gpus: float | None = Field(default=None, ge=0)
    """Of each; a fraction puts several on a GPU."""

    @model_validator(mode="after")
    def _has_tables(self) -> Self:
        if (self.dataset is None) == (not self.pairs):
            raise ValueError("give either `pairs` or `dataset`")
        if self.dataset and self.captions:
            raise ValueError("`dataset` brings its own captions; leave `captions` out")
        if len(set(self.languages)) < len(self.languages):
            raise ValueError("`languages` names one twice")
        for name in (*self.pairs, self.captions or ""):
            try:
                name.format(language="de")
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"{name!r}: only {{language}} can stand in braces in a name"
                ) from error
        Workers.parse(self.workers)
        return self

    def corpus(self, language: str, report: Report, begun: UPath | None = None) -> Corpus:
        """The tables of a language; those of a `dataset` are made unless they are there.

        `begun` is a file that names what a run is made of, if it has begun: the run keeps it.
        """
        if self.dataset == "emoji":
            tables = table_files(language, at(self.data), report, begun)
            return Corpus(language, [str(table) for table in tables[1:]], str(tables[0]))
        pairs = [name.format(language=language) for name in self.pairs]
        captions = self.captions.format(language=language) if self.captions else None
        return Corpus(language, pairs, captions)

    def of_workers(self) -> Workers:
        asked = Workers.parse(self.workers)
        return Workers(asked.count, asked.most, self.worker_cpus, self.worker_gpus)

    def of_encoders(self) -> Encoders:
        return Encoders(self.encoders, self.encoder_cpus, self.encoder_gpus)


class Plan(Material):
    """What is to be acquired, and where everything goes."""

    run: str = "runs/pipeline"
    """A run folder for each language, and the figures."""
    packs: str | None = None
    """Pack store; `packs` in `run` if not given."""
    index: str | None = None
    """Qdrant's URL or `edge:FOLDER`; without it nothing is indexed."""
    train: AcquireConfig = AcquireConfig()
    parallel: int = Field(default=1, ge=1)
    """Languages at a time."""


@dataclass
class Work:
    """A plan under way on a cluster that is there."""

    plan: Plan
    report: Report = lambda progress: None
    stop: threading.Event = field(default_factory=threading.Event)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.native = Native.load(self.plan.native)
        self.root = at(self.plan.run)
        self.store = at(self.plan.data) / "features"
        self.packs = at(self.plan.packs) if self.plan.packs else self.root / "packs"
        self._one = threading.Lock()

    def run(self, steps: tuple[str, ...] = STEPS) -> dict[str, Any]:
        """Do these steps for every language. A language that fails is told of at the end.

        Returns what each step made, by language.

        Raises:
            Stopped: as asked.
            ExceptionGroup: of the languages that failed, when the others are done.

        """
        results: dict[str, dict[str, Any]] = {}
        failed: list[Exception] = []

        def one(language: str) -> None:
            try:
                results[language] = self._language(language, steps)
            except Stopped:
                log.info("%s: stopped with a checkpoint", language)
            except Exception as error:
                error.add_note(f"language {language}")
                log.error("%s: %s", language, error)
                failed.append(error)

        with ThreadPoolExecutor(self.plan.parallel) as pool:
            list(pool.map(one, self.plan.languages))
        what = f"{len(failed)} of {len(self.plan.languages)} languages"
        if "index" in steps and self.plan.index is not None and not self.stop.is_set():
            try:
                for language, done in self.index(list(results)).items():
                    results[language]["index"] = done
            except Exception as error:
                log.error("index: %s", error)
                what = f"{what}, and the index" if failed else "the index"
                failed.append(error)
        if failed:
            raise ExceptionGroup(what, failed)
        if self.stop.is_set():
            raise Stopped(f"{self.root}: stopped; run the same again to go on")
        ordered = {language: results[language] for language in self.plan.languages}
        write_json(self.root / "result.json", ordered)
        return ordered

    def _language(self, language: str, steps: tuple[str, ...]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name in steps:
            if self.stop.is_set():
                raise Stopped(language)
            if name == "index":  # of all languages together
                continue
            log.info("%s: %s", language, name)
            made[name] = getattr(self, name)(language)
            log.info("%s: %s: %s", language, name, made[name])
        return made

    # -- steps --

    def prepare(self, language: str) -> dict[str, Any]:
        """Tables to blocks of token ids; InvalidTable names the bad rows."""
        corpus, run = self.corpus(language), self.root / language
        begin(self.native, [corpus], self._config(corpus), run, resume=True)
        made = self._prepare(corpus, run, language)
        return {"rows": made.rows[language], "dropped": made.dropped}

    def _prepare(self, corpus: Corpus, run: UPath, language: str) -> Prepared:
        def advance(phase: str, rows: int) -> None:
            self._tell(language)(Progress(phase, rows, None))

        return prepare(
            self.native,
            [corpus],
            self._config(corpus),
            run,
            skip_invalid=self.plan.skip_invalid,
            progress=advance,
        )

    def encode(self, language: str) -> dict[str, Any]:
        """What the feature stores lack of a prepared language; a bad image costs its row."""
        filled = encode(
            self.native,
            [self.corpus(language)],
            self.root / language,
            self.store,
            self._tell(language),
            self.plan.of_encoders(),
        )
        for failure in filled.failures:
            log.warning(
                "%s: %s row %d: image %s", language, failure.file, failure.row, failure.reason
            )
        return {"computed": filled.computed, "failed": filled.failed}

    def acquire(self, language: str) -> dict[str, Any]:
        """Both stages of training; the pack goes to the store."""
        corpus, plan = self.corpus(language), self.plan
        packs = acquire(
            plan.native,
            [corpus],
            self._config(corpus),
            self.root / language,
            store=self.store,
            workers=self.plan.of_workers(),
            encoders=self.plan.of_encoders(),
            resume=True,
            skip_invalid=plan.skip_invalid,
            hooks=Hooks(self._tell(language), self.stop, {**self.labels, "language": language}),
        )
        copy_pack(packs[language], self.packs / language)
        return {"pack": str(self.packs / language)}

    def evaluate(self, language: str) -> dict[str, Any]:
        """Recall of the pack on the split `test` of the captions, and of the native in English.

        Without such captions nothing is measured, and `skipped` says why.
        """
        corpus = self.corpus(language)
        splits = corpus.splits()
        found: dict[str, Any] = {}
        if corpus.captions is None:
            found["skipped"] = "there is no caption table"
        elif not splits[TEST]:
            found["skipped"] = (
                f"{corpus.captions} has no row of split {TEST!r} in {language!r}; rows found: "
                f"{named(splits)}"
            )
        else:
            found["pack"] = self._recall(language, corpus.captions)
            if corpus.splits("en")[TEST]:
                found["en"] = self._recall("en", corpus.captions)
            else:
                log.info("%s: no English captions of split %r to compare with", language, TEST)
        if "skipped" in found:
            log.warning("%s: not evaluated: %s", language, found["skipped"])
        write_json(self.root / language / "evaluation.json", found)
        return found

    def index(self, languages: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Images and captions into the plan's collections; what was written, by language.

        Languages that share a caption table are indexed together: it is read once, and each of its
        images is encoded once. English captions of the tables are indexed, too.
        """
        from mla_ray.index.bulk import index_table

        assert self.plan.index is not None  # noqa: S101  (asked before)
        sharing: dict[str, list[str]] = {}
        for language in languages:
            captions, pack = self.corpus(language).captions, self.packs / language
            if captions is None:
                continue
            if not (pack / "card.json").exists():
                raise FileNotFoundError(f"{pack}: no pack of {language} yet; run `acquire` first")
            sharing.setdefault(str(at(captions)), []).append(language)
        found: dict[str, dict[str, Any]] = {language: {} for language in languages}
        for table, together in sharing.items():
            log.info("index: %s of %s", table, ", ".join(together))
            done = index_table(
                self.plan.index,
                self.plan.native,
                {language: str(self.packs / language) for language in together},
                [table],
                self.plan.dataset or "captions",
                self._tell(" ".join(together)),
                languages={ENGLISH, *together},
                language=together[0] if len(together) == 1 else None,
            )
            for reason in done.reasons[:SHOWN_REASONS]:
                log.warning("index: %s", reason)
            log.info("index: %s: %s written, %d rejected", table, done.written, done.rejected)
            of_table = {"written": done.written, "rejected": done.rejected, "with": together}
            found |= dict.fromkeys(together, of_table)
        return found

    # -- parts --

    def corpus(self, language: str) -> Corpus:
        with self._one:  # languages share the downloads of a data set
            run = self.root / language / "run.json"
            return self.plan.corpus(language, self._tell(language), run)

    def _config(self, corpus: Corpus) -> AcquireConfig:
        config = self.plan.train
        return config if corpus.captions is not None else config.text_only()

    def _recall(self, language: str, captions: str | Path) -> dict[str, Any]:
        table = CaptionTable.read(captions, [language], skip_invalid=self.plan.skip_invalid)
        gallery = table.gallery(self.native)
        packs = {}
        if language != ENGLISH:
            packs[language] = LanguagePack.load(self.packs / language, self.native)
        found = evaluate(
            partial(encode_query, self.native, packs, language),
            language,
            table.rows,
            gallery,
            unknown=partial(unknown_in, self.native, packs, language),
        )
        return found.as_dict()

    def _tell(self, language: str) -> Report:
        return of_language(self.report, language)


def of_language(report: Report, language: str) -> Report:
    """Tells of phases with the language in front."""

    def told(step: Progress) -> None:
        phase = step.phase if language in step.phase.split() else f"{language} {step.phase}"
        report(replace(step, phase=phase))

    return told
