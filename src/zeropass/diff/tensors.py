"""Every canonical tensor that is no matrix of a block, compared in two models a block of rows at a time.

Tensors are taken from the records of both models, so none is left out by name; what the records do not read of the two
files is compared too, as it is stored.
"""

import heapq
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from zeropass.arch.config import full_name
from zeropass.arch.spec import BY_TOKEN, expand
from zeropass.checkpoints.base import FLOATS, TensorSource
from zeropass.diff.changes import Comparison
from zeropass.diff.results import Constant, Moved, TensorChange
from zeropass.diff.rounding import moved_rows
from zeropass.diff.tensor_rows import BLOCK, Held, gathered, held
from zeropass.errors import BadOption
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.numerics.statistics import blocks

__all__ = ["constants", "missing", "tensor_changes", "unread_changes"]

MOVED = 12
"""Rows of a table that are kept."""


def tensor_changes(pair: Comparison) -> tuple[tuple[TensorChange, ...], int]:
    """The canonical tensors that differ, by more than rounding or not, and how many were compared."""
    differing, compared = [], 0
    for what, layer in _places(pair):
        before, after = (held(model, what, layer or 0) for model in (pair.base, pair.tuned))
        compared += before is not None and after is not None
        change = _compared(pair, what, layer, before, after)
        if change is not None:
            differing.append(change)
    return tuple(differing), compared


def _places(pair: Comparison) -> Iterator[tuple[str, int | None]]:
    """Every canonical name of either model that is no matrix of a block, at every layer, None outside the blocks."""
    base, tuned = pair.base, pair.tuned
    in_layers: dict[str, bool] = {}
    for layout in (base.layout, tuned.layout):
        for what, stored in (*layout.tensors.items(), *((what, stored) for what, (stored, _) in layout.extra.items())):
            in_layers[what] = in_layers.get(what, False) or "{layer}" in stored.name
    if base.says == tuned.says == "embedding":
        in_layers.pop("unembedding", None)
    for what, layered in in_layers.items():
        if what not in pair.roles:
            yield from ((what, layer) for layer in (range(base.dims.layers) if layered else (None,)))


def _compared(
    pair: Comparison, what: str, layer: int | None, before: Held | None, after: Held | None
) -> TensorChange | None:
    """How one tensor differs; None if it does not, or if neither model has it."""
    name = what if layer is None else f"L{layer} {what}"
    if before is None or after is None:
        there = before or after
        if there is None or what == "rope_factors" or (what.endswith("bias") and not bool(_whole(there).any())):
            return None  # frequencies are compared as they turn out; a bias of zeros is none
        return _one_sided(name, what, layer, there.rows, new=before is None)
    sizes = before.rows, after.rows
    labels = what in pair.base.layout.extra and before.form == "rows"
    if before.width != after.width or (labels and before.rows != after.rows):
        return TensorChange(name, what, layer, "replaced", *sizes, moved=after.rows, relative=1.0)
    tally = _Tally(pair, what)
    for ids in _matched(pair, what, *sizes):
        tally.take(before, after, ids)
    return tally.change(name, layer, *sizes)


def _one_sided(name: str, what: str, layer: int | None, rows: int, new: bool, read: bool = True) -> TensorChange:
    """What only one of the models has."""
    state, before, after = ("new", 0, rows) if new else ("gone", rows, 0)
    return TensorChange(name, what, layer, state, before, after, moved=rows, relative=1.0, read=read)


