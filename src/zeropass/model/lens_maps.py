"""The maps of a lens: what carries a parameter's vector from its layer to where tokens have rows.

A vector that a block writes is multiplied by the mean Jacobian of the blocks behind it, and meets the rows of the
``output`` frame: frame ``effect``. A vector that reads layer l is multiplied by the fitted map from token rows to the
states that enter layer l, and meets the rows of the ``token`` frame: frame ``seen``. Both are one product with a d x d
matrix; everything behind it is as without a lens (docs/theory.md §9).

A lens is a folder with ``lens.json`` and ``lens.safetensors``.
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
from zeropass._io.typed_json import from_json
from zeropass.arch.spec import Site, lens_map
from zeropass.checkpoints.base import TensorSource
from zeropass.checkpoints.demo import cache_folder
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadLens, ZeropassError
from zeropass.model.model import Model
from zeropass.tokens.vocabulary import shown_text

__all__ = ["MAPS", "LensFacts", "LensMaps", "chosen_lens", "copy_lens", "kept_lens", "kept_place", "read_lens"]
__all__ += ["save_tensors", "write_lens"]

SCHEMA = 1
FACTS, MAPS = "lens.json", "lens.safetensors"


@dataclass(frozen=True)
class LensFacts:
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


@dataclass(frozen=True, eq=False)
class LensMaps:
    """A lens of one model; its maps are read when they are needed.

    Attributes:
        facts: What it is.
        tensors: Its maps: ``seen.L`` (d, d) and ``seen.L.shift`` (d,) for the states that enter layer L > 0;
            ``effect.L.attn`` and ``effect.L.ff`` (d, d) for what the halves of layer L write; ``effect.start`` for what
            is added before layer 0.
        device: The device of what is returned.

    Example:
        >>> import zeropass as zp
        >>> lens = zp.calibrate(zp.open_model("models/first"), source="random", tokens=512)
        >>> lens.effect(1, "ff").shape
        torch.Size([192, 192])
    """

    facts: LensFacts
    tensors: TensorSource | Mapping[str, Tensor]
    device: torch.device

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


def write_lens(facts: LensFacts, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a lens, its maps before its facts: an unfinished one has no ``lens.json``."""
    save_tensors(tensors, folder / MAPS)
    write_json(folder / FACTS, asdict(facts), BadLens)


def copy_lens(lens: LensMaps, folder: Path) -> None:
    """Write a lens into another folder, unless it is there."""
    if (folder / FACTS).exists():
        return
    if isinstance(lens.tensors, Mapping):
        write_lens(lens.facts, lens.tensors, folder)
        return
    make_folder(folder, BadLens)
    with atomic_write(folder / MAPS, BadLens) as temporary:
        shutil.copyfile(lens.tensors.path, temporary)
    write_json(folder / FACTS, asdict(lens.facts), BadLens)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors completely or not at all, in a folder that is made if it is missing."""
    make_folder(path.parent, BadLens)
    with atomic_write(path, BadLens) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def read_lens(folder: str | Path, model: Model) -> LensMaps:
    """Read the lens of a model from a folder; its maps stay in the file until they are needed.

    Args:
        folder: The folder.
        model: The model that it must belong to.

    Returns:
        The lens.

    Raises:
        BadLens: If the folder holds no lens, a damaged one, or that of another model.

    Example:
        >>> import tempfile, zeropass as zp
        >>> model = zp.open_model("models/first")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = zp.calibrate(model, folder, source="random", tokens=256)
        ...     zp.read_lens(folder, model).facts.words
        'mean-field lens from 256 random tokens'
    """
    folder = Path(folder)
    path = folder / FACTS
    if not path.is_file():
        raise BadLens(f"{folder} holds no lens: there is no lens.json. `zeropass calibrate` makes one.")
    try:
        facts = from_json(LensFacts, load_json(path), "lens")
    except (OSError, ValueError) as error:
        raise BadLens(f"{path} cannot be read: {error}.") from error
    if facts.schema != SCHEMA:
        raise BadLens(f"{path} has schema {facts.schema}; this version reads {SCHEMA}. Calibrate again.")
    if facts.fingerprint != model.fingerprint:
        raise BadLens(f"{folder} is a lens of {facts.model}, whose weights are not those of {model.name}.")
    try:
        source = SafetensorsSource([folder / MAPS])
        shapes = {name: tuple(source.shape(name)) for name in source.names()}
    except ZeropassError as error:
        raise BadLens(str(error)) from error
    if (expected := map_shapes(model.dims.layers, model.dims.d)) != shapes:
        names = sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name))
        raise BadLens(f"{folder / MAPS} is damaged: {names[0]!r} is missing, unknown or of another size.")
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
        lens: A lens, the folder of one, ``auto`` for the one that is kept in the cache if there is one, or None or
            ``none`` for the weights alone.

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
    if lens.facts.fingerprint != model.fingerprint:
        raise BadLens(f"The lens is one of {lens.facts.model}, whose weights are not those of {model.name}.")
    return lens
