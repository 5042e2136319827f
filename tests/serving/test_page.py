"""The search page in a real browser, against a real server. Screenshots go to MLA_ARTIFACTS."""

import base64
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install it")
from playwright.sync_api import Browser, Error, Locator, Page, Route, expect, sync_playwright

from tests.support import ROOT

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium"),
]

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
UMBRELLA = "twemoji/2602"
UMBRELLAS = {UMBRELLA, "twemoji/2614", "twemoji/1f302", "twemoji/26f1"}
UMBRELLA_CAPTION = re.compile("umbrella|schirm", re.IGNORECASE)
TOKEN = "correct-horse"  # noqa: S105  of no server
BAD = '<img src=x onerror="document.title = `caught`"><script>document.title = `caught`</script>'


class Served(Protocol):
    @property
    def url(self) -> str: ...


OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[OpenPage]:
    """Opens pages; afterwards none may have thrown, broken the CSP or asked another origin."""
    contexts, faults = [], []
    origin = urlsplit(served.url)[:2]

    def watch_request(url: str) -> None:
        if url.startswith("http") and urlsplit(url)[:2] != origin:
            faults.append(f"request to {url}")

    def watch_console(kind: str, text: str) -> None:
        if "Content Security Policy" in text or (kind == "error" and "Failed to load" not in text):
            faults.append(text)

    def open_(
        path: str = "/", prepare: Callable[[Page], None] | None = None, **options: Any
    ) -> Page:
        context = browser.new_context(base_url=served.url, **(DESKTOP | options))
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("request", lambda request: watch_request(request.url))
        page.on("console", lambda message: watch_console(message.type, message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        if prepare:
            prepare(page)
        page.goto(path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def artifacts() -> Path:
    folder = Path(os.environ.get("MLA_ARTIFACTS") or ROOT / "tests" / "artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def drawing(served: Served) -> bytes:
    """The picture of the umbrella, as a file to search with."""
    response = httpx.get(f"{served.url}/v1/images/{UMBRELLA.replace('/', '%2F')}")
    return response.raise_for_status().content


def cards(page: Page) -> Locator:
    return page.locator("#results .card:not(.skeleton)")


def settled(page: Page) -> Page:
    """The page once its results are there."""
    expect(cards(page).first).to_be_visible()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    return page


def search(page: Page, text: str) -> Page:
    page.get_by_role("searchbox").fill(text)
    page.get_by_role("searchbox").press("Enter")
    page.wait_for_url(lambda url: "q=" in url)
    return settled(page)


def found(page: Page) -> list[str]:
    """Ids of the results, best first."""
    ids: list[str] = cards(page).evaluate_all("all => all.map(card => card.dataset.id)")
    return ids


def card_of(page: Page, image_id: str) -> Locator:
    return page.locator(f'.card[data-id="{image_id}"]')


def focused_id(page: Page) -> str:
    focused: str = page.evaluate("document.activeElement.closest('.card')?.dataset.id ?? ''")
    return focused


def problem(status: int, detail: str, **headers: str) -> dict[str, Any]:
    """An answer for `Route.fulfill`."""
    body = {"type": "about:blank", "title": "", "status": status, "detail": detail}
    return {
        "status": status,
        "headers": {"content-type": "application/problem+json", **headers},
        "body": json.dumps(body),
    }


def answer(
    *hits: dict[str, Any], language: str | None = "en", unknown_tokens: float = 0
) -> dict[str, Any]:
    found = {
        "language": language,
        "detected": True,
        "unknown_tokens": unknown_tokens,
        "hits": [{"source": "x", "score": 0.5, "image_url": None, **hit} for hit in hits],
        "offset": 0,
        "next_offset": None,
    }
    return {"status": 200, "content_type": "application/json", "body": json.dumps(found)}


# ---- searching with words -----------------------------------------------------------------------


def test_a_german_query_finds_the_drawing_when_german_is_picked(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_label("Language of the query").select_option(label="Deutsch")
    search(page, "Regenschirm")
    assert UMBRELLAS & set(found(page)[:5])
    expect(page.get_by_role("status").first).to_have_text(re.compile(r"^24 pictures · Deutsch$"))
    assert "language=de" in page.url
    scores = [float(text) for text in cards(page).locator(".number").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.wait_for_function("document.querySelector('#results img').naturalWidth > 0")


def test_the_language_is_detected_and_said(open_page: OpenPage) -> None:
    page = open_page()
    search(page, "der Regenschirm im Regen")
    expect(page.get_by_role("status").first).to_contain_text("Deutsch (detected)")
    assert "language" not in page.url
    assert UMBRELLAS & set(found(page)[:10])


def test_captions_carry_their_language_and_can_be_narrowed_to_one(open_page: OpenPage) -> None:
    page = settled(open_page("/?q=umbrella&language=en&find=captions"))
    languages = cards(page).locator(".caption").evaluate_all("all => all.map(c => c.lang)")
    assert {"en", "de"} <= set(languages)
    page.get_by_label("Language of the captions").select_option(label="Deutsch")
    page.wait_for_url("**in_language=de*")
    expect(page.locator('.caption:not([lang="de"])')).to_have_count(0)
    settled(page)
    assert UMBRELLA_CAPTION.search(" ".join(cards(page).locator(".caption").all_inner_texts()[:5]))


def test_more_results_are_added_below_and_focus_moves_to_the_first_of_them(
    open_page: OpenPage,
) -> None:
    page = settled(open_page("/?q=cat&language=en"))
    more = page.get_by_role("link", name="More results")
    more.focus()
    page.keyboard.press("Enter")
    expect(cards(page)).to_have_count(48)
    ids = found(page)
    assert len(set(ids)) == 48
    assert focused_id(page) == ids[24]
    # The link of a later page shows that page.
    later = settled(open_page("/?q=cat&language=en&offset=24"))
    assert found(later) == ids[24:]
    later.get_by_role("link", name="Earlier results").click()
    expect(card_of(later, ids[0])).to_be_visible()


def test_results_can_be_narrowed_to_a_source_and_widened_again(open_page: OpenPage) -> None:
    page = settled(open_page("/?q=cat&language=en"))
    source = cards(page).first.locator("button.source")
    name = source.inner_text()
    source.click()
    page.wait_for_url(f"**source={name}*")
    settled(page)
    page.locator("#source").click()
    page.wait_for_url(lambda url: "source" not in url)
    settled(page)


def test_an_answer_that_comes_late_is_ignored(open_page: OpenPage) -> None:
    def prepare(page: Page) -> None:
        page.route("**/v1/search?*q=slow*", lambda route: held.append(route))

    held: list[Route] = []
    page = open_page(prepare=prepare)
    page.get_by_role("searchbox").fill("slow")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator(".skeleton").first).to_be_attached()
    search(page, "umbrella")
    before = found(page)
    late = {"id": "late", "image_id": "late", "language": "", "caption": ""}
    with suppress(Error):  # the page has given that request up
        held[0].fulfill(**answer(late))
    page.wait_for_timeout(200)
    assert found(page) == before


# ---- searching with pictures --------------------------------------------------------------------


def test_a_picture_file_finds_captions_and_then_similar_pictures(
    open_page: OpenPage, drawing: bytes
) -> None:
    page = open_page()
    file = {"name": "schirm.webp", "mimeType": "image/webp", "buffer": drawing}
    page.get_by_label("Search with a picture").set_input_files(file)  # type: ignore[arg-type]
    settled(page)
    captions = cards(page).locator(".caption").all_inner_texts()
    assert UMBRELLA_CAPTION.search(" ".join(captions[:5]))
    expect(page.locator("#asked")).to_contain_text("schirm.webp")
    page.get_by_role("radio", name="Pictures").check()
    expect(page.locator("#results.images")).to_be_visible()
    settled(page)
    assert UMBRELLA in found(page)[:3]
    page.go_back()
    expect(page.locator("#results.captions .card").first).to_be_visible()


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_can_be_dropped_and_pasted(
    open_page: OpenPage, drawing: bytes, event: str
) -> None:
    page = open_page()
    page.evaluate(
        """([kind, base64]) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "schirm.webp", { type: "image/webp" }));
            const how = { dataTransfer: data, clipboardData: data, bubbles: true };
            how.cancelable = true;
            const made = new (kind === "drop" ? DragEvent : ClipboardEvent)(kind, how);
            document.body.dispatchEvent(made);
        }""",
        [event, base64.b64encode(drawing).decode()],
    )
    settled(page)
    captions = cards(page).locator(".caption").all_inner_texts()
    assert UMBRELLA_CAPTION.search(" ".join(captions[:5]))


def test_a_result_leads_to_its_captions_and_to_similar_pictures(open_page: OpenPage) -> None:
    page = settled(open_page("/?q=umbrella&language=en"))
    umbrella = card_of(page, UMBRELLA)
    umbrella.get_by_role("link", name="Captions", exact=True).click()
    page.wait_for_url(f"**like={UMBRELLA}*")
    expect(page.locator("#asked")).to_contain_text("Captions for this picture")
    expect(page.locator("#results.captions .card:not(.skeleton)").first).to_be_visible()
    settled(page)
    captions = cards(page).locator(".caption").all_inner_texts()
    assert UMBRELLA_CAPTION.search(" ".join(captions[:5]))
    page.go_back()
    umbrella.get_by_role("link", name="Similar").click()
    expect(page.locator("#asked")).to_contain_text("Pictures like this one")
    settled(page)
    assert UMBRELLA in found(page)[:3]


def test_a_picture_that_is_kept_finds_itself(open_page: OpenPage) -> None:
    page = settled(open_page(f"/?like={UMBRELLA}"))
    assert found(page)[0] == UMBRELLA
    # It may be a small copy of what was indexed, but with the same ground behind it.
    assert float(cards(page).first.locator(".number").inner_text()) > 0.9


@pytest.mark.parametrize(
    ("name", "kind", "size", "told"),
    [
        ("photo.png", "image/png", 8 * 2**20 + 1, "at most 8 MB"),
        ("drawing.svg", "image/svg+xml", 10, "send PNG, JPEG, WebP or GIF"),
    ],
)
def test_a_file_the_server_would_refuse_is_not_sent(
    open_page: OpenPage, name: str, kind: str, size: int, told: str
) -> None:
    page = open_page()
    sent = []
    page.on("request", lambda request: sent.append(request.method))
    file = {"name": name, "mimeType": kind, "buffer": bytes(size)}
    page.get_by_label("Search with a picture").set_input_files(file)  # type: ignore[arg-type]
    expect(page.get_by_role("alert")).to_contain_text(told)
    assert "POST" not in sent


def test_a_file_that_is_no_picture_is_told_in_the_servers_words(open_page: OpenPage) -> None:
    page = open_page()
    file = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.get_by_label("Search with a picture").set_input_files(file)  # type: ignore[arg-type]
    expect(page.get_by_role("alert")).to_contain_text("cannot read that picture")
    expect(page.get_by_role("button", name="Choose another picture")).to_be_visible()


# ---- keyboard, history, links -------------------------------------------------------------------


def test_everything_can_be_done_by_keyboard(open_page: OpenPage) -> None:
    page = open_page()
    keys = page.keyboard
    page.get_by_role("link", name="mla-ray").focus()
    keys.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    keys.type("umbrella/")  # in the box it is a letter
    keys.press("Backspace")
    keys.press("Enter")
    page.wait_for_url("**q=umbrella*")
    settled(page)
    ids = found(page)
    keys.press("ArrowDown")
    assert focused_id(page) == ids[0]
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    assert focused_id(page) == ids[2]
    keys.press("ArrowLeft")
    assert focused_id(page) == ids[1]
    keys.press("ArrowDown")
    below = ids.index(focused_id(page))
    assert below > 2
    keys.press("ArrowUp")
    assert focused_id(page) == ids[1]
    keys.press("End")
    assert focused_id(page) == ids[-1]
    keys.press("Home")
    keys.press("Enter")  # opens: captions of the first
    page.wait_for_url(f"**like={ids[0]}*")
    settled(page)
    assert focused_id(page)
    keys.press("Escape")  # back to where it was opened
    page.wait_for_url("**q=umbrella*")
    settled(page)
    assert focused_id(page) == ids[0]
    keys.press("Escape")
    expect(page.get_by_role("searchbox")).to_be_focused()
    keys.press("Escape")
    expect(page.get_by_role("searchbox")).to_have_value("")


def test_focus_can_be_seen(open_page: OpenPage) -> None:
    page = settled(open_page("/?q=umbrella&language=en"))
    unseen = []
    page.get_by_role("searchbox").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen, name = page.evaluate(
            """() => {
                const styled = (at) => getComputedStyle(at).outlineStyle !== "none";
                const at = document.activeElement;
                const sibling = at.nextElementSibling;
                const around = [at.parentElement, at.closest(".card")].filter(Boolean);
                return [styled(at) || (sibling && styled(sibling)) || around.some(styled),
                        at.outerHTML.slice(0, 120)];
            }"""
        )
        if not seen:
            unseen.append(name)
    assert not unseen


def test_back_shows_the_search_before_as_it_was_left(open_page: OpenPage) -> None:
    page = settled(open_page("/?q=umbrella&language=en"))
    page.get_by_role("link", name="More results").click()
    expect(cards(page)).to_have_count(48)
    before = found(page)
    page.mouse.wheel(0, 900)
    page.wait_for_function("scrollY > 500")
    page.wait_for_timeout(300)
    left = page.evaluate("scrollY")
    cards(page).nth(20).get_by_role("link", name="Similar").click()
    page.wait_for_url("**like=**")
    settled(page)
    page.go_back()
    page.wait_for_url("**q=umbrella*")
    expect(page.get_by_role("searchbox")).to_have_value("umbrella")
    assert found(page) == before
    assert abs(page.evaluate("scrollY") - left) < 150


def test_a_link_to_a_result_shows_it_in_a_new_browser(open_page: OpenPage) -> None:
    page = open_page("/", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Language of the query").select_option(label="Deutsch")
    page.get_by_role("radio", name="Captions").check()
    search(page, "Regenschirm")
    chosen = found(page)[17]
    cards(page).nth(17).get_by_role("link", name="Copy a link").click()
    expect(page.locator("#toast")).to_have_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url

    other = settled(open_page(link))
    expect(other.get_by_role("searchbox")).to_have_value("Regenschirm")
    expect(other.get_by_label("Language of the query")).to_have_value("de")
    expect(other.get_by_role("radio", name="Captions")).to_be_checked()
    marked = other.locator(".card.marked")
    expect(marked).to_have_attribute("data-id", chosen)
    expect(marked).to_be_in_viewport()


# ---- what comes from elsewhere is text ----------------------------------------------------------


def test_a_query_of_markup_stays_text(open_page: OpenPage) -> None:
    page = search(open_page(), BAD)
    expect(page.get_by_role("searchbox")).to_have_value(BAD)
    assert page.title() == f"{BAD} – mla-ray"
    expect(page.locator('img[src="x"]')).to_have_count(0)


@pytest.mark.parametrize("find", ["images", "captions"])
def test_an_answer_of_markup_stays_text(open_page: OpenPage, find: str) -> None:
    hit = {
        "id": BAD,
        "image_id": BAD,
        "caption": BAD if find == "captions" else "",
        "language": '"><img src=x>' if find == "captions" else "",
        "source": BAD,
        "image_url": "javascript:document.title = `caught`",
    }
    bad = answer(hit, language='x"><img src=x>')
    page = open_page(
        f"/?q=a&find={find}",
        prepare=lambda page: page.route("**/v1/search?*", lambda route: route.fulfill(**bad)),
    )
    settled(page)
    expect(cards(page)).to_contain_text(BAD)
    expect(page.locator('img[src="x"], .card script')).to_have_count(0)
    for href in page.locator(".card a").evaluate_all("all => all.map(a => a.protocol)"):
        assert href in ("http:", "https:")
    assert page.title() == "a – mla-ray"


def test_a_problem_of_markup_stays_text(open_page: OpenPage) -> None:
    bad = problem(500, BAD)
    page = open_page(
        "/?q=a",
        prepare=lambda page: page.route("**/v1/search?*", lambda route: route.fulfill(**bad)),
    )
    expect(page.get_by_role("alert")).to_contain_text(BAD)
    expect(page.locator('img[src="x"]')).to_have_count(0)


def test_captions_run_in_the_direction_of_their_script(open_page: OpenPage) -> None:
    texts = {"ar": "قطة سوداء تحت المطر", "he": "תפוח אדום", "de": "Regenschirm"}
    hits = [
        {"id": language, "image_id": language, "language": language, "caption": text}
        for language, text in texts.items()
    ]
    page = open_page(
        "/?q=a&find=captions",
        prepare=lambda page: page.route(
            "**/v1/search?*", lambda route: route.fulfill(**answer(*hits))
        ),
    )
    settled(page)
    directions = page.locator(".caption").evaluate_all(
        "all => all.map(c => [c.lang, getComputedStyle(c).direction])"
    )
    assert directions == [["ar", "rtl"], ["he", "rtl"], ["de", "ltr"]]


@pytest.mark.parametrize(
    ("unknown", "said"), [(0, ""), (0.5, ""), (0.51, "Most of the query"), (1, "All of the query")]
)
def test_a_query_of_unknown_words_is_told(open_page: OpenPage, unknown: float, said: str) -> None:
    hit = {"id": "a", "image_id": "a", "language": "", "caption": ""}
    page = open_page(
        "/?q=a",
        prepare=lambda page: page.route(
            "**/v1/search?*",
            lambda route: route.fulfill(**answer(hit, unknown_tokens=unknown)),
        ),
    )
    settled(page)
    line = page.locator("#status").inner_text()
    assert said in line
    assert ("is unknown to this language" in line) == bool(said)


def test_the_page_is_served_with_a_strict_policy_and_nothing_inline(served: Served) -> None:
    response = httpx.get(served.url)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", response.text)
    for path in re.findall(r'(?:src|href)="(/page/[^"]+)"', response.text):
        assert httpx.get(served.url + path).status_code == 200


# ---- the token, and servers that do not answer --------------------------------------------------


def lock(page: Page) -> None:
    """Make the server one that asks for a token."""

    def check(route: Route) -> None:
        if route.request.headers.get("authorization") == f"Bearer {TOKEN}":
            route.continue_()
        else:
            route.fulfill(**problem(401, "send the bearer token"))

    page.route("**/v1/**", check)


def test_a_token_is_asked_for_and_sent_with_every_request(open_page: OpenPage) -> None:
    page = open_page("/?q=Regenschirm&language=de", prepare=lock)
    token = page.get_by_label("Token", exact=True)
    expect(token).to_be_focused()
    token.fill("wrong")
    token.press("Enter")
    expect(page.locator("#token-why")).to_contain_text("not accepted")
    token.fill(TOKEN)
    token.press("Enter")
    settled(page)
    assert UMBRELLAS & set(found(page)[:5])
    first = page.locator("#results img").first
    expect(first).to_have_attribute("src", re.compile("^blob:"))
    page.wait_for_function("document.querySelector('#results img').naturalWidth > 0")
    # The next results take the place of these, and their pictures are let go.
    old = first.get_attribute("src")
    search(page, "Katze")
    expect(first).to_have_attribute("src", re.compile("^blob:"))
    assert page.evaluate(
        "old => new Promise(done => Object.assign(new Image(), "
        "{ src: old, onload: () => done(false), onerror: () => done(true) }))",
        old,
    )
    cards(page).first.get_by_role("link", name="Captions", exact=True).click()
    expect(page.locator("#results.captions .card:not(.skeleton)").first).to_be_visible()
    # It is kept in this tab over a reload, and nowhere else.
    page.reload()
    settled(page)
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert TOKEN not in page.url
    page.get_by_role("button", name="Forget the token").click()
    expect(page.get_by_label("Token", exact=True)).to_be_visible()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_once_more_by_itself_then_by_the_reader(
    open_page: OpenPage, status: int
) -> None:
    times: list[float] = []

    def busy(route: Route) -> None:
        times.append(time.monotonic())
        if len(times) <= refusals:
            route.fulfill(**problem(status, "too much at a time", **{"Retry-After": "1"}))
        else:
            route.continue_()

    def prepare(page: Page) -> None:
        page.route("**/v1/search?*", busy)

    refusals = 1
    settled(open_page("/?q=umbrella&language=en", prepare=prepare))
    assert len(times) == 2
    assert times[1] - times[0] >= 0.9

    times.clear()
    refusals = 2
    page = open_page("/?q=umbrella&language=en", prepare=prepare)
    expect(page.get_by_role("status").first).to_contain_text("Trying again in 1 s")
    expect(page.get_by_role("alert")).to_contain_text("too much at a time", ignore_case=True)
    page.get_by_role("button", name="Try again").click()
    settled(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_server_that_is_gone_is_told(open_page: OpenPage) -> None:
    page = open_page()
    page.route("**/v1/**", lambda route: route.abort())
    page.get_by_role("searchbox").fill("umbrella")
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Try again").click()
    settled(page)


def test_a_language_that_is_not_served_is_told_and_can_be_detected(open_page: OpenPage) -> None:
    page = open_page("/?q=Regenschirm&language=xx")
    expect(page.get_by_role("alert")).to_contain_text("xx")
    page.get_by_role("button", name="Detect language").click()
    settled(page)
    assert "language" not in page.url


def test_a_query_that_is_too_long_is_not_sent(open_page: OpenPage) -> None:
    page = open_page()
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.get_by_role("searchbox").fill("x" * 1001)
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("at most 1,000 characters")
    assert not [url for url in sent if "/v1/search" in url]


def test_an_empty_collection_says_how_to_fill_it(open_page: OpenPage) -> None:
    page = open_page(
        "/?q=a",
        prepare=lambda page: page.route("**/v1/search?*", lambda route: route.fulfill(**answer())),
    )
    expect(page.get_by_role("alert")).to_contain_text("mla index")


# ---- looks --------------------------------------------------------------------------------------

VIEWS = {
    "start": "/",
    "pictures": "/?q=Regenschirm&language=de",
    "captions": "/?q=Regenschirm&find=captions",
    "captions-of": f"/?like={UMBRELLA}&find=captions",
    "similar": f"/?like={UMBRELLA}",
    "error": "/?q=Regenschirm&language=xx",
}
CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (colour) => {
        const [r, g, b] = colour.map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (at) => {
        for (; at; at = at.parentElement) {
            const colour = rgba(getComputedStyle(at).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255, 255];
    };
    const low = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const at = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || at.closest(".sr, .drop, .toast, noscript")) continue;
        if (!at.checkVisibility({ visibilityProperty: true })) continue;
        const [a, b] = [rgba(getComputedStyle(at).color), ground(at)].map(luminance);
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) low.push([texts.currentNode.data.trim(), contrast]);
    }
    return low;
}"""


def width(page: Page) -> int:
    """Pixels that the page takes. A phone's innerWidth grows with them, so it is no measure."""
    pixels: int = page.evaluate("document.documentElement.scrollWidth")
    return pixels


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "options"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_it_fits_the_screen_and_can_be_read(
    open_page: OpenPage, artifacts: Path, device: str, options: dict[str, Any], scheme: str
) -> None:
    page = open_page(color_scheme=scheme, **options)
    for name, path in VIEWS.items():
        page.goto(path)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(300)  # transitions
        page.screenshot(path=artifacts / f"page-{device}-{scheme}-{name}.png")
        assert width(page) <= options["viewport"]["width"], f"{name} scrolls sideways"
        assert page.evaluate(CONTRASTS) == [], name


def test_long_words_do_not_widen_a_phones_page(open_page: OpenPage) -> None:
    word = "Donaudampfschifffahrtsgesellschaft" * 6
    hit = {"id": word, "image_id": word, "source": word, "language": "de", "caption": word}
    page = open_page(
        "/?q=a&find=captions",
        prepare=lambda page: page.route(
            "**/v1/search?*", lambda route: route.fulfill(**answer(hit))
        ),
        **PHONE,
    )
    settled(page)
    assert page.locator(".caption").evaluate("at => at.scrollWidth <= at.clientWidth"), "cut off"
    for path in ("/?q=a", f"/?q=a&find=captions&source={word}", f"/?like={word}"):
        assert width(page) <= PHONE["viewport"]["width"], page.url
        page.goto(path)
        page.wait_for_load_state("networkidle")


def test_every_control_has_a_name(open_page: OpenPage) -> None:
    page = settled(open_page("/?q=Regenschirm&find=captions"))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, select")]
            .filter((at) => {
                const labels = [...(at.labels ?? [])].map((label) => label.innerText);
                const names = [at.ariaLabel, at.innerText, at.title, ...labels];
                return at.checkVisibility() && !names.some((text) => text?.trim());
            })
            .map((at) => at.outerHTML)"""
    )
    assert nameless == []


def test_motion_stops_for_those_who_ask_for_it(open_page: OpenPage) -> None:
    page = open_page(
        "/?q=a",
        prepare=lambda page: page.route("**/v1/search?*", lambda route: None),
        reduced_motion="reduce",
    )
    skeleton = page.locator(".skeleton .picture").first
    expect(skeleton).to_be_attached()
    assert skeleton.evaluate("at => getComputedStyle(at).animationName") == "none"
