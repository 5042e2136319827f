"""The pipeline that jobs run on a cluster, for one language or many.

    tables -> prepare -> encode -> acquire -> evaluate -> index

A `Plan` describes all steps in one YAML file. Each step stores its results under the plan's `run`
and skips work that is done. Each step can run alone. Languages are independent: each has its own
run folder and pack, so a failure of one does not affect the others.
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
"""Result of a step for one language, as JSON."""


@dataclass
class Pipeline:
    """Runner for the steps of a plan. Ray must have been started."""

    plan: Plan
    native: Native
    report: Report = lambda progress: None
    stop: threading.Event = field(default_factory=threading.Event)
    labels: Mapping[str, str] = field(default_factory=dict)

    _downloads: threading.Lock = field(default_factory=threading.Lock)
    """Held while tables are made, because languages share the downloads of a data set."""

    @classmethod
    def load(
        cls,
        plan: Plan,
        report: Report = lambda progress: None,
        stop: threading.Event | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """Create a pipeline and load the plan's native.

        Args:
            plan: The plan.
            report: Receives progress.
            stop: Once set, trainings save a checkpoint, and `run` raises `Stopped`.
            labels: Labels of the metrics.

        """
        native = Native.load(plan.native)
        return cls(plan, native, report, stop or threading.Event(), labels or {})

    @property
    def root(self) -> UPath:
        """Folder of the run folders."""
        return as_path(self.plan.run)

    @property
    def store(self) -> UPath:
        """Root folder of the feature stores."""
        return as_path(self.plan.data) / "features"

    @property
    def packs(self) -> UPath:
        """Folder of the pack store."""
        return as_path(self.plan.packs) if self.plan.packs else self.root / "packs"

    def run(self, steps: Sequence[str] = STEPS) -> dict[str, dict[str, StepResult]]:
        """Run these steps for every language.

        A language that fails does not stop the others. Indexing comes last, for all languages
        that succeeded. If nothing failed, the results are written to `result.json`.

        Returns:
            The result of each step, by language.

        Raises:
            Stopped: A stop request ended the pipeline.
            ExceptionGroup: Languages or the indexing failed. Raised after all others are done.

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
            if name == "index":  # `run` indexes all languages together
                continue
            log.info("%s: %s", language, name)
            results[name] = by_name[name](language)
            log.info("%s: %s: %s", language, name, results[name])
        return results

    # -- steps --

    def prepare(self, language: str) -> StepResult:
        """Convert the tables of a language to blocks of token ids.

        Returns:
            `rows`: rows by table; `dropped`: number of rows that were skipped.

        Raises:
            InvalidTable: A table has invalid rows. The message names them.

        """
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
        """Compute the features of a prepared language that the feature stores lack.

        An invalid image is logged and does not stop the others.

        Returns:
            `computed` and `failed`: number of features and of rows without one.

        """
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
        """Train both stages of a language and copy its pack to the pack store.

        Prepares and encodes first if that is not done.

        Returns:
            `pack`: the pack's folder.

        """
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
        """Evaluate the pack, and the native in English, on the split `test` of the captions.

        Writes the result to `evaluation.json` in the language's run folder.

        Returns:
            `pack` and `en`: the recall of each. If there are no such captions, `skipped` is the
            reason.

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
        """Write images and captions to the collections at `url`.

        Languages that share a caption table are indexed together: the table is read once, and its
        images are encoded once for all of them. English captions in the tables are indexed, too.
        What the index has unchanged is not encoded again.

        Returns:
            `written`, `unchanged` and `rejected` points, by language, as in `Indexed`. Languages
            that share a table have the same numbers, and `with` lists these languages.

        Raises:
            FileNotFoundError: A language has no pack yet.

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
                settings=self.plan.index_settings,
            )
            for reason in done.reasons[:SHOWN_REASONS]:
                log.warning("index: %s", reason)
            log.info("index: %s: %s written, %d rejected", table, done.written, done.rejected)
            of_table = {
                "written": done.written,
                "unchanged": done.unchanged,
                "rejected": done.rejected,
                "with": together,
            }
            results |= dict.fromkeys(together, of_table)
        return results

    # -- parts --

    def corpus(self, language: str) -> Corpus:
        """Return the tables of a language; create those of a data set if they are missing."""
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
