"""Several streams side by side: alternating updates (AltUp; Baykal et al. 2023, arXiv:2301.13310), as in Gemma 3n.

A state is all streams of a token in a row, (…, streams d), the active one first. A layer mixes them by weights of the
token, reads the mixture of the active one alone, and corrects all by how far its own result is from that.
"""

import torch
from torch import Tensor

from zeropass.model.model import Model
from zeropass.numerics.projection import normed

__all__ = ["active", "apart", "corrected", "joined", "predicted", "spread", "token_weights"]

_LEAST = 1e-5
"""The smallest mean square by which a state is divided."""


def apart(states: Tensor, d: int) -> Tensor:
    """Return the streams of states (…, streams d) as rows, (…, streams, d)."""
    return states.reshape(*states.shape[:-1], -1, d)


def active(states: Tensor, d: int) -> Tensor:
    """Return the active stream of states (…, streams d), (…, d)."""
    return states[..., :d]


def spread(model: Model, x: Tensor) -> Tensor:
    """Return the streams (…, streams d) of embedded tokens (…, d): themselves, and projections of the same length."""
    others = (x @ model.matrix(f"stream_in_{n}").T for n in range(1, model.dims.streams))
    return torch.cat([x, *(_as_long(other, x) for other in others)], -1)


def joined(model: Model, states: Tensor) -> Tensor:
    """Return the mean (…, d) of the streams behind the last layer, (…, streams d).

    All but the active one are projected first, and made as long as it.
    """
    first, *others = apart(states, model.dims.d).unbind(-2)
    projected = (other @ model.matrix(f"stream_out_{n}").T for n, other in enumerate(others, 1))
    return torch.stack([first, *(_as_long(other, first) for other in projected)]).mean(0)


def token_weights(x: Tensor, gain: Tensor | None, router: Tensor, eps: float) -> Tensor:
    """Return the weights (…, streams) by which a state (…, d) mixes streams; ``router`` is (streams, d)."""
    y = normed(x, "rms", eps)
    y = y if gain is None else y * gain
    return (y @ router.T / x.shape[-1]).tanh()


def predicted(streams: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    """Return streams (…, streams, d) with what each takes from all, by a matrix (streams², streams) of the weights."""
    shares = weights @ matrix.T
    return streams + shares.reshape(*weights.shape, -1) @ streams


def corrected(streams: Tensor, y: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    """Return predicted streams (…, streams, d), each moved by the step from the active one to y (…, d).

    How far each is moved is one more than what a matrix (streams, streams) makes of the weights.
    """
    rates = weights @ matrix.T + 1
    return streams + rates[..., None] * (y - streams[..., 0, :])[..., None, :]


def _as_long(x: Tensor, as_this: Tensor) -> Tensor:
    """Return states scaled to the root mean square of others."""
    length, own = (states.square().mean(-1, keepdim=True) for states in (as_this, x))
    return x * length.sqrt() / own.clamp_min(_LEAST).sqrt()
