"""Models in memory: what is read of them is what is read of the same models after they were saved."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import adapters
import tiny
import zeropass as zp
import zoo
from adapters import ALL, randomise
from zeropass.errors import BadModel, BadOption, CannotRun, UnknownFamily
from zeropass.model.adapted import Adapted
from zeropass.model.loading import loaded
from zeropass.model.running import Running

MODELS = Path(__file__).parents[2] / "models"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def same(memory: zp.Model, file: zp.Model) -> None:
    """Check that two models read the same, whatever holds them."""
    assert (memory.family, memory.dims, memory.layout, memory.notes) == (
        file.family,
        file.dims,
        file.layout,
        file.notes,
    )
    unsaved = {name for name in memory.source.names() if memory.family.sinusoids and "embed_positions" in name}
    assert sorted(set(memory.source.names()) - unsaved) == sorted(set(file.source.names()) - unsaved)
    for name in file.source.names():
        if file.source.dtype(name) in ("F32", "F16", "BF16"):
            assert memory.source.dtype(name) == file.source.dtype(name)
            np.testing.assert_array_equal(memory.source.rows(name), file.source.rows(name), err_msg=name)
    assert memory.vocab.pieces == file.vocab.pieces
    assert unsaved or json.dumps(memory.info()["parameters"]) == json.dumps(file.info()["parameters"])


def tokenizer_of(hf: PreTrainedModel) -> Tokenizer:
    return Tokenizer.from_str(tiny.tokenizer_json(tiny.TOKENS, hf.config.model_type == "bert"))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_model_in_memory_reads_as_the_saved_one(name: str, tmp_path: Path) -> None:
    hf, stack = zoo.tiny_model(name), zoo.ZOO[name][2].get("stack", "")
    memory = zp.open_model(hf, tokenizer_of(hf), stack=stack)
    same(memory, zp.open_model(tiny.save(hf, tmp_path), stack=stack))
    held = {tensor.untyped_storage().data_ptr() for tensor in (*hf.parameters(), *hf.buffers())}
    state = memory.files.state
    assert state is not None
    copied = {name for name in state.names() if state._find(name).untyped_storage().data_ptr() not in held}
    joined = (".experts.", "qkv", "up_gate", ".query_key_value.")
    assert all(any(part in name.lower() for part in joined) for name in copied), "transformers joins or splits these"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_numbers_are_read_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    hf = tiny.make("llama").to(dtype)
    memory, file = zp.open_model(hf, tokenizer_of(hf)), zp.open_model(tiny.save(hf, tmp_path))
    same(memory, file)
    assert memory.stored_type("gate", 1) == file.stored_type("gate", 1)
    # The fingerprint is of values, so that the same numbers in float32 are the same weights.
    assert memory.fingerprint == zp.open_model(copy.deepcopy(hf).float(), tokenizer_of(hf)).fingerprint


def test_a_state_dict_needs_its_configuration(tmp_path: Path) -> None:
    hf = tiny.make("gpt2")
    file = zp.open_model(tiny.save(hf, tmp_path))
    for config in (hf.config, json.loads(hf.config.to_json_string()), tmp_path, tmp_path / "config.json"):
        same(zp.open_model(hf.state_dict(), tmp_path, config=config), file)
    with pytest.raises(BadOption, match="needs config"):
        zp.open_model(hf.state_dict(), tmp_path)
    with pytest.raises(BadOption, match="config is a list"):
        zp.open_model(hf.state_dict(), tmp_path, config=[1])


def test_our_own_model_says_the_same_in_memory() -> None:
    hf = AutoModelForCausalLM.from_pretrained(MODELS / "first", dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODELS / "first" / "tokenizer.json"))
    memory, file = zp.load(hf, tokenizer), zp.load(MODELS / "first")
    for address in ("L1.ff.3", "L2.attn.1.vo"):
        assert memory[address].to_json() == file[address].to_json()
    assert memory.model.name == f"{MODELS / 'first'} (in memory)"
    assert (memory.model.sha256, memory.model.info()["files"]) == (None, [])
    assert memory.model.size == sum(p.numel() * 4 for p in hf.parameters())


def test_everything_takes_models_in_memory(tmp_path: Path) -> None:
    before = zp.open_model(tiny.make("llama"), tokenizer_of(tiny.make("llama")))
    hf = tiny.make("llama")
    optimiser = torch.optim.SGD(hf.parameters(), lr=0.1)
    hf(torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    assert zp.open_model(hf, tokenizer_of(hf)).fingerprint == before.fingerprint
    optimiser.step()
    after = zp.open_model(hf, tokenizer_of(hf))
    assert after.fingerprint != before.fingerprint
    assert zp.compare(before, after).relation == "changed"
    assert zp.pair_of(before, after).shared.identical
    assert zp.build(after, tmp_path / "atlas", zp.Options(k=5), lens=None)
    assert zp.open_atlas(tmp_path / "atlas")["L1.ff.3"].to_json()[0]["address"] == "L1.ff.3"
    assert zp.calibrate(after, tmp_path / "lens", source="random", tokens=512).facts.fingerprint == after.fingerprint
    assert zp.read_lens(tmp_path / "lens", after).effect(0, "ff").shape == (24, 24)
    assert zp.lens_of(zp.open_atlas(tmp_path / "atlas"), after)["L1.ff.3"].to_json()


def test_a_model_in_memory_is_measured(tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(MODELS / "first", dtype=torch.float32)
    model, text = zp.open_model(hf, MODELS / "first"), MODELS / "tunes" / "reviews" / "texts.txt"
    collected = zp.collect_evidence(model, text, tmp_path / "evidence", tokens=600, only=("inverses",), lens=None)
    assert collected.evidence.model["name"] == model.name
    assert collected.evidence.model["bytes"] == model.size


def test_names_are_taken_where_models_are(tmp_path: Path) -> None:
    first = str(MODELS / "first")
    assert zp.build(first, tmp_path / "atlas", zp.Options(k=5, layers=(1, 2), roles=("gate",)))
    assert zp.compare(first, first).relation == "equal"


def test_an_open_model_is_taken_as_it_is() -> None:
    model = zp.open_model(MODELS / "first")
    assert zp.open_model(model) is model
    assert zp.load(model).model is model
    with pytest.raises(BadOption, match="is open already"):
        zp.open_model(model, "tokenizer.json")
    with pytest.raises(BadOption, match="cannot be the path of a tokenizer"):
        zp.open_model(
            {"x": torch.zeros(1)}, (MODELS / "first" / "tokenizer.json").read_text(), config={"model_type": "llama"}
        )
    with pytest.raises(BadOption, match="is open on cpu"):
        zp.open_model(model, device="meta")
    with pytest.raises(BadOption, match="has its own"):
        zp.open_model(MODELS / "first", "cuda")
    with pytest.raises(BadOption, match="one of encoder, decoder"):
        zp.open_model(MODELS / "first", stack="middle")


CONFIGS: dict[str, tuple[str, PeftConfig]] = {
    "lora": ("llama", LoraConfig(r=4, target_modules=ALL)),
    "dora": ("llama", LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True)),
    "tables": ("llama", LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "whole": ("llama", LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])),
    "tied": ("llama-tied", LoraConfig(r=4, target_modules=["q_proj", "lm_head"])),
    "biases": ("llama-biased", LoraConfig(r=4, target_modules=["q_proj", "up_proj"], bias="all")),
    "tokens": ("llama", LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 5])),
    "rows": ("llama", TrainableTokensConfig(token_indices=[3, 5], target_modules=["embed_tokens"])),
    "fused": ("gpt2", LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "bert": ("bert", LoraConfig(r=4, target_modules=["query", "dense"])),
    "ia3": ("llama", IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ln": ("llama", LNTuningConfig(target_modules=["norm", "input_layernorm"])),
    "loha": ("llama", LoHaConfig(r=4, target_modules=["q_proj", "up_proj"])),
    "experts": ("mixtral", LoraConfig(r=4, target_modules=["q_proj"])),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_in_memory_reads_as_the_saved_one(name: str, tmp_path: Path) -> None:
    variant, config = CONFIGS[name]
    base = adapters.base_model(variant)
    tiny.save(base, tmp_path / "base")
    hf = get_peft_model(base, copy.deepcopy(config))
    randomise(hf)
    memory = zp.open_model(hf, tmp_path / "base")
    hf.save_pretrained(tmp_path / "adapter")
    file = zp.adapt(zp.open_model(tmp_path / "base"), tmp_path / "adapter")
    assert isinstance(memory, Adapted)
    adapters.alike(memory, file, atol=0)
    assert (memory.changed.keys(), memory.replaced.keys()) == (file.changed.keys(), file.replaced.keys())
    if config.peft_type != "LN_TUNING" and name != "biases":  # the biases of the base itself were trained
        same(memory.base, file.base)
    assert memory.fingerprint != memory.base.fingerprint
    assert memory.fingerprint == zp.open_model(hf, tmp_path / "base").fingerprint


def peft(**settings: Any) -> Any:
    hf = get_peft_model(tiny.make("llama"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **settings))
    randomise(hf)
    return hf


def two_adapters(hf: Any) -> None:
    hf.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    randomise(hf)
    hf.base_model.set_adapter(["default", "second"])


STATES: dict[str, Callable[[Any], None]] = {
    "two adapters": two_adapters,
    "merged": lambda hf: hf.merge_adapter(),
    "off": lambda hf: hf.base_model.disable_adapter_layers(),
}


@pytest.mark.parametrize(
    ("state", "saved"),  # PEFT activates one trained copy of a module at a time
    [("two adapters", None), ("merged", None), ("merged", ["lm_head"]), ("off", None), ("off", ["lm_head"])],
)
def test_weights_are_those_that_peft_computes_with(state: str, saved: list[str] | None, tmp_path: Path) -> None:
    hf = peft(modules_to_save=saved)
    STATES[state](hf)
    tokenizer = tokenizer_of(hf)
    before = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    model = zp.open_model(hf, tokenizer)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        theirs = hf(ids).logits
    ours = zp_logits(model, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not isinstance(model, Adapted)
    for name, tensor in hf.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model itself is never changed"


def zp_logits(model: zp.Model, ids: torch.Tensor) -> torch.Tensor:
    running = Running(model)
    return running.logits(running.run(ids))


def test_an_adapter_may_be_inside_a_model_of_transformers() -> None:
    hf = tiny.make("llama")
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "down_proj"]), hf, adapter_name="mine")
    randomise(hf)
    model = zp.open_model(hf, tokenizer_of(hf))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        theirs = hf(ids).logits
    assert isinstance(model, Adapted)
    assert model.name == "LlamaForCausalLM (in memory) with mine"
    torch.testing.assert_close(zp_logits(model, ids), theirs, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_is_not_known_is_refused() -> None:
    hf = peft()
    hf.peft_config["default"].alora_invocation_tokens = [1, 2]
    with pytest.raises(BadModel, match="alora_invocation_tokens"):
        zp.open_model(hf, tokenizer_of(hf))


def test_what_accelerate_moves_is_read_where_it_is(tmp_path: Path) -> None:
    hf = tiny.make("llama")
    file = zp.open_model(tiny.save(hf, tmp_path))
    add_hook_to_module(hf.model.layers[0], AlignDevicesHook(execution_device="cpu"))
    same(zp.open_model(hf, tokenizer_of(hf)), file)
    cpu_offload(hf, execution_device=torch.device("cpu"))
    with pytest.raises(BadModel, match="accelerate moved it elsewhere"):
        zp.open_model(hf, tokenizer_of(hf))


def test_an_initialisation_that_changes_the_base_is_read_in_memory() -> None:
    hf = peft(init_lora_weights="pissa")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        theirs = hf(ids).logits
    torch.testing.assert_close(zp_logits(zp.open_model(hf, tokenizer_of(hf)), ids), theirs, rtol=1e-3, atol=1e-3)


class Envoy:
    """A stand-in for nnsight's wrapper."""

    def __init__(self, module: nn.Module, tokenizer: Any, edits: list[Any] | None = None) -> None:
        self._module, self.tokenizer, self._edits = module, tokenizer, edits or []


