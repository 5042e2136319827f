"""Progress of one language among several."""

from dataclasses import replace

from mla_ray.runtime.progress import Progress, Report


def of_language(report: Report, language: str) -> Report:
    """Reports phases with the language in front."""

    def prefixed(step: Progress) -> None:
        phase = step.phase if language in step.phase.split() else f"{language} {step.phase}"
        report(replace(step, phase=phase))

    return prefixed
