"""The comparison of every canonical tensor other than the matrices of blocks, some rows at a time.

The layouts of both models list the tensors, so none is missed because of its name. Stored tensors that no layout reads
are compared as well, as they are in the files.
"""

import heapq
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from zeropass.arch.layout import PRODUCTS, expand, full_name, role_of, shares_of
from zeropass.arch.roles import BY_TOKEN
from zeropass.arch.wrappers import tower_name
from zeropass.checkpoints.base import FLOATS, TensorSource
from zeropass.diff.changes import Comparison
from zeropass.diff.results import Constant, Moved, TensorChange
from zeropass.diff.rounding import moved_rows
from zeropass.diff.tensor_rows import BLOCK, TensorRows, gathered, rows_of
from zeropass.errors import BadOption
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.numerics.statistics import blocks

__all__ = ["constants", "missing", "places", "tensor_changes", "unread_changes"]

MOVED = 12
"""The number of rows of a table that are named."""


def tensor_changes(pair: Comparison) -> tuple[tuple[TensorChange, ...], int]:
    """Return the canonical tensors that differ, if only by rounding, and how many tensors were compared."""
    differing, compared = [], 0
    for what, layer in places(pair):
        before, after = (rows_of(model, what, layer or 0) for model in (pair.base, pair.tuned))
        compared += before is not None and after is not None
        touched = pair.touched(what, layer or 0)
        change = _tensor_change(pair, what, layer, before, after) if touched else None
        if change is not None:
            differing.append(change)
    return tuple(differing), compared


_IN_PRODUCTS = (*(up for up, _ in PRODUCTS.values()), "k_rotary")
"""Factors of the matrices of blocks, which change with them. Latents are compared, since their lengths count too."""


_IN_MIXER_BIAS = shares_of("mixer_in_bias")[1:]
"""Biases that are stored apart and are rows of one, as their weights are of one matrix."""


def places(pair: Comparison) -> Iterator[tuple[str, int | None]]:
    """Yield name and layer (None outside the blocks) of every canonical tensor of either model but block matrices."""
    base, tuned = pair.base, pair.tuned
    in_layers: dict[str, bool] = {}
    for layout in (base.layout, tuned.layout):
        for what, stored in (*layout.tensors.items(), *((what, stored) for what, (stored, _) in layout.extra.items())):
            in_layers[what] = in_layers.get(what, False) or "{layer}" in stored.name
    if base.logit_table == tuned.logit_table == "embedding":
        in_layers.pop("unembedding", None)
    for what, layered in in_layers.items():
        if role_of(what) not in pair.roles and what not in (*_IN_PRODUCTS, *_IN_MIXER_BIAS):
            yield from ((what, layer) for layer in (range(base.dims.layers) if layered else (None,)))


def _tensor_change(
    pair: Comparison, what: str, layer: int | None, before: TensorRows | None, after: TensorRows | None
) -> TensorChange | None:
    """Return how one tensor differs, or None if it does not or neither model has it."""
    name = what if layer is None else f"L{layer} {what}"
    if before is None or after is None:
        tensor = before or after
        if tensor is None or what == "rope_factors" or (what.endswith("bias") and not bool(_all_rows(tensor).any())):
            return None  # `constants` compares the frequencies that result; a bias of zeros is no bias
        return _one_sided(name, what, layer, tensor.rows, new=before is None)
    sizes = before.rows, after.rows
    labels = what in pair.base.layout.extra and before.form == "rows"
    if before.width != after.width or (labels and before.rows != after.rows):
        return TensorChange(
            name=name,
            what=what,
            layer=layer,
            state="replaced",
            rows_before=before.rows,
            rows_after=after.rows,
            moved=after.rows,
            relative=1.0,
        )
    tally = _Tally(pair, what)
    for ids in _matched_ids(pair, what, *sizes):
        tally.take(before, after, ids)
    return tally.change(name, layer, *sizes)


def _one_sided(name: str, what: str, layer: int | None, rows: int, new: bool, read: bool = True) -> TensorChange:
    """Return the change of a tensor that only one of the models has."""
    state, before, after = ("new", 0, rows) if new else ("gone", rows, 0)
    return TensorChange(
        name=name,
        what=what,
        layer=layer,
        state=state,
        rows_before=before,
        rows_after=after,
        moved=rows,
        relative=1.0,
        read=read,
    )


