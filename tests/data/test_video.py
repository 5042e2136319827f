"""Promises of mla_ray.data.video: which frames stand for a video, and what is made of them."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image
from upath import UPath

from mla_ray.data import feature_store as features
from mla_ray.data import video
from mla_ray.data.feature_store import FeatureStore, encode_images
from mla_ray.data.keys import key_of
from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import read_captions
from mla_ray.data.video import FRAMES, frames_of, pooled, sampled
from mla_ray.evaluation.evaluation import Gallery, evaluate
from mla_ray.index.ingest import keep_pictures
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.native import Native
from mla_ray.training.encode_features import BlockEncoder
from tests.support.natives import MakePack

Pixels = npt.NDArray[np.uint8]
STEP = 6
"""Levels of grey between a frame and the next."""
LOSSLESS = {"container": "matroska", "codec": "ffv1", "pix_fmt": "bgr0"}


def film(
    frames: Sequence[Pixels],
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 10,
    **options: str,
) -> bytes:
    """A video of these frames [H, W, 3]."""
    sink = BytesIO()
    with av.open(sink, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for pixels in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return sink.getvalue()


def numbered(count: int) -> list[Pixels]:
    """Frames that tell their number, up to 42, by how bright they are."""
    return [np.full((48, 64, 3), STEP * number, np.uint8) for number in range(count)]


def numbers(images: Sequence[Image.Image]) -> list[int]:
    return [round(float(np.asarray(image.convert("L")).mean()) / STEP) for image in images]


def noise(count: int, seed: int = 0) -> list[Pixels]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(count)]


def still(pixels: Pixels, format_: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format_)
    return buffer.getvalue()


def animation(frames: Sequence[Pixels], format_: str) -> bytes:
    buffer = BytesIO()
    first, *others = [Image.fromarray(pixels) for pixels in frames]
    options = {"lossless": True} if format_ == "WEBP" else {}
    first.save(buffer, format_, save_all=True, append_images=others, duration=40, **options)
    return buffer.getvalue()


def test_a_frame_stands_for_each_of_equal_segments() -> None:
    assert sampled(30, 3) == [5, 15, 25]
    assert sampled(24) == list(range(1, 24, 2))
    assert sampled(100, 1) == [50]
    assert (sampled(0), sampled(5), sampled(12)) == ([], list(range(5)), list(range(12)))
    rng = np.random.default_rng(0)
    for total, count in rng.integers(1, 500, (200, 2)).tolist():
        found = sampled(total, count)
        assert len(found) == min(total, count)
        for segment, number in enumerate(found):
            share = total / len(found)
            assert segment * share <= number + 0.5 <= (segment + 1) * share + 0.5
            assert abs(number + 0.5 - (segment + 0.5) * share) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mp4", "mpeg4"),
        ("mov", "mjpeg"),
        ("webm", "libvpx"),
        ("webm", "libvpx-vp9"),
        ("matroska", "libx264"),
        ("avi", "mpeg4"),
    ],
)
def test_of_a_video_exactly_these_frames_are_decoded(container: str, codec: str) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    data = film(numbered(41), container, codec, pix_fmt)
    assert numbers(frames_of(data)) == sampled(41)
    assert numbers(frames_of(data, 1)) == [20]
    assert numbers(frames_of(film(numbered(5), container, codec, pix_fmt))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_same(format_: str) -> None:
    assert numbers(frames_of(animation(numbered(41), format_))) == sampled(41)
    assert numbers(frames_of(animation(numbered(3), format_))) == [0, 1, 2]


def trimmed(data: bytes, frames: int) -> bytes:
    """An MP4 of `film` whose edit list leaves out its first frames; their packets stay."""
    entry = data.index(b"elst") + 4 + 8 + 4  # the first time that is shown, in the track's units
    first = int.from_bytes(data[entry : entry + 4]) + frames * 1024
    return data[:entry] + first.to_bytes(4) + data[entry + 4 :]


def test_frames_that_are_cut_away_do_not_count() -> None:
    data = trimmed(film(numbered(40)), 10)
    assert video._count(data, "mp4") == 40
    assert numbers(frames_of(data)) == [10 + number for number in sampled(30)]


def test_colours_are_the_same_every_time() -> None:
    """FFmpeg's conversion in several threads is not: one in ten of these is another."""
    data = film(noise(30))
    seen = {b"".join(image.tobytes() for image in frames_of(data)) for _ in range(40)}
    assert len(seen) == 1


def test_what_moves_is_told_by_its_bytes(tmp_path: Path) -> None:
    """A still in a movie's clothes is one picture, and so are the pages of a TIFF."""
    buffer = BytesIO()
    pages = [Image.fromarray(pixels) for pixels in noise(2)]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    assert len(frames_of(buffer.getvalue())) == 1
    path = tmp_path / "movie.mp4"
    path.write_bytes(still(noise(1)[0]))
    (shown,) = frames_of(path.read_bytes())
    assert np.array_equal(np.asarray(shown), noise(1)[0])


