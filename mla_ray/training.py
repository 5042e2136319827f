"""The two stages of MLA (paper, section 3.3) for one or more languages, on Ray Train.

`acquire` prepares a run folder and lets `TorchTrainer` run the stages over its workers:

    run.json                 what the run is made of; a run goes on only if it has not changed
    data/                    tokens of every text, initial rows, the tokenizer
    train/                   Ray Train's own, with the checkpoints
    packs/<stage>/<language> fresh, nlt, le
    metrics.jsonl, tensorboard/

English targets and image features come from feature stores; no tower but the frozen text blocks
runs in the loop. May import: everything below `cli`; the model code it calls knows nothing of Ray.

Shapes: B batch of this worker, G batch of all workers, E joint embedding size.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mla_ray import features
from mla_ray.alignment import aligned_rows
from mla_ray.config import AcquireConfig, Stage
from mla_ray.encoder import AcquisitionEncoder, EmbeddingBlock, learned_rows
from mla_ray.features import FeatureStore
from mla_ray.native import Native
from mla_ray.objectives import le_loss, nlt_loss
from mla_ray.optimizer import Optimizer, learning_rate
from mla_ray.pack import Pack, make_card
from mla_ray.sampling import Batches, turn
from mla_ray.tokenizers import LanguageTokenizer, from_hugging_face, learn, pad

STAGES = ("nlt", "le")


@dataclass(frozen=True)
class Corpus:
    """What one language is acquired from.

    Attributes:
        language: BCP-47.
        pairs: translation tables, each with an equal share of every NLT batch.
        captions: the training rows of a caption table, or None for NLT alone.

    """

    language: str
    pairs: Sequence[pa.Table]
    captions: pa.Table | None


@dataclass(frozen=True)
class Progress:
    """One figure for a progress bar: a phase, how far it is, and what to show beside it."""

    phase: str
    done: int
    total: int
    note: str = ""


Report = Callable[[Progress], None]


def acquire(
    native_name: str,
    corpora: Sequence[Corpus],
    config: AcquireConfig,
    run: Path,
    *,
    store: Path,
    workers: int = 1,
    resume: bool = False,
    report: Report = lambda progress: None,
) -> dict[str, Path]:
    """Acquire languages; returns the folder of each one's pack. The caller has started Ray.

    Args:
        native_name: as `Native.load` takes it.
        corpora: one for each language; several share one embedding while they train.
        config: settings of both stages.
        run: the run folder, made here.
        store: root of the feature stores.
        workers: Ray Train workers; batches and learning rates do not depend on how many.
        resume: go on with the run in `run`. Without it an existing run is refused.
        report: told of progress, for bars.

    Raises:
        FileExistsError: `run` exists and `resume` is off.
        ValueError: the run in `run` is of other data or settings, or a batch cannot be shared out.

    """
    for name in STAGES:
        batch = getattr(config, name).batch
        if batch % workers:
            raise ValueError(f"{name}.batch is {batch}, not a multiple of the {workers} workers")
    native = Native.load(native_name)
    spec = _spec(native, corpora, config, workers)
    _claim(run, spec, resume)
    last = run / "packs" / _last_stage(config)
    packs = {corpus.language: last / corpus.language for corpus in corpora}
    if all(pack.exists() for pack in packs.values()):  # saved as a whole, at the very end
        return packs
    if not (run / "data" / "done").exists():
        _prepare(native, corpora, config, run)
    _fill_stores(native, corpora, store, report)
    _train(spec, run, store, workers, config, report)
    return packs


def _last_stage(config: AcquireConfig) -> str:
    return next((s for s in reversed(STAGES) if getattr(config, s).steps), "fresh")


def _spec(
    native: Native, corpora: Sequence[Corpus], config: AcquireConfig, workers: int
) -> dict[str, Any]:
    return {
        "native": native.name,
        "fingerprint": native.fingerprint,
        "workers": workers,
        "config": config.model_dump(),
        "corpora": {
            corpus.language: {
                "pairs": [_digest(table, ("source", "target")) for table in corpus.pairs],
                "captions": None
                if corpus.captions is None
                else _digest(corpus.captions, ("image_id", "caption")),
            }
            for corpus in corpora
        },
    }


def _digest(table: pa.Table, columns: Sequence[str]) -> dict[str, Any]:
    digest = sha256()
    for row in zip(*(table[column].to_pylist() for column in columns), strict=True):
        digest.update("\x1f".join(row).encode() + b"\x1e")
    return {"rows": table.num_rows, "sha256": digest.hexdigest()}


def _claim(run: Path, spec: dict[str, Any], resume: bool) -> None:
    path = run / "run.json"
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        _write_json(path, spec)
        return
    if not resume:
        raise FileExistsError(
            f"{run} holds a run already; pass --resume to go on with it, or delete it"
        )
    before = json.loads(path.read_text())
    changed = [key for key in spec if before.get(key) != spec[key]]
    if changed:
        raise ValueError(
            f"{run}: cannot resume, {' and '.join(changed)} differ from the run begun there; "
            "choose another run folder, or delete it"
        )


def _write_json(path: Path, document: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(document, indent=2) + "\n")
    scratch.replace(path)


# --- preparing ---------------------------------------------------------------------------------


def _prepare(native: Native, corpora: Sequence[Corpus], config: AcquireConfig, run: Path) -> None:
    """Tokenise once: one vocabulary for the run, shared by its languages."""
    data = run / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    texts = [text for corpus in corpora for text in _texts(corpus)]
    if config.vocabulary == "learned":
        tokenizer, table = learn(texts, config.vocab_size), None
    else:
        tokenizer, table = from_hugging_face(config.vocabulary)
    ours = LanguageTokenizer.for_corpus(tokenizer, texts, native.text.context_length)
    every_pairs = [(corpus.language, pairs) for corpus in corpora for pairs in corpus.pairs]
    targets = [ours(pairs["target"].to_pylist()) for _, pairs in every_pairs]
    if table is None:
        generator = torch.Generator().manual_seed(config.seed)
        rows = learned_rows(len(ours.tokens), native.text, generator)
        if config.rows == "aligned":
            sources = [text for _, pairs in every_pairs for text in pairs["source"].to_pylist()]
            rows = aligned_rows(native, sources, list(chain(*targets)), rows, config.seed)
    else:
        rows = table[torch.from_numpy(ours.tokens).long()]
    save_file({"rows": rows, "tokens": torch.from_numpy(ours.tokens)}, data / "init.safetensors")
    tokenizer.save(str(data / "tokenizer.json"))
    for number, ((language, pairs), ids) in enumerate(zip(every_pairs, targets, strict=True)):
        columns = {
            "ids": pa.array(ids, pa.list_(pa.int32())),
            "key": [features.key_of(source) for source in pairs["source"].to_pylist()],
        }
        folder = data / language
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"nlt-{number:04d}.parquet")
    for corpus in corpora:
        if corpus.captions is not None:
            captions = corpus.captions["caption"].to_pylist()
            keys = [features.key_of(image) for image in corpus.captions["image"].to_pylist()]
            columns = {
                "ids": pa.array(ours(captions), pa.list_(pa.int32())),
                "key": keys,
                "group": groups(keys, captions),
            }
            pq.write_table(pa.table(columns), data / corpus.language / "le-0000.parquet")
    (data / "done").touch()


def _texts(corpus: Corpus) -> list[str]:
    texts = [text for pairs in corpus.pairs for text in pairs["target"].to_pylist()]
    if corpus.captions is not None:
        texts += corpus.captions["caption"].to_pylist()
    return texts


def groups(images: Sequence[str], captions: Sequence[str]) -> npt.NDArray[np.int64]:
    """Which rows are of one thing [N]: those that share an image or a caption, transitively.

    Inside a group nothing is a negative: Noto's and Fluent's apple are both right for "Apfel".
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent.setdefault(above, above)
            node = above
        return node

    for image, caption in zip(images, captions, strict=True):
        parent[root(f"image {image}")] = root(f"caption {caption}")
    number: dict[str, int] = {}
    return np.array([number.setdefault(root(f"image {i}"), len(number)) for i in images])


