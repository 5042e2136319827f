"""Tokenizers of acquired languages, and the embedding rows of their tokens.

A tokenizer is learned from the language's own text, or taken from a Hugging Face BERT (the paper
uses M-BERT). In both cases only tokens that occur in the language's corpus get an embedding row.

Shapes: B batch, L tokens, V embedding rows, W row width.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor

from mla_ray.model.spelling import spelling

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
BATCH = 10_000  # texts tokenized in one call
Ids = npt.NDArray[np.int32]
"""Array of int32, usually the embedding rows or token ids of one text."""
Shares = npt.NDArray[np.float64]
"""Array of float64 shares from 0 to 1."""

# GPT-2's pattern, extended by marks. The original splits a word at every mark, and the vowels of
# Devanagari and Thai are marks.
_WORDS = Regex(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}\u200c\u200d]+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{M}\p{N}\u200c\u200d]+|\s+(?!\S)|\s+"
)


def learn(texts: Iterable[str], vocab_size: int, language: str | None = None) -> Tokenizer:
    """Learn a byte-level BPE vocabulary from texts.

    Texts are normalized by NFKC, the language's `spelling` rules and lowercasing. A byte-level
    vocabulary has no unknown text. Every text is framed as BOS ... EOS.

    Args:
        texts: Training texts.
        vocab_size: Maximum number of tokens.
        language: BCP-47 tag that selects the spelling rules. Use "und" for several languages. None
            applies no spelling rules.

    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            *([] if language is None else spelling(language)),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Prepend(" "),  # the first word gets the same tokens as the others
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)],
    )
    return tokenizer


