"""The changes that the tensors of an adapter make, for each method with a short formula.

- LoRA (Hu et al. 2021, arXiv 2106.09685, §4.1): adds ``scale · B A`` with scale ``alpha / r``, or ``alpha / √r`` if
  rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732). DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5) also learns
  the length of each output's weights. For a parameter that stacks experts (``target_parameters``), A and B are stacked.
- AdaLoRA (Zhang et al. 2023, arXiv 2303.10512, eq. 3) adds ``alpha / r · B diag(E) A``; PEFT adds 10⁻⁵ to r.
- IA3 (Liu et al. 2022, arXiv 2205.05638, §3.3) scales outputs, or the inputs of a feed-forward layer.
- LN tuning and ``modules_to_save`` replace entire tensors; trainable tokens replace rows of a table.

The tensors of methods that PEFT has to compute are kept unchanged, by module (`Adapter.computed`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from zeropass._io.atomic import key_of
from zeropass._io.short_repr import ShortRepr
from zeropass.checkpoints.adapter_changes import Added, Change, LowRank, Rows, Scaled
from zeropass.checkpoints.adapter_files import CONFIG, WEIGHTS, AdapterFiles, adapter_folder, open_adapter_files
from zeropass.checkpoints.adapter_settings import COMPUTED, Settings
from zeropass.checkpoints.model_files import fingerprint, hashes
from zeropass.checkpoints.state_dict import StateDictSource
from zeropass.errors import BadModel, BadWeights

__all__ = ["Adapter", "StackedFactors", "open_adapter", "read_adapter"]

_LORA = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<part>[AB])\.weight|lora_B\.(?P<bias>bias)|lora_embedding_(?P<table>[AB])"
    r"|lora_(?P<magnitude>magnitude)_vector(?:\.weight)?)"
)
_ADALORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ABE])")
_IA3 = re.compile(r"(?P<module>.+)\.ia3_l")
_TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta")

_WRAPPED = re.compile(r"\.(?:base_layer|token_adapter\.base_layer|modules_to_save(?:\.default)?)\.")
"""The parts that PEFT inserts between the name of a module and that of its parameter."""

_EPSILON = 1e-5
"""The number that PEFT adds to AdaLoRA's rank before it divides by the sum."""


