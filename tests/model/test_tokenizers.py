"""Promises of mla_ray.model.tokenizers."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertModel

from mla_ray.model.tokenizers import (
    BOS,
    EOS,
    PAD,
    LanguageTokenizer,
    from_hugging_face,
    learn,
    pad,
    spelled_out,
    token_ids,
)

SCRIPTS = {
    "German": "Übergrößenträger küsst Ärztin",
    "Hindi": "दो कुत्ते बर्फ में खेलते हैं",
    "Japanese": "雪の中で遊ぶ二匹の犬とコーヒー",
    "emoji": "👩🏽‍🚀 🏳️‍🌈 🦜",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_no_text_of_any_script_is_unknown_to_a_learned_tokenizer(
    corpus: dict[str, list[str]], text: str
) -> None:
    tokenizer = learn(corpus["en"], 400)
    expected = unicodedata.normalize("NFKC", text).lower()
    assert tokenizer.decode(tokenizer.encode(text).ids).strip() == expected


@pytest.mark.parametrize("text", [*SCRIPTS.values(), "", "a dog"])
def test_a_learned_tokenizer_frames_every_text(corpus: dict[str, list[str]], text: str) -> None:
    tokens = learn(corpus["en"], 400).encode(text).tokens
    assert tokens[0] == BOS
    assert tokens[-1] == EOS
    assert not {PAD, BOS, EOS} & set(tokens[1:-1])


def test_a_learned_tokenizer_does_not_mind_case(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn(corpus["de"], 400)
    assert tokenizer.encode("SCHNEE im März").ids == tokenizer.encode("schnee IM märz").ids


def test_a_learned_vocabulary_keeps_to_its_size_and_learns_words(
    corpus: dict[str, list[str]],
) -> None:
    small, large = learn(corpus["de"] * 2, 300), learn(corpus["de"] * 2, 500)
    assert small.get_vocab_size() == 300
    assert 300 < large.get_vocab_size() <= 500
    assert len(large.encode("Regenschirm").ids) == 3
    assert len(small.encode("Regenschirm").ids) > 3


@pytest.mark.parametrize("word", ["कुत्ते", "ผู้หญิง", "কুকুর", "ကြောင်", "şapka", "भ्रष्ट\u200dक"])
def test_a_word_is_not_cut_at_its_marks(word: str) -> None:
    """Vowels of Devanagari and Thai are marks, not letters, to Unicode."""
    tokenizer = learn([f"{word}, {word}"] * 4, 2_000)
    ids = tokenizer.encode(word).ids
    assert len(ids) == 3, tokenizer.encode(word).tokens


def test_words_are_spelled_alike_wherever_they_stand(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn(corpus["de"] * 4, 2_000)
    first, second = tokenizer.encode("hund katze").tokens[1:-1], tokenizer.encode("katze")
    assert second.tokens[1:-1] == first[-len(second.tokens[1:-1]) :]
    assert tokenizer.encode("  katze ").ids == second.ids
    assert len(tokenizer.encode("").ids) == 2


def test_the_same_texts_learn_the_same_tokenizer(corpus: dict[str, list[str]]) -> None:
    texts = [text for texts in corpus.values() for text in texts]
    assert len({learn(texts * 2, 450).to_str() for _ in range(4)}) == 1


def test_only_tokens_that_the_corpus_uses_have_rows(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn([text for texts in corpus.values() for text in texts], 600)
    ours = LanguageTokenizer.for_corpus(tokenizer, corpus["de"], 24)
    used = {token for text in corpus["de"] for token in tokenizer.encode(text).ids}
    assert len(set(ours.tokens.tolist())) == len(ours.tokens)
    assert set(ours.tokens.tolist()) == used | {tokenizer.token_to_id(PAD)}
    assert len(ours.tokens) < tokenizer.get_vocab_size()
    assert ours.tokens.dtype == np.int32


def test_rows_stand_for_the_tokenizers_tokens(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn(corpus["de"], 500)
    ours = LanguageTokenizer.for_corpus(tokenizer, corpus["de"], 200)
    for text, row in zip(corpus["de"], ours(corpus["de"]), strict=True):
        assert ours.tokens[row].tolist() == tokenizer.encode(text).ids


def test_a_corpus_of_many_batches_is_seen_to_its_end(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn(corpus["de"] + corpus["hi"], 500)
    texts = [*["Katze"] * 10_000, "अंगूर"]
    rows = LanguageTokenizer.for_corpus(tokenizer, iter(texts), 24)(["अंगूर"])
    assert len(rows[0]) == len(tokenizer.encode("अंगूर").ids)


def test_a_long_text_is_cut_and_keeps_its_end(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn(corpus["de"], 500)
    long = " ".join(corpus["de"])
    whole = LanguageTokenizer.for_corpus(tokenizer, [long], 10_000)([long])[0]
    assert len(whole) > 12
    for length in (2, 3, 12, len(whole) - 1, len(whole), len(whole) + 1):
        row = LanguageTokenizer.for_corpus(tokenizer, [long], length)([long])[0]
        cut = [*whole[: length - 1], whole[-1]] if length < len(whole) else [*whole]
        assert row.tolist() == cut


def test_tokens_that_the_corpus_did_not_use_are_skipped(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn(corpus["de"] + corpus["hi"], 600)
    ours = LanguageTokenizer.for_corpus(tokenizer, ["Hund", "Katze"], 24)
    plain, mixed, unseen = ours(["Katze", "Katze कुत्ता", "कुत्ता"])
    assert len(unseen) >= 2
    assert unseen[[0, -1]].tolist() == plain[[0, -1]].tolist()
    known = [t for t in tokenizer.encode("Katze कुत्ता").ids if t in set(ours.tokens.tolist())]
    assert ours.tokens[mixed].tolist() == known
    assert (np.concatenate([plain, mixed, unseen]) > 0).all()


def test_row_0_pads(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn(corpus["de"], 500)
    ours = LanguageTokenizer.for_corpus(tokenizer, corpus["de"], 24)
    assert ours.tokens[0] == tokenizer.token_to_id(PAD)
    rows = ours(["Katze", corpus["de"][1]])
    ids, lengths = pad(rows)
    assert ids.dtype == lengths.dtype == torch.int64
    assert ids.shape == (2, max(map(len, rows)))
    assert lengths.tolist() == [len(row) for row in rows]
    for index, row in enumerate(rows):
        assert ids[index, : len(row)].tolist() == row.tolist()
        assert not ids[index, len(row) :].any()
    assert pad(rows, 24)[0].shape == (2, 24)


def test_a_tokenizer_set_to_pad_and_cut_does_neither_here(corpus: dict[str, list[str]]) -> None:
    tokenizer = learn(corpus["de"], 500)
    expected = LanguageTokenizer.for_corpus(tokenizer, corpus["de"], 24)(corpus["de"])
    tokens = LanguageTokenizer.for_corpus(tokenizer, corpus["de"], 24).tokens
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(3)
    rows = LanguageTokenizer(tokenizer, tokens, 24)(corpus["de"])
    assert [row.tolist() for row in rows] == [row.tolist() for row in expected]


def test_a_hugging_face_bert_gives_its_word_embeddings(bert_folder: Path) -> None:
    tokenizer, embeddings = from_hugging_face(str(bert_folder))
    bert = BertModel.from_pretrained(bert_folder)
    assert torch.equal(embeddings, bert.embeddings.word_embeddings.weight)
    assert embeddings.shape == (tokenizer.get_vocab_size(), 24)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad


def test_a_hugging_face_bert_gives_its_token_ids(
    bert_folder: Path, corpus: dict[str, list[str]]
) -> None:
    tokenizer, _ = from_hugging_face(str(bert_folder))
    theirs = AutoTokenizer.from_pretrained(bert_folder)
    texts = [*corpus["de"], "Hunde im Hafen", "unbekannt: 犬"]
    expected = theirs(texts)["input_ids"]
    assert [tokenizer.encode(text).ids for text in texts] == expected
    ours = LanguageTokenizer.for_corpus(tokenizer, texts, 64)
    assert [ours.tokens[row].tolist() for row in ours(texts)] == expected
    assert ours.tokens[0] == theirs.pad_token_id
    assert all(row[-1] == expected[0][-1] == theirs.sep_token_id for row in expected)


def test_a_bert_that_is_not_there_is_an_oserror() -> None:
    with pytest.raises(OSError, match="/no/such/bert"):
        from_hugging_face("/no/such/bert")


def test_a_bert_with_pickled_weights_only_is_an_oserror(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(bert_folder, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        from_hugging_face(str(folder))


def sentencepiece() -> Tokenizer:
    """As XLM-RoBERTa's: its control tokens are pieces of the vocabulary, which a text may hold."""
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz<>/"]
    control = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = Tokenizer(models.Unigram([*control, *letters], unk_id=3))
    tokenizer.add_special_tokens([name for name, _ in control])
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(params=["learned", "bert", "sentencepiece"])
def any_tokenizer(
    request: pytest.FixtureRequest, corpus: dict[str, list[str]], bert_folder: Path
) -> Tokenizer:
    if request.param == "learned":
        return learn(corpus["de"] * 2, 400)
    if request.param == "bert":
        return Tokenizer.from_file(str(bert_folder / "tokenizer.json"))
    return sentencepiece()


