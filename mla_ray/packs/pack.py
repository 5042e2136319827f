"""A language pack: everything that one acquired language adds to a native, in a folder of a few MB.

    weights.safetensors   embedding rows, linear layer, acquirers, tokenizer ids of the rows:
                          float32, except for rows in float16 (`LanguagePack.with_half_rows`)
    tokenizer.json        format of the `tokenizers` library
    card.json             metadata, origin, metrics, hashes of the other files
    README.md             model card

Loading checks hashes, sizes, names, shapes and dtypes before it allocates memory. It rejects a pack
that was made for another native, and a pack with a non-finite weight.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from upath import UPath

from mla_ray.model.encoder import LanguageEncoder
from mla_ray.model.native import Native
from mla_ray.model.text import as_texts
from mla_ray.model.tokenizers import LanguageTokenizer, Shares, load_tokenizer
from mla_ray.packs.card import ROWS, Card, make_card, read_card
from mla_ray.packs.files import PackError, check_file, fetch_files
from mla_ray.packs.official import END, read_checkpoint
from mla_ray.packs.readme import model_card
from mla_ray.runtime.atomic import read_consistently, replacing_folder
from mla_ray.runtime.storage import as_path, download, is_local, upload

EMBEDDING_ROWS = "embedding.rows.weight"
SCHEMAS = {torch.float32: 1, torch.float16: 2}
"""Version of the file format by the dtype of the embedding rows."""


class LanguagePack:
    """One acquired language on one native: encodes texts into the native's feature space.

    Use `LanguagePack.load` to read a pack, and `import_official` for a checkpoint of the paper's
    code.

    Args:
        card: Metadata of the pack.
        encoder: Encoder of the language. It is switched to eval mode.
        tokenizer: Tokenizer of the language.

    Attributes:
        card: Metadata of the pack.
        encoder: Encoder of the language.
        tokenizer: Tokenizer of the language.

    """

    def __init__(self, card: Card, encoder: LanguageEncoder, tokenizer: LanguageTokenizer) -> None:
        self.card = card
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer

    @property
    def language(self) -> str:
        """BCP-47 tag of the language."""
        return self.card.language

    def tokenize(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize texts to `(ids_BL, length_B)`, int64, as the encoder takes them.

        `ids_BL` contains embedding rows, padded with row 0. `length_B` includes the end token.

        Raises:
            TypeError: The argument is bytes, or an item is not a `str`.
            ValueError: A text contains a lone surrogate, or the pack has no tokenizer.

        """
        return self.encoder.tower.pad(self.tokenizer(as_texts(texts)))

    def unknown_tokens(self, texts: str | Sequence[str]) -> Shares:
        """Compute the share of unknown tokens of each text `[N]`, float64, from 0 to 1.

        Unknown tokens are skipped, because nothing was learned for them. A text with share 1 gets
        the feature of a text without words, which carries no meaning but looks like any other
        feature.

        Raises:
            TypeError: The argument is bytes, or an item is not a `str`.
            ValueError: A text contains a lone surrogate, or the pack has no tokenizer.

        """
        return self.tokenizer.read(as_texts(texts))[1]

    @torch.inference_mode()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Encode texts to features `[N, E]`, float32, not L2-normalized.

        Texts are encoded in batches, so memory for activations does not grow with N.

        Args:
            texts: Any number of texts. A single string is one text, `[1, E]`. An empty list gives
                `[0, E]`.

        Raises:
            TypeError: The argument is bytes, or an item is not a `str`.
            ValueError: A text contains a lone surrogate, or the pack has no tokenizer. The message
                for a surrogate names the text and the position.

        """
        return self.encoder.encode_all(self.tokenizer(as_texts(texts)))

    @torch.inference_mode()
    def encode_ids(self, token_ids: Tensor) -> Tensor:
        """Encode token ids to features `[N, E]`, float32, not L2-normalized.

        Args:
            token_ids: Token ids `[N, L]`, int64, of the pack's tokenizer. Each row contains an end
                token. Ids after the first end token are ignored as padding.

        Raises:
            ValueError: A row has no end token, or an id is not in the tokenizer's vocabulary.

        """
        return self.encoder.encode_all(self.tokenizer.rows_of(token_ids.cpu().numpy()))

    def with_half_rows(self) -> "LanguagePack":
        """Return the pack with embedding rows in float16, which take half the space of float32.

        Features change by less than 1e-4. float16 rounds rows eight times finer than bfloat16, and
        their values are far from its largest, 65,504. Rows that have a larger value stay as they
        are. The returned pack shares all other weights with this one.
        """
        weights = self._weights()
        half_VW = weights[EMBEDDING_ROWS].half()
        if not torch.isfinite(half_VW).all():
            return self
        weights[EMBEDDING_ROWS] = half_VW
        encoder = LanguageEncoder.of_weights(self.encoder.tower, weights)
        return LanguagePack(self.card, encoder, self.tokenizer)

    def save(self, folder: str | Path | UPath) -> None:
        """Write the pack to a path or URL.

        A local pack is replaced atomically. At a URL, files cannot be renamed together. There the
        card is written last, and until then a reader finds no card or hashes that do not match.

        Raises:
            PackError: A weight is not finite.
            FileExistsError: The local folder contains something other than a pack.
            ValueError: The pack has no tokenizer, or rows that are not float32 or float16.

        """
        rows = self.encoder.embedding.rows.weight.dtype
        if rows not in SCHEMAS:
            raise ValueError(f"{folder}: embedding rows are {rows}; a pack has {[*SCHEMAS]}")
        _check_finite(self._weights(), str(folder))
        with _place_for(as_path(folder)) as scratch:
            save_file(
                {"embedding.tokens": torch.from_numpy(self.tokenizer.tokens)}
                | {name: w.detach().cpu().contiguous() for name, w in self._weights().items()},
                scratch / "weights.safetensors",
            )
            (scratch / "weights.safetensors").chmod(0o644)  # safetensors creates private files
            self.tokenizer.tokenizer.save(str(scratch / "tokenizer.json"))
            hashes = {n: _sha256(scratch / n) for n in ("weights.safetensors", "tokenizer.json")}
            changed = {"sha256": hashes, "schema_version": SCHEMAS[rows]}
            self.card = self.card.model_copy(update=changed)
            (scratch / "card.json").write_text(
                self.card.model_dump_json(indent=2, exclude_none=True) + "\n"
            )
            (scratch / "README.md").write_text(model_card(self.card))

    @classmethod
    def load(
        cls,
        folder: str | Path | UPath,
        native: Native,
        called: str = "",
        *,
        mapped: bool = False,
    ) -> Self:
        """Load the pack at a path or URL onto the native's device.

        Args:
            folder: Path or URL of the pack.
            native: Native that the pack was made for.
            called: Name of the pack for messages about another native. The default is `folder`.
            mapped: On the CPU, leave the embedding rows in the file, from which each is read when
                it is used. The file may be deleted, but nothing may write to it.

        Raises:
            PackError: A file is missing, damaged or too large, or the pack was made for another
                native. The message names the file.
            OSError: The storage is not available.

        """
        place, called = as_path(folder), called or str(folder)
        if is_local(place):
            local = Path(place.path)
            return read_consistently(local, lambda: cls._load(local, native, called, mapped))
        with tempfile.TemporaryDirectory(prefix="mla-pack-") as scratch:
            fetch_files(place, Path(scratch))
            return cls._load(Path(scratch), native, called, mapped)

    @classmethod
    def _load(cls, folder: Path, native: Native, called: str, mapped: bool) -> Self:
        card = read_card(folder)
        card.check(native, called)
        card = card.renewed(native)
        tower = native.text
        sizes = (card.width, card.blocks, card.context_length)
        if sizes != (tower.width, len(tower.blocks), tower.context_length):
            raise PackError(
                f"{folder}/card.json: width, blocks, context {sizes} differ from the native's"
            )
        _check_files(folder, card)
        weights = _read_weights(folder / "weights.safetensors", card, mapped)
        tokens = weights.pop("embedding.tokens").numpy()
        encoder = LanguageEncoder.of_weights(tower, weights)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise PackError(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from error
        if tokens.max(initial=0) >= tokenizer.get_vocab_size() or tokens.min(initial=0) < 0:
            raise PackError(
                f"{folder}: embedding rows for tokens that tokenizer.json does not have"
            )
        return cls(
            card,
            encoder.to(native.device),
            LanguageTokenizer(tokenizer, tokens, card.context_length),
        )

    def _weights(self) -> dict[str, Tensor]:
        return self.encoder.state_dict()


def import_official(
    path: str | Path,
    languages: Sequence[str],
    native: str | None = None,
    tokenizer: str | None = None,
    with_native: Path | None = None,
) -> tuple[Native, dict[str, LanguagePack]]:
    """Import packs from a checkpoint of the paper's released code, and the native that they fit.

    Args:
        path: `pytorch_model.bin`. Only tensors are read from it.
        languages: Languages as the checkpoint names them, such as `de`.
        native: Name of the native that the checkpoint was trained on. Its weights are compared with
            those in the checkpoint. The default is the CLIP in the checkpoint.
        tokenizer: M-BERT's tokenizer: a `tokenizer.json`, a folder or a hub name. Without it the
            packs accept only token ids and cannot be saved.
        with_native: Folder to write the CLIP in the checkpoint to, for `Native.load`.

    Returns:
        The native, and the packs by language.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        FileExistsError: `with_native` is not empty.
        OSError: The tokenizer is not available.
        ValueError: The file is not such a checkpoint, lacks a language, or does not fit the native
            or the tokenizer.

    """
    checkpoint = read_checkpoint(path)
    known = load_tokenizer(tokenizer) if tokenizer else None
    if known is not None:
        checkpoint.check_tokenizer(known)
    if with_native is not None:
        checkpoint.write_native(with_native)
    if native is not None:
        frozen = Native.load(native)
        checkpoint.check_native(frozen)
    elif with_native is not None:
        frozen = Native.load(str(with_native))
    else:
        frozen = checkpoint.native()
    packs = {}
    for language in languages:
        encoder = checkpoint.encoder(language, frozen.text)
        card = make_card(frozen, language, encoder, data={"imported": checkpoint.path.name})
        tokens = np.arange(card.rows, dtype=np.int32)
        language_tokenizer = LanguageTokenizer(known, tokens, card.context_length, END)
        packs[language] = LanguagePack(card, encoder, language_tokenizer)
    return frozen, packs


def _read_weights(path: Path, card: Card, mapped: bool) -> dict[str, Tensor]:
    """Read the tensors of a pack after a check. If `mapped` is True, rows stay in the file."""
    _check_header(path, card)
    # The check maps the file for itself. Pages that it touches do not stay in this process.
    _check_finite(_tensors(path), str(path))
    kept = [EMBEDDING_ROWS] if mapped else []
    return {n: w if n in kept else w.clone() for n, w in _tensors(path).items()}


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, which is mapped into memory."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _check_header(path: Path, card: Card) -> None:
    """Check the names, shapes and dtypes of a file of weights against the card."""
    expected: dict[str, tuple[list[int], str]] = {
        "embedding.tokens": ([card.rows], "I32"),
        EMBEDDING_ROWS: ([card.rows, card.row_width], ROWS[card.schema_version]),
        "embedding.linear.weight": ([card.width, card.row_width], "F32"),
        "embedding.linear.bias": ([card.width], "F32"),
    }
    for block in range(card.blocks):
        name = f"acquirers.{block}"
        expected[f"{name}.down.weight"] = ([card.hidden, card.width], "F32")
        expected[f"{name}.down.bias"] = ([card.hidden], "F32")
        expected[f"{name}.up.weight"] = ([card.width, card.hidden], "F32")
        expected[f"{name}.up.bias"] = ([card.width], "F32")
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            header = {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
            if header != expected:
                names = header.keys() | expected.keys()
                wrong = sorted(name for name in names if header.get(name) != expected.get(name))
                raise PackError(
                    f"{path}: tensors missing, unknown or of another shape: {wrong[:5]}"
                )
    except SafetensorError as error:
        raise PackError(f"{path}: not a safetensors file: {error}") from error


def _check_files(folder: Path, card: Card) -> None:
    for name in ("weights.safetensors", "tokenizer.json"):
        check_file(folder / name)
        if _sha256(folder / name) != card.sha256.get(name):
            raise PackError(f"{folder / name}: SHA-256 is not the card's; the file is damaged")


def _check_finite(weights: dict[str, Tensor], where: str) -> None:
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise PackError(
                f"{where}: {name} holds a value that is not finite, which makes features not finite"
                "; acquire the language again, or use an earlier copy"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_pack(source: str | Path | UPath, folder: str | Path | UPath) -> None:
    """Copy the pack at `source` to `folder`, replacing a pack there.

    Args:
        source: Path or URL of the pack.
        folder: Path or URL of the copy.

    Raises:
        PackError: The files of `source` do not match their card. `folder` is unchanged.
        FileExistsError: The local `folder` contains something other than a pack.

    """
    origin = as_path(source)
    with _place_for(as_path(folder)) as scratch:

        def copy() -> None:
            download(origin, scratch)
            try:
                _check_files(scratch, read_card(scratch))
            except PackError as error:
                raise PackError(str(error).replace(str(scratch), str(origin))) from error

        if is_local(origin):
            read_consistently(Path(origin.path), copy)
        else:
            copy()


@contextmanager
def _place_for(folder: UPath) -> Iterator[Path]:
    """Yield a local scratch folder whose files replace those of `folder` at the end."""
    if is_local(folder):
        place = Path(folder.path)
        with replacing_folder(place) as scratch:
            yield scratch
            if place.exists() and not (place / "card.json").is_file() and any(place.iterdir()):
                raise FileExistsError(
                    f"{place} exists and is not a language pack; choose another --out"
                )
    else:
        with tempfile.TemporaryDirectory(prefix="mla-pack-") as scratch:
            yield Path(scratch)
            upload(Path(scratch), folder, last="card.json")
