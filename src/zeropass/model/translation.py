"""Translations from the residual stream of one model to that of another, through shared tokens (docs/stitching.md).

Every shared token is an anchor: a row in the first model that means the same as a row in the second. A translation is
the linear or affine map that carries the anchors of the first model to those of the second, and with them anything else
that lives in the stream. A frame says what the anchors are, a kernel how the map is found.

Frames:

* ``paper``  rows of E, as published (Dar et al. 2023, §5).
* ``token``  tokens as they leave block 0 alone (`Frames.carried`): the stream above the first block holds these.
* ``both``   the two together, each scaled to the same mean square.
* ``seen``   tokens as they enter one layer of each model, by a lens of either (docs/theory.md §9): ``r_a R_l + c_l``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.frame_names import space_of
from zeropass.arch.roles import Side
from zeropass.errors import BadOption
from zeropass.model.frames import Frames
from zeropass.model.lens_maps import LensMaps
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.shared_tokens import Shared, shared_tokens
from zeropass.numerics.statistics import blocks

__all__ = ["FRAMES", "KERNELS", "SEEN", "Bridge", "Kernel", "Translation", "bridge", "from_anchors", "translate"]

FRAMES = ("both", "token", "paper")
"""The frames that need the weights alone."""

SEEN = "seen"
"""The frame that needs a lens of both models, and a layer of each (`Bridge.at`)."""

_TABLES = {"both": ("paper", "token"), "token": ("token",), "paper": ("paper",), SEEN: (SEEN,)}

HELD_OUT, ASKED = 5, 2000
"""The period at which shared tokens are held out to test a map, and the largest number of them that are tested."""

RIDGE = 1e-3
"""The damping as a share of the mean eigenvalue: enough for nearly dependent rows, too little to shrink the rest."""

HEAD_OF_ZIPF = 10
"""The offset of ranks in weights 1 / (rank + offset): vocabularies are sorted by frequency or in merge order."""


@dataclass(frozen=True)
class Kernel:
    """A way to find the map from anchors.

    Attributes:
        solve: The method.
        centred: True if anchors are centred on their means, which makes the map affine.
        weighted: True if frequent tokens weigh more.
    """

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
"""The kernels by name; ``pinv`` is that of Dar et al. 2023, §5."""

CONTROLS = {"identity": Kernel("identity"), "random": Kernel("random")}
"""The controls: no map at all (where widths agree), and a random rotation."""


@dataclass(frozen=True, eq=False, repr=False)
class Translation(ShortRepr):
    """A map ``x ↦ x W + b`` from states of one model to states of another.

    Attributes:
        weight: W, (d₁, d₂).
        bias: b, (d₂,).
    """

    weight: Tensor
    bias: Tensor

    def states(self, x: Tensor) -> Tensor:
        """Return states (…, d₁) of the first model as states (…, d₂) of the second."""
        return x @ self.weight + self.bias

    def directions(self, x: Tensor) -> Tensor:
        """Return directions (…, d₁), such as steering vectors or FF values, in the second model; without b."""
        return x @ self.weight

    def readers(self, w: Tensor) -> Tensor:
        """Return reading vectors (…, d₂) of the *second* model as readers (…, d₁) of the first.

        A reader belongs to the dual space and goes the other way: ``w · (x W) = (w Wᵀ) · x``.
        """
        return w @ self.weight.T

    def scaled(self, factor: float) -> "Translation":
        """Return the translation with its output multiplied by a factor."""
        return Translation(self.weight * factor, self.bias * factor)


@dataclass(frozen=True, eq=False)
class _Sums:
    """The sums over weighted anchors X, Y from which kernels are solved: XᵀX, YᵀY, XᵀY, X, Y and weights; float64."""

    xx: Tensor
    yy: Tensor
    xy: Tensor
    x: Tensor
    y: Tensor
    total: float

    @property
    def centred(self) -> "_Sums":
        """The sums around the weighted means."""
        x, y, n = self.x, self.y, self.total
        xx, yy, xy = self.xx - torch.outer(x, x) / n, self.yy - torch.outer(y, y) / n, self.xy - torch.outer(x, y) / n
        return _Sums(xx, yy, xy, torch.zeros_like(x), torch.zeros_like(y), n)


@dataclass(frozen=True, eq=False, repr=False)
class Bridge(ShortRepr):
    """Two models and their shared tokens, from which every translation from the first to the second is made.

    Attributes:
        first: The frames of the model to translate from.
        second: The frames of the model to translate to.
        shared: The shared tokens.
        layers: The layers that states enter, in the first model and in the second, for the frame ``seen``.
    """

    first: Frames
    second: Frames
    shared: Shared
    layers: tuple[int, int] | None = None
    _tables: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    _sums: dict[tuple[str, bool, bool, tuple[int, int] | None], _Sums] = field(default_factory=dict)
    _unshuffled: "Bridge | None" = None

    @property
    def frames(self) -> tuple[str, ...]:
        """The frames of these models: ``seen`` first, if both have a lens for it."""
        return (SEEN, *FRAMES) if all(SEEN in side.lens_frames for side in (self.first, self.second)) else FRAMES

    def at(self, layers: tuple[int, int]) -> "Bridge":
        """Return the bridge for states that enter a layer of either model; it shares what was computed."""
        return replace(self, layers=layers, _unshuffled=self._unshuffled and self._unshuffled.at(layers))

    def translation(self, kernel: str = "orthogonal", frame: str = "token", seed: int = 0) -> Translation:
        """Return the map of a kernel in a frame.

        Args:
            kernel: A name of `KERNELS` or `CONTROLS`.
            frame: A name of `frames`.
            seed: The seed of the control ``random``.

        Returns:
            The translation from the first model to the second.

        Raises:
            BadOption: If a name is not known, if ``identity`` is asked for models of different widths, or if ``seen``
                lacks a lens or layers.
        """
        return self._translation(_kernel(kernel), _frame(frame), seed)

    def fit(self, kernel: str, frame: str) -> float:
        """Return the share of held-out tokens that a map of the others carries nearest to themselves (cosine, centred).

        Args:
            kernel: A name of `KERNELS` or `CONTROLS`.
            frame: A name of `frames`.

        Returns:
            The share, averaged over the tables of the frame. Under the null it is one in the number of tokens tested,
            which is `ASKED` or less.
        """
        translation = self._translation(_kernel(kernel), _frame(frame), held_out=True)
        at = torch.arange(0, len(self.shared), HELD_OUT)
        at = at[torch.linspace(0, len(at) - 1, min(ASKED, len(at))).long()]
        shares = []
        for table in _TABLES[frame]:
            x, y = (rows[ids[at]] for rows, ids in zip(self._rows(table), self.shared.pairs, strict=True))
            x = translation.states(x)
            x, y = (torch.nn.functional.normalize(rows - rows.mean(0), dim=1) for rows in (x, y))
            shares.append(float(((x @ y.T).argmax(1) == torch.arange(len(at), device=x.device)).float().mean()))
        return sum(shares) / len(shares)

    def shuffled(self, seed: int) -> "Bridge":
        """Return the same models with wrong partners for their tokens: the null (`Shared.shuffled`)."""
        shared = self.shared.shuffled(seed)
        return Bridge(self.first, self.second, shared, self.layers, self._tables, _unshuffled=self)

    @property
    def back(self) -> "Bridge":
        """The bridge from the second model to the first."""
        shared = self.shared
        swapped = Shared(shared.second, shared.first, shared.sizes[::-1], shared.identical)
        tables = {(1 - side, table): rows for (side, table), rows in self._tables.items()}
        return Bridge(self.second, self.first, swapped, self.layers and self.layers[::-1], tables)

    def _rows(self, table: str) -> tuple[Tensor, Tensor]:
        """Return the rows of both models in a table; those of layers are not kept."""
        if table == SEEN:
            if self.layers is None:
                raise BadOption(f"The frame {SEEN} is that of states which enter a layer; here no layers are given.")
            return _entering(self.first, self.layers[0]), _entering(self.second, self.layers[1])
        tables = []
        for side, frames in enumerate((self.first, self.second)):
            if (side, table) not in self._tables:
                rows = frames.model.embedding if table == "paper" else frames.carried()
                self._tables[side, table] = rows
            tables.append(self._tables[side, table])
        return tables[0], tables[1]

    def _summed(self, table: str, weighted: bool, held_out: bool) -> _Sums:
        """Return the sums over a table, of all shared tokens or of those not held out; computed once."""
        key = table, weighted, held_out, self.layers if table == SEEN else None
        if key not in self._sums:
            at = torch.arange(len(self.shared))
            at = at[at % HELD_OUT != 0] if held_out else at
            ids = tuple(column[at.to(column.device)] for column in self.shared.pairs)
            if self._unshuffled is not None and not weighted and not held_out:
                # Shuffling changes only XᵀY.
                unshuffled = self._unshuffled._summed(table, weighted, held_out)
                self._sums[key] = replace(unshuffled, xy=_product(*self._rows(table), ids))
            else:
                weights = 1.0 / (at + HEAD_OF_ZIPF) if weighted else None
                self._sums[key] = _sums(*self._rows(table), ids, weights)
        return self._sums[key]

    def _translation(self, kernel: Kernel, frame: str, seed: int = 0, held_out: bool = False) -> Translation:
        widths = self.first.model.dims.d, self.second.model.dims.d
        if kernel.solve == "identity" and widths[0] != widths[1]:
            raise BadOption(f"The kernel identity needs models of one width; these have {widths[0]} and {widths[1]}.")
        sums, lengths = [], (1.0, 1.0)
        for table in _TABLES[frame]:
            of_table = self._summed(table, kernel.weighted, held_out)
            lengths = _length(of_table.xx, of_table), _length(of_table.yy, of_table)
            sums.append(_rescaled(of_table, lengths) if frame == "both" else of_table)
        weight, bias = _solved(_added(sums), kernel, seed)
        if frame == "both":  # states have the length of rows of the last table, that of the stream
            weight, bias = weight * (lengths[1] / lengths[0]), bias * lengths[1]
        return Translation(weight.float(), bias.float())


def bridge(
    first: ModelLike, second: ModelLike, lenses: tuple[LensMaps | None, LensMaps | None] = (None, None)
) -> Bridge:
    """Return the bridge from one model to another, given open or by name.

    Args:
        first: The model to translate from.
        second: The model to translate to.
        lenses: The lens of each, which the frame ``seen`` needs.

    Raises:
        BadOption: If they share too few tokens.

    Example:
        >>> import zeropass as zp
        >>> bridge = zp.bridge("models/first", "models/second")
        >>> round(bridge.fit("orthogonal", "both"), 1)
        0.9
    """
    first, second = open_model(first), open_model(second)
    frames = [Frames(model, lens) for model, lens in zip((first, second), lenses, strict=True)]
    return Bridge(frames[0], frames[1], shared_tokens(first, second))


def translate(
    vectors: Tensor,
    first: ModelLike,
    second: ModelLike,
    side: Side = "write",
    kernel: str = "orthogonal",
    frame: str = "token",
) -> Tensor:
    """Translate vectors of one model's stream to another's. For entire states see `bridge`.

    Args:
        vectors: Vectors of the first model, (n, d₁). Norms are not folded in: give a reader as it meets the stream
            (``γ ⊙ w``).
        first: The model to translate from, or its name.
        second: The model to translate to, or its name.
        side: ``write`` for what is added to the stream (steering vectors, FF values); ``read`` for what is multiplied
            with it (probes, classifier rows, FF keys) and goes through the map from second to first, transposed.
        kernel: A name of `KERNELS` or `CONTROLS`.
        frame: A name of `FRAMES`.

    Returns:
        Vectors of the second model, (n, d₂).

    Raises:
        BadOption: If the width is not the first model's, a name is not known, or too few tokens are shared.

    Example:
        >>> import zeropass as zp
        >>> first, second = zp.open_model("models/first"), zp.open_model("models/second")
        >>> values = zp.load("models/first").vectors(1, "value").vectors[:2]
        >>> zp.translate(values, first, second).shape
        torch.Size([2, 192])
    """
    first, second = open_model(first), open_model(second)
    if vectors.shape[-1] != first.dims.d:
        raise BadOption(f"The vectors have {vectors.shape[-1]} numbers each; {first.name} is {first.dims.d} wide.")
    models = bridge(first, second)
    if side == "read":
        return models.back.translation(kernel, frame).readers(vectors)
    return models.translation(kernel, frame).directions(vectors)


def from_anchors(x: Tensor, y: Tensor, kernel: str) -> Translation:
    """Return the map of a kernel between anchors of any kind.

    Args:
        x: Rows of the first model, (n, d₁).
        y: The row of the second model for each of them, (n, d₂).
        kernel: A name of `KERNELS` or `CONTROLS`.

    Returns:
        The translation from the first model to the second.
    """
    ids = torch.arange(len(x), device=x.device)
    weight, bias = _solved(_sums(x, y, (ids, ids.to(y.device)), None), _kernel(kernel), 0)
    return Translation(weight.float(), bias.float())


def _solved(sums: _Sums, kernel: Kernel, seed: int) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias in float64."""
    weight = _SOLVED[kernel.solve](sums.centred if kernel.centred else sums, seed)
    return weight, (sums.y - sums.x @ weight) / sums.total if kernel.centred else torch.zeros_like(sums.y)


