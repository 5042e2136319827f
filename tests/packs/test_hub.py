"""Promises of mla_ray.packs.hub and mla_ray.packs.readme."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from mla_ray.model.native import Native
from mla_ray.packs.card import Card, read_card
from mla_ray.packs.files import MAX_FILE_BYTES, PackError
from mla_ray.packs.hub import pull, push
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.readme import model_card
from tests.support.commands import Mla
from tests.support.hub import TOKEN, Hub, running_hub
from tests.support.natives import MakePack

FILES = {"weights.safetensors", "tokenizer.json", "card.json", "README.md"}
NAME = "somebody/clip-de"
REPO = f"hf-hub:{NAME}"


@pytest.fixture
def saved(make_pack: MakePack, tmp_path: Path) -> Path:
    pack = make_pack("de")
    pack.card = pack.card.model_copy(
        update={
            "stages": {"nlt": {"steps": 200, "batch": 256, "lr": 0.001}, "le": {"steps": 20}},
            "data": {"nlt-0000": {"rows": 44216, "files": ["acd5d007" * 8]}},
            "metrics": {
                "t2i": {"R@1": 52.1, "R@10": 88.0},
                "AR": 69.6,
                "held_out_AR": 64.25,
                "step": 180,
            },
        }
    )
    pack.save(tmp_path / "packs" / "de")
    return tmp_path / "packs" / "de"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """Empty, with its token in the environment and an empty cache."""
    for part in (server.repos, server.large, server.requests, server.lies):
        part.clear()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # hf_xet speaks to servers of its own; without it large files go by git LFS.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return server


def same(one: Path, other: Path) -> None:
    for name in FILES - {"README.md"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# -- the hub --


def test_what_is_pushed_to_the_hub_is_pulled_to_the_byte(
    hub: Hub, saved: Path, native: Native, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    shared = push(saved, REPO, native, license="cc-by-4.0")
    assert shared.url == f"{hub.url}/{NAME}/commit/{shared.revision}"
    assert set(hub.repos[NAME].commits[shared.revision or ""]) == FILES
    assert not hub.repos[NAME].private
    # The weights went as a large file, the rest inside the commit.
    assert list(hub.large.values()) == [(saved / "weights.safetensors").read_bytes()]
    pulled = pull(REPO, tmp_path / "pulled", native)
    assert (pulled.language, pulled.revision) == ("de", shared.revision)
    same(saved, tmp_path / "pulled")
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == FILES
    card = ModelCard.load(tmp_path / "pulled" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert f"mla pack pull {REPO} packs/de" in card.text
    texts = corpus["de"]
    before = LanguagePack.load(saved, native).encode_text(texts)
    assert torch.equal(LanguagePack.load(tmp_path / "pulled", native).encode_text(texts), before)


def test_a_pull_takes_the_packs_files_and_nothing_else(
    hub: Hub, saved: Path, native: Native, tmp_path: Path
) -> None:
    push(saved, REPO, native)
    hub.repos[NAME].commit("main", {"pytorch_model.bin": b"trap", "sub/card.json": b"{}"})
    hub.requests.clear()
    pull(REPO, tmp_path / "pulled", native)
    fetched = {line.rpartition("/")[2] for line in hub.requests if line.startswith("GET")}
    assert fetched == {"clip-de"} | FILES
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == FILES


@pytest.mark.parametrize(
    ("size", "fault"), [(None, "of unknown size"), ((64 << 20) + 1, "larger than 67108864 bytes")]
)
def test_sizes_are_checked_before_anything_is_fetched(
    hub: Hub, saved: Path, native: Native, tmp_path: Path, size: int | None, fault: str
) -> None:
    push(saved, REPO, native)
    hub.requests.clear()
    hub.lies["tokenizer.json"] = size
    with pytest.raises(PackError, match=f"clip-de/tokenizer.json: {fault}"):
        pull(REPO, tmp_path / "pulled", native)
    assert hub.requests == [f"GET /api/models/{NAME}"]
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_repository_that_lacks_a_file_is_no_pack(
    hub: Hub, saved: Path, native: Native, tmp_path: Path, name: str
) -> None:
    push(saved, REPO, native)
    repo = hub.repos[NAME]
    del repo.commits[repo.refs["main"]][name]
    if name == "README.md":  # which is written anew
        pull(REPO, tmp_path / "pulled", native)
        assert ModelCard.load(tmp_path / "pulled" / name).data.language == "de"
    else:
        with pytest.raises(PackError, match=f"{REPO}/{name}: missing"):
            pull(REPO, tmp_path / "pulled", native)


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
def test_a_damaged_file_on_the_hub_leaves_the_pack_that_was_there(
    hub: Hub, saved: Path, native: Native, make_pack: MakePack, tmp_path: Path, name: str
) -> None:
    make_pack("de", seed=1).save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    push(saved, REPO, native)
    data = bytearray((saved / name).read_bytes())
    data[1000] ^= 1
    hub.repos[NAME].commit("main", {name: bytes(data)})
    with pytest.raises(PackError, match=f"{REPO}/{name}: SHA-256 is not the card's"):
        pull(REPO, tmp_path / "out", native)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_pack_of_another_native_is_neither_pushed_nor_pulled(
    hub: Hub, saved: Path, native: Native, other_native: Native, tmp_path: Path
) -> None:
    with pytest.raises(PackError, match=r"'tiny-clip'.*'other-clip'"):
        push(saved, REPO, other_native)
    assert hub.requests == []
    push(saved, REPO, native)
    with pytest.raises(PackError, match=rf"{REPO}: made for native 'tiny-clip'.*'other-clip'"):
        pull(REPO, tmp_path / "pulled", other_native)
    assert not (tmp_path / "pulled").exists()


def test_a_revision_is_a_branch_of_its_own(
    hub: Hub, saved: Path, native: Native, make_pack: MakePack, tmp_path: Path
) -> None:
    first = push(saved, REPO, native)
    make_pack("de", seed=1).save(tmp_path / "newer")
    push(tmp_path / "newer", REPO, native, revision="v2")
    push(tmp_path / "newer", REPO, native, revision="v2")  # nothing new is no error
    pull(REPO, tmp_path / "main", native)
    same(saved, tmp_path / "main")
    pull(REPO, tmp_path / "v2", native, revision="v2")
    same(tmp_path / "newer", tmp_path / "v2")
    pull(REPO, tmp_path / "commit", native, revision=first.revision)
    same(saved, tmp_path / "commit")
    with pytest.raises(FileNotFoundError, match="no revision 'v3'"):
        pull(REPO, tmp_path / "v3", native, revision="v3")


def test_a_private_repository_needs_the_token(
    hub: Hub, saved: Path, native: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(saved, REPO, native, private=True)
    assert hub.repos[NAME].private
    pull(REPO, tmp_path / "pulled", native)
    same(saved, tmp_path / "pulled")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match="HF_TOKEN is not set"):
        pull(REPO, tmp_path / "again", native)


def test_a_private_push_never_goes_into_a_public_repository(
    hub: Hub, saved: Path, native: Native, make_pack: MakePack, tmp_path: Path
) -> None:
    push(saved, REPO, native)
    public = dict(hub.repos[NAME].refs)
    make_pack("de", seed=1).save(tmp_path / "secret")
    with pytest.raises(ValueError, match="is public already"):
        push(tmp_path / "secret", REPO, native, private=True)
    assert hub.repos[NAME].refs == public
    assert (tmp_path / "secret" / "weights.safetensors").read_bytes() not in hub.large.values()


def test_only_the_environments_token_is_sent(
    hub: Hub, saved: Path, native: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(saved, REPO, native, private=True)
    monkeypatch.delenv("HF_TOKEN")
    stored = tmp_path / "token"
    stored.write_text(TOKEN)  # as a login leaves it
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(stored))
    with pytest.raises(PermissionError, match="set HF_TOKEN"):
        push(saved, REPO, native)
    with pytest.raises(FileNotFoundError, match="HF_TOKEN is not set"):
        pull(REPO, tmp_path / "pulled", native)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(OSError, match="HF_TOKEN"):
        push(saved, "hf-hub:somebody/other", native)
    assert list(hub.repos) == [NAME]


def test_a_card_that_the_hub_refuses_is_not_pushed(hub: Hub, saved: Path, native: Native) -> None:
    with pytest.raises(ValueError, match="license"):
        push(saved, REPO, native, license="my-own")
    assert list(hub.repos[NAME].commits) == ["0" * 40]


@pytest.mark.parametrize("repo", ["hf-hub:clip-de", "hf-hub:a/b/c", "hf-hub:"])
def test_what_is_no_repository_name_is_refused(
    hub: Hub, saved: Path, native: Native, repo: str
) -> None:
    with pytest.raises(ValueError, match="hf-hub:owner/name"):
        push(saved, repo, native)


def test_a_repository_that_is_not_there_says_so(hub: Hub, native: Native, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="somebody/none: not on the hub"):
        pull("hf-hub:somebody/none", tmp_path / "pulled", native)


def test_a_hub_that_is_away_says_so(
    hub: Hub, native: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="does not answer"):
        pull(REPO, tmp_path / "pulled", native)


# -- folders --


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_a_folder_holds_a_pack_as_the_hub_does(
    saved: Path, native: Native, tmp_path: Path, scheme: str
) -> None:
    repo = f"{scheme}{tmp_path}/shared/clip-de"
    shared = push(saved, repo, native, license="mit")
    assert shared.revision is None
    pulled = pull(repo, tmp_path / "pulled", native)
    assert pulled.language == "de"
    same(saved, tmp_path / "pulled")
    assert ModelCard.load(tmp_path / "pulled" / "README.md").data.license == "mit"


def test_a_clone_of_a_repository_keeps_its_own_files(
    saved: Path, native: Native, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    (clone / ".git").mkdir(parents=True)
    (clone / ".gitattributes").write_text("*.safetensors filter=lfs")
    (clone / "README.md").write_text("empty yet")
    push(saved, str(clone), native)
    (clone / "samples.txt").write_text("of somebody")
    push(saved, str(clone), native)
    assert {path.name for path in clone.iterdir()} == FILES | {
        ".git",
        ".gitattributes",
        "samples.txt",
    }
    pull(str(clone), tmp_path / "pulled", native)
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == FILES


def test_a_folder_of_something_else_is_left_alone(
    saved: Path, native: Native, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "README.md").write_text("years of work")
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis is not a language pack"):
        push(saved, str(tmp_path / "thesis"), native)
    assert (tmp_path / "thesis" / "README.md").read_text() == "years of work"


def test_a_folder_is_checked_as_the_hub_is(
    saved: Path, native: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = str(tmp_path / "shared")
    push(saved, repo, native)
    size = (saved / "card.json").stat().st_size
    monkeypatch.setitem(MAX_FILE_BYTES, "card.json", size - 1)
    with pytest.raises(PackError, match=f"card.json: larger than {size - 1} bytes"):
        pull(repo, tmp_path / "pulled", native)
    monkeypatch.undo()
    (tmp_path / "shared" / "tokenizer.json").write_text("{}")
    with pytest.raises(PackError, match=r"shared/tokenizer\.json: SHA-256"):
        pull(repo, tmp_path / "pulled", native)
    (tmp_path / "shared" / "tokenizer.json").unlink()
    with pytest.raises(PackError, match=r"shared/tokenizer\.json: missing"):
        pull(repo, tmp_path / "pulled", native)
    assert not (tmp_path / "pulled").exists()


def test_a_folder_has_neither_privacy_nor_revisions(
    saved: Path, native: Native, tmp_path: Path
) -> None:
    repo = str(tmp_path / "shared")
    with pytest.raises(ValueError, match="private and revision need hf-hub:owner/name"):
        push(saved, repo, native, private=True)
    with pytest.raises(ValueError, match="private and revision"):
        push(saved, repo, native, revision="v2")
    push(saved, repo, native)
    with pytest.raises(ValueError, match="revision needs hf-hub:owner/name"):
        pull(repo, tmp_path / "pulled", native, revision="v2")


# -- the command line --


def test_push_and_pull_from_the_command_line(
    mla: Mla, hub: Hub, saved: Path, native_folder: Path, native: Native, tmp_path: Path
) -> None:
    ours = LanguagePack.load(saved, native)
    ours.card = ours.card.model_copy(
        update={"fingerprint": Native.load(str(native_folder)).fingerprint}
    )
    ours.save(saved)
    flags = ["--native", native_folder, "--json"]
    pushed = mla("pack", "push", saved, REPO, "--license", "apache-2.0", *flags)
    assert pushed.code == 0, pushed.err
    commit = hub.repos[NAME].refs["main"]
    url = f"{hub.url}/{NAME}/commit/{commit}"
    assert pushed.json == {"language": "de", "url": url, "revision": commit}
    pulled = mla("pack", "pull", REPO, "out/de", *flags)
    assert pulled.code == 0, pulled.err
    assert pulled.json == {"language": "de", "url": str(tmp_path / "out/de"), "revision": commit}
    same(saved, tmp_path / "out" / "de")
    refused = mla("pack", "pull", REPO, "out/other")
    assert refused.code == 1
    assert "'emoji-clip'" in refused.err


# -- the model card --


def test_the_model_card_is_what_the_hub_reads(saved: Path) -> None:
    card = read_card(saved).model_copy(update={"native": "ViT-B-32/openai"})
    made = ModelCard(model_card(card, "Apache-2.0", REPO))
    data = made.data
    assert (data.language, data.license) == ("de", "apache-2.0")
    assert data.library_name == "mla-ray"
    assert data.pipeline_tag == "feature-extraction"
    assert data.base_model == "timm/vit_base_patch32_clip_224.openai"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert {"language-pack", "clip", "de"} <= set(data.tags)
    figures = {result.metric_name: result.metric_value for result in data.eval_results or []}
    assert figures == {"t2i R@1": 52.1, "t2i R@10": 88.0, "AR": 69.6, "held_out_AR": 64.25}
    index = data.to_dict()["model-index"]
    assert index[0]["name"] == "de for ViT-B-32/openai"
    assert {metric["type"] for metric in index[0]["results"][0]["metrics"]} == {
        "R@1",
        "R@10",
        "AR",
        "held_out_AR",
    }


def test_the_model_card_tells_people_what_card_json_says(saved: Path) -> None:
    card = read_card(saved)
    text = ModelCard(model_card(card)).text
    for part in (
        "# de for tiny-clip",
        "This language pack adds German",
        card.fingerprint,
        f"{card.rows:,} embedding rows of 32",
        "| nlt-0000 | 44,216 | " + "acd5d007" * 8,
        "| nlt | 200 | 256 | 0.001 |",
        "| le | 20 |  |  |",
        "| t2i R@1 | 52.1 |",
        "| step | 180 |",
        f"torch {card.libraries['torch']}",
        "The author of this pack gave no license.",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("hf-hub:timm/ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP"),
        ("emoji-clip", None),
        ("natives/mine", None),  # a folder whose path looks like a repository
        ("/home/somebody/natives/mine", None),
    ],
)
def test_the_base_model_is_a_repository_or_nothing(
    saved: Path, name: str, base: str | None
) -> None:
    card = read_card(saved).model_copy(update={"native": name})
    assert ModelCard(model_card(card)).data.base_model == base


@pytest.mark.parametrize("tag", ["no", "zh-Hant", "on", "xx-not a tag"])
def test_any_language_tag_is_yaml(saved: Path, tag: str) -> None:
    card = read_card(saved).model_copy(update={"language": tag})
    front = yaml.safe_load(model_card(card).split("---\n")[1])
    assert front["language"] == tag.partition("-")[0]
    assert tag in front["tags"]


def test_a_fresh_pack_without_anything_has_a_card(make_pack: MakePack) -> None:
    bare = Card(**json.loads(make_pack("de").card.model_dump_json()) | {"libraries": {}})
    made = ModelCard(model_card(bare))
    assert made.data.eval_results is None
    assert "model-index" not in made.data.to_dict()
    for part in ("Not recorded.", "not trained", "No metrics were measured"):
        assert part in made.text


def test_somebody_elses_card_cannot_write_markdown_or_shell(saved: Path) -> None:
    card = read_card(saved).model_copy(
        update={
            "native": "x; rm -rf ~ `id`\n---\n# Owned",
            "data": {"<script>": {"rows | x": "[click](javascript:1)"}},
        }
    )
    made = ModelCard(model_card(card))
    assert "--native 'x; rm -rf ~ `id` --- # Owned'" in made.text
    assert "\n# Owned" not in made.text
    assert "<script>" not in made.text.replace("\\<script\\>", "")
    assert r"\[click\](javascript:1)" in made.text
    assert made.data.library_name == "mla-ray"