def special(tokenizer: Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder().items()
    return {token.content: number for number, token in added if token.special}


@pytest.mark.parametrize(
    "shape", ["{}", "Hund {} Katze", "{0}{0}", "x{}", "{} Hund", "﹤{rest}", "{half}\u0000{rest}"]
)
def test_a_control_token_that_a_text_spells_is_text(any_tokenizer: Tokenizer, shape: str) -> None:
    everything = np.arange(any_tokenizer.get_vocab_size(), dtype=np.int32)
    ours = LanguageTokenizer(any_tokenizer, everything, 64)
    control = special(any_tokenizer)
    unknown = {control.get("<unk>"), control.get("[UNK]")}
    for name in control:
        text = shape.format(name, half=name[0], rest=name[1:])
        for ids in (token_ids(any_tokenizer, [text])[0], ours([text])[0]):
            inside = set(ids[1:-1].tolist()) - unknown
            assert not inside & set(control.values()), text


def test_ordinary_texts_keep_their_tokens(
    any_tokenizer: Tokenizer, corpus: dict[str, list[str]]
) -> None:
    texts = [text for texts in corpus.values() for text in texts] + list(SCRIPTS.values())
    texts += ["", "a < b > c", "<eos", "eos>", "[sep] < pad >", "it's <b>bold</b> [1]", "  \t x "]
    expected = [encoding.ids for encoding in any_tokenizer.encode_batch(texts)]
    everything = np.arange(any_tokenizer.get_vocab_size(), dtype=np.int32)
    ours = LanguageTokenizer(any_tokenizer, everything, 10_000)
    assert [ids.tolist() for ids in ours(texts)] == expected
    assert [ids.tolist() for ids in token_ids(any_tokenizer, texts)] == expected


def test_a_token_of_one_character_is_text_already() -> None:
    """There are vocabularies that pad with "!"."""
    assert spelled_out(["!", "<eos>"])("Hund! <eos>") == "Hund! < eos>"
    assert spelled_out(["!"])("Hund! <eos>") == "Hund! <eos>"


def test_the_token_for_what_is_unknown_has_a_row_and_is_unknown(bert_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bert_folder / "tokenizer.json"))
    ours = LanguageTokenizer.for_corpus(tokenizer, ["Hund 犬", "Katze"], 64)
    unknown = tokenizer.token_to_id("[UNK]")
    assert unknown in ours.tokens
    rows, shares = ours.read(["Hund", "Hund 犬", "犬", "Schnee Katze", ""])
    assert shares.tolist() == [0, 0.5, 1, 0.5, 1]
    assert [len(row) for row in rows] == [3, 4, 3, 3, 2]