def _fill_stores(native: Native, corpora: Sequence[Corpus], store: Path, report: Report) -> None:
    sources = (
        t for corpus in corpora for pairs in corpus.pairs for t in pairs["source"].to_pylist()
    )
    images = (
        image
        for corpus in corpora
        if corpus.captions is not None
        for image in corpus.captions["image"].to_pylist()
    )
    for kind, content in (("text", sources), ("image", images)):
        table = features.distinct(content)
        if not table.num_rows:
            continue
        done, total = 0, table.num_rows

        def advance(count: int, kind: str = kind, total: int = total) -> None:
            nonlocal done
            done += count
            report(Progress(f"{kind} features", done, total))

        target = FeatureStore(store, native.fingerprint, kind)  # type: ignore[arg-type]
        computed = features.fill(target, native.name, table, advance)
        report(Progress(f"{kind} features", total, total, f"{computed:,} computed"))


# --- training ----------------------------------------------------------------------------------


def _train(
    spec: dict[str, Any],
    run: Path,
    store: Path,
    workers: int,
    config: AcquireConfig,
    report: Report,
) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = ray.cluster_resources()
    gpu = resources.get("GPU", 0) >= workers
    trainer = TorchTrainer(
        _work,
        train_loop_config={"spec": spec, "run": str(run.resolve()), "store": str(store.resolve())},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": max(1, int(resources.get("CPU", 1)) // workers)}
            | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(run.resolve()),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with _Watch(run / "metrics.jsonl", config, report):
        trainer.fit()


class _Watch:
    """Reports the workers' progress while `fit` blocks, by reading the run's metrics."""

    def __init__(self, path: Path, config: AcquireConfig, report: Report) -> None:
        import threading

        self.path, self.config, self.report = path, config, report
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _run(self) -> None:
        position = 0
        while True:
            last = self.stop.wait(0.5)
            if self.path.exists():
                with self.path.open("rb") as file:
                    file.seek(position)
                    lines = file.read().rpartition(b"\n")[0]
                position += len(lines) + bool(lines)
                for line in lines.splitlines():
                    row = json.loads(line)
                    total = getattr(self.config, row["stage"]).steps
                    note = f"loss {row['loss']:.4f}, {row['texts/s']:,.0f} texts/s"
                    self.report(Progress(row["stage"], row["step"], total, note))
            if last:
                return


def _work(job: dict[str, Any]) -> None:
    """What every Ray Train worker runs: both stages, from the last checkpoint on."""
    from accelerate import Accelerator
    from ray import train
    from ray.train.torch import get_device

    spec, run = job["spec"], Path(job["run"])
    config = AcquireConfig.model_validate(spec["config"])
    use_gpu = get_device().type == "cuda"
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and use_gpu and torch.cuda.is_bf16_supported()
    )
    accelerator = Accelerator(cpu=not use_gpu, mixed_precision="bf16" if bf16 else "no")
    state = _State(spec, run, Path(job["store"]), config, accelerator.device)
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state.load(Path(folder))
    leader = accelerator.is_main_process
    if leader and not checkpoint:
        state.save_packs("fresh")
    log = _Log(run) if leader else None

    while state.stage < len(STAGES):
        name = STAGES[state.stage]
        stage: Stage = getattr(config, name)
        loss_of = state.objective(name)
        for step in range(state.step, stage.steps):
            began = time.perf_counter()
            with accelerator.autocast():
                loss, language = loss_of(step)
            accelerator.backward(loss)
            lr = learning_rate(stage, config.warmup, step)
            norm = state.optimizer.step(lr)
            state.step = step + 1
            if log:
                took = time.perf_counter() - began
                log.add(name, state.step, stage, language, float(loss.detach()), lr, norm, took)
            if state.step % config.checkpoint_every == 0 and state.step < stage.steps:
                _report(state, log)
        state.stage, state.step = state.stage + 1, 0
        if stage.steps:
            if leader:
                state.save_packs(name)
            state.new_optimizer()
            _report(state, log)