def _kernel(name: str) -> Kernel:
    known = KERNELS | CONTROLS
    if name not in known:
        raise BadOption(f"There is no kernel {name!r}; kernels are {', '.join(known)}.")
    return known[name]


def _frame(name: str) -> str:
    if name not in _TABLES:
        raise BadOption(f"There is no frame {name!r} to translate in; frames are {', '.join(_TABLES)}.")
    return name


def _entering(frames: Frames, layer: int) -> Tensor:
    """Return tokens as they enter a layer, (V, d), each as long as the layer norms it."""
    rows, seen = frames.rows(space_of(SEEN, "read", layer)).matrix, frames.require_lens(SEEN).seen(layer)
    return rows if seen is None else rows @ seen[0] + seen[1]


def _sums(x: Tensor, y: Tensor, ids: tuple[Tensor, ...], weights: Tensor | None) -> _Sums:
    """Sum block by block in float64, so that no copy is as long as the vocabulary."""
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
    """Return XᵀY (d₁, d₂) of the anchors in float64."""
    product = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    for part in blocks(len(ids[0])):
        product += x[ids[0][part]].double().T @ y[ids[1][part]].double().to(x.device)
    return product


def _length(gram: Tensor, sums: _Sums) -> float:
    """Return the root mean square length of the rows of a table."""
    return float((gram.trace() / sums.total).sqrt()) or 1.0


