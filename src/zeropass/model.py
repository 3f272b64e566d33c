"""A source, a record and a vocabulary make a model: its parameters in canonical shape, read lazily.

Every matrix comes as (rows, d) float32, one vector of the residual stream a row (design.md §2).
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeropass.arch.families import FAMILIES
from zeropass.arch.spec import Dimensions, Family, Layout, Rope, Side, Stored, expand
from zeropass.errors import BadAddress, BadModel, BadOption, BadWeights, UnknownFamily
from zeropass.sources.base import TensorSource
from zeropass.sources.files import ModelFiles, fingerprint, open_files
from zeropass.sources.gguf import requantised
from zeropass.vocab import Vocabulary

__all__ = ["Model", "open_model"]


_NARROW = {"F16": torch.float16, "BF16": torch.bfloat16}
"""Types narrower than float32, as files name them."""


@dataclass(frozen=True, eq=False)
class Model:
    """The parameters of one model in canonical shape. Nothing is read before it is asked for."""

    name: str
    family: Family
    layout: Layout
    dims: Dimensions
    vocab: Vocabulary
    files: ModelFiles
    prefix: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def source(self) -> TensorSource:
        """Where the tensors are read from."""
        return self.files.source

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weight files."""
        return fingerprint(self.files.weight_files)

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in self.files.weight_files)

    def has(self, what: str) -> bool:
        """Whether the model has a tensor of this canonical name (``q_bias``, ``positions`` …)."""
        stored = self._find(what)
        return stored is not None and self._name(stored, 0) in self._names

    def matrix(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start:stop`` of a canonical matrix, (rows, d) float32, on the model's device.

        ``what`` is a role (``gate``, ``q`` …) or a table (``embedding``, ``positions`` …).
        Raises BadWeights for a tensor that the file lacks or that holds NaN or infinite values.
        """
        stored = self._stored(what)
        name = self._name(stored, layer)
        rows, total = self._rows(what, name, stored)
        stop = rows if stop is None else stop
        if stored.paired_rows:
            block = self.source.rows(name)
            return self._unpaired(torch.from_numpy(block), what)[start:stop].to(self.device)
        first = stored.part[0] * (total // stored.part[1])
        if stored.transpose:
            block = self.source.rows(name, columns=slice(first + start, first + stop)).T
        else:
            block = self.source.rows(name, first + start, first + stop)
        return torch.from_numpy(block).contiguous().to(self.device)

    def vector(self, what: str, layer: int = 0) -> Tensor | None:
        """A canonical vector (a norm's gain or shift, a bias), (size,) float32, or None if the model has none."""
        stored = self._find(what)
        if stored is None or self._name(stored, layer) not in self._names:
            return None
        whole = torch.from_numpy(self.source.rows(self._name(stored, layer)))
        if stored.paired_rows:
            whole = self._unpaired(whole, what)
        size = whole.shape[0] // stored.part[1]
        return whole[stored.part[0] * size : (stored.part[0] + 1) * size].to(self.device)

    def head(self, role: str, layer: int, head: int) -> Tensor:
        """The (d_h, d) vectors of one query head: its own q or o, or the k or v of its group (GQA)."""
        start = self.kv_head(role, head) * self.dims.head_dim
        return self.matrix(role, layer, start, start + self.dims.head_dim)

    def kv_head(self, role: str, head: int) -> int:
        """Which stored head of a role a query head uses (design.md §2, GQA)."""
        return head // self.dims.group if role in ("k", "v") else head

    @cached_property
    def embedding(self) -> Tensor:
        """E, (V, d): kept once read, since everything needs it."""
        return self.matrix("embedding")

    @cached_property
    def unembedding(self) -> Tensor:
        """U, (V, d): the same tensor as E when tied, and in an encoder without a language model's head.

        Raises BadWeights for an untied checkpoint that was saved without it: E would not be what it says.
        """
        if self.dims.tied or (self.family.norm_place == "post" and not self.has("unembedding")):
            return self.embedding
        if not self.has("unembedding"):
            raise BadWeights(
                f"{self.source.path}: this checkpoint was saved without its unembedding, which is not tied to the "
                "embedding; only the token frame can be read (--frame token)."
            )
        return self.matrix("unembedding")

    def info(self) -> dict[str, Any]:
        """What the model is and what of it zeropass reads, JSON-ready: sizes, stored types, hash."""
        names = self.source.names()
        records = [*self.layout.tensors.values(), *(stored for stored, _ in self.layout.extra.values())]
        read = {_full_name(name, self.prefix) for stored in records for name in expand(stored, self.dims.layers)}
        sizes = {name: math.prod(self.source.shape(name)) for name in names}
        types = Counter(self.source.dtype(name) for name in names)
        dims = {f.name: getattr(self.dims, f.name) for f in fields(Dimensions) if f.name != "rope"}
        return {
            "model": self.name,
            "family": self.family.name,
            "norm": f"{self.family.norm_place}-{self.family.norm}",
            **dims,
            "rope": asdict(self.dims.rope) if self.dims.rope else None,
            "roles": list(self.family.roles),
            "parameters": sum(sizes.values()),
            "tensors": len(names),
            "tensors_read": len(read & set(names)),
            "tensors_unread": sorted(set(names) - read),
            "types": dict(types),
            "files": [str(path) for path in self.files.weight_files],
            "bytes": self.size,
            "sha256": self.fingerprint,
        }

    def forget(self) -> None:
        """Let go of the kept embeddings; they are read again when next asked for."""
        for name in ("embedding", "unembedding"):
            self.__dict__.pop(name, None)

    @cached_property
    def rope_factors(self) -> Tensor | None:
        """Divisors of the rotary frequencies that the file itself keeps, (d_h/2,), if it does."""
        return self.vector("rope_factors")

    def tables(self) -> dict[str, tuple[str, Side, int]]:
        """Tables of stream vectors outside the blocks: address stem -> (canonical name, side, rows)."""
        found: dict[str, tuple[str, Side, int]] = {}
        for stem, what in (("pos", "positions"), ("type", "types")):
            if self.has(what):
                found[stem] = (what, "write", self.rows(what))
        for stem, (_, side) in self.layout.extra.items():
            if self.has(stem):
                found[stem] = (stem, side, self.rows(stem))
        return found

    def rows(self, what: str, layer: int = 0) -> int:
        """How many rows a canonical matrix has."""
        stored = self._stored(what)
        return self._rows(what, self._name(stored, layer), stored)[0]

    def stored_type(self, what: str, layer: int = 0) -> str:
        """Name of the type that a canonical tensor is stored in, as its file names it (``F16``, ``Q4_1`` …)."""
        return self.source.dtype(self._name(self._stored(what), layer))

    def as_stored(self, what: str, layer: int, values: Tensor) -> Tensor | None:
        """What a canonical tensor of these values would be if it were stored in this one's type.

        None where that is not known, and for float32, which changes nothing.
        """
        kind = self.stored_type(what, layer)
        if kind in _NARROW:
            return values.to(_NARROW[kind]).float()
        if kind in ("F32", "F64") or values.ndim != 2:
            return None
        turned = self._stored(what).transpose  # blocks run along the rows as they lie in the file
        found = requantised(np.ascontiguousarray((values.T if turned else values).cpu().numpy()), kind)
        if found is None:
            return None
        stored = torch.from_numpy(found).to(values.device)
        return stored.T if turned else stored

    def is_vector(self, what: str) -> bool:
        """Whether a tensor outside the blocks is one lone vector of the stream instead of a table."""
        return len(self.source.shape(self._name(self._stored(what), 0))) == 1

    def require_layer(self, layer: int) -> None:
        """Raise BadAddress, with the range, for a layer that the model does not have."""
        if not 0 <= layer < self.dims.layers:
            raise BadAddress(f"Layer {layer} is out of range: {self.name} has layers 0 to {self.dims.layers - 1}.")

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.source.names())

    def _find(self, what: str) -> Stored | None:
        return self.layout.tensors.get(what) or self.layout.extra.get(what, (None,))[0]

    def _stored(self, what: str) -> Stored:
        stored = self._find(what)
        if stored is None:
            raise BadWeights(f"{self.source.path}: the record of {self.family.name} has no tensor {what!r}.")
        return stored

    def _name(self, stored: Stored, layer: int) -> str:
        return _full_name(stored.name.format(layer=layer), self.prefix)

    def _rows(self, what: str, name: str, stored: Stored) -> tuple[int, int]:
        shape = self.source.shape(name)
        if len(shape) == 1:
            return (shape[0] // stored.part[1], shape[0]) if what.endswith("bias") else (1, 1)
        total = shape[1] if stored.transpose else shape[0]
        return total // stored.part[1], total

    def _unpaired(self, rows: Tensor, what: str) -> Tensor:
        """Undo llama.cpp's reordering of rotary rows: neighbours (x_2i, x_2i+1) back to halves."""
        heads = self.dims.heads if what.startswith("q") else self.dims.kv_heads
        paired = rows.reshape(heads, self.dims.head_dim // 2, 2, *rows.shape[1:])
        return paired.swapaxes(1, 2).reshape(rows.shape)


def open_model(model: str, device: str | torch.device = "cpu") -> Model:
    """Open a model by hub id, folder, ``.gguf`` file or demo name; reads headers and vocabulary, no weights.

    Raises BadModel (or one of its children) where the files do not fit each other or the family is not known,
    NotFetched where a hub or registry cannot be reached.
    """
    files = open_files(model)
    family, layout = _family(files)
    names = frozenset(files.source.names())
    prefix = _prefix(layout, names, files)
    dims = _dimensions(files, family, layout, prefix, names)
    _check_shapes(files, layout, dims, prefix, names)
    _check_leftovers(files, family, layout, dims, prefix, names)
    return Model(model, family, layout, dims, _vocabulary(files, dims), files, prefix, _device(device))


def _device(device: str | torch.device) -> torch.device:
    """A device that works here; BadOption, with torch's reason, if it does not."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise BadOption(f"--device {device}: torch cannot use it here ({str(error).splitlines()[0]}).") from error


def _family(files: ModelFiles) -> tuple[Family, Layout]:
    key = "general.architecture" if files.format == "gguf" else "model_type"
    kind = files.config.get(key)
    known = sorted(family.name for family in FAMILIES)
    for family in FAMILIES:
        if kind in family.model_types:
            if (layout := family.layout(files.format)) is not None:
                return family, layout
            raise UnknownFamily(
                f"{files.path}: family {kind!r} is known, but not as a {files.format} file; "
                f"known there: {', '.join(layout.format for layout in family.layouts)}."
            )
    raise UnknownFamily(
        f"{files.path}: {key} is {kind!r}, which is not in the table of families. Known: {', '.join(known)}."
    )


def _full_name(name: str, prefix: str) -> str:
    return name[1:] if name.startswith("^") else prefix + name


def _prefix(layout: Layout, names: frozenset[str], files: ModelFiles) -> str:
    anchor = layout.tensors["embedding"].name
    for prefix in layout.prefixes:
        if prefix + anchor in names:
            return prefix
    tried = " or ".join(prefix + anchor for prefix in layout.prefixes)
    raise BadWeights(f"{files.source.path}: there is no embedding; expected a tensor named {tried}.")


def _lookup(files: ModelFiles, layout: Layout, family: Family, what: str) -> Any:
    for key in layout.config.get(what, ()):
        if files.config.get(key) is not None:
            return files.config[key]
    return family.config.get(what)


def _dimensions(files: ModelFiles, family: Family, layout: Layout, prefix: str, names: frozenset[str]) -> Dimensions:
    found = {f.name: _lookup(files, layout, family, f.name) for f in fields(Dimensions)}
    embedding = files.source.shape(_full_name(layout.tensors["embedding"].name, prefix))
    found["vocab"] = found["vocab"] if found["vocab"] is not None else embedding[0]
    sizes = {name: _positive(files, layout, name, found[name]) for name in _SIZES if found[name] is not None}
    for name in ("layers", "d", "heads", "kv_heads"):
        if name not in sizes:
            raise BadModel(f"{files.path}: the configuration lacks {' / '.join(layout.config[name])}.")
    sizes.setdefault("head_dim", sizes["d"] // sizes["heads"])
    sizes.setdefault("neurons", 4 * sizes["d"])  # GPT-2's rule where n_inner is null
    if sizes["heads"] % sizes["kv_heads"]:
        raise BadModel(f"{files.path}: {sizes['heads']} heads cannot share {sizes['kv_heads']} key/value heads.")
    if family.rotary and sizes["head_dim"] % 2:
        raise BadModel(f"{files.path}: the head width is {sizes['head_dim']}; rotary positions need an even one.")
    return Dimensions(
        **sizes,
        eps=_positive_number(files, " / ".join(layout.config["eps"]), found["eps"]),
        activation=str(found["activation"]),
        tied=_tied(files, family, layout, prefix, names),
        rope=_rope(files, layout, family, sizes["head_dim"]) if family.rotary else None,
    )


_SIZES = ("layers", "d", "heads", "kv_heads", "head_dim", "neurons", "vocab")


def _positive(files: ModelFiles, layout: Layout, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        keys = " / ".join(layout.config.get(name, (name,)))
        raise BadModel(f"{files.path}: {keys} is {value!r}; it must be a positive whole number.")
    return value


def _positive_number(files: ModelFiles, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadModel(f"{files.path}: {key} is {value!r}; it must be a positive number.")
    return float(value)


def _tied(files: ModelFiles, family: Family, layout: Layout, prefix: str, names: frozenset[str]) -> bool:
    head = _full_name(layout.tensors["unembedding"].name, prefix)
    if files.format == "gguf":
        return head not in names
    tied = files.config.get("tie_word_embeddings", family.tied_by_default)
    if not isinstance(tied, bool):
        raise BadModel(f"{files.path}: tie_word_embeddings is {tied!r}; it must be true or false.")
    task_head = any(_full_name(stored.name, prefix) in names for stored, _ in layout.extra.values())
    if not tied and head not in names and not (task_head or _bare(layout, prefix)):
        raise BadWeights(
            f"{files.source.path}: the configuration says the unembedding is not tied, but {head} is missing."
        )
    return tied


def _bare(layout: Layout, prefix: str) -> bool:
    """A checkpoint of the blocks alone, saved without its task head: it has no unembedding of its own."""
    return len(layout.prefixes) > 1 and prefix == ""


_ROPE_OPTIONS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What each known rule of rescaling needs; one that is not known is refused when an offset is asked for."""


def _rope(files: ModelFiles, layout: Layout, family: Family, width: int) -> Rope:
    """Base and scaling of rotary positions, from either spelling that configurations use."""
    if files.format == "gguf":
        kind = files.config.get(f"{family.name}.rope.scaling.type", "default")
        kind = "default" if kind == "none" else kind
        turned = files.config.get(f"{family.name}.rope.dimension_count", width)
        if turned != width or f"{family.name}.rope.scale_linear" in files.config:
            raise BadModel(
                f"{files.path}: rope.dimension_count {turned!r} beside heads of {width}, or rope.scale_linear: "
                "rotary positions of a kind that is not known."
            )
        options = {"factor": files.config.get(f"{family.name}.rope.scaling.factor", 1.0)}
        theta = _lookup(files, layout, family, "rope_theta")
    else:
        options = files.config.get("rope_parameters") or files.config.get("rope_scaling") or {}
        if not isinstance(options, Mapping):
            raise BadModel(f"{files.path}: rope_scaling must be an object, not {options!r}.")
        theta = options.get("rope_theta", files.config.get("rope_theta"))
        kind = options.get("rope_type") or options.get("type") or "default"
    needed = _ROPE_OPTIONS.get(str(kind), ())
    numbers = {key: _positive_number(files, f"{key} of the {kind} RoPE", options.get(key)) for key in needed}
    theta = 10000.0 if theta is None else _positive_number(files, "rope_theta", theta)
    return Rope(theta, str(kind), numbers)


def _expected_shape(what: str, dims: Dimensions) -> tuple[int | None, ...]:
    """Canonical shape of a tensor, None where any size will do."""
    q, kv, n, d = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim, dims.neurons, dims.d
    sizes = {"q": q, "o": q, "k": kv, "v": kv, "gate": n, "up": n, "key": n, "value": n}
    if what in ("embedding", "unembedding"):
        return (dims.vocab, d)
    if what in sizes:
        return (sizes[what], d)
    if what in ("positions", "types"):
        return (None, d)
    if what == "rope_factors":
        return (dims.head_dim // 2,)
    stem = what.removesuffix("_bias")
    return (sizes[stem],) if what.endswith("_bias") and stem in sizes and stem not in ("o", "value") else (d,)


def _check_shapes(files: ModelFiles, layout: Layout, dims: Dimensions, prefix: str, names: frozenset[str]) -> None:
    _check_extras(files, layout, dims, prefix, names)
    for what, stored in layout.tensors.items():
        expected = _stored_shape(_expected_shape(what, dims), stored)
        for plain in expand(stored, dims.layers):
            name = _full_name(plain, prefix)
            if name not in names:
                if what in layout.optional:
                    continue
                raise BadWeights(f"{files.source.path}: tensor {name} is missing.")
            found = files.source.shape(name)
            if len(found) != len(expected) or any(
                e is not None and e != f for e, f in zip(expected, found, strict=True)
            ):
                wanted = tuple("any" if e is None else e for e in expected)
                raise BadWeights(
                    f"{files.source.path}: tensor {name} has shape {found}; the configuration asks for {wanted}."
                )


def _check_extras(files: ModelFiles, layout: Layout, dims: Dimensions, prefix: str, names: frozenset[str]) -> None:
    """Vectors outside the usual roles: any number of them, but as wide as the stream."""
    for stored, _ in layout.extra.values():
        name = _full_name(stored.name, prefix)
        if name not in names:
            continue
        found = files.source.shape(name)
        if len(found) not in (1, 2) or found[-1] != dims.d:
            raise BadWeights(
                f"{files.source.path}: tensor {name} has shape {found}; the configuration asks for vectors of {dims.d}."
            )


def _stored_shape(canonical: tuple[int | None, ...], stored: Stored) -> tuple[int | None, ...]:
    first = None if canonical[0] is None else canonical[0] * stored.part[1]
    shape = (first, *canonical[1:])
    return tuple(reversed(shape)) if stored.transpose else shape


def _check_leftovers(
    files: ModelFiles, family: Family, layout: Layout, dims: Dimensions, prefix: str, names: frozenset[str]
) -> None:
    """A tensor that the record does not name means another layout than the one we know: refuse, never guess."""
    records = [*layout.tensors.values(), *(stored for stored, _ in layout.extra.values())]
    known = {_full_name(name, prefix) for stored in records for name in expand(stored, dims.layers)}
    unread = [re.compile(re.escape(prefix) + p if not p.startswith(r"\^") else p[2:]) for p in layout.unread]
    left = sorted(n for n in names - known if not any(p.fullmatch(n) for p in unread))
    if left:
        shown = ", ".join(repr(name) for name in left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        raise UnknownFamily(
            f"{files.source.path}: this is not the {family.name} layout that zeropass knows: "
            f"the record does not name {shown}."
        )


def _vocabulary(files: ModelFiles, dims: Dimensions) -> Vocabulary:
    if files.format == "gguf":
        vocab = Vocabulary.from_gguf(files.tokenizer_metadata, dims.vocab)
    elif files.tokenizer_json is not None:
        vocab = Vocabulary.from_tokenizer_json(files.tokenizer_json, dims.vocab)
    else:
        raise BadModel(f"{files.path}: there is no tokenizer.json to name the tokens.")
    if vocab.size != dims.vocab:
        raise BadModel(f"{files.path}: {vocab.size} tokens, but the embedding has {dims.vocab} rows.")
    return vocab
