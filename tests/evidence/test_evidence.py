"""Evidence on planted truth, on a random model, against slow twins, and on bad input."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM

import planted_models as planted
import zeropass as zp
from commands import Run
from zeropass.errors import BadOption
from zeropass.evidence import measure, overlap, resampling
from zeropass.evidence.activations import Settings, record_activations
from zeropass.evidence.attention import _Ranked
from zeropass.evidence.judging import verdicts_of
from zeropass.evidence.results import Evidence, Result, read_evidence
from zeropass.evidence.run import _why_not_kept
from zeropass.model.running import Running
from zeropass.model.texts import windows
from zeropass.records.verdicts import Verdict, Verdicts, keep

SETTINGS = Settings(
    tokens=3000,
    window=64,
    vectors=40,
    noise=40,
    positions=24,
    k=10,
    contexts=6,
    prefix=16,
    query_windows=4,
    queries=8,
)
TEXT = planted.text(3000)
LAST = planted.LAYERS - 1


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Set one thread: small products on busy cores are slower with several."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def planted_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def random_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.at_random(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def planted_evidence(planted_path: Path) -> Evidence:
    return measure.measure(zp.open_model(str(planted_path)), TEXT, "made up", SETTINGS)


@pytest.fixture(scope="module")
def random_evidence(random_path: Path) -> Evidence:
    return measure.measure(zp.open_model(str(random_path)), TEXT, "made up", SETTINGS)


# --- planted truth: everything at the ceiling ------------------------------------------------------------------------


def only_result(evidence: Evidence, **criteria: object) -> Result:
    results = evidence.select(**criteria)
    assert len(results) == 1, criteria
    return results[0]


@pytest.mark.parametrize("role", ["gate", "up", "q", "k", "v"])
def test_planted_readers_fire_on_the_tokens_of_their_lists(planted_evidence: Evidence, role: str) -> None:
    for layer in range(planted.LAYERS):
        result = only_result(
            planted_evidence,
            measure="reading",
            role=role,
            layer=layer,
            frame="token",
            target="current",
            metric="spearman",
        )
        assert result.value > 0.97
        assert result.above
        assert only_result(planted_evidence, **_like(result, metric="top-k")).value > 0.9
        assert only_result(planted_evidence, **_like(result, metric="position")).value > 0.97


def _like(result: Result, **changed: object) -> dict[str, object]:
    names = ("measure", "role", "layer", "frame", "target", "metric")
    return {name: getattr(result, name) for name in names} | changed


def test_planted_writers_raise_the_tokens_of_their_lists(planted_evidence: Evidence) -> None:
    for measured, role, frame in (
        ("writing", "value", "output"),
        ("writing", "o", "output"),
        ("promotes", "vo", "token"),
    ):
        result = only_result(
            planted_evidence, measure=measured, role=role, layer=LAST, frame=frame, target="logits", metric="spearman"
        )
        assert result.value > 0.97
        assert result.above
        assert only_result(planted_evidence, **_like(result, metric="top-k")).value > 0.9


def test_planted_heads_attend_as_qk_says_at_the_true_offsets(planted_evidence: Evidence) -> None:
    for layer in range(planted.LAYERS):
        true, assumed = (
            only_result(
                planted_evidence,
                measure="attention",
                role="qk",
                layer=layer,
                frame="token",
                target=target,
                metric="spearman",
            )
            for target in ("true offsets", "offset 0")
        )
        assert true.value > 0.97
        assert true.above
        assert 0.4 < assumed.value < true.value


def test_planted_states_show_the_tokens_of_the_active_neurons(planted_evidence: Evidence) -> None:
    for role in ("gate", "up", "value"):
        result = only_result(
            planted_evidence, measure="states", role=role, layer=LAST, frame="output", target="same layer"
        )
        assert result.value > 0.95
        null = result.null("permuted")
        assert null is not None
        assert null.beaten


def test_planted_pairs_agree(planted_evidence: Evidence) -> None:
    for pair in ("gate-up", "gate-value", "up-value", "v-o", "q-k"):
        result = only_result(planted_evidence, measure="pairs", role=pair, layer=LAST, frame="paper")
        assert result.value > 0.99
        assert result.above


def test_the_pseudo_inverse_of_the_whole_vocabulary_is_exact(planted_evidence: Evidence) -> None:
    for kind in ("value", "state", "noise"):
        result = only_result(planted_evidence, measure="inverses", role=kind, target=f"pseudo-inverse, k={planted.V}")
        assert result.value > 0.9999


# --- a model that was never trained ----------------------------------------------------------------------------------


def share_explained(evidence: Evidence, null: str, **criteria: object) -> float:
    """Return the share of results that a null explains or nearly explains (intervals of two heads say little)."""
    results = evidence.select(**criteria)
    assert results
    nulls = [(r.value, n) for r in results for n in r.nulls if n.name == null]
    return sum(n.indistinguishable or abs(value - n.mean) < 0.1 for value, n in nulls) / len(results)


@pytest.mark.parametrize("measured", ["reading", "writing", "promotes", "attention"])
def test_random_parameters_are_as_good_as_noise(random_evidence: Evidence, measured: str) -> None:
    assert share_explained(random_evidence, "noise", measure=measured) > 0.8


def test_random_pairs_and_next_tokens_are_inside_every_null(random_evidence: Evidence) -> None:
    for null in ("permuted", "rotated", "noise"):
        assert share_explained(random_evidence, null, measure="pairs") > 0.8
        assert share_explained(random_evidence, null, measure="reading", target="next") > 0.8


def test_random_states_overlap_by_geometry_alone(random_evidence: Evidence) -> None:
    assert share_explained(random_evidence, "rotated", measure="states") > 0.8


def test_even_a_random_network_carries_its_token_so_right_lists_beat_wrong_ones(random_evidence: Evidence) -> None:
    """Check docs/theory.md, section 8: agreement with one's own list is geometry, not learning."""
    for measured, role, target in (("reading", "gate", "current"), ("writing", "value", "logits")):
        frame = "token" if measured == "reading" else "output"
        results = random_evidence.select(
            measure=measured, role=role, target=target, frame=frame, metric="spearman", layer=LAST
        )
        assert all(result.above for result in results)


