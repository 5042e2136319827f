"""Commands that train: `mla acquire`, `mla finetune` and `mla sweep`."""

import hashlib
import sys
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from mla_ray.cli.interrupts import goes_on
from mla_ray.cli.options import (
    Captions,
    DataFolder,
    Json,
    NativeName,
    Skip,
    WorkerCount,
    absolute,
    emit,
    one_language,
    some_languages,
)
from mla_ray.runtime.stop_signals import StopEvent
from mla_ray.training.config import (
    AcquireConfig,
    FinetuneConfig,
    load_config,
    load_finetune_config,
)

ConfigFile = Annotated[
    Path | None, typer.Option(help="YAML file with settings. `mla config` lists bundled files.")
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Continue an existing run in the run folder (default), or fail if there is one.",
    ),
]
RunFolder = Annotated[
    str | None,
    typer.Option(help="Run folder. The default is a folder in runs/ that is unique to --out."),
]


def run_folder(out: str, run: str | None, resume: bool | None) -> str:
    """Return the run folder for `out`: `run` if given, else a folder that is unique to `out`."""
    from mla_ray.training.run_spec import RUN

    if run is not None:
        return run
    name = PurePosixPath(out).name
    former = f"runs/{name}"  # folder of version 0.1.0, which resumed only with --resume
    digest = hashlib.sha256(absolute(out).encode()).hexdigest()[:8]
    folder = f"{former}-{digest}"
    if resume and not Path(folder).exists() and (Path(former) / RUN).exists():
        return former
    return folder


def acquire(
    language: Annotated[
        str, typer.Option(callback=one_language, help="BCP-47 code of the new language.")
    ],
    out: Annotated[str, typer.Option(help="Folder for the language pack.")],
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Translation table. Repeat the option for more tables, which have equal shares of "
            "every batch. By default pairs are made from --captions in English and the new "
            "language."
        ),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(help="Caption table for LE. Without it, the training has only the stage NLT."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Pack to continue from. Without --pairs, the training then has only the stage LE.",
        ),
    ] = None,
    native: NativeName = "emoji-clip",
    workers: WorkerCount = "1",
    config: ConfigFile = None,
    resume: Resume = None,
    run: RunFolder = None,
    skip_invalid: Skip = False,
    data: Annotated[
        str,
        typer.Option("--data", envvar="MLA_DATA", help="Folder or URL of the features."),
    ] = "data",
    as_json: Json = False,
) -> None:
    """Acquire a language in two stages.

    NLT (Native Language Transfer) trains on translations. LE (Language Exposure) trains on
    captioned images.
    """
    if not pairs and not captions and start is None:
        raise typer.BadParameter(
            "give --pairs, or --captions in English and the language, or --from with a pack"
        )
    settings = load_config(config) if config else AcquireConfig()
    if not pairs and start is not None:
        none = settings.nlt.model_copy(update={"steps": 0})
        settings = settings.model_copy(update={"nlt": none})
    if captions is None:
        settings = settings.text_only()

    from mla_ray.data.caption_pairs import pairs_of_captions
    from mla_ray.data.corpus import Corpus
    from mla_ray.packs.pack import copy_pack
    from mla_ray.runtime.cluster import ray_session
    from mla_ray.runtime.console import bars, print_dropped
    from mla_ray.training.acquisition import acquire as run_stages
    from mla_ray.training.prepare import read_prepared
    from mla_ray.training.workers import Hooks, Workers

    if not pairs and start is None and captions:
        made = pairs_of_captions(captions, language, f"{data}/pairs", skip_invalid=skip_invalid)
        pairs = [made]
    folder, stop = run_folder(out, run, resume), StopEvent()
    training = Workers.parse(workers)
    ray = ray_session() if training.count else nullcontext()
    with goes_on(folder, stop), bars() as report, ray:
        packs = run_stages(
            native,
            [Corpus(language, pairs or [], captions, start)],
            settings,
            folder,
            store=f"{data}/features",
            workers=training,
            resume=resume is not False,
            skip_invalid=skip_invalid,
            hooks=Hooks(report=report, stop=stop),
        )
    copy_pack(packs[language], out)
    prepared = read_prepared(folder)
    print_dropped(prepared.dropped, prepared.problems)
    result = {"language": language, "pack": out, "dropped": prepared.dropped}
    emit(result, as_json, f"{language}: pack in {out}")


