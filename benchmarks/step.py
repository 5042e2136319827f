"""Compare one training step at ViT-B/32 size with a loop that works like the official code.

    python benchmarks/step.py [--rounds 3] [--threads 2] [--levers] [--json step.json]
        [--device cuda] [--precision bf16]

Both sides train the same random weights on the same texts, because speed does not depend on the
weights. They take turns in one process. The benchmark first compares their losses and gradients
and ends with an error if they differ.

*Theirs* is written after reading the official code, not copied. It pads every text to 77 tokens. At
every step, the native encodes the English caption (NLT) or the image (LE) again, without a graph.
Frozen text weights accumulate gradients, and Adam updates the whole M-BERT embedding of 119,547 x
768. In doubtful cases, the benchmark favors this side: it uses torch's AdamW instead of a
hand-written one, does not tokenize in the loop, and does not encode an unused English caption in
LE. *Ours* is the step of `mla_ray.training.loop`.

Texts are artificial, with lengths like those of translated captions: 2 + log-normal (mean 14, sigma
0.45) tokens, at most 77. Tokens follow a Zipf distribution (exponent 1.2) over the vocabulary, so
that 20,000 texts use about 23,000 rows. Images are one batch of noise. Data loading is not timed.
The time of our step depends on the batch's length, so a round takes the mean over all 16 batches of
a pool grouped by length. The time of the other step does not depend on it.

The benchmark also counts the operators that PyTorch dispatches in a step, with torch's attention
as on a GPU. They stand in for the kernels that a GPU starts. It counts separately those among them
that make Python wait for a GPU.

It counts the operations of the matrix products of a step, too. Divided by the time of the step and
by the speed of `torch.mm` in the same process, they are the share of the machine that a step uses.
The ratio of their operations to ours is the largest ratio of times, if both used all of it.

Frozen features are not part of our step, but they have a cost. The last column spreads this cost
over the paper's schedule: 10 epochs of NLT and one epoch of LE in 5 languages, which makes 50 uses
per caption and 5 per image.

Shapes: B batch, L tokens, N texts, V embedding rows, W row width, D text width, E joint size.
"""

import argparse
import copy
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mla_ray.data.sampling import BatchSampler
from mla_ray.model import frozen_block
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder
from mla_ray.model.native import Native
from mla_ray.model.objectives import le_loss, nlt_loss
from mla_ray.model.tokenizers import Ids, pad
from mla_ray.training.batch_loss import encode_in_two_passes, to_device
from mla_ray.training.config import AcquireConfig
from mla_ray.training.optimizer import BETAS, EPS, Optimizer

