"""Lineage of a native: the record of the natives that it was fine-tuned from.

The folder of such a native contains:

    open_clip_config.json, open_clip_model.safetensors, tokenizer    open_clip's layout
    lineage.json                                                     the ancestors
"""

import tempfile
from pathlib import Path
from typing import Any

import open_clip
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import nn
from upath import UPath

from mla_ray.model.identity import bundled_native
from mla_ray.model.native import Native
from mla_ray.model.open_clip_config import ModelConfig
from mla_ray.runtime.atomic import replacing_folder
from mla_ray.runtime.storage import as_path, download, is_local, names_in, upload, write_json

CONFIG = "open_clip_config.json"
"""File that makes a folder a native in open_clip's layout."""
LINEAGE = "lineage.json"
"""File name of a lineage."""
MAX_BYTES = 1 << 20
"""Maximum size of `lineage.json` in bytes."""
PROBE = ("a dog", "two dogs play in the snow!", "élan, 3 × 4")
"""Texts that check that a tokenizer survives saving and loading."""


class Ancestor(BaseModel):
    """Native that another native was fine-tuned from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    native: str
    fingerprint: str
    fingerprint_v1: str | None = Field(default=None, description="Fingerprint by rule 1.")


class Lineage(BaseModel):
    """Content of `lineage.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str = Field(description="Fingerprint of the native.")
    ancestors: list[Ancestor] = Field(min_length=1, description="Ancestors, the parent first.")
    trained: dict[str, Any] = Field(default_factory=dict, description="Settings, data, metrics.")


def read_lineage(name: str) -> Lineage | None:
    """Read the lineage of a native.

    Args:
        name: Name of the native as `Native.load` takes it.

    Returns:
        The lineage, or None if the native has no `lineage.json`.

    Raises:
        ValueError: The file is too large or invalid. The message names the file and the error.

    """
    path = (bundled_native(name) or Path(name)) / LINEAGE
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES} bytes; the file is damaged")
    try:
        return Lineage.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error


def lineage_of(native: Native) -> Lineage | None:
    """Return the lineage of a loaded native.

    Returns:
        None if the native has no `lineage.json`, or if the file belongs to other weights.

    Raises:
        ValueError: `lineage.json` is too large or invalid.

    """
    lineage = read_lineage(native.name)
    where = (bundled_native(native.name) or Path(native.name)) / LINEAGE
    remedy = f'Set "fingerprint" in that file to "{native.fingerprint}", the current one.'
    if lineage and native.goes_by(lineage.fingerprint, where, remedy):
        return lineage
    return None


def write_descendant(
    parent: Native, model: nn.Module, folder: UPath, trained: dict[str, Any]
) -> Lineage:
    """Write a model that was fine-tuned from `parent` to a folder that `Native.load` takes.

    Args:
        parent: Native that provides configuration, tokenizer and preprocessing.
        model: Model of the parent's architecture. Its weights are saved as they are.
        folder: Path or URL. Files of the same names are overwritten, and others are kept.
        trained: Settings, data and metrics to record in `lineage.json`.

    Returns:
        The lineage as written.

    Raises:
        ValueError: open_clip has no configuration of the parent, or the parent's tokenizer cannot
            be saved to a folder.

    """
    with tempfile.TemporaryDirectory(prefix="mla-native-") as temporary:
        scratch = Path(temporary)
        config, tokenizer = _open_clips(parent)
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(scratch)
            # Any name works: the key makes open_clip read the tokenizer from the folder.
            config["text_cfg"].setdefault("hf_tokenizer_name", "in this folder")
        weights = {n: w.detach().cpu().contiguous() for n, w in model.state_dict().items()}
        save_file(weights, scratch / "open_clip_model.safetensors")
        (scratch / "open_clip_model.safetensors").chmod(0o644)  # safetensors creates private files
        preprocessing = dict(parent.model.visual.preprocess_cfg)
        document = {"model_cfg": config, "preprocess_cfg": preprocessing}
        write_json(as_path(scratch / CONFIG), document)
        child = Native.load(temporary)
        if not child.tokenize(PROBE).equal(parent.tokenize(PROBE)):
            raise ValueError(f"{parent.name}: its tokenizer cannot be kept in a folder")
        own = Ancestor(
            native=parent.name,
            fingerprint=parent.fingerprint,
            fingerprint_v1=parent.fingerprint_v1,
        )
        ancestors = [own]
        if before := lineage_of(parent):
            ancestors += before.ancestors
        lineage = Lineage(fingerprint=child.fingerprint, ancestors=ancestors, trained=trained)
        write_json(as_path(scratch / LINEAGE), lineage.model_dump(exclude_none=True))
        upload(scratch, folder, last=CONFIG)  # readers take the folder for a native only then
    return lineage


def copy_native(source: UPath, folder: str | Path | UPath) -> None:
    """Copy the native at `source` to `folder`, replacing a native there.

    Args:
        source: Path or URL of the native.
        folder: Path or URL of the copy.

    Raises:
        FileExistsError: `folder` contains something other than a native.

    """
    target = as_path(folder)
    there = {name for name in names_in(target) if not name.startswith(".")}
    # An interrupted copy lacks the configuration, which is copied last.
    if CONFIG not in there and not there <= set(names_in(source)):
        raise FileExistsError(f"{target} exists and is not a native; choose another --out")
    if is_local(target):
        with replacing_folder(Path(target.path)) as copy:
            download(source, copy)
    else:
        with tempfile.TemporaryDirectory(prefix="mla-native-") as scratch:
            download(source, Path(scratch))
            upload(Path(scratch), target, last=CONFIG)


def _open_clips(native: Native) -> tuple[ModelConfig, Any]:
    """Return open_clip's configuration of a native and a tokenizer."""
    folder, tag = bundled_native(native.name) or Path(native.name), None
    if (folder / CONFIG).is_file():
        source = f"local-dir:{folder}"
    elif native.name.startswith("hf-hub:"):
        source = native.name
    else:
        source, _, tag = native.name.rpartition("/")
    config: ModelConfig | None = open_clip.get_model_config(source)
    if config is None:
        raise ValueError(
            f"{native.name}: open_clip has no configuration of this native, so its fine-tuned "
            "weights cannot be saved; use a native in open_clip's layout"
        )
    if tag and open_clip.get_pretrained_cfg(source, tag).get("quick_gelu", False):
        config["quick_gelu"] = True  # `Native.load` forced it
    return config, open_clip.get_tokenizer(source)
