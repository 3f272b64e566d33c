"""Bad models and bad questions: each is refused with a zeropass error that says what is wrong and where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import VOCAB, edit, make, save, tokenizer_json
from zeropass.arch.roles import OUTSIDE
from zeropass.errors import BadAddress, BadModel, BadOption, BadWeights, UnknownFamily
from zeropass.lens import Lens
from zeropass.model.address import parse
from zeropass.model.frames import Frames
from zeropass.model.opening import open_model
from zeropass.model.vectors import locate, require_head, vector_set
from zoo import tiny_model

ATTN = "model.layers.1.self_attn."
GPT2_ATTN = "transformer.h.1.attn."


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for variant in ("llama", "llama-tied", "llama-rope3", "gpt2", "bert", "bert-mlm"):
        save(make(variant), folder / variant)
    return folder


@pytest.fixture
def copy(originals: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that copies a good checkpoint and changes keys of its configuration or tensors."""

    def changed(variant: str, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> str:
        shutil.copytree(originals / variant, tmp_path / variant)
        return str(edit(tmp_path / variant, config, tensors))

    return changed


@pytest.fixture(scope="module")
def good(originals: Path) -> Callable[[str], Lens]:
    return lambda variant: Lens(open_model(str(originals / variant)), tokens="all")


# Configuration

BAD_CONFIGS = {
    "unknown family": ("llama", {"model_type": "mamba9"}, UnknownFamily, "'mamba9'.*Known: .*albert, .*gpt2"),
    "no family": ("llama", {"model_type": None}, UnknownFamily, "model_type is None"),
    "a family that is no text": ("llama", {"model_type": ["llama"]}, UnknownFamily, "Known: .*albert, .*gpt2"),
    "negative layers": ("llama", {"num_hidden_layers": -2}, BadModel, "num_hidden_layers is -2; .*positive whole"),
    "no layers": ("llama", {"num_hidden_layers": 0}, BadModel, "num_hidden_layers is 0"),
    "text for a size": ("llama", {"hidden_size": "24"}, BadModel, "hidden_size is '24'"),
    "a fraction": ("gpt2", {"n_embd": 24.5}, BadModel, "n_embd / hidden_size is 24.5"),
    "a truth value": ("gpt2", {"n_head": True}, BadModel, "n_head .*is True"),
    "negative neurons": ("gpt2", {"n_inner": -1}, BadModel, "n_inner is -1"),
    "negative head width": ("llama", {"head_dim": -8}, BadModel, "head_dim is -8"),
    "missing size": ("bert", {"hidden_size": None}, BadModel, "lacks hidden_size"),
    "heads that cannot share": (
        "llama",
        {"num_key_value_heads": 3},
        BadModel,
        "4 heads cannot share 3 key/value heads",
    ),
    "odd head width": ("llama", {"head_dim": 7}, BadModel, "turn 7 of the 7 .*even"),
    "eps is text": ("gpt2", {"layer_norm_epsilon": "tiny"}, BadModel, "layer_norm_epsilon is 'tiny'"),
    "eps is missing": ("llama", {"rms_norm_eps": None}, BadModel, "rms_norm_eps is None; .*positive number"),
    "eps is negative": ("llama", {"rms_norm_eps": -1e-5}, BadModel, "rms_norm_eps is -1e-05"),
    "tied is text": ("llama", {"tie_word_embeddings": "false"}, BadModel, "tie_word_embeddings is 'false'"),
    "rope is no object": ("llama", {"rope_parameters": [1]}, BadModel, "rope_parameters must be an object"),
    "theta is text": ("llama", {"rope_parameters": {"rope_theta": "x"}}, BadModel, "rope_theta is 'x'"),
    "theta is zero": ("llama", {"rope_parameters": {"rope_theta": 0}}, BadModel, "rope_theta is 0"),
    "llama3 lacks its options": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        BadModel,
        "low_freq_factor of the llama3 RoPE is None",
    ),
    "linear without factor": (
        "llama",
        {"rope_parameters": {"rope_type": "linear"}},
        BadModel,
        "factor of the linear RoPE is None",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_CONFIGS))
def test_bad_configurations_are_refused(name: str, copy):
    variant, config, kind, message = BAD_CONFIGS[name]
    path = copy(variant, config)
    with pytest.raises(kind, match=message) as caught:
        open_model(path)
    assert path in str(caught.value)


