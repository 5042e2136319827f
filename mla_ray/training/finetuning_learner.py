"""Both towers of a native on English captions, as the training loop trains them.

By CLIP's loss, the symmetric InfoNCE that Language Exposure has, too. The paper's code was read for
what follows: a fixed temperature, no augmentation, all weights. Dropout is off, and the running
statistics of a ResNet's norms stay as they are: no row depends on the rows beside it, nor the
result on the number of workers (but for the order of sums).

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
    """A run whose table is decoded: its folder, and its run.json with the rows of each split."""

    run: str
    spec: dict[str, Any]

    @property
    def config(self) -> FinetuneConfig:
        return FinetuneConfig.model_validate(self.spec["config"])


def train(job: DecodedRun, driver: Driver = Driver(), *, cpu: bool = True) -> bool:
    """Train from the last sound checkpoint on; False if it was stopped on the way.

    Raises:
        Diverged: the loss is not finite; on all workers at the same step.

    """
    accelerator = accelerator_for(job.config, cpu)
    native = Native.load(job.spec["native"], str(accelerator.device))
    return run_loop(FinetuningLearner(job, native), accelerator, driver)


class ShuffledRows:
    """The rows of every batch [G]: shuffled epochs of `rows` rows, without end."""

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
    """A native in training.

    Args:
        job: a run whose table is decoded.
        native: the run's; trained in place.

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
        return self.config

    @property
    def lr_setting(self) -> str:
        return "lr"

    def batches(self, stage: str) -> Batches[Ints]:
        return ShuffledRows(len(self.decoded), self.config.batch, self.config.seed)

    def loss(self, batch: Ints) -> Tensor:
        """The loss of the whole batch, on every worker.

        Each differentiates by its own rows only, so that summed gradients are the whole's.
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
            torch.from_numpy(group_G).to(text_BE.device),
            self.logit_scale,
        )

    def loss_of_all_workers(self, loss: Tensor) -> float:
        return float(loss.detach())

    def language(self, batch: Ints) -> str:
        return LANGUAGE

    def _tokens(self, rows: Ints) -> Tensor:
        """Native token ids [B, L], cut at the longest text where that changes nothing."""
        ids_BL = self.native.tokenize([self.decoded.caption[row] for row in rows])
        return self.native.text.trim(ids_BL)

    @torch.inference_mode()
    def held_out_ar(self) -> float:
        """On the split `validation`."""
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
        pass  # nothing is kept of a native as it was

    def end_stage(self) -> None:
        self.stage_index += 1

    def finish(self) -> None:
        """Write the native."""
        figures = self.figures()
        trained: dict[str, Any] = {"settings": self.config.model_dump()}
        trained |= {"figures": figures}
        trained |= {name: self.job.spec[name] for name in ("captions", "rows")}
        lineage = write_descendant(self.native, self.model, self.run / "native", trained)
        write_json(self.run / DONE, {"fingerprint": lineage.fingerprint, "figures": figures})

    # -- saving --

    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def figures(self) -> Figures:
        """Steps trained; with evaluations the best AR, and the step that it is of."""
        figures: Figures = {"steps": self.step}
        best = self.early_stopping
        if best.best_weights:
            figures |= {"AR": round(best.best, 2), "best_step": best.best_step}
        return figures

    def params(self) -> dict[str, Any]:
        return {"native": self.job.spec["native"], **self.config.model_dump()}

    def save(self) -> UPath:
        tensors = {f"model/{name}": weight for name, weight in self.weights().items()}
        tensors |= {f"kept/{n}": w for n, w in self.early_stopping.best_weights.items()}
        tensors |= {f"optimizer/{n}": t for n, t in self.optimizer.state_dict().items()}
        return self.checkpoints.save(self.step, tensors, self.early_stopping.state_dict())

    def resume(self) -> bool:
        checkpoint = self.checkpoints.load(str(self.device))
        if checkpoint is None:
            return False
        self.model.load_state_dict(checkpoint.part("model"))
        # A checkpoint of 0.1.0 holds weights to keep before there is a best.
        best_weights = checkpoint.part("kept") if checkpoint.state["ar"] >= 0 else {}
        self.early_stopping.load_state_dict(checkpoint.state, best_weights)
        if optimizer := checkpoint.part("optimizer"):
            self.optimizer.load_state_dict(optimizer)
        self.step = checkpoint.number
        return True
