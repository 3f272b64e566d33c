"""Dictionaries of features in files: sparse autoencoders and transcoders, in the formats that are in use.

Each format has one record: the files that tell it, the tensors that it may hold, and a function that says from its
configuration where the dictionary reads and writes. Places are named as the format names them; `model.dictionaries`
knows what the names mean. What a record does not know is refused by name.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from zeropass._io.untrusted import read_bytes, read_json
from zeropass.checkpoints.base import Float32, TensorSource
from zeropass.checkpoints.npz import NpzSource
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadDictionary

__all__ = ["DICTIONARY_FILES", "DictionaryFile", "FeatureVectors", "Hook", "read_dictionaries"]

DICTIONARY_FILES = (
    "cfg.json",
    "sae_weights.safetensors",
    "sae.safetensors",
    "params.npz",
    "params.safetensors",
    "config.yaml",
    "layer_*.safetensors",
    "W_enc_*.safetensors",
    "W_dec_*.safetensors",
)
"""The files of dictionaries, as patterns."""


@dataclass(frozen=True)
class Hook:
    """A place in a model, as a format names it.

    Attributes:
        layer: The layer in the name.
        name: The name without the layer.
        style: ``transformer_lens``, or ``modules`` for the names of modules in transformers.
    """

    layer: int
    name: str
    style: str

    def __str__(self) -> str:
        stem = "blocks" if self.style == "transformer_lens" else "layers"
        return f"{stem}.{self.layer}" + (f".{self.name}" if self.name else "")


@dataclass(frozen=True, eq=False)
class FeatureVectors:
    """The encoders or the decoders of features in a tensor: one vector for each feature.

    Attributes:
        source: The file of the tensor.
        name: The name of the tensor.
        columns: True if the vectors are its columns, False if they are its rows.
        part: The number of the vectors in a tensor (n, parts, width) with several for each feature; None otherwise.
    """

    source: TensorSource
    name: str
    columns: bool = False
    part: int | None = None

    @property
    def count(self) -> int:
        """The number of features."""
        return self.source.shape(self.name)[self.columns]

    @property
    def width(self) -> int:
        """The width of the vectors."""
        return self.source.shape(self.name)[-2 if self.columns else -1]

    def rows(self, start: int = 0, stop: int | None = None) -> Float32:
        """Return the vectors of some features, (n, width)."""
        stop = self.count if stop is None else stop
        if self.columns:
            return np.ascontiguousarray(self.source.rows(self.name, columns=slice(start, stop)).T)
        rows = self.source.rows(self.name, start, stop)
        return rows if self.part is None else np.ascontiguousarray(rows[:, self.part])


@dataclass(frozen=True, eq=False)
class DictionaryFile:
    """The features that read at one place in a model.

    Attributes:
        format: The name of the format.
        place: The file of the vectors, for messages.
        made_for: The model that it says it was made for; empty if it says none.
        reads: The place where encoders read.
        writes: The places where decoders write: one, or several of a cross-layer transcoder.
        centred: True if what is read has its mean over coordinates subtracted.
        encoder: The encoders.
        decoders: The decoders that write at each place.
    """

    format: str
    place: str
    made_for: str
    reads: Hook
    writes: tuple[Hook, ...]
    centred: bool
    encoder: FeatureVectors
    decoders: tuple[FeatureVectors, ...]

    @property
    def count(self) -> int:
        """The number of features."""
        return self.encoder.count


@dataclass(frozen=True)
class _Settings:
    """The settings of a dictionary that its configuration says."""

    made_for: str
    reads: Hook
    writes: Hook
    centred: bool = False


@dataclass(frozen=True)
class _Tensors:
    """The record of the tensors of a format.

    Attributes:
        format: The name of the format.
        encoder: The name of the encoders' tensor.
        decoder: The name of the decoders' tensor.
        layout: Whether the features are the columns of encoders and of decoders; None where their shape tells.
        others: The names of other tensors, none of which changes a vector's direction.
    """

    format: str
    encoder: str
    decoder: str
    layout: tuple[bool, bool] | None
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Format:
    """The record of a format whose folders hold one dictionary.

    Attributes:
        tensors: The record of its tensors.
        weights: The file of the tensors.
        config: The other file that tells the format; empty if it has none.
        settings: Returns the settings of a folder, given a place that the user names.
    """

    tensors: _Tensors
    weights: str
    config: str
    settings: Callable[[Path, "str | None"], _Settings]


def read_dictionaries(folder: Path, hook: str | None = None) -> dict[int, DictionaryFile]:
    """Return the dictionaries in a folder, or in the folders in it, by the layer in the name of where they read.

    Args:
        folder: The folder of one dictionary, of several, or of a set of transcoders with its ``config.yaml``.
        hook: Where the dictionary reads and writes (``blocks.12.hook_resid_post``), if its files do not say it.

    Raises:
        BadDictionary: If there is none, if its format or a setting of it is not known, or if two are of one layer.
        BadModel: If a file is damaged.
    """
    if not folder.is_dir():
        raise BadDictionary(f"{folder} is no folder of a dictionary.")
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir())
    files = [*_read(folder, hook)] or [file for path in inner for file in _read(path, hook)]
    if not files:
        known = ", ".join(
            f"{form.tensors.format} ({' and '.join(filter(None, (form.config, form.weights)))})" for form in _FORMATS
        )
        raise BadDictionary(f"{folder} holds no dictionary of a format that is read: {known}; {_SET}.")
    of_layer: dict[int, DictionaryFile] = {}
    for file in files:
        if (other := of_layer.setdefault(file.reads.layer, file)) is not file:
            raise BadDictionary(
                f"{folder} holds two dictionaries of layer {file.reads.layer}: {other.place} and {file.place}. "
                "Name the folder of one."
            )
    return dict(sorted(of_layer.items()))


def _read(folder: Path, hook: str | None) -> Iterator[DictionaryFile]:
    """Yield the dictionaries whose files are in a folder itself."""
    if (folder / "config.yaml").is_file():
        yield from _transcoder_set(folder, hook)
        return
    for form in _FORMATS:
        path = folder / form.weights
        if path.is_file() and (not form.config or (folder / form.config).is_file()):
            yield _dictionary(form.tensors, path, form.settings(folder, hook))
            return


def _dictionary(record: _Tensors, path: Path, settings: _Settings) -> DictionaryFile:
    """Return a dictionary; raise BadDictionary for tensors that the format does not have."""
    source = NpzSource(path) if path.suffix == ".npz" else SafetensorsSource([path])
    names = {name.lower(): name for name in source.names()}
    if missing := [name for name in (record.encoder, record.decoder) if name.lower() not in names]:
        raise BadDictionary(f"{path}: a dictionary of {record.format} has a tensor {missing[0]!r}; this file has none.")
    known = {record.encoder, record.decoder, *record.others}
    if unknown := [names[name] for name in names if name not in {name.lower() for name in known}]:
        raise BadDictionary(f"{path}: it is not known what the tensor {unknown[0]!r} does in {record.format}.")
    tensors = names[record.encoder.lower()], names[record.decoder.lower()]
    shapes = [source.shape(name) for name in tensors]
    if any(len(shape) != 2 or not all(shape) for shape in shapes):
        raise BadDictionary(f"{path}: encoders and decoders are matrices; these have the shapes {shapes}.")
    layout = record.layout or _by_shape(path, shapes)
    if shapes[0][layout[0]] != shapes[1][layout[1]]:
        raise BadDictionary(f"{path} has {shapes[0][layout[0]]} encoders and {shapes[1][layout[1]]} decoders.")
    return DictionaryFile(
        format=record.format,
        place=str(path),
        made_for=settings.made_for,
        reads=settings.reads,
        writes=(settings.writes,),
        centred=settings.centred,
        encoder=FeatureVectors(source, tensors[0], layout[0]),
        decoders=(FeatureVectors(source, tensors[1], layout[1]),),
    )


def _by_shape(path: Path, shapes: list[tuple[int, ...]]) -> tuple[bool, bool]:
    """Return whether features are columns, if there are more of them than coordinates; both forms are in use."""
    if any(shape[0] == shape[1] for shape in shapes):
        raise BadDictionary(f"{path}: as many features as coordinates, so that it is not clear which are which.")
    return shapes[0][1] > shapes[0][0], shapes[1][1] > shapes[1][0]


# --- Places ---------------------------------------------------------------------------------------------------

_TRANSFORMER_LENS = re.compile(r"blocks\.([0-9]{1,4})\.([a-z0-9_.]{1,60})")
_MODULE = re.compile(r"(?:[a-z_]{1,30}\.){0,3}(?:layers|h|blocks|layer)\.([0-9]{1,4})(?:\.([a-z_]{1,30}))?")
_EMBEDDING = ("hook_embed", "embed_tokens", "wte", "embed_in", "model.embed_tokens", "transformer.wte")


def _hook(text: object, place: object) -> Hook:
    """Return the place with a name; raise BadDictionary, with the file that names it, for one of an unknown form."""
    name = str(text)
    if name in _EMBEDDING:
        return Hook(0, "hook_resid_pre", "transformer_lens")
    if match := _TRANSFORMER_LENS.fullmatch(name):
        return Hook(int(match[1]), match[2], "transformer_lens")
    if match := _MODULE.fullmatch(name):
        return Hook(int(match[1]), match[2] or "", "modules")
    raise BadDictionary(
        f"{place}: {name[:80]!r} is no place that is known; one looks like blocks.12.hook_resid_post (TransformerLens) "
        "or layers.12.mlp (the name of a module)."
    )


def _place(stated: object, named: str | None, file: Path) -> Hook:
    """Return the place that files state or, if they state none, that a user names.

    Raises:
        BadDictionary: If both name one and these differ, or if a name is not known.
    """
    if not stated:
        return _hook(named or stated, file)
    place = _hook(stated, file)
    if named and _hook(named, "--hook") != place:
        raise BadDictionary(
            f"{file} says {place}, which --hook (Python: hook=…) contradicts; it is for files that do not say a place."
        )
    return place


# --- SAELens --------------------------------------------------------------------------------------------------

_ARCHITECTURES = (
    *("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk"),
    *("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
)
_NORMALISATIONS = (None, False, True, "none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")


def _saelens(folder: Path, hook: str | None) -> _Settings:
    """Return the settings in the ``cfg.json`` of SAELens, version 2 to 6.

    Source: ``handle_pre_6_0_config`` and ``SAE`` of https://github.com/decoderesearch/SAELens.
    """
    path = folder / "cfg.json"
    config = read_json(path)
    inner = config.get("metadata")
    config = {**config, **inner} if isinstance(inner, dict) else config

    def known(key: str, default: object, values: tuple[object, ...]) -> Any:
        value = config.get(key, default)
        if not any(value is each or (isinstance(value, str) and value == each) for each in values):
            shown = ", ".join(str(each) for each in values if isinstance(each, str)) or "none"
            raise BadDictionary(f"{path}: {key} is {str(value)[:80]!r}; what is read is {shown}.")
        return value

    architecture = known("architecture", "standard", _ARCHITECTURES)
    normalisation = known("normalize_activations", "none", _NORMALISATIONS)
    known("reshape_activations", "none", ("none", "hook_z"))
    for key in ("hook_head_index", "hook_point_head_index", "hook_head_index_out"):
        known(key, None, (None,))
    reads = _place(config.get("hook_name", config.get("hook_point")), hook, path)
    writes = reads
    if "transcoder" in architecture:
        writes = _hook(config.get("hook_name_out", ""), path)
    return _Settings(str(config.get("model_name", "")), reads, writes, centred=normalisation == "layer_norm")


# --- sparsify -------------------------------------------------------------------------------------------------


def _sparsify(folder: Path, hook: str | None) -> _Settings:
    """Return the settings of sparsify (EleutherAI): the folder is named after the module.

    Source: ``SparseCoder`` of https://github.com/EleutherAI/sparsify.
    """
    path = folder / "cfg.json"
    config = read_json(path)
    transcodes = config.get("transcode", False)
    if not isinstance(transcodes, bool):
        raise BadDictionary(f"{path}: transcode is {str(transcodes)[:80]!r}; it should be true or false.")
    name = folder.resolve().name
    place = _place(name if _MODULE.fullmatch(name) or not hook else "", hook, folder)
    reads = Hook(place.layer, f"{place.name}.in", place.style) if transcodes else place
    return _Settings("", reads, place)


# --- Gemma Scope ----------------------------------------------------------------------------------------------

_GEMMA_SITES = {
    "res": ("hook_resid_post", "hook_resid_post"),
    "resid_post": ("hook_resid_post", "hook_resid_post"),
    "mlp": ("hook_mlp_out", "hook_mlp_out"),
    "mlp_out": ("hook_mlp_out", "hook_mlp_out"),
    "att": ("attn.hook_z", "attn.hook_z"),
    "attn_out": ("hook_attn_out", "hook_attn_out"),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
    "transcoder": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""The places where the dictionaries of Gemma Scope read and write, by the name of the repository or the folder."""
