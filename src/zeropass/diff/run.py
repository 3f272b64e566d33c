"""Compares two models: where the change is, what it says, and whom it concerns; one layer in memory at a time."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from zeropass._io.progress import Progress, silent
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
from zeropass.checkpoints.gguf import storing_error
from zeropass.diff.changes import Change, Comparison, leading
from zeropass.diff.results import Diff, MatrixChange, Moved, ParameterChange, Relation, Standout, TensorChange
from zeropass.diff.tensor_rows import held
from zeropass.diff.tensors import constants, missing, tensor_changes, unread_changes
from zeropass.diff.verdict import alarms, verdict
from zeropass.diff.watch_list import looked_up
from zeropass.diff.watched_words import Watching, quadratic
from zeropass.lens import Lens
from zeropass.model.adapted import Adapted
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.vectors import neuron_address, reads_at
from zeropass.numerics.factored import Directions
from zeropass.records.parameters import Direction, Token, TokenScore

__all__ = ["across", "compare"]


DIRECTIONS, TOKENS, NEURONS, HEADS, MOVED, ROWS = 4, 20, 8, 4, 12, 8
"""How many are kept: directions a matrix, tokens of all changes together, neurons, heads, vectors, rows of a table."""

UNRELATED = 0.1
"""Below this mean cosine the matrices of two models are no more alike than those of models trained apart.

docs/audit.md tells what was measured: at most .01 for models trained apart, .3 and more after long training."""

PARTNER = {"gate": "value", "up": "value", "key": "value", "q": "k", "k": "q", "v": "o", "o": "v"}
PARTNER |= {f"cross_{role}": f"cross_{PARTNER[role]}" for role in "qkvo"}
"""What stands at the other end of a matrix' inner side: `value` has the gate, or the key if there is none."""


def compare(
    base: Model,
    tuned: Model,
    *,
    watch: Sequence[str] = (),
    frames: Frames | None = None,
    progress: Progress = silent,
) -> Diff:
    """What ``tuned`` changed in ``base``: everything that `Diff` holds.

    ``watch``: words of which is asked whether the change concerns them; one that is no token is taken by its pieces.
    ``frames``: the base's, if they are at hand. Raises BadModel for models that cannot be compared, UnknownWord for a
    word that the vocabulary cannot write.
    """
    words = looked_up(base.vocab, watch)
    work = _Work(Comparison(base, tuned), frames or Frames(base))
    work.watching = Watching(words, base.vocab, work.view.ids) if words else None
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


@dataclass(frozen=True, eq=False)
class _Ends:
    """The directions of one change and the vectors (n, d) at their left and right, each with its role.

    place: of the change among `_Work.matrices`. norm: of the whole change.
    """

    place: int
    norm: float
    directions: Directions
    sides: tuple[tuple[str, Tensor], tuple[str, Tensor]]


