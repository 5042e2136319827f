"""Training of `emoji-clip`, the bundled native model: a small English image-text model of emoji.

It takes the place of CLIP in the paper: a model that knows English before any language is acquired.
It trains on the English names and keywords of *all* emoji, in three drawing styles. It never sees
Twemoji. Training uses one process and no Ray.

Shapes: B batch, L tokens, D text width, E joint embedding size, S pixels of a side.
"""

import json
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from mla_ray.datasets.emoji import TEST_STYLE, Emoji, Label, keyword_list
from mla_ray.evaluation.recall import rank
from mla_ray.model.objectives import le_loss
from mla_ray.model.tokenizers import BOS, EOS, PAD, learn
from mla_ray.runtime.storage import as_path
from mla_ray.training.checkpoints import Checkpoints
from mla_ray.training.optimizer import Optimizer

CLIP = 1.0
"""Maximum norm of the gradient."""
OnStep = Callable[[str, int, int, dict[str, float]], None]
"""Called with phase, done, total and figures."""


class PretrainConfig(BaseModel):
    """Settings of the training."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: dict[str, Any]
    """Model configuration of open_clip."""
    steps: int = Field(default=1150, ge=1)
    batch: int = Field(default=512, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    warmup: int = Field(default=100, ge=1)
    """Number of warm-up steps."""
    weight_decay: float = 0.2
    average: float = Field(default=0.997, ge=0, lt=1)
    """Momentum of the running average of the weights. The saved model has the averaged weights."""
    vocab_size: int = 8192
    checkpoint_every: int = 100
    """Steps between checkpoints, and between evaluations on the held-out drawings."""
    seed: int = Field(default=0, ge=0, lt=2**32)


class Drawings:
    """All training drawings, in memory, with their augmentation.

    Args:
        emoji: Emoji data set.
        size: Pixels of a side of the augmented images.
        progress: Called with the number of concepts done, and their total.

    """

    def __init__(self, emoji: Emoji, size: int, progress: Callable[[int, int], None]) -> None:
        self.size = size
        source = size * 5 // 4  # drawn larger, so that zooming in still shows real detail
        images: list[npt.NDArray[np.uint8]] = []
        self.of_concept: list[range] = []
        for done, concept in enumerate(emoji.concepts, start=1):
            styles = emoji.styles(concept.key)
            self.of_concept.append(range(len(images), len(images) + len(styles)))
            for style in styles:
                images.append(np.asarray(emoji.draw(style, concept.key, source)))
            progress(done, len(emoji.concepts))
        self.images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # [N, 4, S', S'] uint8

    def batch(
        self,
        concepts: npt.NDArray[np.int64],
        rng: np.random.Generator,
        noise: torch.Generator,
    ) -> Tensor:
        """Return a drawing of each concept, in a random style and augmented.

        Position, shape and color change, and the background is random. Images are not mirrored,
        because a 'left arrow' must stay left.

        Returns:
            Pixels `[B, 3, S, S]` float32, from 0 to 1.

        """
        rows = [int(rng.choice(self.of_concept[concept])) for concept in concepts]
        x = self.images[rows].float() / 255
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)  # premultiplied alpha keeps edges clean

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(len(x), *shape, generator=noise) * (high - low) + low

        angle, zoom = uniform(-0.26, 0.26), uniform(0.9, 1.3)
        stretch, shear = uniform(0.9, 1.1), uniform(-0.1, 0.1)
        across = [angle.cos() * zoom * stretch, -angle.sin() * zoom + shear, uniform(-0.12, 0.12)]
        down = [angle.sin() * zoom, angle.cos() * zoom / stretch, uniform(-0.12, 0.12)]
        theta = torch.stack([torch.stack(across, 1), torch.stack(down, 1)], 1)
        grid = F.affine_grid(theta, [len(x), 4, self.size, self.size], align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", align_corners=False)
        colour, alpha = x[:, :3], x[:, 3:]

        grey = colour.mean(1, keepdim=True)
        colour = grey + (colour - grey) * uniform(0.6, 1.4, 1, 1, 1)
        colour = colour * uniform(0.8, 1.2, 1, 1, 1) * uniform(0.92, 1.08, 3, 1, 1)
        ramp = torch.linspace(-1, 1, self.size)
        ground = uniform(0, 1, 3, 1, 1)
        ground = ground + uniform(-0.3, 0.3, 3, 1, 1) * ramp[:, None]
        ground = ground + uniform(-0.3, 0.3, 3, 1, 1) * ramp
        # About a third have a white background, like the drawings of a caption table.
        white = torch.rand(len(x), 1, 1, 1, generator=noise) < 0.35
        ground = torch.where(white, torch.ones(()), ground.clamp(0, 1))
        return (colour + ground * (1 - alpha)).clamp(0, 1)


def make_tokenizer(
    labels: Sequence[Label], vocab_size: int, context_length: int
) -> PreTrainedTokenizerFast:
    """Learn an English vocabulary from names and keywords, as a Hugging Face tokenizer."""
    texts = [text for label in labels for text in (label.name, *label.keywords)]
    return PreTrainedTokenizerFast(
        tokenizer_object=learn(texts, vocab_size),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=context_length,
    )


def pretrain(config: PretrainConfig, emoji: Emoji, run: Path, report: OnStep) -> dict[str, float]:
    """Train the model, resuming in `run` if it has a checkpoint. Write it to `run/native`.

    Returns:
        Recall of the test concepts' English names against their held-out drawings, in percent.

    """
    torch.manual_seed(config.seed)
    named = emoji.labels("en")
    labels = [named[concept.key] for concept in emoji.concepts]
    size = config.model["vision_cfg"]["image_size"]
    drawings = Drawings(emoji, size, lambda done, total: report("drawing", done, total, {}))
    context_length = config.model["text_cfg"]["context_length"]
    tokenizer = make_tokenizer(labels, config.vocab_size, context_length)
    model_config = deepcopy(config.model)
    model_config["text_cfg"]["vocab_size"] = len(tokenizer)
    model = open_clip.CLIP(**model_config).to(memory_format=torch.channels_last)
    optimizer = Optimizer(model.parameters(), config.weight_decay)
    average = deepcopy(model).requires_grad_(False).eval()
    checkpoints, start = Checkpoints(as_path(run / "checkpoints")), 0
    run.mkdir(parents=True, exist_ok=True)
    if checkpoint := checkpoints.load():
        model.load_state_dict(checkpoint.part("model"))
        average.load_state_dict(checkpoint.part("kept"))
        optimizer.load_state_dict(checkpoint.part("optimizer"))
        start = checkpoint.number

    for step in range(start, config.steps):
        rng = np.random.default_rng([config.seed, step])
        noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        # Concepts are distinct: a repeated one would be a false negative in its batch.
        concepts = rng.permutation(len(labels))[: config.batch]
        images = _normalise(drawings.batch(concepts, rng, noise))
        texts = _texts(labels, concepts, rng)
        loss = _loss(model, images, _tokenize(tokenizer, texts))
        torch.autograd.backward(loss)
        optimizer.clip_grad_norm_(CLIP)
        optimizer.step(_learning_rate(config, step))
        optimizer.zero_grad()
        follow(average, model, min(config.average, (step + 1) / (step + 10)))
        figures = {"loss": loss.item()}
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            figures |= held_out(average, tokenizer, emoji)
            checkpoints.save(step + 1, _tensors(model, average, optimizer), {})
            with (run / "metrics.jsonl").open("a") as log:
                log.write(json.dumps({"step": step + 1, **figures}) + "\n")
        report("training", step + 1, config.steps, figures)
    save_native(run / "native", average, config.model, tokenizer)
    return held_out(average, tokenizer, emoji)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, momentum: float) -> None:
    """Move a running average of weights towards the model's weights.

    torch's AveragedModel is not used: it has one momentum for all steps, and begins with a copy of
    the first weights.

    Args:
        average: Model with the averaged weights, updated in place.
        model: Model in training.
        momentum: Share of the average that stays.

    """
    pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    for kept, new in pairs:
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - momentum)
        else:
            kept.copy_(new)


def _tensors(model: nn.Module, average: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name."""
    parts = {
        "model": model.state_dict(),
        "kept": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    return {f"{part}/{name}": t for part, of in parts.items() for name, t in of.items()}


def _learning_rate(config: PretrainConfig, step: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * min((step + 1) / config.warmup, cosine)


def _texts(
    labels: Sequence[Label], concepts: npt.NDArray[np.int64], rng: np.random.Generator
) -> list[str]:
    """Return a text for each concept: its name with probability 0.5, else one to four keywords."""
    texts = []
    for concept in concepts:
        label = labels[concept]
        if rng.random() < 0.5 or not label.keywords:
            texts.append(label.name)
        else:
            count = min(int(rng.integers(1, 5)), len(label.keywords))
            texts.append(keyword_list(rng.choice(label.keywords, count, replace=False).tolist()))
    return texts


def _tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    ids_BL: Tensor = batch["input_ids"]
    return ids_BL


def _normalise(pixels_B3SS: Tensor) -> Tensor:
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    return ((pixels_B3SS - mean) / std).contiguous(memory_format=torch.channels_last)


def _loss(model: Any, pixels_B3SS: Tensor, ids_BL: Tensor) -> Tensor:
    """Return CLIP's symmetric InfoNCE, with a learned temperature."""
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    with torch.autocast("cpu", torch.bfloat16):
        image_BE = model.encode_image(pixels_B3SS)
        text_BE = _encode_text(model, ids_BL)
    # All rows have different concepts, so no two are positives of each other.
    return le_loss(text_BE, image_BE, torch.arange(len(ids_BL)), model.logit_scale.exp())


def _encode_text(model: Any, ids_BL: Tensor) -> Tensor:
    """Encode texts without the padding to full length that open_clip's `encode_text` needs.

    The text tower is causal, so the features are the same.
    """
    length = ids_BL.shape[1]
    x_BLD = model.token_embedding(ids_BL) + model.positional_embedding[:length]
    x_BLD = model.transformer(x_BLD, attn_mask=model.attn_mask[:length, :length])
    end_B = (ids_BL == model.text_eos_id).int().argmax(-1)
    x_BD = model.ln_final(x_BLD[torch.arange(len(ids_BL)), end_B])
    x_BE: Tensor = x_BD @ model.text_projection
    return x_BE


@torch.inference_mode()
def held_out(model: Any, tokenizer: PreTrainedTokenizerFast, emoji: Emoji) -> dict[str, float]:
    """Return recall of the test concepts' English names against their held-out drawings.

    Returns:
        R@k of both directions, and AR, in percent.

    """
    named, size = emoji.labels("en"), int(np.max(model.visual.image_size))
    keys = [concept.key for concept in emoji.concepts if concept.split == "test"]
    pixels = np.stack([emoji.pixels(TEST_STYLE, key, size) for key in keys])
    images = _normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    image_ME = torch.cat([model.encode_image(part) for part in torch.split(images, 128)])
    text_ME = _encode_text(model, _tokenize(tokenizer, [named[key].name for key in keys]))
    recall = rank(text_ME.numpy(), image_ME.numpy(), np.arange(len(keys))).recall()
    return (
        {f"t2i {k}": value for k, value in recall.t2i.items()}
        | {f"i2t {k}": value for k, value in recall.i2t.items()}
        | {"AR": recall.ar}
    )


def save_native(
    folder: Path, model: nn.Module, model_config: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write a model in open_clip's folder layout: config, float16 safetensors, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model_config = deepcopy(model_config)
    model_config["text_cfg"]["vocab_size"] = len(tokenizer)
    document = {
        "model_cfg": model_config,
        "preprocess_cfg": {
            "mean": list(open_clip.OPENAI_DATASET_MEAN),
            "std": list(open_clip.OPENAI_DATASET_STD),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=2) + "\n")
    weights = {
        name: (w.half() if w.is_floating_point() else w).contiguous()
        for name, w in model.state_dict().items()
    }
    path = folder / "open_clip_model.safetensors"
    save_file(weights, path)
    path.chmod(0o644)  # safetensors creates files that only their owner can read
    tokenizer.save_pretrained(folder)
