"""A sweep: for each language a search, its result as a configuration, and what that is worth.

run/<language>/spec.json      what the sweep is of; it goes on only with the same
run/<language>/first.json     the points that the search begins with, and where they are from
run/<language>/prepared/      tables, once for all trials of the same vocabulary
run/<language>/tune/          Ray Tune's state and figures
run/<language>/default, best  acquisitions by the default and the best settings
run/<language>/pack/          the pack of the best settings
run/<language>/sweep.json     the outcome; written last
run/<language>/report.html
results/<language>.yaml       what `mla acquire --config` takes
results/<language>.json       the outcome again: where sweeps of related languages begin
"""

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import Field, ValidationError
from upath import UPath

from mla_ray.data.corpus import Corpus, named
from mla_ray.data.table_reader import Stream
from mla_ray.evaluation.captions import CaptionTable
from mla_ray.evaluation.evaluation import evaluate
from mla_ray.evaluation.recall import Ranks
from mla_ray.model.language import ENGLISH, Language
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack, copy_pack
from mla_ray.pipeline import TEST, Material, of_language
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import at, names_in, read_json, write_bytes, write_json
from mla_ray.training.acquisition import acquire, bad_images, encode
from mla_ray.training.config import AcquireConfig, HeldOut
from mla_ray.training.prepare import prepare
from mla_ray.training.run_spec import OF_TABLES, sources, with_todays_fingerprint
from mla_ray.training.workers import Hooks, Workers, gpus_per_worker
from mla_ray.tuning import report as reporting
from mla_ray.tuning.families import related
from mla_ray.tuning.gain import gain
from mla_ray.tuning.outcome import Outcome, Trial, Value
from mla_ray.tuning.search import search
from mla_ray.tuning.space import Choices, Space, differing, load_space
from mla_ray.tuning.trial import Task

log = logging.getLogger(__name__)

ALL = "all"
LOW_RESOURCE = 2000
"""Pairs below which a language is swept in the space `low-resource`, unless told otherwise."""
HELD_OUT = 1000
RELATED = 2
"""Best settings of so many related languages are tried first."""


class SweepPlan(Material):
    """What is to be swept, how long, and where everything goes."""

    languages: list[Language] = Field(min_length=1)
    """BCP-47 codes, or `all` of the tables or the data set."""
    space: str = "auto"
    """`quick`, `standard`, `low-resource`, a YAML file, or `auto`: by the number of pairs."""
    trials: int | None = Field(default=None, ge=1)
    """Of each language; the space says how many if not given."""
    budget: int | None = Field(default=None, ge=1)
    """Most trials of all languages together, shared out evenly."""
    concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; as many as the cluster has room for if not given."""
    seed: int = Field(default=0, ge=0)
    run: str = "runs/sweep"
    """A run folder for each language."""
    results: str = "tuning/results"
    """Best settings by language; what is there of related languages is tried first."""
    worker_cpus: float | None = Field(default=1.0, gt=0)
    """Of each worker of a trial."""


def sweep(plan: SweepPlan, report: Report, stop: threading.Event) -> list[Outcome]:
    """Sweep languages one after another; the caller has started Ray. What is done stays done.

    Raises:
        Stopped: as asked.
        ExceptionGroup: of the languages that failed, when the others are done.

    """
    languages = languages_of(plan, report)
    if plan.budget is not None and plan.budget < len(languages):
        raise ValueError(f"a budget of {plan.budget} trials is not one for each of {languages}")
    outcomes: list[Outcome] = []
    failed: list[Exception] = []
    for language in languages:
        if stop.is_set():
            raise Stopped(f"{plan.run}: stopped; run the same again to go on")
        try:
            outcomes.append(LanguageSweep(plan, language, len(languages), report, stop).sweep())
        except Stopped:
            raise
        except Exception as error:
            if len(languages) == 1:
                raise
            error.add_note(f"language {language}")
            log.error("%s: %s", language, error)
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(languages)} languages", failed)
    return outcomes


def languages_of(plan: SweepPlan, report: Report) -> list[str]:
    """The plan's languages, or all there are."""
    if plan.languages != [ALL]:
        return plan.languages
    if plan.dataset == "emoji":
        from mla_ray.datasets.emoji import Emoji

        return [code for code in Emoji(Path(plan.data) / "emoji").languages if code != ENGLISH]
    if any("{language}" in name for name in plan.pairs):
        raise ValueError("languages 'all' cannot be read off names with {language}; list them")
    found: set[str] = set()
    for piece in Stream.pairs(plan.pairs):
        found.update(piece["language"].unique().to_pylist())
        report(Progress("languages", len(found), None))
    return sorted(found)


