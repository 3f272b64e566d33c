"""The tensors of a file format: the names of the canonical ones, and where and in which arrangement a file has each.

Nothing is inferred from a shape: every transform is named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.dimensions import Dimensions
from zeropass.arch.roles import FF_ROLES, ROUTER, WRITE_ROLES, Side

Format = Literal["hf", "gguf"]

PRODUCTS: Mapping[str, tuple[str, str]] = {
    "q": ("q_up", "q_latent"),
    "k": ("k_up", "kv_latent"),
    "v": ("v_up", "kv_latent"),
}
"""The roles whose matrices may be products (latent attention): what maps the latent up to the heads, and the latent's
rows, (rank, d), whose RMS norm stands between the two. The rotary rows of ``k`` are ``k_rotary``, shared by all heads.
"""

INNER_NORMS: Mapping[str, str] = {"o": "o_in_norm", "value": "value_in_norm"}
"""The roles whose rows may multiply what a norm (RMS) has divided by its length, and that norm.

Its gain is folded into the rows; the length depends on all that is summed.
"""

MLP_SHARES = ("", "shared", "dense")
"""The parts that the rows of an MLP's role come from: the routed experts or the only MLP, the expert that all tokens go
through, the MLP of a layer without experts. Tensors of the last two have names such as ``shared_gate``.
"""

MIXER_INPUTS = ("mixer_in", *(f"mixer_in_{part}" for part in ("key", "value", "gate", "update", "decay")))
"""The canonical tensors that the rows of the projection into a mixer come from, in this order."""

KEYS_AS_VALUES = "kv"
"""The canonical tensor of the keys of the layers whose values are made of them: there its rows are those of ``v``."""

Names = frozenset[str]
"""The names of all tensors of a file."""


@dataclass(frozen=True)
class Stored:
    """The place of one canonical tensor in a file.

    A canonical matrix is (rows, d): each row is one parameter vector of the residual stream. ``part``, ``fused`` and
    ``paired_rows`` state the rows of a fused or reordered tensor (`rows.row_index`).

    Attributes:
        name: Name of the tensor. It may contain ``{layer}`` and ``{expert}``; after ``^`` it takes no prefix. A name
            that ends in ``[{expert}]`` or ``[0]`` is a part of a tensor that stacks several along its first axis.
        transpose: True if the file holds the transpose (torch Linear layers that write to the stream, GPT-2's Conv1D
            layers that read from it).
        part: (i, n) for the i-th of n equal parts along the canonical rows.
        alternating: True if the rows of the parts take turns.
        fused: The order of q, k and v in one tensor: ``stacked`` has all rows of q, then of k, then of v; ``grouped``
            has, for each key/value head, its query heads, then its k, then its v; ``quarters`` has, in each of four
            parts, rows of q, of v and of k. Of latent attention (`PRODUCTS`), ``latent`` has the latent of keys and
            values, then the rotary key; ``expanded`` has, for each head, its k, then its v.
            ``gated`` has, for each head, its query and then its gate.
        paired_rows: True if the rotary rows of each head are neighbours (x_2i, x_2i+1) instead of halves
            (x_i, x_{i + r/2}), as in GPT-J and the output of llama.cpp's converter.
        either_way: True if some files hold it and others its transpose; the shape tells.
        rotary_last: True if the rotary rows of each head are its last ones; canonically they are the first.
        sizes: The sizes of a mixer (`Mixer.size`) that its rows add up to, in order. If it is ``grouped``, it has a
            share of each for one group of the mixer after another. If it is ``tiled``, what heads have does not stand
            group by group: the first head of every group comes first, then the second of every group.
        negative_exp: True if the file holds minus the exponential of what the canonical tensor has.
        layers: The layers that have it: all, those with experts (``routed``), and these only where there is a shared
            one (``shared``), those with an MLP but no experts (``dense``), or those with such a part (``attn``,
            ``mixer``, ``ff``); those with a window (``local``); those with keys of their own (``keyed``), and, of
            these, those whose values have a matrix of their own (``valued``) or are made of what their keys are
            (``key_valued``).
    """

    name: str
    transpose: bool = False
    part: tuple[int, int] = (0, 1)
    alternating: bool = False
    fused: Literal["", "stacked", "grouped", "tiled", "quarters", "latent", "expanded", "gated"] = ""
    paired_rows: bool = False
    either_way: bool = False
    rotary_last: bool = False
    sizes: tuple[str, ...] = ()
    negative_exp: bool = False
    layers: Literal[
        "all", "routed", "shared", "dense", "attn", "mixer", "ff", "local", "keyed", "valued", "key_valued"
    ] = "all"

    @property
    def whole(self) -> bool:
        """True if the tensor holds this canonical one and nothing else."""
        return self.part == (0, 1) and not self.fused


def weight_and_bias(
    what: str, module: str, transpose: bool = False, part: tuple[int, int] = (0, 1)
) -> dict[str, Stored]:
    """Return the weight and the bias of a norm or a linear module; ``transpose`` and ``part`` as in `Stored`."""
    return {
        what: Stored(f"{module}.weight", transpose, part=part),
        f"{what}_bias": Stored(f"{module}.bias", part=part),
    }


def modules(stem: str, **names: str) -> dict[str, Stored]:
    """Return the weights and biases of modules with names behind a stem; those that write to the stream are transposed.

    Example:
        >>> from zeropass.arch.layout import modules
        >>> [stored.name for stored in modules("h.{layer}.attn.", q="q_proj", o="out_proj").values()][:2]
        ['h.{layer}.attn.q_proj.weight', 'h.{layer}.attn.q_proj.bias']
    """
    tensors = (weight_and_bias(what, f"{stem}{name}", what in WRITE_ROLES) for what, name in names.items())
    return {what: stored for pair in tensors for what, stored in pair.items()}


def fused_qkv(module: str, how: Literal["stacked", "grouped"], transpose: bool = False) -> dict[str, Stored]:
    """Return the weights and biases of q, k and v in one module; ``how`` is ``fused`` of `Stored`."""
    weight, bias = Stored(f"{module}.weight", transpose, fused=how), Stored(f"{module}.bias", fused=how)
    return {**dict.fromkeys("qkv", weight), **dict.fromkeys(("q_bias", "k_bias", "v_bias"), bias)}


@dataclass(frozen=True, repr=False)
class Layout(ShortRepr):
    """The configuration keys and tensor names of a family in one file format.

    Attributes:
        format: Name of the format.
        config: Names of `Dimensions` (and of values they derive from) -> keys of the configuration, tried in order;
            ``a.b`` looks inside an object.
        tensors: Names of canonical tensors -> their places in the file.
        prefixes: Possible prefixes of all tensor names (of a bare model, or of one inside a task model).
        optional: Tensors that a model may lack; any other missing tensor is an error.
        switches: Keys of the configuration that turn optional tensors on: key -> the tensors, and whether a model has
            them if the key is absent.
        copies: Names of the embedding, the module's own first, if a model stores one table under several.
        head: The tensor that a model ties to its embedding, if the layout gives it no role.
        extra: Stream vectors beyond the usual roles: address stem -> (tensor, side).
        through: Entry of ``extra`` -> the entry before it and the activation between the two. Where a model
            lacks the entry before it, the entry reads the stream itself.
        unread: Regular expressions of tensors that hold no parameter of the stream.
        sinusoids: Tables of positions that the family computes; a file may have them, with the same numbers.
        gain_offset: Number added to the gain of every norm but one inside a mixer: Gemma's files hold γ − 1.
        plain_gains: Canonical names of the norms to whose gain it is not added.
        constants: Values that files of this format never state.
        defaults: Values implied if a configuration has none of the keys of a name; a null key counts as present.
        harmless: Regular expressions of keys that change nothing in this family, beyond those in `keys`; of a GGUF file
            without the name of the architecture.
        only_with: A tensor by which a file of this layout is known, where several have the same configuration.
        gains: Matrices of parts that have norms of their own, as experts beside a shared MLP may: canonical matrix ->
            the gain that each of its rows is multiplied by. The norm of what they belong to then has none.
        stacks: Keys of the configurations of an encoder-decoder's stacks, where each has one of its own: that of this
            stack first.
    """

    format: Format
    config: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, Stored]
    prefixes: tuple[str, ...] = ("",)
    optional: tuple[str, ...] = ()
    switches: Mapping[str, tuple[tuple[str, ...], bool]] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    head: str = ""
    extra: Mapping[str, tuple[Stored, Side]] = field(default_factory=dict)
    through: Mapping[str, tuple[str, Literal["tanh", "relu", "gelu"]]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    sinusoids: tuple[str, ...] = ()
    gain_offset: float = 0.0
    plain_gains: tuple[str, ...] = ()
    constants: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    harmless: tuple[str, ...] = ()
    only_with: str = ""
    gains: Mapping[str, str] = field(default_factory=dict)
    stacks: tuple[str, ...] = ()

    def offset_of(self, what: str) -> float:
        """Return the number that is added to a stored vector: `gain_offset` for a gain, else none."""
        return self.gain_offset if what.endswith("_norm") and what not in self.plain_gains else 0.0

    @property
    def queries(self) -> Stored:
        """The entry of the queries; of what maps their latent up, where they are a product."""
        return self.tensors.get("q") or self.tensors[PRODUCTS["q"][0]]

    def latent_of(self, role: str) -> str:
        """Return the canonical name of the latent that a role reads through (`PRODUCTS`); empty where it has none."""
        up, latent = PRODUCTS.get(role, ("", ""))
        return latent if up in self.tensors else ""

    def inner_norm(self, role: str) -> str:
        """Return the canonical name of the norm of what the rows of a role multiply (`INNER_NORMS`); empty for none."""
        norm = INNER_NORMS.get(role, "")
        return norm if norm in self.tensors else ""

    def factors_of(self, role: str) -> tuple[str, ...]:
        """Return the canonical names of all that the matrix of a role is a product of; none where it is stored."""
        if not (latent := self.latent_of(role)):
            return ()
        return (PRODUCTS[role][0], latent, f"{latent}_norm", *(("k_rotary",) if role == "k" else ()))


def share_of(what: str) -> tuple[str, str]:
    """Return one of `MLP_SHARES` and the rest of the name of a canonical tensor."""
    share = next((share for share in MLP_SHARES if share and what.startswith(f"{share}_")), "")
    return share, what.removeprefix(f"{share}_")


def shares_of(what: str) -> tuple[str, ...]:
    """Return the names of the canonical tensors whose rows, in this order, are those of a role or its bias."""
    stem, suffix = what.removesuffix("_bias"), "_bias" if what.endswith("_bias") else ""
    if stem == "mixer_in":
        return tuple(f"{part}{suffix}" for part in MIXER_INPUTS)
    if what == "v":
        return ("v", KEYS_AS_VALUES)
    if stem not in (*FF_ROLES, ROUTER):
        return (what,)
    return tuple(f"{share}_{what}" if share else what for share in MLP_SHARES)


def role_of(what: str) -> str:
    """Return the role that the rows of a canonical tensor belong to; the tensor itself if it is no matrix of a role."""
    return {**dict.fromkeys(MIXER_INPUTS, "mixer_in"), KEYS_AS_VALUES: "v"}.get(what) or share_of(what)[1]


def expand(stored: Stored, dims: Dimensions) -> Iterator[str]:
    """Yield all tensor names that a record entry stands for (without prefix)."""
    for layer in range(dims.layers if "{layer}" in stored.name else 1):
        yield from names_of(stored, layer, dims)


def names_of(stored: Stored, layer: int, dims: Dimensions) -> tuple[str, ...]:
    """Return the tensor names (without prefix) of a record entry at one layer: one, one for each expert, or none."""
    if stored.layers in ("attn", "mixer", "ff"):
        present = dims.has_site(stored.layers, layer)
    elif stored.layers == "local":
        present = layer in dims.local
    elif stored.layers == "shared":
        present = dims.shared_neurons > 0 and layer not in dims.dense
    elif stored.layers in ("keyed", "valued", "key_valued"):
        own, wanted = dims.kv_layer(layer) == layer, stored.layers
        present = own and (wanted == "keyed" or (wanted == "key_valued") == (layer in dims.key_valued))
    else:
        present = stored.layers == "all" or (
            dims.has_site("ff", layer) and (stored.layers == "dense") == (layer in dims.dense)
        )
    if not present:
        return ()
    count = dims.experts if "{expert}" in stored.name else 1
    return tuple(stored.name.format(layer=layer, expert=expert) for expert in range(count))


def full_name(name: str, prefix: str) -> str:
    """Return the name of a tensor in the file: with the prefix, unless the record marks it with ``^``."""
    return name[1:] if name.startswith("^") else prefix + name


def prefix_of(layout: Layout, names: Names) -> str | None:
    """Return the prefix of the tensor names in this file; None if it is not a known one.

    The embedding tells which it is or, where only the head tied to it is stored, the queries of the first block.
    """
    anchors = (*(layout.copies or (layout.tensors["embedding"].name,)), layout.queries.name.format(layer=0))
    return next(
        (prefix for anchor in anchors for prefix in layout.prefixes if full_name(anchor, prefix) in names), None
    )
