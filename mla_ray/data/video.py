"""Decoding of still images, animations and videos into frames, and their features (paper, 4.1).

Videos follow meanP of CLIP4Clip (arXiv 2104.08860), which MLA uses for MSR-VTT: the image tower
encodes N = 12 equidistant frames, and their L2-normalized features are averaged. CLIP4Clip first
reduces a video to one frame per second, then takes N of these from the first to the last. This
module takes the middles of N equal segments of all frames, so that a title or a black end is not
selected.

`frames_of` decodes the image bytes of a caption table: one frame of a still image, several frames
of an animation (GIF, WebP, PNG or AVIF, with Pillow) or of a video (with FFmpeg through PyAV). The
first bytes select the format. File names are ignored.

Shapes: F frames, E joint embedding size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from mla_ray.data.images import AVIF_BRANDS, HEIC_BRANDS, OWN_TABLE, finished, open_image
from mla_ray.data.srgb import to_srgb

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

Floats = npt.NDArray[np.float32]

DECODING = 2
"""Version of the decoding of bytes to pictures, here and in `images`. It is part of the key of
stored features and pixels.

Increase it if a picture that could be decoded before now has other pixels or other frames. Stored
data is then computed again. Do not increase it for an additional format, because refused pictures
are always tried again.

1. Version of mla-ray 0.1.0.
2. Upright by EXIF, sRGB by color profile, 16 bits scaled, palettes scaled as colors.
"""
FRAMES = 12
"""Number of frames that represent a video."""
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
"""Formats whose frames form an animation. Frames of a TIFF are pages."""
MAX_PIXELS = 4096 * 2176
"""Maximum number of pixels in a frame: DCI 4K."""
MAX_FRAMES = 18_000
"""Maximum number of frames: ten minutes at 30 frames per second. All frames are decoded."""
MAX_SECONDS = 600
"""Maximum duration of a video in seconds."""

STILLS = (*AVIF_BRANDS, *HEIC_BRANDS)
"""Brands of still images in the MP4 container."""


def sampled(total: int, count: int = FRAMES) -> list[int]:
    """Return the numbers of the frames that represent a video, counted from 0.

    These are the middles of `count` equal segments of `total` frames. If a segment has two middle
    frames, the later one is taken. If `total` is at most `count`, all frames are taken.
    """
    if total <= count:
        return list(range(total))
    return [(2 * segment + 1) * total // (2 * count) for segment in range(count)]


def pooled(frames_FE: Floats) -> Floats:
    """Return the feature `[E]` of a picture: the mean of its L2-normalized frame features.

    The feature of a single frame is returned unchanged, so a video of one frame equals the image.
    The mean is not normalized again, because features are normalized before a comparison.
    """
    if len(frames_FE) == 1:
        still_E: Floats = frames_FE[0]
        return still_E
    units_FE = frames_FE / np.linalg.norm(frames_FE, axis=1, keepdims=True)
    mean_E: Floats = units_FE.mean(axis=0)
    return mean_E


def frames_of(data: bytes, count: int = FRAMES) -> list[Image.Image]:
    """Decode `data` to frames on white: one for a still image, at most `count` for moving pictures.

    Raises:
        ValueError: The data is no image or video, is damaged, has no frame, or exceeds a limit. The
            message states which.

    """
    if container := container_of(data):
        return _of_video(data, container, count)
    image = open_image(data, OWN_TABLE)
    if image.format in ANIMATED and getattr(image, "is_animated", False):
        return _of_animation(image, count)
    return [finished(image)]


def container_of(data: bytes) -> str | None:
    """Return FFmpeg's name of the video container in `data`, or None if it is not supported.

    FFmpeg must not detect the format itself, because some of its formats are playlists that name
    other files.
    """
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"  # and WebM
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    if data[4:8] == b"ftyp" and data[8:12] not in STILLS:
        return "mp4"
    if data[4:8] in (b"moov", b"mdat", b"wide"):
        return "mov"  # QuickTime files without `ftyp`
    return None


# --- animations ---------------------------------------------------------------------------------


def _of_animation(image: Image.Image, count: int) -> list[Image.Image]:
    total = int(getattr(image, "n_frames", 1))  # some `Image.Image` lack it
    _check(image.width, image.height, total)
    frames = []
    # A PNG can have a picture before its frames, for viewers without support for animations.
    before = int(bool(image.info.get("default_image")) and total > 1)
    for number in sampled(total - before, count):
        try:
            image.seek(number + before)
            frames.append(finished(image))
        except Exception as error:  # Pillow's readers raise many types of errors
            raise ValueError(f"is broken at frame {number}: {error}") from error
    return frames


# --- videos -------------------------------------------------------------------------------------


def _of_video(data: bytes, container: str, count: int) -> list[Image.Image]:
    """Decode at most `count` frames of a video.

    Headers do not state the number of frames reliably, so packets are counted without decoding.
    Some packets hold no visible frame. If the number of decoded frames differs from the number of
    packets, the video is decoded again with the number of decoded frames.
    """
    packets = _count(data, container)
    frames, decoded = _decode(data, container, sampled(packets, count))
    if decoded != packets:
        frames, _ = _decode(data, container, sampled(decoded, count))
    if not frames:
        raise ValueError("is a video without a frame")
    return frames


def _count(data: bytes, container: str) -> int:
    if container == "matroska" and _ends_early(data):
        raise ValueError("is a video that is cut off or damaged")
    packets = 0
    with _opened(data, container) as (video, stream):
        for packet in video.demux(stream):
            if packet.is_corrupt:
                raise ValueError("is a video that is cut off or damaged")
            packets += packet.size > 0  # empty packets only flush the decoder
            _check(stream.width, stream.height, packets)
    return packets


def _decode(data: bytes, container: str, wanted: Sequence[int]) -> tuple[list[Image.Image], int]:
    """Return the frames with the wanted numbers, and the number of all frames."""
    frames: list[Image.Image] = []
    number = -1
    with _opened(data, container) as (video, stream):
        for number, frame in enumerate(video.decode(stream)):
            if number not in wanted:
                continue
            if frame.is_corrupt:
                raise ValueError(f"is broken at frame {number}")
            # RGBA keeps the alpha channel of the few codecs that have one. With several threads,
            # FFmpeg sometimes overwrites the edge of a neighboring slice.
            image = Image.fromarray(frame.reformat(format="rgba", threads=1).to_ndarray())
            if frame.rotation:  # orientation of the camera
                image = image.rotate(frame.rotation, expand=True)
            frames.append(to_srgb(image))
    return frames, number + 1


def _ends_early(data: bytes) -> bool:
    """Return whether the segment of a Matroska file is truncated. FFmpeg does not report this.

    The file has a header and a segment. Each has an id of four bytes, a size and content (RFC
    8794).
    """
    size, start = _number(data, 4)
    if data[start + size : start + size + 4] != b"\x18S\x80g":
        return False  # FFmpeg reports this error
    size, start = _number(data, start + size + 4)
    return start + size > len(data)


def _number(data: bytes, place: int) -> tuple[int, int]:
    """Return the Matroska number at `place` and its end. The number is -1 if it is "unknown"."""
    length = 9 - (data[place] if place < len(data) else 0).bit_length()
    most = (1 << 7 * length) - 1
    value = int.from_bytes(data[place : place + length]) & most
    return (-1 if value == most else value), place + length


@contextmanager
def _opened(data: bytes, container: str) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """Open a video and its stream of pictures, and raise FFmpeg's errors as ValueErrors."""
    import av  # only videos need FFmpeg

    limit = {"max_pixels": str(MAX_PIXELS)}  # also for the size that a frame declares
    try:
        with av.open(
            BytesIO(data), "r", format=container, options=limit, metadata_errors="replace"
        ) as video:
            stream = video.streams.best("video")
            if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
                raise ValueError("is a video without pictures, or of an unknown codec")
            _check(stream.width, stream.height, stream.frames)
            seconds = (video.duration or 0) / av.time_base
            if seconds > MAX_SECONDS:
                raise ValueError(
                    f"is a video of {seconds:,.0f} seconds; at most "
                    f"{MAX_SECONDS} are decoded: cut out what the caption is about"
                )
            stream.codec_context.options = limit
            stream.codec_context.thread_count = 1  # many videos are decoded at once, one per core
            yield video, stream
    except av.FFmpegError as error:
        raise ValueError(f"is a video that is broken: {error.strerror}") from error


def _check(width: int, height: int, frames: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"has frames of {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded: "
            "scale it down"
        )
    if frames > MAX_FRAMES:
        raise ValueError(f"has more than {MAX_FRAMES:,} frames; cut out what the caption is about")
