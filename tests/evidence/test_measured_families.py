"""Every family of the zoo is measured, and what is exact by construction comes out as exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_evidence import SETTINGS, only_result

from tiny import make, save
from zeropass.evidence import measure
from zeropass.evidence.results import Evidence
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zoo import HYBRIDS, ZOO, tiny_model

SMALL = replace(
    SETTINGS, window=30, tokens=400, vectors=8, noise=4, positions=8, contexts=2, prefix=8, written=3, query_windows=2
)
DECODERS = [name for name in ZOO if ZOO[name][2].get("stack") == "decoder"]
NOT_RUN = [*DECODERS, *HYBRIDS]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def measured(model: Model) -> Evidence:
    """Measure a model on a text of its own tokens, each of which occurs often."""
    order = torch.randint(5, 40, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    words = [model.vocab.text(i) for i in order]
    return measure.measure(model, (" " if model.vocab.kind == "wordpiece" else "").join(words), "made up", SMALL)


def check(model: Model) -> None:
    """Check that every measure has results, and that layer 0 reads what its frame says where positions do not enter."""
    evidence = measured(model)
    expected = {"states", "pairs", "inverses", "reading", "attention"}
    written = {"writing", "promotes"} if model.family.causal else set()
    assert {r.measure for r in evidence.results} == expected | written
    assert set(evidence.left_out) == (set() if written else {"writing"})
    assert all(0 <= abs(r.value) <= 1 + 1e-6 for r in evidence.results if r.measure != "inverses")
    if model.has("positions"):
        return
    exact = {"layer": 0, "frame": "token", "metric": "spearman"}
    for role in "qkv":
        read = only_result(evidence, measure="reading", role=role, target="current", **exact)
        assert read.value == pytest.approx(1, abs=1e-3)
    positioned = model.dims.rope or model.family.alibi or model.has("relative")
    target = "true offsets" if positioned else "offset 0"
    assert only_result(evidence, measure="attention", role="qk", target=target, **exact).value > 0.999


@pytest.mark.parametrize("name", sorted(set(ZOO) - set(NOT_RUN)))
def test_every_family_is_measured(name: str, tmp_path: Path) -> None:
    check(open_model(str(save(tiny_model(name), tmp_path / name))))


@pytest.mark.parametrize("variant", ["llama-biased", "llama-one-kv", "gpt2", "gpt2-untied", "bert", "bert-mlm"])
def test_every_variant_is_measured(variant: str, tmp_path: Path) -> None:
    check(open_model(str(save(make(variant), tmp_path))))


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_says_why_it_cannot_be_measured(name: str, tmp_path: Path) -> None:
    evidence = measured(open_model(str(save(tiny_model(name), tmp_path / name))))
    assert "the mixer of layer" in evidence.left_out["reading"]
    assert {result.measure for result in evidence.results} == {"pairs", "inverses"}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_reads_an_encoder_says_why_it_cannot_be_measured(name: str, tmp_path: Path) -> None:
    evidence = measured(open_model(f"{save(tiny_model(name), tmp_path / name)}#decoder"))
    assert "an encoder's text" in evidence.left_out["reading"]
