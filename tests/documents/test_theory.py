"""docs/theory.md: its names exist, its defaults match the code, every formula has a function, its identities hold."""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev
from torch.nn import functional

import small
from zeropass.arch.frame_names import USUAL_OFFSET, space_of
from zeropass.arch.roles import READ_ROLES, WRITE_ROLES
from zeropass.evidence.results import NULLS
from zeropass.lens import Lens
from zeropass.model.frames import Frames
from zeropass.model.opening import open_model
from zeropass.model.translation import KERNELS, translate
from zeropass.numerics.factored import Factored
from zeropass.numerics.projection import (
    apply_norm,
    fold_read,
    fold_write,
    from_scores,
    keep_k,
    normed,
    pseudo_inverse,
    rotate,
    scores,
)
from zeropass.numerics.statistics import moments, standardised
from zeropass.numerics.top_pairs import top_pairs
from zeropass.records.parameters import Hidden, TokenScore, VectorRecord

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "theory.md").read_text(encoding="utf-8")
HOMES = {
    "Block": "zeropass.model.blocks",
    "Coherence": "zeropass.records.parameters",
    "Factored": "zeropass.numerics.factored",
    "Frames": "zeropass.model.frames",
    "LensMaps": "zeropass.model.lens_maps",
    "Model": "zeropass.model.model",
    "Moments": "zeropass.numerics.statistics",
    "Null": "zeropass.evidence.results",
    "Result": "zeropass.evidence.results",
    "TokenScore": "zeropass.records.parameters",
    "VectorRecord": "zeropass.records.parameters",
    "Vocabulary": "zeropass.tokens.vocabulary",
}
"""The modules of the classes whose members the page names as `Class.member`."""
NAME = re.compile(r"`(zeropass(?:\.\w+)+|[A-Z]\w*\.\w+)`")
NAMES = sorted(set(NAME.findall(PAGE)))
V, D = 90, 8
NORMS = pytest.mark.parametrize("norm", ["rms", "layer"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embedding() -> Tensor:
    """Draw rows with a common mean and unequal directions, whose Gram matrix is far from a multiple of I."""
    return draw(V, D) * torch.logspace(-1, 0.5, D, dtype=torch.float64) + 1


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-8, atol=1e-8)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(
        functional.cosine_similarity(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True), dim=-1).mean()
    )


# The page


def resolve(name: str) -> Any:
    """Return the attribute of a module, or the member or field of a class, that a name refers to."""
    parts = name.split(".")
    if parts[0] != "zeropass":
        parts = [*HOMES[parts[0]].split("."), *parts]
    for depth in range(len(parts) - 1, 0, -1):
        try:
            value: Any = import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            members = {f.name: f for f in fields(value)} if is_dataclass(value) else {}
            value = members[part] if part in members else getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_exists_and_is_public(name: str) -> None:
    resolve(name)
    assert not any(part.startswith("_") for part in name.split("."))


def test_a_wrong_name_is_noticed() -> None:
    for wrong in (
        "zeropass.numerics.projection.no_such",
        "zeropass.records.parameters.TokenScore.y",
        "zeropass.nowhere.scores",
        "Model.no_such",
        "Nowhere.scores",
    ):
        with pytest.raises((AttributeError, KeyError, ModuleNotFoundError)):
            resolve(wrong)


def test_the_page_has_enough_names() -> None:
    assert len(NAMES) >= 20
    full = [name for name in NAME.findall(PAGE) if name.startswith("zeropass.")]
    assert PAGE.count("zeropass.") == len(full), "a name is not in backticks of its own"
    assert set(HOMES) == {name.split(".")[0] for name in NAMES} - {"zeropass"}


def test_every_formula_is_followed_by_its_function() -> None:
    """A formula is an indented line; the next line begins with an arrow and names the functions that compute it."""
    lines = PAGE.splitlines()
    formulas = [i for i, line in enumerate(lines) if line.startswith("    ")]
    assert len(formulas) >= 20
    for i in formulas:
        behind = "\n".join(lines[i + 1 :]).split("\n\n")[0]
        assert behind.startswith("→ "), lines[i]
        assert NAME.search(behind), lines[i]
    assert [i - 1 for i, line in enumerate(lines) if line.startswith("→")] == formulas


def test_the_table_holds_every_name() -> None:
    text, table = PAGE.split("## 10. ")
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert all(NAME.search(row) for row in rows)
    assert set(NAME.findall(table)) == set(NAME.findall(text))


def test_the_sections_are_in_order() -> None:
    assert [int(n) for n in re.findall(r"^## (\d+)\. ", PAGE, re.M)] == list(range(1, 11))


