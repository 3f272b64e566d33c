"""Keys of configurations: used, harmless or refused, against what transformers computes with them."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

import tiny
from zeropass.arch.families import FAMILIES
from zeropass.arch.keys import _used, is_harmless
from zeropass.arch.wrappers import layouts_in, text_files, wrapper_files, wrapper_of
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, BadWeights, UnknownFamily, ZeropassError
from zeropass.model.blocks import Block, embedded
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zoo import DECODERS, ZOO, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread", "unprinted_configs"),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint of the zoo, its saved configuration and the opened model."""

    hf: Any
    folder: Path
    mark: str
    config: dict[str, Any]
    model: Model


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    root = tmp_path_factory.mktemp("keys")

    @cache
    def case(name: str) -> Case:
        hf = tiny_model(name)
        mark = "#decoder" if ZOO[name][2].get("stack") == "decoder" else ""
        folder = tiny.save(hf, root / name)
        config = json.loads((folder / "config.json").read_text())
        return Case(hf, folder, mark, config, open_model(f"{folder}{mark}"))

    return case


def stacks(case: Case) -> tuple[str, ...]:
    """Return the places of the keys that count: the top and, where it has a configuration of its own, the stack."""
    return ("", *case.model.layout.stacks[:1])


def fields(case: Case) -> Iterator[tuple[str, str, Any]]:
    """Yield every key of the configuration class and of the saved configuration, with its place and its value."""
    for stack in stacks(case):
        config = attrgetter(stack)(case.hf.config) if stack else case.hf.config
        config.allow_global_per_layer_attribute_access = True  # sizes that some layers have otherwise
        declared = {field.name: getattr(config, field.name, None) for field in dataclasses.fields(config)}
        for key, value in (declared | keys_at(case.config, stack)).items():
            yield stack, key, value


