"""Promises of mla_ray.packs.pack."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from mla_ray.model.batches import MAX_TOKENS
from mla_ray.model.native import Native
from mla_ray.packs.acquisition_encoder import AcquisitionEncoder
from mla_ray.packs.card import read_card
from mla_ray.packs.files import MAX_FILE_BYTES, PackError
from mla_ray.packs.pack import LanguagePack, copy_pack
from tests.support import ROOT, forks
from tests.support.commands import Mla
from tests.support.natives import BuildModel, MakePack
from tests.support.trap import Trap

Tokenize = Callable[..., torch.Tensor]
FILES = {"weights.safetensors", "tokenizer.json", "card.json", "README.md"}


@pytest.fixture
def saved(make_pack: MakePack, tmp_path: Path) -> Path:
    folder = tmp_path / "packs" / "de"
    make_pack("de").with_half_rows().save(folder)
    return folder


def edit_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))


def sign(folder: Path) -> None:
    """Put the hashes of the files as they are into the card."""
    names = ("weights.safetensors", "tokenizer.json")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    edit_card(folder, sha256=hashes)


def refuse(folder: Path, native: Native, *words: str) -> None:
    with pytest.raises(PackError) as error:
        LanguagePack.load(folder, native)
    for word in (str(folder), *words):
        assert word in str(error.value)


@pytest.mark.parametrize("version", [1, 2])
def test_a_loaded_pack_gives_the_saved_ones_features_to_the_byte(
    make_pack: MakePack,
    native: Native,
    corpus: dict[str, list[str]],
    tmp_path: Path,
    version: int,
) -> None:
    """Also a pack with rows in float32, as all packs of mla-ray 0.1.0 are."""
    pack = make_pack("hi") if version == 1 else make_pack("hi").with_half_rows()
    features = pack.encode_text(corpus["hi"])
    assert features.shape == (6, 32)
    assert features.dtype == torch.float32
    pack.save(tmp_path / "hi")
    loaded = LanguagePack.load(tmp_path / "hi", native)
    assert torch.equal(loaded.encode_text(corpus["hi"]), features)
    assert loaded.card.schema_version == version
    assert loaded.card == pack.card == read_card(tmp_path / "hi")
    assert loaded.language == "hi"


def test_a_string_is_one_text_and_no_texts_are_no_features(
    make_pack: MakePack, native: Native
) -> None:
    pack = make_pack("de")
    expected = pack.encode_text(["ein Hund"])
    for encoder in (pack, AcquisitionEncoder(native, pack)):
        assert torch.equal(encoder.encode_text("ein Hund"), expected)
    assert pack.unknown_tokens("ein Hund").tolist() == pack.unknown_tokens(["ein Hund"]).tolist()
    assert pack.encode_text([]).shape == (0, 32)
    assert pack.unknown_tokens([]).shape == (0,)
    assert [part.shape[0] for part in pack.tokenize([])] == [0, 0]
    for call in (pack.encode_text, pack.tokenize, pack.unknown_tokens):
        with pytest.raises(ValueError, match="U\\+D800\\) at position 3"):
            call(["Hund", "ein\ud800"])


def test_a_pack_saved_again_has_the_same_bytes(saved: Path, native: Native, tmp_path: Path) -> None:
    LanguagePack.load(saved, native).save(tmp_path / "again")
    for name in FILES:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_pack_for_another_native_is_refused_naming_both(
    saved: Path, native: Native, other_native: Native
) -> None:
    prints = native.fingerprint[:12], other_native.fingerprint[:12]
    refuse(saved, other_native, "'tiny-clip'", "'other-clip'", *prints)


def test_a_pack_of_the_rule_of_before_is_taken_told_once_and_saved_with_the_rule_of_today(
    saved: Path, native: Native, tmp_path: Path, recognitions: list[str]
) -> None:
    card = json.loads((saved / "card.json").read_text())
    assert (card["fingerprint"], card.pop("fingerprint_v1")) == (
        native.fingerprint,
        native.fingerprint_v1,
    )
    card["fingerprint"] = native.fingerprint_v1  # as mla-ray 0.1.0 wrote it
    (saved / "card.json").write_text(json.dumps(card))
    for _ in range(2):
        old = LanguagePack.load(saved, native)
    (said,) = recognitions
    assert str(saved) in said
    assert "save it again" in said
    old.save(tmp_path / "anew")
    anew = read_card(tmp_path / "anew")
    assert (anew.fingerprint, anew.fingerprint_v1) == (native.fingerprint, native.fingerprint_v1)
    LanguagePack.load(tmp_path / "anew", native)
    assert len(recognitions) == 1


def test_natives_that_differ_in_heads_alone_refuse_each_others_packs(
    saved: Path, native: Native, build_model: BuildModel, tokenize: Tokenize
) -> None:
    """By the rule of before they were one."""
    model = build_model(open_clip.CLIP, heads=4)
    other = Native("other-heads", model, tokenize)
    assert other.fingerprint_v1 == native.fingerprint_v1
    refuse(saved, other, "'tiny-clip'", "'other-heads'")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_damaged_byte_is_refused(saved: Path, native: Native, name: str, place: int) -> None:
    data = bytearray((saved / name).read_bytes())
    data[place] ^= 1
    (saved / name).write_bytes(data)
    refuse(saved, native, f"{name}: SHA-256", "damaged")


def test_hashes_missing_from_the_card_are_refused(saved: Path, native: Native) -> None:
    edit_card(saved, sha256={})
    refuse(saved, native, "weights.safetensors", "SHA-256")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "card.json"])
def test_a_missing_file_is_refused(saved: Path, native: Native, name: str) -> None:
    (saved / name).unlink()
    refuse(saved, native, f"{name}: missing")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "card.json"])
def test_a_file_that_is_too_large_is_refused(
    saved: Path, native: Native, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (saved / name).stat().st_size
    monkeypatch.setitem(MAX_FILE_BYTES, name, size)
    LanguagePack.load(saved, native)
    monkeypatch.setitem(MAX_FILE_BYTES, name, size - 1)
    refuse(saved, native, f"{name}: larger than {size - 1} bytes")


@pytest.mark.parametrize(
    "name", ["acquirers.2.up.bias", "embedding.rows.weight", "embedding.tokens"]
)
@pytest.mark.parametrize("change", ["missing", "another shape", "another type"])
def test_a_wrong_tensor_is_refused(saved: Path, native: Native, name: str, change: str) -> None:
    path = saved / "weights.safetensors"
    weights = load_file(path)
    weight = weights.pop(name)
    if change == "another shape":
        weights[name] = weight[:-1].clone()
    elif change == "another type":
        weights[name] = weight.double() if weight.is_floating_point() else weight.long()
    save_file(weights, path)
    sign(saved)
    refuse(saved, native, "weights.safetensors", name)


def test_an_unknown_tensor_is_refused(saved: Path, native: Native) -> None:
    path = saved / "weights.safetensors"
    save_file(load_file(path) | {"more": torch.zeros(1)}, path)
    sign(saved)
    refuse(saved, native, "weights.safetensors", "more")


@pytest.mark.parametrize("token", [-1, 10_000])
def test_rows_of_tokens_that_the_tokenizer_lacks_are_refused(
    saved: Path, native: Native, token: int
) -> None:
    path = saved / "weights.safetensors"
    weights = load_file(path)
    weights["embedding.tokens"][-1] = token
    save_file(weights, path)
    sign(saved)
    refuse(saved, native, "tokenizer.json")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
def test_a_file_of_another_format_is_refused_whatever_its_hash(
    saved: Path, native: Native, name: str
) -> None:
    (saved / name).write_text("no such format")
    sign(saved)
    refuse(saved, native, name)


@pytest.mark.parametrize("version", [0, 3, "1", None, [2]])
def test_another_schema_version_is_refused(saved: Path, native: Native, version: Any) -> None:
    edit_card(saved, schema_version=version)
    refuse(saved, native, "card.json", f"schema version {version}", "reads 1 and 2")


@pytest.mark.parametrize("key", ["width", "blocks", "context_length"])
def test_a_card_of_other_sizes_than_the_natives_is_refused(
    saved: Path, native: Native, key: str
) -> None:
    edit_card(saved, **{key: 5})
    refuse(saved, native, "card.json", "5")


@pytest.mark.parametrize("change", [{"rows": 0}, {"rows": "many"}, {"surprise": 1}])
def test_a_card_that_is_not_one_is_refused(
    saved: Path, native: Native, change: dict[str, Any]
) -> None:
    edit_card(saved, **change)
    refuse(saved, native, "card.json", *change)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_card_that_is_not_json_of_a_card_is_refused(
    saved: Path, native: Native, text: bytes
) -> None:
    (saved / "card.json").write_bytes(text)
    refuse(saved, native, "card.json")


def test_a_folder_that_is_not_a_pack_is_refused(native: Native, tmp_path: Path) -> None:
    refuse(tmp_path, native, "card.json: missing", "language pack")
    refuse(tmp_path / "nowhere", native, "card.json: missing")


def test_saving_over_a_pack_replaces_it(
    saved: Path, make_pack: MakePack, native: Native, corpus: dict[str, list[str]]
) -> None:
    new = make_pack("de", seed=1)
    features = new.encode_text(corpus["de"])
    before = LanguagePack.load(saved, native)
    assert not torch.equal(before.encode_text(corpus["de"]), features)
    (saved / "leftover").touch()
    new.save(saved)
    assert torch.equal(LanguagePack.load(saved, native).encode_text(corpus["de"]), features)
    assert {path.name for path in saved.iterdir()} == FILES
    assert [path.name for path in saved.parent.iterdir()] == ["de"]


def test_a_save_that_fails_leaves_the_older_pack(
    saved: Path, make_pack: MakePack, native: Native, corpus: dict[str, list[str]]
) -> None:
    features = LanguagePack.load(saved, native).encode_text(corpus["de"])
    new = make_pack("de", seed=1)
    new.card = new.card.model_copy(update={"metrics": {"AR": object()}})  # no JSON of that
    with pytest.raises(ValueError, match="serialize"):
        new.save(saved)
    assert torch.equal(LanguagePack.load(saved, native).encode_text(corpus["de"]), features)
    assert [path.name for path in saved.parent.iterdir()] == ["de"]


@pytest.mark.parametrize("how", ["save", "copy"])
def test_a_folder_that_is_not_a_pack_is_never_overwritten(
    saved: Path, make_pack: MakePack, tmp_path: Path, how: str
) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis exists and is not a language pack"):
        make_pack("de").save(foreign) if how == "save" else copy_pack(saved, foreign)
    assert [path.name for path in foreign.iterdir()] == ["chapter1.tex"]
    assert {path.name for path in tmp_path.iterdir()} == {"thesis", "packs"}


def test_an_empty_folder_may_be_saved_to(
    make_pack: MakePack, native: Native, tmp_path: Path
) -> None:
    (tmp_path / "de").mkdir()
    make_pack("de").save(tmp_path / "de")
    assert LanguagePack.load(tmp_path / "de", native).language == "de"


def test_a_pack_is_as_small_as_what_it_holds(saved: Path) -> None:
    card = read_card(saved)
    acquirers = card.blocks * (2 * card.width * card.hidden + card.width + card.hidden)
    linear = card.width * (card.row_width + 1)
    held = 4 * (card.rows + linear + acquirers) + 2 * card.rows * card.row_width
    size = (saved / "weights.safetensors").stat().st_size
    assert held < size < held + 2048
    assert sum(path.stat().st_size for path in saved.iterdir()) < size + 64_000


def test_others_may_read_a_pack(saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o755


def test_the_readme_says_what_the_pack_is(saved: Path, native: Native) -> None:
    text = (saved / "README.md").read_text()
    assert text.startswith("---\n")
    assert "# de for tiny-clip\n" in text
    assert native.fingerprint in text


def test_a_copied_pack_has_the_same_bytes_and_replaces_an_older_one(
    saved: Path, make_pack: MakePack, tmp_path: Path
) -> None:
    target = tmp_path / "store" / "de"
    make_pack("de", seed=1).save(target)
    old = (target / "weights.safetensors").read_bytes()
    copy_pack(saved, target)
    for name in FILES:
        assert (saved / name).read_bytes() == (target / name).read_bytes(), name
    assert (target / "weights.safetensors").read_bytes() != old
    assert [path.name for path in target.parent.iterdir()] == ["de"]


def test_a_pickle_in_the_folder_is_never_read(
    saved: Path, native: Native, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    features = LanguagePack.load(saved, native).encode_text(corpus["de"])
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    for name in ("weights.pt", "weights.bin", "pytorch_model.bin", "tokenizer.pkl"):
        (saved / name).write_bytes(trap)
    assert torch.equal(LanguagePack.load(saved, native).encode_text(corpus["de"]), features)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
def test_a_pickle_in_disguise_is_never_read(
    saved: Path, native: Native, name: str, tmp_path: Path
) -> None:
    (saved / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    sign(saved)
    with pytest.raises(Exception, match=r"."):  # which one, another test says
        LanguagePack.load(saved, native)
    assert not (tmp_path / "sprung").exists()


# --- rows in half precision ---------------------------------------------------------------------


def test_half_rows_are_held_and_saved_as_float16_and_hardly_change_a_feature(
    make_pack: MakePack, native: Native, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    whole = make_pack("de")
    expected = whole.encode_text(corpus["de"])
    half = whole.with_half_rows()
    half.save(tmp_path / "half")
    for name, weight in load_file(tmp_path / "half" / "weights.safetensors").items():
        rows = name == "embedding.rows.weight"
        assert weight.dtype == (torch.float16 if rows else torch.float32) or name.endswith("tokens")
    loaded = LanguagePack.load(tmp_path / "half", native)
    dtypes = {name: w.dtype for name, w in loaded.encoder.state_dict().items()}
    assert dtypes.pop("embedding.rows.weight") == torch.float16
    assert set(dtypes.values()) == {torch.float32}
    features = loaded.encode_text(corpus["de"])
    assert features.dtype == torch.float32
    assert 0 < (features - expected).norm(dim=1).max() < 1e-3 * expected.norm(dim=1).min()
    assert torch.equal(whole.encode_text(corpus["de"]), expected)  # the pack itself is unchanged
    assert whole.encoder.embedding.rows.weight.dtype == torch.float32


@pytest.mark.parametrize(("schema", "dtype"), [(1, torch.float16), (2, torch.float32)])
def test_rows_of_another_dtype_than_the_cards_version_are_refused(
    saved: Path, native: Native, schema: int, dtype: torch.dtype
) -> None:
    path = saved / "weights.safetensors"
    weights = load_file(path)
    weights["embedding.rows.weight"] = weights["embedding.rows.weight"].to(dtype)
    save_file(weights, path)
    sign(saved)
    edit_card(saved, schema_version=schema)
    refuse(saved, native, "weights.safetensors", "embedding.rows.weight")


def test_rows_that_float16_cannot_hold_stay_in_float32(
    make_pack: MakePack, native: Native, tmp_path: Path
) -> None:
    pack = make_pack("de")
    with torch.no_grad():
        pack.encoder.embedding.rows.weight[3, 5] = 65_520  # the first that rounds to infinity
    pack.with_half_rows().save(tmp_path / "de")
    loaded = LanguagePack.load(tmp_path / "de", native)
    assert torch.equal(loaded.encoder.embedding.rows.weight, pack.encoder.embedding.rows.weight)


def test_rows_of_a_dtype_that_no_reader_knows_are_not_saved(
    make_pack: MakePack, tmp_path: Path
) -> None:
    pack = make_pack("de")
    pack.encoder.double()
    with pytest.raises(ValueError, match=r"embedding rows are torch.float64"):
        pack.save(tmp_path / "de")
    assert not (tmp_path / "de").exists()


def test_a_loaded_pack_does_not_depend_on_its_folder_unless_it_is_mapped(
    saved: Path, native: Native, corpus: dict[str, list[str]]
) -> None:
    pack, mapped = (LanguagePack.load(saved, native, mapped=on) for on in (False, True))
    features = pack.encode_text(corpus["de"])
    maps = Path("/proc/self/maps").read_text().splitlines()
    held = [line.split("-")[0] for line in maps if line.endswith(f"{saved}/weights.safetensors")]
    assert len(held) == 1  # the mapped pack's; those of the checks are gone
    (saved / "weights.safetensors").unlink()
    assert torch.equal(mapped.encode_text(corpus["de"]), features)
    rows, others = mapped.encoder.embedding.rows.weight, pack.encoder.embedding.rows.weight
    assert 0 <= rows.data_ptr() - int(held[0], 16) < rows.nbytes + 65_536
    assert torch.equal(rows, others)


# --- weights and cards that are no numbers ------------------------------------------------------


def spoil(folder: Path, name: str, value: float) -> None:
    """Put a value into the middle of a tensor."""
    path = folder / "weights.safetensors"
    weights = load_file(path)
    flat = weights[name].flatten()
    flat[len(flat) // 2] = value
    save_file(weights | {name: flat.view(weights[name].shape)}, path)
    sign(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["embedding.rows.weight", "embedding.linear.bias", "acquirers.1.down.weight"]
)
def test_a_weight_that_is_not_finite_is_refused(
    saved: Path, native: Native, name: str, value: float
) -> None:
    spoil(saved, name, value)
    refuse(saved, native, "weights.safetensors", name, "not finite")


def test_a_pack_with_a_nan_does_not_verify(saved: Path, native_folder: Path, mla: Mla) -> None:
    edit_card(saved, fingerprint=Native.load(str(native_folder)).fingerprint)
    assert mla("pack", "verify", saved, "--native", native_folder).code == 0
    spoil(saved, "acquirers.0.up.bias", float("nan"))
    run = mla("pack", "verify", saved, "--native", native_folder)
    assert (run.code, run.out) == (1, "")
    assert f"{saved}/weights.safetensors" in run.err
    assert "acquirers.0.up.bias" in run.err


def test_a_pack_with_a_nan_is_not_saved(
    saved: Path, make_pack: MakePack, native: Native, corpus: dict[str, list[str]]
) -> None:
    features = LanguagePack.load(saved, native).encode_text(corpus["de"])
    new = make_pack("de", seed=1)
    with torch.no_grad():
        new.encoder.embedding.linear.bias[0] = float("nan")
    with pytest.raises(PackError, match=r"embedding\.linear\.bias .*not finite"):
        new.save(saved)
    assert torch.equal(LanguagePack.load(saved, native).encode_text(corpus["de"]), features)


@pytest.mark.parametrize(
    "metrics",
    [
        '{"AR": NaN}',
        '{"AR": [1, Infinity]}',
        '{"AR": 1e999}',
        '{"AR": "\\ud800"}',
        '{"\\udfff": 1}',
        '{"a":' * 400 + "1" + "}" * 400,
        "[" * 100_000,
    ],
)
def test_a_card_that_no_answer_could_hold_is_refused(
    saved: Path, native: Native, metrics: str
) -> None:
    text = json.dumps(json.loads((saved / "card.json").read_text()) | {"metrics": {}})
    (saved / "card.json").write_text(text.replace('"metrics": {}', f'"metrics": {metrics}'))
    refuse(saved, native, "card.json")


# --- many texts, and texts that say nothing -----------------------------------------------------


@pytest.fixture
def many(corpus: dict[str, list[str]]) -> list[str]:
    """For several batches, in no order, some empty and some longer than the context."""
    words = [word for line in corpus["de"] for word in line.split()]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, rng.integers(0, 14))) for _ in range(549)]


def test_many_texts_have_the_features_of_each_alone_and_go_in_batches(
    make_pack: MakePack, many: list[str]
) -> None:
    pack = make_pack("de")
    with torch.inference_mode():
        expected = pack.encoder(*pack.tokenize(many))  # all in one pass
    seen: list[torch.Size] = []
    with pack.encoder.embedding.register_forward_hook(lambda *call: seen.append(call[1][0].shape)):
        features = pack.encode_text(many)
    assert sum(batch for batch, _ in seen) == len(many)
    assert len(seen) > 2
    assert max(batch * length for batch, length in seen) <= MAX_TOKENS["cpu"]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    ids = torch.zeros(len(many), 100, dtype=torch.int64)
    for row, encoding in enumerate(pack.tokenizer.tokenizer.encode_batch(many)):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
    torch.testing.assert_close(pack.encode_ids(ids), features, rtol=0, atol=1e-6)
    assert pack.encode_text([]).shape == (0, 32)


def test_the_share_of_unknown_tokens_is_told(
    make_pack: MakePack, corpus: dict[str, list[str]]
) -> None:
    pack = make_pack("de")  # its vocabulary has all bytes
    texts = ["ein Hund", "ein Hund 犬", "犬", "собака", "12345", "Hund?", "", "\u200d", "ein 7"]
    rows, space = set(pack.tokenizer.tokens.tolist()), pack.tokenizer.tokenizer.token_to_id("Ġ")
    assert space in rows
    for text, share in zip(texts, pack.unknown_tokens(texts).tolist(), strict=True):
        tokens = pack.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        tokens = [token for token in tokens if token != space]
        unknown = sum(token not in rows for token in tokens)
        assert share == pytest.approx(unknown / len(tokens) if tokens else 1), text
    assert pack.unknown_tokens(["ein Hund", "犬", ""]).tolist() == [0, 1, 1]
    # Where it is 1, all texts of as many words are alike.
    one, another, third = pack.encode_text(["犬", "собака", "Hund"])
    torch.testing.assert_close(one, another, rtol=0, atol=1e-6)
    assert torch.dist(one, third) > 1e-2
    assert pack.unknown_tokens([]).shape == (0,)


def test_a_control_token_in_a_text_is_text(make_pack: MakePack) -> None:
    pack = make_pack("de", texts=["ein Hund < eos > pad bos", "ein Hund <eos> <pad> <bos>"])
    texts = ["ein Hund", "ein <eos> Hund", "<pad> ein Hund", "Hund <bos>"]
    plain, *marked = pack.encode_text(texts)
    ids, lengths = pack.tokenize(["ein <eos> Hund <pad>"])
    names = ("<pad>", "<bos>", "<eos>")
    control = pack.tokenizer.row_of[[pack.tokenizer.tokenizer.token_to_id(n) for n in names]]
    inside = ids[0, 1 : lengths[0] - 1].tolist()
    assert not set(control.tolist()) & set(inside)
    assert all(torch.dist(each, plain) > 1e-2 for each in marked)


# --- writers that are killed, and several at a time ---------------------------------------------

WRITER = """
import sys
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
native, pack, place, rounds = sys.argv[1:]
made = LanguagePack.load(pack, Native.load(native))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(rounds)):
    made.save(place)
