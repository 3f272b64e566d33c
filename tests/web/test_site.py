"""The links of the explorer: each leads somewhere, and the server and the static site say the same."""

import json
import posixpath
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import httpx
import pytest
import torch
from test_server import ENVIRONMENT, other

import dictionaries
import small
import zeropass as zp
from serving import Seen, contexts_of, links_of, serving
from zeropass.atlas.highlights import highlights_of
from zeropass.errors import BadOption
from zeropass.web.context import Context
from zeropass.web.load import Sources, open_sources

SIZES = {"V": 300, "D": 16, "NEURONS": 12, "HEADS": 2, "KV_HEADS": 1}
FORMS = (".json", ".csv", ".svg")
EVERY = 15
"""One page in so many is asked for in its other formats too, and with the questions that may follow its address."""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    """Build the smallest atlas: one layer of a few neurons and two heads, and tokens that try to do harm."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setattr(small, name, value)
        model = small.llama(folder / "model", hostile=small.HOSTILE, layers=1, biases=True)
    atlas = small.build(model, folder / "atlas", zp.Options(k=5, pairs=5))
    return small.Built(model, zp.load(str(model)), atlas)


@pytest.fixture(scope="module")
def site(atlas: small.Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export all of it as files."""
    folder = tmp_path_factory.mktemp("site") / "site"
    zp.export_site(contexts_of(atlas.atlas.path), folder, zp.Chosen(most=None, tokens=None))
    return folder


def crawl(client: httpx.Client, start: str = "/") -> Iterator[str]:
    """Visit every page that links lead to; each must be there."""
    seen, todo, count = {start}, deque([start]), 0
    while todo:
        path = todo.popleft()
        answer = client.get(path, follow_redirects=True)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        count += 1
        if "html" not in answer.headers["content-type"]:
            continue
        yield path
        for link in links_of(answer.text):
            target = urljoin(path, link)
            assert not urlsplit(target).netloc, f"{path} leads elsewhere: {link}"
            beyond = "?" in target or target.endswith(FORMS)
            if target not in seen and (not beyond or count % EVERY == 0):
                seen.add(target)
                todo.append(target)


def test_every_link_of_the_server_leads_to_a_page(atlas: small.Built) -> None:
    with serving(contexts_of(atlas.atlas.path, atlas.folder)) as address, httpx.Client(base_url=address) as client:
        pages = set(crawl(client))
    for kind in ("layer", "at", "map", "svd", "subheads", "near", "spread", "cloud", "token", "nearest", "by"):
        assert any(path.startswith(f"/{kind}/") for path in pages), kind
    assert {"/help", "/glossary", "/tokens"} <= pages
    assert "/outside" not in pages  # this atlas has nothing there, so nothing leads to an empty page
    every = atlas.atlas.mask("all")
    assert sum(path.startswith("/token/") for path in pages) == len(every)
    neurons = {f"/at/L0.ff.{i}" for i in range(SIZES["NEURONS"])}
    columns = {f"/at/L0.attn.{head}.{role}.{i}" for head in range(2) for role in "qo" for i in range(8)}
    assert neurons | columns <= pages


def test_the_first_page_begins_with_what_says_most(atlas: small.Built) -> None:
    highlights = highlights_of(atlas.atlas)
    with serving(contexts_of(atlas.atlas.path)) as address, httpx.Client(base_url=address) as client:
        first, begin = client.get("/").text, client.get("/index.json").json()["begin"]
        mapped = client.get("/by/strength/write-output").text
    assert [*begin["units"].values()] == [*highlights.units.values()]
    addresses = [name for part in highlights.units.values() for name in part]
    assert addresses
    assert [first.index(f">{name}<") for name in addresses] == sorted(first.index(f">{name}<") for name in addresses)
    assert first.index(f">{addresses[0]}<") < first.index("How telling the words of each part are")
    assert ("How a token goes through the model" in first, "How a token goes through the model" in mapped) == (
        True,
        False,
    )
    assert all(f'href="/token/{i}">{word}<' in first for word, i in highlights.words.items())


def test_lists_that_say_little_are_folded(tmp_path_factory: pytest.TempPathFactory) -> None:
    atlas = small.built("llama", tmp_path_factory)
    records = {name: atlas.atlas.explain(name) for name in (f"L1.ff.{n}" for n in range(small.NEURONS))}
    mixed = next(name for name, of in records.items() if 0 < sum(record.says_little for record in of) < len(of))
    with serving(contexts_of(atlas.atlas.path)) as address, httpx.Client(base_url=address) as client:
        before, _, folded = client.get(f"/at/{mixed}").text.partition("<details")
    little = sum(record.says_little for record in records[mixed])
    assert before.count('<section class="list') == len(records[mixed]) - little
    assert folded.partition("</details>")[0].count('<section class="list pale') == little


