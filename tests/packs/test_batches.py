"""A row's answer does not depend on what else is in its batch."""

import numpy as np
import pytest
import torch

from mla_ray.data.feature_store import encode_texts
from mla_ray.model.native import Native
from mla_ray.packs.mixed_batch import encode_mixed
from tests.support.natives import MakePack


def texts(words: list[str], rng: np.random.Generator, count: int) -> list[str]:
    """Of one word to more than the tower takes."""
    return [" ".join(rng.choice(words, size=rng.integers(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_alone_and_among_others(
    native: Native, make_pack: MakePack, corpus: dict[str, list[str]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    packs = {language: make_pack(language) for language in ("de", "hi")}
    made = [
        (language, text)
        for language in ("en", "de", "hi")
        for text in texts(" ".join(corpus[language]).split(), rng, 20)
    ]
    order = rng.permutation(len(made))
    mixed = encode_mixed(native, [(made[n][1], packs.get(made[n][0])) for n in order])
    for row, number in zip(mixed, order, strict=True):
        language, text = made[number]
        if language == "en":
            alone = torch.from_numpy(encode_texts(native, [text]))[0]
        else:
            alone = packs[language].encode_text([text])[0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)