# Statements of the page about the code


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Frames]:
    """Return a function from the name of a family to the frames of a small model of it."""
    folder = tmp_path_factory.mktemp("theory")
    return lambda family: Frames(open_model(str(small.VARIANTS[family](folder / family))))


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("theory", r"`qk` is shown at an offset of (\d+) unless `--offset` says otherwise \(`Frames.usual_offset`"),
        ("theory", r"(\d+) predicted attention best"),
        ("evidence", r"`qk` is shown at (\d+) unless `--offset` says otherwise"),
        ("frames", r"The default is (\d+)"),
    ],
)
def test_the_usual_offset_matches_the_code(page: str, sentence: str) -> None:
    (number,) = re.findall(sentence, (DOCS / f"{page}.md").read_text(encoding="utf-8"))
    assert int(number) == USUAL_OFFSET


def test_the_offset_is_zero_where_the_page_says_so(frames: Callable[[str], Frames]) -> None:
    assert (
        "The offset is 0 for the formulas of the paper (`paper`), for `vo`, and where the model has no rotary" in PAGE
    )
    rotary, absolute = frames("llama"), frames("gpt2")
    assert rotary.usual_offset("qk", "token") == rotary.usual_offset("qk", "output") == USUAL_OFFSET
    assert rotary.usual_offset("qk", "paper") == rotary.usual_offset("vo", "token") == 0
    assert absolute.usual_offset("qk", "token") == 0
    asked, unasked = (Lens.over(rotary).head_map("L1.attn.0.qk", offset=offset) for offset in (USUAL_OFFSET, None))
    assert torch.equal(asked.left, unasked.left)
    assert torch.equal(asked.left, rotary.head_map(1, 0, "qk").left)


def test_the_spaces_exist(frames: Callable[[str], Frames]) -> None:
    known = frames("llama").spaces
    named = re.findall(r"space `([\w.]+)`", PAGE)
    assert {"output.write", "token"} <= set(named) <= set(known)
    assert "Layer 0 reads `embedded` rows" in PAGE
    assert (space_of("token", "read", 0), space_of("token", "read", 1)) == ("embedded", "token")


def test_the_nulls_match_the_code() -> None:
    answers = PAGE.split("answer different questions.")[1].split("The confound")[0]
    assert set(re.findall(r"`(\w+)`: ", answers)) == set(NULLS)


def test_the_default_kernel_matches_the_code() -> None:
    paper, default = re.findall(r"kernel `(\w+)`; a rotation, kernel `(\w+)`, is the default", PAGE)[0]
    assert signature(translate).parameters["kernel"].default == default
    assert KERNELS[default].solve == "orthogonal"
    assert paper in KERNELS


def test_the_sides_of_the_parameters_match_the_code() -> None:
    table = PAGE.split("| parameter | side |")[1].split("\n\n")[0]
    for names, side in re.findall(r"^\| (?:FF|subheads?) ([^|]*) \| (\w+) \|", table, re.M):
        assert set(names.split(", ")) <= set(READ_ROLES if side == "read" else WRITE_ROLES), names


# Section 3: maps


def test_rotated_products_depend_only_on_the_distance() -> None:
    q, k, angles = draw(5, D), draw(5, D, seed=1), 100.0 ** -torch.arange(0, 1, 2 / D, dtype=torch.float64)
    for i, j in ((7, 3), (3, 7), (40, 0)):
        close((rotate(q, i, angles) * rotate(k, j, angles)).sum(1), (rotate(q, i - j, angles) * k).sum(1))


def test_the_inner_product_of_two_maps_is_that_of_their_matrices() -> None:
    a, b = (Factored(draw(20, 4, seed=s), draw(30, 4, seed=s + 1)) for s in (0, 2))
    product = ((a.left @ a.right.T) * (b.left @ b.right.T)).sum()
    assert a.inner(b) == pytest.approx(float(product))


def test_a_map_does_not_depend_on_the_basis_of_its_head() -> None:
    """W_V T and T⁻¹ W_O make the same map; so do balanced factors."""
    rows, v, o, turn = embedding(), draw(D, 4), draw(4, D, seed=1), draw(4, 4, seed=2)
    plain = Factored(rows @ v, rows @ o.T)
    i, j = torch.arange(V), torch.arange(V).flip(0)
    for other in (Factored(rows @ v @ turn, rows @ (torch.linalg.inv(turn) @ o).T), plain.reduced()):
        torch.testing.assert_close(other.entries(i, j), plain.entries(i, j), rtol=1e-5, atol=1e-5)


def test_balanced_factors_have_equal_and_diagonal_gram_matrices() -> None:
    balanced = Factored(embedding(), draw(V, D, seed=1)).reduced()
    gram = balanced.left.T @ balanced.left
    close(balanced.right.T @ balanced.right, gram)
    close(gram, gram.diagonal().diag())


