"""Every family of the table against its own forward pass in transformers, on tiny random checkpoints (tests/zoo.py).

Each check takes the canonical parameters and returns their error relative to the largest true value. The corrupted
records at the end go through the same checks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor

from canonical import bias_of, kept, read, split, with_tensors
from forward import Forward, run_forward
from tiny import TOKENS, error, save
from zeropass.arch.checks import check
from zeropass.arch.families import FAMILIES
from zeropass.arch.layout import MIXER_INPUTS, Stored, expand, full_name
from zeropass.arch.roles import ROUTER, Site, norm_of
from zeropass.arch.rows import row_index
from zeropass.errors import BadWeights, UnknownFamily, ZeropassError
from zeropass.model.blocks import Block, embedded, final_logits, layer_embedding
from zeropass.model.frames import Frames
from zeropass.model.mixers import MixerState
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.model.positions import (
    adds_positions,
    distance_rows,
    distance_vectors,
    growth,
    position_bias,
    turned_gain,
)
from zeropass.model.streams import joined
from zeropass.model.vectors import vector_set
from zeropass.numerics.projection import apply_norm, normed, rotate
from zoo import VOCAB, ZOO, tiny_model

TOLERANCE = 1e-4
WRONG = 1e-2
"""A check on a wrong record must be off by more than this."""

PADDING = 1
"""The token id that is padding, without a position, in the families whose positions begin in the row after it."""

POSITIONS = torch.tensor([0, 1, 5, 40, 400])
Spoil = Callable[[Model], Model | None]
"""A function that corrupts a record in one way; None where this is impossible in a family."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@dataclass(frozen=True, eq=False)
class Case:
    """A checkpoint opened by transformers and by zeropass, and what transformers computes on a text."""

    hf: Any
    model: Model
    ids: Tensor

    @cached_property
    def text(self) -> Forward:
        """The run on a text, at uneven positions where the family rotates by them."""
        return run_forward(self.hf, self.model, self.ids, **self.placed(self.ids, self.at))

    @property
    def takes_positions(self) -> bool:
        """True if the model rotates by positions that it is given; another one counts tokens."""
        return bool(self.model.dims.rope) and "position_ids" in signature(self.hf.forward).parameters

    @property
    def at(self) -> Tensor:
        """The positions of the tokens of the text."""
        return POSITIONS if self.takes_positions else torch.arange(len(POSITIONS))

    def placed(self, ids: Tensor, at: Tensor | None = None) -> dict[str, Tensor]:
        """Return positions for a run and a mask; without a mask, a jump is the start of a text, or a token padding."""
        mask = {"attention_mask": torch.ones_like(ids)}
        return mask | ({"position_ids": at.expand_as(ids)} if at is not None and self.takes_positions else {})

    def bare(self, ids: Tensor, **more: Any) -> Forward:
        """Run the model without position embeddings and without what a decoder reads from an encoder."""
        zeroed = ("wpe", "position", "EncDecAttention.o.", "encoder_attn.out_proj", "cross_attn.o_proj")
        computed = self.model.family.sinusoids  # RoFormer keeps the sines of its rotations as a parameter
        tables = [
            p
            for n, p in self.hf.named_parameters()
            if (p.requires_grad or computed) and any(part in n for part in zeroed)
        ]
        tables += [buffer for n, buffer in self.hf.named_buffers() if n.endswith("embed_positions.weights")]
        originals = [p.detach().clone() for p in tables]
        with torch.no_grad():
            for p in tables:
                p.zero_()
        try:
            return run_forward(self.hf, self.model, ids, **more)
        finally:
            with torch.no_grad():
                for p, original in zip(tables, originals, strict=True):
                    p.copy_(original)

    @cached_property
    def alone(self) -> Forward:
        """The run on every token as a text of its own."""
        ids = torch.arange(VOCAB)[:, None]
        return self.bare(ids, **self.placed(ids))

    @property
    def offsets(self) -> tuple[int, ...]:
        """The distances from a key to its query that are tried; a model that counts tokens has no other one at 0."""
        if self.takes_positions:
            return (0, 1, 7, 40) if self.by_length else (0, 1, 7)
        return (1, 7) if self.model.dims.rope or self.model.has("distances") else (0,)

    @property
    def by_length(self) -> bool:
        """True if the length of a text counts: that of two tokens at a distance is then the shortest with it."""
        return self.model.dims.rope is not None and self.model.dims.rope.window is not None

    def pairs(self, at: int, offset: int) -> Forward:
        """Run on a key and a query: every token, followed by the token ``at`` so many positions later.

        A model that counts tokens gets others in between.
        """
        between = torch.full((VOCAB, 0 if self.takes_positions else max(offset - 1, 0)), 5)
        ids = torch.cat((torch.arange(VOCAB)[:, None], between, torch.full((VOCAB, 1), at)), 1)
        key = 0 if self.model.family.qk_norm_behind or self.by_length else 3  # attention may depend on both positions
        return self.bare(ids, **self.placed(ids, torch.tensor([key, key + offset]) if self.takes_positions else None))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    folder = tmp_path_factory.mktemp("zoo")

    @cache
    def case(name: str) -> Case:
        hf = tiny_model(name)
        mark = "#decoder" if ZOO[name][2].get("stack") == "decoder" else ""
        model = kept(open_model(f"{save(hf, folder / name)}{mark}"))
        ids = torch.randint(TOKENS, (3, len(POSITIONS)), generator=torch.Generator().manual_seed(1))
        return Case(hf, model, ids)

    return case


@pytest.fixture(params=sorted(ZOO))
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


# The stream


def norm(model: Model, name: str, layer: int, x: Tensor) -> Tensor:
    """Apply a norm layer with its gain and shift."""
    gain, shift = model.vector(name, layer), model.vector(f"{name}_bias", layer)
    return apply_norm(x, model.family.norm, model.dims.eps_of(name), gain, shift)


def added(model: Model, site: Site, layer: int, x: Tensor, written: Tensor) -> Tensor:
    """Return the stream after one half of a block has written."""
    if model.family.stream_normed:
        return norm(model, f"{site}_norm", layer, x + written)
    behind = f"{site}_post_norm"
    normed_behind = model.vector(behind, layer) is not None
    return x + model.dims.written_scale(site) * (norm(model, behind, layer, written) if normed_behind else written)


