"""Calibrate a lens: one pass over a few thousand tokens, a layer at a time, gives its maps (docs/theory.md §9).

The tokens of all windows go through layer l before any goes through layer l + 1, so only one layer is in memory. What a
layer gave is saved before the next one begins, and a stopped calibration continues there.
"""

import hashlib
import shutil
import time
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zeropass._io.atomic import claim_folder, key_of
from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.arch.layout import INNER_NORMS
from zeropass.errors import BadLens, BadOption, CannotRun
from zeropass.model.blocks import Block, embedded, require_forward
from zeropass.model.frames import Frames
from zeropass.model.generate import own_text, random_tokens
from zeropass.model.lens_maps import SCHEMA, LensFacts, LensMaps, kept_place, read_lens, save_tensors, write_lens
from zeropass.model.mean_field import BlockJacobians, BlockMeans, final_slope
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.positions import longest_text
from zeropass.model.texts import special_tokens, windows

__all__ = ["SOURCES", "TOKENS", "calibrate", "fitted_map"]

SOURCES = ("own", "random")
"""The origins of tokens that are nobody's text: written by the model, or drawn by Zipf's law."""

TOKENS = 6144
"""The number of tokens by default."""

_WINDOW = 128
_BATCH = 1024
"""The number of tokens that pass a layer at once."""

_RIDGE = 0.3
"""The penalty of the fit, in units of the mean variance of a coordinate of the rows."""

_SHRINK = 0.5
"""The share of the best multiple of the identity towards which the fit is shrunk."""

_SATURATION = 4
"""The count at which a token's mean state is known about as well as it will be; more occurrences add little weight."""


@dataclass(frozen=True)
class _Plan:
    """The settings of a calibration.

    Attributes:
        model: The model.
        source: ``own``, ``random`` or the name of a text.
        text: The text, if the source is one.
        tokens: The number of tokens.
        seed: The seed of what is drawn.
    """

    model: Model
    source: str
    text: str | None
    tokens: int
    seed: int

    @cached_property
    def key(self) -> str:
        """The key of everything that the maps depend on."""
        return key_of(self.facts(0).identity, torch.__version__)

    def facts(self, seconds: int) -> LensFacts:
        """Return the facts about the lens that this makes, after so many seconds."""
        model = self.model
        return LensFacts(
            schema=SCHEMA,
            kind="mean-field",
            model=model.name,
            fingerprint=model.fingerprint,
            layers=model.dims.layers,
            d=model.dims.d,
            source=self.words,
            tokens=self.pieces * self.window,
            window=self.window,
            seed=self.seed,
            text_sha256="" if self.text is None else hashlib.sha256(self.text.encode()).hexdigest(),
            date=date.today().isoformat(),
            seconds=seconds,
        )

    @cached_property
    def window(self) -> int:
        """The number of tokens that the model sees at once."""
        return min(_WINDOW, longest_text(self.model) or _WINDOW)

    @property
    def pieces(self) -> int:
        """The number of windows."""
        return self.tokens // self.window

    @property
    def words(self) -> str:
        """The tokens in words."""
        if self.text is not None:
            words = f"tokens of {self.source}"
        else:
            words = "random tokens" if self.source == "random" else "tokens that the model wrote after random words"
        before, after = (" ".join(self.model.vocab.pieces[i] for i in part) for part in special_tokens(self.model))
        return f"{words} in {before}…{after}" if before or after else words

    def ids(self, progress: Progress) -> Tensor:
        """Return the token ids, (windows, tokens in each), between the special tokens that an encoder expects."""
        around = special_tokens(self.model)
        needed = self.pieces * (self.window - sum(map(len, around)))
        if self.text is not None:
            ids = torch.tensor(self.model.vocab.encode(self.text)[:needed], dtype=torch.long)
            if len(ids) < needed:
                raise BadOption(f"The text has {len(ids):,} tokens of {self.model.name}; {needed:,} are needed.")
        elif self.source == "random":
            ids = random_tokens(self.model, needed, self.seed)
        else:
            return own_text(self.model, self.pieces, self.window, self.seed, progress)
        return torch.stack(list(windows(ids, self.window, around)))


