"""The names of what a model's vectors are: their roles, the sides and the parts of a block that these belong to."""

from typing import Literal

Site = Literal["attn", "cross", "mixer", "laurel", "ff", "ple"]
Side = Literal["read", "write"]
NeuronRole = Literal["gate", "up", "key", "value"]
MapRole = Literal["qk", "vo", "ov", "cross_qk", "cross_vo", "cross_ov"]

ROUTER = "router"
"""The role of the rows that choose the experts for a token."""

READ_ROLES = ("gate", "up", "key", "q", "k", "v", "mixer_in")
WRITE_ROLES = ("value", "o", "cross_o", "mixer_out", "laurel_out", "ple_out")
FF_ROLES = ("gate", "up", "key", "value")
SELF_ROLES = ("q", "k", "v", "o")
CROSS_ROLES = ("cross_q", "cross_k", "cross_v", "cross_o")
"""The roles of cross attention: k and v read the encoder's stream, q and o the decoder's."""

OUTPUT_GATE = "g"
"""The role of the columns that decide how much of what a head attended to goes on to its o."""

HEAD_ROLES = (*SELF_ROLES, OUTPUT_GATE, *CROSS_ROLES)
MIXER_ROLES = ("mixer_in", "mixer_out")
"""The projections into and out of a mixer: what stands in the place of attention in some layers of a hybrid, such as a
state-space model. What lies between them is no parameter of the stream."""

PLE_ROLES = ("ple_in", "ple_out")
"""The gates of a per-layer embedding, which read the stream, and the projection by which it is added to it. What a gate
multiplies is a number of the token alone, and no parameter of the stream."""

LAUREL_ROLES = ("laurel_in", "laurel_out")
"""The projections of a learned augmented residual (LAuReL) into a few coordinates and back to the stream."""

PROJECTION_ROLES = (*MIXER_ROLES, *LAUREL_ROLES, *PLE_ROLES)
"""The roles whose rows have addresses such as ``L3.mixer.in.7`` and ``L3.ple.out.7``."""

_PROJECTIONS: tuple[Site, ...] = ("mixer", "laurel", "ple")

LAYER_ROLES = (*FF_ROLES, *HEAD_ROLES, *PROJECTION_ROLES)
"""The roles with many vectors in a layer: neurons, columns of heads, and projections of mixers and embeddings."""

SELF_MAPS: tuple[MapRole, ...] = ("qk", "vo")
MAP_ROLES: tuple[MapRole, ...] = (*SELF_MAPS, "cross_qk", "cross_vo")
CLASSIFIERS = ("classifier", "token_classifier")
"""Tables whose rows are labels, of an entire text or of each token."""

BY_TOKEN = ("embedding", "unembedding", "unembedding_bias")
"""Tables with a row for each token."""

OUTSIDE = -1
"""The layer number of everything outside the blocks."""

MEMORY = -2
"""The layer number of the encoder's stream after its last layer, which cross attention reads."""

_CROSS = "cross_"


def side_of(role: str) -> Side:
    """Return whether vectors of this role read from the stream or write to it."""
    return "write" if role in WRITE_ROLES else "read"


def site_of(role: str) -> Site:
    """Return the part of a block that a role belongs to, or the bias or norm of such a part."""
    if role.startswith(_CROSS):
        return "cross"
    if projection := next((site for site in _PROJECTIONS if role.startswith(f"{site}_")), None):
        return projection
    return "ff" if role in FF_ROLES or role == ROUTER or role.startswith("ff_") else "attn"


def base_role(role: str) -> str:
    """Return a head's role, or head map, without the prefix of cross attention."""
    return role.removeprefix(_CROSS)


def sides_of(kind: str) -> tuple[str, str]:
    """Return the roles of both sides of a head map: ``cross_qk`` is made of ``cross_q`` and ``cross_k``."""
    stem = kind[: -len(base_role(kind))]
    return stem + base_role(kind)[0], stem + base_role(kind)[1]


def reads_memory(role: str) -> bool:
    """Tell whether a role of a decoder reads the encoder's stream."""
    return role in ("cross_k", "cross_v")


def norm_of(role: str) -> str:
    """Return the norm of a role: before its input if it reads, after its output if it writes."""
    return "memory_norm" if reads_memory(role) else f"{site_of(role)}_norm"
