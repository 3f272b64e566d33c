"""The maps of a lens: what carries a parameter's vector from its layer to where tokens have rows.

A vector that a block writes is multiplied by the mean Jacobian of the blocks behind it, and meets the rows of the
``output`` frame: frame ``effect``. A vector that reads layer l is multiplied by the fitted map from token rows to the
states that enter layer l, and meets the rows of the ``token`` frame: frame ``seen``. Both are one product with a d x d
matrix; everything behind it is as without a lens (docs/theory.md §9).

A calibrated lens is a folder with ``lens.json`` and ``lens.safetensors``; a published one has no map of what is read.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from zeropass._io.atomic import atomic_write, make_folder, write_json
from zeropass._io.parse import load_json
from zeropass._io.short_repr import ShortRepr
from zeropass._io.typed_json import from_json
from zeropass.arch.frame_names import LENS_FACTS, LENS_FRAMES, LENS_MAPS, RELATIVE, lens_map
from zeropass.arch.roles import Site
from zeropass.checkpoints.base import TensorSource
from zeropass.checkpoints.demo import cache_folder
from zeropass.checkpoints.hub import fetch_lens, is_lens_id
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadLens, BadModel
from zeropass.model.model import Model
from zeropass.model.published_lenses import PublishedFacts, read_jacobian, read_tuned
from zeropass.tokens.shown import shown_text

__all__ = ["LensFacts", "LensMaps", "chosen_lens", "copy_lens", "kept_lens", "kept_place", "read_lens"]
__all__ += ["save_tensors", "write_lens"]

SCHEMA = 1


@dataclass(frozen=True, repr=False)
class LensFacts(ShortRepr):
    """The facts about a lens: what it is, of which model, and what it was made from.

    Attributes:
        schema: The version of the format.
        kind: The kind of the lens.
        model: The name of the model.
        fingerprint: The `Model.fingerprint` of its weights.
        layers: The layers of the model.
        d: The width of the residual stream.
        source: The tokens that it was calibrated on, in words: ``random tokens``.
        tokens: The number of these tokens.
        window: Tokens that the model saw at a time.
        seed: The seed of what was drawn.
        text_sha256: The hash of the text, if one was given.
        date: The day it was made.
        seconds: The time that it took.
    """

    schema: int
    kind: Literal["mean-field"]
    model: str
    fingerprint: str
    layers: int
    d: int
    source: str
    tokens: int
    window: int
    seed: int
    text_sha256: str
    date: str
    seconds: int

    @property
    def identity(self) -> dict[str, object]:
        """The facts that the maps depend on: all but the model's name, the day and the time."""
        return {name: value for name, value in asdict(self).items() if name not in ("model", "date", "seconds")}

    @property
    def words(self) -> str:
        """The lens in words, for a line under a list."""
        return shown_text(f"{self.kind} lens from {self.tokens:,} {self.source}", limit=200)

    @property
    def note(self) -> str:
        """The sentence under lists that were read through the lens."""
        return f"Read through a {self.words}."

    def require(self, model: Model, place: str = "The lens") -> None:
        """Raise BadLens, which names the place of the lens, for a model with other weights."""
        if self.fingerprint != model.fingerprint:
            owner = shown_text(self.model, limit=200)
            raise BadLens(f"{place} is a lens of {owner}, whose weights are not those of {model.name}.")


