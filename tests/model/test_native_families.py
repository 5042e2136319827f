"""Every family of natives in its architecture, with random weights.

For `make test` text towers have three blocks and 2,000 rows of embeddings, beside a small image
tower; the slow ones are what `open_clip.create_model` builds, nothing cut.
"""

import gc
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor

from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder
from mla_ray.model.native import Native
from mla_ray.model.towers import BertTower, ClipTower
from tests.support.natives import VISION

ROWS, BLOCKS = 2000, 3
# Name, blocks, width, E, context, whether texts fill it.
FAMILIES = {
    "ViT-B-32-quickgelu": (12, 512, 512, 77, False),
    "ViT-L-14": (12, 768, 768, 77, False),
    "ViT-B-16-SigLIP": (12, 768, 768, 64, True),
    "ViT-B-16-SigLIP2": (12, 768, 768, 64, True),
    "MobileCLIP-S1": (12, 512, 512, 77, True),
    "MobileCLIP-B": (12, 512, 512, 77, False),
    "roberta-ViT-B-32": (12, 768, 512, 77, False),
}
WHOLE = FAMILIES | {
    "ViT-B-16": (12, 512, 512, 77, False),
    "ViT-SO400M-14-SigLIP": (27, 1152, 1152, 16, True),
    "MobileCLIP-S2": (12, 512, 512, 77, True),
    "xlm-roberta-base-ViT-B-32": (12, 768, 512, 77, False),
}


def text_cfg(name: str, folder: Path, *, cut: bool = False) -> dict[str, Any]:
    """open_clip's, with the configuration of a BERT as `roberta-base` and its like have it."""
    found: dict[str, Any] = open_clip.get_model_config(name)["text_cfg"]
    if "hf_model_name" in found:
        from transformers import RobertaConfig, XLMRobertaConfig

        kind = {"roberta-base": RobertaConfig, "xlm-roberta-base": XLMRobertaConfig}
        vocabulary = {"roberta-base": 50_265, "xlm-roberta-base": 250_002}
        kind[found["hf_model_name"]](
            vocab_size=ROWS if cut else vocabulary[found["hf_model_name"]],
            num_hidden_layers=BLOCKS if cut else 12,
            max_position_embeddings=514,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        ).save_pretrained(folder)
        return found | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    return found | ({"vocab_size": ROWS, "layers": BLOCKS} if cut else {})


def no_tokenizer(texts: list[str], context_length: int) -> Tensor:
    """Those of some families are on a hub."""
    return torch.full((len(texts), context_length), 2)


@pytest.fixture(scope="module", params=FAMILIES)
def native(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Native]:
    torch.manual_seed(0)
    config = open_clip.get_model_config(request.param)
    text = text_cfg(request.param, tmp_path_factory.mktemp("bert"), cut=True)
    model = open_clip.CustomTextCLIP(
        embed_dim=config["embed_dim"],
        quick_gelu=config.get("quick_gelu", False),
        vision_cfg=dict(VISION),
        text_cfg=text,
    )
    open_clip.set_model_preprocess_cfg(model, asdict(PreprocessCfg()))
    yield Native(request.param, model, no_tokenizer)
    del model
    gc.collect()


