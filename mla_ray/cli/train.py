"""What trains: `mla acquire`, `mla finetune`, `mla sweep`."""

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

WorkerCount = Annotated[
    str,
    typer.Option(
        help="Ray Train workers: 2, or 1:4 for as many as there is room for; 0: none, and no Ray."
    ),
]
ConfigFile = Annotated[Path | None, typer.Option(help="Settings, YAML.")]
Resume = Annotated[
    bool | None,
    typer.Option("--resume/--no-resume", help="Go on with the run begun, as it does; or refuse."),
]
RunFolder = Annotated[
    str | None, typer.Option(help="Run folder; one in runs/ that belongs to --out if not given.")
]


def run_folder(out: str, run: str | None, resume: bool | None) -> str:
    """Where a run for `out` goes: as told, else a folder that no other `out` has."""
    from mla_ray.training.run_spec import RUN

    if run is not None:
        return run
    name = PurePosixPath(out).name
    former = f"runs/{name}"  # where 0.1.0 had it, which went on only if it was asked to
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
            help="Translation table; each of several has an equal share of every batch. If not "
            "given, pairs are made of --captions in both languages."
        ),
    ] = None,
    captions: Annotated[
        str | None, typer.Option(help="Caption table for LE; without it NLT alone.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Pack to go on from; then LE alone if no --pairs.")
    ] = None,
    native: NativeName = "emoji-clip",
    workers: WorkerCount = "1",
    config: ConfigFile = None,
    resume: Resume = None,
    run: RunFolder = None,
    skip_invalid: Skip = False,
    data: Annotated[
        str,
        typer.Option("--data", envvar="MLA_DATA", help="Where features are kept."),
    ] = "data",
    as_json: Json = False,
) -> None:
    """Acquire a language: NLT on translations, then LE on captioned images."""
    if not pairs and not captions and start is None:
        raise typer.BadParameter(
            "give --pairs, --captions in English and the language, or --from a pack to go on from"
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
    """Fine-tune a native on a table's English captions; packs are then plugged or acquired."""
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
        str | None, typer.Option(callback=one_language, help="BCP-47 code.")
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            callback=some_languages, help="Or several, comma-separated; all of the tables: all."
        ),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(help="Translation table; may be repeated. Emoji names if there is none."),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(help="Caption table; its split test measures the gain, validation chooses."),
    ] = None,
    native: NativeName = "emoji-clip",
    space: Annotated[
        str, typer.Option(help="quick, standard, low-resource, a YAML file, or auto.")
    ] = "auto",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Of a language; the space's own if not given.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Most trials of all languages together.")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; as many as there is room for.")
    ] = None,
    worker_gpus: Annotated[
        float | None, typer.Option(min=0, help="Of a trial; 0.25 puts four on a GPU.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    run: Annotated[str, typer.Option(help="Run folder; the same again goes on.")] = "runs/sweep",
    results: Annotated[
        str, typer.Option(help="Best settings by language, for `mla acquire --config`.")
    ] = "tuning/results",
    data: DataFolder = Path("data"),
    skip_invalid: Skip = False,
    as_json: Json = False,
) -> None:
    """Find settings for languages, and say on the test split what they are worth."""
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
    # Ray's warnings go to standard output, which is for the result.
    with redirect_stdout(sys.stderr), bars() as report, ray_session(dashboard=True):
        outcomes = run_sweep(plan, report, threading.Event())
    if as_json:
        result = {o.language: o.model_dump(mode="json", exclude={"trials"}) for o in outcomes}
        emit(result, as_json, "")
        return
    stdout.print(table(outcomes))
    for outcome in outcomes:
        emit(None, as_json, outcome.line)
