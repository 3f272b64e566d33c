"""The report on evidence: a page that holds together, whatever the evidence holds."""

import math
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from zeropass.evidence.figures import figures, svg, trust
from zeropass.evidence.list_types import Kind, kinds
from zeropass.evidence.render import html, layer_runs, standings, summary, table_list, tables
from zeropass.evidence.results import EVERY_LAYER, Evidence, Null, Result

HOSTILE = "<script>alert(1)</script>"
FRAMES = ("token", "output", "paper")
VOID = {"meta", "br", "hr", "img", "link", "input"}


def null(name: str, gap: float, value: float) -> Null:
    return Null(name, value - gap, 0.1, value - gap - 0.02, value - gap + 0.02, 40, gap - 0.03, gap + 0.03, gap / 0.1)


def result(measure: str, layer: int, role: str, frame: str, target: str, metric: str) -> Result:
    """Return a result whose value and distance from its nulls depend on its names alone."""
    draw = random.Random(f"{measure}{layer}{role}{frame}{target}{metric}")
    value, gap = draw.uniform(0, 0.8), draw.choice((0.0, 0.2))
    nulls = tuple(null(name, gap, value) for name in ("permuted", "rotated", "noise"))
    return Result(measure, layer, role, frame, target, metric, 40, value, 0.1, value - 0.04, value + 0.04, nulls)


def results(layers: range | tuple[int, ...]) -> list[Result]:
    listed = []
    for n in layers:
        listed += [
            result("states", n, role, f, target, "recall")
            for role in ("gate", "o")
            for f in FRAMES
            for target in ("same layer", "final")
        ]
        listed += [result("pairs", n, role, f, "jaccard", "jaccard") for role in ("gate-up", "v-o") for f in FRAMES]
        listed += [
            result("reading", n, role, f, target, metric)
            for role in ("gate", "up", "k")
            for f in (*FRAMES, "embedded", "token.mlp", "token.raw", "output.raw", "paper.inverse")
            for target in ("current", "next", "predicted")
            for metric in ("spearman", "top-k")
        ]
        listed += [result("reading", n, "gate", f, "positions", "position") for f in FRAMES]
        listed += [
            result(measure, n, role, f, "logits", metric)
            for measure, role, frames in (
                ("writing", "value", FRAMES[1:]),
                ("writing", "o", FRAMES[1:]),
                ("promotes", "vo", ("token", "paper", "token.raw")),
            )
            for f in frames
            for metric in ("spearman", "top-k")
        ]
        listed += [
            result("attention", n, "qk", f, target, "spearman")
            for f in ("token", "paper")
            for target in ("offset 0", "true offsets", "mean of 0..16")
        ]
    return listed


def inverse_results() -> list[Result]:
    listed = [
        result("inverses", EVERY_LAYER, kind, "paper", f"{name}, k={k}", "correlation")
        for kind in ("value", "state", "noise")
        for name in ("transpose", "pseudo-inverse")
        for k in (10, 1000, 49152)
    ]
    return [replace(row, nulls=()) for row in listed]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """Return two layers of every measure, with some of it missing, and with names that look like markup."""
    rows = [*results((0, 1)), *inverse_results()]
    rows = [r for r in rows if not (r.layer == 1 and r.role in ("up", "o"))]  # a gap
    rows[3] = replace(rows[3], value=math.nan, low=math.nan, high=math.nan, nulls=())
    rows = [replace(r, nulls=r.nulls[:1]) if r.role == "k" else r for r in rows]
    rows.append(result("reading", 0, "gate", f"token.{HOSTILE}", "current", "spearman"))
    rows.append(result("states", 0, "$\\frac{$|\x00\u4e16", "token", "same layer", "recall"))
    return Evidence(
        {"name": HOSTILE, "layers": 2, "family": "llama"},
        {"date": "2026-01-02", "text": f'{HOSTILE}" onload="x', "tokens": 20000, "seed": 0, "versions": {"torch": "2"}},
        tuple(rows),
        {"promotes": HOSTILE},
        (f"A note {HOSTILE}",),
    )


@pytest.fixture(scope="module")
def page(evidence: Evidence) -> str:
    return html(evidence)


