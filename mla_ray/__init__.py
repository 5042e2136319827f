"""mla-ray: a language for CLIP in minutes.

Multilingual language acquisition (MLA, arXiv 2206.11091) on a frozen English image-text model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_ray.encoder import AcquisitionEncoder
    from mla_ray.native import Native
    from mla_ray.pack import LanguagePack

__all__ = ["AcquisitionEncoder", "LanguagePack", "Native"]

_HOMES = {"AcquisitionEncoder": "encoder", "LanguagePack": "pack", "Native": "native"}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and the index or `mla --help` needs none."""
    if name in _HOMES:
        return getattr(import_module(f"mla_ray.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mla_ray' has no attribute {name!r}")
