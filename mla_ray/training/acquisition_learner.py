"""Learner for language acquisition in the two stages of MLA (paper, section 3.3).

The trained weights are one embedding block, which all languages of a run share, and a set of
acquirers per language. Each batch contains a single language.

Shapes: B batch of this worker, E joint embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor, nn
from upath import UPath

from mla_ray.data.blocks import Examples, ShuffledTable
from mla_ray.data.feature_store import FeatureStore, Kind
from mla_ray.data.sampling import BatchSampler, language_of_step
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import Ids, LanguageTokenizer
from mla_ray.packs.card import make_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import as_path, read_bytes, write_json
from mla_ray.training.batch_loss import encode_in_two_passes, le_batch_loss, nlt_batch_loss
from mla_ray.training.config import AcquireConfig, Stage
from mla_ray.training.distributed import all_reduce, rank
from mla_ray.training.driver import Driver, Figures
from mla_ray.training.held_out import held_out_ar
from mla_ray.training.learner import Batches, Learner
from mla_ray.training.loop import DONE, accelerator_for
from mla_ray.training.loop import train as run_loop
from mla_ray.training.metrics import STAGES
from mla_ray.training.optimizer import Optimizer
from mla_ray.training.run_spec import GOES_ON, KIND, RunSpec


@dataclass(frozen=True)
class PreparedRun:
    """Job of the workers of a prepared run.

    Attributes:
        run: Run folder.
        tables: Folder of the prepared `data/`: `run`, or a folder that several runs share.
        store: Root folder of the feature stores.
        spec: Content of `run.json`, and the rows and files of the tables by language.

    """

    run: str
    tables: str
    store: str
    spec: RunSpec

    @property
    def config(self) -> AcquireConfig:
        """Settings of the run."""
        return AcquireConfig.model_validate(self.spec["config"])


def train(
    job: PreparedRun,
    driver: Driver = Driver(),
    *,
    cpu: bool = True,
    native: Native | None = None,
) -> bool:
    """Run both stages, starting from the last valid checkpoint.

    Writes packs to `run/packs/<stage>/<language>`. At the end, `run/done.json` names the final
    packs.

    Args:
        job: Prepared run.
        driver: Callbacks to the process that started the training.
        cpu: Train on the CPU even if there is a GPU.
        native: Native of the run, if this process has loaded it.

    Returns:
        False if a stop request ended the training early.

    Raises:
        Diverged: The loss is not finite. All workers raise it at the same step.
        ValueError: The native model is not the one that the run began with.

    """
    accelerator = accelerator_for(job.config, cpu)
    device = str(accelerator.device)
    native = native.on(device) if native else Native.load(job.spec["native"], device)
    return run_loop(AcquisitionLearner(job, native), accelerator, driver)


@dataclass(frozen=True)
class LanguageBatch:
    """Batch of all workers, with its stage and language."""

    stage: str
    language: str
    examples: Examples


class StageBatches:
    """Batches of a stage by step, over the languages that have tables for it."""

    def __init__(
        self, stage: str, samplers: dict[str, BatchSampler], languages: Sequence[str], seed: int
    ) -> None:
        self.stage, self.samplers, self.languages, self.seed = stage, samplers, languages, seed

    def __getitem__(self, step: int) -> LanguageBatch:
        language, number = language_of_step(self.languages, step, self.seed)
        return LanguageBatch(self.stage, language, self.samplers[language][number])


class AcquisitionLearner(Learner[LanguageBatch]):
    """Learner that trains the languages of a run.

    Args:
        job: Prepared run.
        native: Native model of the run, on the training device. Its weights do not change.

    Raises:
        ValueError: The native model is not the one that the run began with.

    """

    stages = STAGES
    config: AcquireConfig

    def __init__(self, job: PreparedRun, native: Native) -> None:
        config = job.config
        super().__init__(as_path(job.run), config, config.held_out, native.device)
        self.job, self.data = job, as_path(job.tables) / "data"
        self.native = native
        if not native.goes_by(job.spec["fingerprint"], self.run, GOES_ON):
            raise ValueError(
                f"native {job.spec['native']!r} here is not the one the run began with"
            )
        # Factor of the cosines in the LE loss. Read once: on a GPU, each reading waits for it.
        self.logit_scale = (
            native.logit_scale if config.temperature == "native" else 1 / config.temperature
        )
        self.languages = sorted(job.spec["tables"])
        init = load(read_bytes(self.data / "init.safetensors"))
        self.tokens: npt.NDArray[np.int32] = init["tokens"].numpy()
        self.own_rows = {language: init[f"own/{language}"] for language in self.languages}
        self.tokenizer = Tokenizer.from_buffer(read_bytes(self.data / "tokenizer.json"))
        self.encoders = initial_encoders(init, self.native, self.languages, config)
        self.modules = nn.ModuleDict(dict(self.encoders)).to(self.device)
        self.new_optimizer()

    def new_optimizer(self) -> None:
        """Create a fresh optimizer. Every stage begins with one."""
        rows = self.encoders[self.languages[0]].embedding.rows.weight
        self.optimizer = Optimizer(
            [weight for weight in self.trained_weights() if weight is not rows],
            self.config.weight_decay,
            rows,
        )

    def trained_weights(self) -> list[nn.Parameter]:
        """Return every parameter once. All languages share the embedding block."""
        return list(self.modules.parameters())

    # -- batches and losses --

    def settings(self, stage: str) -> Stage:
        """Return the settings of a stage."""
        settings: Stage = getattr(self.config, stage)
        return settings

    def batches(self, stage: str) -> Batches[LanguageBatch]:
        """Return the batches of a stage, over the languages that have tables for it."""
        config, samplers = self.config, {}
        for language in self.languages:
            if tables := self.tables(language, stage):
                samplers[language] = BatchSampler(tables, self.settings(stage).batch, config.seed)
        return StageBatches(stage, samplers, list(samplers), config.seed)

    def loss(self, batch: LanguageBatch) -> Tensor:
        """Return the NLT or LE loss of a batch, with its autograd graph."""
        encode = partial(self.encode, batch.language)
        if batch.stage == "nlt":
            return nlt_batch_loss(encode, batch.examples, self.device)
        return le_batch_loss(encode, batch.examples, self.logit_scale, self.device)

    def loss_of_all_workers(self, loss: Tensor) -> float:
        """Return the loss of the whole batch.

        The NLT losses of the workers are summed. Every worker already has the whole LE loss.
        """
        figure = loss.detach().clone()
        if self.stage == "nlt":
            all_reduce([figure])
        return float(figure)

    def language(self, batch: LanguageBatch) -> str:
        """Return the language of a batch."""
        return batch.language

    def encode(self, language: str, texts: Sequence[Ids]) -> Tensor:
        """Encode token ids to features `[B, E]`, with their autograd graph."""
        return encode_in_two_passes(self.encoders[language], texts, self.device)

    def tables(self, language: str, stage: str) -> list[ShuffledTable]:
        """Return the tables from which the batches of a language and stage are drawn."""
        store = self.feature_store(KIND[stage])
        names = sorted(n for n in self.job.spec["tables"][language] if n.startswith(stage))
        row_of = self.tokenizer_of(np.arange(len(self.tokens))).row_of
        return [
            ShuffledTable(self.data / language / name, row_of, store, self.config.seed, number)
            for number, name in enumerate(names)
        ]

    def feature_store(self, kind: Kind) -> FeatureStore:
        """Return the store of the native model's features of one kind."""
        native = self.native
        return FeatureStore(
            as_path(self.job.store), native.fingerprint, kind, native.fingerprint_v1
        )

    def tokenizer_of(self, rows: npt.NDArray[np.int64]) -> LanguageTokenizer:
        """Return a tokenizer for an embedding with these rows of the shared one, in this order."""
        return LanguageTokenizer(self.tokenizer, self.tokens[rows], self.native.text.context_length)

    def held_out_ar(self) -> float:
        """Return held-out AR in percent, averaged over the languages."""
        store = self.feature_store(KIND["le" if self.config.held_out.of == "captions" else "nlt"])
        return float(
            np.mean(
                [
                    held_out_ar(self.encoders[language], self.data / language, store)
                    for language in self.languages
                ]
            )
        )

    # -- stages --

    def begin(self) -> None:
        """Save the untrained packs as stage `fresh`."""
        self.save_packs("fresh")

    def end_stage(self) -> None:
        """Save the packs of the stage on rank 0, and go to the next stage."""
        stage = self.stages[self.stage_index]
        if self.settings(stage).steps and rank() == 0:
            self.save_packs(stage)
        self.steps_before += self.settings(stage).steps
        self.stage_index, self.step, self.early_stopping.wait = self.stage_index + 1, 0, 0
        self.new_optimizer()

    def finish(self) -> None:
        """Write `done.json`, which names the final packs.

        It is written last, so every pack that it names is complete.
        """
        stage = next((s for s in reversed(self.stages) if self.settings(s).steps), "fresh")
        packs = {language: f"packs/{stage}/{language}" for language in self.languages}
        write_json(self.run / DONE, {"packs": packs, **self.figures()})

    # -- saving --

    def weights(self) -> dict[str, Tensor]:
        """Return every parameter by name."""
        return dict(self.modules.named_parameters())

    def figures(self) -> Figures:
        """Return the position in the training and, after an evaluation, the AR."""
        done = self.steps_before + self.step
        steps = sum(self.settings(stage).steps for stage in self.stages)
        figures: Figures = {"stage": self.stage_index, "step": self.step, "total_step": done}
        figures["percent"] = 100 * done // max(1, steps)
        if self.early_stopping.best_weights:
            best = self.early_stopping.best
            figures |= {"AR": self.early_stopping.latest, "best_AR": best}
        return figures

    def params(self) -> dict[str, Any]:
        """Return the native model's name and the settings, for MLflow."""
        return {"native": self.job.spec["native"], **self.config.model_dump()}

    def save(self) -> UPath:
        """Write a checkpoint and return its folder."""
        tensors = {f"weights/{name}": weight for name, weight in self.weights().items()}
        tensors |= {f"optimizer/{n}": t for n, t in self.optimizer.state_dict().items()}
        tensors |= {f"best/{n}": w for n, w in self.early_stopping.best_weights.items()}
        state = {"stage": self.stage_index, "step": self.step, "before": self.steps_before}
        # `stage_index` makes the end of a stage a later checkpoint than its last step.
        number = self.steps_before + self.step + self.stage_index
        best = self.early_stopping.state_dict()
        return self.checkpoints.save(number, tensors, state | {"best": best})

    def resume(self) -> bool:
        """Load the newest valid checkpoint. Return False if there is none."""
        checkpoint = self.checkpoints.load(str(self.device))
        if checkpoint is None:
            return False
        with torch.no_grad():
            saved = checkpoint.part("weights")
            for name, weight in self.weights().items():
                weight.copy_(saved[name])
        self.stage_index, self.step = checkpoint.state["stage"], checkpoint.state["step"]
        self.steps_before = checkpoint.state["before"]
        self.early_stopping.load_state_dict(checkpoint.state["best"], checkpoint.part("best"))
        if optimizer := checkpoint.part("optimizer"):
            self.optimizer.load_state_dict(optimizer)
        return True

    def save_packs(self, stage: str) -> None:
        """Write a pack for each language, with the embedding rows that it uses in float16.

        Args:
            stage: Stage that the packs come from, or `fresh` for untrained ones.

        """
        done = self.stages[: self.stages.index(stage) + 1] if stage in self.stages else ()
        common = {"weight_decay": self.config.weight_decay, "seed": self.config.seed}
        metrics: dict[str, float] = {}
        if self.early_stopping.best_weights:
            best = self.early_stopping
            metrics = {"held_out_AR": round(best.best, 2), "step": best.best_step}
        for language in self.languages:
            encoder = with_own_rows(self.encoders[language], self.own_rows[language])
            card = make_card(
                self.native,
                language,
                encoder,
                stages={name: self.settings(name).model_dump() | common for name in done},
                data=self.job.spec["tables"][language],
                started_from=(self.job.spec.get("start") or {}).get(language),
                metrics=metrics,
            )
            tokenizer = self.tokenizer_of(self.own_rows[language].numpy())
            pack = LanguagePack(card, encoder, tokenizer).with_half_rows()
            pack.save(self.run / "packs" / stage / language)


