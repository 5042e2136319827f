"""The two stages of MLA (paper, section 3.3), step by step: what every worker runs.

Knows torch.distributed and the run folder, but not Ray: `mla_ray.training.trainer` runs it on a
cluster, and a script may run it alone. English targets and image features come from feature stores;
no tower but the frozen text blocks runs here. Same seed, data and number of workers: same bytes,
however often it was interrupted.

Shapes: B batch of this worker, G batch of all workers, E joint embedding size.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor, nn
from upath import UPath

from mla_ray.data.blocks import Table, read_parquet
from mla_ray.data.feature_store import BATCH, Features, FeatureStore, Kind
from mla_ray.data.sampling import Batches, turn
from mla_ray.evaluation.recall import rank
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder
from mla_ray.model.native import Native
from mla_ray.model.objectives import le_loss, nlt_loss
from mla_ray.model.tokenizers import Ids, LanguageTokenizer, pad
from mla_ray.packs.card import make_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import at, read_bytes, write_json
from mla_ray.training.checkpoints import Checkpoints
from mla_ray.training.config import AcquireConfig, Stage, Training
from mla_ray.training.metrics import STAGES, Row, Watch
from mla_ray.training.optimizer import Optimizer, learning_rate
from mla_ray.training.prepare import GOES_ON, HELD_OUT, KIND

ASK = 10
"""Steps between two looks at what is wished; of metrics, too."""
DONE = "done.json"


class Wish(IntEnum):
    """What somebody outside wants of a training."""

    GO = 0
    SAVE = 1
    """A checkpoint now: a node is about to go."""
    STOP = 2
    """A checkpoint now, and an end."""


class Diverged(ValueError):
    """The loss is no longer a number. Training goes wrong the same way however often it is run."""


@dataclass(frozen=True)
class Job:
    """A prepared run.

    Attributes:
        run: its folder.
        tables: where `training.prepare` put `data/`: `run`, or a folder that several runs share.
        store: root of the feature stores.
        spec: its run.json: native, fingerprint, config, data by language.

    """

    run: str
    tables: str
    store: str
    spec: dict[str, Any]

    @property
    def config(self) -> AcquireConfig:
        return AcquireConfig.model_validate(self.spec["config"])


@dataclass(frozen=True)
class Outside:
    """How a training speaks with whoever started it; every worker has one.

    Attributes:
        saved: called on every worker after each checkpoint with figures and, on rank 0, its folder.
        wish: asked on every worker every `ASK` steps; they must all answer the same.
        send: given every row of metrics, on rank 0.
        labels: of the metrics.

    """

    saved: Callable[[dict[str, Any], UPath | None], None] = lambda figures, folder: None
    wish: Callable[[], Wish] = lambda: Wish.GO
    send: Callable[[dict[str, Any]], None] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def train(job: Job, outside: Outside = Outside(), *, cpu: bool = True) -> bool:
    """Both stages from the last sound checkpoint on; False if it was stopped on the way.

    Leaves packs in `run/packs/<stage>/<language>` and, at the end, says which are the result in
    `run/done.json`.

    Raises:
        Diverged: the loss is not finite; on all workers at the same step.

    """
    config = job.config
    accelerator = accelerator_of(config, cpu)
    state = State(job, config, accelerator.device)
    leader = accelerator.is_main_process
    resumed = state.resume()
    if leader and not resumed:
        state.save_packs("fresh")
    watch = None
    if leader:
        place = state.place() if resumed else None
        watch = Watch(
            at(job.run),
            outside.labels,
            outside.send,
            resume_at=place,
            params={"native": job.spec["native"], **config.model_dump()},
        )
    finished = False
    try:
        finished = run_stages(state, config, accelerator, outside, watch)
    finally:
        if watch:
            watch.close(finished)
    return finished


def accelerator_of(config: Training, cpu: bool) -> Accelerator:
    """Accelerate in the precision of the settings."""
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and not cpu and torch.cuda.is_bf16_supported()
    )
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no")


def run_stages(
    state: "State",
    config: AcquireConfig,
    accelerator: Accelerator,
    outside: Outside,
    watch: Watch | None,
) -> bool:
    meter = _Meter()
    while state.stage < len(STAGES):
        name = STAGES[state.stage]
        stage: Stage = getattr(config, name)
        loss_of = state.objective(name)
        while state.step < stage.steps:
            with accelerator.autocast():
                loss, language = loss_of(state.step)
            accelerator.backward(loss)
            lr = learning_rate(stage, config.warmup, state.step)
            norm = state.optimizer.step(lr)
            state.step += 1
            meter.texts += stage.batch
            last = state.step == stage.steps
            if state.step % ASK == 0 or last:
                figures = {"loss": state.whole(name, loss), "lr": lr, "gradient_norm": norm}
                texts = meter.texts
                figures |= meter.read(stage, state.step)
                if watch:
                    watch.add(Row(name, state.step, stage.steps, language, figures, texts))
                if not math.isfinite(figures["loss"]):
                    raise Diverged(
                        f"{name} step {state.step}: the loss is {figures['loss']}; make {name}.lr "
                        f"({stage.lr:g}) smaller, or warmup longer"
                    )
            if config.held_out.every and (state.step % config.held_out.every == 0 or last):
                figures = {"AR": state.evaluate(), "best_AR": state.best_ar}
                if watch:
                    watch.add(Row(name, state.step, stage.steps, "", figures))
                meter.start()
                if state.stage_is_over():
                    break
            wish = outside.wish() if state.step % ASK == 0 else Wish.GO
            due = state.step % config.checkpoint_every == 0 and not last
            if due or wish is not Wish.GO:
                _save(state, outside, watch)
                meter.start()
            if wish is Wish.STOP:
                return False
        state.take_best()
        if stage.steps and accelerator.is_main_process:
            state.save_packs(name)
        state.next_stage()
        if stage.steps:
            _save(state, outside, watch)
    if accelerator.is_main_process:
        state.finish()
    return True


def _save(state: "State", outside: Outside, watch: Watch | None) -> None:
    """A checkpoint; every worker comes here, rank 0 writes it."""
    folder = None
    if watch:
        watch.flush()
        folder = state.save()
    outside.saved(state.figures(), folder)


class _Meter:
    """Texts a second since it was last read; what is between two steps does not count."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.texts, self.began = 0, time.perf_counter()

    def read(self, stage: Stage, step: int) -> dict[str, float]:
        rate = self.texts / max(time.perf_counter() - self.began, 1e-9)
        self.start()
        return {"texts/s": rate, "eta_s": (stage.steps - step) * stage.batch / rate}


