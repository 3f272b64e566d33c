"""What an ``adapter_config.json`` may say: every key is used, known to be harmless, or refused when it is set.

A key that is in no list here is of a PEFT that this reader does not know: refused, unless it is null, false or empty.
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
    "base_model_name_or_path": "used: it is said which base the adapter names",
    "modules_to_save": "used",
    "target_modules": "used",
    "exclude_modules": "the tensors say which modules are changed",
    "layers_to_transform": "the tensors say which layers are changed",
    "layers_pattern": "the tensors say which layers are changed",
    "fan_in_fan_out": "PEFT takes what the layer has, whatever this says",
    "bias": "checked; the trained biases are among the tensors",
    "task_type": "the tensors say which head the adapter brings",
    "auto_mapping": "a class of transformers",
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
    "loftq_config": "about the beginning; init_lora_weights says which one it was",
    "eva_config": "about the beginning; init_lora_weights says which one it was",
    "corda_config": "about the beginning; init_lora_weights says which one it was",
    "lora_ga_config": "about the beginning; init_lora_weights says which one it was",
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
    """The keys of a method whose changes PEFT computes: it is given all of them."""
    return dict.fromkeys(("init_weights", *keys), "given to PEFT")


METHODS: dict[str, dict[str, str]] = {
    "LORA": _LORA,
    "ADALORA": _ADALORA,
    "IA3": {"feedforward_modules": "the tensors say it", "init_ia3_weights": "about the beginning"},
    "LN_TUNING": {},
    "TRAINABLE_TOKENS": {"token_indices": "used", "init_weights": "about the beginning"},
}
"""The keys of each method that is read here, beside those of every method; why a key may be there."""

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
"""Methods whose changes PEFT computes: what its tensors' names begin with, and the keys that it is given."""

PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Ways to begin that leave the base as it is."""

_TABLES = ("embed_tokens", "lm_head")
"""What PEFT calls the tables of tokens, whatever the model calls them."""

_COMPUTED_STARTS = ("gaussian", "xavier_uniform", "kaiming_uniform")
"""The same, of C3A."""

CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that change the base model too. PEFT can save such an adapter converted, and then names another way."""

_PLAIN_PATTERN = re.compile(r"(?P<start>\^?)(?P<any>(?:\.\*\\\.)?)(?P<name>(?:\w|\\?\.)+)\$?")
"""A name, perhaps from its start on, or behind anything and a dot (as PEFT itself writes it), perhaps to its end."""


@dataclass(frozen=True)
class Settings:
    """The checked content of an ``adapter_config.json``.

    Raises BadModel for a method, a key or a value that is not known.
    """

    path: Path
    values: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse what is not known."""
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
        """The kind of adapter, as PEFT calls it (``LORA``)."""
        return str(self.values.get("peft_type"))

    @property
    def base(self) -> str:
        """The base that the adapter names; empty if it names none."""
        return str(self.values.get("base_model_name_or_path") or "")

    def on(self, key: str) -> bool:
        """Whether a switch is on. Raises BadModel for what is neither true nor false."""
        value = self.values.get(key) or False
        if not isinstance(value, bool):
            raise BadModel(f"{self.path}: {key} is {_short(value)}; it must be true or false.")
        return value

    def names(self, key: str) -> list[str]:
        """A list of names. Raises BadModel for anything else."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise BadModel(f"{self.path}: {key} is {_short(value)}; it must be a list of names.")
        return value

    def patterns(self, key: str) -> Mapping[str, Any]:
        """An object of patterns of names. Raises BadModel where one is not a plain name.

        They are regular expressions of the adapter's author: a plain name cannot be made to hang.
        """
        found = self.values.get(key) or {}
        if not isinstance(found, dict):
            raise BadModel(f"{self.path}: {key} must be an object.")
        if odd := [name for name in found if not _PLAIN_PATTERN.fullmatch(name)]:
            raise BadModel(f"{self.path}: {key} has {_short(odd[0])}; zeropass takes plain names of modules only.")
        return found

    def number(self, module: str, pattern: str, plain: str) -> float:
        """A setting of a module: the first pattern that ends its name, as PEFT takes them, or else the plain one."""
        value = self.values.get(plain)
        for key, own in self.patterns(pattern).items():
            found = _PLAIN_PATTERN.fullmatch(key)
            assert found is not None
            bare = found["name"].replace("\\", "")
            ends = module.endswith(f".{bare}") and (found["any"] or not found["start"])
            if ends or (module == bare and not found["any"]):
                value = own
                break
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise BadModel(f"{self.path}: {plain} is {_short(value)} for {module}; it must be a positive number.")
        return float(value)

    def scale(self, module: str, rank: float) -> float:
        """What a module's product of rank ``rank`` is multiplied by."""
        alpha = self.number(module, "alpha_pattern", "lora_alpha")
        return alpha / (math.sqrt(rank) if self.on("use_rslora") else rank)

    def tokens(self, module: str) -> list[int]:
        """The ids of the rows of a table that are trained. Raises BadModel where they are not said."""
        key = "token_indices" if self.method == "TRAINABLE_TOKENS" else "trainable_token_indices"
        ids = self.values.get(key)
        if isinstance(ids, dict):
            ids = next((found for name, found in ids.items() if module.endswith(name)), None)
        plain = isinstance(ids, list) and all(type(i) is int and 0 <= i < 1 << 31 for i in ids)
        if not isinstance(ids, list) or not plain or len(set(ids)) < len(ids):
            raise BadModel(f"{self.path}: {key} is {_short(ids)} for {module}; it must be a list of different ids.")
        return ids

    def parameters(self, module: str) -> list[str]:
        """The parameters of a module that ``target_parameters`` names (``gate_up_proj``).

        A name without a module, as PEFT itself writes it for experts, is of theirs.
        """
        named = [name.rpartition(".") for name in self.names("target_parameters")]
        return [leaf for stem, _, leaf in named if f".{module}".endswith(f".{stem or 'experts'}")]

    def targeted(self, module: str) -> bool:
        """Whether PEFT would change a module: what its list of names leaves out, it does not load."""
        names = self.values.get("target_modules")
        if not isinstance(names, list) or not names:
            return True
        tied = self.tied and module.rpartition(".")[2] in _TABLES
        return tied or any(f".{module}".endswith(f".{name}") for name in names)

    @property
    def tied(self) -> bool:
        """Whether the adapter keeps embedding and unembedding one: PEFT does so where it is told one of these names."""
        if self.method == "TRAINABLE_TOKENS":
            return True
        targets = self.values.get("target_modules")
        names = [*self.names("modules_to_save"), *(targets if isinstance(targets, list) else ())]
        return self.on("ensure_weight_tying") and any(str(name).rpartition(".")[2] in _TABLES for name in names)

    def saved(self, name: str) -> bool:
        """Whether a tensor is of a module that was trained as a whole, beside the base's own (``modules_to_save``)."""
        modules = accumulate(name.split(".")[:-1], "{}.{}".format)
        return any(module.endswith(key) for module in modules for key in self.names("modules_to_save"))

    def version(self) -> tuple[int, ...]:
        """The version of PEFT that wrote the adapter, as numbers; empty if it does not say."""
        found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(self.values.get("peft_version") or ""))
        return tuple(int(part or 0) for part in found.groups()) if found else ()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
