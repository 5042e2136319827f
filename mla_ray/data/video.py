"""Moving pictures: a few frames that stand for a video, and one feature of them (paper, 4.1).

As CLIP4Clip's meanP (arXiv 2104.08860) has it, which MLA takes for MSR-VTT: N = 12 frames at equal
distances through the image tower, their L2-normalised features averaged. CLIP4Clip first thins a
video to a frame a second and then takes N of those from the first to the last; here they are the
middles of N equal segments of all frames, so that a title or a black end is not one of them.

`frames_of` is where the bytes of a caption table's image become pictures: one of a still, several
of an animation (GIF, WebP, PNG, by Pillow) or a video (by FFmpeg through PyAV). What it is, its
first bytes say, never a name.

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
"""Version of how bytes become pictures, here and in `images`; in the key of what is kept of images.

Raise it when pictures that were read come out as other pixels, turned upright say, or as other
frames: what is kept is then made anew. Not for formats that are read in addition: pictures that
were refused are tried again anyway.

1. 0.1.0, and what followed until pictures were turned.
2. Upright by EXIF, in sRGB by their profile, 16 bits scaled, palettes scaled as colours.
"""
FRAMES = 12
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
"""Formats whose frames move; those of a TIFF are pages."""
MAX_PIXELS = 4096 * 2176
"""Of a frame: DCI 4K."""
MAX_FRAMES = 18_000
"""Of a video: ten minutes at 30 a second. All are decoded, whichever are taken."""
MAX_SECONDS = 600

STILLS = (*AVIF_BRANDS, *HEIC_BRANDS)
"""Pictures in the container of MP4."""


def sampled(total: int, count: int = FRAMES) -> list[int]:
    """Numbers of the frames that stand for `total`, from 0: the middles of `count` equal segments.

    Of an even number in the middle the later one; of no more than `count` frames all.
    """
    if total <= count:
        return list(range(total))
    return [(2 * segment + 1) * total // (2 * count) for segment in range(count)]


def pooled(frames_FE: Floats) -> Floats:
    """The feature [E] of a picture: the mean of its L2-normalised frames.

    That of one frame is its own, of its own length: a video of one frame is the image. The mean
    is not normalised again, since whoever compares features does that.
    """
    if len(frames_FE) == 1:
        still_E: Floats = frames_FE[0]
        return still_E
    units_FE = frames_FE / np.linalg.norm(frames_FE, axis=1, keepdims=True)
    mean_E: Floats = units_FE.mean(axis=0)
    return mean_E


def frames_of(data: bytes, count: int = FRAMES) -> list[Image.Image]:
    """The pictures in `data` on white: one of a still, at most `count` of what moves.

    Raises:
        ValueError: it is none, is damaged, has no frame or is beyond a limit; says which.

    """
    if container := container_of(data):
        return _of_video(data, container, count)
    image = open_image(data, OWN_TABLE)
    if image.format in ANIMATED and getattr(image, "is_animated", False):
        return _of_animation(image, count)
    return [finished(image)]


def container_of(data: bytes) -> str | None:
    """FFmpeg's name of the video container that `data` is, or None if it is none that is taken.

    FFmpeg is told, and left no guess: among its formats are playlists, which name other files.
    """
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"  # and WebM
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    if data[4:8] == b"ftyp" and data[8:12] not in STILLS:
        return "mp4"
    if data[4:8] in (b"moov", b"mdat", b"wide"):
        return "mov"  # QuickTime's, from before there was `ftyp`
    return None


# --- animations ---------------------------------------------------------------------------------


def _of_animation(image: Image.Image, count: int) -> list[Image.Image]:
    total = int(getattr(image, "n_frames", 1))  # an `Image.Image` need not have it
    _check(image.width, image.height, total)
    frames = []
    # A PNG may have a picture before its frames, for who does not know animations.
    before = int(bool(image.info.get("default_image")) and total > 1)
    for number in sampled(total - before, count):
        try:
            image.seek(number + before)
            frames.append(finished(image))
        except Exception as error:  # Pillow's readers raise what they like on broken files
            raise ValueError(f"is broken at frame {number}: {error}") from error
    return frames


# --- videos -------------------------------------------------------------------------------------


def _of_video(data: bytes, container: str, count: int) -> list[Image.Image]:
    """How many frames there are no header says reliably: packets are counted, without decoding.

    A packet may hold no frame to be shown; then the frames that came out are counted instead.
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
            packets += packet.size > 0  # the last ones only flush the decoder
            _check(stream.width, stream.height, packets)
    return packets


def _decode(data: bytes, container: str, wanted: Sequence[int]) -> tuple[list[Image.Image], int]:
    """The frames of these numbers, and how many there are."""
    frames: list[Image.Image] = []
    number = -1
    with _opened(data, container) as (video, stream):
        for number, frame in enumerate(video.decode(stream)):
            if number not in wanted:
                continue
            if frame.is_corrupt:
                raise ValueError(f"is broken at frame {number}")
            # With alpha, for the few codecs that have it. Of several threads of FFmpeg one now and
            # then overwrites the edge of its neighbour's slice.
            image = Image.fromarray(frame.reformat(format="rgba", threads=1).to_ndarray())
            if frame.rotation:  # how a telephone was held
                image = image.rotate(frame.rotation, expand=True)
            frames.append(to_srgb(image))
    return frames, number + 1


def _ends_early(data: bytes) -> bool:
    """Whether a Matroska file lacks part of its segment; FFmpeg takes what there is without a word.

    The file is a header and a segment, each a name of four bytes, a size and content (RFC 8794).
    """
    size, start = _number(data, 4)
    if data[start + size : start + size + 4] != b"\x18S\x80g":
        return False  # for FFmpeg to judge
    size, start = _number(data, start + size + 4)
    return start + size > len(data)


def _number(data: bytes, place: int) -> tuple[int, int]:
    """The number that Matroska has at `place`, and where it ends; -1 where it says "unknown"."""
    length = 9 - (data[place] if place < len(data) else 0).bit_length()
    most = (1 << 7 * length) - 1
    value = int.from_bytes(data[place : place + length]) & most
    return (-1 if value == most else value), place + length


@contextmanager
def _opened(data: bytes, container: str) -> "Iterator[tuple[InputContainer, VideoStream]]":
    """The video and its stream of pictures; FFmpeg's errors become ValueErrors that say so."""
    import av  # nobody else needs FFmpeg

    limit = {"max_pixels": str(MAX_PIXELS)}  # of whatever size a frame claims to be
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
            stream.codec_context.thread_count = 1  # many decode at once, each on a core
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
