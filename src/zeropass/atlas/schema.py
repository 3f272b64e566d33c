"""The layout of an atlas: the files of its folder, the options of a build, and its jobs. No torch.

::

    plan.json              what is being built; written first, compared when a build continues
    manifest.json          the plan and the results; written last: an atlas without it is not complete
    tokens.parquet         id, text and views of every token;  tokenizer.json to split words
    lens/                  the lens, if lists were made through one: a copy of its folder
    rows/{space}.npy       (V, d) float32: the rows that stand for the tokens, one file for each space
    vectors/{name}.npy     (n, d) float32: folded vectors of one layer and role, without the lens
    vectors/{name}.{frame}.npy  (V,) float32: what a relative frame multiplies the tokens' scores by
    lists/{name}.parquet   top-k and bottom-k tokens of these vectors, one row for each vector and frame
    pairs/{name}.parquet   top pairs of the head maps of one layer
    parameters.parquet     one row for each list: id, address, mean, std, how telling it is, its first words
    coherence.parquet      for each type of list, layer and view: the coherence that random directions stay below
    hits.parquet           for each token and type of list the parameters that rank highest by |z|
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args

from zeropass._io.atomic import atomic_write
from zeropass._io.parse import load_json
from zeropass._io.short_repr import ShortRepr
from zeropass.arch.dimensions import Dimensions, Mlps
from zeropass.arch.frame_names import check_frame
from zeropass.arch.roles import FF_ROLES, OUTPUT_GATE, OUTSIDE, base_role
from zeropass.errors import BadAtlas, BadOption
from zeropass.model.address import Address, canonical_role
from zeropass.tokens.shown import VIEWS, View
from zeropass.tokens.spelling import Kind

if TYPE_CHECKING:
    from zeropass.checkpoints.hub_files import HubPath

__all__ = [
    "SCHEMA_VERSION",
    "Job",
    "Options",
    "Place",
    "Wanted",
    "atlas_file",
    "check_manifest",
    "check_view",
    "factor_file",
    "file_name",
    "head_count",
    "head_width",
    "lists_file",
    "of_address",
    "pairs_file",
    "read_json",
    "safe_name",
    "vector_file",
    "write_json",
]

SCHEMA_VERSION = 6
PLAN, MANIFEST = "plan.json", "manifest.json"
TOKENS, TOKENIZER = "tokens.parquet", "tokenizer.json"
PARAMETERS, TOKEN_INDEX, COHERENCE = "parameters.parquet", "hits.parquet", "coherence.parquet"
LENS, LENS_TEXTS = "lens", ("words", "note")
FOLDERS = ("rows", "vectors", "lists", "pairs", "scratch")


Place = Union[Path, "HubPath"]
"""A file or folder on this machine, or on the hub."""

Wanted = Mapping[str, int | str]
"""Values of columns, by name: the first one selects the rows, the others tell where in a file these may be."""


def of_address(place: Address) -> Wanted:
    """Return the values of an address's rows in the files of lists and pairs."""
    return {"address": str(place), "head": place.head, "index": place.index}


@dataclass(frozen=True, repr=False)
class Options(ShortRepr):
    """The options of a build.

    Attributes:
        k: Tokens of each pole of a list.
        pairs: Top pairs of each head map.
        layers: Half-open range of layers; None for all.
        roles: Roles of the lists and maps, with ``ov`` kept as ``vo``; None for all.
        frames: Frames of the lists; None for the usual ones, through the lens of the build if it has one.
        tokens: View of the tokens in which the lists are made.

    Example:
        >>> import zeropass as zp
        >>> zp.Options(k=20, layers=(0, 2), roles=("gate", "value")).to_json()["layers"]
        [0, 2]
    """

    k: int = 50
    pairs: int = 100
    layers: tuple[int, int] | None = None
    roles: tuple[str, ...] | None = None
    frames: tuple[str, ...] | None = None
    tokens: View = "default"

    def __post_init__(self) -> None:
        for name, value, most in (("--k", self.k, 1_000), ("--pairs", self.pairs, 100_000)):
            if not 1 <= value <= most:
                raise BadOption(f"{name} is {value}; it must be at least 1 and at most {most}.")
        check_view(self.tokens)
        for frame in self.frames or ():
            check_frame(frame)
        if self.frames == ():
            raise BadOption("At least one frame is needed.")
        if self.roles is not None:  # a build that was begun under one name continues under the other
            object.__setattr__(self, "roles", tuple(map(canonical_role, self.roles)))

    def to_json(self) -> dict[str, Any]:
        """Return the options as they stand in plan.json."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Job:
    """One unit of work: the roles of one layer that share a product; layer -1 is outside the blocks."""

    layer: int
    roles: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the job, and of its mark in the scratch folder."""
        return file_name(self.layer, "+".join(self.roles))


