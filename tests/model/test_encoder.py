"""Promises of mla_ray.model.encoder: invariants 1, 2 and 3 of the design."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mla_ray.model.encoder import Acquirer, EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.packs.card import make_card
from mla_ray.packs.pack import LanguagePack
from tests.support.natives import MakePack, Train

HIDDEN = 16


def native_as_encoder(native: Native) -> LanguageEncoder:
    """Fresh acquirers around the native's own embedding rows."""
    embedding = EmbeddingBlock(native.text.token_embedding.weight, native.text)
    return LanguageEncoder(native.text, embedding, HIDDEN).eval()


def english(native: Native, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Native ids [B, L], cut if the tower allows, and lengths [B]."""
    ids = native.tokenize(texts)
    lengths = native.text.english_end(ids) + 1
    return (ids if native.text.fixed_length else ids[:, : int(lengths.max())]), lengths


@torch.inference_mode()
def test_a_fresh_acquirer_is_the_identity() -> None:
    x = torch.randn(3, 5, 32)
    assert torch.equal(Acquirer(32, HIDDEN)(x), x)


@pytest.mark.parametrize("name", ["native", "bidirectional"])
def test_a_fresh_encoder_with_the_natives_rows_is_the_native(
    request: pytest.FixtureRequest, corpus: dict[str, list[str]], name: str
) -> None:
    native: Native = request.getfixturevalue(name)
    encoder = native_as_encoder(native)
    assert torch.equal(encoder.embedding.linear.weight, torch.eye(32))
    ids, lengths = english(native, corpus["en"])
    with torch.inference_mode():
        found, expected = encoder(ids, lengths), native.encode_text(ids)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_training_leaves_english_the_same_to_the_byte(
    native: Native, corpus: dict[str, list[str]], train: Train
) -> None:
    ids, lengths = english(native, corpus["en"])
    before = native.encode_text(ids)
    weights = {name: weight.clone() for name, weight in native.model.state_dict().items()}
    encoder = native_as_encoder(native)
    untrained = encoder(ids, lengths)
    train(encoder, ids, lengths)
    assert not torch.allclose(encoder(ids, lengths), untrained)  # it did learn something
    assert torch.equal(native.encode_text(ids), before)
    for name, weight in native.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_training_one_language_leaves_another_the_same_to_the_byte(
    make_pack: MakePack, corpus: dict[str, list[str]], train: Train
) -> None:
    german, hindi = make_pack("de"), make_pack("hi", seed=1)
    before = german.encode_text(corpus["de"])
    hindi_before = hindi.encode_text(corpus["hi"])
    train(hindi.encoder, *hindi.tokenize(corpus["hi"]))
    assert not torch.allclose(hindi.encode_text(corpus["hi"]), hindi_before)
    assert torch.equal(german.encode_text(corpus["de"]), before)


def test_packs_of_a_shared_embedding_own_their_copy(
    native: Native, make_pack: MakePack, corpus: dict[str, list[str]], train: Train, tmp_path: Path
) -> None:
    german = make_pack("de", texts=corpus["de"] + corpus["hi"])
    hindi = make_pack("hi", seed=1, share=german)
    for pack in (german, hindi):
        train(pack.encoder, *pack.tokenize(corpus[pack.language]))
    german.save(tmp_path / "de")
    kept = LanguagePack.load(tmp_path / "de", native)
    before = kept.encode_text(corpus["de"])
    assert torch.equal(before, german.encode_text(corpus["de"]))

    train(hindi.encoder, *hindi.tokenize(corpus["hi"]))
    assert not torch.equal(german.encode_text(corpus["de"]), before)  # in the run they do share
    assert torch.equal(kept.encode_text(corpus["de"]), before)
    assert torch.equal(LanguagePack.load(tmp_path / "de", native).encode_text(corpus["de"]), before)


def test_gradients_reach_what_trains_and_nothing_else(
    native: Native, make_pack: MakePack, corpus: dict[str, list[str]]
) -> None:
    pack = make_pack("de")
    ids, lengths = pack.tokenize(corpus["de"][:2])
    pack.encoder(ids, lengths).square().sum().backward()
    names = {name for name, _ in pack.encoder.named_parameters()}
    assert names == {
        "embedding.rows.weight",
        "embedding.linear.weight",
        "embedding.linear.bias",
    } | {
        f"acquirers.{block}.{half}.{kind}"
        for block in range(3)
        for half in ("down", "up")
        for kind in ("weight", "bias")
    }
    for name, weight in pack.encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.to_dense().abs().max() > 0, name
    assert not [name for name, weight in native.model.named_parameters() if weight.grad is not None]


def test_the_gradient_of_the_rows_is_sparse(
    make_pack: MakePack, corpus: dict[str, list[str]]
) -> None:
    pack = make_pack("de")
    ids, lengths = pack.tokenize(corpus["de"][:2])
    pack.encoder(ids, lengths).square().sum().backward()
    gradient = pack.encoder.embedding.rows.weight.grad
    assert gradient.is_sparse
    touched = gradient.coalesce().indices()[0]
    assert set(touched.tolist()) == set(ids.unique().tolist())
    assert len(touched) < len(pack.tokenizer.tokens)


@torch.inference_mode()
def test_what_follows_a_texts_end_does_not_change_its_feature(
    make_pack: MakePack, corpus: dict[str, list[str]]
) -> None:
    pack = make_pack("de")
    ids, lengths = pack.tokenize(corpus["de"])
    after = torch.arange(ids.shape[1]) >= lengths[:, None]
    assert after.any()
    noise = torch.randint(1, len(pack.tokenizer.tokens), ids.shape)
    features = pack.encoder(ids, lengths)
    assert torch.equal(pack.encoder(torch.where(after, noise, ids), lengths), features)
    alone = torch.cat([pack.encode_text([text]) for text in corpus["de"]])
    torch.testing.assert_close(alone, features, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_every_acquirer_has_its_say(make_pack: MakePack, corpus: dict[str, list[str]]) -> None:
    pack = make_pack("de")
    features = pack.encode_text(corpus["de"])
    for acquirer in pack.encoder.acquirers:
        bias = acquirer.up.bias.clone()
        acquirer.up.bias[0] += 1
        assert not torch.allclose(pack.encode_text(corpus["de"]), features, atol=1e-3)
        acquirer.up.bias.copy_(bias)


@torch.inference_mode()
def test_packs_on_a_bidirectional_tower_fill_the_context(
    bidirectional: Native, make_pack: MakePack, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    causal = make_pack("de")
    embedding = EmbeddingBlock(causal.encoder.embedding.rows.weight, bidirectional.text)
    encoder = LanguageEncoder(bidirectional.text, embedding, HIDDEN)
    encoder.load_state_dict(causal.encoder.state_dict())
    pack = LanguagePack(make_card(bidirectional, "de", encoder), encoder, causal.tokenizer)
    ids, _ = pack.tokenize(["Katze"])
    assert ids.shape == (1, 24)
    together = pack.encode_text(corpus["de"])
    assert together.shape == (6, 32)
    alone = torch.cat([pack.encode_text([text]) for text in corpus["de"]])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    pack.save(tmp_path / "de")
    assert torch.equal(
        LanguagePack.load(tmp_path / "de", bidirectional).encode_text(corpus["de"]), together
    )


@pytest.mark.parametrize("row_width", [24, 32, 48])
@torch.inference_mode()
def test_a_fresh_embedding_block_has_the_spread_of_the_natives_embeddings(
    native: Native, row_width: int
) -> None:
    rows = torch.randn(2000, row_width, generator=torch.Generator().manual_seed(0)) * 3
    out = EmbeddingBlock(rows, native.text)(torch.arange(2000))
    assert out.shape == (2000, 32)
    wanted = float(native.text.token_embedding.weight.std())
    assert float(out.std()) == pytest.approx(wanted, rel=0.05)


def test_learned_rows_are_a_function_of_the_seed(native: Native) -> None:
    first, second, third = (
        learned_rows(500, native.text, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert float(first.std()) == pytest.approx(
        float(native.text.token_embedding.weight.std()), rel=0.05
    )
