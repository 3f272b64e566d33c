"""LoRA adapters as PEFT saves them: ``adapter_config.json`` beside ``adapter_model.safetensors``; never unpickled.

A module's change is ``scale · B A`` (Hu et al. 2021, arXiv 2106.09685, §4.1), scale ``alpha / r``, or ``alpha / √r``
if rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732). DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5) adds the
length of each output's weights.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeropass.disk import parse_json
from zeropass.errors import BadModel, BadWeights
from zeropass.sources.safetensors import SafetensorsSource

__all__ = ["Adapter", "LowRank", "open_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG = 1 << 20

CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "eva")
"""Ways to begin that change the base model too. PEFT can save such an adapter converted, and then names another way."""

UNKNOWN_SWITCHES = (
    *("use_qalora", "use_bdlora", "lora_bias", "layer_replication", "megatron_config", "velora_config", "kasa_config"),
    *("alora_invocation_tokens", "arrow_config", "monteclora_config", "target_parameters", "trainable_token_indices"),
)

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<part>[AB])\.weight|lora_embedding_(?P<table>[AB])|lora_magnitude_vector(?:\.weight)?)"
)


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to one module: ``scale · up @ down``, up (out, r), down (r, in).

    ``magnitude`` (out,) is DoRA's: the length that each output's weights have afterwards. ``table`` is for an
    embedding, whose weight is (tokens, d): there ``up`` is (d, r) and ``down`` (r, tokens).
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None
    table: bool = False


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter's low-rank changes and whole tensors, by the base model's own names of modules and tensors."""

    path: Path
    base: str
    changes: dict[str, LowRank]
    whole: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's folder.

    Raises BadModel for anything but a LoRA that only adds to its base (the way it was made is named), and for an
    adapter in a pickle; BadWeights, naming the tensor, for factors that are missing, do not fit or are not known.
    """
    settings = _settings(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = sorted(file.name for file in folder.glob("adapter_model.*") if file.suffix != ".json")
        hint = f"; {', '.join(pickled)} is not read, since unpickling can run code. Save it anew" if pickled else ""
        raise BadModel(f"{folder} has no {WEIGHTS}{hint}.")
    source = SafetensorsSource((path,))
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name in source.names():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        plain = re.sub(r"\.modules_to_save(\.default)?\.", ".", plain)
        tensor = torch.from_numpy(source.rows(name))
        found = _FACTOR.fullmatch(plain)
        if found is None:
            if "lora" in plain:
                raise BadWeights(f"{path}: tensor {name!r} is of a kind of adapter that zeropass does not know.")
            whole[plain] = tensor
            continue
        part = found["part"] or (f"table {found['table']}" if found["table"] else "magnitude")
        factors.setdefault(found["module"], {})[part] = tensor
    if not factors and not whole:
        raise BadWeights(f"{path} holds no tensors.")
    changes = {module: _low_rank(path, module, parts, settings) for module, parts in factors.items()}
    return Adapter(folder, str(settings.get("base_model_name_or_path") or ""), changes, whole, settings)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise BadModel(f"{folder} has no {CONFIG}; --adapter names the folder that PEFT's save_pretrained wrote.")
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise BadModel(f"{path} has more than {MAX_CONFIG} bytes; it should be a short JSON object.")
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise BadModel(f"{path} holds a JSON {type(found).__name__}; it should hold an object.")
    if found.get("peft_type") != "LORA":
        raise BadModel(f"{path}: peft_type is {found.get('peft_type')!r}; zeropass reads LORA.")
    start = found.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        raise BadModel(
            f"{path}: init_lora_weights is {start!r}, which changes the base too, so the factors alone do not say what "
            "changed. Save it converted (save_pretrained(…, path_initial_model_for_weight_conversion=…))."
        )
    if on := [name for name in UNKNOWN_SWITCHES if found.get(name)]:
        raise BadModel(f"{path}: {', '.join(on)} is of a kind of adapter that zeropass does not know.")
    return found


def _low_rank(path: Path, module: str, parts: dict[str, Tensor], settings: dict[str, Any]) -> LowRank:
    table = "table A" in parts or "table B" in parts
    names = ("table A", "table B") if table else ("A", "B")
    if missing := [name[-1] for name in names if name not in parts]:
        raise BadWeights(f"{path}: {module} lacks its factor {missing[0]}.")
    down, up = (parts[name] for name in names)
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise BadWeights(
            f"{path}: the factors of {module} have shapes {tuple(down.shape)} and {tuple(up.shape)}; they should be "
            "(r, in) and (out, r)."
        )
    rank = _number(path, settings, module, "rank_pattern", "r")
    if rank != down.shape[0]:
        raise BadWeights(f"{path}: the factors of {module} have rank {down.shape[0]}; {CONFIG} says {rank:g}.")
    alpha = _number(path, settings, module, "alpha_pattern", "lora_alpha")
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    magnitude = parts.get("magnitude")
    if (magnitude is not None) != bool(settings.get("use_dora")) or (magnitude is not None and table):
        raise BadWeights(f"{path}: {module}: use_dora and the magnitudes of DoRA do not fit each other.")
    if magnitude is not None and tuple(magnitude.shape) != (up.shape[0],):
        raise BadWeights(f"{path}: the magnitudes of {module} are {tuple(magnitude.shape)}, not ({up.shape[0]},).")
    return LowRank(down, up, scale, magnitude, table)


def _number(path: Path, settings: dict[str, Any], module: str, pattern: str, plain: str) -> float:
    """A setting of a module: the first pattern that ends its name, as PEFT takes them, or else the plain one."""
    value = settings.get(plain)
    patterns = settings.get(pattern) or {}
    if not isinstance(patterns, dict):
        raise BadModel(f"{path.parent / CONFIG}: {pattern} must be an object.")
    for key, own in patterns.items():
        # It is a regular expression of the adapter's author: only plain names, so that none can be made to hang.
        if not re.fullmatch(r"\^?[\w.]+\$?", key):
            raise BadModel(
                f"{path.parent / CONFIG}: {pattern} has {key!r}; zeropass takes plain names of modules only."
            )
        bare = key.removeprefix("^").removesuffix("$")
        if module == bare or (not key.startswith("^") and module.endswith(f".{bare}")):
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadModel(f"{path.parent / CONFIG}: {plain} is {value!r} for {module}; it must be a positive number.")
    return float(value)