def finetune(
    captions: Captions,
    out: Annotated[str, typer.Option(help="Folder for the fine-tuned native.")],
    native: NativeName = "emoji-clip",
    workers: WorkerCount = "1",
    config: ConfigFile = None,
    resume: Resume = None,
    run: RunFolder = None,
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a native on the English captions of a table.

    Packs of the original native can then be plugged (`mla pack plug`), or acquired again.
    """
    settings = load_finetune_config(config) if config else FinetuneConfig()

    from mla_ray.model.lineage import copy_native
    from mla_ray.runtime.cluster import ray_session
    from mla_ray.runtime.console import bars, print_dropped
    from mla_ray.training.finetuning import finetune as run_finetuning
    from mla_ray.training.workers import Hooks, Workers

    folder, stop = run_folder(out, run, resume), StopEvent()
    training = Workers.parse(workers)
    ray = ray_session() if training.count else nullcontext()
    with goes_on(folder, stop), bars() as report, ray:
        finetuned = run_finetuning(
            native,
            captions,
            settings,
            folder,
            workers=training,
            resume=resume is not False,
            skip_invalid=skip_invalid,
            hooks=Hooks(report=report, stop=stop),
        )
    copy_native(finetuned.native, out)
    print_dropped(finetuned.dropped, [finetuned.problem])
    result = {"native": out, "fingerprint": finetuned.fingerprint, **finetuned.figures}
    emit(result | {"dropped": finetuned.dropped}, as_json, f"fine-tuned native in {out}")


def sweep(
    language: Annotated[
        str | None, typer.Option(callback=one_language, help="BCP-47 code of one language.")
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            callback=some_languages,
            help="Comma-separated BCP-47 codes instead of --language. all means every language of "
            "the tables.",
        ),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Translation table. Repeat the option for more tables. The default is the names "
            "of emoji."
        ),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            help="Caption table. Its validation split selects the settings. Its test split "
            "measures their gain."
        ),
    ] = None,
    native: NativeName = "emoji-clip",
    space: Annotated[
        str,
        typer.Option(
            help="Search space: quick, standard, low-resource, a YAML file, or auto. auto selects "
            "by the number of pairs."
        ),
    ] = "auto",
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of trials per language. The default comes from the search space."
        ),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of trials of all languages together.")
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of concurrent trials. The default is as many as the resources allow.",
        ),
    ] = None,
    worker_gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of a trial. 0.25 runs four trials on one GPU."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the proposals and of training.")] = 0,
    run: Annotated[
        str, typer.Option(help="Run folder. The same command continues a stopped sweep.")
    ] = "runs/sweep",
    results: Annotated[
        str,
        typer.Option(
            help="Folder for the best settings by language, for use with `mla acquire --config`."
        ),
    ] = "tuning/results",
    data: DataFolder = Path("data"),
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Find the best training settings for languages and measure their gain on the test split."""
    import threading
    from contextlib import redirect_stdout

    from mla_ray.runtime.cluster import ray_session
    from mla_ray.runtime.console import bars, stdout
    from mla_ray.tuning.plan import SweepPlan
    from mla_ray.tuning.sweep import sweep as run_sweep
    from mla_ray.tuning.table import table

    if (language is None) == (languages is None):
        raise typer.BadParameter("give either --language or --languages")
    plan = SweepPlan(
        languages=[language] if language else (languages or "").split(","),
        native=native,
        dataset=None if pairs else "emoji",
        pairs=pairs or [],
        captions=captions,
        space=space,
        trials=trials,
        budget=budget,
        concurrent=concurrent,
        worker_gpus=worker_gpus,
        seed=seed,
        run=absolute(run),
        results=results,
        data=str(data),
        skip_invalid=skip_invalid,
    )
    # Standard output is for the result, but Ray also writes its warnings there.
    with redirect_stdout(sys.stderr), bars() as report, ray_session(dashboard=True):
        outcomes = run_sweep(plan, report, threading.Event())
    if as_json:
        result = {o.language: o.model_dump(mode="json", exclude={"trials"}) for o in outcomes}
        emit(result, as_json, "")
        return
    stdout.print(table(outcomes))
    for outcome in outcomes:
        emit(None, as_json, outcome.line)
