"""ONNX export of packs for programs without Python or PyTorch.

    text.onnx        token_ids [B, L] int64, lengths [B] int64 -> features [B, E] float32
    tokenizer.json   the pack's tokenizer, set to pad a batch
    image.onnx       pixels [B, 3, S, S] float32 -> features [B, E] float32         (optional)
    english.onnx     token_ids [B, L] int64 -> features [B, E] float32              (optional)
    export.json      graphs and inputs, preprocessing, differences from PyTorch

text.onnx combines the native's text tower and the pack. It also contains the steps between the
pack's tokenizer and its embedding rows: tokens without a row are skipped, and a text that is too
long is cut and keeps its end token. Features are not L2-normalized.

The export runs each graph with onnxruntime and compares it with PyTorch. It fails if they differ.

Shapes: B batch, L tokens, R rows of a text's tokens, E joint embedding size, S image side in
pixels.
"""

import hashlib
import json
import random
import string
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.export import Dim
from upath import UPath

from mla_ray.model.native import Native
from mla_ray.model.towers import ClipTower
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.storage import as_path, upload

SCHEMA_VERSION = 1
"""Version of the format of `export.json`."""
TOLERANCE = 1e-4
"""Maximum absolute difference of any feature value from PyTorch's."""
BATCHES = {1: 0.3, 2: 0.6, 7: 2.0}
"""Batch sizes of the comparison, each with its maximum text length as a multiple of the context."""
INFO = "export.json"
"""File name of the description of an export."""

BATCH = Dim("batch")

Feed = dict[str, npt.NDArray[Any]]
"""Inputs of a graph by name."""
Case = tuple[Feed, Tensor]
"""Inputs of a graph, and PyTorch's features `[B, E]` for them."""


