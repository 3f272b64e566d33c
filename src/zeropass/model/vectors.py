"""All vectors of the residual stream that a model has, in sets of one layer and role."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.frame_names import default_frames, space_of
from zeropass.arch.roles import (
    CLASSIFIERS,
    FF_ROLES,
    HEAD_ROLES,
    LAYER_ROLES,
    MAP_ROLES,
    MEMORY,
    OUTSIDE,
    PROJECTION_ROLES,
    ROUTER,
    Side,
    Site,
    base_role,
    norm_of,
    reads_memory,
    side_of,
    site_of,
)
from zeropass.errors import BadAddress
from zeropass.model.address import Address
from zeropass.model.model import Model
from zeropass.model.positions import lengthening

__all__ = [
    "BIAS_TENSORS",
    "SetFacts",
    "VectorSet",
    "bias_roles",
    "count_of",
    "facts_of",
    "is_bare",
    "kind_of",
    "locate",
    "reads_at",
    "require_site",
    "roles_at",
    "table_roles",
]
__all__ += ["neuron_address", "vector_set"]

BIAS_TENSORS = {
    "ff_bias": "value_bias",
    "attn_bias": "o_bias",
    "ff_norm": "ff_norm_bias",
    "attn_norm": "attn_norm_bias",
    "q_bias": "q_bias",
    "v_bias": "v_bias",
    "cross_bias": "cross_o_bias",
    "cross_norm": "cross_norm_bias",
    "cross_q_bias": "cross_q_bias",
    "cross_v_bias": "cross_v_bias",
    "mixer_bias": "mixer_out_bias",
}
"""The canonical tensor of each set of lone vectors in a block."""


@dataclass(frozen=True, eq=False, repr=False)
class VectorSet(ShortRepr):
    """The canonical vectors of one layer and role.

    Attributes:
        layer: The layer, or `OUTSIDE`.
        role: The role.
        side: Whether the vectors read the stream or write to it.
        addresses: The address of each vector.
        vectors: The vectors, (n, d).
        norm: The norm that folds into them (`Frames.fold`), if any.
        frames: The default frames.
        reads_at: The layer whose stream they meet.
        bare: True if they read it without the norm that others of the model meet (`is_bare`).
    """

    layer: int
    role: str
    side: Side
    addresses: tuple[Address, ...]
    vectors: Tensor
    norm: str | None
    frames: tuple[str, ...]
    reads_at: int
    bare: bool = False

    def space(self, frame: str) -> str:
        """Return the name of the rows that they meet in a frame."""
        return space_of(frame, self.side, self.reads_at, self.bare)

    @property
    def site(self) -> Site:
        """The part of the block that the vectors belong to."""
        return site_of(self.role)


@dataclass(frozen=True)
class SetFacts:
    """The facts about a set of vectors that are known without reading it.

    Attributes:
        role: Its role, or that of the parameters at the same place if the vectors are no parameters.
        side: Whether the vectors read the stream or write to it.
        frames: The default frames.
        reads_at: The layer whose stream they meet.
        count: The number of vectors.
        compared: The number of vectors of other parameters that it is compared with; none if it holds these itself.
        bare: True if they read the stream without the norm that others of the model meet.
    """

    role: str
    side: Side
    frames: tuple[str, ...]
    reads_at: int
    count: int
    compared: int = 0
    bare: bool = False

    def space(self, frame: str) -> str:
        """Return the name of the rows that they meet in a frame."""
        return space_of(frame, self.side, self.reads_at, self.bare)


def facts_of(model: Model, layer: int, role: str) -> SetFacts:
    """Return the facts about the vectors of a role of `roles_at`."""
    side, frames = kind_of(model, layer, role)
    return SetFacts(
        role=role,
        side=side,
        frames=frames,
        reads_at=reads_at(model, layer, role),
        count=count_of(model, layer, role),
        bare=side == "read" and is_bare(model, layer, role),
    )


def vector_set(model: Model, layer: int, role: str, start: int = 0, stop: int | None = None) -> VectorSet:
    """Read vectors of a role: of neurons and heads, biases, shifts of norms, tables.

    Args:
        model: The model.
        layer: The layer, or `OUTSIDE`.
        role: A role of `roles_at`.
        start: The first row.
        stop: The end of the rows; None for all.

    Returns:
        The rows ``start:stop`` of the vectors.

    Raises:
        BadAddress: If the model lacks the role or the layer, or if rows are out of range.
    """
    place = "outside the blocks" if layer == OUTSIDE else f"layer {layer}"
    if layer != OUTSIDE:
        model.require_layer(layer)
    count = _require_role(model, place, layer, role)
    if not 0 <= start <= (count if stop is None else stop) <= count:
        raise BadAddress(f"{place}: rows {start}:{stop} are out of range, {role} has {count}.")
    if role in LAYER_ROLES or role == ROUTER:
        return _matrix_set(model, layer, role, start, stop)
    if layer == OUTSIDE:
        return _outside_set(model, role, start, stop)
    biases = _bias_set(model, layer, role)
    return replace(biases, addresses=biases.addresses[start:stop], vectors=biases.vectors[start:stop])


def locate(model: Model, address: Address) -> tuple[int, str, int]:
    """Return the layer, the role of the set, and the row in it, of an address that names one vector.

    Raises:
        BadAddress: If the address is out of range.
    """
    layer = address.layer
    if layer == OUTSIDE:
        role = f"{address.part}_norm" if address.role == "norm" and address.index < 0 else address.part
        return _checked(model, address, OUTSIDE, role, max(address.index, 0))
    model.require_layer(layer)
    if address.part == "ff" and (address.index >= 0 or address.expert >= 0):
        require_site(model, address, "ff")
        role = "ff_bias" if address.role == "bias" else address.role
        return _checked(model, address, layer, role, _neuron_row(model, address))
    if address.role in PROJECTION_ROLES:
        return _checked(model, address, layer, address.role, address.index)
    if address.head < 0:
        if (address.part, address.role) == ("ff", "bias") and count_of(model, layer, "ff_bias") > 1:
            raise BadAddress(f"{address}: each expert of {model.name} has a bias; one is L{layer}.ff.e0.bias.")
        return _checked(model, address, layer, f"{address.part}_{address.role}", 0)
    require_head(model, address)
    if address.index < 0:
        return _checked(model, address, layer, address.role, address.head)
    width = model.dims.at(layer).width(address.role)
    if address.index >= width:
        raise BadAddress(f"{address}: index {address.index} is out of range, a head has columns 0 to {width - 1}.")
    row = model.kv_head(address.role, address.head, layer) * width + address.index
    return _checked(model, address, layer, address.role, row)


def neuron_address(model: Model, layer: int, role: str, row: int) -> Address:
    """Return the address of a neuron by its row; the neurons of all experts are numbered in sequence."""
    expert, index = model.dims.mlps.expert_of(layer, row)
    return Address(layer, "ff", index=index, role=role, expert=expert)


def _neuron_row(model: Model, address: Address) -> int:
    """Return the row of a neuron, or of an expert in the router; raise BadAddress, with the ranges, for none."""
    mlps, layer = model.dims.mlps, address.layer
    sizes = mlps.sizes(layer)
    if len(sizes) == 1:
        if address.expert >= 0:
            place = f"layer {layer} of {model.name}" if mlps.dense else model.name
            raise BadAddress(f"{address}: {place} has no experts; a neuron of it is L{layer}.ff.0.")
        return address.index
    if not 0 <= address.expert < len(sizes):
        raise BadAddress(
            f"{address}: {model.name} has experts 0 to {len(sizes) - 1}; a neuron of one is L{layer}.ff.e0.0."
        )
    if address.index >= sizes[address.expert]:
        raise BadAddress(
            f"{address}: {address.index} is out of range, expert {address.expert} has neurons 0 to "
            f"{sizes[address.expert] - 1}."
        )
    return address.expert if address.index < 0 else mlps.row_of(layer, address.expert, address.index)


def require_site(model: Model, address: Address, site: Literal["attn", "ff"]) -> None:
    """Raise BadAddress, with the range, for a layer that the model does not have, or that lacks such a part."""
    model.require_layer(address.layer)
    if not model.dims.has_site(site, address.layer):
        part = "MLP" if site == "ff" else "attention"
        raise BadAddress(f"{address}: layer {address.layer} of {model.name} has no {part}.")


def require_head(model: Model, address: Address) -> None:
    """Raise BadAddress, with what there is, for a layer, a head or a map of a head that the model does not have."""
    require_site(model, address, "attn")
    maps = [role for role in model.family.roles if role in MAP_ROLES]
    if address.role in MAP_ROLES and address.role not in maps:
        reason = _reason(model, address.role, address.layer)
        raise BadAddress(f"{address}: {model.name} has no {address.role}{reason}; its heads have {', '.join(maps)}.")
    heads = model.dims.at(address.layer).heads
    if not 0 <= address.head < heads:
        there = f"layer {address.layer} of {model.name}" if "heads" in model.dims.by_layer else model.name
        raise BadAddress(f"{address}: head {address.head} is out of range, {there} has heads 0 to {heads - 1}.")


def kind_of(model: Model, layer: int, role: str) -> tuple[Side, tuple[str, ...]]:
    """Return the side and the default frames of a set without reading it.

    A norm's shift is in the stream itself only after a post-norm. Otherwise only the block reads it: raw rows.
    """
    if layer == OUTSIDE and role in model.tables():
        side: Side = model.tables()[role][1]
    elif role.endswith("_norm"):
        return "write", ("output",) if model.family.stream_normed else ("paper",)
    else:
        side = side_of("k" if role.endswith("q_bias") else "o" if role.endswith("_bias") else role)
    return side, ("token",) if reads_at(model, layer, role) == MEMORY else default_frames(side)


def reads_at(model: Model, layer: int, role: str) -> int:
    """Return the layer whose stream a set meets; `MEMORY` for what reads an encoder from within a decoder."""
    if reads_memory(role) or role == "cross_q_bias":
        return MEMORY
    return model.dims.layers if layer == OUTSIDE else layer


def is_bare(model: Model, layer: int, role: str) -> bool:
    """Tell whether a reading role meets no norm where others of the model do."""
    return layer != OUTSIDE and model.family.reads_normed and model.family.reads_bare(norm_of(role), layer)


def bias_roles(model: Model) -> tuple[str, ...]:
    """Return the lone vectors in every layer of the model: output biases, shifts of norms, biases through heads."""
    wordless = ("cross_q_bias",) if model.family.other_memory else ()
    return tuple(role for role, tensor in BIAS_TENSORS.items() if model.has(tensor) and role not in wordless)


def table_roles(model: Model) -> tuple[str, ...]:
    """Return the sets outside the blocks: tables such as positions, and shifts of the first and the last norm."""
    norms = tuple(f"{stem}_norm" for stem in ("embed", "final") if model.has(f"{stem}_norm_bias"))
    return (*model.tables(), *norms)


def roles_at(model: Model, layer: int) -> tuple[str, ...]:
    """Return the sets of vectors of a layer, or of what lies outside the blocks."""
    if layer == OUTSIDE:
        return table_roles(model)
    return (*model.matrices(layer), *(role for role in bias_roles(model) if model.dims.has_site(site_of(role), layer)))


def _require_role(model: Model, place: object, layer: int, role: str) -> int:
    """Return the number of vectors of a role at a layer; raise BadAddress, with the roles there, if it has none."""
    known = roles_at(model, layer)
    if role not in known:
        raise BadAddress(
            f"{place}: {model.name} has no {role}{_reason(model, role, layer)}; at this place it has "
            f"{', '.join(known) or 'nothing'}."
        )
    return count_of(model, layer, role)


def _reason(model: Model, role: str, layer: int) -> str:
    """Return why a model of this family has no vectors of a role, as a clause; empty where there is nothing to say."""
    if role == "pos" and model.family.sinusoids:
        return ", because it computes its positions"
    if model.family.other_memory and role.startswith("cross_"):
        return ", because its encoder does not read text"
    if role == "ple_out" and model.family.streamed:
        return ", because it writes to the streams that no layer reads"
    if layer != OUTSIDE and (other := model.layer_of(role, layer)) != layer:
        return f" of its own there, because the layer attends to those of layer {other}"
    return ""


def _checked(model: Model, address: Address, layer: int, role: str, row: int) -> tuple[int, str, int]:
    count = _require_role(model, address, layer, role)
    if row >= count:
        raise BadAddress(f"{address}: {row} is out of range, {model.name} has {role} 0 to {count - 1}.")
    return layer, role, row


def count_of(model: Model, layer: int, role: str) -> int:
    """Return the number of vectors of a set without reading it."""
    if role in FF_ROLES:
        return sum(model.dims.mlps.sizes(layer))
    if role == ROUTER or role in PROJECTION_ROLES:
        return model.rows(role, layer)
    if role in HEAD_ROLES:
        dims = model.dims.at(layer)
        return (dims.kv_heads if base_role(role) in ("k", "v") else dims.heads) * dims.width(role)
    if layer == OUTSIDE:
        tables = model.tables()
        return tables[role][2] if role in tables else 1
    if role == "ff_bias":
        return len(model.dims.mlps.sizes(layer))
    return model.dims.at(layer).heads if base_role(role) in ("q_bias", "v_bias") else 1


def _matrix_set(model: Model, layer: int, role: str, start: int, stop: int | None) -> VectorSet:
    side, frames = kind_of(model, layer, role)
    vectors = model.matrix(role, layer, start, stop)
    name = _name(model, layer, role)
    addresses = tuple(name(start + i) for i in range(vectors.shape[0]))
    return VectorSet(
        layer=layer,
        role=role,
        side=side,
        addresses=addresses,
        vectors=vectors,
        norm=norm_of(role),
        frames=frames,
        reads_at=reads_at(model, layer, role),
        bare=side == "read" and is_bare(model, layer, role),
    )


def _name(model: Model, layer: int, role: str) -> Callable[[int], Address]:
    """Return the function from the rows of a role to their addresses."""
    if role in HEAD_ROLES:
        return _subhead_name(model, layer, role)
    if role in PROJECTION_ROLES:
        return lambda row: Address(layer, site_of(role), index=row, role=role)
    if role == ROUTER:
        return lambda row: Address(layer, "ff", role=role, expert=row)
    return lambda row: neuron_address(model, layer, role, row)


def _subhead_name(model: Model, layer: int, role: str) -> Callable[[int], Address]:
    """Return the function from rows to addresses; a k or v of a group gets the address of its first query head."""
    dims = model.dims.at(layer)
    width, group = dims.width(role), dims.group if base_role(role) in ("k", "v") else 1
    return lambda row: Address(layer, site_of(role), head=row // width * group, index=row % width, role=role)


def _outside_set(model: Model, role: str, start: int, stop: int | None) -> VectorSet:
    if role.endswith("_norm") and role not in model.tables():
        shift = _required(model, f"{role}_bias", 0)
        shift = model.widened(shift) if role == "embed_norm" else shift
        address = Address(OUTSIDE, role.removesuffix("_norm"), role="norm")
        return _shift_set(model, OUTSIDE, role, address, shift)
    what = model.tables()[role][0]
    side, frames = kind_of(model, OUTSIDE, role)
    if model.is_vector(what):
        vectors = _required(model, what, 0)[None]
    elif role in CLASSIFIERS:
        vectors = _classifier(model, role)[start:stop]
    else:
        vectors = model.matrix(what, 0, start, stop)
        vectors = model.widened(vectors) if what in ("positions", "types") else vectors
    addresses = tuple(Address(OUTSIDE, role, index=start + i, role=role) for i in range(vectors.shape[0]))
    norm = "final_norm" if side == "read" and not model.family.stream_normed else None
    return VectorSet(
        layer=OUTSIDE,
        role=role,
        side=side,
        addresses=addresses,
        vectors=vectors,
        norm=norm,
        frames=frames,
        reads_at=model.dims.layers,
    )


def _classifier(model: Model, role: str) -> Tensor:
    """Return the rows of a classifier, (labels, d), as the stream meets them.

    Their mean over labels, which softmax cannot see, is subtracted unless each label is judged alone. A pooler is taken
    to first order: ``w tanh(P x + b) ≈ (w ⊙ (1 − tanh² b)) P x`` plus a constant; of a ReLU or GELU, the linear half.
    """
    rows = model.matrix(role)
    if len(rows) > 1 and model.files.config.get("problem_type") != "multi_label_classification":
        rows = rows - rows.mean(0)
    before, activation = model.layout.through.get(role, ("", ""))
    if not before or not model.has(before):
        return rows
    bias = model.vector(f"{before}_bias")
    slope = 0.5 if activation != "tanh" else 1.0 if bias is None else 1 - bias.tanh().square()
    return (rows * slope) @ model.matrix(before)


def _bias_set(model: Model, layer: int, role: str) -> VectorSet:
    if role.endswith("_norm"):
        site = role.removesuffix("_norm")
        return _shift_set(
            model, layer, role, Address(layer, site, role="norm"), _required(model, f"{role}_bias", layer)
        )
    if role in ("ff_bias", "attn_bias", "cross_bias", "mixer_bias"):
        site = role.removesuffix("_bias")
        vectors = _required(model, BIAS_TENSORS[role], layer).reshape(-1, model.dims.d)
        side, frames = kind_of(model, layer, role)
        experts = range(len(vectors)) if len(vectors) > 1 else (-1,)
        return VectorSet(
            layer=layer,
            role=role,
            side=side,
            addresses=tuple(Address(layer, site, role="bias", expert=expert) for expert in experts),
            vectors=vectors,
            norm=f"{site}_norm",
            frames=frames,
            reads_at=layer,
        )
    return _through_heads(model, layer, role)


def _through_heads(model: Model, layer: int, role: str) -> VectorSet:
    """Return biases inside heads as vectors of the stream.

    ``b_q W_Kᵀ`` is what a head looks for whatever the query, ``b_v W_O`` what it writes whatever it attends to. ``b_k``
    adds the same to every key, which softmax cannot see (docs/theory.md §2).
    """
    inner = role.removesuffix("_bias")
    outer = inner[:-1] + {"q": "k", "v": "o"}[inner[-1]]
    bias, dims = _required(model, role, layer), model.dims.at(layer)
    heads, width = range(dims.heads), dims.width(role)
    if inner == "q" and (factors := lengthening(model, layer)) is not None:
        bias = bias * factors.repeat(len(bias) // width)
    rows = []
    for head in heads:
        start = model.kv_head(inner, head, layer) * width
        rows.append(bias[start : start + width] @ model.head(outer, layer, head))
    addresses = tuple(Address(layer, site_of(role), head=head, role=role) for head in heads)
    side, frames = kind_of(model, layer, role)
    place = reads_at(model, layer, role)
    return VectorSet(
        layer=layer,
        role=role,
        side=side,
        addresses=addresses,
        vectors=torch.stack(rows),
        norm=norm_of(outer),
        frames=frames,
        reads_at=place,
        bare=side == "read" and is_bare(model, layer, outer),
    )


def _shift_set(model: Model, layer: int, role: str, address: Address, shift: Tensor) -> VectorSet:
    side, frames = kind_of(model, layer, role)
    return VectorSet(
        layer=layer,
        role=role,
        side=side,
        addresses=(address,),
        vectors=shift[None],
        norm=None,
        frames=frames,
        reads_at=layer,
    )


def _required(model: Model, what: str, layer: int) -> Tensor:
    vector = model.vector(what, layer)
    if vector is None:
        raise BadAddress(f"{model.name} has no {what}.")
    return vector
