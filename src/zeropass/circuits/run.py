"""Ask for the wiring of a model in one call: pairs of heads, what a parameter feeds, induction heads."""

from pathlib import Path

import torch

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.circuits.flow import paths_of, without_flow
from zeropass.circuits.head_factors import attending, head_addresses, require_wiring
from zeropass.circuits.head_pairs import dimensions, pair_table
from zeropass.circuits.results import HeadPairs
from zeropass.lens import Lens, load
from zeropass.model.lens_maps import LensMaps
from zeropass.model.opening import ModelLike

__all__ = ["head_pairs"]

Source = Lens | ModelLike
"""A model that is asked about: the lens that `load` returned, or what it takes."""


def opened_lens(source: Source, lens: str | Path | LensMaps | None) -> Lens:
    """Return the lens on a model that is given, or that of a name; raise CannotRun if its wiring is not known."""
    opened = source if isinstance(source, Lens) else load(source, lens=lens)
    require_wiring(opened.model)
    return opened


@shows_progress
@torch.no_grad()
def head_pairs(
    source: Source, *, lens: str | Path | LensMaps | None = "auto", progress: Progress | bool = True
) -> HeadPairs:
    """Return the Q-, K- and V-composition of all pairs of heads, and the overlap of their subspaces, beside nulls.

    Both are exact, from d_h rows a head. With a lens that holds the Jacobians of single blocks they are also those of
    the flow, through the blocks between (docs/circuits.md).

    Args:
        source: A model: what `load` returned, or what it takes.
        lens: The lens, for a name (`load`).
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        All pairs: `HeadPairs.strongest` lists the best.

    Raises:
        CannotRun: If what heads read and write is no matter of their vectors alone, as with latent attention.

    Example:
        >>> import zeropass as zp
        >>> pairs = zp.head_pairs(zp.load("models/first", lens=None))
        >>> pair = pairs.strongest(1, into="k")[0]
        >>> pair.into, pair.path, pair.z > 0
        ('k', 'direct', True)
    """
    opened, report = opened_lens(source, lens), callback(progress)
    model, maps = opened.model, opened.frames.lens
    paths = paths_of(model, maps)
    return HeadPairs(
        model=model.name,
        lens=maps.facts.words if maps is not None and len(paths) > 1 else "",
        d=dimensions(opened.frames),
        heads=tuple(address for layer in attending(model) for address in head_addresses(model, layer)),
        tables=tuple(pair_table(opened.frames, flow, report) for flow in paths),
        notes=tuple(filter(None, (PAIRS_NOTE, without_flow(model, maps)))),
    )


PAIRS_NOTE = (
    "Rotary positions and biases are left out. z is against random turns of one head, which any common direction of "
    "trained heads beats: compare it with that of other pairs."
)
