"""The tool that proposes records finds those of families that the table lacks, and accepts none that is not proven."""

from dataclasses import replace
from pathlib import Path

import pytest

from propose import LIMIT, Proposal, Search, propose, record_text, tiny_of, without
from zeropass.arch import families
from zeropass.arch.families import FAMILIES
from zeropass.arch.layout import Layout, Stored, full_name
from zeropass.arch.spec import Family

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def layout_of(family: Family) -> Layout:
    layout = family.layout("hf")
    assert layout is not None
    return layout


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("phi", "parallel", True), ("gpt_neox", "parallel", True), ("opt", "first_position", 2)],
)
def test_a_family_that_the_table_lacks_is_found(name: str, field: str, value: object, tmp_path: Path) -> None:
    tiny, table = without(name, tmp_path)
    assert name not in {family.name for family in table}
    result = propose(tiny, table)
    assert result.proven, result.text()
    assert getattr(result.family, field) == value
    records = [family for family in FAMILIES if family.name == name and family.layout("hf")]
    own = next(family for family in records if getattr(family, field) == value)
    places, true = layout_of(result.family), layout_of(own)
    required = [role for role in true.tensors if role not in true.optional]
    assert {role: full_name(places.tensors[role].name, places.prefixes[0]) for role in required} == {
        role: full_name(true.tensors[role].name, true.prefixes[0]) for role in required
    }
    assert result.tried < LIMIT


def test_the_record_is_printed_as_python(tmp_path: Path) -> None:
    tiny, table = without("opt", tmp_path)
    result = propose(tiny, table)
    names = {
        name: value for module in vars(families).values() for name, value in getattr(module, "__dict__", {}).items()
    }
    scope = {"replace": replace, "Stored": Stored, **{n: v for n, v in names.items() if isinstance(v, Family)}}
    exec(record_text(result.base, result.family), scope)
    record = scope["OPT"]
    assert record == replace(result.family, layouts=(layout_of(result.family),))
    assert "# proven" in result.text()


def test_what_no_record_computes_is_not_accepted(tmp_path: Path) -> None:
    """Without the families that have them, nothing knows what experts are for."""
    tiny = tiny_of("mixtral", tmp_path)
    dense = [family for family in FAMILIES if not family.routed and family.name in ("llama", "gpt2")]
    result = propose(tiny, dense)
    assert not result.proven
    assert any("experts" in name for name in result.tensors)
    assert "NOT proven" in result.text()


def test_a_flag_that_no_record_explains_restricts_the_record(tmp_path: Path) -> None:
    tiny, table = without("opt", tmp_path)
    assert propose(tiny, table).family.when["do_layer_norm_before"] == (True,)


def test_a_record_with_an_error_or_a_corruption_that_passes_is_not_proven() -> None:
    family = FAMILIES[0]
    assert Proposal(family, family, errors={"stream": 1e-6}).proven
    assert not Proposal(family, family).proven
    assert not Proposal(family, family, errors={"stream": 1e-3}).proven
    assert not Proposal(family, family, errors={"stream": 1e-6}, passed=("no final_norm",)).proven
    assert not Proposal(family, family, errors={"stream": 1e-6}, keys=("unheard_of",)).proven
    assert not Proposal(family, family, errors={"stream": float("nan")}).proven


def test_the_records_that_are_most_alike_are_tried_first(tmp_path: Path) -> None:
    tiny, table = without("gpt2", tmp_path)
    bases = Search(tiny, table).bases()
    assert {family.rotary for family in bases[:3]} == {False}