@dataclass(frozen=True, eq=False)
class StackedFactors:
    """The factors of a parameter that stacks experts: ``down`` (experts · r, in), ``up`` (out, r · experts)."""

    up: Tensor
    down: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(ShortRepr):
    """An adapter's changes, by the base model's names of parameters (``model.layers.0.self_attn.q_proj.weight``).

    Attributes:
        name: The name of the adapter.
        path: The adapter's folder; None for an adapter in memory.
        settings: The checked configuration.
        place: The file of the tensors, or the name of an adapter in memory, for messages.
        state: The tensors of an adapter in memory; None for a folder.
        changes: The changes of single parameters.
        whole: The tensors that replace those of the base.
        stacked: By module, the factors of parameters that stack experts.
        computed: By module, the tensors of a method that PEFT computes, by their names after that of the module; those
            of the entire model under the empty name.
    """

    name: str
    path: Path | None
    settings: Settings
    place: str
    state: StateDictSource | None = None
    changes: dict[str, Change] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    stacked: dict[str, list[StackedFactors]] = field(default_factory=dict)
    computed: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The name of the base model that the adapter states; empty if it states none."""
        return self.settings.base

    @property
    def folder(self) -> str:
        """The folder, or the name of an adapter in memory, for messages."""
        return self.place if self.path is None else str(self.path)

    @property
    def sha256(self) -> dict[str, str]:
        """The SHA-256 of each file by name, as ``sha256sum`` prints it; empty for an adapter in memory."""
        return {} if self.path is None else hashes((self.path / WEIGHTS, self.path / CONFIG)).sha256

    @property
    def fingerprints(self) -> tuple[str, str]:
        """The hashes of the weights and of the configuration."""
        if self.path is not None:
            return fingerprint((self.path / WEIGHTS,)), fingerprint((self.path / CONFIG,))
        assert self.state is not None, "an adapter without a folder is one in memory"
        return self.state.fingerprint, key_of(self.settings.values)


def open_adapter(place: str | Path) -> Adapter:
    """Read an adapter.

    Args:
        place: The folder that PEFT's ``save_pretrained`` wrote, or the hub id of one (``owner/name``).

    Raises:
        NotFetched: If it cannot be fetched from the hub.
        BadModel: For an unknown method or setting, and for a pickled adapter.
        BadWeights: Naming file and tensor, for tensors that are missing, empty, unknown or do not fit each other.
    """
    folder = adapter_folder(place)
    return read_adapter(open_adapter_files(folder, "" if folder == Path(place).expanduser() else str(place)))


def read_adapter(files: AdapterFiles) -> Adapter:
    """Read an adapter from its opened files; raise as `open_adapter` does."""
    state = files.source if isinstance(files.source, StateDictSource) else None
    adapter = Adapter(files.name, files.folder, files.settings, files.source.path, state)
    rest = _READERS.get(files.settings.method, _read_computed)(files, adapter)
    _read_remaining(files, adapter, rest)
    return adapter


Names = list[str]


def _read_lora(files: AdapterFiles, adapter: Adapter) -> Names:
    factors: dict[str, dict[str, str]] = {}
    rest = []
    for name in files.stored:
        if match := _LORA.fullmatch(name):
            part = match["part"] or match["bias"] or match["magnitude"] or f"table {match['table']}"
            factors.setdefault(match["module"], {})[part] = name
        else:
            rest.append(name)
    for module, parts in factors.items():
        _require_targeted(files, module.replace(".base_layer", ""))
        _read_lora_module(files, adapter, module, parts)
    return rest


def _read_lora_module(files: AdapterFiles, adapter: Adapter, stored_name: str, parts: dict[str, str]) -> None:
    """Read the factors of one module; ``stored_name`` is its name, with PEFT's ``base_layer`` where it has one."""
    settings, module = files.settings, stored_name.replace(".base_layer", "")
    table = "table A" in parts or "table B" in parts
    first, second = ("table A", "table B") if table else ("A", "B")
    if missing := [name for name in (first, second) if name not in parts]:
        raise BadWeights(f"{files.source.path}: {module} lacks its factor {missing[0][-1]}.")
    down, up = _read(files, parts[first], 2), _read(files, parts[second], 2)
    leaves = settings.parameters(module)
    if leaves and leaves != ["weight"]:
        if parts.keys() != {"A", "B"}:
            raise BadWeights(f"{files.source.path}: {module} has more than the two factors of stacked experts.")
        adapter.stacked.setdefault(module, []).append(StackedFactors(up, down))
        return
    if down.shape[0] != up.shape[1]:
        raise BadWeights(
            f"{files.source.path}: the factors of {module} have shapes {tuple(down.shape)} and {tuple(up.shape)}; "
            "they should be (r, in) and (out, r)."
        )
    rank = settings.number(module, "rank_pattern", "r")
    if rank != down.shape[0]:
        raise BadWeights(
            f"{files.source.path}: the factors of {module} have rank {down.shape[0]}; {CONFIG} says {rank:g}."
        )
    scale = settings.scale(module, rank)
    magnitude = _read(files, parts["magnitude"], 1) if "magnitude" in parts else None
    if (magnitude is not None) != settings.on("use_dora"):
        raise BadWeights(f"{files.source.path}: {module}: use_dora and the magnitudes of DoRA do not fit each other.")
    if magnitude is not None and magnitude.shape[0] != up.shape[0]:
        raise BadWeights(
            f"{files.source.path}: the magnitudes of {module} are {tuple(magnitude.shape)}, not ({up.shape[0]},)."
        )
    # PEFT factors the transpose of an embedding.
    change = LowRank(down.T, up.T, scale, magnitude, 1) if table else LowRank(up, down, scale, magnitude)
    _add(files, adapter, f"{module}.weight", change)
    if ("bias" in parts) != (settings.on("lora_bias") and not table):
        raise BadWeights(f"{files.source.path}: {module}: lora_bias and the biases of B do not fit each other.")
    if "bias" in parts:
        shift = _read(files, parts["bias"], 1)
        if shift.shape[0] != up.shape[0]:
            raise BadWeights(
                f"{files.source.path}: the bias of {module} is {tuple(shift.shape)}, not ({up.shape[0]},)."
            )
        _add(files, adapter, f"{module}.bias", Added(shift * scale))


def _read_adalora(files: AdapterFiles, adapter: Adapter) -> Names:
    factors: dict[str, dict[str, str]] = {}
    rest = []
    for name in files.stored:
        if match := _ADALORA.fullmatch(name):
            factors.setdefault(match["module"], {})[match["part"]] = name
        else:
            rest.append(name)
    for module, parts in factors.items():
        _require_targeted(files, module)
        if missing := sorted({"A", "B", "E"} - parts.keys()):
            raise BadWeights(f"{files.source.path}: {module} lacks its factor {missing[0]}.")
        down, up, values = (_read(files, parts[part], 2, empty=True) for part in "ABE")
        if not down.shape[0] == up.shape[1] == values.shape[0] or values.shape[1] != 1:
            raise BadWeights(
                f"{files.source.path}: the factors of {module} have shapes {tuple(down.shape)}, {tuple(up.shape)} "
                f"and {tuple(values.shape)}; they should be (r, in), (out, r) and (r, 1)."
            )
        # PEFT divides by the initial rank, even if training has pruned the factors.
        rank = files.settings.number(module, "", "init_r")
        if down.shape[0] > rank:
            raise BadWeights(
                f"{files.source.path}: the factors of {module} have rank {down.shape[0]}; init_r is {rank:g}."
            )
        alpha = files.settings.number(module, "", "lora_alpha")
        _add(files, adapter, f"{module}.weight", LowRank(up, down * values, alpha / (rank + _EPSILON)))
    return rest


