"""The rows of stored tensors that form a canonical one: every split and reordering that `Stored` names."""

import torch
from torch import Tensor

from zeropass.arch.dimensions import Dimensions
from zeropass.arch.layout import INNER_NORMS, KEYS_AS_VALUES, PRODUCTS, Stored, share_of
from zeropass.arch.roles import FF_ROLES, LAUREL_ROLES, OUTPUT_GATE, PLE_ROLES, ROUTER, base_role

__all__ = ["canonical_rows", "canonical_shape", "expected_shape", "is_sized", "row_count", "row_index"]


def row_index(stored: Stored, what: str, dims: Dimensions) -> Tensor | None:
    """Return the row of the stored tensor for each canonical row, (rows,); None if they are the same.

    For a tensor with experts, these are the rows of one expert.
    """
    stem = base_role(what).removesuffix("_bias")
    count = canonical_rows(what, dims)
    if stored.sizes:
        arrange = {"grouped": _by_group, "tiled": _tiled}.get(stored.fused)
        rows = None if arrange is None else arrange(stored, dims)
    elif stored.fused == "gated":
        gated = torch.arange(2 * count).reshape(-1, 2, dims.width(stem))
        rows = gated[:, 1 if stem == OUTPUT_GATE else 0].reshape(-1)
    elif stored.fused:
        rows = _fused_rows(stored, stem, dims)
    elif stored.part != (0, 1):
        first, parts = stored.part
        rows = torch.arange(count) * parts + first if stored.alternating else torch.arange(count) + first * count
    else:
        rows = None
    if not (stored.paired_rows or stored.rotary_last):
        return rows
    rotary = dims.rotary or dims.head_dim  # a head without positions may be reordered all the same
    order = _rotary_first(stored, count, dims.rotary if stem == "k_rotary" else dims.head_dim, rotary)
    return order if rows is None else rows[order]


def row_count(stored: Stored, what: str, dims: Dimensions) -> int:
    """Return the number of rows of the stored tensor (of one expert), with those of all roles that are fused in it."""
    if stored.fused == "latent":
        return dims.kv_latent + dims.rotary
    if stored.fused == "expanded":
        return canonical_rows("k_up", dims) + canonical_rows("v_up", dims)
    if stored.fused == "gated":
        return 2 * canonical_rows(what, dims)
    if stored.fused and not stored.sizes:
        return (dims.heads + 2 * dims.kv_heads) * dims.head_dim
    return canonical_rows(what, dims) * stored.part[1]


