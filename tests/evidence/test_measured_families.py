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
from zeropass.model.positions import adds_positions
from zoo import DECODERS, NOT_RUN, OF_AUDIO, UNEVEN, ZOO, tiny_model

SMALL = replace(
    SETTINGS, window=30, tokens=400, vectors=8, noise=4, positions=8, contexts=2, prefix=8, written=3, query_windows=2
)
SIZES = {
    "d",
    "embed",
    "eps",
    "head_dim",
    "heads",
    "kv_heads",
    "layers",
    "longest",
    "neurons",
    "rotary",
    "vocab",
    "tied",
}

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
    if adds_positions(model):
        return
    exact = {"layer": 0, "frame": "token", "metric": "spearman"}
    roles = "qkv" if model.dims.has_site("attn", 0) else ()
    for role in (*roles, *(("mixer_in",) if model.dims.has_site("mixer", 0) else ())):
        read = only_result(evidence, measure="reading", role=role, target="current", **exact)
        # Lists of columns leave out what the norm of a latent divides each token by.
        assert read.value > (0.95 if model.layout.latent_of(role) else 0.999)
    if not roles:
        return
    positioned = model.dims.rope or model.family.alibi or model.has("relative") or model.has("distances")
    target = "true offsets" if positioned else "offset 0"
    assert only_result(evidence, measure="attention", role="qk", target=target, **exact).value > 0.999


def features(model: Model) -> set[tuple[str, str]]:
    """Return what the blocks of a model compute: the fields of its family, its constants, and its tensors."""
    fields = set(vars(model.family)) - {"name", "model_types", "layouts", "config", "when", "notes", "tied_by_default"}
    constants = {key for key, value in vars(model.dims).items() if value not in (None, (), 0, 1)} - SIZES
    return {
        *((field, str(getattr(model.family, field))) for field in fields),
        *(("constant", key) for key in constants),
        *(("tensor", what) for what in model.layout.tensors if model.has(what)),
        ("activation", model.dims.activation),
        ("rope", str(model.dims.rope and model.dims.rope.kind)),
        ("kv heads", "fewer" if model.dims.group > 1 else "as many"),
    }


def test_everything_that_blocks_compute_is_measured(tmp_path: Path) -> None:
    """Measure each checkpoint of the zoo that computes something which those before it do not.

    The forward pass under the measures is compared with transformers for all of them (tests/model/test_every_proof.py).
    """
    seen: set[tuple[str, str]] = set()
    measured_names = []
    for name in sorted(set(ZOO) - {*NOT_RUN, *UNEVEN}):
        model = open_model(str(save(tiny_model(name), tmp_path / name)))
        if model.dims.indexed_keys is not None:
            continue  # a text of the length that is measured is refused
        if features(model) - seen:
            check(model)
            measured_names.append(name)
        seen |= features(model)
    assert len(measured_names) > 20, measured_names


@pytest.mark.parametrize("variant", ["llama-biased", "llama-one-kv", "gpt2", "gpt2-untied", "bert", "bert-mlm"])
def test_every_variant_is_measured(variant: str, tmp_path: Path) -> None:
    check(open_model(str(save(make(variant), tmp_path))))


@pytest.mark.parametrize("name", UNEVEN)
def test_a_model_of_uneven_layers_says_why_it_cannot_be_measured(name: str, tmp_path: Path) -> None:
    evidence = measured(open_model(str(save(tiny_model(name), tmp_path / name))))
    assert "does not know such layers" in evidence.left_out["reading"]
    assert {result.measure for result in evidence.results} == {"pairs", "inverses"}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_reads_an_encoder_says_why_it_cannot_be_measured(name: str, tmp_path: Path) -> None:
    mark, what = ("", "output") if name in OF_AUDIO else ("#decoder", "text")
    evidence = measured(open_model(f"{save(tiny_model(name), tmp_path / name)}{mark}"))
    assert f"an encoder's {what}" in evidence.left_out["reading"]
