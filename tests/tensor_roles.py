"""The roles of tensors by the usual names of modules: a first guess, which `propose` proves or gives up."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedModel

from zeropass.arch.layout import Stored
from zeropass.checkpoints.base import TensorSource

NORMS = ("attn_norm", "ff_norm", "attn_post_norm", "ff_post_norm")

_ATTENTION = r"(att|attn|attention)\w*\.(\w+\.)*"
_NAMES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (r"(qkv|query_key_value|c_attn)(_proj)?$", ("q", "k", "v"), "heads"),
    (r"(^|\.)(q|query|wq)(_proj|_lin)?$", ("q",), ""),
    (r"(^|\.)(k|key|wk)(_proj|_lin)?$", ("k",), ""),
    (r"(^|\.)(v|value|wv)(_proj|_lin)?$", ("v",), ""),
    (_ATTENTION + r"(o|o_proj|out_proj|dense|c_proj|wo|out_lin)$", ("o",), ""),
    (r"(q|query)_?(layer)?norm$", ("q_norm",), ""),
    (r"(k|key)_?(layer)?norm$", ("k_norm",), ""),
    (r"(^|\.)gate_up_proj$", ("gate", "up"), "halves"),
    (r"(^|\.)(gate_proj|wi_0)$", ("gate",), ""),
    (r"(^|\.)(up_proj|wi_1)$", ("up",), ""),
    (r"(^|\.)(fc1|fc_in|c_fc|dense_h_to_4h|lin1|wi|intermediate\.dense)$", ("key",), ""),
    (r"(^|\.)(down_proj|fc2|fc_out|c_proj|dense_4h_to_h|lin2|wo|output\.dense|out_proj)$", ("value",), ""),
)
"""Usual names of modules in a layer: pattern, roles, and how the roles share a tensor; the first that fits counts."""


def layers_of(names: Iterable[str], stack: str) -> str:
    """Return the name of the layers, with a dot behind; of an encoder-decoder, of the half that is wanted."""
    stems = Counter(match[1] for name in names if (match := re.match(r"(.*?)0\.", name)))
    wanted = [stem for stem in stems if stack in stem] or list(stems)
    return max(wanted, key=lambda stem: stems[stem])


def prefix_of(hf: PreTrainedModel, stem: str, known: Sequence[str]) -> str:
    """Return the prefix that the names of layers and of the embedding share; a known one if they have it."""
    table = hf.get_input_embeddings()
    embedding = next(f"{name}.weight" for name, module in hf.named_modules() if module is table)
    shared = next(n for n, (a, b) in enumerate(zip(f"{stem}^", f"{embedding}$", strict=False)) if a != b)
    return next(
        (prefix for prefix in known if prefix and stem.startswith(prefix)), stem[: stem[:shared].rfind(".") + 1]
    )


def roles_of(hf: PreTrainedModel, source: TensorSource, stem: str, prefix: str) -> dict[str, Stored]:
    """Return a place for each role whose tensor has a usual name.

    Args:
        hf: The model.
        source: Its saved tensors.
        stem: The name of its layers, with a dot behind.
        prefix: The prefix of the names.
    """
    names = frozenset(source.names())
    first = [name.removeprefix(f"{stem}0.") for name in sorted(names) if name.startswith(f"{stem}0.")]
    inner = [rest for rest in first if not re.search(r"\.\d+\.", rest)]  # experts are left to the records
    layer = f"{stem}{{layer}}.".removeprefix(prefix)
    turned = {name for name, module in hf.named_modules() if type(module).__name__ == "Conv1D"}
    roles: dict[str, Stored] = {}
    for rest in inner:
        module, _, kind = rest.rpartition(".")
        for role, stored in _matrices(module, kind, f"{stem}0.{module}" in turned):
            roles.setdefault(role, Stored(f"{layer}{rest}", stored.transpose, stored.part, fused=stored.fused))
    if "gate" not in roles:
        roles = {{"up": "key", "up_bias": "key_bias"}.get(role, role): stored for role, stored in roles.items()}
    return {**roles, **_norms(inner, layer), **_outside(hf, source, prefix)}


def _matrices(module: str, kind: str, turned: bool) -> Iterator[tuple[str, Stored]]:
    """Yield the roles of a weight or bias of a module, with how it is stored."""
    for pattern, roles, shared in _NAMES:
        if re.search(pattern, module):
            for n, role in enumerate(roles):
                stored = Stored(
                    "",
                    transpose=kind == "weight" and (role in ("o", "value")) != turned,
                    part=(n, 2) if shared == "halves" else (0, 1),
                    fused="stacked" if shared == "heads" else "",
                )
                yield role if kind == "weight" else f"{role}_bias", stored
            return


def _norms(inner: Sequence[str], layer: str) -> dict[str, Stored]:
    """Return the norms of a layer, in the order of their names: one for attention and MLP, one for each, or around."""
    modules = [rest.removesuffix(".weight") for rest in inner if rest.endswith(".weight")]
    norms = [
        module
        for module in modules
        if re.search(r"norm|ln", module.rpartition(".")[2].lower())
        and not any(re.search(pattern, module) for pattern, _, _ in _NAMES)
    ]
    if len(norms) not in (1, 2, 4):
        return {}
    roles: dict[str, Stored] = {}
    for role, module in zip(NORMS, norms * 2 if len(norms) == 1 else norms, strict=False):
        parts = {"weight": role, "bias": f"{role}_bias"}
        roles |= {parts[part]: Stored(f"{layer}{module}.{part}") for part in parts if f"{module}.{part}" in inner}
    return roles


def _outside(hf: PreTrainedModel, source: TensorSource, prefix: str) -> dict[str, Stored]:
    """Return a place for each role outside the layers, by the modules of the model and their usual names."""
    names, roles = frozenset(source.names()), dict[str, Stored]()
    for name, role in _outer_modules(hf):
        for part in ("weight", "bias"):
            if (full := f"{name}.{part}") in names:
                place = full.removeprefix(prefix) if full.startswith(prefix) else f"^{full}"
                roles[role if part == "weight" else f"{role}_bias"] = Stored(place)
    head = hf.get_output_embeddings()
    if "unembedding" in roles or head is None:
        return roles
    # A file may have another name for it than the model in memory: GPT-NeoX, for example.
    places, shape = {stored.name for stored in roles.values()}, tuple(head.weight.shape)
    alike = sorted(n for n in names if source.shape(n) == shape and not {n.removeprefix(prefix), f"^{n}"} & places)
    return roles | ({"unembedding": Stored(f"^{alike[0]}")} if alike else {})


def _outer_modules(hf: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Yield modules outside the layers, each with its role."""
    tables = {id(hf.get_input_embeddings()): "embedding", id(hf.get_output_embeddings()): "unembedding"}
    for name, module in hf.named_modules():
        kind, last = type(module).__name__.lower(), name.rpartition(".")[2].lower()
        if id(module) in tables:
            yield name, tables[id(module)]
        elif re.search(r"\.\d+(\.|$)", name):
            continue
        elif "norm" in kind or re.match(r"ln|.*norm", last):
            yield name, "embed_norm" if "embed" in name.lower() else "final_norm"
        elif "embedding" in kind and re.search(r"pos|wpe", last):
            yield name, "positions"