@dataclass(eq=False)
class _Tally:
    """Running sums over the blocks of rows of one tensor."""

    pair: Comparison
    what: str
    moved: int = 0
    rounded: bool = False
    square: float = 0.0
    squares: tuple[float, float] = (0.0, 0.0)
    inner: float = 0.0
    best: list[tuple[float, int, Moved]] = field(default_factory=list)

    def take(self, before: TensorRows, after: TensorRows, ids: Tensor) -> None:
        """Add a block of rows, given the ids (n, 2) of those that belong together."""
        old, new = gathered(before, ids[:, 0]), gathered(after, ids[:, 1])
        moved, rounded = moved_rows(before, after, old, new)
        self.rounded |= rounded
        self.moved += int(moved.sum())
        self.squares = self.squares[0] + _square(old), self.squares[1] + _square(new)
        self.inner += float((old.double() * new.double()).sum())
        if not bool(moved.any()):
            return
        distances = (new - old).norm(dim=1) * moved
        self.square += _square((new - old)[moved])
        length = old.norm(dim=1)
        relative = distances / torch.where(length > 0, length, torch.ones_like(length))
        for value, row in zip(*relative.topk(min(MOVED, len(relative))), strict=True):
            if float(value) > 0:
                number = int(ids[row, 0])
                cosine = torch.nn.functional.cosine_similarity(old[row].double(), new[row].double(), dim=0)
                self.best.append((float(value), -number, Moved(self._name(number), float(value), float(cosine))))
        self.best = heapq.nlargest(MOVED, self.best)

    def change(self, name: str, layer: int | None, rows_before: int, rows_after: int) -> TensorChange | None:
        """Return the change of the tensor, or None if it is equal in both models."""
        resized = rows_before != rows_after
        if not (self.moved or self.rounded or resized):
            return None
        length, other = (math.sqrt(square) for square in self.squares)
        return TensorChange(
            name=name,
            what=self.what,
            layer=layer,
            state="changed" if self.moved or resized else "rounded",
            rows_before=rows_before,
            rows_after=rows_after,
            moved=self.moved,
            relative=math.sqrt(self.square) / (length or 1.0),
            cosine=self.inner / (length * other) if length and other else 0.0,
            most=tuple(moved for *_, moved in self.best) if rows_before > 1 else (),
        )

    def _name(self, row: int) -> str:
        """Return the token or the address of a row."""
        if self.what in BY_TOKEN:
            return self.pair.base.vocab.label(row) or f"row {row}"
        return f"{_STEMS.get(self.what, self.what)}.{row}"


_STEMS = {"positions": "pos", "types": "type"}
"""The names of these tables in addresses."""


def _matched_ids(pair: Comparison, what: str, before: int, after: int) -> Iterator[Tensor]:
    """Return the ids (n, 2) of the rows that belong together, by token or by number, in blocks."""
    if what in BY_TOKEN:
        ids = _shared_ids(pair.base, pair.tuned)
    else:
        ids = torch.arange(min(before, after))[:, None].expand(-1, 2)
    return (block for block in torch.split(ids, BLOCK) if len(block))


def _shared_ids(base: Model, tuned: Model) -> Tensor:
    """Return the ids (n, 2) of the tokens that both models have, and of rows that have a token in neither."""
    pieces = tuned.vocab.pieces
    tuned_ids = {piece: i for i, piece in reversed(list(enumerate(pieces))) if piece}
    ids = [
        (i, i) if i < len(pieces) and pieces[i] == piece else (i, tuned_ids.get(piece, -1))
        for i, piece in enumerate(base.vocab.pieces)
    ]
    return torch.tensor([pair for pair in ids if pair[1] >= 0], dtype=torch.long).reshape(-1, 2)


def missing(model: Model, other: Model) -> list[int]:
    """Return the ids of the tokens that the other model does not have."""
    known = set(other.vocab.pieces)
    return [i for i, piece in enumerate(model.vocab.pieces) if piece not in known and not model.vocab.unused[i]]


def _all_rows(tensor: TensorRows) -> Tensor:
    return tensor.read(0, tensor.rows)


def _square(rows: Tensor) -> float:
    return float(rows.double().square().sum())


# --- Tensors that no record reads -------------------------------------------------------------------------------------

_NARROW = {"F16": torch.float16, "BF16": torch.bfloat16}


def unread_changes(pair: Comparison) -> Iterator[TensorChange]:
    """Yield the stored tensors that no record reads and that differ, matched by their names.

    There are none for files of two formats, whose names differ, or for an adapter, which leaves those tensors alone.
    """
    base, tuned = pair.base, pair.tuned
    if base.layout.format != tuned.layout.format or base.source is tuned.source:
        return
    in_base, in_tuned = _unread(base), _unread(tuned)
    for name in dict.fromkeys((*in_base, *in_tuned)):
        before, after = in_base.get(name), in_tuned.get(name)
        if before is None or after is None:
            model, stored = (tuned, after) if before is None else (base, before)
            rows = (model.source.shape(stored or name) or (1,))[0]
            yield _one_sided(name, name, None, rows, new=before is None, read=False)
            continue
        change = _stored_change(name, (base.source, before), (tuned.source, after))
        if change is not None:
            yield change


def _unread(model: Model) -> dict[str, str]:
    """Return the unread tensors of parameters: names without the file's prefixes, mapped to names in the file."""
    tensors = (*model.layout.tensors.values(), *(stored for stored, _ in model.layout.extra.values()))
    read = {full_name(name, model.prefix) for stored in tensors for name in expand(stored, model.dims)}
    names = (name for name in model.source.names() if name not in read)
    parameters = (name for name in names if _is_parameter(model.source.dtype(name)))
    return {tower_name(model.wrapper, name) or name.removeprefix(model.prefix): name for name in parameters}