# --- slow twins ------------------------------------------------------------------------------------------------------


def columns(rows: int, count: int, seed: int) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(seed))


@given(st.integers(3, 40), st.integers(1, 5), st.integers(0, 9))
def test_spearman_agrees_with_scipy(rows: int, count: int, seed: int) -> None:
    x, y = columns(rows, count, seed), columns(rows, count, seed + 100)
    expected = [stats.spearmanr(x[:, i].numpy(), y[:, i].numpy()).statistic for i in range(count)]
    assert resampling.spearman(x, y).tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 9))
def test_overlap_counts_common_tokens(rows: int, k: int, seed: int) -> None:
    x, y = columns(rows, 2, seed), columns(rows, 2, seed + 100)
    k = min(k, rows)
    expected = [
        len(set(x[:, i].topk(k).indices.tolist()) & set(y[:, i].topk(k).indices.tolist())) / k for i in range(2)
    ]
    assert resampling.overlap(x, y, k).tolist() == pytest.approx(expected)


def test_masked_ranks_leave_out_masked_keys() -> None:
    logits, other = torch.randn(2, 2, 3, 9, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) <= torch.tensor([[3], [5], [8]])
    x, y = _Ranked.of(logits, mask), _Ranked.of(other, mask)
    correlations = (x.ranks * y.ranks).sum(-1) / (x.ranks.square().sum(-1) * y.ranks.square().sum(-1)).sqrt()
    for head in range(2):
        for query, last in enumerate((3, 5, 8)):
            pair = (v[head, query, : last + 1].numpy() for v in (logits, other))
            assert float(correlations[head, query]) == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-6)


def test_recall_and_jaccard_agree_with_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    tops = torch.stack([torch.randperm(30, generator=generator)[:6] for _ in range(8)])
    sets = torch.stack([torch.randperm(30, generator=generator)[:6] for _ in range(24)]).reshape(8, 3, 6)
    recalls, jaccards = overlap._recall(sets, tops).tolist(), overlap._jaccard(tops, sets[:, 0]).tolist()
    for i in range(8):
        mine, union, other = set(tops[i].tolist()), set(sets[i].flatten().tolist()), set(sets[i, 0].tolist())
        assert recalls[i] == pytest.approx(len(mine & union) / 6)
        assert jaccards[i] == pytest.approx(len(mine & other) / len(mine | other))