Stage = Literal["nlt", "le"]
Rows = npt.NDArray[np.int64]
USES: dict[Stage, int] = {"nlt": 50, "le": 5}
PAD, CLS, SEP, VOCABULARY, ROW_WIDTH = 0, 101, 102, 119_547, 768  # M-BERT
START, END, CONTEXT = 49_406, 49_407, 77  # CLIP
HIDDEN, SCALE, CONFIG, LR = 256, 100.0, AcquireConfig(), 1e-4
WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive"),
    *("_coalesce", "equal", "is_nonzero"),
}
"""Operators whose result or its shape Python needs, so that it waits for a GPU."""


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the operators that are dispatched inside the context, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Count an operator and run it."""
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def figures(self) -> dict[str, int]:
        """Return the number of operators, and of those that wait for the device."""
        waits = sum(count for name, count in self.names.items() if name in WAITS)
        return {"operators": self.names.total(), "waits": waits}


class Corpus:
    """Tokenized pairs and images for both sides. `batches` are the rows of one pool.

    Args:
        batch: Batch size.
        device: Device of both sides.
        precision: `fp32`, or `bf16` for autocast.

    """

    def __init__(self, batch: int, device: torch.device, precision: str) -> None:
        count, sigma = 20_000, 0.45
        self.device, self.precision = device, precision
        rng = np.random.default_rng(0)
        lengths = rng.lognormal(np.log(14) - sigma**2 / 2, sigma, count).round().astype(np.int64)
        lengths = lengths.clip(1, CONTEXT - 2)
        weights = np.arange(1, VOCABULARY - SEP) ** -1.2
        tokens = SEP + 1 + rng.permutation(len(weights))
        drawn = tokens[rng.choice(len(weights), lengths.sum(), p=weights / weights.sum())]
        words = np.split(drawn, lengths.cumsum()[:-1])
        self.texts = [np.array([CLS, *ids, SEP], np.int32) for ids in words]
        self.english = [np.array([START, *(ids % START), END], np.int32) for ids in words]
        self.images = torch.randn(batch, 3, 224, 224).to(device)
        self.batches = one_pool(lengths, batch)

    def autocast(self) -> torch.autocast:
        """Return the context in which both sides compute a loss."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def one_pool(lengths: Rows, batch: int) -> list[Rows]:
    """Return the batches of one pool of random rows, grouped by length as in `BatchSampler`."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(lengths))[: BatchSampler.POOL * batch]
    shortest_first = rows[np.argsort(lengths[rows], kind="stable")]
    return list(
        shortest_first.reshape(BatchSampler.POOL, batch)[rng.permutation(BatchSampler.POOL)]
    )


class Ours:
    """Step of `mla_ray.training.loop` with one worker and one language."""

    def __init__(self, native: Native, corpus: Corpus) -> None:
        self.tokens = np.union1d([PAD], np.concatenate(corpus.texts))
        self.ids = [np.searchsorted(self.tokens, text).astype(np.int32) for text in corpus.texts]
        rows_VW = 0.05 * torch.randn(len(self.tokens), ROW_WIDTH)
        self.corpus, embedding = corpus, EmbeddingBlock(rows_VW, native.text)
        self.encoder = LanguageEncoder(native.text, embedding, HIDDEN).to(corpus.device)
        for name, weight in self.encoder.acquirers.named_parameters():
            if name.endswith("up.weight"):
                nn.init.normal_(weight, std=0.02)  # zero weights would hide differences
        self.rows: nn.Parameter = self.encoder.embedding.rows.weight  # type: ignore[assignment]
        dense = [weight for weight in self.encoder.parameters() if weight is not self.rows]
        self.optimizer = Optimizer(dense, CONFIG.weight_decay, self.rows)
        self.features = {stage: torch.zeros(len(corpus.texts), native.dim) for stage in USES}
        began = time.perf_counter()
        self.features["le"][np.array(corpus.batches)] = native.encode_image(corpus.images).cpu()
        image = time.perf_counter()
        for batch in corpus.batches:
            self.features["nlt"][batch] = native.encode_text(
                pad(pick(corpus.english, batch))[0]
            ).cpu()
        english = (time.perf_counter() - image) / len(corpus.batches)
        self.encoding = {"nlt": english, "le": image - began}  # seconds per batch

    def loss(self, stage: Stage, batch: Rows) -> Tensor:
        """Return the loss of a batch against the stored features."""
        device = self.corpus.device
        with self.corpus.autocast():
            text_BE = encode_in_two_passes(self.encoder, pick(self.ids, batch), device)
            target_BE = to_device(self.features[stage][batch], device)
            if stage == "nlt":
                return nlt_loss(text_BE, target_BE)
            return le_loss(text_BE, target_BE, torch.arange(len(batch), device=device), SCALE)

    def step(self, stage: Stage, batch: Rows) -> None:
        """Take one training step."""
        torch.autograd.backward(self.loss(stage, batch))
        self.optimizer.all_reduce()
        self.optimizer.clip_grad_norm_(CONFIG.clip)
        self.optimizer.step(LR)
        self.optimizer.zero_grad()


class Theirs(nn.Module):
    """Step like that of the official code, starting from our weights."""

    def __init__(self, clip: Any, corpus: Corpus, ours: Ours) -> None:
        super().__init__()
        self.corpus, self.features = corpus, ours.features
        self.embedding = nn.Embedding(VOCABULARY, ROW_WIDTH)
        self.embedding.weight.data[torch.from_numpy(ours.tokens)] = ours.rows.detach().cpu()
        self.linear = copy.deepcopy(ours.encoder.embedding.linear)
        acquirers = copy.deepcopy(ours.encoder.acquirers)
        each: Iterator[Any] = iter(acquirers)
        self.acquirers = nn.ModuleList(nn.Sequential(a.down, nn.ReLU(), a.up) for a in each)
        self.to(corpus.device)
        self.adam = torch.optim.AdamW(self.parameters(), LR, BETAS, EPS, CONFIG.weight_decay)
        self.clip = copy.deepcopy(clip).train()
        self.pull()

    def pull(self, cut: bool = False, cached: bool = False, frozen: bool = False) -> None:
        """Switch optimizations on or off, for `--levers`.

        Args:
            cut: Whether to pad only to the longest text of the batch.
            cached: Whether to use stored features instead of encoding.
            frozen: Whether frozen weights need no gradients.

        """
        self.cut, self.cached = cut, cached
        self.clip.requires_grad_(not frozen)

    def encode(self, texts: Sequence[Ids], english: bool = False) -> Tensor:
        """Encode texts of the language, or English texts with the native alone, to `[B, E]`."""
        ids_BL = pad(texts, None if self.cut else CONTEXT)[0].to(self.corpus.device)
        clip, length = self.clip, ids_BL.shape[1]
        x_BLD = clip.token_embedding(ids_BL) if english else self.linear(self.embedding(ids_BL))
        x_BLD = x_BLD + clip.positional_embedding[:length]
        for block, acquirer in zip(clip.transformer.resblocks, self.acquirers, strict=True):
            x_BLD = block(x_BLD, attn_mask=clip.attn_mask[:length, :length])
            x_BLD = x_BLD if english else x_BLD + acquirer(x_BLD)
        end_B = (ids_BL == (END if english else SEP)).nonzero()[:, 1]
        features_BE: Tensor = (
            clip.ln_final(x_BLD)[torch.arange(len(x_BLD)), end_B] @ clip.text_projection
        )
        return features_BE

    @torch.no_grad()
    def target(self, stage: Stage, batch: Rows) -> Tensor:
        """Return the features of the English captions or of the images, `[B, E]`."""
        if self.cached:
            return self.features[stage][batch].to(self.corpus.device)
        if stage == "nlt":
            return self.encode(pick(self.corpus.english, batch), english=True)
        features_BE: Tensor = self.clip.encode_image(self.corpus.images)
        return features_BE

    def loss(self, stage: Stage, batch: Rows) -> Tensor:
        """Return the loss of a batch."""
        with self.corpus.autocast():
            target_BE = self.target(stage, batch).float()
            text_BE = self.encode(pick(self.corpus.texts, batch)).float()
        if stage == "nlt":
            return F.mse_loss(text_BE, target_BE)
        logits_BB = SCALE * F.normalize(target_BE, dim=-1) @ F.normalize(text_BE, dim=-1).T
        right_B = torch.arange(len(logits_BB), device=logits_BB.device)
        return (F.cross_entropy(logits_BB, right_B) + F.cross_entropy(logits_BB.T, right_B)) / 2

    def step(self, stage: Stage, batch: Rows) -> None:
        """Take one training step."""
        torch.autograd.backward(self.loss(stage, batch))
        nn.utils.clip_grad_norm_(self.parameters(), CONFIG.clip)
        self.adam.step()
        self.zero_grad()


def pick(texts: Sequence[Ids], batch: Rows) -> list[Ids]:
    """Return the texts of the rows of a batch."""
    return [texts[row] for row in batch]


def verify(stage: Stage, ours: Ours, theirs: Theirs) -> str:
    """Check in fp32 that both sides have the same loss and gradients of the embedding rows.

    Raises:
        AssertionError: The losses or gradients differ.

    """
    corpus = theirs.corpus
    precision, corpus.precision = corpus.precision, "fp32"
    losses = [side.loss(stage, corpus.batches[0]) for side in (ours, theirs)]
    corpus.precision = precision
    torch.autograd.backward(torch.stack(losses).sum())
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
    mine_VW = cast(Tensor, ours.rows.grad).to_dense()
    other_VW = cast(Tensor, theirs.embedding.weight.grad)[
        torch.from_numpy(ours.tokens).to(corpus.device)
    ]
    error = float((mine_VW - other_VW).norm() / other_VW.norm())
    torch.testing.assert_close(error, 0.0, rtol=0, atol=1e-3)
    ours.encoder.zero_grad()
    theirs.zero_grad()
    mine, other = (loss.item() for loss in losses)
    return f"{stage}: loss {mine:.6f} ours, {other:.6f} theirs; gradients differ by {error:.0e}"


def seconds(side: Ours | Theirs, stage: Stage, batches: Sequence[Rows]) -> float:
    """Return the mean time of a step over `batches`."""
    on_gpu = side.corpus.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for batch in batches:
        side.step(stage, batch)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / len(batches)


def count(side: Ours | Theirs, stage: Stage) -> dict[str, int]:
    """Return the number of operators of a step, and of those that wait for the device."""
    operators = Operators()
    with patch.object(frozen_block, "SHORT", 0), operators:
        side.step(stage, side.corpus.batches[0])
    return operators.figures()


def operations(side: Ours | Theirs, stage: Stage, batches: Sequence[Rows]) -> float:
    """Return the mean number of operations of the matrix products of a step."""
    counter = FlopCounterMode(display=False)
    with counter:
        for batch in batches:
            side.step(stage, batch)
    return counter.get_total_flops() / len(batches)


def speed_of_products(corpus: Corpus) -> float:
    """Return the operations per second of `torch.mm`, the best of ten products of 2048 x 2048."""
    dtype = torch.bfloat16 if corpus.precision == "bf16" else torch.float32
    left, right = torch.randn(2, 2048, 2048, device=corpus.device, dtype=dtype)
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        torch.mm(left, right)
        if corpus.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


def race(stage: Stage, ours: Ours, theirs: Theirs, rounds: int, steps: int) -> dict[str, Any]:
    """Time both sides in turns. The ratio of a round compares two consecutive measurements."""
    pool, times = theirs.corpus.batches, np.empty((rounds, 2))
    for number in range(rounds):
        times[number] = seconds(ours, stage, pool), seconds(theirs, stage, pool[:steps])
    mine, other = np.median(times, axis=0)
    ratios = times[:, 1] / times[:, 0]
    ours_done, theirs_done = operations(ours, stage, pool), operations(theirs, stage, pool[:1])
    return {
        "step": [mine, other],  # seconds: ours, theirs
        "speed-up": [np.median(ratios), ratios.min(), ratios.max()],
        "frozen features": ours.encoding[stage],  # seconds per batch
        "speed-up with frozen features": other / (mine + ours.encoding[stage] / USES[stage]),
        "counts": [count(ours, stage), count(theirs, stage)],
        "share of torch.mm": ours_done / mine / speed_of_products(ours.corpus),
        "ratio of operations": theirs_done / ours_done,
    }


def levers(stage: Stage, ours: Ours, theirs: Theirs, rounds: int) -> dict[str, float]:
    """Return the median step time with one more optimization at a time.

    The batch is that of median length.
    """
    batches = sorted(theirs.corpus.batches, key=lambda batch: max(map(len, pick(ours.ids, batch))))

    def measure(side: Ours | Theirs, *pulled: bool) -> float:
        theirs.pull(*pulled)
        median = [batches[len(batches) // 2]]
        return float(np.median([seconds(side, stage, median) for _ in range(rounds)]))

    pulled = {"theirs": (), "+ cut": (True,), "+ cached": (True,) * 2, "+ frozen": (True,) * 3}
    times = {name: measure(theirs, *positions) for name, positions in pulled.items()}
    return times | {"+ active rows": measure(ours)}


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table of the figures, the head first."""
    head = [figures["setting"], "ours, s", "texts/s", "theirs, s", "texts/s", "ratio (range)"]
    head += ["with the cost of frozen features", "of torch.mm", "operations, theirs / ours"]
    rows = [head]
    for stage in USES:
        found = figures[stage]
        cells = [f"{n:.2f}" for step in found["step"] for n in (step, figures["batch"] / step)]
        ratio = "{:.1f}x ({:.1f} to {:.1f})".format(*found["speed-up"])
        cells += [ratio, f"{found['speed-up with frozen features']:.1f}x"]
        cells += [f"{found['share of torch.mm']:.0%}", f"{found['ratio of operations']:.1f}"]
        rows.append([stage, *cells])
    return rows


