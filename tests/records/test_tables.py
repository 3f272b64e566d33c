"""Results as tables, as sequences and as one line."""

import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import small
import zeropass as zp
from zeropass._io.short_repr import LONGEST
from zeropass.align.results import Alignment, LayerMap, Match, Matches, Pairing
from zeropass.atlas import distributions, neighbours, summary
from zeropass.errors import BadAddress, BadOption, MissingExtra, UnknownWord, ZeropassError
from zeropass.evidence.results import Evidence, Null, Result
from zeropass.model.address import parse
from zeropass.records import overviews, parameters, search, verdicts
from zeropass.records.parameters import Records, VectorRecord
from zeropass.records.sequences import Parameters
from zeropass.records.tabular import AsTable, Several
from zeropass.records.verdicts import Verdict, Verdicts
from zeropass.stitch.results import Stitch, Try
from zeropass.stitch.results import Verdict as StitchVerdict

NULL = Null(name="shuffled", mean=0.1, std=0.1, low=0.0, high=0.2, n=9, gap_low=0.1, gap_high=0.3, effect=2.0)
RESULT = Result(
    measure="reading",
    layer=1,
    role="gate",
    frame="token",
    target="current",
    metric="correlation",
    n=9,
    value=0.5,
    std=0.1,
    low=0.4,
    high=0.6,
    nulls=(NULL, replace(NULL, name="noise")),
)
VERDICT = Verdict("gate", "token", 1, "reading", "current", "correlation", 0.5, 0.1, 9, True)
PAIRING = Pairing("neuron", "L1.ff.3", "L2.ff.4", 0.5, 0.1, 0.1, 4.0, 0.01, True)
FACTS = {"name": "x" * 500}
RESULTS = (
    Evidence(model=FACTS, method={}, results=(RESULT, replace(RESULT, nulls=()))),
    Verdicts(FACTS, {}, (VERDICT,) * 500),
    Alignment((FACTS, FACTS), {}, (LayerMap("gate", "token", ((0.5,),), (0,)),), (PAIRING,) * 500),
    Matches("L1.ff.3", (Match("L2.ff.4", 0.5, 0.1, 0.1, 4.0),)),
    Stitch(
        "stitch",
        FACTS,
        FACTS,
        {},
        Try(2, 2, "ridge", "token"),
        (Try(2, 2, "ridge", "token"),),
        StitchVerdict(None, "?"),
    ),
)


def displayed(built: small.Built) -> list[Any]:
    """Return everything that a lens and an atlas of it give a user."""
    lens, atlas = built.lens, built.atlas
    address = "L0.ff.2"
    return [
        *(lens, lens.model, lens.frames, lens.model.vocab, lens.model.files, lens.vectors(0, "gate"), atlas),
        *(lens[address], *lens[address], lens["L0.attn.1"], *lens["L0.attn.1"], lens.svd("L0.attn.1.vo")),
        *(lens.head_map("L0.attn.1.vo"), lens.frames.rows("token"), parse(address), atlas.runs[0], zp.Options()),
        *(atlas[address], *atlas["L0.attn.1"], atlas.find(atlas.vocab.label(300))),
        *(lens.neurons(0), lens.neurons(0, "gate")[:0], lens.heads(), lens.view("all")),
        *(summary.overview(atlas, "read", "token", "strength"), neighbours.neighbours_of(atlas, address)),
        *(*distributions.spreads(atlas, address), *distributions.clouds(atlas, address), summary.telling(atlas, 0)),
    ]


def parts(value: object) -> list[Any]:
    """Return a result with all dataclasses inside it, but for those of numerics, which nobody is given."""
    if type(value).__module__.startswith("zeropass.numerics") and type(value).__name__ not in zp.__all__:
        return []
    inner = vars(value).values() if is_dataclass(value) else value if isinstance(value, tuple | list | Records) else ()
    return [value, *(part for each in inner if not isinstance(each, str) for part in parts(each))]


@pytest.mark.parametrize("name", ["built", "hostile"])
def test_a_repr_is_one_short_line(name: str, request: pytest.FixtureRequest) -> None:
    seen = set()
    for value in (*displayed(request.getfixturevalue(name)), *RESULTS):
        for part in parts(value):
            if type(part).__module__.startswith("zeropass") and (is_dataclass(part) or isinstance(part, AsTable)):
                text = repr(part)
                seen.add(type(part))
                assert len(text) <= LONGEST, text
                assert text.isprintable(), text
                assert text.startswith(type(part).__name__.lstrip("_")), text
    shown = {cls for module in (parameters, overviews, search, verdicts) for cls in public_classes(module)}
    unseen = {"AsJson", "NearestRecord"}
    assert {cls.__name__ for cls in shown - seen} <= unseen