def random_texts(native: Native) -> Tensor:
    """Token ids [3, L] of a short text, a longer one, and one that fills the context."""
    tower, generator = native.text, torch.Generator().manual_seed(0)
    length = tower.context_length
    last = tower.token_embedding.num_embeddings - 1  # the highest id ends a text of CLIP's
    ids = torch.randint(3, last, (3, length), generator=generator)
    ids[:, 0] = 0  # RoBERTa's <s>
    for row, count in enumerate([4, length // 2, length]):
        ids[row, count - 1] = 2 if isinstance(tower, BertTower) else last
        ids[row, count:] = tower.pad_id
    return ids


def check_english(native: Native) -> Tensor:
    """English is the library's own to the byte. Returns its features."""
    ids = random_texts(native)
    with torch.inference_mode():
        features = native.encode_text(ids)
        assert torch.equal(features, native.model.encode_text(ids))
    assert features.shape == (3, native.dim)
    assert torch.pdist(features).min() > 1e-4 * features.norm(dim=-1).max()
    return features


def check_close(found: Tensor, expected: Tensor) -> None:
    """The largest difference is below 1e-5 of the largest value."""
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def check_against_the_librarys_blocks(
    encoder: LanguageEncoder, ids: Tensor, lengths: Tensor, features: Tensor
) -> None:
    """Features and gradients are those that open_clip's own blocks give with these acquirers."""
    tower = encoder.tower
    if not isinstance(tower, ClipTower):
        return
    assert tower._frozen_blocks is not None
    ours = [weight.grad for weight in encoder.parameters()]
    encoder.zero_grad(set_to_none=True)
    frozen, tower._frozen_blocks = tower._frozen_blocks, None
    try:
        expected = encoder(ids, lengths)
        expected.square().sum().backward()
    finally:
        tower._frozen_blocks = frozen
    check_close(features, expected.detach())
    for found, weight in zip(ours, encoder.parameters(), strict=True):
        assert found is not None
        assert weight.grad is not None
        found, theirs = found.to_dense(), weight.grad.to_dense()
        assert (found - theirs).norm() < 1e-5 * theirs.norm()


def check_acquirers(native: Native) -> None:
    """Fresh acquirers are the identity; others change the feature, and alone get gradients."""
    tower = native.text
    embedding = EmbeddingBlock(tower.token_embedding.weight, tower)
    encoder = LanguageEncoder(tower, embedding, hidden=16).eval()
    assert len(encoder.acquirers) == len(tower.blocks)
    ids = random_texts(native)[:2]
    lengths = torch.tensor([4, tower.context_length // 2])
    if not tower.fixed_length:
        ids = ids[:, : int(lengths.max())]
    with torch.inference_mode():
        english = native.encode_text(ids)
        check_close(encoder(ids, lengths), english)
    with torch.no_grad():
        for weight in encoder.acquirers.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    features = encoder(ids, lengths)
    assert not torch.allclose(features, english, atol=1e-3)
    features.square().sum().backward()
    check_against_the_librarys_blocks(encoder, ids, lengths, features.detach())
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        gradient = weight.grad.coalesce().values() if weight.grad.is_sparse else weight.grad
        assert 0 < gradient.abs().max() < torch.inf, name
    assert not [name for name, weight in native.model.named_parameters() if weight.grad is not None]
    with torch.inference_mode():
        assert torch.equal(native.encode_text(ids), english)


def test_english_is_the_librarys_own_to_the_byte(native: Native) -> None:
    check_english(native)


def test_acquirers_step_in_after_every_block(native: Native) -> None:
    check_acquirers(native)


def test_blocks_that_are_computed_again_have_the_same_gradients_and_keep_less(
    native: Native,
) -> None:
    tower = native.text
    embedding = EmbeddingBlock(tower.token_embedding.weight, tower)
    encoder = LanguageEncoder(tower, embedding, hidden=16)
    with torch.no_grad():
        for weight in encoder.acquirers.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    ids = random_texts(native)
    lengths = torch.tensor([4, tower.context_length // 2, tower.context_length])
    gradients, kept = [], []
    for encoder.activation_checkpointing in (False, True):
        tensors: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, tensors=tensors: tensors.append(tensor) or tensor,  # type: ignore[misc]
            lambda tensor: tensor,
        ):
            features = encoder(ids, lengths)
        of_texts = {t.data_ptr(): t.nbytes for t in tensors if t.shape[:2] == ids.shape}
        kept.append(sum(of_texts.values()))
        features.square().sum().backward()
        gradients.append([weight.grad.to_dense() for weight in encoder.parameters()])
        encoder.zero_grad(set_to_none=True)
    for usual, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, usual, rtol=1e-5, atol=1e-6 * float(usual.abs().max()))
    assert kept[1] < kept[0] / 3


def test_a_batch_may_be_cut_where_padding_is_not_seen(native: Native) -> None:
    _, width, dim, context, fixed = FAMILIES[native.name]
    tower = native.text
    assert (len(tower.blocks), tower.width, native.dim) == (BLOCKS, width, dim)
    assert (tower.context_length, tower.fixed_length) == (context, fixed)
    if fixed:
        return
    ids = random_texts(native)[:2]
    with torch.inference_mode():
        cut, whole = native.encode_text(ids[:, : context // 2]), native.encode_text(ids)
    torch.testing.assert_close(cut, whole, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_model_is_the_librarys_own(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained_text=False, text_cfg=text_cfg(name, tmp_path))
    native = Native(name, model, no_tokenizer)
    blocks, width, dim, context, fixed = WHOLE[name]
    assert (len(native.text.blocks), native.text.width, native.dim) == (blocks, width, dim)
    assert (native.text.context_length, native.text.fixed_length) == (context, fixed)
    check_english(native)
    check_acquirers(native)
    height, width = native.model.visual.image_size
    pixels = torch.randn(1, 3, height, width)
    with torch.inference_mode():
        features = native.encode_image(pixels)
        assert features.shape == (1, dim)
        assert torch.equal(features, model.encode_image(pixels))
