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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from upath import UPath

from mla_ray.data.corpus import Corpus, named
from mla_ray.evaluation.captions import CaptionTable
from mla_ray.evaluation.evaluation import encode_query, evaluate, unknown_in
from mla_ray.model.language import ENGLISH
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack, copy_pack
from mla_ray.pipeline.plan import TEST, Plan
from mla_ray.pipeline.progress import of_language
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import as_path, write_json
from mla_ray.training.acquisition import acquire, begin, encode
from mla_ray.training.config import AcquireConfig
from mla_ray.training.prepare import prepare
from mla_ray.training.workers import Hooks

log = logging.getLogger(__package__)

SHOWN_REASONS = 10
STEPS = ("prepare", "encode", "acquire", "evaluate", "index")
StepResult = dict[str, Any]
"""What a step has to say of a language, as JSON."""


@dataclass
class Pipeline:
    """A plan under way on a cluster that is there."""

    plan: Plan
    native: Native
    report: Report = lambda progress: None
    stop: threading.Event = field(default_factory=threading.Event)
    labels: Mapping[str, str] = field(default_factory=dict)

    _downloads: threading.Lock = field(default_factory=threading.Lock)
    """Languages share the downloads of a data set."""

    @classmethod
    def load(
        cls,
        plan: Plan,
        report: Report = lambda progress: None,
        stop: threading.Event | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """With the plan's native.

        Args:
            plan: what is to be done.
            report: told of progress.
            stop: once set, what trains saves a checkpoint, and `run` raises `Stopped`.
            labels: of the metrics.

        """
        native = Native.load(plan.native)
        return cls(plan, native, report, stop or threading.Event(), labels or {})

    @property
    def root(self) -> UPath:
        return as_path(self.plan.run)

    @property
    def store(self) -> UPath:
        return as_path(self.plan.data) / "features"

    @property
    def packs(self) -> UPath:
        return as_path(self.plan.packs) if self.plan.packs else self.root / "packs"

    def run(self, steps: Sequence[str] = STEPS) -> dict[str, dict[str, StepResult]]:
        """Do these steps for every language. A language that fails is told of at the end.

        Returns what each step made, by language.

        Raises:
            Stopped: as asked.
            ExceptionGroup: of the languages that failed, when the others are done.

        """
        results: dict[str, dict[str, StepResult]] = {}
        failed: list[Exception] = []

        def run_language(language: str) -> None:
            try:
                results[language] = self._run_language(language, steps)
            except Stopped:
                log.info("%s: stopped with a checkpoint", language)
            except Exception as error:
                error.add_note(f"language {language}")
                log.error("%s: %s", language, error)
                failed.append(error)

        with ThreadPoolExecutor(self.plan.parallel) as pool:
            list(pool.map(run_language, self.plan.languages))
        message = f"{len(failed)} of {len(self.plan.languages)} languages"
        if "index" in steps and self.plan.index is not None and not self.stop.is_set():
            try:
                for language, written in self.index(self.plan.index, list(results)).items():
                    results[language]["index"] = written
            except Exception as error:
                log.error("index: %s", error)
                message = f"{message}, and the index" if failed else "the index"
                failed.append(error)
        if failed:
            raise ExceptionGroup(message, failed)
        if self.stop.is_set():
            raise Stopped(f"{self.root}: stopped; run the same again to go on")
        ordered = {language: results[language] for language in self.plan.languages}
        write_json(self.root / "result.json", ordered)
        return ordered

    def _run_language(self, language: str, steps: Sequence[str]) -> dict[str, StepResult]:
        by_name = {
            "prepare": self.prepare,
            "encode": self.encode,
            "acquire": self.acquire,
            "evaluate": self.evaluate,
        }
        results: dict[str, StepResult] = {}
        for name in steps:
            if self.stop.is_set():
                raise Stopped(language)
            if name == "index":  # of all languages together
                continue
            log.info("%s: %s", language, name)
            results[name] = by_name[name](language)
            log.info("%s: %s: %s", language, name, results[name])
        return results

    # -- steps --

    def prepare(self, language: str) -> StepResult:
        """Tables to blocks of token ids; InvalidTable names the bad rows."""
        corpus, run, report = self.corpus(language), self.root / language, self._report(language)
        config = self._config(corpus)
        prepared = prepare(
            self.native,
            [corpus],
            config,
            run,
            spec=begin(self.native, [corpus], config, run, resume=True),
            skip_invalid=self.plan.skip_invalid,
            progress=lambda phase, rows: report(Progress(phase, rows, None)),
        )
        return {"rows": prepared.rows[language], "dropped": prepared.dropped}

    def encode(self, language: str) -> StepResult:
        """What the feature stores lack of a prepared language; a bad image costs its row."""
        filled = encode(
            self.native,
            [self.corpus(language)],
            self.root / language,
            self.store,
            self._report(language),
            self.plan.of_encoders(),
        )
        for failure in filled.failures:
            log.warning(
                "%s: %s row %d: image %s", language, failure.file, failure.row, failure.reason
            )
        return {"computed": filled.computed, "failed": filled.failed}

    def acquire(self, language: str) -> StepResult:
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
            hooks=Hooks(self._report(language), self.stop, {**self.labels, "language": language}),
        )
        copy_pack(packs[language], self.packs / language)
        return {"pack": str(self.packs / language)}

    def evaluate(self, language: str) -> StepResult:
        """Recall of the pack on the split `test` of the captions, and of the native in English.

        Without such captions nothing is measured, and `skipped` says why.
        """
        corpus = self.corpus(language)
        splits = corpus.splits()
        result: StepResult = {}
        if corpus.captions is None:
            result["skipped"] = "there is no caption table"
        elif not splits[TEST]:
            result["skipped"] = (
                f"{corpus.captions} has no row of split {TEST!r} in {language!r}; rows found: "
                f"{named(splits)}"
            )
        else:
            result["pack"] = self._recall(language, corpus.captions)
            if corpus.splits("en")[TEST]:
                result["en"] = self._recall("en", corpus.captions)
            else:
                log.info("%s: no English captions of split %r to compare with", language, TEST)
        if "skipped" in result:
            log.warning("%s: not evaluated: %s", language, result["skipped"])
        write_json(self.root / language / "evaluation.json", result)
        return result

    def index(self, url: str, languages: Sequence[str]) -> dict[str, StepResult]:
        """Images and captions into the collections at `url`; what was written, by language.

        Languages that share a caption table are indexed together: it is read once, and each of its
        images is encoded once. English captions of the tables are indexed, too.
        """
        from mla_ray.index.bulk import index_table

        sharing: dict[str, list[str]] = {}
        for language in languages:
            captions, pack = self.corpus(language).captions, self.packs / language
            if captions is None:
                continue
            if not (pack / "card.json").exists():
                raise FileNotFoundError(f"{pack}: no pack of {language} yet; run `acquire` first")
            sharing.setdefault(str(as_path(captions)), []).append(language)
        results: dict[str, StepResult] = {language: {} for language in languages}
        for table, together in sharing.items():
            log.info("index: %s of %s", table, ", ".join(together))
            done = index_table(
                url,
                self.plan.native,
                {language: str(self.packs / language) for language in together},
                [table],
                self.plan.dataset or "captions",
                self._report(" ".join(together)),
                languages={ENGLISH, *together},
                language=together[0] if len(together) == 1 else None,
            )
            for reason in done.reasons[:SHOWN_REASONS]:
                log.warning("index: %s", reason)
            log.info("index: %s: %s written, %d rejected", table, done.written, done.rejected)
            of_table = {"written": done.written, "rejected": done.rejected, "with": together}
            results |= dict.fromkeys(together, of_table)
        return results

    # -- parts --

    def corpus(self, language: str) -> Corpus:
        with self._downloads:
            run = self.root / language / "run.json"
            return self.plan.corpus(language, self._report(language), run)

    def _config(self, corpus: Corpus) -> AcquireConfig:
        config = self.plan.train
        return config if corpus.captions is not None else config.text_only()

    def _recall(self, language: str, captions: str | Path) -> StepResult:
        table = CaptionTable.read(captions, [language], skip_invalid=self.plan.skip_invalid)
        gallery = table.gallery(self.native)
        packs = {}
        if language != ENGLISH:
            packs[language] = LanguagePack.load(self.packs / language, self.native)
        evaluation = evaluate(
            partial(encode_query, self.native, packs, language),
            language,
            table.rows,
            gallery,
            unknown=partial(unknown_in, self.native, packs, language),
        )
        return evaluation.as_dict()

    def _report(self, language: str) -> Report:
        return of_language(self.report, language)
