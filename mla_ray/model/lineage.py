"""Where a native comes from: `lineage.json` in the folder of one that was trained from another.

open_clip_config.json, open_clip_model.safetensors, tokenizer    as open_clip has them
lineage.json                                                     its ancestors

"""

import tempfile
from pathlib import Path
from typing import Any

import open_clip
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import nn
from upath import UPath

from mla_ray.model.native import Native, bundled_native
from mla_ray.model.open_clip_config import ModelConfig
from mla_ray.runtime.atomic import replacing_folder
from mla_ray.runtime.storage import as_path, download, is_local, names_in, upload, write_json

CONFIG = "open_clip_config.json"
LINEAGE = "lineage.json"
MAX_BYTES = 1 << 20
PROBE = ("a dog", "two dogs play in the snow!", "élan, 3 × 4")


class Ancestor(BaseModel):
    """A native that another one was trained from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    native: str
    fingerprint: str
    fingerprint_v1: str | None = Field(default=None, description="By the rule of mla-ray 0.1.0.")


class Lineage(BaseModel):
    """`lineage.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str = Field(description="Of the native that this is the lineage of.")
    ancestors: list[Ancestor] = Field(min_length=1, description="The parent first.")
    trained: dict[str, Any] = Field(default_factory=dict, description="Settings, data, figures.")


def read_lineage(name: str) -> Lineage | None:
    """The lineage of a native, by its name as `Native.load` takes it; None if it tells of none.

    Raises:
        ValueError: names the file and what is wrong with it.

    """
    path = (bundled_native(name) or Path(name)) / LINEAGE
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES} bytes; it is not as it was written")
    try:
        return Lineage.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error


def lineage_of(native: Native) -> Lineage | None:
    """The lineage beside a native; None if there is none, or it is of other weights."""
    lineage = read_lineage(native.name)
    where = (bundled_native(native.name) or Path(native.name)) / LINEAGE
    remedy = f'Write "fingerprint": "{native.fingerprint}" there for the one of today.'
    if lineage and native.goes_by(lineage.fingerprint, where, remedy):
        return lineage
    return None


def write_descendant(
    parent: Native, model: nn.Module, folder: UPath, trained: dict[str, Any]
) -> Lineage:
    """Write a model that was trained from `parent`, float32, in a folder that `Native.load` takes.

    Args:
        parent: gives configuration, tokenizer and preprocessing.
        model: of the parent's architecture.
        folder: a path or URL; what is there of another native is replaced.
        trained: settings, data and figures, for the record.

    Raises:
        ValueError: the parent has no configuration of open_clip's, or what was written would not
            be read as the same.

    """
    with tempfile.TemporaryDirectory(prefix="mla-native-") as temporary:
        scratch = Path(temporary)
        config, tokenizer = _open_clips(parent)
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(scratch)
            # Any name: what makes open_clip look for a tokenizer's files in the folder.
            config["text_cfg"].setdefault("hf_tokenizer_name", "in this folder")
        weights = {n: w.detach().cpu().contiguous() for n, w in model.state_dict().items()}
        save_file(weights, scratch / "open_clip_model.safetensors")
        (scratch / "open_clip_model.safetensors").chmod(0o644)  # safetensors writes private files
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
        upload(scratch, folder, last=CONFIG)  # it is a native only with that
    return lineage


def copy_native(source: UPath, folder: str | Path | UPath) -> None:
    """Put a copy of the native in `source` in the place of `folder`, paths or URLs.

    Raises:
        FileExistsError: `folder` is something else than a native.

    """
    target = as_path(folder)
    there = {name for name in names_in(target) if not name.startswith(".")}
    # One that lacks its configuration alone is what a copy left that was broken off.
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
    """open_clip's own configuration of a native, and a tokenizer of its."""
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
            f"{native.name}: open_clip has no configuration of it, so that its fine-tuned form "
            "cannot be written; use a native in open_clip's layout"
        )
    if tag and open_clip.get_pretrained_cfg(source, tag).get("quick_gelu", False):
        config["quick_gelu"] = True  # `Native.load` forced it
    return config, open_clip.get_tokenizer(source)