def test_tallies_are_means_of_what_the_model_computes(random_path: Path) -> None:
    """Compare means by token type with a plain run of the whole model, window by window."""
    model = zp.open_model(str(random_path))
    running = Running(model)
    ids = torch.tensor(model.vocab.encode(TEXT))[:640]
    settings = replace(SETTINGS, tokens=640, least=3)
    activations = record_activations(running, ids, settings, lambda *_: None)
    chosen, tally = activations.chosen[1, "gate"], activations.tallies[1, "gate"]
    hf = AutoModelForCausalLM.from_pretrained(random_path, dtype=torch.float32).eval()
    gates: list[Tensor] = []
    hook = hf.model.layers[1].mlp.gate_proj.register_forward_hook(lambda _m, _i, out: gates.append(out[0]))
    with torch.no_grad():
        logits = torch.cat([hf(part[None]).logits[0] for part in windows(ids, 64)])
    hook.remove()
    gate, predicted = torch.cat(gates)[:, chosen], logits.argmax(-1)
    following = torch.cat((ids[1:], ids[:1]))
    counted = torch.isin(ids, activations.types)
    for plane, target in enumerate((ids, following, predicted)):
        for number, kind in enumerate(activations.types.tolist()):
            expected = gate[(target == kind) & counted].sum(0)
            torch.testing.assert_close(tally.sums[plane, number], expected, atol=1e-4, rtol=1e-4)
        inside = counted & torch.isin(target, activations.types)
        torch.testing.assert_close(tally.squares[plane], gate[inside].square().sum(0), atol=1e-4, rtol=1e-4)
        assert int(activations.together[plane].sum()) == int(inside.sum())


# --- intervals -------------------------------------------------------------------------------------------------------


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        sample = torch.randn(60, generator=generator)
        result = resampling.summarised("reading", 0, "gate", "token", "current", "spearman", sample, {})
        covered += result.low <= 0 <= result.high
    assert 0.88 < covered / 200 < 0.99


def test_a_null_is_beaten_only_where_it_differs() -> None:
    generator = torch.Generator().manual_seed(0)
    sample, same, below = torch.randn(3, 80, generator=generator)
    nulls = {"permuted": same, "rotated": below - 2, "noise": torch.full((4,), float("nan"))}
    result = resampling.summarised("reading", 0, "gate", "token", "current", "spearman", sample, nulls)
    permuted, rotated = result.nulls
    assert permuted.indistinguishable
    assert not permuted.beaten
    assert rotated.beaten
    assert rotated.effect == pytest.approx(2, abs=0.5)
    assert not result.above


def test_rotations_keep_lengths_and_partners_are_others() -> None:
    turn = resampling.rotation(16, 0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(16), atol=1e-5, rtol=1e-5)
    items = torch.arange(7)
    assert (resampling.partner(items) != items).all()


# --- the folder, and continuing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "made-up.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Send verdicts to a cache of the test's own."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("ZEROPASS_CACHE", str(cache))
    return cache


def test_a_folder_holds_report_json_parquet_and_verdicts(
    random_path: Path, text_file: Path, tmp_path: Path, no_cache: Path
) -> None:
    out = tmp_path / "evidence"
    collected = zp.collect_evidence(str(random_path), text_file, out, tokens=1200, only=("reading", "pairs"), keep=True)
    assert {p.name for p in out.iterdir()} == {
        "evidence.json",
        "evidence.parquet",
        "report.html",
        "verdicts.json",
        "parts",
    }
    assert read_evidence(out) == json_round(collected.evidence)
    rows = duckdb.sql(f"SELECT count(*) FROM '{out}/evidence.parquet'").fetchall()[0][0]
    assert rows == sum(max(len(r.nulls), 1) for r in collected.evidence.results)
    assert collected.evidence.method["tokens"] == 1200
    assert collected.evidence.method["text"] == "made-up.txt"
    assert list((no_cache / "evidence").iterdir())
    lens = zp.load(str(random_path))
    record = lens.explain("L1.ff.3.gate", frame="token")[0]
    assert record.evidence is not None
    assert record.evidence.value == pytest.approx(
        only_result(
            collected.evidence,
            measure="reading",
            role="gate",
            layer=1,
            frame="token",
            target="current",
            metric="spearman",
        ).value
    )


