"""Promises of mla_ray.index.adopted: a collection of other software is searched where it is, and
nothing of it changes but its metadata."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import QdrantClient, models

from mla_ray.data.feature_store import encode_images
from mla_ray.index.adopt import Disagreement, adopt_in_place
from mla_ray.index.adopted import server_backend
from mla_ray.index.backend import CollectionConfig, ForeignLayout, VectorSpace
from mla_ray.index.batches import batched
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.existing import config_at
from mla_ray.index.foreign import QdrantVectors
from mla_ray.index.ingest import space_of
from mla_ray.index.server import ServerBackend, alias_of, scroll_records
from mla_ray.index.status import status_of
from mla_ray.index.transfer import copy_index
from mla_ray.model.directions import units
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Progress
from tests.support.commands import Mla
from tests.support.natives import MakePack

Vectors = npt.NDArray[np.float32]
PHOTOS = "photos-of-a-shop"
SHOP = "adopted-shop"
"""Prefix of the index."""
UUIDS = [UUID(int=(4 << 76) + number) for number in range(3)]


def silent(progress: Progress) -> None:
    pass


class Shop(NamedTuple):
    """A collection that a shop's own software made on a server."""

    client: QdrantClient
    server: str
    index: str
    images: Path
    features: Vectors

    def vectors(self, vector: str = "clip", id_field: str | None = "photo.id") -> QdrantVectors:
        return QdrantVectors(f"{self.server}/{PHOTOS}", vector, id_field, "file")

    def adopt(self, native: Native, source: str = PHOTOS, **other: Any) -> None:
        vectors = self.vectors(**other)
        adopt_in_place(vectors, self.index, native, source, self.images, silent)
        vectors.close()

    def content(self) -> Any:
        return self.client.scroll(PHOTOS, limit=100, with_vectors=True)


def fill(client: QdrantClient, features: Vectors, **options: Any) -> None:
    """Make a collection as a shop would: numbers and UUIDs as ids, one point without a photo."""
    params = models.VectorParams(size=32, distance=models.Distance.COSINE)
    dot = models.VectorParams(size=32, distance=models.Distance.DOT)
    client.create_collection(PHOTOS, vectors_config={"clip": params, "dot": dot}, **options)
    keys: list[Any] = [*range(len(features) - len(UUIDS)), *map(str, UUIDS)]
    rows = [
        models.PointStruct(
            id=key,
            vector={"clip": vector.tolist(), "dot": vector.tolist()},
            payload={"photo": {"id": 100 + number}, "file": f"p{number}.png", "price": 9.5},
        )
        for number, (key, vector) in enumerate(zip(keys, features, strict=True))
    ]
    text = models.PointStruct(id=10_000, vector={}, payload={"photo": {"id": "a text"}})
    client.upsert(PHOTOS, [*rows, text], wait=True)


def images_of(features: Vectors, source: str = PHOTOS) -> set[Entry]:
    ids = [str(100 + number) for number in range(len(features))]
    return {Entry(id_, id_, "", "", source) for id_ in ids}


@pytest.fixture(params=["MLA_TEST_QDRANT_URL", "MLA_TEST_QDRANT_GRPC_URL"])
def shop(
    request: pytest.FixtureRequest, native: Native, pngs: list[bytes], images: Path
) -> Iterator[Shop]:
    url = os.environ.get(request.param)
    if not url:
        pytest.skip(f"{request.param} is not set")
    client = QdrantClient(os.environ["MLA_TEST_QDRANT_URL"], check_compatibility=False)

    def clean() -> None:
        for found in client.get_collections().collections:
            if found.name == PHOTOS or found.name.startswith(f"{SHOP}."):
                client.delete_collection(found.name)

    clean()
    features = encode_images(native, pngs)
    fill(client, features, metadata={"owner": "the shop"})
    yield Shop(client, url, f"{url}/?prefix={SHOP}", images, features)
    clean()
    client.close()


def check_reading(index: CaptionIndex, features: Vectors) -> None:
    """Assert that everything that reads sees the shop's photos as images."""
    expected = images_of(features)
    assert set(index.entries()) == expected
    assert (index.count(), index.languages()) == (12, {})
    contents = index.contents()
    assert (contents.entries, dict(contents.sources)) == (12, {PHOTOS: 12})
    for number, feature in enumerate(features):
        (found,) = index.search(feature, 1)
        assert (found.entry.id, round(found.score, 5)) == (str(100 + number), 1)
    everything = index.search(features[0], 100)
    assert {found.entry for found in everything} == expected
    assert index.search(features[0], 100, language="", source=PHOTOS) == everything
    assert not index.search(features[0], 100, source="another")
    assert not index.search(features[0], 100, language="de")
    assert [entry.id for entry in index.entries(image_id="103")] == ["103"]
    assert not index.count(id="a text")
    assert not index.count(image_id="3")
    pages, cursor = [], None
    while True:
        page = index.page(5, cursor)
        pages.append(len(page.entries))
        if (cursor := page.next_cursor) is None:
            break
    assert pages == [5, 5, 2]


