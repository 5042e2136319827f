"""Add languages to a frozen English image-text model such as CLIP.

The package implements multilingual language acquisition (MLA, arXiv 2206.11091).

The public names load on first use, because importing torch takes seconds. The index and
`mla --help` do not need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_ray.index.collection import CaptionIndex
    from mla_ray.model.native import Native
    from mla_ray.packs.acquisition_encoder import AcquisitionEncoder
    from mla_ray.packs.pack import LanguagePack
    from mla_ray.serving.client import AsyncClient, Client
    from mla_ray.training.config import AcquireConfig

__all__ = [
    "AcquireConfig",
    "AcquisitionEncoder",
    "AsyncClient",
    "CaptionIndex",
    "Client",
    "LanguagePack",
    "Native",
]

_HOMES = {
    "AcquireConfig": "training.config",
    "AcquisitionEncoder": "packs.acquisition_encoder",
    "AsyncClient": "serving.client",
    "CaptionIndex": "index.collection",
    "Client": "serving.client",
    "LanguagePack": "packs.pack",
    "Native": "model.native",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _HOMES:
        return getattr(import_module(f"mla_ray.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mla_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