_GEMMA_SITE = re.compile(
    r"gemma-scope-[^/]*-(res|mlp|att|transcoders)(?:/|-)|/(resid_post|mlp_out|attn_out|transcoder)(?:_all)?/"
)


def _gemma_scope(folder: Path, hook: str | None) -> _Settings:
    """Return the settings of Gemma Scope, whose files say nothing: its folders and repositories are named by them.

    Source: Lieberum et al., *Gemma Scope*, 2024; loaders of https://github.com/decoderesearch/SAELens.
    """
    place, named = f"{folder.resolve().as_posix()}/", (hook or "").partition(">")
    sites, layers = _GEMMA_SITE.findall(place), re.findall(r"/layer_([0-9]{1,4})(?:_|/)", place)
    stated = ("", "")
    if len(sites) == len(layers) == 1:
        reads, writes = _GEMMA_SITES[sites[0][0] or sites[0][1]]
        stated = f"blocks.{layers[0]}.{reads}", f"blocks.{layers[0]}.{writes}"
    elif not hook:
        raise BadDictionary(
            f"{folder}: a file of Gemma Scope does not say where it reads, and neither do the names of its folders; "
            "they look like gemma-scope-2b-pt-res/layer_20. Say it with --hook blocks.20.hook_resid_post (Python: "
            "hook=…), of a transcoder with --hook 'blocks.20.ln2.hook_normalized>blocks.20.hook_mlp_out'."
        )
    return _Settings("", _place(stated[0], named[0], folder), _place(stated[1], named[2] or named[0], folder))


