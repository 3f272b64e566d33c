"""The explorer's server: every page in every format, bad requests, bad files, and who may ask."""

import asyncio
import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import small
import zeropass as zp
from builds import ENVIRONMENT, OPTIONS
from commands import Run, shell
from serving import Seen, contexts_of, serving
from zeropass.atlas.summary import MEASURES, list_types_of
from zeropass.errors import BadAddress
from zeropass.heads import run as heads_run
from zeropass.tokens.shown import shown_text
from zeropass.web import context as web_context
from zeropass.web.app import KEEP_ALIVE
from zeropass.web.context import local_name
from zeropass.web.pages import word_pages
from zeropass.web.responder import Cache, PageRequest, WorkQueue
from zeropass.web.security import Rules
from zeropass.web.workers import forked

MODEL_PAGES = ("/", "/by/kurtosis/read-output", "/by/best/write-output", "/layer/1", "/outside", "/tokens", "/tokens/2")
MODEL_PAGES += ("/help", "/glossary", "/token/300", "/nearest/300", "/find?q=babade+babafi", "/find?q=babade&all=1")
VECTOR_PAGES = ("/at/L1.ff.7", "/near/L1.ff.7", "/spread/L1.ff.7", "/cloud/L1.ff.7", "/at/L1.attn.2.v.3")
VECTOR_PAGES += ("/at/L1.ff.7?tokens=words", "/at/L1.ff.7?k=50&tokens=all", "/near/L1.attn.2.o.3", "/at/L1.ff.7.value")
HEAD_PAGES = ("/at/L1.attn.2", "/at/L1.attn.2.vo", "/map/L1.attn.2.qk", "/map/L1.attn.2.vo", "/subheads/L1.attn.2")
WEIGHT_PAGES = ("/map/L1.attn.2.qk?offset=3", "/map/L1.attn.2.vo?left=babade", "/svd/L1.attn.2.vo", "/svd/L1.attn.2.qk")
WEIGHT_PAGES += ("/map/L1.attn.2.qk?offset=&left=&right=babade", "/map/L1.attn.2.qk?left=%23300&right=babafi")
PAGES = MODEL_PAGES + VECTOR_PAGES + HEAD_PAGES + WEIGHT_PAGES


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("hostile", tmp_path_factory)


@pytest.fixture(scope="module")
def web(llama: small.Built) -> Iterator[httpx.Client]:
    with serving(contexts_of(llama.atlas.path, llama.folder)) as address, httpx.Client(base_url=address) as client:
        yield client


# --- Pages and formats ------------------------------------------------------------------------------------------------


def other(path: str, kind: str) -> str:
    """Return the address of a page in another format."""
    stem, mark, query = path.partition("?")
    return f"{'/index' if stem == '/' else stem}.{kind}{mark}{query}"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_served_in_every_format(web: httpx.Client, path: str) -> None:
    html = web.get(path)
    assert (html.status_code, html.headers["content-type"]) == (200, "text/html; charset=utf-8")
    seen = Seen(html.text)
    assert seen.tags.count("h1") == seen.tags.count("main") == 1
    assert not [name for _, name, _ in seen.attributes if name == "style" or name.startswith("on")]
    assert seen.tags.count("script") == 1  # our own file
    linked = [link for link in seen.links if re.search(r"\.(json|csv|svg)(\?|$)", link)]
    assert other(path, "json") in linked
    for address in linked:
        answer = web.get(address)
        assert answer.status_code == 200, address
        kind = re.search(r"\.(json|csv|svg)", address)[1]  # type: ignore[index]
        assert kind in answer.headers["content-type"]
        if kind == "json":
            json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        elif kind == "svg":
            assert answer.text.lstrip().startswith("<svg")
            assert "<title>" in answer.text
        else:
            assert len(answer.text.splitlines()) > 1 or path == "/outside"


def test_all_pages_but_some_have_pictures(web: httpx.Client) -> None:
    pictured = [path for path in PAGES if web.get(other(path, "svg")).status_code == 200]
    without = ("/outside", "/tokens", "/tokens/2", "/help", "/glossary", "/nearest/300", "/subheads/L1.attn.2")
    assert set(PAGES) - set(pictured) == {
        p for p in PAGES if p in without or p.startswith(("/svd", "/at/L1.ff", "/at/L1.attn.2.v."))
    }


