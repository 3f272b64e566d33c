"""Paths from reading a word to writing another: parameters that see the one and feed those that write the other.

Each step has a z of its own: the word among all tokens in what a parameter sees; a neuron that reads a vector among
others of its layer in that vector's place; the other word among all tokens in what a parameter writes. A path is as
strong as its weakest step. Since many are searched, the best paths to random words say how strong one is by chance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.frame_names import Frame, space_of
from zeropass.circuits.composition import unit
from zeropass.circuits.flow import Flow, station_of, stations
from zeropass.circuits.head_factors import head_addresses, layer_heads
from zeropass.circuits.head_pairs import centred
from zeropass.circuits.results import WordPath
from zeropass.model.frames import Frames
from zeropass.model.generate import random_tokens
from zeropass.model.model import Model
from zeropass.model.vectors import neuron_address, vector_set

__all__ = ["RANDOM", "READERS", "word_paths"]

READERS = 96
"""The neurons and heads that see the word best, where paths begin."""

RANDOM = 60
"""The random words whose best paths are the null."""

_OTHERS = 64
"""Others of a layer, or other tokens of a head, in the place of a parameter that feeds another."""


@dataclass(frozen=True, eq=False)
class _Reader:
    """A parameter that sees the word, and what it then writes.

    Attributes:
        address: Its address.
        station: The station where it stands.
        z: How far the word stands out in what it sees.
        rows: The vector that it writes, then those in its place, (1 + n, d).
        writes: The z of each target in what it writes, (targets,).
    """

    address: str
    station: int
    z: float
    rows: Tensor
    writes: Tensor


def word_paths(frames: Frames, flow: Flow, word: int, to: int, k: int, progress: Progress) -> list[WordPath]:
    """Return the strongest paths from reading a token to writing another, of one step or of two.

    Args:
        frames: The frames.
        flow: The way from step to step.
        word: The token that is read.
        to: The token that is written.
        k: The number of paths.
        progress: Reports progress.
    """
    view = _View(frames, torch.cat((torch.tensor([to]), _random_words(frames.model, (word, to)))))
    readers, written = [], {}
    for layer in range(frames.model.dims.layers):
        progress("reading the word", layer, frames.model.dims.layers)
        if frames.model.dims.has_site("attn", layer):
            readers += view.heads(layer, word)
        if frames.model.dims.has_site("ff", layer):
            neurons, written[layer] = view.neurons(layer, word)
            readers += neurons
    readers = sorted(readers, key=lambda reader: -reader.z)[:READERS]
    paths: list[tuple[tuple[str, ...], tuple[float, ...]]] = [
        ((reader.address,), (reader.z, float(reader.writes[0]))) for reader in readers
    ]
    best = torch.stack([reader.writes.abs().clamp_max(reader.z) for reader in readers]).amax(0)
    for layer, fed, edges in _edges(frames, flow, readers, progress):
        see = torch.tensor([reader.z for reader in fed], device=edges.device)
        least = torch.minimum(see[:, None], edges)[..., None].minimum(written[layer].abs())
        best = torch.maximum(best, least.flatten(0, 1).amax(0))
        order = least[..., 0].flatten().topk(min(k, edges.numel())).indices.tolist()
        for reader, neuron in (divmod(at, edges.shape[1]) for at in order):
            addresses = fed[reader].address, str(neuron_address(frames.model, layer, view.role, neuron))
            z = fed[reader].z, float(edges[reader, neuron]), float(written[layer][neuron, 0])
            paths.append((addresses, z))
    ranked = sorted(paths, key=lambda path: -_strength(path[1]))[:k]
    return [
        WordPath(addresses=addresses, z=z, strength=_strength(z), p=_share_above(best[1:], _strength(z)))
        for addresses, z in ranked
    ]


def _strength(z: Sequence[float]) -> float:
    """Return the size of the weakest step; what reads and what is fed must stand out upwards."""
    return min(*z[:-1], abs(z[-1]))


def _share_above(null: Tensor, strength: float) -> float:
    """Return the share of random words with a path that is as strong, the word itself counted among them."""
    return (1 + int((null >= strength).sum())) / (1 + len(null))


def _random_words(model: Model, without: tuple[int, ...]) -> Tensor:
    """Draw words of the vocabulary, all alike, that are none of some tokens."""
    mask = torch.from_numpy(model.vocab.mask("words", *model.judgement))
    mask[list(without)] = False
    ids = mask.nonzero()[:, 0]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    return ids[order[:RANDOM]]


@dataclass(frozen=True, eq=False)
class _View:
    """The frames in which parameters see tokens and write them, and the tokens that may be written.

    Attributes:
        frames: The frames.
        targets: The token that paths lead to, then random ones.
    """

    frames: Frames
    targets: Tensor

    @property
    def role(self) -> str:
        """The role of the vector that a neuron reads by: the gate where there is one."""
        return "gate" if "gate" in self.frames.model.family.ff_roles else "key"

    @property
    def reads(self) -> Frame:
        """The frame of what is seen."""
        return self.frames.map_frame

    @property
    def writes(self) -> Frame:
        """The frame of what is written."""
        return "effect" if self.reads == "seen" else "output"

    def neurons(self, layer: int, word: int) -> tuple[list[_Reader], Tensor]:
        """Return the neurons of a layer that see the word best, and z of targets in what all write, (n, targets)."""
        model = self.frames.model
        reads, values = (vector_set(model, layer, role) for role in (self.role, "value"))
        folded, rows = self.frames.folded(reads, self.reads), self.frames.rows(space_of(self.reads, "read", layer))
        mean, deviation = rows.moments.of_scores(folded)
        z = _standard(folded @ rows.matrix[word] - mean, deviation)
        written, vectors = self._written(self.frames.folded(values, self.writes)), self.frames.folded(values, "output")
        step = max(1, len(vectors) // _OTHERS)
        readers = [
            _Reader(
                address=str(reads.addresses[row]),
                station=station_of(model, layer, "ff"),
                z=float(z[row]),
                rows=vectors[[row, *(other for other in range(0, len(vectors), step) if other != row)]],
                writes=written[row],
            )
            for row in z.topk(min(READERS, len(z))).indices.tolist()
        ]
        return readers, written

    def heads(self, layer: int, word: int) -> list[_Reader]:
        """Return the heads of a layer, each with what it writes if it attends to the word, and to random tokens."""
        model = self.frames.model
        rows = self.frames.rows(space_of(self.reads, "read", layer))
        ids = torch.cat((torch.tensor([word]), random_tokens(model, _OTHERS)))
        tokens = rows.matrix[ids] - rows.moments.mean.float()
        seen = layer_heads(self.frames, layer, self.reads)
        values = tokens @ seen.v.mT  # (heads, tokens, d_h)
        vectors, effects = values @ seen.o, values[:, :1] @ layer_heads(self.frames, layer, self.reads, self.writes).o
        sizes = vectors.norm(dim=-1)
        z = _standard(sizes[:, 0] - sizes[:, 1:].mean(1), sizes[:, 1:].std(1))
        return [
            _Reader(
                address=address,
                station=station_of(model, layer, "attn"),
                z=float(z[head]),
                rows=vectors[head],
                writes=written,
            )
            for head, (address, written) in enumerate(
                zip(head_addresses(model, layer), self._written(effects[:, 0]), strict=True)
            )
        ]

    def _written(self, folded: Tensor) -> Tensor:
        """Return the z of the targets in what folded vectors (n, d) write, (n, targets)."""
        rows = self.frames.rows(space_of(self.writes, "write", 0))
        mean, deviation = rows.moments.of_scores(folded)
        return _standard(folded @ rows.matrix[self.targets].T - mean[:, None], deviation[:, None])


def _standard(distance: Tensor, deviation: Tensor) -> Tensor:
    return torch.where(deviation > 0, distance / deviation, torch.zeros_like(distance))


def _edges(
    frames: Frames, flow: Flow, readers: list[_Reader], progress: Progress
) -> Iterator[tuple[int, list[_Reader], Tensor]]:
    """Yield for each layer the earlier readers and the z of each in what its neurons read, (readers, n)."""
    model, rows = frames.model, dict[int, Tensor]()
    role = "gate" if "gate" in model.family.ff_roles else "key"
    for number, station in enumerate(stations(model)):
        layer, sites = station
        progress("following the word", layer, model.dims.layers)
        if rows and "ff" in sites and model.dims.has_site("ff", layer):
            reads = unit(frames.folded(vector_set(model, layer, role), "token")[:, None])[:, 0]
            edges = []
            for x in rows.values():
                cosines = unit(centred(frames, x)[:, None])[:, 0] @ reads.T
                edges.append(_standard(cosines[0] - cosines[1:].mean(0), cosines[1:].std(0)))
            yield layer, [readers[reader] for reader in rows], torch.stack(edges)
        rows = flow.passed(rows, station)
        rows |= {place: reader.rows for place, reader in enumerate(readers) if reader.station == number}
