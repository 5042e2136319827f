"""A native fine-tuned on English captions (paper, section 4: "fine-tune on English"), on Ray.

`finetune` works in a run folder, a path or any URL that all workers reach:

    run.json                   what the run is made of; it goes on only if that has not changed
    data/train, validation     rows, and images decoded once              (data.decoded_images)
    checkpoints/               the last two                               (training.checkpoints)
    metrics.jsonl, tensorboard/                                           (training.metrics)
    native/                    the result, in open_clip's layout          (model.lineage)
    done.json                  written last

What every worker runs is `training.finetuning_learner`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from mla_ray.data.blocks import fingerprint
from mla_ray.data.decoded_images import Decoded, decode
from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import Stream
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Report, Stopped, counting
from mla_ray.runtime.storage import as_path, is_file, read_json, remove, write_json
from mla_ray.training.config import FinetuneConfig
from mla_ray.training.finetuning_learner import TRAIN, VALIDATION, DecodedRun, train
from mla_ray.training.loop import DONE
from mla_ray.training.run_spec import RUN, check_goes_on, only_run_in
from mla_ray.training.workers import Hooks, Workers, fit


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
    hooks: Hooks = Hooks(),
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
        hooks: how it speaks with the caller.

    Raises:
        Diverged: the loss is no longer a number.
        BlockingIOError: another run is at work in `run`.
        FileExistsError: `run` exists and `resume` is off.
        InvalidTable: the table has bad rows, or none of a split that is needed.
        ValueError: the run in `run` is of other data or settings, or the batch is smaller than the
            number of workers.
        Stopped: as asked.

    """
    run = as_path(run)
    workers.check_batch("batch", config.batch)
    native = Native.load(native_name)
    spec: dict[str, Any] = {
        "native": native.name,
        "fingerprint": native.fingerprint,
        "config": config.model_dump(),
        "captions": [fingerprint(file) for file in Stream.captions([captions]).files],
    }
    with only_run_in(run):
        if not check_goes_on(run, spec, native, resume):
            write_json(run / RUN, spec)
        read = _decode(native, captions, config, run, skip_invalid, hooks.report)
        if not is_file(run / DONE):  # written as the very last
            spec["rows"] = {split: each.rows for split, each in read.items()}
            fit(train, DecodedRun(str(run), spec), workers, hooks.named(run.name))
            if not is_file(run / DONE):
                raise Stopped(f"{run}: stopped with a checkpoint; the same again goes on")
    done = read_json(run / DONE)
    problems = [problem for each in read.values() for problem in each.problems]
    return Finetuned(
        run / "native",
        done["fingerprint"],
        done["figures"],
        sum(each.dropped for each in read.values()),
        problems[0] if problems else "",
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
    advance = counting(report, "decoding images", None)
    read: dict[str, Decoded] = {}
    try:
        for split in (TRAIN, VALIDATION) if config.held_out.every else (TRAIN,):
            folder = run / "data" / split
            read[split] = decode(
                native, captions, split, folder, skip_invalid=skip_invalid, progress=advance
            )
    except InvalidTable:
        remove(run / "data")  # so that the mended table may be run the same way
        remove(run / RUN)
        raise
    return read