class Checker(HTMLParser):
    """A parser that keeps the tags of a page and fails on one that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_well_formed_and_its_ids_are_unique(page: str) -> None:
    checker = parsed(page)
    ids = Counter(attributes["id"] for _, attributes in checker.tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    used = {str(value) for _, a in checker.tags for name, value in a.items() if name in ("href", "xlink:href")}
    used |= {f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", page)}
    assert used
    assert {name[1:] for name in used} <= ids.keys()


def test_hostile_names_stay_text(page: str) -> None:
    assert "<script" not in page.lower()
    assert "&lt;script&gt;" in page
    names = {name for _, attributes in parsed(page).tags for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert "\x00" not in page


def test_nothing_is_loaded(page: str) -> None:
    for tag, attributes in parsed(page).tags:
        assert tag not in {"link", "script", "iframe", "object", "embed", "image", "img", "base"}
        for name in ("src", "href", "xlink:href"):
            assert str(attributes.get(name, "#")).startswith("#"), f"{tag} {name}"
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_each_figure_is_one_svg_with_words(page: str) -> None:
    tags = parsed(page).tags
    drawn = [attributes for tag, attributes in tags if tag == "svg"]
    names = re.findall(r'<figure id="figure-([a-z-]+)"', page)
    assert (
        len(drawn) == len(names) == sum(tag == "figure" for tag, _ in tags) == sum(t == "figcaption" for t, _ in tags)
    )
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)
    layered = ["states", "states-final", "pairs", "reading", "writing", "promotes", "attention"]
    assert names == ["trust", *layered, "frames", "inverses", "offsets"]


def test_tables_have_headers_with_scope(page: str) -> None:
    heads = [attributes for tag, attributes in parsed(page).tags if tag == "th"]
    assert heads
    assert {attributes.get("scope") for attributes in heads} == {"col", "row"}


def test_the_verdict_comes_before_the_figures_and_the_gaps_last(page: str) -> None:
    order = [page.index(f'id="{name}"') for name in ("measured", "verdict", "figures", "tables", "left-out")]
    assert order == sorted(order)
    assert "20,000" in page


def test_the_same_evidence_gives_the_same_page(evidence: Evidence) -> None:
    few = replace(evidence, results=(*evidence.select(measure="attention"), *evidence.select(measure="inverses")))
    assert html(few) == html(Evidence.from_json(few.to_json()))


@pytest.mark.parametrize("left_out", [{}, {"states": "The text is too short."}])
def test_empty_evidence_says_so(left_out: dict[str, str]) -> None:
    empty = Evidence({}, {}, (), left_out)
    page = html(empty)
    parsed(page)
    assert "There is nothing to draw." in page
    assert tables(empty) == {}
    assert lines(empty)
    assert "Nothing" not in svg(trust(empty))  # letters are outlines
    assert all(why in page for why in left_out.values())


@pytest.mark.parametrize("measure", ["states", "pairs", "inverses", "reading", "writing", "promotes", "attention"])
def test_a_measure_stands_alone(measure: str, evidence: Evidence) -> None:
    alone = replace(evidence, results=evidence.select(measure=measure))
    parsed(html(alone))
    assert tables(alone)
    assert len(lines(alone)) < 40


def test_results_without_nulls_or_numbers_do_not_fail() -> None:
    some = [r for r in results((0,)) if r.measure in ("writing", "attention", "pairs")]
    bare = [replace(r, nulls=(), value=math.nan, low=math.nan, high=math.nan) for r in some]
    odd = [replace(inverse_results()[0], target="transpose"), replace(inverse_results()[0], target="x, k=0")]
    evidence = Evidence({"layers": "many"}, {"text": None}, (*bare, *odd))
    parsed(html(evidence))
    assert {verdict.words for verdict in standings(evidence)} == {"no layer"}


def test_figures_are_reproducible(evidence: Evidence) -> None:
    few = replace(evidence, results=evidence.select(measure="attention"))
    drawn = {drawing.name: drawing.svg() for drawing in figures(few)}
    assert list(drawn) == ["trust", "attention", "frames", "offsets"]
    assert {ElementTree.fromstring(text).tag[-4:] for text in drawn.values()} == {"}svg"}
    assert drawn == {drawing.name: drawing.svg() for drawing in figures(few)}


def lines(evidence: Evidence) -> list[str]:
    console = Console(width=100, record=True, file=open("/dev/null", "w"), force_terminal=False)  # noqa: SIM115, PTH123
    with console.file:
        console.print(summary(evidence))
    return console.export_text().splitlines()


def test_the_summary_is_short(evidence: Evidence) -> None:
    shown = lines(evidence)
    assert len(shown) < 40
    assert max(map(len, shown)) <= 100
    assert HOSTILE in shown[0]
    assert any(line.startswith("left out: promotes") for line in shown)


def test_the_summary_is_short_for_a_model_with_everything(evidence: Evidence) -> None:
    left_out = {f"measure {n}": "why " * 100 for n in range(20)}
    many = [replace(r, role=f"{r.role}{n}") for r in evidence.results for n in range(4)]
    assert len(lines(replace(evidence, results=tuple(many), left_out=left_out))) < 40


def test_runs_are_of_measured_layers() -> None:
    assert layer_runs((3, 4, 5, 9), range(12)) == "3-5, 9"
    assert layer_runs((0, 6, 12, 24), (0, 6, 12, 18, 24)) == "0-12, 24"
    assert layer_runs((), (0, 1)) == ""


def test_verdicts_follow_the_nulls() -> None:
    kind = Kind("writing", "value", "output", "logits")
    plain = result("writing", 0, "value", "output", "logits", "spearman")
    rows = []
    for layer, gap in enumerate((0.2, 0.2, 0.0)):
        nulls = (null("permuted", gap, 0.4), null("noise", 0.0, 0.4))
        rows.append(replace(plain, layer=layer, value=0.1 * layer, nulls=nulls))
    evidence = Evidence({"name": "m", "layers": 3}, {}, tuple(rows))
    (verdict,) = standings(evidence)
    assert (verdict.kind, verdict.layers, verdict.measured) == (kind, (0, 1), (0, 1, 2))
    assert verdict.words == "layers 0-1 (2 of 3)"
    assert verdict.best == 2
    assert "above its nulls in layers 0-1 (2 of 3)" in html(evidence)
    assert tables(evidence)["writing"].splitlines()[-3:] == ["| 0 | .00 |", "| 1 | .10 |", "| 2 | .20· |"]


def test_each_list_is_judged_by_what_it_claims(evidence: Evidence) -> None:
    targets = {(kind.measure, kind.frame.split(".")[0]): kind.target for kind in kinds(evidence)}
    assert targets["reading", "token"] == targets["reading", "paper"] == targets["reading", "embedded"] == "current"
    assert targets["reading", "output"] == "predicted"
    assert targets["writing", "output"] == targets["promotes", "token"] == "logits"
    assert targets["attention", "token"] == "offset 0"


def test_markdown_tables_are_square_and_safe(evidence: Evidence) -> None:
    written = tables(evidence)
    assert {"verdict", "frames", "effects", "inverses", "states-same-layer", "states-final"} <= written.keys()
    assert {"reading", "reading-top-k", "reading-position", "pairs", "attention"} <= written.keys()
    for text in written.values():
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert "<script" not in text
    assert "**" in written["frames"].split("\n", 1)[1]
    assert "·" in written["reading"]


def test_the_best_frame_of_a_third_is_bold() -> None:
    plain = result("reading", 0, "gate", "token", "current", "spearman")
    pair = (replace(plain, value=0.5), replace(plain, value=-0.031, frame="paper"))
    (table,) = [t for t in table_list(Evidence({"layers": 30}, {}, pair)) if t.name == "frames"]
    assert [[(cell.text, cell.best) for cell in row[3:6]] for row in table.rows] == [
        [(".50", True), ("–", False), ("–", False)],
        [("-.03", False), ("–", False), ("–", False)],
    ]


def test_importing_the_report_loads_neither_pyplot_nor_torch() -> None:
    code = (
        "import sys, warnings\nwarnings.simplefilter('error')\nimport zeropass.evidence.render\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
