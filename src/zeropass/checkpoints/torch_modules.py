"""Models in memory: the module inside a wrapper, and its tensors, configuration and name as `save_pretrained` has them.

Other libraries are recognised by the module that a class comes from, and never imported. What could compute something
else than its parameters say is refused: a hook or a forward pass that comes from neither torch nor a known library.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from zeropass._io.parse import parse_json
from zeropass._io.untrusted import read_json
from zeropass.errors import BadModel, BadOption

__all__ = ["Held", "config_of", "held", "name_of", "package_of", "tensors_of"]

_KNOWN = ("torch", "transformers", "transformers_modules", "peft", "accelerate", "nnsight", "transformer_lens")
"""The packages whose forward passes and hooks compute what the parameters say."""

_WRAPPERS = {
    ("nnsight", ""): ("_module", "_model"),
    ("transformer_lens", "TransformerBridge"): ("original_model",),
    ("torch", "OptimizedModule"): ("_orig_mod",),
    ("torch", "DataParallel"): ("module",),
    ("torch", "DistributedDataParallel"): ("module",),
}
"""The attributes in which classes of a package (of any name, if none is given) hold the model that they wrap."""

_STAND_INS = {
    "peft": ("base_layer", "original_module", "token_adapter"),
    "transformer_lens": ("_original_component",),
}
"""The attributes in which modules of a package hold the module that they stand for."""

_EDITS = ("_edits", "_default_mediators")
"""The attributes in which nnsight keeps what it changes in every forward pass."""


@dataclass(frozen=True)
class Held:
    """A model and what wrappers around it know.

    Attributes:
        module: The module.
        tokenizer: The tokenizer that a wrapper has, if any.
    """

    module: nn.Module
    tokenizer: object = None


def held(model: object) -> Held:
    """Return the module of a model in memory, without the wrappers of other libraries around it.

    Raises:
        BadModel: If it is no module, or may compute something else than its parameters say.
    """
    tokenizer = None
    while (attributes := _wrapper(model)) is not None:
        _refuse_edits(model)
        tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
        model = next(value for name in attributes if (value := getattr(model, name, None)) is not None)
    if not isinstance(model, nn.Module):
        raise BadModel(f"{_described(model)} is no model in memory that is known. {_FORMS}")
    if package_of(model) == "transformer_lens":
        raise BadModel(
            f"{_described(model)} keeps weights that were folded and centred, and not the model. Give the model of "
            "transformers that it was made from, or a TransformerBridge."
        )
    for name, module in model.named_modules():
        _refuse_changes(name, module)
    return Held(model, tokenizer)


_FORMS = (
    "A model in memory is one of transformers or PEFT, a wrapper of nnsight or TransformerLens around one, or a state "
    "dict with config=…"
)


def package_of(value: object) -> str:
    """Return the name of the package that the class of a value, or a function, comes from."""
    return str(getattr(value, "__module__", None) or type(value).__module__).partition(".")[0]


def _described(model: object) -> str:
    return f"{type(model).__name__} of {type(model).__module__}"


def _wrapper(model: object) -> tuple[str, ...] | None:
    """Return the attributes in which an object may hold the model that it wraps; None if it is no wrapper."""
    package = package_of(model)
    attributes = _WRAPPERS.get((package, type(model).__name__)) or _WRAPPERS.get((package, ""))
    return attributes if attributes and any(getattr(model, name, None) is not None for name in attributes) else None


def _refuse_edits(model: object) -> None:
    """Raise BadModel for a wrapper that changes what its model computes."""
    if package_of(model) == "nnsight" and any(getattr(model, name, None) for name in _EDITS):
        raise BadModel(
            f"{_described(model)} has edits, which change what the model computes: clear them (clear_edits) first."
        )
    if getattr(model, "compatibility_mode", False) is True:
        raise BadModel(
            f"{_described(model)} is in compatibility mode, which may have folded and centred its weights. Give it as "
            "it was before."
        )


def _refuse_changes(name: str, module: nn.Module) -> None:
    """Raise BadModel for a module with a forward pass or hook of unknown origin."""
    outer = getattr(module, "_hf_hook", None)  # accelerate's, which may be a sequence of others
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *getattr(outer, "hooks", ())]
    for what, function in (("forward pass", module.forward), *(("hook", hook) for hook in (*hooks, outer) if hook)):
        if (package := package_of(function)) not in _KNOWN:
            label = getattr(function, "__qualname__", type(function).__qualname__)
            raise BadModel(
                f"{name or type(module).__name__} has the {what} {label!r} of {package}: what it computes may not be "
                "what its parameters say. Remove it or, if it changes nothing, give model.state_dict() and "
                "config=model.config."
            )


def name_of(module: nn.Module) -> str:
    """Return a name for a model in memory that no file or hub id has: where it was loaded from, or else its class."""
    origin = getattr(module, "name_or_path", None)
    return f"{origin if isinstance(origin, str) and origin else type(module).__name__} (in memory)"


def config_of(config: object) -> dict[str, Any]:
    """Return a configuration as config.json has it.

    Args:
        config: A configuration of transformers, a dict, or the path of a config.json or of its folder.

    Raises:
        BadModel: If it is damaged.
        BadOption: If it is none of these.
    """
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, str | Path):
        path = Path(config)
        return read_json(path / "config.json" if path.is_dir() else path)
    if callable(spell := getattr(config, "to_json_string", None)):
        try:
            content = parse_json(str(spell()))
        except ValueError as error:
            raise BadModel(f"The configuration, a {_described(config)}, is not JSON: {error}.") from error
        if isinstance(content, dict):
            return content
    raise BadOption(
        f"config is a {_described(config)}; it should be model.config, a dict or the path of a config.json."
    )


def tensors_of(module: nn.Module) -> dict[str, object]:
    """Return the parameters and saved buffers of a module under the names that a saved model has for them.

    A module that PEFT or TransformerLens put in the place of another one counts as that one, without what was added.
    transformers 5 joins the experts of a layer in memory; what it would save are the experts one by one.

    Args:
        module: The module.

    Returns:
        The tensors, not copied unless transformers has to take them apart.
    """
    state = dict(_tensors(module, ""))
    if not any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__):
        return state
    # Of tensors that are tied, a saved model keeps the one that the others are tied to.
    tied = set(getattr(module, "all_tied_weights_keys", None) or ())
    kept = {id(tensor): name for name, tensor in sorted(state.items(), key=lambda entry: entry[0] not in tied)}
    state = {name: state[name] for name in kept.values()}
    try:
        revert = import_module("transformers.core_model_loading").revert_weight_conversion
    except (ImportError, AttributeError):  # transformers 4 keeps tensors as files do
        return state
    return dict(revert(module, state))


def _added_bias(module: nn.Module, inner: nn.Module) -> object:
    """Return the zeros that TransformerLens adds as a bias to an unembedding that has none; None without them."""
    bias = getattr(inner, "bias", None) if type(module).__name__ == "UnembeddingBridge" else None
    return None if bias is None or bias.is_meta or bias.any() else bias


def _tensors(module: nn.Module, path: str) -> Iterator[tuple[str, object]]:
    """Yield parameters, saved buffers and those of inner modules, in the order of state_dict."""
    for attribute in _STAND_INS.get(package_of(module), ()):
        if (inner := module._modules.get(attribute)) is not None:
            added = _added_bias(module, inner)
            yield from ((name, value) for name, value in _tensors(inner, path) if added is None or value is not added)
            return
    saved = {name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set}
    for name, tensor in {**module._parameters, **saved}.items():
        if tensor is not None:
            yield f"{path}{name}", tensor
    for name, inner in module._modules.items():
        if inner is not None:
            yield from _tensors(inner, f"{path}{name}.")
