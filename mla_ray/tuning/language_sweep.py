"""Sweep of one language: search, resulting configuration, and gain on the test split.

Files of a sweep:

    run/<language>/spec.json      data and settings of the sweep; it resumes only with the same
    run/<language>/first.json     the first points of the search, and the origin of each
    run/<language>/prepared/      tables, shared by all trials with the same vocabulary
    run/<language>/tune/          state and metrics of Ray Tune
    run/<language>/default, best  acquisitions with the default and the best settings
    run/<language>/pack/          the pack of the best settings
    run/<language>/sweep.json     the outcome; written last
    run/<language>/report.html    the report
    results/<language>.yaml       the best settings, for `mla acquire --config`
    results/<language>.json       a copy of the outcome; sweeps of related languages start from it
"""

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import yaml
from upath import UPath

from mla_ray.data.corpus import Corpus, named
from mla_ray.data.table_reader import Stream
from mla_ray.model.native import Native
from mla_ray.packs.pack import copy_pack
from mla_ray.pipeline.plan import TEST
from mla_ray.pipeline.progress import of_language
from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.storage import as_path, is_file, read_json, write_bytes, write_json
from mla_ray.training.acquisition import acquire, bad_images, encode
from mla_ray.training.config import AcquireConfig, HeldOut
from mla_ray.training.prepare import prepare
from mla_ray.training.run_spec import OF_TABLES, RunSpec, spec_of, with_todays_fingerprint
from mla_ray.training.workers import Hooks
from mla_ray.tuning import report as reporting
from mla_ray.tuning.gain import gain, ranks_of_packs
from mla_ray.tuning.outcome import Gain, Outcome, Trial
from mla_ray.tuning.plan import SweepPlan
from mla_ray.tuning.search import concurrent_trials, search
from mla_ray.tuning.space import Choices, Space, differing, load_space
from mla_ray.tuning.starting_points import known_outcomes, starting_points
from mla_ray.tuning.trial import Point, TrialSpec

log = logging.getLogger(__name__)

LOW_RESOURCE = 2000
"""Number of pairs below which the space `auto` is `low-resource`."""
HELD_OUT = 1000
"""Maximum number of validation rows."""


