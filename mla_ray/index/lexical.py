"""Words of captions as sparse vectors, for hybrid searches: BM25 (Robertson and Zaragoza, 2009).

A hybrid search also finds what an encoder does not know: names and codes. A caption's vector has
the saturated frequency of each of its words, and the engine multiplies the weight of a word by its
inverse document frequency. Hashes of words, weights and stemmers are those of Qdrant's own BM25.

- Words are NFKC and casefolded. A code such as `RX-7800` is also one word, without its hyphen.
- A word counts as it is written and by its stem, if there is a stemmer for the language. So a name
  is found by a query in any language, and in the caption's language in any inflection.
- Scripts without spaces between words count by characters and pairs of characters, as in Lucene's
  CJKAnalyzer. Korean does, too, because particles are attached to its words.
- No word is left out. Frequent ones have little weight.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple
from unicodedata import normalize

import qdrant_edge as edge
import regex

WORDS_RULE = 1
"""Number of the rule by which words are made. Increase it if a text now has other words."""
AVERAGE_LENGTH = 16
"""Words of a caption whose length neither raises nor lowers its score."""

_LETTER = r"[\p{L}\p{M}\p{N}]"
_UNSPACED = (
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}ー\p{Script=Hangul}\p{Script=Thai}"
    r"\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]"
)
_CHARACTER = regex.compile(rf"{_UNSPACED}\p{{M}}*")
_RUN = regex.compile(rf"(?P<unspaced>(?:{_UNSPACED}\p{{M}}*)+)|(?:(?!{_UNSPACED}){_LETTER})+")
_CODE = regex.compile(rf"(?=\S*\p{{N}}){_LETTER}+(?:[-_./]{_LETTER}+)+")

_STEMMERS = {
    "ar": edge.SnowballLanguage.Arabic,
    "da": edge.SnowballLanguage.Danish,
    "de": edge.SnowballLanguage.German,
    "el": edge.SnowballLanguage.Greek,
    "en": edge.SnowballLanguage.English,
    "es": edge.SnowballLanguage.Spanish,
    "fi": edge.SnowballLanguage.Finnish,
    "fr": edge.SnowballLanguage.French,
    "hu": edge.SnowballLanguage.Hungarian,
    "hy": edge.SnowballLanguage.Armenian,
    "it": edge.SnowballLanguage.Italian,
    "nb": edge.SnowballLanguage.Norwegian,
    "nl": edge.SnowballLanguage.Dutch,
    "nn": edge.SnowballLanguage.Norwegian,
    "no": edge.SnowballLanguage.Norwegian,
    "pt": edge.SnowballLanguage.Portuguese,
    "ro": edge.SnowballLanguage.Romanian,
    "ru": edge.SnowballLanguage.Russian,
    "sv": edge.SnowballLanguage.Swedish,
    "ta": edge.SnowballLanguage.Tamil,
    "tr": edge.SnowballLanguage.Turkish,
}
"""Stemmers by language subtag."""


class QueryText(NamedTuple):
    """Text of a hybrid search."""

    text: str
    language: str  # BCP-47


class Words(NamedTuple):
    """Sparse vector: the hash of each word of a text, and its weight."""

    hashes: list[int]
    weights: list[float]


@lru_cache(maxsize=1024)  # a batch is read for its size first, and then for its points
def words_of_caption(caption: str, language: str) -> Words:
    """Return the words of a caption, weighted by their saturated frequency."""
    return _merged(caption, language, lambda model, text: model.embed_document(text))


def words_of_query(query: QueryText) -> Words:
    """Return the words of a query. All have the same weight."""
    return _merged(query.text, query.language, lambda model, text: model.embed_query(text))


def _merged(
    text: str, language: str, embed: Callable[[edge.Bm25, str], edge.SparseVector]
) -> Words:
    """Return the words as they are written and their stems. Equal ones are one word."""
    spaced = " ".join(_split(text))
    weights: dict[int, float] = {}
    for stemmer in dict.fromkeys([None, _STEMMERS.get(language.partition("-")[0])]):
        vector = embed(_model(stemmer), spaced)
        for hash_, weight in zip(vector.indices, vector.values, strict=True):
            weights[hash_] = max(weight, weights.get(hash_, weight))
    return Words(list(weights), list(weights.values()))


def _split(text: str) -> Iterator[str]:
    """Yield the words of a text, not stemmed."""
    # Normalize twice: casefolding decomposes some letters.
    folded = normalize("NFKC", normalize("NFKC", text).casefold())
    for run in _RUN.finditer(folded):
        if run["unspaced"]:
            characters = _CHARACTER.findall(run[0])
            yield from characters
            yield from map("".join, pairwise(characters))
        else:
            yield run[0]
    for code in _CODE.findall(folded):
        yield regex.sub("[-_./]", "", code)


@cache
def _model(stemmer: edge.SnowballLanguage | None) -> edge.Bm25:
    return edge.Bm25(
        edge.Bm25Config(
            avg_len=AVERAGE_LENGTH,
            tokenizer=edge.TokenizerType.Whitespace,
            lowercase=False,
            stopwords=edge.StopwordsSet(),
            stemmer=edge.SnowballParams(stemmer) if stemmer else edge.DisabledStemmer(),
        )
    )