USUAL = "; the usual run takes 10,000 tokens and every measure). --keep keeps it."


def test_a_small_run_is_kept_only_if_asked_for(
    random_path: Path,
    text_file: Path,
    tmp_path: Path,
    no_cache: Path,
    run: Run,
) -> None:
    line = ["evidence", random_path, "--text", text_file, "--out", tmp_path / "out"]
    line += ["--tokens", 1200, "--only", "reading"]
    answer = run.json(*line)
    note = f"Not kept for show and explain: it is a small run (1,200 tokens, reading{USUAL}"
    assert (answer["kept"], answer["note"]) == (False, note)
    assert not (no_cache / "evidence").exists()
    assert zp.load(str(random_path))["L1.ff.3"].note.startswith("No measurement of these weights is known")
    code, shown, _ = run(*line)
    assert (code, note in shown.splitlines()) == (0, True)
    answer = run.json(*line, "--keep")
    assert (answer["kept"], answer["note"]) == (True, "Kept: show quotes it.")
    (record,) = zp.load(str(random_path)).explain("L1.ff.3.gate", frame="token")
    assert record.evidence is not None
    assert record.evidence.basis.startswith("1,200 tokens of made-up.txt, n = ")
    assert record.evidence.basis.endswith(", by reading")
    assert read_evidence(tmp_path / "out").method["measures"] == ["reading"]


@pytest.mark.parametrize(
    ("tokens", "measures", "why"),
    [
        (10_000, measure.PARTS, ""),
        (20_000, measure.PARTS, ""),
        (9_999, measure.PARTS, f"it is a small run (9,999 tokens, every measure{USUAL}"),
        (10_000, measure.PARTS[1:], f"it is a small run (10,000 tokens, {', '.join(measure.PARTS[1:])}{USUAL}"),
    ],
)
def test_the_usual_run_is_kept_and_a_smaller_one_is_not(
    random_path: Path, no_cache: Path, tokens: int, measures: tuple[str, ...], why: str
) -> None:
    model = zp.open_model(str(random_path))
    facts = {"name": "m", "sha256": model.fingerprint, "bytes": model.size}
    evidence = Evidence(facts, {"tokens": tokens, "measures": list(measures)}, ())
    kinds = (Verdict("gate", "token", 1, "reading", "current", "spearman", 0.5, 0.1, 9, True),)
    assert _why_not_kept(evidence, Verdicts(facts, evidence.method, kinds), model) == why


def test_a_smaller_run_replaces_a_larger_one_only_if_asked_for(
    random_path: Path, text_file: Path, tmp_path: Path, no_cache: Path
) -> None:
    model = zp.open_model(str(random_path))
    facts = {"name": "m", "sha256": model.fingerprint, "bytes": model.size}
    kinds = tuple(Verdict("gate", "token", n, "reading", "current", "spearman", 0.5, 0.1, 9, True) for n in range(500))
    keep(Verdicts(facts, {"tokens": 50_000, "text": "a library"}, kinds))
    evidence = Evidence(facts, {"tokens": 10_000, "measures": list(measure.PARTS)}, ())
    less = Verdicts(facts, evidence.method, kinds[:3])
    assert "rests on more (50,000 tokens of a library, n = 9 a layer, by reading)" in _why_not_kept(
        evidence, less, model
    )
    assert _why_not_kept(evidence, replace(less, kinds=()), model) == "nothing that was measured judges a list."
    more = Verdicts(facts, {"tokens": 60_000}, kinds)
    assert _why_not_kept(replace(evidence, method=evidence.method | {"tokens": 60_000}), more, model) == ""


