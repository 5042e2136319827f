"""Compare features of animations: the first frame, the middle frame, and the mean of twelve.

    mla data animated --languages en,de --out data/animated/tables
    python benchmarks/video.py --pack packs/de [--transcode 20] [--json video.json]

The queries are names of the test concepts of a caption table, in English with the native and in the
pack's language. The gallery consists of their animations. Every animation is decoded once, and the
variants differ in the frames that they use. `--transcode` converts some of the animations to MP4
(H.264) and WebM (VP9) on a white background. It compares the features of these videos, decoded by
PyAV, with those of the animations, decoded by Pillow.

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
"""Measurements, in the format of the JSON file."""

Features = npt.NDArray[np.float32]
CODECS = {
    "mp4": ("libx264", {"crf": "18", "preset": "veryfast"}),
    "webm": ("libvpx-vp9", {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}


def features(native: Native, frames: Sequence[Image.Image]) -> Features:
    """Encode each frame separately to `[F, E]` float32."""
    return np.concatenate(list(encode_frames(native, ([frame] for frame in frames))))


def galleries(native: Native, images: dict[str, bytes]) -> dict[str, Gallery]:
    """Encode the animations, and return one gallery for each choice of frames."""
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
    """Convert an animation to a video of the same frames at 25 frames per second."""
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
    """Compare the features of videos with those of the animations from which they were made.

    Returns:
        CPU time per animation in milliseconds, and the mean and minimum cosine, by format.

    """
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
    """Parse the options, run the benchmark and print the result."""
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
