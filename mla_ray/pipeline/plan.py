"""Plans: languages, what they are acquired from, on what part of a cluster, and to where."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.datasets.emoji_tables import table_files
from mla_ray.model.language import Language
from mla_ray.runtime.progress import Report
from mla_ray.runtime.storage import as_path
from mla_ray.training.config import AcquireConfig
from mla_ray.training.encode_features import Encoders
from mla_ray.training.workers import Workers

TEST = "test"
"""Split that packs are measured on."""


class BasePlan(BaseModel):
    """Languages, what they are acquired from, and on what part of a cluster. Paths may be URLs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    languages: list[Language] = Field(min_length=1)
    """BCP-47 codes."""
    native: str = "emoji-clip"
    """A bundled name, a folder that every node has, `hf-hub:owner/model` or `ViT-B-32/openai`."""
    dataset: Literal["emoji"] | None = None
    """Tables made from free data instead of `pairs` and `captions`."""
    pairs: list[str] = []
    """Translation tables; `{language}` in a name stands for the code."""
    captions: str | None = None
    """A caption table; without it a language is acquired from text alone."""
    skip_invalid: bool = False
    """Leave bad rows and images out, and count them."""
    data: str = "data"
    """Data sets and frozen features."""
    workers: str = "1"
    """Ray Train workers of a language: `2`, or `1:4` for as many as there is room for."""
    worker_cpus: float | None = Field(default=None, gt=0)
    """Of each; an equal share of the cluster's cores if not given."""
    worker_gpus: float | None = Field(default=None, ge=0)
    """Of each. A cluster whose GPU nodes have yet to appear has to be asked for them."""
    encoders: int | None = Field(default=None, ge=1)
    """Most actors that encode; one for each GPU, or core, if not given."""
    encoder_cpus: float = Field(default=1.0, gt=0)
    encoder_gpus: float | None = Field(default=None, ge=0)
    """Of each; a fraction puts several on a GPU."""

    @model_validator(mode="after")
    def _has_tables(self) -> Self:
        if (self.dataset is None) == (not self.pairs):
            raise ValueError("give either `pairs` or `dataset`")
        if self.dataset and self.captions:
            raise ValueError("`dataset` brings its own captions; leave `captions` out")
        if len(set(self.languages)) < len(self.languages):
            raise ValueError("`languages` names one twice")
        for name in (*self.pairs, self.captions or ""):
            try:
                name.format(language="de")
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"{name!r}: only {{language}} can stand in braces in a name"
                ) from error
        if not Workers.parse(self.workers).count:
            raise ValueError("workers are a number such as 2, or a range such as 1:4, for a plan")
        return self

    def corpus(self, language: str, report: Report, begun: UPath | None = None) -> Corpus:
        """The tables of a language; those of a `dataset` are made unless they are there.

        `begun` is a file that names what a run is made of, if it has begun: the run keeps it.
        """
        if self.dataset == "emoji":
            tables = table_files(language, as_path(self.data), report, begun)
            return Corpus(language, [str(table) for table in tables[1:]], str(tables[0]))
        pairs = [name.format(language=language) for name in self.pairs]
        captions = self.captions.format(language=language) if self.captions else None
        return Corpus(language, pairs, captions)

    def of_workers(self) -> Workers:
        asked = Workers.parse(self.workers)
        return Workers(asked.count, asked.most, self.worker_cpus, self.worker_gpus)

    def of_encoders(self) -> Encoders:
        return Encoders(self.encoders, self.encoder_cpus, self.encoder_gpus)


class Plan(BasePlan):
    """What is to be acquired, and where everything goes."""

    run: str = "runs/pipeline"
    """A run folder for each language, and the figures."""
    packs: str | None = None
    """Pack store; `packs` in `run` if not given."""
    index: str | None = None
    """Qdrant's URL or `edge:FOLDER`; without it nothing is indexed."""
    train: AcquireConfig = AcquireConfig()
    parallel: int = Field(default=1, ge=1)
    """Languages at a time."""