def entering(case: Case, model: Model, layer: int) -> Tensor:
    """Return the stream that a layer reads first: of several, the active one as the layer predicts it."""
    states = case.text.states(layer)
    return states if case.model.dims.streams == 1 else predictions(model, layer, states)[0]


def predictions(model: Model, layer: int, states: Tensor) -> list[Tensor]:
    """Return the streams as a layer mixes them, one by one, each from all of them by weights of the token."""
    streams = states.split(model.dims.d, -1)
    shares = token_weights(model, layer, streams[0]) @ model.matrix("altup_predict", layer).T
    count = range(len(streams))
    return [streams[i] + sum(shares[..., i * len(streams) + j, None] * streams[j] for j in count) for i in count]


def token_weights(model: Model, layer: int, x: Tensor) -> Tensor:
    """Return the weights of tokens by which streams are mixed."""
    return torch.tanh(norm(model, "altup_norm", layer, x) @ model.matrix("altup_router", layer).T / model.dims.d)


def corrections(case: Case, model: Model, layer: int) -> list[Tensor]:
    """Return the streams behind the MLP: each moved by what the layer made of the active one."""
    streams, made = predictions(model, layer, case.text.states(layer)), behind_mlp(case, model, layer)
    rates = token_weights(model, layer, made) @ model.matrix("altup_correct", layer).T
    return [x + (1 + rates[..., n, None]) * (made - streams[0]) for n, x in enumerate(streams)]


def read_at(case: Case, model: Model, site: Site, layer: int) -> Tensor:
    """Return the stream that a site reads."""
    x = entering(case, model, layer)
    if site in ("attn", "mixer") or model.family.parallel:
        return x
    x = mixed(case, model, layer)
    if site == "cross" or not model.family.crosses:
        return x
    return added(model, "cross", layer, x, case.text.gave("cross_o", layer))


def mixed(case: Case, model: Model, layer: int) -> Tensor:
    """Return the stream after attention, or a mixer, or both side by side."""
    x, roles = entering(case, model, layer), {"attn": "o", "mixer": "mixer_out"}
    written = {
        site: case.text.gave(role, layer) for site, role in roles.items() if case.model.dims.has_site(site, layer)
    }
    beside = residual(case, model, layer, x) if case.model.dims.laurel else x
    return beside + sum(added(model, site, layer, x, each) - x for site, each in written.items())


def residual(case: Case, model: Model, layer: int, x: Tensor) -> Tensor:
    """Return a learned augmented residual, to which attention is added."""
    read = norm(model, "laurel_norm", layer, x)
    written = norm(model, "laurel_post_norm", layer, case.text.gave("laurel_out", layer))
    return model.dims.written_scale("laurel") * (x + read + written)


def after(case: Case, model: Model, layer: int) -> Tensor:
    """Return the stream after a layer, from what its parts wrote."""
    if case.model.dims.streams > 1:
        first, *others = corrections(case, model, layer)
        written = norm(model, "ple_post_norm", layer, case.text.gave("ple_out", layer))
        return torch.cat([first, *(other + written for other in others)], -1)
    x, scalar = behind_mlp(case, model, layer), model.vector("layer_scalar", layer)
    if case.model.dims.has_site("ple", layer):
        x = added(model, "ple", layer, x, case.text.gave("ple_out", layer))
    return x if scalar is None else scalar * x


def behind_mlp(case: Case, model: Model, layer: int) -> Tensor:
    """Return the stream behind the MLP."""
    if not case.model.dims.has_site("ff", layer):
        return read_at(case, model, "ff", layer)
    written = mlp_output(case, layer)
    if model.family.parallel:
        x = case.text.states(layer)
        return mixed(case, model, layer) + added(model, "ff", layer, x, written) - x
    return added(model, "ff", layer, read_at(case, model, "ff", layer), written)


def mlp_output(case: Case, layer: int) -> Tensor:
    """Return what the MLP wrote: the output of its last module, or of the one that holds the router."""
    if not is_routed(case.model, layer):
        return case.text.gave(only_mlp(case.model, layer), layer).reshape_as(entering(case, case.model, layer))
    if case.model.has("ff_post_norm"):  # the norm of A.X K1 is inside that module, as those of Gemma 4 are
        return case.text.took("ff_post_norm", layer)
    written = case.text.out[case.text.name(ROUTER, layer).rpartition(".")[0]][0]
    written = (written[0] if isinstance(written, tuple) else written).reshape_as(case.text.states(layer))
    beside = case.model.layout.tensors.get("shared_value", Stored("")).name.startswith("layers.{layer}.shared_mlp")
    return written + case.text.gave("shared_value", layer) if beside else written


