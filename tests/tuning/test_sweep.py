"""Promises of a sweep, on a real Ray with a tiny native."""

import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mla_ray.cli.job.sweep import SweepSettings
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.job_settings import load
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import as_path, read_json, write_json
from mla_ray.training.config import load_config
from mla_ray.training.workers import Workers
from mla_ray.tuning.language_sweep import LanguageSweep
from mla_ray.tuning.outcome import Outcome
from mla_ray.tuning.plan import SweepPlan, languages_of
from mla_ray.tuning.search import concurrent_trials
from mla_ray.tuning.starting_points import known_outcomes
from mla_ray.tuning.sweep import sweep
from tests.support.emoji import Dictionaries, only_a_few

SPACE = {
    "trials": 4,
    "evaluations": 4,
    "settings": {
        "vocab_size": 400,
        "nlt": {"steps": 20, "batch": 8, "lr": 2e-3},
        "le": {"steps": 4, "batch": 8, "lr": 1e-3},
    },
    "parameters": {
        # 1e30 is no setting that a user would choose, but one at which training diverges.
        "nlt.lr": {"choices": [1e-3, 1e30]},
        # More acquirer than any memory holds: the trial raises.
        "hidden": {"choices": [16, 10**12]},
        "steps": {"choices": [24]},
        "le_share": {"choices": [0.25]},
    },
}
# Trials that learn something, and such as are to be stopped for learning nothing.
SOUND = SPACE | {
    "parameters": {"nlt.lr": {"choices": [1e-9, 5e-3]}, "le_share": {"choices": [0.0]}}
}
PlanOf = Callable[..., SweepPlan]


def tables(folder: Path, corpus: dict[str, list[str]], pngs: list[bytes]) -> dict[str, str]:
    """Pairs and captions of two languages; Hindi has no split `test`."""
    folder.mkdir()
    pairs = {
        "source": [*corpus["en"] * 2] * 2,
        "target": [
            f(t) for code in ("de", "hi") for f in (str, "{}!".format) for t in corpus[code]
        ],
        "language": ["de"] * 12 + ["hi"] * 12,
    }
    rows = [
        {"image_id": f"{n}", "image": pngs[n], "language": code, "caption": t, "split": split}
        for code, splits in (
            ("de", ("train", "validation", "test")),
            ("hi", ("train", "validation")),
        )
        for split in splits
        for n, t in enumerate(corpus[code])
    ]
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / "captions.parquet")
    return {"pairs": str(folder / "pairs.parquet"), "captions": str(folder / "captions.parquet")}