WRONG_SIZES = {
    "another width": ("llama", {"hidden_size": 32}, "embed_tokens.weight has shape (61, 24)"),
    "more neurons": ("llama", {"intermediate_size": 41}, "layers.0.mlp.gate_proj.weight has shape (40, 24)"),
    "more heads": ("llama", {"num_attention_heads": 6}, "q_proj.weight has shape (32, 24); the configuration asks"),
    "fewer key heads": ("llama", {"num_key_value_heads": 1}, "k_proj.weight has shape (16, 24)"),
    "more tokens": ("gpt2", {"vocab_size": 62}, "wte.weight has shape (61, 24)"),
    "more layers": ("gpt2", {"n_layer": 3}, "h.2.ln_1.weight is missing"),
    "absurdly many layers": (
        "llama",
        {"num_hidden_layers": 10**12},
        "num_hidden_layers is 1000000000000; the file has 21 tensors",
    ),
    "neurons of GPT-2": ("gpt2", {"n_inner": 95}, "mlp.c_fc.weight has shape (24, 96)"),
    "more heads than width": ("bert", {"num_attention_heads": 48}, "48 heads do not fit into a width of 24"),
}


@pytest.mark.parametrize("name", sorted(WRONG_SIZES))
def test_tensors_must_have_the_configured_shape(name: str, copy):
    variant, config, message = WRONG_SIZES[name]
    with pytest.raises(BadWeights) as caught:
        open_model(copy(variant, config))
    assert message in str(caught.value)


def test_an_unknown_rope_is_refused_only_at_an_offset(copy):
    """At offset 0 nothing rotates, so the model opens and is read; other offsets are refused, not approximated."""
    path = copy("llama", {"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4, "factor": 4.0}})
    lens = Lens(open_model(path), tokens="all")
    assert lens.explain("L1.attn.0.qk", k=3)
    with pytest.raises(BadOption, match=r"'ntk' is not known .*llama3.* only offset 0"):
        lens.explain("L1.attn.0.qk", k=3, offset=2)


def test_an_unknown_activation_is_refused_where_it_matters(copy):
    """The token frame runs block 0; the other frames need no activation."""
    lens = Lens(open_model(copy("gpt2", {"activation_function": "mish"})), tokens="all")
    assert lens.explain("L1.ff.0.key", frame="output", k=3)
    with pytest.raises(BadModel, match=r"'mish' is not one of gelu, .*silu"):
        lens.explain("L1.ff.0.key", frame="token", k=3)


# Tensors


def test_a_leftover_tensor_is_refused_by_name(copy):
    extra = {ATTN + "q_norm.weight": torch.ones(8), "model.layers.1.mlp.experts\x1b[31m": torch.ones(2)}
    with pytest.raises(UnknownFamily, match=r"not the llama layout .*layers\.1\.self_attn\.q_norm\.weight") as caught:
        open_model(copy("llama", tensors=extra))
    assert "\x1b" not in str(caught.value)


def test_fewer_layers_than_the_file_has_are_refused(copy):
    with pytest.raises(UnknownFamily, match=r"h\.1\.attn.* and \d+ more"):
        open_model(copy("gpt2", {"n_layer": 1}))


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("llama", ATTN + "v_proj.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "lm_head.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("gpt2", GPT2_ATTN + "c_attn.bias"),
        ("bert", "encoder.layer.0.output.LayerNorm.bias"),
    ],
)
def test_a_missing_tensor_is_named(variant: str, name: str, copy):
    with pytest.raises(BadWeights) as caught:
        open_model(copy(variant, tensors={name: None}))
    assert name.removeprefix("model.") in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "name", "tensor"),
    [
        ("llama", ATTN + "o_proj.weight", torch.zeros(32, 24)),
        ("llama", "lm_head.weight", torch.zeros(VOCAB + 1, 24)),
        ("llama", "score.weight", torch.zeros(2, 25)),
        ("gpt2", GPT2_ATTN + "c_attn.weight", torch.zeros(72, 24)),
        ("gpt2", GPT2_ATTN + "c_attn.bias", torch.zeros(24)),
        ("gpt2", "transformer.wpe.weight", torch.zeros(24)),
        ("bert", "pooler.dense.weight", torch.zeros(24, 12)),
        ("bert", "embeddings.LayerNorm.weight", torch.zeros(24, 1)),
    ],
)
def test_a_wrong_shape_is_named(variant: str, name: str, tensor: torch.Tensor, copy):
    with pytest.raises(BadWeights) as caught:
        open_model(copy(variant, tensors={name: tensor}))
    assert name in str(caught.value)
    assert str(tuple(tensor.shape)) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("variant", "name", "address"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", "L1.ff.2.up"),
        ("llama", "model.embed_tokens.weight", "L1.ff.2.gate"),
        ("llama", "model.layers.0.mlp.down_proj.weight", "L1.attn.1.q.2"),
        ("llama", "model.layers.1.input_layernorm.weight", "L1.attn.1.vo"),
        ("gpt2", GPT2_ATTN + "c_attn.bias", "L1.attn.1.qk"),
        ("bert", "embeddings.LayerNorm.bias", "L0.ff.1.key"),
    ],
)
def test_values_that_are_not_finite_are_named_and_counted(variant: str, name: str, address: str, value: float, copy):
    """No bad value reaches a list, whether it is in the vector itself or in the rows of its frame."""
    good = make(variant).state_dict()[name].clone()
    good.view(-1)[:3] = value
    if good.ndim == 2:  # all of it, so that the requested row and column are bad
        good[:] = value
    lens = Lens(open_model(copy(variant, tensors={name: good})), tokens="all")
    with pytest.raises(BadWeights, match=r"holds \d+ values that are NaN or infinite") as caught:
        lens.explain(address, k=3)
    assert name in str(caught.value)


