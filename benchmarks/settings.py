"""Measure the paper's three settings on emoji, with a drawing style as the target data set.

    python benchmarks/settings.py --pack runs/demo/packs/de [--steps 60] [--json settings.json]

The target is Twemoji. Neither the bundled native nor any pack was trained on it. Nine tenths of the
training concepts are for training and one tenth is for validation. Captions are the names and
keywords in English and in the pack's language. The test is that of the demo: names of the test
concepts against Twemoji. The settings are:

- zero-shot: the unchanged pack,
- fine-tuned on English: the native is fine-tuned on English, and the pack is plugged into it,
- fine-tuned on all: the pack's language modules are then fine-tuned on the language's captions.
"""

import argparse
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mla_ray.data.corpus import Corpus
from mla_ray.datasets.emoji import SIZE, TEST_STYLE, Emoji
from mla_ray.evaluation.evaluation import Gallery, encode_query, evaluate
from mla_ray.model.native import Native
from mla_ray.packs.card import read_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.transfer import plug
from mla_ray.runtime.cluster import ray_session
from mla_ray.runtime.console import bars
from mla_ray.training.acquisition import acquire
from mla_ray.training.config import AcquireConfig, Evaluations, FinetuneConfig, HeldOut, Stage
from mla_ray.training.finetuning import finetune
from mla_ray.training.workers import Hooks

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""


def write_table(emoji: Emoji, language: str, path: Path) -> None:
    """Write a caption table with Twemoji of all concepts.

    Training concepts whose number is divisible by ten are for validation.
    """
    labels = {tag: emoji.labels(tag) for tag in ("en", language)}
    rows = []
    for number, concept in enumerate(emoji.concepts):
        image = emoji.png(TEST_STYLE, concept.key, SIZE)
        split = "validation" if concept.split == "train" and number % 10 == 0 else concept.split
        for tag, of_language in labels.items():
            if label := of_language.get(concept.key):
                captions = label.captions if split == "train" else [label.name]
                row = {"image_id": concept.key, "image": image, "language": tag, "split": split}
                rows += [row | {"caption": caption} for caption in captions]
    pq.write_table(pa.Table.from_pylist(rows), path)


def measure(native: Native, pack: LanguagePack, test: pa.Table) -> Figures:
    """Return the recalls of English and of the pack's language on the test captions."""
    gallery = Gallery.of(native, test)
    packs = {pack.language: pack}
    return {
        tag: evaluate(partial(encode_query, native, packs, tag), tag, test, gallery).as_dict()
        for tag in ("en", *packs)
    }


def run(args: argparse.Namespace, scratch: Path) -> Figures:
    """Train and measure all three settings."""
    language, table = read_card(args.pack).language, scratch / "captions.parquet"
    write_table(Emoji(args.data / "emoji"), language, table)
    whole = pq.read_table(table)
    test = whole.filter(pa.compute.equal(whole["split"], "test"))
    first = Native.load(args.native)
    results: Figures = {}

    def tell(setting: str, native: Native, pack: LanguagePack) -> None:
        results[setting] = measure(native, pack, test)
        ars = "  ".join(f"{tag} AR {recall['AR']:5.1f}" for tag, recall in results[setting].items())
        print(f"{setting:>22}  {ars}", flush=True)

    tell("zero-shot", first, LanguagePack.load(args.pack, first))
    with bars() as report, ray_session():
        english = FinetuneConfig(
            steps=args.steps, lr=args.lr, held_out=Evaluations(every=max(1, args.steps // 4))
        )
        made = finetune(args.native, table, english, scratch / "english", hooks=Hooks(report))
        tuned = Native.load(str(made.native))
        plug(args.pack, tuned, scratch / "plugged")
        plugged = LanguagePack.load(scratch / "plugged", tuned)
        tell("fine-tuned on English", tuned, plugged)
        every = AcquireConfig(
            nlt=Stage(steps=0, batch=128, lr=1e-3),
            le=Stage(steps=args.steps, batch=128, lr=args.pack_lr),
            held_out=HeldOut(every=max(1, args.steps // 4), of="captions"),
        )
        packs = acquire(
            str(made.native),
            [Corpus(language, [], table, scratch / "plugged")],
            every,
            scratch / "all",
            store=scratch / "features",
            hooks=Hooks(report=report),
        )
        tell("fine-tuned on all", tuned, LanguagePack.load(packs[language], tuned))
    return results


def main() -> None:
    """Parse the options and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pack", type=Path, default=Path("runs/demo/packs/de"))
    parser.add_argument("--native", default="emoji-clip")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=60, help="Steps of each fine-tuning.")
    parser.add_argument("--lr", type=float, default=3e-5, help="Learning rate of the native.")
    parser.add_argument(
        "--pack-lr", type=float, default=3e-5, help="Learning rate of the language modules."
    )
    parser.add_argument("--json", type=Path, help="Write the figures to this file, too.")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="mla-settings-"))
    try:
        results = run(args, scratch)
    finally:
        shutil.rmtree(scratch)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