def _report(state: "_State", log: "_Log | None") -> None:
    """Give Ray Train a checkpoint; a barrier, so every worker comes here."""
    from ray import train

    metrics = {"stage": state.stage, "step": state.step}
    if log is None:
        train.report(metrics)
        return
    log.flush()
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


class _State:
    """What trains, its optimizer, and where in the stages it is."""

    def __init__(
        self,
        spec: dict[str, Any],
        run: Path,
        store: Path,
        config: AcquireConfig,
        device: torch.device,
    ) -> None:
        self.spec, self.run, self.store, self.config = spec, run, store, config
        self.native = Native.load(spec["native"], str(device))
        if self.native.fingerprint != spec["fingerprint"]:
            raise ValueError(f"native {spec['native']!r} here is not the one the run began with")
        self.languages: list[str] = sorted(spec["corpora"])
        init = load_file(run / "data" / "init.safetensors")
        self.tokens = init["tokens"].numpy()
        tower = self.native.text
        torch.manual_seed(config.seed)
        embedding = EmbeddingBlock(init["rows"], tower)
        hidden = config.hidden or tower.width // 2
        self.encoders = nn.ModuleDict()
        for language in self.languages:
            self.encoders[language] = AcquisitionEncoder(tower, embedding, hidden)
        self.encoders.to(device)
        self.device = device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.stage = self.step = 0
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
            language: Batches([t.lengths for t in tables[language]], stage.batch, self.config.seed)
            for language in languages
        }

        def loss_of(step: int) -> tuple[Tensor, str]:
            language, number = turn(languages, step, self.config.seed)
            chosen = list(zip(tables[language], batches[language][number], strict=True))
            ids = [table.ids[row] for table, rows in chosen for row in rows]
            frozen = np.concatenate([table.features[table.feature[rows]] for table, rows in chosen])
            group = np.concatenate([table.group[rows] for table, rows in chosen])
            mine = slice(self.rank, None, self.world)
            tower = self.native.text
            ids_BL, length_B = pad(ids[mine], tower.context_length if tower.fixed_length else None)
            text_BE = self.encoders[language](ids_BL.to(self.device), length_B.to(self.device))
            if name == "nlt":
                target_BE = torch.from_numpy(frozen[mine]).to(self.device)
                return nlt_loss(text_BE, target_BE) / self.world, language
            shares = [np.arange(len(ids))[rank :: self.world] for rank in range(self.world)]
            order = np.concatenate(shares)
            loss = le_loss(
                _gather(text_BE.float(), self.rank),
                torch.from_numpy(frozen[order]).to(self.device),
                torch.from_numpy(group[order]).to(self.device),
                self._logit_scale(),
            )
            # Every worker sees the whole loss but differentiates by its own texts only, so summed
            # gradients are the whole's.
            return loss, language

        return loss_of

    def _logit_scale(self) -> float:
        if self.config.temperature == "native":
            return self.native.logit_scale
        return 1 / self.config.temperature

    def _tables(self, language: str, stage: str) -> list["_Table"]:
        kind = "text" if stage == "nlt" else "image"
        store = FeatureStore(self.store, self.native.fingerprint, kind)  # type: ignore[arg-type]
        paths = sorted((self.run / "data" / language).glob(f"{stage}-*.parquet"))
        return [_Table.read(path, store) for path in paths]

    # -- saving --

    def save(self, folder: Path) -> None:
        weights = {f"weights/{n}": w.detach().cpu() for n, w in self._weights().items()}
        moments = {f"optimizer/{n}": t.detach().cpu() for n, t in self.optimizer.state().items()}
        save_file(
            {n: t.contiguous() for n, t in (weights | moments).items()},
            folder / "state.safetensors",
        )
        _write_json(folder / "where.json", {"stage": self.stage, "step": self.step})

    def load(self, folder: Path) -> None:
        state = load_file(folder / "state.safetensors", device=str(self.device))
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
        for name, tensor in state.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(parts["weights"][name])
        where = json.loads((folder / "where.json").read_text())
        self.stage, self.step = where["stage"], where["step"]
        if parts["optimizer"]:
            self.optimizer.load(parts["optimizer"])

    def _weights(self) -> dict[str, Tensor]:
        """Every trained weight once; the embedding is shared by all languages."""
        return dict(self.encoders.named_parameters())

    def save_packs(self, stage: str) -> None:
        """A pack for each language, with its own copy of the rows its corpus uses."""
        tokenizer = Tokenizer.from_file(str(self.run / "data" / "tokenizer.json"))
        for language in self.languages:
            shared: AcquisitionEncoder = self.encoders[language]  # type: ignore[assignment]
            rows = self._rows_of(language)
            embedding = EmbeddingBlock(
                shared.embedding.rows.weight.detach()[rows].cpu(), self.native.text
            )
            own = AcquisitionEncoder(
                self.native.text, embedding, self.config.hidden or self.native.text.width // 2
            )
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
                data=self.spec["corpora"][language],
            )
            ours = LanguageTokenizer(tokenizer, self.tokens[rows], self.native.text.context_length)
            Pack(card, own, ours).save(self.run / "packs" / stage / language)

    def _rows_of(self, language: str) -> npt.NDArray[np.int64]:
        paths = (self.run / "data" / language).glob("*.parquet")
        used = [pq.read_table(path, columns=["ids"])["ids"].combine_chunks() for path in paths]
        rows = np.unique(np.concatenate([column.values.to_numpy() for column in used]))
        return np.union1d([0], rows).astype(np.int64)  # row 0 pads