def initial_encoders(
    init: dict[str, Tensor], native: Native, languages: Sequence[str], config: AcquireConfig
) -> dict[str, LanguageEncoder]:
    """Build the encoders of a run before its first step. They share one embedding block.

    Args:
        init: Initial rows and, if the run starts from a pack, the pack's weights. They come from
            `training.prepare`.
        native: Frozen native model.
        languages: Languages of the run.
        config: Settings. The hidden size of a start pack overrides `config.hidden`.

    Returns:
        Encoder by language.

    """
    start = {n.removeprefix("start/"): w for n, w in init.items() if n.startswith("start/")}
    hidden = config.hidden or native.text.width // 2
    if start:
        hidden = len(start["acquirers.0.down.bias"])
    torch.manual_seed(config.seed)
    embedding = EmbeddingBlock(init["rows"], native.text)
    encoders = {name: LanguageEncoder(native.text, embedding, hidden) for name in languages}
    if start:
        encoders[languages[0]].load_state_dict({"embedding.rows.weight": init["rows"], **start})
    for encoder in encoders.values():
        encoder.acquirers.requires_grad_(config.acquirers)
        encoder.activation_checkpointing = config.activation_checkpointing
    return encoders


def with_own_rows(shared: LanguageEncoder, rows: Tensor) -> LanguageEncoder:
    """Copy an encoder to the CPU, with only these rows of the shared embedding."""
    weight = shared.embedding.rows.weight.detach()
    own_rows = weight[rows.to(weight.device)].cpu()
    own = LanguageEncoder(shared.tower, EmbeddingBlock(own_rows, shared.tower), shared.hidden)
    own.embedding.linear.load_state_dict(shared.embedding.linear.state_dict())
    own.acquirers.load_state_dict(shared.acquirers.state_dict())
    return own
