"""Writing vectors, added to the stream on real text: the logits that they raise, compared with their lists.

A vector is added to the last token of a text where its layer writes, scaled to a tenth of the stream's norm there. The
mean change of the logits over many texts is compared with the scores of its list. For ``vo`` the vector is what a head
writes for an attended token of the text, and the list is that token's row of the map.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.evidence.activations import Activations, Settings
from zeropass.evidence.compared_frames import Spaces
from zeropass.evidence.resampling import among, partner, rotation, spearman, summarised
from zeropass.evidence.results import Result
from zeropass.model.model import Model
from zeropass.model.running import Running, transformers
from zeropass.model.vectors import count_of

__all__ = ["writing"]

STRENGTH = 0.1
"""The norm of an added vector, in units of the stream's median norm at the layer."""

SAMPLED = 4096
"""The number of tokens over which ranks are compared: a seeded sample of those that lists show."""

TOP = 50
BATCH = 64
NOISE_HEADS = 6


@dataclass(frozen=True)
class Group:
    """The vectors that are added at one layer.

    Attributes:
        layer: The layer.
        role: The role: ``value``, ``o`` or ``vo``.
        random: True for random vectors.
        added: The added vectors, (n, d).
        predicted: The vectors (n, d) according to the weights alone, by frame of the attended token (``""`` for
            ``value`` and ``o``, where they are the added vectors up to length; ``vo`` maps the token's row).
    """

    layer: int
    role: str
    random: bool
    added: Tensor
    predicted: dict[str, Tensor]


@dataclass(frozen=True)
class Effects:
    """The mean changes of the logits for added vectors: at the sampled tokens (n, S), and the top tokens (n, k)."""

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
    """Return the results for ``value`` and ``o`` (measure ``writing``) and ``vo`` (``promotes``) by layer and frame.

    Args:
        running: The running model.
        spaces: The rows of every frame.
        activations: The activations on the text.
        ids: Token ids of the text, (n,).
        shown: Ids of the tokens that lists may show, (V',).
        settings: The extent of the measurement.
        tell: Reports progress.
    """
    groups = [*_vectors(spaces.frames.model, activations, settings), *_heads(spaces, activations, settings)]
    order = torch.randperm(len(shown), generator=settings.generator(21))
    sample = order[:SAMPLED].sort().values
    effects = _effects(running, groups, _contexts(running, ids, settings), shown, sample, tell)
    turn = rotation(running.model.dims.d, settings.seed)
    results: list[Result] = []
    for number, frame in enumerate(spaces.write_frames):
        rows = spaces.matrix(frame, "write", 1)[shown]
        for (layer, role), (measured, random) in _paired(groups).items():
            for source in _sources(spaces, frame, groups[measured]):
                lists = _Lists(spaces=spaces, rows=rows, sample=sample, frame=frame, source=source)
                name = (layer, role, source if role == "vo" else frame)
                results += _compared(lists, groups, effects, measured, random, turn, name)
        tell("writing, lists", number + 1, len(spaces.write_frames))
    return results


def _sources(spaces: Spaces, frame: str, group: Group) -> tuple[str, ...]:
    """Return the keys of a group's predictions that a frame of writing vectors takes."""
    if group.role != "vo":
        return ("",)
    return tuple(source for source, target in spaces.map_frames.items() if target == frame)


def _paired(groups: list[Group]) -> dict[tuple[int, str], tuple[int, int]]:
    """Return, by (layer, role), the number of the group and that of its random counterpart."""
    measured = {(g.layer, g.role): i for i, g in enumerate(groups) if not g.random}
    random = {(g.layer, g.role): i for i, g in enumerate(groups) if g.random}
    return {key: (i, random[key]) for key, i in measured.items()}


def _vectors(model: Model, activations: Activations, settings: Settings) -> Iterator[Group]:
    """Yield, for every layer, a sample of the FF values and of the heads' output rows, and random vectors for each."""
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
    """Return a group of vectors, scaled to one norm."""
    added = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-20) * scale
    return Group(layer=layer, role=role, random=random, added=added, predicted={"": vectors})


def _heads(spaces: Spaces, activations: Activations, settings: Settings) -> Iterator[Group]:
    """Yield, for every layer, what heads write for tokens of the text and what ``vo`` predicts; then random heads."""
    model = spaces.frames.model
    for layer in range(model.dims.layers):
        scale = STRENGTH * float(activations.kept["state", layer].norm(dim=-1).median())
        rows = {frame: spaces.rows(frame, layer, activations.at) for frame in spaces.map_frames}
        count = 2 * settings.written // 3 * 2
        items = _head_items(model, len(activations.at), count, settings.generator(5000 + layer))
        yield _head_group(spaces, activations, layer, items, rows, scale)
        yield _random_head_group(spaces, activations, layer, rows, scale, settings)