def public_classes(module: Any) -> list[type]:
    return [getattr(module, name) for name in module.__all__ if inspect.isclass(getattr(module, name))]


def test_every_public_class_has_a_repr_of_its_own() -> None:
    """A dataclass prints all that it holds unless it says otherwise."""
    names = [name for name in sys.modules if name.startswith("zeropass.") and ".results" in name]
    modules = [zp, parameters, overviews, search, verdicts, *map(importlib.import_module, names)]
    for cls in {cls for module in modules for cls in public_classes(module)}:
        if is_dataclass(cls) and cls is not zp.Address:
            assert "__create_fn__" not in cls.__repr__.__qualname__, cls
            assert cls.__repr__.__module__ != cls.__module__ or cls.__repr__.__qualname__.startswith(cls.__name__), cls


def test_every_record_and_result_is_a_table(built: small.Built) -> None:
    for value in (*displayed(built), *RESULTS):
        if isinstance(value, AsTable) and not (isinstance(value, Parameters) and len(value) > 20):
            rows = list(value.table_rows())
            frame = value.to_pandas()
            assert len(frame) == len(rows)
            if rows:
                assert set(frame.columns) == set().union(*rows)
                assert list(frame.columns)[: len(rows[0])] == list(rows[0])
                plain = (str, int, float, bool, type(None), np.floating)
                assert all(isinstance(cell, plain) for row in rows for cell in row.values())


def test_a_list_is_a_tidy_table(built: small.Built) -> None:
    record = built.lens["L1.ff.2.gate"][0]
    frame = record.to_pandas()
    assert list(frame.columns) == ["address", "role", "side", "frame", "pole", "rank", "id", "token", "score", "z"]
    top = frame[frame.pole == "+"]
    assert top.token.tolist() == [token.token for token in record.top]
    assert top.z.tolist() == [token.z for token in record.top]
    assert top["rank"].tolist() == list(range(20))
    assert set(frame.address) == {"L1.ff.2"}
    assert set(frame.role) == {"gate"}
    every = built.lens["L1.ff.2"].to_pandas()
    assert every.groupby(["role", "frame", "pole"], sort=False).size().tolist() == [20] * 10


def test_evidence_has_a_row_for_each_null() -> None:
    frame = RESULTS[0].to_pandas()
    assert frame.null_name.tolist()[:2] == ["shuffled", "noise"]
    assert frame.null_name.isna().tolist() == [False, False, True]
    assert frame.value.tolist() == [0.5] * 3


def test_a_slice_keeps_its_class(built: small.Built) -> None:
    pairs, words = built.lens["L1.attn.2.vo"][0], built.atlas.find("babade")
    for several in (pairs, words, built.lens.svd("L1.attn.2.vo"), *RESULTS):
        assert isinstance(several, Several)
        assert len(several) == len(list(several)) > 0
        assert several[0] == next(iter(several))
        assert type(several[:1]) is type(several)
        assert list(several[:1]) == [several[0]]
        assert bool(several[:0]), "an empty result is a result"
        assert asdict(several[:]) == asdict(several)
    records = built.lens["L1.ff.2"]
    assert isinstance(records[1:3], Records)
    assert list(records[1:3]) == [records[1], records[2]]
    assert records[:1].note == records.note


