"""Compare two models layer by layer: where they differ, what the change says, and which tokens it concerns."""

import heapq
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.arch.dimensions import Dimensions
from zeropass.arch.roles import FF_ROLES, HEAD_ROLES, OUTPUT_GATE, base_role, site_of
from zeropass.diff.changes import Change, Comparison, leading
from zeropass.diff.effects import Effects, word_mask
from zeropass.diff.findings import Standout
from zeropass.diff.places import placed
from zeropass.diff.random_changes import DRAWS, RandomChanges, drawn
from zeropass.diff.relations import facts_of, relation_of
from zeropass.diff.results import ChangeDirection, Diff, MatrixChange, Moved, ParameterChange, TensorChange
from zeropass.diff.standouts import finding_of, standouts
from zeropass.diff.tensor_rows import rows_of
from zeropass.diff.tensors import constants, missing, tensor_changes, unread_changes
from zeropass.diff.thresholds import Thresholds, kept_thresholds
from zeropass.diff.values import through_values
from zeropass.diff.verdict import known_finding, verdict
from zeropass.diff.watch_list import looked_up
from zeropass.diff.watched_words import Watching
from zeropass.lens import Lens
from zeropass.model.adapted import Adapted
from zeropass.model.frames import Frames
from zeropass.model.kept_rows import KeptFrames
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.vectors import neuron_address
from zeropass.numerics.factored import Directions

__all__ = ["across", "compare"]


DIRECTIONS, TOKENS, NEURONS, HEADS, MOVED, ROWS = 4, 20, 8, 4, 12, 8
"""Limits of a report: directions of a matrix, tokens of all changes, neurons, heads, vectors, rows of a table."""

PARTNER = {"gate": "value", "up": "value", "key": "value", "q": "k", "k": "q", "v": "o", "o": "v"}
PARTNER |= {f"cross_{role}": f"cross_{PARTNER[role]}" for role in "qkvo"}
"""The role at the other end of the inner side of a matrix; for `value` it is the gate, or the key without a gate."""


@shows_progress
def compare(
    base: ModelLike,
    tuned: ModelLike,
    *,
    watch: Sequence[str] = (),
    frames: Frames | None = None,
    thresholds: Thresholds | str | Path | None = "auto",
    progress: Progress | bool = True,
) -> Diff:
    """Return what ``tuned`` changed in ``base``.

    Args:
        base: The model before, or its name.
        tuned: The model after, or its name.
        watch: Words to test for whether the change concerns them; a word that is no token is split into its pieces.
        frames: The frames of the base, if they exist already.
        thresholds: What benign changes of the base reach (`screen`), or the file that holds it; ``auto`` for what is
            kept in the cache for the base, if there is any; None to rely on random changes alone.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Raises:
        BadModel: The models cannot be compared.
        BadOption: The thresholds cannot be read, or are those of another base.
        UnknownWord: The vocabulary cannot write a word.

    Example:
        >>> import zeropass as zp
        >>> base = zp.open_model("models/first")
        >>> difference = zp.compare(base, zp.adapt(base, "models/tunes/reviews"))
        >>> difference.relation, sorted({matrix.layer for matrix in difference.matrices})
        ('changed', [2, 3])
    """
    report = callback(progress)
    base, tuned = open_model(base), open_model(tuned)
    words = looked_up(base.vocab, watch)
    limits = kept_thresholds(base.fingerprint, thresholds)
    work = _Work(Comparison(base, tuned), frames or KeptFrames(base), thresholds=limits)
    work.watching = Watching(words, base.vocab, work.view.ids) if words else None
    for layer in range(base.dims.layers):
        report("comparing", layer, base.dims.layers + 1)
        work.add_layer(layer)
    report("summing up", base.dims.layers, base.dims.layers + 1)
    return work.finish()


