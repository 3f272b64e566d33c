"""Writing vectors, added to the stream on real text: the logits that they raise, compared with their lists.

A vector is added to the last token of a text where its layer writes, scaled to a tenth of the norm of the stream there
(of what is written, if a norm follows). The mean change of the logits over many texts is compared with the scores of
its list. For ``vo`` the vector is what a head writes for an attended token of the text, and the list is that token's
row of the map.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.frame_names import RELATIVE
from zeropass.arch.roles import Site, site_of
from zeropass.evidence.activations import Activations, Settings
from zeropass.evidence.compared_frames import Spaces
from zeropass.evidence.resampling import among, partner, rotation, spearman, summarised
from zeropass.evidence.results import Result
from zeropass.model.model import Model
from zeropass.model.running import Contexts, Running
from zeropass.model.vectors import count_of

__all__ = ["writing"]

STRENGTH = 0.1
"""The norm of an added vector, in units of the median norm of the stream, or of what its layer writes: `_strength`."""

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
        role: The role: ``value``, ``o``, ``mixer_out`` or ``vo``.
        random: True for random vectors.
        added: The added vectors, (n, d).
        predicted: The vectors (n, d) according to the weights alone, by frame of the attended token (``""`` for
            all but ``vo``, where they are the added vectors up to length; ``vo`` maps the token's row).
    """

    layer: int
    role: str
    random: bool
    added: Tensor
    predicted: dict[str, Tensor]

    @property
    def site(self) -> Site:
        """The part of the layer that writes them."""
        return site_of(self.role)


@dataclass(frozen=True)
class Effects:
    """Scores of vectors, or the mean changes of the logits by them: at sampled tokens (n, S), and top tokens (n, k)."""

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
    """Return the results by layer and frame: ``writing`` of ``value``, ``o`` and ``mixer_out``, ``promotes`` of ``vo``.

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
    contexts = Contexts.of(running, _drawn(ids, settings).to(running.model.device))
    changes = list(_changes(contexts, groups, shown, sample, tell))
    turn = rotation(running.model.dims.d, settings.seed)
    results: list[Result] = []
    for number, frame in enumerate(spaces.write_frames):
        rows = spaces.matrix(frame, "write", 1)[shown]
        effects = [change.relative if frame in RELATIVE else change.plain for change in changes]
        for (layer, role), (measured, random) in _paired(groups).items():
            for source in _sources(spaces, frame, groups[measured]):
                lists = _Lists(spaces=spaces, rows=rows, shown=shown, sample=sample, frame=frame, source=source)
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
    """Yield, for every layer, a sample of the vectors that each of its parts writes, and random vectors for each."""
    for layer in range(model.dims.layers):
        for number, role in ((0, "value"), (1, "o"), (1, "mixer_out")):
            if role not in model.matrices(layer):
                continue
            scale = _strength(model, activations, layer, site_of(role))
            order = torch.randperm(
                count_of(model, layer, role), generator=settings.generator(1000 + 4 * layer + number)
            )
            vectors = model.matrix(role, layer)[order[: settings.written]]
            yield _group(layer, role, False, vectors, scale)
            generator = settings.generator(1002 + 4 * layer + number)
            noise = torch.randn(settings.written // 2, model.dims.d, generator=generator)
            yield _group(layer, role, True, noise, scale)


def _strength(model: Model, activations: Activations, layer: int, site: Site) -> float:
    """Return the norm of the vectors that are added to what a part of a layer writes.

    A norm behind it divides by the norm of all that is written, so there the vector is small beside that.
    """
    compared = f"{site}.out" if model.vector(f"{site}_post_norm", layer) is not None else "state"
    return STRENGTH * float(activations.kept[compared, layer].norm(dim=-1).median())


def _group(layer: int, role: str, random: bool, vectors: Tensor, scale: float) -> Group:
    """Return a group of vectors, scaled to one norm."""
    added = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-20) * scale
    return Group(layer=layer, role=role, random=random, added=added, predicted={"": vectors})


def _heads(spaces: Spaces, activations: Activations, settings: Settings) -> Iterator[Group]:
    """Yield, for every layer, what heads write for tokens of the text and what ``vo`` predicts; then random heads."""
    model = spaces.frames.model
    for layer in model.dims.attending:
        scale = _strength(model, activations, layer, "attn")
        rows = {frame: spaces.rows(frame, layer, activations.at) for frame in spaces.map_frames}
        count = 2 * settings.written // 3 * 2
        items = _head_items(model.dims.at(layer).heads, len(activations.at), count, settings.generator(5000 + layer))
        yield _head_group(spaces, activations, layer, items, rows, scale)
        yield _random_head_group(spaces, activations, layer, rows, scale, settings)


def _head_items(heads: int, positions: int, count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Draw (head, sampled position) pairs: heads in equal numbers, positions at random."""
    order = torch.randperm(heads, generator=generator).tolist()
    at = torch.randint(positions, (count,), generator=generator).tolist()
    return [(order[i % heads], p) for i, p in enumerate(at)]


