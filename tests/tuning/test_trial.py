"""Promises of mla_ray.tuning.trial."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_ray.data.corpus import Corpus
from mla_ray.model.native import Native
from mla_ray.runtime.storage import as_path
from mla_ray.training import prepare as preparation
from mla_ray.training.acquisition import encode
from mla_ray.training.config import AcquireConfig, HeldOut
from mla_ray.training.prepare import prepare
from mla_ray.training.run_spec import spec_of, tables_key
from mla_ray.training.workers import Workers
from mla_ray.tuning.outcome import Value
from mla_ray.tuning.space import Space
from mla_ray.tuning.trial import METRIC, TIME, TrialSpec, run_trial

POINT: dict[str, Value] = {"nlt.lr": 1e-3, "vocab_size": 400}
SPACE = {
    "trials": 1,
    "evaluations": 2,
    "settings": {
        "nlt": {"steps": 8, "batch": 8, "lr": 1e-3},
        "le": {"steps": 0, "batch": 8, "lr": 1e-3},
    },
    "parameters": {"nlt.lr": {"choices": [1e-3]}, "vocab_size": {"choices": [400]}},
}


@pytest.fixture(scope="module")
def own(native_folder: Path) -> Native:
    """By a name that every process can load."""
    return Native.load(str(native_folder))


@pytest.fixture
def spec(corpus: dict[str, list[str]], own: Native, tmp_path: Path) -> TrialSpec:
    german = [*corpus["de"], *map("{}!".format, corpus["de"])]
    table = pa.table({"source": corpus["en"] * 2, "target": german, "language": ["de"] * 12})
    pq.write_table(table, tmp_path / "pairs.parquet")
    tables = Corpus("de", [str(tmp_path / "pairs.parquet")])
    return TrialSpec(
        run_spec=spec_of(own, [tables], AcquireConfig()),
        corpus=tables,
        space=Space.model_validate(SPACE),
        held_out=HeldOut(of="pairs", size=4),
        root=str(tmp_path / "sweep"),
        store=str(tmp_path / "features"),
        workers=Workers(1, cpus=1),
    )


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a trial reports to Tune; this process is made to look like one of Tune's."""
    import ray
    from ray import tune

    figures: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t1"))
    monkeypatch.setattr(tune, "report", figures.append)
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    return figures


def test_prepared_tables_are_named_as_everywhere(spec: TrialSpec, own: Native) -> None:
    config = spec.config(POINT)
    assert spec.spec_of(config) == spec_of(own, [spec.corpus], config)
    assert spec.tables(config).name == tables_key(spec_of(own, [spec.corpus], config))


@pytest.mark.usefixtures("reported")
def test_a_batch_that_is_too_small_for_the_tables_is_refused(spec: TrialSpec) -> None:
    many = replace(spec, corpus=Corpus("de", [*spec.corpus.pairs] * 10))
    with pytest.raises(ValueError, match=r"nlt\.batch is 8, too small for the 10 translation"):
        run_trial(POINT, many)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_loads_the_native_once_and_reads_no_input_table(
    spec: TrialSpec,
    own: Native,
    reported: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = spec.config(POINT)
    tables = spec.tables(config)
    prepare(own, [spec.corpus], config, tables)
    encode(own, [spec.corpus], tables, as_path(spec.store), lambda step: None)
    loaded: list[str] = []
    read: list[Any] = []
    load = Native.load

    def counted(name: str, device: str = "cpu") -> Native:
        loaded.append(name)
        return load(name, device)

    monkeypatch.setattr(Native, "load", counted)
    monkeypatch.setattr(preparation, "fingerprint", read.append)
    run_trial(POINT, spec)
    assert loaded == [own.name]
    assert read == []
    assert [figures[TIME] for figures in reported] == [50, 100]
    assert all(0 <= figures[METRIC] <= 100 for figures in reported)
