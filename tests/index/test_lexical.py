"""Promises about the words of captions and queries."""

import pytest

from mla_ray.index.lexical import QueryText, Words, words_of_caption, words_of_query


def shared(query: str, caption: str, *, of: str = "en", to: str = "en") -> int:
    """Return how many words a query has in common with a caption."""
    words = set(words_of_query(QueryText(query, of)).hashes)
    return len(words & set(words_of_caption(caption, to).hashes))


@pytest.mark.parametrize(
    ("query", "caption", "language"),
    [
        ("RX-7800", "the new rx-7800 xt", "en"),
        ("rx7800", "the new RX-7800", "en"),
        ("RX-7800", "the new RX7800", "en"),
        ("STRASSE", "eine schmale Straße", "de"),
        ("houses", "an old house", "en"),
        ("Häuser", "das Häusern gleicht", "de"),
        ("ﬁre", "FIRE", "en"),
        ("भाषा", "हिन्दी भाषा", "hi"),
        ("京都", "京都タワーの写真", "ja"),
        ("写真", "京都タワーの写真", "ja"),
        ("猫", "黒猫", "ja"),
        ("天安门", "我爱北京天安门", "zh"),
        ("โต๊ะ", "แมวดำนั่งบนโต๊ะ", "th"),
        ("서울타워", "서울타워의 야경", "ko"),
    ],
)
def test_a_caption_has_the_words_of_a_query_for_it(query: str, caption: str, language: str) -> None:
    assert shared(query, caption, of=language, to=language) > 0


def test_a_name_is_found_in_a_caption_of_any_language() -> None:
    # Stems differ by language: English cuts "Mercedes", Japanese has no stemmer.
    for of in ("en", "de", "ru", "ja", "sw", "pt-BR"):
        for to in ("en", "fr", "tr", "zh-Hant"):
            assert shared("Mercedes", "Mercedes", of=of, to=to) > 0


def test_words_that_a_caption_lacks_are_not_shared() -> None:
    assert shared("RX-7900", "the new RX-7800") == 1  # "rx" alone
    assert shared("dog", "a cat") == 0
    assert shared("京都", "東京の写真") == 1  # one character, no pair


def test_a_text_without_words_has_none() -> None:
    assert words_of_caption("🙂 !", "en") == words_of_query(QueryText("…", "de")) == Words([], [])


def test_a_word_of_a_long_caption_weighs_less_and_repetition_saturates() -> None:
    def weight(caption: str) -> float:
        words = words_of_caption(caption, "xx")
        (dog,) = words_of_query(QueryText("dog", "xx")).hashes
        return words.weights[words.hashes.index(dog)]

    assert weight("dog") > weight("a dog that has many other words around it")
    assert weight("dog") < weight("dog dog") < weight("dog dog dog") < 2.2
    assert set(words_of_query(QueryText("dog dog cat", "xx")).weights) == {1.0}
