"""Promises of packs.mixed_batch: a batch of many languages says what each language alone would."""

import pytest
import torch

from mla_ray.data.feature_store import encode_texts
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import LanguageTokenizer, learn
from mla_ray.packs.card import make_card
from mla_ray.packs.mixed_batch import encode_mixed, read_mixed
from mla_ray.packs.pack import LanguagePack
from tests.support.natives import CONTEXT, MakePack


@pytest.fixture(scope="module")
def packs(make_pack: MakePack) -> dict[str, LanguagePack | None]:
    return {"en": None, "de": make_pack("de", 1), "hi": make_pack("hi", 2)}


def alone(native: Native, pack: LanguagePack | None, text: str) -> torch.Tensor:
    if pack is None:
        return torch.from_numpy(encode_texts(native, [text]))[0]
    return pack.encode_text([text])[0]


def test_each_row_goes_through_its_own_acquirers(
    native: Native, packs: dict[str, LanguagePack | None], corpus: dict[str, list[str]]
) -> None:
    rows = [(text, packs[language]) for language in packs for text in corpus[language]]
    rows = rows[::2] + rows[1::2]  # languages interleaved

    mixed = encode_mixed(native, rows)

    expected = torch.stack([alone(native, pack, text) for text, pack in rows])
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)
    # and the languages do differ: the same text means something else to each
    same = encode_mixed(native, [("cat", pack) for pack in packs.values()])
    assert torch.pdist(same).min() > 1e-2


def test_one_language_is_the_same_as_its_pack(
    native: Native, packs: dict[str, LanguagePack | None]
) -> None:
    pack = packs["de"]
    assert pack is not None
    texts = ["ein Hund", "Katze", "zwei Hunde spielen im Schnee"]
    mixed = encode_mixed(native, [(text, pack) for text in texts])
    torch.testing.assert_close(mixed, pack.encode_text(texts), rtol=0, atol=1e-6)


def test_a_text_longer_than_the_context_ends_where_the_context_does(
    native: Native, packs: dict[str, LanguagePack | None]
) -> None:
    long = "Hund " * 100
    mixed = encode_mixed(native, [(long, packs["de"]), ("dog " * 100, None)])
    torch.testing.assert_close(mixed[0], alone(native, packs["de"], long), rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1], alone(native, None, "dog " * 100), rtol=0, atol=1e-5)


def test_a_bidirectional_tower_sees_its_padding_in_every_language(
    bidirectional: Native, corpus: dict[str, list[str]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    tokenizer = LanguageTokenizer.for_corpus(learn(corpus["de"], 500), corpus["de"], CONTEXT)
    rows = learned_rows(len(tokenizer.tokens), bidirectional.text, generator)
    encoder = LanguageEncoder(
        bidirectional.text, EmbeddingBlock(rows, bidirectional.text), hidden=16
    )
    pack = LanguagePack(make_card(bidirectional, "de", encoder), encoder, tokenizer)

    mixed = encode_mixed(bidirectional, [("ein Hund", pack), ("a dog", None), ("Katze", pack)])

    torch.testing.assert_close(
        mixed[[0, 2]], pack.encode_text(["ein Hund", "Katze"]), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(mixed[1], alone(bidirectional, None, "a dog"), rtol=0, atol=1e-5)


def test_a_row_that_is_no_number_costs_no_other_row(
    native: Native, packs: dict[str, LanguagePack | None], make_pack: MakePack
) -> None:
    ill = make_pack("de", 3)
    with torch.no_grad():
        ill.encoder.embedding.rows.weight[ill.tokenizer(["Katze"])[0][1]] = 3e38
    rows = [("cat", None), ("Katze", ill), ("ein Hund", packs["de"]), ("ein Hund", ill)]
    mixed = encode_mixed(native, rows)
    assert not mixed[1].isfinite().all()
    for row in (0, 2, 3):
        text, pack = rows[row]
        torch.testing.assert_close(mixed[row], alone(native, pack, text), rtol=0, atol=1e-5)


def test_unknown_tokens_are_told_in_the_order_of_the_texts(
    native: Native, packs: dict[str, LanguagePack | None]
) -> None:
    rows = [(text, packs[tongue]) for text in ("ein Hund", "犬", "एक 7") for tongue in packs]
    features, shares = read_mixed(native, rows)
    torch.testing.assert_close(features, encode_mixed(native, rows), rtol=0, atol=0)
    expected = [(pack or native).unknown_tokens([text])[0] for text, pack in rows]
    assert shares.tolist() == expected
    assert len({*expected}) > 2


def test_no_texts_are_no_rows(native: Native) -> None:
    features, shares = read_mixed(native, [])
    assert features.shape == (0, 32)
    assert shares.shape == (0,)