def test_pair_search_scores_the_factors_as_given_and_does_not_balance_them(monkeypatch: pytest.MonkeyPatch) -> None:
    product = Factored(embedding().float(), draw(V, D, seed=1).float())
    monkeypatch.delattr(Factored, "reduced")
    pairs = top_pairs(product, 20)
    assert pairs.complete
    assert torch.equal(pairs.scores, product.entries(pairs.left, pairs.right))


def test_the_best_pair_is_within_the_bound_of_its_norms() -> None:
    product = Factored(embedding().float(), draw(V, D, seed=1).float())
    pair = top_pairs(product, 1)
    assert float(pair.scores) == pytest.approx(float((product.left @ product.right.T).max()), rel=1e-5)
    bound = float(product.left[pair.left].norm() * product.right[pair.right].norm())
    assert float(pair.scores) <= bound * (1 + 1e-6)


# Section 4: to the vocabulary and back


def test_a_right_inverse_recovers_states_and_inner_products() -> None:
    e, x, y = embedding(), draw(3, D, seed=1), draw(3, D, seed=2)
    inverse = pseudo_inverse(e)
    close(e.T @ inverse, torch.eye(D))
    close(from_scores(scores(x, e), inverse), x)
    close((scores(x, e) * scores(y, inverse)).sum(1), (x * y).sum(1))


def test_the_transpose_inserts_the_gram_matrix() -> None:
    e, x, y = embedding(), draw(3, D, seed=1), draw(3, D, seed=2)
    of_rows = moments(e)
    gram = V * (of_rows.covariance + torch.outer(of_rows.mean, of_rows.mean))
    close(from_scores(scores(x, e), e) @ y.T, x @ gram @ y.T)
    lists = [scores(vector, e) - scores(vector, e).mean(1, keepdim=True) for vector in (x, y)]
    close(lists[0] @ lists[1].T / V, x @ of_rows.covariance @ y.T)


@pytest.mark.parametrize("k", [1, 5, 40, V])
def test_keep_k_leaves_the_part_of_an_inner_product_in_the_kept_rows(k: int) -> None:
    e, x, y = embedding(), draw(1, D, seed=1), draw(1, D, seed=2)
    values, inverse = scores(x, e), pseudo_inverse(e)
    kept = keep_k(values, k)[0] != 0
    assert int(kept.sum()) == k
    gram_kept, gram_rest = e[kept].T @ e[kept], e[~kept].T @ e[~kept]
    close(from_scores(values, e, k) @ y.T, x @ gram_kept @ y.T)
    close(from_scores(values, inverse, k) @ y.T, x @ y.T - x @ gram_rest @ torch.linalg.inv(e.T @ e) @ y.T)


def test_the_shares_of_tokens_in_the_identity_sum_to_the_width() -> None:
    e = embedding()
    shares = (e * pseudo_inverse(e)).sum(1)
    assert float(shares.min()) >= 0
    assert float(shares.max()) <= 1
    assert float(shares.sum()) == pytest.approx(D)


def test_kept_squares_are_added_from_the_largest() -> None:
    e, x = embedding(), draw(1, D, seed=1)
    sums = torch.tensor([float(from_scores(scores(x, e), e, k) @ x.T) for k in range(1, V + 1)])
    steps = sums.diff()
    assert float(steps.min()) >= 0
    assert float(steps.diff().max()) <= 1e-4


# Section 5: norms


@NORMS
def test_folded_reading_is_reading_the_normed_state(norm: Any) -> None:
    x, w, gain, shift = embedding()[:5], draw(3, D, seed=1), draw(D, seed=2), draw(D, seed=3)
    inner = x - x.mean(1, keepdim=True) if norm == "layer" else x
    deviation = (inner.square().mean(1, keepdim=True) + 1e-3).sqrt()
    expected = apply_norm(x, norm, 1e-3, gain, shift) @ w.T
    close(x @ fold_read(w, gain, norm).T / deviation + w @ shift, expected)
    close(normed(x, norm, 1e-3) @ fold_read(w, gain, norm).T + w @ shift, expected)


@NORMS
def test_folded_writing_is_the_linear_part_of_the_norm_that_follows(norm: Any) -> None:
    parts, gain = draw(4, D), draw(D, seed=1)
    x = parts.sum(0)
    inner = x - x.mean() if norm == "layer" else x
    deviation = (inner.square().mean() + 1e-3).sqrt()
    close(fold_write(parts, gain, norm).sum(0) / deviation, apply_norm(x, norm, 1e-3, gain, None))


