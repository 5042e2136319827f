"""A native fine-tuned on English captions (paper, section 4: "fine-tune on English"), on Ray.

Both towers train by CLIP's loss, the symmetric InfoNCE that Language Exposure has, too. `finetune`
works in a run folder, a path or any URL that all workers reach:

    run.json                   what the run is made of; it goes on only if that has not changed
    data/train, validation     rows, and images decoded once              (data.decoded_images)
    checkpoints/               the last two                               (training.checkpoints)
    metrics.jsonl, tensorboard/                                           (training.metrics)
    native/                    the result, in open_clip's layout          (model.lineage)
    done.json                  written last

The paper's code was read for what follows: a fixed temperature, no augmentation, all weights.
Dropout is off, and the running statistics of a ResNet's norms stay as they are: no row depends on
the rows beside it, nor the result on the number of workers (but for the order of sums).

Shapes: B batch of this worker, G batch of all workers, L tokens, E joint embedding size, S pixels
of a side.
"""

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from upath import UPath

from mla_ray.data.blocks import fingerprint
from mla_ray.data.decoded_images import LANGUAGE, Decoded, Ints, Shots, decode
from mla_ray.data.feature_store import BATCH, encode_texts
from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import Stream
from mla_ray.evaluation.recall import rank
from mla_ray.model.lineage import write_descendant
from mla_ray.model.native import Native
from mla_ray.model.objectives import le_loss
from mla_ray.runtime.progress import Progress, Report, Stopped
from mla_ray.runtime.storage import at, read_json, remove, write_json
from mla_ray.training.checkpoints import Checkpoints
from mla_ray.training.config import FinetuneConfig
from mla_ray.training.contrastive import Towers
from mla_ray.training.loop import ASK, DONE, Diverged, Outside, Wish, accelerator_of, gather, groups
from mla_ray.training.metrics import Row, Watch
from mla_ray.training.optimizer import learning_rate
from mla_ray.training.prepare import as_begun
from mla_ray.training.workers import Workers, fit

STAGE = "finetune"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning made.

    Attributes:
        native: its folder.
        fingerprint: of it.
        figures: `steps` trained; with evaluations the best `AR`, and the `best_step` it is of.
        dropped: bad rows that were left out.
        problem: of the first of them.

    """

    native: UPath
    fingerprint: str
    figures: dict[str, float]
    dropped: int = 0
    problem: str = ""


def finetune(
    native_name: str,
    captions: str | Path,
    config: FinetuneConfig,
    run: str | Path | UPath,
    *,
    workers: Workers = Workers(),
    resume: bool = False,
    skip_invalid: bool = False,
    report: Report = lambda progress: None,
    stop: threading.Event | None = None,
    labels: Mapping[str, str] | None = None,
) -> Finetuned:
    """Fine-tune a native on the English captions of a table. The caller has started Ray.

    Args:
        native_name: as `Native.load` takes it, on every node.
        captions: caption table; its split `train` is learned from, `validation` evaluated on.
        config: settings.
        run: the run folder, made here.
        workers: how many train.
        resume: go on with the run in `run`. Without it an existing run is refused.
        skip_invalid: leave bad rows out instead of refusing the table.
        report: told of progress, for bars.
        stop: once set, a checkpoint is saved and `Stopped` raised.
        labels: of the metrics, beside the run's name.

    Raises:
        Diverged: the loss is no longer a number.
        FileExistsError: `run` exists and `resume` is off.
        InvalidTable: the table has bad rows, or none of a split that is needed.
        ValueError: the run in `run` is of other data or settings, or the batch is smaller than the
            number of workers.
        Stopped: as asked.

    """
    run = at(run)
    workers.check_batch("batch", config.batch)
    native = Native.load(native_name)
    spec: dict[str, Any] = {
        "native": native.name,
        "fingerprint": native.fingerprint,
        "config": config.model_dump(),
        "captions": [fingerprint(file) for file in Stream.captions([captions]).files],
    }
    _begin(run, spec, native, resume)
    read = _decode(native, captions, config, run, skip_invalid, report)
    if not (run / DONE).exists():  # written as the very last
        spec["rows"] = {split: each.rows for split, each in read.items()}
        labels = {"run": run.name, **(labels or {})}
        fit(train, Job(str(run), spec), workers, report, stop, labels)
        if not (run / DONE).exists():
            raise Stopped(f"{run}: stopped with a checkpoint; pass --resume to go on")
    done = read_json(run / DONE)
    problems = [problem for each in read.values() for problem in each.problems]
    return Finetuned(
        run / "native",
        done["fingerprint"],
        done["figures"],
        sum(each.dropped for each in read.values()),
        problems[0] if problems else "",
    )


def _begin(run: UPath, spec: dict[str, Any], native: Native, resume: bool) -> None:
    """See that there is no run yet, or one of the same native, data and settings."""
    path = run / "run.json"
    if not path.exists():
        write_json(path, spec)
        return
    if not resume:
        raise FileExistsError(
            f"{run} holds a run already; pass --resume to go on with it, or delete it"
        )
    before = as_begun(read_json(path), native, run)
    if changed := [key for key in spec if before.get(key) != spec[key]]:
        raise ValueError(
            f"{run}: cannot resume, {' and '.join(changed)} differ from the run begun there; "
            "choose another run folder, or delete it"
        )


def _decode(
    native: Native,
    captions: str | Path,
    config: FinetuneConfig,
    run: UPath,
    skip_invalid: bool,
    report: Report,
) -> dict[str, Decoded]:
    """Both splits of the table, or one if nothing is evaluated."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(Progress("decoding images", done, None))

    read: dict[str, Decoded] = {}
    try:
        for split in (TRAIN, VALIDATION) if config.held_out.every else (TRAIN,):
            folder = run / "data" / split
            read[split] = decode(
                native, captions, split, folder, skip_invalid=skip_invalid, progress=advance
            )
    except InvalidTable:
        remove(run / "data")  # so that the mended table may be run the same way
        remove(run / "run.json")
        raise
    return read


