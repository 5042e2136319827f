"""Vocabulary of a run: its tokenizer, the tokens that its languages use, and their initial rows.

It is learned from a sample of the tables, or comes from a Hugging Face BERT or from the pack that
the run starts from. All languages of a run share one vocabulary.

Shapes: V embedding rows, W row width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from torch import Tensor

from mla_ray.model.alignment import aligned_rows
from mla_ray.model.encoder import learned_rows
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import (
    Ids,
    LanguageTokenizer,
    from_hugging_face,
    learn,
    shorten,
    token_ids,
)
from mla_ray.packs.pack import LanguagePack
from mla_ray.training.config import AcquireConfig


@dataclass
class Vocabulary:
    """Tokenizer of a run, with the tokens that occur in each language's tables.

    Attributes:
        tokenizer: Tokenizer with the whole vocabulary.
        context_length: Context length of the native model, in tokens.
        embeddings: Embeddings of all tokens `[tokens, W]` if the tokenizer came with some.
        start: Pack that the run starts from. Tokens without a row in it are dropped.
        used: Mask of the tokens that occur in a language's tables, by language.

    """

    tokenizer: Tokenizer
    context_length: int
    embeddings: Tensor | None
    start: LanguagePack | None
    used: dict[str, npt.NDArray[np.bool_]]

    @classmethod
    def of(
        cls,
        native: Native,
        languages: Sequence[str],
        samples: Sequence[pa.Table],
        start: LanguagePack | None,
        config: AcquireConfig,
    ) -> "Vocabulary":
        """Create the vocabulary of a run. No token is marked as used yet.

        Args:
            native: Native model, for its context length.
            languages: Languages of the run.
            samples: Samples of the tables. A vocabulary is learned from their column `target`.
            start: Pack whose vocabulary is used instead, or None.
            config: Settings `vocabulary` and `vocab_size`.

        """
        embeddings = None
        if start is not None:
            tokenizer = start.tokenizer.tokenizer
        elif config.vocabulary == "learned":
            texts = chain.from_iterable(sample["target"].to_pylist() for sample in samples)
            # Several languages get only the common spelling rules, because one letter of a
            # language can be two letters of another.
            language = languages[0] if len(languages) == 1 else "und"
            tokenizer = learn(texts, config.vocab_size, language)
        else:
            tokenizer, embeddings = from_hugging_face(config.vocabulary)
        size = tokenizer.get_vocab_size()
        used = {language: np.zeros(size, bool) for language in languages}
        return cls(tokenizer, native.text.context_length, embeddings, start, used)

    def encode(self, language: str, texts: Sequence[str]) -> list[Ids]:
        """Tokenize texts, cut the ids at the context length, and mark all tokens as used."""
        uncut = token_ids(self.tokenizer, texts)
        if self.start is not None:
            row_of = self.start.tokenizer.row_of
            uncut = [ids[row_of[ids] >= 0] for ids in uncut]
        # Tokens past the cut count, too: a query may begin with them.
        self.used[language][np.concatenate(uncut)] = True
        return [shorten(ids, self.context_length) for ids in uncut]

    def language_tokenizer(self) -> LanguageTokenizer:
        """Return the tokenizer to embedding rows, with a row for each token that is used."""
        if self.start is not None:
            return self.start.tokenizer
        used = np.logical_or.reduce(list(self.used.values()))
        return LanguageTokenizer.with_tokens(self.tokenizer, used, self.context_length)

    def used_by(self, language: str) -> npt.NDArray[np.bool_]:
        """Return a mask of the tokens that the language uses.

        If the run starts from a pack, these are all tokens of the pack.
        """
        if self.start is not None:
            mask: npt.NDArray[np.bool_] = self.start.tokenizer.row_of >= 0
            return mask
        return self.used[language]

    def initial_tensors(
        self, native: Native, pairs: Sequence[pa.Table], config: AcquireConfig
    ) -> dict[str, Tensor]:
        """Return the initial tensors for `acquisition_learner.initial_encoders`.

        Args:
            native: Native model, with whose token embeddings rows may be aligned.
            pairs: Samples of the translation tables.
            config: Settings `rows` and `seed`.

        Returns:
            `rows` `[V, W]` float32; `tokens` `[V]` int32, the token id of each row;
            `own/<language>` int64, the rows that the language uses; and `start/...`, the other
            weights of a start pack.

        """
        tokenizer = self.language_tokenizer()
        weights: dict[str, Tensor] = {}
        if self.start is not None:
            weights = self.start.encoder.state_dict()
            rows = weights.pop("embedding.rows.weight").float()
        else:
            rows = self._initial_rows(native, tokenizer, pairs, config)
        tensors = {"rows": rows, "tokens": torch.from_numpy(tokenizer.tokens)}
        tensors |= {f"start/{name}": weight for name, weight in weights.items()}
        for language in self.used:
            of_language = np.flatnonzero(self.used_by(language)[tokenizer.tokens])
            own = np.union1d([0], of_language).astype(np.int64)  # row 0 pads
            tensors[f"own/{language}"] = torch.from_numpy(own)
        return tensors

    def _initial_rows(
        self,
        native: Native,
        tokenizer: LanguageTokenizer,
        pairs: Sequence[pa.Table],
        config: AcquireConfig,
    ) -> Tensor:
        if self.embeddings is not None:
            return self.embeddings[torch.from_numpy(tokenizer.tokens).long()]
        generator = torch.Generator().manual_seed(config.seed)
        rows = learned_rows(len(tokenizer.tokens), native.text, generator)
        if config.rows == "random":
            return rows
        english = list(chain.from_iterable(table["source"].to_pylist() for table in pairs))
        targets: list[Ids] = []
        for table in pairs:
            targets += tokenizer(table["target"].to_pylist())
        return aligned_rows(native, english, targets, rows, config.seed)
