"""A training on a CUDA device: the CPU's losses, no waiting, and packs for any machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.objectives import le_loss, nlt_loss
from mla_ray.packs.pack import LanguagePack
from mla_ray.training.batch_loss import encode_in_two_passes, to_device
from mla_ray.training.optimizer import Optimizer
from tests.support.natives import BuildModel, MakePack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

TEXTS = [np.arange(1, length, dtype=np.int32) for length in (9, 3, 7, 4, 8, 5, 15, 3)]


class Training:
    """Steps of `mla_ray.training.loop` on one device, in NLT or LE."""

    def __init__(self, native: Native) -> None:
        generator, tower = torch.Generator().manual_seed(0), native.text
        torch.manual_seed(0)
        rows = learned_rows(20, tower, generator)
        encoder = LanguageEncoder(tower, EmbeddingBlock(rows, tower), 16)
        for acquirer in encoder.acquirers:
            torch.nn.init.normal_(acquirer.up.weight, std=0.1)
        self.encoder, self.device = encoder.to(native.device), native.device
        self.rows = encoder.embedding.rows.weight
        dense = [weight for weight in encoder.parameters() if weight is not self.rows]
        self.optimizer = Optimizer(dense, 0.2, self.rows)
        self.target = torch.randn(len(TEXTS), native.dim, generator=generator)

    def step(self, stage: str) -> torch.Tensor:
        text = encode_in_two_passes(self.encoder, TEXTS, self.device)
        target = to_device(self.target, self.device)
        if stage == "nlt":
            loss = nlt_loss(text, target)
        else:
            loss = le_loss(text, target, to_device(np.arange(len(TEXTS)), self.device), 100.0)
        loss.backward()
        self.optimizer.all_reduce()
        self.optimizer.clip_grad_norm_(1.0)
        self.optimizer.step(1e-2)
        self.optimizer.zero_grad()
        return loss.detach()


@pytest.fixture
def on_gpu(build_model: BuildModel, tokenize: Any) -> Native:
    return Native("tiny-clip", build_model(), tokenize, device="cuda")


@pytest.fixture
def an_error_for_each_wait() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("stage", ["nlt", "le"])
def test_losses_are_the_cpus(native: Native, on_gpu: Native, stage: str) -> None:
    cpu, gpu = Training(native), Training(on_gpu)
    for _ in range(10):
        expected, found = cpu.step(stage), gpu.step(stage)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["nlt", "le"])
def test_a_step_does_not_wait_for_the_gpu(
    on_gpu: Native, stage: str, precision: str, request: pytest.FixtureRequest
) -> None:
    training = Training(on_gpu)
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        training.step(stage)  # allocates moments, and pinned memory
        request.getfixturevalue("an_error_for_each_wait")
        for _ in range(3):
            training.step(stage)


def test_texts_are_padded_to_multiples_of_eight(on_gpu: Native) -> None:
    assert on_gpu.text.pad(TEXTS[:1])[0].shape == (1, 8)
    assert on_gpu.text.pad(TEXTS)[0].shape == (8, 16)


def test_a_pack_made_on_the_gpu_loads_on_the_cpu(
    native: Native,
    on_gpu: Native,
    make_pack: MakePack,
    corpus: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    made = make_pack("de")
    made.save(tmp_path / "de")
    there = LanguagePack.load(tmp_path / "de", on_gpu)
    found = there.encode_text(corpus["de"])
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), made.encode_text(corpus["de"]), rtol=1e-3, atol=1e-4)
    there.save(tmp_path / "back")
    back = LanguagePack.load(tmp_path / "back", native)
    assert torch.equal(back.encode_text(corpus["de"]), made.encode_text(corpus["de"]))
