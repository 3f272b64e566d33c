"""Verdicts: the results that judge a kind of list, where verdicts are stored, and how they are shown."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

import small
import zeropass as zp
from kept_verdicts import METHOD, SHA, verdict, verdicts
from serving import Seen, contexts_of, serving
from zeropass.errors import BadOption
from zeropass.evidence.judging import verdicts_of
from zeropass.evidence.results import EVERY_LAYER, Evidence, Null, Result
from zeropass.records import verdicts as module
from zeropass.records.parameters import COHERENCE_NOTE, PairRecord, VectorRecord
from zeropass.records.search import FindRecord, Hit
from zeropass.records.verdicts import SHIPPED, Verdict, Verdicts, footnote, keep, known_verdicts, read_verdicts
from zeropass.render.terminal import render, render_find, show_records
from zeropass.render.tour import print_tour
from zeropass.web.formats import STATIC


def null(name: str, mean: float, beaten: bool = True) -> Null:
    return Null(name, mean, 0.1, mean - 0.1, mean + 0.1, 20, 0.1 if beaten else -0.1, 0.3, None)


def result(measure: str, target: str, role: str, frame: str, layer: int = 0, **changes: Any) -> Result:
    nulls = (null("permuted", 0.01), null("rotated", -0.02), null("noise", 0.9, beaten=False))
    plain = Result(measure, layer, role, frame, target, "spearman", 20, 0.28, 0.1, 0.2, 0.3, nulls)
    return replace(plain, **changes)


def evidence(*results: Result) -> Evidence:
    return Evidence({"name": "m", "family": "llama", "layers": 3, "sha256": SHA, "bytes": 7}, METHOD, results)


EVERY = verdicts(
    *(verdict(role, frame, 1) for role in ("gate", "q", "qk", "k") for frame in ("token", "output")),
    *(verdict(role, frame, 1, above=False) for role in ("value", "up", "vo", "o") for frame in ("token", "output")),
)


@pytest.fixture
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


def never() -> str:
    raise AssertionError("the weights were hashed")


# --- Judging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "target", "role", "frame"),
    [
        ("reading", "current", "gate", "token"),
        ("reading", "current", "k", "paper"),
        ("reading", "predicted", "key", "output"),
        ("writing", "logits", "value", "output"),
        ("writing", "logits", "o", "paper"),
        *(("promotes", "logits", "vo", frame) for frame in ("token", "paper", "output")),
        *(("attention", "offset 16", "qk", frame) for frame in ("token", "paper", "output")),
        ("attention", "offset 0", "qk", "token"),
    ],
)
def test_every_kind_of_list_has_its_judge(measure: str, target: str, role: str, frame: str) -> None:
    judgement = verdicts_of(evidence(result(measure, target, role, frame, 2)))
    assert judgement.kinds == (Verdict(role, frame, 2, measure, target, "spearman", 0.28, 0.01, 20, True),)
    assert judgement.model["sha256"] == SHA
    assert judgement.method == METHOD


def test_other_results_judge_nothing() -> None:
    others = (
        result("reading", "predicted", "gate", "token"),
        result("reading", "current", "gate", "output"),
        result("reading", "current", "gate", "token", metric="overlap@20"),
        result("reading", "current", "gate", "token raw"),
        result("reading", "current", "gate", "token", EVERY_LAYER),
        result("reading", "current", "gate", "token", value=float("nan")),
        result("reading", "current", "gate", "token", value=0.0, n=0),
        result("reading", "current", "gate", "token", nulls=()),
        result("reading", "current", "gate", "token", nulls=(null("noise", 0.1),)),
        result("attention", "true offsets", "qk", "token"),
        result("pairs", "logits", "value", "output"),
    )
    assert verdicts_of(evidence(*others)).kinds == ()


@pytest.mark.parametrize(("beaten", "above"), [((True, True), True), ((True, False), False), ((False, True), False)])
def test_above_means_above_every_null(beaten: tuple[bool, bool], above: bool) -> None:
    nulls = tuple(null(*arguments) for arguments in zip(("permuted", "rotated"), (0.1, 0.2), beaten, strict=True))
    (judgement,) = verdicts_of(evidence(result("reading", "current", "gate", "token", nulls=nulls))).kinds
    assert (judgement.null, judgement.above) == (0.2, above)


def test_a_verdict_is_looked_up_by_role_frame_and_layer() -> None:
    judgement = verdicts(
        verdict("gate", "token", 1), verdict("qk", "token", 1), verdict("gate", "output", 1, above=False)
    )
    assert judgement.of("gate", "token", 1) == replace(judgement.kinds[0], basis=judgement.basis)
    assert judgement.of("qk", "token", 1, offset=16) == replace(judgement.kinds[1], basis=judgement.basis)
    assert judgement.of("qk", "token", 1, offset=2) is None
    for other in (("gate", "token", 2), ("gate", "paper", 1), ("up", "token", 1), ("pos", "output", -1)):
        assert judgement.of(*other) is None


@pytest.mark.parametrize(
    ("value", "chance", "above", "words"),
    [
        (0.281, 0.0149, True, "correlation .28 (null .01)"),
        (0.02, 0.01, False, "correlation .02, not above the null (.01)"),
        (-0.001, -0.3, False, "correlation .00, not above the null (-.30)"),
        (0.999, -0.999, True, "correlation 1.00 (null -1.00)"),
        (1.0, 0.0, True, "correlation 1.00 (null .00)"),
    ],
)
def test_a_verdict_in_words_is_about_a_kind_of_list(value: float, chance: float, above: bool, words: str) -> None:
    for role, layer, kind in (("gate", 1, "gate lists of layer 1"), ("vo", 29, "vo maps of layer 29")):
        judgement = replace(verdict(role, "token", layer), value=value, null=chance, above=above)
        assert judgement.words == f"{kind}: {words}"


GOOD = "correlation .28 (null .01)"
BAD = "correlation .02, not above the null (.01)"
BASIS = "10,000 tokens of a novel, n = 12 to 96 a layer, 2030-01-01"


def test_a_verdict_says_what_it_is_based_on() -> None:
    judges = {"reading": ("gate", 96), "writing": ("value", 12), "promotes": ("vo", 16), "attention": ("qk", 40)}
    every = tuple(replace(verdict(role, "token", 1), measure=name, n=n) for name, (role, n) in judges.items())
    method = {"date": "2030-01-01", "text": "a novel", "tokens": 10_000}
    judgement = Verdicts({"name": "m", "sha256": SHA, "bytes": 7}, method, every)
    assert judgement.basis == BASIS
    assert (
        replace(judgement, kinds=every[:1]).basis == "10,000 tokens of a novel, n = 96 a layer, 2030-01-01, by reading"
    )
    assert replace(judgement, by_values=True).basis == f"{BASIS}, in another file of the same values, m"
    assert replace(judgement, method={}, kinds=()).basis == ""
    assert footnote(judgement, "m") == (
        "correlation: of ranks, all lists of a role and layer with the running model; null: the same for wrong lists; "
        f"measured on {BASIS}."
    )
    judged = judgement.of("gate", "token", 1)
    assert judged is not None
    assert (judged.basis, judged) == (BASIS, replace(every[0], basis=BASIS))
    assert "basis" not in json.dumps(judgement.to_json())
    assert footnote(None, "a b") == "No measurement of these weights is known: zeropass evidence 'a b' makes one."
    assert footnote(None, None) == "No measurement of these weights is known."


def test_the_basis_is_shown_once_below_the_lists_and_in_every_json(llama: small.Built) -> None:
    lens, atlas = zp.Lens(llama.lens.model, verdicts=EVERY), zp.open_atlas(llama.atlas.path, verdicts=EVERY)
    for records in (lens["L1.ff.2"], atlas["L1.ff.2"], lens["L1.attn.2"]):
        assert {r.evidence.basis for r in records if r.evidence} == {EVERY.basis}
        console = Console(file=io.StringIO(), width=400)
        show_records(console, [records], 5)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert shown.count("made up") == 1
        coherent = f" {COHERENCE_NOTE}" if isinstance(records[0], VectorRecord) else ""
        assert shown.endswith(f"{footnote(EVERY, 'm')}{coherent}\n")
        assert records._repr_html_().count("made up") == 1
        assert json.dumps(records.to_json()).count(EVERY.basis) == sum(r.evidence is not None for r in records)
    found = atlas.find("babade")
    assert found.notes == (footnote(EVERY, "m"),)
    assert found._repr_html_().count("made up") == 1


def test_lists_without_verdicts_say_once_that_nothing_is_known(llama: small.Built, cache: Path) -> None:
    name = str(llama.folder)
    for source in (zp.load(name), zp.open_atlas(llama.atlas.path)):
        known = f"No measurement of these weights is known: zeropass evidence {name} makes one."
        assert source["L1.ff.2"].note == f"{known} {COHERENCE_NOTE}"
        assert source["L1.attn.2"].note == known
    console = Console(file=io.StringIO(), width=400)
    show_records(console, [zp.load(name)["L1.ff.2"]], 5)
    assert console.file.getvalue().count("zeropass evidence") == 1  # type: ignore[attr-defined]
    assert zp.open_atlas(llama.atlas.path).find("babade").notes == (zp.load(name)["L1.attn.2"].note,)
    assert not cache.exists()


# --- Files ---------------------------------------------------------------------------------------------------


def test_a_file_restores_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "verdicts.json"
    EVERY.write(path)
    assert read_verdicts(path) == EVERY
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(BadOption, match=f"{path} could not be made"):
        EVERY.write(path / "below.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    EVERY.write(path)
    with pytest.raises(ValueError, match="JSON compliant"):
        verdicts(replace(verdict("gate", "token", 1), value=float("inf"))).write(path)
    assert read_verdicts(path) == EVERY
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _damage(change: Callable[[Any], Any]) -> bytes:
    value = json.loads(json.dumps(EVERY.to_json()))
    return json.dumps(change(value) or value).encode()


DAMAGED = {
    "empty": b"",
    "no UTF-8": b"\xff\xfe",
    "cut": json.dumps(EVERY.to_json()).encode()[:200],
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "other schema": _damage(lambda v: v | {"schema": 2}),
    "no model": _damage(lambda v: v | {"model": None}),
    "no hash": _damage(lambda v: v["model"].pop("sha256") and None),
    "size is text": _damage(lambda v: v["model"].update(bytes="7")),
    "a kind lacks a field": _damage(lambda v: v["kinds"][0].pop("null") and None),
    "a kind has one too many": _damage(lambda v: v["kinds"][0].update(extra=1)),
    "a value is text": _damage(lambda v: v["kinds"][0].update(value="\x1b[31m")),
    "a value is not a number": _damage(lambda v: v["kinds"][0].update(value=float("nan"))),
    "a value is endless": _damage(lambda v: v["kinds"][0].update(null=float("inf"))),
    "a kind has a basis": _damage(lambda v: v["kinds"][0].update(basis="x")),
    "a hash of values that is none": _damage(lambda v: v["model"].update(values_sha256=3)),
    "above is a number": _damage(lambda v: v["kinds"][0].update(above=1)),
    "kinds is a number": _damage(lambda v: v | {"kinds": 3}),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_refused_by_name_and_skipped_in_the_store(how: str, cache: Path) -> None:
    path = cache / "evidence" / f"7-{SHA}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGED[how])
    with pytest.raises(BadOption, match="does not hold verdicts") as error:
        read_verdicts(path)
    assert str(path) in str(error.value)
    assert known_verdicts(7, lambda: SHA) is None
    keep(EVERY)
    assert known_verdicts(7, lambda: SHA) == EVERY


def test_a_file_is_read_once_until_it_changes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(EVERY)
    assert known_verdicts(7, lambda: SHA) == EVERY
    monkeypatch.setattr(module, "read_verdicts", lambda path: replace(EVERY, method={"tokens": 1}))
    assert known_verdicts(7, lambda: SHA) == EVERY
    os.utime(path, ns=(1, 1))
    assert known_verdicts(7, lambda: SHA) == replace(EVERY, method={"tokens": 1})


def test_the_verdicts_in_the_package_can_be_read() -> None:
    paths = list(SHIPPED.glob("*.json"))
    assert len(paths) == 2
    for path in paths:
        shipped = read_verdicts(path)
        assert shipped.kinds
        assert path.name == f"{shipped.model['bytes']}-{shipped.model['sha256']}.json"
        assert known_verdicts(shipped.model["bytes"], lambda shipped=shipped: shipped.model["sha256"]) is not None


# --- The store -----------------------------------------------------------------------------------------------


def test_verdicts_are_stored_by_the_hash_of_the_weights(cache: Path) -> None:
    path = keep(EVERY)
    assert path == cache / "evidence" / f"7-{SHA}.json"
    assert known_verdicts(7, lambda: SHA) == EVERY
    assert known_verdicts(None, lambda: SHA) == EVERY
    assert known_verdicts(7, lambda: "cd" * 32) is None
    assert known_verdicts(8, never) is None


def test_nothing_is_hashed_where_nothing_is_known(cache: Path) -> None:
    assert known_verdicts(7, never) is None
    assert known_verdicts(None, never) is None
    assert not cache.exists()


def test_the_cache_takes_precedence_over_the_package(cache: Path, tmp_path: Path) -> None:
    keep(verdicts(said="shipped"), tmp_path / "shipped")
    other = verdicts(sha256="cd" * 32, said="another model of this size")
    keep(other)
    found = known_verdicts(7, lambda: SHA)
    assert found is not None
    assert found.method["said"] == "shipped"
    keep(verdicts(said="cache"))
    found = known_verdicts(7, lambda: SHA)
    assert found is not None
    assert found.method["said"] == "cache"
    assert known_verdicts(7, lambda: "cd" * 32) == other


@pytest.mark.parametrize("name", ["", "../../" + "a" * 58, "a" * 63, "A" * 64, "a" * 64 + "\n", None])
def test_only_a_hash_becomes_a_file_name(name: Any, cache: Path) -> None:
    with pytest.raises(BadOption, match="64 hexadecimal digits"):
        keep(verdicts(sha256=name))
    assert not cache.exists()


def test_a_user_without_a_home_can_still_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module, "cache_folder", homeless)
    monkeypatch.setattr(module, "SHIPPED", tmp_path)
    assert known_verdicts(7, never) is None


# --- Records -------------------------------------------------------------------------------------------------


def above(record: VectorRecord | PairRecord) -> bool | None:
    return record.evidence.above if record.evidence else None


def test_records_carry_the_verdict_on_their_kind_and_layer(llama: small.Built) -> None:
    lens = zp.Lens(llama.lens.model, verdicts=EVERY)
    atlas = zp.open_atlas(llama.atlas.path, verdicts=EVERY)
    for source in (lens, atlas):
        ff = [above(r) for r in source["L1.ff.2"] if r.frame != "paper"]
        assert ff == [True, True, False, False, False]
        assert [above(r) for r in source["L1.attn.2"] if r.frame == "token"] == [True, False]
        assert [above(r) for r in source["L1.attn.3.k.1"] if r.frame != "paper"] == [True, True]
        for other in ("L2.ff.2", "L2.attn.2", "L0.attn.1.q.0"):
            assert {above(r) for r in source[other]} == {None}
        json.dumps([source["L1.ff.2"].to_json(), source["L1.attn.2"].to_json()], allow_nan=False)
    record = lens["L1.ff.2.gate"][0].to_json()
    assert record["evidence"]["above"] is True
    assert list(record)[-4:] == ["evidence", "spread", "lens", "coherence"]
    assert llama.lens["L2.ff.2"][0].to_json()["evidence"] is None
    assert {above(r) for r in atlas.explain("L1.ff.2", frame="paper")} == {None}


def test_a_map_at_another_offset_was_not_judged(llama: small.Built) -> None:
    lens = zp.Lens(llama.lens.model, verdicts=EVERY)
    assert [above(r) for r in lens.explain("L1.attn.2.qk")] == [True]
    assert [above(r) for r in lens.explain("L1.attn.2.qk", offset=2)] == [None]


def test_hits_say_whether_their_kind_is_above_chance(llama: small.Built) -> None:
    atlas = zp.open_atlas(llama.atlas.path, verdicts=EVERY)
    for found in (atlas.find("babade", k=15), atlas.find("babade", role="value", k=15)):
        assert len({hit.above for hit in found.hits}) > 1
        for hit in found.hits:
            known = EVERY.of(hit.role, hit.frame, zp.parse(hit.address).layer)
            assert hit.above == (known.above if known else None)
        json.dumps(found.to_json(), allow_nan=False)
    assert {hit.above for hit in llama.atlas.find("babade").hits} == {None}


def test_a_lens_and_an_atlas_find_the_verdicts_on_their_weights(llama: small.Built, cache: Path) -> None:
    size = sum(path.stat().st_size for path in llama.lens.model.files.weight_files)
    kept = verdicts(*EVERY.kinds, sha256=llama.lens.model.fingerprint, size=size)
    keep(kept)
    keep(verdicts(sha256="cd" * 32, size=size))
    assert above(zp.load(str(llama.folder))["L1.ff.2.value"][0]) is False
    assert zp.open_atlas(llama.atlas.path).verdicts == kept
    (cache / "evidence" / f"{size}-{llama.lens.model.fingerprint}.json").write_text("{")
    assert above(zp.load(str(llama.folder))["L1.ff.2.value"][0]) is None
    assert zp.open_atlas(llama.atlas.path).verdicts is None


def test_a_lens_hashes_no_weights_of_another_size(
    llama: small.Built, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(verdicts(*EVERY.kinds, size=1))
    monkeypatch.setattr("zeropass.checkpoints.model_files.hashes", lambda files: never())
    assert above(zp.load(str(llama.folder))["L1.ff.2.value"][0]) is None


# --- What is shown -------------------------------------------------------------------------------------------


def printed(what: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_verdict_is_shown_next_to_the_heading(llama: small.Built) -> None:
    lens = zp.Lens(llama.lens.model, verdicts=EVERY)
    gate, _, _, _, value = (r for r in lens["L1.ff.2"])
    qk, vo = lens["L1.attn.2"]
    assert printed(render(replace(gate, top=(), bottom=(), coherence=None))).startswith(
        f"L1.ff.2 gate  sees  no token stands out; gate lists of layer 1: {GOOD}\n"
    )
    loud = replace(value, top=(replace(value.top[0], z=99.0),), coherence=None)
    assert printed(render(loud)).startswith(f"L1.ff.2 value  writes  value lists of layer 1: {BAD}\n")
    assert "token frame, query 16 after key; qk maps of layer 1: correlation .28 (null .01)\n" in printed(render(qk))
    assert "token frame; vo maps of layer 1: correlation .02, not above the null (.01)\n" in printed(render(vo))
    for record in (loud, vo):
        assert "text" not in printed(render(replace(record, evidence=None)))


def test_a_hit_of_a_kind_that_is_not_above_chance_is_marked() -> None:
    hits = tuple(Hit("L1.ff.2", "read", "gate", "token", 1.0, 2.0, above) for above in (True, False, None))
    lines = printed(render_find(FindRecord((), hits), 9)).splitlines()[-3:]
    assert [line.split("gate")[1].strip() for line in lines] == [
        "top",
        "top; lists of its role and layer are not above the null",
        "top",
    ]


def test_the_notebook_shows_the_same_verdicts(llama: small.Built) -> None:
    lens = zp.Lens(llama.lens.model, verdicts=EVERY)
    assert "; gate lists of layer 1: correlation .28 (null .01)</small></caption>" in lens["L1.ff.2.gate"]._repr_html_()
    assert (
        "<small>token frame; vo maps of layer 1: correlation .02, not above the null (.01)</small>"
        in lens["L1.attn.2.vo"]._repr_html_()
    )
    assert "correlation" not in llama.lens["L1.ff.2.gate"]._repr_html_()
    hits = tuple(Hit("L1.ff.2", "read", "gate", "token", 1.0, 2.0, above) for above in (True, False, None))
    assert FindRecord((), hits)._repr_html_().count("not above the null") == 1


def test_a_tour_explains_what_it_shows(llama: small.Built) -> None:
    for known in (EVERY, None):
        console = Console(file=io.StringIO(), width=160)
        print_tour(console, zp.open_atlas(llama.atlas.path, verdicts=known))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert (shown.count("correlation: of ranks, all") == 1) == ("null .01)" in shown) == (known is not None)


def test_the_explorer_says_what_a_verdict_is_about_and_paints_none_green(llama: small.Built) -> None:
    contexts = contexts_of(llama.atlas.path)
    contexts[0].atlas = zp.open_atlas(llama.atlas.path, verdicts=EVERY)
    with serving(contexts) as address:
        pages = {path: Seen(httpx.get(address + path).text) for path in ("/at/L1.ff.2", "/at/L1.attn.2", "/token/257")}
        records = httpx.get(f"{address}/at/L1.ff.2.json").json()
    assert "gate lists of layer 1: correlation .28 (null .01)" in pages["/at/L1.ff.2"].text
    assert "value lists of layer 1: correlation .02, not above the null (.01)" in pages["/at/L1.ff.2"].text
    assert "qk maps of layer 1: correlation .28 (null .01)" in pages["/at/L1.attn.2"].text
    assert "lists of its layer" in pages["/token/257"].text
    for page in pages.values():
        assert page.text.count(footnote(EVERY, "m")) == 1
        assert {value for _, name, value in page.attributes if name == "class" and "verdict" in value} <= {
            "verdict",
            "verdict below",
        }
    assert records[0]["evidence"] == EVERY.of("gate", "token", 1).__dict__
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    assert "--good" not in style