def across(inner: Tensor, role: str, dims: Dimensions) -> Tensor:
    """Return vectors (rows, k) on the inner side of a role in the rows of its partner (GQA: docs/theory.md §2)."""
    if role in FF_ROLES or dims.group == 1:
        return inner
    count, width = inner.shape[1], dims.width(role)
    if base_role(role) in ("q", "o"):
        return inner.reshape(dims.kv_heads, dims.group, width, count).sum(1).reshape(-1, count)
    return inner.reshape(dims.kv_heads, 1, width, count).expand(-1, dims.group, -1, -1).reshape(-1, count)


@dataclass(frozen=True, eq=False)
class _Ends:
    """The directions of one change, with the vectors at their two ends.

    Attributes:
        place: The index of the change in `_Work.matrices`.
        norm: The norm of the change.
        directions: The leading directions.
        sides: The role and the vectors (n, d) of the left ends and of the right ends.
    """

    place: int
    norm: float
    directions: Directions
    sides: tuple[tuple[str, Tensor], tuple[str, Tensor]]


@dataclass(eq=False)
class _Work:
    """The running results of one comparison."""

    pair: Comparison
    frames: Frames
    watching: Watching | None = None
    thresholds: Thresholds | None = None
    matrices: list[MatrixChange] = field(default_factory=list)
    neurons: list[tuple[float, str]] = field(default_factory=list)
    heads: list[tuple[float, str]] = field(default_factory=list)
    usual: dict[tuple[int, str], float] = field(default_factory=dict)
    squares: list[tuple[float, float]] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        base = self.pair.base
        self.lens = Lens.over(self.frames, with_coherence=False)  # a comparison shows none
        # The base's frames lack tokens that only the fine-tune has.
        self.tuned = replace(self.pair.tuned, vocab=base.vocab)
        self.view = self.lens.view("default")
        self.effects = self.written = Effects(self.frames)
        self.words = word_mask(base.vocab, self.view.ids)
        self.random = RandomChanges(self.frames, self.view.ids, self.words)

    def add_layer(self, layer: int) -> None:
        """Compare the matrices of one layer."""
        rows: dict[str, Tensor] = {}
        ends: list[_Ends] = []
        for role in self.pair.base.matrices(layer):
            before = self.pair.base.matrix(role, layer)
            change = self.pair.change(role, layer, before)
            counted = change.norm if not change.rounding else 0.0
            self.squares.append((counted**2, change.before**2))
            self.cosines.append(change.cosine)
            if not change.norm:
                continue
            self.matrices.append(self._matrix(change, ends))
            if not change.rounding:
                squares = change.row_squares
                rows[role] = squares * len(squares) / change.before**2 if change.before else squares.sqrt()
                self._add_effect(change, before)
        self._describe(layer, ends)
        self._parameters(layer, rows)
        if layer == 0:  # no later layer reads the embedding itself
            self.effects.close("embedded")
            self.frames.release("embedded")
        elif layer == 1:  # the rows that later layers need exist by now
            self.pair.base.forget()

    def _matrix(self, change: Change, ends: list["_Ends"]) -> MatrixChange:
        """Return a change without its directions, and note their ends: `_describe` reads those of a layer at once."""
        error = 0.0
        if not change.rounding and self._has_partner(change):
            directions, error = leading(change, DIRECTIONS)
            ends.append(self._ends(change, directions))
        return MatrixChange(
            layer=change.layer,
            role=change.role,
            relative=change.relative,
            rank=change.rank,
            rounding=change.rounding,
            directions=(),
            error=error,
            cosine=change.cosine,
        )

    def _has_partner(self, change: Change) -> bool:
        """Tell whether a matrix of the same layer follows or precedes the rows of a changed one.

        None does for a router, an output gate, a mixer or a per-layer embedding, nor for queries of heads that attend
        to the keys and values of another layer.
        """
        partner = PARTNER.get(change.role, "")
        own = self.pair.base.layer_of(partner, change.layer) == change.layer
        return change.role == "value" or (bool(partner) and own)

    def _ends(self, change: Change, directions: Directions) -> "_Ends":
        """Return the vectors that directions read on their left, and write (or attend to) on their right."""
        base, role = self.pair.base, change.role
        partner = PARTNER.get(role) or ("gate" if "gate" in base.family.ff_roles else "key")
        stream = role, directions.right.T
        inner = (
            partner,
            across(directions.left, role, base.dims.at(change.layer)).T @ self.tuned.matrix(partner, change.layer),
        )
        reads = base_role(role) in ("gate", "up", "key", "q", "v")
        sides = (stream, inner) if reads else (inner, stream)
        return _Ends(place=len(self.matrices), norm=change.norm, directions=directions, sides=sides)

    def _describe(self, layer: int, ends: Sequence["_Ends"]) -> None:
        """Fill in the directions of a layer's changes, in words."""
        scores = iter(self._scores([side for change in ends for side in change.sides], layer))
        chances = self._chances(tuple(dict.fromkeys(change.sides[1][0] for change in ends)), layer)
        for change in ends:
            directions = tuple(self._directions(change, next(scores), next(scores), chances[change.sides[1][0]]))
            self.matrices[change.place] = replace(self.matrices[change.place], directions=directions)

    def _chances(self, roles: Sequence[str], layer: int) -> dict[str, float]:
        """Return the highest |z| of a word in random sums of the rows of the base's matrices: the median of the draws.

        It depends on the base alone, so it is not computed anew for one that is known.
        """

        @cache
        def computed() -> dict[str, float]:
            directions = [(role, drawn(self.pair.base.matrix(role, layer), role, layer)) for role in roles]
            scores = self._scores(directions, layer)
            return {role: float(self._highest(z).median()) for role, z in zip(roles, scores, strict=True)}

        def chance(role: str) -> float:
            value = self.frames.remembered(f"{DRAWS} random sums, L{layer} {role}", lambda: computed()[role])
            assert value is not None
            return value

        return {role: chance(role) for role in roles}

    def _highest(self, scores: Tensor) -> Tensor:
        """Return the highest |z| of a whole word in each row of scores (n, V)."""
        return scores[:, self.view.ids[self.words]].abs().amax(1)

    def _directions(self, ends: "_Ends", left: Tensor, right: Tensor, chance: float) -> Iterator[ChangeDirection]:
        """Yield each direction in words, from the scores (n, V) of both of its ends."""
        highest = self._highest(right).tolist()
        # The sign of a direction is arbitrary: the pole that stands out more, on either side, comes first.
        lows, highs = torch.stack([left, right])[..., self.view.ids].aminmax(dim=2)
        signs = torch.where(lows.amin(0) + highs.amax(0) < 0, -1.0, 1.0)[:, None]
        poles = zip(*(self.lens.poles(signs * scores, self.view) for scores in (left, right)), strict=True)
        values, close = ends.directions.values.tolist(), ends.directions.close.tolist()
        for n, (left_poles, right_poles) in enumerate(poles):
            if values[n] <= 0:
                continue
            share = values[n] ** 2 / ends.norm**2
            yield ChangeDirection(
                value=values[n],
                share=share,
                close=close[n],
                left=left_poles[0],
                left_bottom=left_poles[1],
                right=right_poles[0],
                right_bottom=right_poles[1],
                z=highest[n],
                chance=chance,
                telling=math.sqrt(share) * (highest[n] / chance - 1) if chance else 0.0,
            )

    def _scores(self, sides: Sequence[tuple[str, Tensor]], layer: int) -> list[Tensor]:
        """Return z (n, V) of the vectors of each side, over the tokens that they see or write.

        All vectors that meet the rows of a space are multiplied with them at once, since reading rows takes longest.
        """
        spaces, folded = [], []
        for role, vectors in sides:
            spaces.append(self.effects.space(role, layer))
            folded.append(self.effects.folded(vectors, role, layer))
        scored: dict[int, Tensor] = {}
        for space in dict.fromkeys(spaces):
            rows, places = self.frames.rows(space), [n for n, other in enumerate(spaces) if other == space]
            together = torch.cat([folded[n] for n in places])
            mean, std = rows.moments.of_scores(together)
            deviations = together @ rows.matrix.T - mean[:, None]
            scores = deviations / std.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
            scored |= zip(places, torch.split(scores, [len(folded[n]) for n in places]), strict=True)
        return [scored[n] for n in range(len(sides))]

    def _add_effect(self, change: Change, before: Tensor) -> None:
        """Add the effect of a change on every token to that of all changes, and to that on the watched words."""
        rows, folded, usual = self.effects.add(change, before)
        self.usual[change.layer, change.role] = usual
        if usual > 0 and self.watching is not None:
            self.watching.take(change.layer, change.role, rows.matrix, folded, usual)

    def _parameters(self, layer: int, rows: dict[str, Tensor]) -> None:
        """Add the neurons and heads of a layer that changed most, relative to their matrices, to the best so far."""
        dims = self.pair.base.dims.at(layer)
        ff = [squares for role, squares in rows.items() if role in FF_ROLES]
        if ff:
            score = torch.stack(ff).sum(0).sqrt()
            for value, row in zip(*score.topk(min(NEURONS, len(score))), strict=True):
                _offer(self.neurons, NEURONS, float(value), str(neuron_address(self.pair.base, layer, "", int(row))))
        by_site: dict[str, list[Tensor]] = {}
        for role in (role for role in HEAD_ROLES if role in rows):
            each = rows[role].reshape(-1, dims.width(role)).mean(1)
            each = each if base_role(role) in ("q", "o", OUTPUT_GATE) else each.repeat_interleave(dims.group)
            by_site.setdefault(site_of(role), []).append(each)
        for site, squares in by_site.items():
            for head, value in enumerate(torch.stack(squares).sum(0).sqrt().tolist()):
                _offer(self.heads, HEADS, value, f"L{layer}.{site}.{head}")

    def finish(self) -> Diff:
        """Return the comparison, with what is outside the blocks and the verdict."""
        base, tuned = self.pair.base, self.pair.tuned
        self.effects.close()
        after = Lens.over(self.frames.of(self.tuned), with_coherence=False)
        changed, total = (sum(squares) for squares in zip(*self.squares, strict=True))
        differing, compared = tensor_changes(self.pair)
        tables = (*differing, *unread_changes(self.pair))
        tied = base.family.causal and base.logit_table == tuned.logit_table == "embedding"
        words, watch = self.watching.finish(self.effects.change.totals) if self.watching is not None else ((), ())
        if "writes" not in self.effects.change.totals:
            self.written = through_values(self.pair, self.frames)
        sides = {"read": self._standouts("sees", self.words), "write": self._standouts("writes", self.words)}
        sides = placed(self.pair, self.effects, self.usual, sides)
        difference = Diff(
            base=_described(base),
            tuned=_described(tuned),
            verdict=(),
            finding=finding_of(self.written, self.random, self.thresholds),
            relative=math.sqrt(changed / total) if total else 0.0,
            matrices=tuple(self.matrices),
            vectors=_vectors(tables),
            embedding=_most(tables, "embedding"),
            added=tuple(map(tuned.vocab.label, missing(tuned, base))),
            removed=tuple(map(base.vocab.label, missing(base, tuned))),
            sees=sides["read"],
            writes=sides["write"],
            sees_others=self._standouts("sees", ~self.words),
            writes_others=self._standouts("writes", ~self.words),
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
            made=_made(),
        )
        roundings = (matrix.rounding for matrix in difference.matrices)
        difference = replace(
            difference,
            relation=relation_of(self.pair, difference.cosine, roundings, tables, difference.constants),
        )
        if difference.relation == "unrelated":
            difference = _without_meaning(difference)
        if (known := known_finding(difference)) is not None:
            difference = replace(difference, finding=known)
        return replace(difference, verdict=verdict(difference))

    def _standouts(self, side: str, chosen: Tensor) -> tuple[Standout, ...]:
        """Return those of the chosen tokens that stand out most."""
        effects = self.written if side == "writes" else self.effects
        return standouts(effects, side, self.view.ids, chosen, self.pair.base.vocab, TOKENS)

    def _before_and_after(self, best: list[tuple[float, str]], after: Lens) -> tuple[ParameterChange, ...]:
        """Return the lists of neurons, or the pairs of heads, before and after."""
        places = [(value, name, name if ".ff." in name else f"{name}.vo") for value, name in sorted(best, reverse=True)]
        return tuple(
            ParameterChange(
                address=name,
                relative=value,
                before=tuple(self.lens.explain(place, k=10)),
                after=tuple(after.explain(place, k=10)),
            )
            for value, name, place in places
        )

    def _outside(self, after: Lens) -> Iterator[ParameterChange]:
        """Yield the rows outside the blocks that are new or changed most: of a small table, all rows."""
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
                before = () if new else tuple(self.lens.explain(name, k=10))
                label = labels.get(str(row), labels.get(row, "")) if stem == "classifier" else ""
                yield ParameterChange(
                    address=name,
                    relative=float(moved[row]),
                    before=before,
                    after=tuple(after.explain(name, k=10)),
                    label=str(label),
                )

    def _row_changes(self, what: str) -> Tensor:
        """Return the size of the change of each row of a table, relative to its length before."""
        tables = (rows_of(model, what, 0) for model in (self.pair.base, self.tuned))
        before, after = (table.read(0, table.rows) for table in tables if table is not None)
        length = before.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        moved: Tensor = (after - before).norm(dim=1) / length
        return moved.cpu()


