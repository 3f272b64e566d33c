"""Every family of the table against its own forward pass in transformers, on tiny random checkpoints (tests/zoo.py).

Each check takes the canonical parameters and says how far they are off, relative to the largest value of the truth, so
that the corrupted records at the end can be put through the same ones.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from canonical import bias_of, read, split, with_tensors
from forward import Forward, run_forward
from tiny import TOKENS, error, save
from zeropass.arch.checks import check
from zeropass.arch.config import full_name
from zeropass.arch.families import FAMILIES
from zeropass.arch.spec import ROUTER, Stored, expand, norm_of
from zeropass.errors import BadWeights, UnknownFamily, ZeropassError
from zeropass.model.frames import _ACTIVATIONS, Frames
from zeropass.model.model import Model, open_model
from zeropass.model.vectors import vector_set
from zeropass.numerics.projection import apply_norm, normed, rotate
from zoo import VOCAB, ZOO, tiny_model

TOLERANCE = 1e-4
WRONG = 1e-2
"""A check on a wrong record must be off by more than this."""

POSITIONS = torch.tensor([0, 1, 5, 40, 400])
Spoil = Callable[[Model], Model | None]
"""Makes a record wrong in one way; None where a family does not admit it."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@dataclass(frozen=True, eq=False)
class Case:
    """A checkpoint opened by both, and what transformers computes on a text."""

    hf: Any
    model: Model
    ids: Tensor

    @cached_property
    def text(self) -> Forward:
        """A run on text, at uneven positions where the family turns by them."""
        positions = POSITIONS.expand_as(self.ids) if self.model.dims.rope else None
        return run_forward(self.hf, self.model, self.ids, **placed(positions))

    def bare(self, ids: Tensor, **more: Any) -> Forward:
        """A run without position embeddings."""
        # nor what a decoder reads of an encoder
        gone = ("wpe", "position", "EncDecAttention.o.", "encoder_attn.out_proj")
        tables = [p for n, p in self.hf.named_parameters() if any(part in n for part in gone)]
        kept = [p.detach().clone() for p in tables]
        with torch.no_grad():
            for p in tables:
                p.zero_()
        try:
            return run_forward(self.hf, self.model, ids, **more)
        finally:
            with torch.no_grad():
                for p, old in zip(tables, kept, strict=True):
                    p.copy_(old)

    @cached_property
    def alone(self) -> Forward:
        """Every token as a text of its own."""
        return self.bare(torch.arange(VOCAB)[:, None])

    def pairs(self, at: int, offset: int) -> Forward:
        """A key, then a query: every token before the one token ``at``, so many positions before it."""
        ids = torch.stack((torch.arange(VOCAB), torch.full((VOCAB,), at)), 1)
        positions = torch.tensor([3, 3 + offset]).expand_as(ids) if self.model.dims.rope else None
        return self.bare(ids, **placed(positions))


def placed(positions: Tensor | None) -> dict[str, Tensor]:
    """Positions for a run; with a mask, for transformers takes a jump between them for the start of another text."""
    return {} if positions is None else {"position_ids": positions, "attention_mask": torch.ones_like(positions)}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    folder = tmp_path_factory.mktemp("zoo")

    @cache
    def case(name: str) -> Case:
        hf = tiny_model(name)
        mark = "#decoder" if ZOO[name][2].get("stack") == "decoder" else ""
        model = open_model(f"{save(hf, folder / name)}{mark}")
        ids = torch.randint(TOKENS, (3, len(POSITIONS)), generator=torch.Generator().manual_seed(1))
        return Case(hf, model, ids)

    return case


@pytest.fixture(params=sorted(ZOO))
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


# The stream


def norm(model: Model, name: str, layer: int, x: Tensor) -> Tensor:
    """A whole norm layer."""
    gain, shift = model.vector(name, layer), model.vector(f"{name}_bias", layer)
    return apply_norm(x, model.family.norm, model.dims.eps, gain, shift)


