"""Measure what the wiring of a model says about the running model, beside nulls: the tables of docs/circuits.md.

The texts are random tokens, each text twice over. Of all heads it compares the attention to the previous token and the
induction score with those from weights; of all pairs of heads, the composition with what happens to the reader when
what the writer wrote is taken out of one of its inputs, directly or with all that followed from it; and the surprise
at repeated tokens without the heads that the weights name with that without as many others of the same layers::

    zeropass calibrate smollm2-135m --out lens
    python reproduce/circuits.py smollm2-135m --lens lens
"""

import argparse
import random
import resource
import time
from collections.abc import Callable
from datetime import date

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

import zeropass as zp
from zeropass.circuits.induction import previous_weights
from zeropass.circuits.measured import attention_scores, repeated_tokens, surprise
from zeropass.circuits.results import InductionHead
from zeropass.model.blocks import Block, embedded
from zeropass.numerics.projection import apply_norm

LENGTH, TEXTS = 64, 8
SHORT, FEW = 32, 2
"""The sizes of the texts of the patched runs."""

INDUCTIVE = 0.1
"""The induction score from which a head counts as an induction head."""

NAMED, DRAWS, SHOWN = 8, 8, 16
SHUFFLES = 2000


def place(address: str) -> tuple[int, int]:
    """Return the layer and the head of an address."""
    return int(address.partition(".")[0][1:]), int(address.rpartition(".")[2])


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the share of pairs of a positive and a negative head that the scores order rightly."""
    above = scores[positive][:, None] - scores[~positive][None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def shuffled(measure: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    """Return the 95th percentile of a measure over shuffles of the measured heads."""
    draw = np.random.default_rng(0)
    return float(np.quantile([measure(draw.permutation(values)) for _ in range(SHUFFLES)], 0.95))


def against(scores: np.ndarray, measured: np.ndarray) -> tuple[str, ...]:
    """Return the cells of a ranking: Spearman and AUC, each with the 95th percentile of shuffled heads."""

    def area(values: np.ndarray) -> float:
        return auc(scores, values > INDUCTIVE)

    return *spearman(scores, measured), f"{area(measured):.3f}", f"{shuffled(area, measured):.2f}"


RANKS: dict[str, Callable[[InductionHead], float]] = {
    "attention x match (the command)": lambda head: head.score,
    "match alone": lambda head: head.match,
    "copying alone": lambda head: head.copying,
    "attention x match x copying": lambda head: max(head.score, 0) * max(head.copying, 0),
}


def row(*cells: object) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def spearman(scores: np.ndarray, measured: np.ndarray) -> tuple[str, str]:
    """Return Spearman's correlation, and its 95th percentile over shuffled heads."""

    def rank(values: np.ndarray) -> float:
        return float(spearmanr(scores, values).statistic)

    return f"{rank(measured):.2f}", f"{shuffled(rank, measured):.2f}"


def heads_table(lenses: dict[str, zp.Lens], pairs: zp.HeadPairs) -> zp.InductionHeads:
    """Print how well heads are told from weights; return those of the last lens."""
    model = next(iter(lenses.values())).model
    previous, induction = attention_scores(model, repeated_tokens(model, TEXTS, LENGTH), LENGTH)
    order = [place(address) for address in pairs.heads]
    true_previous, measured = (np.array([float(of[at][n]) for at, n in order]) for of in (previous, induction))
    print(f"\n{int((measured > INDUCTIVE).sum())} of {len(order)} heads have an induction score above {INDUCTIVE}.\n")
    row("ranking", "read through", "Spearman", "shuffled", "AUC", "shuffled")
    row("---", "---", "---:", "---:", "---:", "---:")
    for name, lens in lenses.items():
        with torch.no_grad():
            weights = {layer: previous_weights(lens.frames, layer) for layer in previous}
        attention = np.array([float(weights[layer][head]) for layer, head in order])
        row("attention to the previous token", name, *spearman(attention, true_previous), "", "")
        heads = zp.induction_heads(lens, progress=False)
        by_place = {place(head.head): head for head in heads}
        for title, key in RANKS.items():
            values = np.array([key(by_place[at]) if at in by_place else 0.0 for at in order])
            row(title, name, *against(values, measured))
        for table in pairs.tables:
            values = (attention[:, None] * np.nan_to_num(table.z[1], nan=0.0)).max(0)
            row(f"attention x z of K-composition, {table.path}", name, *against(values, measured))
    print()
    row("head", "reads of", "previous", "match", "copying", "score", "run: induction", "run: previous")
    row("---", "---", *(["---:"] * 6))
    for head in heads[:SHOWN]:
        (layer, number), (at, writer) = place(head.head), place(head.previous)
        numbers = head.attention, head.match, head.copying, head.score, induction[layer][number], previous[at][writer]
        row(head.head, head.previous, *(f"{float(number):.2f}" for number in numbers))
    return heads