def main() -> None:
    """Parse the options and run the benchmark."""
    parser = argparse.ArgumentParser(
        description="Compare our training step with that of the official code."
    )
    for name, default in {"batch": 128, "rounds": 3, "steps": 1, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--levers", action="store_true", help="time the optimizations one by one")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    console, clip = Console(), open_clip.create_model("ViT-B-32")
    corpus = Corpus(args.batch, torch.device(args.device), args.precision)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    ours = Ours(Native("ViT-B-32, random", clip, tokenizer, args.device), corpus)
    theirs = Theirs(clip, corpus, ours)
    for stage in USES:
        console.print(verify(stage, ours, theirs), highlight=False)
    for side in (ours, theirs):  # the first step allocates Adam's state
        side.step("nlt", corpus.batches[0])

    where = args.device if args.device == "cuda" else f"{args.threads} threads"
    title = f"batch {args.batch}, {args.precision}, {where}, {len(ours.tokens):,} active rows"
    figures = {stage: race(stage, ours, theirs, args.rounds, args.steps) for stage in USES}
    results: dict[str, Any] = {"setting": title, "batch": args.batch}
    results |= {str(stage): found for stage, found in figures.items()}
    head, *rows = table(results)
    shown = Table("", *head[1:], title=title)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for stage, found in figures.items():
        counts = "; ".join(
            f"{side}: {each['operators']:,} operators, {each['waits']} wait for the device"
            for side, each in zip(("ours", "theirs"), found["counts"], strict=True)
        )
        console.print(f"{stage}: {counts}", highlight=False)
    for stage, found in figures.items() if args.levers else ():
        found["levers"] = times = levers(stage, ours, theirs, args.rounds)
        console.print(f"{stage}: " + ", ".join(f"{name} {t:.2f} s" for name, t in times.items()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
