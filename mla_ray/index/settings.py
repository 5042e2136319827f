"""Settings that a collection is created with."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Quantization = Literal["int8"]
Share = Annotated[int, Field(ge=1, le=1_000)]
"""A number of shards or replicas."""
SERVER_ONLY = ("shard_number", "replication_factor", "write_consistency_factor")
"""Settings that only a Qdrant server has: a folder is one shard in one process."""


class IndexSettings(BaseModel):
    """Settings of a collection. Those that are not given are the engine's for a new collection.

    A collection keeps its settings, even after rebuilds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    quantization: Quantization | None = None
    """With `int8`, graph search and scan use vectors of a quarter of the size, and float32 vectors
    rank the candidates."""
    shard_number: Share | None = None
    """Parts that a collection is divided into. Servers only. Default: one for each node."""
    replication_factor: Share | None = None
    """Copies of each shard, on different nodes. Servers only. Default: 1."""
    write_consistency_factor: Share | None = None
    """Copies that must have a write before it is acknowledged. Servers only. Default: 1."""
    on_disk_vectors: bool | None = None
    """Read vectors from disk when they are needed, instead of keeping them in memory. Default:
    no."""
    on_disk_payload: bool | None = None
    """Read captions and ids from disk when they are needed. Default: yes."""
    hnsw_m: int | None = Field(default=None, ge=4, le=128)
    """Edges of the graph per point. More are more exact and take more memory. Default: 16."""
    hnsw_ef_construct: int | None = Field(default=None, ge=4, le=4_096)
    """Candidates per point while the graph is built. More are more exact and slower. Default:
    100."""

    def given(self) -> dict[str, Any]:
        """Return the settings that are given, by name."""
        return self.model_dump(exclude_none=True)

    def over(self, others: "IndexSettings") -> "IndexSettings":
        """Return these settings, and the others where these are not given."""
        return others.model_copy(update=self.given())

    def require_embedded(self, where: str) -> None:
        """Raise a ValueError if a given setting does not exist without a server."""
        if unknown := [name for name in SERVER_ONLY if name in self.given()]:
            raise ValueError(
                f"{where} has no {', '.join(unknown)}: it is one shard in one process; leave that "
                "out, or use a Qdrant server (http://…)"
            )

    def require_same(self, stored: "IndexSettings", where: str) -> None:
        """Raise a ValueError if a given setting differs from that of an existing collection.

        Args:
            stored: Settings of the collection.
            where: The collection's name or folder, for the message.

        """
        other = {name: getattr(stored, name) for name in self.given()}
        if differing := [name for name, value in self.given().items() if other[name] != value]:
            said = ", ".join(
                f"{name} {_yaml(other[name])}, not {_yaml(getattr(self, name))}"
                for name in differing
            )
            raise ValueError(
                f"{where} was made with {said}, and keeps it; leave {', '.join(differing)} out to "
                "use it as it is, or rebuild it with the new settings "
                "(CaptionIndex.rebuild(settings))"
            )


ENGINE_DEFAULTS = IndexSettings()
"""Settings of which none is given."""


def _yaml(value: Any) -> str:
    return "none" if value is None else str(value).lower()