@dataclass(eq=False)
class _Work:
    """Running results of one comparison."""

    pair: Comparison
    frames: Frames
    watching: Watching | None = None
    grams: dict[str, Tensor] = field(default_factory=dict)
    effects: dict[str, Tensor] = field(default_factory=dict)
    matrices: list[MatrixChange] = field(default_factory=list)
    neurons: list[tuple[float, str]] = field(default_factory=list)
    heads: list[tuple[float, str]] = field(default_factory=list)
    squares: list[tuple[float, float]] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        base = self.pair.base
        self.lens = Lens.over(self.frames)
        # Tokens that only the fine-tune has are no part of the base's frames.
        self.tuned = replace(self.pair.tuned, vocab=base.vocab)
        self.view = self.lens.view("default")

    def layer(self, layer: int) -> None:
        """Take in one layer."""
        rows: dict[str, Tensor] = {}
        ends: list[_Ends] = []
        for role in self.pair.roles:
            change = self.pair.change(role, layer)
            counted = change.norm if not change.rounding else 0.0
            self.squares.append((counted**2, change.before**2))
            self.cosines.append(change.cosine)
            if not change.norm:
                continue
            self.matrices.append(self._matrix(change, ends))
            if not change.rounding:
                scale = change.before / math.sqrt(change.dense.shape[0])
                rows[role] = change.dense.norm(dim=1).square() / scale**2 if scale else change.dense.norm(dim=1)
                self._concerned(change)
        self._say(layer, ends)
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
            self.effects[side] = quadratic(self.frames.rows(space).matrix, gram) + self.effects.get(side, 0.0)

    def _matrix(self, change: Change, ends: list["_Ends"]) -> MatrixChange:
        """A change without its directions, whose ends are noted: their words are looked up for a whole layer."""
        error = 0.0
        if not change.rounding and change.role != ROUTER:  # behind a router's rows stands no matrix
            directions, error = leading(change, DIRECTIONS)
            ends.append(self._ends(change, directions))
        return MatrixChange(
            change.layer, change.role, change.relative, change.rank, change.rounding, (), error, change.cosine
        )

    def _ends(self, change: Change, directions: Directions) -> "_Ends":
        """Return the vectors that directions read on their left, and write (or attend to) on their right."""
        base, role = self.pair.base, change.role
        partner = PARTNER.get(role) or ("gate" if "gate" in base.family.ff_roles else "key")
        stream = role, directions.right.T
        inner = partner, across(directions.left, role, base.dims).T @ self.tuned.matrix(partner, change.layer)
        reads = base_role(role) in ("gate", "up", "key", "q", "v")
        sides = (stream, inner) if reads else (inner, stream)
        return _Ends(len(self.matrices), change.norm, directions, sides)

    def _say(self, layer: int, ends: Sequence["_Ends"]) -> None:
        """Put each direction of a layer's changes in words."""
        scores = iter(self._scores([side for one in ends for side in one.sides], layer))
        for one in ends:
            found = tuple(self._directions(one, next(scores), next(scores)))
            self.matrices[one.place] = replace(self.matrices[one.place], directions=found)

    def _directions(self, ends: "_Ends", left: Tensor, right: Tensor) -> Iterator[Direction]:
        """Each direction in words, from the scores (V, n) of both of its ends."""
        values, close = ends.directions.values, ends.directions.close
        for n in range(len(values)):
            if float(values[n]) <= 0:
                continue
            # A direction and its opposite are one; the pole that stands out more, on either side, comes first.
            both = torch.stack([left[:, n], right[:, n]])[:, self.view.ids]
            sign = 1.0 if float(both.max() + both.min()) >= 0 else -1.0
            poles = (*self._poles(sign * left[:, n]), *self._poles(sign * right[:, n]))
            yield Direction(float(values[n]), float(values[n]) ** 2 / ends.norm**2, bool(close[n]), *poles)

    def _scores(self, sides: Sequence[tuple[str, Tensor]], layer: int) -> list[Tensor]:
        """Scores z (V, n) of vectors of several roles: what they see if they read, what they write if they write.

        The rows of a space are multiplied with all vectors that meet them at once: to read them takes longest.
        """
        spaces, folded = [], []
        for role, vectors in sides:
            frame, space = self._place(role, layer)
            spaces.append(space)
            folded.append(self._folded(vectors, role, frame, layer))
        scored: dict[int, Tensor] = {}
        for space in dict.fromkeys(spaces):
            rows, places = self.frames.rows(space), [n for n, one in enumerate(spaces) if one == space]
            together = torch.cat([folded[n] for n in places])
            mean, std = rows.moments.of_scores(together)
            scores = (rows.matrix @ together.T - mean) / std.clamp_min(torch.finfo(torch.float32).tiny)
            scored |= zip(places, torch.split(scores, [len(folded[n]) for n in places], dim=1), strict=True)
        return [scored[n] for n in range(len(sides))]

    def _place(self, role: str, layer: int) -> tuple[str, str]:
        """Return the frame in which vectors of a role are read, and its space."""
        side = side_of(role)
        frame = "token" if side == "read" else "output"
        return frame, space_of(frame, side, reads_at(self.pair.base, layer, role))

    def _folded(self, vectors: Tensor, role: str, frame: str, layer: int) -> Tensor:
        return self.frames.fold(vectors, frame, side_of(role), norm_of(role), layer)

    def _poles(self, scores: Tensor) -> tuple[tuple[TokenScore, ...], tuple[TokenScore, ...]]:
        return self.lens.poles(scores, self.view)

    def _concerned(self, change: Change) -> None:
        """Add the change to what all of them do to each token: ‖ΔW r‖², every matrix with the same weight."""
        layer, role = change.layer, change.role
        frame, space = self._place(role, layer)
        rows = self.frames.rows(space)
        root = self._folded(change.root, role, frame, layer)
        gram = root.T @ root
        mean = rows.moments.mean
        usual = float((gram.double() * (rows.moments.covariance + torch.outer(mean, mean))).sum())
        if usual > 0:
            whole = self.grams.setdefault(rows.space, torch.zeros_like(gram))
            whole += gram / usual
            if self.watching is not None:
                self.watching.take(layer, role, rows.matrix, root, usual)

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
        differing, compared = tensor_changes(self.pair)
        tables = (*differing, *unread_changes(self.pair))
        tied = base.family.causal and base.says == tuned.says == "embedding"
        words, watch = self.watching.finish(self.effects) if self.watching is not None else ((), ())
        difference = Diff(
            base=self._known(base),
            tuned=self._known(tuned),
            verdict=(),
            alarm=(),
            relative=math.sqrt(changed / whole) if whole else 0.0,
            matrices=tuple(self.matrices),
            vectors=_vectors(tables),
            embedding=_most(tables, "embedding"),
            added=tuple(map(tuned.vocab.label, missing(tuned, base))),
            removed=tuple(map(base.vocab.label, missing(base, tuned))),
            sees=sees,
            writes=writes,
            neurons=self._before_and_after(self.neurons, after),
            heads=self._before_and_after(self.heads, after),
            outside=tuple(self._outside(after)),
            watch=watch,
            method={
                "directions": DIRECTIONS,
                "hidden": self.view.hidden.count,
                "tokens": self.view.hidden.view,
                "tied": tied,
                "roles": len(self.pair.roles),
            },
            cosine=sum(self.cosines) / len(self.cosines),
            tables=tables,
            unembedding=_most(tables, "unembedding"),
            constants=tuple(constants(self.pair)),
            words=words,
            compared=compared + len(self.cosines),
        )
        difference = replace(difference, relation=self._relation(difference))
        if difference.relation == "unrelated":
            difference = _without_meaning(difference)
        difference = replace(difference, alarm=alarms(difference))
        return replace(difference, verdict=verdict(difference))

    def _relation(self, difference: Diff) -> Relation:
        """What the models are to each other; an adapter is a change of its base, however large."""
        if not isinstance(self.pair.tuned, Adapted) and difference.cosine < UNRELATED:
            return "unrelated"
        states = {table.state for table in difference.tables if table.read or table.state in ("changed", "replaced")}
        states |= {"rounded" if matrix.rounding else "changed" for matrix in difference.matrices}
        same_tokens = not (difference.added or difference.removed or self._renumbered())
        if states - {"rounded"} or difference.constants or not same_tokens:
            return "changed"
        return "rounded" if states else "equal"

    def _renumbered(self) -> bool:
        """Whether tokens that both models have do not have the same ids."""
        base, tuned = self.pair.base.vocab, self.pair.tuned.vocab
        return any(a != b for a, b in zip(base.pieces, tuned.pieces, strict=False) if a and b)

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
        tables = (held(model, what, 0) for model in (self.pair.base, self.tuned))
        before, after = (table.read(0, table.rows) for table in tables if table is not None)
        length = before.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        moved: Tensor = (after - before).norm(dim=1) / length
        return moved.cpu()


def _vectors(tables: Sequence[TensorChange]) -> tuple[Moved, ...]:
    """The norms and biases that moved most."""
    moved = [
        Moved(table.name, table.relative, table.cosine)
        for table in tables
        if table.read and table.state == "changed" and table.what.endswith(("norm", "bias"))
    ]
    return tuple(sorted(moved, key=_by_change)[:MOVED])


def _most(tables: Sequence[TensorChange], what: str) -> tuple[Moved, ...]:
    """The rows of a table that moved most."""
    return next((table.most for table in tables if table.read and table.what == what), ())


def _without_meaning(difference: Diff) -> Diff:
    """A difference of models that are none of each other: without what would read it as a change."""
    matrices = tuple(replace(matrix, directions=(), error=0.0) for matrix in difference.matrices)
    return replace(
        difference, matrices=matrices, sees=(), writes=(), neurons=(), heads=(), outside=(), watch=(), words=()
    )


def _offer(best: list[tuple[float, str]], size: int, value: float, address: str) -> None:
    """Keep the largest in a heap of a size."""
    if len(best) < size:
        heapq.heappush(best, (value, address))
    else:
        heapq.heappushpop(best, (value, address))


def _by_change(one: Moved) -> float:
    return -one.relative
