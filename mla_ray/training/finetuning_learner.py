"""Learner that fine-tunes both towers of a native model on English captions.

The loss is CLIP's symmetric InfoNCE, as in Language Exposure. As in the paper's code, the
temperature is fixed, images are not augmented, and all weights train. Dropout is off, and the
running statistics of a ResNet's norms do not change. So a row does not depend on other rows of its
batch, and the result does not depend on the number of workers, except for the order of sums.

Shapes: B batch of this worker, G batch of all workers, L tokens, E joint embedding size, S pixels
of a side.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from mla_ray.data.decoded_images import LANGUAGE, DecodedTable, Ints
from mla_ray.data.feature_store import BATCH, encode_texts
from mla_ray.evaluation.recall import rank as rank_by_cosine
from mla_ray.model.lineage import write_descendant
from mla_ray.model.native import Native
from mla_ray.model.objectives import le_loss, positive_groups
from mla_ray.runtime.storage import as_path, write_json
from mla_ray.training.batch_loss import to_device
from mla_ray.training.config import FinetuneConfig, Stage
from mla_ray.training.distributed import gather_features, rank, world_size
from mla_ray.training.driver import Driver, Figures
from mla_ray.training.learner import Batches, Learner
from mla_ray.training.loop import DONE, accelerator_for
from mla_ray.training.loop import train as run_loop
from mla_ray.training.optimizer import Optimizer

STAGE = "finetune"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class DecodedRun:
    """Job of the workers of a run whose table is decoded.

    Attributes:
        run: Run folder.
        spec: Content of `run.json`, and the number of rows of each split.

    """

    run: str
    spec: dict[str, Any]

    @property
    def config(self) -> FinetuneConfig:
        """Settings of the run."""
        return FinetuneConfig.model_validate(self.spec["config"])


def train(job: DecodedRun, driver: Driver = Driver(), *, cpu: bool = True) -> bool:
    """Train, starting from the last valid checkpoint.

    Args:
        job: Run whose table is decoded.
        driver: Callbacks to the process that started the training.
        cpu: Train on the CPU even if there is a GPU.

    Returns:
        False if a stop request ended the training early.

    Raises:
        Diverged: The loss is not finite. All workers raise it at the same step.
        ValueError: The native model is not the one that the run began with.

    """
    accelerator = accelerator_for(job.config, cpu)
    native = Native.load(job.spec["native"], str(accelerator.device))
    return run_loop(FinetuningLearner(job, native), accelerator, driver)


class ShuffledRows:
    """Row numbers `[G]` of each batch by step, from endless shuffled epochs of `rows` rows."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epoch = lru_cache(2)(self._shuffled)

    def __getitem__(self, step: int) -> Ints:
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        epoch, place = np.divmod(places, self.rows)
        return np.concatenate([self._epoch(int(e))[place[epoch == e]] for e in np.unique(epoch)])

    def _shuffled(self, epoch: int) -> Ints:
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)