def routing(case: Case, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of a router, and the weights and numbers of the experts that it chose."""
    gave = case.text.gave(ROUTER, layer)
    if case.model.layout.gains:  # Gemma 4's router is around the matrix
        return (gave, *case.text.out[case.text.name(ROUTER, layer).rpartition(".")[0]][0][1:])
    if (
        len(gave) == 3 and gave[0].shape == gave[2].shape
    ):  # Switch Transformers give a one for the expert, its weight and the logits
        return tuple(values.flatten(0, -2) for values in (gave[2], gave[1], gave[0].argmax(-1, keepdim=True)))  # type: ignore[return-value]
    if len(gave) == 3:
        logits, weights, experts = gave
        dims = case.model.dims  # these multiply behind the experts
        factors = {
            "openai_privacy_filter": dims.experts_used,
            "laguna": dims.router_scale,
            "cohere2_moe": dims.router_scale,
        }
        return logits, weights * factors.get(case.model.family.name, 1), experts
    shares, logits = gave  # Llama 4 gives the weights of all experts
    return (logits, *shares.topk(case.model.dims.experts_used))


def is_routed(model: Model, layer: int) -> bool:
    """Tell whether a layer has experts."""
    return model.family.routed and layer not in model.dims.dense


def only_mlp(model: Model, layer: int) -> str:
    """Return the name of the values of a layer without experts."""
    return "dense_value" if layer in model.dims.dense else "value"


# The checks


def start_error(case: Case, model: Model, _layer: int = 0) -> float:
    """Compare embedded texts, with their positions, with the stream before the first block."""
    texts = (case.ids != PADDING).all(1)
    return error(embedded(model, case.ids[texts]), case.text.states(0)[texts])


def stream_error(case: Case, model: Model, layer: int) -> float:
    """Compare what the halves of a block write, through their norms, with the stream that the next block reads."""
    if layer + 1 == model.dims.layers:  # the last state in transformers' list went through the final norm
        return 0.0
    return error(after(case, model, layer), case.text.states(layer + 1))


def neurons_error(case: Case, model: Model, layer: int) -> float:
    """Compare the activation of every neuron, and the sum of activation times value with what the MLP writes."""
    if not case.model.dims.has_site("ff", layer):
        return 0.0
    x = read_at(case, model, "ff", layer)
    block = Block(model, layer)
    act = block.activated
    gated = "gate" in model.family.ff_roles
    active = act(block.sparse(read(model, "gate" if gated else "key", layer, x)))
    if gated:
        limit, up = model.dims.gate_limit, read(model, "up", layer, x)
        active = active * (up if limit is None else up.clamp(-limit, limit) + 1)
    biases, worst = bias_of(model, "ff_bias", layer), 0.0
    if is_routed(case.model, layer):
        logits, weights, experts = routing(case, layer)
        scores = read(model, ROUTER, layer, x).flatten(0, -2)
        routed = logits.shape[-1]
        scores = scores / model.dims.d**0.5 if model.family.router_shrunk else scores
        worst = error(scores[:, :routed], logits)
        share = block._routed(x if model.family.reads_bare("ff_norm", layer) else norm(model, "ff_norm", layer, x))
        true = torch.zeros_like(logits).scatter(-1, experts, weights)
        worst = max(worst, error(share.flatten(0, -2)[:, :routed], true))
        neurons = block.per_neuron(share)
        if model.family.router_scales_input:
            active = act(neurons * read(model, "gate", layer, x)) * neurons * read(model, "up", layer, x)
        else:
            active = active * neurons
        biases = share @ vector_set(model, layer, "ff_bias").vectors if model.has("value_bias") else biases
    else:
        into = "value_in_norm" if model.layout.inner_norm("value") else only_mlp(model, layer)
        worst = error(active, case.text.took(into, layer).reshape_as(active))
    if case.model.layout.gains:
        joined = Block(model, layer).joined(active) if model.layout.gains else torch.zeros(())
        worst = max(worst, error(joined, mlp_output(case, layer)))
        active = per_length(case, layer, active)
    active = divided(model, "value", active)
    written = active @ vector_set(model, layer, "value").vectors + biases
    return max(worst, error(written, mlp_output(case, layer)))


def per_length(case: Case, layer: int, active: Tensor) -> Tensor:
    """Return activations divided by the length of what the experts, or the shared MLP, wrote before their norm."""
    parts = active.split([case.model.dims.neurons - case.model.dims.shared_neurons, case.model.dims.shared_neurons], -1)
    took = (case.text.took(case.model.layout.gains[what], layer) for what in ("value", "shared_value"))
    squares = (x.reshape(*active.shape[:-1], -1).square().mean(-1, keepdim=True) for x in took)
    lengths = ((square + case.model.dims.eps).sqrt() for square in squares)
    return torch.cat([part / length for part, length in zip(parts, lengths, strict=True)], -1)


def logits_error(case: Case, model: Model, layer: int) -> float:
    """Compare attention logits before softmax at the true offsets, with scale, caps and position biases."""
    if not case.model.dims.has_site("attn", layer):
        return 0.0
    x, y = (entering(case, model, place) for place in (layer, model.layer_of("k", layer)))
    return attention_error(case, model, layer, "", x, y)


def cross_error(case: Case, model: Model, layer: int) -> float:
    """Compare logits and outputs of a decoder's attention to its encoder."""
    if not model.family.crosses:
        return 0.0
    x = read_at(case, model, "cross", layer)
    if model.family.other_memory:
        return wordless_error(case, model, layer, x)
    memory = case.text.memory()
    logits = attention_error(case, model, layer, "cross_", x, memory)
    return max(logits, written_error(case, model, layer, "cross_", memory))


def wordless_error(case: Case, model: Model, layer: int, x: Tensor) -> float:
    """Compare queries and outputs of a decoder's attention to what is no text, and the bias of its values."""
    values = case.hf.get_submodule(case.text.name("cross_q", layer).replace("q_proj", "v_proj"))
    bias, gave = model.vector("cross_v_bias", layer), case.text.gave("cross_o", layer)
    assert bias is not None
    written = case.text.took("cross_o", layer) @ model.matrix("cross_o", layer) + bias_of(model, "cross_bias", layer)
    queries = read(model, "cross_q", layer, x)
    return max(
        error(queries, case.text.gave("cross_q", layer).reshape_as(queries)),
        error(written, gave),
        error(bias, values.bias.detach()),
    )


def heads_error(case: Case, model: Model, layer: int) -> float:
    """Compare each head's output, its weights times its values; and what all heads write through o, with the bias."""
    if not case.model.dims.has_site("attn", layer):
        return 0.0
    return written_error(case, model, layer, "", entering(case, model, model.layer_of("v", layer)))


def attention_error(case: Case, model: Model, layer: int, cross: str, x: Tensor, y: Tensor) -> float:
    """Compare the logits of queries from states x and keys from states y."""
    frames, dims = Frames(model), model.dims.at(layer)
    at = case.at
    offsets = at[:, None] - at
    true = without_sinks(case, case.text.logits[case.text.call(layer, "cross" if cross else "attn")])
    worst = 0.0
    for head in range(dims.heads):
        q = head_states(frames, f"{cross}q", layer, head, x)
        k = head_states(frames, f"{cross}k", model.layer_of(f"{cross}k", layer), head, y)
        if dims.rope and not cross:
            frequencies = frames.frequencies(layer, int(at.max()))
            rotated = torch.stack([rotate(q, column, frequencies) for column in offsets.T], 2)
            if (gain := turned_gain(model, layer)) is not None:  # then each side is turned by its own position
                k, rotated = rotate(k, at, frequencies), (rotate(q, at, frequencies) * gain)[:, :, None]
        else:
            rotated = q[:, :, None].expand(-1, -1, x.shape[1], -1)
        steps = torch.arange(x.shape[1]) if dims.growth and dims.growth.unrotated else at  # Llama 4 counts tokens
        grown = growth(model, layer, steps)
        products = (rotated * k[:, None]).sum(-1)
        if not cross and model.has("distances"):
            as_query, as_key = (distance_vectors(model, r, layer)[head][distance_rows(model, offsets)] for r in "qk")
            products = products + (q[:, :, None] * as_key).sum(-1) + (as_query * k[:, None]).sum(-1)
        logits = dims.scale_at(layer) * (1.0 if grown is None else grown) * products
        bias = None if cross else position_bias(model, head, offsets, layer)
        logits = logits if bias is None else logits + bias
        logits = logits if dims.attention_cap is None else dims.attention_cap * (logits / dims.attention_cap).tanh()
        seen = true[:, head] > -5e3  # GPT-1 adds -1e4 where others add the smallest number
        worst = max(worst, error(centred(logits, seen), centred(true[:, head], seen)))
    return worst


def without_sinks(case: Case, logits: Tensor) -> Tensor:
    """Return attention logits relative to that of the sink, if it is among them as the last column."""
    return logits[..., :-1] - logits[..., -1:] if case.model.has("sinks") and has_sink(logits) else logits


def has_sink(x: Tensor) -> bool:
    """Tell whether logits or weights have a column for the sink, beside one for each of the keys."""
    return x.shape[-1] > x.shape[-2]


def attention_weights(case: Case, model: Model, layer: int, cross: str) -> Tensor:
    """Return the weights of the keys; a sink takes its share as a column, or in Granite as a factor behind the rest."""
    call = case.text.call(layer, "cross" if cross else "attn")
    weights, sinks = case.text.weights[call], model.vector("sinks", layer)
    if sinks is None or has_sink(weights):
        return weights if sinks is None else weights[..., :-1]
    return weights * (case.text.logits[call].logsumexp(-1, keepdim=True) - sinks[:, None, None]).sigmoid()


def head_states(frames: Frames, role: str, layer: int, head: int, x: Tensor) -> Tensor:
    """Return queries or keys (…, d_h) of a head before rotation."""
    model, norm = frames.model, norm_of(role)
    x = x if model.family.reads_bare(norm, layer) else frames.as_read(x)
    vectors = frames.fold(model.head(role, layer, head), "token", "read", norm, layer)
    lengths = frames.lengths(layer, role, x.flatten(0, -2), torch.zeros(x.shape[-1]))
    each = None if lengths is None else lengths.each.unflatten(0, x.shape[:-1])
    return frames._state(x @ vectors.T, layer, head, role, "token", each)


def centred(x: Tensor, seen: Tensor) -> Tensor:
    """Subtract the mean over the visible keys, which softmax ignores, and set the others to zero."""
    x = x.where(seen, torch.zeros(()))
    return (x - x.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)).where(seen, torch.zeros(()))