def _made() -> dict[str, str]:
    """Return the day, and the versions of what computes."""
    try:
        own = version("zeropass")
    except PackageNotFoundError:  # run from its source, not installed
        own = "not installed"
    day = datetime.now(UTC).date().isoformat()
    return {"date": day, "zeropass": own, "torch": str(torch.__version__), "python": platform.python_version()}


def _described(model: Model) -> dict[str, Any]:
    """Return the facts of a model with the SHA-256 of each file of weights, or of its adapters; none in memory."""
    if isinstance(model, Adapted):
        several = len(model.adapters) > 1
        files = {
            f"{number}/{name}" if several else name: digest
            for number, adapter in enumerate(model.adapters, 1)
            for name, digest in adapter.sha256.items()
        }
    else:
        files = model.files.hashes.sha256 if model.files.state is None else {}
    return facts_of(model) | {"files": files}


def _vectors(tables: Sequence[TensorChange]) -> tuple[Moved, ...]:
    """Return the norms and biases that moved most."""
    moved = [
        Moved(table.name, table.relative, table.cosine)
        for table in tables
        if table.read and table.state == "changed" and table.what.endswith(("norm", "bias"))
    ]
    return tuple(sorted(moved, key=_by_change)[:MOVED])


def _most(tables: Sequence[TensorChange], what: str) -> tuple[Moved, ...]:
    """Return the rows of a table that moved most."""
    return next((table.most for table in tables if table.read and table.what == what), ())


def _without_meaning(difference: Diff) -> Diff:
    """Return the difference of unrelated models without the results that only make sense for a change."""
    matrices = tuple(replace(matrix, directions=(), error=0.0) for matrix in difference.matrices)
    return replace(
        difference,
        matrices=matrices,
        sees=(),
        writes=(),
        sees_others=(),
        writes_others=(),
        neurons=(),
        heads=(),
        outside=(),
        watch=(),
        words=(),
    )


def _offer(best: list[tuple[float, str]], size: int, value: float, address: str) -> None:
    """Add an address to a heap of limited size that keeps the largest values."""
    if len(best) < size:
        heapq.heappush(best, (value, address))
    else:
        heapq.heappushpop(best, (value, address))


def _by_change(vector: Moved) -> float:
    """Return the sort key that puts the largest change first."""
    return -vector.relative