class FinetuningLearner(Learner[Ints]):
    """Learner that fine-tunes a native model.

    Args:
        job: Run whose table is decoded.
        native: Native model of the run. It is trained in place.

    Raises:
        ValueError: The native model is not the one that the run began with.

    """

    stages = (STAGE,)
    config: FinetuneConfig

    def __init__(self, job: DecodedRun, native: Native) -> None:
        config = job.config
        super().__init__(as_path(job.run), config, config.held_out, native.device)
        self.job = job
        self.native = native
        if native.fingerprint != job.spec["fingerprint"]:
            raise ValueError(
                f"native {job.spec['native']!r} here is not the one the run began with"
            )
        own = native.logit_scale
        self.logit_scale = own if config.temperature == "native" else 1 / config.temperature
        self.model = native.model.requires_grad_(True)
        self.optimizer = Optimizer(self.model.parameters(), config.weight_decay)
        self.decoded = DecodedTable(self.run / "data" / TRAIN, native)

    # -- batches and losses --

    def settings(self, stage: str) -> Stage:
        """Return the settings of the only stage."""
        return self.config

    @property
    def lr_setting(self) -> str:
        """Name of the learning rate in the settings."""
        return "lr"

    def batches(self, stage: str) -> Batches[Ints]:
        """Return the row numbers of each batch, by step."""
        return ShuffledRows(len(self.decoded), self.config.batch, self.config.seed)

    def loss(self, batch: Ints) -> Tensor:
        """Return the loss of the whole batch, on every worker.

        Gradients flow only to this worker's own rows. Their sum over the workers is the gradient of
        the whole batch.
        """
        shares = [batch[worker :: world_size()] for worker in range(world_size())]
        sizes = [len(share) for share in shares]
        own, ordered = shares[rank()], np.concatenate(shares)
        image_BE = self.native.encode_image(self.decoded.pixels(self.decoded.image[own]))
        text_BE = self.native.encode_text(self._tokens(own))
        texts = [self.decoded.identity[row] for row in ordered]
        group_G = positive_groups(self.decoded.image[ordered].tolist(), texts)
        return le_loss(
            gather_features(text_BE.float(), sizes),
            gather_features(image_BE.float(), sizes),
            to_device(group_G, text_BE.device),
            self.logit_scale,
        )

    def loss_of_all_workers(self, loss: Tensor) -> float:
        """Return the loss of the whole batch, which every worker already has."""
        return float(loss.detach())

    def language(self, batch: Ints) -> str:
        """Return the language of every batch, which is English."""
        return LANGUAGE

    def _tokens(self, rows: Ints) -> Tensor:
        """Return native token ids `[B, L]`, cut at the longest text if that changes no feature."""
        ids_BL = self.native.tokenize([self.decoded.caption[row] for row in rows])
        return self.native.text.trim(ids_BL)

    @torch.inference_mode()
    def held_out_ar(self) -> float:
        """Return AR in percent on the split `validation`."""
        decoded = DecodedTable(self.run / "data" / VALIDATION, self.native)
        order = np.random.default_rng(self.config.seed).permutation(len(decoded))
        rows = np.sort(order[: self.held_out.size])
        images, of = np.unique(decoded.image[rows], return_inverse=True)
        parts = [
            self.native.encode_image(decoded.pixels(images[start : start + BATCH])).float().cpu()
            for start in range(0, len(images), BATCH)
        ]
        texts = encode_texts(self.native, [decoded.caption[row] for row in rows])
        return rank_by_cosine(texts, torch.cat(parts).numpy(), of.astype(np.int64)).recall().ar

    # -- the stage --

    def begin(self) -> None:
        """Do nothing. The untrained model is not saved."""

    def end_stage(self) -> None:
        """End the only stage."""
        self.stage_index += 1

    def finish(self) -> None:
        """Write the fine-tuned native model, then `done.json`."""
        figures = self.figures()
        trained: dict[str, Any] = {"settings": self.config.model_dump()}
        trained |= {"figures": figures}
        trained |= {name: self.job.spec[name] for name in ("captions", "rows")}
        lineage = write_descendant(self.native, self.model, self.run / "native", trained)
        write_json(self.run / DONE, {"fingerprint": lineage.fingerprint, "figures": figures})

    # -- saving --

    def weights(self) -> dict[str, Tensor]:
        """Return the model's weights and buffers by name."""
        return dict(self.model.state_dict())

    def figures(self) -> Figures:
        """Return the steps trained and, after an evaluation, the best AR and its step."""
        figures: Figures = {"steps": self.step}
        best = self.early_stopping
        if best.best_weights:
            figures |= {"AR": round(best.best, 2), "best_step": best.best_step}
        return figures

    def params(self) -> dict[str, Any]:
        """Return the native model's name and the settings, for MLflow."""
        return {"native": self.job.spec["native"], **self.config.model_dump()}

    def save(self) -> UPath:
        """Write a checkpoint and return its folder."""
        tensors = {f"model/{name}": weight for name, weight in self.weights().items()}
        tensors |= {f"kept/{n}": w for n, w in self.early_stopping.best_weights.items()}
        tensors |= {f"optimizer/{n}": t for n, t in self.optimizer.state_dict().items()}
        return self.checkpoints.save(self.step, tensors, self.early_stopping.state_dict())

    def resume(self) -> bool:
        """Load the newest valid checkpoint. Return False if there is none."""
        checkpoint = self.checkpoints.load(str(self.device))
        if checkpoint is None:
            return False
        self.model.load_state_dict(checkpoint.part("model"))
        # A checkpoint of mla-ray 0.1.0 has `kept` weights even before the first evaluation.
        best_weights = checkpoint.part("kept") if checkpoint.state["ar"] >= 0 else {}
        self.early_stopping.load_state_dict(checkpoint.state, best_weights)
        if optimizer := checkpoint.part("optimizer"):
            self.optimizer.load_state_dict(optimizer)
        self.step = checkpoint.number
        return True