def test_a_phone_held_upright_is_upright() -> None:
    """The matrix of an MP4's track header says: turn clockwise by 90 degrees."""
    left_red = np.zeros((48, 64, 3), np.uint8)
    left_red[:, :32, 0] = 255
    data = bytearray(film([left_red] * 2))
    start = data.index(b"tkhd") + 4 + 40
    turned = [0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 48 << 16, 0, 1 << 30]
    data[start : start + 36] = b"".join(value.to_bytes(4, "big") for value in turned)
    shown = frames_of(bytes(data))[0]
    assert shown.size == (48, 64)
    assert shown.getpixel((24, 8))[0] > 200  # type: ignore[index]
    assert shown.getpixel((24, 56))[0] < 50  # type: ignore[index]


def test_white_is_behind_what_is_transparent() -> None:
    first = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    second = first.copy()
    second.putpixel((1, 1), (255, 0, 0, 255))
    buffer = BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=[second], lossless=True)
    one, two = frames_of(buffer.getvalue())
    assert one.getpixel((1, 1)) == one.getpixel((0, 0)) == two.getpixel((0, 0)) == (255, 255, 255)
    assert two.getpixel((1, 1)) == (255, 0, 0)


def test_a_video_of_one_frame_is_the_image(native: Native) -> None:
    (pixels,) = noise(1)
    data = film([pixels], **LOSSLESS)
    assert np.array_equal(np.asarray(frames_of(data)[0]), pixels)
    image, moving = encode_images(native, [still(pixels), data])
    np.testing.assert_allclose(moving, image, atol=1e-6)
    one = np.arange(4, dtype=np.float32)[None]
    assert np.array_equal(pooled(one), one[0])


@pytest.mark.parametrize("count", [3, 40])
def test_a_video_is_the_mean_of_its_normalised_frames(native: Native, count: int) -> None:
    frames = noise(count)
    shown = [still(frames[number]) for number in sampled(count)]
    by_hand = np.zeros(native.dim)
    for feature in encode_images(native, shown).astype(np.float64):
        by_hand += feature / np.sqrt((feature**2).sum()) / len(shown)
    found = encode_images(native, [film(frames, **LOSSLESS), animation(frames, "WEBP")])
    np.testing.assert_allclose(found, [by_hand, by_hand], atol=1e-6)