# --- what every worker runs ---------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run whose table is decoded: its folder, and its run.json with the rows of each split."""

    run: str
    spec: dict[str, Any]

    @property
    def config(self) -> FinetuneConfig:
        return FinetuneConfig.model_validate(self.spec["config"])


def train(job: Job, outside: Outside = Outside(), *, cpu: bool = True) -> bool:
    """Train from the last sound checkpoint on; False if it was stopped on the way.

    Raises:
        Diverged: the loss is not finite; on all workers at the same step.

    """
    config = job.config
    accelerator = accelerator_of(config, cpu)
    state = _State(job, accelerator.device)
    resumed = state.resume()
    watch = None
    if accelerator.is_main_process:
        watch = Watch(
            at(job.run),
            outside.labels,
            outside.send,
            resume_at=(STAGE, state.step) if resumed else None,
            params={"native": job.spec["native"], **config.model_dump()},
            stages=(STAGE,),
        )
    finished = False
    try:
        finished = _run(state, accelerator, outside, watch)
    finally:
        if watch:
            watch.close(finished)
    if finished and accelerator.is_main_process:
        state.finish()
    return finished


def _run(state: "_State", accelerator: Accelerator, outside: Outside, watch: Watch | None) -> bool:
    config, texts, began = state.config, 0, time.perf_counter()
    while not state.is_over:
        with accelerator.autocast():
            loss = state.loss(state.step)
        accelerator.backward(loss)
        lr = learning_rate(config, config.warmup, state.step)
        norm = state.towers.step(lr)
        state.step += 1
        texts += config.batch
        last = state.step == config.steps
        asks = state.step % ASK == 0
        if asks or last:
            figures = {"loss": float(loss.detach()), "lr": lr, "gradient_norm": norm}
            if not math.isfinite(figures["loss"]):
                raise Diverged(
                    f"{STAGE} step {state.step}: the loss is {figures['loss']}; make lr "
                    f"({config.lr:g}) smaller, or warmup longer"
                )
            rate = texts / max(time.perf_counter() - began, 1e-9)
            figures |= {"texts/s": rate, "eta_s": (config.steps - state.step) * config.batch / rate}
            _tell(watch, state, figures, texts)
            texts, began = 0, time.perf_counter()
        if config.held_out.every and (state.step % config.held_out.every == 0 or last):
            _tell(watch, state, {"AR": state.evaluate(), "best_AR": state.best_ar})
            began = time.perf_counter()
        wish = outside.wish() if asks else Wish.GO
        if state.step % config.checkpoint_every == 0 or state.is_over or wish is not Wish.GO:
            folder = None
            if watch:
                watch.flush()
                folder = state.save()
            outside.saved(state.figures(), folder)
            began = time.perf_counter()
        if wish is Wish.STOP and not state.is_over:
            return False
    return True


def _tell(watch: Watch | None, state: "_State", figures: dict[str, float], texts: int = 0) -> None:
    if watch:
        watch.add(Row(STAGE, state.step, state.config.steps, LANGUAGE, figures, texts))