class LanguageGraph(nn.Module):
    """Steps of `LanguagePack.encode_text` after its tokenizer, in operations that ONNX supports.

    Args:
        pack: The language pack.

    """

    row_of: Tensor
    """Embedding row `[vocabulary]` of each token, int64, or -1 for a token without a row."""

    def __init__(self, pack: LanguagePack) -> None:
        super().__init__()
        self.encoder = pack.encoder
        tower = pack.encoder.tower
        self.context_length = tower.context_length
        # A BERT could be cut, too, but tracing its mask for every length fails.
        self.cuts = isinstance(tower, ClipTower) and not tower.fixed_length
        rows = torch.from_numpy(pack.tokenizer.row_of.astype(np.int64))
        self.register_buffer("row_of", rows.to(pack.encoder.embedding.linear.weight.device))

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Encode token ids to features `[B, E]`, float32, not L2-normalized.

        Args:
            token_ids: Token ids `[B, L]`, int64, as the tokenizer returns them. Ids after a text's
                end are ignored.
            lengths: Number of tokens of each text `[B]`, int64, including the end token.

        """
        batch, length = token_ids.shape
        row_BL = self.row_of[token_ids]
        place_L = torch.arange(length, device=token_ids.device)
        kept_BL = (row_BL >= 0) & (place_L < lengths[:, None])
        slot_BL = kept_BL.long().cumsum(1) - 1
        last_B1 = kept_BL.long().sum(1, keepdim=True) - 1
        # The end token comes last, also if the text is cut before it.
        room = self.context_length - 1
        is_last_BL = slot_BL == last_B1
        slot_BL = torch.where(is_last_BL, slot_BL.clamp(max=room), slot_BL)
        kept_BL = kept_BL & (is_last_BL | (slot_BL < room))
        count: int | torch.SymInt = self.context_length
        if self.cuts:
            count = torch.sym_min(length, self.context_length)
        # Skipped tokens go to one extra slot, which is cut off below. Row 0 is padding.
        slot_BL = torch.where(kept_BL, slot_BL, count)
        rows_BR = row_BL.new_zeros(batch, count + 1).scatter(1, slot_BL, row_BL.clamp(min=0))
        length_B = (last_B1[:, 0] + 1).clamp(max=self.context_length)
        features_BE: Tensor = self.encoder(rows_BR[:, :count], length_B)
        return features_BE.float()


class EnglishGraph(nn.Module):
    """`Native.encode_text` for ids of the native's tokenizer.

    Args:
        native: The native.

    """

    def __init__(self, native: Native) -> None:
        super().__init__()
        self.model = native.model
        self._native = native

    def forward(self, token_ids: Tensor) -> Tensor:
        """Encode native token ids `[B, L]`, int64, to features `[B, E]`, float32."""
        return self._native.encode_text(token_ids).float()


class ImageGraph(nn.Module):
    """`Native.encode_image` for preprocessed pixels.

    Args:
        native: The native.

    """

    def __init__(self, native: Native) -> None:
        super().__init__()
        self.model = native.model
        self._native = native

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels `[B, 3, S, S]`, float32, to features `[B, E]`, float32."""
        return self._native.encode_image(pixels).float()


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        out: Path or URL of the files.
        differences: Maximum absolute difference of each graph's features from PyTorch's.

    """

    out: str
    differences: dict[str, float]


@dataclass(frozen=True)
class _Graph:
    """Graph to export, with the axes of its inputs. An axis of None has a fixed size."""

    name: str
    module: nn.Module
    inputs: dict[str, Sequence[Dim | None]]
    cases: Callable[[], list[Case]]


def export_onnx(
    pack: LanguagePack,
    native: Native,
    out: str | Path | UPath,
    *,
    image: bool = False,
    english: bool = False,
    report: Report | None = None,
) -> Exported:
    """Export a pack's text tower to ONNX, and optionally other towers of the native.

    Args:
        pack: Language pack that was made for `native`.
        native: Native on the CPU.
        out: Path or URL of the export. Other files there are kept, and `export.json` is written
            last.
        image: Also export the native's image tower.
        english: Also export the native's English text tower.
        report: Callback for progress, called before each graph and at the end.

    Raises:
        PackError: The pack was made for another native.
        ValueError: A package is missing, or a graph's features differ from PyTorch's by more than
            `TOLERANCE`. Nothing is written.

    """
    _require("onnx", "onnxruntime", "onnxscript")
    pack.card.check(native)
    tokenizer = _padding(pack)
    graphs = [_language(pack, tokenizer)]
    graphs += [_english(native)] if english else []
    graphs += [_image(native)] if image else []
    with tempfile.TemporaryDirectory(prefix="mla-onnx-") as scratch:
        folder, differences = Path(scratch), {}
        for done, graph in enumerate(graphs):
            if report:
                report(Progress("onnx", done, len(graphs), graph.name))
            _write(graph, folder / f"{graph.name}.onnx")
            differences[graph.name] = _difference(graph, folder / f"{graph.name}.onnx")
        tokenizer.save(str(folder / "tokenizer.json"))
        info = _info(pack, native, graphs, differences, folder)
        (folder / INFO).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n")
        upload(folder, as_path(out), last=INFO)
        if report:
            report(Progress("onnx", len(graphs), len(graphs)))
    return Exported(str(as_path(out)), differences)


def _padding(pack: LanguagePack) -> Tokenizer:
    """Return a copy of the pack's tokenizer that pads a batch to its longest text."""
    tokenizer = Tokenizer.from_str(pack.tokenizer.tokenizer.to_str())
    padding = int(pack.tokenizer.tokens[0])
    tokenizer.enable_padding(pad_id=padding, pad_token=tokenizer.id_to_token(padding))
    return tokenizer


def _language(pack: LanguagePack, tokenizer: Tokenizer) -> _Graph:
    def cases() -> list[Case]:
        draw = random.Random(0)  # noqa: S311 - reproducible texts for the comparison
        cases: list[Case] = []
        known, vocabulary = pack.tokenizer.tokens.tolist(), tokenizer.get_vocab_size()
        for size, contexts in BATCHES.items():
            longest = int(contexts * pack.card.context_length)
            # Include tokens that have no row.
            texts = [
                tokenizer.decode(
                    [
                        draw.choice(known) if draw.random() < 0.9 else draw.randrange(vocabulary)
                        for _ in range(count)
                    ]
                )
                for count in (draw.randrange(longest) for _ in range(size))
            ]
            encodings = tokenizer.encode_batch(texts)
            feed = {
                "token_ids": np.array([e.ids for e in encodings], dtype=np.int64),
                "lengths": np.array([sum(e.attention_mask) for e in encodings], dtype=np.int64),
            }
            cases.append((feed, pack.encode_text(texts)))
        return cases

    return _Graph(
        "text",
        LanguageGraph(pack),
        {"token_ids": (BATCH, Dim("tokens")), "lengths": (BATCH,)},
        cases,
    )