@torch.no_grad()
@shows_progress
def calibrate(
    model: ModelLike,
    out: str | Path | None = None,
    *,
    keep: bool = False,
    source: str = "",
    text: str | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    progress: Progress | bool = True,
) -> LensMaps:
    """Calibrate the mean-field lens of a model.

    Args:
        model: The model, or its name. It runs on its device, from its parameters; transformers is not needed.
        out: The folder to write the lens into; a stopped calibration continues there, and a finished one is read.
            None leaves it in memory.
        keep: Write it into the cache instead, where `load` and ``zeropass show`` find it by the hash of the weights.
        source: ``own`` for text that the model writes, ``random`` for tokens drawn at random, or a name for the text
            that is given. By default ``own`` where the model predicts the next token, else ``random``.
        text: A text to calibrate on.
        tokens: The number of tokens, in windows of 128 or as many as the model has positions for.
        seed: The seed of what is drawn.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The lens.

    Raises:
        BadLens: If the folder holds something else.
        BadOption: If there are too few tokens, or if there is no such source.
        CannotRun: If the model reads the text of an encoder, has norms inside attention and MLP, or has layers that
            differ in ways that the lens does not know.

    Example:
        >>> import zeropass as zp
        >>> lens = zp.calibrate(zp.open_model("models/first"), source="random", tokens=512)
        >>> lens.facts.words
        'mean-field lens from 512 random tokens'
    """
    report = callback(progress)
    model = open_model(model)
    require_forward(model)
    model.require_alike_layers("the mean-field lens")
    if any(map(model.layout.inner_norm, INNER_NORMS)):
        raise CannotRun(f"{model.name}: the mean-field lens does not know norms inside attention and MLP.")
    source = source or ("own" if model.family.causal else "random")
    if text is None and source not in SOURCES:
        raise BadOption(f"There is no source {source!r}; sources are {', '.join(SOURCES)}, or a text.")
    if tokens < 2 * _WINDOW:
        raise BadOption(f"{tokens} tokens are too few; at least {2 * _WINDOW} are needed.")
    plan = _Plan(model, source, text, tokens, seed)
    if keep:
        out = kept_place(model)
    if out is None:
        with TemporaryDirectory(prefix="zeropass-lens-") as folder:
            return _calibrated(plan, Path(folder), report)
    if (finished := _finished(plan, Path(out))) is not None:
        return finished
    claim_folder(Path(out), "a lens", ("lens.json", "lens.safetensors", "parts"), BadLens)
    _calibrated(plan, Path(out), report)
    return read_lens(out, model)


def _finished(plan: _Plan, folder: Path) -> LensMaps | None:
    """Return the lens that a folder holds if it is the one that is asked for."""
    try:
        lens = read_lens(folder, plan.model)
    except BadLens:
        return None
    complete = lens.keeps_jacobians or plan.model.family.stream_normed
    return lens if complete and lens.facts.identity == plan.facts(0).identity else None


def _calibrated(plan: _Plan, folder: Path, progress: Progress) -> LensMaps:
    started, model = time.monotonic(), plan.model
    work = _Work(plan, folder / "parts", progress)
    tensors: dict[str, Tensor] = {}
    for layer in range(model.dims.layers):
        tensors |= work.seen(layer)
    tensors |= work.effects() | work.jacobians()
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise BadLens(f"{model.name}: the Jacobians of its blocks multiply to numbers beyond half precision.")
    facts = plan.facts(round(time.monotonic() - started))
    write_lens(facts, tensors, folder)
    shutil.rmtree(work.folder)
    return LensMaps(facts, tensors, model.device)


