"""`zeropass prove` on tiny models: every family is proven against transformers, and no corruption of a record is."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from test_every_family import SPOILS

import tiny
import zeropass as zp
from zeropass.evidence import proof
from zeropass.evidence.judge import Judge, Pass
from zeropass.evidence.proof_parts import parts_of
from zoo import DECODERS, OF_AUDIO, PARTLY_RUN, ZOO, tiny_model

IDS = torch.randint(2, tiny.TOKENS, (3, 16), generator=torch.Generator().manual_seed(1))
"""Texts without padding, which has id 0 or 1."""

NOT_SEEN = {
    "qwen3_next": {"parallel"},  # a hybrid's blocks have an order of their own
    "pegasus-decoder": {"no memory_norm"},  # transformers hands over the encoder's output normed
}
"""Corruptions of what the pass does not read."""

Cases = Callable[[str], tuple[zp.Model, Judge]]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    folder = tmp_path_factory.mktemp("proof")

    @cache
    def case(name: str) -> tuple[zp.Model, Judge]:
        hf = tiny_model(name)
        mark = "#decoder" if name in DECODERS else ""
        model = zp.open_model(f"{tiny.save(hf, folder / name)}{mark}")
        return model, Judge(model, hf, ())

    return case


@torch.no_grad()
def differing(model: zp.Model, true: Pass) -> list[str]:
    """Return the parts that differ from those of transformers."""
    return [part.name for part in parts_of(model, IDS, true) if not part.compared().agrees]


@pytest.mark.parametrize("name", sorted(set(ZOO) - {*OF_AUDIO, *PARTLY_RUN}))
def test_every_family_is_proven(name: str, cases: Cases) -> None:
    model, judge = cases(name)
    true = judge.run(IDS)
    assert differing(model, true) == []
    assert (true.logits is not None) == model.family.causal


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma2", "qwen2_moe", "deepseek_v3", "qwen3_next", "deberta", "pegasus-decoder"]
)
def test_a_wrong_record_is_not_proven(name: str, cases: Cases) -> None:
    model, judge = cases(name)
    true = judge.run(IDS)
    passed = {how for how, spoil in SPOILS.items() if (wrong := spoil(model)) and not _fails(wrong, true)}
    assert passed == NOT_SEEN.get(name, set())


def _fails(model: zp.Model, true: Pass) -> bool:
    """Tell whether a part differs, or cannot be computed."""
    try:
        return bool(differing(model, true))
    except (RuntimeError, IndexError, zp.ZeropassError):
        return True


@pytest.mark.parametrize(
    ("name", "how", "place"),
    [
        ("llama", "k and v swapped", "k"),
        ("llama", "activation", "value.in"),
        ("llama", "no o_bias", "attn.out"),
        ("gemma2", "norms behind swapped", "ff"),
        ("gpt2", "no q_bias", "q"),
        ("cohere", "gate and up swapped", "value.in"),
        ("granite", "no residual scale", "ff"),
        ("qwen2_moe", "router weights", "ff.out"),
        ("phi", "parallel", "ff"),
        ("qwen3_next", "no mixer_norm", "mixer"),
    ],
)
def test_the_first_block_and_part_that_differs_is_named(
    name: str, how: str, place: str, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, judge = cases(name)
    monkeypatch.setattr(proof, "open_judge", lambda _model: judge)
    wrong = SPOILS[how](model)
    assert wrong is not None
    failed = zp.prove(wrong, keep=False, tokens=32)
    first = next(part for part in failed if not part.agrees)
    assert (first.part, first.differs) == ("block 0", place)
    assert failed.words.startswith("DIFFERS from transformers")
    assert f"block 0 is the first that does, at its {place} " in failed.words
    assert not failed.proven


def test_the_embedding_and_the_logits_are_parts_too(cases: Cases) -> None:
    model, judge = cases("gemma2")
    true = judge.run(IDS)
    for name, part in (("embed_scale", "embedding"), ("logit_cap", "logits")):
        assert differing(replace(model, dims=replace(model.dims, **{name: 3.0})), true) == [part]