def written_error(case: Case, model: Model, layer: int, cross: str, x: Tensor) -> float:
    """Compare what each head makes of the values of states x, and what all heads write."""
    weights = attention_weights(case, model, layer, cross)
    into = model.layout.inner_norm(f"{cross}o") or f"{cross}o"
    took, gave = split(case.text.took(into, layer), model, layer), case.text.gave(f"{cross}o", layer)
    values, clip = read(model, f"{cross}v", model.layer_of(f"{cross}v", layer), x), model.dims.clip
    values = split(values if clip is None else values.clamp(-clip, clip), model, layer)
    values = model.dims.value_scale * (normed(values, "rms", model.dims.eps) if model.family.value_normed else values)
    gates = output_gates(model, layer, x) if model.family.gated else torch.ones_like(took)
    kv = [model.kv_head("v", head, layer) for head in range(model.dims.at(layer).heads)]
    mixed = torch.stack([weights[:, n] @ values[:, :, kv[n]] for n in range(len(kv))], -2)
    worst, written = error(mixed * gates, took), bias_of(model, "cross_bias" if cross else "attn_bias", layer)
    inputs = split(divided(model, f"{cross}o", (mixed * gates).flatten(-2)), model, layer)
    for head in range(len(kv)):
        written = written + inputs[:, :, head] @ model.head(f"{cross}o", layer, head)
    return max(worst, error(torch.as_tensor(written), gave))


def output_gates(model: Model, layer: int, x: Tensor) -> Tensor:
    """Return the output gates of states x, (…, heads, d_h) or one for each head."""
    gates = read(model, "g", layer, x).unflatten(-1, (-1, model.dims.at(layer).width("g")))
    return gates.sigmoid() if model.family.gate == "sigmoid" else torch.nn.functional.softplus(gates)


def divided(model: Model, role: str, x: Tensor) -> Tensor:
    """Return what goes into the rows of a role, divided by its length where a norm stands there."""
    return normed(x, "rms", model.dims.eps) if model.layout.inner_norm(role) else x


def embedding_error(case: Case, model: Model, layer: int) -> float:
    """Compare what the gates of a per-layer embedding read, what goes through them, and what is written."""
    if not case.model.dims.has_site("ple", layer):
        return 0.0
    several = case.model.dims.streams > 1
    x = corrections(case, model, layer)[0] if several else behind_mlp(case, model, layer)
    gates = read(model, "ple_in", layer, x)
    active = Block(model, layer).activated(gates) * layer_embedding(model, layer, case.ids)
    took, gave = case.text.took("ple_out", layer), case.text.gave("ple_out", layer)
    written = took @ model.matrix("ple_out", layer)
    return max(error(gates, case.text.gave("ple_in", layer)), error(active, took), error(written, gave))


