"""The names of frames, of the rows that each is made of and of the maps of a lens; the usual sizes of lists."""

from collections.abc import Collection
from typing import Literal, get_args

from zeropass.arch.roles import MEMORY, OUTSIDE, WRITE_ROLES, Side, Site
from zeropass.errors import BadOption

Frame = Literal["seen", "token", "distinctive", "effect", "output", "paper"]

FRAMES = ("token", "output", "paper")
"""The frames that need the weights alone."""

LENS_FRAMES = {"seen": "token", "distinctive": "output", "effect": "output"}
"""The frames that need a lens, each with the frame whose rows it uses; ``seen`` reads, the others write."""

RELATIVE = {"distinctive": "effect"}
"""The frames that divide each token's score in another frame by its root mean square among the layer's vectors."""

LENS_FACTS, LENS_MAPS = "lens.json", "lens.safetensors"
"""The files in the folder of a lens: the facts about it, and its maps."""

ALL_FRAMES: tuple[Frame, ...] = get_args(Frame)
"""Every frame, in the order in which lists are shown."""

FIRST = 10
"""The number of tokens of a list whose coherence counts (`numerics.coherence`)."""

BARE = "bare"
"""The end of the names of rows that are not normed, in models that norm what others read."""

USUAL_OFFSET = 16
"""The default distance from a key to its query in ``qk``, in tokens.

Attention depends on the distance, which a map of token pairs lacks. Among the distances tried on running text, this one
predicts attention best at every depth (docs/evidence.md, "Which offset").
"""


def default_frames(side: Side) -> tuple[str, ...]:
    """Return the frames that are shown by default: token and output for what reads, output for what writes."""
    return ("token", "output") if side == "read" else ("output",)


def with_lens(frames: tuple[str, ...], role: str, side: Side, lens_frames: Collection[str]) -> tuple[str, ...]:
    """Return the frames that are shown where there is a lens.

    ``seen`` takes the place of ``token``; ``distinctive`` and ``effect`` that of ``output`` for what writes, where
    ``distinctive`` compares the many vectors of a matrix.

    Args:
        frames: The frames without it.
        role: The role of the vectors.
        side: Their side.
        lens_frames: The frames that the lens has maps for.
    """
    plain = "token" if side == "read" else "output"
    lists = [name for name in LENS_FRAMES if name in lens_frames and (name not in RELATIVE or role in WRITE_ROLES)]
    through = [name for name in lists if LENS_FRAMES[name] == plain] or [plain]
    return tuple(name for frame in frames for name in (through if frame == plain else [frame]))


def lens_map(side: Side, site: Site, layer: int, layers: int) -> str:
    """Return the name of the map of a lens for vectors of one side; an empty one where the lens changes nothing.

    What reads layer 0 meets the embedding itself. What is outside the blocks writes before layer 0, or reads behind the
    last.

    Args:
        side: The side of the vectors.
        site: The part of the block that they belong to.
        layer: Their layer, or `OUTSIDE`.
        layers: The number of layers of the model.
    """
    if side == "write":
        return "effect.start" if layer == OUTSIDE else f"effect.{layer}.{'ff' if site in ('ff', 'ple') else 'attn'}"
    state = layers if layer == OUTSIDE else layer
    return f"seen.{state}" if state > 0 else ""


def space_of(frame: str, side: Side, layer: int, bare: bool = False) -> str:
    """Return the name of the rows of a frame: layer 0 reads the embedding, later layers the output of block 0.

    What reads it bare, without the norm that other vectors of the model meet, has rows that are not normed either. The
    map of a lens knows normed rows only.
    """
    frame, through_lens = LENS_FRAMES.get(frame, frame), frame in LENS_FRAMES and layer > 0
    if frame == "token":
        if side == "write":
            raise BadOption("The token frame is for what reads; what writes has the frames output and paper.")
        if layer == MEMORY:
            return "memory"
        return ("embedded" if layer <= 0 else "token") + (f".{BARE}" if bare and not through_lens else "")
    check_frame(frame)
    return f"{frame}.{side}"


def judge_space(side: Side) -> str:
    """Return the rows in which the tokens of lists of a side are compared: other ones than those that made the lists.

    The source of `numerics.coherence`: ``token`` for what writes, the output's for what reads.
    """
    return "token" if side == "write" else "output.write"


def check_count(k: int) -> None:
    """Raise BadOption for a number of tokens or pairs below one."""
    if k < 1:
        raise BadOption(f"-k is {k}; it must be at least 1.")


def check_frame(frame: str | None) -> None:
    """Raise BadOption for a frame that does not exist."""
    if frame is not None and frame not in ALL_FRAMES:
        raise BadOption(f"There is no frame {frame!r}; frames are {', '.join(ALL_FRAMES)}.")