def from_hugging_face(name: str) -> tuple[Tokenizer, Tensor]:
    """Load the tokenizer and the word embeddings of a Hugging Face BERT.

    Args:
        name: Local folder with safetensors weights, or a hub name such as
            `bert-base-multilingual-cased`.

    Returns:
        The tokenizer, and embeddings `[tokens, W]` float32.

    Raises:
        OSError: The model is not available: no such folder, no network, or no safetensors weights.

    """
    from transformers import AutoModel  # seconds to import, and rarely needed

    tokenizer = load_tokenizer(name)
    bert = AutoModel.from_pretrained(name, use_safetensors=True)
    return tokenizer, bert.get_input_embeddings().weight.detach().float().clone()


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer, without padding and truncation.

    Args:
        name: Path of a `tokenizer.json`, or the folder or hub name of a Hugging Face model.

    Raises:
        OSError: The file or model is not available.
        ValueError: The file is not a `tokenizer.json`.

    """
    if name.endswith(".json"):
        path = Path(name)
        try:
            tokenizer = Tokenizer.from_str(path.read_text())
        except OSError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a tokenizer.json: {error}") from error
    else:
        from transformers import AutoTokenizer  # seconds to import, and rarely needed

        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class LanguageTokenizer:
    """Tokenizer from texts to embedding rows.

    A control token's name in a text is plain text: `<eos>` does not end the text.

    Args:
        tokenizer: Tokenizer that frames each text with a first and a last token. It is copied. With
            None only `rows_of` works, and `end` is required.
        tokens: Token ids `[V]`, int32, that have an embedding row, in row order. Other tokens are
            skipped, because nothing was learned for them.
        context_length: Maximum number of tokens. A longer text is cut and keeps its end token.
        end: Id of the end token. The default is the tokenizer's last token of a text.

    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        tokens: Ids,
        context_length: int,
        end: int | None = None,
    ) -> None:
        self._tokenizer = None
        self._text: Callable[[str], str] = str
        size = int(tokens.max(initial=-1)) + 1
        if tokenizer is not None:
            self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy to configure
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._text = text_of(self._tokenizer)
            size = self._tokenizer.get_vocab_size()
        self.tokens = tokens
        self.context_length = context_length
        self._end = end
        self._row_of = np.full(size, -1, dtype=np.int32)
        self._row_of[tokens] = np.arange(len(tokens), dtype=np.int32)
        # Which tokens carry meaning, and which of those are unknown.
        self._says = np.ones(size, dtype=bool)
        self._unknown = self._row_of < 0
        if self._tokenizer is not None:
            unknown = unknown_id(self._tokenizer)
            frame = [number for number, _ in _control(self._tokenizer).values()]
            self._says[[*frame, *blank_ids(self._tokenizer)]] = False
            if unknown is not None:
                self._says[unknown] = self._unknown[unknown] = True
        self._unknown &= self._says

    @property
    def tokenizer(self) -> Tokenizer:
        """The underlying tokenizer.

        Raises:
            ValueError: The language has no tokenizer.

        """
        if self._tokenizer is None:
            raise ValueError("this language came without a tokenizer; pass token ids, not texts")
        return self._tokenizer

    @property
    def end(self) -> int:
        """Id of the end token."""
        return self.tokenizer.encode("").ids[-1] if self._end is None else self._end

    @classmethod
    def for_corpus(
        cls, tokenizer: Tokenizer, texts: Iterable[str], context_length: int
    ) -> "LanguageTokenizer":
        """Create a tokenizer with a row for padding and for each token that occurs in `texts`."""
        used = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
        rest = iter(texts)
        while batch := list(islice(rest, BATCH)):
            for ids in token_ids(tokenizer, batch):
                used[ids] = True
        return cls.with_tokens(tokenizer, used, context_length)

    @classmethod
    def with_tokens(
        cls, tokenizer: Tokenizer, used: npt.NDArray[np.bool_], context_length: int
    ) -> "LanguageTokenizer":
        """Create a tokenizer with a row for padding and for each token that is used.

        Args:
            tokenizer: Tokenizer that frames each text.
            used: Whether each token of the vocabulary is used, bool.
            context_length: Maximum number of tokens of a text.

        """
        tokens = np.flatnonzero(used).astype(np.int32)
        for name in (PAD, "[PAD]"):  # ours, BERT's
            if (padding := tokenizer.token_to_id(name)) is not None:
                # Padding is row 0.
                tokens = np.concatenate([[padding], tokens[tokens != padding]]).astype(np.int32)
        return cls(tokenizer, tokens, context_length)

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """Return the embedding rows of each text, from 2 to `context_length` rows, int32."""
        return self.read(texts)[0]

    def read(self, texts: Sequence[str]) -> tuple[list[Ids], Shares]:
        """Return the embedding rows of each text, and the share of its unknown tokens.

        A token is unknown if it has no embedding row or is the tokenizer's unknown token. Frame
        tokens and tokens that are a single space do not count. The part of a text beyond the
        context does count.

        Returns:
            Rows of each text, int32, at most `context_length`. Shares `[B]`, float64, from 0 to 1.
            The share is 1 for a text without any counted token.

        Raises:
            ValueError: The language has no tokenizer.

        """
        rows: list[Ids] = []
        shares = np.ones(len(texts))
        for index, ids in enumerate(self._token_ids(texts)):
            row = self._row_of[ids]
            said, unknown = self._counts(ids)
            if said:
                shares[index] = unknown / said
            rows.append(shorten(row[row >= 0], self.context_length))
        return rows, shares

    def count(self, text: str) -> int:
        """Count the tokens of a text. An unknown token counts twice.

        Frame tokens and tokens that are a single space do not count.
        """
        (ids,) = self._token_ids([text])
        return sum(self._counts(ids))

    def _token_ids(self, texts: Sequence[str]) -> list[Ids]:
        return _encoded(self.tokenizer, [self._text(text) for text in texts])

    def _counts(self, ids: Ids) -> tuple[int, int]:
        """Return the number of meaningful tokens and of unknown tokens."""
        return int(self._says[ids].sum()), int(self._unknown[ids].sum())

    def rows_of(self, token_ids: npt.NDArray[np.int64]) -> list[Ids]:
        """Return the embedding rows of each text of token ids, up to its first end token.

        Args:
            token_ids: Token ids `[B, L]`, int64.

        Raises:
            ValueError: A text has no end token, or an id is not in the tokenizer's vocabulary.

        """
        is_end = token_ids == self.end
        if not is_end.any(axis=1).all():
            row = int(np.argmin(is_end.any(axis=1)))
            raise ValueError(f"text {row} has no end token {self.end}")
        if token_ids.min(initial=0) < 0 or token_ids.max(initial=0) >= len(self._row_of):
            raise ValueError(f"token ids must be from 0 to {len(self._row_of) - 1}")
        rows = []
        for ids, end in zip(token_ids, is_end.argmax(axis=1), strict=True):
            row = self._row_of[ids[: end + 1]]
            rows.append(shorten(row[row >= 0], self.context_length))
        return rows

    @property
    def row_of(self) -> Ids:
        """Embedding row of each token of the tokenizer, int32, or -1 for a token without a row."""
        return self._row_of


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Return the tokenizer's ids of each text, int32, with control token names as plain text."""
    text = text_of(tokenizer)
    return _encoded(tokenizer, [text(each) for each in texts])


