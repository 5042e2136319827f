"""Promises of mla_ray.training.optimizer."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mla_ray.training.config import AcquireConfig, Stage
from mla_ray.training.optimizer import (
    BETAS,
    EPS,
    LazyAdamW,
    Optimizer,
    learning_rate,
    sum_rows,
)
from tests.support import gloo

ROWS, WIDTH = 12, 4
UNCLIPPED = AcquireConfig(clip=1e9)


class Model:
    """A sum of sparse rows through a linear; `other` belongs to a language that has no batch."""

    def __init__(self, config: AcquireConfig = UNCLIPPED) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = nn.Parameter(torch.randn(ROWS, WIDTH, generator=generator))
        self.dense = {
            "weight": nn.Parameter(torch.randn(3, WIDTH, generator=generator)),
            "bias": nn.Parameter(torch.randn(3, generator=generator)),
            "other": nn.Parameter(torch.ones(2, 2)),
        }
        self.optimizer = Optimizer(self.dense.values(), config.weight_decay, self.rows)
        self.clip = config.clip

    def loss(self, ids_BL: Tensor, scale: float = 1.0) -> Tensor:
        x = F.embedding(ids_BL, self.rows, sparse=True).sum(1)
        x = F.linear(x, self.dense["weight"], self.dense["bias"])
        return scale * (x**2).sum()

    def step(self, ids_BL: Tensor, lr: float = 0.01, scale: float = 1.0) -> float:
        self.loss(ids_BL, scale).backward()
        return self.update(lr)

    def update(self, lr: float) -> float:
        """A step from the gradients there are; returns their norm."""
        self.optimizer.all_reduce()
        norm = self.optimizer.clip_grad_norm_(self.clip)
        self.optimizer.step(lr)
        self.optimizer.zero_grad()
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        found = {"rows": self.rows, **self.dense}
        return {name: weight.detach().clone() for name, weight in found.items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in {"rows": self.rows, **self.dense}.items():
                weight.copy_(weights[name])


def batch(step: int, rows: int = ROWS) -> Tensor:
    """[8, 3] ids, with repetitions, another each step."""
    return torch.randint(rows, (8, 3), generator=torch.Generator().manual_seed(step))


def touching_all(step: int) -> Tensor:
    return torch.cat([batch(step), torch.arange(ROWS).view(-1, 3)])


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("scale", [1.0, 1e-6], ids=["large gradients", "gradients as small as eps"])
def test_a_step_is_adamws_where_every_row_is_touched(scale: float) -> None:
    ours, theirs = Model(), Model()
    matrices, biases = [theirs.rows, theirs.dense["weight"]], [theirs.dense["bias"]]
    adamw = torch.optim.AdamW(
        [{"params": matrices}, {"params": biases, "weight_decay": 0.0}],
        betas=BETAS,
        eps=EPS,
        weight_decay=UNCLIPPED.weight_decay,
    )
    for step in range(6):
        lr = 0.02 * (step + 1)
        norm = ours.step(touching_all(step), lr, scale)
        theirs.loss(touching_all(step), scale).backward()
        theirs.rows.grad = theirs.rows.grad.to_dense()
        expected = nn.utils.get_total_norm([w.grad for w in (*matrices, *biases)])
        assert norm == pytest.approx(float(expected), rel=1e-5)
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.step()
        adamw.zero_grad()
        for name, weight in theirs.weights().items():
            torch.testing.assert_close(
                ours.weights()[name],
                weight,
                rtol=1e-4,
                atol=2e-6,
                msg=f"{name} differs from AdamW",
            )


def test_untouched_rows_stay_to_the_byte() -> None:
    model = Model()
    for step in range(3):
        model.step(batch(step))
    before = model.weights()["rows"]
    for step in range(3):
        model.step(batch(step, rows=5))
    after = model.weights()["rows"]
    assert torch.equal(after[5:], before[5:])
    assert (after[:5] != before[:5]).all()


def test_weights_without_a_gradient_stay_to_the_byte() -> None:
    model = Model()
    for step in range(3):
        model.step(batch(step))
    assert torch.equal(model.dense["other"], torch.ones(2, 2))


def test_biases_do_not_decay_and_touched_rows_do() -> None:
    model = Model(AcquireConfig(weight_decay=0.5))
    with torch.no_grad():
        model.dense["weight"].zero_()
        model.dense["bias"].zero_()  # so every gradient is zero
    model.dense["bias"].data.fill_(1.0)
    before = model.weights()
    (0 * model.loss(batch(0, rows=5))).backward()
    model.update(0.1)
    assert torch.equal(model.dense["bias"], before["bias"])
    torch.testing.assert_close(model.rows[:5], 0.95 * before["rows"][:5])
    assert torch.equal(model.rows[5:], before["rows"][5:])


def test_gradients_are_clipped_to_the_norm_of_all_together() -> None:
    model, free = Model(AcquireConfig(clip=1.0)), Model()
    free.loss(batch(0)).backward()
    gradients = [free.dense["weight"].grad, free.dense["bias"].grad, free.rows.grad.to_dense()]
    norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    assert norm > 2
    assert model.step(batch(0)) == pytest.approx(norm, rel=1e-5)
    state = model.optimizer.state_dict()
    moments = [state[name] for name in ("dense.0.exp_avg", "dense.2.exp_avg", "rows.first")]
    for moment, gradient in zip(moments, gradients, strict=True):
        torch.testing.assert_close(moment, 0.1 * gradient / norm, rtol=1e-4, atol=1e-7)


def test_small_gradients_are_not_clipped() -> None:
    clipped, free = Model(AcquireConfig(clip=1.0)), Model()
    assert clipped.step(batch(0), scale=1e-4) < 1
    free.step(batch(0), scale=1e-4)
    assert same(clipped.weights(), free.weights())


def test_gradients_are_cleared() -> None:
    model = Model()
    model.step(batch(0))
    assert model.rows.grad is None
    assert [weight.grad for weight in model.dense.values()] == [None] * 3


@pytest.mark.parametrize("steps", [100, 7])
def test_the_learning_rate_rises_then_falls_as_a_cosine(steps: int) -> None:
    rates = [learning_rate(Stage(steps=steps, batch=2, lr=0.5), 0.1, n) for n in range(steps + 1)]
    rise = max(1, round(0.1 * steps))
    assert rates[:rise] == pytest.approx([0.5 * (n + 1) / rise for n in range(rise)])
    assert max(rates) == rates[rise - 1] == rates[rise] == 0.5
    falling = rates[rise:]
    assert falling == sorted(falling, reverse=True)
    assert rates[steps] == pytest.approx(0, abs=1e-12)
    assert rates[steps - 1] > 0
    middle = rise + (steps - rise) // 2
    if (steps - rise) % 2 == 0:
        assert rates[middle] == pytest.approx(0.25)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_no_warm_up_and_nothing_else_are_rates_too(warmup: float) -> None:
    rates = [learning_rate(Stage(steps=10, batch=2, lr=1.0), warmup, n) for n in range(10)]
    expected = [(n + 1) / 10 for n in range(10)]
    assert (rates[0] == 1.0) if warmup == 0 else (rates == pytest.approx(expected))


def test_a_resumed_run_is_the_uninterrupted_one_to_the_byte() -> None:
    config = AcquireConfig()
    whole, first, second = Model(config), Model(config), Model(config)
    for step in range(8):
        whole.step(batch(step))
    for step in range(4):
        first.step(batch(step))
    state = load(save(first.optimizer.state_dict()))  # as a checkpoint holds it
    second.load(first.weights())
    second.optimizer.load_state_dict(state)
    for step in range(4, 8):
        second.step(batch(step))
    assert same(second.weights(), whole.weights())
    assert same(second.optimizer.state_dict(), whole.optimizer.state_dict())


def test_without_sparse_rows_a_resumed_run_is_the_uninterrupted_one_to_the_byte() -> None:
    def build() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        return model, Optimizer(model.parameters(), weight_decay=0.2)

    def steps(model: nn.Module, optimizer: Optimizer, numbers: range) -> None:
        for number in numbers:
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(number))
            model(x).square().sum().backward()
            optimizer.all_reduce()
            optimizer.clip_grad_norm_(1.0)
            optimizer.step(1e-2)
            optimizer.zero_grad()

    whole, first, second = build(), build(), build()
    steps(*whole, range(6))
    steps(*first, range(3))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(load(save(first[1].state_dict())))
    steps(*second, range(3, 6))
    assert same(second[0].state_dict(), whole[0].state_dict())
    assert same(second[1].state_dict(), whole[1].state_dict())
    # As checkpoints of fine-tunings have called them since 0.1.0.
    assert {name.partition(".")[2] for name in whole[1].state_dict()} == {
        *("step", "exp_avg", "exp_avg_sq")
    }


def test_a_state_holds_every_moment_and_step_count() -> None:
    model = Model()
    rows = {"rows.step", "rows.first", "rows.second"}
    assert model.optimizer.state_dict().keys() == rows
    model.step(batch(0))
    model.step(batch(1))
    state = model.optimizer.state_dict()
    fields = ("step", "exp_avg", "exp_avg_sq")
    dense = {f"{name}.{field}" for name in ("dense.0", "dense.2") for field in fields}
    assert state.keys() == rows | dense  # dense.1, `other`, has none yet
    assert {float(state[name]) for name in state if name.endswith("step")} == {2.0}


def worker(rank: int, world: int, folder: str) -> None:
    """Three steps on this worker's part of each batch; the parts touch unlike many rows."""
    model = Model(AcquireConfig())
    norms = []
    for step in range(3):
        ids = torch.cat([batch(step, rows=2)[:4], batch(step)[4:]])  # the first half: rows 0 and 1
        norms.append(model.step(ids.chunk(world)[rank]))
    state = {f"state.{name}": value for name, value in model.optimizer.state_dict().items()}
    save_file(model.weights() | state | {"norms": torch.tensor(norms)}, f"{folder}/{rank}-{world}")


