"""Fine-tuning of a native model on English captions, on Ray (paper, section 4).

The paper calls this "fine-tune on English". `finetune` works in a run folder. The folder is a path
or a URL that all workers can reach:

    run.json                   native, data and settings; a resumed run must match them
    data/train, validation     rows, and images decoded once              (data.decoded_images)
    checkpoints/               the last two checkpoints                   (training.checkpoints)
    metrics.jsonl, tensorboard/                                           (training.metrics)
    native/                    the result, in open_clip's layout          (model.lineage)
    done.json                  fingerprint and figures; written last

Every worker runs `training.finetuning_learner`.
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
    """Result of a fine-tuning.

    Attributes:
        native: Folder of the fine-tuned native model.
        fingerprint: Fingerprint of that model.
        figures: `steps` trained. With evaluations also the best `AR` and its `best_step`.
        dropped: Number of invalid rows that were dropped.
        problem: Problem of the first dropped row; empty if there is none.

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
    """Fine-tune a native model on the English captions of a table.

    The caller starts Ray first, unless `workers.count` is 0.

    Args:
        native_name: Name of the native model, as `Native.load` takes it. Every node must have it.
        captions: Caption table. Split `train` is for training, split `validation` for evaluation.
        config: Settings.
        run: Run folder. It is created if it does not exist.
        workers: Training workers. With a count of 0, everything runs in this process without Ray.
        resume: Continue the run in `run`. If False, an existing run is an error.
        skip_invalid: Drop invalid rows instead of rejecting the table.
        hooks: Callbacks to the caller.

    Raises:
        Diverged: The loss is not finite.
        MemoryError: The training does not fit into the memory of its only worker.
        BlockingIOError: Another run is active in `run`.
        FileExistsError: `run` contains a run and `resume` is False.
        InvalidTable: The table has invalid rows and `skip_invalid` is False, or a split that is
            needed has no valid row.
        ValueError: The run in `run` has other data or settings, or the batch is smaller than the
            number of workers.
        Stopped: A stop request ended the training after it saved a checkpoint.

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
        if not is_file(run / DONE):  # `train` writes it last
            spec["rows"] = {split: each.rows for split, each in read.items()}
            fit(train, DecodedRun(str(run), spec), workers, hooks.named(run.name))
            if not is_file(run / DONE):
                raise Stopped(
                    f"{run}: stopped after saving a checkpoint; "
                    "run the same command again to continue"
                )
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
    """Decode both splits of the table, or only `train` if there are no evaluations."""
    advance = counting(report, "decoding images", None)
    read: dict[str, Decoded] = {}
    try:
        for split in (TRAIN, VALIDATION) if config.held_out.every else (TRAIN,):
            folder = run / "data" / split
            read[split] = decode(
                native, captions, split, folder, skip_invalid=skip_invalid, progress=advance
            )
    except InvalidTable:
        remove(run / "data")  # the user can fix the table and run again
        remove(run / RUN)
        raise
    return read
