"""A language pack: all that one acquired language adds to a native, in one folder of a few MB.

    weights.safetensors   embedding rows, linear, acquirers; the tokenizer ids of the rows
    tokenizer.json        the `tokenizers` library's own format
    card.json             what it is, what it was made from, how well it does, hashes of the rest
    README.md             the card for people

Loading checks hashes, sizes, names, shapes and dtypes before it allocates, and refuses a pack made
for another native, or with a weight that is not finite.
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

from mla_ray.model.batches import by_length
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder
from mla_ray.model.native import Native
from mla_ray.model.text import as_texts
from mla_ray.model.tokenizers import Ids, LanguageTokenizer, Shares, load_tokenizer
from mla_ray.packs.card import Card, make_card, read_card
from mla_ray.packs.files import PackError, check_file, fetch_files
from mla_ray.packs.official import END, read_checkpoint
from mla_ray.packs.readme import model_card
from mla_ray.runtime.atomic import read_consistently, replacing_folder
from mla_ray.runtime.storage import as_path, download, is_local, upload

BATCH = 256  # texts in one pass


class LanguagePack:
    """One language on one native: texts of the language in, features in the native's space out."""

    def __init__(self, card: Card, encoder: LanguageEncoder, tokenizer: LanguageTokenizer) -> None:
        self.card = card
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer

    @property
    def language(self) -> str:
        return self.card.language

    def tokenize(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts to `(ids_BL, length_B)` as the encoder takes them; `texts` as in `encode_text`."""
        return self.encoder.tower.pad(self.tokenizer(as_texts(texts)))

    def unknown_tokens(self, texts: str | Sequence[str]) -> Shares:
        """Share of each text's tokens of which nothing was learned [N], 0 to 1.

        Such tokens are skipped. Where it is 1 the feature is that of a text without words, whatever
        the text: it says nothing, and looks no less certain.
        """
        return self.tokenizer.read(as_texts(texts))[1]

    @torch.inference_mode()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Features [N, E] float32, not normalised; memory is that of a batch, whatever N.

        A string is one text, [1, E]; no texts are [0, E].

        Raises:
            TypeError: something among `texts` is no text.
            ValueError: a text holds half a character (a lone surrogate); says where.

        """
        return self._encode(self.tokenizer(as_texts(texts)))

    @torch.inference_mode()
    def encode_ids(self, token_ids: Tensor) -> Tensor:
        """Features [N, E] float32, not normalised, of token ids [N, L] (`AcquisitionEncoder`)."""
        return self._encode(self.tokenizer.rows_of(token_ids.cpu().numpy()))

    def _encode(self, ids: list[Ids]) -> Tensor:
        device = self.encoder.embedding.linear.weight.device
        features_NE = torch.empty(len(ids), self.encoder.tower.dim, device=device)
        for rows in by_length([len(each) for each in ids], BATCH):
            ids_BL, length_B = self.encoder.tower.pad([ids[row] for row in rows])
            features_NE[rows] = self.encoder(ids_BL.to(device), length_B.to(device)).float()
        return features_NE

    def save(self, folder: str | Path | UPath) -> None:
        """Write the pack to a path or URL; an older one is replaced at once or not at all.

        Weights that are not finite are a PackError. At a URL, where files cannot be renamed
        together, the card comes last: until then a reader finds hashes that do not fit.
        """
        _check_finite(self._weights(), str(folder))
        with _place_for(as_path(folder)) as scratch:
            save_file(
                {"embedding.tokens": torch.from_numpy(self.tokenizer.tokens)}
                | {name: w.detach().cpu().contiguous() for name, w in self._weights().items()},
                scratch / "weights.safetensors",
            )
            (scratch / "weights.safetensors").chmod(0o644)  # safetensors writes private files
            self.tokenizer.tokenizer.save(str(scratch / "tokenizer.json"))
            hashes = {n: _sha256(scratch / n) for n in ("weights.safetensors", "tokenizer.json")}
            self.card = self.card.model_copy(update={"sha256": hashes})
            (scratch / "card.json").write_text(
                self.card.model_dump_json(indent=2, exclude_none=True) + "\n"
            )
            (scratch / "README.md").write_text(model_card(self.card))

    @classmethod
    def load(cls, folder: str | Path | UPath, native: Native, called: str = "") -> Self:
        """The pack at a path or URL, on `native` and its device.

        Args:
            folder: a path or URL.
            native: the pack's.
            called: how to call the pack when it is of another native, if not by `folder`.

        Raises:
            PackError: names the file and what is wrong with it.

        """
        place, called = as_path(folder), called or str(folder)
        if is_local(place):
            local = Path(place.path)
            return read_consistently(local, lambda: cls._load(local, native, called))
        with tempfile.TemporaryDirectory(prefix="mla-pack-") as scratch:
            fetch_files(place, Path(scratch))
            return cls._load(Path(scratch), native, called)

    @classmethod
    def _load(cls, folder: Path, native: Native, called: str) -> Self:
        card = read_card(folder)
        card.check(native, called)
        card = card.renewed(native)
        tower = native.text
        sizes = (card.width, card.blocks, card.context_length)
        if sizes != (tower.width, len(tower.blocks), tower.context_length):
            raise PackError(
                f"{folder}/card.json: width, blocks, context {sizes} are not the native's"
            )
        _check_files(folder, card)
        weights = _read_weights(folder / "weights.safetensors", card)
        tokens = weights.pop("embedding.tokens").numpy()
        embedding = EmbeddingBlock(weights["embedding.rows.weight"], tower)
        encoder = LanguageEncoder(tower, embedding, card.hidden)
        encoder.load_state_dict(weights)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise PackError(f"{folder / 'tokenizer.json'}: no tokenizer: {error}") from error
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
    """The packs in a checkpoint of the paper's released code, and the native they are for.

    Args:
        path: `pytorch_model.bin`; only tensors are read from it.
        languages: as the checkpoint names them, `de`.
        native: name of the native that the checkpoint was trained on, whose weights are compared
            with those in the checkpoint; the CLIP inside if not given.
        tokenizer: M-BERT's: a `tokenizer.json`, a folder or a hub name. Without it the packs take
            token ids only, and cannot be saved.
        with_native: where to write the CLIP inside as a folder that `Native.load` takes.

    Raises:
        ValueError: not such a checkpoint, a language it does not have, or another native's.

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


def _read_weights(path: Path, card: Card) -> dict[str, Tensor]:
    """The tensors of a pack, after their header has been checked against the card."""
    expected: dict[str, tuple[list[int], str]] = {
        "embedding.tokens": ([card.rows], "I32"),
        "embedding.rows.weight": ([card.rows, card.row_width], "F32"),
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
            weights = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise PackError(f"{path}: not a safetensors file: {error}") from error
    _check_finite(weights, str(path))
    return weights


def _check_files(folder: Path, card: Card) -> None:
    for name in ("weights.safetensors", "tokenizer.json"):
        check_file(folder / name)
        if _sha256(folder / name) != card.sha256.get(name):
            raise PackError(f"{folder / name}: SHA-256 is not the card's; the file is damaged")


def _check_finite(weights: dict[str, Tensor], where: str) -> None:
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise PackError(
                f"{where}: {name} holds a value that is not finite, so that features would not be; "
                "acquire the language anew, or take a copy from before"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_pack(source: str | Path | UPath, folder: str | Path | UPath) -> None:
    """Put a copy of the pack in `source` in the place of `folder`, either a path or a URL.

    Raises:
        PackError: the files of `source` do not belong together; `folder` is as it was.
        FileExistsError: `folder` is something else than a pack.

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
    """A scratch folder on this machine whose files are in the place of `folder` in the end."""
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