@dataclass(eq=False)
class _Tally:
    """Running sums over the blocks of one tensor."""

    pair: Comparison
    what: str
    moved: int = 0
    rounded: bool = False
    square: float = 0.0
    lengths: tuple[float, float] = (0.0, 0.0)
    inner: float = 0.0
    best: list[tuple[float, int, Moved]] = field(default_factory=list)

    def take(self, before: Held, after: Held, ids: Tensor) -> None:
        """Take in the rows of a block: ids (n, 2) of those that belong together."""
        old, new = gathered(before, ids[:, 0]), gathered(after, ids[:, 1])
        moved, rounded = moved_rows(before, after, old, new)
        self.rounded |= rounded
        self.moved += int(moved.sum())
        self.lengths = self.lengths[0] + _square(old), self.lengths[1] + _square(new)
        self.inner += float((old.double() * new.double()).sum())
        if not bool(moved.any()):
            return
        gone = (new - old).norm(dim=1) * moved
        self.square += _square((new - old)[moved])
        length = old.norm(dim=1)
        relative = gone / torch.where(length > 0, length, torch.ones_like(length))
        for value, row in zip(*relative.topk(min(MOVED, len(relative))), strict=True):
            if float(value) > 0:
                number = int(ids[row, 0])
                cosine = torch.nn.functional.cosine_similarity(old[row].double(), new[row].double(), dim=0)
                self.best.append((float(value), -number, Moved(self._name(number), float(value), float(cosine))))
        self.best = heapq.nlargest(MOVED, self.best)

    def change(self, name: str, layer: int | None, rows_before: int, rows_after: int) -> TensorChange | None:
        """What it comes to; None where the tensors are equal."""
        resized = rows_before != rows_after
        if not (self.moved or self.rounded or resized):
            return None
        length, other = (math.sqrt(square) for square in self.lengths)
        return TensorChange(
            name,
            self.what,
            layer,
            "changed" if self.moved or resized else "rounded",
            rows_before,
            rows_after,
            self.moved,
            math.sqrt(self.square) / (length or 1.0),
            self.inner / (length * other) if length and other else 0.0,
            tuple(moved for *_, moved in self.best) if rows_before > 1 else (),
        )

    def _name(self, row: int) -> str:
        if self.what in BY_TOKEN:
            return self.pair.base.vocab.label(row) or f"row {row}"
        return f"{_STEMS.get(self.what, self.what)}.{row}"


_STEMS = {"positions": "pos", "types": "type"}
"""What addresses call these tables."""


def _matched(pair: Comparison, what: str, before: int, after: int) -> Iterator[Tensor]:
    """Ids (n, 2) of the rows that belong together, in blocks: those of one token, or of one number."""
    if what in BY_TOKEN:
        ids = _shared(pair.base, pair.tuned)
    else:
        ids = torch.arange(min(before, after))[:, None].expand(-1, 2)
    return (part for part in torch.split(ids, BLOCK) if len(part))


def _shared(base: Model, tuned: Model) -> Tensor:
    """Ids (n, 2) of the tokens that both have; rows without a token belong together where both have none."""
    pieces = tuned.vocab.pieces
    theirs = {piece: i for i, piece in reversed(list(enumerate(pieces))) if piece}
    ids = [
        (i, i) if i < len(pieces) and pieces[i] == piece else (i, theirs.get(piece, -1))
        for i, piece in enumerate(base.vocab.pieces)
    ]
    return torch.tensor([pair for pair in ids if pair[1] >= 0], dtype=torch.long).reshape(-1, 2)


def missing(model: Model, other: Model) -> list[int]:
    """Ids of the tokens that the other model does not have."""
    known = set(other.vocab.pieces)
    return [i for i, piece in enumerate(model.vocab.pieces) if piece not in known and not model.vocab.unused[i]]


def _whole(tensor: Held) -> Tensor:
    return tensor.read(0, tensor.rows)


def _square(rows: Tensor) -> float:
    return float(rows.double().square().sum())


# --- What the records do not read -------------------------------------------------------------------------------------

_NARROW = {"F16": torch.float16, "BF16": torch.bfloat16}


def unread_changes(pair: Comparison) -> Iterator[TensorChange]:
    """Stored tensors that no record reads and that differ, by the names that both files have.

    Nothing for files of two formats, whose names are others, and for an adapter, which leaves its base's as they are.
    """
    base, tuned = pair.base, pair.tuned
    if base.layout.format != tuned.layout.format or base.source is tuned.source:
        return
    ours, theirs = _unread(base), _unread(tuned)
    for name in dict.fromkeys((*ours, *theirs)):
        before, after = ours.get(name), theirs.get(name)
        if before is None or after is None:
            model, stored = (tuned, after) if before is None else (base, before)
            rows = (model.source.shape(stored or name) or (1,))[0]
            yield _one_sided(name, name, None, rows, new=before is None, read=False)
            continue
        change = _stored_change(name, (base.source, before), (tuned.source, after))
        if change is not None:
            yield change


