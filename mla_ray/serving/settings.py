"""Settings of a server: the `args` of a Serve config file and the options of `mla serve`."""

import os

from limits import parse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mla_ray.serving.public_path import checked_prefix
from mla_ray.serving.schemas import TOKEN_VARIABLE

LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]


class Settings(BaseModel):
    """Settings of a server.

    The number of replicas is set per deployment. Secrets come from environment variables.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    native: str = Field(
        default="emoji-clip",
        description="Native: emoji-clip, a folder, hf-hub:OWNER/MODEL, or an open_clip model and "
        "tag such as ViT-B-32/openai.",
    )
    packs: str = Field(default="packs", description="Pack store: a folder or an fsspec URL.")
    index: str = Field(
        default="edge:index",
        description="Index: edge:FOLDER, http(s)://HOST:PORT or grpc://HOST.",
    )
    index_timeout_s: int = Field(
        default=5,
        ge=1,
        le=60,
        description="Time limit of one request to the Qdrant server of the index in seconds. The "
        "server then answers 503 until the index answers again.",
    )
    pictures: str | None = Field(
        default=None, description="Picture store of the search page: a folder or fsspec URL."
    )
    hosts: list[str] = Field(
        default=LOOPBACK, description="Host names that the server answers to; * accepts any name."
    )
    root_path: str = Field(
        default="",
        description="Path prefix under which a reverse proxy publishes the server, such as "
        "/search. If empty, the header X-Forwarded-Prefix sets it.",
    )
    max_packs: int = Field(
        default=32, ge=1, description="Maximum number of packs in memory per text encoder."
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="PyTorch threads of one encoder. 0 uses the cores that Ray assigned to it, or "
        "all cores if Ray assigned less than one.",
    )
    scan_every_s: float = Field(
        default=1.0, gt=0, le=5, description="Seconds between two scans of the pack store."
    )
    max_batch: int = Field(
        default=128,
        ge=1,
        description="Maximum number of texts in one call to a text encoder. A single request "
        "with more texts is not split.",
    )
    max_images: int = Field(
        default=8, ge=1, le=64, description="Maximum number of images in one call to an encoder."
    )
    calls: int = Field(
        default=1,
        ge=1,
        description="Maximum number of concurrent batches of one ingress for each replica that "
        "encodes or searches.",
    )
    max_queue: int = Field(
        default=2048,
        ge=1,
        description="Maximum number of texts that wait. The server answers 503 to further texts.",
    )
    max_wait_s: float = Field(
        default=2,
        gt=0,
        description="Maximum time in seconds that a text or image would wait for an encoder. The "
        "server answers 503 to requests that would wait longer, and says when to try again.",
    )
    max_in_flight: int = Field(
        default=1024,
        ge=1,
        description="Maximum number of concurrent requests. The server answers 503 to further "
        "requests.",
    )
    timeout_s: float = Field(
        default=30,
        gt=0,
        description="Time limit of one request in seconds. The server then answers 504. A caption "
        "ingest as a whole has no limit.",
    )
    rate: str | None = Field(
        default=None,
        description="Rate limit of one client, such as 100/second. The server answers 429 above "
        "it.",
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
        """Return the bearer token that requests must carry.

        Returns:
            The value of `MLA_API_TOKEN`, or None if it is unset.

        Raises:
            ValueError: `MLA_API_TOKEN` is unset and `hosts` has a name other than loopback.

        """
        token = os.environ.get(TOKEN_VARIABLE) or None
        if token is None and not set(self.hosts) <= set(LOOPBACK):
            raise ValueError(
                f"hosts {self.hosts} include names other than loopback: set {TOKEN_VARIABLE} to a "
                "secret, which clients then send as their bearer token"
            )
        return token