def _encoded(tokenizer: Tokenizer, given: Sequence[str]) -> list[Ids]:
    encodings = tokenizer.encode_batch_fast(given)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def text_of(tokenizer: Tokenizer) -> Callable[[str], str]:
    """Return a function that prepares a text so that no part of it becomes a control token."""
    control = _control(tokenizer)
    # In most vocabularies the library searches the unnormalized text for control tokens. In others
    # a control token is a piece of the model, which the normalizer may produce from other letters.
    pieces = any(
        token.normalized or _is_piece(tokenizer, name, number)
        for name, (number, token) in control.items()
    )
    return spelled_out(control, tokenizer.normalizer if pieces else None)


def _is_piece(tokenizer: Tokenizer, name: str, number: int) -> bool:
    model = tokenizer.model
    if model.token_to_id(name) is None:
        return False
    return any(piece.id == number for piece in model.tokenize(name))


def _control(tokenizer: Tokenizer) -> dict[str, tuple[int, AddedToken]]:
    added = tokenizer.get_added_tokens_decoder().items()
    return {token.content: (number, token) for number, token in added if token.special}


def spelled_out(
    control: Collection[str], normalizer: normalizers.Normalizer | None = None
) -> Callable[[str], str]:
    """Return a function that splits the names of control tokens in a text: `< eos>`.

    The function returns all other texts unchanged. The libraries' own option to treat such a name
    as text does not suffice: a vocabulary that contains the name as a piece, as sentencepiece's do,
    still produces the control token.

    Args:
        control: Names of the control tokens. A name of a single character is ignored, because it
            cannot be distinguished from text.
        normalizer: Normalizer of the tokenizer, if its output must be checked too: `＜eos＞`.

    """
    names = sorted({re.escape(name) for name in control if len(name) > 1}, key=len, reverse=True)
    if not names:
        return str
    pattern = re.compile("|".join(names))

    def spell(text: str) -> str:
        return pattern.sub(lambda name: f"{name[0][0]} {name[0][1:]}", text)

    def given(text: str) -> str:
        text = spell(text)
        if normalizer is not None and pattern.search(plain := normalizer.normalize_str(text)):
            return spell(plain)
        return text

    return given


def blank_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of tokens that are a single space, as GPT-2 or sentencepiece writes it."""
    spaces = [tokenizer.token_to_id(token) for token in ("Ġ", "▁")]
    return [
        token for token in spaces if token is not None and not tokenizer.decode([token]).strip()
    ]


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the tokenizer's unknown token, or None if it has none."""
    model = tokenizer.model
    if isinstance(model, models.Unigram):
        known: int | None = json.loads(tokenizer.to_str())["model"]["unk_id"]
        return known
    return None if model.unk_token is None else tokenizer.token_to_id(model.unk_token)


def shorten(ids: Ids, length: int) -> Ids:
    """Cut a text to at most `length` tokens and keep its end token."""
    return ids if len(ids) <= length else np.concatenate([ids[: length - 1], ids[-1:]])


def pad(rows: Sequence[Ids], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Pad rows of different lengths with row 0.

    Args:
        rows: Embedding rows of B texts.
        length: Padded length L. The default is the longest text's length.

    Returns:
        `ids_BL` and `length_B`, int64.

    """
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    ids = np.zeros((len(rows), length or int(lengths.max(initial=0))), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return torch.from_numpy(ids), torch.from_numpy(lengths)