@pytest.fixture(scope="module")
def plan_of(
    corpus: dict[str, list[str]],
    pngs: list[bytes],
    native_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> PlanOf:
    folder = tmp_path_factory.mktemp("sweep")
    made = tables(folder / "tables", corpus, pngs)
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    (folder / "sound.yaml").write_text(yaml.safe_dump(SOUND))

    def plan(**settings: Any) -> SweepPlan:
        given: dict[str, Any] = {
            "languages": ["de"],
            "native": str(native_folder),
            "pairs": [made["pairs"]],
            "captions": made["captions"],
            "space": str(folder / "space.yaml"),
            "run": str(folder / "runs"),
            "data": str(folder / "data"),
            "results": str(folder / "results"),
            "worker_cpus": 1,
        }
        return SweepPlan.model_validate(given | settings)

    return plan


def run(plan: SweepPlan, report: Report = lambda step: None) -> list[Outcome]:
    return sweep(plan, report, threading.Event())


def opened(plan: SweepPlan) -> LanguageSweep:
    native = Native.load(plan.native)
    return LanguageSweep.open(plan, "de", native, lambda step: None, threading.Event())


@pytest.fixture(scope="module")
def swept(plan_of: PlanOf, ray_cluster: None) -> Outcome:
    return run(plan_of(concurrent=1))[0]


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_repeats_no_finished_trial(
    plan_of: PlanOf, ray_cluster: None, tmp_path: Path
) -> None:
    plan = plan_of(concurrent=1, run=str(tmp_path / "runs"), results=str(tmp_path / "results"))
    stop, ended = threading.Event(), 0

    def report(step: Progress) -> None:
        nonlocal ended
        if step.phase == "de trials" and step.done >= 1:
            ended = step.done
            stop.set()

    with pytest.raises(Stopped):
        sweep(plan, report, stop)
    assert 1 <= ended < 4, "the others were not begun"
    (gone_on,) = run(plan)
    folder = Path(plan.run) / "de" / "tune"
    told = (folder / gone_on.trials[0].id / "result.json").read_text().splitlines()
    percents = [json.loads(line)["percent"] for line in told]
    assert percents == sorted(set(percents)), "each look of the first trial once"


@pytest.mark.slow
def test_every_trial_is_recorded_with_its_end(swept: Outcome) -> None:
    assert [trial.number for trial in swept.trials] == [0, 1, 2, 3]
    assert len({trial.id for trial in swept.trials}) == 4
    for trial in swept.trials:
        expected = {"done", "stopped"}
        if trial.settings["hidden"] == 10**12:
            expected = {"failed"}
            assert "does not fit into memory" in str(trial.error)
        elif trial.settings["nlt.lr"] == 1e30:
            expected = {"diverged"}
            assert "the loss is" in str(trial.error)
            assert "make nlt.lr (1e+30) smaller" in str(trial.error)
        else:
            assert trial.error is None
            assert trial.ar is not None
            assert trial.curve[-1] == (trial.percent, trial.ar)
        assert trial.status in expected


@pytest.mark.slow
def test_the_defaults_come_first(swept: Outcome) -> None:
    first = swept.trials[0]
    assert first.origin == "defaults"
    assert first.settings == {"nlt.lr": 1e-3, "hidden": 16, "steps": 24, "le_share": 0.25}
    assert first.status == "done"
    assert [percent for percent, _ in first.curve] == [25, 50, 75, 100]
    assert {trial.origin for trial in swept.trials[1:]} == {"search"}


@pytest.mark.slow
def test_the_best_settings_are_a_configuration_and_a_pack(
    swept: Outcome, plan_of: PlanOf, native_folder: Path
) -> None:
    plan = plan_of()
    best = swept.trials[swept.best]
    assert best.ar == max(t.ar for t in swept.trials if t.status == "done" and t.ar is not None)
    file = Path(plan.results) / "de.yaml"
    config = load_config(file)
    assert (config.nlt.steps, config.le.steps, config.vocab_size) == (18, 6, 400)
    assert config.held_out.every == 0, "all rows are learned from"
    assert file.read_text().startswith("# mla sweep, de: validation AR ")
    pack = LanguagePack.load(Path(plan.run) / "de" / "pack", Native.load(str(native_folder)))
    assert pack.language == "de"
    assert pack.card.stages["nlt"]["lr"] == config.nlt.lr


@pytest.mark.slow
def test_the_gain_is_of_the_test_split(swept: Outcome) -> None:
    assert swept.validation == "captions"
    assert swept.gain is not None
    assert (swept.gain.images, swept.gain.captions) == (6, 6)
    assert "gain" in swept.line


@pytest.mark.slow
def test_trials_leave_neither_checkpoints_nor_packs(swept: Outcome, plan_of: PlanOf) -> None:
    root = Path(plan_of().run) / "de"
    assert not (root / "trials").exists()
    made = {
        read_json(as_path(spec))["config"]["vocab_size"]
        for spec in root.glob("prepared/*/run.json")
    }
    assert made == {400, 24_000}, "the trials share theirs; the defaults have another vocabulary"
    assert len(list((root / "prepared").iterdir())) == 3, "one more with all rows"


@pytest.mark.slow
def test_a_finished_sweep_is_read_not_run(swept: Outcome, plan_of: PlanOf) -> None:
    phases = set()
    again = run(plan_of(), lambda step: phases.add(step.phase))
    assert again == [swept]
    assert not any("trials" in phase for phase in phases)


@pytest.mark.slow
def test_a_sweep_of_the_rule_of_before_is_the_same_sweep(
    swept: Outcome, plan_of: PlanOf, native_folder: Path, recognitions: list[str]
) -> None:
    path = as_path(plan_of().run) / "de" / "spec.json"
    spec, native = read_json(path), Native.load(str(native_folder))
    write_json(path, spec | {"fingerprint": native.fingerprint_v1})
    assert run(plan_of(), lambda step: None) == [swept]
    write_json(path, spec)
    (said,) = recognitions
    assert said.startswith(f"{path.parent}: has the fingerprint of mla-ray 0.1.0")


@pytest.mark.slow
def test_another_sweep_in_the_same_folder_is_refused(swept: Outcome, plan_of: PlanOf) -> None:
    with pytest.raises(ValueError, match="trials and seed differ from the sweep begun there"):
        run(plan_of(trials=5, seed=1))


@pytest.mark.slow
def test_the_report_shows_every_trial(swept: Outcome, plan_of: PlanOf) -> None:
    page = (Path(plan_of().run) / "de" / "report.html").read_text()
    assert all(trial.status in page for trial in swept.trials)
    assert "1e+30" in page


@pytest.mark.slow
def test_a_related_language_begins_where_this_one_ended_and_its_trials_run_together(
    swept: Outcome, plan_of: PlanOf
) -> None:
    plan = plan_of()
    known = known_outcomes(as_path(plan.results), plan.native)
    assert known == {"de": swept}
    space = str(Path(plan.space).with_name("sound.yaml"))
    outcome = run(plan_of(languages=["hi"], space=space, trials=4))[0]
    assert {trial.status for trial in outcome.trials} == {"done", "stopped"}
    # Had those that were stopped kept their cores, the others would wait for ever.
    wait_for_cores(2)
    ends = [
        json.loads(file.read_text().splitlines()[-1])
        for file in (Path(plan.run) / "hi" / "tune").glob("*/result.json")
    ]
    spans = sorted((look["timestamp"] - look["time_total_s"], look["timestamp"]) for look in ends)
    assert any(later < end for (_, end), (later, _) in pairwise(spans)), "one by one"
    origins = [trial.origin for trial in outcome.trials]
    best = swept.trials[swept.best].settings
    assert best["nlt.lr"] == 1e-3, "which is nearest to no more than this space's first choice"
    assert origins == ["defaults", *["search"] * 3], "the same point is not tried twice"
    assert outcome.gain is None, "nothing to measure it on"


@pytest.mark.slow
def test_trials_of_several_workers(plan_of: PlanOf, ray_cluster: None, tmp_path: Path) -> None:
    """Ray Train places these, and those of a trial that was stopped give their cores back."""
    plan = plan_of(languages=["hi"], workers="2", trials=3, run=str(tmp_path))
    space = str(Path(plan.space).with_name("sound.yaml"))
    outcome = run(plan.model_copy(update={"space": space, "results": str(tmp_path / "results")}))[0]
    assert [trial.status for trial in outcome.trials].count("stopped") >= 1
    assert outcome.trials[outcome.best].status == "done"
    wait_for_cores(2)


def wait_for_cores(count: int) -> None:
    import ray  # not before `ray_session` has said where it may listen

    end = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < count:
        assert time.monotonic() < end, "cores are still held"
        time.sleep(0.2)


# --- without Ray --------------------------------------------------------------------------------


def test_all_languages_are_those_of_the_tables(plan_of: PlanOf) -> None:
    assert languages_of(plan_of(languages=["all"]), lambda step: None) == ["de", "hi"]
    with pytest.raises(ValueError, match="list them"):
        languages_of(plan_of(languages=["all"], pairs=["{language}.csv"]), lambda step: None)


def test_a_budget_is_shared_out(plan_of: PlanOf) -> None:
    with pytest.raises(ValueError, match="a budget of 1 trials is less than one per language"):
        run(plan_of(languages=["de", "hi"], budget=1))


def test_where_a_sweep_began_is_not_looked_up_again(plan_of: PlanOf, tmp_path: Path) -> None:
    """Related languages may have been swept since."""
    plan = plan_of(run=str(tmp_path), results=str(tmp_path / "results"))

    def first() -> list[tuple[str, Any]]:
        return opened(plan).first_points()

    ((origin, point),) = first()
    assert origin == "defaults"
    known = tmp_path / "de" / "first.json"
    known.write_text(json.dumps([["best for nl", point], *json.loads(known.read_text())]))
    assert [origin for origin, _ in first()] == ["best for nl", "defaults"]


def test_a_sweep_that_has_begun_goes_on_when_a_dictionary_comes_back(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(run: str) -> LanguageSweep:
        plan = plan_of(
            dataset="emoji", pairs=[], captions=None, run=str(tmp_path / run), data=str(tmp_path)
        )
        made = opened(plan)
        made.begin(made.trial_spec().held_out)
        return made

    only_a_few(monkeypatch)
    dictionaries = Dictionaries(monkeypatch)
    first = begun("begun").corpus
    dictionaries.away = False
    assert begun("new").corpus != first
    assert begun("begun").corpus == first


def test_what_is_no_outcome_in_the_results_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "de.json").write_text('{"language": "de"}')
    (tmp_path / "de.yaml").write_text("warmup: 0.2")
    assert known_outcomes(as_path(tmp_path), "emoji-clip") == {}


@pytest.mark.parametrize(
    ("workers", "resources", "trials"),
    [
        (Workers(1, cpus=1), {"CPU": 8.0}, 8),
        (Workers(2, cpus=1), {"CPU": 8.0}, 4),
        (Workers(1, cpus=3), {"CPU": 8.0}, 2),
        (Workers(1, cpus=16), {"CPU": 8.0}, 1),
        (Workers(1, cpus=1), {"CPU": 8.0, "GPU": 2.0}, 2),  # each takes one, unless told
        (Workers(1, cpus=1, gpus=0.25), {"CPU": 8.0, "GPU": 1.0}, 4),
        (Workers(1, cpus=1, gpus=0.1), {"CPU": 32.0, "GPU": 3.0}, 30),
        (Workers(1, cpus=1, gpus=0), {"CPU": 8.0, "GPU": 1.0}, 8),
        (Workers(1, cpus=1, gpus=1), {"CPU": 8.0}, 1),
    ],
)
def test_as_many_trials_run_as_there_is_room_for(
    workers: Workers, resources: dict[str, float], trials: int
) -> None:
    assert concurrent_trials(workers, resources) == trials


def test_a_job_takes_the_plan_as_flags() -> None:
    argv = ["--languages", "sw,fi", "--dataset", "emoji", "--trials", "3", "--space", "quick"]
    settings = load(SweepSettings, argv)
    assert (settings.languages, settings.trials, settings.space) == (["sw", "fi"], 3, "quick")