@dataclass(frozen=True, eq=False, repr=False)
class LensMaps(ShortRepr):
    """A lens of one model; its maps are read when they are needed.

    Attributes:
        facts: What it is.
        tensors: Its maps. ``seen.L`` (d, d) and ``seen.L.shift`` (d,) are for the states that enter layer L > 0, which
            a published lens lacks; ``effect.L.attn`` and ``effect.L.ff`` (d, d) for what the halves of layer L write;
            ``effect.start`` for what is added before layer 0. ``jacobian.L.attn`` and ``jacobian.L.ff`` (d, d) are the
            mean Jacobians of the halves, of which the effects are products (`mean_field.BlockJacobians`); published
            lenses, those made before these were kept, and those of models that norm the stream itself lack them.
        device: The device of what is returned.

    Example:
        >>> import zeropass as zp
        >>> lens = zp.calibrate(zp.open_model("models/first"), source="random", tokens=512)
        >>> lens.effect(1, "ff").shape
        torch.Size([192, 192])
    """

    facts: LensFacts | PublishedFacts
    tensors: TensorSource | Mapping[str, Tensor]
    device: torch.device

    def _repr_words(self) -> str:
        return f"{self.facts.words}, {self.facts.layers} layers of {self.facts.d}"

    @property
    def frames(self) -> tuple[str, ...]:
        """The frames that the lens has maps for."""
        names = self.tensors if isinstance(self.tensors, Mapping) else self.tensors.names()
        held = {name.partition(".")[0] for name in names}
        return tuple(frame for frame in LENS_FRAMES if RELATIVE.get(frame, frame) in held)

    def effect(self, layer: int, site: Site) -> Tensor:
        """Return what a row vector that a half of a layer writes has become before the final norm, (d, d).

        Args:
            layer: The layer; below zero for what is added to the stream before layer 0.
            site: The half of the block.
        """
        return self.map(lens_map("write", site, layer, self.facts.layers))

    def seen(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the map from token rows to the states that enter a layer, (d, d), and its shift, (d,).

        A state is ``row @ map + shift``. Layer 0 needs none, and gets None: there the row is the state. The number of
        layers stands for the states behind the last.
        """
        return None if layer <= 0 else (self.map(f"seen.{layer}"), self.map(f"seen.{layer}.shift"))

    @property
    def keeps_jacobians(self) -> bool:
        """True if the lens holds the Jacobian of each half of a layer, and not their products alone."""
        return "jacobian.0.ff" in (self.tensors if isinstance(self.tensors, Mapping) else self.tensors.names())

    def map(self, name: str) -> Tensor:
        """Return a map by its name (`lens_map`), or a shift, in full precision."""
        if isinstance(self.tensors, Mapping):
            return self.tensors[name].to(self.device, torch.float32)
        return torch.from_numpy(self.tensors.rows(name)).to(self.device)


def map_shapes(layers: int, d: int) -> dict[str, tuple[int, ...]]:
    """Return the names of the maps of a lens, with their shapes."""
    shapes: dict[str, tuple[int, ...]] = {"effect.start": (d, d)}
    for layer in range(layers):
        shapes |= {f"effect.{layer}.attn": (d, d), f"effect.{layer}.ff": (d, d)}
        shapes |= {f"seen.{layer + 1}": (d, d), f"seen.{layer + 1}.shift": (d,)}
    return shapes


def jacobian_shapes(layers: int, d: int) -> dict[str, tuple[int, ...]]:
    """Return the names of the Jacobians that a lens may hold beside its maps, with their shapes."""
    return {f"jacobian.{layer}.{site}": (d, d) for layer in range(layers) for site in ("attn", "ff")}


def write_lens(facts: LensFacts, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a lens, its maps before its facts: an unfinished one has no ``lens.json``."""
    save_tensors(tensors, folder / LENS_MAPS)
    write_json(folder / LENS_FACTS, asdict(facts), BadLens)


def copy_lens(lens: LensMaps, folder: Path) -> None:
    """Write a calibrated lens into another folder, unless it is there."""
    if (folder / LENS_FACTS).exists():
        return
    if isinstance(lens.tensors, Mapping):
        save_tensors(lens.tensors, folder / LENS_MAPS)
    else:
        make_folder(folder, BadLens)
        with atomic_write(folder / LENS_MAPS, BadLens) as temporary:
            shutil.copyfile(lens.tensors.path, temporary)
    write_json(folder / LENS_FACTS, asdict(lens.facts), BadLens)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors completely or not at all, in a folder that is made if it is missing."""
    make_folder(path.parent, BadLens)
    with atomic_write(path, BadLens) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def read_lens(lens: str | Path, model: Model) -> LensMaps:
    """Read a lens of a model; its maps stay in the file until they are needed.

    Args:
        lens: The folder of a lens from `calibrate` or of a tuned lens, the file of a Jacobian lens (or a folder in
            which it is called ``lens.pt``), or the hub id of any (``owner/name/path@revision``; ``spaces/owner/…``).
        model: The model that it must belong to. A published lens does not say which weights it belongs to; the number
            of layers and their width must be those of the model.

    Returns:
        The lens.

    Raises:
        BadLens: If there is no lens, or a damaged one, or that of another model.
        NotFetched: If a lens of the hub cannot be downloaded.

    Example:
        >>> import tempfile, zeropass as zp
        >>> model = zp.open_model("models/first")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = zp.calibrate(model, folder, source="random", tokens=256)
        ...     zp.read_lens(folder, model).facts.words
        'mean-field lens from 256 random tokens'
    """
    path = _located(lens)
    try:
        if path.is_file():
            return LensMaps(*read_jacobian(path, model), model.device)
        if (path / LENS_FACTS).is_file():
            return _read_calibrated(path, model)
        if (path / "params.pt").is_file():
            return LensMaps(*read_tuned(path, model), model.device)
        if (path / "lens.pt").is_file():
            return LensMaps(*read_jacobian(path / "lens.pt", model), model.device)
    except BadModel as error:
        raise BadLens(str(error)) from error
    raise BadLens(
        f"{path} holds no lens: there is no lens.json (which `zeropass calibrate` makes), no params.pt (of a tuned "
        "lens) and no lens.pt (a Jacobian lens)."
    )


def _located(lens: str | Path) -> Path:
    """Return the local path of a lens; a name that is no path may be a hub id."""
    try:
        path = Path(lens).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # a name too long, a folder without permission, an unknown ~user
        raise BadLens(f"{str(lens)!r} cannot be looked up: {error}.") from error
    if isinstance(lens, str) and is_lens_id(lens):
        return fetch_lens(lens)
    raise BadLens(f"There is no lens {str(lens)!r}: it may be a folder, a file, or a hub id (owner/name/path).")


def _read_calibrated(folder: Path, model: Model) -> LensMaps:
    """Read what `write_lens` wrote."""
    path = folder / LENS_FACTS
    try:
        facts = from_json(LensFacts, load_json(path), "lens")
    except (OSError, ValueError) as error:
        raise BadLens(f"{path} cannot be read: {error}.") from error
    if facts.schema != SCHEMA:
        raise BadLens(f"{path} has schema {facts.schema}; this version reads {SCHEMA}. Calibrate again.")
    facts.require(model, str(folder))
    source = SafetensorsSource([folder / LENS_MAPS])
    shapes = {name: tuple(source.shape(name)) for name in source.names()}
    expected = map_shapes(model.dims.layers, model.dims.d)
    if "jacobian.0.ff" in shapes:
        expected |= jacobian_shapes(model.dims.layers, model.dims.d)
    if expected != shapes:
        names = sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name))
        raise BadLens(f"{folder / LENS_MAPS} is damaged: {names[0]!r} is missing, unknown or of another size.")
    return LensMaps(facts, source, model.device)


def kept_place(model: Model) -> Path:
    """Return the folder in the cache where the lens of a model is kept, by size and hash of its weights."""
    return cache_folder() / "lenses" / f"{model.size}-{model.fingerprint}"


def kept_lens(model: Model) -> LensMaps | None:
    """Return the lens of a model that is kept in the cache; None if there is none, or one that cannot be read."""
    try:
        of_size = any((cache_folder() / "lenses").glob(f"{model.size}-*/lens.json"))
    except RuntimeError:  # this user has no home folder
        return None
    try:  # weights are hashed only if there is a lens for a file of their size
        return read_lens(kept_place(model), model) if of_size else None
    except BadLens:  # made for another file of this size, by another version, or damaged
        return None


def chosen_lens(model: Model, lens: str | Path | LensMaps | None) -> LensMaps | None:
    """Return the lens that a user asks for.

    Args:
        model: The model that is read.
        lens: A lens, what `read_lens` takes, ``auto`` for the one that is kept in the cache if there is one, or None
            or ``none`` for the weights alone.

    Returns:
        The lens; None to read without one.

    Raises:
        BadLens: If the lens belongs to another model, or cannot be read.
    """
    if lens is None or lens == "none":
        return None
    if lens == "auto":
        return kept_lens(model)
    if not isinstance(lens, LensMaps):
        return read_lens(lens, model)
    lens.facts.require(model)
    return lens
