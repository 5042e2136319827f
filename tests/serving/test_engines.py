"""Promises of serving.engines: a row's answer is its own, whoever shares the pass with it."""

import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mla_ray.data.feature_store import encode_images
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import space_of
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import LanguageTokenizer
from mla_ray.packs.card import make_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.serving.encoders import ImageEngine, TextEngine, load_native
from mla_ray.serving.engines import Encoded, IndexEngine, Query, Text
from mla_ray.serving.schemas import ProblemKind
from tests.support import ROOT
from tests.support.natives import CONTEXT, MakePack

PutPack = Callable[[LanguagePack], None]


@pytest.fixture
def put_pack(tmp_path: Path, native_folder: Path) -> PutPack:
    native = Native.load(str(native_folder))

    def put(pack: LanguagePack) -> None:
        pack.card = pack.card.model_copy(update={"fingerprint": native.fingerprint})
        pack.save(tmp_path / "packs" / pack.language)

    return put


@pytest.fixture
def engine(
    tmp_path: Path, native_folder: Path, make_pack: MakePack, put_pack: PutPack, native: Native
) -> TextEngine:
    """German and Hindi are sound; Swedish has a huge weight, Danish a tokenizer that gives up."""
    for language in ("de", "hi"):
        put_pack(make_pack(language))
    swedish = make_pack("sv", texts=["en hund", "katt"])
    with torch.no_grad():
        (ids,) = swedish.tokenizer(["katt"])  # the last letter is in no other word
        swedish.encoder.embedding.rows.weight[ids[-2]] = 3e38
    put_pack(swedish)
    put_pack(gives_up("da", native))
    return TextEngine(load_native(str(native_folder), 1), str(tmp_path / "packs"), 8)


def gives_up(language: str, native: Native) -> LanguagePack:
    """A pack whose tokenizer raises for each word that it does not know."""
    words = {"<bos>": 0, "<eos>": 1, "hund": 2, "<pad>": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106  it has none
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    with pytest.raises(Exception, match="WordLevel"):
        tokenizer.encode("kat")
    rows = LanguageTokenizer(tokenizer, np.arange(4, dtype=np.int32), CONTEXT)
    generator = torch.Generator().manual_seed(0)
    embedding = EmbeddingBlock(learned_rows(4, native.text, generator), native.text)
    encoder = LanguageEncoder(native.text, embedding, hidden=16)
    return LanguagePack(make_card(native, language, encoder), encoder, rows)


def encode(engine: TextEngine, *texts: tuple[str, str]) -> Encoded:
    prepared = engine.prepare({language for language, _ in texts})
    return engine.encode([Text(*text) for text in texts], prepared)


def test_an_ill_row_costs_itself_alone(engine: TextEngine) -> None:
    good = [("de", "ein Hund"), ("en", "a dog"), ("sv", "en hund"), ("da", "hund"), ("hi", "बिल्ली")]
    bad = [("sv", "katt"), ("da", "kat"), ("cs", "pes")]
    texts = [*bad, *good, *bad, *good, *good * 20]  # more than one pass
    found = encode(engine, *texts)
    assert set(found.errors) == {0, 1, 2, 8, 9, 10}
    kinds = [found.errors[row].kind for row in range(3)]
    assert kinds == [
        ProblemKind.NOT_ENCODED,
        ProblemKind.NOT_ENCODED,
        ProblemKind.PACK_UNAVAILABLE,
    ]
    assert "'sv'" in found.errors[0].detail
    assert "not finite" in found.errors[0].detail
    assert "'da'" in found.errors[1].detail
    assert np.isfinite(found.vectors).all()
    for row, text in enumerate(texts):
        if row not in found.errors:
            alone = encode(engine, text)
            assert not alone.errors
            np.testing.assert_allclose(found.vectors[row], alone.vectors[0], atol=1e-5)
            assert np.linalg.norm(found.vectors[row]) == pytest.approx(1, abs=1e-5)
            assert found.unknown_tokens[row] == alone.unknown_tokens[0]
    part = found[5:10]
    assert set(part.errors) == {3, 4}
    np.testing.assert_array_equal(part.vectors, found.vectors[5:10])
    engine.check()


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_does_not_depend_on_its_batch(engine: TextEngine, seed: int) -> None:
    generator = np.random.default_rng(seed)
    words = ["hund", "katt", "kat", "dog", "cat", "Katze", "बिल्ली", "犬", "<eos>", "7", "x" * 60]
    tongues = ["de", "hi", "sv", "da", "en", "cs"]
    texts = [
        (
            str(generator.choice(tongues)),
            " ".join(generator.choice(words, generator.integers(1, 5))),
        )
        for _ in range(70)
    ]
    found = encode(engine, *texts)
    for row, text in enumerate(texts):
        alone = encode(engine, text)
        assert (row in found.errors) == (0 in alone.errors), text
        np.testing.assert_allclose(found.vectors[row], alone.vectors[0], atol=1e-5)
        assert found.unknown_tokens[row] == alone.unknown_tokens[0]


def test_large_features_have_a_direction_as_long_as_they_are_finite(
    engine: TextEngine, make_pack: MakePack, put_pack: PutPack
) -> None:
    """The square of 1e20 overflows a float32, so its norm in float32 is infinite."""
    projection = engine.native.text.projection  # type: ignore[attr-defined]
    before = encode(engine, ("en", "a dog"))
    with torch.no_grad():
        projection.mul_(1e25)
    after = encode(engine, ("en", "a dog"))
    assert not after.errors
    np.testing.assert_allclose(after.vectors, before.vectors, atol=1e-5)


def test_a_pack_that_is_refused_costs_its_language_alone(
    engine: TextEngine, tmp_path: Path
) -> None:
    (tmp_path / "packs" / "de" / "weights.safetensors").write_bytes(b"no such format")
    found = encode(engine, ("de", "ein Hund"), ("hi", "बिल्ली"), ("en", "a dog"))
    assert set(found.errors) == {0}
    assert found.errors[0].kind == ProblemKind.PACK_UNAVAILABLE
    assert "SHA-256" in found.errors[0].detail
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), [0, 1, 1], atol=1e-5)


