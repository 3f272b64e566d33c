"""Writing vectors, added to the stream on real text: the logits that are gained, against the lists.

A vector is added to the last token of a text where its layer writes, scaled to a tenth of the stream's norm there;
the mean change of the logits over many texts is held against the scores of its list. For ``vo`` the vector is what a
head really writes for a token of the text that it attends to, and the list is that token's row of the map.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from zeropass._io.progress import Progress
from zeropass.evidence.activations import Activations, Settings
from zeropass.evidence.compared_frames import WRITE_FRAMES, Spaces
from zeropass.evidence.resampling import among, partner, rotation, spearman, summarised
from zeropass.evidence.results import Result
from zeropass.model.model import Model
from zeropass.model.running import Running
from zeropass.model.vectors import count_of

__all__ = ["MAP_FRAMES", "writing"]

STRENGTH = 0.1
"""Norm of what is added, in units of the stream's median norm at the layer."""

SAMPLED = 4096
"""Tokens over which ranks are compared: a seeded sample of those that lists show."""

TOP = 50
BATCH = 64
NOISE_HEADS = 6

MAP_FRAMES = {
    "token": "output",
    "token.mlp": "output",
    "token.raw": "output",
    "token.inverse": "output",
    "embedded": "output",
    "output": "output",
    "paper": "paper",
}
"""Frames of the attended token in ``vo``, each with the frame of what is promoted."""


@dataclass(frozen=True)
class Group:
    """Vectors (n, d) that are added at one layer, and what the weights alone say was added, by frame of the source.

    For ``value`` and ``o`` these are the same; for ``vo`` they are what the map makes of the token's row.
    """

    layer: int
    role: str
    random: bool
    added: Tensor
    said: dict[str, Tensor]


@dataclass(frozen=True)
class Effects:
    """Mean change of the logits for each added vector: at the sampled tokens (n, S), and the top tokens (n, k)."""

    sampled: Tensor
    top: Tensor


def writing(
    running: Running,
    spaces: Spaces,
    activations: Activations,
    ids: Tensor,
    shown: Tensor,
    settings: Settings,
    tell: Progress,
) -> list[Result]:
    """Results for ``value``, ``o`` (measure ``writing``) and ``vo`` (``promotes``) by layer and frame.

    ids: the text (n,). shown: (V',) ids of the tokens that lists may show.
    """
    groups = [*_vectors(spaces.frames.model, activations, settings), *_heads(spaces, activations, settings)]
    order = torch.randperm(len(shown), generator=settings.generator(21))
    sample = order[:SAMPLED].sort().values
    effects = _effects(running, groups, _contexts(running, ids, settings), shown, sample, tell)
    turn = rotation(running.model.dims.d, settings.seed)
    found: list[Result] = []
    for number, frame in enumerate(WRITE_FRAMES):
        rows = spaces.matrix(frame, "write", 1)[shown]
        for (layer, role), (own, random) in _paired(groups).items():
            for source in _sources(frame, groups[own]):
                lists = _Lists(spaces, rows, sample, frame, source)
                name = (layer, role, source if role == "vo" else frame)
                found += _compared(lists, groups, effects, own, random, turn, name)
        tell("writing, lists", number + 1, len(WRITE_FRAMES))
    return found


def _sources(frame: str, group: Group) -> tuple[str, ...]:
    """Which of a group's predictions are read in a frame of what is written."""
    if group.role != "vo":
        return ("",)
    return tuple(source for source, target in MAP_FRAMES.items() if target == frame)


def _paired(groups: list[Group]) -> dict[tuple[int, str], tuple[int, int]]:
    """By (layer, role): number of the group, and of the random one that it stands beside."""
    own = {(g.layer, g.role): i for i, g in enumerate(groups) if not g.random}
    random = {(g.layer, g.role): i for i, g in enumerate(groups) if g.random}
    return {key: (i, random[key]) for key, i in own.items()}


