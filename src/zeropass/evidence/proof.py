"""Prove a model's record on its own files: every part of its forward pass against transformers (docs/usage.md).

Each block starts from the states of transformers, so that an error is that of one block, and zeropass has one block in
memory. Then each of its parameters is altered: one whose change is lost in rounding is not proven.
"""

import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date

import torch
from torch import Tensor

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.arch.layout import full_name, names_of, shares_of
from zeropass.checkpoints.kept_proofs import keep_proof
from zeropass.errors import BadOption, CannotRun
from zeropass.evidence.judge import open_judge
from zeropass.evidence.proof_parts import FACTOR, is_alone, parts_of
from zeropass.model.generate import random_tokens
from zeropass.model.loading import transformers
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.positions import longest_text
from zeropass.model.texts import special_tokens, windows
from zeropass.records.proofs import Compared, Proof, Unproven

__all__ = ["prove"]

TOKENS = 128
"""The number of tokens by default."""

_WINDOW = 32
"""The number of tokens of a text."""

_SHORT = 4
"""The same where some blocks are computed for the first token of a text alone, so that there are many."""

BASIS = (
    f"{FACTOR} times the distance of zeropass's own part in float32 from the same in float64, for each token; at least "
    f"that of the median token, and {FACTOR} units of float32"
)

Lacking = dict[tuple[str, str], list[int | None]]
"""Names of parameters with the reason why they are not proven, and the layers for which this holds."""


@torch.no_grad()
@shows_progress
def prove(
    model: ModelLike,
    *,
    tokens: int = TOKENS,
    seed: int = 0,
    device: str | None = None,
    keep: bool = True,
    progress: Progress | bool = True,
) -> Proof:
    """Compare every part of a model's forward pass with that of transformers on the same files.

    Args:
        model: The model, or its name; also with an adapter on it.
        tokens: The number of random tokens that are run, in texts of 32.
        seed: The seed of the tokens.
        device: Where both run; ``cpu`` if not given.
        keep: Whether to keep the outcome, which `info` then states.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The proof, which may have failed: see `Proof.proven`.

    Raises:
        CannotRun: If transformers cannot run the model; gives the reason.

    Example:
        >>> import zeropass as zp
        >>> zp.prove("models/first", tokens=32, keep=False).words[:27]
        'proven against transformers'
    """
    report = callback(progress)
    if tokens < 1:
        raise BadOption(f"tokens is {tokens}; it is at least 1.")
    opened = open_model(model, device=device)
    steps = opened.dims.layers + 3
    report("opening in transformers", 0, steps)
    judge = open_judge(opened)
    ids = _texts(opened, tokens, seed, judge.padding).to(opened.device)
    true = judge.run(ids)
    if not all(bool(states.isfinite().all()) for states in true.states):
        raise CannotRun(f"transformers gives states of {opened.name} that are NaN or infinite.")
    parts: list[Compared] = []
    read: set[tuple[str, int | None]] = set()
    lacking: Lacking = {}
    for number, part in enumerate(parts_of(opened, ids, true)):
        report(f"comparing {part.name}", number + 1, steps)
        compared = part.compared()
        if not compared.agrees and all(other.agrees for other in parts):
            difference = part.first_difference(lambda see: judge.modules_run(ids, see))
            compared = replace(compared, differs=difference)
        parts.append(compared)
        read |= {(name, part.layer) for what, _ in part.model.read for name in shares_of(what)}
        for name, reason in part.unseen():
            lacking.setdefault((name, reason), []).append(part.layer)
        for expert in part.unchosen():
            lacking.setdefault((f"expert {expert}", "no token went through it"), []).append(part.layer)
    for name, layer in _unread(opened, read):
        lacking.setdefault((name, "the pass does not read it"), []).append(layer)
    proof = Proof(
        model=_facts(opened),
        method={
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": date.today().isoformat(),
            "device": opened.device.type,
            "texts": len(ids),
            "tokens": ids.numel(),
            "seed": seed,
            "tolerance": BASIS,
        },
        parts=tuple(parts),
        unproven=tuple(_unproven(lacking)),
        limits=(*_limits(opened, ids, logits=true.logits is not None), *judge.notes),
    )
    if keep:
        with suppress(RuntimeError):  # this user has no home folder
            keep_proof(opened.size, opened.fingerprint, proof.model["record"], proof.to_json())
    return proof


def _texts(model: Model, tokens: int, seed: int, padding: int | None) -> Tensor:
    """Return texts of random tokens, (texts, tokens), between the special tokens that an encoder expects.

    Padding is none of them: transformers gives it no position in some classes, and hides it in others.
    """
    around = special_tokens(model)
    window = _SHORT if any(is_alone(model, layer) for layer in range(model.dims.layers)) else _WINDOW
    size = min(window, longest_text(model) or window, tokens)
    inner = size - sum(map(len, around))
    if inner < 1:
        raise BadOption(f"tokens is {tokens}; a text of {model.name} has at least {size - inner + 1}.")
    among = torch.arange(model.vocab.size) != (-1 if padding is None else padding)
    ids = random_tokens(model, max(tokens // size, 1) * inner, seed, among)
    return torch.stack(list(windows(ids, size, around)))


def _facts(model: Model) -> dict[str, str | int]:
    return {
        "name": model.name,
        "family": model.family.name,
        "bytes": model.size,
        "fingerprint": model.fingerprint,
        "record": model.record_key,
    }


def _unread(model: Model, read: set[tuple[str, int | None]]) -> Iterator[tuple[str, int | None]]:
    """Yield the tensors that the record names and the pass did not read, with their layers; None for shared ones."""
    anywhere, present = {name for name, _ in read}, frozenset(model.source.names())
    stored = {**model.layout.tensors, **{name: entry for name, (entry, _) in model.layout.extra.items()}}
    for name, entry in stored.items():
        inside = "{layer}" in entry.name
        for layer in range(model.dims.layers) if inside else (0,):
            places = names_of(entry, layer, model.dims)
            was_read = (name, layer) in read if inside else name in anywhere
            if places and full_name(places[0], model.prefix) in present and not was_read:
                yield name, layer if inside else None


def _unproven(lacking: Lacking) -> Iterator[Unproven]:
    for (name, reason), layers in lacking.items():
        yield Unproven(parameter=name, layers=tuple(n for n in layers if n is not None), reason=reason)


def _limits(model: Model, ids: Tensor, logits: bool) -> Iterator[str]:
    """Yield sentences on what the pass does not show."""
    count, length = ids.shape
    yield (
        f"{count} texts of {length} random tokens were run: the rows of other tokens, and what depends on positions or "
        f"distances beyond {length - 1}, are not shown"
    )
    if alone := [layer for layer in range(model.dims.layers) if is_alone(model, layer)]:
        yield (
            f"{len(alone)} of {model.dims.layers} blocks are compared at the first token of each text alone: what "
            "their positions make of further tokens is not modelled"
        )
    if not model.family.causal:
        yield "the head of an encoder, which predicts hidden tokens, is not run"
    elif not logits:
        yield "transformers' class of this model predicts no token: logits are not compared"
    if unread := model.unread():
        yield f"{len(unread)} tensors hold no parameter of the stream and are not read (zeropass info names them)"
