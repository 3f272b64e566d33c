"""Hybrids: layers lack some roles, mixers and output gates are read by address, and a lens goes through them."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import zeropass as zp
from multimodal import MULTIMODAL, save_as_in_memory
from small import one_thread
from tiny import edit, error, save
from zeropass.errors import BadAddress, BadModel, BadOption, BadWeights, UnknownFamily
from zeropass.model.vectors import roles_at
from zoo import HYBRIDS, ZOO, drawn, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], zp.Model]:
    folder = tmp_path_factory.mktemp("hybrids")
    return cache(lambda name: zp.open_model(str(save(tiny_model(name), folder / name))))


def test_roles_that_a_layer_lacks_are_absent(opened: Callable[[str], zp.Model]) -> None:
    model = opened("nemotron_h")
    assert roles_at(model, 0) == ("mixer_in", "mixer_out", "mixer_bias")
    assert roles_at(model, 1) == ("key", "value", "router")
    assert roles_at(model, 2) == ("q", "k", "v", "o")
    assert roles_at(model, 3) == ("key", "value")
    assert [records[0].address for records in zp.Lens(model).heads()] == [f"L2.attn.{head}" for head in range(4)]
    assert (model.dims.mixer_layers, model.dims.no_attention, model.dims.no_mlp) == ((0,), (0, 1, 3), (0, 2))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("L0.attn.1.q.2", "layer 0 of .* has no attention"),
        ("L0.attn.1.vo", "layer 0 of .* has no attention"),
        ("L0.ff.3", "layer 0 of .* has no MLP"),
        ("L0.ff.norm", "has no ff_norm"),
        ("L2.mixer.in.0", "has no mixer_in; at this place it has q, k, v, o"),
        ("L0.mixer.in.1000", "has mixer_in 0 to"),
        ("L2.attn.0.g.0", "has no g"),
        ("L0.mixer.up.0", "is not an address"),
    ],
)
def test_an_address_that_a_layer_lacks_is_refused(
    address: str, message: str, opened: Callable[[str], zp.Model]
) -> None:
    with pytest.raises(BadAddress, match=message):
        zp.Lens(opened("nemotron_h")).explain(address)


def test_a_mixer_and_an_output_gate_are_read_by_address(opened: Callable[[str], zp.Model]) -> None:
    lens = zp.Lens(opened("qwen3_5"))
    read, written, gate = (
        lens.explain(address)[0] for address in ("L0.mixer.in.17", "L0.mixer.out.3", "L1.attn.1.g.5")
    )
    assert (str(zp.parse("L0.mixer.in.17")), read.role, read.side) == ("L0.mixer.in.17", "mixer_in", "read")
    assert (written.role, written.side, gate.role, gate.side) == ("mixer_out", "write", "g", "read")
    q_proj = lens.model.source.rows("model.layers.1.self_attn.q_proj.weight")
    assert torch.equal(lens.model.head("g", 1, 1), torch.from_numpy(q_proj[24:32]))
    assert torch.equal(lens.model.head("q", 1, 1), torch.from_numpy(q_proj[16:24]))


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_has_a_lens_and_is_not_aligned(name: str, opened: Callable[[str], zp.Model]) -> None:
    model = opened(name)
    lens = zp.load(model, lens=zp.calibrate(model, tokens=256))
    written = lens.explain(f"L{model.dims.mixer_layers[0]}.mixer.out.3")
    assert [record.frame for record in written] == ["distinctive", "effect"]
    if model.dims.no_attention or model.dims.no_mlp:
        with pytest.raises(BadOption, match="lacks attention or an MLP"):
            zp.pair_of(model, model)


def test_a_difference_of_hybrids_has_their_mixers(opened: Callable[[str], zp.Model], tmp_path: Path) -> None:
    base = opened("qwen3_next")
    hf = tiny_model("qwen3_next")
    with torch.no_grad():
        hf.model.layers[0].linear_attn.out_proj.weight[2] += 1.0
        hf.model.layers[0].linear_attn.A_log += 0.5
        hf.model.layers[1].self_attn.q_proj.weight[9] += 1.0
    with one_thread():
        difference = zp.compare(base, str(save(hf, tmp_path / "tuned")))
    assert {(matrix.layer, matrix.role) for matrix in difference.matrices} == {(0, "mixer_out"), (1, "g")}
    assert [table.name for table in difference.tables] == ["L0 inner_decay"]


_QWEN_LAYERS = ["linear_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("qwen3_5", {"layer_types": _QWEN_LAYERS}, "layer_types must name the kind of each"),
        ("qwen3_5", {"layer_types": _QWEN_LAYERS[:1]}, "of each of the 2 layers"),
        ("qwen3_5", {"linear_num_key_heads": 4}, "4 groups of 6 heads"),
        ("qwen3_5", {"linear_value_head_dim": 6}, "the configuration asks for"),
        ("falcon_h1", {"mamba_d_ssm": 40}, "mamba_d_ssm is 40; it must be 6 heads of 8"),
        ("falcon_h1", {"ssm_multipliers": [1.0, 2.0]}, "ssm_multipliers is .*; it must have 5 numbers"),
        ("falcon_h1", {"mlp_multipliers": [1.0, -2.0]}, "must be a positive number"),
        ("falcon_h1", {"attention_in_multiplier": 2.0}, "attention_in_multiplier is 2.0"),
        ("falcon_h1-normed", {"mamba_norm_before_gate": True}, "variant of falcon_h1 that is not known"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    name: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = edit(save(tiny_model(name), tmp_path / "model"), config=config)
    with pytest.raises((BadModel, UnknownFamily), match=message):
        zp.open_model(str(folder))


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
@torch.no_grad()
def test_mixers_inside_a_multimodal_model_are_read(name: str, tmp_path: Path) -> None:
    hf_class, config_class, settings = MULTIMODAL[name]
    text = settings["text_config"] | {"layer_types": ["linear_attention", "full_attention"]}
    hf = drawn(hf_class, config_class, settings | {"text_config": text})
    alone = hf(torch.arange(61)[:, None], output_hidden_states=True).hidden_states[1][:, 0]
    for folder in (save(hf, tmp_path / "files"), save_as_in_memory(hf, tmp_path / "memory")):
        assert error(zp.Frames(zp.open_model(str(folder))).carried(), alone) < 1e-4


def test_layers_with_attention_are_told_in_every_way(opened: Callable[[str], zp.Model], tmp_path: Path) -> None:
    """Published files list them, or name each n-th; transformers writes the type of every layer."""
    tests: list[tuple[str, dict[str, Any]]] = [
        ("qwen3_5", {"layer_types": None, "full_attention_interval": 2}),
        ("lfm2", {"layer_types": None, "full_attn_idxs": [1]}),
        ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}),
        ("nemotron_h", {"layers_block_type": None, "hybrid_override_pattern": "ME*-", "num_hidden_layers": 4}),
    ]
    for name, config in tests:
        folder = edit(save(tiny_model(name), tmp_path / name), config=config)
        assert zp.open_model(str(folder)).dims == opened(name).dims, name


def test_a_nemotron_without_experts_is_read(tmp_path: Path) -> None:
    """The first files do not name experts, where transformers 5 assumes some."""
    settings = ZOO["nemotron_h"][2] | {"layers_block_type": ["linear_attention", "mlp", "full_attention"]}
    folder = save(drawn("NemotronHForCausalLM", "NemotronHConfig", settings), tmp_path / "nemotron")
    stated = json.loads((folder / "config.json").read_text())
    absent = {
        key: None for key in stated if "expert" in key or key in ("n_group", "topk_group", "moe_intermediate_size")
    }
    model = zp.open_model(str(edit(folder, config=absent | {"routed_scaling_factor": None, "norm_topk_prob": None})))
    assert (model.dims.experts, model.rows("key", 1)) == (1, 40)


def test_the_kinds_of_layers_repeat_as_transformers_repeats_them(tmp_path: Path) -> None:
    """Where a file names none, two recurrent ones come before each with attention."""
    hf = tiny_model("recurrent_gemma")
    folder = save(hf, tmp_path / "model")
    assert zp.open_model(folder).dims.mixer_layers == (0, 2)
    edit(folder, {"_block_types": ["attention", "recurrent"], "block_types": None})
    with pytest.raises(BadWeights, match=r"layers\.0\.temporal_block\.q_proj\.bias.* are missing"):
        zp.open_model(folder)
    config = json.loads((folder / "config.json").read_text())
    silent = {key: value for key, value in config.items() if not key.endswith("block_types")}
    (folder / "config.json").write_text(json.dumps(silent))
    with pytest.raises(BadWeights, match=r"layers\.2\.temporal_block\.q_proj\.bias.* are missing"):
        zp.open_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_activation", "silu"), ("embeddings_scale_by_sqrt_dim", False), ("block_types", ["conv"])],
)
def test_variants_of_gated_linear_recurrences_are_refused(key: str, value: object, tmp_path: Path) -> None:
    folder = save(tiny_model("recurrent_gemma"), tmp_path / "model")
    edit(folder, {key: value})
    with pytest.raises((UnknownFamily, BadModel), match=key):
        zp.open_model(folder)
