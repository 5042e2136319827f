"""Promises of mla_ray.packs.official and `import_official`: the paper's released checkpoints.

The checkpoint is written here, in their layout, and run by a plain reading of their code that
shares nothing with ours. With MLA_TEST_OFFICIAL, a folder with `pytorch_model.bin` and
`cases.safetensors`, features that their own code gave are compared, too.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F

from mla_ray import AcquisitionEncoder, LanguagePack, Native
from mla_ray.packs.files import PackError
from mla_ray.packs.pack import import_official
from tests.support.commands import Mla
from tests.support.trap import Trap

LANGUAGES = ("de", "ja")
VOCABULARY, ROW, WIDTH, HIDDEN, EMBED, LENGTH = 130, 24, 64, 32, 48, 16
END, ENGLISH = 102, 90


def blocks(prefix: str, width: int, count: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(count):
        at = f"{prefix}resblocks.{block}."
        shapes |= {at + "attn.in_proj_weight": (3 * width, width)}
        shapes |= {at + "attn.in_proj_bias": (3 * width,)}
        shapes |= {at + "attn.out_proj.weight": (width, width), at + "attn.out_proj.bias": (width,)}
        shapes |= {at + "mlp.c_fc.weight": (4 * width, width), at + "mlp.c_fc.bias": (4 * width,)}
        shapes |= {at + "mlp.c_proj.weight": (width, 4 * width), at + "mlp.c_proj.bias": (width,)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {at + f"{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return shapes


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (LENGTH, WIDTH),
        "text_projection": (WIDTH, EMBED),
        "logit_scale": (),
        "token_embedding.weight": (ENGLISH, WIDTH),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (5, WIDTH),
        "visual.proj": (WIDTH, EMBED),
        "visual.conv1.weight": (WIDTH, 3, 8, 8),
        "multilingual_embedding.weight": (VOCABULARY, ROW),
        "multilingual_embedding_linear.weight": (WIDTH, ROW),
        "multilingual_embedding_linear.bias": (WIDTH,),
    }
    for norm in ("visual.ln_pre", "visual.ln_post"):
        shapes |= {f"{norm}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    shapes |= blocks("transformer.", WIDTH, 2) | blocks("visual.transformer.", WIDTH, 1)
    for block in range(2):
        for language in LANGUAGES:
            at = f"transformer.resblocks.{block}.acquirer.{language}."
            shapes |= {at + "mlp.c_fc.weight": (HIDDEN, WIDTH), at + "mlp.c_fc.bias": (HIDDEN,)}
            shapes |= {at + "mlp.c_proj.weight": (WIDTH, HIDDEN), at + "mlp.c_proj.bias": (WIDTH,)}
            shapes |= {at + "ln.weight": (WIDTH,), at + "ln.bias": (WIDTH,)}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.2
        + (1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0)
        for name, shape in shapes.items()
    }


@pytest.fixture
def checkpoint(state: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WordPiece with M-BERT's special ids and one-letter words."""
    vocabulary = {f"[unused{i}]": i for i in range(VOCABULARY)}
    tokens = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}
    tokens |= {104 + i: letter for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary = {tokens.get(i, name): i for name, i in vocabulary.items()}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    path = tmp_path_factory.mktemp("mbert") / "tokenizer.json"
    made.save(str(path))
    return path


def plain(state: dict[str, Tensor], ids: Tensor, language: str | None) -> Tensor:
    """Their forward pass, padded to the context, in float64."""
    w = {name: weight.double() for name, weight in state.items()}
    if language:
        x = w["multilingual_embedding.weight"][ids] @ w["multilingual_embedding_linear.weight"].T
        x = x + w["multilingual_embedding_linear.bias"]
        end = (ids == END).int().argmax(1)
    else:
        x, end = w["token_embedding.weight"][ids], ids.argmax(1)
    x = x + w["positional_embedding"]
    mask = torch.full((LENGTH, LENGTH), float("-inf")).double().triu(1)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    for block in range(2):
        at = f"transformer.resblocks.{block}."
        y = norm(x, at + "ln_1")
        q, k, v = F.linear(y, w[at + "attn.in_proj_weight"], w[at + "attn.in_proj_bias"]).chunk(
            3, -1
        )
        scores = q @ k.transpose(1, 2) / 64**0.5 + mask  # one head of 64
        x = x + linear(scores.softmax(-1) @ v, at + "attn.out_proj")
        y = linear(norm(x, at + "ln_2"), at + "mlp.c_fc")
        x = x + linear(y * torch.sigmoid(1.702 * y), at + "mlp.c_proj")
        if language:
            own = f"{at}acquirer.{language}.mlp."
            x = x + linear(linear(x, own + "c_fc").relu(), own + "c_proj")
    return norm(x[torch.arange(len(x)), end], "ln_final") @ w["text_projection"]


def texts(seed: int = 0) -> Tensor:
    """Token ids of texts of every length, one of them filling the context."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(LENGTH - 1, LENGTH, dtype=torch.int64)
    for row in range(LENGTH - 1):
        ids[row, : row + 1] = torch.randint(104, VOCABULARY, (row + 1,), generator=generator)
        ids[row, 0], ids[row, row + 1] = 101, END
    return ids


def test_features_are_those_of_the_official_forward_pass(
    state: dict[str, Tensor], checkpoint: Path
) -> None:
    native, packs = import_official(checkpoint, LANGUAGES)
    assert list(packs) == list(LANGUAGES)
    assert {type(pack) for pack in packs.values()} == {LanguagePack}
    for language in LANGUAGES:
        features = AcquisitionEncoder(native, packs[language]).encode_ids(texts())
        assert features.dtype == torch.float32
        assert (features - plain(state, texts(), language)).abs().max() < 1e-5
    assert not torch.allclose(packs["de"].encode_ids(texts()), packs["ja"].encode_ids(texts()))
    english = torch.randint(1, ENGLISH - 1, (5, LENGTH))
    english[:, 9] = ENGLISH - 1
    assert (native.encode_text(english) - plain(state, english, None)).abs().max() < 1e-5


def test_what_stands_after_the_end_token_is_padding(checkpoint: Path) -> None:
    native, packs = import_official(checkpoint, ["de"])
    encoder = AcquisitionEncoder(native, packs["de"])
    ids = texts()[:6]
    noise = torch.where((ids == END).cumsum(1).bool() & (ids != END), 105, ids)
    assert not torch.equal(noise, ids)
    assert torch.equal(encoder.encode_ids(noise), encoder.encode_ids(ids))
    with pytest.raises(ValueError, match="text 1 has no end token 102"):
        encoder.encode_ids(torch.tensor([[101, 102], [101, 105]]))
    with pytest.raises(ValueError, match="from 0 to 129"):
        encoder.encode_ids(torch.tensor([[101, 130, 102]]))


def test_a_native_inside_and_the_folder_written_of_it_are_the_same(
    checkpoint: Path, tokenizer: Path, tmp_path: Path
) -> None:
    inside, _ = import_official(checkpoint, ["de"])
    folder = tmp_path / "clip"
    native, packs = import_official(checkpoint, ["de"], None, str(tokenizer), folder)
    assert native.fingerprint == inside.fingerprint == Native.load(str(folder)).fingerprint
    pixels = torch.randn(3, 3, 16, 16)
    assert torch.equal(native.encode_image(pixels), inside.encode_image(pixels))
    packs["de"].save(tmp_path / "de")
    again = LanguagePack.load(tmp_path / "de", Native.load(str(folder)))
    # Text by text and id by id, also after it was saved.
    ids = torch.tensor([[101, 104, 129, 102]])
    for features in (again.encode_text(["a z"]), again.encode_ids(ids)):
        assert torch.equal(features, packs["de"].encode_ids(ids))


def test_another_native_than_the_checkpoints_is_refused(
    checkpoint: Path, state: dict[str, Tensor], tokenizer: Path, tmp_path: Path, native: Native
) -> None:
    folder = tmp_path / "clip"
    _, packs = import_official(checkpoint, ["de"], None, str(tokenizer), folder)
    import_official(checkpoint, ["de"], str(folder))
    with pytest.raises(PackError, match="made for native"):
        AcquisitionEncoder(native, packs["de"])
    state = state | {"ln_final.bias": state["ln_final.bias"] + 1e-3}
    tuned = tmp_path / "tuned.bin"
    torch.save(state, tuned)
    with pytest.raises(ValueError, match=r"ln_final.bias is not that of .*--with-native"):
        import_official(tuned, ["de"], str(folder))
    with pytest.raises(FileExistsError, match="not empty"):
        import_official(tuned, ["de"], with_native=folder)


def test_a_state_dict_saved_from_several_gpus_is_read(
    state: dict[str, Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    wrapped = tmp_path / "wrapped.bin"
    torch.save({f"module.{name}": weight.half() for name, weight in state.items()}, wrapped)
    _, packs = import_official(wrapped, ["de"])
    _, whole = import_official(checkpoint, ["de"])
    assert torch.allclose(
        packs["de"].encode_ids(texts()), whole["de"].encode_ids(texts()), atol=0.05
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {n: w for n, w in s.items() if "acquirer" not in n}, "acquirer"),
        (
            lambda s: {n: w for n, w in s.items() if "multilingual" not in n},
            "multilingual_embedding",
        ),
        (lambda s: {"weights": s}, "not a state dict"),
        (lambda s: [*s.values()], "not a state dict"),
        (lambda s: s | {"multilingual_embedding.weight": torch.zeros(5, ROW + 1)}, "does not fit"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    state: dict[str, Tensor], tmp_path: Path, change: Any, words: str
) -> None:
    path = tmp_path / "other.bin"
    torch.save(change(state), path)
    with pytest.raises(ValueError, match=words) as error:
        import_official(path, ["de"])
    assert str(path) in str(error.value)


def test_nothing_but_tensors_is_unpickled(state: dict[str, Tensor], tmp_path: Path) -> None:
    path, left = tmp_path / "trap.bin", tmp_path / "left"
    torch.save(state | {"more": Trap(left)}, path)
    with pytest.raises(ValueError, match="not a state dict"):
        import_official(path, ["de"])
    assert not left.exists()


def test_without_a_tokenizer_a_pack_takes_ids_only(checkpoint: Path, tmp_path: Path) -> None:
    _, packs = import_official(checkpoint, ["de"])
    for act in (lambda: packs["de"].encode_text(["a"]), lambda: packs["de"].save(tmp_path / "de")):
        with pytest.raises(ValueError, match="without a tokenizer"):
            act()
    assert not (tmp_path / "de").exists()


def test_languages_and_tokenizers_that_do_not_fit_are_refused(
    checkpoint: Path, tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no language 'fr'; it has \['de', 'ja'\]"):
        import_official(checkpoint, ["fr"])
    document = json.loads(tokenizer.read_text())
    del document["model"]["vocab"]["[unused1]"]
    smaller = tmp_path / "tokenizer.json"
    smaller.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="130 embedding rows, the tokenizer has 129"):
        import_official(checkpoint, ["de"], tokenizer=str(smaller))


def test_command_line(
    mla: Mla, checkpoint: Path, state: dict[str, Tensor], tokenizer: Path, tmp_path: Path
) -> None:
    where = ["--tokenizer", str(tokenizer), "--out", str(tmp_path / "packs")]
    command = ["pack", "import-official", str(checkpoint), "--languages", "de,ja", *where]
    made = mla(*command, "--with-native", str(tmp_path / "clip"), "--json")
    assert made.code == 0, made.err
    found = json.loads(made.out)
    assert found["packs"] == {code: str(tmp_path / "packs" / code) for code in LANGUAGES}
    native = Native.load(found["native"])
    assert found["fingerprint"] == native.fingerprint
    for language, folder in found["packs"].items():
        features = LanguagePack.load(folder, native).encode_ids(texts())
        assert (features - plain(state, texts(), language)).abs().max() < 1e-5
    refused = mla(*command, "--native", "emoji-clip")
    assert refused.code == 1
    assert "--with-native" in refused.err
    assert mla(*command).code == 2


@pytest.mark.skipif("MLA_TEST_OFFICIAL" not in os.environ, reason="features of the official code")
def test_features_of_the_official_code_itself() -> None:
    folder = Path(os.environ["MLA_TEST_OFFICIAL"])
    cases = load_file(folder / "cases.safetensors")
    native, packs = import_official(folder / "pytorch_model.bin", LANGUAGES)
    for language in LANGUAGES:
        features = AcquisitionEncoder(native, packs[language]).encode_ids(cases["token_ids"])
        assert (features - cases[f"expected.text.{language}"]).abs().max() < 1e-5
    english = native.encode_text(cases["english_token_ids"])
    assert (english - cases["expected.text.en"]).abs().max() < 1e-5
    images = native.encode_image(cases["image"])
    assert (images - cases["expected.image"]).abs().max() < 1e-5
