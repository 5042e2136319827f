"""The baseline: all of the text tower is tuned on a language, as before there were acquirers.

The same losses, batches and schedule; what trains besides the embedding block are the native's own
blocks, positions, final norm and projection, in a copy. English and every other language go through
the same tower afterwards.
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
    """A language in training together with the native's text tower.

    Args:
        job: a prepared run of one language.
        native: tuned in place; not the object of anybody else.

    """

    def __init__(self, job: PreparedRun, native: Native) -> None:
        self.tuned = [
            weight
            for name, weight in native.model.named_parameters()
            # No English token is read, no image seen, and the temperature is fixed.
            if not name.startswith("visual.") and "token_embedding" not in name
            and not name.startswith("logit_")
        ]  # fmt: skip
        for weight in self.tuned:
            weight.requires_grad_(True)
        super().__init__(job, native)

    def trained_weights(self) -> list[nn.Parameter]:
        return [*super().trained_weights(), *self.tuned]


def tune(job: PreparedRun, native: Native) -> Callable[[Sequence[str]], Tensor]:
    """Tune `native`'s text tower on a prepared run of one language.

    Returns how texts of the language are encoded, to features [B, E]; it goes through the tower as
    it is at the time of the call.
    """
    learner = TunedTower(job, native)
    on_cpu = native.device.type == "cpu"
    run_stages(learner, accelerator_for(job.config, on_cpu), Driver())
    (language,) = learner.languages
    # Of one language every token of the run's has a row.
    tokenize = learner.tokenizer_of(np.arange(len(learner.tokens)))
    encoder = learner.encoders[language]

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        ids_BL, length_B = native.text.pad(tokenize(texts))
        features: Tensor = encoder(ids_BL.to(native.device), length_B.to(native.device))
        return features.float()

    return encode
