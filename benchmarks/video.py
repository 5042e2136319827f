"""Frames of moving pictures: the first alone, the middle one, and the mean of twelve.

    mla data animated --languages en,de --out data/animated/tables
    python benchmarks/video.py --pack packs/de [--transcode 20] [--json video.json]

Names of the test concepts of a caption table against their animations: English by the native, and
the pack's language. Every animation is decoded once; what differs is which of its frames count.
`--transcode` writes some of the animations as MP4 (H.264) and WebM (VP9), on white, and says how
far the features of those, by PyAV, are from the animation's own, by Pillow.

Shapes: F frames, E joint embedding size.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageSequence
from rich.progress import track

from mla_ray.data.feature_store import encode_frames
from mla_ray.data.srgb import to_srgb
from mla_ray.data.video import FRAMES, frames_of, pooled
from mla_ray.evaluation.evaluation import Gallery, encode_query, evaluate
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack

Figures = dict[str, Any]
"""What was measured, as the JSON file has it."""

Features = npt.NDArray[np.float32]
CODECS = {
    "mp4": ("libx264", {"crf": "18", "preset": "veryfast"}),
    "webm": ("libvpx-vp9", {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}


def features(native: Native, frames: Sequence[Image.Image]) -> Features:
    """Of each frame by itself [F, E]."""
    return np.concatenate(list(encode_frames(native, ([frame] for frame in frames))))


def galleries(native: Native, images: dict[str, bytes]) -> dict[str, Gallery]:
    kept: dict[str, list[Features]] = {
        "first frame": [],
        "middle frame": [],
        f"mean of {FRAMES}": [],
    }
    for data in track(images.values(), "animations"):
        shown = frames_of(data)
        first = to_srgb(Image.open(BytesIO(data)))
        made = features(native, [first, *shown])
        kept["first frame"].append(made[0])
        kept["middle frame"].append(made[1 + len(shown) // 2])
        kept[f"mean of {FRAMES}"].append(pooled(made[1:]))
    return {name: Gallery(list(images), np.stack(rows)) for name, rows in kept.items()}


def transcoded(data: bytes, container: str) -> bytes:
    """The animation as a video of the same frames, 25 a second."""
    codec, options = CODECS[container]
    sink = BytesIO()
    image = Image.open(BytesIO(data))
    with av.open(sink, "w", format=container) as out:
        stream = cast("av.VideoStream", out.add_stream(codec, rate=25, options=options))
        stream.width, stream.height = image.size
        stream.pix_fmt = "yuv420p"
        for frame in ImageSequence.Iterator(image):
            shown = to_srgb(frame.copy()).convert("RGB")
            out.mux(stream.encode(av.VideoFrame.from_image(shown)))  # type: ignore[no-untyped-call]
        out.mux(stream.encode(None))
    return sink.getvalue()


def compare(native: Native, datas: Sequence[bytes]) -> Figures:
    """Cosines of the features of videos with those of the animations they were made of."""
    figures: Figures = {}
    began = time.process_time()
    own = [pooled(features(native, frames_of(data))) for data in datas]
    figures["webp"] = {"CPU ms each": round(1000 * (time.process_time() - began) / len(datas))}
    for container in CODECS:
        videos = [transcoded(data, container) for data in track(datas, container)]
        began = time.process_time()
        made = [pooled(features(native, frames_of(video))) for video in videos]
        seconds = time.process_time() - began
        cosines = [
            a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(own, made, strict=True)
        ]
        figures[container] = {
            "CPU ms each": round(1000 * seconds / len(datas)),
            "cosine, mean": round(float(np.mean(cosines)), 5),
            "cosine, least": round(float(np.min(cosines)), 5),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--captions", type=Path, default=Path("data/animated/tables/captions.parquet")
    )
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--native", default="emoji-clip")
    parser.add_argument("--transcode", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    native = Native.load(options.native)
    table = pq.read_table(options.captions)
    test = table.filter(pa.compute.equal(table["split"], "test"))
    pairs = zip(test["image_id"].to_pylist(), test["image"].to_pylist(), strict=True)
    images = {
        key: (options.captions.parent / path).read_bytes() for key, path in dict(pairs).items()
    }

    loaded = [LanguagePack.load(options.pack, native)] if options.pack else []
    packs = {pack.language: pack for pack in loaded}
    result: Figures = {"animations": len(images), "recall": {}}
    for name, gallery in galleries(native, images).items():
        for language in ("en", *packs):
            encode = partial(encode_query, native, packs, language)
            ranks = evaluate(encode, language, test, gallery).ranks
            result["recall"][f"{language}, {name}"] = ranks.recall().as_dict()
            spread = np.percentile(ranks.resampled(), [2.5, 97.5])
            result["recall"][f"{language}, {name}"]["AR, 95 %"] = spread.round(1).tolist()
    if options.transcode:
        result["transcoded"] = compare(native, list(images.values())[: options.transcode])
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