def _unread(model: Model) -> dict[str, str]:
    """Names without prefix, to names in the file, of the tensors of numbers that no record of the model reads."""
    tensors = (*model.layout.tensors.values(), *(stored for stored, _ in model.layout.extra.values()))
    read = {full_name(name, model.prefix) for stored in tensors for name in expand(stored, model.dims)}
    names = (name for name in model.source.names() if name not in read)
    return {name.removeprefix(model.prefix): name for name in names if _numbers(model.source.dtype(name))}


def _numbers(kind: str) -> bool:
    """Whether a type is one of parameters: counters and masks are stored as integers."""
    return kind in FLOATS or not re.fullmatch(r"[IU]\d+|BOOL", kind)


def _stored_change(name: str, before: tuple[TensorSource, str], after: tuple[TensorSource, str]) -> TensorChange | None:
    """How a stored tensor differs; None if it does not."""
    sides = before, after
    shape, other = (source.shape(stored) for source, stored in sides)
    rows, others = ((one or (1,))[0] for one in (shape, other))
    if shape != other:
        return TensorChange(name, name, None, "replaced", rows, others, moved=others, relative=1.0, read=False)
    moved, square, length, rounded = 0, 0.0, 0.0, False
    for part in blocks(rows, BLOCK):
        old, new = (torch.from_numpy(s.rows(stored, part.start, part.stop)).reshape(-1) for s, stored in sides)
        length += _square(old)
        if torch.equal(old, new):
            continue
        if any(_is_narrowed(*ends) for ends in ((new, old, after), (old, new, before))):
            rounded = True
            continue
        moved += int((old != new).reshape(part.stop - part.start, -1).any(1).sum())
        square += _square(new - old)
    if not (moved or rounded):
        return None
    state = "changed" if moved else "rounded"
    relative = math.sqrt(square / length) if length else float(bool(moved))
    return TensorChange(name, name, None, state, rows, rows, moved, relative, read=False)


def _is_narrowed(narrow: Tensor, wide: Tensor, stored: tuple[TensorSource, str]) -> bool:
    """Whether numbers are those of another tensor in the type of their own."""
    source, name = stored
    kind = _NARROW.get(source.dtype(name))
    return kind is not None and torch.equal(wide.to(kind).float(), narrow)


# --- What the configuration says --------------------------------------------------------------------------------------

_CONSTANTS = (
    *("activation", "attention_scale", "attention_cap", "logit_scale", "logit_cap", "embed_scale"),
    *("router_normed", "experts_used", "clip", "window", "local", "rotary"),
)
_BUILT = ("norm", "norm_place", "parallel", "qk_norm", "alibi", "causal")


def constants(pair: Comparison) -> Iterator[Constant]:
    """What the models compute otherwise with the same numbers: constants of their configurations.

    Of files of two formats, which do not say all of it, only what both must have.
    """
    base, tuned = pair.base, pair.tuned
    sides = [asdict(model.dims) for model in (base, tuned)]
    names = _CONSTANTS if base.layout.format == tuned.layout.format else ()
    values = [(name, *(side[name] for side in sides)) for name in ("eps", *names)]
    values += [(name, getattr(base.family, name), getattr(tuned.family, name)) for name in _BUILT]
    yield from (Constant(name, *both) for name, *both in values if not _alike(*both))
    thetas = [side["rope"]["theta"] if side["rope"] else None for side in sides]
    turns = [_frequencies(model) for model in (base, tuned)]
    if not _alike(*thetas) or not _alike(*turns):
        yield Constant("rope", *(_rope(side["rope"]) for side in sides))


def _alike(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4)
    return bool(one == other) and not isinstance(one, Tensor) and not isinstance(other, Tensor)


def _frequencies(model: Model) -> Tensor | str | None:
    """The rotary frequencies of all layers, (layers, r/2); the name of a rule that is not known; None without RoPE."""
    if model.dims.rope is None:
        return None
    try:
        frames = Frames(model)
        return torch.stack([frames.frequencies(layer) for layer in range(model.dims.layers)])
    except BadOption:
        return repr(model.dims.rope)


def _rope(rope: dict[str, object] | None) -> str:
    if rope is None:
        return "none"
    options = ", ".join(f"{name} {value}" for name, value in dict(rope["options"]).items())  # type: ignore[call-overload]
    return f"theta {rope['theta']:g} ({rope['kind']}{': ' + options if options else ''})"
