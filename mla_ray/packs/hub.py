"""Packs shared between people: on the Hugging Face hub, or in a folder that is laid out as there.

    README.md  card.json  tokenizer.json  weights.safetensors      at the root of the repository

Nothing else of a repository is read, sizes are known before anything is fetched, and what is pushed
or pulled loads on its native first. The hub's token comes from the environment alone, HF_TOKEN; a
hub other than the public one is named by HF_ENDPOINT.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from upath import UPath

from mla_ray.model.native import Native
from mla_ray.packs.card import Card, read_card
from mla_ray.packs.files import (
    MAX_FILE_BYTES,
    NEEDED,
    README,
    PackError,
    check_sizes,
    fetch_files,
)
from mla_ray.packs.pack import LanguagePack, copy_pack
from mla_ray.packs.readme import model_card
from mla_ray.runtime.storage import as_path, names_in, upload

HUB = "hf-hub:"


@dataclass(frozen=True)
class Shared:
    """A pack in a repository. `revision` is the hub's commit; a folder has none."""

    language: str
    url: str
    revision: str | None = None


def push(
    pack: str | Path | UPath,
    repo: str,
    native: Native,
    *,
    license: str | None = None,  # noqa: A002
    private: bool = False,
    revision: str | None = None,
) -> Shared:
    """Put a pack into a repository, with a model card written from its `card.json`.

    Args:
        pack: a path or URL.
        repo: `hf-hub:owner/name`, made if it is not there; or the path or URL of a folder. Files
            there that are none of a pack's stay.
        native: the pack's; the pack is loaded on it first.
        license: for the model card, as the hub spells it.
        private: of the hub: nobody else is to see it.
        revision: of the hub: a branch, made from the main one if it is not there.

    Raises:
        PackError: the pack is damaged or made for another native.
        PermissionError: HF_TOKEN is missing, or may not write there.
        FileExistsError: the folder is something else than a pack's repository.
        ValueError: `private`, and the repository is there and public; or the hub refuses the card.

    """
    with tempfile.TemporaryDirectory(prefix="mla-push-") as scratch:
        folder = Path(scratch)
        card = _fetch(as_path(pack), folder, native)
        (folder / README).write_text(model_card(card, license, repo))
        if repo.startswith(HUB):
            return _push_to_hub(folder, repo, card, private, revision)
        if private or revision:
            raise ValueError(f"{repo} is a folder: private and revision are of {HUB}owner/name")
        _put(folder, as_path(repo))
        return Shared(card.language, str(as_path(repo)))


def pull(
    repo: str, out: str | Path | UPath, native: Native, *, revision: str | None = None
) -> Shared:
    """Put the pack of a repository in the place of `out`, an older pack there included.

    From the hub it is taken at one commit, through the hub's own cache (HF_HOME): pulled again, or
    broken off and pulled again, what is there is not fetched twice.

    Args:
        repo: `hf-hub:owner/name`, or the path or URL of a folder.
        out: a path or URL.
        native: the pack must be made for it.
        revision: of the hub: a branch, tag or commit; the main branch if not given.

    Raises:
        PackError: no pack, too large, damaged, or made for another native; `out` is as before.
        FileNotFoundError: no such repository or revision, or HF_TOKEN does not show it.
        FileExistsError: `out` is something else than a pack.

    """
    with tempfile.TemporaryDirectory(prefix="mla-pull-") as scratch:
        folder = Path(scratch)
        commit = None
        if repo.startswith(HUB):
            commit = _download(repo, revision, folder)
            card = _check(folder, repo, native)
        elif revision:
            raise ValueError(f"{repo} is a folder: revision is of {HUB}owner/name")
        else:
            card = _fetch(as_path(repo), folder, native)
        copy_pack(folder, out)
        return Shared(card.language, str(as_path(out)), commit)


def _fetch(source: UPath, folder: Path, native: Native) -> Card:
    """The files of a pack at a path or URL, here; its card if it is sound."""
    readme = {README} & set(names_in(source))
    fetch_files(source, folder, [*NEEDED, *readme])
    return _check(folder, str(source), native)


def _check(folder: Path, where: str, native: Native) -> Card:
    """The card of a pack that loads; `where` it is from is what an error tells."""
    try:
        LanguagePack.load(folder, native)
    except PackError as error:
        raise PackError(str(error).replace(str(folder), where)) from error
    card = read_card(folder)
    if not (folder / README).is_file():
        (folder / README).write_text(model_card(card))
    return card


def _put(folder: Path, target: UPath) -> None:
    names = [name for name in names_in(target) if not name.startswith(".")]  # .git may be there
    if "card.json" not in names and not MAX_FILE_BYTES.keys() >= set(names):
        raise FileExistsError(f"{target} is not a language pack: it has {names[:3]}")
    upload(folder, target, last="card.json")


def _push_to_hub(
    folder: Path, repo: str, card: Card, private: bool, revision: str | None
) -> Shared:
    if not os.environ.get("HF_TOKEN"):
        raise PermissionError(f"{repo}: writing needs a token of the hub's; set HF_TOKEN")
    api, name = _hub(), _name(repo)
    with _hub_errors(repo, revision):
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise ValueError(f"{repo} is public already; make it private there, or name another")
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.create_commit(
            name,
            [CommitOperationAdd(file, folder / file) for file in MAX_FILE_BYTES],
            commit_message=f"Language pack: {card.language} for {card.native}",
            revision=revision,
        )
    return Shared(card.language, commit.commit_url, commit.oid)


def _download(repo: str, revision: str | None, folder: Path) -> str:
    """The files of a pack on the hub, here; the commit they are of."""
    api, name = _hub(), _name(repo)
    with _hub_errors(repo, revision):
        info = api.model_info(name, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        check_sizes(sizes, repo)
        for file in MAX_FILE_BYTES.keys() & sizes:
            shutil.copyfile(api.hf_hub_download(name, file, revision=info.sha), folder / file)
    return str(info.sha)


def _name(repo: str) -> str:
    name = repo.removeprefix(HUB)
    if name.count("/") != 1:
        raise ValueError(f"{repo}: a repository of the hub is {HUB}owner/name")
    return name


def _hub() -> HfApi:
    # False, not None: a token that some login left on this machine is not ours to send.
    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"),
        token=os.environ.get("HF_TOKEN") or False,
        library_name="mla-ray",
    )


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """The hub's errors, in a line that says what to do.

    Its library lets httpx2's through; Qdrant's library and our own client use httpx.
    """
    token = "HF_TOKEN may not see it" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    try:
        yield
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo}: no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{repo}: not on the hub, or not public and {token}") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise PermissionError(f"{repo}: {error}; HF_TOKEN must allow it") from error
        raise
    except (httpx2.TransportError, LocalEntryNotFoundError) as error:
        raise ConnectionError(f"{repo}: the hub does not answer: {error}") from error
