"""The configurations in configs/paper build what they say."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mla_ray.training.config import AcquireConfig, FinetuneConfig, load_config, load_finetune_config
from mla_ray.training.optimizer import Optimizer, learning_rate
from tests.support import ROOT

FOLDER = ROOT / "configs" / "paper"


def test_every_configuration_is_tested_here() -> None:
    found = {file.stem for file in FOLDER.glob("*.yaml")}
    assert found == {"nlt", "le", "finetune_en", "finetune_all"}


@pytest.mark.parametrize(
    ("name", "nlt", "le", "lr", "every"),
    [
        ("nlt", 117_150, 0, 1e-4, 0),
        ("le", 0, 11_715, 3e-6, 0),
        ("finetune_all", 0, 10_000, 3e-6, 500),
    ],
)
def test_language_stages(name: str, nlt: int, le: int, lr: float, every: int) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    assert (config.nlt.steps, config.le.steps) == (nlt, le)
    stage = config.nlt if nlt else config.le
    assert (stage.batch, stage.lr) == (128, lr)
    assert (config.vocabulary, config.hidden) == ("bert-base-multilingual-cased", 256)
    assert config.held_out.every == every
    shared(config)
    rows, matrix, bias = (nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (2, 2), (2,)))
    optimizer = Optimizer([matrix, bias], config.weight_decay, rows)
    assert optimizer.lazy is not None
    assert optimizer.lazy.weight_decay == 0.2
    groups(optimizer.adamw, matrix, bias)
    schedule([learning_rate(stage, config.warmup, step) for step in range(stage.steps)], lr)


def test_finetune_en() -> None:
    config = load_finetune_config(FOLDER / "finetune_en.yaml")
    epoch = 29_000 * 5 // 128
    assert (config.steps, config.batch, config.lr) == (5 * epoch, 128, 3e-6)
    assert (config.held_out.every, config.held_out.patience) == (epoch, 0)
    assert config.held_out.size == 1_014 * 5
    shared(config)
    model = nn.Linear(2, 2)
    optimizer = Optimizer(model.parameters(), config.weight_decay)
    groups(optimizer.adamw, model.weight, model.bias)
    schedule([learning_rate(config, config.warmup, step) for step in range(config.steps)], 3e-6)


def shared(config: AcquireConfig | FinetuneConfig) -> None:
    assert config.temperature == 0.01
    assert (config.warmup, config.weight_decay, config.clip, config.seed) == (0.1, 0.2, 1.0, 42)


def groups(adamw: torch.optim.AdamW, matrix: nn.Parameter, bias: nn.Parameter) -> None:
    """Betas and eps as in the code; decay of the matrix alone."""
    for group, weight, decay in zip(adamw.param_groups, (matrix, bias), (0.2, 0.0), strict=True):
        assert (group["betas"], group["eps"]) == ((0.9, 0.98), 1e-6)
        assert (group["params"], group["weight_decay"]) == ([weight], decay)


def schedule(rates: list[float], lr: float) -> None:
    """Up over a tenth of the steps, then down to nothing."""
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(lr)
    assert top == pytest.approx(0.1 * len(rates), abs=1)
    assert rates[0] < 0.01 * lr
    assert rates[-1] < 1e-3 * lr
    half = top + (len(rates) - top) // 2
    assert rates[half] == pytest.approx(lr / 2, rel=0.01)  # a cosine is there at half its way


def test_an_unknown_key_is_refused_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text("steps: 3\nepochs: 5\n")
    with pytest.raises(ValueError, match=r"finetune\.yaml.*\n?.*epochs"):
        load_finetune_config(path)