@dataclass(frozen=True)
class _Table:
    """One prepared table: token rows of each text, and which frozen feature belongs to it."""

    ids: list[npt.NDArray[np.int32]]
    lengths: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    feature: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]

    @classmethod
    def read(cls, path: Path, store: FeatureStore) -> "_Table":
        table = pq.read_table(path)
        column = table["ids"].combine_chunks()
        offsets = column.offsets.to_numpy()
        ids = np.split(column.values.to_numpy(), offsets[1:-1])
        keys, feature = np.unique(np.array(table["key"].to_pylist()), return_inverse=True)
        group = table["group"].to_numpy() if "group" in table.column_names else feature
        return cls(
            ids, np.diff(offsets).astype(np.int64), store.read(keys.tolist()), feature, group
        )


def _gather(mine_BE: Tensor, rank: int) -> Tensor:
    """Features of all workers [G, E], rank after rank; gradients flow to this worker's own only."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine_BE
    parts = [torch.empty_like(mine_BE) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine_BE.detach())
    parts[rank] = mine_BE
    return torch.cat(parts)


class _Log:
    """metrics.jsonl and TensorBoard, every tenth step."""

    EVERY = 10

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.file = (run / "metrics.jsonl").open("a")
        self.board = SummaryWriter(str(run / "tensorboard"))
        self.texts, self.seconds = 0, 0.0

    def add(
        self,
        name: str,
        step: int,
        stage: Stage,
        language: str,
        loss: float,
        lr: float,
        norm: float,
        seconds: float,
    ) -> None:
        self.texts += stage.batch
        self.seconds += seconds
        if step % self.EVERY and step != stage.steps:
            return
        figures = {
            "loss": loss,
            "lr": lr,
            "gradient_norm": norm,
            "texts/s": self.texts / self.seconds,
        }
        row = {"stage": name, "step": step, "language": language, **figures}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for figure, value in figures.items():
            self.board.add_scalar(f"{name}/{figure}", value, step)
        self.texts, self.seconds = 0, 0.0

    def flush(self) -> None:
        self.board.flush()
