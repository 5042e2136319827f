"""Packs as ONNX, for programs without Python or PyTorch: native text tower and pack in one graph.

    text.onnx        token_ids [B, L] int64, lengths [B] int64 -> features [B, E] float32
    tokenizer.json   the pack's, set to pad a batch
    image.onnx       pixels [B, 3, S, S] float32 -> features [B, E] float32         (if asked for)
    english.onnx     token_ids [B, L] int64 -> features [B, E] float32              (if asked for)
    export.json      what is what, how pixels are prepared, how exact each graph is

Features are not normalised. All that stands between the pack's tokenizer and its rows is in the
graph: tokens without a row are skipped, a text that is too long is cut and keeps its end token.
Each graph is run by onnxruntime against PyTorch right after it is made, and refused if it differs.

Shapes: B batch, L tokens, R rows of a text's tokens, E joint embedding size, S pixels of a side.
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
TOLERANCE = 1e-4
"""Largest difference of any value of any feature from PyTorch's."""
BATCHES = {1: 0.3, 2: 0.6, 7: 2.0}
"""Sizes of the batches that a graph is compared on; how long their texts may be, in contexts."""
INFO = "export.json"

BATCH = Dim("batch")

Feed = dict[str, npt.NDArray[Any]]
Case = tuple[Feed, Tensor]
"""What a graph is given, and the features [B, E] that PyTorch finds."""


class LanguageGraph(nn.Module):
    """What `LanguagePack.encode_text` does after its tokenizer, in operations that ONNX has."""

    row_of: Tensor

    def __init__(self, pack: LanguagePack) -> None:
        super().__init__()
        self.encoder = pack.encoder
        tower = pack.encoder.tower
        self.context_length = tower.context_length
        # A BERT could be cut, too, but its mask cannot be traced for every length.
        self.cuts = isinstance(tower, ClipTower) and not tower.fixed_length
        rows = torch.from_numpy(pack.tokenizer.row_of.astype(np.int64))
        self.register_buffer("row_of", rows.to(pack.encoder.embedding.linear.weight.device))

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Features [B, E] float32.

        Args:
            token_ids: [B, L] int64, as the tokenizer gives them; whatever follows a text's end.
            lengths: [B] int64, tokens of each text, its end token included.

        """
        batch, length = token_ids.shape
        row_BL = self.row_of[token_ids]
        place_L = torch.arange(length, device=token_ids.device)
        kept_BL = (row_BL >= 0) & (place_L < lengths[:, None])
        slot_BL = kept_BL.long().cumsum(1) - 1
        last_B1 = kept_BL.long().sum(1, keepdim=True) - 1
        # The end token stands last, also where a longer text is cut before it.
        room = self.context_length - 1
        is_last_BL = slot_BL == last_B1
        slot_BL = torch.where(is_last_BL, slot_BL.clamp(max=room), slot_BL)
        kept_BL = kept_BL & (is_last_BL | (slot_BL < room))
        count: int | torch.SymInt = self.context_length
        if self.cuts:
            count = torch.sym_min(length, self.context_length)
        # One place more than there are, for all that is left out; row 0 pads.
        slot_BL = torch.where(kept_BL, slot_BL, count)
        rows_BR = row_BL.new_zeros(batch, count + 1).scatter(1, slot_BL, row_BL.clamp(min=0))
        length_B = (last_B1[:, 0] + 1).clamp(max=self.context_length)
        features_BE: Tensor = self.encoder(rows_BR[:, :count], length_B)
        return features_BE.float()


class EnglishGraph(nn.Module):
    """`Native.encode_text` of ids as the native's tokenizer gives them."""

    def __init__(self, native: Native) -> None:
        super().__init__()
        self.model = native.model
        self._native = native

    def forward(self, token_ids: Tensor) -> Tensor:
        return self._native.encode_text(token_ids).float()


class ImageGraph(nn.Module):
    """`Native.encode_image` of preprocessed pixels."""

    def __init__(self, native: Native) -> None:
        super().__init__()
        self.model = native.model
        self._native = native

    def forward(self, pixels: Tensor) -> Tensor:
        return self._native.encode_image(pixels).float()


@dataclass(frozen=True)
class Exported:
    """Where the files are, and the largest difference from PyTorch of each graph."""

    out: str
    differences: dict[str, float]


@dataclass(frozen=True)
class _Graph:
    """One graph to make, and its inputs with their axes: None is fixed by the native."""

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
    """Write a pack's text tower, and what else is asked for, as ONNX.

    Args:
        pack: made for `native`.
        native: on the CPU.
        out: a path or URL; other files there stay, `export.json` is written last.
        image: the native's image tower too.
        english: the native's English text tower too.
        report: called after each graph.

    Raises:
        ValueError: the pack is another native's, a package is missing, or a graph's features differ
            from PyTorch's by more than 1e-4. Nothing is written.

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
    """The pack's tokenizer, set to pad a batch to its longest text."""
    tokenizer = Tokenizer.from_str(pack.tokenizer.tokenizer.to_str())
    padding = int(pack.tokenizer.tokens[0])
    tokenizer.enable_padding(pad_id=padding, pad_token=tokenizer.id_to_token(padding))
    return tokenizer


def _language(pack: LanguagePack, tokenizer: Tokenizer) -> _Graph:
    def cases() -> list[Case]:
        draw = random.Random(0)  # noqa: S311 - texts to compare on, the same ones every time
        cases: list[Case] = []
        known, vocabulary = pack.tokenizer.tokens.tolist(), tokenizer.get_vocab_size()
        for size, contexts in BATCHES.items():
            longest = int(contexts * pack.card.context_length)
            # Among them are tokens that have no row.
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
            longest = int(contexts * native.text.context_length)  # letters: no more tokens
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
    example, _ = graph.cases()[1]  # two texts: an axis of one would be taken for fixed
    shapes = tuple(
        {place: axis or Dim.STATIC for place, axis in enumerate(axes)}
        for axes in graph.inputs.values()
    )
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused, and no operation of ONNX's
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")  # of the exporter, about itself
            traced = torch.export.export(
                graph.module.eval(),
                tuple(torch.from_numpy(example[name]) for name in graph.inputs),
                dynamic_shapes=shapes,
                strict=True,  # else len() of a tensor fixes its axis
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
    if program is None:  # only of the exporter before this one
        raise AssertionError("unreachable")
    program.save(path)


def _difference(graph: _Graph, path: Path) -> float:
    """Largest difference from PyTorch; ValueError if it is beyond `TOLERANCE`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for feed, expected in graph.cases():
        (features,) = session.run(["features"], feed)
        worst = max(worst, float(np.abs(features - expected.numpy()).max()))
    if not worst <= TOLERANCE:  # NaN is refused, too
        raise ValueError(
            f"{graph.name}.onnx: features differ from PyTorch's by {worst:.1e}, more than "
            f"{TOLERANCE:.0e}; other versions of torch, onnxscript or onnxruntime may agree"
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
        raise ValueError(f"exporting needs {', '.join(missing)}; pip install mla-ray[onnx]")
