"""Write all that mla-ray keeps on disk, small, as this version writes it.

    python -m tests.formats.make v0.2.0

makes `tests/formats/v0.2.0.tar.xz`. `test_formats.py` reads every archive there is with the code of
the day. Make one when a format changes, and keep those of before.

v0.1.0 was made by this program's code at commit 910b9f2, when modules had other names.
"""

import json
import os
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from mla_ray.data.corpus import Corpus
from mla_ray.index.ingest import index_captions
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import BOS, EOS, PAD, learn
from mla_ray.packs.pack import LanguagePack, copy_pack
from mla_ray.runtime.cluster import ray_session
from mla_ray.runtime.storage import as_path
from mla_ray.training.acquisition import begin, encode, job_of
from mla_ray.training.acquisition_learner import train
from mla_ray.training.config import AcquireConfig, HeldOut, Stage
from mla_ray.training.driver import Control, Driver
from mla_ray.training.loop import LOG_EVERY
from mla_ray.training.prepare import prepare
from mla_ray.training.pretraining import save_native

ENGLISH = ["a dog", "two dogs in the snow", "a red umbrella", "a cat", "a small boat", "grapes"]
GERMAN = ["ein Hund", "zwei Hunde im Schnee", "ein roter Schirm", "eine Katze", "ein kleines Boot"]
GERMAN += ["Weintrauben"]
CONFIG = AcquireConfig(
    nlt=Stage(steps=2 * LOG_EVERY, batch=8, lr=2e-3),
    le=Stage(steps=2 * LOG_EVERY, batch=6, lr=1e-3),
    vocab_size=300,
    hidden=8,
    checkpoint_every=LOG_EVERY,
    held_out=HeldOut(every=LOG_EVERY, size=4),
)
SOURCE = "pictures"


def make_native(folder: Path) -> None:
    """A CLIP of random weights with a learned English vocabulary."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learn(ENGLISH, 300), bos_token=BOS, eos_token=EOS, pad_token=PAD
    )
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "width": 16, "heads": 1, "layers": 2, "pool_type": "eos"}
    text |= {"eos_id": 2, "hf_tokenizer_name": "in this folder", "vocab_size": len(tokenizer)}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    known = {name: value for name, value in text.items() if name != "hf_tokenizer_name"}
    torch.manual_seed(0)
    model = open_clip.CLIP(16, vision, known)
    save_native(folder, model, config, tokenizer)


def make_tables(folder: Path) -> Corpus:
    folder.mkdir()
    rng, images = np.random.default_rng(0), []
    for _ in range(12):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    targets = GERMAN + [text.upper() for text in GERMAN]
    pairs = {"source": ENGLISH * 2, "target": targets, "language": ["de"] * 12}
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    captions = pa.table(
        {
            "image_id": [f"image {number}" for number in range(12)],
            "image": pa.array(images, pa.large_binary()),
            "language": ["de"] * 12,
            "caption": targets,
            "split": ["train"] * 12,
        }
    )
    pq.write_table(captions, folder / "captions.parquet")
    return Corpus("de", ["tables/pairs.parquet"], "tables/captions.parquet")


def make(folder: Path) -> None:
    """Native, tables, prepared run with checkpoints, the run ended, features, pack, index."""
    os.chdir(folder)
    make_native(folder / "native")
    corpus = make_tables(folder / "tables")
    native = Native.load("native")
    store, run, ended = as_path("features"), as_path("stopped"), as_path("ended")
    with ray_session(cpus=2):
        for each in (run, ended):
            begin(native, [corpus], CONFIG, each, resume=False)
            made = prepare(native, [corpus], CONFIG, each)
            encode(native, [corpus], each, store, lambda progress: None)
    asked = 0

    def control() -> Control:
        nonlocal asked
        asked += 1
        return Control.STOP if asked == 3 else Control.CONTINUE

    assert not train(job_of(run, store, made), Driver(control=control))
    assert train(job_of(ended, store, made))
    packs = json.loads((folder / "ended" / "done.json").read_text())["packs"]
    copy_pack(ended / packs["de"], folder / "pack")
    pack = LanguagePack.load(folder / "pack", native)
    captions = pq.read_table(folder / "tables" / "captions.parquet")
    index_captions("edge:index", native, {"de": pack}, captions, SOURCE)
    english = native.encode_text(native.tokenize(ENGLISH)).float().numpy()
    german = pack.encode_text(GERMAN).numpy()
    save_file({"english": english, "german": german}, folder / "expected.safetensors")


if __name__ == "__main__":
    target = Path(__file__).parent.resolve() / f"{sys.argv[1]}.tar.xz"
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch).resolve() / "formats"
        made.mkdir()
        make(made)
        with tarfile.open(target, "w:xz") as archive:
            archive.add(made, arcname=".")