def _is_parameter(dtype: str) -> bool:
    """Tell whether tensors of a type hold parameters; counters and masks are stored as integers."""
    return dtype in FLOATS or not re.fullmatch(r"[IU]\d+|BOOL", dtype)


def _stored_change(name: str, before: tuple[TensorSource, str], after: tuple[TensorSource, str]) -> TensorChange | None:
    """Return how a stored tensor differs, or None if it does not."""
    sides = before, after
    shape, shape_after = (source.shape(stored) for source, stored in sides)
    rows, rows_after = ((sizes or (1,))[0] for sizes in (shape, shape_after))
    if shape != shape_after:
        return TensorChange(
            name=name,
            what=name,
            layer=None,
            state="replaced",
            rows_before=rows,
            rows_after=rows_after,
            moved=rows_after,
            relative=1.0,
            read=False,
        )
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
    return TensorChange(
        name=name,
        what=name,
        layer=None,
        state=state,
        rows_before=rows,
        rows_after=rows,
        moved=moved,
        relative=relative,
        read=False,
    )


def _is_narrowed(narrow: Tensor, wide: Tensor, stored: tuple[TensorSource, str]) -> bool:
    """Tell whether ``narrow`` is ``wide`` rounded to the type that stores it."""
    source, name = stored
    dtype = _NARROW.get(source.dtype(name))
    return dtype is not None and torch.equal(wide.to(dtype).float(), narrow)


# --- Constants of the configuration -----------------------------------------------------------------------------------

_CONSTANTS = (
    *("activation", "attention_scale", "attention_cap", "logit_scale", "logit_cap", "embed_scale"),
    *("router_normed", "experts_used", "clip", "window", "local", "rotary", "unrotated", "residual_scale"),
    *("site_scales", "gate_scale", "value_scale", "shared_weight"),
    *("router_sigmoid", "router_groups", "router_groups_used", "router_scale", "router_jitter"),
    *("distance_reach", "distance_buckets", "gate_limit", "growth", "chunked", "router_group_best", "latent_eps"),
    "eps_behind",
)
_FAMILY_CONSTANTS = ("norm", "norm_place", "parallel", "qk_norm", "qk_norm_behind", "alibi", "causal")


def constants(pair: Comparison) -> Iterator[Constant]:
    """Yield the constants of the configurations that differ, so that equal weights compute something else.

    For files of two formats, which do not record all constants, only those that both must have are compared.
    """
    base, tuned = pair.base, pair.tuned
    sides = [asdict(model.dims) for model in (base, tuned)]
    names = _CONSTANTS if base.layout.format == tuned.layout.format else ()
    values = [(name, *(side[name] for side in sides)) for name in ("eps", *names)]
    values += [(name, getattr(base.family, name), getattr(tuned.family, name)) for name in _FAMILY_CONSTANTS]
    yield from (Constant(name, *both) for name, *both in values if not _alike(*both))
    thetas = [side["rope"]["theta"] if side["rope"] else None for side in sides]
    frequencies = [_frequencies(model) for model in (base, tuned)]
    if not _alike(*thetas) or not _alike(*frequencies):
        yield Constant("rope", *(_rope(side["rope"]) for side in sides))


def _alike(before: object, after: object) -> bool:
    """Tell whether two constants are equal, up to 1e-4 if they are floats."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape == after.shape and torch.allclose(before, after, rtol=1e-4)
    if isinstance(before, float) and isinstance(after, float):
        return math.isclose(before, after, rel_tol=1e-4)
    return bool(before == after) and not isinstance(before, Tensor) and not isinstance(after, Tensor)


def _frequencies(model: Model) -> Tensor | str | None:
    """Return the rotary frequencies of all layers, the text of an unknown rule, or None without RoPE.

    Where they depend on the length of a text they are those of a short and a long one, behind its limit.
    """
    rope, frames = model.dims.rope, Frames(model)
    if rope is None:
        return None
    reaches = (0,) if rope.window is None else (0, 2 * int(rope.window))
    try:
        rows = [frames.frequencies(layer, reach) for layer in range(model.dims.layers) for reach in reaches]
        return torch.cat([torch.tensor([rope.window or 0.0, rope.lengthening], device=model.device), *rows])
    except BadOption:
        return repr(model.dims.rope)


def _rope(rope: dict[str, Any] | None) -> str:
    """Return the rotary positions in words: base, rule and its options."""
    if rope is None:
        return "none"
    options = ", ".join(f"{name} {value}" for name, value in rope["options"].items())
    for length in ("short", "long"):
        divisors = " ".join(f"{divisor:g}" for divisor in rope[length])
        options += f", {length} texts divided by {divisors}" if divisors else ""
    return f"theta {rope['theta']:g} ({rope['kind']}{': ' + options if options else ''})"
