"""Reader for checkpoints of the paper's released code (github: AIM3-RUC/MLA).

A checkpoint is one state dict. It contains an OpenAI CLIP with QuickGELU, the embedding that all
languages share, and the acquirers of each language:

    multilingual_embedding.weight                                         [V, W]
    multilingual_embedding_linear.{weight,bias}                           [D, W], [D]
    transformer.resblocks.I.acquirer.LANGUAGE.mlp.{c_fc,c_proj}.{weight,bias}
    transformer.resblocks.I.acquirer.LANGUAGE.ln.*                        unused in that code
    all other keys                                                        the CLIP

Shapes: V embedding rows, W row width, D text width, H acquirer hidden size.
"""

import json
import pickle
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mla_ray.model.encoder import LanguageEncoder
from mla_ray.model.native import Native
from mla_ray.model.open_clip_config import ModelConfig, Preprocessing, preprocessing
from mla_ray.model.towers import TextTower

END = 102
"""Id of M-BERT's [SEP] token, at which that code reads the sentence feature."""
OURS = {"mlp.c_fc": "down", "mlp.c_proj": "up"}
"""Names of an acquirer's layers in a checkpoint and in `Acquirer`."""
ACQUIRER = re.compile(r"transformer\.resblocks\.(\d+)\.acquirer\.([^.]+)\.(.+)\.(weight|bias)")
"""Key of an acquirer's weight: block, language, layer and kind."""
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own archives


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a checkpoint in float32, sorted by module."""

    path: Path
    """File that the checkpoint was read from."""
    clip: dict[str, Tensor]
    """Weights of the CLIP."""
    embedding: dict[str, Tensor]
    """Shared embedding: `rows.weight`, `linear.weight` and `linear.bias`."""
    acquirers: dict[str, dict[str, Tensor]]
    """Weights of the acquirers by language, named as in `LanguageEncoder`."""

    # -- languages --

    def encoder(self, language: str, tower: TextTower) -> LanguageEncoder:
        """Create the encoder of one language on `tower`.

        Raises:
            ValueError: The checkpoint does not have the language, or its weights do not fit the
                tower.

        """
        if language not in self.acquirers:
            raise ValueError(f"{self.path}: no language {language!r}; it has {[*self.acquirers]}")
        weights = {f"embedding.{name}": weight for name, weight in self.embedding.items()}
        weights |= self.acquirers[language]
        try:
            encoder = LanguageEncoder.of_weights(tower, weights)
        except RuntimeError as error:
            raise ValueError(f"{self.path}: language {language!r} does not fit: {error}") from error
        return encoder.to(tower.token_embedding.weight.device)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Check that a tokenizer fits the embedding rows and ends texts as M-BERT's does.

        Raises:
            ValueError: The number of tokens or the end token differs.

        """
        rows, tokens = len(self.embedding["rows.weight"]), tokenizer.get_vocab_size()
        if rows != tokens:
            raise ValueError(f"{self.path}: {rows:,} embedding rows, the tokenizer has {tokens:,}")
        if tokenizer.encode("").ids[-1:] != [END]:
            raise ValueError(f"the tokenizer does not end texts with token {END} as M-BERT's does")

    # -- the CLIP inside --

    @cached_property
    def model_config(self) -> ModelConfig:
        """open_clip's configuration of the CLIP, derived from the shapes of the weights."""
        weights = self.clip
        patches = weights["visual.positional_embedding"].shape[0] - 1
        width, _, patch, _ = weights["visual.conv1.weight"].shape
        text_width = weights["ln_final.weight"].shape[0]
        return {
            "embed_dim": weights["text_projection"].shape[1],
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": patch * round(patches**0.5),
                "layers": _blocks(weights, "visual.transformer.resblocks."),
                "width": width,
                "patch_size": patch,
            },
            "text_cfg": {
                "context_length": weights["positional_embedding"].shape[0],
                "vocab_size": weights["token_embedding.weight"].shape[0],
                "width": text_width,
                "heads": text_width // 64,
                "layers": _blocks(weights, "transformer.resblocks."),
            },
        }

    @cached_property
    def preprocess(self) -> Preprocessing:
        """OpenAI's preprocessing at the image size of the CLIP."""
        size = self.model_config["vision_cfg"]["image_size"]
        return preprocessing({"size": (size, size)})

    def native(self) -> Native:
        """Create a native in memory from the CLIP in the checkpoint."""
        model = open_clip.CLIP(**self.model_config)
        model.load_state_dict(self.clip)
        set_model_preprocess_cfg(model, self.preprocess)
        return Native(str(self.path), model, open_clip.get_tokenizer("ViT-B-32"))

    def write_native(self, folder: Path) -> None:
        """Write the CLIP to a folder in open_clip's layout, which `Native.load` takes.

        Raises:
            FileExistsError: The folder is not empty.

        """
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty; choose another folder for the native")
        save_file(self.clip, folder / "open_clip_model.safetensors")
        (folder / "open_clip_model.safetensors").chmod(0o644)  # safetensors creates private files
        document = {"model_cfg": self.model_config, "preprocess_cfg": self.preprocess}
        # Write it last: readers take the folder for a native only then.
        (folder / "open_clip_config.json").write_text(json.dumps(document, indent=2) + "\n")

    def check_native(self, native: Native) -> None:
        """Check that the native's weights equal those of the CLIP in the checkpoint.

        Raises:
            ValueError: A weight differs or is missing. The message names the weight.

        """
        theirs = native.model.state_dict()
        for name, weight in self.clip.items():
            other = theirs.get(name)
            if other is None or not torch.equal(other.float().cpu(), weight):
                raise ValueError(
                    f"{self.path}: its {name} is not that of {native.name!r}; save the CLIP in "
                    "the checkpoint as a native, with --with-native DIR"
                )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the tensors of a checkpoint. Nothing else in the file is unpickled.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file contains more than tensors, or lacks tensors of this layout.

    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a state dict of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(w, Tensor) for w in state.values()):
        raise ValueError(f"{path}: not a state dict of tensors")
    # A model wrapped for several GPUs saves all names with this prefix.
    weights = {name.removeprefix("module."): w for name, w in state.items()}
    embedding: dict[str, Tensor] = {}
    clip: dict[str, Tensor] = {}
    acquirers: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        tensor = weight.float().contiguous()
        if match := ACQUIRER.fullmatch(name):
            block, language, part, kind = match.groups()
            if part in OURS:
                own = acquirers.setdefault(language, {})
                own[f"acquirers.{block}.{OURS[part]}.{kind}"] = tensor
        elif name == "multilingual_embedding.weight":
            embedding["rows.weight"] = tensor
        elif name.startswith("multilingual_embedding_linear."):
            embedding[name.replace("multilingual_embedding_", "")] = tensor
        elif name not in NOT_WEIGHTS:
            clip[name] = tensor
    needed = (
        "visual.conv1.weight",
        "visual.positional_embedding",
        "text_projection",
        "ln_final.weight",
    )
    lacking = [name for name in needed if name not in clip]
    if len(embedding) < 3:
        lacking.append("multilingual_embedding, multilingual_embedding_linear")
    if not acquirers:
        lacking.append("transformer.resblocks.*.acquirer.*")
    if lacking:
        raise ValueError(f"{path}: not a checkpoint of the paper's code, it lacks {lacking}")
    return Checkpoint(path, clip, embedding, acquirers)


def _blocks(weights: dict[str, Tensor], prefix: str) -> int:
    return len({n.removeprefix(prefix).split(".")[0] for n in weights if n.startswith(prefix)})
