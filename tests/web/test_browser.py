"""The explorer in a real Chromium over real weights: clicks, keys, pictures, both colour schemes, a phone, and axe."""

import functools
import http.server
import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

import small
import zeropass as zp
from planted_word import MODEL, SAID, planted
from serving import contexts_of, serving
from zeropass.heads import run as heads_run

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-default-apps", "--disable-sync", "--no-first-run")
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
PAGES = ("/", "/by/kurtosis/read-output", "/layer/27", "/layer/27/2", "/at/L29.ff.864", "/at/L27.attn.1")
PAGES += ("/at/L27.attn.1.v.17", "/map/L27.attn.1.qk", "/svd/L27.attn.1.vo", "/subheads/L27.attn.1", "/near/L29.ff.864")
PAGES += ("/spread/L29.ff.864", "/cloud/L29.ff.864", "/token/7042", "/nearest/7042", "/tokens", "/outside", "/help")
PAGES += ("/glossary", "/find?q=Monday+Tuesday", "/find?q=French+-Spanish", "/find?q=paris", "/at/nonsense")


def chromium() -> str:
    """Return the path of the system's Chromium; skip the tests, loudly, where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("NO BROWSER TESTS: there is no Chromium here; `make browser` (as root on Debian) installs it.")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(real_atlas: Path, smollm2_path: Path) -> Iterator[str]:
    contexts = contexts_of(real_atlas, smollm2_path)
    with serving(contexts) as url:
        yield url


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Open]:
    """Yield a function that opens a page; at the end, no page may have failed or asked another host."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def open_page(path: str = "/", base: str = address, allowed: int = 200, **options: Any) -> Page:
        context = browser.new_context(base_url=base, **{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        said_404 = "the server responded with a status of 404" if allowed == 404 else "\0"
        page.on("console", lambda m: wrong.append(m.text) if m.type != "log" and said_404 not in m.text else None)
        page.on("request", lambda sent: wrong.append(sent.url) if urlsplit(sent.url).hostname != "127.0.0.1" else None)
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == allowed
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def follow(page: Page, name: str, path: str, exact: bool = True) -> None:
    """Click a link and wait for its page."""
    page.get_by_role("link", name=name, exact=exact).first.click()
    page.wait_for_url(f"**{path}")
    assert page.get_by_role("heading", level=1).is_visible()


def painted(page: Page, selector: str = "svg.picture") -> list[int]:
    """Return the number of colours that each picture of a page has on the screen."""
    counts = []
    for picture in page.locator(selector).all():
        pixels = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"))
        counts.append(len(np.unique(pixels.reshape(-1, 3), axis=0)))
    return counts


def test_every_kind_of_page_is_reached_by_clicking(opened: Open) -> None:
    page = opened()
    page.get_by_role("link", name="Layer 27 FF", exact=False).click()
    page.wait_for_url("**/layer/27")
    follow(page, "L27.attn.1", "/at/L27.attn.1")
    follow(page, "qk: all pairs, filter, offset", "/map/L27.attn.1.qk")
    follow(page, "L27.attn.1", "/at/L27.attn.1")
    follow(page, "vo directions", "/svd/L27.attn.1.vo")
    follow(page, "L27.attn.1", "/at/L27.attn.1")
    follow(page, "columns", "/subheads/L27.attn.1")
    page.locator("table a", has_text=".v.").first.click()
    page.wait_for_url("**/at/L27.attn.0.v.*")
    follow(page, "Layer 27", "/layer/27")
    page.get_by_role("link", name="next page ›").click()
    page.wait_for_url("**/layer/27/2")
    page.locator("table.telling a[href*='/at/L27.ff.']").first.click()
    page.wait_for_url("**/at/L27.ff.*")
    for name, path in (("What writes along it", "near"), ("How its scores", "spread"), ("The top and bottom", "cloud")):
        page.get_by_role("link", name=name, exact=False).click()
        page.wait_for_url(f"**/{path}/L27.ff.*")
        page.go_back()
    page.locator("a.chip").first.click()
    page.wait_for_url("**/token/*")
    page.get_by_role("link", name="The tokens nearest", exact=False).click()
    page.wait_for_url("**/nearest/*")
    for name in ("Tokens", "How to read", "zeropass"):
        page.get_by_role("navigation", name="Main").get_by_role("link", name=name, exact=True).click()
        if name == "How to read":
            follow(page, "no token stands out", "/glossary#no-token-stands-out")
    page.get_by_role("link", name="kurtosis", exact=True).click()
    page.wait_for_url("**/by/kurtosis/write-output")
    page.get_by_role("link", name="is about to say", exact=True).click()
    page.wait_for_url("**/by/kurtosis/read-output")


def test_what_heads_do_is_reached_by_clicking_and_fits_a_phone(
    opened: Open, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = small.built("llama", tmp_path_factory)
    monkeypatch.setattr(heads_run, "RANDOM_HEADS", 1)
    contexts = contexts_of(built.atlas.path, built.folder)
    catalogue = zp.catalogue_heads(built.lens, progress=False)
    vars(contexts[0])["heads"] = catalogue
    with serving(contexts) as url:
        page = opened(base=url)
        follow(page, "what its heads do", "/heads")
        follow(page, "previous", "/heads/previous")
        check_axe(page)
        page.set_viewport_size({"width": 375, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        first = catalogue.sorted_by("previous")[0].address
        assert page.get_by_role("row").nth(1).get_by_role("link").inner_text() == first
        follow(page, first, f"/at/{first}")
        follow(page, "all heads", "/heads")


def test_the_search_works_by_keyboard(opened: Open) -> None:
    page = opened("/layer/28")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("Paris")
    page.keyboard.press("Enter")
    page.wait_for_url("**/token/*")
    assert page.get_by_role("heading", level=1).inner_text().replace(" ", "") == "␣Paris"
    assert page.get_by_role("link", name="L29.ff.864", exact=True).first.is_visible()
    page.keyboard.press("/")
    page.keyboard.type("Monday Tuesday")
    page.keyboard.press("Enter")
    page.wait_for_url("**/find?q=Monday+Tuesday")
    assert "A concept" in page.inner_text("main")
    page.keyboard.press("/")
    page.keyboard.type("L29.ff.864")
    page.keyboard.press("Enter")
    page.wait_for_url("**/at/L29.ff.864")
    page.keyboard.press("]")
    page.wait_for_url("**/at/L29.ff.865")
    page.keyboard.press("[")
    page.wait_for_url("**/at/L29.ff.864")
    page.keyboard.press("/")
    page.keyboard.type("]/")  # in the search these are letters
    assert page.input_value("#q") == "]/"
    page.keyboard.press("Escape")


def test_a_word_that_is_no_token_is_refused_with_what_was_meant(opened: Open) -> None:
    page = opened("/find?q=paris", allowed=404)
    text = page.inner_text("main")
    assert "'paris' is not one token; it is split as ␣par + is. Did you mean Paris?" in text
    assert page.locator("table").count() == 0  # and no concept of fragments
    assert page.input_value("#q") == "paris"
    assert [chip.replace(" ", "") for chip in page.locator("main .chip").all_inner_texts()] == ["␣par", "is"]
    page.get_by_role("link", name="Paris", exact=True).click()
    page.wait_for_url("**/token/*")
    assert page.get_by_role("heading", level=1).inner_text().replace(" ", "") == "␣Paris"
    page = opened("/find?q=paris+Monday", allowed=404)
    page.get_by_role("link", name="Paris Monday", exact=True).click()
    page.wait_for_url("**/find?q=Paris+Monday")
    assert "A concept" in page.inner_text("main")
    page = opened("/find?q=paris", allowed=404)
    page.get_by_role("link", name="all of them as a concept").click()
    page.wait_for_url("**/find?q=*")
    assert "A concept" in page.inner_text("main")


def test_a_search_says_what_each_parameter_is_about(opened: Open) -> None:
    page = opened("/find?q=French+-Spanish")
    assert "z is that of French, less that of Spanish." in page.inner_text("main")
    row = page.locator("tr", has=page.get_by_role("link", name="L29.ff.864", exact=True)).first
    assert any("French" in text for text in row.locator(".chip").all_inner_texts())
    assert "Spanish" in row.inner_text()
    row.locator("a.chip", has_text="French").first.click()
    page.wait_for_url("**/token/*")
    assert page.locator("main table").first.locator("a.chip").count() > 10
    page = opened("/find?q=bookshelf")
    assert "bookshelf is not one token: its pieces ␣books + helf count together." in page.inner_text("main")
    page = opened("/find?q=Parix")
    page.get_by_role("link", name="Paris", exact=True).click()
    page.wait_for_url("**/token/*")


def test_the_pole_switch_hides_the_other_pole(opened: Open) -> None:
    page = opened("/at/L29.ff.864")
    top, bottom = (page.locator(f"main > .list .pole.{side}") for side in ("top", "bottom"))
    assert top.first.is_visible()
    assert bottom.first.is_visible()
    page.get_by_label("bottom (−)").check()
    assert not top.first.is_visible()
    assert bottom.first.is_visible()
    assert "␣French" in bottom.last.inner_text()
    page.get_by_label("top (+)").check()
    assert top.first.is_visible()
    assert not bottom.first.is_visible()


def test_the_offset_control_asks_the_weights(opened: Open) -> None:
    page = opened("/map/L27.attn.3.qk")
    before = page.locator("tbody").inner_text()
    page.get_by_label("offset").fill("1")
    page.get_by_role("button", name="Ask the weights").click()
    page.wait_for_url("**/map/L27.attn.3.qk?offset=1*")
    assert "query 1 after key" in page.inner_text("main")
    assert "computed from the weights" in page.inner_text("main")
    assert page.locator("tbody").inner_text() != before
    page.get_by_label("query", exact=True).fill("Paris")
    page.get_by_role("button", name="Ask the weights").click()
    page.wait_for_url("**left=Paris**")
    lefts = page.locator("tbody tr td:nth-child(2) .chip").all_inner_texts()
    assert {text.strip("␣") for text in lefts} == {"Paris"}
    assert page.get_by_label("offset").input_value() == "1"
    page.get_by_role("link", name="stored pairs").click()
    page.wait_for_url("**/map/L27.attn.3.qk")


def test_pictures_are_there_and_not_blank(opened: Open) -> None:
    page = opened("/")
    for path in ("/", "/layer/27", "/at/L27.attn.1", "/map/L27.attn.1.vo", "/token/7042", "/near/L29.ff.864"):
        page.goto(path)
        assert min(painted(page)) > 6, path
    page.goto("/token/7042")  # each kind of mark has its colour
    fills = {mark.evaluate("mark => getComputedStyle(mark).fill") for mark in page.locator("svg.picture use").all()}
    assert len(fills) == 3
    assert "rgb(0, 0, 0)" not in fills
    for path in ("/spread/L29.ff.864", "/cloud/L29.ff.864"):
        page.goto(path)
        assert min(painted(page)) > 20, path
    page.goto("/layer/27.svg")  # and by itself, with its own style
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 6
    assert (pixels[..., 2] - pixels[..., 0] > 60).any()  # the blue of its bars: its style was let in


def test_parts_load_when_they_come_into_view(opened: Open) -> None:
    page = opened("/at/L29.ff.864")
    assert page.locator("[data-part]").count() <= 1
    for section in page.locator("[data-load]").all():
        section.scroll_into_view_if_needed()
        section.locator("svg.picture").first.wait_for()
    assert min(painted(page, "[data-load] svg.picture")) > 6


def test_the_dark_scheme_is_dark(opened: Open) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        page = opened("/at/L29.ff.864", color_scheme=scheme)
        shades[scheme] = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L")).mean()
    assert shades["dark"] < 70 < 200 < shades["light"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible_in_both_schemes_and_fits_a_phone(opened: Open, path: str) -> None:
    """Run axe, again in the dark for what depends on the scheme; nothing may be wider than a phone."""
    page = opened(path, allowed=404 if path in ("/at/nonsense", "/find?q=paris") else 200)
    check_axe(page)
    page.emulate_media(color_scheme="dark")
    page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")  # colours change gradually
    if not path.startswith("/subheads"):
        check_axe(page, "color-contrast")
    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.get_by_role("searchbox").is_visible()


def check_axe(page: Page, *rules: str) -> None:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    report = page.evaluate(f"axe.run(document, {json.dumps(options)})")
    violations = [
        (violation["id"], violation["help"], [n["html"][:120] for n in violation["nodes"][:3]])
        for violation in report["violations"]
    ]
    assert violations == [], json.dumps(violations, indent=1)


@pytest.fixture(scope="module")
def difference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a comparison, and an atlas of its base."""
    folder = tmp_path_factory.mktemp("difference")
    zp.write_diff(planted(), folder / "diff")
    zp.build(MODEL, folder / "atlas", zp.Options(k=10, layers=(3, 4), roles=("gate", "value")), progress=False)
    return folder


def test_a_difference_shows_what_matters_within_three_thousand_pixels(browser: Browser, difference: Path) -> None:
    with serving(zp.open_sources(zp.Sources(difference / "atlas", diff=difference / "diff"))) as url:
        context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto("/diff")
        assert page.evaluate("document.documentElement.scrollHeight") < 3000
        assert page.get_by_text("NARROW: few words stand out").is_visible()
        order = ["Watched words", "Words that it sees most", "Words that it writes most", "Where", "Telling directions"]
        assert page.locator("h2").all_inner_texts()[:5] == order
        assert page.locator("section.list").first.get_by_text(SAID.replace(" ", "␣"), exact=True).first.is_visible()
        check_axe(page)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        page.emulate_media(color_scheme="dark")
        page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")
        check_axe(page)
        page.set_viewport_size({"width": 375, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        context.close()


def test_a_report_is_accessible_in_both_schemes_asks_for_nothing_and_fits_a_phone_and_paper(
    browser: Browser, difference: Path
) -> None:
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((difference / "diff" / "report.html").as_uri())
    assert len(asked) == 1
    assert min(painted(page)) > 2
    check_axe(page)
    page.emulate_media(color_scheme="dark")
    assert np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L")).mean() < 70
    check_axe(page, "color-contrast")
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.emulate_media(media="print")
    assert np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L")).mean() > 200
    page.set_viewport_size({"width": 680, "height": 900})  # A4 less its margins
    wide = "[...document.querySelectorAll('table,svg')].filter((one) => one.getBoundingClientRect().right > 680).length"
    assert page.evaluate(wide) == 0
    context.close()


def test_pages_work_without_scripts(opened: Open) -> None:
    page = opened("/at/L29.ff.864", java_script_enabled=False)
    page.get_by_role("link", name="What writes along it", exact=False).click()
    page.wait_for_url("**/near/L29.ff.864")
    page.fill("#q", "Paris")
    page.get_by_role("button", name="Find").click()
    page.wait_for_url("**/token/*")


# --- The static site --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a site of a small model, one folder down, from a plain file server."""
    built = small.built("hostile", tmp_path_factory)
    folder = tmp_path_factory.mktemp("files")
    zp.export_site(contexts_of(built.atlas.path), folder / "shared", zp.Chosen(most=5, tokens=40))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/shared/"
        server.shutdown()
        thread.join()


def test_a_static_site_works_from_any_file_server(opened: Open, static: str) -> None:
    page = opened("index.html", base=static)
    assert min(painted(page)) > 3
    check_axe(page)
    page.get_by_role("link", name="Layer 0 FF", exact=False).click()
    page.wait_for_url("**/layer/0.html")
    page.locator("table.telling a[href*='L0.ff.']").first.click()
    page.wait_for_url("**/at/L0.ff.*.html")
    for section in page.locator("[data-load]").all():
        section.scroll_into_view_if_needed()
        section.locator("svg.picture").first.wait_for()
    page.get_by_label("top (+)").check()
    assert not page.locator(".pole.bottom").first.is_visible()
    chip = page.locator("a.chip", has_text=re.compile(r"^␣?[a-z]{4,}[\d.]+$")).first
    token = re.findall("[a-z]+", chip.inner_text())[0]
    page.keyboard.press("/")
    page.keyboard.type(token)
    page.keyboard.press("Enter")
    page.wait_for_url("**/token/*.html")
    page.keyboard.press("/")
    page.keyboard.type("no such word")
    page.keyboard.press("Enter")
    page.get_by_text("not a token of this site").wait_for()
    page.fill("#q", token.upper())
    page.keyboard.press("Enter")
    page.get_by_role("search").get_by_role("link", name=token, exact=True).click()
    page.wait_for_url("**/token/*.html")