def _head_items(model: Model, positions: int, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Draw (head, sampled position) pairs: heads in equal numbers, positions at random."""
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
    predicted: dict[str, list[Tensor]] = {frame: [] for frame in rows}
    for head, position in items:
        start = model.kv_head("v", head) * width
        reads, writes = model.head("v", layer, head), model.head("o", layer, head)
        written.append(v[position, start : start + width] @ writes)
        for frame, frame_rows in rows.items():
            predicted[frame].append(frame_rows[position] @ spaces.folded(reads, "v", layer, frame).T @ writes)
    added = _group(layer, "vo", False, torch.stack(written), scale).added
    return Group(
        layer=layer,
        role="vo",
        random=False,
        added=added,
        predicted={frame: torch.stack(vectors) for frame, vectors in predicted.items()},
    )


def _random_head_group(
    spaces: Spaces, activations: Activations, layer: int, rows: dict[str, Tensor], scale: float, settings: Settings
) -> Group:
    d, width = spaces.frames.model.dims.d, spaces.frames.model.dims.head_dim
    reads, writes = torch.randn(2, NOISE_HEADS, width, d, generator=settings.generator(9000 + layer)) / d**0.5
    at = torch.randint(len(activations.at), (NOISE_HEADS,), generator=settings.generator(9500 + layer)).tolist()
    inputs, pairs = activations.kept["attn", layer], list(enumerate(at))
    written = torch.stack([inputs[p] @ reads[i].T @ writes[i] for i, p in pairs])
    predicted = {
        frame: torch.stack([frame_rows[p] @ spaces.folded(reads[i], "v", layer, frame).T @ writes[i] for i, p in pairs])
        for frame, frame_rows in rows.items()
    }
    return Group(
        layer=layer, role="vo", random=True, added=_group(layer, "vo", True, written, scale).added, predicted=predicted
    )


def _contexts(running: Running, ids: Tensor, settings: Settings) -> list[Tensor]:
    """Draw contexts, (prefix,) each, from random places of the text."""
    last = len(ids) - settings.prefix
    starts = torch.randperm(last, generator=settings.generator(22))[: settings.contexts]
    return [ids[s : s + settings.prefix].to(running.device) for s in starts.tolist()]


def _effects(
    running: Running, groups: list[Group], contexts: list[Tensor], shown: Tensor, sample: Tensor, tell: Progress
) -> list[Effects]:
    """Add every vector to every context: one step of the model per batch, on the cached keys and values."""
    added = torch.cat([g.added for g in groups])
    places = [(g.layer, "o" if g.role in ("o", "vo") else "value") for g in groups for _ in range(len(g.added))]
    cached = [_CachedContext.of(running, context, shown) for context in contexts]
    sampled, top = [], []
    for start in range(0, len(added), BATCH):
        part = slice(start, min(start + BATCH, len(added)))
        change = torch.stack([context.step(running, added[part], places[part]) for context in cached]).mean(0)
        sampled.append(change[:, sample])
        top.append(change.topk(min(TOP, change.shape[1])).indices)
        tell("writing", part.stop, len(added))
    sizes = [len(g.added) for g in groups]
    by_group = (torch.split(torch.cat(batches), sizes) for batches in (sampled, top))
    return [Effects(*group) for group in zip(*by_group, strict=True)]


@dataclass(frozen=True)
class _CachedContext:
    """A context that was run once.

    Attributes:
        last: The id of its last token, (1,).
        layers: Keys and values of all other tokens, by layer.
        logits: The logits of the last token.
        shown: Ids of the tokens that lists may show, (V',).
    """

    last: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]
    logits: Tensor
    shown: Tensor

    @classmethod
    def of(cls, running: Running, context: Tensor, shown: Tensor) -> "_CachedContext":
        cache: Any = transformers.DynamicCache()  # A cache of plain attention: its layers hold keys and values.
        running.run(context[None, :-1], cache)
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        empty = cls(last=context[-1:], layers=layers, logits=torch.zeros(()), shown=shown)
        return cls(last=context[-1:], layers=layers, logits=empty.logits_with(running, 1), shown=shown)

    def logits_with(self, running: Running, batch: int) -> Tensor:
        cache = transformers.DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), number)
        ids = self.last.expand(batch)[:, None]
        logits: Tensor = running.run(ids, cache).logits[:, -1]
        return logits.float().cpu()[:, self.shown]

    def step(self, running: Running, added: Tensor, places: list[tuple[int, str]]) -> Tensor:
        """Return the change of the logits (n, V') when each vector is added at its place."""
        by_place: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        for place in dict.fromkeys(places):
            rows = torch.tensor([i for i, vector_place in enumerate(places) if vector_place == place])
            by_place[place] = (rows, added[rows].to(running.device))
        with running.adding(by_place):
            return self.logits_with(running, len(added)) - self.logits


@dataclass(frozen=True)
class _Lists:
    """The scores that a frame of writing vectors gives, at the sampled tokens and at the top."""

    spaces: Spaces
    rows: Tensor
    sample: Tensor
    frame: str
    source: str

    def of(self, group: Group, turn: Tensor | None = None) -> Effects:
        """Return the scores of a group's vectors, rotated if a rotation is given."""
        role = "o" if group.role == "vo" else group.role
        vectors = self.spaces.folded(group.predicted[self.source], role, group.layer, self.frame)
        scores = (vectors if turn is None else vectors @ turn) @ self.rows.T
        return Effects(scores[:, self.sample], scores.topk(min(TOP, scores.shape[1])).indices)


def _compared(
    lists: _Lists,
    groups: list[Group],
    effects: list[Effects],
    measured: int,
    random: int,
    turn: Tensor,
    name: tuple[int, str, str],
) -> Iterator[Result]:
    """Yield the results of a measured group: its effects against its lists and the nulls."""
    right = lists.of(groups[measured])
    wrong = Effects(partner(right.sampled, 0), partner(right.top, 0))
    pairs = {
        "": (effects[measured], right),
        "permuted": (effects[measured], wrong),
        "rotated": (effects[measured], lists.of(groups[measured], turn)),
        "noise": (effects[random], lists.of(groups[random])),
    }
    measure = "promotes" if name[1] == "vo" else "writing"
    for metric in ("spearman", "top-k"):
        values = {null: _agreement(metric, *pair) for null, pair in pairs.items()}
        yield summarised(measure, *name, "logits", metric, values.pop(""), values)


def _agreement(metric: str, effect: Effects, listed: Effects) -> Tensor:
    """Return the agreement of effects and list scores by a metric, (n,)."""
    if metric == "spearman":
        return spearman(effect.sampled, listed.sampled, 1)
    return among(effect.top, listed.top).double().mean(1)
