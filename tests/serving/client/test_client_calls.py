"""Promises of what goes out to each endpoint and of how its answer is read."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from mla_ray.serving.client import AsyncClient, Client
from mla_ray.serving.client_calls import SIGNATURES
from mla_ray.serving.client_errors import (
    ApiError,
    NotFound,
)
from mla_ray.serving.schemas import (
    IMAGE_TYPES,
    MAX_TEXTS,
    Health,
    ImageWritten,
    Languages,
    SearchResult,
    TextInput,
)
from tests.serving.client.contract_server import DIM, Ask, Fault, Server, picture, problem, vector


def test_texts_are_vectors_in_their_order_however_many(ask: Ask, server: Server) -> None:
    texts = [f"Hund {n}" for n in range(2 * MAX_TEXTS + 1)]
    vectors = ask("embed_texts", texts, language="de")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack([vector(f"de {text}") for text in texts]))
    assert len(server.seen) == 3
    assert all(json.loads(seen.body)["encoding"] == "base64" for seen in server.seen)
    vectors[0] = 0  # the caller's own


def test_texts_of_several_languages_may_be_mixed(ask: Ask) -> None:
    vectors = ask("embed_texts", ["a dog", TextInput(text="ein Hund", language="de")])
    np.testing.assert_array_equal(vectors, np.stack([vector("en a dog"), vector("de ein Hund")]))


def test_a_string_is_one_text_and_no_texts_are_no_vectors(ask: Ask, server: Server) -> None:
    np.testing.assert_array_equal(
        ask("embed_texts", "Hund", language="de"), vector("de Hund")[None]
    )
    one = TextInput(text="ein Hund", language="de")
    np.testing.assert_array_equal(ask("embed_texts", one), vector("de ein Hund")[None])
    assert [len(json.loads(seen.body)["inputs"]) for seen in server.seen] == [1, 1]
    nothing = ask("embed", [])
    assert nothing.vectors.shape == (0, DIM)
    assert nothing.unknown_tokens.shape == (0,)


def test_how_much_of_each_text_is_unknown_is_told(ask: Ask, server: Server) -> None:
    texts = [("犬" * (n % 3)).ljust(4, "a") for n in range(MAX_TEXTS + 2)]
    found = ask("embed", texts, language="de")
    np.testing.assert_array_equal(found.vectors, ask("embed_texts", texts, language="de"))
    assert found.unknown_tokens.tolist() == [n % 3 / 4 for n in range(MAX_TEXTS + 2)]
    assert ask("search", "犬a").unknown_tokens == 0.5
    assert ask("search_image", picture("PNG")).unknown_tokens == 0
    server.tells = False  # a server of before
    found = ask("embed", ["犬"])
    assert found.vectors.shape == (1, DIM)
    assert found.unknown_tokens is None
    assert ask("search", "犬a").unknown_tokens is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([*"abc", " "], r"texts\[3\]: text: "),
        (["a" * 1001], r"texts\[0\]: text: "),
        (["a dog", "a\ud800"], r"texts\[1\]: text: .*lone surrogate, U\+D800\) at position 1"),
        ([7], r"texts\[0\]: text: "),
        (b"a dog", r"texts\[0\]: text: "),
    ],
)
def test_a_text_that_is_none_is_named_before_anything_is_sent(
    ask: Ask, server: Server, texts: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ask("embed_texts", texts)
    assert server.seen == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_goes_out_as_what_it_is(ask: Ask, server: Server, kind: str) -> None:
    row = ask("embed_image", picture(kind))
    np.testing.assert_array_equal(row, vector("image"))
    row[0] = 0  # the caller's own
    assert server.seen[0].headers["content-type"] == f"image/{kind.lower()}"


def test_every_type_of_picture_that_a_server_takes_is_known_by_its_first_bytes() -> None:
    assert set(SIGNATURES) == set(IMAGE_TYPES)


def test_what_is_no_picture_is_not_sent(ask: Ask, server: Server) -> None:
    for method, arguments in (("embed_image", ()), ("search_image", ()), ("put_image", ("id",))):
        with pytest.raises(ValueError, match="not a picture in PNG, JPEG"):
            ask(method, *arguments, b"<svg/>")
    assert server.seen == []


def test_a_search_says_what_was_asked_and_no_more(ask: Ask, server: Server) -> None:
    found = ask("search", "große Katze & Hund", k=2)
    assert isinstance(found, SearchResult)
    assert (found.language, found.detected, found.next_offset) == ("de", True, 2)
    assert [hit.id for hit in found.hits] == ["images 0", "images 1"]
    sent = "q=gro%C3%9Fe+Katze+%26+Hund&language=auto&find=images&k=2&offset=0"
    assert server.seen[0].query == sent
    more = {"find": "captions", "offset": 2, "in_language": "de", "source": "a b"}
    found = ask("search", "dog", language="en", **more)
    assert (found.language, found.detected, found.offset) == ("en", False, 2)
    sent = "q=dog&language=en&find=captions&k=10&offset=2&in_language=de&source=a+b"
    assert server.seen[1].query == sent
    ask("search", "dog", min_score=0)
    assert server.seen[2].query.endswith("&k=10&offset=0&min_score=0")
    ask("search", "RX-7800", find="captions", mode="hybrid")
    assert server.seen[3].query.endswith("&find=captions&k=10&offset=0&mode=hybrid")


def test_a_search_by_picture_finds_captions_unless_told(
    ask: Ask, server: Server, png: bytes
) -> None:
    assert ask("search_image", png, k=1).hits[0].id == "captions 0"
    more = {"source": "x", "min_score": 0.25}
    assert ask("search_image", png, find="images", k=1, **more).hits[0].id == "images 0"
    assert server.seen[1].query == "find=images&k=1&offset=0&source=x&min_score=0.25"
    assert server.seen[1].body == png


@pytest.mark.parametrize(
    "image_id",
    ["1", "emoji/1f302", "/x", "a//b", "x/", "a/../b", "..", ".", "%2F", "é ?#&", "日本.png"],
)
def test_a_picture_is_kept_under_any_id(
    ask: Ask, server: Server, png: bytes, image_id: str
) -> None:
    written = ask("put_image", image_id, png, source="test")
    assert written == ImageWritten(image_id=image_id, image_url=None)
    assert server.images == {image_id: ("test", png)}
    assert ask("get_image", image_id) == png
    assert ask("get_image", image_id, source="a test") == png
    assert [seen.query for seen in server.seen] == ["source=test", "", "source=a+test"]


def test_an_empty_image_id_is_not_sent(ask: Ask) -> None:
    with pytest.raises(ValueError, match="image_id is empty"):
        ask("get_image", "")


@pytest.mark.parametrize("image_id", ["emoji/1f302", "/x", "a/../b", "..", "é ?#&"])
def test_an_image_of_any_id_is_removed(ask: Ask, server: Server, png: bytes, image_id: str) -> None:
    ask("put_image", image_id, png)
    ask("put_image", "another", png)
    assert ask("delete_image", image_id, source="a", captions=True).images == 1
    assert server.seen[-1].query == "source=a&captions=true"
    assert [image.image_id for image in ask("list_images").images] == ["another"]
    assert ask("delete_image", image_id).images == 0


def test_languages_are_listed(ask: Ask) -> None:
    listed = ask("languages")
    assert isinstance(listed, Languages)
    assert [info.autonym for info in listed.languages] == ["Deutsch"]


def test_a_server_that_is_unwell_says_so_at_once(ask: Ask, server: Server) -> None:
    assert ask("health").status == "ok"
    server.well = False
    assert ask("health") == Health(status="unavailable", parts={"index": "unavailable"})
    assert len(server.seen) == 2


def test_a_server_too_busy_for_its_health_is_asked_again(ask: Ask, server: Server) -> None:
    server.faults.append(problem(503, "too many requests are under way"))
    assert ask("health").status == "ok"
    assert len(server.seen) == 2


def test_a_path_before_the_api_is_kept(ask: Ask, server: Server) -> None:
    with pytest.raises(NotFound):
        ask("get_image", "x", url=f"{server.url}/clip/")
    assert server.seen[0].path == "/clip/v1/images/x"


def test_methods_of_both_clients_tell_what_they_take() -> None:
    for kind in (Client, AsyncClient):
        assert "in_language" in str(kind.search.__annotations__)
        assert "nearest to a text" in (kind.search.__doc__ or "")


@pytest.mark.parametrize("rows", ["AAAA", "?", base64.b64encode(bytes(4 * DIM)).decode()])
def test_vectors_of_another_shape_are_refused(ask: Ask, server: Server, rows: str) -> None:
    body = {"native": "n", "fingerprint": "ab", "dim": DIM, "embeddings": rows}
    server.faults.append(Fault(200, json.dumps(body)))
    with pytest.raises(ApiError, match="not an answer"):
        ask("embed_texts", ["a", "b"])


def test_vectors_of_two_natives_are_not_stacked(ask: Ask, server: Server) -> None:
    row = base64.b64encode(bytes(4 * DIM * MAX_TEXTS)).decode()
    body = {"native": "n", "fingerprint": "cd", "dim": DIM, "embeddings": row}
    server.faults.append(Fault(200, json.dumps(body)))
    with pytest.raises(RuntimeError, match="changed its native"):
        ask("embed_texts", ["dog"] * (MAX_TEXTS + 1))
