"""The record of one family's layout: frozen data, no behaviour beyond looking things up in it.

A family is described once (what its blocks compute) and once for every kind of file it is stored in
(what its tensors are called and how they lie). Nothing is inferred from a shape: a transform is named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from zeropass.errors import BadOption

Format = Literal["hf", "gguf"]
Site = Literal["attn", "ff"]
Side = Literal["read", "write"]

READ_ROLES = ("gate", "up", "key", "q", "k", "v")
WRITE_ROLES = ("value", "o")
FF_ROLES = ("gate", "up", "key", "value")
HEAD_ROLES = ("q", "k", "v", "o")
MAP_ROLES = ("qk", "vo")
FRAMES = ("token", "output", "paper")


USUAL_OFFSET = 16
"""How far a query stands after its key in ``qk`` unless asked otherwise.

Attention depends on the distance, which a map of token pairs does not have. Of the distances tried on running text this
one predicts attention best, at every depth (docs/evidence.md, "Which offset").
"""

OUTSIDE = -1
"""The layer of what lies outside the blocks."""


@dataclass(frozen=True)
class Stored:
    """How one canonical tensor lies in a file.

    ``name`` may hold ``{layer}``; one that begins with ``^`` never takes the layout's prefix. A canonical matrix is
    (rows, d): one parameter vector of the residual stream a row. ``transpose`` is for files that keep it the other way
    round (torch Linear layers that write to the stream, GPT-2's Conv1D layers that read from it). ``part`` = (i, n)
    takes the i-th of n equal parts of a fused tensor, cut along the canonical rows. ``paired_rows`` says that the rows
    of each head were reordered from halves (x_i, x_{i + d_h/2}) to neighbours (x_2i, x_2i+1), as llama.cpp's
    converter does.
    """

    name: str
    transpose: bool = False
    part: tuple[int, int] = (0, 1)
    paired_rows: bool = False


@dataclass(frozen=True)
class Layout:
    """Names of one kind of file: configuration keys and tensors.

    ``config`` maps the names of `Dimensions` to keys of the configuration, tried in order.
    ``prefixes`` are what may stand before every tensor name (a bare model, or one inside a task model).
    ``optional`` are the tensors that a model may lack; any other that is missing is an error.
    ``extra`` are stream vectors beyond the usual roles: address stem -> (tensor, side).
    ``through`` names, for one of these, the one that stands before it: a row reads what that one puts out through
    tanh. A model that lacks it reads the stream itself.
    ``unread`` are regular expressions of tensors that hold no parameter of the stream.
    """

    format: Format
    config: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, Stored]
    prefixes: tuple[str, ...] = ("",)
    optional: tuple[str, ...] = ()
    extra: Mapping[str, tuple[Stored, Side]] = field(default_factory=dict)
    through: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """What the blocks of a family compute, and the layouts it is stored in.

    ``norm`` is ``rms`` or ``layer``; ``norm_place`` is ``pre`` (a block reads the normed stream) or ``post``
    (the stream itself is normed after each block). ``ff_roles`` and ``activation`` describe the MLP.
    ``config`` gives values that this family has without a configuration key.
    """

    name: str
    model_types: tuple[str, ...]
    norm: Literal["rms", "layer"]
    norm_place: Literal["pre", "post"]
    ff_roles: tuple[str, ...]
    rotary: bool
    tied_by_default: bool
    layouts: tuple[Layout, ...]
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role of a layer, in the order in which they are listed."""
        return (*self.ff_roles, *HEAD_ROLES, *MAP_ROLES)

    def layout(self, kind: Format) -> Layout | None:
        """The layout of one kind of file; None if the family is not known in it."""
        return next((one for one in self.layouts if one.format == kind), None)


@dataclass(frozen=True)
class Rope:
    """Rotary positions: base, and the rule that rescales the frequencies (``default`` for none)."""

    theta: float
    kind: str = "default"
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dimensions:
    """The sizes and constants of one model, whatever its configuration calls them."""

    layers: int
    d: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    vocab: int
    eps: float
    activation: str
    tied: bool
    rope: Rope | None

    @property
    def group(self) -> int:
        """How many query heads share one key/value head."""
        return self.heads // self.kv_heads


def side_of(role: str) -> Side:
    """Whether vectors of this role read from the stream or write to it."""
    return "write" if role in WRITE_ROLES else "read"


def site_of(role: str) -> Site:
    """Which half of a block a role belongs to."""
    return "ff" if role in FF_ROLES else "attn"


def expand(stored: Stored, layers: int) -> Iterator[str]:
    """All tensor names that a record entry stands for (without prefix)."""
    if "{layer}" in stored.name:
        yield from (stored.name.format(layer=layer) for layer in range(layers))
    else:
        yield stored.name


def default_frames(side: Side) -> tuple[str, ...]:
    """The frames of a side that are shown unasked: what it sees and is about to say, or what it writes."""
    return ("token", "output") if side == "read" else ("output",)


def space_of(frame: str, side: Side, layer: int) -> str:
    """Name of the rows that a frame uses: layer 0 reads the embedding itself, later ones what block 0 made of it."""
    if frame == "token":
        if side == "write":
            raise BadOption("The token frame is for what reads; what writes has the frames output and paper.")
        return "embedded" if layer <= 0 else "token"
    check_frame(frame)
    return f"{frame}.{side}"


def check_count(k: int) -> None:
    """Raise BadOption for a number of tokens or pairs below one."""
    if k < 1:
        raise BadOption(f"-k is {k}; it must be at least 1.")


def check_frame(frame: str | None) -> None:
    """Raise BadOption for a frame that does not exist."""
    if frame is not None and frame not in FRAMES:
        raise BadOption(f"There is no frame {frame!r}; frames are {', '.join(FRAMES)}.")
