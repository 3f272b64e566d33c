"""The contents and answers of an atlas, against plain products in float64 over the whole small model."""

import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import small
import zeropass as zp
from zeropass.arch.frame_names import LENS_FRAMES, RELATIVE, space_of
from zeropass.errors import BadAddress, BadOption, UnknownWord
from zeropass.model.vectors import vector_set
from zeropass.numerics.token_index import TokenIndex

TOLERANCE = 1e-4
KINDS = ["llama", "gpt2", "bert", "llama+lens", "bert+lens"]


class Scan:
    """Every list of an atlas over the whole vocabulary, in float64."""

    def __init__(self, built: small.Built) -> None:
        self.lens, self.atlas, self.folder = built.lens, built.atlas, built.folder
        self.kept = np.flatnonzero(self.lens.model.vocab.mask("default", *self.lens.judgement))

    @cached_property
    def parameters(self) -> pd.DataFrame:
        return pd.read_parquet(self.atlas.path / "parameters.parquet")

    @cached_property
    def _all(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        keys = self.parameters.groupby(["layer", "role", "frame"], sort=False)["id"].count()
        return [self._part(layer, role, frame, n) for (layer, role, frame), n in keys.items()]

    def _part(self, layer: int, role: str, frame: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        vectors = vector_set(self.lens.model, layer, role)
        assert len(vectors.addresses) == count
        frames = self.lens.frames
        folded = frames.folded(vectors, frame).double().numpy()
        rows = frames.rows(space_of(frame, vectors.side, vectors.reads_at)).matrix.double().numpy()
        scores = folded @ rows.T
        used = scores[:, self.lens.model.vocab.used]
        mean, std = used.mean(1), used.std(1)
        if frame in RELATIVE:
            sizes = np.sqrt(np.square((scores - mean[:, None]) / std[:, None]).mean(0))
            return (scores - mean[:, None]) / np.where(sizes > 0, sizes, np.inf), np.zeros_like(mean), std
        return scores, mean, std

    @cached_property
    def mean(self) -> np.ndarray:
        return np.concatenate([mean for _, mean, _ in self._all])

    @cached_property
    def std(self) -> np.ndarray:
        return np.concatenate([std for _, _, std in self._all])

    @cached_property
    def z(self) -> np.ndarray:
        scores = np.concatenate([scores for scores, _, _ in self._all])
        return (scores - self.mean[:, None]) / self.std[:, None]


_SCANS: dict[str, Scan] = {}


@pytest.fixture(params=KINDS)
def scan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    if request.param not in _SCANS:
        _SCANS[request.param] = Scan(small.built(request.param, tmp_path_factory))
    return _SCANS[request.param]


@pytest.fixture
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


def best(values: np.ndarray, k: int) -> np.ndarray:
    return np.sort(values)[::-1][:k]


def close(found: Any, expected: Any) -> bool:
    return bool(np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE))


# --- Stored tables -------------------------------------------------------------------------------------------


def test_every_parameter_is_stored_once_in_each_frame(scan: Scan) -> None:
    model, p = scan.lens.model, scan.parameters
    assert p["id"].tolist() == list(range(len(p))) == list(range(scan.atlas.manifest["lists"]))
    assert not p.duplicated(["address", "role", "frame"]).any()
    counts = p[p["layer"] == 1].groupby(["role", "frame"])["id"].count().to_dict()
    n, q = model.dims.neurons, model.dims.heads * model.dims.head_dim
    kv = model.dims.kv_heads * model.dims.head_dim
    sizes = dict.fromkeys(model.family.ff_roles, n) | {"q": q, "o": q, "k": kv, "v": kv}
    for role, size in sizes.items():
        frames = ("output", "paper") if role in ("value", "o") else ("token", "output", "paper")
        assert all(counts[role, frame] == size for frame in frames)
    named = p.drop_duplicates(["address", "role"])
    assert {str(zp.parse(a)) for a in named["address"]} == set(named["address"])


def test_mean_and_deviation_are_taken_over_all_tokens_in_use(scan: Scan) -> None:
    assert close(scan.parameters["mean"], scan.mean)
    assert close(scan.parameters["std"], scan.std)


def test_every_list_is_the_top_and_bottom_of_a_full_scan(scan: Scan) -> None:
    seen = 0
    for path in sorted((scan.atlas.path / "lists").iterdir()):
        for row in pd.read_parquet(path).itertuples():
            z = scan.z[row.id]
            for ids, zs, sign in ((row.top_ids, row.top_z, 1), (row.bottom_ids, row.bottom_z, -1)):
                assert len(set(ids)) == small.OPTIONS.k
                assert close(sign * np.asarray(zs), best(sign * z[scan.kept], small.OPTIONS.k))
                assert close(z[ids], zs)
                assert set(ids) <= set(scan.kept)
            seen += 1
    assert seen == len(scan.parameters)


def test_every_head_map_has_the_best_pairs_of_the_whole_matrix(scan: Scan) -> None:
    model = scan.lens.model
    for layer, kind in itertools.product(range(model.dims.layers), ("qk", "vo")):
        table = pd.read_parquet(scan.atlas.path / "pairs" / f"L{layer}.{kind}.parquet")
        assert table["head"].tolist() == list(range(model.dims.heads))
        for row in table.itertuples():
            offset = scan.lens.frames.usual_offset(kind, row.frame)
            assert row.offset == offset
            product = scan.lens.frames.head_map(layer, row.head, kind, row.frame, offset)
            matrix = (product.left.double() @ product.right.double().T).numpy()
            assert close(row.scores, best(matrix[np.ix_(scan.kept, scan.kept)].ravel(), small.OPTIONS.pairs))
            assert close(matrix[row.left_ids, row.right_ids], row.scores)
            assert set(row.left_ids) | set(row.right_ids) <= set(scan.kept)
            assert len(set(zip(row.left_ids, row.right_ids, strict=True))) == small.OPTIONS.pairs
            assert row.complete
            assert row.kth == row.scores[-1]


def test_the_hits_of_every_token_are_those_of_a_full_scan(scan: Scan) -> None:
    hits = pd.read_parquet(scan.atlas.path / "hits.parquet")
    kinds = {kind: part["id"].to_numpy() for kind, part in scan.parameters.groupby(["side", "frame"])}
    assert set(hits.groupby(["side", "frame"]).groups) == set(kinds)
    for (side, frame, token), part in hits.groupby(["side", "frame", "token"]):
        z = scan.z[kinds[side, frame], token]
        count = min(small.OPTIONS.k, len(z))
        assert part["rank"].tolist() == list(range(count))
        assert close(part["z"].abs(), best(np.abs(z), count))
        assert close(scan.z[part["id"], token], part["z"])
    assert set(hits["token"]) == set(scan.kept)


def test_the_tokens_table_names_every_token_and_why_it_is_hidden(scan: Scan) -> None:
    tokens = pd.read_parquet(scan.atlas.path / "tokens.parquet")
    vocab = scan.lens.model.vocab
    assert tokens["token"].tolist() == [vocab.label(i) for i in range(vocab.size)]
    assert tokens["in_all"].all()
    assert np.flatnonzero(tokens["in_default"]).tolist() == scan.kept.tolist()
    assert not (tokens["in_words"] & ~tokens["in_default"]).any()
    assert scan.atlas.manifest["tokens_shown"] == len(scan.kept)
    assert sum(scan.atlas.manifest["tokens_hidden"]["default"].values()) == small.V - len(scan.kept)


# --- From words to parameters --------------------------------------------------------------------------------


def tokens_of(scan: Scan) -> Iterator[tuple[str, int]]:
    """Yield some words that are a single token, with its id."""
    vocab = scan.lens.model.vocab
    spaced = vocab.kind == "bytes"
    for word in small.words(230)[110:230:25]:
        (token,) = vocab.find(f" {word}" if spaced else word)
        yield vocab.text(token), token


def check_hits(scan: Scan, search: Any, z: np.ndarray, chosen: pd.DataFrame, k: int) -> None:
    """Check that the hits are the k best of each kind by |z|, and that each is described as it is."""
    for (side, frame), part in chosen.groupby(["side", "frame"]):
        hits = [hit for hit in search.hits if (hit.side, hit.frame) == (side, frame)]
        assert close([abs(hit.z) for hit in hits], best(np.abs(z[part["id"]]), k))
        at = part.set_index(["address", "role"])["id"]
        for hit in hits:
            i = at[hit.address, hit.role]
            assert close(hit.z, z[i])
            assert close(hit.score, z[i] * scan.std[i] + scan.mean[i])
    kinds = set(zip(chosen["side"], chosen["frame"], strict=True))
    assert {(hit.side, hit.frame) for hit in search.hits} == kinds
    sizes = [abs(hit.z) for hit in search.hits]
    assert sizes == sorted(sizes, reverse=True)


def test_a_token_is_found_by_its_z(scan: Scan) -> None:
    for text, token in tokens_of(scan):
        search = scan.atlas.find(text, k=10)
        assert [t.id for t in search.query] == [token]
        check_hits(scan, search, scan.z[:, token], scan.parameters, 10)


def test_what_the_stored_lists_lack_is_found_by_a_scan(scan: Scan) -> None:
    text, token = next(tokens_of(scan))
    check_hits(scan, scan.atlas.find(text, k=20), scan.z[:, token], scan.parameters, 20)
    hidden = scan.lens.model.vocab.special.nonzero()[0][0]
    search = scan.atlas.find(scan.lens.model.vocab.text(hidden), k=5)
    check_hits(scan, search, scan.z[:, hidden], scan.parameters, 5)


def test_a_concept_is_found_by_its_mean_z(scan: Scan) -> None:
    texts, ids = zip(*tokens_of(scan), strict=True)
    search = scan.atlas.find(list(texts), k=7)
    assert [t.id for t in search.query] == list(ids)
    check_hits(scan, search, scan.z[:, list(ids)].mean(1), scan.parameters, 7)


def test_the_stored_hits_and_the_scan_agree(scan: Scan) -> None:
    for text, token in tokens_of(scan):
        stored = scan.atlas.find(text, k=10).hits
        scanned = scan.atlas.scan({token: 1.0}, k=10)
        assert close([hit.z for hit in stored], [z for _, z in scanned])


@pytest.mark.parametrize(
    "options",
    [
        {"side": "read"},
        {"side": "write"},
        {"role": "q"},
        {"role": "value"},
        {"layers": (1, 2)},
        {"layers": (0, 2), "role": "k"},
        {"side": "write", "layers": (2, 3)},
    ],
)
def test_find_is_limited_to_the_chosen_parameters(scan: Scan, options: dict[str, Any]) -> None:
    text, token = next(tokens_of(scan))
    p = scan.parameters
    for name in ("side", "role"):
        p = p[p[name] == options[name]] if name in options else p
    first, stop = options.get("layers", (-1, small.LAYERS))
    p = p[(p["layer"] >= first) & (p["layer"] < stop)]
    check_hits(scan, scan.atlas.find(text, k=6, **options), scan.z[:, token], p, 6)


def test_a_word_is_tried_with_and_without_its_space(llama: small.Built) -> None:
    word = small.words(1)[0]
    texts = [t.token for t in llama.atlas.find(word).query]
    assert texts == [f" {word}", word]
    assert [t.token for t in llama.atlas.find(f" {word}").query] == [f" {word}"]


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ("babade", {"side": "sideways"}, "read, write"),
        ("babade", {"role": "nose"}, "gate"),
        ("babade", {"layers": (7, 9)}, "0:3"),
        ("babade", {"layers": (2, 1)}, "0:3"),
        ("babade", {"k": 0}, "at least 1"),
        ([], {}, "at least one word"),
    ],
)
def test_find_refuses_bad_options(llama: small.Built, words: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        llama.atlas.find(words, **options)


def test_an_empty_word_is_refused(scan: Scan) -> None:
    with pytest.raises(UnknownWord):
        scan.atlas.find("")


# --- From parameters to words --------------------------------------------------------------------------------

ADDRESSES = {
    "llama": [
        "L0.ff.3",
        "L2.ff.47.up",
        "L1.attn.3",
        "L0.attn.1.qk",
        "L1.attn.2.q.7",
        "L1.attn.3.k.5",
        "L2.attn.1.v.0",
        "L1.attn.3.o.6",
        "L1.attn.bias",
        "L1.attn.3.q.bias",
        "L1.attn.3.v.bias",
    ],
    "gpt2": [
        "L0.ff.5",
        "L1.attn.2",
        "L2.attn.3.k.7",
        "L1.ff.bias",
        "L1.ff.norm",
        "L0.attn.norm",
        "final.norm",
        "L2.attn.1.q.bias",
        "L2.attn.1.v.bias",
        "pos.0",
        "pos.19",
    ],
    "bert": [
        "L0.ff.5",
        "L1.attn.2",
        "L2.attn.3.v.7",
        "L1.ff.bias",
        "L1.ff.norm",
        "L2.attn.norm",
        "embed.norm",
        "pos.19",
        "type.1",
        "pooler.31",
    ],
}


def same(found: Any, expected: Any, where: str = "") -> None:
    """Assert that JSON is equal, numbers to rounding; equal scores may come in another order."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        if expected and isinstance(expected[0], dict) and "score" in expected[0]:
            scores = [x["score"] for x in expected]
            assert close([x["score"] for x in found], scores), where
            equal = np.abs(np.diff(scores)) < TOLERANCE
            tied = np.r_[equal, True] | np.r_[False, equal]  # the last may tie with one that is not listed
            found, expected = ([x for x, t in zip(y, tied, strict=True) if not t] for y in (found, expected))
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            same(a, b, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE), where
    else:
        assert found == expected, where


def without_bounds(records: Any) -> Any:
    """Return records as JSON, without the bound: where a search stops depends on the rows it was given."""
    listed = records.to_json()
    for record in listed:
        record.get("certificate", {}).pop("bound", None)
    return listed


def addresses() -> list[tuple[str, str]]:
    return [(kind, address) for kind in KINDS for address in ADDRESSES[kind.partition("+")[0]]]


@pytest.mark.parametrize(("kind", "address"), addresses())
def test_atlas_and_lens_say_the_same(kind: str, address: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    built = small.built(kind, tmp_path_factory)
    for frame in ("token", "output", None, *(LENS_FRAMES if built.atlas.lens else ())):
        expected, stored = (_or_refused(source, address, frame) for source in (built.lens, built.atlas))
        if isinstance(stored, list) and frame is None:  # the atlas shows every frame that it holds, paper too
            usual = {(record["role"], record["frame"]) for record in expected}
            stored = [record for record in stored if (record["role"], record["frame"]) in usual]
        if "attn" in address and zp.parse(address).role in ("qk", "vo", "") and stored == "refused":
            continue  # an atlas stores maps in one frame
        same(stored, expected, f"{kind} {address}")


def _or_refused(source: Any, address: str, frame: str | None) -> Any:
    try:
        return without_bounds(source.explain(address, frame=frame, k=10))
    except BadOption:
        return "refused"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", ["default", "words", "ascii", "all"])
def test_views_and_lengths_that_are_not_stored_agree_with_the_lens(
    kind: str, view: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    built = small.built(kind, tmp_path_factory)
    for address, seen in (("L1.ff.2", "seen"), ("L2.attn.3.v.1", "seen"), ("L0.attn.0.o.2", "effect")):
        for k in (3, 40):
            for frame in ("output", "paper", seen) if built.atlas.lens else ("output", "paper"):
                options = {"frame": frame, "tokens": view, "k": k}
                stored, expected = (s.explain(address, **options) for s in (built.atlas, built.lens))
                ours, theirs = stored.to_json(), expected.to_json()
                for mine, other in zip(ours, theirs, strict=True):  # the null of another view rests on fewer lists
                    pair = mine.pop("coherence"), other.pop("coherence")
                    assert pair[0] is None if view == "all" else close(*(each["value"] for each in pair))
                same(ours, theirs, f"{kind} {address} {options}")


def test_a_column_of_a_group_belongs_to_every_query_head_of_it(llama: small.Built) -> None:
    first, second = (llama.atlas.explain(f"L1.attn.{head}.k.5")[0] for head in (2, 3))
    assert (first.address, second.address) == ("L1.attn.2.k.5", "L1.attn.3.k.5")
    assert first.top == second.top


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("L3.ff.0", "layers 0 to 2"),
        ("L0.ff.48", "neurons 0 to 47"),
        ("L0.ff.48.gate", "0 to 47"),
        ("L0.attn.4", "heads 0 to 3"),
        ("L0.attn.0.q.8", "0 to 7"),
        ("L0.ff.0.key", "gate, up, value"),
        ("L0.ff.norm", "ff_norm"),
        ("pos.0", "pos"),
        ("ff.3", "ff"),
        ("parameters.3", "parameters"),
    ],
)
def test_an_address_out_of_range_is_refused(llama: small.Built, address: str, message: str) -> None:
    with pytest.raises(BadAddress, match=message):
        llama.atlas.explain(address)
    with pytest.raises(BadAddress):
        llama.lens.explain(address)


def test_a_position_out_of_range_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    built = small.built("gpt2", tmp_path_factory)
    for source in (built.atlas, built.lens):
        with pytest.raises(BadAddress, match="0 to 19"):
            source.explain("pos.20")


def test_bad_options_are_refused(llama: small.Built) -> None:
    for source in (llama.atlas, llama.lens):
        for address, options in (
            ("L0.ff.1", {"frame": "sideways"}),
            ("L0.ff.1", {"tokens": "some"}),
            ("L0.attn.1", {"tokens": "some"}),
            ("L0.ff.1.value", {"frame": "token"}),
            ("L0.ff.1", {"k": 0}),
            ("L0.ff.1", {"k": -3}),
        ):
            with pytest.raises(BadOption):
                source.explain(address, **options)
    with pytest.raises(BadOption, match="best 30 pairs"):
        llama.atlas.explain("L0.attn.1.vo", k=31)
    for address in ("L0.attn.1.vo", "L0.attn.1.q.2", "L0.ff.1"):
        with pytest.raises(BadOption, match="offset"):
            llama.lens.explain(address, offset=2)


def test_an_offset_turns_qk_and_is_reported(llama: small.Built) -> None:
    plain, turned = (llama.lens.explain("L1.attn.2.qk", frame="token", offset=offset)[0] for offset in (0, 3))
    assert (plain.offset, turned.offset) == (0, 3)
    assert plain.pairs != turned.pairs
    both = llama.lens.explain("L1.attn.2", offset=3)
    assert [(record.role, record.offset) for record in both] == [("qk", 3), ("vo", 0)]


def test_the_view_of_all_tokens_needs_no_judgement(llama: small.Built) -> None:
    lens = zp.Lens(llama.lens.model)
    shown = lens.view("all")
    assert "judgement" not in vars(lens)
    assert torch.equal(shown.mask, torch.from_numpy(lens.model.vocab.mask("all", *lens.judgement)))
    assert shown.hidden.reasons == lens.model.vocab.hidden("all", *lens.judgement)


def test_a_zero_map_has_directions_of_value_zero(tmp_path: Path) -> None:
    model = small.llama(tmp_path / "m", layers=1)
    small.zero(model, "model.layers.0.self_attn.v_proj.weight")
    record = zp.load(str(model)).svd("L0.attn.0.vo", k=3)
    assert [d.value for d in record.directions] == [0, 0, 0]
    assert [d.share for d in record.directions] == [0, 0, 0]
    assert all(d.close for d in record.directions)


# --- Partial builds ------------------------------------------------------------------------------------------


def test_a_build_of_some_layers_and_roles_holds_only_them(llama: small.Built, tmp_path: Path) -> None:
    options = zp.Options(k=5, pairs=4, layers=(1, 3), roles=("value", "k", "vo"))
    atlas = small.build(llama.folder, tmp_path / "part", options)
    table = pd.read_parquet(atlas.path / "parameters.parquet")
    assert set(zip(table["layer"], table["role"], strict=True)) == {
        (i, role) for i in (1, 2) for role in ("value", "k")
    }
    assert sorted(p.stem for p in (atlas.path / "pairs").iterdir()) == ["L1.vo", "L2.vo"]
    for address in ("L1.ff.3.value", "L2.attn.3.k.2", "L1.attn.1.vo"):
        same(without_bounds(atlas.explain(address, k=4)), without_bounds(llama.lens.explain(address, k=4)))
    assert len(atlas["L1.attn.1.vo"][0].pairs) == 4
    assert atlas.info()["layers" if "layers" in atlas.info() else "options"]
    for address, message in (
        ("L0.ff.3.value", "layers 1 to 2"),
        ("L1.ff.3.up", "no up"),
        ("L1.attn.1.qk", "without qk"),
    ):
        with pytest.raises(BadAddress, match=message):
            atlas.explain(address)


def test_head_maps_are_built_alone(llama: small.Built, tmp_path: Path) -> None:
    options = zp.Options(pairs=4, layers=(1, 2), roles=("vo",))
    atlas = small.build(llama.folder, tmp_path / "maps", options)
    assert [len(record.pairs) for record in atlas["L1.attn.2.vo"]] == [4]
    with pytest.raises(BadOption, match="layers 1:2"):
        atlas.find("babade")


def test_a_build_holds_the_frame_that_was_asked_for(llama: small.Built, tmp_path: Path) -> None:
    options = zp.Options(k=5, pairs=4, layers=(1, 2), roles=("gate", "qk", "vo"), frames=("paper",))
    atlas = small.build(llama.folder, tmp_path / "paper", options)
    for address in ("L1.ff.3.gate", "L1.attn.2.qk", "L1.attn.2.vo"):
        expected = without_bounds(llama.lens.explain(address, frame="paper", k=4))
        same(without_bounds(atlas.explain(address, frame="paper", k=4)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (0, 4)}, "layers 0 to 2"),
        ({"layers": (2, 2)}, "out of range"),
        ({"roles": ("nose",)}, "gate, up, value"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(
    llama: small.Built, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadOption, match=message):
        small.build(llama.folder, tmp_path / "out", zp.Options(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"pairs": -1}, {"frames": ()}, {"frames": ("x",)}, {"tokens": "x"}, {"k": 10**12}]
)
def test_options_that_never_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadOption):
        zp.Options(**options)


def test_lists_longer_than_the_vocabulary_hold_every_token_shown(llama: small.Built, tmp_path: Path) -> None:
    options = zp.Options(k=1000, pairs=10, layers=(1, 2), roles=("gate",), tokens="words")
    atlas = small.build(llama.folder, tmp_path / "long", options)
    record = atlas.explain("L1.ff.2.gate", frame="token", k=1000)[0]
    kept = llama.lens.model.vocab.mask("words", *llama.lens.judgement).sum()
    assert len(record.top) == len(record.bottom) == kept < 1000
    assert [t.id for t in record.top] == [t.id for t in reversed(record.bottom)]
    assert len([h for h in atlas.find(" babade", k=100).hits if h.frame == "token"]) == small.NEURONS


# --- Without zeropass ----------------------------------------------------------------------------------------


def test_duckdb_and_pandas_read_an_atlas_without_zeropass(scan: Scan) -> None:
    text, token = next(tokens_of(scan))
    folder = scan.atlas.path
    rows = duckdb.execute(
        f"""
        SELECT p.address, p.role, h.side, h.frame, h.z
        FROM '{folder}/hits.parquet' h
        JOIN '{folder}/parameters.parquet' p USING (id)
        JOIN '{folder}/tokens.parquet' t ON t.id = h.token
        WHERE t.token = ? AND h.rank < 5 ORDER BY abs(h.z) DESC, h.id
        """,
        [text],
    ).fetchall()
    hits = scan.atlas.find(text, k=5).hits
    assert [tuple(row[:4]) for row in rows] == [(h.address, h.role, h.side, h.frame) for h in hits]
    hit, place = pd.read_parquet(folder / "hits.parquet"), scan.parameters
    joined = hit[hit["token"] == token].merge(place, on="id", suffixes=("", "_p"))
    assert len(joined) == (hit["token"] == token).sum() > 0


# --- The token index -----------------------------------------------------------------------------------------


@st.composite
def offers(draw: st.DrawFn) -> tuple[np.ndarray, int, list[int]]:
    """Draw scores with many ties, a size, and an order of blocks."""
    n, tokens = draw(st.integers(1, 900)), draw(st.integers(1, 5))
    levels = draw(st.sampled_from([2, 5, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z = (rng.integers(-levels, levels + 1, (n, tokens)) / levels).astype(np.float32)
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=6)))
    return z, draw(st.integers(1, 40)), cuts


@settings(max_examples=40, deadline=None)
@given(offers(), st.randoms())
def test_the_token_index_is_a_full_sort_whatever_the_blocks(offer: tuple[np.ndarray, int, list[int]], r: Any) -> None:
    z, size, cuts = offer
    parts = [(a, b) for a, b in itertools.pairwise([0, *cuts, len(z)]) if a < b]
    r.shuffle(parts)
    index = TokenIndex(z.shape[1], size)
    for a, b in parts:
        index.offer(torch.from_numpy(z[a:b]), a)
    filled, ids, best_z = (x.numpy() for x in index.ranked())
    for token in range(z.shape[1]):
        order = sorted(range(len(z)), key=lambda i, token=token: (-abs(z[i, token]), i))[:size]
        places = filled[token]
        assert ids[token][places].tolist() == order
        assert best_z[token][places].tolist() == z[order, token].tolist()


@settings(max_examples=20, deadline=None)
@given(offers(), st.integers(0, 900))
def test_the_token_index_continues_from_stored_entries(offer: tuple[np.ndarray, int, list[int]], at: int) -> None:
    z, size, _ = offer
    at = min(at, len(z))
    complete, early, late = (TokenIndex(z.shape[1], size) for _ in range(3))
    complete.offer(torch.from_numpy(z), 0)
    early.offer(torch.from_numpy(z[:at]), 0)
    for tokens, keys in early.entries(0, at):
        late.add(tokens, keys)
    late.offer(torch.from_numpy(z[at:]), at)
    for index in (complete, late):
        index.flush()
    assert torch.equal(complete.keys, late.keys)
