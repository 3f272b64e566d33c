"""Models: a source of tensors, a record and a vocabulary make parameters in canonical shape, read lazily.

Every matrix is (rows, d) float32, with one vector of the residual stream in each row (docs/theory.md §2).
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zeropass._io.atomic import key_of
from zeropass._io.short_repr import ShortRepr
from zeropass.arch.checks import check, chosen, oriented, records, refuse_quantised
from zeropass.arch.config import dimensions, of_stack
from zeropass.arch.dimensions import Dimensions
from zeropass.arch.embeddings import settle
from zeropass.arch.families import FAMILIES
from zeropass.arch.family_table import attention_of, mlp_of, norm_of, notes_of, positions_of
from zeropass.arch.keys import check_keys
from zeropass.arch.layout import PRODUCTS, Layout, Names, Stored, expand, full_name, names_of, prefix_of, shares_of
from zeropass.arch.roles import ROUTER, Side, base_role, site_of
from zeropass.arch.rows import canonical_rows, row_index
from zeropass.arch.spec import Family, Wrapper
from zeropass.arch.wrappers import layouts_in, text_files, towers, wrapper_files, wrapper_notes, wrapper_of
from zeropass.checkpoints.base import Float32, TensorSource
from zeropass.checkpoints.demo import DEMOS
from zeropass.checkpoints.kept_proofs import proof_facts
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.checkpoints.renamed import today, with_today_names, without_wrapper
from zeropass.checkpoints.stacked import unstacked
from zeropass.checkpoints.storing import stored_as
from zeropass.errors import BadAddress, BadModel, BadOption, BadWeights, CannotRun
from zeropass.tokens.undertrained import Judgement, judge
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["Model", "TokenTable", "opened", "usable_device"]

TokenTable = Literal["embedding", "unembedding"]

_NARROW = {"F16": torch.float16, "BF16": torch.bfloat16}
"""The types narrower than float32, as files name them."""

_DEFAULTS = {
    "experts": 1,
    "experts_used": 1,
    "logit_scale": 1.0,
    "embed_scale": 1.0,
    "value_scale": 1.0,
    "residual_scale": 1.0,
    "site_scales": {},
    "gate_scale": 1.0,
    "router_normed": False,
    "rotary": 0,
    "shared_neurons": 0,
    "dense_neurons": 0,
    "beyond": 0,
    "chunked": False,
    "router_sigmoid": False,
    "distance_reach": 0,
    "distance_buckets": 0,
    "router_groups": 1,
    "router_groups_used": 1,
    "router_group_best": 2,
    "router_scale": 1.0,
    "shared_weight": 1.0,
    "value_dim": 0,
    "gate_dim": 0,
    "further_ahead": False,
    "q_latent": 0,
    "kv_latent": 0,
    "latent_eps": 0.0,
    "by_layer": {},
    "ple": 0,
    "ple_vocab": 0,
    "laurel": 0,
    "streams": 1,
    "eps_behind": 0.0,
}
"""The values that `Model.info` omits, as it omits what is absent."""


@dataclass(frozen=True, eq=False, repr=False)
class Model(ShortRepr):
    """The parameters of one model in canonical shape, read only when they are asked for.

    Attributes:
        name: The name that the user gave: a hub id, a path or the name of a demo model; of a model in memory, where it
            was loaded from or its class.
        family: The record of the family.
        layout: The names and the arrangement of tensors in this format.
        dims: Sizes and constants.
        vocab: The vocabulary.
        files: The files, or their like in memory.
        prefix: The prefix of the names of tensors.
        device: The device of the tensors that are returned.
        wrapper: The multimodal model that it is the text model of, if any.

    Example:
        >>> import zeropass as zp
        >>> model = zp.open_model("models/first")
        >>> model.matrix("gate", 1).shape, model.head("q", 1, 0).shape
        (torch.Size([512, 192]), torch.Size([32, 192]))
    """

    name: str
    family: Family
    layout: Layout
    dims: Dimensions
    vocab: Vocabulary
    files: ModelFiles
    prefix: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrapper: Wrapper | None = None

    def _repr_words(self) -> str:
        sizes = f"{self.dims.layers} layers of {self.dims.d}, {self.dims.vocab} tokens"
        return f"{self.name!r}, {self.family.name}, {sizes}, on {self.device}"

    @property
    def source(self) -> TensorSource:
        """The source of the tensors."""
        return self.files.source

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the weights, by which caches and atlases know them (`ModelFiles.fingerprint`)."""
        return self.files.fingerprint

    @property
    def sha256(self) -> str | dict[str, str] | None:
        """The SHA-256 of the weight file, as ``sha256sum`` prints it: of each by name if there are several."""
        if self.files.state is not None:
            return None
        each = self.files.hashes.sha256
        return each if len(each) > 1 else next(iter(each.values()))

    @property
    def command(self) -> str:
        """The arguments by which a command opens the model."""
        return self.name

    @property
    def size(self) -> int:
        """The size of the weights in bytes, in their files or in memory."""
        return self.files.size

    def has(self, what: str) -> bool:
        """Tell whether the model has a tensor of this canonical name (``q_bias``, ``positions`` …)."""
        stored = self._find(PRODUCTS[what][0] if self.layout.latent_of(what) else what)
        return stored is not None and full_name(next(expand(stored, self.dims), ""), self.prefix) in self._names

    def matrix(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Return rows of a canonical matrix.

        Args:
            what: A role (``gate``, ``q`` …) or a table (``embedding``, ``positions`` …).
            layer: The layer; 0 for what all layers share.
            start: The first row. Rows are numbered through all experts.
            stop: The end of the rows; None for all.

        Returns:
            The rows ``start:stop``, (rows, d) float32, on the model's device. Unused rows of the embeddings that are
            not finite are zero.

        Raises:
            BadWeights: If the file lacks the tensor, or if other values are NaN or infinite.
        """
        if self.layout.latent_of(what):
            return self._product(what, layer, start, self.rows(what) if stop is None else stop)
        rows = self.plain_matrix(what, layer, start, stop)
        gain = self.vector(inner, layer) if (inner := self.layout.inner_norm(what)) else None
        return rows if gain is None else rows * gain[start:stop, None]

    def plain_matrix(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Return `matrix` of what is no product, without the gain of a norm inside (`INNER_NORMS`)."""
        return _on_device(self._stored_rows(what, layer, start, stop), self.device)

    def matrix_on_cpu(self, what: str, layer: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Return `matrix` on the CPU, for what is not computed on the model's device."""
        if self.layout.latent_of(what) or self.layout.inner_norm(what):
            return self.matrix(what, layer, start, stop).cpu()
        return self._stored_rows(what, layer, start, stop)

    def _stored_rows(self, what: str, layer: int, start: int, stop: int | None) -> Tensor:
        stop = self.rows(what, layer) if stop is None else stop
        parts = self._parts(what, layer)
        if len(parts) == 1:
            part, name = parts[0]
            return torch.from_numpy(
                self._with_gain(part, layer, self._picked(part, name, layer, start, stop))
            ).contiguous()
        self._name(what, layer)
        rows = [torch.from_numpy(rows) for rows in self._of_parts(parts, layer, start, stop)]
        return torch.cat(rows) if rows else torch.empty(0, self.dims.d)

    def columns(self, what: str, part: slice, start: int, stop: int) -> Tensor:
        """Return columns of rows ``start:stop`` of a canonical table outside the blocks, on the CPU."""
        return torch.from_numpy(self.source.rows(self._name(what, 0), start, stop, part))

    def vector(self, what: str, layer: int = 0) -> Tensor | None:
        """Return a canonical vector: the gain or shift of a norm, or a bias.

        Args:
            what: Canonical name of the vector.
            layer: The layer; 0 for what all layers share.

        Returns:
            The vector, (size,) float32, or None if the model has none. The gain of a norm is what states are
            multiplied by, however the file keeps it. Biases of what experts read are joined; those of what they write
            are rows, (experts, d).
        """
        parts = self._parts(what, layer)
        if not parts or any(name not in self._names for _, name in parts):
            return None
        each = [self._entries(part, name, layer) for part, name in parts]
        values = each[0] if len(each) == 1 else torch.stack(each) if what == "value_bias" else torch.cat(each)
        values = values.to(self.device)
        return values + offset if (offset := self.layout.offset_of(what)) else values

    def head(self, role: str, layer: int, head: int) -> Tensor:
        """Return the (d_h, d) vectors of one query head: its own q or o, or the k or v of its group (GQA)."""
        width = self.dims.at(layer).width(role)
        start = self.kv_head(role, head, layer) * width
        return self.matrix(role, layer, start, start + width)

    def kv_head(self, role: str, head: int, layer: int) -> int:
        """Return the stored head of a role that a query head of a layer uses (docs/theory.md §2, GQA)."""
        return head // self.dims.at(layer).group if base_role(role) in ("k", "v") else head

    def layer_of(self, role: str, layer: int) -> int:
        """Return the layer whose matrix of a role the heads of a layer use: keys and values may be an earlier one's."""
        return self.dims.kv_layer(layer) if role in ("k", "v") else layer

    @cached_property
    def embedding(self) -> Tensor:
        """The embedding E, (V, d), kept once read; narrower rows are projected to the stream's width."""
        return self.tokens("embedding", slice(0, self.dims.vocab))

    def widened(self, rows: Tensor) -> Tensor:
        """Project rows (…, d) that are added to the embedding to the stream, where embeddings are narrower."""
        return rows @ self.matrix("embed_projection").T if self.has("embed_projection") else rows

    @cached_property
    def unembedding(self) -> Tensor:
        """The unembedding U, (V, d), kept once read; the same tensor as E where `logit_table` is the embedding."""
        return self.embedding if self.logit_table == "embedding" else self.matrix("unembedding")

    @property
    def logit_table(self) -> TokenTable:
        """The table that turns states into logits: E when tied, and in an encoder without a language model's head.

        Raises:
            BadWeights: If an untied checkpoint was saved without the table; E would not give its logits.
        """
        if self.dims.tied or not (self.family.causal or self.has("unembedding")):
            return "embedding"
        if not self.has("unembedding"):
            raise BadWeights(
                f"{self.source.path}: this checkpoint was saved without its unembedding, which is not tied to the "
                "embedding; only the token frame can be read (--frame token)."
            )
        return "unembedding"

    def tokens(self, what: TokenTable, part: slice) -> Tensor:
        """Return rows of `embedding` or `unembedding` for a slice of tokens, from the file unless the table is kept."""
        table: Tensor | None = self.__dict__.get(what)
        if table is not None:
            return table[part]
        rows = self.matrix(what, 0, part.start, part.stop)
        return self.widened(rows) if what == "embedding" else rows

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences that a user should read on the family of the model, and on how its files were read."""
        notes = (*notes_of(self.family, self.dims), *self.files.notes, *self.vocab.notes)
        return tuple(dict.fromkeys(notes))

    @property
    def title(self) -> str:
        """The title of the model, which the user's name for it may leave out; empty where none is known."""
        return self._titled[0]

    @cached_property
    def _titled(self) -> tuple[str, str]:
        """The title and its source: the record of a demo model, or else the metadata of a GGUF file."""
        stored = self.files.config.get("general.name") if self.files.format == "gguf" else None
        stored_title = stored if isinstance(stored, str) else ""
        if (demo := DEMOS.get(self.files.name)) and demo.title:
            remark = f"; the file's general.name is {stored_title!r}" if stored_title else ""
            return demo.title, f"its file in {demo.requirement} is {demo.files[-1].name}{remark}"
        return (stored_title, "general.name of its file") if stored_title else ("", "")

    @cached_property
    def judgement(self) -> Judgement:
        """The under-trained tokens, judged by the embedding, which is not kept, and the merges of the tokenizer.

        Rows without a token have no part in it.
        """
        ids = np.flatnonzero(~self.vocab.absent)
        judged = judge(_Embedding(self, ids), self.vocab.swallowed()[ids])
        judgement = Judgement(*np.zeros((2, self.vocab.size), dtype=np.bool_))
        for flags, of_tokens in zip(judgement, judged, strict=True):
            flags[ids] = of_tokens
        return judgement

    def info(self) -> dict[str, Any]:
        """Return what the model is and what zeropass reads of it, JSON-ready: sizes, stored types, hash."""
        names = self.source.names()
        sizes = {name: math.prod(self.source.shape(name)) for name in names}
        types = Counter(self.source.dtype(name) for name in names)
        parts = towers(self.wrapper, names)
        return {
            "model": self.name,
            "title": self.title or None,
            "title_from": self._titled[1] or None,
            "family": self.family.name,
            "norm": norm_of(self.family),
            "positions": positions_of(self.family),
            "attention": attention_of(self.family),
            "mlp": mlp_of(self.family),
            **self._constants(),
            "roles": list(self.family.roles),
            "notes": list(self.notes),
            "parameters": sum(sizes.values()),
            "tensors": len(names),
            "tensors_read": len(self._named & set(names)),
            "tensors_unread": self.unread(),
            **self._towers(parts, sizes),
            "types": dict(types),
            "files": [str(path) for path in self.files.weight_files],
            "bytes": self.size,
            "sha256": self.sha256,
            "fingerprint": self.fingerprint,
            "proof": proof_facts(lambda: self.fingerprint, self.record_key, self.size),
        }

    def unread(self) -> list[str]:
        """Return the names of the tensors that the record does not read, without those of other parts of a model."""
        names = self.source.names()
        return sorted(set(names) - self._named - set(chain(*towers(self.wrapper, names).values())))

    @property
    def _named(self) -> set[str]:
        """The names of the tensors that the record reads."""
        return {full_name(name, self.prefix) for stored in records(self.layout) for name in expand(stored, self.dims)}

    @cached_property
    def record_key(self) -> str:
        """The key of all that the record says of this model: what is proven of another record is not of this one."""
        return key_of(*(repr(asdict(part)) for part in (self.family, self.layout, self.dims)))

    @cached_property
    def memory(self) -> "Model":
        """The encoder that a decoder's cross attention reads, from the same files."""
        return opened(self.name.removesuffix("#decoder"), self.files, "encoder", self.device)

    def _towers(self, parts: Mapping[str, list[str]], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Return the parts of a multimodal model that are not read, with how much they hold."""
        rows = [
            {
                "tower": tower,
                "holds": self.wrapper.towers[tower] if self.wrapper else "",
                "tensors": len(tensors),
                "parameters": sum(sizes[name] for name in tensors),
            }
            for tower, tensors in parts.items()
        ]
        return {"towers_unread": rows} if rows else {}

    def _constants(self) -> dict[str, Any]:
        """Return the sizes and constants that this model has."""
        defaults = {**_DEFAULTS, "embed": self.dims.d}
        constants = asdict(self.dims)
        if self.dims.mixer is not None:
            del constants["mixer"]["rows"]  # they follow from the sizes
        for rope in filter(None, (constants["rope"], constants["local_rope"])):
            for divisors in ("short", "long"):
                if not rope[divisors]:
                    del rope[divisors]
        return {
            key: value
            for key, value in constants.items()
            if value not in (None, ()) and (key not in defaults or value != defaults[key])
        }

    def forget(self) -> None:
        """Drop the kept embeddings; they are read again when next asked for."""
        for name in ("embedding", "unembedding"):
            self.__dict__.pop(name, None)

    @cached_property
    def rope_factors(self) -> Tensor | None:
        """The divisors of the rotary frequencies, (d_h/2,), if the file itself keeps them."""
        return self.vector("rope_factors")

    def relative(self, layer: int = 0) -> Tensor:
        """Return the biases of relative positions in a layer, (buckets, heads), kept once read."""
        name = self._name("relative", layer)
        if name not in self._relative:
            self._relative[name] = torch.from_numpy(self.source.rows(name)).to(self.device)
        return self._relative[name]

    @cached_property
    def _relative(self) -> dict[str, Tensor]:
        return {}

    def tables(self) -> dict[str, tuple[str, Side, int]]:
        """Return the tables of stream vectors outside the blocks: address stem -> (canonical name, side, rows)."""
        tables: dict[str, tuple[str, Side, int]] = {}
        for stem, what in (("pos", "positions"), ("type", "types")):
            if self.has(what):
                tables[stem] = (what, "write", self.rows(what))
        for stem, (_, side) in self.layout.extra.items():
            if self.has(stem):
                tables[stem] = (stem, side, self.rows(stem))
        return tables

    def rows(self, what: str, layer: int = 0) -> int:
        """Return the number of rows of a canonical matrix; 1 for a lone vector, the number of entries for a bias."""
        if self.layout.latent_of(what):
            return canonical_rows(what, self.dims)
        if what in self.family.roles or self._stored(what).fused:
            return sum(canonical_rows(part, self.dims.at(layer)) for part, _ in self._parts(what, layer))
        shape = self.source.shape(self._name(what, layer))
        if len(shape) < 2:
            return shape[0] if what.endswith("bias") else 1
        return shape[1] if self._stored(what).transpose else shape[0]

    def stored_type(self, what: str, layer: int = 0) -> str:
        """Return the type in which a canonical tensor is stored, as its file names it (``F16``, ``Q4_1`` …).

        Of a product it is that of what maps the latent up.
        """
        return self.source.dtype(self._name(PRODUCTS[what][0] if self.layout.latent_of(what) else what, layer))

    def as_stored(self, what: str, layer: int, values: Tensor) -> Tensor | None:
        """Round values as the type of a stored tensor would.

        Args:
            what: Canonical name of the tensor.
            layer: The layer; 0 for what all layers share.
            values: Canonical values of the tensor.

        Returns:
            The rounded values; None for float32, which changes nothing, and where the rounding is not known.
        """
        type_name = self.stored_type(what, layer)
        if type_name in _NARROW:
            return values.to(_NARROW[type_name]).float()
        if type_name in ("F32", "F64") or values.ndim != 2:
            return None
        transposed = self._stored(what).transpose  # blocks of a quantized type run along the rows of the file
        rounded = stored_as(np.ascontiguousarray((values.T if transposed else values).cpu().numpy()), type_name)
        if rounded is None:
            return None
        stored = torch.from_numpy(rounded).to(values.device)
        return stored.T if transposed else stored

    def is_vector(self, what: str) -> bool:
        """Tell whether a tensor is no table of rows: one lone vector of the stream, or what lies inside a mixer."""
        if self.layout.latent_of(what):
            return False
        shape = self.source.shape(full_name(next(expand(self._stored(what), self.dims)), self.prefix))
        return len(shape) < 2 or what.startswith("inner_")

    def matrices(self, layer: int) -> tuple[str, ...]:
        """Return the roles that are matrices of a layer: those of its parts; one without experts has no router."""
        lacking = (ROUTER,) if layer in self.dims.dense else ()
        lacking = lacking if self.dims.kv_layer(layer) == layer else (*lacking, "k", "v")
        roles = (role for role in self.family.vector_roles if self.dims.has_site(site_of(role), layer))
        return tuple(role for role in roles if role not in lacking)

    def require_alike_layers(self, what: str) -> None:
        """Raise CannotRun, naming what is asked for, for a model whose layers differ in more than it knows."""
        dims = self.dims
        reasons = {
            "some layers attend to the keys and values of others": dims.kv_layers,
            "a token has an embedding of its own in each layer": dims.ple,
            "there are several streams side by side": dims.streams > 1,
            "the stream is multiplied by a factor behind each layer": self.has("layer_scalar"),
        }
        if present := [reason for reason, holds in reasons.items() if holds]:
            raise CannotRun(f"{self.name}: {what} does not know such layers: {'; '.join(present)}.")

    def require_layer(self, layer: int) -> None:
        """Raise BadAddress, with the range, for a layer that the model does not have."""
        if not 0 <= layer < self.dims.layers:
            raise BadAddress(f"Layer {layer} is out of range: {self.name} has layers 0 to {self.dims.layers - 1}.")

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.source.names())

    def _product(self, role: str, layer: int, start: int, stop: int) -> Tensor:
        """Return rows of a role that is a product: what maps the latent up, the gain of its norm, and its rows.

        Each head of ``k`` begins with the rotary rows, which all heads share.
        """
        up, latent = PRODUCTS[role][0], self._latent(self.layout.latent_of(role), layer)
        if role != "k":
            return self.matrix(up, layer, start, stop) @ latent
        width, rotary = self.dims.head_dim, self.dims.rotary
        first, last = start // width, -(-stop // width)
        plain = self.matrix(up, layer, first * (width - rotary), last * (width - rotary)) @ latent
        shared = self.matrix("k_rotary", layer).expand(last - first, -1, -1)
        rows = torch.cat((shared, plain.reshape(last - first, width - rotary, -1)), 1).flatten(0, 1)
        return rows[start - first * width : stop - first * width]

    @cached_property
    def _latent(self) -> Callable[[str, int], Tensor]:
        """The rows of a latent with the gain of its norm, (rank, d), kept for the heads of one layer."""

        def read(latent: str, layer: int) -> Tensor:
            rows, gain = self.matrix(latent, layer), self.vector(f"{latent}_norm", layer)
            return rows if gain is None else rows * gain[:, None]

        return lru_cache(2)(read)

    def _find(self, what: str) -> Stored | None:
        return self.layout.tensors.get(what) or self.layout.extra.get(what, (None,))[0]

    def _stored(self, what: str) -> Stored:
        stored = self._find(what)
        if stored is None:
            raise BadWeights(f"{self.source.path}: the record of {self.family.name} has no tensor {what!r}.")
        return stored

    def _name(self, what: str, layer: int) -> str:
        """Return the name in the file of the first tensor with rows of a canonical one."""
        if not (parts := self._parts(what, layer)):
            raise BadWeights(f"{self.source.path}: the record of {self.family.name} has no tensor {what!r} there.")
        return parts[0][1]

    def _tensors(self, stored: Stored, layer: int) -> tuple[str, ...]:
        """Return the names in the file of the tensors that hold a record entry: one, or one for each expert."""
        return tuple(full_name(name, self.prefix) for name in names_of(stored, layer, self.dims))

    def _parts(self, what: str, layer: int) -> list[tuple[str, str]]:
        """Return the tensors that hold the rows of a canonical one in order: canonical names, and names in the file."""
        return [
            (part, name)
            for part in shares_of(what)
            if (stored := self._find(part)) is not None
            for name in self._tensors(stored, layer)
        ]

    def _entries(self, what: str, name: str, layer: int) -> Tensor:
        """Return the canonical entries of a stored vector."""
        values, stored = torch.from_numpy(self.source.rows(name)), self._stored(what)
        if stored.negative_exp:
            if bool((values > 0).any()):
                raise BadWeights(
                    f"{self.source.path}: tensor {name} has values above zero, which no rate of decay has."
                )
            values = torch.log(-values)
        index = row_index(stored, what, self.dims.at(layer))
        return values if index is None else values[index]

    def _picked(self, what: str, name: str, layer: int, start: int, stop: int) -> Float32:
        """Return canonical rows ``start:stop`` of a tensor, reading no more than the span that holds them."""
        stored = self._stored(what)
        index = row_index(stored, what, self.dims.at(layer))
        if what in get_args(TokenTable):
            return self.source.rows(name, start, stop, spare=self.vocab.unused[start:stop])
        if index is None:
            return self._read(stored, name, start, stop)
        index = index[start:stop]
        if not len(index):
            return self._read(stored, name, 0, 0)
        first, last = int(index.min()), int(index.max()) + 1
        block: Float32 = self._read(stored, name, first, last)[(index - first).numpy()]
        return block

    def _with_gain(self, part: str, layer: int, rows: Float32) -> Float32:
        """Return rows of a canonical tensor times the gain that they carry, if any (`Layout.gains`)."""
        gain = self.vector(self.layout.gains[part], layer) if part in self.layout.gains else None
        return rows if gain is None else rows * gain.cpu().numpy()

    @cached_property
    def without_gains(self) -> "Model":
        """The model whose rows carry no gains of norms of their own (`Layout.gains`)."""
        return replace(self, layout=replace(self.layout, gains={})) if self.layout.gains else self

    def _read(self, stored: Stored, name: str, start: int, stop: int) -> Float32:
        if stored.transpose:
            return np.ascontiguousarray(self.source.rows(name, columns=slice(start, stop)).T)
        return self.source.rows(name, start, stop)

    def _of_parts(self, parts: Sequence[tuple[str, str]], layer: int, start: int, stop: int) -> Iterator[Float32]:
        """Yield rows ``start:stop`` of the rows of all parts, numbered in sequence, part by part."""
        first = 0
        for part, name in parts:
            size = canonical_rows(part, self.dims.at(layer))
            span = max(start - first, 0), min(stop - first, size)
            if span[0] < span[1]:
                yield self._with_gain(part, layer, self._picked(part, name, layer, *span))
            first += size


@dataclass(frozen=True, eq=False)
class _Embedding:
    """The rows of E that have a token, as `judge` reads them; only rows asked for are read from the file."""

    model: Model
    ids: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.ids), self.model.dims.embed

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: slice | npt.NDArray[np.int64]) -> Float32:
        """Return the rows of a slice, or of rising positions among the ids."""
        ids = self.ids[at]
        runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
        parts = [self.model.matrix_on_cpu("embedding", 0, int(run[0]), int(run[-1]) + 1).numpy() for run in runs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def opened(model: str, files: ModelFiles, stack: str, device: torch.device) -> Model:
    """Return the model that files hold; raise as `open_model` does.

    Args:
        model: The name of the model.
        files: Its files, or their like in memory.
        stack: ``encoder`` or ``decoder`` of a model with both; empty for a model of one stack, and for the encoder.
        device: The device of the tensors.
    """
    files = replace(files, source=with_today_names(files.source))
    names = frozenset(files.source.names())
    files, wrapper, outer = _inside(files, names)
    quantised = refuse_quantised(files, names)
    # A multimodal model masks attention itself: the tokens of a text never see those that follow.
    families = [family for family in FAMILIES if wrapper is None or wrapper.both_ways or family.causal]
    family, layout = chosen(files, families, stack)
    files, *rest = of_stack(files, family, layout)
    outer = (*outer, *rest)
    layouts = layouts_in(wrapper, layout)
    keys = [note for part in (files, *outer) for note in check_keys(part, family, layouts[0])]
    files, names = _unwrapped(files, layouts)
    layout, prefix = _placed(files, layouts, names)
    files, names = _unstacked(files, layout)
    tables = settle(files, family, layout, prefix, names)
    files = replace(files, notes=(*files.notes, *quantised, *keys, *tables.notes))
    dims = dimensions(files, family, tables.layout, prefix, names, tables.tied)
    tables = replace(tables, layout=oriented(files, tables.layout, dims, prefix, names))
    check(files, family, tables.layout, dims, prefix, names)
    _refuse_unindexed(files, layout, dims, prefix)
    return Model(
        name=model,
        family=family,
        layout=tables.layout,
        dims=dims,
        vocab=_vocabulary(files, dims),
        files=files,
        prefix=prefix,
        device=device,
        wrapper=wrapper,
    )


def _inside(files: ModelFiles, names: Names) -> tuple[ModelFiles, Wrapper | None, tuple[ModelFiles, ...]]:
    """Return the files of the text model, the wrapper around it if any, and the wrapper's own configuration."""
    wrapper = wrapper_of(files)
    if wrapper is None:
        return files, None, ()
    noted = replace(files, notes=(*files.notes, *wrapper_notes(files, wrapper, names)))
    return text_files(noted, wrapper), wrapper, (wrapper_files(files, wrapper),)


def _placed(files: ModelFiles, layouts: tuple[Layout, ...], names: Names) -> tuple[Layout, str]:
    """Return the layout that a file has and the prefix of its tensors. Raises BadWeights if it has none of them."""
    for layout in layouts:
        if (prefix := prefix_of(layout, names)) is not None:
            return layout, prefix
    expected = (full_name(layout.tensors["embedding"].name, prefix) for layout in layouts for prefix in layout.prefixes)
    raise BadWeights(f"{files.source.path}: there is no embedding; expected a tensor named {' or '.join(expected)}.")


def _unwrapped(files: ModelFiles, layouts: tuple[Layout, ...]) -> tuple[ModelFiles, Names]:
    """Return the files and their names of tensors, without the prefix of a class around the entire model."""

    def fits(names: Collection[str]) -> bool:
        return any(prefix_of(layout, frozenset(names)) is not None for layout in layouts)

    source, wrapper = without_wrapper(files.source, fits)
    if wrapper:
        note = f"All names of tensors begin with {wrapper!r}, which is a wrapper's and was left out."
        unindexed = frozenset(name.removeprefix(wrapper) for name in files.unindexed)
        files = replace(files, source=source, notes=(*files.notes, note), unindexed=unindexed)
    return files, frozenset(source.names())


def _unstacked(files: ModelFiles, layout: Layout) -> tuple[ModelFiles, frozenset[str]]:
    """Return the files and their names of tensors, with a tensor for each expert where the layout says so."""
    stems = {
        stored.name.removeprefix("^").rpartition("[")[0] for stored in records(layout) if stored.name.endswith("]")
    }
    pattern = re.compile("|".join(rf"(?:.*\.)?{re.escape(stem)}".replace(r"\{layer\}", r"\d+") for stem in stems))
    source = unstacked(files.source, lambda name: bool(stems) and pattern.fullmatch(name) is not None)
    return replace(files, source=source), frozenset(source.names())


def _refuse_unindexed(files: ModelFiles, layout: Layout, dims: Dimensions, prefix: str) -> None:
    """Refuse a tensor of the model that only the index lacks: transformers would load it and get another model."""
    read = {full_name(name, prefix) for stored in records(layout) for name in expand(stored, dims)}
    if omitted := sorted(read.intersection(map(today, files.unindexed))):
        raise BadModel(
            f"{files.source.path}: tensor {omitted[0]!r} is in a shard, but the index does not name it, so that it "
            "is not clear whether it is part of the model. Add it to the index or take it out of the shard."
        )


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device that works here; raise BadOption, with torch's reason, for one that does not."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise BadOption(f"--device {device}: torch cannot use it here ({str(error).splitlines()[0]}).") from error


def _on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device; to a GPU from pinned memory, so that the copy does not wait for running work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _vocabulary(files: ModelFiles, dims: Dimensions) -> Vocabulary:
    if files.format == "gguf":
        vocab = Vocabulary.from_gguf(files.tokenizer_metadata, dims.vocab, files.place)
    elif files.tokenizer_json is not None:
        path = None if files.path is None else files.path / "tokenizer.json"
        origin = str(path) if path and path.is_file() else files.place  # built from other files, or given in memory
        vocab = Vocabulary.from_tokenizer_json(files.tokenizer_json, dims.vocab, origin)
    else:
        raise BadModel(f"{files.place}: there is no tokenizer.json to name the tokens.")
    if vocab.size != dims.vocab:
        raise BadModel(f"{files.place}: {vocab.size} tokens, but the embedding has {dims.vocab} rows.")
    return vocab