@NORMS
def test_writing_a_vector_changes_the_logits_by_the_formula(norm: Any) -> None:
    """The derivative through the final norm is its list minus a multiple of the present logits."""
    x, v, gain, u = draw(D), draw(D, seed=1), draw(D, seed=2), draw(V, D, seed=3)
    gained = jacrev(lambda state: apply_norm(state, norm, 1e-3, gain, None) @ u.T)(x) @ v
    rows, n = fold_read(u, gain, norm), normed(x, norm, 1e-3)
    inner = x - x.mean() if norm == "layer" else x
    deviation = (inner.square().mean() + 1e-3).sqrt()
    close(gained, (scores(v[None], rows)[0] - (v @ n / D) * scores(n[None], rows)[0]) / deviation)
    close(scores(n[None], rows)[0], apply_norm(x, norm, 1e-3, gain, None) @ u.T)


def test_the_division_keeps_the_order_of_outputs_but_not_of_states() -> None:
    e, w = embedding(), draw(1, D, seed=1)
    assert torch.equal(scores(w, e).argsort(), scores(w / 7, e).argsort())
    assert not torch.equal(scores(w, e).argsort(), scores(w, normed(e, "rms", 1e-3)).argsort())


# Section 6: z


def test_z_comes_from_mean_and_covariance_and_does_not_depend_on_scale() -> None:
    e, w = embedding(), draw(3, D, seed=1)
    of_rows, full = moments(e), scores(w, e)
    close(((w @ of_rows.covariance) * w).sum(1), full.var(1, correction=0))
    mean, std = (part.double() for part in of_rows.of_scores(w))
    torch.testing.assert_close(mean, full.mean(1), rtol=1e-6, atol=1e-6)
    z = (full - full.mean(1, keepdim=True)) / full.std(1, correction=0, keepdim=True)
    for vectors, rows in ((w, e), (5 * w, e), (w, e + draw(D, seed=2))):
        changed = moments(rows)
        same_z = standardised(vectors, changed.of_scores(vectors)[1].double()) @ (rows - changed.mean).T
        torch.testing.assert_close(same_z, z, rtol=1e-5, atol=1e-5)
    assert float(std.min()) > 0


# Section 8: what can be believed


@pytest.mark.parametrize(("size", "least"), [(0.1, 0.9), (1.0, 0.3)])
def test_an_untrained_network_agrees_with_its_lists(size: float, least: float) -> None:
    """With random blocks, any direction raises the logits of its own list, not of another direction's list."""
    d, n = 32, 64
    for seed in range(4):
        first = 100 * seed
        u, x, directions = draw(V, d, seed=first), draw(d, seed=first + 1), draw(40, d, seed=first + 2)
        keys = [draw(n, d, seed=first + 3 + layer) / d**0.5 for layer in range(6)]
        values = [size * draw(n, d, seed=first + 9 + layer) / n**0.5 for layer in range(6)]

        def logits(state: Tensor, blocks: Any = (keys, values), unembedding: Tensor = u) -> Tensor:
            for k, v in zip(*blocks, strict=True):
                state = state + functional.gelu(normed(state, "rms", 1e-5) @ k.T) @ v
            return apply_norm(state, "rms", 1e-5, None, None) @ unembedding.T

        gained, lists = directions @ jacrev(logits)(x).T, scores(directions, u)
        assert cosine(gained, lists) > least
        assert abs(cosine(gained, lists.roll(1, 0))) < 0.15


def test_flipping_the_signs_of_up_and_value_changes_nothing() -> None:
    n, gate, up, value = draw(5, D), draw(6, D, seed=1), draw(6, D, seed=2), draw(6, D, seed=3)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64)[:, None]
    opened = functional.silu(n @ gate.T)
    close((opened * (n @ (signs * up).T)) @ (signs * value), (opened * (n @ up.T)) @ value)


def test_a_list_is_faint_below_the_height_on_the_page() -> None:
    height = NormalDist().inv_cdf(1 - 0.05 / (2 * 47_029))
    assert f"V = 47,029 that is t = {height:.2f}" in PAGE

    def record(z: float) -> VectorRecord:
        end = (TokenScore(0, "a", z, z),)
        hidden = Hidden("default", 0, 47_029, {})
        return VectorRecord("L0.ff.0", "gate", "read", "token", 1.0, end, (), 0.0, 1.0, hidden)

    assert record(height - 0.01).faint
    assert not record(height + 0.01).faint
    generator = torch.Generator().manual_seed(0)
    passed = (torch.randn(4000, 1000, generator=generator).abs().amax(1) > NormalDist().inv_cdf(1 - 0.05 / 2000)).sum()
    assert 0.035 < float(passed) / 4000 < 0.065