def added(model: Model, site: str, layer: int, x: Tensor, written: Tensor) -> Tensor:
    """The stream after one half of a block has written."""
    if model.family.stream_normed:
        return norm(model, f"{site}_norm", layer, x + written)
    behind = f"{site}_post_norm"
    return x + (norm(model, behind, layer, written) if model.has(behind) else written)


def read_at(case: Case, model: Model, site: str, layer: int) -> Tensor:
    """The stream that a site reads."""
    x = case.text.states(layer)
    if site == "attn" or model.family.parallel:
        return x
    x = added(model, "attn", layer, x, case.text.gave("o", layer))
    if site == "cross" or not model.family.crosses:
        return x
    return added(model, "cross", layer, x, case.text.gave("cross_o", layer))


def after(case: Case, model: Model, layer: int) -> Tensor:
    """The stream after a layer, from what its parts wrote."""
    written = mlp_output(case, layer)
    if model.family.parallel:
        x = case.text.states(layer)
        return added(model, "attn", layer, x, case.text.gave("o", layer)) + added(model, "ff", layer, x, written) - x
    return added(model, "ff", layer, read_at(case, model, "ff", layer), written)


def mlp_output(case: Case, layer: int) -> Tensor:
    """What the MLP wrote: the output of its last module, or of the one that holds the router."""
    if not case.model.family.routed:
        return case.text.gave("value", layer).reshape_as(case.text.states(layer))
    return case.text.out[case.text.name(ROUTER, layer).rpartition(".")[0]][0]


# The checks


def stream_error(case: Case, model: Model, layer: int) -> float:
    """What the halves of a block write, through the norms behind them, makes the stream that the next block reads."""
    if layer + 1 == model.dims.layers:  # the last state in transformers' list went through the final norm
        return 0.0
    return error(after(case, model, layer), case.text.states(layer + 1))


def neurons_error(case: Case, model: Model, layer: int) -> float:
    """The activation of every neuron, and its contribution: activation times value, summed, is what the MLP writes."""
    x = read_at(case, model, "ff", layer)
    act = _ACTIVATIONS[model.dims.activation]
    gated = "gate" in model.family.ff_roles
    active = act(read(model, "gate" if gated else "key", layer, x))
    active = active * read(model, "up", layer, x) if gated else active
    worst = 0.0
    if model.family.routed:
        chances = read(model, ROUTER, layer, x)
        worst = error(chances.flatten(0, -2), case.text.gave(ROUTER, layer)[0])
        best, at = chances.softmax(-1).topk(model.dims.experts_used, -1)
        best = best / best.sum(-1, keepdim=True) if model.dims.router_normed else best
        share = torch.zeros_like(chances).scatter(-1, at, best)
        active = active * share.repeat_interleave(model.dims.expert_neurons, -1)
    else:
        worst = error(active, case.text.took("value", layer).reshape_as(active))
    written = active @ vector_set(model, layer, "value").vectors + bias_of(model, "ff_bias", layer)
    return max(worst, error(written, mlp_output(case, layer)))


def logits_error(case: Case, model: Model, layer: int) -> float:
    """Attention logits before softmax at the true offsets, scale, caps and position biases included."""
    x = case.text.states(layer)
    return attention_error(case, model, layer, "", x, x)


def cross_error(case: Case, model: Model, layer: int) -> float:
    """The same of a decoder's attention to its encoder; and what its heads write."""
    if not model.family.crosses:
        return 0.0
    x, memory = read_at(case, model, "cross", layer), case.text.memory()
    logits = attention_error(case, model, layer, "cross_", x, memory)
    return max(logits, written_error(case, model, layer, "cross_", memory))


def heads_error(case: Case, model: Model, layer: int) -> float:
    """Each head's output: its weights times its values; and all of them through o, with the bias, what is written."""
    return written_error(case, model, layer, "", case.text.states(layer))


