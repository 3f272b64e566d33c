"""Evidence measures the frames of a lens beside the others, and a verdict on them is quoted for that lens only."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import zeropass as zp
from zeropass.arch.frame_names import LENS_FRAMES
from zeropass.evidence.activations import Settings
from zeropass.evidence.corpus import press_text
from zeropass.evidence.judging import verdicts_of
from zeropass.evidence.measure import measure
from zeropass.evidence.render import html, summary
from zeropass.evidence.results import Evidence
from zeropass.model.frames import Frames

FIRST = Path(__file__).parents[2] / "models" / "first"
SETTINGS = Settings(
    tokens=600,
    window=64,
    vectors=12,
    noise=6,
    positions=6,
    contexts=2,
    prefix=12,
    written=6,
    query_windows=2,
    queries=4,
)
PARTS = ("writing", "reading", "attention")


@pytest.fixture(scope="module")
def lens() -> zp.LensMaps:
    return zp.calibrate(zp.open_model(FIRST), source="random", tokens=2048)


@pytest.fixture(scope="module")
def evidence(lens: zp.LensMaps) -> Evidence:
    torch.set_num_threads(1)
    return measure(zp.open_model(FIRST), press_text(), "press", SETTINGS, parts=PARTS, lens=lens)


def test_every_kind_of_list_is_measured_through_the_lens(evidence: Evidence) -> None:
    measured = {(r.measure, r.role, r.frame) for r in evidence.results}
    assert {("reading", role, "seen") for role in ("gate", "up", "q", "k", "v")} <= measured
    assert {("writing", "value", "effect"), ("writing", "o", "effect")} <= measured
    assert {("promotes", "vo", "seen"), ("attention", "qk", "seen")} <= measured


def test_layer_0_reads_the_same_with_and_without_a_lens(evidence: Evidence) -> None:
    for role in ("gate", "q"):
        token, seen = (
            next(r for r in evidence.results if (r.layer, r.role, r.frame, r.metric) == (0, role, frame, "spearman"))
            for frame in ("token", "seen")
        )
        assert token.value == seen.value


def test_without_a_lens_its_frames_are_not_measured(evidence: Evidence) -> None:
    plain = measure(zp.open_model(FIRST), press_text(), "press", SETTINGS, parts=PARTS)
    assert not set(LENS_FRAMES) & {r.frame for r in plain.results}
    assert "lens" not in plain.method
    others = [r for r in evidence.results if r.frame not in LENS_FRAMES]
    assert others == list(plain.results)


def test_of_a_published_lens_only_what_writes_is_measured(tmp_path: Path) -> None:
    model = zp.open_model(FIRST)
    layers, d = model.dims.layers, model.dims.d
    jacobian = {
        "J": {n: torch.eye(d) for n in range(layers - 1)},
        "n_prompts": 9,
        "source_layers": [*range(layers - 1)],
    }
    torch.save(jacobian | {"d_model": d}, tmp_path / "lens.pt")
    lens = zp.read_lens(tmp_path, model)
    results = measure(model, press_text(), "press", SETTINGS, parts=PARTS, lens=lens)
    assert results.method["lens"] == lens.facts.words
    assert {(r.measure, r.role) for r in results.results if r.frame == "effect"} == {
        ("writing", "value"),
        ("writing", "o"),
    }
    assert "seen" not in {r.frame for r in results.results}
    through, direct = (
        [r.value for r in results.results if (r.measure, r.frame) == ("writing", frame)]
        for frame in ("effect", "output")
    )
    assert through == direct  # every map is the identity
    reader = zp.Lens(model, verdicts=verdicts_of(results), frames=Frames(model, lens))
    assert reader["L2.ff.3.value"][0].evidence is not None


def test_verdicts_are_those_of_one_lens(evidence: Evidence, lens: zp.LensMaps) -> None:
    verdicts, model = verdicts_of(evidence), zp.open_model(FIRST)
    assert verdicts.lens == evidence.method["lens"] == lens.facts.words
    shorter = replace(lens, facts=replace(lens.facts, tokens=1024))
    for used, quoted in ((lens, True), (shorter, False)):
        reader = zp.Lens(model, verdicts=verdicts, frames=Frames(model, used))
        records = [*reader["L2.ff.3"], *reader["L2.attn.1.vo"], *reader["L2.attn.1.qk"]]
        assert [r.evidence is not None for r in records if r.frame in ("seen", "effect")] == [quoted] * 5
    assert zp.records.verdicts.Verdicts.from_json(verdicts.to_json()).lens == lens.facts.words


def test_the_report_shows_them(evidence: Evidence) -> None:
    page = html(evidence)
    assert "through the lens" in page
    assert "effect" in page


def test_the_summary_shows_every_kind_of_list_but_those_of_the_paper(evidence: Evidence) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary(evidence))
    shown = console.export_text()
    for row in ("gate seen", "v token", "value effect", "o output", "vo seen", "qk seen", "qk output"):
        assert f"\n{row} " in shown
    assert "more kinds of list in the report: 9 (paper)" in shown
