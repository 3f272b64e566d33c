"""The agreement of matches by weights with matches by activations on held-out text: tables for docs/alignment.md.

    python reproduce/alignment.py             # `make alignment`

`zeropass align` aligns three small models of our own (models/, reproduce/siblings.py). The models then run on press
reportage that none of them was trained on. For the neurons that have a partner by activations (absolute correlation
above .5), the tables count how many have it first, or among ten, by weights alone and through lenses of the models' own
text.

The partner of a head is, for qk, the head whose attention correlates most with its own over pairs of tokens up to 64
apart, each distance minus its mean; for vo, the head whose output is most alike over tokens (linear CKA: Kornblith et
al. 2019).
"""

import argparse
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM

import zeropass as zp
from zeropass.align.pair import Pair, neuron_views
from zeropass.align.render import draw_layer_maps
from zeropass.evidence.corpus import PRESS_SOURCE, press_text
from zeropass.model.vectors import vector_set
from zeropass.numerics.cross_gram import head_products

ROOT = Path(__file__).parent.parent
PAIRS = (("first", "second"), ("first", "wide"), ("second", "wide"))
PARTNERS = 0.5
CONTEXT = 256
ATTENDED, FARTHEST, HEAD_WINDOWS, EVERY = 6, 64, 24, 4
"""Windows whose attention is compared, and the largest distance; windows of outputs, of which every fourth token."""


@dataclass(frozen=True)
class Row:
    """The result of a method on the neurons (or heads) of a pair of models; None where the method cannot be used."""

    models: str
    method: str
    neurons: int
    first: float | None
    ten: float | None


def activations(folder: Path, ids: Tensor) -> list[Tensor]:
    """Return the activations of every neuron on every token (tokens, neurons) by layer, each column of length one."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    writers = [
        module for name, module in model.named_modules() if re.search(r"(mlp\.down_proj|\d\.output\.dense)$", name)
    ]
    batches: list[list[Tensor]] = [[] for _ in writers]
    for writer, layer_batches in zip(writers, batches, strict=True):
        writer.register_forward_pre_hook(
            lambda _, inputs, layer_batches=layer_batches: layer_batches.append(inputs[0].flatten(0, 1))
        )
    with torch.inference_mode():
        for batch in ids.split(16):
            model(batch)
    layers = (torch.cat(layer) for layer in batches)
    return [functional.normalize(values - values.mean(0), dim=0) for values in layers]


def windows(text: str, folder: Path, count: int) -> Tensor:
    """Return the first windows (count, 256) of a text, with its paragraphs joined."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    return ids[: min(count, len(ids) // CONTEXT) * CONTEXT].view(-1, CONTEXT)


def methods(pair: Pair, through: Pair) -> Iterator[tuple[str, Callable[[tuple[int, int]], Tensor]]]:
    """Yield the name and the function of each method that scores all neurons of two layers.

    Args:
        pair: The two models, by their weights alone.
        through: The same, through their lenses.
    """
    views = neuron_views(pair)
    yield "lists of ten, through lenses", lambda layers: through.neuron_scores(neuron_views(through), layers)
    yield "lists of ten", lambda layers: pair.neuron_scores(views, layers)
    yield "all tokens", lambda layers: _joint([(pair.correlations(v, layers), v.flips) for v in views])
    if pair.models[0].dims.d == pair.models[1].dims.d:
        stored = {(v.roles, v.flips) for v in views}
        yield "raw space", lambda layers: _joint([(_raw(pair, roles, layers), flips) for roles, flips in stored])


def agreement_with_activations(
    pair: Pair, through: Pair, first_activations: list[Tensor], second_activations: list[Tensor], names: str
) -> list[Row]:
    """Return the precision of every method over all layers of the second model, and of random choice."""
    depths = [range(model.dims.layers) for model in pair.models]
    rows, truth, has_partner = [], [], []
    for a in depths[0]:
        best = torch.cat([(first_activations[a].T @ second_activations[b]).abs() for b in depths[1]], 1).max(1)
        has_partner.append(best.values > PARTNERS)
        truth.append(best.indices[has_partner[-1]])
    total = sum(len(part) for part in truth)
    for name, score in methods(pair, through):
        first = ten = 0
        for a in depths[0]:
            scores = torch.cat([score((a, b)) for b in depths[1]], 1)[has_partner[a]]
            rank = (scores > scores.gather(1, truth[a][:, None])).sum(1)
            first, ten = first + int((rank < 1).sum()), ten + int((rank < 10).sum())
        rows.append(Row(names, name, total, first / total, ten / total))
    if all(row.method != "raw space" for row in rows):
        rows.append(Row(names, "raw space", total, None, None))
    candidates = sum(part.shape[1] for part in second_activations)
    return [*rows, Row(names, "chance", total, 1 / candidates, 10 / candidates)]


