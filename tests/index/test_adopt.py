"""Promises of mla_ray.index.adopt: vectors of the same native become searchable as they are;
others are refused, with what differs."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qdrant_client import QdrantClient, models

from mla_ray.data.feature_store import encode_images
from mla_ray.data.problems import InvalidTable
from mla_ray.index.adopt import Adopted, Disagreement, adopt
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.foreign import NumpyVectors, QdrantVectors
from mla_ray.index.ingest import space_of
from mla_ray.model.directions import units
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Progress
from tests.support.commands import Mla

Vectors = npt.NDArray[np.float32]
FOREIGN = "photos-of-others"


def silent(progress: Progress) -> None:
    pass


@pytest.fixture
def features(native: Native, pngs: list[bytes]) -> Vectors:
    return encode_images(native, pngs)


def numpy_vectors(folder: Path, vectors: Vectors, ids: list[str] | None = None) -> NumpyVectors:
    np.save(folder / "theirs.npy", vectors)
    ids = ids or [f"p{number}" for number in range(len(vectors))]
    files = [f"{id_}.png" for id_ in ids]
    pq.write_table(pa.table({"image_id": ids, "file": files}), folder / "ids.parquet")
    return NumpyVectors(folder / "theirs.npy", str(folder / "ids.parquet"), "image_id", None)


def entries(url: str, space: VectorSpace) -> set[Entry]:
    with CaptionIndex.open(url, space, CAPTIONS, create=False) as index:
        assert not index.count()  # it is there, as serving wants it
    with CaptionIndex.open(url, space, IMAGES, create=False) as index:
        return set(index.entries())


def test_the_vectors_of_a_numpy_file_are_found_as_they_are(
    native: Native, features: Vectors, images: Path, tmp_path: Path
) -> None:
    url = f"edge:{tmp_path}/index"
    scaled = features * np.linspace(0.1, 9, len(features), dtype=np.float32)[:, None]
    theirs = numpy_vectors(tmp_path, scaled)
    done = adopt(theirs, url, native, "theirs", images, silent)
    assert (done.written, done.rejected, done.checked) == (12, 0, 12)
    assert done.agreement > 1 - 1e-5
    space = space_of(native)
    assert entries(url, space) == {Entry(f"p{n}", f"p{n}", "", "", "theirs") for n in range(12)}
    unit, _ = units(features)
    with CaptionIndex.open(url, space, IMAGES, create=False) as index:
        for number, vector in enumerate(features):
            assert index.search(vector, 1)[0].entry.id == f"p{number}"
        for point in index.points():
            number = int(str(point.payload["id"])[1:])
            assert np.abs(np.subtract(point.vector, unit[number])).max() < 1e-6


def test_a_vector_without_direction_is_left_out_and_told(
    native: Native, features: Vectors, images: Path, tmp_path: Path
) -> None:
    features[3], features[4] = 0, np.nan
    said: list[str] = []
    theirs = numpy_vectors(tmp_path, features)
    url = f"edge:{tmp_path}/index"
    done = adopt(theirs, url, native, "theirs", images, silent, reject=said.append)
    assert (done.written, done.rejected, done.checked) == (10, 2, 10)
    assert said == ["'p3': its vector is zero", "'p4': its vector is not finite"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:, :16], "16 dimensions, native 'tiny-clip' makes 32"),
        (lambda v: np.roll(v, 1, axis=0), "is that of the image 'p.*different orders"),
        (lambda v: v - v.mean(axis=0), "made by another native, or changed afterwards"),
        (
            lambda v: np.concatenate([v[:10], np.random.default_rng(0).standard_normal((2, 32))]),
            "vectors of 2 of 12 images .* these images have changed since",
        ),
        (
            lambda v: v + 0.2 * np.linalg.norm(v, axis=1, keepdims=True) * np.eye(1, 32),
            "12 of 12 .* resized or normalized in another way",
        ),
    ],
)
def test_what_differs_is_told_and_nothing_is_written(
    native: Native, features: Vectors, images: Path, tmp_path: Path, change: object, message: str
) -> None:
    changed = change(features).astype(np.float32)  # type: ignore[operator]
    with pytest.raises(Disagreement, match=message):
        adopt(
            numpy_vectors(tmp_path, changed),
            f"edge:{tmp_path}/index",
            native,
            "theirs",
            images,
            silent,
        )
    assert not (tmp_path / "index").exists()


def test_the_vectors_of_another_native_are_refused(
    native: Native, other_native: Native, pngs: list[bytes], images: Path, tmp_path: Path
) -> None:
    theirs = numpy_vectors(tmp_path, encode_images(other_native, pngs))
    with pytest.raises(Disagreement, match=r"of 12 images differ .* native 'tiny-clip' makes"):
        adopt(theirs, f"edge:{tmp_path}/index", native, "theirs", images, silent)
    assert not (tmp_path / "index").exists()


def test_vectors_that_cannot_be_compared_or_told_apart_are_refused(
    native: Native, features: Vectors, images: Path, tmp_path: Path
) -> None:
    url, empty = f"edge:{tmp_path}/index", tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"no image to compare with.*'p0.jpg'"):
        adopt(numpy_vectors(tmp_path, features), url, native, "theirs", empty, silent)
    twice = [*(f"p{number}" for number in range(11)), "p0"]
    with pytest.raises(ValueError, match="the id 'p0' occurs twice"):
        adopt(numpy_vectors(tmp_path, features, twice), url, native, "theirs", images, silent)
    for file in images.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 12 images can be compared"):
        adopt(numpy_vectors(tmp_path, features), url, native, "theirs", images, silent)


def test_files_that_are_no_vectors_are_refused(tmp_path: Path, features: Vectors) -> None:
    numpy_vectors(tmp_path, features)
    ids, file = str(tmp_path / "ids.parquet"), tmp_path / "other.npy"
    np.save(file, features[:5])
    with pytest.raises(ValueError, match=r"has 12 rows, .*other.npy has 5 vectors"):
        NumpyVectors(file, ids, "image_id", None)
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="no NumPy array of numbers"):
        NumpyVectors(file, ids, "image_id", None)
    np.save(file, features[0])
    with pytest.raises(ValueError, match=r"has shape \[32\] of float32"):
        NumpyVectors(file, ids, "image_id", None)
    with pytest.raises(InvalidTable, match="no column 'name'"):
        NumpyVectors(tmp_path / "theirs.npy", ids, "name", None)
    (tmp_path / "ids.csv").write_text("n,image_id\n1,a\n2,\n")
    with pytest.raises(InvalidTable, match="line 3: 'image_id' is empty"):
        NumpyVectors(tmp_path / "theirs.npy", str(tmp_path / "ids.csv"), "image_id", None)


def test_ids_are_kept_as_they_are_written(tmp_path: Path, features: Vectors) -> None:
    file, ids = tmp_path / "theirs.npy", tmp_path / "ids.csv"
    np.save(file, features[:2])
    ids.write_text("row,image_id\n7,a  b\n8,ｃ\n")
    images = NumpyVectors(file, str(ids), "image_id", None).images()
    assert [image.id for image in images] == ["a  b", "ｃ"]
    pq.write_table(pa.table({"image_id": [7, 8]}), tmp_path / "ids.parquet")
    images = NumpyVectors(file, str(tmp_path / "ids.parquet"), "image_id", None).images()
    assert [image.id for image in images] == ["7", "8"]


def test_the_command_adopts_a_file(
    mla: Mla, native_folder: Path, features: Vectors, images: Path, tmp_path: Path
) -> None:
    theirs = numpy_vectors(tmp_path, features)
    adoption = ["collection", "adopt", theirs.where, f"edge:{tmp_path}/index"]
    options = ["--native", native_folder, "--images", images, "--json"]
    refused = mla(*adoption, *options)
    assert (refused.code, "needs --ids" in refused.err) == (2, True)
    done = mla(*adoption, *options, "--ids", tmp_path / "ids.parquet", "--image-field", "file")
    assert done.code == 0, done.err
    assert done.json["written"] == 12  # type: ignore[index]


@pytest.fixture(params=["MLA_TEST_QDRANT_URL", "MLA_TEST_QDRANT_GRPC_URL"])
def theirs(
    request: pytest.FixtureRequest, features: Vectors, images: Path
) -> Iterator[tuple[QdrantClient, str]]:
    """A collection of other software, whose payload has an id and a path; and the URL to it."""
    url = os.environ.get(request.param)
    if not url:
        pytest.skip(f"{request.param} is not set")
    client = QdrantClient(os.environ["MLA_TEST_QDRANT_URL"], check_compatibility=False)
    client.delete_collection(FOREIGN)
    params = models.VectorParams(size=32, distance=models.Distance.DOT)
    client.create_collection(FOREIGN, vectors_config={"clip": params, "other": params})
    rows = [
        models.PointStruct(
            id=number,
            vector={"clip": vector.tolist(), "other": vector[::-1].tolist()},
            payload={"photo": {"id": 100 + number}, "file": f"p{number}.png", "price": 9.5},
        )
        for number, vector in enumerate(features)
    ]
    client.upsert(FOREIGN, rows, wait=True)
    yield client, f"{url}/{FOREIGN}"
    client.delete_collection(FOREIGN)
    client.close()


@pytest.mark.server
def test_a_collection_of_other_software_is_adopted_and_stays_as_it_is(
    native: Native, theirs: tuple[QdrantClient, str], images: Path, tmp_path: Path
) -> None:
    client, url = theirs
    before = client.scroll(FOREIGN, limit=20, with_vectors=True)
    adopted = []
    for fields in (("photo.id", "file"), (None, "file")):
        foreign = QdrantVectors(url, "clip", *fields)
        index = f"edge:{tmp_path}/{fields[0]}"
        done = adopt(foreign, index, native, FOREIGN, images, silent)
        foreign.close()
        assert done == Adopted(12, 0, 12, done.agreement)
        adopted.append({entry.id for entry in entries(index, space_of(native))})
    assert adopted == [{str(100 + number) for number in range(12)}, set(map(str, range(12)))]
    assert client.scroll(FOREIGN, limit=20, with_vectors=True) == before


@pytest.mark.server
def test_a_collection_that_does_not_fit_is_refused(
    native: Native, theirs: tuple[QdrantClient, str], images: Path, tmp_path: Path
) -> None:
    url, index = theirs[1], f"edge:{tmp_path}/index"
    with pytest.raises(ValueError, match=r"has no vector '', but 'clip', 'other'"):
        QdrantVectors(url, "", None, None)
    with pytest.raises(ValueError, match="names no collection"):
        QdrantVectors(url.removesuffix(f"/{FOREIGN}"), "clip", None, None)
    with pytest.raises(RuntimeError, match="refuses"):
        QdrantVectors(f"{url}-not", "clip", None, None)
    other = QdrantVectors(url, "other", None, "file")
    with pytest.raises(Disagreement, match="of 12 images differ"):
        adopt(other, index, native, FOREIGN, images, silent)
    nameless = QdrantVectors(url, "clip", "name", "file")
    with pytest.raises(ValueError, match="has None in the field 'name'"):
        adopt(nameless, index, native, FOREIGN, images, silent)
    assert not (tmp_path / "index").exists()
    other.close()
    nameless.close()