def _vectors(model: Model, activations: Activations, settings: Settings) -> Iterator[Group]:
    """A sample of the FF values and of the output rows of the heads, and random vectors, of every layer."""
    for layer in range(model.dims.layers):
        scale = STRENGTH * float(activations.kept["state", layer].norm(dim=-1).median())
        for number, role in enumerate(("value", "o")):
            order = torch.randperm(
                count_of(model, layer, role), generator=settings.generator(1000 + 4 * layer + number)
            )
            vectors = model.matrix(role, layer)[order[: settings.written]]
            yield _group(layer, role, False, vectors, scale)
            generator = settings.generator(1002 + 4 * layer + number)
            noise = torch.randn(settings.written // 2, model.dims.d, generator=generator)
            yield _group(layer, role, True, noise, scale)


def _group(layer: int, role: str, random: bool, vectors: Tensor, scale: float) -> Group:
    added = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-20) * scale
    return Group(layer, role, random, added, {"": vectors})


def _heads(spaces: Spaces, activations: Activations, settings: Settings) -> Iterator[Group]:
    """What heads write for tokens of the text, and what ``vo`` says that they write; random heads beside them."""
    model = spaces.frames.model
    for layer in range(model.dims.layers):
        scale = STRENGTH * float(activations.kept["state", layer].norm(dim=-1).median())
        here = {frame: spaces.rows(frame, layer, activations.at) for frame in MAP_FRAMES}
        count = 2 * settings.written // 3 * 2
        items = _head_items(model, len(activations.at), count, settings.generator(5000 + layer))
        yield _head_group(spaces, activations, layer, items, here, scale)
        yield _random_head_group(spaces, activations, layer, here, scale, settings)


def _head_items(model: Model, positions: int, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """(head, sampled position) pairs: every head as often, positions at random."""
    heads = torch.randperm(model.dims.heads, generator=generator).tolist()
    at = torch.randint(positions, (count,), generator=generator).tolist()
    return [(heads[i % len(heads)], p) for i, p in enumerate(at)]


def _head_group(
    spaces: Spaces,
    activations: Activations,
    layer: int,
    items: list[tuple[int, int]],
    rows: dict[str, Tensor],
    scale: float,
) -> Group:
    model, width = spaces.frames.model, spaces.frames.model.dims.head_dim
    v_bias = model.vector("v_bias", layer)
    v = activations.kept["v", layer] if v_bias is None else activations.kept["v", layer] - v_bias.cpu()
    written: list[Tensor] = []
    said: dict[str, list[Tensor]] = {frame: [] for frame in rows}
    for head, position in items:
        start = model.kv_head("v", head) * width
        reads, writes = model.head("v", layer, head), model.head("o", layer, head)
        written.append(v[position, start : start + width] @ writes)
        for frame, of in rows.items():
            said[frame].append(of[position] @ spaces.folded(reads, "v", layer, frame).T @ writes)
    group = _group(layer, "vo", False, torch.stack(written), scale)
    return Group(layer, "vo", False, group.added, {frame: torch.stack(of) for frame, of in said.items()})


def _random_head_group(
    spaces: Spaces, activations: Activations, layer: int, rows: dict[str, Tensor], scale: float, settings: Settings
) -> Group:
    d, width = spaces.frames.model.dims.d, spaces.frames.model.dims.head_dim
    reads, writes = torch.randn(2, NOISE_HEADS, width, d, generator=settings.generator(9000 + layer)) / d**0.5
    at = torch.randint(len(activations.at), (NOISE_HEADS,), generator=settings.generator(9500 + layer)).tolist()
    inputs, pairs = activations.kept["attn", layer], list(enumerate(at))
    written = torch.stack([inputs[p] @ reads[i].T @ writes[i] for i, p in pairs])
    said = {
        frame: torch.stack([of[p] @ spaces.folded(reads[i], "v", layer, frame).T @ writes[i] for i, p in pairs])
        for frame, of in rows.items()
    }
    return Group(layer, "vo", True, _group(layer, "vo", True, written, scale).added, said)


def _contexts(running: Running, ids: Tensor, settings: Settings) -> list[Tensor]:
    """Texts (prefix,) from places all over the text."""
    last = len(ids) - settings.prefix
    starts = torch.randperm(last, generator=settings.generator(22))[: settings.contexts]
    return [ids[s : s + settings.prefix].to(running.device) for s in starts.tolist()]


def _effects(
    running: Running, groups: list[Group], contexts: list[Tensor], shown: Tensor, sample: Tensor, tell: Progress
) -> list[Effects]:
    """Add every vector to every context: one step of the model a batch, on the kept keys and values of the context."""
    added = torch.cat([g.added for g in groups])
    places = [(g.layer, "o" if g.role in ("o", "vo") else "value") for g in groups for _ in range(len(g.added))]
    kept = [_Kept.of(running, context, shown) for context in contexts]
    sampled, top = [], []
    for start in range(0, len(added), BATCH):
        part = slice(start, min(start + BATCH, len(added)))
        change = torch.stack([one.step(running, added[part], places[part]) for one in kept]).mean(0)
        sampled.append(change[:, sample])
        top.append(change.topk(min(TOP, change.shape[1])).indices)
        tell("writing", part.stop, len(added))
    sizes = [len(g.added) for g in groups]
    parts = (torch.split(torch.cat(every), sizes) for every in (sampled, top))
    return [Effects(*both) for both in zip(*parts, strict=True)]


@dataclass(frozen=True)
class _Kept:
    """A context that was run once: keys and values of all but its last token, and the logits of the last one."""

    last: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]
    logits: Tensor
    shown: Tensor

    @classmethod
    def of(cls, running: Running, context: Tensor, shown: Tensor) -> "_Kept":
        cache: Any = DynamicCache()  # of plain attention, whose layers hold keys and values
        running.run(context[None, :-1], cache)
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        empty = cls(context[-1:], layers, torch.zeros(()), shown)
        return cls(context[-1:], layers, empty.logits_with(running, 1), shown)

    def logits_with(self, running: Running, batch: int) -> Tensor:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), number)
        ids = self.last.expand(batch)[:, None]
        logits: Tensor = running.run(ids, cache).logits[:, -1]
        return logits.float().cpu()[:, self.shown]

    def step(self, running: Running, added: Tensor, places: list[tuple[int, str]]) -> Tensor:
        """Change of the logits (n, V') when each vector is added at its place."""
        by_place: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        for place in dict.fromkeys(places):
            rows = torch.tensor([i for i, other in enumerate(places) if other == place])
            by_place[place] = (rows, added[rows].to(running.device))
        with running.adding(by_place):
            return self.logits_with(running, len(added)) - self.logits


