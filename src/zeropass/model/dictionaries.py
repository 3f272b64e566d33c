"""Dictionaries of features: the vectors of sparse autoencoders and transcoders as directions of a model's stream."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.frame_names import default_frames
from zeropass.arch.roles import OUTSIDE, Side
from zeropass.checkpoints.dictionary_files import DictionaryFile, FeatureVectors, Hook, read_dictionaries
from zeropass.checkpoints.hub import fetch_dictionary, is_lens_id
from zeropass.errors import BadAddress, BadDictionary
from zeropass.model.address import FEATURE, Address, feature_roles, parse
from zeropass.model.directions import Where, direction_set, parameters_at
from zeropass.model.model import Model
from zeropass.model.vectors import SetFacts, VectorSet, count_of
from zeropass.tokens.shown import shown_text

__all__ = ["Dictionary", "feature_address", "open_dictionary"]

_Place = tuple[int, Where] | None
"""A place: the number of layers behind the one in its name, and the part of that layer; None where no token is read."""

_TRANSFORMER_LENS: dict[str, tuple[_Place, _Place]] = {
    "hook_resid_pre": ((0, "block"), (0, "block")),
    "hook_resid_mid": ((0, "mid"), (0, "mid")),
    "hook_resid_post": ((1, "block"), (1, "block")),
    "ln1.hook_normalized": ((0, "block"), None),  # before the gain, so that it reads as the stream itself
    "ln2.hook_normalized": ((0, "mid"), None),
    "hook_mlp_in": ((0, "mid"), None),
    "mlp.hook_in": ((0, "ff"), None),
    "mlp.hook_out": (None, (0, "ff")),
    "hook_mlp_out": (None, (1, "block")),  # behind the norm after the MLP, if there is one
    "hook_attn_out": (None, (0, "mid")),
    "attn.hook_z": (None, (0, "attn")),
}
"""The places where dictionaries read and write, by the name of the hook in TransformerLens."""

_MODULES: dict[str, tuple[_Place, _Place]] = {
    "": ((1, "block"), (1, "block")),
    ".in": ((0, "block"), None),
    "mlp": (None, (0, "ff")),
    "mlp.in": ((0, "ff"), None),
    **dict.fromkeys(("self_attn", "attn", "attention", "self_attention"), (None, (0, "attn"))),
    **dict.fromkeys(("self_attn.in", "attn.in", "attention.in", "self_attention.in"), ((0, "attn"), None)),
}
"""The same, by the name of the module in transformers whose output it is, or whose input."""

_STYLES: dict[str, dict[str, tuple[_Place, _Place]]] = {"transformer_lens": _TRANSFORMER_LENS, "modules": _MODULES}


def feature_address(text: str | Address) -> Address:
    """Read the address of a feature, such as ``L12.sae.4051`` or ``L12.sae.4051.decoder``.

    Raises:
        BadAddress: If it is none.
    """
    place = parse(text)
    if place.part != FEATURE:
        raise BadAddress(f"{place} is a parameter of the model; a feature looks like L12.sae.4051.")
    return place


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary(ShortRepr):
    """The features of a dictionary, or of one for each of some layers, that belong to a model.

    Attributes:
        model: The model.
        files: The features of each layer, by the layer in the name of where they read.

    Example:
        >>> import zeropass as zp
        >>> dictionary = zp.open_dictionary(zp.open_model("models/first"), "models/dictionary")
        >>> dictionary.addresses, dictionary.set(2, "decoder").vectors.shape
        ('L2.sae.0 to L2.sae.511', torch.Size([512, 192]))
    """

    model: Model
    files: Mapping[int, DictionaryFile]

    def _repr_words(self) -> str:
        return f"{self.addresses}, {next(iter(self.files.values())).format}"

    @property
    def addresses(self) -> str:
        """The first and the last address, in words."""
        (first, *_), (*_, last) = self.files, self.files
        return f"{Address(first, FEATURE, index=0)} to {Address(last, FEATURE, index=self.files[last].count - 1)}"

    @property
    def note(self) -> str:
        """A sentence that says what the dictionary is, for under lists."""
        file = next(iter(self.files.values()))
        made_for = f", made for {shown_text(file.made_for, limit=100)}" if file.made_for else ""
        first, last = file.writes[0], file.writes[-1]
        writes = "there" if first == file.reads else f"at {first}" + ("" if last is first else f" to {last}")
        silent = "" if _place_at(file.reads, "read") else " No token is read there, so that the encoders have no lists."
        return (
            f"Features of a dictionary ({file.format}{made_for}), which reads at {file.reads} and writes {writes}; "
            f"it does not say which weights it belongs to.{silent}"
        )

    def sets(self, feature: Address) -> dict[str, VectorSet]:
        """Return the encoder and the decoders of a feature, or those that its address names, as a set of one each.

        Raises:
            BadAddress: If there is no such feature, or if its encoder reads what is no state of a token.
        """
        file, roles = self._file(feature.layer), self.roles(feature.layer)
        if feature.index >= file.count:
            raise BadAddress(f"{feature} is out of range; layer {feature.layer} has features 0 to {file.count - 1}.")
        chosen = [place.role for place in feature_roles(feature, roles)]
        if not chosen:
            silent = (
                f"at {file.reads} no state of a token is read"
                if feature.role == "encoder"
                else f"it has {', '.join(roles)}"
            )
            raise BadAddress(f"{feature}.{feature.role}: {silent}.")
        return {role: self.set(feature.layer, role, feature.index, feature.index + 1) for role in chosen}

    def roles(self, layer: int) -> list[str]:
        """Return the roles of the features of a layer that have lists: ``encoder``, ``decoder``."""
        file = self._file(layer)
        several = len(file.writes) > 1
        decoders = [f"decoder.{hook.layer}" if several else "decoder" for hook in file.writes]
        return [*(["encoder"] if _place_at(file.reads, "read") else []), *decoders]

    def set(self, layer: int, role: str, start: int = 0, stop: int | None = None) -> VectorSet:
        """Return the encoders or decoders of some features of a layer, with the layer and role of parameters there.

        Args:
            layer: The layer.
            role: One of `roles`.
            start: The first feature.
            stop: The end of the features; None for all.

        Raises:
            BadAddress: If the dictionary has no such layer, or if its features have no such role.
            BadWeights: If their values are not finite.
        """
        file = self._file(layer)
        hook, side, stored = self._role(layer, role)
        vectors = torch.from_numpy(stored.rows(start, stop)).to(self.model.device)
        # The mean over coordinates is subtracted before the encoders or, in models with LayerNorm, by the norm.
        if side == "read" and (file.centred or self.model.family.norm == "layer"):
            vectors = vectors - vectors.mean(1, keepdim=True)
        if side == "write" and hook.name == "attn.hook_z":
            vectors = vectors @ self.model.matrix("o", hook.layer)
        addresses = (Address(layer, FEATURE, index=start + row, role=role) for row in range(len(vectors)))
        return replace(direction_set(self.model, vectors, *_located(hook, side)), addresses=tuple(addresses))

    def facts(self, layer: int, role: str) -> SetFacts:
        """Return the facts about the features of a layer in a role; BadAddress as in `set`."""
        hook, side, stored = self._role(layer, role)
        at_layer, _, at = _located(hook, side)
        like_layer, like = parameters_at(self.model, at_layer, side, at)
        others = 0 if like_layer == OUTSIDE else count_of(self.model, like_layer, like)
        return SetFacts(like, side, default_frames(side), at_layer, stored.count, others)

    def like(self, layer: int, role: str) -> tuple[int, str]:
        """Return the layer and role of the parameters that read or write at the same place as features."""
        hook, side, _ = self._role(layer, role)
        at_layer, _, at = _located(hook, side)
        return parameters_at(self.model, at_layer, side, at)

    def place(self, layer: int, role: str) -> tuple[int, Side, Where]:
        """Return the layer where features read or write in a role, their side, and their place in that layer."""
        hook, side, _ = self._role(layer, role)
        return _located(hook, side)

    def _role(self, layer: int, role: str) -> tuple[Hook, Side, FeatureVectors]:
        """Return where features of a layer read or write in a role, their side, and their vectors as stored."""
        file, roles = self._file(layer), self.roles(layer)
        if role not in roles:
            raise BadAddress(f"The features of layer {layer} have no {role} with lists; they have {', '.join(roles)}.")
        if role == "encoder":
            return file.reads, "read", file.encoder
        at = roles.index(role) - len(roles)  # decoders are the last roles
        return file.writes[at], "write", file.decoders[at]

    def count(self, layer: int) -> int:
        """Return the number of features of a layer; raise BadAddress if the dictionary has no such layer."""
        return self._file(layer).count

    def _file(self, layer: int) -> DictionaryFile:
        if layer not in self.files:
            known = ", ".join(map(str, self.files))
            raise BadAddress(f"The dictionary has no features of layer {layer}; it has those of {known}.")
        return self.files[layer]


def _place_at(hook: Hook, side: Side) -> _Place:
    """Return where the state of a token is read at a hook that is known, or written; None if none is."""
    reads, writes = _STYLES[hook.style][hook.name]
    return reads if side == "read" else writes


def _located(hook: Hook, side: Side) -> tuple[int, Side, Where]:
    """Return the layer, side and place of what reads or writes at a hook that has such a place."""
    place = _place_at(hook, side)
    assert place is not None, hook
    return hook.layer + place[0], side, place[1]


def open_dictionary(model: Model, place: str | Path, hook: str | None = None) -> Dictionary:
    """Open a dictionary of features for a model; its vectors are read when they are needed.

    Args:
        model: The model.
        place: The folder of a dictionary or of several, or the hub id of one: ``owner/name/folder@revision``.
        hook: Where it reads and writes, if its files do not say it (`dictionary_files.read_dictionaries`).

    Raises:
        BadDictionary: If there is none, if its format or place is not known, or if it does not fit the model.
        BadModel: If a file is damaged.
        NotFetched: If it cannot be fetched.

    Example:
        >>> import zeropass as zp
        >>> zp.open_dictionary(zp.open_model("models/first"), "models/dictionary").files[2].format
        'SAELens'
    """
    folder = Path(place)
    if isinstance(place, str) and not folder.exists() and is_lens_id(place):
        folder = fetch_dictionary(place)
    dictionary = Dictionary(model, read_dictionaries(folder, hook))
    for file in dictionary.files.values():
        _require(model, file)
    return dictionary


def _require(model: Model, file: DictionaryFile) -> None:
    """Raise BadDictionary unless the places and the widths of a dictionary are those of a model."""
    if model.family.stream_normed or model.family.crosses:
        raise BadDictionary(
            f"{file.place}: dictionaries are read for decoders with norms before each layer; {model.name} is none."
        )
    for what, hook, vectors in (
        ("encoders", file.reads, file.encoder),
        *(("decoders", *pair) for pair in zip(file.writes, file.decoders, strict=True)),
    ):
        _require_hook(model, file, hook)
        if what == "decoders" and _place_at(hook, "write") is None:
            raise BadDictionary(f"{file.place}: nothing is written at {hook}, where its decoders should write.")
        dims = model.dims.at(hook.layer)
        width = dims.heads * dims.width("o") if hook.name == "attn.hook_z" else dims.d
        if vectors.width != width:
            raise BadDictionary(
                f"{file.place} has {what} of width {vectors.width}; {model.name} has {width} at {hook}."
            )


def _require_hook(model: Model, file: DictionaryFile, hook: Hook) -> None:
    places = _STYLES[hook.style]
    if hook.name not in places:
        known = ", ".join(name for name in places if name)
        raise BadDictionary(f"{file.place}: {hook} is not one of the places that are known: {known}.")
    if hook.name == "hook_resid_mid" and model.family.parallel:
        raise BadDictionary(f"{file.place}: {hook} is between attention and MLP, which {model.name} has side by side.")
    if hook.layer >= model.dims.layers:
        raise BadDictionary(
            f"{file.place} is for layer {hook.layer}; {model.name} has layers 0 to {model.dims.layers - 1}."
        )
