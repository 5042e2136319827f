"""Promises of the endpoints that list, remove and count entries."""

from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from mla_ray.serving.client import AsyncClient, Client
from mla_ray.serving.client_calls import Call
from mla_ray.serving.collection_schemas import Removed
from tests.serving.app_server import PNG, Server, ingest, problem

ROWS = [
    {"image_id": "set/00", "language": "de", "caption": "ein Hund", "source": "a"},
    {"image_id": "set/00", "language": "en", "caption": "a dog", "source": "a"},
    {"image_id": "set/01", "language": "de", "caption": "Katze", "source": "a"},
    {"image_id": "set/01", "language": "de", "caption": "Katze", "source": "b"},
    {"image_id": "set/02", "language": "en", "caption": "cat", "source": "http"},
]


T = TypeVar("T")


@pytest.fixture
def filled(server: Server) -> Server:
    assert ingest(server, *ROWS)["written"] == len(ROWS)
    return server


def captions(server: Server, **conditions: str) -> list[dict[str, str]]:
    """All captions that are listed, without their ids, as `ROWS` has them."""
    answer = server.get("/v1/captions", **conditions).json()
    assert answer["next_cursor"] is None
    fields = ("image_id", "language", "caption", "source")
    listed = [{name: caption[name] for name in fields} for caption in answer["captions"]]
    return sorted(listed, key=ROWS.index)


def found(server: Server, find: str) -> list[str]:
    hits = server.get("/v1/search", q="ein Hund", language="de", find=find, k=100).json()["hits"]
    return sorted(hit["id"] for hit in hits)


def remove(server: Server, path: str, **params: Any) -> Any:
    answer = server.client.delete(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_listing_has_what_meets_the_conditions(filled: Server) -> None:
    assert captions(filled) == ROWS
    assert captions(filled, image_id="set/00") == ROWS[:2]
    assert captions(filled, language="de", source="a") == [ROWS[0], ROWS[2]]
    assert captions(filled, language="DE") == [ROWS[0], ROWS[2], ROWS[3]]
    assert captions(filled, language="de-AT") == []  # a language stands for itself only
    assert captions(filled, source="none") == []
    images = filled.get("/v1/images", source="http", image_id="set/03").json()
    assert images == {"images": [{"image_id": "set/03", "source": "http"}], "next_cursor": None}
    assert filled.get("/v1/images", source="a").json()["images"] == []


def test_the_pages_of_a_listing_join(filled: Server) -> None:
    for path, name, total in (("/v1/images", "images", 12), ("/v1/captions", "captions", 5)):
        whole = filled.get(path).json()
        assert len(whole[name]) == total
        pages, cursor = [], {}
        while cursor is not None:
            page = filled.get(path, limit=2, **cursor).json()
            assert len(page[name]) <= 2
            pages += page[name]
            cursor = page["next_cursor"] and {"cursor": page["next_cursor"]}
        assert pages == whole[name]


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/captions", {"limit": 0}),
        ("/v1/captions", {"limit": 1001}),
        ("/v1/captions", {"cursor": "x"}),
        ("/v1/captions", {"cursor": "é" * 22}),
        ("/v1/captions", {"language": "xx-unknown"}),
        ("/v1/captions", {"source": ""}),
        ("/v1/captions", {"image_id": "\u200b"}),
        ("/v1/captions", {"source": ["a", "b"]}),
        ("/v1/images", {"language": "de"}),
        ("/v1/collections", {"source": "a"}),
    ],
)
def test_a_listing_out_of_bounds_is_refused(
    server: Server, path: str, params: dict[str, Any]
) -> None:
    problem(server.get(path, **params), 422, "invalid-request")


@pytest.mark.parametrize(
    ("conditions", "gone"),
    [
        ({"image_id": "set/00"}, ROWS[:2]),
        ({"source": "a"}, ROWS[:3]),
        ({"language": "de", "source": "b"}, [ROWS[3]]),
        ({"language": "de"}, [ROWS[0], ROWS[2], ROWS[3]]),
        ({"language": "de-AT"}, []),
        ({"image_id": "set/01", "language": "en"}, []),
    ],
)
def test_captions_that_meet_the_conditions_are_removed(
    filled: Server, conditions: dict[str, str], gone: list[dict[str, str]]
) -> None:
    removed = remove(filled, "/v1/captions", **conditions)
    assert removed == {"images": 0, "captions": len(gone), "pictures": 0}
    kept = [row for row in ROWS if row not in gone]
    assert captions(filled) == kept
    assert len(found(filled, "captions")) == len(kept)
    assert remove(filled, "/v1/captions", **conditions)["captions"] == 0
    assert len(found(filled, "images")) == 12


def test_a_caption_is_removed_by_its_id(filled: Server) -> None:
    listed = filled.get("/v1/captions", source="b").json()["captions"]
    for conditions in ({"id": listed[0]["id"], "source": "b"}, {"id": listed[0]["id"]}):
        assert remove(filled, "/v1/captions", **conditions)["captions"] == 1  # of b, then of a
    assert captions(filled) == [ROWS[0], ROWS[1], ROWS[4]]


def test_captions_are_not_removed_without_a_condition(filled: Server) -> None:
    for params in ({}, {"sources": "a"}, {"source": ""}, {"language": "xx-unknown"}):
        answer = filled.client.delete("/v1/captions", params=params)
        problem(answer, 422, "invalid-request")
    assert captions(filled) == ROWS


