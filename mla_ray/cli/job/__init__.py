"""Commands `mla job`: jobs for `ray job submit`, with typed settings, log lines and exit codes.

    ray job submit --working-dir . -- mla job pipeline --config jobs/configs/emoji.yaml

The folder `jobs/` of a checkout has the same programs as modules: `python -m jobs.pipeline`.
"""

from collections.abc import Callable, Sequence

import typer

Main = Callable[[Sequence[str]], None]
"""Runs a job with the given arguments and exits."""

job_app = typer.Typer(
    no_args_is_help=True, help="Run a job on a cluster. `mla job NAME --help` lists its settings."
)


def _steps(*steps: str) -> Main:
    def main(argv: Sequence[str]) -> None:
        from mla_ray.cli.job.plan import run_steps

        run_steps(*steps, argv=argv)

    return main


def _pipeline(argv: Sequence[str]) -> None:
    from mla_ray.cli.job.plan import run_steps
    from mla_ray.pipeline.pipeline import STEPS

    run_steps(*STEPS, argv=argv)


def _sweep(argv: Sequence[str]) -> None:
    from mla_ray.cli.job.sweep import run_sweep

    run_sweep(argv)


def _pretrain_native(argv: Sequence[str]) -> None:
    from mla_ray.cli.job.pretrain_native import run_pretraining

    run_pretraining(argv)


JOBS: dict[str, tuple[Main, str]] = {
    "pipeline": (_pipeline, "Run all steps for every language of a plan."),
    "prepare": (_steps("prepare"), "Read, check and tokenize the tables of a plan."),
    "encode": (_steps("encode"), "Compute the frozen features that the languages of a plan need."),
    "acquire": (
        _steps("acquire"),
        "Train both stages. The missing parts of `prepare` and `encode` run first.",
    ),
    "evaluate": (_steps("evaluate"), "Measure the packs of a plan on the split `test`."),
    "index": (_steps("index"), "Write the images and captions of a plan to its index."),
    "sweep": (_sweep, "Find the best training settings for languages."),
    "pretrain_native": (_pretrain_native, "Train an English native on emoji."),
}


def _add(name: str, main: Main, text: str) -> None:
    # A job parses its own flags, `--help` included. They have the names of its settings.
    own_flags = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @job_app.command(name, help=text, context_settings=own_flags)
    def command(context: typer.Context) -> None:
        main(context.args)


for _name, (_main, _text) in JOBS.items():
    _add(_name, _main, _text)