class _State:
    """The native in training, where it is, and the best it was."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.config, self.run = job, job.config, at(job.run)
        spec = job.spec
        self.native = Native.load(spec["native"], str(device))
        if self.native.fingerprint != spec["fingerprint"]:
            raise ValueError(f"native {spec['native']!r} here is not the one the run began with")
        temperature = self.config.temperature
        own = self.native.logit_scale
        self.logit_scale = own if temperature == "native" else 1 / temperature
        self.towers = Towers(self.native.model, self.config.weight_decay, self.config.clip)
        self.shots = Shots(self.run / "data" / TRAIN, self.native)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.checkpoints = Checkpoints(self.run / "checkpoints")
        self.step = self.best_step = self.since_best = 0
        self.best_ar = -1.0
        self._epoch = lru_cache(2)(self._shuffled)

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the last evaluations brought no gain."""
        patience = self.config.held_out.patience
        return self.step >= self.config.steps or 0 < patience <= self.since_best

    # -- batches --

    def _shuffled(self, epoch: int) -> Ints:
        return np.random.default_rng([self.config.seed, epoch]).permutation(len(self.shots))

    def rows(self, step: int) -> Ints:
        """The rows of a step's batch [G]: an endless walk through shuffled epochs."""
        places = np.arange(step * self.config.batch, (step + 1) * self.config.batch)
        epoch, place = np.divmod(places, len(self.shots))
        return np.concatenate([self._epoch(int(e))[place[epoch == e]] for e in np.unique(epoch)])

    def loss(self, step: int) -> Tensor:
        """The loss of the whole batch, on every worker.

        Each differentiates by its own rows only, so that summed gradients are the whole's.
        """
        rows = self.rows(step)
        shares = [rows[worker :: self.world] for worker in range(self.world)]
        sizes = [len(share) for share in shares]
        mine, whole = shares[self.rank], np.concatenate(shares)
        image_BE = self.native.encode_image(self.shots.pixels(self.shots.image[mine]))
        text_BE = self.native.encode_text(self._tokens(mine))
        texts = [self.shots.identity[row] for row in whole]
        same = groups(self.shots.image[whole].tolist(), texts)
        return le_loss(
            gather(text_BE.float(), self.rank, sizes),
            gather(image_BE.float(), self.rank, sizes),
            torch.from_numpy(same).to(text_BE.device),
            self.logit_scale,
        )

    def _tokens(self, rows: Ints) -> Tensor:
        """Native token ids [B, L], cut at the longest text where that changes nothing."""
        ids_BL = self.native.tokenize([self.shots.caption[row] for row in rows])
        tower = self.native.text
        if tower.fixed_length:
            return ids_BL
        return ids_BL[:, : int(tower.english_end(ids_BL).max()) + 1]

    # -- held-out figures --

    def evaluate(self) -> float:
        """AR on the split `validation`; keeps the weights if they are the best.

        Rank 0 does it, and all workers go on from the same figure.
        """
        figure = torch.zeros(1, dtype=torch.float64, device=self.native.device)
        if self.rank == 0:
            figure += self._evaluate()
        if self.world > 1:
            dist.broadcast(figure, 0)
        ar = float(figure)
        if ar > self.best_ar:
            self.best_ar, self.best_step, self.since_best = ar, self.step, 0
            self.towers.follow()
        else:
            self.since_best += 1
        return ar

    @torch.inference_mode()
    def _evaluate(self) -> float:
        shots = Shots(self.run / "data" / VALIDATION, self.native)
        order = np.random.default_rng(self.config.seed).permutation(len(shots))
        rows = np.sort(order[: self.config.held_out.size])
        images, of = np.unique(shots.image[rows], return_inverse=True)
        parts = [
            self.native.encode_image(shots.pixels(images[start : start + BATCH])).float().cpu()
            for start in range(0, len(images), BATCH)
        ]
        texts = encode_texts(self.native, [shots.caption[row] for row in rows])
        return rank(texts, torch.cat(parts).numpy(), of.astype(np.int64)).recall().ar

    # -- saving --

    def figures(self) -> dict[str, float]:
        """Steps trained; with evaluations the best AR, and the step that it is of."""
        found: dict[str, float] = {"steps": self.step}
        best = {"AR": round(self.best_ar, 2), "best_step": self.best_step}
        return found | (best if self.best_ar >= 0 else {})

    def save(self) -> UPath:
        state = {"ar": self.best_ar, "step": self.best_step, "since": self.since_best}
        return self.checkpoints.save(self.step, self.towers.tensors(), state)

    def resume(self) -> bool:
        """Go to the newest sound checkpoint; False if there is none."""
        found = self.checkpoints.load(str(self.native.device))
        if found is None:
            return False
        self.towers.load(found.tensors)
        self.step, state = found.number, found.state
        self.best_ar, self.best_step, self.since_best = state["ar"], state["step"], state["since"]
        return True

    def finish(self) -> None:
        """Write the native; the best of it, if it was evaluated."""
        model = self.towers.kept if self.best_ar >= 0 else self.towers.model
        figures = self.figures()
        trained: dict[str, Any] = {"settings": self.config.model_dump(), "figures": figures}
        trained |= {name: self.job.spec[name] for name in ("captions", "rows")}
        lineage = write_descendant(self.native, model, self.run / "native", trained)
        done = {"fingerprint": lineage.fingerprint, "figures": figures}
        write_json(self.run / DONE, done)
