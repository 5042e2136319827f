"""Progress of one language among several."""

from dataclasses import replace

from mla_ray.runtime.progress import Progress, Report


def of_language(report: Report, language: str) -> Report:
    """Return a `Report` that puts the language in front of the phase, unless it is part of it."""

    def prefixed(step: Progress) -> None:
        phase = step.phase if language in step.phase.split() else f"{language} {step.phase}"
        report(replace(step, phase=phase))

    return prefixed
