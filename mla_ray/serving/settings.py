"""Settings of a server: the `args` of a Serve config file, the flags of `mla serve`."""

import os

from limits import parse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mla_ray.serving.public_path import checked_prefix
from mla_ray.serving.schemas import TOKEN_VARIABLE

LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]


class Settings(BaseModel):
    """All of a server but its replicas. Secrets are no settings: they come from the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    native: str = Field(default="emoji-clip", description="as `mla --native` takes it")
    packs: str = Field(default="packs", description="pack store: a folder or an fsspec URL")
    index: str = Field(
        default="edge:index", description="edge:FOLDER, http(s)://HOST:PORT, grpc://HOST"
    )
    pictures: str | None = Field(
        default=None, description="pictures for the page: a folder or fsspec URL"
    )
    hosts: list[str] = Field(default=LOOPBACK, description="host names it answers to; * is any")
    root_path: str = Field(
        default="",
        description="where a reverse proxy has it, such as /search; "
        "else as X-Forwarded-Prefix says",
    )
    max_packs: int = Field(default=32, ge=1, description="packs in memory a text encoder")
    threads: int = Field(
        default=0,
        ge=0,
        description="of torch in an encoder; 0: the cores Ray gave it, all if less than one",
    )
    scan_every_s: float = Field(default=1.0, gt=0, le=5, description="look at the pack store")
    max_batch: int = Field(default=128, ge=1, description="texts in one pass")
    calls: int = Field(
        default=1, ge=1, description="batches under way at a time; one an encoder replica"
    )
    max_queue: int = Field(default=2048, ge=1, description="texts that wait; more are answered 503")
    max_in_flight: int = Field(
        default=1024, ge=1, description="requests at a time; more are answered 503"
    )
    timeout_s: float = Field(
        default=30, gt=0, description="of one request, 504 after it; not of an ingest"
    )
    rate: str | None = Field(
        default=None, description="a client's, such as 100/second; 429 above it"
    )

    @field_validator("rate")
    @classmethod
    def _rate_is_one(cls, rate: str | None) -> str | None:
        if rate is not None:
            parse(rate)
        return rate

    @field_validator("root_path")
    @classmethod
    def _root_path_is_one(cls, root_path: str) -> str:
        return checked_prefix(root_path)

    def token(self) -> str | None:
        """The bearer token that requests must carry; None on loopback if none is set."""
        token = os.environ.get(TOKEN_VARIABLE) or None
        if token is None and not set(self.hosts) <= set(LOOPBACK):
            raise ValueError(
                f"hosts {self.hosts} are not loopback alone: set {TOKEN_VARIABLE} to a secret, "
                "which clients then send as their bearer token"
            )
        return token