def residual_error(case: Case, model: Model, layer: int) -> float:
    """Compare what a learned augmented residual reads, and what it writes through its few coordinates."""
    if not case.model.dims.has_site("laurel", layer):
        return 0.0
    narrow = read(model, "laurel_in", layer, entering(case, model, layer))
    took, gave = case.text.took("laurel_out", layer), case.text.gave("laurel_out", layer)
    return max(error(narrow, took), error(took @ vector_set(model, layer, "laurel_out").vectors, gave))


def mixer_error(case: Case, model: Model, layer: int) -> float:
    """Compare what a mixer takes from the stream, what it writes, and what it makes of a text."""
    if not case.model.dims.has_site("mixer", layer):
        return 0.0
    tensors = [what for what in MIXER_INPUTS if what in case.model.layout.tensors]
    true = []
    for what in tensors:
        index = row_index(case.model.layout.tensors[what], what, case.model.dims)
        given = case.text.gave(what, layer) / getattr(case.hf.config, "ssm_in_multiplier", 1.0)
        true.append(given if index is None else given[..., index])
    worst = error(read(model, "mixer_in", layer, case.text.states(layer)), torch.cat(true, -1))
    took, gave = case.text.took("mixer_out", layer), case.text.gave("mixer_out", layer)
    written = took @ vector_set(model, layer, "mixer_out").vectors + bias_of(model, "mixer_bias", layer)
    text = Block(model, layer)._mix(norm(model, "mixer_norm", layer, case.text.states(layer)), MixerState(), None)
    return max(worst, error(written, gave), error(text, gave))


def final_error(case: Case, model: Model, _layer: int = 0) -> float:
    """Compare final logits from the rows of the output frame, the final norm's shift and the head's bias."""
    dims, used = model.dims, torch.from_numpy(model.vocab.used)
    bias = model.vector("unembedding_bias")
    if not model.family.causal:
        return encoder_error(case, model)
    if model.has("head_norm"):
        logits = final_logits(model, after(case, model, dims.layers - 1))
        return max(encoder_error(case, model), error(logits, case.text.result.logits))
    x = after(case, model, dims.layers - 1)
    x = x if dims.streams == 1 else joined(model, x)
    x = x if model.family.stream_normed else normed(x, model.family.norm, dims.eps)
    logits = x @ Frames(model).rows("output.write").matrix.T
    shift = model.vector("final_norm_bias")
    logits = logits if shift is None else logits + model.unembedding @ shift
    logits = dims.logit_scale * logits if bias is None else dims.logit_scale * logits + bias
    true = case.text.result.logits
    true = true if dims.logit_cap is None else dims.logit_cap * (true / dims.logit_cap).atanh()
    return error(*(scores - scores[..., used].mean(-1, keepdim=True) for scores in (logits, true)))


def encoder_error(case: Case, model: Model) -> float:
    """Compare an encoder's last state, and what the last layer of its head makes of its input."""
    last = case.text.result.get("last_hidden_state", case.text.states(model.dims.layers))
    stream = after(case, model, model.dims.layers - 1)
    worst = error(stream if model.family.stream_normed else norm(model, "final_norm", 0, stream), last)
    head = case.hf.get_output_embeddings()
    if head is None or model.family.stack or head.weight.shape[1] not in (model.dims.d, model.dims.embed):
        return worst  # RemBERT's head has a table of its own
    name = next(name for name, module in case.hf.named_modules() if module is head)
    rows = model.matrix("embedding") if model.has("embed_projection") else model.unembedding
    bias = 0 if head.bias is None else head.bias.detach()
    return max(worst, error(case.text.into[name][0] @ rows.T + bias, case.text.out[name][0]))


def carried_error(case: Case, model: Model, _layer: int = 0) -> float:
    """Compare the rows of the token frame with the stream after block 0 for each token alone."""
    return error(Frames(model).carried(), case.alone.states(1)[:, 0, : case.model.dims.d])


def memory_error(case: Case, model: Model, _layer: int = 0) -> float:
    """Compare the rows that cross attention reads, each token alone after the encoder's block 0; and its maps."""
    if not model.family.reads_text:
        return 0.0
    frames, states = Frames(model), case.alone.result.encoder_hidden_states[1][:, 0]
    memory = frames.rows("memory").matrix
    worst = error(memory, normed(states, model.family.norm, model.dims.eps) if model.family.reads_normed else states)
    queries = frames.carried()
    for head in range(model.dims.heads):
        product = frames.head_map(1, head, "cross_qk")
        q, k = (head_states(frames, f"cross_{r}", 1, head, x) for r, x in (("q", queries), ("k", states)))
        entries, true = product.left @ product.right.T, q @ k.T
        worst = max(worst, error(*(scores - scores.mean(1, keepdim=True) for scores in (entries, true))))
    return worst


def first_logits(forward: Forward) -> Tensor:
    """Return the attention logits of the first layer."""
    return forward.logits[forward.call(0)]


def map_error(case: Case, model: Model, _layer: int = 0) -> float:
    """Compare a row of a head's qk map in layer 0, one query's logits for all keys, at several offsets."""
    frames, dims, used = Frames(model), model.dims.at(0), torch.from_numpy(model.vocab.used)
    worst = 0.0
    if not case.model.dims.has_site("attn", 0):
        return worst
    for offset in case.offsets:
        true = without_sinks(case, first_logits(case.pairs(17, offset)))[:, :, -1, 0]
        true = true if dims.attention_cap is None else dims.attention_cap * (true / dims.attention_cap).atanh()
        for head in range(dims.heads):
            product = frames.head_map(0, head, "qk", offset=offset)
            row = dims.scale_at(0) * product.left[17] @ product.right.T
            worst = max(worst, error(*(scores - scores[used].mean() for scores in (row, true[:, head]))))
    return worst


CHECKS = (start_error, stream_error, neurons_error, logits_error, heads_error, cross_error, mixer_error, final_error)
CHECKS += (embedding_error, residual_error, carried_error, memory_error, map_error)
BY_LAYER = (stream_error, neurons_error, logits_error, heads_error, cross_error, mixer_error, embedding_error)
BY_LAYER += (residual_error,)


@pytest.mark.parametrize("measure", CHECKS)
def test_a_family_is_what_its_forward_pass_says(case: Case, measure: Callable[[Case, Model, int], float]) -> None:
    for layer in range(case.model.dims.layers) if measure in BY_LAYER else (0,):
        assert measure(case, case.model, layer) < TOLERANCE