def test_neurons_are_read_when_they_are_asked_for(built: small.Built, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    lens = built.lens
    neurons = Parameters(lens.neurons(1, "gate").addresses, lambda address: asked.append(address) or lens[address])
    assert len(neurons) == small.NEURONS
    assert neurons[5:8][1].to_json() == lens["L1.ff.6.gate"].to_json()
    assert asked == ["L1.ff.6.gate"]
    assert [records[0].address for records in neurons[-2:]] == ["L1.ff.46", "L1.ff.47"]
    assert isinstance(neurons, Sequence)
    assert lens.neurons(1, "gate")[:2].to_pandas().address.unique().tolist() == ["L1.ff.0", "L1.ff.1"]
    with pytest.raises(BadAddress, match="layers 0 to 2"):
        lens.neurons(3)
    with pytest.raises(BadAddress, match="have the roles gate, up, value"):
        lens.neurons(1, "key")


@pytest.mark.parametrize("role", ["gate", "value", None])
@pytest.mark.parametrize("frame", ["token", "output", None])
def test_the_strongest_are_those_of_the_atlas(built: small.Built, role: str | None, frame: str | None) -> None:
    neurons = built.lens.neurons(1, role)
    if (role, frame) == ("value", "token"):
        with pytest.raises(BadOption, match="no list in the token frame"):
            neurons.strongest(frame=frame)
        return
    expected = strongest_of(built, role, frame)
    assert [parse(address).index for address in neurons.strongest(7, frame=frame).addresses] == expected
    some = neurons[10:20].strongest(3, frame=frame)
    assert set(some.addresses) < set(neurons[10:20].addresses)


def strongest_of(built: small.Built, role: str | None, frame: str | None) -> list[int]:
    """Return the neurons with the largest |z| of a tenth token, list by list."""
    strengths = []
    for index in range(small.NEURONS):
        lists = [r for r in built.lens[f"L1.ff.{index}"] if role in (None, r.role) and frame in (None, r.frame)]
        strengths.append(max(max(abs(record.top[9].z), abs(record.bottom[9].z)) for record in lists))
    return sorted(range(small.NEURONS), key=lambda index: -strengths[index])[:7]


def test_heads_have_pairs_and_no_order(built: small.Built) -> None:
    heads = built.lens.heads(1, "ov")
    assert heads.addresses == ("L1.attn.0.vo", "L1.attn.1.vo", "L1.attn.2.vo", "L1.attn.3.vo")
    assert heads[2].to_json() == built.lens["L1.attn.2.vo"].to_json()
    assert len(built.lens.heads()) == small.LAYERS * small.HEADS
    with pytest.raises(BadOption, match="head maps"):
        heads.strongest()
    with pytest.raises(BadAddress):
        built.lens.heads(1, "q")


def test_an_address_object_is_an_address(built: small.Built) -> None:
    for reader in (built.lens, built.atlas):
        assert reader[parse("L1.ff.2.gate")].to_json() == reader["L1.ff.2.gate"].to_json()
    assert {f"L1.attn.2{suffix}" for suffix in ("", ".qk", ".vo")} < set(built.lens._ipython_key_completions_())
    assert all(built.lens[address] for address in built.atlas._ipython_key_completions_() if "attn" in address)


def test_sql_asks_the_tables_of_an_atlas(built: small.Built) -> None:
    atlas = built.atlas
    rows = atlas.sql("SELECT address FROM parameters WHERE role = 'gate' AND layer = 1 ORDER BY strength DESC LIMIT 1")
    assert rows.fetchall() == [(atlas.strongest(["gate"], (1, 2), k=1)[0],)]
    tables = {"parameters", "tokens", "hits", "lists", "pairs"}
    assert {
        name for (name,) in atlas.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    } == tables
    assert all(len(atlas.sql(f"SELECT * FROM {table} LIMIT 3").df()) == 3 for table in tables)
    with pytest.raises(BadOption, match="cannot run this query"):
        atlas.sql("SELECT nothing")
    with pytest.raises(BadOption, match="returns no rows"):
        atlas.sql("")


def test_without_pandas_the_extra_is_named(built: small.Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.delitem(sys.modules, "zeropass.records.pandas_tables", raising=False)
    with pytest.raises(MissingExtra, match=r"zeropass\[tables\]"):
        built.lens["L1.ff.2"].to_pandas()


def test_errors_are_also_those_of_python(built: small.Built) -> None:
    with pytest.raises(KeyError, match=r"^'nonsense' is not an address"):
        built.lens["nonsense"]
    with pytest.raises(ValueError, match="not an address"):
        zp.parse("nonsense")
    with pytest.raises(ValueError, match="There is no frame"):
        built.lens.explain("L1.ff.2", frame="nonsense")
    with pytest.raises(KeyError, match="is not one token"):
        built.atlas.find("Babade")
    for error in (BadAddress("text"), UnknownWord("text"), BadOption("text")):
        assert str(error) == "text"
        assert isinstance(error, ZeropassError)


def test_a_record_names_its_strongest_tokens() -> None:
    tokens = tuple(parameters.TokenScore(i, f" word{i}", 1.0, 1.0) for i in range(20))
    record = VectorRecord(
        "L1.ff.2", "gate", "read", "token", 1.0, tokens, tokens, 0.0, 1.0, parameters.Hidden("all", 0, 9, {})
    )
    assert repr(record) == (
        "VectorRecord(L1.ff.2.gate token: + ␣word0, ␣word1, ␣word2, ␣word3 − ␣word0, ␣word1, ␣word2, ␣word3)"
    )
    product = zp.Factored(torch.eye(3), torch.eye(3))
    assert repr(product) == "Factored(3 x 3, rank 3, torch.float32 on cpu)"
    assert repr(zp.top_pairs(product, 2)) == "TopPairs(2 pairs, from 1 up, bound -inf, complete)"