Envoy.__module__ = "nnsight.intervention.envoy"


class Component(nn.Module):
    """A stand-in for a part of TransformerLens's bridge, which holds the original and copies of its parts."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.add_module("_original_component", original)
        self.alias = original

    def forward(self, *inputs: Any, **more: Any) -> Any:
        return self._original_component(*inputs, **more)


Component.__module__ = Component.forward.__module__ = "transformer_lens.model_bridge.parts"


class UnembeddingBridge(Component):
    """A stand-in for the part that gives an unembedding without a bias one of zeros."""

    def __init__(self, original: Any) -> None:
        original.bias = nn.Parameter(torch.zeros(len(original.weight)))
        super().__init__(original)


class TransformerBridge:
    """A stand-in for TransformerLens's bridge."""

    compatibility_mode = False

    def __init__(self, module: Any, tokenizer: Any) -> None:
        module.model.layers[0] = Component(module.model.layers[0])
        module.model.layers[0]._original_component.mlp = Component(module.model.layers[0]._original_component.mlp)
        module.lm_head = UnembeddingBridge(module.lm_head)
        self.original_model, self.tokenizer = module, tokenizer


class HookedTransformer(nn.Module):
    """A stand-in for TransformerLens's own model."""


UnembeddingBridge.__module__ = TransformerBridge.__module__ = HookedTransformer.__module__ = (
    "transformer_lens.model_bridge.bridge"
)


