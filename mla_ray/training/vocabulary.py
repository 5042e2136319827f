"""The vocabulary of a run: its tokenizer, which tokens its languages use, and their initial rows.

It is learned from a sample of the tables, taken from a Hugging Face BERT, or that of a pack that
the run goes on from. One vocabulary serves all languages of a run.

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
    """A tokenizer, and which of its tokens are met in each language's tables.

    Attributes:
        tokenizer: text to tokens of the whole vocabulary.
        context_length: the native's.
        embeddings: a row for each token [V, W], where the tokenizer came with some.
        start: the pack that the run goes on from; tokens without a row in it are left out.
        used: by language, a mask of the tokens that its tables hold.

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
        """The vocabulary that a run begins with; no token is used yet.

        Args:
            native: gives the context length.
            languages: of the run.
            samples: of its tables, whose texts (`target`) it is learned from.
            start: a pack whose vocabulary it is instead.
            config: `vocabulary` and `vocab_size`.

        """
        embeddings = None
        if start is not None:
            tokenizer = start.tokenizer.tokenizer
        elif config.vocabulary == "learned":
            texts = chain.from_iterable(sample["target"].to_pylist() for sample in samples)
            # What is one letter in a language may be two in another.
            language = languages[0] if len(languages) == 1 else "und"
            tokenizer = learn(texts, config.vocab_size, language)
        else:
            tokenizer, embeddings = from_hugging_face(config.vocabulary)
        size = tokenizer.get_vocab_size()
        used = {language: np.zeros(size, bool) for language in languages}
        return cls(tokenizer, native.text.context_length, embeddings, start, used)

    def encode(self, language: str, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts, cut at the context length; all tokens that they hold are now used."""
        uncut = token_ids(self.tokenizer, texts)
        if self.start is not None:
            row_of = self.start.tokenizer.row_of
            uncut = [ids[row_of[ids] >= 0] for ids in uncut]
        # Before the cut: a query may begin with what stands past it here.
        self.used[language][np.concatenate(uncut)] = True
        return [shorten(ids, self.context_length) for ids in uncut]

    def language_tokenizer(self) -> LanguageTokenizer:
        """Text to embedding rows, of all tokens that any language uses."""
        if self.start is not None:
            return self.start.tokenizer
        used = np.logical_or.reduce(list(self.used.values()))
        return LanguageTokenizer.with_tokens(self.tokenizer, used, self.context_length)

    def used_by(self, language: str) -> npt.NDArray[np.bool_]:
        """A mask of the tokens that are the language's own; of a pack to start from all its."""
        if self.start is not None:
            mask: npt.NDArray[np.bool_] = self.start.tokenizer.row_of >= 0
            return mask
        return self.used[language]

    def initial_tensors(
        self, native: Native, pairs: Sequence[pa.Table], config: AcquireConfig
    ) -> dict[str, Tensor]:
        """Where training starts, as `acquisition_learner.initial_encoders` takes it.

        Args:
            native: whose embeddings rows may be aligned with.
            pairs: samples of the translation tables.
            config: `rows` and `seed`.

        Returns:
            `rows` [V, W], `tokens` [V] that they are of, `own/<language>`: which rows are the
            language's own, and `start/...`: the other weights of a pack to start from.

        """
        tokenizer = self.language_tokenizer()
        weights: dict[str, Tensor] = {}
        if self.start is not None:
            weights = self.start.encoder.state_dict()
            rows = weights.pop("embedding.rows.weight")
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