def with_keys(config: dict[str, Any], stack: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with other keys of one stack, or at the top."""
    first, _, rest = stack.partition(".")
    return config | ({first: with_keys(config[first], rest, keys) if rest else keys} if stack else keys)


def keys_at(config: dict[str, Any], stack: str) -> dict[str, Any]:
    """Return the keys of one stack, or those at the top."""
    first, _, rest = stack.partition(".")
    return keys_at(config[first], rest) if stack else config


def changed(value: Any) -> Iterator[Any]:
    """Yield other values of the same type."""
    if isinstance(value, bool) or value is None:
        yield from (True, False)
    elif isinstance(value, int):
        yield from (value + 1, 2 * value + 2)
    elif isinstance(value, float):
        yield 0.5 * value + 0.25
    elif isinstance(value, list):
        yield [*value, *value]


@torch.no_grad()
def output(hf: Any, case: Case) -> torch.Tensor:
    """Return the output of the opened stack; a decoder gets fixed states of an encoder."""
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(2, tiny.TOKENS, (2, 6), generator=draw)
    hf.eval()
    if not case.hf.config.is_encoder_decoder:
        result = hf(ids)
        logits: torch.Tensor = result["logits"] if "logits" in result else result[0]
    elif case.model.family.crosses:
        memory = BaseModelOutput(last_hidden_state=torch.randn(2, 4, 24, generator=draw))
        memory.router_logits = None  # of Switch Transformers
        logits = hf(encoder_outputs=memory, decoder_input_ids=ids).logits
    else:
        logits = hf.get_encoder()(ids).last_hidden_state
    return logits


BY_THE_TENSORS = ("bias", "type_vocab_size", "word_embed_proj_dim", "relative_attention_num_buckets", "head_dim")
"""Keys that count as harmless because the tensors decide: a checkpoint that does not fit is refused by shape."""

OTHERWISE = {"problem_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"}
OTHERWISE |= {"is_encoder_decoder"}
"""Keys that never reach a forward pass and cannot take any value, or that say how a model is called."""


@pytest.mark.parametrize("name", sorted(ZOO))
def test_harmless_keys_change_nothing(name: str, cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases(name)
    monkeypatch.setattr(PreTrainedModel, "initialize_weights", lambda _hf: None)  # all of them are loaded
    before = output(case.hf, case)
    tried = 0
    config_type: type[PretrainedConfig] = type(case.hf.config)
    used = set(_used(case.model.family, case.model.layout))
    stated = config_type._decode_special_floats(case.config)
    for stack, key, value in fields(case):
        if key in used | OTHERWISE or key.endswith(BY_THE_TENSORS):
            continue
        for other in changed(value):
            if other == value or not is_harmless(case.model.files, case.model.layout, key, other):
                continue
            try:
                inner = keys_at(stated, stack) | {key: other} if stack else {key: other}
                config = config_type.from_dict(with_keys(stated, stack, inner))
                config.return_dict, config.output_hidden_states = True, False
                hf = type(case.hf)._from_config(config, attn_implementation=case.hf.config._attn_implementation)
                hf.load_state_dict(case.hf.state_dict())
                after = output(hf.float(), case)
            except Exception:  # values that transformers refuses are not tested here
                continue
            assert tiny.error(after, before) < 1e-5, f"{key} = {other!r} is no harmless key"
            tried += 1
    assert tried > 5


@pytest.mark.parametrize("name", sorted(ZOO))
def test_an_unknown_key_is_refused_unless_it_is_off(name: str, cases: Callable[[str], Case]) -> None:
    case = cases(name)
    for value in (True, 1, 0.5, "something", [1], {"a": 1}):
        assert not is_harmless(case.model.files, case.model.layout, "use_foo", value)
    for off in (None, False, "", [], {}):
        assert is_harmless(case.model.files, case.model.layout, "use_foo", off)


def test_a_refusal_names_the_keys(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama"), tmp_path / "llama")
    tiny.edit(folder, {"residual_multiplier": 0.22, "use_foo": True, "off": False})
    with pytest.raises(UnknownFamily, match=r"residual_multiplier is 0.22, use_foo is True. They may change"):
        open_model(str(folder))


def with_one_key_less(config: dict[str, Any], stack: str) -> Iterator[dict[str, Any]]:
    """Yield a configuration without each key of one stack, or at the top."""
    keys = keys_at(config, stack)
    for key in sorted(keys.keys() - {"model_type", "vocab_size"}):  # the table says how many tokens there are
        less = {k: v for k, v in keys.items() if k != key}
        yield with_keys(config, stack, less) if stack else less


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_missing_key_means_what_it_means_to_transformers(
    name: str, cases: Callable[[str], Case], tmp_path: Path
) -> None:
    """Where its meaning is not defined here, the file is refused."""
    case = cases(name)
    partial, full = tmp_path / "less", tmp_path / "full"
    for folder in (partial, full):
        shutil.copytree(case.folder, folder)
    for less in (config for stack in stacks(case) for config in with_one_key_less(case.config, stack)):
        (partial / "config.json").write_text(json.dumps(less))
        try:
            model = open_model(f"{partial}{case.mark}")
        except ZeropassError:
            continue
        (full / "config.json").write_text(json.dumps(AutoConfig.from_pretrained(partial).to_dict()))
        try:
            true = open_model(f"{full}{case.mark}")
        except (BadModel, BadWeights) as error:
            pytest.fail(f"{name}, {less}: read, though what transformers makes of it is refused: {error}")
        assert (model.dims, model.family) == (true.dims, true.family), less


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_family_looks_ahead_as_its_forward_pass_does(name: str, cases: Callable[[str], Case]) -> None:
    case = cases(name)
    assert looks_ahead(case.hf, name in DECODERS) != case.model.family.causal


@torch.no_grad()
def looks_ahead(hf: Any, decodes: bool = False) -> bool:
    """Tell whether later tokens change the state of a token."""
    stack: Any = hf.model if hf.config.model_type == "llama4_text" else hf.base_model  # which is the same there
    if hf.config.is_encoder_decoder:
        stack = hf.get_decoder() if decodes else hf.get_encoder()
    first = torch.tensor([[5, 6, 7, 8]])
    second = torch.tensor([[5, 6, 9, 8]])
    more = {"encoder_hidden_states": torch.ones(1, 4, 24)} if decodes else {}
    a, b = (stack.eval()(input_ids=ids, return_dict=True, **more).last_hidden_state[0, 0] for ids in (first, second))
    return not torch.allclose(a, b, atol=1e-6)


def test_a_gemma3_that_looks_both_ways_is_read_so(tmp_path: Path) -> None:
    settings = ZOO["gemma3"][2] | {"use_bidirectional_attention": True, "sliding_window": 8}
    hf = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**settings))
    model = open_model(str(tiny.save(hf, tmp_path / "gemma3")))
    assert looks_ahead(hf)
    assert not model.family.causal
    assert model.dims.window == hf.config.sliding_window == 5
    assert "both ways" in model.info()["attention"]
    for family in ("gemma", "gemma2"):
        folder = tiny.save(tiny_model(family), tmp_path / family)
        tiny.edit(folder, {"use_bidirectional_attention": True})
        with pytest.raises(UnknownFamily, match="use_bidirectional_attention is True"):
            open_model(str(folder))


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_bert_that_is_a_decoder_is_read_so(name: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny_model(name), tmp_path / name)
    tiny.edit(folder, {"is_decoder": True})
    model_class = {"bert": transformers.BertLMHeadModel, "roberta": transformers.RobertaForCausalLM}[name]
    hf = model_class.from_pretrained(folder)
    assert not looks_ahead(hf)
    model = open_model(str(folder))
    assert model.family.causal
    assert "both ways" not in model.info()["attention"]
    tiny.edit(folder, {"is_decoder": True, "add_cross_attention": True})
    with pytest.raises(UnknownFamily, match="add_cross_attention is True"):
        open_model(str(folder))


@pytest.mark.parametrize("padding", [0, 2, 5])
def test_a_roberta_whose_positions_begin_elsewhere_is_refused(padding: int, tmp_path: Path) -> None:
    folder = tiny.save(tiny_model("roberta"), tmp_path / "roberta")
    tiny.edit(folder, {"pad_token_id": padding})
    # The first position follows the padding index.
    assert transformers.RobertaModel.from_pretrained(folder).embeddings.padding_idx == padding
    with pytest.raises(UnknownFamily, match=f"pad_token_id is {padding}"):
        open_model(str(folder))


SWITCHED = [
    ("llama", "attention_bias", "model.layers.{}.self_attn.q_proj.bias", 32),
    ("qwen3", "attention_bias", "model.layers.{}.self_attn.q_proj.bias", 32),
    ("olmo2", "attention_bias", "model.layers.{}.self_attn.q_proj.bias", 24),
    ("llama", "mlp_bias", "model.layers.{}.mlp.gate_proj.bias", 40),
    ("falcon-rw", "bias", "transformer.h.{}.mlp.dense_h_to_4h.bias", 40),
    ("gpt_neox", "attention_bias", "gpt_neox.layers.{}.attention.dense.bias", 24),
    ("modernbert-biased", "mlp_bias", "model.layers.{}.mlp.Wi.bias", 80),
]


@pytest.mark.parametrize(("name", "key", "tensor", "size"), SWITCHED)
def test_biases_and_the_key_that_announces_them_must_agree(
    name: str, key: str, tensor: str, size: int, cases: Callable[[str], Case], tmp_path: Path
) -> None:
    case = cases(name)
    assert case.hf.config.to_dict()[key] is True
    assert f"{tensor.format(0)}" in case.hf.state_dict()
    for off in (False, None) if name != "gpt_neox" else (False,):
        folder = tmp_path / str(off)
        shutil.copytree(case.folder, folder)
        tiny.edit(folder, {key: off})
        with pytest.raises(BadWeights, match=f"but {key} is not true"):
            open_model(str(folder))
    (without_biases := tmp_path / "off").mkdir()
    hf = type(case.hf)(type(case.hf.config).from_dict(case.config | {key: False}))
    folder = tiny.save(hf, without_biases)
    open_model(str(folder))
    tiny.edit(folder, {key: True})
    with pytest.raises(BadWeights, match=f"{key} is true, but"):
        open_model(str(folder))


@pytest.mark.parametrize("name", ["mistral", "mixtral", "qwen2"])
def test_biases_that_a_family_never_has_are_refused(name: str, cases: Callable[[str], Case], tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(cases(name).folder, folder)
    width = cases(name).hf.config.hidden_size
    tiny.edit(folder, tensors={f"model.layers.{n}.self_attn.o_proj.bias": torch.ones(width) for n in (0, 1)})
    with pytest.raises(UnknownFamily, match=r"o_proj\.bias"):
        open_model(str(folder))


WINDOWS = [
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 5}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 0}),
    ("qwen2", {"use_sliding_window": None, "sliding_window": 3, "max_window_layers": 0}),  # None: the key is not there
    ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": None}),
]


@pytest.mark.parametrize(("name", "settings"), WINDOWS)
def test_the_layers_with_a_window_are_those_of_transformers(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny.save(tiny_model(name), tmp_path / name)
    tiny.edit(folder, {**settings, "layer_types": None})
    config = AutoConfig.from_pretrained(folder)
    local = tuple(n for n, kind in enumerate(config.layer_types) if kind == "sliding_attention")
    assert open_model(str(folder)).dims.local == local


def test_a_left_over_quantisation_is_a_note(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama").bfloat16(), tmp_path / "llama")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    tiny.edit(folder, {"quantization_config": settings})
    model = open_model(str(folder))
    (note,) = [note for note in model.info()["notes"] if "quantised" in note]
    assert "bitsandbytes, load_in_4bit" in note
    assert "BF16" in note
    # A BitNet model computes with other values than it stores.
    tiny.edit(folder, {"quantization_config": {"quant_method": "bitnet"}})
    with pytest.raises(BadModel, match="BitNet"):
        open_model(str(folder))


WILD: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "wild_configs.json").read_text())


@pytest.mark.parametrize("name", sorted(WILD))
def test_configurations_of_well_known_models_are_accepted(name: str) -> None:
    """These are their keys as published; an allow-list that refuses them would be useless.

    Those of DeepSeek, Kimi, GLM-4, MiniCPM3, EXAONE 3.5, InternLM3, Apertus, Llama 4, Qwen3-VL-30B and Gemma 4 were put
    together from memory, since no copy was at hand.
    """
    files = ModelFiles(name, "hf", None, WILD[name], cast(Any, None), None, {}, ())
    wrapper = wrapper_of(files)
    parts = [files] if wrapper is None else [text_files(files, wrapper), wrapper_files(files, wrapper)]
    model_type = parts[0].config["model_type"]
    fitting = []
    for family in FAMILIES:
        if model_type in family.model_types and (layout := family.layout("hf")):
            layout, used = layouts_in(wrapper, layout)[0], set(_used(family, layout))
            unknown = [
                key
                for part in parts
                for key, value in part.config.items()
                if key not in used and not is_harmless(part, layout, key, value)
            ]
            fitting.append(unknown)
    assert [] in fitting, fitting


@pytest.mark.parametrize("name", ["gelu", "gelu_pytorch_tanh"])
def test_the_gelu_of_the_first_gemmas_is_its_approximation(name: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny_model("gemma"), tmp_path / "gemma")
    tiny.edit(folder, {"hidden_act": name, "hidden_activation": None})
    assert AutoConfig.from_pretrained(folder).hidden_act == open_model(str(folder)).dims.activation
    tiny.edit(folder, {"hidden_act": "silu"})
    with pytest.raises(UnknownFamily, match="hidden_act is 'silu'"):
        open_model(str(folder))


def test_custom_code_in_a_configuration_is_a_note(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama"), tmp_path / "llama")
    assert not any("auto_map" in note for note in open_model(str(folder)).notes)
    tiny.edit(folder, {"auto_map": {"AutoModel": "modeling_own.OwnModel"}})
    assert any("read as those of a plain llama" in note for note in open_model(str(folder)).notes)


def test_two_descriptions_of_the_rotary_positions_must_agree(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama"), tmp_path / "llama")
    tiny.edit(folder, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    with pytest.raises(BadModel, match="rope_parameters and rope_scaling differ"):
        open_model(str(folder))


NOMIC = {"activation_function": "swiglu", "rotary_emb_fraction": 1.0, "rotary_emb_base": 1000, "n_embd": 24}
NOMIC |= {"n_layer": 2, "n_head": 3, "n_inner": 40, "layer_norm_epsilon": 1e-2, "n_positions": 512, "vocab_size": 61}
NOMIC |= dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "prenorm", "causal"), False)
NOMIC |= {"fused_bias_fc": True, "use_flash_attn": True, "scale_attn_weights": True, "model_type": "nomic_bert"}
"""A configuration with the keys of nomic_bert's own code, as its published checkpoints have them."""


def test_nomic_bert_is_read_with_the_keys_of_its_own_code(tmp_path: Path) -> None:
    folder = tiny.save(tiny_model("nomic_bert"), tmp_path / "nomic")
    expected = open_model(str(folder))
    (folder / "config.json").write_text(json.dumps(NOMIC))
    assert open_model(str(folder)).dims == expected.dims
    for key, value in {"activation_function": "gelu", "rotary_scaling_factor": 2, "qkv_proj_bias": True}.items():
        (folder / "config.json").write_text(json.dumps(NOMIC | {key: value}))
        with pytest.raises(UnknownFamily, match=f"{key} is {value!r}"):
            open_model(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("conv_kernel_size", 3), ("share_att_key", False), ("norm_rel_ebd", "none"), ("pos_att_type", ["c2p"])),
        *(("position_biased_input", True), ("relative_attention", False), ("talking_head", True)),
    ],
)
def test_variants_of_deberta_are_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    folder = tiny.save(tiny_model("deberta-v2"), tmp_path / "deberta")
    tiny.edit(folder, {"pos_att_type": "p2c|c2p", "max_relative_positions": -1, "max_position_embeddings": 16})
    assert open_model(str(folder)).dims.distance_reach == 16
    tiny.edit(folder, {key: value})
    with pytest.raises(UnknownFamily, match=re.escape(f"{key} is {value!r}")):
        open_model(str(folder))


