"""Lenses that others publish: a Jacobian lens and a tuned lens, as the maps of what is written.

Both give a matrix for the state between two layers, which carries it to the state before the final norm; of a written
vector only the linear part counts. A vector takes the matrix of the first such state behind it: what lies between the
two, the MLP of its block for what attention writes, is left out (docs/theory.md §9). Behind the last layer nothing is
left to pass. Neither lens has maps of what is read, or says which weights it belongs to.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from zeropass._io.typed_json import from_json
from zeropass._io.untrusted import read_json
from zeropass.checkpoints.base import TensorSource
from zeropass.checkpoints.model_files import hashes
from zeropass.checkpoints.torchbin import TorchBinSource, TorchTensors, read_torch
from zeropass.errors import BadLens
from zeropass.model.model import Model
from zeropass.tokens.shown import shown_text

__all__ = ["PublishedFacts", "PublishedMaps", "read_jacobian", "read_tuned"]


@dataclass(frozen=True)
class PublishedFacts:
    """The facts about a published lens.

    Attributes:
        kind: The kind of the lens.
        model: The name that it gives to its model; empty if it gives none.
        layers: The layers of the model.
        d: The width of the residual stream.
        prompts: The number of texts that it was averaged over, if it says so.
        sha256: The hash of the file of its matrices.
    """

    kind: Literal["Jacobian", "tuned"]
    model: str
    layers: int
    d: int
    prompts: int | None
    sha256: str

    @property
    def identity(self) -> dict[str, object]:
        """The facts that the maps depend on."""
        return {"kind": self.kind, "sha256": self.sha256}

    @property
    def words(self) -> str:
        """The lens in words, for a line under a list."""
        of = f" of {self.model}" if self.model else ""
        prompts = "" if self.prompts is None else f" from {self.prompts:,} prompts"
        return shown_text(f"{self.kind} lens{of}{prompts} (sha256 {self.sha256[:8]})", limit=200)

    @property
    def note(self) -> str:
        """The sentence under lists that were read through the lens."""
        return f"Read through a {self.words}, which does not say which weights it belongs to."

    def require(self, model: Model, place: str = "The lens") -> None:
        """Raise BadLens, which names the place of the lens, for a model whose states it cannot know."""
        if (self.layers, self.d) != (model.dims.layers, model.dims.d):
            raise BadLens(
                f"{place} is a lens of {self.layers} layers of width {self.d}; {model.name} has {model.dims.layers} "
                f"of width {model.dims.d}."
            )
        if model.dims.streams > 1:
            raise BadLens(
                f"{place} is a {self.kind} lens, of one stream; {model.name} has {model.dims.streams} side by side."
            )
        if not model.family.causal or model.family.crosses:
            raise BadLens(
                f"{place} is a {self.kind} lens, which is made for models that predict the next token from the text "
                f"before it alone; {model.name} does not."
            )


@dataclass(frozen=True, eq=False)
class PublishedMaps(Mapping[str, Tensor]):
    """The maps of a published lens by the names that a calibrated one gives to its own (`LensMaps`).

    Attributes:
        source: The matrices for column vectors, (d, d).
        of_state: The name of the matrix of each state that has one; state l enters layer l.
        layers: The number of layers.
        d: The width of the residual stream.
        residual: True if a matrix is what is added to the identity.
    """

    source: TensorSource
    of_state: Mapping[int, str]
    layers: int
    d: int
    residual: bool

    def __getitem__(self, name: str) -> Tensor:
        state = self._states[name]
        if state == self.layers:
            return torch.eye(self.d)
        matrix = torch.from_numpy(self.source.rows(self.of_state[state])).T
        return matrix + torch.eye(self.d) if self.residual else matrix

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def _states(self) -> dict[str, int]:
        """The first state with a matrix behind the vectors of each map; that behind the last layer needs none."""
        behind = {f"effect.{layer}.{site}": layer + 1 for layer in range(self.layers) for site in ("attn", "ff")}
        return {"effect.start": min((*self.of_state, self.layers)), **behind}


@dataclass(frozen=True)
class _JacobianHeader:
    """The facts that a Jacobian lens holds beside its matrices."""

    n_prompts: int
    source_layers: tuple[int, ...]
    d_model: int


def read_jacobian(file: Path, model: Model) -> tuple[PublishedFacts, PublishedMaps]:
    """Read a Jacobian lens: a file of the package jlens.

    ``J[l]`` is the derivative of the output of the last block with respect to the output of block l, for column
    vectors: row i is the gradient of coordinate i. Each is a mean over prompts and positions, and a sum over the later
    positions that a state reaches. Source: ``JacobianLens.save`` and ``jacobian_for_prompt`` of
    https://github.com/anthropics/jacobian-lens; many are in the hub's ``neuronpedia/jacobian-lens``.

    Args:
        file: The file, ``torch.save({"J": {layer: (d, d)}, "n_prompts": …, "source_layers": …, "d_model": …})``.
        model: The model that it must fit.

    Raises:
        BadLens: If it is something else, lacks a layer, or has another shape than the model.
        BadModel: If the file is damaged, or would need unpickling.
    """
    content = read_torch(file)
    matrices = content.pop("J", None) if isinstance(content, dict) else None
    if not isinstance(matrices, dict) or not all(isinstance(matrix, Tensor) for matrix in matrices.values()):
        raise BadLens(f"{file} is not a Jacobian lens: it has no dictionary J from layers to matrices.")
    try:
        header = from_json(_JacobianHeader, content, "lens")
    except ValueError as error:
        raise BadLens(f"{file} is not a Jacobian lens: {error}.") from error
    layers, d = header.source_layers, header.d_model
    if header.n_prompts < 1:
        raise BadLens(f"{file} is not a Jacobian lens: its n_prompts is {header.n_prompts}.")
    if layers != tuple(range(len(layers))) or {*matrices} != {*layers}:
        raise BadLens(f"{file} is a Jacobian lens without all layers: it must have each but the last, and no other.")
    facts = PublishedFacts("Jacobian", "", len(layers) + 1, d, header.n_prompts, _sha256(file))
    source = TorchTensors(str(file), {f"J[{layer}]": matrices[layer] for layer in layers})
    of_state = {layer + 1: f"J[{layer}]" for layer in layers}
    return facts, _checked(model, facts, PublishedMaps(source, of_state, facts.layers, d, residual=False))


@dataclass(frozen=True)
class _TunedConfig:
    """The config.json of a tuned lens."""

    base_model_name_or_path: str
    d_model: int
    num_hidden_layers: int
    bias: bool = True
    base_model_revision: str | None = None
    unembed_hash: str | None = None
    lens_type: Literal["linear_tuned_lens"] = "linear_tuned_lens"


def read_tuned(folder: Path, model: Model) -> tuple[PublishedFacts, PublishedMaps]:
    """Read a tuned lens: a folder of the package tuned-lens.

    A translator makes of a state h that enters layer l the state ``h + W_l h + b_l`` before the final norm. Source:
    ``TunedLens.transform_hidden`` and the training loop of https://github.com/AlignmentResearch/tuned-lens; Belrose et
    al., *Eliciting Latent Predictions from Transformers with the Tuned Lens*, 2023. The hub's Space
    ``AlignmentResearch/tuned-lens`` has many.

    Args:
        folder: The folder, with ``config.json`` and ``params.pt``.
        model: The model that it must fit.

    Raises:
        BadLens: If it is something else, lacks a layer, or has another shape than the model.
        BadModel: If a file is damaged, or would need unpickling.
    """
    try:
        config = from_json(_TunedConfig, read_json(folder / "config.json"), "config")
    except ValueError as error:
        raise BadLens(f"{folder / 'config.json'} is not that of a tuned lens: {error}.") from error
    source = TorchBinSource([folder / "params.pt"])
    layers, parts = config.num_hidden_layers, ("weight", "bias") if config.bias else ("weight",)
    sha256 = _sha256(folder / "params.pt")
    facts = PublishedFacts("tuned", config.base_model_name_or_path, layers, config.d_model, None, sha256)
    facts.require(model, str(folder))  # so that a made-up number of layers is not counted to
    if {*source.names()} != {f"{layer}.{part}" for layer in range(layers) for part in parts}:
        raise BadLens(f"{source.path} lacks a translator of the {layers} layers, or holds something else.")
    of_state = {layer: f"{layer}.weight" for layer in range(layers)}
    return facts, _checked(model, facts, PublishedMaps(source, of_state, layers, config.d_model, residual=True))


def _checked(model: Model, facts: PublishedFacts, maps: PublishedMaps) -> PublishedMaps:
    """Return the maps; raise BadLens unless their shapes are those of the model."""
    facts.require(model, maps.source.path)
    for name in maps.of_state.values():
        if maps.source.shape(name) != (facts.d, facts.d):
            raise BadLens(f"{maps.source.path}: {name} has shape {maps.source.shape(name)}, not {(facts.d, facts.d)}.")
    return maps


def _sha256(file: Path) -> str:
    return hashes([file]).sha256[file.name]
