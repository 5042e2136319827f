"""Tokenizers of acquired languages, and the embedding rows their tokens stand for.

Two kinds: one learned from the language's own text, or that of any Hugging Face BERT (the paper
takes M-BERT's). Either way only the tokens that the language's corpus uses get an embedding row.

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
BATCH = 10_000  # texts tokenised in one call
Ids = npt.NDArray[np.int32]
Shares = npt.NDArray[np.float64]

# GPT-2's, which cuts a word at every mark: in Devanagari and Thai these are its vowels.
_WORDS = Regex(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}\u200c\u200d]+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{M}\p{N}\u200c\u200d]+|\s+(?!\S)|\s+"
)


def learn(texts: Iterable[str], vocab_size: int, language: str | None = None) -> Tokenizer:
    """A byte-level BPE vocabulary of at most `vocab_size` tokens, learned from `texts`.

    NFKC, spelled as `spelling` has it, in small letters; no text of any script is unknown to it.
    Every text becomes BOS ... EOS.

    Args:
        texts: what it is learned from.
        vocab_size: at most.
        language: BCP-47, whose spellings are made one; "und" of several; as they are if None.

    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            *([] if language is None else spelling(language)),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Prepend(" "),  # the first word is spelled as the others
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
    """Tokenizer and word embeddings [tokens, W] float32 of a Hugging Face BERT.

    Args:
        name: a local folder with safetensors weights, or a hub name such as
            `bert-base-multilingual-cased`.

    Raises:
        OSError: it cannot be had (no such folder, no network, no safetensors weights).

    """
    from transformers import AutoModel  # seconds to import, and rarely needed

    tokenizer = load_tokenizer(name)
    bert = AutoModel.from_pretrained(name, use_safetensors=True)
    return tokenizer, bert.get_input_embeddings().weight.detach().float().clone()


def load_tokenizer(name: str) -> Tokenizer:
    """A `tokenizer.json`, or that of a Hugging Face model by folder or hub name.

    Raises:
        OSError: it cannot be had.
        ValueError: the file is no tokenizer.

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
    """Texts to embedding rows. All of a text is text: `<eos>` in one ends nothing.

    Args:
        tokenizer: any `tokenizers.Tokenizer` that frames each text with a first and a last token;
            None if there is none at hand: then `rows_of` works and texts do not.
        tokens: the tokenizer's ids that have an embedding row, in row order [V] int32. Other
            tokens are skipped: nothing was learned of them.
        context_length: longer texts are cut, keeping the end token.
        end: the end token's id; the tokenizer's last one of any text if not given.

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
            self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # ours to configure
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._text = text_of(self._tokenizer)
            size = self._tokenizer.get_vocab_size()
        self.tokens = tokens
        self.context_length = context_length
        self._end = end
        self._row_of = np.full(size, -1, dtype=np.int32)
        self._row_of[tokens] = np.arange(len(tokens), dtype=np.int32)
        # Which tokens say something, and of them those of which nothing is known.
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
        if self._tokenizer is None:
            raise ValueError("this language came without a tokenizer; token ids are all it takes")
        return self._tokenizer

    @property
    def end(self) -> int:
        """Id of the token that ends every text."""
        return self.tokenizer.encode("").ids[-1] if self._end is None else self._end

    @classmethod
    def for_corpus(
        cls, tokenizer: Tokenizer, texts: Iterable[str], context_length: int
    ) -> "LanguageTokenizer":
        """With a row for each token that `texts` use, and for padding."""
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
        """With a row for each token that is used, and for padding."""
        tokens = np.flatnonzero(used).astype(np.int32)
        for name in (PAD, "[PAD]"):  # ours, BERT's
            if (padding := tokenizer.token_to_id(name)) is not None:
                # Row 0, what batches are padded with.
                tokens = np.concatenate([[padding], tokens[tokens != padding]]).astype(np.int32)
        return cls(tokenizer, tokens, context_length)

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """Embedding rows of each text, at least two and at most `context_length` of them."""
        return self.read(texts)[0]

    def read(self, texts: Sequence[str]) -> tuple[list[Ids], Shares]:
        """Embedding rows of each text, and the share of its tokens that is unknown [B], 0 to 1.

        A token is unknown if it has no row, or is the one that the tokenizer has for what it does
        not know. One that is a space and nothing else says nothing and does not count. Of a text
        without any other all is unknown. The whole text counts, also what is cut.
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
        """Of how many tokens a text is; one that is not known counts twice."""
        (ids,) = self._token_ids([text])
        return sum(self._counts(ids))

    def _token_ids(self, texts: Sequence[str]) -> list[Ids]:
        return _encoded(self.tokenizer, [self._text(text) for text in texts])

    def _counts(self, ids: Ids) -> tuple[int, int]:
        """Tokens that say something, and those of them that are not known."""
        return int(self._says[ids].sum()), int(self._unknown[ids].sum())

    def rows_of(self, token_ids: npt.NDArray[np.int64]) -> list[Ids]:
        """Embedding rows of each text of token ids [B, L], up to its first end token.

        Raises:
            ValueError: a text has no end token, or a token that the tokenizer does not know.

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
        """Embedding row of each token of the tokenizer, -1 where it has none."""
        return self._row_of


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """The tokenizer's own ids of each text, of which all is text, as in `LanguageTokenizer`."""
    text = text_of(tokenizer)
    return _encoded(tokenizer, [text(each) for each in texts])


def _encoded(tokenizer: Tokenizer, given: Sequence[str]) -> list[Ids]:
    encodings = tokenizer.encode_batch_fast(given)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def text_of(tokenizer: Tokenizer) -> Callable[[str], str]:
    """What a tokenizer is to be given for a text, so that none of it becomes a control token."""
    control = _control(tokenizer)
    # Most vocabularies have a control token's name for the library to look for, in a text as it
    # came. In others it is a piece like any other, and the normaliser may make it of other letters.
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
    """A function that puts a space into whatever in a text spells a control token: `< eos>`.

    All other texts it returns as they are. (Libraries can be told to take such a word for text, but
    a vocabulary that has it as a piece, as sentencepiece's have, gives its token all the same.)

    Args:
        control: the tokens' names. One of a single character cannot be told from text and is none.
        normalizer: the tokenizer's, if what it makes of a text is to be looked at, too: `＜eos＞`.

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
    """Ids of tokens that are a space and nothing else, in GPT-2's or sentencepiece's writing."""
    spaces = [tokenizer.token_to_id(token) for token in ("Ġ", "▁")]
    return [
        token for token in spaces if token is not None and not tokenizer.decode([token]).strip()
    ]


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Id of the token for what the tokenizer does not know; None if it has none."""
    model = tokenizer.model
    if isinstance(model, models.Unigram):
        known: int | None = json.loads(tokenizer.to_str())["model"]["unk_id"]
        return known
    return None if model.unk_token is None else tokenizer.token_to_id(model.unk_token)


def shorten(ids: Ids, length: int) -> Ids:
    """At most `length` tokens of a text, its end token among them."""
    return ids if len(ids) <= length else np.concatenate([ids[: length - 1], ids[-1:]])


def pad(rows: Sequence[Ids], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Ragged rows to `(ids_BL, length_B)`, int64, L the longest or `length`; row 0 pads."""
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    ids = np.zeros((len(rows), length or int(lengths.max(initial=0))), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return torch.from_numpy(ids), torch.from_numpy(lengths)