def ablation_table(model: zp.Model, heads: zp.InductionHeads) -> None:
    """Print the surprise at repeated tokens without the heads that the weights name, and without others."""
    ids = repeated_tokens(model, TEXTS, LENGTH, seed=1)
    named = [place(head.head) for head in heads[:NAMED]]
    writers = list(dict.fromkeys(place(head.previous) for head in heads[:NAMED]))
    print("\n| without | first time | second time |\n|---|---:|---:|")

    def shown(title: str, sets: list[list[tuple[int, int]]]) -> None:
        losses = [surprise(model, ids, chosen) for chosen in sets]
        first, second = (
            torch.tensor([float(part.mean()) for part in parts])
            for parts in ([x[:, : LENGTH - 1] for x in losses], [x[:, LENGTH:] for x in losses])
        )
        spread = f" ± {float(second.std()):.2f}" if len(sets) > 1 else ""
        print(f"| {title} | {float(first.mean()):.2f} | {float(second.mean()):.2f}{spread} |", flush=True)

    draw = random.Random(0)

    def others(chosen: list[tuple[int, int]]) -> list[tuple[int, int]]:
        left = {(layer, head) for layer, _ in chosen for head in range(model.dims.at(layer).heads)} - set(chosen)
        return draw.sample(sorted(left), min(len(chosen), len(left)))

    shown("nothing", [[]])
    shown(
        f"the {NAMED} best heads from weights: " + ", ".join(f"L{layer}.attn.{head}" for layer, head in named), [named]
    )
    shown(f"as many others of the same layers, {DRAWS} draws", [others(named) for _ in range(DRAWS)])
    shown("the heads that they read of: " + ", ".join(f"L{layer}.attn.{head}" for layer, head in writers), [writers])
    shown("as many others of the same layers", [others(writers) for _ in range(DRAWS)])


@torch.no_grad()
def patched(model: zp.Model, through: bool) -> np.ndarray:
    """Return what happens to each head when what an earlier one wrote is taken out of one input, (3, heads, heads).

    For q and k it is the mean total variation between the attention before and after, for v the change of what the
    head mixes, relative to its size.

    Args:
        model: The model.
        through: True to take out as well what the blocks between made of it.
    """
    if model.family.parallel or model.vector("attn_post_norm") is not None:
        raise SystemExit(
            "The patched runs know blocks in sequence without norms behind them; leave pairs out of --parts."
        )
    ids = repeated_tokens(model, FEW, SHORT, seed=2)
    blocks, at = [Block(model, layer) for layer in range(model.dims.layers)], torch.arange(ids.shape[1])
    states, writes = [], []
    x = embedded(model, ids)
    for block in blocks:
        states.append(x)
        recorded: dict[str, Tensor] = {}
        x = block(x, record=lambda name, values, recorded=recorded: recorded.update({name: values}))
        o = block.matrix("o").reshape(block.dims.heads, -1, model.dims.d)
        writes.append(torch.einsum("bthw,hwd->hbtd", recorded["o.in"].unflatten(-1, o.shape[:2]), o))
    starts = np.cumsum([0, *(block.dims.heads for block in blocks)])
    effects = np.full((3, starts[-1], starts[-1]), np.nan)
    clean = [_sides(block, x, at) for block, x in zip(blocks, states, strict=True)]
    for layer, written in enumerate(writes):
        for head, write in enumerate(written):
            x = _without(blocks[layer], states[layer], write)
            for later in range(layer + 1, len(blocks)):
                moved = _sides(blocks[later], x if through else states[later] - write, at)
                part = np.s_[starts[later] : starts[later + 1]]
                effects[:, starts[layer] + head, part] = _effects(blocks[later], clean[later], moved, at)
                x = blocks[later](x) if through else x
    return effects