def test_images_without_a_direction_are_errors_by_row(
    native_folder: Path, pngs: list[bytes]
) -> None:
    engine = ImageEngine(load_native(str(native_folder), 1))
    with torch.no_grad():
        engine.native.model.visual.proj.fill_(3e38)
    found = engine.encode([pngs[0], b"hello", pngs[1]])
    kinds = {row: fault.kind for row, fault in found.errors.items()}
    assert kinds == {
        0: ProblemKind.NOT_ENCODED,
        1: ProblemKind.BAD_IMAGE,
        2: ProblemKind.NOT_ENCODED,
    }
    assert not found.vectors.any()
    assert found.unknown_tokens.tolist() == [0, 0, 0]


def test_a_picture_is_encoded_upright(native_folder: Path) -> None:
    """A telephone's file lies on its side and says so; a table's features see it so too."""
    upright = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    upright[:20] //= 4
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the first row is the right side
    sent = []
    for pixels, saying in ((upright, b""), (np.rot90(upright), exif.tobytes())):
        buffer = BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", exif=saying)
        sent.append(buffer.getvalue())
    engine = ImageEngine(load_native(str(native_folder), 1))
    found = engine.encode([*sent, sent[0][:200]])
    np.testing.assert_array_equal(found.vectors[1], found.vectors[0])
    assert found.errors[2].detail.startswith("the image is cut off: ")
    of_table = encode_images(engine.native, sent)
    np.testing.assert_array_equal(of_table[1], of_table[0])


def test_a_feature_without_direction_costs_itself_alone() -> None:
    found = Encoded.empty(4, 2)
    features = np.array([[3, 4], [np.nan, 1], [0, 0]], np.float32)
    found.put([3, 0, 1], features, ["a", "b", "c"])
    assert found.vectors.tolist() == [
        [0, 0],
        [0, 0],
        [0, 0],
        [pytest.approx(0.6), pytest.approx(0.8)],
    ]
    assert {row: fault.detail for row, fault in found.errors.items()} == {
        0: "b gives a feature that is not finite",
        1: "c gives a feature that is zero",
    }


def test_the_index_of_a_native_that_was_loaded_here_before_loads_no_native(
    native_folder: Path, tmp_path: Path
) -> None:
    TextEngine(load_native(str(native_folder), 1), str(tmp_path / "packs"), 1)
    code = """
import sys
from mla_ray.serving.deployments import Index
from mla_ray.serving.settings import Settings
index = Index(Settings(native=sys.argv[1], index=sys.argv[2]))
print("torch" in sys.modules, sorted(index._engine.collections))
"""
    command = [sys.executable, "-c", code, str(native_folder), f"edge:{tmp_path / 'index'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert run.stdout == "False ['captions', 'images']\n"


def test_an_ill_query_costs_itself_alone(native: Native, tmp_path: Path) -> None:
    engine = IndexEngine(f"edge:{tmp_path / 'index'}", space_of(native))
    try:
        unit = np.eye(native.dim, dtype=np.float32)
        engine.upsert("images", [Entry("a", "a", "", "", "s")], unit[:1])
        queries = [
            Query("images", vector, k, 0, None, None)
            for vector, k in ((unit[0], 1), (unit[0] * np.nan, 1), (unit[0], 10**6), (unit[1], 1))
        ]
        first, second, third, fourth = engine.search(queries)
        for result in (first, fourth):
            assert result.fault is None
            assert [hit.entry.id for hit in result.hits] == ["a"]
        for result in (second, third):
            assert result.hits == []
            assert result.fault is not None
            assert result.fault.kind == ProblemKind.INVALID_REQUEST
    finally:
        engine.close()
