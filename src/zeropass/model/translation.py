"""From the residual stream of one model to that of another, through the tokens that both have (design.md §4).

Every token is an anchor: a row in the first model that means the same as a row in the second. A translation is the
linear map, or the affine one, that carries the anchors of the first to those of the second; it carries anything else
that lives in the stream with them. What the anchors are is a frame, how the map is found a kernel.

Frames:

* ``paper``  rows of E, as published (Dar et al. 2023, §5).
* ``token``  tokens as they leave block 0 alone (`Frames.carried`): the stream above the first block holds these.
* ``both``   the two together, each scaled to the same mean square: what a state was, and what it is about to say.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from zeropass.arch.spec import Side
from zeropass.errors import BadOption
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.shared_tokens import Shared, shared_tokens
from zeropass.numerics.statistics import blocks

__all__ = ["FRAMES", "KERNELS", "Bridge", "Kernel", "Translation", "bridge", "from_anchors", "translate"]

FRAMES = ("both", "token", "paper")
_TABLES = {"paper": ("paper",), "token": ("token",), "both": ("paper", "token")}
HELD_OUT, ASKED = 5, 2000
"""Every fifth shared token is held out to see how well a map carries what it was not made from; so many at most."""

RIDGE = 1e-3
"""Of the mean eigenvalue: enough for rows that nearly depend on each other, not enough to shrink the rest."""

HEAD_OF_ZIPF = 10
"""A token's weight is 1 / (rank + this): vocabularies are sorted by frequency, or as their merges were found."""


@dataclass(frozen=True)
class Kernel:
    """A way to find the map from anchors; ``centred``: around the means of both, so that the map is affine."""

    solve: Literal["pinv", "ridge", "orthogonal", "identity", "random"]
    centred: bool = False
    weighted: bool = False


KERNELS = {
    "orthogonal": Kernel("orthogonal"),
    "centred": Kernel("orthogonal", centred=True),
    "ridge": Kernel("ridge"),
    "weighted": Kernel("ridge", weighted=True),
    "pinv": Kernel("pinv"),
}
"""The kernels that are tried, by name. ``pinv`` is the paper's."""

CONTROLS = {"identity": Kernel("identity"), "random": Kernel("random")}
"""What a translation has to beat: no map at all (where widths agree), and one that knows nothing."""


@dataclass(frozen=True, eq=False)
class Translation:
    """``x ↦ x W + b`` from states (…, d₁) of one model to states (…, d₂) of another."""

    weight: Tensor
    bias: Tensor

    def states(self, x: Tensor) -> Tensor:
        """States (…, d₁) of the first model as states (…, d₂) of the second."""
        return x @ self.weight + self.bias

    def directions(self, x: Tensor) -> Tensor:
        """Directions (…, d₁), such as steering vectors or what a neuron writes: differences of states, so without b."""
        return x @ self.weight

    def readers(self, w: Tensor) -> Tensor:
        """Reading vectors (…, d₂) of the *second* model as readers (…, d₁) of the first.

        A reader belongs to the dual space and goes the other way: ``w · (x W) = (w Wᵀ) · x``.
        """
        return w @ self.weight.T

    def scaled(self, factor: float) -> "Translation":
        """The same with everything that comes out multiplied."""
        return Translation(self.weight * factor, self.bias * factor)


@dataclass(frozen=True, eq=False)
class _Sums:
    """What a kernel needs of weighted anchors X, Y: XᵀX, YᵀY, XᵀY, their sums and the sum of weights; float64."""

    xx: Tensor
    yy: Tensor
    xy: Tensor
    x: Tensor
    y: Tensor
    total: float

    @property
    def centred(self) -> "_Sums":
        """The same around the weighted means."""
        x, y, n = self.x, self.y, self.total
        xx, yy, xy = self.xx - torch.outer(x, x) / n, self.yy - torch.outer(y, y) / n, self.xy - torch.outer(x, y) / n
        return _Sums(xx, yy, xy, torch.zeros_like(x), torch.zeros_like(y), n)


