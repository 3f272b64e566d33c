"""Compares two models: where the change is, what it says, and whom it concerns; one layer in memory at a time."""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from zeropass.arch.spec import (
    FF_ROLES,
    HEAD_ROLES,
    ROUTER,
    Dimensions,
    base_role,
    norm_of,
    side_of,
    site_of,
    space_of,
)
from zeropass.catalog import neuron_address, reads_at
from zeropass.delta.changes import Change, Comparison, leading
from zeropass.delta.results import Diff, MatrixChange, Moved, ParameterChange, Standout, Watched
from zeropass.delta.verdict import alarms, verdict
from zeropass.frames import Frames
from zeropass.lens import Lens
from zeropass.model import Model
from zeropass.sources.gguf import storing_error
from zeropass.statistics import blocks
from zeropass.views import Direction, Token, TokenScore

__all__ = ["across", "compare"]

Progress = Callable[[str, int, int], None]

DIRECTIONS, TOKENS, NEURONS, HEADS, MOVED, ROWS = 4, 20, 8, 4, 12, 8
"""How many are kept: directions a matrix, tokens of all changes together, neurons, heads, vectors, rows of a table."""

PARTNER = {"gate": "value", "up": "value", "key": "value", "q": "k", "k": "q", "v": "o", "o": "v"}
PARTNER |= {f"cross_{role}": f"cross_{PARTNER[role]}" for role in "qkvo"}
"""What stands at the other end of a matrix' inner side: `value` has the gate, or the key if there is none."""


def compare(
    base: Model,
    tuned: Model,
    *,
    watch: Sequence[str] = (),
    frames: Frames | None = None,
    progress: Progress = lambda *_: None,
) -> Diff:
    """What ``tuned`` changed in ``base``: everything that `Diff` holds.

    ``watch``: words whose share in the change is asked for; each of one token. ``frames``: the base's, if they are at
    hand. Raises BadModel for models that cannot be compared, UnknownWord for a word that is no token.
    """
    work = _Work(Comparison(base, tuned), frames or Frames(base), [base.vocab.find(word) for word in watch])
    for layer in range(base.dims.layers):
        progress("comparing", layer, base.dims.layers + 1)
        work.layer(layer)
    progress("summing up", base.dims.layers, base.dims.layers + 1)
    return work.finish()


def across(inner: Tensor, role: str, dims: Dimensions) -> Tensor:
    """Vectors (rows, k) on the inner side of a role, as the rows of its partner (GQA: design.md §2)."""
    if role in FF_ROLES or dims.group == 1:
        return inner
    count, width = inner.shape[1], dims.head_dim
    if base_role(role) in ("q", "o"):
        return inner.reshape(dims.kv_heads, dims.group, width, count).sum(1).reshape(-1, count)
    return inner.reshape(dims.kv_heads, 1, width, count).expand(-1, dims.group, -1, -1).reshape(-1, count)


