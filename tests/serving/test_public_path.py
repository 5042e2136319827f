"""Promises of a server behind a reverse proxy: everything under a path, by whichever custom."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx2
import pytest
import uvicorn

from mla_ray.runtime.cluster import free_port
from mla_ray.serving.app import PAGE
from mla_ray.serving.public_path import checked_prefix
from mla_ray.serving.schemas import MAX_BODY_BYTES
from tests.serving.app_server import PNG, Start
from tests.support.reverse_proxy import SAY, STRIP, reverse_proxy, wait_for_port

PROXIES = {
    "takes it off and says so": ((STRIP, SAY), ""),
    "says so": ((SAY,), ""),
    "takes it off, the server knows": ((STRIP,), "/search"),
    "leaves it, the server knows": ((), "/search/"),
    "takes it off": ((STRIP,), ""),
}
KNOWN = [name for name in PROXIES if name != "takes it off"]


class Links(HTMLParser):
    """What a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"link": "href", "script": "src", "img": "src"}.get(tag)
        self.urls += [value for name, value in attrs if name == wanted and value]


@contextmanager
def behind(start: Start, folder: Path, name: str) -> Iterator[str]:
    rules, root_path = PROXIES[name]
    port = free_port()
    with start(root_path=root_path, hosts=["127.0.0.1"]) as server:
        app = server.client.app
        web = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
        thread = threading.Thread(target=web.run)
        thread.start()
        try:
            wait_for_port(port)
            with reverse_proxy(folder, port, *rules) as url:
                yield url
        finally:
            web.should_exit = True
            thread.join()


@pytest.mark.parametrize("name", PROXIES)
def test_the_page_and_all_it_loads_are_there(start: Start, tmp_path: Path, name: str) -> None:
    with behind(start, tmp_path, name) as url, httpx2.Client(trust_env=False) as http:
        page = http.get(url)
        assert page.status_code == 200
        links = Links()
        links.feed(page.text)
        assert sum("page/" in link for link in links.urls) >= 3
        for link in links.urls:
            assert http.get(urljoin(url, link)).status_code == 200, link
        assert http.get(urljoin(url, "v1/languages")).status_code == 200
        head = http.head(url)
        assert head.status_code == 200
        assert int(head.headers["content-length"]) == len(page.content)


@pytest.mark.parametrize("name", KNOWN)
def test_answers_name_addresses_that_clients_can_ask_for(
    start: Start, tmp_path: Path, pngs: list[bytes], name: str
) -> None:
    with behind(start, tmp_path, name) as url, httpx2.Client(trust_env=False) as http:
        put = http.put(f"{url}v1/images/a%2Fb?source=s", content=pngs[0], headers=PNG)
        found = http.get(f"{url}v1/search?q=dog&language=en").json()["hits"]
        by_image = http.post(
            f"{url}v1/search/image?find=images", content=pngs[0], headers=PNG
        ).json()["hits"]
        for written in (put.json(), found[0], by_image[0]):
            assert written["image_url"] == "/search/v1/images/a%2Fb?source=s"
            kept = http.get(urljoin(url, written["image_url"]))
            assert kept.headers["content-type"] == "image/webp"
        servers = http.get(f"{url}openapi.json").json()["servers"]
        assert servers == [{"url": "/search"}]
        # Rules of the server's that go by the path.
        large = http.post(f"{url}v1/embeddings/text", content=b" " * (MAX_BODY_BYTES + 1))
        assert large.status_code == 413
        larger_image = http.post(
            f"{url}v1/search/image", content=b" " * (MAX_BODY_BYTES + 1), headers=PNG
        )
        assert larger_image.status_code == 422


@pytest.mark.parametrize("name", ["says so", "leaves it, the server knows"])
def test_without_the_last_slash_a_client_is_sent_to_the_page(
    start: Start, tmp_path: Path, name: str
) -> None:
    with behind(start, tmp_path, name) as url, httpx2.Client(trust_env=False) as http:
        moved = http.get(url.removesuffix("/") + "?q=a%20dog")
        assert moved.status_code == 307
        assert moved.headers["location"] == "/search/?q=a%20dog"


def test_what_a_client_makes_up_is_no_prefix(start: Start) -> None:
    with start(hosts=["127.0.0.1"]) as server:
        for given in ("//evil.example", "/a/../b", "search", '/"><script>', "/a b", "/x" * 200):
            headers = {"Host": "127.0.0.1", "X-Forwarded-Prefix": given}
            page = server.client.get("/", headers=headers)
            assert '="page/app.js"' in page.text, given


def test_a_root_path_is_a_path() -> None:
    assert [checked_prefix(path) for path in ("", "/", "/a/b/")] == ["", "", "/a/b"]
    for wrong in ("search", "//a", "http://a", "/a?b"):
        with pytest.raises(ValueError, match="not a path"):
            checked_prefix(wrong)


def test_the_script_asks_relative_to_where_it_is_from() -> None:
    script = (PAGE / "app.js").read_text()
    assert not re.findall(r"""["'`]/(?!["'`])[^"'`\s]*""", script)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on PATH")
def test_the_script_is_whole() -> None:
    subprocess.run(["node", "--check", str(PAGE / "app.js")], check=True)
