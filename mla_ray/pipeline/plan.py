"""Plans: languages, their training data, the resources they use, and where results are stored."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.datasets.emoji_tables import table_files
from mla_ray.index.settings import IndexSettings
from mla_ray.model.language import Language
from mla_ray.runtime.progress import Report
from mla_ray.runtime.storage import as_path
from mla_ray.training.config import AcquireConfig
from mla_ray.training.encode_features import Encoders
from mla_ray.training.workers import Workers

TEST = "test"
"""Split that packs are evaluated on."""


class BasePlan(BaseModel):
    """Languages, their training data and the cluster resources they use. Paths may be URLs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    languages: list[Language] = Field(min_length=1)
    """BCP-47 codes."""
    native: str = "emoji-clip"
    """A bundled name, a folder that every node has, `hf-hub:owner/model` or `ViT-B-32/openai`."""
    dataset: Literal["emoji"] | None = None
    """Tables made from a free data set, instead of `pairs` and `captions`."""
    pairs: list[str] = []
    """Translation tables. `{language}` in a name is replaced by the language's code."""
    captions: str | None = None
    """Caption table. Without one, languages are trained on text only."""
    skip_invalid: bool = False
    """Skip and count invalid rows and images, instead of stopping with an error."""
    data: str = "data"
    """Folder of data sets and frozen features."""
    workers: str = "1"
    """Ray Train workers per language: `2`, or `1:4` for at least 1 and at most 4 (elastic)."""
    worker_cpus: float | None = Field(default=None, gt=0)
    """Cores per worker. By default each worker gets an equal share of the cluster."""
    worker_gpus: float | None = Field(default=None, ge=0)
    """GPUs per worker. By default 1 if the cluster has enough GPUs now; set it if GPU nodes start
    only on demand."""
    encoders: int | None = Field(default=None, ge=1)
    """Most actors that compute features. By default as many as the cluster's GPUs, or cores,
    allow; and none for little work, such as 50,000 texts of emoji-clip, on one machine without a
    GPU."""
    encoder_cpus: float = Field(default=1.0, gt=0)
    """Cores per encoding actor."""
    encoder_gpus: float | None = Field(default=None, ge=0)
    """GPUs per encoding actor. A fraction puts several actors on one GPU. By default 1 if the
    cluster has GPUs now, else 0."""

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
        """Return the tables of a language; create the tables of a `dataset` if they are missing.

        Args:
            language: BCP-47 code.
            report: Receives progress while tables are created.
            begun: The `run.json` of a run. A run that has begun keeps the tables named in it.

        """
        if self.dataset == "emoji":
            tables = table_files(language, as_path(self.data), report, begun)
            return Corpus(language, [str(table) for table in tables[1:]], str(tables[0]))
        pairs = [name.format(language=language) for name in self.pairs]
        captions = self.captions.format(language=language) if self.captions else None
        return Corpus(language, pairs, captions)

    def of_workers(self) -> Workers:
        """Return the Ray Train workers of one language."""
        asked = Workers.parse(self.workers)
        return Workers(asked.count, asked.most, self.worker_cpus, self.worker_gpus)

    def of_encoders(self) -> Encoders:
        """Return the actors that compute features."""
        return Encoders(self.encoders, self.encoder_cpus, self.encoder_gpus)


class Plan(BasePlan):
    """Languages to train, their data and settings, and where results are stored."""

    run: str = "runs/pipeline"
    """Folder with one run folder per language, and `result.json`."""
    packs: str | None = None
    """Pack store. By default `packs` in `run`."""
    index: str | None = None
    """URL of a Qdrant server, with `?prefix=NAME` for one of several projects on it, or
    `edge:FOLDER`. Without it nothing is indexed."""
    index_settings: IndexSettings = IndexSettings()
    """Settings of collections that are created."""
    train: AcquireConfig = AcquireConfig()
    """Training settings."""
    parallel: int = Field(default=1, ge=1)
    """Languages that are processed at the same time."""