@dataclass(frozen=True, eq=False)
class Bridge:
    """Two models and the tokens that they share: from here every translation from the first to the second is made."""

    first: Frames
    second: Frames
    shared: Shared
    _tables: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    _sums: dict[tuple[str, bool, bool], _Sums] = field(default_factory=dict)
    _straight: "Bridge | None" = None

    def translation(self, kernel: str = "orthogonal", frame: str = "token", seed: int = 0) -> Translation:
        """The map of a kernel in a frame; ``seed`` is for the control ``random``. BadOption for names not known."""
        return self._made(_kernel(kernel), _frame(frame), seed)

    def fit(self, kernel: str, frame: str) -> float:
        """Share of held-out tokens that a map made from the others carries nearest to themselves (cosine, centred).

        Chance is one in the number of tokens asked, at most `ASKED`. The mean over the tables of the frame.
        """
        found = self._made(_kernel(kernel), _frame(frame), held_out=True)
        at = torch.arange(0, len(self.shared), HELD_OUT)
        at = at[torch.linspace(0, len(at) - 1, min(ASKED, len(at))).long()]
        hits = []
        for table in _TABLES[frame]:
            x, y = (rows[ids[at]] for rows, ids in zip(self._rows(table), self.shared.pairs, strict=True))
            x = found.states(x)
            x, y = (torch.nn.functional.normalize(one - one.mean(0), dim=1) for one in (x, y))
            hits.append(float(((x @ y.T).argmax(1) == torch.arange(len(at), device=x.device)).float().mean()))
        return sum(hits) / len(hits)

    def shuffled(self, seed: int) -> "Bridge":
        """The same models with wrong partners for their tokens: the null (`Shared.shuffled`)."""
        return Bridge(self.first, self.second, self.shared.shuffled(seed), self._tables, _straight=self)

    @property
    def back(self) -> "Bridge":
        """The other direction."""
        shared = self.shared
        turned = Shared(shared.second, shared.first, shared.sizes[::-1], shared.identical)
        return Bridge(
            self.second, self.first, turned, {(1 - side, t): rows for (side, t), rows in self._tables.items()}
        )

    def _rows(self, table: str) -> tuple[Tensor, Tensor]:
        found = []
        for side, frames in enumerate((self.first, self.second)):
            if (side, table) not in self._tables:
                rows = frames.model.embedding if table == "paper" else frames.carried()
                self._tables[side, table] = rows
            found.append(self._tables[side, table])
        return found[0], found[1]

    def _summed(self, table: str, weighted: bool, held_out: bool) -> _Sums:
        """The sums over a table, of all shared tokens or of those that are not held out; kept once made."""
        key = table, weighted, held_out
        if key not in self._sums:
            at = torch.arange(len(self.shared))
            at = at[at % HELD_OUT != 0] if held_out else at
            ids = tuple(one[at.to(one.device)] for one in self.shared.pairs)
            if self._straight is not None and not weighted and not held_out:  # other partners, the same rows
                straight = self._straight._summed(table, weighted, held_out)
                self._sums[key] = replace(straight, xy=_product(*self._rows(table), ids))
            else:
                weights = 1.0 / (at + HEAD_OF_ZIPF) if weighted else None
                self._sums[key] = _sums(*self._rows(table), ids, weights)
        return self._sums[key]

    def _made(self, kernel: Kernel, frame: str, seed: int = 0, held_out: bool = False) -> Translation:
        widths = self.first.model.dims.d, self.second.model.dims.d
        if kernel.solve == "identity" and widths[0] != widths[1]:
            raise BadOption(f"The kernel identity needs models of one width; these have {widths[0]} and {widths[1]}.")
        sums, lengths = [], (1.0, 1.0)
        for table in _TABLES[frame]:
            found = self._summed(table, kernel.weighted, held_out)
            lengths = _length(found.xx, found), _length(found.yy, found)
            sums.append(_rescaled(found, lengths) if frame == "both" else found)
        weight, bias = _solved(_added(sums), kernel, seed)
        if frame == "both":  # a state is as long as a row of the last table, which is the stream's own
            weight, bias = weight * (lengths[1] / lengths[0]), bias * lengths[1]
        return Translation(weight.float(), bias.float())


def bridge(first: Model, second: Model) -> Bridge:
    """Two models side by side; BadOption if they share too few tokens."""
    return Bridge(Frames(first), Frames(second), shared_tokens(first, second))


def translate(
    vectors: Tensor, first: Model, second: Model, side: Side = "write", kernel: str = "orthogonal", frame: str = "token"
) -> Tensor:
    """Vectors (n, d₁) of the first model's stream as vectors (n, d₂) of the second's.

    ``side``: ``write`` for what is added to the stream (steering vectors, FF values), ``read`` for what is multiplied
    with it (probes, classifier rows, FF keys): those go through the map from the second to the first, transposed. Norms
    are not folded in: give a reader as it meets the stream (``γ ⊙ w``). For whole states see `bridge`.
    """
    if vectors.shape[-1] != first.dims.d:
        raise BadOption(f"The vectors have {vectors.shape[-1]} numbers each; {first.name} is {first.dims.d} wide.")
    found = bridge(first, second)
    if side == "read":
        return found.back.translation(kernel, frame).readers(vectors)
    return found.translation(kernel, frame).directions(vectors)


def from_anchors(x: Tensor, y: Tensor, kernel: str) -> Translation:
    """The map of a kernel from rows (n, d₁) to rows (n, d₂) that are anchors of any kind, one for one."""
    ids = torch.arange(len(x), device=x.device)
    weight, bias = _solved(_sums(x, y, (ids, ids.to(y.device)), None), _kernel(kernel), 0)
    return Translation(weight.float(), bias.float())


