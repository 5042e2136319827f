"""What the training loop trains, and how far it is: the part that all trainings have in common.

`acquisition_learner` trains languages in the two stages of MLA, `finetuning_learner` both towers of
a native in one.
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
    """The batches of a stage: a pure function of the step, so that nothing is saved to resume."""

    def __getitem__(self, step: int) -> Batch_co: ...


class Learner(ABC, Generic[Batch]):
    """Weights in training, their optimizer, where in the stages they are, and the best they were.

    Args:
        run: the run folder.
        config: settings.
        held_out: settings of the evaluations.
        device: of the weights.

    Attributes:
        stages: names of all stages, in their order.
        optimizer: of the stage under way.
        stage_index: number of that stage; the number of all where the training is done.
        step: steps done of it.
        steps_before: steps of the stages before it.

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

    # -- what a kind of training is --

    @abstractmethod
    def settings(self, stage: str) -> Stage:
        """Steps, batch and learning rate of a stage."""

    @abstractmethod
    def batches(self, stage: str) -> Batches[Batch]:
        """The batches of a stage, of all workers together."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch, with graph: this worker differentiates by its own rows alone.

        Summed over workers the gradients are those of the whole batch.
        """

    @abstractmethod
    def loss_of_all_workers(self, loss: Tensor) -> float:
        """The loss of the whole batch; every worker comes here."""

    @abstractmethod
    def language(self, batch: Batch) -> str:
        """The language of a batch."""

    @abstractmethod
    def held_out_ar(self) -> float:
        """AR on held-out rows, in per cent; rank 0 alone comes here."""

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Every weight that trains, by name; what is written into them trains on."""

    @abstractmethod
    def begin(self) -> None:
        """Before the first step of a training that has no checkpoint; on rank 0."""

    @abstractmethod
    def end_stage(self) -> None:
        """After the last step of a stage, with its best weights in place; on every worker."""

    @abstractmethod
    def finish(self) -> None:
        """After the last stage: write what the training is for; on rank 0."""

    @abstractmethod
    def figures(self) -> Figures:
        """Where it is, for whoever schedules it."""

    @abstractmethod
    def save(self) -> UPath:
        """Write a checkpoint; on rank 0. Returns its folder."""

    @abstractmethod
    def resume(self) -> bool:
        """Go to the newest sound checkpoint; False if there is none."""

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Native and settings, nested as they like, for MLflow."""

    # -- where it is --

    @property
    def lr_setting(self) -> str:
        """What the learning rate of the stage under way is called in the settings."""
        return f"{self.stage}.lr"

    @property
    def stage(self) -> str | None:
        """Name of the stage under way; None where the training is done."""
        return self.stages[self.stage_index] if self.stage_index < len(self.stages) else None

    @property
    def stage_is_over(self) -> bool:
        """Whether all its steps are done, or the last evaluations brought no gain."""
        stage = self.stage
        done = stage is None or self.step >= self.settings(stage).steps
        return done or self.early_stopping.should_stop

    def last_step(self) -> tuple[str, int]:
        """Stage and step that were done last."""
        if stage := self.stage:
            return stage, self.step
        return self.stages[-1], self.settings(self.stages[-1]).steps

    def evaluate(self) -> Figures:
        """AR on held-out rows; its weights are kept if they are the best.

        Rank 0 does it, and all workers go on from the same figure.
        """
        ar = broadcast_figure(self.held_out_ar() if rank() == 0 else 0.0, self.device)
        self.early_stopping.update(ar, self.steps_before + self.step, self.weights)
        return {"AR": ar, "best_AR": self.early_stopping.best}