def files_of(site: Path) -> set[str]:
    return {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}


def targets(site: Path, name: str, there: set[str]) -> set[str]:
    """Return the files that a page of a site leads to; each must exist, and be named relative to the page."""
    names = set()
    for link in links_of((site / name).read_text(encoding="utf-8")):
        assert not link.startswith("/"), f"{name} leads to {link}"
        assert "?" not in link, f"{name} asks {link}"
        names.add(posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(link))))
        assert names <= there, f"{name} leads to {link}"
    return names


def test_every_link_of_the_static_site_is_a_file(site: Path) -> None:
    there = files_of(site)
    pages = sorted(name for name in there if name.endswith(".html"))
    assert len(pages) > 800
    linked = {"index.html"}
    for name in pages:
        linked |= targets(site, name, there)
    assert {name for name in there if not name.startswith("static/")} <= linked  # and every file is reached
    assert not [name for name in there if name.endswith(".part")]


def test_the_static_site_says_what_the_server_says(atlas: small.Built, site: Path) -> None:
    pages = sorted(path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html"))
    with serving(contexts_of(atlas.atlas.path)) as address, httpx.Client(base_url=address) as client:
        for path in pages[::9]:
            asked = "/" if path == "index" else f"/{path}"
            for kind in ("json", "csv"):
                file = site / f"{path}.{kind}"
                answer = client.get(other(asked, kind))
                assert file.exists() == (answer.status_code == 200), (path, kind)
                if file.exists():
                    assert file.read_bytes() == answer.content, (path, kind)
            live, static = Seen(client.get(asked).text), Seen((site / f"{path}.html").read_text(encoding="utf-8"))
            assert live.chips == static.chips, path
            assert live.tags.count("svg") == static.tags.count("svg"), path
            picture = site / f"{path}.svg"
            if picture.exists():
                drawn = Seen(client.get(other(asked, "svg")).text)
                assert drawn.text == Seen(picture.read_text(encoding="utf-8")).text


def test_a_static_page_carries_its_policy(site: Path) -> None:
    for name in ("index.html", "token/260.html"):
        page = Seen((site / name).read_text(encoding="utf-8"))
        policies = [value for tag, attribute, value in page.attributes if tag == "meta" and "default-src" in value]
        assert len(policies) == 1
        assert "unsafe" not in policies[0]


def test_the_search_of_a_site_knows_its_tokens(atlas: small.Built, site: Path) -> None:
    tokens = json.loads((site / "static" / "tokens.json").read_text(encoding="utf-8"))
    assert tokens[" babade"] == atlas.atlas.vocab.find(" babade")[0]
    assert all((site / "token" / f"{i}.html").exists() for i in tokens.values())


def test_a_partial_site_shows_the_rest_as_text(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    built = small.built("llama", tmp_path_factory)
    count = zp.export_site(contexts_of(built.atlas.path), tmp_path / "site", zp.Chosen((1, 2), most=3, tokens=5))
    there = files_of(tmp_path / "site")
    pages = [name for name in there if name.endswith(".html")]
    assert len(pages) == count
    shown = {*built.atlas.strongest(built.atlas.unit_roles, (1, 2), k=3)}
    shown |= {name for part in highlights_of(built.atlas).units.values() for name in part if name.startswith("L1.")}
    assert {name for name in pages if name.startswith("at/L1.ff.")} == {f"at/{address}.html" for address in shown}
    assert len([name for name in pages if name.startswith("token/")]) == 5
    assert not [name for name in pages if "L0" in name or "L2" in name]
    for name in pages:
        targets(tmp_path / "site", name, there)


def test_an_export_that_cannot_be_made_is_refused(atlas: small.Built, tmp_path: Path) -> None:
    contexts = contexts_of(atlas.atlas.path)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(BadOption, match="exists"):
            zp.export_site(contexts, place)
    with pytest.raises(BadOption, match="out of range"):
        zp.export_site(contexts, tmp_path / "site", zp.Chosen((0, 9)))
    with pytest.raises(BadOption, match="cannot be written"):
        zp.export_site(contexts, tmp_path / "file" / "site")
    assert not (tmp_path / "site").exists()


def test_a_stopped_export_leaves_no_site_and_continues(
    atlas: small.Built, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [sys.executable, "-m", "zeropass", "export", str(atlas.atlas.path), str(tmp_path / "site"), "--all"]
    part = tmp_path / ".site.part"
    with subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        while run.poll() is None and len(list(part.rglob("*.html"))) < 30:
            time.sleep(0.02)
        run.kill()
    assert not (tmp_path / "site").exists()
    left = sorted(part.rglob("*.html"))
    times = {path: path.stat().st_mtime_ns for path in left}
    contexts = contexts_of(atlas.atlas.path)
    zp.export_site(contexts, tmp_path / "site", zp.Chosen(most=None, tokens=None))
    assert not part.exists()
    names = [path.relative_to(part) for path in left]
    assert [(tmp_path / "site" / n).stat().st_mtime_ns for n in names] == list(times.values())
    here, there = files_of(tmp_path / "site"), files_of(site)
    assert {name for name in here if ".part" not in name} == there
    assert all((tmp_path / "site" / name).read_bytes() == (site / name).read_bytes() for name in sorted(there)[::40])


# --- Two models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Context]:
    """Open two small models, their alignment, and a fine-tune of the first."""
    folder = tmp_path_factory.mktemp("two")
    built = small.built("llama", tmp_path_factory)
    second = small.llama(folder / "second", seed=1, biases=True)
    small.build(second, folder / "second-atlas")
    with small.one_thread():
        models = zp.open_model(str(built.folder)), zp.open_model(str(second))
        zp.align_models(*models, folder / "alignment")
        tuned = zp.open_model(str(small.tuned(built.folder, folder / "tuned")))
        zp.write_diff(zp.compare(models[0], tuned, watch=["babade", "babafi"]), folder / "diff")
    return open_sources(
        Sources(
            built.atlas.path,
            second=folder / "second-atlas",
            alignment=folder / "alignment",
            diff=folder / "diff",
        )
    )


def test_two_models_are_shown_side_by_side(two: list[Context]) -> None:
    pairing = two[0].matches("L1.ff.7")[0]
    with serving(two) as address, httpx.Client(base_url=address) as client:
        summary = client.get("/align.json").json()
        assert summary["matches"]["neuron"]["all"] == small.LAYERS * small.NEURONS
        assert "<svg" in client.get("/align").text
        page = Seen(client.get("/align/1").text)
        rows = client.get("/align/1.json").json()
        assert [row["effect"] for row in rows] == sorted((row["effect"] for row in rows), reverse=True)
        assert any(link.startswith("/second/at/L") for link in page.links)
        assert any(link.startswith("/at/L1.") for link in page.links)
        here = Seen(client.get("/at/L1.ff.7").text)
        assert f"/second/at/{pairing.second}" in here.links
        assert f"{pairing.score:.3f}" in here.text
        there = Seen(client.get(f"/second/at/{pairing.second}").text)
        assert "/at/L1.ff.7" in there.links
        for path in ("/second/", "/second/layer/1", "/second/token/300", "/second/find?q=babade+babafi"):
            assert client.get(path).status_code == 200
        assert client.get("/second/find?q=babade").headers["location"].startswith("/second/token/")
        assert client.get("/align/99").status_code == 404
        assert client.get("/second/nope").status_code == 404


def test_a_difference_is_a_page(two: list[Context]) -> None:
    with serving(two) as address, httpx.Client(base_url=address) as client:
        page = Seen(client.get("/diff").text)
        assert "Matrices that changed most" in page.text
        assert "/at/" in "".join(page.links)
        assert len(client.get("/diff.csv").text.splitlines()) > 10
        assert client.get("/diff.svg").text == (two[1].atlas.path.parent / "diff" / "where.svg").read_text("utf-8")
        assert client.get("/diff.json").json()["schema"] == 2
        for part in ("Tables, norms and biases", "unembedding", "Watched words", "babade"):
            assert part in page.text


def test_a_difference_of_an_earlier_version_is_a_page(two: list[Context]) -> None:
    assert two[0].diff is not None
    older = {name: value for name, value in two[0].diff.items() if name not in ("tables", "words", "relation")}
    older["watch"] = [{"layer": 0, "role": "k", "effect": 56.0, "above": 0.16}]
    with serving([replace(two[0], diff=older), *two[1:]]) as address, httpx.Client(base_url=address) as client:
        page = Seen(client.get("/diff").text)
        assert "L0 k" in page.text
        assert "Tables, norms and biases" not in page.text


def test_two_models_are_exported_as_a_static_site(two: list[Context], tmp_path: Path) -> None:
    zp.export_site(two, tmp_path / "site", zp.Chosen((1, 2), most=2, tokens=5))
    there = files_of(tmp_path / "site")
    assert {"align.html", "align/1.html", "diff.html", "second/index.html", "static/second-tokens.json"} <= there
    for name in (name for name in there if name.endswith(".html")):
        targets(tmp_path / "site", name, there)


HARM: dict[str, Callable[[Path], object]] = {
    "no file": lambda f: (f / "diff.json").unlink(),
    "no JSON": lambda f: (f / "diff.json").write_text("{"),
    "a list": lambda f: (f / "diff.json").write_text("[]"),
    "other schema": lambda f: (f / "diff.json").write_text('{"schema": 7}'),
    "missing parts": lambda f: (f / "diff.json").write_text('{"schema": 2, "base": {}}'),
    "wrong parts": lambda f: (f / "diff.json").write_text(
        json.dumps(json.loads((f / "diff.json").read_text()) | {"sees": "nothing"})
    ),
}


@pytest.mark.parametrize("name", HARM)
def test_a_damaged_difference_is_named(two: list[Context], tmp_path: Path, name: str) -> None:
    (tmp_path / "diff.json").write_text(json.dumps(two[0].diff))
    HARM[name](tmp_path)
    with pytest.raises(BadOption, match=r"diff\.json"):
        open_sources(Sources(two[0].atlas.path, diff=tmp_path))


@pytest.mark.parametrize("part", ["matrices", "neurons", "sees"])
def test_a_difference_of_nonsense_is_named(two: list[Context], tmp_path: Path, part: str) -> None:
    (tmp_path / "diff.json").write_text(json.dumps({**(two[0].diff or {}), part: [{"<script>": 1}]}))
    with pytest.raises(BadOption, match=rf"diff\.json does not hold a difference .*it\.{part}\[0\]"):
        open_sources(Sources(two[0].atlas.path, diff=tmp_path))


def test_files_that_do_not_belong_together_are_refused(two: list[Context], tmp_path: Path) -> None:
    first, second = two
    (tmp_path / "diff.json").write_text(json.dumps({**(first.diff or {}), "base": {"name": "x", "sha256": "0" * 64}}))
    with pytest.raises(BadOption, match="other weights"):
        open_sources(Sources(first.atlas.path, diff=tmp_path))
    folder = second.atlas.path.parent / "alignment"
    with pytest.raises(BadOption, match="the first model"):
        open_sources(Sources(second.atlas.path, alignment=folder))
    with pytest.raises(BadOption, match="the second model"):
        open_sources(Sources(first.atlas.path, second=first.atlas.path, alignment=folder))


def test_an_atlas_of_a_change_is_served_too(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    built = small.built("llama", tmp_path_factory)
    with small.one_thread():
        models = zp.open_model(str(built.folder)), zp.open_model(str(small.llama(tmp_path / "m", seed=1, biases=True)))
        zp.build_change(*models, tmp_path / "change", zp.Options(k=15, pairs=30, layers=(1, 2)))
    with serving(contexts_of(tmp_path / "change")) as address, httpx.Client(base_url=address) as client:
        assert "What a fine-tune changed" in client.get("/").text
        for path in ("/layer/1", "/at/L1.ff.7", "/near/L1.ff.7", "/spread/L1.ff.7", "/map/L1.attn.2.vo", "/token/300"):
            assert client.get(path).status_code == 200, path
        assert client.get("/svd/L1.attn.2.vo").status_code == 400
        assert client.get("/layer/0").status_code == 404


def test_an_atlas_of_features_is_served_and_exported_too(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setattr(small, name, value)
        model = zp.open_model(small.llama(tmp_path / "model"))
    encoders, decoders = torch.randn(2, 20, SIZES["D"], generator=torch.Generator().manual_seed(0))
    folder = dictionaries.saelens(tmp_path / "features", encoders, decoders)
    zp.build(model, tmp_path / "atlas", zp.Options(k=12), lens=None, features=folder)
    with serving(contexts_of(tmp_path / "atlas")) as address, httpx.Client(base_url=address) as client:
        pages = set(crawl(client))
        assert {f"/at/L1.sae.{i}" for i in range(20)} <= pages
        assert any(path.startswith("/near/L1.sae.") for path in pages)
        layer = client.get("/layer/1").text
        assert "Features" in layer
        assert "Neurons" not in layer
        assert "Features of a dictionary" in client.get("/at/L1.sae.3").text
    zp.export_site(contexts_of(tmp_path / "atlas"), tmp_path / "site", zp.Chosen(most=None, tokens=3))
    there = files_of(tmp_path / "site")
    assert "at/L1.sae.3.html" in there
    for name in (name for name in there if name.endswith(".html")):
        targets(tmp_path / "site", name, there)