class State:
    """What trains, its optimizer, where in the stages it is, and the best it was."""

    def __init__(
        self,
        job: Job,
        config: AcquireConfig,
        device: torch.device,
        native: Native | None = None,
    ) -> None:
        self.job, self.config, self.device = job, config, device
        spec = job.spec
        self.run, self.store = at(job.run), at(job.store)
        self.data = at(job.tables) / "data"
        # One that is given trains, too: ablations do that, in a subclass.
        self.native = native or Native.load(spec["native"], str(device))
        if not self.native.goes_by(spec["fingerprint"], self.run, GOES_ON):
            raise ValueError(f"native {spec['native']!r} here is not the one the run began with")
        self.languages: list[str] = sorted(spec["tables"])
        init = load(read_bytes(self.data / "init.safetensors"))
        self.tokens = init["tokens"].numpy()
        self.own = {language: init[f"own/{language}"] for language in self.languages}
        tokenizer = read_bytes(self.data / "tokenizer.json")
        self.tokenizer = Tokenizer.from_buffer(tokenizer)
        tower = self.native.text
        start = {n.removeprefix("start/"): w for n, w in init.items() if n.startswith("start/")}
        self.hidden = config.hidden or tower.width // 2
        if start:  # a pack's, whatever the settings say
            self.hidden = len(start["acquirers.0.down.bias"])
        torch.manual_seed(config.seed)
        embedding = EmbeddingBlock(init["rows"], tower)
        self.encoders = nn.ModuleDict()
        for language in self.languages:
            self.encoders[language] = LanguageEncoder(tower, embedding, self.hidden)
        if start:
            encoder = self.encoders[self.languages[0]]
            encoder.load_state_dict({"embedding.rows.weight": init["rows"], **start})
        for encoder in self.encoders.values():
            encoder.acquirers.requires_grad_(config.acquirers)
        self.encoders.to(device)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.checkpoints = Checkpoints(self.run / "checkpoints")
        self.stage = self.step = self.before = 0
        self.ar = self.best_ar = -1.0
        self.best_step = self.since_best = 0
        self.best: dict[str, Tensor] = {}
        self.new_optimizer()

    def new_optimizer(self) -> None:
        rows = self.encoders[self.languages[0]].embedding.rows.weight  # type: ignore[union-attr]
        dense = {n: w for n, w in self.encoders.named_parameters() if w is not rows}
        self.optimizer = Optimizer(dense, rows, self.config)  # type: ignore[arg-type]

    # -- batches --

    def objective(self, name: str) -> Callable[[int], tuple[Tensor, str]]:
        """A function from a step of this stage to the loss of this worker's share, with graph.

        The shares' losses add up to the loss of the whole batch, so that summed gradients are its
        gradients however many workers there are.
        """
        stage: Stage = getattr(self.config, name)
        tables = {language: self._tables(language, name) for language in self.languages}
        languages = [language for language in self.languages if tables[language]]
        batches = {
            language: Batches(tables[language], stage.batch, self.config.seed)
            for language in languages
        }

        def loss_of(step: int) -> tuple[Tensor, str]:
            language, number = turn(languages, step, self.config.seed)
            batch = batches[language][number]
            mine = batch[slice(self.rank, None, self.world)]
            text_BE = self._encode(language, mine.ids)
            if name == "nlt":
                target_BE = torch.from_numpy(mine.frozen).to(self.device)
                share = len(mine.ids) / len(batch.ids)
                return nlt_loss(text_BE, target_BE) * share, language
            shares = [np.arange(len(batch.ids))[r :: self.world] for r in range(self.world)]
            whole = batch[np.concatenate(shares)]
            same = groups(whole.key.tolist(), whole.caption.tolist())
            loss = le_loss(
                gather(text_BE.float(), self.rank, [len(share) for share in shares]),
                torch.from_numpy(whole.frozen).to(self.device),
                torch.from_numpy(same).to(self.device),
                self._logit_scale(),
            )
            # Every worker sees the whole loss but differentiates by its own texts only, so summed
            # gradients are the whole's.
            return loss, language

        return loss_of

    def whole(self, name: str, loss: Tensor) -> float:
        """The loss of the whole batch: NLT's is shared out, LE's every worker has."""
        figure = loss.detach().clone()
        if name == "nlt" and self.world > 1:
            dist.all_reduce(figure)
        return float(figure)

    def _logit_scale(self) -> float:
        if self.config.temperature == "native":
            return self.native.logit_scale
        return 1 / self.config.temperature

    def _encode(self, language: str, texts: Sequence[Ids]) -> Tensor:
        """Features [B, E], with graph, of a batch's token ids.

        In two passes where that spares padding: beside dictionary words stand long captions.
        """
        tower = self.native.text
        length = tower.context_length if tower.fixed_length else None
        lengths = np.array([len(ids) for ids in texts])
        shortest_first = np.argsort(lengths, kind="stable")
        cuts = [0, len(texts)] if length else [0, *cut(lengths[shortest_first]), len(texts)]
        parts = []
        for start, end in pairwise(cuts):
            ids_BL, length_B = pad([texts[row] for row in shortest_first[start:end]], length)
            parts.append(self.encoders[language](ids_BL.to(self.device), length_B.to(self.device)))
        return torch.cat(parts)[torch.from_numpy(np.argsort(shortest_first)).to(self.device)]

    def _tables(self, language: str, stage: str) -> list[Table]:
        store = self._features(KIND[stage])  # type: ignore[index]
        names = sorted(n for n in self.job.spec["tables"][language] if n.startswith(stage))
        row_of = self.tokenizer_of(np.arange(len(self.tokens))).row_of
        folder = self.data / language
        return [
            Table(folder / name, row_of, store, self.config.seed, number)
            for number, name in enumerate(names)
        ]

    def _features(self, kind: Kind) -> FeatureStore:
        native = self.native
        return FeatureStore(self.store, native.fingerprint, kind, native.fingerprint_v1)

    def tokenizer_of(self, rows: npt.NDArray[np.int64]) -> LanguageTokenizer:
        return LanguageTokenizer(self.tokenizer, self.tokens[rows], self.native.text.context_length)

    # -- held-out figures --

    def evaluate(self) -> float:
        """AR on held-out rows, the mean over languages; keeps the weights if they are the best.

        Rank 0 does it, and all workers go on from the same figure.
        """
        figure = torch.zeros(1, dtype=torch.float64, device=self.device)
        if self.rank == 0:
            figure += float(np.mean([self._evaluate(language) for language in self.languages]))
        if self.world > 1:
            dist.broadcast(figure, 0)
        self.ar = ar = float(figure)
        if ar > self.best_ar:
            self.best_ar, self.best_step, self.since_best = ar, self.before + self.step, 0
            self.best = {n: w.detach().cpu().clone() for n, w in self._weights().items()}
        else:
            self.since_best += 1
        return ar

    @torch.inference_mode()
    def _evaluate(self, language: str) -> float:
        table = read_parquet(self.data / language / HELD_OUT / "rows.parquet")
        store = self._features(KIND["le" if self.config.held_out.of == "captions" else "nlt"])
        keys, of = np.unique(np.array(table["key"].to_pylist()), return_inverse=True)
        frozen = store.read(keys.tolist())
        sound = np.flatnonzero(np.isfinite(frozen[of, 0]))  # a broken image is no image
        if not len(sound):
            raise ValueError(f"{language!r}: no held-out row has a feature")
        column = table["ids"].to_pylist()
        ids = [np.array(column[row], np.int32) for row in sound]
        kept, of = np.unique(of[sound], return_inverse=True)
        encoder, tower = self.encoders[language], self.native.text
        length = tower.context_length if tower.fixed_length else None
        parts: list[Features] = []
        for start in range(0, len(ids), BATCH):
            ids_BL, length_B = pad(ids[start : start + BATCH], length)
            text_BE = encoder(ids_BL.to(self.device), length_B.to(self.device))
            parts.append(text_BE.float().cpu().numpy())
        return rank(np.concatenate(parts), frozen[kept], of.astype(np.int64)).recall().ar

    def stage_is_over(self) -> bool:
        """Whether the last evaluations brought no gain, and patience is at its end."""
        patience = self.config.held_out.patience
        return bool(patience) and self.since_best >= patience

    def take_best(self) -> None:
        """A stage ends with the best weights seen, which the next one goes on from."""
        if self.best and self.best_step != self.before + self.step:
            with torch.no_grad():
                for name, weight in self._weights().items():
                    weight.copy_(self.best[name])

    def next_stage(self) -> None:
        self.before += getattr(self.config, STAGES[self.stage]).steps
        self.stage, self.step, self.since_best = self.stage + 1, 0, 0
        self.new_optimizer()

    # -- saving --

    def place(self) -> tuple[str, int]:
        """Stage and step that were done last."""
        if self.stage < len(STAGES):
            return STAGES[self.stage], self.step
        return STAGES[-1], getattr(self.config, STAGES[-1]).steps

    def figures(self) -> dict[str, Any]:
        """Where it is, for who schedules it."""
        done, steps = self.before + self.step, sum(getattr(self.config, s).steps for s in STAGES)
        found = {"stage": self.stage, "step": self.step, "total_step": done}
        found["percent"] = 100 * done // max(1, steps)
        return found | ({"AR": self.ar, "best_AR": self.best_ar} if self.best else {})

    def save(self) -> UPath:
        tensors = {f"weights/{n}": w.detach() for n, w in self._weights().items()}
        tensors |= {f"optimizer/{n}": t.detach() for n, t in self.optimizer.state().items()}
        tensors |= {f"best/{n}": w for n, w in self.best.items()}
        state = {"stage": self.stage, "step": self.step, "before": self.before}
        best = {"ar": self.best_ar, "step": self.best_step, "since": self.since_best}
        best["last"] = self.ar
        # The end of a stage and the last step of it are two states.
        number = self.before + self.step + self.stage
        return self.checkpoints.save(number, tensors, state | {"best": best})

    def resume(self) -> bool:
        """Go to the newest sound checkpoint; False if there is none."""
        found = self.checkpoints.load(str(self.device))
        if found is None:
            return False
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "best": {}}
        for name, tensor in found.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(parts["weights"][name])
        self.stage, self.step = found.state["stage"], found.state["step"]
        self.before = found.state["before"]
        best = found.state["best"]
        self.best_ar, self.best_step, self.since_best = best["ar"], best["step"], best["since"]
        self.ar = best["last"]
        self.best = {name: weight.cpu() for name, weight in parts["best"].items()}
        if parts["optimizer"]:
            self.optimizer.load(parts["optimizer"])
        return True

    def _weights(self) -> dict[str, Tensor]:
        """Every trained weight once; the embedding is shared by all languages."""
        return dict(self.encoders.named_parameters())

    def save_packs(self, stage: str) -> None:
        """A pack for each language, with its own copy of the rows its corpus uses."""
        for language in self.languages:
            shared: LanguageEncoder = self.encoders[language]  # type: ignore[assignment]
            rows = self.own[language]
            weight = shared.embedding.rows.weight.detach()[rows.to(self.device)].cpu()
            embedding = EmbeddingBlock(weight, self.native.text)
            own = LanguageEncoder(self.native.text, embedding, self.hidden)
            own.embedding.linear.load_state_dict(shared.embedding.linear.state_dict())
            own.acquirers.load_state_dict(shared.acquirers.state_dict())
            done = STAGES[: STAGES.index(stage) + 1] if stage in STAGES else ()
            card = make_card(
                self.native,
                language,
                own,
                stages={
                    name: getattr(self.config, name).model_dump()
                    | {"weight_decay": self.config.weight_decay, "seed": self.config.seed}
                    for name in done
                },
                data=self.job.spec["tables"][language],
                started_from=(self.job.spec.get("start") or {}).get(language),
            )
            if self.best:
                held = {"held_out_AR": round(self.best_ar, 2), "step": self.best_step}
                card = card.model_copy(update={"metrics": held})
            pack = LanguagePack(card, own, self.tokenizer_of(rows.numpy()))
            pack.save(self.run / "packs" / stage / language)

    def finish(self) -> None:
        """Say which packs are the result. Written last, so who reads it finds them whole."""
        stage = next((s for s in reversed(STAGES) if getattr(self.config, s).steps), "fresh")
        packs = {language: f"packs/{stage}/{language}" for language in self.languages}
        write_json(self.run / DONE, {"packs": packs, **self.figures()})