def _read_ia3(files: AdapterFiles, adapter: Adapter) -> Names:
    rest = []
    for name in files.stored:
        match = _IA3.fullmatch(name)
        if match is None:
            rest.append(name)
            continue
        _require_targeted(files, match["module"])
        factor = _read(files, name, 2)
        if 1 not in factor.shape:
            raise BadWeights(
                f"{files.source.path}: tensor {files.stored[name]!r} has shape {tuple(factor.shape)}; it should "
                "be (out, 1) or, of a feed-forward layer, (1, in)."
            )
        inputs = factor.shape[0] == 1
        _add(files, adapter, f"{match['module']}.weight", Scaled(factor.reshape(-1), 1 if inputs else 0))
        if not inputs:
            _add(files, adapter, f"{match['module']}.bias", Scaled(factor.reshape(-1), vector=True))
    return rest


def _read_ln_tuning(files: AdapterFiles, adapter: Adapter) -> Names:
    rest = []
    for name in files.stored:
        inside = name.replace(".ln_tuning_layers.", ".")
        if inside == name:
            rest.append(name)
        else:
            adapter.whole[inside] = _read(files, name)
    return rest


def _read_computed(files: AdapterFiles, adapter: Adapter) -> Names:
    prefix = COMPUTED[files.settings.method][0]
    pattern = re.compile(rf"(?P<module>.+)\.(?P<part>{prefix}[^.]*(?:\..+)?)")
    rest = []
    for name in files.stored:
        if name.startswith(f"base_model.{prefix}"):
            adapter.computed.setdefault("", {})[name.removeprefix("base_model.")] = _read(files, name)
        elif match := pattern.fullmatch(name):
            _require_targeted(files, match["module"])
            adapter.computed.setdefault(match["module"], {})[match["part"]] = _read(files, name)
        else:
            rest.append(name)
    return rest


_READERS: dict[str, Callable[[AdapterFiles, Adapter], Names]] = {
    "LORA": _read_lora,
    "ADALORA": _read_adalora,
    "IA3": _read_ia3,
    "LN_TUNING": _read_ln_tuning,
    "TRAINABLE_TOKENS": lambda files, _: list(files.stored),
}


def _read_remaining(files: AdapterFiles, adapter: Adapter, names: Names) -> None:
    """Read the remaining trained rows and entire tensors; `adapter_fit` rejects those that the base does not have."""
    for name in names:
        if match := _TOKENS.fullmatch(name):
            ids = torch.tensor(files.settings.tokens(match["module"]))
            values = _read(files, name, 2)
            if values.shape[0] != len(ids):
                raise BadWeights(
                    f"{files.source.path}: tensor {files.stored[name]!r} has {values.shape[0]} rows for "
                    f"{len(ids)} tokens."
                )
            _add(files, adapter, f"{match['module']}.weight", Rows(ids, values))
            continue
        inside = _WRAPPED.sub(".", name)
        if ".original_module." in name and files.settings.saved(name.replace(".original_module.", ".")):
            continue  # the trained copy replaces this tensor of the base
        tensor = _read(files, name)
        if not torch.equal(adapter.whole.setdefault(inside, tensor), tensor):
            raise BadWeights(f"{files.source.path}: two tensors are of {inside}, and they differ.")


def _read(files: AdapterFiles, name: str, ndim: int | None = None, empty: bool = False) -> Tensor:
    """Read one tensor. Raises BadWeights, naming it, if it is empty or has another number of dimensions."""
    stored = files.stored[name]
    shape = files.source.shape(stored)
    if ndim is not None and len(shape) != ndim:
        raise BadWeights(
            f"{files.source.path}: tensor {stored!r} has shape {shape}; it should have {ndim} "
            f"dimension{'s' if ndim > 1 else ''}. Tensors that were saved while they were split over processes "
            "(ZeRO-3, FSDP) have to be saved anew."
        )
    if 0 in shape and not empty:
        raise BadWeights(
            f"{files.source.path}: tensor {stored!r} is empty, {shape}. Tensors that were saved while they were "
            "split over processes (ZeRO-3, FSDP) have to be saved anew."
        )
    return torch.from_numpy(files.source.rows(stored))


def _require_targeted(files: AdapterFiles, module: str) -> None:
    """Raise BadModel for a module that PEFT would not change, although the file has tensors for it."""
    if not (files.settings.targeted(module) or files.settings.parameters(module)):
        raise BadModel(
            f"{files.source.path} changes {module}, which target_modules of {CONFIG} does not name: PEFT would "
            "leave it out."
        )


def _add(files: AdapterFiles, adapter: Adapter, name: str, change: Change) -> None:
    if name in adapter.changes:
        raise BadModel(f"{files.source.path}: {name} is changed in two ways, which zeropass does not put together.")
    adapter.changes[name] = change
