"""Layers with numbers of heads, and shares of rotation, of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

import zeropass as zp
from tiny import edit, save
from zeropass.errors import BadAddress, BadModel, UnknownFamily
from zoo import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def laguna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("laguna"), tmp_path_factory.mktemp("uneven") / "laguna")


def test_a_layer_has_the_heads_of_its_own_list(laguna: Path) -> None:
    lens = zp.Lens(zp.open_model(laguna))
    heads = [address.removesuffix(".qk") for address in lens.heads(role="qk").addresses]
    assert heads == [f"L{layer}.attn.{head}" for layer, count in enumerate((4, 6, 2)) for head in range(count)]
    assert lens.model.info()["by_layer"] == {"heads": (4, 6, 2), "rotary": (4, 8, 4)}
    assert lens.explain("L1.attn.5.g.0")[0].address == "L1.attn.5.g.0"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("L2.attn.2.qk", "layer 2 of .* has heads 0 to 1"),
        ("L0.attn.4.q.0", "layer 0 of .* has heads 0 to 3"),
        ("L1.attn.0.g.1", "a head has columns 0 to 0"),
    ],
)
def test_a_head_that_a_layer_lacks_is_refused(address: str, message: str, laguna: Path) -> None:
    with pytest.raises(BadAddress, match=message):
        zp.Lens(zp.open_model(laguna)).explain(address)


@pytest.mark.usefixtures("one_thread")
def test_heads_of_uneven_layers_are_aligned_with_themselves(laguna: Path, tmp_path: Path) -> None:
    alignment = zp.align_models(laguna, laguna, tmp_path / "alignment")
    heads = [(pairing.first, pairing.second) for pairing in alignment if pairing.kind == "head"]
    assert {first.rpartition(".")[0] for first, _ in heads} == {
        f"L{layer}.attn.{head}" for layer, count in enumerate((4, 6, 2)) for head in range(count)
    }
    assert all(first == second for first, second in heads)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_attention_heads_per_layer": [4, 6]}, BadModel, "must have a number for each of the 3 layers"),
        ({"num_attention_heads_per_layer": [4, 6, 2.5]}, BadModel, "is 2.5; it must be a positive whole number"),
        ({"num_attention_heads_per_layer": [4, 5, 2]}, BadModel, "5 heads cannot share 2 .* in layer 1"),
        ({"gating": "per-token"}, BadModel, "gating is 'per-token'; true, 'per-head' and 'per-element' are known"),
        ({"moe_router_logit_softcapping": 3.0}, UnknownFamily, "moe_router_logit_softcapping is 3.0"),
    ],
)
def test_heads_that_cannot_be_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = save(tiny_model("laguna"), tmp_path / "laguna")
    edit(folder, changes)
    with pytest.raises(error, match=message):
        zp.open_model(folder)


def test_mimo_is_read_by_the_keys_of_published_files(tmp_path: Path) -> None:
    """transformers 5.24 knows few of these, and has their values as its defaults."""
    folder = save(tiny_model("mimo_v2_flash"), tmp_path / "mimo")
    dims, path = zp.open_model(folder).dims, folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("layer_types", "mlp_layer_types", "rope_parameters", "sliding_window", "rms_norm_eps"):
        del config[key]
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "v_head_dim": 6, "rope_theta": 50.0}
    published = {
        **{"hybrid_layer_pattern": [1, 0, 1], "moe_layer_freq": [0, 1, 1], "layernorm_epsilon": 1e-2},
        **{"sliding_window_size": 2, "sliding_window": 2, "attention_chunk_size": 2, "n_shared_experts": None},
        **{"rope_theta": 500.0, "partial_rotary_factor": 0.334, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        **{"add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False, "hybrid_block_size": None},
        **{f"swa_{key}": value for key, value in sizes.items()},
    }
    path.write_text(json.dumps(config | published))
    assert zp.open_model(folder).dims == dims
    for changes, message in (
        ({"swa_head_dim": 18}, "heads are 12 and 18 wide"),
        ({"add_full_attention_sink_bias": True}, "add_full_attention_sink_bias is True"),
    ):
        edit(folder, changes)
        with pytest.raises(UnknownFamily, match=message):
            zp.open_model(folder)
