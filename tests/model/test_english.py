"""Promises of model.english: all of a text is text to a native's tokenizer, and what is unknown."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mla_ray.model.english import text_only
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import learn
from tests.support.natives import BuildModel

CONTEXT = 24
ORDINARY = [
    "",
    "a dog",
    "Two dogs  play in the snow!",
    "it's 3 × 4 & more < less > [so] it is",
    "élan, naïve; ﬁne",
    "<b>bold</b> and &amp; &lt;i&gt;",
    "[sep] [mask] </ s> <sos> |endoftext|",
    "雪の中 कुत्ता 👩🏽‍🚀",
    "cat " * 40,
]


def framed(tokenizer: Tokenizer, first: str, last: str, **special: str) -> PreTrainedTokenizerFast:
    ids = [(name, tokenizer.token_to_id(name)) for name in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=first, eos_token=last, **special
    )


def byte_level() -> PreTrainedTokenizerFast:
    special = {"pad_token": "<pad>"}
    return framed(learn(["a dog", "a dog"], 300), "<bos>", "<eos>", **special)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa's: its control tokens are pieces of the vocabulary."""
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz<>/[]"]
    control = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    tokenizer = Tokenizer(models.Unigram([*control, ("▁dog", -6.0), *letters], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return framed(tokenizer, "<s>", "</s>", **special)


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT's, but split at white space alone, so that a control token is a word of its own."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "[", "]", "##]", "S", "##EP"]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return framed(tokenizer, "[CLS]", "[SEP]", **special)


MAKE = {"byte level": byte_level, "sentencepiece": sentencepiece, "word pieces": word_pieces}


@pytest.fixture(params=["open_clip", *MAKE])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> SimpleTokenizer | HFTokenizer:
    if request.param == "open_clip":
        return open_clip.get_tokenizer("ViT-B-32")
    MAKE[request.param]().save_pretrained(tmp_path)
    return HFTokenizer(str(tmp_path), context_length=CONTEXT)


def control(tokenizer: SimpleTokenizer | HFTokenizer) -> dict[str, int]:
    if isinstance(tokenizer, SimpleTokenizer):
        return {tokenizer.decoder[token]: token for token in tokenizer.all_special_ids}
    ids = zip(
        tokenizer.tokenizer.all_special_tokens, tokenizer.tokenizer.all_special_ids, strict=True
    )
    return dict(ids)


def inside(ids_L: Tensor, empty_L: Tensor) -> list[int]:
    """A text's tokens without the first, the last and what pads."""
    first, last, pad = (int(empty_L[place]) for place in (0, 1, -1))
    ids = ids_L.tolist()
    assert ids[0] == first
    while ids[-1] == pad:
        ids.pop()
    if pad != last:
        assert ids.pop() == last
    return ids[1:]


def test_ordinary_texts_keep_their_tokens(tokenizer: SimpleTokenizer | HFTokenizer) -> None:
    expected = tokenizer(ORDINARY, context_length=CONTEXT)
    assert torch.equal(text_only(tokenizer)(ORDINARY, context_length=CONTEXT), expected)
    assert torch.equal(tokenizer(ORDINARY, context_length=CONTEXT), expected)  # is as it was


@pytest.mark.parametrize(
    "shape",
    [
        "{}",
        "a {} dog",
        "{}{}",
        "a{}",
        "dog {}",
        "&lt;{rest}",
        "&amp;lt;{rest}",
        "＜{rest}",
        "﹤{rest}",
    ],
)
def test_a_control_token_that_a_text_spells_is_text(
    tokenizer: SimpleTokenizer | HFTokenizer, shape: str
) -> None:
    ours = text_only(tokenizer)
    (empty_L,) = ours([""], context_length=CONTEXT)
    unknown = getattr(getattr(tokenizer, "tokenizer", None), "unk_token_id", None)
    forbidden = set(control(tokenizer).values()) - {unknown}
    for name in control(tokenizer):
        if "rest" in shape and name[0] != "<":
            continue
        text = shape.format(name, name, rest=name[1:])
        (ids_L,) = ours([text], context_length=CONTEXT)
        assert not forbidden & set(inside(ids_L, empty_L)), text


@pytest.mark.parametrize("name", ["sentencepiece", "word pieces"])
def test_what_a_natives_tokenizer_does_not_know_is_told(
    name: str, build_model: BuildModel, tmp_path: Path
) -> None:
    MAKE[name]().save_pretrained(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path), context_length=CONTEXT)
    frame = tokenizer.tokenizer.sep_token_id if name == "word pieces" else None
    native = Native("x", build_model(eos_id=frame or tokenizer.tokenizer.eos_token_id), tokenizer)
    texts = ["a dog", "dog 犬", "犬 犬", "", "a dog 犬 犬", "犬 " * 60]
    space = tokenizer.tokenizer.get_vocab().get("▁")
    for text, share in zip(texts, native.unknown_tokens(texts).tolist(), strict=True):
        ids = tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"][: CONTEXT - 2]
        ids = [token for token in ids if token != space]
        unknown = [token == tokenizer.tokenizer.unk_token_id for token in ids]
        assert share == pytest.approx(np.mean(unknown) if ids else 1), text
    assert native.unknown_tokens(["a dog", "", "dog"]).tolist() == [0, 1, 0]


def test_bytes_are_all_known(native: Native) -> None:
    assert native.unknown_tokens(["a dog", "犬", "собака 12345", ""]).tolist() == [0, 0, 0, 1]