@torch.inference_mode()
def heads_at_work(folder: Path, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the attention of every head (heads, pairs of tokens), and its output (tokens, d); each has length one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    inputs: list[list[Tensor]] = [[] for _ in model.model.layers]
    for layer, layer_inputs in zip(model.model.layers, inputs, strict=True):
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, given, layer_inputs=layer_inputs: layer_inputs.append(given[0][:, ::EVERY].flatten(0, 1))
        )
    attention = torch.cat(
        [
            torch.stack(model(batch, output_attentions=True).attentions, 1).flatten(1, 2)
            for batch in ids[:ATTENDED].split(3)
        ]
    )
    for batch in ids[ATTENDED:HEAD_WINDOWS].split(6):
        model(batch)
    queries, keys = torch.tril_indices(CONTEXT, CONTEXT, -1)
    near = (keys > 0) & (queries - keys < FARTHEST)
    weights = attention[:, :, queries[near], keys[near]].transpose(0, 1).flatten(1)
    distances = (queries - keys)[near].repeat(len(attention))
    counts = torch.bincount(distances, minlength=FARTHEST).clamp_min(1)
    means = torch.zeros(len(weights), FARTHEST).index_add_(1, distances, weights) / counts
    outputs = []
    for layer, layer_inputs in zip(model.model.layers, inputs, strict=True):
        width = layer.self_attn.head_dim
        weight = layer.self_attn.o_proj.weight.T
        for head in range(weight.shape[0] // width):
            part = slice(head * width, (head + 1) * width)
            written = torch.cat(layer_inputs)[:, part] @ weight[part]
            written = written - written.mean(0)
            outputs.append(written / (written.T @ written).norm().sqrt())
    return functional.normalize(weights - means[:, distances], dim=1), outputs


def head_cosines(pair: Pair, kind: str, frame: str) -> Tensor:
    """Return the cosines between all heads of two models in a frame, which may be that of a lens, from whole maps."""
    sides: list[list[Tensor]] = [[], []]
    for half in pair.halves:
        dims, frames = half.model.dims, half.frames
        maps = [frames.head_map(layer, head, kind, frame) for layer in range(dims.layers) for head in range(dims.heads)]
        factors = [(m.left[half.ids], m.right[half.ids]) for m in maps]
        factors = [(left - left.mean(0), right - right.mean(0)) for left, right in factors]
        norms = [((left.T @ left) * (right.T @ right)).sum().sqrt() for left, right in factors]
        sides[0].append(torch.cat([left / norm for (left, _), norm in zip(factors, norms, strict=True)], 1))
        sides[1].append(torch.cat([right for _, right in factors], 1))
    left, right = (first.T @ second for first, second in sides)
    counts = [model.dims.layers * model.dims.heads for model in pair.models]
    return head_products(left, right, (counts[0], counts[1]))


def agreement_of_heads(through: Pair, first: tuple, second: tuple, names: str) -> list[Row]:
    """Return the precision of head maps over all heads of the second model: see `heads_at_work`."""
    rows = []
    partners = {
        "qk": (first[0] @ second[0].T).argmax(1),
        "vo": torch.tensor([[float((x.T @ y).norm()) for y in second[1]] for x in first[1]]).argmax(1),
    }
    for kind, truth in partners.items():
        for method, frame in (("weights alone", "token"), ("through lenses", "seen")):
            scores = head_cosines(through, kind, frame)
            rank = (scores > scores.gather(1, truth[:, None])).sum(1)
            shares = (float((rank < most).float().mean()) for most in (1, 3))
            rows.append(Row(names, f"{kind}, {method}", len(truth), *shares))
    return rows


def heads_table(rows: list[Row]) -> str:
    """Return the rows of heads as a Markdown table."""
    lines = ["| models | compared by | heads | found first | among three |", "|---|---|---:|---:|---:|"]
    lines += [f"| {row.models} | {row.method} | {row.neurons} | {row.first:.2f} | {row.ten:.2f} |" for row in rows]
    return "\n".join(lines) + "\n"


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| models | compared by | neurons | found first | among ten |", "|---|---|---:|---:|---:|"]
    for row in rows:
        first, ten = ("–" if value is None else f"{value:.4f}" for value in (row.first, row.ten))
        lines.append(f"| {row.models} | {row.method} | {row.neurons:,} | {first} | {ten} |")
    return "\n".join(lines) + "\n"


def layers_table(alignments: dict[str, zp.Alignment]) -> str:
    """Return the assigned layers for every pair, role and frame."""
    lines = ["| role | frame | " + " | ".join(alignments) + " |", "|---|---|" + "---|" * len(alignments)]
    shown = {
        (layer_map.role, layer_map.frame): None for alignment in alignments.values() for layer_map in alignment.layers
    }
    for role, frame in shown:
        cells = []
        for alignment in alignments.values():
            maps = [layer_map for layer_map in alignment.layers if (layer_map.role, layer_map.frame) == (role, frame)]
            cells.append(" ".join("·" if b < 0 else str(b) for b in maps[0].assigned) if maps else "–")
        lines.append(f"| {role} | {frame} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _joint(scored: list[tuple[Tensor, bool]]) -> Tensor:
    """Return the mean over views; scores that change sign together count by their absolute value."""
    plain = sum((scores for scores, flips in scored if not flips), torch.zeros(()))
    flipping = sum((scores for scores, flips in scored if flips), torch.zeros(()))
    return (plain + flipping.abs()) / len(scored)


def _raw(pair: Pair, roles: tuple[str, str], layers: tuple[int, int]) -> Tensor:
    x, y = (
        functional.normalize(vector_set(model, layer, role).vectors, dim=1)
        for model, layer, role in zip(pair.models, layers, roles, strict=True)
    )
    return x @ y.T


def both_ways(first: zp.Model, second: zp.Model, lenses: tuple, out: Path) -> zp.Alignment:
    """Return the alignment by the weights alone, with the layer maps of that through the lenses as well."""
    alone = zp.align_models(first, second, out, lenses=(None, None))
    through = zp.align_models(first, second, out.with_name(f"{out.name}-lenses"), lenses=lenses)
    known = {(layer_map.role, layer_map.frame) for layer_map in alone.layers}
    more = (layer_map for layer_map in through.layers if (layer_map.role, layer_map.frame) not in known)
    return replace(alone, layers=(*alone.layers, *more))


def between(text: str, mark: str, new: str) -> str:
    """Replace the text between ``<!-- mark -->`` and the next ``<!-- end -->``."""
    before, after = text.split(f"<!-- {mark} -->\n", 1)
    return before + f"<!-- {mark} -->\n" + new + after[after.index("<!-- end -->") :]


def main(out: Path, count: int) -> None:
    """Measure, and write the tables and figures of docs/alignment.md."""
    began = time.monotonic()
    models = {name: zp.open_model(str(ROOT / "models" / name)) for name in ("first", "second", "wide")}
    ids = windows(press_text(), ROOT / "models" / "first", count)
    active = {name: activations(ROOT / "models" / name, ids) for name in models}
    heads = {name: heads_at_work(ROOT / "models" / name, ids) for name in models}
    lenses = {name: zp.calibrate(model) for name, model in models.items()}
    rows, head_rows, alignments = [], [], {}
    for a, b in PAIRS:
        name = f"{a}, {b}"
        alignments[name] = both_ways(models[a], models[b], (lenses[a], lenses[b]), out / f"{a}-{b}")
        pair = zp.pair_of(models[a], models[b], (None, None))
        through = zp.pair_of(models[a], models[b], (lenses[a], lenses[b]))
        rows += agreement_with_activations(pair, through, active[a], active[b], name)
        head_rows += agreement_of_heads(through, heads[a], heads[b], name)
        (ROOT / "docs" / "alignment").mkdir(exist_ok=True)
        (ROOT / "docs" / "alignment" / f"{a}-{b}.svg").write_text(draw_layer_maps(alignments[name]), encoding="utf-8")
    summary = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}) in "
        f"{time.monotonic() - began:.0f} s: {PRESS_SOURCE}, {ids.numel():,} tokens.\n"
    )
    path = ROOT / "docs" / "alignment.md"
    text = path.read_text(encoding="utf-8")
    blocks = {"measured": summary, "neurons": table(rows), "heads": heads_table(head_rows)}
    blocks |= {"layers": layers_table(alignments)}
    for mark, new in blocks.items():
        text = between(text, mark, new)
    path.write_text(text, encoding="utf-8")
    print(*blocks.values(), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("alignment"), help="where alignments are written")
    parser.add_argument("--windows", type=int, default=600, help="windows of 256 tokens of the text")
    options = parser.parse_args()
    main(options.out, options.windows)