# Wrong records must be caught


def with_dims(model: Model, **changed: Any) -> Model:
    """Return the model with other constants."""
    return replace(model, dims=replace(model.dims, **changed))


def with_family(model: Model, **changed: Any) -> Model:
    """Return the model as one of another family."""
    return replace(model, family=replace(model.family, **changed))


class OffByOne(Model):
    """A model that takes each expert's weights for those of the one before."""

    def _tensors(self, stored: Stored, layer: int) -> tuple[str, ...]:
        names = super()._tensors(stored, layer)
        return (*names[1:], *names[:1])


def without(name: str) -> Spoil:
    """Return a corruption that removes a vector, if the model has it."""
    return lambda m: with_tensors(m, **{name: Stored("^no such tensor")}) if m.has(name) else None


def swapped(first: str, second: str) -> Spoil:
    """Return a corruption that swaps two tensors, where they are separate and have one shape."""

    def spoil(model: Model) -> Model | None:
        a, b = model.layout.tensors.get(first), model.layout.tensors.get(second)
        if a is None or b is None or a == b or not model.has(first) or not has_rows_alike(model, first, second):
            return None
        return with_tensors(model, **{first: b, second: a})

    return spoil


def has_rows_alike(model: Model, first: str, second: str) -> bool:
    """Tell whether two canonical tensors have the same number of rows."""
    names = (next(expand(model.layout.tensors[what], model.dims), "") for what in (first, second))
    return len({model.source.shape(full_name(name, model.prefix)) for name in names}) == 1


def unsplit(model: Model) -> Model | None:
    """Split the fused tensors in the other way."""
    other: dict[str, Any] = {"stacked": "grouped", "grouped": "stacked", "quarters": "stacked"}
    fused = {name: s for name, s in model.layout.tensors.items() if s.fused in other and not s.sizes}
    changed = {name: replace(stored, fused=other[stored.fused]) for name, stored in fused.items()}
    # with one key/value head, both ways are the same
    return with_tensors(model, **changed) if fused and model.dims.kv_heads > 1 else None


def ungrouped(model: Model) -> Model | None:
    """Take the inputs of a mixer for those of all groups, size by size."""
    grouped = {name: replace(s, fused="") for name, s in model.layout.tensors.items() if s.sizes and s.fused}
    return with_tensors(model, **grouped) if grouped else None


def no_gates(model: Model) -> Model | None:
    """Leave out the output gates of heads."""
    if not model.family.gated:
        return None
    tensors = {name: stored for name, stored in model.layout.tensors.items() if name not in ("g", "g_bias")}
    layout = replace(model.layout, tensors=tensors)
    return replace(with_family(model, layouts=(layout,)), layout=layout)


def gates_behind(model: Model) -> Model | None:
    """Take queries and gates that take turns, head by head, for two halves."""
    parts = {
        name: (0 if name.startswith("q") else 1, 2) for name, s in model.layout.tensors.items() if s.fused == "gated"
    }
    tensors = {name: replace(model.layout.tensors[name], fused="", part=part) for name, part in parts.items()}
    return with_tensors(model, **tensors) if tensors else None


def router_weights(model: Model) -> Model | None:
    """Let the weights of chosen experts add up to one where they do not, or the reverse; a sparse mixer ignores it."""
    applies = model.dims.experts > 1 and model.dims.router_jitter is None
    return with_dims(model, router_normed=not model.dims.router_normed) if applies else None


def in_halves(model: Model) -> Model | None:
    """Take rows that take turns for halves."""
    tensors = {name: stored for name, stored in model.layout.tensors.items() if stored.alternating}
    return with_tensors(model, **{n: replace(s, alternating=False) for n, s in tensors.items()}) if tensors else None


def interleaved(model: Model) -> Model | None:
    """Take rotary rows for neighbours where they are halves, or the reverse."""
    names = [what for what in ("q", "k", "q_up", "k_rotary") if what in model.layout.tensors]
    stored = {what: model.layout.tensors[what] for what in names}
    changed = {what: replace(tensor, paired_rows=not tensor.paired_rows) for what, tensor in stored.items()}
    return with_tensors(model, **changed) if model.dims.rope else None


def rotary_first(model: Model) -> Model | None:
    """Take the rotary rows of a head for its first ones where they are its last."""
    tensors = {name: stored for name, stored in model.layout.tensors.items() if stored.rotary_last}
    return with_tensors(model, **{n: replace(s, rotary_last=False) for n, s in tensors.items()}) if tensors else None


def other_constant(field: str, value: Any) -> Spoil:
    """Return a corruption that sets a constant to a value, where the model has another."""
    return lambda m: None if getattr(m.dims, field) == value else with_dims(m, **{field: value})


def unscaled_rope(model: Model) -> Model | None:
    """Give the rotary positions another base, without their scaling."""
    if model.dims.rope is None:
        return None
    return with_dims(model, rope=replace(model.dims.rope, kind="default", theta=3 * model.dims.rope.theta))


def rescaled(model: Model, **changed: float) -> Model | None:
    """Change options of the rule of rotary positions, if it has them with other values."""
    rope = model.dims.rope
    if rope is None or not changed.keys() <= rope.options.keys() or changed.items() <= rope.options.items():
        return None
    return with_dims(model, rope=replace(rope, options={**rope.options, **changed}))


def fewer_rotary(model: Model) -> Model | None:
    """Rotate two numbers of a head fewer, in all layers."""
    each = {name: tuple(size - 2 for size in sizes) for name, sizes in model.dims.by_layer.items() if name == "rotary"}
    if model.dims.rotary <= 2 or min(each.get("rotary", (2,))) < 2:
        return None
    return with_dims(model, rotary=model.dims.rotary - 2, by_layer={**model.dims.by_layer, **each})


def other_divisors(model: Model) -> Model | None:
    """Take the divisors for long texts for those of short ones."""
    rope = model.dims.rope
    return with_dims(model, rope=replace(rope, short=rope.long, long=rope.short)) if rope and rope.long else None