def _head_group(
    spaces: Spaces,
    activations: Activations,
    layer: int,
    items: list[tuple[int, int]],
    rows: dict[str, Tensor],
    scale: float,
) -> Group:
    model, width = spaces.frames.model, spaces.frames.model.dims.at(layer).width("v")
    v, v_bias = activations.kept["v", layer], model.vector("v_bias", layer)
    v = v if model.dims.clip is None else v.clamp(-model.dims.clip, model.dims.clip)
    v = v if v_bias is None else v - v_bias.cpu()
    written: list[Tensor] = []
    predicted: dict[str, list[Tensor]] = {frame: [] for frame in rows}
    for head, position in items:
        start = model.kv_head("v", head, layer) * width
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
    d, width = spaces.frames.model.dims.d, spaces.frames.model.dims.at(layer).width("v")
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


def _drawn(ids: Tensor, settings: Settings) -> Tensor:
    """Draw contexts, (contexts, prefix), from random places of the text."""
    last = len(ids) - settings.prefix
    starts = torch.randperm(last, generator=settings.generator(22))[: settings.contexts]
    return torch.stack([ids[start : start + settings.prefix] for start in starts.tolist()])


@dataclass(frozen=True)
class Changes:
    """The effects of a group's vectors, and the same relative to the measured vectors of the layer and role.

    The latter are z of each effect over the tokens, each divided by its root mean square over the vectors, as the frame
    ``distinctive`` divides scores.
    """

    plain: Effects
    relative: Effects


def _changes(
    contexts: Contexts, groups: list[Group], shown: Tensor, sample: Tensor, tell: Progress
) -> Iterator[Changes]:
    """Add every vector to every context, a few at a time; the random groups are compared with the measured ones."""
    device, size = contexts.logits.device, max(BATCH // len(contexts.logits), 1)
    sizes: dict[tuple[int, str], Tensor] = {}
    for number, group in enumerate(groups):
        parts = torch.split(group.added.to(device), size)
        change = torch.cat([contexts.changes(group.layer, group.site, part).mean(0).cpu()[:, shown] for part in parts])
        z = (change - change.mean(1, keepdim=True)) / change.std(1, keepdim=True).clamp_min(1e-20)
        # The measured group of a layer and role comes before its random counterpart.
        usual = sizes.setdefault((group.layer, group.role), z.square().mean(0).sqrt().clamp_min(1e-20))
        yield Changes(_ends(change, sample), _ends(z / usual, sample))
        tell("writing", number + 1, len(groups))


def _ends(scores: Tensor, sample: Tensor) -> Effects:
    """Return scores (n, V') at the sampled tokens, and the tokens at the top."""
    return Effects(scores[:, sample], scores.topk(min(TOP, scores.shape[1])).indices)


@dataclass(frozen=True)
class _Lists:
    """The scores that a frame of writing vectors gives, at the sampled tokens and at the top."""

    spaces: Spaces
    rows: Tensor
    shown: Tensor
    sample: Tensor
    frame: str
    source: str

    def of(self, group: Group, turn: Tensor | None = None) -> Effects:
        """Return the scores of a group's vectors, rotated if a rotation is given."""
        role = "o" if group.role == "vo" else group.role
        vectors = self.spaces.folded(group.predicted[self.source], role, group.layer, self.frame)
        scores = (vectors if turn is None else vectors @ turn) @ self.rows.T
        factors = self.spaces.frames.factors(group.layer, role, self.frame)
        return _ends(scores if factors is None else scores * factors[self.shown], self.sample)


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