def _english(native: Native) -> _Graph:
    @torch.inference_mode()
    def cases() -> list[Case]:
        draw = random.Random(0)  # noqa: S311 - as above
        letters = string.ascii_lowercase + "   "
        cases: list[Case] = []
        for size, contexts in BATCHES.items():
            longest = int(contexts * native.text.context_length)  # a letter is at most one token
            texts = ["".join(draw.choices(letters, k=draw.randrange(longest))) for _ in range(size)]
            ids_BL = native.text.trim(native.tokenize(texts))
            cases.append(({"token_ids": ids_BL.numpy()}, native.encode_text(ids_BL).float()))
        return cases

    tokens = Dim("tokens", max=native.text.context_length)
    axes = (BATCH, None if native.text.fixed_length else tokens)
    return _Graph("english", EnglishGraph(native), {"token_ids": axes}, cases)


def _image(native: Native) -> _Graph:
    @torch.inference_mode()
    def cases() -> list[Case]:
        height, width = _pixels(native)
        generator = torch.Generator().manual_seed(0)
        cases: list[Case] = []
        for size in BATCHES:
            pixels = torch.randn(size, 3, height, width, generator=generator)
            cases.append(({"pixels": pixels.numpy()}, native.encode_image(pixels).float()))
        return cases

    return _Graph("image", ImageGraph(native), {"pixels": (BATCH, None, None, None)}, cases)


def _pixels(native: Native) -> tuple[int, int]:
    size = native.model.visual.preprocess_cfg["size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _write(graph: _Graph, path: Path) -> None:
    example, _ = graph.cases()[1]  # two texts: the exporter would fix an axis of size 1
    shapes = tuple(
        {place: axis or Dim.STATIC for place, axis in enumerate(axes)}
        for axes in graph.inputs.values()
    )
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX lacks the fused operation
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")  # the exporter warns about its own code
            traced = torch.export.export(
                graph.module.eval(),
                tuple(torch.from_numpy(example[name]) for name in graph.inputs),
                dynamic_shapes=shapes,
                strict=True,  # otherwise len() of a tensor fixes its axis
            )
            program = torch.onnx.export(
                traced,
                input_names=list(graph.inputs),
                output_names=["features"],
                dynamic_shapes=shapes,  # for the names of the axes
                verbose=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if program is None:  # only torch's older exporter returns None
        raise AssertionError("unreachable")
    program.save(path)


def _difference(graph: _Graph, path: Path) -> float:
    """Return the maximum absolute difference from PyTorch.

    Raises:
        ValueError: The difference exceeds `TOLERANCE`.

    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for feed, expected in graph.cases():
        (features,) = session.run(["features"], feed)
        worst = max(worst, float(np.abs(features - expected.numpy()).max()))
    if not worst <= TOLERANCE:  # NaN is refused, too
        raise ValueError(
            f"{graph.name}.onnx: features differ from PyTorch's by {worst:.1e}, more than "
            f"{TOLERANCE:.0e}; try other versions of torch, onnxscript or onnxruntime"
        )
    return worst


def _info(
    pack: LanguagePack,
    native: Native,
    graphs: Sequence[_Graph],
    differences: dict[str, float],
    folder: Path,
) -> dict[str, object]:
    card = pack.card
    return {
        "schema_version": SCHEMA_VERSION,
        "language": card.language,
        "native": card.native,
        "fingerprint": card.fingerprint,
        "pack_sha256": card.sha256,
        "dim": native.dim,
        "context_length": card.context_length,
        "normalised": False,
        "logit_scale": native.logit_scale,
        "preprocess": native.model.visual.preprocess_cfg,
        "graphs": {
            graph.name: {
                "file": f"{graph.name}.onnx",
                "inputs": {
                    name: [axis.__name__ if axis else None for axis in axes]
                    for name, axes in graph.inputs.items()
                },
                "largest_difference": differences[graph.name],
            }
            for graph in graphs
        },
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir())
        },
        "libraries": {n: version(n) for n in ("mla-ray", "torch", "onnxscript", "onnxruntime")},
    }


def _require(*packages: str) -> None:
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise ValueError(f"the export needs {', '.join(missing)}; pip install {' '.join(missing)}")