def attention_error(case: Case, model: Model, layer: int, cross: str, x: Tensor, y: Tensor) -> float:
    """Logits of queries from states x, of keys from states y."""
    frames, dims = Frames(model), model.dims
    at = POSITIONS if dims.rope else torch.arange(x.shape[1])
    offsets = at[:, None] - at
    true = case.text.logits[case.text.call(layer, "cross" if cross else "attn")]
    worst = 0.0
    for head in range(dims.heads):
        q = head_states(frames, f"{cross}q", layer, head, x)
        k = head_states(frames, f"{cross}k", layer, head, y)
        if dims.rope:
            frequencies = frames.frequencies(layer)
            turned = torch.stack([rotate(q, column, frequencies) for column in offsets.T], 2)
        else:
            turned = q[:, :, None].expand(-1, -1, x.shape[1], -1)
        found = dims.attention_scale * (turned * k[:, None]).sum(-1)
        bias = None if cross else frames.position_bias(head, offsets)
        found = found if bias is None else found + bias
        found = found if dims.attention_cap is None else dims.attention_cap * (found / dims.attention_cap).tanh()
        seen = true[:, head] > -1e20
        worst = max(worst, error(centred(found, seen), centred(true[:, head], seen)))
    return worst


def head_states(frames: Frames, role: str, layer: int, head: int, x: Tensor) -> Tensor:
    """Queries or keys (…, d_h) of a head, not yet turned."""
    model, norm = frames.model, norm_of(role)
    x = x if model.family.reads_bare(norm, layer) else frames._as_read(x)
    vectors = frames.fold(model.head(role, layer, head), "token", "read", norm, layer)
    lengths = frames.lengths(layer, role, x.flatten(0, -2), torch.zeros(x.shape[-1]))
    each = None if lengths is None else lengths.each.unflatten(0, x.shape[:-1])
    return frames._state(x @ vectors.T, layer, head, role, "token", each)


def centred(x: Tensor, seen: Tensor) -> Tensor:
    """Minus the mean over the keys that are seen, which softmax cannot see; nothing elsewhere."""
    x = x.where(seen, torch.zeros(()))
    return (x - x.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)).where(seen, torch.zeros(()))


def written_error(case: Case, model: Model, layer: int, cross: str, x: Tensor) -> float:
    """What the heads make of values from states x, one by one, and what all of them write."""
    weights = case.text.weights[case.text.call(layer, "cross" if cross else "attn")]
    took, gave = split(case.text.took(f"{cross}o", layer), model), case.text.gave(f"{cross}o", layer)
    values, clip = read(model, f"{cross}v", layer, x), model.dims.clip
    values = split(values if clip is None else values.clamp(-clip, clip), model)
    worst, written = 0.0, bias_of(model, "cross_bias" if cross else "attn_bias", layer) + torch.zeros_like(gave)
    for head in range(model.dims.heads):
        mixed = weights[:, head] @ values[:, :, model.kv_head("v", head)]
        worst = max(worst, error(mixed, took[:, :, head]))
        written = written + mixed @ model.head(f"{cross}o", layer, head)
    return max(worst, error(written, gave))


def final_error(case: Case, model: Model, _layer: int = 0) -> float:
    """Final logits from the rows of the output frame, the final norm's shift and the head's bias."""
    dims, used = model.dims, torch.from_numpy(model.vocab.used)
    bias = model.vector("unembedding_bias")
    if not model.family.causal:
        return said_error(case, model)
    x = after(case, model, dims.layers - 1)
    x = x if model.family.stream_normed else normed(x, model.family.norm, dims.eps)
    found = x @ Frames(model).rows("output.write").matrix.T
    shift = model.vector("final_norm_bias")
    found = found if shift is None else found + model.unembedding @ shift
    found = dims.logit_scale * found if bias is None else dims.logit_scale * found + bias
    true = case.text.result.logits
    true = true if dims.logit_cap is None else dims.logit_cap * (true / dims.logit_cap).atanh()
    return error(*(one - one[..., used].mean(-1, keepdim=True) for one in (found, true)))