def one_length(model: Model) -> Model | None:
    """Take texts of any length alike, where their length counts."""
    rope = model.dims.rope
    known = rope is not None and (rope.long or rope.kind == "dynamic")
    return rescaled(model, original_max_position_embeddings=1e9) if known else None


def variant(field: str, value: Any) -> Spoil:
    """Return a corruption that sets a field of the family to a value, where it has another."""
    return lambda m: None if getattr(m.family, field) == value else with_family(m, **{field: value})


def no_offset(model: Model) -> Model | None:
    """Take gains as the file has them, where it stores them minus one."""
    return replace(model, layout=replace(model.layout, gain_offset=0.0)) if model.layout.gain_offset else None


OTHER_RULE: dict[str, Any] = {"halves": "tensor2tensor", "tensor2tensor": "halves"}
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
        for name in ("cross_norm", "cross_post_norm", "memory_norm", "cross_q_bias", "cross_v_bias", "cross_o_bias")
    },
    "no mixer_norm": without("mixer_norm"),
    "inputs of a mixer swapped": swapped("mixer_in_update", "mixer_in_decay"),
    "inputs of a mixer joined": ungrouped,
    "no gain inside a mixer": without("inner_gain"),
    "no bias of a mixer's convolution": without("inner_conv_bias"),
    "decay and steps of a mixer swapped": swapped("inner_decay", "inner_step"),
    "skips and steps of a mixer swapped": swapped("inner_skip", "inner_step"),
    "gates of a recurrence swapped": swapped("inner_input_gate", "inner_decay_gate"),
    "biases of its gates swapped": swapped("inner_input_bias", "inner_decay_bias"),
    "no least step": lambda m: (
        with_dims(m, mixer=replace(m.dims.mixer, least_step=0.0)) if m.dims.mixer and m.dims.mixer.least_step else None
    ),
    "no output gates": no_gates,
    **{f"no {name}": without(name) for name in ("o_in_norm", "value_in_norm")},
    "gates behind all queries": gates_behind,
    "gates of another function": variant("gate", "sigmoid"),
    **{f"no {role}_bias": without(f"{role}_bias") for role in ("q", "v", "o", "gate", "up", "key", "value")},
    "no final_norm": without("final_norm"),
    "no head_norm": without("head_norm"),
    "no head_bias": lambda m: without("head_bias")(m) if m.family.causal else None,
    "no types": without("types"),
    "no positions": without("positions"),
    "positions one further": lambda m: (
        with_family(m, first_position=m.family.first_position + 1) if adds_positions(m) else None
    ),
    "no sinusoids": variant("sinusoids", ""),
    "other sinusoids": lambda m: (
        with_family(m, sinusoids=OTHER_RULE[m.family.sinusoids]) if m.family.sinusoids else None
    ),
    "no unembedding_bias": lambda m: without("unembedding_bias")(m) if m.family.causal else None,
    "no gain offset": no_offset,
    "gains all offset": lambda m: (
        replace(m, layout=replace(m.layout, plain_gains=())) if m.layout.plain_gains else None
    ),
    "no eps behind": lambda m: with_dims(m, eps_behind=0.5) if m.dims.eps_behind else None,
    "split otherwise": unsplit,
    "rows interleaved": interleaved,
    "an expert further": lambda m: OffByOne(**vars_of(m)) if m.dims.experts > 1 else None,
    "all experts": lambda m: with_dims(m, experts_used=m.dims.experts) if m.dims.experts > 1 else None,
    "router weights": router_weights,
    "softmax for sigmoid": other_constant("router_sigmoid", False),
    "no router correction": without("router_correction"),
    "no router groups": other_constant("router_groups", 1),
    "all router groups": lambda m: (
        with_dims(m, router_groups_used=m.dims.router_groups) if m.dims.router_groups > 1 else None
    ),
    "no router scale": other_constant("router_scale", 1.0),
    "shared expert in full": other_constant("shared_weight", 1.0),
    "shared expert without its gate": without("shared_router"),
    "shared and routed swapped": swapped("shared_gate", "shared_up"),
    "dense gate and up swapped": swapped("dense_gate", "dense_up"),
    "no sinks": without("sinks"),
    "no norm of the queries' latent": without("q_latent_norm"),
    "no norm of the keys' latent": without("kv_latent_norm"),
    "no eps of latents": lambda m: with_dims(m, latent_eps=0.5) if m.dims.kv_latent else None,
    "rotary rows first": rotary_first,
    "groups by their two best": other_constant("router_group_best", 2),
    "no sparse mixer": other_constant("router_jitter", None),
    "no bound of gates": other_constant("gate_limit", None),
    "parts in halves": in_halves,
    "no router bias": without("router_bias"),
    "RoPE": unscaled_rope,
    "nothing lengthened": lambda m: rescaled(m, attention_factor=1.0),
    "divisors swapped": other_divisors,
    "texts of any length": one_length,
    "fewer rotary": fewer_rotary,
    "one RoPE for all": lambda m: with_dims(m, local_rope=None) if m.dims.local_rope else None,
    "other layers local": lambda m: with_dims(m, local=()) if m.dims.local_rope else None,
    "no growth of queries": other_constant("growth", None),
    "no gain behind the rotation": lambda m: (
        with_tensors(m, q_norm=Stored("^none")) if m.family.qk_norm_behind and m.has("q_norm") else None
    ),
    "norm before the rotation": lambda m: (
        with_family(m, qk_norm_behind=False) if m.family.qk_norm_behind and m.has("q_norm") else None
    ),
    "chosen by scores": variant("router_by_logits", False),
    "routers scale outputs": variant("router_scales_input", False),
    "QK-norm in all layers": lambda m: (
        with_family(m, qk_norm_rotated=False) if m.family.qk_norm_rotated and m.dims.unrotated else None
    ),
    "values not normed": variant("value_normed", False),
    "no scale of values": other_constant("value_scale", 1.0),
    "heads of one size": other_constant("by_layer", {}),
    "keys of another layer": lambda m: with_dims(m, kv_layers=m.dims.kv_layers[::-1]) if m.dims.kv_layers else None,
    "keys no values": other_constant("key_valued", ()),
    "queries as values": lambda m: with_tensors(m, kv=m.layout.tensors["q"]) if m.dims.key_valued else None,
    "no gains of parts": lambda m: m.without_gains if m.layout.gains else None,
    "no scale of experts": without("expert_scale"),
    "norms behind parts swapped": swapped("ff_routed_post_norm", "ff_shared_post_norm"),
    "scores of experts not divided": variant("router_shrunk", False),
    "no factor of the stream": without("layer_scalar"),
    "no norm behind embeddings": without("ple_post_norm"),
    "no gain of what embeddings see": without("ple_context_norm"),
    "no embeddings in layers": other_constant("ple", 0),
    "embeddings of all tokens": other_constant("ple_vocab", 0),
    "no gain of their gates": without("ple_gain"),
    "one stream": other_constant("streams", 1),
    "streams mixed without a norm": without("altup_norm"),
    "streams swapped": swapped("stream_in_1", "stream_in_2"),
    "streams joined otherwise": swapped("stream_out_1", "stream_out_3"),
    "no augmented residual": other_constant("laurel", 0),
    "no norm behind it": without("laurel_post_norm"),
    "no gates cut off": other_constant("gate_sparsity", ()),
    "rotated the usual way": variant("turned_back", False),
    "QK-norm of another kind": lambda m: (
        with_family(m, qk_norm_kind="layer" if m.family.qk_norm_kind == "rms" else "rms")
        if m.family.qk_norm == "head"
        else None
    ),
    "no shift of queries": without("q_norm_bias"),
    "embedding not normed": variant("embed_normed", False),
    "xIELU swapped": swapped("xielu_above", "xielu_below"),
    "no clip": other_constant("clip", None),
    "no attention cap": other_constant("attention_cap", None),
    "no final cap": other_constant("logit_cap", None),
    "attention scale": lambda m: with_dims(m, attention_scale=2 * m.dims.attention_scale),
    # a norm behind the embedding makes its scale invisible
    "no embedding scale": lambda m: None if m.has("embed_norm") else other_constant("embed_scale", 1.0)(m),
    "no residual scale": other_constant("residual_scale", 1.0),
    "no scales of parts": other_constant("site_scales", {}),
    "no scale of gates": other_constant("gate_scale", 1.0),
    "no scales of a mixer's inputs": lambda m: (
        with_dims(m, mixer=replace(m.dims.mixer, scales=())) if m.dims.mixer and m.dims.mixer.scales else None
    ),
    "no logit scale": other_constant("logit_scale", 1.0),
    "all layers rotated": other_constant("unrotated", ()),
    "activation": lambda m: with_dims(m, activation="relu" if m.dims.activation != "relu" else "silu"),
    "eps": lambda m: with_dims(m, eps=0.5),
    "tied": lambda m: with_dims(m, tied=True) if not m.dims.tied and m.has("unembedding") else None,
    "the other norm": lambda m: with_family(m, norm="rms" if m.family.norm == "layer" else "layer"),
    "pre-norm": variant("norm_place", "pre"),
    "post-norm": variant("norm_place", "post"),
    "parallel": lambda m: with_family(m, parallel=not m.family.parallel) if not m.family.stream_normed else None,
    "no ALiBi": variant("alibi", ""),
    "no relative positions": without("relative"),
    "no vectors of distances": without("distances"),
    "distances without their norm": without("distances_norm"),
    "distances seen by tokens' queries": without("distance_q"),
    "distance projections swapped": swapped("distance_q", "distance_k"),
    "no bias of distances": without("distance_q_bias"),
    "other reach": lambda m: with_dims(m, distance_reach=m.dims.distance_reach // 2) if m.has("distances") else None,
    "no buckets": other_constant("distance_buckets", 0),
    "cross heads are those of the stream": lambda m: crossed(m) if m.family.crosses else None,
    "no QK-norm": variant("qk_norm", ""),
    "QK-norm of each head": lambda m: with_family(m, qk_norm="head") if m.family.qk_norm == "whole" else None,
}