def test_stills_and_videos_share_batches(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [
        still(noise(1, 1)[0]),
        film(noise(20, 2), **LOSSLESS),
        still(noise(1, 3)[0]),
        still(noise(1, 4)[0]),
        film(noise(3, 5), **LOSSLESS),
    ]
    alone = np.concatenate([encode_images(native, [data]) for data in pictures])
    sizes: list[int] = []
    encode = native.encode_image

    def counted(pixels: Any) -> Any:
        sizes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(native, "encode_image", counted)
    monkeypatch.setattr(features, "CPU_IMAGES", 5)
    done: list[int] = []
    np.testing.assert_allclose(encode_images(native, pictures, done.append), alone, atol=1e-6)
    assert (sizes, done) == ([1 + FRAMES, 1 + 1 + 3], [2, 3])


# --- tables -------------------------------------------------------------------------------------


def table_of(folder: Path, images: dict[str, bytes]) -> Path:
    """A caption table whose images are files beside it."""
    lines = ["image_id\timage\tlanguage\tcaption\tsplit"]
    for number, (name, data) in enumerate(images.items()):
        (folder / name).write_bytes(data)
        lines += [f"{number}\t{name}\t{language}\tHund {number}\ttest" for language in ("de", "en")]
    path = folder / "captions.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def films() -> dict[str, bytes]:
    return {
        "film.mp4": film(noise(30, 1)),
        "film.webm": film(noise(14, 2), "webm", "libvpx-vp9"),
        "cartoon": animation(noise(20, 3), "WEBP"),
        "photo.png": still(noise(1, 4)[0]),
    }


def test_a_caption_table_may_have_videos(
    native: Native, make_pack: MakePack, films: dict[str, bytes], tmp_path: Path
) -> None:
    table = read_captions(table_of(tmp_path, films)).table
    gallery = Gallery.of(native, table)
    expected = encode_images(native, list(films.values()))
    np.testing.assert_allclose(gallery.features, expected, atol=1e-6)
    answers = {f"Hund {row}": feature for row, feature in enumerate(expected)}

    def know(texts: Sequence[str]) -> features.Features:
        return np.stack([answers[text] for text in texts])

    assert evaluate(know, "de", table, gallery).as_dict()["AR"] > 99
    found = evaluate(make_pack("de").encode_text, "de", table, gallery).as_dict()
    assert (found["images"], found["captions"], found["t2i"]["R@10"]) == (4, 4, 100.0)


def test_the_search_page_gets_the_frame_in_the_middle(tmp_path: Path) -> None:
    store = PictureStore(str(tmp_path))
    table = pa.table({"image_id": ["a"], "image": [film(numbered(41))]})
    keep_pictures(table, "films", store, lambda progress: None)
    kept = Image.open(BytesIO(store.get("a", "films") or b""))
    assert numbers([kept]) == [20]


def test_the_feature_store_has_videos_and_says_which_are_bad(
    native_folder: Path, films: dict[str, bytes], tmp_path: Path
) -> None:
    native = Native.load(str(native_folder))
    store = FeatureStore(UPath(tmp_path / "store"), native.fingerprint, "image")
    bad = films["film.mp4"][: len(films["film.mp4"]) // 2]
    datas = [*films.values(), bad]
    paths = [tmp_path / str(number) for number in range(len(datas))]
    for path, data in zip(paths, datas, strict=True):
        path.write_bytes(data)
    table = pa.table(
        {
            "key": [key_of(data) for data in datas],
            "content": pa.array([datas[0], *[None] * 4], pa.large_binary()),
            "uri": [None, *map(str, paths[1:])],
            "file": pa.array([0] * 5, pa.int32()),
            "row": [10, 11, 12, 13, 14],
        }
    )
    pa.parquet.write_table(table, tmp_path / "b.parquet")
    block = {"path": str(tmp_path / "b.parquet"), "prefix": "", "table": 0, "kind": "image"}
    encoder = BlockEncoder(str(native_folder), {"image": store})
    (filled,) = encoder(pa.Table.from_pylist([block])).to_pylist()
    assert (filled["computed"], filled["failed"]) == (5, 1)
    (failure,) = filled["failures"]
    assert (failure["file"], failure["row"]) == (0, 14)
    assert failure["reason"].startswith("is a video that is")
    found = store.read([key_of(data) for data in films.values()])
    np.testing.assert_allclose(found, encode_images(native, list(films.values())), atol=1e-5)


# --- bad files ----------------------------------------------------------------------------------


def silent() -> bytes:
    """A Matroska file with sound alone."""
    sink = BytesIO()
    with av.open(sink, "w", format="matroska") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
        out.mux(stream.encode(None))
    return sink.getvalue()


def unfinished() -> bytes:
    """A Matroska file that announces pictures and has none."""
    sink = BytesIO()
    with av.open(sink, "w", format="matroska") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        out.start_encoding()
    return sink.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: film(noise(30))[:2000], "is a video that is broken"),
        (lambda: film(noise(30), "matroska", "mpeg4")[:-3000], "is a video that is"),
        (lambda: b"\0\0\0\x20ftypisom" + bytes(200), "is a video"),
        (lambda: b"\x1aE\xdf\xa3" + bytes(200), "is a video that is broken"),
        (silent, "is a video without pictures"),
        (unfinished, "is a video that is broken"),
        (lambda: trimmed(film(noise(3)), 9), "is a video without a frame"),
        (lambda: animation(noise(9), "PNG")[:-6000], "is broken"),
        (lambda: b"\0\0\0\x20ftypavif" + bytes(200), "is broken: not a AVIF"),
        (lambda: b"ffconcat version 1.0\nfile '/etc/hostname'\n", "is none of PNG"),
        (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "is none of PNG"),
    ],
)
def test_what_is_no_sound_video_is_refused_with_file_and_row(
    make: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    path = table_of(tmp_path, {"good.mp4": film(noise(2)), "bad.mp4": make()})
    with pytest.raises(InvalidTable) as refused:
        read_captions(path)
    assert [problem.row for problem in refused.value.problems] == [4, 5]
    told = str(refused.value.problems[0])
    assert told.startswith(f"{path} line 4: image 'bad.mp4' {message}"), told
    assert told.endswith("drop the row or pass --skip-invalid")
    left = read_captions(path, skip_invalid=True)
    assert left.table["image_id"].to_pylist() == ["0", "0"]


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_PIXELS", 40 * 40 - 1, "frames of 40 x 40 pixels; at most 1,599"),
        ("MAX_FRAMES", 29, "more than 29 frames"),
    ],
)
def test_what_is_too_large_is_not_decoded(
    limit: str, value: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datas = [film(noise(30)), film(noise(30), "webm", "libvpx"), animation(noise(30), "GIF")]
    for data in datas:
        assert len(frames_of(data)) == FRAMES
    monkeypatch.setattr(video, limit, value)
    for data in datas:
        with pytest.raises(ValueError, match=message):
            frames_of(data)


def test_frames_that_grow_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the header claims is small; the decoder is told the limit as well."""
    monkeypatch.setattr(video, "_check", lambda width, height, frames: None)
    monkeypatch.setattr(video, "MAX_PIXELS", 40 * 40 - 1)
    with pytest.raises(ValueError, match="is a video"):
        frames_of(film(noise(3), "avi", "mpeg4"))


def test_a_long_video_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_SECONDS", 2)
    assert len(frames_of(film(noise(20)))) == FRAMES
    with pytest.raises(ValueError, match="a video of 3 seconds; at most 2 are decoded"):
        frames_of(film(noise(30)))