@dataclass(frozen=True, eq=False)
class _Work:
    """A calibration in progress: each layer's Jacobians, read map and outgoing states are a file in a folder."""

    plan: _Plan
    folder: Path
    progress: Progress

    @cached_property
    def ids(self) -> Tensor:
        """The token ids, (windows, tokens in each)."""
        saved = self._load("ids")
        if saved is None:
            saved = {"ids": self.plan.ids(self.progress)}
            self._save("ids", saved)
        return saved["ids"]

    def seen(self, layer: int) -> dict[str, Tensor]:
        """Pass all windows through a layer, unless that was done, and return its read map."""
        part = self.layer(layer)
        self.progress("calibrating", layer + 1, self.plan.model.dims.layers)
        return {name: tensor.half() for name, tensor in part.items() if name.startswith("seen")}

    def layer(self, layer: int) -> dict[str, Tensor]:
        """Return what was saved of a layer, after passing the windows through it if it was not yet."""
        saved = self._load(f"layer-{layer}")
        if saved is not None:
            return saved
        model = self.plan.model
        states = embedded(model, self.ids) if layer == 0 else self._entering(layer)
        block = Block(model, layer)
        means = BlockMeans(block)
        windows = max(_BATCH // states.shape[1], 1)
        batches = torch.split(states, windows)
        left = torch.cat([block(batch.to(model.device), record=means.record).cpu() for batch in batches])
        jacobians = means.jacobians()
        part = {"jacobian.attn": jacobians.attn, "jacobian.ff": jacobians.ff}
        part |= {f"behind.{site}": slope for site, slope in jacobians.behind.items()}
        linear, shift = fitted_map(self._rows, self.ids[:, 1:], self._frames.as_read(left[:, 1:]))
        part |= {f"seen.{layer + 1}": linear, f"seen.{layer + 1}.shift": shift}
        self._save(f"states-{layer + 1}", {"states": left})
        self._save(f"layer-{layer}", part)
        self._path(f"states-{layer}").unlink(missing_ok=True)
        return part

    def effects(self) -> dict[str, Tensor]:
        """Return the maps of what is written, from the last layer to the first."""
        model = self.plan.model
        after = final_slope(model, self._entering(model.dims.layers)[:, 1:])
        tensors: dict[str, Tensor] = {}
        for layer in reversed(range(model.dims.layers)):
            part = self.layer(layer)
            behind = {site: part[f"behind.{site}"] for site in ("attn", "ff") if f"behind.{site}" in part}
            block = BlockJacobians(part["jacobian.attn"], part["jacobian.ff"], behind, model.family.parallel)
            tensors |= {f"effect.{layer}.{site}": block.through(site, after).half() for site in ("attn", "ff")}
            after = block.whole(after)
        return tensors | {"effect.start": after.half()}

    def jacobians(self) -> dict[str, Tensor]:
        """Return the Jacobians of both halves of every layer; none where the stream itself is normed behind them."""
        model = self.plan.model
        if model.family.stream_normed:
            return {}
        halves = ((layer, site) for layer in range(model.dims.layers) for site in ("attn", "ff"))
        return {f"jacobian.{layer}.{site}": self.layer(layer)[f"jacobian.{site}"].half() for layer, site in halves}

    @cached_property
    def _frames(self) -> Frames:
        return Frames(self.plan.model)

    @cached_property
    def _rows(self) -> Tensor:
        """The rows of the ``token`` frame, (V, d)."""
        return self._frames.matrix("token")

    def _entering(self, layer: int) -> Tensor:
        """Return the states that enter a layer; they are kept until the layer is done."""
        saved = self._load(f"states-{layer}")
        if saved is None:
            raise BadLens(f"{self.folder} lacks the states of layer {layer}; remove it and calibrate again.")
        return saved["states"]

    def _load(self, name: str) -> dict[str, Tensor] | None:
        try:
            return load_file(self._path(name)) if self._path(name).is_file() else None
        except (SafetensorError, OSError):
            return None

    def _save(self, name: str, tensors: dict[str, Tensor]) -> None:
        save_tensors(tensors, self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.{self.plan.key[:16]}.safetensors"


def fitted_map(rows: Tensor, ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the map from token rows to states: a ridge, shrunk towards a multiple of the identity.

    Each token type counts with its mean state, and with a weight that stops growing after a few occurrences, so that
    the map is one of types, not of the most frequent ones.

    Args:
        rows: The rows that stand for tokens, (V, d).
        ids: The token of each state, of any shape.
        states: The states, (…, d).

    Returns:
        The map (d, d) and the shift (d,): a state is about ``row @ map + shift``.
    """
    d = rows.shape[1]
    types, at, counts = torch.unique(ids.flatten(), return_inverse=True, return_counts=True)
    means = torch.zeros(len(types), d).index_add_(0, at, states.reshape(-1, d)) / counts[:, None]
    x, weights = rows[types.to(rows.device)].cpu(), (counts / (1 + counts / _SATURATION))[:, None]
    weights = weights / weights.sum()
    x_mean, y_mean = (weights * x).sum(0), (weights * means).sum(0)
    x, y = x - x_mean, means - y_mean
    gram, cross = (weights * x).T @ x, (weights * x).T @ y
    scale = _SHRINK * cross.trace() / gram.trace().clamp_min(torch.finfo(gram.dtype).tiny)
    identity = torch.eye(d)
    penalty = _RIDGE * gram.diagonal().mean() * identity
    linear = torch.linalg.solve(gram + penalty, cross - scale * gram) + scale * identity
    return linear, y_mean - x_mean @ linear