@dataclass(eq=False)
class _Work:
    """Running results of one comparison."""

    pair: Comparison
    frames: Frames
    watched: list[list[int]]
    grams: dict[str, Tensor] = field(default_factory=dict)
    effects: dict[str, Tensor] = field(default_factory=dict)
    matrices: list[MatrixChange] = field(default_factory=list)
    watch: list[Watched] = field(default_factory=list)
    neurons: list[tuple[float, str]] = field(default_factory=list)
    heads: list[tuple[float, str]] = field(default_factory=list)
    squares: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        base = self.pair.base
        self.lens = Lens.over(self.frames)
        # Tokens that only the fine-tune has are no part of the base's frames.
        self.tuned = replace(self.pair.tuned, vocab=base.vocab)
        self.view = self.lens.view("default")

    def layer(self, layer: int) -> None:
        """Take in one layer."""
        rows: dict[str, Tensor] = {}
        for role in self.pair.roles:
            change = self.pair.change(role, layer)
            counted = change.norm if not change.rounding else 0.0
            self.squares.append((counted**2, change.before**2))
            if not change.norm:
                continue
            self.matrices.append(self._matrix(change))
            if not change.rounding:
                scale = change.before / math.sqrt(change.dense.shape[0])
                rows[role] = change.dense.norm(dim=1).square() / scale**2 if scale else change.dense.norm(dim=1)
                self._concerned(change)
        self._parameters(layer, rows)
        if layer == 0:  # no later layer reads the embedding itself
            self._sum("embedded")
            self.frames.release("embedded")
        elif layer == 1:  # all rows that later layers meet are made
            self.pair.base.forget()

    def _sum(self, space: str) -> None:
        """Turn what was gathered for a space into effects on its tokens."""
        gram = self.grams.pop(space, None)
        if gram is not None:
            side = "writes" if space.startswith("output") else "sees"
            self.effects[side] = _effects(self.frames.rows(space).matrix, gram) + self.effects.get(side, 0.0)

    def _matrix(self, change: Change) -> MatrixChange:
        found: tuple[Direction, ...] = ()
        error = 0.0
        if not change.rounding and change.role != ROUTER:  # behind a router's rows stands no matrix
            directions, error = leading(change, DIRECTIONS)
            found = tuple(
                self._directions(change, directions.values, directions.left, directions.right, directions.close)
            )
        return MatrixChange(change.layer, change.role, change.relative, change.rank, change.rounding, found, error)

    def _directions(
        self, change: Change, values: Tensor, inner: Tensor, stream: Tensor, close: Tensor
    ) -> Iterator[Direction]:
        """Each direction in words: what is read on its left, what is written (or attended to) on its right."""
        base, role = self.pair.base, change.role
        partner = PARTNER.get(role) or ("gate" if "gate" in base.family.ff_roles else "key")
        other = across(inner, role, base.dims).T @ self.tuned.matrix(partner, change.layer)
        first = base_role(role) in ("gate", "up", "key", "q", "v")
        sides = [(role, stream.T), (partner, other)] if first else [(partner, other), (role, stream.T)]
        left, right = (self._scores(vectors, one, change.layer) for one, vectors in sides)
        for n in range(len(values)):
            if float(values[n]) <= 0:
                continue
            # A direction and its opposite are one; the pole that stands out more, on either side, comes first.
            ends = torch.stack([left[:, n], right[:, n]])[:, self.view.ids]
            sign = 1.0 if float(ends.max() + ends.min()) >= 0 else -1.0
            poles = (*self._poles(sign * left[:, n]), *self._poles(sign * right[:, n]))
            yield Direction(float(values[n]), float(values[n]) ** 2 / change.norm**2, bool(close[n]), *poles)

    def _scores(self, vectors: Tensor, role: str, layer: int) -> Tensor:
        """Scores z (V, n) of vectors of a role: what they see if they read, what they write if they write."""
        side = side_of(role)
        frame = "token" if side == "read" else "output"
        folded = self._folded(vectors, role, frame, layer)
        rows = self.frames.rows(space_of(frame, side, reads_at(self.pair.base, layer, role)))
        mean, std = rows.moments.of_scores(folded)
        return (rows.matrix @ folded.T - mean) / std.clamp_min(torch.finfo(torch.float32).tiny)

    def _folded(self, vectors: Tensor, role: str, frame: str, layer: int) -> Tensor:
        return self.frames.fold(vectors, frame, side_of(role), norm_of(role), layer)

    def _poles(self, scores: Tensor) -> tuple[tuple[TokenScore, ...], tuple[TokenScore, ...]]:
        return self.lens.poles(scores, self.view)

    def _concerned(self, change: Change) -> None:
        """Add the change to what all of them do to each token: ‖ΔW r‖², every matrix with the same weight."""
        side, layer, role = side_of(change.role), change.layer, change.role
        frame = "token" if side == "read" else "output"
        rows = self.frames.rows(space_of(frame, side, reads_at(self.pair.base, layer, role)))
        folded = self._folded(change.dense, role, frame, layer)
        gram = folded.T @ folded
        mean = rows.moments.mean
        usual = float((gram.double() * (rows.moments.covariance + torch.outer(mean, mean))).sum())
        if usual > 0:
            whole = self.grams.setdefault(rows.space, torch.zeros_like(gram))
            whole += gram / usual
        if self.watched:
            self.watch.append(self._watched(change, gram, rows.matrix))

    def _watched(self, change: Change, gram: Tensor, rows: Tensor) -> Watched:
        """The mean effect on the words against random directions, whose first two moments are known exactly."""
        d = gram.shape[0]
        flat = [i for word in self.watched for i in word]
        effects = _effects(torch.nn.functional.normalize(rows[flat]), gram)
        trace, square = float(gram.trace()), float(gram.square().sum())
        std = math.sqrt(max(2 * (square - trace**2 / d) / (d * (d + 2)), 0.0) / len(flat))
        draw = torch.Generator().manual_seed(change.layer)
        picked = self.view.ids[torch.randint(len(self.view.ids), (200, len(flat)), generator=draw).to(rows.device)]
        others = _effects(torch.nn.functional.normalize(rows[picked.flatten()]), gram).reshape(picked.shape).mean(1)
        above = float((effects.mean() > others).float().mean())
        return Watched(change.layer, change.role, (float(effects.mean()) - trace / d) / (std or 1.0), above)

    def _parameters(self, layer: int, rows: dict[str, Tensor]) -> None:
        """Offer the layer's neurons and heads to those that changed most, relative to the others of their kind."""
        dims = self.pair.base.dims
        ff = [found for role, found in rows.items() if role in FF_ROLES]
        if ff:
            score = torch.stack(ff).sum(0).sqrt()
            for value, row in zip(*score.topk(min(NEURONS, len(score))), strict=True):
                _offer(self.neurons, NEURONS, float(value), str(neuron_address(self.pair.base, layer, "", int(row))))
        shares: dict[str, list[Tensor]] = {}
        for role in (role for role in HEAD_ROLES if role in rows):
            each = rows[role].reshape(-1, dims.head_dim).mean(1)
            each = each if base_role(role) in ("q", "o") else each.repeat_interleave(dims.group)
            shares.setdefault(site_of(role), []).append(each)
        for site, found in shares.items():
            for head, value in enumerate(torch.stack(found).sum(0).sqrt().tolist()):
                _offer(self.heads, HEADS, value, f"L{layer}.{site}.{head}")

    def finish(self) -> Diff:
        """Everything in its place."""
        base, tuned = self.pair.base, self.pair.tuned
        for space in tuple(self.grams):
            self._sum(space)
        sees, writes = self._standouts("sees"), self._standouts("writes")
        after = Lens.over(self.frames.of(self.tuned))
        changed, whole = (sum(part) for part in zip(*self.squares, strict=True))
        added = tuple(map(tuned.vocab.label, _missing(tuned, base)))
        removed = tuple(map(base.vocab.label, _missing(base, tuned)))
        found = Diff(
            base=self._known(base),
            tuned=self._known(tuned),
            verdict=(),
            alarm=(),
            relative=math.sqrt(changed / whole),
            matrices=tuple(self.matrices),
            vectors=tuple(sorted(self._vectors(), key=_by_change)[:MOVED]),
            embedding=self._embedding(),
            added=added,
            removed=removed,
            sees=sees,
            writes=writes,
            neurons=self._before_and_after(self.neurons, after),
            heads=self._before_and_after(self.heads, after),
            outside=tuple(self._outside(after)),
            watch=tuple(sorted(self.watch, key=_by_effect)),
            method={"directions": DIRECTIONS, "hidden": self.view.hidden.count, "tokens": self.view.hidden.view},
        )
        found = replace(found, alarm=alarms(found))
        return replace(found, verdict=verdict(found))

    def _known(self, model: Model) -> dict[str, Any]:
        """What a reader must know of a model: name, hash, types of its blocks."""
        types = sorted(
            {model.stored_type(role, layer) for role in self.pair.roles for layer in range(model.dims.layers)}
        )
        errors = [error for kind in types if (error := storing_error(kind)) is not None]
        error = max(errors, default=None)
        return {"name": model.name, "sha256": model.fingerprint, "types": types, "storing_error": error}

    def _standouts(self, side: str) -> tuple[Standout, ...]:
        """The shown tokens on which all changes together do most, as robust z of the logarithm."""
        if side not in self.effects:
            return ()
        shown = self.effects[side][self.view.ids].clamp_min(torch.finfo(torch.float32).tiny).log()
        middle = shown.median()
        spread = 1.4826 * (shown - middle).abs().median()  # of a normal distribution: its standard deviation
        z = (shown - middle) / spread if float(spread) > 0 else torch.zeros_like(shown)
        best = z.topk(min(TOKENS, len(z)))
        vocab = self.pair.base.vocab
        ids = self.view.ids[best.indices].tolist()
        return tuple(Standout(Token(i, vocab.label(i)), float(v)) for i, v in zip(ids, best.values, strict=True))

    def _before_and_after(self, best: list[tuple[float, str]], after: Lens) -> tuple[ParameterChange, ...]:
        """The lists of neurons, or the pairs of heads, as they were and as they are."""
        places = [(value, one, one if ".ff." in one else f"{one}.vo") for value, one in sorted(best, reverse=True)]
        return tuple(
            ParameterChange(one, value, tuple(self.lens.explain(place, k=10)), tuple(after.explain(place, k=10)))
            for value, one, place in places
        )

    def _outside(self, after: Lens) -> Iterator[ParameterChange]:
        """Rows of the tables outside the blocks that are new or changed most: all of a small table."""
        base, tuned = self.pair.base, self.tuned
        labels = tuned.files.config.get("id2label") or {}
        for stem, (what, _, count) in tuned.tables().items():
            if not self.pair.differs(what):
                continue
            new = stem not in base.tables() or base.tables()[stem][2] != count
            moved = torch.ones(count) if new else self._row_changes(what)
            best = moved.topk(min(count, ROWS)).indices.sort().values if count > ROWS else torch.arange(count)
            for row in best.tolist():
                name = f"{stem}.{row}"
                was = () if new else tuple(self.lens.explain(name, k=10))
                label = labels.get(str(row), labels.get(row, "")) if stem == "classifier" else ""
                now = tuple(after.explain(name, k=10))
                yield ParameterChange(name, float(moved[row]), was, now, str(label))

    def _row_changes(self, what: str) -> Tensor:
        """How much each row of a table changed, over its length before."""
        before, after = (model.matrix(what) for model in (self.pair.base, self.tuned))
        length = before.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        moved: Tensor = (after - before).norm(dim=1) / length
        return moved.cpu()

    def _vectors(self) -> Iterator[Moved]:
        """Norm gains and biases that moved."""
        for what, stored in self.pair.base.layout.tensors.items():
            if not what.endswith(("norm", "bias")):
                continue
            for layer in range(self.pair.base.dims.layers if "{layer}" in stored.name else 1):
                before, after = self.pair.base.vector(what, layer), self.tuned.vector(what, layer)
                if before is None or after is None or torch.equal(before, after):
                    continue
                if not self.pair.rounded(what, layer, before, after):
                    yield _moved(f"L{layer} {what}" if "{layer}" in stored.name else what, before, after)

    def _embedding(self) -> tuple[Moved, ...]:
        """Rows of the embedding that moved most, of the tokens that both have; read block by block."""
        base, tuned = self.pair.base, self.pair.tuned
        if not self.pair.touched("embedding"):
            return ()
        best: list[tuple[float, int, Moved]] = []
        rounded = []
        for part in torch.split(_shared(base, tuned), 4096):
            before, after = _rows(base, part[:, 0]), _rows(tuned, part[:, 1])
            rounded.append(torch.equal(before, after) or self.pair.rounded("embedding", 0, before, after))
            relative = (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
            for value, row in zip(*relative.topk(min(MOVED, len(relative))), strict=True):
                if float(value) > 0:
                    token = int(part[row, 0])
                    best.append((float(value), -token, _moved(base.vocab.label(token), before[row], after[row])))
        return () if rounded and all(rounded) else tuple(one[2] for one in heapq.nlargest(MOVED, best))


def _rows(model: Model, ids: Tensor) -> Tensor:
    """Rows of the embedding: what lies between the first and the last is read."""
    first = int(ids.min())
    return model.matrix("embedding", 0, first, int(ids.max()) + 1)[(ids - first).to(model.device)]


def _effects(rows: Tensor, gram: Tensor) -> Tensor:
    """``r G rᵀ`` of every row, block by block."""
    return torch.cat([((rows[part] @ gram) * rows[part]).sum(1) for part in blocks(len(rows), 4096)])


def _offer(best: list[tuple[float, str]], size: int, value: float, address: str) -> None:
    """Keep the largest in a heap of a size."""
    if len(best) < size:
        heapq.heappush(best, (value, address))
    else:
        heapq.heappushpop(best, (value, address))


def _missing(model: Model, other: Model) -> list[int]:
    """Ids of the tokens that the other model does not have."""
    known = set(other.vocab.pieces)
    return [i for i, piece in enumerate(model.vocab.pieces) if piece not in known and not model.vocab.unused[i]]


def _shared(base: Model, tuned: Model) -> Tensor:
    """Ids (n, 2) of the tokens that both have; those without a text only if the vocabularies are the same."""
    if base.vocab.pieces == tuned.vocab.pieces:
        return torch.arange(base.vocab.size)[:, None].expand(-1, 2)
    theirs = {piece: i for i, piece in enumerate(tuned.vocab.pieces) if not tuned.vocab.unused[i]}
    return torch.tensor([(i, theirs[piece]) for i, piece in enumerate(base.vocab.pieces) if piece in theirs])


def _moved(name: str, before: Tensor, after: Tensor) -> Moved:
    length = float(before.norm())
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=0)
    return Moved(name, float((after - before).norm()) / (length or 1.0), float(cosine))


def _by_change(one: Moved) -> float:
    return -one.relative


def _by_effect(one: Watched) -> float:
    return -one.effect
