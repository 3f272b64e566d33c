"""The mean-field flow: what a vector that one block writes has become where another reads it (docs/theory.md §9).

The halves of a model's layers are stations in a row. What a station writes passes those between it and a later one,
each of which adds its mean response: ``v (I + J)(I + J) …``. A model with parallel blocks has one station a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass.arch.roles import OUTSIDE, Site
from zeropass.model.lens_maps import LensMaps
from zeropass.model.model import Model

__all__ = ["DIRECT", "FLOW", "Flow", "flow_of", "paths_of", "station_of", "stations", "without_flow"]

DIRECT, FLOW = "direct", "flow"
"""The ways from one parameter to another: along the stream alone, or through the blocks between as well."""

Station = tuple[int, tuple[str, ...]]
"""A layer, and the halves of it that read the same stream."""


def stations(model: Model) -> list[Station]:
    """Return the stations of a model in order."""
    halves: list[tuple[str, ...]] = [("attn", "ff")] if model.family.parallel else [("attn",), ("ff",)]
    return [(layer, sites) for layer in range(model.dims.layers) for sites in halves]


def station_of(model: Model, layer: int, site: Site) -> int:
    """Return the number of the station where a part of a layer stands; what is outside the blocks is at the ends."""
    if layer == OUTSIDE:
        return -1
    return layer if model.family.parallel else 2 * layer + (site == "ff")


@dataclass(frozen=True, eq=False)
class Flow:
    """The mean Jacobians of the stations of a model; none stands for the direct way.

    Attributes:
        model: The model.
        lens: The lens that holds the Jacobians, or None.
    """

    model: Model
    lens: LensMaps | None

    @property
    def name(self) -> str:
        """The name of the way: ``direct`` or ``flow``."""
        return DIRECT if self.lens is None else FLOW

    def passed(self, rows: Mapping[int, Tensor], station: Station) -> dict[int, Tensor]:
        """Return rows (…, d), by any number, as they are behind a station that they pass."""
        jacobian = self.jacobian(station)
        return dict(rows) if jacobian is None else {key: x + x @ jacobian for key, x in rows.items()}

    def jacobian(self, station: Station) -> Tensor | None:
        """Return what a station adds to a vector that passes it, (d, d); None for the direct way."""
        if self.lens is None:
            return None
        layer, sites = station
        return torch.stack([self.lens.map(f"jacobian.{layer}.{site}") for site in sites]).sum(0)


def flow_of(model: Model, lens: LensMaps | None) -> Flow | None:
    """Return the flow that a lens gives, if there is one that holds the Jacobians."""
    return None if lens is None or not lens.keeps_jacobians else Flow(model, lens)


def paths_of(model: Model, lens: LensMaps | None) -> list[Flow]:
    """Return the ways from one parameter to another that are known: the direct one, and the flow if a lens gives it."""
    flow = flow_of(model, lens)
    return [Flow(model, None), *([] if flow is None else [flow])]


def without_flow(model: Model, lens: LensMaps | None) -> str:
    """Return the sentence on why the flow is not shown; empty where it is."""
    if flow_of(model, lens) is not None:
        return ""
    reason = "There is no lens" if lens is None else f"The {lens.facts.words} holds no Jacobians of single blocks"
    return f"{reason}, so only the direct way is shown: `zeropass calibrate {model.command}` makes one that has them."
