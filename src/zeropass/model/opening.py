"""Open a model: by name, from its files, or in memory."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch

from zeropass.checkpoints.adapter_files import adapter_named
from zeropass.checkpoints.model_files import ModelFiles, files_in_memory, open_files
from zeropass.checkpoints.state_dict import StateDictSource
from zeropass.checkpoints.torch_modules import config_of, held, name_of, package_of, tensors_of
from zeropass.errors import BadOption
from zeropass.model.adapted import adapt
from zeropass.model.model import Model, opened, usable_device

__all__ = ["ModelLike", "open_model", "open_tuned"]

ModelLike = str | Path | Model
"""A model where one is needed: an open one, or the name or path of one. `open_model` opens what is in memory."""

_STACKS = ("encoder", "decoder")


def open_model(
    model: object,
    tokenizer: object = None,
    *,
    config: object = None,
    device: str | torch.device | None = None,
    stack: str = "",
) -> Model:
    """Open a model; of files this reads headers and the vocabulary, but no weights.

    A model in memory is read where it lies, as it is when it is read: open it again after it was trained further. With
    an adapter of PEFT it is the base with this adapter on it.

    Args:
        model: A hub id, a folder, a ``.gguf`` file or the name of a demo model. Or a model in memory: of transformers
            or PEFT, a wrapper of nnsight or TransformerLens around one, or a state dict. An opened model is returned.
        tokenizer: The tokenizer of a model in memory: a fast one of transformers, a `tokenizers.Tokenizer`, or the path
            of a tokenizer.json or its folder. A wrapper's own if not given.
        config: The configuration of a state dict: ``model.config``, a dict, or the path of a config.json.
        device: The device of the tensors that are returned; ``cpu`` if not given.
        stack: ``encoder`` (the first choice) or ``decoder`` of a model with both; also ``MODEL#decoder`` as a name.

    Returns:
        The model.

    Raises:
        BadModel: Or a subclass of it, if the files do not fit each other, the family is not known, or a model in memory
            may compute something else than its parameters say.
        BadOption: If the device cannot be used, or a tokenizer or configuration is missing or not needed.
        NotFetched: If a hub or registry cannot be reached.

    Example:
        >>> import zeropass as zp
        >>> model = zp.open_model("models/first")
        >>> model.family.name, model.dims.layers, model.dims.d, model.vocab.size
        ('llama', 4, 192, 4096)
        >>> from safetensors.torch import load_file
        >>> state = load_file("models/first/model.safetensors")
        >>> zp.open_model(state, "models/first", config="models/first").name
        'a state dict (in memory)'
    """
    if stack not in ("", *_STACKS):
        raise BadOption(f"stack is {stack!r}; it is one of {', '.join(_STACKS)}.")
    if isinstance(model, Model):
        _refuse_given(f"{model.name} is open already", tokenizer=tokenizer, config=config, stack=stack or None)
        if device is not None and usable_device(device) != model.device:
            raise BadOption(f"{model.name} is open on {model.device}; open it again for {device}.")
        return model
    place = usable_device("cpu" if device is None else device)
    if not isinstance(model, str | Path):
        return _in_memory(model, tokenizer, config, stack, place)
    name = str(model)
    _refuse_given(f"{name} has its own", tokenizer=tokenizer, config=config)
    path, separator, suffix = name.rpartition("#")
    path, named = (path, suffix) if separator and suffix in _STACKS else (name, "")
    return opened(name, open_files(path), stack or named, place)


def open_tuned(base: Model, tuned: ModelLike) -> Model:
    """Open what was made of a base: a model, or an adapter, which is put on the base.

    Args:
        base: The model before.
        tuned: The model after, its name, or the folder or hub id of an adapter; what holds both is the adapter's.

    Raises:
        BadModel: As `open_model` and `adapt` do.
        NotFetched: If it cannot be fetched from the hub.

    Example:
        >>> import zeropass as zp
        >>> zp.open_tuned(zp.open_model("models/first"), "models/tunes/reviews").name
        'models/first with reviews'
    """
    if isinstance(tuned, Model):
        return open_model(tuned)
    return adapt(base, tuned) if adapter_named(tuned) else open_model(tuned, device=base.device)


def _refuse_given(reason: str, **arguments: object) -> None:
    """Raise BadOption for the first argument that is given."""
    for name, value in arguments.items():
        if value is not None:
            raise BadOption(f"{name} is {str(value)[:60]!r}, but {reason}: it is for a model in memory.")


def _in_memory(model: object, tokenizer: object, config: object, stack: str, device: torch.device) -> Model:
    """Return a model in memory."""
    if isinstance(model, Mapping):
        if config is None:
            raise BadOption("A state dict needs config=…: model.config, a dict, or the path of a config.json.")
        name = "a state dict (in memory)"
        return opened(name, _files(name, StateDictSource(name, model), config, tokenizer), stack, device)
    inner = held(model)
    tokenizer = inner.tokenizer if tokenizer is None else tokenizer
    module, adapter, merged = inner.module, None, None
    if any(package_of(part) == "peft" for part in module.modules()):
        adapters = import_module("zeropass.checkpoints.peft_modules").PeftModules(module)
        module, adapter = adapters.base, adapters.adapter
        merged = adapters.merged if adapter is None else None
    name = name_of(module)
    state = StateDictSource(name, tensors_of(module)) if merged is None else merged
    settings = getattr(module, "config", None) if config is None else config
    base = opened(name, _files(name, state, settings, tokenizer), stack, device)
    return base if adapter is None else adapt(base, adapter)


def _files(name: str, state: StateDictSource, config: object, tokenizer: object) -> ModelFiles:
    return files_in_memory(name, state, config_of(config), tokenizer)