def file_name(layer: int, role: str) -> str:
    """Return the stem of the files of a layer and role: ``L26.gate``, or ``pos`` outside the blocks."""
    return f"L{layer}.{role}" if layer >= 0 else role


def lists_file(stem: str) -> str:
    """Return the file of the lists of a layer and role, by the stem of its name."""
    return f"lists/{stem}.parquet"


def pairs_file(layer: int, role: str) -> str:
    """Return the file of the head maps of a layer."""
    return f"pairs/{file_name(layer, role)}.parquet"


def vector_file(layer: int, role: str, frame: str) -> str:
    """Return the file name of folded vectors of a layer and role: ``paper`` folds no norms, the other frames do."""
    return f"{file_name(layer, role)}{'.paper' if frame == 'paper' else ''}.npy"


def factor_file(layer: int, role: str, frame: str) -> str:
    """Return the file name of the factors of the tokens in a relative frame: ``L12.value.distinctive.npy``."""
    return f"{file_name(layer, role)}.{frame}.npy"


def atlas_file(path: Path) -> AbstractContextManager[Path]:
    """Write a file of an atlas atomically; raise BadAtlas, with advice, if that fails."""
    advice = "Make room or choose another --out; the same command then continues where it stopped."
    return atomic_write(path, BadAtlas, advice)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, with sorted keys, so that equal content gives equal bytes."""
    with atlas_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n", encoding="utf-8")


def read_json(path: Place) -> dict[str, Any]:
    """Read a JSON object; raise BadAtlas, naming the file, if it is not one."""
    try:
        value = load_json(Path(path))
    except (OSError, ValueError) as error:
        raise BadAtlas(f"{path} cannot be read ({error}); rebuild the atlas.") from error
    if not isinstance(value, dict):
        raise BadAtlas(f"{path} does not hold a JSON object; rebuild the atlas.")
    return value


_DICTIONARY = {"note": str, "sha256": str, "like": dict}
"""The entries of a manifest about a dictionary, if the atlas is one of its features."""

_MANIFEST: dict[str, type] = {
    "model.name": str,
    "model.family": str,
    "model.layers": int,
    "model.d": int,
    "model.neurons": int,
    "model.heads": int,
    "model.kv_heads": int,
    "model.head_dim": int,
    "model.vocabulary": int,
    "model.ff_roles": list,
    "options.k": int,
    "options.pairs": int,
    "options.tokens": str,
    "tokens_hidden.default": dict,
    "tokens_hidden.words": dict,
    "tokens_hidden.all": dict,
    "token_kind": str,
    "uncased": bool,
    "split_note": str,
    "lists": int,
}


_COUNTED = ("model.layers", "model.heads", "model.kv_heads")
_MOST = 1 << 16
"""The most layers and heads of a manifest. Readers go through them one by one, which more of them would not end."""

LACKING = ("no_attention", "no_mlp")
"""The entries of a manifest on layers of a hybrid that lack a part."""


def check_view(view: str) -> None:
    """Raise BadOption for a view of the tokens that does not exist."""
    if view not in VIEWS:
        raise BadOption(f"There is no view {view!r}; --tokens is one of {', '.join(VIEWS)}.")


def check_manifest(manifest: dict[str, Any], path: Place) -> None:
    """Raise BadAtlas, naming the entry, for a manifest in which an entry that readers need is missing or wrong."""
    for name, entry_type in _MANIFEST.items():
        value = _entry(manifest, name)
        least, most = 1 if name.startswith("model.") else 0, _MOST if name in _COUNTED else None
        wrong_size = isinstance(value, int) and (value < least or (most is not None and value > most))
        if type(value) is not entry_type or wrong_size:
            raise BadAtlas(f"{path}: {name} is {value!r}, which is impossible; rebuild the atlas.")
    heads, kv_heads, layers = (_entry(manifest, name) for name in ("model.heads", "model.kv_heads", "options.layers"))
    value_dim, gate_dim = (manifest["model"].get(name, 1) for name in ("value_dim", "gate_dim"))
    integers = isinstance(layers, list) and [type(x) for x in layers] == [int, int]
    ranged = layers is None or (integers and 0 <= layers[0] < layers[1] <= manifest["model"]["layers"])
    mlps, ff_roles = mlps_of(manifest["model"]), manifest["model"]["ff_roles"]
    hidden = [manifest["tokens_hidden"].get(view) for view in VIEWS]
    counted = all(isinstance(view, dict) and all(type(count) is int for count in view.values()) for view in hidden)
    checks: tuple[tuple[str, bool], ...] = (
        ("model.kv_heads", kv_heads > 0 and heads % kv_heads == 0),
        ("model.value_dim", type(value_dim) is int and value_dim > 0),
        ("model.gate_dim", type(gate_dim) is int and gate_dim > 0),
        ("model.experts", mlps is not None),
        ("model.by_layer", _are_heads(manifest["model"])),
        *((f"model.{name}", _are_layers(manifest["model"].get(name, []))) for name in LACKING),
        ("model.ff_roles", sorted(map(str, ff_roles)) == sorted(set(map(str, ff_roles)) & set(FF_ROLES))),
        ("options.layers", ranged),
        ("options.roles", isinstance(_entry(manifest, "options.roles"), list | None)),
        ("token_kind", manifest["token_kind"] in get_args(Kind)),
        ("options.tokens", manifest["options"]["tokens"] in VIEWS),
        ("tokens_hidden", counted),
        ("dictionary", "dictionary" not in manifest or _is_dictionary(manifest["dictionary"], manifest["model"])),
        ("lens", manifest.get("lens") is None or all(type(_entry(manifest, f"lens.{x}")) is str for x in LENS_TEXTS)),
    )
    for entry, valid in checks:
        if not valid:
            raise BadAtlas(f"{path}: {entry} is {_entry(manifest, entry)!r}, which is impossible; rebuild the atlas.")


def head_width(sizes: Mapping[str, Any], role: str, layer: int) -> int:
    """Return the width of a head for a role, by the part of a manifest on the model or by `Dimensions` as a dict."""
    if role == OUTPUT_GATE and sizes.get("gate_dim"):
        return int(sizes["gate_dim"])
    of_values = base_role(role)[0] in ("v", "o", OUTPUT_GATE)
    width: int = (_size_at(sizes, "value_dim", layer) if of_values else 0) or _size_at(sizes, "head_dim", layer)
    return width


def group_size(sizes: Mapping[str, Any], layer: int) -> int:
    """Return the number of query heads of a layer that share a key/value head, by the same."""
    return head_count(sizes, layer) // _size_at(sizes, "kv_heads", layer)


def head_count(sizes: Mapping[str, Any], layer: int) -> int:
    """Return the number of query heads of a layer, by the same."""
    return _size_at(sizes, "heads", layer)


def _size_at(sizes: Mapping[str, Any], name: str, layer: int) -> int:
    """Return a size of heads in a layer: its own where they differ between the layers (`Dimensions.by_layer`)."""
    each = sizes.get("by_layer", {}).get(name)
    size: int = each[layer] if each else sizes.get(name, 0)
    return size


_HEAD_SIZES = ("heads", "kv_heads", "head_dim", "value_dim")
"""The sizes of heads that a manifest has for each layer, where they differ."""


def _are_layers(value: object) -> bool:
    """Tell whether an entry of a manifest is a list of layers."""
    return isinstance(value, list) and all(type(layer) is int for layer in value)


def mlp_facts(mlps: Mlps) -> dict[str, Any]:
    """Return what a manifest says of shared experts and of layers without experts, where a model has them."""
    facts = {"shared_neurons": mlps.shared_neurons, "dense": list(mlps.dense), "dense_neurons": mlps.dense_neurons}
    return {name: value for name, value in facts.items() if value}


def head_facts(dims: Dimensions) -> dict[str, Any]:
    """Return what a manifest says of heads of unequal sizes, where a model has them."""
    each = {name: list(values) for name, values in dims.by_layer.items() if name in _HEAD_SIZES}
    facts = {"by_layer": each, "value_dim": dims.value_dim, "gate_dim": dims.gate_dim}
    return {name: value for name, value in facts.items() if value}


def _are_heads(model: Mapping[str, Any]) -> bool:
    """Tell whether the entry on sizes of heads that differ between the layers is possible."""
    each = model.get("by_layer", {})
    if not isinstance(each, dict) or not {*each} <= {*_HEAD_SIZES}:
        return False
    listed = all(isinstance(sizes, list) and len(sizes) == model["layers"] for sizes in each.values())
    if not listed or any(type(size) is not int or not 1 <= size <= _MOST for sizes in each.values() for size in sizes):
        return False
    return all(head_count(model, n) % _size_at(model, "kv_heads", n) == 0 for n in range(model["layers"]))


def hybrid_facts(dims: Dimensions) -> dict[str, list[int]]:
    """Return what a manifest says of layers that lack a part, where a model has them."""
    return {name: list(layers) for name in LACKING if (layers := getattr(dims, name))}


def layers_with(part: Literal["attention", "mlp"], model: Mapping[str, Any], layers: Iterable[int]) -> list[int]:
    """Return the layers that have a part, by the part of a manifest on the model."""
    lacking = model.get(f"no_{part}", ())
    return [layer for layer in layers if layer not in lacking]


def mlps_of(model: Mapping[str, Any]) -> Mlps | None:
    """Return the MLPs of the layers by the part of a manifest on the model; None if they cannot be."""
    neurons, experts = model["neurons"], model.get("experts", 1)
    shared, dense, dense_neurons = (model.get(name, 0) for name in ("shared_neurons", "dense", "dense_neurons"))
    sizes, layers = (neurons, experts, shared, dense_neurons), dense or []
    if not isinstance(layers, list) or any(type(number) is not int or number < 0 for number in (*sizes, *layers)):
        return None
    routed = neurons - shared
    if not experts or routed < experts or routed % experts or (layers and not dense_neurons):
        return None
    return Mlps(neurons, experts, shared, tuple(layers), dense_neurons)


def _is_dictionary(entry: Any, model: dict[str, Any]) -> bool:
    """Tell whether an entry of a manifest is one about a dictionary."""
    if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in _DICTIONARY.items()):
        return False
    like = [(name, *value) for name, value in entry["like"].items() if isinstance(value, list)]
    return len(like) == len(entry["like"]) and all(
        len(each) == 3
        and _FEATURES.fullmatch(each[0])
        and type(each[1]) is int
        and OUTSIDE <= each[1] < model["layers"]
        and type(each[2]) is str
        for each in like
    )


_FEATURES = re.compile(r"L[0-9]{1,4}\.(encoder|decoder(\.[0-9]{1,4})?)")
"""The name of a set of features, as in the names of its files."""


def _entry(value: Any, name: str) -> Any:
    """Return an entry of a manifest by its path, such as ``model.d``; None if it is missing."""
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def safe_name(space: str) -> str:
    """Return the stem of the files of a space of rows."""
    return space.replace(".", "-")