def cut(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Where ascending lengths [B] are best parted in two; nowhere if that saves little padding."""
    count = len(lengths)
    if count < 2:
        return []
    before = np.arange(1, count)
    padded = before * lengths[:-1] + (count - before) * lengths[-1]
    if padded.min() > 0.85 * count * lengths[-1]:
        return []
    return [int(padded.argmin()) + 1]


def groups(images: Sequence[Any], captions: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Which rows of a batch are of one thing [G]: those that share an image or a caption.

    Transitively, within the batch. Inside a group nothing is a negative: Noto's and Fluent's apple
    are both right for "Apfel". Callers pass captions by their identity, so "apfel." is one, too.
    """
    parent: dict[tuple[str, Any], tuple[str, Any]] = {}

    def root(node: tuple[str, Any]) -> tuple[str, Any]:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent.setdefault(above, above)
            node = above
        return node

    for image, caption in zip(images, captions, strict=True):
        parent[root(("image", image))] = root(("caption", caption))
    number: dict[tuple[str, Any], int] = {}
    return np.array([number.setdefault(root(("image", i)), len(number)) for i in images])


def gather(mine_BE: Tensor, rank: int, sizes: Sequence[int]) -> Tensor:
    """Features of all workers [G, E], rank after rank; gradients flow to this worker's own only."""
    if len(sizes) == 1:
        return mine_BE
    longest = max(sizes)
    padded = mine_BE.detach().new_zeros(longest, mine_BE.shape[1])
    padded[: len(mine_BE)] = mine_BE.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    cut = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    cut[rank] = mine_BE
    return torch.cat(cut)
