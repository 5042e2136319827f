"""Promises of benchmarks/step.py."""

import numpy as np
import torch

from benchmarks.step import Operators
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.objectives import nlt_loss
from mla_ray.training.batch_loss import encode_in_two_passes
from mla_ray.training.optimizer import Optimizer


def test_operators_are_counted_with_those_that_wait() -> None:
    with Operators() as operators:
        total = torch.ones(3).sum()
        float(total)
        torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,)).coalesce()
    assert operators.names["sum"] == 1
    assert operators.names["_local_scalar_dense"] == 1
    found = operators.figures()
    assert found == {"operators": operators.names.total(), "waits": 2}


def test_on_the_cpu_a_step_waits_only_to_sum_the_rows(native: Native) -> None:
    """And the sum takes another way on a GPU."""
    embedding = EmbeddingBlock(learned_rows(12, native.text, torch.Generator()), native.text)
    encoder = LanguageEncoder(native.text, embedding, 3)
    dense = [weight for weight in encoder.parameters() if weight is not embedding.rows.weight]
    optimizer = Optimizer(dense, 0.2, embedding.rows.weight)
    texts = [np.arange(1, length, dtype=np.int32) for length in (9, 3, 7)]
    with Operators() as operators:
        loss = nlt_loss(encode_in_two_passes(encoder, texts, native.device), torch.ones(3, 32))
        loss.backward()
        optimizer.all_reduce()
        optimizer.clip_grad_norm_(1.0)
        optimizer.step(1e-3)
        optimizer.zero_grad()
    assert operators.figures()["waits"] == operators.names["_coalesce"] == 1
    updates = sum(
        operators.names[name] for name in ("_fused_adamw_", "addcdiv_", "_foreach_addcdiv_")
    )
    assert updates < len(dense), "all weights are updated together"
