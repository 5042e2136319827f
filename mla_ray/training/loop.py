"""Training loop that every worker of every training runs.

It uses torch.distributed and the run folder, but not Ray. `mla_ray.training.workers` runs it on a
cluster, and a script can run it alone. The same seed, data and number of workers give the same
bytes, also after interruptions.
"""

import math
import time

import torch
from accelerate import Accelerator

from mla_ray.training.config import Stage, Training
from mla_ray.training.driver import Control, Driver
from mla_ray.training.learner import Batch, Learner
from mla_ray.training.metrics import MetricsLogger, Row
from mla_ray.training.optimizer import learning_rate

LOG_EVERY = 10
"""Steps between two rows of metrics, and between two calls of `Driver.control`."""
DONE = "done.json"
"""Result of a run, in its folder. It is written last."""


class Diverged(ValueError):
    """Exception for a loss that is not finite. A retry would fail in the same way."""


def train(learner: Learner[Batch], accelerator: Accelerator, driver: Driver) -> bool:
    """Run all stages, starting from the last valid checkpoint.

    Returns:
        False if a stop request ended the training early.

    Raises:
        Diverged: The loss is not finite. All workers raise it at the same step.

    """
    resumed = learner.resume()
    if not accelerator.is_main_process:
        return run_stages(learner, accelerator, driver)
    if not resumed:
        learner.begin()
    metrics = MetricsLogger(
        learner.run,
        driver.labels,
        driver.on_metrics,
        resume_at=learner.last_step() if resumed else None,
        params=learner.params(),
        stages=learner.stages,
    )
    finished = False
    try:
        finished = run_stages(learner, accelerator, driver, metrics)
    finally:
        metrics.close(finished)
    return finished


def run_stages(
    learner: Learner[Batch],
    accelerator: Accelerator,
    driver: Driver,
    metrics: MetricsLogger | None = None,
) -> bool:
    """Run the steps of all stages.

    Args:
        learner: Learner with the weights and their position in the stages.
        accelerator: Accelerator with the precision of the settings.
        driver: Callbacks to the process that started the training.
        metrics: Logger on rank 0. Without it, as on other ranks, nothing is logged or saved.

    Returns:
        False if a stop request ended the training early.

    Raises:
        Diverged: The loss is not finite. All workers raise it at the same step.

    """
    config, meter = learner.config, _Throughput()
    while stage := learner.stage:
        settings, batches = learner.settings(stage), learner.batches(stage)
        while not learner.stage_is_over:
            batch = batches[learner.step]
            with accelerator.autocast():
                loss = learner.loss(batch)
            accelerator.backward(loss)
            lr = learning_rate(settings, config.warmup, learner.step)
            learner.optimizer.all_reduce()
            norm = learner.optimizer.clip_grad_norm_(config.clip)
            learner.optimizer.step(lr)
            learner.optimizer.zero_grad()
            learner.step += 1
            step, last = learner.step, learner.step == settings.steps
            meter.texts += settings.batch

            if step % LOG_EVERY == 0 or last:
                whole_loss, texts = learner.loss_of_all_workers(loss), meter.texts
                figures = {"loss": whole_loss, "lr": lr, "gradient_norm": float(norm)}
                figures |= meter.read(settings, step)
                if metrics:
                    language = learner.language(batch)
                    metrics.log(Row(stage, step, settings.steps, language, figures, texts))
                if not math.isfinite(whole_loss):
                    raise Diverged(
                        f"{stage} step {step}: the loss is {whole_loss}; make "
                        f"{learner.lr_setting} ({settings.lr:g}) smaller, or warmup longer"
                    )

            if learner.held_out.every and (step % learner.held_out.every == 0 or last):
                figures = learner.evaluate()
                if metrics:
                    metrics.log(Row(stage, step, settings.steps, "", figures))
                meter.restart()
                if learner.early_stopping.should_stop:
                    break

            control = driver.control() if step % LOG_EVERY == 0 else Control.CONTINUE
            due = step % config.checkpoint_every == 0 and not last
            if due or control is not Control.CONTINUE:
                _save(learner, driver, metrics)
                meter.restart()
            if control is Control.STOP:
                return False
        learner.early_stopping.restore_best_weights(learner.weights())
        learner.end_stage()
        if settings.steps:
            _save(learner, driver, metrics)
    if accelerator.is_main_process:
        learner.finish()
    return True


def accelerator_for(config: Training, cpu: bool) -> Accelerator:
    """Create an Accelerator with the precision of the settings."""
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and not cpu and torch.cuda.is_bf16_supported()
    )
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no")


def _save(learner: Learner[Batch], driver: Driver, metrics: MetricsLogger | None) -> None:
    """Save a checkpoint on rank 0 and report it. Every worker calls this function."""
    folder = None
    if metrics:
        metrics.flush()
        folder = learner.save()
    driver.on_checkpoint(learner.figures(), folder)


class _Throughput:
    """Texts per second since the last read, without the time of evaluations and checkpoints."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.texts, self.began = 0, time.perf_counter()

    def read(self, settings: Stage, step: int) -> dict[str, float]:
        rate = self.texts / max(time.perf_counter() - self.began, 1e-9)
        self.restart()
        return {"texts/s": rate, "eta_s": (settings.steps - step) * settings.batch / rate}