def check_not_writable(index: CaptionIndex, feature: Vectors) -> None:
    image = Entry("new", "new", "", "", PHOTOS)
    with pytest.raises(PermissionError, match="adopted in place, so mla-ray only reads it"):
        index.check_writable()
    with pytest.raises(PermissionError, match="write to it with the software that made it"):
        index.upsert([image], feature[None])
    with pytest.raises(PermissionError, match="--in-place"):
        index.delete_matching(image_id="103")
    with pytest.raises(PermissionError), index.rebuild():
        pass
    with pytest.raises(PermissionError):
        index.optimize(reclaim=True)


def test_it_reads_as_a_collection_of_our_own_and_is_not_written(
    native: Native, pngs: list[bytes]
) -> None:
    features, space = encode_images(native, pngs), space_of(native)
    config = CollectionConfig(space, words=0, layout=ForeignLayout("clip", "photo.id", PHOTOS))
    alias = alias_of(IMAGES, space.fingerprint)
    client = QdrantClient(":memory:")
    fill(client, features, metadata={"owner": "the shop", alias: config.record()})
    operation = models.CreateAlias(collection_name=PHOTOS, alias_name=alias)
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=operation)])
    args = client, ":memory:"
    own = ServerBackend.open(*args, CollectionConfig(space), IMAGES, create=False)
    assert own.config == config
    index = CaptionIndex(server_backend(*args, own.config, own.collection, own.name), space)
    check_reading(index, features)
    check_not_writable(index, features[0])
    assert index.count() == 12


@pytest.mark.server
def test_a_collection_is_searched_in_place_and_stays_as_it_is(native: Native, shop: Shop) -> None:
    before = shop.content()
    shop.adopt(native)
    shop.adopt(native)  # safe to call twice
    assert shop.content() == before
    info = shop.client.get_collection(PHOTOS).config
    assert info.metadata is not None
    assert info.metadata["owner"] == "the shop"
    with CaptionIndex.open(shop.index, space_of(native), IMAGES, create=False) as index:
        check_reading(index, shop.features)
        check_not_writable(index, shop.features[0])
        new = models.PointStruct(  # of the shop's own software, later and without an id of its own
            id=77, vector={"clip": shop.features[0].tolist()}, payload={}
        )
        shop.client.upsert(PHOTOS, [new], wait=True)
        assert {found.entry.id for found in index.search(shop.features[0], 2)} == {"77", "100"}
        assert index.count() == 13
    with CaptionIndex.open(shop.index, space_of(native), CAPTIONS, create=False) as captions:
        assert not captions.count()
    (status, _) = sorted(status_of(shop.index).collections, key=lambda each: -each.points)
    assert (status.collection, status.version) == (f"{SHOP}.{IMAGES}", PHOTOS)
    assert (status.points, status.native, status.sources) == (13, native.name, {PHOTOS: 13})
    found = config_at(shop.index, IMAGES)
    assert found is not None
    assert found.layout == ForeignLayout("clip", "photo.id", PHOTOS)


@pytest.mark.server
def test_the_ids_of_points_are_ids_of_images_where_no_field_is_named(
    native: Native, shop: Shop
) -> None:
    shop.adopt(native, source="of points", id_field=None)
    keys = [*map(str, range(9)), *map(str, UUIDS)]
    with CaptionIndex.open(shop.index, space_of(native), IMAGES, create=False) as index:
        assert {entry.id for entry in index.entries()} == set(keys)
        for key in keys:
            assert index.count(image_id=key) == 1
        for key in ("9", "04", "-1", "x", str(2**64), str(UUID(int=3)), "9" * 5000):
            assert not index.count(image_id=key)
        assert index.search(shop.features[10], 1)[0].entry.id == str(UUIDS[1])


@pytest.mark.server
def test_its_images_are_copied_to_another_engine(
    native: Native, shop: Shop, tmp_path: Path
) -> None:
    shop.adopt(native)
    url = f"edge:{tmp_path}/copy"
    done = copy_index(shop.index, url, [IMAGES], silent)
    assert (done[IMAGES].points, done[IMAGES].checked) == (12, 12)
    with CaptionIndex.open(url, space_of(native), IMAGES, create=False) as index:
        assert set(index.entries()) == images_of(shop.features)
        assert index.search(shop.features[3], 1)[0].entry.id == "103"