def _solved(own: _Sums, kernel: Kernel, seed: int) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64."""
    weight = _SOLVED[kernel.solve](own.centred if kernel.centred else own, seed)
    return weight, (own.y - own.x @ weight) / own.total if kernel.centred else torch.zeros_like(own.y)


def _kernel(name: str) -> Kernel:
    known = KERNELS | CONTROLS
    if name not in known:
        raise BadOption(f"There is no kernel {name!r}; kernels are {', '.join(known)}.")
    return known[name]


def _frame(name: str) -> str:
    if name not in FRAMES:
        raise BadOption(f"There is no frame {name!r} to translate in; frames are {', '.join(FRAMES)}.")
    return name


def _sums(x: Tensor, y: Tensor, ids: tuple[Tensor, ...], weights: Tensor | None) -> _Sums:
    """Block by block in float64: nothing as long as the vocabulary is copied."""
    widths = x.shape[1], y.shape[1]
    xx, yy, xy = (
        torch.zeros(a, b, dtype=torch.float64, device=x.device)
        for a, b in ((widths[0], widths[0]), (widths[1], widths[1]), widths)
    )
    x_sum, y_sum = (torch.zeros(width, dtype=torch.float64, device=x.device) for width in widths)
    total = 0.0
    for part in blocks(len(ids[0])):
        a, b = x[ids[0][part]].double(), y[ids[1][part]].double().to(x.device)
        w = torch.ones(len(a), 1, dtype=torch.float64) if weights is None else weights[part, None].double()
        w = w.to(x.device)
        xx, yy, xy = xx + a.T @ (w * a), yy + b.T @ (w * b), xy + a.T @ (w * b)
        x_sum, y_sum, total = x_sum + (w * a).sum(0), y_sum + (w * b).sum(0), total + float(w.sum())
    return _Sums(xx, yy, xy, x_sum, y_sum, total)


def _product(x: Tensor, y: Tensor, ids: tuple[Tensor, ...]) -> Tensor:
    """XᵀY (d₁, d₂) of anchors, float64."""
    found = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    for part in blocks(len(ids[0])):
        found += x[ids[0][part]].double().T @ y[ids[1][part]].double().to(x.device)
    return found


def _length(gram: Tensor, sums: _Sums) -> float:
    """Root mean square length of the rows of a table."""
    return float((gram.trace() / sums.total).sqrt()) or 1.0


def _rescaled(sums: _Sums, lengths: tuple[float, float]) -> _Sums:
    a, b = lengths
    return _Sums(sums.xx / a**2, sums.yy / b**2, sums.xy / (a * b), sums.x / a, sums.y / b, sums.total)


def _added(sums: list[_Sums]) -> _Sums:
    """The sums over the rows of all tables."""
    first, *others = sums
    for one in others:
        first = _Sums(
            first.xx + one.xx,
            first.yy + one.yy,
            first.xy + one.xy,
            first.x + one.x,
            first.y + one.y,
            first.total + one.total,
        )
    return first


def _pinv(s: _Sums, _seed: int) -> Tensor:
    """``XᵀY (YᵀY)⁻¹``: to scores over the vocabulary, and back by the pseudo-inverse (Dar et al. 2023, §5)."""
    inverse: Tensor = torch.linalg.pinv(s.yy, hermitian=True)
    return s.xy @ inverse


def _ridge(s: _Sums, _seed: int) -> Tensor:
    """Least squares from X to Y."""
    damped = s.xx + RIDGE * s.xx.diagonal().mean() * torch.eye(len(s.xx), dtype=s.xx.dtype, device=s.xx.device)
    found: Tensor = torch.linalg.solve(damped, s.xy)
    return found


def _orthogonal(s: _Sums, _seed: int) -> Tensor:
    """The rotation nearest to ``XᵀY`` (Schönemann 1966), times what makes rows as long as those of Y on the whole."""
    left, _, right = torch.linalg.svd(s.xy, full_matrices=False)
    turned: Tensor = left @ right
    return turned * (s.yy.trace() / ((turned.T @ s.xx) * turned.T).sum()).clamp_min(0).sqrt()


def _identity(s: _Sums, _seed: int) -> Tensor:
    return torch.eye(len(s.xx), dtype=s.xx.dtype, device=s.xx.device)


def _random(s: _Sums, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(*s.xy.shape, generator=draw, dtype=torch.float64).to(s.xy.device)
    return _orthogonal(_Sums(s.xx, s.yy, noise, s.x, s.y, s.total), seed)


_SOLVED: dict[str, Callable[[_Sums, int], Tensor]] = {
    "pinv": _pinv,
    "ridge": _ridge,
    "orthogonal": _orthogonal,
    "identity": _identity,
    "random": _random,
}