def said_error(case: Case, model: Model) -> float:
    """An encoder's last state, and its head behind a transform: what the last layer of it makes of what it gets."""
    last = case.text.states(model.dims.layers)
    ended = after(case, model, model.dims.layers - 1)
    worst = error(ended if model.family.stream_normed else norm(model, "final_norm", 0, ended), last)
    head = case.hf.get_output_embeddings()
    if head is None or model.family.stack:
        return worst
    name = next(name for name, module in case.hf.named_modules() if module is head)
    rows = model.matrix("embedding") if model.has("embed_projection") else model.unembedding
    return max(worst, error(case.text.into[name][0] @ rows.T + head.bias.detach(), case.text.out[name][0]))


def carried_error(case: Case, model: Model, _layer: int = 0) -> float:
    """The token frame's rows: what the model holds after block 0 for each token alone."""
    return error(Frames(model).carried(), case.alone.states(1)[:, 0])


def memory_error(case: Case, model: Model, _layer: int = 0) -> float:
    """The rows that cross attention reads: the encoder's tokens after its block 0 alone; and its maps over them."""
    if not model.family.crosses:
        return 0.0
    frames, states = Frames(model), case.alone.result.encoder_hidden_states[1][:, 0]
    memory = frames.rows("memory").matrix
    worst = error(memory, normed(states, model.family.norm, model.dims.eps) if model.family.reads_normed else states)
    queries = frames.carried()
    for head in range(model.dims.heads):
        product = frames.head_map(1, head, "cross_qk")
        q, k = (head_states(frames, f"cross_{r}", 1, head, x) for r, x in (("q", queries), ("k", states)))
        found, true = product.left @ product.right.T, q @ k.T
        worst = max(worst, error(*(one - one.mean(1, keepdim=True) for one in (found, true))))
    return worst


def first_logits(forward: Forward) -> Tensor:
    """Attention logits of the first layer."""
    return forward.logits[forward.call(0)]


def map_error(case: Case, model: Model, _layer: int = 0) -> float:
    """A row of a head's qk map in layer 0: the logits of one query for every token as its key, at several offsets."""
    frames, dims, used = Frames(model), model.dims, torch.from_numpy(model.vocab.used)
    worst = 0.0
    for offset in (0, 1, 7) if dims.rope else (0,):
        true = first_logits(case.pairs(17, offset))[:, :, 1, 0]
        true = true if dims.attention_cap is None else dims.attention_cap * (true / dims.attention_cap).atanh()
        for head in range(dims.heads):
            product = frames.head_map(0, head, "qk", offset=offset)
            found = dims.attention_scale * product.left[17] @ product.right.T
            worst = max(worst, error(*(one - one[used].mean() for one in (found, true[:, head]))))
    return worst


CHECKS = (stream_error, neurons_error, logits_error, heads_error, cross_error, final_error)
CHECKS += (carried_error, memory_error, map_error)
BY_LAYER = (stream_error, neurons_error, logits_error, heads_error, cross_error)


@pytest.mark.parametrize("off", CHECKS)
def test_a_family_is_what_its_forward_pass_says(case: Case, off: Callable[[Case, Model, int], float]) -> None:
    for layer in range(case.model.dims.layers) if off in BY_LAYER else (0,):
        assert off(case, case.model, layer) < TOLERANCE


# A record that is wrong must be caught


def with_dims(model: Model, **changed: Any) -> Model:
    """The same model with other constants."""
    return replace(model, dims=replace(model.dims, **changed))


def with_family(model: Model, **changed: Any) -> Model:
    """The same model, taken for one of another family."""
    return replace(model, family=replace(model.family, **changed))


class OffByOne(Model):
    """Reads each expert's weights as those of the one before it."""

    def _tensors(self, stored: Stored, layer: int) -> tuple[str, ...]:
        names = super()._tensors(stored, layer)
        return (*names[1:], names[0])