@pytest.mark.parametrize("name", ["exaone4", "cohere2", "afmoe", "flint", "kolibri1"])
def test_layers_rotate_as_in_transformers_where_none_has_a_window(
    name: str, cases: Callable[[str], Case], tmp_path: Path
) -> None:
    """The window is stated, and no layer has it."""
    case = cases(name)
    shutil.copytree(case.folder, folder := tmp_path / name)
    tiny.edit(folder, {"layer_types": ["full_attention"] * len(case.config["layer_types"])})
    model, text = open_model(str(folder)), torch.randint(2, tiny.TOKENS, (1, 6))
    hf = type(case.hf).from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        result = hf(text, output_hidden_states=True)
    assert model.dims.unrotated == tuple(range(model.dims.layers))
    assert tiny.error(Block(model, 0)(embedded(model, text)), result.hidden_states[1]) < 1e-4


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hidden_size", 32, r"hidden_size differs between the stacks \(encoder: 32 and decoder: 24\)"),
        ("vocab_size", 60, r"vocab_size differs between the stacks \(encoder: 60 and decoder: 61\)"),
        ("use_foo", True, "use_foo is True"),
        ("", None, "encoder must be an object"),
    ],
)
def test_what_the_configuration_of_a_stack_says_counts(key: str, value: object, says: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny_model("t5gemma-encoder"), tmp_path / "t5gemma")
    encoder = json.loads((folder / "config.json").read_text())["encoder"]
    tiny.edit(folder, {"encoder": encoder | {key: value} if key else value, "rms_norm_eps": 0.5})
    with pytest.raises((BadModel, UnknownFamily), match=says):
        open_model(str(folder))
    tiny.edit(folder, {"encoder": encoder | {"tie_word_embeddings": True}})
    assert open_model(str(folder)).dims.eps == encoder["rms_norm_eps"]


def test_a_stack_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny.save(tiny_model("t5gemma2-encoder"), tmp_path / "t5gemma2")
    with pytest.raises(UnknownFamily, match=r"of a t5gemma2 the decoder is not read; open it without #decoder"):
        open_model(f"{folder}#decoder")
