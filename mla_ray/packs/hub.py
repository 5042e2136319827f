"""Sharing of packs on the Hugging Face hub, or in a folder with the same layout.

    README.md  card.json  tokenizer.json  weights.safetensors      at the root of the repository

No other file of a repository is read, and sizes are checked before a file is fetched. A pack must
load on its native before it is pushed or replaces a local pack. The hub's token comes only from the
environment variable HF_TOKEN. HF_ENDPOINT selects a hub other than the public one.
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
"""Prefix of a repository on the hub."""


@dataclass(frozen=True)
class Shared:
    """Pack in a repository or folder.

    Attributes:
        language: BCP-47 tag of the pack.
        url: Commit URL on the hub after a push. Otherwise the path or URL of the folder.
        revision: Commit of the hub, or None for a folder.

    """

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
    """Push a pack to a repository, with a model card written from its `card.json`.

    Args:
        pack: Path or URL of the pack.
        repo: `hf-hub:owner/name`, which is created if it does not exist, or the path or URL of a
            folder. Other files there are kept.
        native: Native of the pack. The pack is loaded on it first.
        license: License for the model card, as the hub spells it.
        private: Hub only. Create the repository as private.
        revision: Hub only. Branch to push to, created from the main branch if it does not exist.

    Raises:
        PackError: The pack is damaged or was made for another native.
        PermissionError: HF_TOKEN is missing or does not permit writing.
        FileNotFoundError: The hub does not show the repository to this token.
        FileExistsError: The folder contains something other than a pack.
        ValueError: `private` is set but the repository is public, a hub option is used with a
            folder, the name is not `owner/name`, or the hub rejects the model card.
        ConnectionError: The hub does not answer.

    """
    with tempfile.TemporaryDirectory(prefix="mla-push-") as scratch:
        folder = Path(scratch)
        card = _fetch(as_path(pack), folder, native)
        (folder / README).write_text(model_card(card, license, repo))
        if repo.startswith(HUB):
            return _push_to_hub(folder, repo, card, private, revision)
        if private or revision:
            raise ValueError(f"{repo} is a folder: private and revision need {HUB}owner/name")
        _put(folder, as_path(repo))
        return Shared(card.language, str(as_path(repo)))


def pull(
    repo: str, out: str | Path | UPath, native: Native, *, revision: str | None = None
) -> Shared:
    """Pull the pack of a repository to `out`, replacing an older pack there.

    All files come from one commit, through the hub's cache (HF_HOME). A repeated pull, also after
    an interruption, does not fetch cached files again.

    Args:
        repo: `hf-hub:owner/name`, or the path or URL of a folder.
        out: Path or URL of the local pack.
        native: Native that the pack must be made for.
        revision: Hub only. Branch, tag or commit. The default is the main branch.

    Raises:
        PackError: The repository has no pack, or the pack is too large, damaged or made for another
            native. `out` is unchanged.
        FileNotFoundError: The repository or revision does not exist, or HF_TOKEN may not see it.
        PermissionError: The hub denies access.
        FileExistsError: `out` contains something other than a pack.
        ValueError: `revision` is used with a folder, or the name is not `owner/name`.
        ConnectionError: The hub does not answer.

    """
    with tempfile.TemporaryDirectory(prefix="mla-pull-") as scratch:
        folder = Path(scratch)
        commit = None
        if repo.startswith(HUB):
            commit = _download(repo, revision, folder)
            card = _check(folder, repo, native)
        elif revision:
            raise ValueError(f"{repo} is a folder: revision needs {HUB}owner/name")
        else:
            card = _fetch(as_path(repo), folder, native)
        copy_pack(folder, out)
        return Shared(card.language, str(as_path(out)), commit)


def _fetch(source: UPath, folder: Path, native: Native) -> Card:
    """Copy the files of a pack at a path or URL to `folder`, and return the card if it is valid."""
    readme = {README} & set(names_in(source))
    fetch_files(source, folder, [*NEEDED, *readme])
    return _check(folder, str(source), native)


def _check(folder: Path, where: str, native: Native) -> Card:
    """Load a pack and return its card. Error messages name it `where`."""
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
        raise PermissionError(f"{repo}: writing needs a token of the hub; set HF_TOKEN")
    api, name = _hub(), _name(repo)
    with _hub_errors(repo, revision):
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise ValueError(f"{repo} is public already; make it private there or choose another")
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
    """Download the files of a pack from the hub and return their commit."""
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
        raise ValueError(f"{repo}: not a repository of the hub; write {HUB}owner/name")
    return name


def _hub() -> HfApi:
    # False, not None: do not send a token that an earlier login stored on this machine.
    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT"),
        token=os.environ.get("HF_TOKEN") or False,
        library_name="mla-ray",
    )


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Translate the hub's errors into exceptions that tell the user what to do.

    huggingface_hub raises errors of httpx2 as they are. Qdrant's library and our client use httpx.
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
            raise PermissionError(f"{repo}: {error}; HF_TOKEN does not permit it") from error
        raise
    except (httpx2.TransportError, LocalEntryNotFoundError) as error:
        raise ConnectionError(f"{repo}: the hub does not answer: {error}") from error