def _rescaled(sums: _Sums, lengths: tuple[float, float]) -> _Sums:
    a, b = lengths
    return _Sums(sums.xx / a**2, sums.yy / b**2, sums.xy / (a * b), sums.x / a, sums.y / b, sums.total)


def _added(sums: list[_Sums]) -> _Sums:
    """Add the sums over the rows of all tables."""
    combined, *others = sums
    for of_table in others:
        combined = _Sums(
            combined.xx + of_table.xx,
            combined.yy + of_table.yy,
            combined.xy + of_table.xy,
            combined.x + of_table.x,
            combined.y + of_table.y,
            combined.total + of_table.total,
        )
    return combined


def _pinv(s: _Sums, _seed: int) -> Tensor:
    """Solve by ``XᵀY (YᵀY)⁻¹``: to scores over the vocabulary, and back by the pseudo-inverse (Dar et al. 2023, §5)."""
    inverse: Tensor = torch.linalg.pinv(s.yy, hermitian=True)
    return s.xy @ inverse


def _ridge(s: _Sums, _seed: int) -> Tensor:
    """Solve by damped least squares from X to Y."""
    damped = s.xx + RIDGE * s.xx.diagonal().mean() * torch.eye(len(s.xx), dtype=s.xx.dtype, device=s.xx.device)
    weight: Tensor = torch.linalg.solve(damped, s.xy)
    return weight


def _orthogonal(s: _Sums, _seed: int) -> Tensor:
    """Solve by the rotation nearest to ``XᵀY`` (Schönemann 1966), scaled to the total length of the rows of Y."""
    left, _, right = torch.linalg.svd(s.xy, full_matrices=False)
    rotation: Tensor = left @ right
    return rotation * (s.yy.trace() / ((rotation.T @ s.xx) * rotation.T).sum()).clamp_min(0).sqrt()


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
