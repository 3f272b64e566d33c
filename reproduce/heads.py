"""Hold the catalogue of heads against the running model, and print the tables of docs/heads.md.

The model runs on text that it wrote itself and on random tokens that are repeated. Of each head is taken the attention
that it pays to the token before, to the token itself, to earlier tokens that are the same and to the first one, and how
high a token, or the bracket that closes it, comes among all when what the head really writes for it is added to the
stream. The Spearman correlation with the catalogue is over all heads; its null permutes the heads. Then named heads are
ablated, and as many other heads of the same layers::

    python reproduce/heads.py smollm2-135m
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

import zeropass as zp
from zeropass.heads.closing import brackets
from zeropass.heads.results import Head
from zeropass.model.generate import own_text, random_tokens
from zeropass.model.running import Contexts, Running

PIECES, LENGTH, SEED = 8, 128, 11
REPEATED, PERIOD = 8, 64
WRITTEN, CONTEXTS, PREFIX = 16, 2, 32
ABLATED, SETS, PERMUTED, COMMON = 10, 10, 1000, 8

MEASURES = {
    "previous": ("attention to the token before, text", "the same, repeated random tokens"),
    "itself": ("attention to the token itself, text",),
    "same": ("attention to an earlier token that is the same, text", "the same, repeated random tokens"),
    "first": ("attention to the first token, text", "the same, repeated random tokens"),
    "copying": ("rank of the attended token in the measured effect", "induction score, repeated random tokens"),
    "closing": ("rank of the closing bracket in the measured effect",),
}
"""The measure of the running model that each trait is held against."""

Table = dict[str, np.ndarray]
"""A value of each head, (layers, heads), by the name of the measure."""


@dataclass
class Attended:
    """Means of the attention of all heads over one batch of texts."""

    running: Running
    ids: Tensor
    values: Table = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)

    def run(self) -> None:
        """Run the model and take the means."""
        dims = self.running.model.dims
        self.queries = torch.zeros(0)
        names = ("previous", "itself", "same", "first", "induction")
        self.values = {name: np.zeros((dims.layers, dims.heads)) for name in names}
        later = torch.arange(self.ids.shape[1])
        same = (self.ids[:, :, None] == self.ids[:, None]) & (later[:, None] > later)
        same[:, :, 0] = False
        self.same = same
        self.running.run(self.ids, self._record)

    def _record(self, name: str, layer: int, values: Tensor) -> None:
        if name == "v":
            self.written[layer] = values.clone()
        block = self.running.blocks[layer]
        if name == "rotated.q":
            self.queries = block.heads(values)
        elif name == "rotated.k":
            keys = block.heads(values, "k")
            self._take(layer, block.weights(self.queries, keys, torch.arange(values.shape[1])))

    def _take(self, layer: int, weights: Tensor) -> None:
        """Take the means of the weights (texts, heads, queries, keys) of a layer."""
        mass, having = (weights * self.same[:, None]).sum(-1), self.same.any(-1)[:, None]
        means = {
            "previous": weights.diagonal(-1, 2, 3)[:, :, 7:].mean((0, 2)),
            "itself": weights.diagonal(0, 2, 3)[:, :, 8:].mean((0, 2)),
            "first": weights[:, :, 16:, 0].mean((0, 2)),
            "same": (mass * having).sum((0, 2)) / having.sum(),
            "induction": weights.diagonal(1 - PERIOD, 2, 3)[:, :, 1:].mean((0, 2)),
        }
        for name, mean in means.items():
            self.values[name][layer] = mean.numpy()


def effects(
    running: Running, contexts: Contexts, values: dict[int, Tensor], targets: Tensor, shown: Tensor
) -> np.ndarray:
    """Return the mean rank of target tokens in the measured effect of what each head writes, (layers, heads).

    Args:
        running: The model.
        contexts: Texts to whose last token it is added.
        values: What heads take from the attended tokens by layer, (n, width).
        targets: The target of each of these tokens, (n, k): the best of them counts.
        shown: The tokens among which they are ranked.
    """
    model, ranks = running.model, np.zeros((running.model.dims.layers, running.model.dims.heads))
    for layer, of_layer in values.items():
        width = model.dims.at(layer).width("v")
        for head in range(model.dims.at(layer).heads):
            start = model.kv_head("v", head, layer) * width
            written = of_layer[:, start : start + width] @ model.head("o", layer, head)
            change = contexts.changes(layer, "attn", written).mean(0)
            best = change.gather(1, targets).amax(1, keepdim=True)
            ranks[layer, head] = (change[:, shown] < best).double().mean()
    return ranks


def copying(running: Running, text: Attended, contexts: Contexts, shown: Tensor) -> np.ndarray:
    """Return the mean rank of an attended word in the effect of what each head writes for it."""
    model = running.model
    words = torch.from_numpy(model.vocab.mask("words", *model.judgement))[text.ids[:2, 20:]].nonzero()
    words = words[torch.randperm(len(words), generator=torch.Generator().manual_seed(1))[:WRITTEN]]
    batch, place = words[:, 0], words[:, 1] + 20
    values = {layer: each[batch, place] for layer, each in text.written.items()}
    return effects(running, contexts, values, text.ids[batch, place][:, None], shown)


def closing(running: Running, text: Attended, contexts: Contexts, shown: Tensor) -> np.ndarray:
    """Return the mean rank of the closing bracket, where some tokens of a text are replaced by opening ones."""
    signs = brackets(running.model.vocab)
    opening = torch.unique(signs.opening)[:COMMON]  # ids rise as tokens become rare
    ids = text.ids[4:5].repeat(len(opening), 1)[:, :48].clone()
    ids[:, 40] = opening
    marked = Attended(running, ids)
    marked.run()
    ends = [signs.closing[signs.opening == token] for token in opening]
    most = max(map(len, ends))
    targets = torch.stack([end[torch.arange(most) % len(end)] for end in ends])
    return effects(running, contexts, {layer: each[:, 40] for layer, each in marked.written.items()}, targets, shown)


def null_of(first: np.ndarray, second: np.ndarray) -> float:
    """Return the size of a correlation that 99 of 100 permutations of the heads stay below."""
    generator = np.random.default_rng(0)
    order = (generator.permutation(first.size) for _ in range(PERMUTED))
    return float(np.quantile([abs(spearmanr(first.ravel()[o], second.ravel()).statistic) for o in order], 0.99))


def correlations(catalogue: zp.HeadCatalogue, true: dict[str, list[np.ndarray]]) -> None:
    """Print how each trait correlates with what it is held against, over all heads and over thirds of the layers."""
    print("| trait | held against | all heads | null | layers: first third | second | last | named | others |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, tables in true.items():
        for words, measured in zip(MEASURES[name], tables, strict=True):
            values = np.full(measured.shape, np.nan)
            named = np.zeros(measured.shape, dtype=bool)
            for head in catalogue:
                if trait := head.trait(name):
                    values[head.layer, head.head], named[head.layer, head.head] = trait.value, trait.stands_out
            parts = [slice(None), *(slice(n * len(values) // 3, (n + 1) * len(values) // 3) for n in range(3))]
            overall, *thirds = (spearmanr(values[part].ravel(), measured[part].ravel()).statistic for part in parts)
            cells = [f"**{overall:.2f}**", f"{null_of(values, measured):.2f}", *(f"{third:.2f}" for third in thirds)]
            means = f"{measured[named].mean():.2f} ({named.sum()}) | {measured[~named].mean():.2f}"
            print(f"| {name} | {words} |", " | ".join(cells), f"| {means} |", flush=True)


# Ablation


def ablated(running: Running, ids: Tensor, heads: Sequence[tuple[int, int]], part: slice) -> Tensor:
    """Return the log-probabilities (texts, tokens, V) behind part of the tokens, where some heads write nothing."""

    def silence(name: str, layer: int, values: Tensor) -> None:
        if name == "o.in":
            width = running.model.dims.at(layer).width("o")
            for at, head in heads:
                if at == layer:
                    values[..., head * width : (head + 1) * width] = 0

    return running.logits(running.run(ids, silence)[:, part]).log_softmax(-1)


def repeated_score(running: Running, ids: Tensor) -> Callable[[Sequence[tuple[int, int]]], float]:
    """Return the function from ablated heads to the mean log-probability of tokens that were there before."""
    ids, period = ids[:4], ids.shape[1] // 2

    def score(heads: Sequence[tuple[int, int]]) -> float:
        logs = ablated(running, ids, heads, slice(period, -1))
        return float(logs.gather(2, ids[:, period + 1 :, None]).mean())

    return score


def plain_score(running: Running, ids: Tensor) -> Callable[[Sequence[tuple[int, int]]], float]:
    """Return the function from ablated heads to the mean log-probability of a text."""
    ids = ids[:4, :96]
    return lambda heads: float(ablated(running, ids, heads, slice(8, -1)).gather(2, ids[:, 9:, None]).mean())


def closing_score(running: Running, ids: Tensor) -> Callable[[Sequence[tuple[int, int]]], float]:
    """Return the function from ablated heads to the log-probability of a bracket that closes one four tokens before."""
    signs = brackets(running.model.vocab)
    opening = torch.unique(signs.opening)[:COMMON]
    texts = ids[:, :32].clone()
    texts[:, 27] = opening[torch.arange(len(texts)) % len(opening)]
    ends = [signs.closing[signs.opening == token] for token in texts[:, 27]]

    def score(heads: Sequence[tuple[int, int]]) -> float:
        logs = ablated(running, texts, heads, slice(-1, None))[:, 0]
        return float(torch.stack([row[end].logsumexp(0) for row, end in zip(logs, ends, strict=True)]).mean())

    return score


def others(catalogue: zp.HeadCatalogue, chosen: Sequence[Head], name: str) -> Iterator[list[tuple[int, int]]]:
    """Yield sets of as many heads of the same layers, or of any layer where these have no more, without the trait."""
    generator = np.random.default_rng(1)
    free = [head for head in catalogue if head not in chosen and not ((t := head.trait(name)) and t.stands_out)]
    for _ in range(SETS):
        drawn: list[Head] = []
        for head in chosen:
            left = [other for other in free if other not in drawn]
            same_layer = [other for other in left if other.layer == head.layer] or left
            drawn.append(same_layer[generator.integers(len(same_layer))])
        yield [(head.layer, head.head) for head in drawn]


def ablations(catalogue: zp.HeadCatalogue, running: Running, text: Tensor, repeated: Tensor) -> None:
    """Print what ablating named heads costs, beside as many others of the same layers."""
    scores = {
        "repeated random tokens": repeated_score(running, repeated),
        "closing bracket": closing_score(running, text),
        "text": plain_score(running, text),
    }
    rows = [
        ("copying", "repeated random tokens"),
        ("previous", "repeated random tokens"),
        ("closing", "closing bracket"),
        ("copying", "text"),
    ]
    print(
        "| ablated | heads | log-probability of | intact | without them | without others: mean (worst) | worse than |"
    )
    print("|---|---:|---|---:|---:|---:|---:|")
    for name, what in rows:
        chosen = catalogue.having(name)[:ABLATED]
        score = scores[what]
        without, null = (
            score([(head.layer, head.head) for head in chosen]),
            [score(h) for h in others(catalogue, chosen, name)],
        )
        worse = sum(without < value for value in null)
        cells = f"{score(()):.2f} | {without:.2f} | {np.mean(null):.2f} ({min(null):.2f}) | {worse} of {len(null)}"
        print(f"| {name} | {len(chosen)} | {what} | {cells} |", flush=True)


@torch.no_grad()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lens", default="auto")
    options = parser.parse_args()
    lens = zp.load(options.model, lens=options.lens)
    started = time.monotonic()
    catalogue = zp.catalogue_heads(lens, progress=False)
    print(f"{catalogue}, {catalogue.lens or 'the weights alone'}, {time.monotonic() - started:.0f} s\n", flush=True)
    running = Running(lens.model)
    text = Attended(running, own_text(lens.model, PIECES, LENGTH, SEED))
    once = random_tokens(lens.model, REPEATED * PERIOD, SEED).reshape(REPEATED, PERIOD)
    repeated = Attended(running, torch.cat((once, once), 1))
    text.run()
    repeated.run()
    contexts = Contexts.of(running, text.ids[4 : 4 + CONTEXTS, 40 : 40 + PREFIX])
    shown = torch.from_numpy(lens.model.vocab.mask("default", *lens.model.judgement)).nonzero()[:, 0]
    true = {name: [text.values[name], repeated.values[name]] for name in ("previous", "same", "first")}
    true["itself"] = [text.values["itself"]]
    true["copying"] = [copying(running, text, contexts, shown), repeated.values["induction"]]
    true["closing"] = [closing(running, text, contexts, shown)]
    correlations(catalogue, {name: true[name] for name in MEASURES})
    print()
    ablations(catalogue, running, text.ids, repeated.ids)


if __name__ == "__main__":
    main()
