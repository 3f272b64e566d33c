"""The agreement of matches by weights with matches by activations on held-out text: tables for docs/alignment.md.

    python reproduce/alignment.py             # `make alignment`

`zeropass align` aligns three small models of our own (models/, reproduce/siblings.py). The models then run on press
reportage that none of them was trained on. For the neurons that have a partner by activations (absolute correlation
above .5), the tables count how many have it first, or among ten, by weights alone.
"""

import argparse
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

import zeropass as zp
from zeropass.align.pair import Pair, neuron_views
from zeropass.align.render import draw_layer_maps
from zeropass.evidence.corpus import PRESS_SOURCE, press_text
from zeropass.model.vectors import vector_set

ROOT = Path(__file__).parent.parent
PAIRS = (("first", "second"), ("first", "wide"), ("second", "wide"))
PARTNERS = 0.5
CONTEXT = 256


@dataclass(frozen=True)
class Row:
    """The result of a method on a pair of models; None where the method cannot be used."""

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


def methods(pair: Pair) -> Iterator[tuple[str, Callable[[tuple[int, int]], Tensor]]]:
    """Yield the name and the function of each method that scores all neurons of two layers."""
    views = neuron_views(*pair.models)
    yield "lists of ten", lambda layers: pair.neuron_scores(views, layers)
    yield "all tokens", lambda layers: _joint([(pair.correlations(v, layers), v.flips) for v in views])
    if pair.models[0].dims.d == pair.models[1].dims.d:
        stored = {(v.roles, v.flips) for v in views}
        yield "raw space", lambda layers: _joint([(_raw(pair, roles, layers), flips) for roles, flips in stored])


def agreement_with_activations(
    pair: Pair, first_activations: list[Tensor], second_activations: list[Tensor], names: str
) -> list[Row]:
    """Return the precision of every method over all layers of the second model, and of random choice."""
    depths = [range(model.dims.layers) for model in pair.models]
    rows, truth, has_partner = [], [], []
    for a in depths[0]:
        best = torch.cat([(first_activations[a].T @ second_activations[b]).abs() for b in depths[1]], 1).max(1)
        has_partner.append(best.values > PARTNERS)
        truth.append(best.indices[has_partner[-1]])
    total = sum(len(part) for part in truth)
    for name, score in methods(pair):
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
    rows, alignments = [], {}
    for a, b in PAIRS:
        name = f"{a}, {b}"
        alignments[name] = zp.align_models(models[a], models[b], out / f"{a}-{b}")
        pair = zp.pair_of(models[a], models[b])
        rows += agreement_with_activations(pair, active[a], active[b], name)
        (ROOT / "docs" / "alignment").mkdir(exist_ok=True)
        (ROOT / "docs" / "alignment" / f"{a}-{b}.svg").write_text(draw_layer_maps(alignments[name]), encoding="utf-8")
    summary = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({platform.machine()}) in "
        f"{time.monotonic() - began:.0f} s: {PRESS_SOURCE}, {ids.numel():,} tokens.\n"
    )
    path = ROOT / "docs" / "alignment.md"
    text = path.read_text(encoding="utf-8")
    for mark, new in {"measured": summary, "neurons": table(rows), "layers": layers_table(alignments)}.items():
        text = between(text, mark, new)
    path.write_text(text, encoding="utf-8")
    print(summary, table(rows), layers_table(alignments), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("alignment"), help="where alignments are written")
    parser.add_argument("--windows", type=int, default=600, help="windows of 256 tokens of the text")
    options = parser.parse_args()
    main(options.out, options.windows)