@dataclass(frozen=True)
class _Lists:
    """Scores that a frame of what is written gives to vectors, at the sampled tokens and at the top."""

    spaces: Spaces
    rows: Tensor
    sample: Tensor
    frame: str
    source: str

    def of(self, group: Group, turn: Tensor | None = None) -> Effects:
        role = "o" if group.role == "vo" else group.role
        vectors = self.spaces.folded(group.said[self.source], role, group.layer, self.frame)
        scores = (vectors if turn is None else vectors @ turn) @ self.rows.T
        return Effects(scores[:, self.sample], scores.topk(min(TOP, scores.shape[1])).indices)


def _compared(
    lists: _Lists,
    groups: list[Group],
    effects: list[Effects],
    own: int,
    random: int,
    turn: Tensor,
    name: tuple[int, str, str],
) -> Iterator[Result]:
    right = lists.of(groups[own])
    wrong = Effects(partner(right.sampled, 0), partner(right.top, 0))
    pairs = {
        "": (effects[own], right),
        "permuted": (effects[own], wrong),
        "rotated": (effects[own], lists.of(groups[own], turn)),
        "noise": (effects[random], lists.of(groups[random])),
    }
    measure = "promotes" if name[1] == "vo" else "writing"
    for metric in ("spearman", "top-k"):
        values = {null: _agreement(metric, *pair) for null, pair in pairs.items()}
        yield summarised(measure, *name, "logits", metric, values.pop(""), values)


def _agreement(metric: str, effect: Effects, listed: Effects) -> Tensor:
    if metric == "spearman":
        return spearman(effect.sampled, listed.sampled, 1)
    return among(effect.top, listed.top).double().mean(1)
