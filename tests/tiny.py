"""Tiny, seeded, random checkpoints of three families, and a record of what transformers computes with them.

Every norm gain, shift and bias is random, so an omitted one is noticed. The constants (eps, head width, RoPE scaling)
are chosen so that each of them matters far more than rounding.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

VOCAB = 61
TOKENS = 58
"""The number of tokens in the tokenizer; the last rows of the embedding have none."""

_MODELING = {"llama": modeling_llama, "gpt2": modeling_gpt2, "bert": modeling_bert}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _llama(**more: Any) -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-2,
    }
    config = LlamaConfig(vocab_size=VOCAB, num_hidden_layers=2, **(sizes | more))
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def _gpt2(**more: Any) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_positions=32,
        layer_norm_epsilon=1e-2,
        bos_token_id=0,
        eos_token_id=0,
        **more,
    )
    return GPT2LMHeadModel._from_config(config, attn_implementation="eager")


def _bert(task: type[PreTrainedModel], **more: Any) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=32,
        layer_norm_eps=1e-2,
        **more,
    )
    return task._from_config(config, attn_implementation="eager")


MAKERS = {
    "llama": _llama,
    "llama-tied": partial(_llama, tie_word_embeddings=True, num_key_value_heads=4),
    "llama-biased": partial(_llama, attention_bias=True, mlp_bias=True),
    "llama-one-kv": partial(_llama, num_key_value_heads=1, attention_bias=True),
    "llama-rope3": partial(_llama, rope_parameters=_LLAMA3, attention_bias=True),
    "llama-linear": partial(_llama, rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
    "gpt2": _gpt2,
    "gpt2-untied": partial(_gpt2, tie_word_embeddings=False, n_inner=40, activation_function="relu"),
    "bert": partial(_bert, BertModel),
    "bert-mlm": partial(_bert, BertForMaskedLM),
    "bert-untied": partial(_bert, BertForPreTraining, tie_word_embeddings=False, hidden_act="relu"),
}


def make(variant: str, seed: int = 0) -> PreTrainedModel:
    """Make one of MAKERS in float32, with every parameter drawn at random."""
    hf = MAKERS[variant]().float().eval()
    generator = torch.Generator().manual_seed(seed)
    gains = {id(m.weight) for m in hf.modules() if "norm" in type(m).__name__.lower()}
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if id(parameter) in gains else noise)
    return hf


def save(hf: PreTrainedModel, folder: Path) -> Path:
    """Write the model as users store it: config.json, model.safetensors, tokenizer.json."""
    hf.save_pretrained(folder)
    wordpiece = hf.config.model_type == "bert"
    (folder / "tokenizer.json").write_text(tokenizer_json(TOKENS, wordpiece))
    return folder


def tokenizer_json(size: int, wordpiece: bool = False) -> str:
    """Return a tokenizer of ``size`` tokens: byte-level BPE or WordPiece."""
    if wordpiece:
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(size - 5))]
        tokenizer = Tokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        tokenizer.add_special_tokens(names[:5])
        return tokenizer.to_str()
    names = sorted(pre_tokenizers.ByteLevel.alphabet())[:size]
    tokenizer = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return tokenizer.to_str()


def edit(folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, Tensor | None] | None = None) -> Path:
    """Change keys of config.json and tensors of model.safetensors; None removes one."""
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    settings = {key: value for key, value in settings.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings))
    if tensors:
        tensors_left = load_file(folder / "model.safetensors") | tensors
        save_file({n: t for n, t in tensors_left.items() if t is not None}, folder / "model.safetensors")
    return folder


@dataclass(frozen=True)
class Places:
    """Names of modules inside a block; the input of those in ``reads`` is the stream that a site reads."""

    block: str
    reads: dict[str, str]
    linear: dict[str, str]
    after: dict[str, str] = field(default_factory=dict)


PLACES = {
    "llama": Places(
        "layers.{}",
        {"attn": "input_layernorm", "ff": "post_attention_layernorm"},
        {"o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "value": "mlp.down_proj"},
    ),
    "gpt2": Places(
        "h.{}",
        {"attn": "ln_1", "ff": "ln_2"},
        {"o": "attn.c_proj", "key": "mlp.c_fc", "value": "mlp.c_proj"},
    ),
    "bert": Places(
        "encoder.layer.{}",
        {"attn": "attention.self.query", "ff": "intermediate.dense"},
        {"o": "attention.output.dense", "key": "intermediate.dense", "value": "output.dense"},
        {"attn": "attention.output", "ff": "output"},
    ),
}


@dataclass
class Run:
    """The record of one forward pass: inputs and outputs of modules by name, and q, k, v of each layer.

    q, k, v are the inputs of the attention product, after RoPE: (batch, heads, length, d_h).
    """

    places: Places
    into: dict[str, Tensor] = field(default_factory=dict)
    out: dict[str, Tensor] = field(default_factory=dict)
    qkv: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    result: Any = None

    def name(self, layer: int, place: str) -> str:
        """Return the full name of a module inside a block."""
        return f"{self.places.block.format(layer)}.{place}"

    def reads(self, layer: int, site: str) -> Tensor:
        """Return the stream that ``attn`` or ``ff`` of a layer reads, before any pre-norm."""
        return self.into[self.name(layer, self.places.reads[site])]

    def linear(self, layer: int, role: str) -> tuple[Tensor, Tensor]:
        """Return the input and output of the linear layer of a role."""
        name = self.name(layer, self.places.linear[role])
        return self.into[name], self.out[name]


@torch.no_grad()
def run(hf: PreTrainedModel, ids: Tensor, positions: Tensor | None = None) -> Run:
    """Run and record the model on ids (batch, length), with ``positions`` (length,) for models with RoPE."""
    record = Run(PLACES[hf.config.model_type])
    more = {} if positions is None else {"position_ids": positions.expand_as(ids)}
    with _hooks(hf.base_model, record), _attention(hf.config.model_type, record):
        record.result = hf(ids, output_hidden_states=True, **more)
    return record


@contextmanager
def _hooks(base: nn.Module, record: Run) -> Iterator[None]:
    def tap(name: str, _module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            record.into[name] = inputs[0]
        if isinstance(output, Tensor):
            record.out[name] = output

    handles = [m.register_forward_hook(partial(tap, name)) for name, m in base.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _attention(family: str, record: Run) -> Iterator[None]:
    """Record the inputs of the model's attention product, and its weights."""
    module = _MODELING[family]
    plain = module.eager_attention_forward

    def tapped(owner: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = plain(owner, q, k, v, *args, **kwargs)
        record.qkv.append((q, k, v))
        record.weights.append(weights)
        return output, weights

    module.eager_attention_forward = tapped
    try:
        yield
    finally:
        module.eager_attention_forward = plain


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())