def _without(block: Block, x: Tensor, write: Tensor) -> Tensor:
    """Return the stream behind a block without what one of its heads wrote."""
    recorded: dict[str, Tensor] = {}
    block(x, record=lambda name, values: recorded.update({name: values}))
    middle = x + recorded["attn.out"] - write
    normed = apply_norm(
        middle, block.model.family.norm, block.model.dims.eps, block.vector("ff_norm"), block.vector("ff_norm_bias")
    )
    return middle + block._feed(normed, None)


def _sides(block: Block, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of a state, as attention has them."""
    y = apply_norm(
        x, block.model.family.norm, block.model.dims.eps, block.vector("attn_norm"), block.vector("attn_norm_bias")
    )
    q, k, v = (block._columns(y, role) for role in "qkv")
    q, k = (block.heads(block.bounded(side, role), role) for side, role in ((q, "q"), (k, "k")))
    return block.turned_queries(q, at), block.turned(k, at), block.heads(v, "v").repeat_interleave(block.dims.group, 1)


def _effects(
    block: Block, clean: tuple[Tensor, Tensor, Tensor], moved: tuple[Tensor, Tensor, Tensor], at: Tensor
) -> np.ndarray:
    """Return the effect on each head of each of its inputs being moved, (3, heads)."""
    weights = block.weights(clean[0], clean[1], at)
    by_query, by_key = block.weights(moved[0], clean[1], at), block.weights(clean[0], moved[1], at)
    mixed, other = weights @ clean[2], weights @ moved[2]
    attention = [0.5 * (changed - weights).abs().sum(-1).mean((0, 2)) for changed in (by_query, by_key)]
    value = ((other - mixed).norm(dim=-1) / mixed.norm(dim=-1)).mean((0, 2))
    return torch.stack((*attention, value)).numpy()


def pairs_table(model: zp.Model, pairs: zp.HeadPairs) -> None:
    """Print how well the composition of pairs of heads predicts what the reader loses without the writer."""
    layers = np.array([place(address)[0] for address in pairs.heads])
    both = [(a, b) for a in range(layers.max()) for b in range(a + 1, layers.max() + 1)]
    print()
    row("taken out", "input", "composition", "Spearman", "within two layers", "shuffled")
    row("---", "---", "---", "---:", "---:", "---:")
    for title, through in (("what was written", False), ("and what followed from it", True)):
        effects = patched(model, through)
        for into, name in enumerate("qkv"):
            for table in pairs.tables:
                score, effect, draw = table.score[into], effects[into], np.random.default_rng(0)
                known = ~np.isnan(score)
                overall = spearmanr(score[known], effect[known]).statistic
                inner = np.nanmean([within(score, effect, layers, *pair) for pair in both])
                null = [np.nanmean([within(score, effect, layers, *pair, draw) for pair in both]) for _ in range(20)]
                cells = (f"{value:.2f}" for value in (overall, inner, np.quantile(null, 0.95)))
                row(title, name, table.path, *cells)


def within(
    score: np.ndarray, effect: np.ndarray, layers: np.ndarray, a: int, b: int, draw: np.random.Generator | None = None
) -> float:
    """Return Spearman among the pairs of two layers, or with the pairs shuffled."""
    part = np.ix_(layers == a, layers == b)
    other = effect[part].ravel()
    return float(spearmanr(score[part].ravel(), other if draw is None else draw.permutation(other)).statistic)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lens", required=True, help="the folder of a lens that `zeropass calibrate` made")
    parser.add_argument("--parts", default="heads,ablation,pairs")
    options = parser.parse_args()
    model = zp.open_model(options.model)
    lenses = {"the weights alone": zp.load(model, lens=None), "the lens": zp.load(model, lens=options.lens)}
    started, used = time.monotonic(), time.process_time()
    pairs = zp.head_pairs(lenses["the lens"], progress=False)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{date.today()}, {torch.get_num_threads()} thread(s). All {len(pairs.heads)} heads, {len(pairs.tables)} ways: "
        f"{time.monotonic() - started:.0f} s, {time.process_time() - used:.0f} s of processor, {memory:.2f} GB at most."
    )
    parts = options.parts.split(",")
    heads = heads_table(lenses, pairs) if {"heads", "ablation"} & {*parts} else None
    if "ablation" in parts and heads is not None:
        ablation_table(model, heads)
    if "pairs" in parts:
        pairs_table(model, pairs)


if __name__ == "__main__":
    main()