def test_one_bad_value_is_counted_as_one(copy):
    weight = make("llama").state_dict()["model.embed_tokens.weight"].clone()
    weight[5, 7] = float("nan")
    model = open_model(copy("llama", tensors={"model.embed_tokens.weight": weight}))
    with pytest.raises(BadWeights, match=rf"holds 1 values .*\(among {VOCAB * 24}\)"):
        model.embedding  # noqa: B018 - read for its error


# Vocabulary


def test_a_tokenizer_larger_than_the_embedding_is_refused(copy):
    path = Path(copy("llama"))
    (path / "tokenizer.json").write_text(tokenizer_json(VOCAB + 9))
    with pytest.raises(BadModel, match=r"tokenizer\.json .* another model: 9 of its 70 tokens, .* beyond the 61 rows"):
        open_model(str(path))


def test_a_missing_tokenizer_is_named(copy):
    path = Path(copy("llama"))
    (path / "tokenizer.json").unlink()
    with pytest.raises(BadModel, match=r"no tokenizer\.json"):
        open_model(str(path))


def test_a_configuration_that_is_no_object_is_refused(copy):
    path = Path(copy("llama"))
    (path / "config.json").write_text(json.dumps([1, 2]))
    with pytest.raises(BadModel, match="holds a JSON list"):
        open_model(str(path))


# Addresses and options

OUT_OF_RANGE = {
    ("llama", "L2.ff.0"): "layers 0 to 1",
    ("llama", "L2.attn.0.qk"): "layers 0 to 1",
    ("llama", "L2.attn.0.q.1"): "layers 0 to 1",
    ("llama", "L1.ff.40"): "0 to 39",
    ("gpt2", "L1.ff.96.value"): "0 to 95",
    ("llama", "L1.attn.4"): "heads 0 to 3",
    ("llama", "L1.attn.4.vo"): "heads 0 to 3",
    ("llama", "L0.attn.4.k.0"): "0 to 3",
    ("llama", "L0.attn.99.o.0"): "0 to 3",
    ("llama", "L1.attn.1.v.8"): "0 to 7",
    ("gpt2", "L0.attn.3.q.bias"): "0 to 2",
    ("gpt2", "L9.attn.bias"): "layers 0 to 1",
    ("gpt2", "pos.32"): "0 to 31",
    ("bert", "type.2"): "0 to 1",
    ("bert", "pooler.24"): "0 to 23",
    ("bert-mlm", "mlm_norm.1"): "0 to 0",
}


@pytest.mark.parametrize(("variant", "address"), sorted(OUT_OF_RANGE))
def test_an_address_out_of_range_is_refused_with_the_range(variant: str, address: str, good):
    with pytest.raises(BadAddress) as caught:
        good(variant).explain(address, k=3)
    assert OUT_OF_RANGE[variant, address] in str(caught.value)


NOT_THERE = {
    ("llama", "L1.ff.3.key"): "gate, up, value",
    ("gpt2", "L1.ff.3.gate"): "key, value",
    ("llama", "L1.ff.bias"): "has no ff_bias",
    ("llama", "L1.attn.norm"): "has no attn_norm",
    ("llama", "L1.attn.0.q.bias"): "has no q_bias",
    ("llama", "final.norm"): "has no final_norm",
    ("gpt2", "embed.norm"): "has no embed_norm",
    ("llama", "pos.0"): "has no pos; at this place it has nothing",
    ("gpt2", "type.0"): "at this place it has pos, final_norm",
    ("bert", "mlm.0"): "pos, type, pooler",
    ("gpt2", "classifier.0"): "has no classifier",
}