def test_what_heads_do_is_shown_where_a_catalogue_is_kept(llama: small.Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one there is no link to it, and the page says how to get one."""
    monkeypatch.setattr(heads_run, "RANDOM_HEADS", 1)
    catalogue = zp.catalogue_heads(llama.lens, progress=False)
    pages = {"": catalogue.heads, "/previous": catalogue.sorted_by("previous").heads}
    for kept in (None, catalogue):
        monkeypatch.setattr(web_context, "kept_heads", lambda _fingerprint, kept=kept: kept)
        with serving(contexts_of(llama.atlas.path, llama.folder)) as address, httpx.Client(base_url=address) as client:
            links = Seen(client.get("/").text).links
            assert ("/heads" in links) == (kept is not None)
            if kept is None:
                assert client.get("/heads").status_code == 400
                assert "zeropass heads" in client.get("/heads").text
                continue
            for order, heads in pages.items():
                page = Seen(client.get(f"/heads{order}").text)
                assert [x for x in page.links if x.startswith("/at/")] == [f"/at/{head.address}" for head in heads]
                assert {f"/heads/{name}" for name in catalogue.traits} < set(page.links)
                assert [head["address"] for head in client.get(f"/heads{order}.json").json()["heads"]] == [
                    head.address for head in heads
                ]
                assert len(client.get(f"/heads{order}.csv").text.splitlines()) == 1 + len(heads)
            assert client.get("/heads/nose").status_code == 400
            assert "/heads" in Seen(client.get("/at/L1.attn.2").text).links


def test_ov_is_shown_as_vo(web: httpx.Client) -> None:
    for kind in ("at", "map", "svd"):
        for suffix in ("", ".json"):
            assert web.get(f"/{kind}/L1.attn.2.ov{suffix}").text.replace("L1.attn.2.ov", "L1.attn.2.vo") == (
                web.get(f"/{kind}/L1.attn.2.vo{suffix}").text
            )
    assert "<h1>L1.attn.2.vo" in web.get("/map/L1.attn.2.ov").text


def test_the_maps_of_an_atlas_through_a_lens_are_pages(tmp_path: Path) -> None:
    """Open each map that the first page links to, and each measure of each kind of list."""
    model = small.llama(tmp_path / "model")
    atlas = small.build(model, tmp_path / "atlas", OPTIONS, small.calibrated(model, tmp_path / "lens"))
    assert {frame for _, frame in list_types_of(atlas)} == {"seen", "output", "distinctive", "effect"}
    with serving(contexts_of(atlas.path, model)) as address, httpx.Client(base_url=address) as client:
        links = {link for link in Seen(client.get("/").text).links if link.startswith("/by/")}
        links |= {f"/by/{measure}/{side}-{frame}" for measure in MEASURES for side, frame in list_types_of(atlas)}
        assert {link: client.get(link).status_code for link in links} == dict.fromkeys(links, 200)


def test_the_glossary_of_the_documentation_is_a_page(web: httpx.Client) -> None:
    text = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")
    page, terms = Seen(web.get("/glossary").text), web.get("/glossary.json").json()
    assert [term["term"] for term in terms] == re.findall("^### (.*)$", text, re.MULTILINE)
    assert all(term["text"] in text for term in terms)
    anchors = [value for _, name, value in page.attributes if name == "id"]
    assert len(anchors) == len(set(anchors))
    targets = {link[1:] for link in page.links if link.startswith("#")}
    linked = {link.partition("#")[2] for link in Seen(web.get("/help").text).links if link.startswith("/glossary#")}
    assert {"z", "frame", "pole", "no-token-stands-out", "verdict", "address"} <= linked
    assert targets | linked <= set(anchors)
    assert {term["anchor"] for term in terms} <= targets
    assert "theory.md, section 1" in page.text  # other files are not shipped: named, not linked
    assert not [link for link in page.links if ".md" in link]


def test_the_accept_header_chooses_the_format(web: httpx.Client) -> None:
    for accept, kind in (
        ("application/json", "application/json"),
        ("text/csv;q=1", "text/csv"),
        ("image/svg+xml", "image/svg+xml"),
        ("text/html,application/json", "text/html"),
        ("*/*", "text/html"),
        ("", "text/html"),
    ):
        assert web.get("/layer/1", headers={"accept": accept}).headers["content-type"].startswith(kind)
    assert web.get("/layer/1", headers={"accept": "application/json"}).json() == web.get("/layer/1.json").json()


def test_the_json_is_that_of_the_command_line(web: httpx.Client, llama: small.Built, run: Run) -> None:
    folder = llama.atlas.path
    assert web.get("/at/L1.ff.7.json").json() == run.json("show", folder, "L1.ff.7")
    assert web.get("/at/L1.attn.2.json").json() == run.json("show", folder, "L1.attn.2")
    assert web.get("/find.json?q=babade").json() == run.json("find", folder, "babade", "-k", 20)
    assert web.get("/find.json?q=babade+babafi&k=5").json() == run.json("find", folder, "babade", "babafi", "-k", 5)
    explained = run.json("explain", llama.folder, "L1.attn.2.qk", "--offset", 3, "-k", 50)
    page = web.get("/map/L1.attn.2.qk.json?offset=3").json()
    assert [p["score"] for p in page["pairs"]] == pytest.approx([p["score"] for p in explained[0]["pairs"]], rel=1e-4)


def test_a_search_leads_to_one_thing_or_lists_several(web: httpx.Client) -> None:
    for text, place in (
        ("babade", "/token/257"),
        (" babade ", "/token/257"),
        ("L1.ff.7", "/at/L1.ff.7"),
        ("L1.attn.2.vo", "/at/L1.attn.2.vo"),
        ('" babade"', "/token/257"),
        ("#300", "/token/300"),
    ):
        answer = web.get("/find", params={"q": text})
        assert answer.status_code == 303, text
        assert answer.headers["location"].startswith(place[:7]), text
        assert web.get(answer.headers["location"]).status_code == 200
    several = web.get("/find", params={"q": "babade babafi"})
    assert "A concept" in several.text
    unknown = web.get("/find", params={"q": "Babade babafi"})
    assert unknown.status_code == 404
    assert "is not one token; it is split as" in unknown.text


def test_a_word_in_pieces_a_pattern_and_a_contrast_are_found(web: httpx.Client, llama: small.Built) -> None:
    atlas = llama.atlas
    for query, record in (
        ("babadebabafi", atlas.find("babadebabafi", k=20)),
        ("bab*", atlas.find(like="bab*", k=20)),
        ("babade -babafi", atlas.find("babade", without="babafi", k=20)),
        ('babade -"babafi"', atlas.find("babade", without="babafi", k=20)),
        ("babade bab* -babafi", atlas.find("babade", like="bab*", without="babafi", k=20)),
    ):
        assert web.get("/find.json", params={"q": query}).json() == json.loads(json.dumps(record.to_json()))
        page = Seen(web.get("/find", params={"q": query}).text)
        assert all(sentence in page.text for sentence in record.explanations)
        assert ("A concept" in page.text) is (len(record.words) > 1)
        words = [atlas.vocab.shown(word.id) for match in record.hits for word in match.words]
        assert set(words) <= set(page.chips)
        assert "faint" in page.text
        table = list(csv.DictReader(io.StringIO(web.get("/find.csv", params={"q": query}).text)))
        assert table[0]["words"] == " ".join(shown_text(word.token) for word in record.hits[0].words)
        for name in [word.text for word in record.words] if len(record.words) > 1 else []:
            assert f"z of {name}" in table[0]
    (alone,) = web.get("/find.json", params={"q": "-babade"}).json()["words"]
    assert (alone["text"], alone["against"]) == ("-babade", False)  # the first word is what is looked for
    assert web.get("/find.json", params={"q": "qqq*"}).json()["error"].startswith("The pattern 'qqq*' matches no token")


def test_a_quoted_part_of_a_search_is_taken_as_it_is() -> None:
    assert [str(part) for part in word_pages.split('a "b c" -d -"e f" "-g" - "h*" i* ** a')] == [
        *("a", '"b c"', "-d", '-"e f"', '"-g"', "-", '"h*"', "i*", "**"),
    ]
    parts = word_pages.split('"-a" -b "c*" d* "*" -e*')
    assert [(part.text, part.against, part.is_pattern) for part in parts] == [
        *(("-a", False, False), ("b", True, False), ("c*", False, False), ("d*", False, True), ("*", False, False)),
        ("e*", True, True),
    ]
    assert word_pages.replaced('x -paris "y z"', "paris", "Paris") == 'x -Paris "y z"'


def test_a_token_page_shows_words_beside_each_parameter(web: httpx.Client, llama: small.Built) -> None:
    page = Seen(web.get("/token/300").text)
    for match in llama.atlas.find_tokens([300], k=15).hits:
        assert {llama.atlas.vocab.shown(word.id) for word in match.words} <= set(page.chips)


def test_a_row_of_the_filter_is_a_row_of_the_map(web: httpx.Client, llama: small.Built) -> None:
    product = llama.lens.head_map("L1.attn.2.vo")
    page = web.get("/map/L1.attn.2.vo.json?left=%23300&k=3").json()
    scores = (product.left[300] @ product.right.T)[llama.atlas.mask("default")]
    assert [p["score"] for p in page["pairs"]] == pytest.approx(
        scores.sort(descending=True).values[:3].tolist(), rel=1e-4
    )
    assert {p["left"]["id"] for p in page["pairs"]} == {300}


# --- Bad requests -----------------------------------------------------------------------------------------------------

MISTAKES = {
    "/nope": 404,
    "/at/nonsense": 404,
    "/at/L9.ff.1": 404,
    "/at/L1.ff.4800": 404,
    "/at/L1.attn.9": 404,
    "/at/L1.ff.1?tokens=pretty": 400,
    "/at/L1.ff.1?k=0": 400,
    "/at/L1.ff.1?k=99999999999999999999": 400,
    "/layer/99": 404,
    "/layer/x": 400,
    "/layer/1/99": 404,
    "/layer/-1": 404,
    "/by/beauty/read-token": 400,
    "/by/best/read-beauty": 400,
    "/by/best/write-token": 400,
    "/token/60000": 400,
    "/token/-1": 400,
    "/token/99999999999999999999999": 400,
    "/nearest/60000": 400,
    "/tokens/99": 404,
    "/tokens/0": 404,
    "/find": 400,
    "/find?q=%20%20": 400,
    "/find?q=" + "+".join(map(str, range(17))): 400,
    "/find?q=" + "x" * 401: 400,
    "/map/L1.attn.2": 404,
    "/map/L1.attn.2.vo?offset=3": 400,
    "/map/L1.attn.2.qk?offset=three": 400,
    "/map/L1.attn.2.qk?left=babadebabade": 404,
    "/map/L1.attn.2.qk?left=%2399999": 400,
    "/near/L1.attn.2": 404,
    "/spread/L1.ff.999": 404,
    "/cloud/pos.0": 404,
    "/subheads/L1.ff.3": 404,
    "/subheads/L7.attn.0": 404,
    "/svd/L1.ff.3": 404,
    "/align": 404,
    "/diff": 404,
    "/static/../pyproject.toml": 404,
    "/static/%2e%2e/%2e%2e/errors.py": 404,
    "/help.svg": 404,
    "/help.csv": 404,
    "/at/L1.ff.%00": 404,
    "/at/" + "%E2%80%AE" * 20: 404,
    "/at/<script>alert(1)</script>": 404,
}


@pytest.mark.parametrize("path", MISTAKES)
def test_a_bad_request_is_answered_in_a_page_or_in_json(web: httpx.Client, path: str) -> None:
    page = web.get(path)
    assert page.status_code == MISTAKES[path]
    assert "Traceback" not in page.text
    if not path.endswith((".svg", ".csv")):
        seen = Seen(page.text)
        assert seen.tags.count("h1") == 1
        assert seen.tags.count("script") == 1
        assert not re.search(r"[\x00-\x08\x0e-\x1f\x7f\u202a-\u202e]", page.text)
    answer = web.get(path, headers={"accept": "application/json"})
    assert answer.status_code == MISTAKES[path]
    if not path.endswith((".svg", ".csv")):
        assert answer.json()["status"] == MISTAKES[path]
        assert answer.json()["error"]


def test_a_server_without_weights_says_how_to_give_them(llama: small.Built) -> None:
    contexts = contexts_of(llama.atlas.path)
    contexts[0].weights = None
    with serving(contexts) as address:
        page = httpx.get(f"{address}/map/L1.attn.2.qk")
        assert "The weights are not at hand" in page.text
        for path in ("/map/L1.attn.2.qk?offset=2", "/svd/L1.attn.2.vo"):
            answer = httpx.get(address + path)
            assert answer.status_code == 400
            assert "--model" in answer.text


def test_weights_of_another_model_are_refused(llama: small.Built, tmp_path_factory: pytest.TempPathFactory) -> None:
    other_model = small.built("gpt2", tmp_path_factory)
    with serving(contexts_of(llama.atlas.path, other_model.folder)) as address:
        answer = httpx.get(f"{address}/svd/L1.attn.2.vo")
        assert (answer.status_code, "other weights" in answer.text) == (400, True)


# --- Who may ask, and for what ---------------------------------------------------------------------------------------


def test_every_answer_has_its_headers(web: httpx.Client) -> None:
    for path in ("/", "/at/L1.ff.7", "/nope", "/layer/1.json", "/layer/1.svg", "/static/style.css", "/find?q=babade"):
        headers = web.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers or "uvicorn" in headers["server"]


def test_a_picture_alone_has_the_style_that_its_policy_allows(web: httpx.Client) -> None:
    answer = web.get("/layer/1.svg")
    assert re.search(r"style-src 'sha256-[A-Za-z0-9+/=]{44}'", answer.headers["content-security-policy"])
    assert "<style>" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]", "0.0.0.0"])
def test_a_foreign_host_is_refused(web: httpx.Client, host: str) -> None:
    assert web.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:8765", "localhost."])
def test_a_name_of_this_machine_is_accepted(web: httpx.Client, host: str) -> None:
    assert web.get("/help", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_only_get_and_head_are_answered(web: httpx.Client, method: str) -> None:
    answer = web.request(method, "/")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_head_is_get_without_a_body(web: httpx.Client) -> None:
    answer = web.head("/layer/1.json")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/json"


def test_requests_have_size_limits(web: httpx.Client) -> None:
    assert web.get("/at/" + "x" * 400).status_code == 414
    assert web.get("/find?q=" + "x" * 3000).status_code == 414
    assert web.request("GET", "/", content=b"a body").status_code == 413
    assert web.request("GET", "/", content=iter([b"in pieces"])).status_code == 413


def test_a_server_for_others_asks_for_its_token(llama: small.Built) -> None:
    with serving(contexts_of(llama.atlas.path), Rules(frozenset({"lab.example"}), "s3cret", addresses=True)) as address:
        for client in (httpx.Client(base_url=address), httpx.Client(base_url=address, cookies={"zeropass-token": "x"})):
            with client:
                assert client.get("/").status_code == 401
                assert client.get("/static/style.css").status_code == 401
                assert client.get("/?token=wrong").status_code == 401
                assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(f"{address}/help", headers={"authorization": "Bearer s3cret"}).status_code == 200
        assert httpx.get(
            f"{address}/help", headers={"authorization": "Bearer s3cret", "host": "lab.example"}
        ).is_success
        assert httpx.get(
            f"{address}/help", headers={"authorization": "Bearer s3cret", "host": "10.1.2.3:80"}
        ).is_success
        assert httpx.get(f"{address}/help", headers={"host": "evil.example"}).status_code == 421
        with httpx.Client(base_url=address) as client:
            welcome = client.get("/layer/1?token=s3cret&x=1")
            assert (welcome.status_code, welcome.headers["location"]) == (303, "/layer/1?x=1")
            assert {"HttpOnly", "SameSite=Strict"} <= set(welcome.headers["set-cookie"].split("; "))
            client.cookies.set("zeropass-token", "s3cret")
            assert client.get("/layer/1").status_code == 200
        away = httpx.get(f"{address}//evil.example/?token=s3cret")
        assert away.headers["location"].startswith("/evil.example")


def test_an_unfinished_request_is_not_waited_for(llama: small.Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropass.web.security.HEAD_SECONDS", 0.3)
    with serving(contexts_of(llama.atlas.path)) as address:
        place = ("127.0.0.1", int(address.rpartition(":")[2]))
        request = b"GET /help HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for sent in (b"", b"GET / HTTP/1.1\r\nHost: loc", request + b"GET / HT"):
            with socket.create_connection(place, timeout=60) as connection:
                connection.sendall(sent)
                began = time.monotonic()
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
                assert answer.startswith(b"HTTP/1.1 200") == (sent.startswith(request))
                assert time.monotonic() - began < KEEP_ALIVE / 2  # it is our deadline that closed it
        with httpx.Client(base_url=address) as client:  # a connection that asks is kept open
            for _ in range(3):
                assert client.get("/help").status_code == 200
                time.sleep(0.2)


def test_a_queue_is_served_in_order_and_drops_late_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropass.web.responder.PAGE_SECONDS", 0.2)
    go, begun = threading.Event(), list[int]()

    def work(request: PageRequest) -> int:
        begun.append(request.context)
        go.wait(60)
        return request.context

    async def ask() -> list[int | BaseException]:
        queue = WorkQueue(work, 1)
        answers = await asyncio.gather(
            *(queue.ask(PageRequest(n, print, ())) for n in range(3)), return_exceptions=True
        )
        go.set()
        return [*answers, await queue.ask(PageRequest(3, print, ()))]

    *late, last = asyncio.run(ask())
    assert [type(error) for error in late] == [TimeoutError] * 3
    assert last == 3
    assert begun == [0, 3]  # requests that nobody waits for any more are not begun


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # pytest has other threads
def test_children_do_jobs_in_parallel_and_report_errors() -> None:
    def work(job: str) -> Any:
        if job == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "bad":
            raise BadAddress("no such thing")
        if job == "worse":
            raise json.JSONDecodeError("secret", "doc", 0)  # an error that cannot be sent as it is
        return job, os.getpid()

    with forked(2, 2, work, lambda: None) as (first, second):
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(first, map(str, range(50)))) + list(pool.map(second, map(str, range(50))))
        assert [job for job, _ in answers] == [str(n) for n in range(50)] * 2
        children = {child for _, child in answers}
        assert len(children) == 2
        assert os.getpid() not in children
        with pytest.raises(BadAddress, match="no such thing"):
            first("bad")
        with pytest.raises(RuntimeError, match="secret") as caught:
            first("worse")
        assert "in work" in caught.value.__notes__[0]
        for _ in children:
            with pytest.raises(RuntimeError, match="ended"):
                first("die")
        for lane in (first, second):  # with no children left, this process does the job
            assert [lane("alone") for _ in range(3)] == [("alone", os.getpid())] * 3
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_page_that_takes_too_long_is_given_up(llama: small.Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropass.web.responder.PAGE_SECONDS", 0.2)
    monkeypatch.setattr("zeropass.web.pages.model_pages.help_page", lambda context: time.sleep(1))
    with serving(contexts_of(llama.atlas.path)) as address:
        started = time.monotonic()
        answer = httpx.get(f"{address}/help")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert time.monotonic() - started < 0.9


def test_an_unexpected_error_is_a_page_and_a_line_on_the_terminal(
    llama: small.Built, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(context: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("zeropass.web.pages.model_pages.help_page", broken)
    with serving(contexts_of(llama.atlas.path)) as address:
        answer = httpx.get(f"{address}/help")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "RuntimeError: secret" in capfd.readouterr().err


def test_a_cache_keeps_the_latest() -> None:
    cache = Cache(20)
    for key in (1, 2, 1, 3):
        if cache.get(key) is None:
            cache.put(key, b"x" * 10)
    assert [cache.get(key) is not None for key in (1, 2, 3)] == [True, False, True]
    cache.put("large", b"x" * 50)  # too large to be kept, and it displaces all others
    assert [cache.get(key) for key in (1, 3, "large")] == [None] * 3


# --- Hostile and damaged atlases --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_web(hostile: small.Built) -> Iterator[httpx.Client]:
    with serving(contexts_of(hostile.atlas.path, hostile.folder)) as address, httpx.Client(base_url=address) as client:
        yield client


HARMFUL = ("/", "/layer/0", "/at/L0.ff.7?k=500&tokens=all", "/at/L0.attn.2", "/map/L0.attn.2.vo", "/svd/L0.attn.2.vo")
HARMFUL += ("/near/L0.ff.7", "/spread/L0.ff.7", "/cloud/L0.ff.7", "/tokens", "/tokens/2", "/subheads/L0.attn.1")
HARMFUL += ("/help", "/glossary")
HARMFUL += tuple(f"/token/{i}" for i in range(small.V - 10 - len(small.HOSTILE), small.V - 10))
HARMFUL += tuple(f"/nearest/{i}" for i in range(small.V - 10 - len(small.HOSTILE), small.V - 10))
UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
TAGS = set(
    re.findall(
        "[a-z0-9]+",
        """a abbr b body button circle code dd defs details div dl dt em fieldset figure footer form g h1 h2 h3 head
        header html i input kbd label legend li link main meta nav output p path rect script section
        small span strong summary svg table tbody td text th thead title tr ul use""",
    )
)


@pytest.mark.parametrize("path", HARMFUL)
def test_no_token_breaks_out_of_a_page(hostile_web: httpx.Client, path: str) -> None:
    answer = hostile_web.get(path)
    assert answer.status_code == 200
    seen = Seen(answer.text)
    assert set(seen.tags) <= TAGS
    assert all(value.startswith("#mark") for tag, name, value in seen.attributes if (tag, name) == ("use", "href"))
    assert seen.tags.count("script") == 1
    assert not [
        (name, value) for _, name, value in seen.attributes if name.startswith("on") or "javascript:" in value.lower()
    ]
    assert not UNSEEN.search(answer.text.replace("\n", ""))
    assert max(map(len, seen.chips), default=0) < 60
    picture = hostile_web.get(other(path, "svg"))
    if picture.status_code == 200:
        assert "<script" not in picture.text
        assert not UNSEEN.search(picture.text.replace("\n", ""))


def test_hostile_tokens_are_all_shown(hostile_web: httpx.Client) -> None:
    shown = [chip for page in ("/tokens", "/tokens/2") for chip in Seen(hostile_web.get(page).text).chips]
    for text in ("<script>alert(1)</script>", r"\u202eabc\u202c", r"\x1b[31mred\x1b[0m", "{0} %s {{"):
        assert text in shown
    assert "x" * 39 + "…" in shown


def test_a_spreadsheet_takes_no_token_for_a_formula(hostile_web: httpx.Client) -> None:
    for line in hostile_web.get("/tokens.csv").text.splitlines():
        assert not re.search(r'(^|,)"?[=@]', line)


def test_a_hostile_name_is_only_text(hostile: small.Built, tmp_path: Path) -> None:
    folder = shutil.copytree(hostile.atlas.path, tmp_path / "atlas")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["name"] = "</title><script>alert(1)</script>\u202e" + "y" * 5000
    manifest["model"]["family"] = "<img src=x onerror=alert(1)>"
    manifest["tokens_hidden"]["default"]["<b>why</b>"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with serving(contexts_of(folder)) as address:
        for path in ("/", "/layer/0", "/at/L0.ff.1", "/at/nonsense"):
            answer = httpx.get(address + path)
            seen = Seen(answer.text)
            assert set(seen.tags) <= TAGS
            assert seen.tags.count("script") == 1
            assert not UNSEEN.search(answer.text.replace("\n", ""))
            assert len(answer.text) < 500_000


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


DAMAGE: dict[str, tuple[Any, str]] = {
    "truncated parameters": (lambda f: cut(f / "parameters.parquet"), "/"),
    "truncated tokens": (lambda f: cut(f / "tokens.parquet"), "/tokens"),
    "truncated hits": (lambda f: cut(f / "hits.parquet"), "/token/300"),
    "truncated lists": (lambda f: cut(f / "lists" / "L0.gate.parquet"), "/at/L0.ff.1"),
    "no lists": (lambda f: (f / "lists" / "L0.gate.parquet").unlink(), "/at/L0.ff.1"),
    "truncated pairs": (lambda f: cut(f / "pairs" / "L0.vo.parquet"), "/at/L0.attn.1"),
    "truncated vectors": (lambda f: cut(f / "vectors" / "L0.gate.npy"), "/near/L0.ff.1"),
    "no rows": (lambda f: shutil.rmtree(f / "rows"), "/spread/L0.ff.1"),
    "no moments": (lambda f: [p.unlink() for p in (f / "rows").glob("*.moments.npy")], "/near/L0.ff.1"),
    "no rows to be near in": (lambda f: shutil.rmtree(f / "rows"), "/nearest/300"),
    "parquet of something else": (
        lambda f: shutil.copy(f / "tokens.parquet", f / "parameters.parquet"),
        "/",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_atlas_is_reported_in_a_page(hostile: small.Built, tmp_path: Path, name: str) -> None:
    harm, path = DAMAGE[name]
    folder = shutil.copytree(hostile.atlas.path, tmp_path / "atlas")
    harm(folder)
    with serving(contexts_of(folder)) as address:
        answer = httpx.get(address + path)
        assert answer.status_code == 500
        assert "Traceback" not in answer.text
        assert Seen(answer.text).tags.count("h1") == 1
        assert httpx.get(f"{address}/help").status_code in (200, 500)
        as_json = httpx.get(address + path, headers={"accept": "application/json"})
        assert re.search("cannot (be read|use this)|build it again", as_json.json()["error"])


@pytest.mark.parametrize("harm", ["schema", "manifest", "missing", "unfinished", "nothing"])
def test_a_folder_that_is_no_atlas_ends_with_a_message(hostile: small.Built, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "atlas"
    if harm != "nothing":
        shutil.copytree(hostile.atlas.path, folder)
    if harm == "schema":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 2}))
    elif harm == "manifest":
        (folder / "manifest.json").write_text("[]")
    elif harm == "missing":
        (folder / "hits.parquet").unlink()
    elif harm == "unfinished":
        (folder / "manifest.json").unlink()
    for command in (("serve", folder), ("export", folder, tmp_path / "site")):
        done = shell(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


# --- The command line -------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_refused(llama: small.Built) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = shell("serve", llama.atlas.path, "--port", taken.getsockname()[1])
    assert (done.returncode, "cannot be used" in done.stderr) == (2, True)


def test_a_host_of_another_machine_is_refused(llama: small.Built) -> None:
    done = shell("serve", llama.atlas.path, "--host", "203.0.113.7", "--port", 0)
    assert (done.returncode, "cannot be used" in done.stderr) == (2, True)


def test_the_server_prints_its_address_without_torch_and_ends_on_ctrl_c(llama: small.Built) -> None:
    code = (
        "import sys, zeropass as zp\n"
        f"contexts = zp.open_sources(zp.Sources(__import__('pathlib').Path({str(llama.atlas.path)!r})))\n"
        "contexts[0].atlas.find('babade')\n"  # the processes that make the pages cannot use its connection
        "def say(address):\n"
        "    print(address, 'torch' in sys.modules, flush=True)\n"
        "zp.serve(contexts, port=0, say=say)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        assert server.stdout is not None
        address, torch = server.stdout.readline().split()
        assert torch == "False"
        assert httpx.get(f"{address}at/L1.ff.7").status_code == 200
        server.send_signal(signal.SIGINT)  # Ctrl-C
        assert server.wait(10) == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_several_processes_answer_and_end_together(llama: small.Built, how: signal.Signals) -> None:
    line = [sys.executable, "-m", "zeropass", "serve", str(llama.atlas.path), "--port", "0", "--processes", "3"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        try:
            children = _children(server.pid, 3)
            for neuron in range(12):
                assert httpx.get(f"{address}at/L1.ff.{neuron}").status_code == 200
            server.send_signal(how)
            server.wait(20)
        finally:
            server.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


def _children(parent: int, count: int) -> list[str]:
    """Return the children of a process, once there are so many."""
    children: list[str] = []
    deadline = time.monotonic() + 20
    while len(children) < count and time.monotonic() < deadline:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        time.sleep(0.05)
    assert len(children) == count
    return children


def test_a_server_open_to_others_prints_a_token(llama: small.Built) -> None:
    line = [sys.executable, "-m", "zeropass", "serve", str(llama.atlas.path), "--host", "0.0.0.0", "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0].replace("0.0.0.0", "127.0.0.1")
        assert "?token=" in address
        assert httpx.get(address.partition("?")[0]).status_code == 401
        with httpx.Client(follow_redirects=True) as client:
            assert client.get(address).status_code == 200
        server.terminate()
        server.wait(10)


def test_only_models_of_this_machine_are_opened_unasked(llama: small.Built, tmp_path: Path) -> None:
    assert local_name(llama.atlas) == str(llama.folder)
    for name in ("someone/model", "/etc/passwd", "https://example.org/x.gguf", str(tmp_path)):
        atlas = zp.Atlas(tmp_path, {**llama.atlas.manifest, "model": {**llama.atlas.model, "name": name}})
        assert local_name(atlas) is None


def test_an_extra_that_is_missing_is_named(llama: small.Built) -> None:
    code = (
        "import sys\n"
        "sys.modules['fastapi'] = None\n"
        "sys.argv = ['zeropass', 'serve', sys.argv[1]]\n"
        "from zeropass.cli import main as cli\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(llama.atlas.path)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert (done.returncode, "zeropass[web]" in done.stderr) == (2, True)
