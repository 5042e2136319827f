"""mla-ray: a language for CLIP in minutes.

Multilingual language acquisition (MLA, arXiv 2206.11091) on a frozen English image-text model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_ray.native import Native
    from mla_ray.pack import Pack

__all__ = ["Native", "Pack"]


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and the index or `mla --help` needs none."""
    if name == "Native":
        from mla_ray.native import Native

        return Native
    if name == "Pack":
        from mla_ray.pack import Pack

        return Pack
    raise AttributeError(f"module 'mla_ray' has no attribute {name!r}")