@pytest.mark.server
def test_what_cannot_be_searched_in_place_is_refused(
    native: Native, other_native: Native, shop: Shop
) -> None:
    with pytest.raises(Disagreement, match="made by another native"):
        shop.adopt(other_native)
    with pytest.raises(ValueError, match=r"compares vectors by Dot.*leave --in-place out"):
        shop.adopt(native, vector="dot")
    elsewhere = shop._replace(index="http://127.0.0.1:1")
    with pytest.raises(ValueError, match="is not the server of"):
        elsewhere.adopt(native)
    with pytest.raises(LookupError):
        CaptionIndex.open(shop.index, space_of(native), IMAGES, create=False)
    image = Entry("p0", "p0", "", "", "mine")
    with CaptionIndex.open(shop.index, space_of(native), IMAGES) as index:
        index.upsert([image], shop.features[:1])
    alias = alias_of(f"{SHOP}.{IMAGES}", space_of(native).fingerprint)
    own = QdrantVectors(f"{shop.server}/{alias}", "joint", "image_id", None)
    with pytest.raises(ValueError, match="mla-ray made the collection"):
        adopt_in_place(own, shop.index, native, "x", shop.images, silent)
    own.close()
    with pytest.raises(ValueError, match=r"has 1 images of this native in .*\?prefix=NAME"):
        shop.adopt(native)
    with CaptionIndex.open(shop.index, space_of(native), IMAGES) as index:
        assert index.delete([image]) == 1
    shop.adopt(native)  # an empty one, as `mla serve` makes it, gives way
    names = [found.name for found in shop.client.get_collections().collections]
    assert not [name for name in names if name.startswith(f"{SHOP}.{IMAGES}-")]
    ours = QdrantVectors(f"{shop.server}/{names_of(shop)[0]}", "joint", None, None)
    with pytest.raises(ValueError, match="mla-ray made the collection"):  # before images are sought
        adopt_in_place(ours, shop.index, native, "x", None, silent)
    ours.close()


def names_of(shop: Shop) -> list[str]:
    names = [found.name for found in shop.client.get_collections().collections]
    return [name for name in names if name.startswith(f"{SHOP}.{CAPTIONS}-")]


@pytest.mark.server
def test_two_natives_adopt_vectors_of_one_collection(
    native: Native, other_native: Native, shop: Shop, pngs: list[bytes]
) -> None:
    theirs = encode_images(other_native, pngs)
    keys: list[Any] = [*range(9), *map(str, UUIDS)]
    shop.client.delete_collection(PHOTOS)
    params = models.VectorParams(size=32, distance=models.Distance.COSINE)
    shop.client.create_collection(PHOTOS, vectors_config={"clip": params, "other": params})
    rows = [
        models.PointStruct(
            id=key,
            vector={"clip": shop.features[n].tolist(), "other": theirs[n].tolist()},
            payload={"photo": {"id": 100 + n}, "file": f"p{n}.png"},
        )
        for n, key in enumerate(keys)
    ]
    shop.client.upsert(PHOTOS, rows, wait=True)
    shop.adopt(native)
    shop.adopt(other_native, vector="other")
    for space, features in ((space_of(native), shop.features), (space_of(other_native), theirs)):
        check_first(shop.index, space, features)


def check_first(url: str, space: VectorSpace, features: Vectors) -> None:
    with CaptionIndex.open(url, space, IMAGES, create=False) as index:
        for number, feature in enumerate(features):
            assert index.search(feature, 1)[0].entry.id == str(100 + number)


@pytest.mark.server
@pytest.mark.slow
def test_every_pack_searches_100_000_images_of_which_no_vector_is_written(
    native: Native, shop: Shop, make_pack: MakePack, corpus: dict[str, list[str]]
) -> None:
    many = np.random.default_rng(0).standard_normal((100_000, 32)).astype(np.float32)
    keys = np.arange(len(many)) + 20_000
    points = (
        models.PointStruct(
            id=int(key),
            vector={"clip": vector.tolist()},
            payload={"photo": {"id": int(key)}, "text": "theirs"},
        )
        for key, vector in zip(keys, many, strict=True)
    )
    for batch in batched(points, 1000):
        shop.client.upsert(PHOTOS, batch, wait=True)
    before = digest(shop)
    shop.adopt(native)
    everything, _ = units(np.concatenate([shop.features, many]))
    ids = [str(100 + n) for n in range(len(shop.features))] + [str(key) for key in keys]
    with CaptionIndex.open(shop.index, space_of(native), IMAGES, create=False) as index:
        for language in ("de", "hi"):
            queries, _ = units(make_pack(language).encode_text(corpus[language]).numpy())
            shared = 0
            for query, scores in zip(queries, queries @ everything.T, strict=True):
                found = {hit.entry.id for hit in index.search(query, 10)}
                shared += len(found & {ids[row] for row in np.argsort(-scores)[:10]})
            assert shared >= 0.95 * 10 * len(queries)  # the graph is approximate
    assert digest(shop) == before


def digest(shop: Shop) -> str:
    """Return a digest of all points with vectors and payload."""
    read = hashlib.sha256()
    for point in scroll_records(shop.client, shop.server, PHOTOS, limit=2000, with_vectors=True):
        content = [point.id, point.vector, point.payload]
        read.update(json.dumps(content, sort_keys=True).encode())
    return read.hexdigest()


@pytest.mark.server
def test_the_command_adopts_in_place(native_folder: Path, shop: Shop, mla: Mla) -> None:
    command = (
        *("collection", "adopt", f"{shop.server}/{PHOTOS}", shop.index, "--in-place"),
        *("--native", str(native_folder), "--vector", "clip", "--id-field", "photo.id"),
        *("--image-field", "file", "--images", str(shop.images)),
    )
    done = mla(*command, "--json")
    assert done.code == 0, done.err
    assert done.json["checked"] == 12  # type: ignore[index]
    refused = mla(*command, "--int8")
    assert (refused.code, "--in-place" in refused.err) == (2, True)