def json_round(evidence: Evidence) -> Evidence:
    return Evidence.from_json(json.loads(json.dumps(evidence.to_json())))


def test_a_stopped_measurement_continues(random_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zp.open_model(str(random_path))
    undisturbed = measure.measure(model, TEXT, "made up", SETTINGS, parts=("reading", "pairs"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(overlap, "pairs", stop)
        with pytest.raises(KeyboardInterrupt):
            measure.measure(model, TEXT, "made up", SETTINGS, parts=("reading", "pairs"), folder=tmp_path)
    assert {p.name for p in (tmp_path / "parts").iterdir()} == {"reading.json"}
    seen: list[str] = []
    again = measure.measure(
        model,
        TEXT,
        "made up",
        SETTINGS,
        parts=("reading", "pairs"),
        folder=tmp_path,
        progress=lambda what, *_: seen.append(what),
    )
    assert again.results == undisturbed.results
    assert set(seen) == {"pairs"}, "what was measured is not measured again"
    other = measure.measure(model, TEXT[::-1], "backwards", SETTINGS, parts=("reading",), folder=tmp_path)
    assert other.results != undisturbed.select(measure="reading"), "another text does not reuse the parts"


def test_two_runs_agree_to_the_last_bit(random_path: Path) -> None:
    model = zp.open_model(str(random_path))
    first, second = (measure.measure(model, TEXT, "made up", SETTINGS, parts=("writing",)) for _ in range(2))
    assert first.results == second.results


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"  \n\n ", "holds no text"),
        (b"a few words", "The text has 11 tokens of"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"a" * 2000, "token types occur"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(
    random_path: Path,
    tmp_path: Path,
    content: bytes,
    message: str,
    run: Run,
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    code, _, err = run("evidence", random_path, "--text", path, "--out", tmp_path / "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out" / "evidence.json").exists()


def test_a_text_shorter_than_asked_for_is_used_and_noted(random_path: Path) -> None:
    evidence = measure.measure(zp.open_model(str(random_path)), TEXT[:900], "short", SETTINGS, parts=("reading",))
    assert evidence.method["tokens"] == 900
    assert evidence.notes == ("The text has 900 tokens; 3000 were asked for.",)


def test_a_folder_that_is_something_else_is_left_alone(random_path: Path, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(BadOption, match="does not hold evidence"):
        zp.collect_evidence(str(random_path), text_file, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_an_unknown_measure_is_refused(random_path: Path) -> None:
    with pytest.raises(BadOption, match="There is no measure 'guessing'; measures are writing, reading"):
        measure.measure(zp.open_model(str(random_path)), TEXT, "made up", SETTINGS, parts=("guessing",))


def test_a_model_that_cannot_be_run_keeps_the_static_part(random_path: Path, tmp_path: Path) -> None:
    for file in random_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    scaled = {"rope_type": "ntk", "rope_theta": 10000.0, "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_parameters": scaled}))
    evidence = measure.measure(zp.open_model(str(tmp_path)), TEXT, "made up", SETTINGS)
    assert {r.measure for r in evidence.results} == {"pairs", "inverses"}
    assert {r.role for r in evidence.select(measure="inverses")} == {"value", "noise"}
    assert set(evidence.left_out) == {"writing", "reading", "attention", "states", "inverses"}
    assert "RoPE scaling 'ntk' is not known" in evidence.left_out["reading"]
    assert verdicts_of(evidence).kinds == ()


def test_a_vocabulary_that_does_not_fit_is_refused(random_path: Path, tmp_path: Path, run: Run) -> None:
    for file in random_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {f"{piece}x": i for piece, i in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] |= {f"more{i}": 256 + i for i in range(9)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    code, _, err = run("evidence", tmp_path, "--text", path, "--out", tmp_path / "out")
    assert code == 2
    assert "with the id 264, are beyond the 256 rows of the embedding" in err


def test_transformers_is_not_needed(random_path: Path, text_file: Path, tmp_path: Path, no_cache: Path) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('no such package')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport zeropass.cli.main as cli\ncli.main()\n"
    line = ["evidence", random_path, "--text", text_file, "--out", tmp_path / "out", "--only", "attention"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, line)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