def without(name: str) -> Spoil:
    """A record that lacks a vector, if the model has it."""
    return lambda m: with_tensors(m, **{name: Stored("^no such tensor")}) if m.has(name) else None


def swapped(one: str, other: str) -> Spoil:
    """A record that takes two tensors for each other, where they lie apart and have one shape."""

    def spoil(model: Model) -> Model | None:
        a, b = model.layout.tensors.get(one), model.layout.tensors.get(other)
        if a is None or b is None or a == b or not model.has(one) or model.rows(one) != model.rows(other):
            return None
        return with_tensors(model, **{one: b, other: a})

    return spoil


def unsplit(model: Model) -> Model | None:
    """A fused tensor that is split in the other way."""
    fused = {what: one for what, one in model.layout.tensors.items() if one.fused}
    other: dict[str, Any] = {"stacked": "grouped", "grouped": "stacked"}
    changed = {what: replace(one, fused=other[one.fused]) for what, one in fused.items()}
    # with one key/value head, both ways are one
    return with_tensors(model, **changed) if fused and model.dims.kv_heads > 1 else None


def interleaved(model: Model) -> Model | None:
    """Rotary rows taken for neighbours where they are halves, or the other way."""
    stored = {role: model.layout.tensors[role] for role in "qk"}
    both = {role: replace(one, paired_rows=not one.paired_rows) for role, one in stored.items()}
    return with_tensors(model, **both) if model.dims.rope else None


def other_constant(field: str, value: Any) -> Spoil:
    """Another constant, where the model's own is not that one."""
    return lambda m: None if getattr(m.dims, field) == value else with_dims(m, **{field: value})


def unscaled_rope(model: Model) -> Model | None:
    """Rotary positions with another base, and without their scaling."""
    if model.dims.rope is None:
        return None
    return with_dims(model, rope=replace(model.dims.rope, kind="default", theta=3 * model.dims.rope.theta))


def variant(field: str, value: Any) -> Spoil:
    """Another family's way, where the family's own is not that one."""
    return lambda m: None if getattr(m.family, field) == value else with_family(m, **{field: value})


def no_offset(model: Model) -> Model | None:
    """Gains as the file has them, where it keeps them less one."""
    return replace(model, layout=replace(model.layout, gain_offset=0.0)) if model.layout.gain_offset else None


SPOILS: dict[str, Spoil] = {
    "q and k swapped": swapped("q", "k"),
    "k and v swapped": swapped("k", "v"),
    "gate and up swapped": swapped("gate", "up"),
    "norms swapped": swapped("attn_norm", "ff_norm"),
    "norms behind swapped": swapped("attn_post_norm", "ff_post_norm"),
    **{f"no {name}": without(name) for name in ("attn_norm", "ff_norm", "attn_post_norm", "ff_post_norm")},
    **{f"no {name}": without(name) for name in ("q_norm", "k_norm", "embed_norm", "attn_norm_bias", "ff_norm_bias")},
    **{
        f"no {name}": without(name)
        for name in ("cross_norm", "memory_norm", "cross_q_bias", "cross_v_bias", "cross_o_bias")
    },
    **{f"no {role}_bias": without(f"{role}_bias") for role in ("q", "v", "o", "gate", "up", "key", "value")},
    "no final_norm": without("final_norm"),
    "no types": without("types"),
    "no gain offset": no_offset,
    "split otherwise": unsplit,
    "rows interleaved": interleaved,
    "an expert further": lambda m: OffByOne(**vars_of(m)) if m.dims.experts > 1 else None,
    "all experts": lambda m: with_dims(m, experts_used=m.dims.experts) if m.dims.experts > 1 else None,
    "router weights": lambda m: with_dims(m, router_normed=not m.dims.router_normed) if m.dims.experts > 1 else None,
    "RoPE": unscaled_rope,
    "fewer rotary": lambda m: with_dims(m, rotary=m.dims.rotary - 2) if m.dims.rotary > 2 else None,
    "one RoPE for all": lambda m: with_dims(m, local_rope=None) if m.dims.local_rope else None,
    "other layers local": lambda m: with_dims(m, local=()) if m.dims.local_rope else None,
    "no clip": other_constant("clip", None),
    "no attention cap": other_constant("attention_cap", None),
    "no final cap": other_constant("logit_cap", None),
    "attention scale": lambda m: with_dims(m, attention_scale=2 * m.dims.attention_scale),
    # a norm behind the embedding makes its scale invisible
    "no embedding scale": lambda m: None if m.has("embed_norm") else other_constant("embed_scale", 1.0)(m),
    "activation": lambda m: with_dims(m, activation="relu" if m.dims.activation != "relu" else "silu"),
    "eps": lambda m: with_dims(m, eps=0.5),
    "tied": lambda m: with_dims(m, tied=True) if not m.dims.tied and m.has("unembedding") else None,
    "the other norm": lambda m: with_family(m, norm="rms" if m.family.norm == "layer" else "layer"),
    "pre-norm": variant("norm_place", "pre"),
    "post-norm": variant("norm_place", "post"),
    "parallel": lambda m: with_family(m, parallel=not m.family.parallel) if not m.family.stream_normed else None,
    "no ALiBi": variant("alibi", ""),
    "no relative positions": without("relative"),
    "cross heads are those of the stream": lambda m: crossed(m) if m.family.crosses else None,
    "no QK-norm": variant("qk_norm", ""),
    "QK-norm of each head": lambda m: with_family(m, qk_norm="head") if m.family.qk_norm == "whole" else None,
}


