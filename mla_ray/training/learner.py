"""Base class of the learners: what the training loop trains, and its position in the stages.

`acquisition_learner` trains languages in the two stages of MLA. `finetuning_learner` trains both
towers of a native model in one stage.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from upath import UPath

from mla_ray.training.checkpoints import Checkpoints
from mla_ray.training.config import Evaluations, Stage, Training
from mla_ray.training.distributed import broadcast_figure, rank
from mla_ray.training.driver import Figures
from mla_ray.training.early_stopping import EarlyStopping
from mla_ray.training.optimizer import Optimizer

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)


class Batches(Protocol[Batch_co]):
    """Batches of a stage, by step.

    A batch depends only on the step, so a checkpoint needs no state of the sampler.
    """

    def __getitem__(self, step: int) -> Batch_co: ...


class Learner(ABC, Generic[Batch]):
    """Base class of a learner: weights, optimizer, position in the stages, and best weights.

    Args:
        run: Run folder.
        config: Settings.
        held_out: Settings of the evaluations.
        device: Device of the weights.

    Attributes:
        stages: Names of all stages, in order.
        optimizer: Optimizer of the current stage.
        stage_index: Index of the current stage; the number of stages when the training is done.
        step: Steps done in the current stage.
        steps_before: Configured steps of the stages before it.

    """

    stages: tuple[str, ...]
    optimizer: Optimizer

    def __init__(
        self, run: UPath, config: Training, held_out: Evaluations, device: torch.device
    ) -> None:
        self.run, self.config, self.held_out, self.device = run, config, held_out, device
        self.checkpoints = Checkpoints(run / "checkpoints")
        self.early_stopping = EarlyStopping(held_out.patience)
        self.stage_index = self.step = self.steps_before = 0

    # -- to be implemented --

    @abstractmethod
    def settings(self, stage: str) -> Stage:
        """Return the steps, batch size and learning rate of a stage."""

    @abstractmethod
    def batches(self, stage: str) -> Batches[Batch]:
        """Return the batches of a stage. A batch has the rows of all workers."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, with its autograd graph.

        Gradients flow only to this worker's own rows. Their sum over the workers is the gradient of
        the whole batch.
        """

    @abstractmethod
    def loss_of_all_workers(self, loss: Tensor) -> float:
        """Return the loss of the whole batch. Every worker calls this method."""

    @abstractmethod
    def language(self, batch: Batch) -> str:
        """Return the language of a batch."""

    @abstractmethod
    def held_out_ar(self) -> float:
        """Return AR in percent on held-out rows. Only rank 0 calls this method."""

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights by name. They are not copies: writing to them changes the model."""

    @abstractmethod
    def begin(self) -> None:
        """Begin a training that has no checkpoint. Only rank 0 calls this method."""

    @abstractmethod
    def end_stage(self) -> None:
        """End a stage. Every worker calls this method, after the best weights are restored."""

    @abstractmethod
    def finish(self) -> None:
        """Write the result of the training. Only rank 0 calls this method, after the last stage."""

    @abstractmethod
    def figures(self) -> Figures:
        """Return figures on the position and quality of the training, for its scheduler."""

    @abstractmethod
    def save(self) -> UPath:
        """Write a checkpoint and return its folder. Only rank 0 calls this method."""

    @abstractmethod
    def resume(self) -> bool:
        """Load the newest valid checkpoint. Return False if there is none."""

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Return the native model's name and the settings, nested to any depth, for MLflow."""

    # -- position --

    @property
    def lr_setting(self) -> str:
        """Key of the current stage's learning rate in the settings."""
        return f"{self.stage}.lr"

    @property
    def stage(self) -> str | None:
        """Name of the current stage; None when the training is done."""
        return self.stages[self.stage_index] if self.stage_index < len(self.stages) else None

    @property
    def stage_is_over(self) -> bool:
        """Whether all steps of the stage are done, or early stopping ends it."""
        stage = self.stage
        done = stage is None or self.step >= self.settings(stage).steps
        return done or self.early_stopping.should_stop

    def last_step(self) -> tuple[str, int]:
        """Return the stage and the number of its step that were done last."""
        if stage := self.stage:
            return stage, self.step
        return self.stages[-1], self.settings(self.stages[-1]).steps

    def evaluate(self) -> Figures:
        """Compute AR on held-out rows, and keep a copy of the weights if it is the best.

        Rank 0 computes the figure and broadcasts it to all workers.
        """
        ar = broadcast_figure(self.held_out_ar() if rank() == 0 else 0.0, self.device)
        self.early_stopping.update(ar, self.steps_before + self.step, self.weights)
        return {"AR": ar, "best_AR": self.early_stopping.best}