def canonical_shape(what: str, dims: Dimensions) -> tuple[int | None, ...]:
    """Return the shape of a canonical tensor, of one expert where there are several; None stands for any size."""
    if what in ("embedding", "unembedding"):
        return (dims.vocab, dims.embed if what == "embedding" else dims.d)
    if what == "embed_projection":
        return (dims.d, dims.embed)
    if what in ("positions", "types"):
        return (None, dims.embed)
    if what in ("embed_norm", "embed_norm_bias"):
        return (dims.embed,)
    if what == "rope_factors":
        return (dims.most("rotary") // 2,)
    if what in ("router_correction", "expert_scale"):
        return (dims.experts,)
    if what == "unembedding_bias":
        return (dims.vocab,)
    if what == "distances":
        return (2 * (dims.distance_buckets or dims.distance_reach), dims.d)
    if what == "relative":
        return (None, dims.heads)
    if what == "sinks":
        return (dims.heads,)
    if what in ("q_norm", "k_norm", "q_norm_bias", "k_norm_bias"):
        return (None,)
    if what.startswith("xielu_"):
        return (1,) if what in ("xielu_above", "xielu_below") else ()
    if what in ("q_latent_norm", "kv_latent_norm"):
        return (canonical_rows(what.removesuffix("_norm"), dims),)
    if what in INNER_NORMS.values():
        return (canonical_rows(what.removesuffix("_in_norm"), dims),)
    if what.startswith("inner_"):
        return _inner_shape(what, dims)
    if what in _PLE_INNER:
        return _ple_shape(what, dims)
    if what.startswith(_STREAMS):
        return _streams_shape(what, dims)
    if is_sized(what):
        if not what.endswith("_bias"):
            columns = next((canonical_rows(latent, dims) for up, latent in PRODUCTS.values() if up == what), dims.d)
            return (canonical_rows(what, dims), columns)
        return (dims.d,) if _stem(what) in ("o", "value", "mixer_out") else (canonical_rows(what, dims),)
    return (dims.d,)


def expected_shape(stored: Stored, what: str, dims: Dimensions) -> tuple[int | None, ...]:
    """Return the shape that a record expects of a stored tensor; None stands for any size."""
    canonical = canonical_shape(what, dims)
    if is_sized(what) and not (what.endswith("_bias") and stored.whole and not stored.paired_rows):
        canonical = (row_count(stored, what, dims), *canonical[1:])
    return tuple(reversed(canonical)) if stored.transpose else canonical


_LATENTS = ("q_latent", "kv_latent", "k_rotary")
_SIZED = (*FF_ROLES, *"qkvo", OUTPUT_GATE, ROUTER, *(up for up, _ in PRODUCTS.values()), *_LATENTS)


def _stem(what: str) -> str:
    """Return the role of a canonical matrix or its bias."""
    return share_of(base_role(what).removeprefix("distance_").removesuffix("_bias"))[1]


def is_sized(what: str) -> bool:
    """Tell whether the sizes of a model say how many rows a canonical tensor has."""
    stem = what.removesuffix("_bias")
    return _stem(what) in _SIZED or what.startswith("mixer_in") or stem in _PROJECTED


_PROJECTED = ("mixer_out", *LAUREL_ROLES, *PLE_ROLES, KEYS_AS_VALUES)
_PLE_INNER = ("ple_table", "ple_context", "ple_context_norm", "layer_scalar")


def _ple_shape(what: str, dims: Dimensions) -> tuple[int | None, ...]:
    """Return the shape of what per-layer embeddings are made of, all layers side by side; or of a layer's factor."""
    all_layers = dims.layers * dims.ple
    tokens = dims.ple_vocab or dims.vocab
    shapes = {"ple_table": (tokens, all_layers), "ple_context": (all_layers, dims.d), "layer_scalar": (1,)}
    return shapes.get(what, (dims.ple,))


_STREAMS = ("altup_", "stream_")


def _streams_shape(what: str, dims: Dimensions) -> tuple[int | None, ...]:
    """Return the shape of what mixes several streams, or of what makes them of the embedding and one state of them."""
    n = dims.streams
    mixing = {
        "altup_norm": (dims.d,),
        "altup_router": (n, dims.d),
        "altup_predict": (n * n, n),
        "altup_correct": (n, n),
    }
    return mixing.get(what, (dims.d, dims.d))


def _inner_shape(what: str, dims: Dimensions) -> tuple[int | None, ...]:
    """Return the shape of a tensor inside a mixer: for each row a kernel, a row of a matrix or a number."""
    mixer = dims.mixer
    assert mixer is not None  # a record with such a tensor has a mixer
    columns: dict[str, tuple[int, ...]]
    columns = {"inner_conv": (1, mixer.kernel), "inner_down": (mixer.size("inner"),), "inner_up": (mixer.rank,)}
    columns |= {f"inner_{gate}_gate": (mixer.width, mixer.width) for gate in ("input", "decay")}
    columns |= {f"inner_{gate}_bias": (mixer.width,) for gate in ("input", "decay")}
    if mixer.rank:  # Mamba, in which each coordinate of the state decays by itself
        columns["inner_decay"] = (mixer.state,)
    return (mixer.rows[what], *columns.get(what, ()))


def canonical_rows(what: str, dims: Dimensions) -> int:
    """Return the number of canonical rows of the matrix of a role or its bias, of one expert."""
    if dims.mixer is not None and what in dims.mixer.rows:
        return dims.mixer.rows[what]
    share, stem = share_of(what)[0], _stem(what)
    if stem in FF_ROLES:
        return {"": dims.expert_neurons, "shared": dims.shared_neurons, "dense": dims.dense_neurons}[share]
    if stem == ROUTER:
        return 1 if share else dims.experts
    if stem in _LATENTS:
        return {"q_latent": dims.q_latent, "kv_latent": dims.kv_latent, "k_rotary": dims.rotary}[stem]
    if what in (*LAUREL_ROLES, *PLE_ROLES):
        return dims.laurel if what in LAUREL_ROLES else dims.ple
    width = dims.width(stem) - (dims.rotary if stem == "k_up" else 0)
    return (dims.heads if stem[0] in ("q", "o", OUTPUT_GATE) else dims.kv_heads) * width


def _fused_rows(stored: Stored, stem: str, dims: Dimensions) -> Tensor:
    if stored.fused == "latent":
        return torch.arange(dims.kv_latent) if stem == "kv_latent" else dims.kv_latent + torch.arange(dims.rotary)
    if stored.fused == "expanded":
        plain = dims.head_dim - dims.rotary
        of_heads = torch.arange(row_count(stored, stem, dims)).reshape(dims.heads, -1)
        return (of_heads[:, :plain] if stem == "k_up" else of_heads[:, plain:]).reshape(-1)
    heads, width = dims.heads + 2 * dims.kv_heads, dims.head_dim
    by_head = torch.arange(heads * width).reshape(heads, width)
    if stored.fused == "stacked":
        rows = dict(zip("qkv", torch.split(by_head, [dims.heads, dims.kv_heads, dims.kv_heads]), strict=True))[stem]
    elif stored.fused == "quarters":
        parts = by_head.reshape(4, 3, -1)
        rows = dict(zip("qvk", parts.unbind(1), strict=True))[stem]
    else:
        grouped = by_head.reshape(dims.kv_heads, dims.group + 2, width)
        rows = dict(zip("qkv", torch.split(grouped, [dims.group, 1, 1], 1), strict=True))[stem]
    return rows.reshape(-1)


def _by_group(stored: Stored, dims: Dimensions) -> Tensor:
    """Return the order that joins the shares of the groups of a mixer, size by size."""
    mixer = dims.mixer
    assert mixer is not None
    shares = [mixer.size(name) // mixer.groups for name in stored.sizes]
    grouped = torch.arange(sum(shares) * mixer.groups).reshape(mixer.groups, -1)
    return torch.cat([part.reshape(-1) for part in torch.split(grouped, shares, 1)])


def _tiled(stored: Stored, dims: Dimensions) -> Tensor:
    """Return the order that joins the heads of each group of a mixer, where the heads of groups take turns."""
    mixer = dims.mixer
    assert mixer is not None
    parts, first = [], 0
    for name in stored.sizes:
        part = torch.arange(first, first + mixer.size(name))
        if name in ("inner", "heads"):
            part = part.reshape(mixer.heads // mixer.groups, mixer.groups, -1).swapaxes(0, 1).reshape(-1)
        parts.append(part)
        first += mixer.size(name)
    return torch.cat(parts)


def _rotary_first(stored: Stored, count: int, width: int, rotary: int) -> Tensor:
    """Return the order that puts the rotary rows of each head first, and neighbours (x_2i, x_2i+1) into halves."""
    first = width - rotary if stored.rotary_last else 0
    turned = torch.arange(first, first + rotary)
    turned = turned.reshape(-1, 2).T.reshape(-1) if stored.paired_rows else turned
    head = torch.cat((turned, torch.arange(first), torch.arange(first + rotary, width)))
    return (torch.arange(0, count, width)[:, None] + head).reshape(-1)