class LanguageSweep:
    """The sweep of one language."""

    def __init__(
        self,
        plan: SweepPlan,
        language: str,
        languages: int,
        report: Report,
        stop: threading.Event,
    ) -> None:
        self.plan, self.language, self.stop = plan, language, stop
        self.report, self._tell = report, of_language(report, language)
        self.root = at(plan.run) / language
        self.store = at(plan.data) / "features"
        self.native = Native.load(plan.native)
        self.corpus: Corpus = plan.corpus(language, self._tell, self.root / "spec.json")
        self.space_name, self.space = self._space()
        self.trials = plan.trials or self.space.trials
        if plan.budget is not None:
            self.trials = min(self.trials, plan.budget // languages)

    def sweep(self) -> Outcome:
        """All of it; what was done before is read."""
        done = self.root / "sweep.json"
        task = self.task()
        self._begin(task.held_out)
        if done.exists():
            return Outcome.model_validate(read_json(done))
        trials = self.searched(task)
        best = _best(trials)
        config = self._config(best)
        outcome = Outcome(
            language=self.language,
            native=self.plan.native,
            space=self.space_name,
            validation=task.held_out.of,
            seed=self.plan.seed,
            trials=trials,
            best=best.number,
            config=differing(config),
            seconds=round(sum(trial.seconds for trial in trials), 1),
        )
        outcome = self._measured(outcome, task, config)
        reporting.write(outcome, self.root)
        results, text = at(self.plan.results), outcome.model_dump_json(indent=1)
        settings = f"# mla sweep, {outcome.line}\n" + yaml.safe_dump(outcome.config)
        write_bytes(results / f"{self.language}.yaml", settings.encode())
        write_bytes(results / f"{self.language}.json", text.encode())
        write_bytes(done, text.encode())
        return outcome

    # -- before the search --

    def task(self) -> Task:
        """What the trials share."""
        return Task(
            native=self.plan.native,
            corpus=self.corpus,
            space=self.space,
            held_out=self._held_out(),
            root=str(self.root),
            store=str(self.store),
            workers=self.plan.of_workers(),
            skip_invalid=self.plan.skip_invalid,
        )

    def _space(self) -> tuple[str, Space]:
        if self.plan.space != "auto":
            return load_space(self.plan.space)
        few = sum(_rows(table, self.language, LOW_RESOURCE) for table in self.corpus.pairs)
        return load_space("low-resource" if few < LOW_RESOURCE else "standard")

    def _held_out(self) -> HeldOut:
        """Rows that settings are chosen by: the captions' split `validation`, else some pairs."""
        if self.corpus.splits()["validation"]:
            return HeldOut(of="captions", size=HELD_OUT)
        rows = _rows(self.corpus.pairs[0], self.language, 6 * HELD_OUT)
        return HeldOut(of="pairs", size=max(2, min(HELD_OUT, rows // 6)))

    def _begin(self, held_out: HeldOut) -> None:
        """See that the folder is of this sweep, or of none yet."""
        spec = {
            "fingerprint": self.native.fingerprint,
            "sources": sources([self.corpus]),
            "space": self.space.model_dump(),
            "trials": self.trials,
            "seed": self.plan.seed,
            "held_out": held_out.model_dump(),
        }
        path = self.root / "spec.json"
        if not path.exists():
            write_json(path, spec)
            return
        before = with_todays_fingerprint(read_json(path), self.native, self.root)
        if changed := [key for key in spec if before.get(key) != spec[key]]:
            raise ValueError(
                f"{self.root}: {' and '.join(changed)} differ from the sweep begun there; "
                "choose another run folder, or delete it"
            )

    def _prepare(self, task: Task) -> None:
        """Tables for every vocabulary that the space has, and features, once for all trials."""
        ours = {
            name: domain.choices
            for name, domain in self.space.parameters.items()
            if name in OF_TABLES and isinstance(domain, Choices)
        }
        every = list(itertools.product(*ours.values()))
        for number, values in enumerate(every):
            self._tell(Progress("vocabularies", number, len(every)))
            config = task.config(dict(zip(ours, values, strict=True)))
            tables = task.tables(self.native, config)
            prepare(self.native, [self.corpus], config, tables, skip_invalid=self.plan.skip_invalid)
            filled = encode(
                self.native,
                [self.corpus],
                tables,
                self.store,
                self._tell,
                self.plan.of_encoders(),
            )
            if filled.failed and not self.plan.skip_invalid:
                raise bad_images(filled)
        self._tell(Progress("vocabularies", len(every), len(every)))

    # -- the search --

    def searched(self, task: Task) -> list[Trial]:
        """The trials, in the order they were begun."""
        import ray

        self._prepare(task)
        return search(
            task,
            trials=self.trials,
            first=self._first(),
            concurrent=self.plan.concurrent or room(task.workers, ray.cluster_resources()),
            seed=self.plan.seed,
            report=self.report,
            stop=self.stop,
        )

    def _first(self) -> list[tuple[str, Mapping[str, Value]]]:
        """The defaults, and what was best for related languages when the sweep was begun."""
        path = self.root / "first.json"
        if path.exists():
            return [(origin, point) for origin, point in read_json(path)]
        hidden = AcquireConfig().hidden or self.native.text.width // 2
        default = self.space.point(AcquireConfig(hidden=hidden))
        first: list[tuple[str, Mapping[str, Value]]] = [("defaults", default)]
        known = known_outcomes(at(self.plan.results), self.plan.native)
        for language in related(self.language, known)[:RELATED]:
            outcome = known[language]
            best = next(t for t in outcome.trials if t.number == outcome.best).settings
            near = {
                name: domain.nearest(best[name]) if name in best else default[name]
                for name, domain in self.space.parameters.items()
            }
            if near not in [point for _, point in first]:
                first.append((f"best for {language}", near))
        write_json(path, first)
        return first

    # -- what it is worth --

    def _config(self, trial: Trial | None) -> AcquireConfig:
        captions = self.corpus.captions is not None
        if trial is not None:
            return self.space.config(trial.settings, captions=captions)
        return AcquireConfig() if captions else AcquireConfig().text_only()

    def _measured(self, outcome: Outcome, task: Task, config: AcquireConfig) -> Outcome:
        """With the gain on the split `test`, which nothing before looked at."""
        hidden = self.native.text.width // 2

        def whole(config: AcquireConfig) -> AcquireConfig:
            return config.model_copy(update={"hidden": config.hidden or hidden})

        default, splits = self._config(None), self.corpus.splits()
        test = splits[TEST] > 0
        configs = {"best": config}
        if test and whole(default) != whole(config):
            configs["default"] = default
        with ThreadPoolExecutor(len(configs)) as pool:  # side by side, as trials are
            folders = pool.map(lambda name: self._acquired(name, task, configs[name]), configs)
            packs = dict(zip(configs, folders, strict=True))
        copy_pack(packs["best"], self.root / "pack")
        if not test:
            rows = f"rows found: {named(splits)}" if self.corpus.captions else "there are none"
            log.warning(
                "%s: the gain is not measured: captions have no split %r; %s",
                *(self.language, TEST, rows),
            )
            return outcome
        assert self.corpus.captions is not None  # noqa: S101  (it has a split)
        table = CaptionTable.read(
            self.corpus.captions, [self.language], skip_invalid=self.plan.skip_invalid
        )
        gallery = table.gallery(self.native)

        def ranks(folder: UPath) -> Ranks:
            loaded = LanguagePack.load(folder, self.native)
            return evaluate(
                lambda texts: loaded.encode_text(texts).cpu().numpy(),
                self.language,
                table.rows,
                gallery,
            ).ranks

        ranked = {name: ranks(folder) for name, folder in packs.items()}
        worth = gain(ranked.get("default", ranked["best"]), ranked["best"], self.plan.seed)
        return outcome.model_copy(update={"gain": worth})

    def _acquired(self, name: str, task: Task, config: AcquireConfig) -> UPath:
        """A pack trained on all rows, those for validation too if they were pairs."""
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
            prepared=task.tables(self.native, config),
            hooks=Hooks(
                report=lambda step: self._tell(replace(step, phase=f"{name} {step.phase}")),
                stop=self.stop,
                labels={"language": self.language},
            ),
        )
        return packs[self.language]


def known_outcomes(results: UPath, native: str) -> dict[str, Outcome]:
    """Sweeps for a native, by language; a file that is none is passed over with a warning."""
    found: dict[str, Outcome] = {}
    for name in names_in(results):
        if not name.endswith(".json"):
            continue
        try:
            outcome = Outcome.model_validate(read_json(results / name))
        except (ValueError, ValidationError) as fault:
            log.warning("%s is not the outcome of a sweep: %s", results / name, fault)
            continue
        if outcome.native == native:
            found[outcome.language] = outcome
    return found


def _best(trials: Sequence[Trial]) -> Trial:
    """The highest validation AR; of equal ones the first. One trained in full if there is any."""
    scored = [trial for trial in trials if trial.ar is not None and trial.status != "diverged"]
    whole = [trial for trial in scored if trial.status == "done"] or scored
    if not whole:
        errors = [trial.error for trial in trials if trial.error]
        raise ValueError(f"no trial came to an AR; the first error: {errors[0] if errors else '?'}")
    return max(whole, key=lambda trial: (trial.ar, -trial.number))


def _rows(table: str | Path, language: str, enough: int) -> int:
    """Rows of a translation table, counted no further than `enough`."""
    rows = 0
    for piece in Stream.pairs([table], language):
        rows += piece.num_rows
        if rows >= enough:
            break
    return rows


def room(workers: Workers, resources: Mapping[str, float]) -> int:
    """Trials of so many workers each that a cluster of these resources has room for; at least one.

    One that is to grow has to be told with `concurrent`.
    """
    trials = resources.get("CPU", 1) / ((workers.cpus or 1) * workers.count)
    if gpus := gpus_per_worker(workers, resources):
        trials = min(trials, resources.get("GPU", 0) / (gpus * workers.count))
    return max(1, int(trials + 1e-6))