def test_two_workers_with_half_a_batch_each_are_one_with_the_whole(tmp_path: Path) -> None:
    gloo.together(2, worker, str(tmp_path))
    worker(0, 1, str(tmp_path))
    first, second = load_file(tmp_path / "0-2"), load_file(tmp_path / "1-2")
    assert same(first, second)
    for name, value in load_file(tmp_path / "0-1").items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)


def test_rows_summed_without_waiting_are_those_of_coalesce() -> None:
    """`sum_rows` is the GPU's way: every shape follows from the number of tokens."""
    model = Model()
    model.loss(batch(0, rows=7)).backward()
    gradient = model.rows.grad
    row, place, sums = sum_rows(gradient)
    expected = gradient.coalesce()
    distinct = len(expected.indices()[0])
    assert distinct < len(row) == len(place) == len(sums) == 24
    torch.testing.assert_close(sums[:distinct], expected.values())
    assert not sums[distinct:].any()
    of_row = dict(zip(expected.indices()[0].tolist(), expected.values(), strict=True))
    assert row.tolist() == sorted(gradient._indices()[0].tolist())
    for number, at in zip(row.tolist(), place.tolist(), strict=True):
        torch.testing.assert_close(sums[at], of_row[number])


def test_a_row_that_is_given_twice_is_updated_once() -> None:
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    once, twice = LazyAdamW(rows.clone(), 0.2), LazyAdamW(rows.clone(), 0.2)
    for _ in range(3):
        once.step(torch.tensor([1, 4]), gradient, 0.1)
        twice.step(torch.tensor([1, 4, 4, 4]), gradient[[0, 1, 1, 1]], 0.1)
    assert torch.equal(once.rows, twice.rows)
    assert torch.equal(once.second, twice.second)