def crossed(model: Model) -> Model:
    """Swap self attention and cross attention."""
    names = model.layout.tensors
    roles = [role for role in "qkvo" if f"cross_{role}" in names]
    return with_tensors(model, **{r: names[f"cross_{r}"] for r in roles}, **{f"cross_{r}": names[r] for r in roles})


def vars_of(model: Model) -> dict[str, Any]:
    """Return the fields of a model."""
    return {field.name: getattr(model, field.name) for field in fields(Model)}


def largest_error(case: Case, model: Model) -> float:
    """Return the largest error of any check; infinite if a check cannot even be computed."""
    worst = 0.0
    for measure in CHECKS:
        for layer in range(case.model.dims.layers) if measure in BY_LAYER else (0,):
            try:
                worst = max(worst, measure(case, model, layer))
            except (RuntimeError, IndexError, ZeropassError, AssertionError):
                return float("inf")
            if worst > WRONG:
                return worst
    return worst


def test_a_wrong_record_is_caught(case: Case) -> None:
    """Try every corruption that a family admits; none may pass all checks."""
    passed = [name for name, spoil in SPOILS.items() if (m := spoil(case.model)) and largest_error(case, m) <= WRONG]
    assert not passed


def test_each_way_to_be_wrong_is_tried(cases: Callable[[str], Case]) -> None:
    tried = {name for name, spoil in SPOILS.items() for zoo_name in ZOO if spoil(cases(zoo_name).model) is not None}
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
    for parameter, stored in layout.tensors.items():
        present = [name for stem in expand(stored, model.dims) if (name := full_name(stem, model.prefix)) in names]
        assert present or parameter in layout.optional or not [*expand(stored, model.dims)]
        for name in present if parameter not in layout.optional or len(present) > 1 else ():
            with pytest.raises(BadWeights, match=re.escape(name)):
                check(*known, names - {name})


def test_every_family_is_in_the_list() -> None:
    names = {family.name for family in FAMILIES}
    assert all(name in names or name.rpartition("-")[0] in names or name.partition("-")[0] in names for name in ZOO)
    assert names == {
        name if name in names else max((n for n in names if name.startswith(f"{n}-")), key=len) for name in ZOO
    }
