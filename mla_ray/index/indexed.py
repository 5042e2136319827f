"""Result of the indexing of a table."""

from dataclasses import dataclass, field

from mla_ray.index.collection import CAPTIONS, IMAGES

MAX_REASONS = 1000
"""Most reasons that are kept; all rejected points are counted."""


def _nothing() -> dict[str, int]:
    return {IMAGES: 0, CAPTIONS: 0}


@dataclass
class Indexed:
    """Numbers of points by collection: written, unchanged, rejected and removed."""

    written: dict[str, int] = field(default_factory=_nothing)
    """Points of the table that the index has now: those encoded, and the unchanged ones."""
    unchanged: dict[str, int] = field(default_factory=_nothing)
    """Those of them that the index had already, and that were not encoded again."""
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)  # at most MAX_REASONS
    removed: dict[str, int] = field(default_factory=dict)  # result of `ingest.sync`

    @property
    def encoded(self) -> dict[str, int]:
        """Points that were encoded, by collection."""
        return {name: count - self.unchanged[name] for name, count in self.written.items()}

    def count(self, collection: str, *, encoded: int, unchanged: int) -> None:
        """Count points of a collection."""
        self.written[collection] += encoded + unchanged
        self.unchanged[collection] += unchanged

    def reject(self, reason: str) -> None:
        """Count a rejected point."""
        self.rejected += 1
        if len(self.reasons) < MAX_REASONS:
            self.reasons.append(reason)

    def add(self, other: "Indexed") -> None:
        """Add the points of another part, and its reasons."""
        for name, count in other.encoded.items():
            self.count(name, encoded=count, unchanged=other.unchanged[name])
        self.rejected += other.rejected
        self.reasons = (self.reasons + other.reasons)[:MAX_REASONS]