def crossed(model: Model) -> Model:
    """Self attention and cross attention taken for each other."""
    names = model.layout.tensors
    return with_tensors(model, **{r: names[f"cross_{r}"] for r in "qkvo"}, **{f"cross_{r}": names[r] for r in "qkvo"})


def vars_of(model: Model) -> dict[str, Any]:
    """The fields of a model."""
    return {field.name: getattr(model, field.name) for field in fields(Model)}


def caught(case: Case, model: Model) -> float:
    """How far off the worst check finds a model; one that it cannot even compute is off, too."""
    worst = 0.0
    for off in CHECKS:
        for layer in range(case.model.dims.layers) if off in BY_LAYER else (0,):
            try:
                worst = max(worst, off(case, model, layer))
            except (RuntimeError, ZeropassError, AssertionError):
                return float("inf")
            if worst > WRONG:
                return worst
    return worst


def test_a_wrong_record_is_caught(case: Case) -> None:
    """Every way to be wrong that a family admits; none may pass all checks."""
    passed = [name for name, spoil in SPOILS.items() if (m := spoil(case.model)) and caught(case, m) <= WRONG]
    assert not passed


def test_each_way_to_be_wrong_is_tried(cases: Callable[[str], Case]) -> None:
    tried = {name for name, spoil in SPOILS.items() for one in ZOO if spoil(cases(one).model) is not None}
    assert tried == set(SPOILS)


# Every tensor is accounted for


def test_a_tensor_too_few_or_too_many_is_refused(case: Case) -> None:
    model, layout = case.model, case.model.layout
    names = frozenset(model.source.names())
    known = model.files, model.family, layout, model.dims, model.prefix
    check(*known, names)
    for extra in (f"{model.prefix}layers.0.unheard_of.weight", "lm_head.adapter.weight"):
        with pytest.raises(UnknownFamily, match=extra):
            check(*known, names | {extra})
    for what, stored in layout.tensors.items():
        present = [name for one in expand(stored, model.dims) if (name := full_name(one, model.prefix)) in names]
        assert present or what in layout.optional
        for name in present if what not in layout.optional or len(present) > 1 else ():
            with pytest.raises(BadWeights, match=re.escape(name)):
                check(*known, names - {name})


def test_every_family_is_in_the_list() -> None:
    assert {family.name for family in FAMILIES} == {name.partition("-")[0] for name in ZOO}
