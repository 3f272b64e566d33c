"""The settings of an ``adapter_config.json``: every key is used, known to be harmless, or rejected when it is set.

A key that no list here names comes from an unknown version of PEFT. It is rejected unless it is null, false or empty.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from zeropass.errors import BadModel

__all__ = ["COMPUTED", "METHODS", "Settings"]

_EVERYWHERE = {
    "peft_type": "used",
    "base_model_name_or_path": "used: the notes say which base the adapter names",
    "modules_to_save": "used",
    "target_modules": "used",
    "exclude_modules": "the tensors say which modules are changed",
    "layers_to_transform": "the tensors say which layers are changed",
    "layers_pattern": "the tensors say which layers are changed",
    "fan_in_fan_out": "PEFT takes the layout of the layer, whatever this says",
    "bias": "checked; the trained biases are among the tensors",
    "task_type": "the tensors say which head the adapter adds",
    "auto_mapping": "the name of a class of transformers",
    "inference_mode": "about training",
    "peft_version": "used",
    "revision": "a commit of the base",
}
_LORA = {
    "r": "used",
    "lora_alpha": "used",
    "use_rslora": "used",
    "use_dora": "used",
    "rank_pattern": "used",
    "alpha_pattern": "used",
    "init_lora_weights": "checked",
    "lora_bias": "used",
    "trainable_token_indices": "used",
    "target_parameters": "used",
    "ensure_weight_tying": "used",
    "lora_dropout": "about training",
    "loftq_config": "about initialisation; init_lora_weights names the method",
    "eva_config": "about initialisation; init_lora_weights names the method",
    "corda_config": "about initialisation; init_lora_weights names the method",
    "lora_ga_config": "about initialisation; init_lora_weights names the method",
    "megatron_core": "the name of a package, for megatron_config",
    "qalora_group_size": "for use_qalora",
    "runtime_config": "about running",
}
_ADALORA = {
    **{key: why for key, why in _LORA.items() if key not in ("use_dora", "lora_bias", "target_parameters")},
    **dict.fromkeys(("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2"), "about training"),
    **dict.fromkeys(("orth_reg_weight", "total_step"), "about training"),
    "init_r": "used",
}


def _computed(*keys: str) -> dict[str, str]:
    """Return the keys of a method whose changes PEFT computes; PEFT receives all of them."""
    return dict.fromkeys(("init_weights", *keys), "given to PEFT")


METHODS: dict[str, dict[str, str]] = {
    "LORA": _LORA,
    "ADALORA": _ADALORA,
    "IA3": {"feedforward_modules": "the shapes of the tensors say it", "init_ia3_weights": "about initialisation"},
    "LN_TUNING": {},
    "TRAINABLE_TOKENS": {"token_indices": "used", "init_weights": "about initialisation"},
}
"""The keys of each method that is read here, in addition to those of every method, with the reason to accept each."""

_PATTERNS = ("rank_pattern", "alpha_pattern")
COMPUTED: dict[str, tuple[str, dict[str, str]]] = {
    "VERA": ("vera_", _computed("r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial")),
    "LOHA": ("hada_", _computed("r", "alpha", "rank_dropout", "module_dropout", "use_effective_conv2d", *_PATTERNS)),
    "LOKR": (
        "lokr_",
        _computed("r", "alpha", "rank_dropout", "module_dropout", "use_effective_conv2d", *_PATTERNS)
        | _computed("decompose_both", "decompose_factor", "rank_dropout_scale"),
    ),
    "OFT": (
        "oft_",
        _computed("r", "oft_block_size", "module_dropout", "coft", "eps", "block_share")
        | _computed("use_cayley_neumann", "num_cayley_neumann_terms"),
    ),
    "BOFT": ("boft_", _computed("boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout")),
    "HRA": ("hra_", _computed("r", "apply_GS")),
    "FOURIERFT": ("fourierft_", _computed("n_frequency", "scaling", "random_loc_seed", "n_frequency_pattern")),
    "C3A": ("c3a_", _computed("block_size", "block_size_pattern")),
    "RANDLORA": (
        "randlora_",
        _computed("r", "randlora_alpha", "projection_prng_key", "save_projection", "randlora_dropout")
        | _computed("sparse", "very_sparse"),
    ),
    "HIRA": ("hira_", _computed("r", "hira_dropout", "rank_pattern")),
    "MISS": ("miss_", _computed("r", "miss_dropout", "mini_r")),
    "ROAD": ("road_", _computed("variant", "group_size")),
}
"""The methods whose changes PEFT computes: the prefix of the tensors' names, and the keys that PEFT receives."""

PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""The initialisations of LoRA that do not change the base."""

_TABLES = ("embed_tokens", "lm_head")
"""PEFT's names of the embedding and the unembedding, whatever the model calls them."""

_COMPUTED_STARTS = ("gaussian", "xavier_uniform", "kaiming_uniform")
"""The initialisations of C3A that do not change the base."""

CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""The initialisations that also change the base. PEFT can convert such an adapter, and then names another one."""

_PLAIN_PATTERN = re.compile(r"(?P<start>\^?)(?P<any>(?:\.\*\\\.)?)(?P<name>(?:\w|\\?\.)+)\$?")
"""A plain name, optionally after ``^`` or after ``.*\\.`` (as PEFT itself writes it), optionally before ``$``."""


@dataclass(frozen=True)
class Settings:
    """The checked content of an ``adapter_config.json``.

    Attributes:
        path: The file or the name of an adapter in memory, for messages.
        values: The values by their keys.

    Raises:
        BadModel: For an unknown method, key or value.
    """

    path: Path | str
    values: dict[str, Any]

    def __post_init__(self) -> None:
        """Raise BadModel for an unknown method, key or value."""
        known = self._known()
        unknown = {key: value for key, value in self.values.items() if value and key not in known}
        if unknown:
            named = ", ".join(f"{key} ({_short(value)})" for key, value in sorted(unknown.items()))
            raise BadModel(f"{self.path}: {named}: zeropass does not know what this does to an adapter.")
        biases = self.values.get("bias") or "none"
        if biases not in ("none", "all") and not str(biases).endswith("_only"):
            raise BadModel(f"{self.path}: bias is {_short(biases)}; zeropass knows none, all, lora_only.")
        start = self.values.get("init_lora_weights", True)
        if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
            raise BadModel(
                f"{self.path}: init_lora_weights is {start!r}, which changes the base too, so the factors alone do not "
                "say what changed. Save it converted (save_pretrained(…, path_initial_model_for_weight_conversion=…))."
            )
        if not (start is None or isinstance(start, bool)) and str(start).lower() not in PLAIN_STARTS:
            raise BadModel(
                f"{self.path}: init_lora_weights is {_short(start)}; zeropass does not know whether it leaves the base "
                f"as it is, as true, false, {', '.join(PLAIN_STARTS)} do."
            )
        start = self.values.get("init_weights", True)
        if self.method in COMPUTED and not isinstance(start, bool) and start not in _COMPUTED_STARTS:
            raise BadModel(f"{self.path}: init_weights is {_short(start)}; zeropass knows true and false.")

    def _known(self) -> set[str]:
        if self.method in METHODS:
            return _EVERYWHERE.keys() | METHODS[self.method].keys()
        if self.method in COMPUTED:
            return _EVERYWHERE.keys() | COMPUTED[self.method][1].keys()
        raise BadModel(
            f"{self.path}: peft_type is {_short(self.values.get('peft_type'))}; zeropass reads "
            f"{', '.join(METHODS)}, and with PEFT installed {', '.join(COMPUTED)}."
        )

    @property
    def method(self) -> str:
        """The method of the adapter, as PEFT names it (``LORA``)."""
        return str(self.values.get("peft_type"))

    @property
    def base(self) -> str:
        """The name of the base model that the adapter states; empty if it states none."""
        return str(self.values.get("base_model_name_or_path") or "")

    def on(self, key: str) -> bool:
        """Tell whether a switch is on. Raises BadModel for a value that is neither true nor false."""
        value = self.values.get(key) or False
        if not isinstance(value, bool):
            raise BadModel(f"{self.path}: {key} is {_short(value)}; it must be true or false.")
        return value

    def names(self, key: str) -> list[str]:
        """Return a list of names. Raises BadModel for anything else."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise BadModel(f"{self.path}: {key} is {_short(value)}; it must be a list of names.")
        return value

    def patterns(self, key: str) -> Mapping[str, Any]:
        """Return the values by patterns of names. Raises BadModel where a pattern is not a plain name.

        The adapter's author may write any regular expression, and some run forever; a plain name cannot.
        """
        patterns = self.values.get(key) or {}
        if not isinstance(patterns, dict):
            raise BadModel(f"{self.path}: {key} must be an object.")
        if odd := [name for name in patterns if not _PLAIN_PATTERN.fullmatch(name)]:
            raise BadModel(f"{self.path}: {key} has {_short(odd[0])}; zeropass takes plain names of modules only.")
        return patterns

    def number(self, module: str, pattern: str, plain: str) -> float:
        """Return the positive number that a module has for a setting.

        Args:
            module: The name of the module.
            pattern: The key of the patterns; the first that matches the end of the module's name counts, as in PEFT.
            plain: The key of the value where no pattern matches.

        Raises:
            BadModel: For a pattern that is not a plain name, and for a value that is not a positive number.
        """
        value = self.values.get(plain)
        for key, pattern_value in self.patterns(pattern).items():
            match = _PLAIN_PATTERN.fullmatch(key)
            assert match is not None
            name = match["name"].replace("\\", "")
            ends = module.endswith(f".{name}") and (match["any"] or not match["start"])
            if ends or (module == name and not match["any"]):
                value = pattern_value
                break
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise BadModel(f"{self.path}: {plain} is {_short(value)} for {module}; it must be a positive number.")
        return float(value)

    def scale(self, module: str, rank: float) -> float:
        """Return the factor of a module's product of rank ``rank``."""
        alpha = self.number(module, "alpha_pattern", "lora_alpha")
        return alpha / (math.sqrt(rank) if self.on("use_rslora") else rank)

    def tokens(self, module: str) -> list[int]:
        """Return the ids of the trained rows of a table. Raises BadModel where they are missing or not distinct."""
        key = "token_indices" if self.method == "TRAINABLE_TOKENS" else "trainable_token_indices"
        ids = self.values.get(key)
        if isinstance(ids, dict):
            ids = next((rows for name, rows in ids.items() if module.endswith(name)), None)
        valid = isinstance(ids, list) and all(type(i) is int and 0 <= i < 1 << 31 for i in ids)
        if not isinstance(ids, list) or not valid or len(set(ids)) < len(ids):
            raise BadModel(f"{self.path}: {key} is {_short(ids)} for {module}; it must be a list of different ids.")
        return ids

    def parameters(self, module: str) -> list[str]:
        """Return the parameters of a module that ``target_parameters`` names (``gate_up_proj``).

        A name without a module, as PEFT itself writes it for experts, belongs to the module ``experts``.
        """
        targets = [name.rpartition(".") for name in self.names("target_parameters")]
        return [leaf for stem, _, leaf in targets if f".{module}".endswith(f".{stem or 'experts'}")]

    def targeted(self, module: str) -> bool:
        """Tell whether PEFT would change a module: it does not load tensors of modules that its list omits."""
        names = self.values.get("target_modules")
        if not isinstance(names, list) or not names:
            return True
        tied = self.tied and module.rpartition(".")[2] in _TABLES
        return tied or any(f".{module}".endswith(f".{name}") for name in names)

    @property
    def tied(self) -> bool:
        """True if the adapter keeps embedding and unembedding tied, as PEFT can for an adapter of one of the two."""
        if self.method == "TRAINABLE_TOKENS":
            return True
        targets = self.values.get("target_modules")
        names = [*self.names("modules_to_save"), *(targets if isinstance(targets, list) else ())]
        return self.on("ensure_weight_tying") and any(str(name).rpartition(".")[2] in _TABLES for name in names)

    def saved(self, name: str) -> bool:
        """Tell whether a tensor belongs to a module of which a trained copy is saved (``modules_to_save``)."""
        modules = accumulate(name.split(".")[:-1], "{}.{}".format)
        return any(module.endswith(key) for module in modules for key in self.names("modules_to_save"))

    def version(self) -> tuple[int, ...]:
        """Return the version of PEFT that wrote the adapter, as numbers; empty if the settings do not state it."""
        match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(self.values.get("peft_version") or ""))
        return tuple(int(part or 0) for part in match.groups()) if match else ()


def _short(value: object) -> str:
    """Return the representation of a value, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