_SAELENS = _Tensors(
    format="SAELens",
    encoder="W_enc",
    decoder="W_dec",
    layout=(True, False),
    others=(
        *("b_enc", "b_dec", "b_dec_out", "b_gate", "b_mag", "r_mag", "threshold", "topk_threshold"),
        *("scaling_factor", "finetuning_scaling_factor", "W_skip"),
    ),
)
_SPARSIFY = _Tensors(
    format="sparsify",
    encoder="encoder.weight",
    decoder="W_dec",
    layout=(False, False),
    others=("encoder.bias", "b_dec", "W_skip"),
)
_GEMMA_SCOPE = _Tensors(
    format="Gemma Scope",
    encoder="W_enc",
    decoder="W_dec",
    layout=(True, False),
    others=("b_enc", "b_dec", "threshold", "affine_skip_connection"),
)
_FORMATS = (
    _Format(_SAELENS, "sae_weights.safetensors", "cfg.json", _saelens),
    _Format(_SPARSIFY, "sae.safetensors", "cfg.json", _sparsify),
    _Format(_GEMMA_SCOPE, "params.npz", "", _gemma_scope),
    _Format(_GEMMA_SCOPE, "params.safetensors", "", _gemma_scope),
)

# --- circuit-tracer -------------------------------------------------------------------------------------------