@dataclass(frozen=True)
class LanguageSweep:
    """Sweep of one language whose tables exist.

    Attributes:
        plan: Plan that contains the language.
        language: BCP-47 code.
        native: Native of the plan.
        corpus: Tables that the language is acquired from.
        splits: Number of captions in each split.
        run_spec: Spec of an acquisition of the corpus with default settings. It contains the
            fingerprints of the tables, which require reading all of them.
        space_name: Name of the preset or of the file.
        space: Search space.
        trials: Number of trials.
        report: Receives the progress.
        stop: Stop request. Once set, the sweep saves its state and ends. It can be resumed.

    """

    plan: SweepPlan
    language: str
    native: Native
    corpus: Corpus
    splits: Counter[str]
    run_spec: RunSpec
    space_name: str
    space: Space
    trials: int
    report: Report
    stop: threading.Event

    @classmethod
    def open(
        cls,
        plan: SweepPlan,
        language: str,
        native: Native,
        report: Report,
        stop: threading.Event,
        most_trials: int | None = None,
    ) -> Self:
        """Make or find the language's tables, and read what the sweep needs from them.

        Args:
            plan: Plan that contains the language.
            language: BCP-47 code.
            native: Native of the plan.
            report: Receives the progress.
            stop: Stop request.
            most_trials: Maximum number of trials, if the plan has a budget.

        """
        corpus = plan.corpus(
            language, of_language(report, language), as_path(plan.run) / language / "spec.json"
        )
        space_name, space = _space(plan, corpus)
        trials = plan.trials or space.trials
        return cls(
            plan=plan,
            language=language,
            native=native,
            corpus=corpus,
            splits=corpus.splits(),
            run_spec=spec_of(native, [corpus], AcquireConfig()),
            space_name=space_name,
            space=space,
            trials=trials if most_trials is None else min(trials, most_trials),
            report=report,
            stop=stop,
        )

    @property
    def root(self) -> UPath:
        """Folder of the sweep."""
        return as_path(self.plan.run) / self.language

    @property
    def store(self) -> UPath:
        """Root of the feature stores."""
        return as_path(self.plan.data) / "features"

    def sweep(self) -> Outcome:
        """Run the whole sweep, or resume it. A finished sweep only returns its stored outcome.

        Raises:
            Stopped: The stop request was set. The same call resumes the sweep.
            ValueError: The folder contains a sweep of other data or settings, or no trial
                reported an AR.

        """
        done = self.root / "sweep.json"
        spec = self.trial_spec()
        self.begin(spec.held_out)
        if is_file(done):
            return Outcome.model_validate(read_json(done))
        trials = self.search(spec)
        best = _best(trials)
        config = self._config(best.settings)
        outcome = Outcome(
            language=self.language,
            native=self.plan.native,
            space=self.space_name,
            validation=spec.held_out.of,
            seed=self.plan.seed,
            trials=trials,
            best=best.number,
            config=differing(config),
            gain=self._gain(spec, config),
            seconds=round(sum(trial.seconds for trial in trials), 1),
        )
        reporting.write(outcome, self.root)
        results, text = as_path(self.plan.results), outcome.model_dump_json(indent=1)
        settings = f"# mla sweep, {outcome.line}\n" + yaml.safe_dump(outcome.config)
        write_bytes(results / f"{self.language}.yaml", settings.encode())
        write_bytes(results / f"{self.language}.json", text.encode())
        write_bytes(done, text.encode())
        return outcome

    def trial_spec(self) -> TrialSpec:
        """Return what all trials share."""
        return TrialSpec(
            run_spec=self.run_spec,
            corpus=self.corpus,
            space=self.space,
            held_out=self._held_out(),
            root=str(self.root),
            store=str(self.store),
            workers=self.plan.of_workers(),
        )

    # -- before the search --

    def _held_out(self) -> HeldOut:
        """Return the validation rows: the captions' split `validation`, or else some pairs."""
        if self.splits["validation"]:
            return HeldOut(of="captions", size=HELD_OUT)
        rows = _rows(self.corpus.pairs[0], self.language, 6 * HELD_OUT)
        return HeldOut(of="pairs", size=max(2, min(HELD_OUT, rows // 6)))

    def begin(self, held_out: HeldOut) -> None:
        """Write `spec.json`, or check that an existing one describes this sweep.

        Raises:
            ValueError: The folder contains a sweep of other data or settings.

        """
        spec = {
            "fingerprint": self.native.fingerprint,
            "sources": self.run_spec["sources"],
            "space": _without_about(self.space.model_dump()),
            "trials": self.trials,
            "seed": self.plan.seed,
            "held_out": held_out.model_dump(),
        }
        path = self.root / "spec.json"
        if not is_file(path):
            write_json(path, spec)
            return
        before = dict(with_todays_fingerprint(read_json(path), self.native, self.root))
        before["space"] = _without_about(before.get("space", {}))  # version 0.1.0 stored it
        if changed := [key for key in spec if before.get(key) != spec[key]]:
            raise ValueError(
                f"{self.root}: {' and '.join(changed)} differ from the sweep begun there; "
                "choose another run folder, or delete it"
            )

    def _prepare(self, spec: TrialSpec) -> None:
        """Make the tables for every vocabulary of the space, and the features, for all trials."""
        report = of_language(self.report, self.language)
        choices = {
            name: domain.choices
            for name, domain in self.space.parameters.items()
            if name in OF_TABLES and isinstance(domain, Choices)
        }
        vocabularies = list(itertools.product(*choices.values()))
        for number, values in enumerate(vocabularies):
            report(Progress("vocabularies", number, len(vocabularies)))
            config = spec.config(dict(zip(choices, values, strict=True)))
            tables = spec.tables(config)
            prepare(
                self.native,
                [self.corpus],
                config,
                tables,
                spec=spec.spec_of(config),
                skip_invalid=self.plan.skip_invalid,
            )
            filled = encode(
                self.native,
                [self.corpus],
                tables,
                self.store,
                report,
                self.plan.of_encoders(),
            )
            if filled.failed and not self.plan.skip_invalid:
                raise bad_images(filled)
        report(Progress("vocabularies", len(vocabularies), len(vocabularies)))

    # -- the search --

    def search(self, spec: TrialSpec) -> list[Trial]:
        """Run the trials, or resume them.

        Returns:
            The trials in start order.

        """
        import ray

        self._prepare(spec)
        return search(
            spec,
            trials=self.trials,
            first=self.first_points(),
            concurrent=self.plan.concurrent
            or concurrent_trials(spec.workers, ray.cluster_resources()),
            seed=self.plan.seed,
            report=self.report,
            stop=self.stop,
        )

    def first_points(self) -> list[tuple[str, Point]]:
        """Return the first points of the search and the origin of each.

        They are stored in `first.json` when the sweep starts, so a resumed sweep uses the same.
        """
        path = self.root / "first.json"
        if is_file(path):
            return [(origin, point) for origin, point in read_json(path)]
        known = known_outcomes(as_path(self.plan.results), self.plan.native)
        points = starting_points(self.language, self.space, self.native.text.width // 2, known)
        write_json(path, points)
        return points

    # -- the gain --

    def _config(self, point: Point | None) -> AcquireConfig:
        """Return the settings of a point, or the defaults for None.

        If the corpus has no captions, the settings have no LE stage.
        """
        captions = self.corpus.captions is not None
        if point is not None:
            return self.space.config(point, captions=captions)
        return AcquireConfig() if captions else AcquireConfig().text_only()

    def _gain(self, spec: TrialSpec, best: AcquireConfig) -> Gain | None:
        """Acquire with the best and the default settings, and compare them on the split `test`.

        No earlier step reads that split.

        Returns:
            The gain, or None if there is no such split. In that case, only the best settings are
            acquired.

        """
        hidden = self.native.text.width // 2

        def resolved(config: AcquireConfig) -> AcquireConfig:
            return config.model_copy(update={"hidden": config.hidden or hidden})

        default, has_test = self._config(None), self.splits[TEST] > 0
        configs = {"best": best}
        if has_test and resolved(default) != resolved(best):
            configs["default"] = default
        with ThreadPoolExecutor(len(configs)) as pool:  # concurrently, like trials
            folders = pool.map(lambda name: self._acquire(name, spec, configs[name]), configs)
            packs = dict(zip(configs, folders, strict=True))
        copy_pack(packs["best"], self.root / "pack")
        if not has_test or self.corpus.captions is None:
            rows = f"rows found: {named(self.splits)}" if self.corpus.captions else "none given"
            log.warning(
                "%s: the gain is not measured: captions have no split %r; %s",
                *(self.language, TEST, rows),
            )
            return None
        ranks = ranks_of_packs(
            packs, self.language, self.native, self.corpus.captions, self.plan.skip_invalid
        )
        return gain(ranks.get("default", ranks["best"]), ranks["best"], self.plan.seed)

    def _acquire(self, name: str, spec: TrialSpec, config: AcquireConfig) -> UPath:
        """Train a pack on all rows, including validation rows that are pairs."""
        report = of_language(self.report, self.language)
        packs = acquire(
            self.plan.native,
            [self.corpus],
            config,
            self.root / name,
            store=self.store,
            workers=self.plan.of_workers(),
            encoders=self.plan.of_encoders(),
            resume=True,
            skip_invalid=self.plan.skip_invalid,
            prepared=spec.tables(config),
            hooks=Hooks(
                report=lambda step: report(replace(step, phase=f"{name} {step.phase}")),
                stop=self.stop,
                labels={"language": self.language},
            ),
        )
        return packs[self.language]


def _space(plan: SweepPlan, corpus: Corpus) -> tuple[str, Space]:
    """Return the name and content of the plan's space. `auto` depends on the number of pairs."""
    if plan.space != "auto":
        return load_space(plan.space)
    few = sum(_rows(table, corpus.language, LOW_RESOURCE) for table in corpus.pairs)
    return load_space("low-resource" if few < LOW_RESOURCE else "standard")


def _best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest validation AR, the first one of equals.

    Only trials that were trained to the end count, if there are any. Diverged trials never count.
    """
    scored = [trial for trial in trials if trial.ar is not None and trial.status != "diverged"]
    candidates = [trial for trial in scored if trial.status == "done"] or scored
    if not candidates:
        errors = [trial.error for trial in trials if trial.error]
        raise ValueError(f"no trial reported an AR; first error: {errors[0] if errors else '?'}")
    return max(candidates, key=lambda trial: (trial.ar, -trial.number))


def _rows(table: str | Path, language: str, enough: int) -> int:
    """Count the rows of a translation table, and stop counting at `enough`."""
    rows = 0
    for piece in Stream.pairs([table], language):
        rows += piece.num_rows
        if rows >= enough:
            break
    return rows


def _without_about(space: dict[str, object]) -> dict[str, object]:
    """Return a space without its description, which changes nothing."""
    return {key: value for key, value in space.items() if key != "about"}
