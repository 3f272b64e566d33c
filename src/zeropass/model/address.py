"""Addresses: the names of parameters, such as ``L26.ff.1189.gate`` or ``L10.attn.3.v.17`` (docs/theory.md §2 and §3).

Grammar::

    L{layer}.ff.{neuron}[.gate|.up|.key|.value]     a neuron
    L{layer}.ff.e{expert}.{neuron}[.role]           a neuron of an expert
    L{layer}.ff.e{expert}                           an expert: what its router row reads
    L{layer}.attn.{head}[.qk|.vo]                   a head; L{layer}.cross.{head} in a decoder's cross attention;
                                                    .ov is read as .vo
    L{layer}.attn.{head}.{q|k|v|o|g}.{index}        a subhead: one column or row of a head; g is its output gate
    L{layer}.mixer.{in|out}.{index}                 a row of the projection into a mixer of a hybrid, or out of it
    L{layer}.laurel.{in|out}.{index}                a row of a learned augmented residual (LAuReL), into it or out of it
    L{layer}.ple.{in|out}.{index}                   a gate of a per-layer embedding, or what it writes
    L{layer}.attn.{head}.{q|v}.bias                 what a head looks for, or writes, regardless of the tokens
    L{layer}.ff.e{expert}.bias                      what an expert writes whatever it reads
    L{layer}.{ff|attn}.bias, L{layer}.{ff|attn}.norm    the output bias, the shift of the norm
    final.norm, embed.norm                          shifts of the norms outside the blocks
    pos.{i}, type.{i}, classifier.{i}, …            rows of the tables outside the blocks
    L{layer}.sae.{i}[.encoder|.decoder]             a feature of a dictionary; .decoder.14 for what that of a
                                                    cross-layer transcoder writes at layer 14
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zeropass.arch.roles import PROJECTION_ROLES, ROUTER, base_role
from zeropass.errors import BadAddress

__all__ = ["FEATURE", "Address", "canonical_role", "feature_roles", "parse", "part_of_layer", "with_roles"]

FEATURE = "sae"
"""The part that features of a dictionary have in their addresses."""

_N = "[0-9]{1,9}"  # fits the integers of Python, Parquet and every model
_NEURON = re.compile(rf"L({_N})\.ff\.(?:e({_N})\.)?({_N})(?:\.(gate|up|key|value))?")
_EXPERT = re.compile(rf"L({_N})\.ff\.e({_N})(?:\.(router|bias))?")
_HEAD = re.compile(rf"L({_N})\.(attn|cross)\.({_N})(?:\.(qk|vo|ov))?")
_SUBHEAD = re.compile(rf"L({_N})\.(attn|cross)\.({_N})\.([qkvog])(?:\.({_N}|bias))?")
_PROJECTION = re.compile(rf"L({_N})\.(mixer|laurel|ple)\.(in|out)\.({_N})")
_BLOCK = re.compile(rf"L({_N})\.(ff|attn|cross|mixer)\.(bias|norm)")
_OUTSIDE = re.compile(rf"(final|embed)\.norm|([a-z_]+)\.({_N})")
_FEATURE = re.compile(rf"L({_N})\.sae\.({_N})(?:\.(encoder|decoder(?:\.{_N})?))?")
_PART = re.compile(rf"L({_N})(?:\.(ff|attn))?")
_HELP = "an address looks like L26.ff.1189, L26.ff.1189.gate, L10.attn.3, L10.attn.3.vo or L10.attn.3.v.17"


@dataclass(frozen=True, order=True)
class Address:
    """The name of one parameter.

    Attributes:
        layer: The layer; -1 outside the blocks.
        part: ``ff``, ``attn``, ``cross``, ``mixer``, ``laurel`` or ``ple`` inside a block, else the stem of a table
            (``pos``, ``final`` …); ``sae`` for a feature of a dictionary.
        head: The query head; -1 where there is none.
        index: The neuron, the feature, the column of a subhead or the row of a projection or a table; -1 for an entire
            head or a lone vector.
        role: The role; empty where all roles are meant.
        expert: The expert of the neuron, in a model with experts. Without ``index``, the expert's row of the router, or
            its bias.

    Example:
        >>> import zeropass as zp
        >>> address = zp.parse("L10.attn.3.v.17")
        >>> address.layer, address.head, address.index, address.role
        (10, 3, 17, 'v')
    """

    layer: int
    part: str
    head: int = -1
    index: int = -1
    role: str = ""
    expert: int = -1

    def __str__(self) -> str:
        """Format the address in the grammar of this module, without the role of a neuron or a head map."""
        if self.layer < 0:
            return f"{self.part}.{self.index}" if self.index >= 0 else f"{self.part}.norm"
        stem = f"L{self.layer}.{self.part}"
        if self.expert >= 0:
            stem = f"{stem}.e{self.expert}"
        if self.part in ("ff", FEATURE) and (self.index >= 0 or self.expert >= 0):
            if self.index < 0:
                return f"{stem}.bias" if self.role == "bias" else stem
            return f"{stem}.{self.index}"
        if self.role in PROJECTION_ROLES:
            return f"{stem}.{self.role.removeprefix(f'{self.part}_')}.{self.index}"
        if self.head < 0:
            return f"{stem}.{self.role}"
        stem = f"{stem}.{self.head}"
        role = base_role(self.role)
        if role.endswith("_bias"):
            return f"{stem}.{role[0]}.bias"
        return f"{stem}.{role}.{self.index}" if self.index >= 0 else stem

    def with_role(self, role: str) -> "Address":
        """Return the address of the same place in another role."""
        return replace(self, role=role)


def parse(text: "str | Address") -> Address:
    """Read an address, in capitals or not; one that was read already is returned.

    Raises:
        BadAddress: If the text is no address; the message shows examples.

    Example:
        >>> import zeropass as zp
        >>> zp.parse("L10.attn.3.vo")
        Address(layer=10, part='attn', head=3, index=-1, role='vo', expert=-1)
        >>> zp.parse("L10.attn.3.ov") == zp.parse("L10.attn.3.vo")
        True
        >>> str(zp.parse("L26.ff.1189.gate")), zp.parse("L26.ff.1189.gate").role
        ('L26.ff.1189', 'gate')
    """
    if isinstance(text, Address):
        return text
    given, text = text, _spelled(text)
    if m := _NEURON.fullmatch(text):
        return Address(int(m[1]), "ff", index=int(m[3]), role=m[4] or "", expert=-1 if m[2] is None else int(m[2]))
    if m := _EXPERT.fullmatch(text):
        return Address(int(m[1]), "ff", role=m[3] or ROUTER, expert=int(m[2]))
    if m := _HEAD.fullmatch(text):
        return Address(int(m[1]), m[2], head=int(m[3]), role=canonical_role(_role(m[2], m[4])) if m[4] else "")
    if m := _SUBHEAD.fullmatch(text):
        return _subhead(text, m)
    if m := _PROJECTION.fullmatch(text):
        return Address(int(m[1]), m[2], index=int(m[4]), role=f"{m[2]}_{m[3]}")
    if m := _BLOCK.fullmatch(text):
        return Address(int(m[1]), m[2], role=m[3])
    if m := _OUTSIDE.fullmatch(text):
        return Address(-1, m[1], role="norm") if m[1] else Address(-1, m[2], index=int(m[3]), role=m[2])
    if m := _FEATURE.fullmatch(text):
        return Address(int(m[1]), FEATURE, index=int(m[2]), role=m[3] or "")
    raise BadAddress(f"{given.strip()!r} is not an address: {_HELP}.")


def part_of_layer(text: str) -> tuple[int, str] | None:
    """Return the layer and the part, empty for both, that ``L24``, ``L24.ff`` or ``L24.attn`` names; None for others.

    Example:
        >>> from zeropass.model.address import part_of_layer
        >>> part_of_layer("L24"), part_of_layer("l24.attn"), part_of_layer("L24.ff.3")
        ((24, ''), (24, 'attn'), None)
    """
    match = _PART.fullmatch(_spelled(text))
    return match and (int(match[1]), match[2] or "")


def _spelled(text: str) -> str:
    """Return an address as this module spells it: only the L of a layer is a capital."""
    return re.sub("^l(?=[0-9])", "L", text.strip().lower())


def with_roles(place: Address, ff_roles: Sequence[str]) -> list[Address]:
    """Return the addresses with a role that an address stands for.

    Args:
        place: An address, with or without a role.
        ff_roles: The roles of neurons in the model.

    Returns:
        The address itself if it has a role or needs none, else one address for each role.

    Raises:
        BadAddress: If the address has a role that neurons of this model lack, or is that of a feature.
    """
    if place.part == FEATURE:
        raise BadAddress(f"{place} is a feature of a dictionary, which --features (in Python `Lens.features`) names.")
    if place.layer >= 0 and place.part == "ff" and place.index >= 0:
        if place.role and place.role not in ff_roles:
            raise BadAddress(f"{place}.{place.role}: neurons of this model have the roles {', '.join(ff_roles)}.")
        return [place] if place.role else [place.with_role(role) for role in ff_roles]
    if place.part in ("attn", "cross") and place.head >= 0 and not place.role:
        return [place.with_role(_role(place.part, map_role)) for map_role in ("qk", "vo")]
    return [place]


def feature_roles(place: Address, roles: Sequence[str]) -> list[Address]:
    """Return the addresses with a role that the address of a feature stands for; ``decoder`` for all decoders.

    Args:
        place: The address of a feature.
        roles: The roles of the features of its layer.
    """
    asked = place.role
    return [place.with_role(role) for role in roles if not asked or role == asked or role.startswith(f"{asked}.")]


def canonical_role(role: str) -> str:
    """Return a role under the name that files and outputs use: ``vo`` for the field's name of that map, ``ov``."""
    return re.sub("^(cross_)?ov$", r"\1vo", role)


def _role(part: str, role: str) -> str:
    """Return the full name of a head's role: cross attention has its own roles."""
    return f"cross_{role}" if part == "cross" else role


def _subhead(text: str, m: re.Match[str]) -> Address:
    layer, part, head, role = int(m[1]), m[2], int(m[3]), m[4]
    if m[5] is None:
        raise BadAddress(f"{text!r} names a whole matrix; one subhead of it is {text}.0, {text}.1, and so on.")
    if m[5] == "bias":
        if role not in "qv":
            raise BadAddress(f"{text!r}: only q and v have a bias that lives in the stream through their head.")
        return Address(layer, part, head=head, role=_role(part, f"{role}_bias"))
    return Address(layer, part, head=head, index=int(m[5]), role=_role(part, role))