_SET = "circuit-tracer (config.yaml and layer_0.safetensors …)"
_SET_KEYS = ("model_name", "model_kind", "feature_input_hook", "feature_output_hook", "transcoders", "scan")
_TRANSCODER = _Tensors(
    format="circuit-tracer",
    encoder="W_enc",
    decoder="W_dec",
    layout=None,
    others=("b_enc", "b_dec", "W_skip", "threshold", "log_threshold", "activation_function.threshold"),
)


def _transcoder_set(folder: Path, named: str | None) -> Iterator[DictionaryFile]:
    """Yield the transcoders of a set, each of a layer; raise BadDictionary for a place that a user names for all.

    Source: ``load_transcoder_set`` of https://github.com/safety-research/circuit-tracer.
    """
    path = folder / "config.yaml"
    if named:
        raise BadDictionary(f"{path} says where each transcoder reads and writes; leave out --hook (Python: hook=…).")
    try:
        config = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadDictionary(f"{path} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(config, dict) or "feature_input_hook" not in config or "feature_output_hook" not in config:
        raise BadDictionary(f"{path} names no feature_input_hook and feature_output_hook, as that of transcoders does.")
    if unknown := [key for key in config if key not in _SET_KEYS]:
        raise BadDictionary(f"{path}: it is not known what {str(unknown[0])[:80]!r} means.")
    kind, made_for = config.get("model_kind", "transcoder_set"), str(config.get("model_name", ""))
    if kind not in ("transcoder_set", "cross_layer_transcoder"):
        raise BadDictionary(f"{path}: a set of the kind {str(kind)[:80]!r} is not read; a transcoder_set is.")

    def hook(way: str, layer: int) -> Hook:
        return _hook(f"blocks.{layer}.{config[f'feature_{way}_hook']}", path)

    if kind == "cross_layer_transcoder":
        yield from _cross_layer(folder, made_for, hook)
        return
    for layer, name in _files_of_set(path, config).items():
        yield _dictionary(_TRANSCODER, folder / name, _Settings(made_for, hook("input", layer), hook("output", layer)))


def _cross_layer(folder: Path, made_for: str, hook: Callable[[str, int], Hook]) -> Iterator[DictionaryFile]:
    """Yield the features of each layer of a cross-layer transcoder, whose decoders write there and at all later layers.

    Source: the files of https://huggingface.co/mntss/clt-gemma-2-2b-426k, as SAELens reads them.
    """
    matches = (re.fullmatch(r"W_enc_([0-9]{1,4})\.safetensors", file.name) for file in folder.iterdir())
    for layer in sorted(int(match[1]) for match in matches if match):
        encoders, decoders = (folder / f"W_{way}_{layer}.safetensors" for way in ("enc", "dec"))
        reading, writing = SafetensorsSource([encoders]), SafetensorsSource([decoders])
        known = {f"W_enc_{layer}", f"b_enc_{layer}", f"b_dec_{layer}", f"threshold_{layer}", f"W_dec_{layer}"}
        if unknown := [name for source in (reading, writing) for name in source.names() if name not in known]:
            raise BadDictionary(f"{folder}: it is not known what the tensor {unknown[0]!r} does in circuit-tracer.")
        shapes = reading.shape(f"W_enc_{layer}"), writing.shape(f"W_dec_{layer}")
        if [len(shape) for shape in shapes] != [2, 3] or not all(map(all, shapes)) or shapes[0][0] != shapes[1][0]:
            raise BadDictionary(f"{folder}: encoders and decoders of layer {layer} have the shapes {shapes}.")
        yield DictionaryFile(
            format="circuit-tracer",
            place=str(encoders),
            made_for=made_for,
            reads=hook("input", layer),
            writes=tuple(hook("output", layer + later) for later in range(shapes[1][1])),
            centred=False,
            encoder=FeatureVectors(reading, f"W_enc_{layer}"),
            decoders=tuple(FeatureVectors(writing, f"W_dec_{layer}", part=part) for part in range(shapes[1][1])),
        )


def _files_of_set(path: Path, config: Mapping[str, Any]) -> dict[int, str]:
    """Return the file of each layer's transcoder, all of which must be in the folder of the configuration."""
    listed = config.get("transcoders")
    if listed is None:
        matches = (re.fullmatch(r"layer_([0-9]{1,4})\.safetensors", file.name) for file in path.parent.iterdir())
        files = {int(match[1]): match[0] for match in matches if match}
    elif isinstance(listed, list) and all(isinstance(each, dict) and _is_listed(each) for each in listed):
        files = {each["layer"]: each["filepath"].partition("?")[0].rpartition("/")[2] for each in listed}
    else:
        raise BadDictionary(f"{path}: transcoders should be a list of layers (layer) and files (filepath).")
    if missing := [name for name in files.values() if not (path.parent / name).is_file()]:
        raise BadDictionary(f"{path.parent} lacks {missing[0]}, which its config.yaml names; put the files beside it.")
    return files


def _is_listed(entry: Mapping[str, Any]) -> bool:
    return type(entry.get("layer")) is int and entry["layer"] >= 0 and isinstance(entry.get("filepath"), str)