def test_wrappers_are_read_by_the_model_that_they_hold(tmp_path: Path) -> None:
    hf = tiny.make("llama")
    file = zp.open_model(tiny.save(hf, tmp_path))
    same(zp.open_model(Envoy(hf, tokenizer_of(hf))), file)
    same(zp.open_model(torch.compile(hf), tokenizer_of(hf)), file)
    same(zp.open_model(nn.DataParallel(hf), tokenizer_of(hf)), file)
    with pytest.raises(BadModel, match="has edits"):
        zp.open_model(Envoy(hf, tokenizer_of(hf), edits=[1]))
    bridge = TransformerBridge(hf, tokenizer_of(hf))
    same(zp.open_model(bridge), file)
    bridge.compatibility_mode = True
    with pytest.raises(BadModel, match="in compatibility mode"):
        zp.open_model(bridge)
    with pytest.raises(BadModel, match="folded and centred"):
        zp.open_model(HookedTransformer())


class Quantised(nn.Parameter):
    """A stand-in for a parameter of bitsandbytes."""


class Linear4bit(nn.Linear):
    """A stand-in for a module of bitsandbytes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


Quantised.__module__ = "bitsandbytes.nn.modules"
Linear4bit.__module__ = Linear4bit.forward.__module__ = "bitsandbytes.nn.modules"


def four_bits(hf: Any) -> None:
    hf.model.layers[0].mlp.up_proj = Linear4bit(24, 40, bias=False)


def quantised_values(hf: Any) -> None:
    hf.model.norm.weight = Quantised(torch.ones(24))


def hooked(hf: Any) -> None:
    hf.model.layers[1].register_forward_hook(steer)


def hooked_before(hf: Any) -> None:
    hf.model.layers[1].register_forward_pre_hook(lambda _module, inputs: inputs)


def hooked_by_accelerate(hf: Any) -> None:
    add_hook_to_module(hf.model.layers[1], Steering())
    add_hook_to_module(hf.model.layers[1], AlignDevicesHook(execution_device="cpu"), append=True)


class Steering(ModelHook):
    """A hook of accelerate that its user wrote."""


def patched(hf: Any) -> None:
    hf.model.layers[1].mlp.forward = steer


def steer(*_inputs: Any) -> None:
    """Change what a layer says."""


def on_meta(hf: Any) -> None:
    hf.model.layers[1].to("meta")


def sparse(hf: Any) -> None:
    hf.lm_head.weight = nn.Parameter(torch.eye(61, 24).to_sparse())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (four_bits, r"up_proj has the forward pass 'Linear4bit.forward' of bitsandbytes"),
        (quantised_values, r"model\.norm\.weight is a Quantised of bitsandbytes"),
        (hooked, r"model\.layers\.1 has the hook 'steer' of test_in_memory.*state_dict\(\) and config"),
        (hooked_before, r"model\.layers\.1 has the hook .*lambda"),
        (hooked_by_accelerate, r"model\.layers\.1 has the hook 'Steering' of test_in_memory"),
        (patched, r"model\.layers\.1\.mlp has the forward pass 'steer'"),
        (on_meta, "is on the meta device"),
        (sparse, "dense tensors"),
    ],
)
def test_what_is_not_known_to_be_harmless_is_refused(change: Callable[[Any], None], message: str) -> None:
    hf = tiny.make("llama")
    change(hf)
    with pytest.raises(BadModel, match=message):
        zp.open_model(hf, tokenizer_of(hf))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    hf = tiny.make("llama")
    with pytest.raises(BadModel, match="int of builtins is no model in memory"):
        zp.open_model(3)
    with pytest.raises(BadOption, match="No tokenizer is given"):
        zp.open_model(hf)
    with pytest.raises(BadOption, match="A object of builtins is given"):
        zp.open_model(hf, object())
    with pytest.raises(BadModel, match="is a str of builtins"):
        zp.open_model({"a": "b"}, tokenizer_of(hf), config=hf.config)
    with pytest.raises(UnknownFamily, match="'unheard', which is not in the table of families"):
        zp.open_model(hf.state_dict(), tokenizer_of(hf), config={"model_type": "unheard"})
    with pytest.raises(BadModel, match="holds no tensors"):
        zp.open_model({}, tokenizer_of(hf), config=hf.config)
    with pytest.raises(BadOption, match="config is a NoneType"):
        zp.open_model(nn.Linear(3, 3), tokenizer_of(hf))


def test_prompts_are_no_weights() -> None:
    hf = get_peft_model(tiny.make("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(BadModel, match=r"PROMPT_TUNING.*no weights"):
        zp.open_model(hf, tokenizer_of(hf))


def test_a_cluster_opens_models_by_name(tmp_path: Path) -> None:
    hf = tiny.make("llama")
    with pytest.raises(BadOption, match="save it, and give the folder"):
        zp.build_on_cluster(zp.open_model(hf, tokenizer_of(hf)), tmp_path / "atlas")


def test_transformers_runs_only_what_was_saved() -> None:
    hf = tiny.make("llama")
    with pytest.raises(CannotRun, match="save it"):
        loaded(AutoModelForCausalLM, zp.open_model(hf, tokenizer_of(hf)))


def test_no_warning_is_left_over() -> None:
    hf = peft()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zp.open_model(hf, tokenizer_of(hf))