@pytest.mark.parametrize(("variant", "address"), sorted(NOT_THERE))
def test_a_vector_that_the_family_lacks_is_refused_with_those_it_has(variant: str, address: str, good):
    with pytest.raises(BadAddress) as caught:
        good(variant).explain(address, k=3)
    assert NOT_THERE[variant, address] in str(caught.value)


def test_sets_that_a_model_lacks_are_refused(good):
    for variant, layer, role in (
        ("llama", 1, "key"),
        ("llama", 1, "ff_bias"),
        ("llama", 1, "v_bias"),
        ("llama", 2, "gate"),
        ("gpt2", -3, "key"),
        ("gpt2", OUTSIDE, "mlm"),
        ("gpt2", OUTSIDE, "embed_norm"),
        ("gpt2", 0, "no such role"),
    ):
        with pytest.raises(BadAddress):
            vector_set(good(variant).model, layer, role)
    for start, stop in ((-1, 2), (0, 41), (5, 3), (41, None)):
        with pytest.raises(BadAddress, match="gate has 40"):
            vector_set(good("llama").model, 1, "gate", start, stop)


def test_an_offset_without_rotary_positions_is_refused(good):
    for variant in ("gpt2", "bert"):
        with pytest.raises(BadOption, match="no rotary positions: only offset 0"):
            good(variant).explain("L1.attn.0.qk", offset=1, k=3)
        with pytest.raises(BadOption, match="no rotary positions"):
            good(variant).head_map("L1.attn.0.qk", offset=-1)


def test_an_offset_is_refused_for_vo(good):
    with pytest.raises(BadOption, match="qk only"):
        Frames(good("llama").model).head_map(1, 0, "vo", offset=1)


def test_frames_that_do_not_exist_or_do_not_fit_are_refused(good):
    lens = good("llama")
    with pytest.raises(BadOption, match="seen, token, distinctive, effect, output, paper"):
        lens.explain("L1.ff.0", frame="logit")
    with pytest.raises(BadOption, match="token frame is for what reads"):
        lens.explain("L1.ff.0.value", frame="token")
    with pytest.raises(BadOption, match="what writes has the frames output and paper"):
        Frames(lens.model).head_map(1, 0, "qo")


def test_locate_needs_an_address_of_one_vector(good):
    model = good("llama").model
    for text in ("L1.ff.3", "L1.attn.3", "L1.attn.3.qk"):
        with pytest.raises(BadAddress):
            locate(model, parse(text))
    with pytest.raises(BadAddress, match="heads 0 to 3"):
        require_head(model, parse("L0.attn.7"))


@pytest.mark.parametrize("text", ["", "L1", "L-1.ff.0", "L1.ff.-1", "L1.attn.0.z.1", "L1.ff.1e3", "pos.x", "L1.mlp.3"])
def test_other_texts_are_no_addresses(text: str, good):
    with pytest.raises(BadAddress, match="is not an address"):
        good("llama").explain(text)


WRONG_EXPERTS = [
    ("glm4_moe", {"n_group": 4}, "n_group is 4, for 6 experts"),
    ("glm4_moe", {"n_group": 6}, "n_group is 6, for 6 experts"),
    ("glm4_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5; there are 4 experts to choose from"),
    ("glm4_moe", {"num_nextn_predict_layers": 10**12}, "num_nextn_predict_layers is 1000000000000"),
    ("glm4_moe", {"first_k_dense_replace": -1}, "first_k_dense_replace is -1"),
    ("glm4_moe", {"intermediate_size": None}, "lacks intermediate_size"),
    ("qwen3_moe-dense", {"mlp_only_layers": "all"}, "mlp_only_layers is 'all', not a list of layers"),
    (
        "qwen2_moe",
        {"shared_expert_intermediate_size": 0},
        r"shared_expert.gate_proj.weight has shape \(12, 24\); the configuration asks for \(0, 24\)",
    ),
    ("gpt_oss", {"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
    ("gpt_oss", {"swiglu_limit": -1.0}, "swiglu_limit is -1.0"),
    ("gpt_oss", {"num_local_experts": 6}, "router.weight has shape"),
    ("gpt_oss", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}, "a base above 1"),
]


@pytest.mark.parametrize(("name", "config", "message"), WRONG_EXPERTS)
def test_experts_that_cannot_be_are_refused(name: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = edit(save(tiny_model(name), tmp_path / name), config)
    with pytest.raises(BadModel, match=message):
        open_model(str(folder))