def test_a_caption_is_corrected_by_an_ingest_with_its_id(filled: Server) -> None:
    (wrong,) = filled.get("/v1/captions", image_id="set/02").json()["captions"]
    right = wrong | {"caption": "two dogs play in the snow"}
    for _ in range(2):
        assert ingest(filled, right)["written"] == 1
        assert filled.get("/v1/captions", image_id="set/02").json()["captions"] == [right]
    hits = filled.get("/v1/search", q=right["caption"], language="en", find="captions").json()
    assert hits["hits"][0]["id"] == wrong["id"]
    assert hits["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_removed_caption_is_there_again_when_it_is_sent_again(filled: Server) -> None:
    remove(filled, "/v1/captions", source="a")
    ingest(filled, *ROWS)
    assert captions(filled) == ROWS


def test_an_image_is_removed_with_its_picture(filled: Server, pngs: list[bytes]) -> None:
    filled.client.put("/v1/images/set/00?source=a", content=pngs[0], headers=PNG)
    removed = remove(filled, "/v1/images/set/00", source="http")
    assert removed == {"images": 1, "captions": 0, "pictures": 1}
    assert found(filled, "images") == [f"set/{number:02}" for number in range(12)]  # 00 is a's
    assert filled.get("/v1/images/set/00", source="a").status_code == 200
    assert remove(filled, "/v1/images/set/00") == {"images": 1, "captions": 0, "pictures": 1}
    assert "set/00" not in found(filled, "images")
    problem(filled.get("/v1/images/set/00"), 404, "unknown-image")
    assert captions(filled) == ROWS
    pictures = list(Path(str(filled.settings.pictures)).rglob("*.webp"))
    assert len(pictures) == 11
    assert remove(filled, "/v1/images/set/00") == {"images": 0, "captions": 0, "pictures": 0}


def test_an_image_is_removed_with_its_captions_if_asked(filled: Server, pngs: list[bytes]) -> None:
    for source in ("a", "b"):
        filled.client.put(f"/v1/images/set/01?source={source}", content=pngs[0], headers=PNG)
    answer = filled.client.delete("/v1/images/set/01", params={"captions": "true"})
    assert "several sources have that id (a, b, http)" in problem(answer, 422, "invalid-request")
    removed = remove(filled, "/v1/images/set/01", source="a", captions="true")
    assert removed == {"images": 1, "captions": 1, "pictures": 1}
    assert captions(filled) == [row for row in ROWS if row != ROWS[2]]


def test_a_picture_of_0_1_0_is_removed_with_its_image(filled: Server) -> None:
    store = Path(str(filled.settings.pictures))
    (ours,) = [
        path
        for path in store.rglob("*.webp")
        if filled.get("/v1/images/set/04").content == path.read_bytes()
    ][:1]
    former = ours.with_name(ours.name.partition("-")[0] + ".webp")
    ours.rename(former)
    assert filled.get("/v1/images/set/04").status_code == 200
    assert remove(filled, "/v1/images/set/04")["pictures"] == 1
    assert not former.exists()


def test_collections_tell_what_they_hold(filled: Server) -> None:
    native = filled.backend._text.identity
    whose = {"native": native.native, "fingerprint": native.fingerprint, "dim": native.dim}
    how = {"quantization": None, "schema_version": 3}
    assert filled.get("/v1/collections").json() == {
        "collections": [
            {"name": "images", "entries": 12, "languages": {}, "sources": {"http": 12}}
            | whose
            | how,
            {
                "name": "captions",
                "entries": 5,
                "languages": {"de": 3, "en": 2},
                "sources": {"a": 3, "b": 1, "http": 1},
            }
            | whose
            | how,
        ]
    }


def test_the_clients_list_remove_and_count(filled: Server) -> None:
    def answer(call: Call[T]) -> T:
        response = filled.client.request(call.method, call.path, params=dict(call.params))
        return call.answer(httpx2.Response(response.status_code, content=response.content))

    counts = {one.name: one.entries for one in answer(Client.collections()).collections}
    assert counts == {"images": 12, "captions": 5}
    listed, cursor = [], None
    while True:
        page = answer(Client.list_captions(source="a", language="de", limit=1, cursor=cursor))
        listed += page.captions
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(caption.caption for caption in listed) == ["Katze", "ein Hund"]
    images = answer(AsyncClient.list_images(image_id="set/00", source="http"))
    assert [image.image_id for image in images.images] == ["set/00"]

    one = answer(Client.delete_captions(id=listed[0].id, source="a", language="de"))
    assert one == Removed(captions=1)
    assert answer(AsyncClient.delete_captions(image_id="set/02")) == Removed(captions=1)
    gone = answer(Client.delete_image("set/00", source="http"))
    assert gone == Removed(images=1, pictures=1)
    gone = answer(Client.delete_image("set/01", captions=True))
    assert gone == Removed(images=1, pictures=1)  # its captions are of other sources
    with pytest.raises(ValueError, match="no condition"):
        Client.delete_captions()


def test_nothing_is_listed_or_removed_without_the_token(filled: Server) -> None:
    del filled.client.headers["Authorization"]
    for path in ("/v1/images", "/v1/captions", "/v1/collections"):
        problem(filled.get(path), 401, "unauthorized")
    problem(filled.client.delete("/v1/images/set/00"), 401, "unauthorized")
    problem(filled.client.delete("/v1/captions?source=a"), 401, "unauthorized")
    filled.client.headers["Authorization"] = "Bearer s3cret"
    assert captions(filled) == ROWS
    assert len(found(filled, "images")) == 12
    assert filled.client.head("/v1/captions").status_code == 200
