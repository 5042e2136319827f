"""Baseline without acquirers: the whole text tower is tuned on a language.

Losses, batches and schedule are the same as for a pack. Besides the embedding block, the native's
own blocks, position embeddings, final norm and projection are trained. English and every other
language use the same tuned tower afterwards.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mla_ray.model.native import Native
from mla_ray.training.acquisition_learner import AcquisitionLearner, PreparedRun
from mla_ray.training.driver import Driver
from mla_ray.training.loop import accelerator_for, run_stages


class TunedTower(AcquisitionLearner):
    """Learner that trains one language together with the native's text tower.

    Args:
        job: Prepared run of one language.
        native: Native that is tuned in place. No other code may use this object.

    """

    def __init__(self, job: PreparedRun, native: Native) -> None:
        self.tuned = [
            weight
            for name, weight in native.model.named_parameters()
            # The training reads no English token and no image, and the temperature is fixed.
            if not name.startswith("visual.") and "token_embedding" not in name
            and not name.startswith("logit_")
        ]  # fmt: skip
        for weight in self.tuned:
            weight.requires_grad_(True)
        super().__init__(job, native)

    def trained_weights(self) -> list[nn.Parameter]:
        """Return the weights of the language and of the tower."""
        return [*super().trained_weights(), *self.tuned]


def tune(job: PreparedRun, native: Native) -> Callable[[Sequence[str]], Tensor]:
    """Tune `native`'s text tower in place on a prepared run of one language.

    Returns:
        Function that encodes texts of the language to `[B, E]` float32. It uses the weights that
        the tower has at the time of the call.

    """
    learner = TunedTower(job, native)
    on_cpu = native.device.type == "cpu"
    run_stages(learner, accelerator_for(job.config, on_cpu), Driver())
    (language,) = learner.languages
    # In a run of one language, every token has a row.
    tokenize = learner.tokenizer_of(np.arange(len(learner.tokens)))
    encoder = learner.encoders[language]

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        ids_BL, length_B = native.text.pad(tokenize(texts))
        features: Tensor = encoder(ids_BL.to(native.device), length_B.to(native.device))
        return features.float()

    return encode