"""


def copy_until_killed(new: str, place: str, renames: int) -> None:
    """Killed right after that many renames beside the pack."""
    rename, left = Path.rename, renames

    def rename_or_die(self: Path, target: Path) -> Path:
        nonlocal left
        made = rename(self, target)
        left -= self.parent == Path(place).parent
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    Path.rename = rename_or_die  # type: ignore[method-assign, assignment]
    copy_pack(new, place)


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_a_pack_whose_writer_was_killed_loads_and_is_saved_again(
    saved: Path, make_pack: MakePack, native: Native, corpus: dict[str, list[str]], renames: int
) -> None:
    new = make_pack("de", seed=1)
    features = [pack.encode_text(corpus["de"]) for pack in (LanguagePack.load(saved, native), new)]
    new.save(saved.parent / "new")
    killed = forks.exit_code(copy_until_killed, str(saved.parent / "new"), str(saved), renames)
    assert killed == -signal.SIGKILL
    assert saved.exists() == (renames > 1)
    assert read_card(saved).language == "de"
    loaded = LanguagePack.load(saved, native)
    assert torch.equal(loaded.encode_text(corpus["de"]), features[renames > 1])
    new.save(saved)
    assert torch.equal(LanguagePack.load(saved, native).encode_text(corpus["de"]), features[1])
    assert sorted(path.name for path in saved.parent.iterdir()) == ["de", "new"]


@pytest.mark.slow
def test_two_save_and_one_loads_and_none_fails(
    make_pack: MakePack, native_folder: Path, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    native, place = Native.load(str(native_folder)), tmp_path / "store" / "de"
    features, writers = [], []
    for seed in range(2):
        pack = make_pack("de", seed)
        pack.card = pack.card.model_copy(update={"fingerprint": native.fingerprint})
        pack.save(tmp_path / str(seed))
        pack.save(place)
        features.append(LanguagePack.load(place, native).encode_text(corpus["de"]))
        given = [str(native_folder), str(tmp_path / str(seed)), str(place), "60"]
        writers.append(
            subprocess.Popen(
                [sys.executable, "-c", WRITER, *given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                text=True,
            )
        )
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    loads = 0
    while loads < 50 or any(writer.poll() is None for writer in writers):
        found = LanguagePack.load(place, native).encode_text(corpus["de"])
        assert any(torch.equal(found, each) for each in features)
        copy_pack(place, tmp_path / "copy")
        loads += 1
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [path.name for path in place.parent.iterdir()] == ["de"]


def test_files_that_do_not_belong_together_are_not_copied(
    saved: Path, make_pack: MakePack, native: Native, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    make_pack("de", seed=1).save(target)
    before = (target / "card.json").read_bytes()
    (saved / "weights.safetensors").write_bytes((target / "weights.safetensors").read_bytes())
    with pytest.raises(PackError, match="SHA-256") as raised:
        copy_pack(saved, target)
    assert str(raised.value).startswith(str(saved))
    assert (target / "card.json").read_bytes() == before
    copy_pack(target, target)  # nothing changes
    assert (target / "card.json").read_bytes() == before
