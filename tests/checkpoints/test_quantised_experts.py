"""Experts in MXFP4 as gpt-oss is published: read as transformers reads them, a few rows of one expert at a time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import tiny
from quantised_files import GPT_OSS, mxfp4_experts, write
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.diff.run import compare
from zeropass.errors import BadModel, BadWeights, UnknownFamily
from zeropass.model.adapted import adapt
from zeropass.model.opening import open_model
from zoo import drawn

EXPERTS = "model.layers.1.mlp.experts."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Tensor]]:
    """Return a gpt-oss, the same with experts in MXFP4, and the tensors that it then has."""
    place = tmp_path_factory.mktemp("mxfp4")
    plain = tiny.save(drawn("GptOssForCausalLM", "GptOssConfig", GPT_OSS), place / "plain")
    quantised, values = mxfp4_experts(plain, place / "mxfp4")
    return plain, quantised, values


def test_experts_are_what_transformers_makes_of_them(folders: tuple[Path, Path, dict[str, Tensor]]) -> None:
    _, folder, values = folders
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model, state = open_model(str(folder)), hf.state_dict()
    for layer in range(2):
        both = state[f"model.layers.{layer}.mlp.experts.gate_up_proj"]
        down = state[f"model.layers.{layer}.mlp.experts.down_proj"]
        torch.testing.assert_close(both, values[f"model.layers.{layer}.mlp.experts.gate_up_proj"], rtol=0, atol=0)
        for role, expected in (("gate", both[..., ::2]), ("up", both[..., 1::2])):
            assert torch.equal(model.matrix(role, layer), expected.transpose(1, 2).flatten(0, 1))
        assert torch.equal(model.matrix("value", layer), down.flatten(0, 1))


def test_info_names_the_type(folders: tuple[Path, Path, dict[str, Tensor]]) -> None:
    plain, folder, _ = folders
    info, before = open_model(str(folder)).info(), open_model(str(plain)).info()
    assert info["types"]["MXFP4"] == 2 * 2 * 3
    assert (info["parameters"], info["tensors_unread"], info["notes"]) == (before["parameters"], [], before["notes"])


@pytest.mark.parametrize(
    "index", [(slice(0, 7), slice(3, 41)), (slice(5, 6), slice(63, 64)), (slice(31, 32), slice(0, 64))]
)
def test_rows_and_columns_are_those_of_the_matrix(
    index: tuple[slice, slice], folders: tuple[Path, Path, dict[str, Tensor]]
) -> None:
    _, folder, values = folders
    for name, turned in ((f"{EXPERTS}gate_up_proj", False), (f"{EXPERTS}down_proj", True)):
        rows, columns = reversed(index) if turned else index
        part = open_model(str(folder)).source.rows(f"{name}[2]", rows.start, rows.stop, columns)
        assert torch.equal(torch.from_numpy(part), values[name][2][rows, columns])


def test_no_more_is_read_than_the_rows_of_an_expert(
    folders: tuple[Path, Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, _ = folders
    model, counts = open_model(str(folder)), []
    stored = SafetensorsSource.stored

    def counted(source: SafetensorsSource, name: str, *index: slice) -> Tensor:
        part = stored(source, name, *index)
        counts.append((name.rpartition(".")[2], part.numel()))
        return part

    monkeypatch.setattr(SafetensorsSource, "stored", counted)
    model.matrix("gate", 1, 70, 72)  # of the second expert: two rows, and those of `up` between them
    assert counts == [("gate_up_proj_scales", 3), ("gate_up_proj_blocks", 3 * 16)]
    counts.clear()
    model.matrix("value", 1, 70, 72)  # all outputs of one of the two blocks
    assert counts == [("down_proj_scales", 32), ("down_proj_blocks", 32 * 16)]


PUBLISHED = {
    "architectures": ["GptOssForCausalLM"],
    "experts_per_token": 2,
    "hidden_act": "silu",
    "initial_context_length": 4096,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 131072,
    "output_router_logits": False,
    "pad_token_id": 0,
    "rope_scaling": {
        **{"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096},
        **{"rope_type": "yarn", "truncate": False},
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "use_cache": True,
}
"""The keys of the published config.json of gpt-oss-20b that the tests do not set to smaller values."""


def test_the_configuration_is_read_as_published(folders: tuple[Path, Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[1], tmp_path / "published")
    written = json.loads((folder / "config.json").read_text())
    kept = {**GPT_OSS, "attention_bias": True, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    config = PUBLISHED | kept | {key: written[key] for key in ("model_type", "quantization_config")}
    (folder / "config.json").write_text(json.dumps(config))
    notes = open_model(str(folder)).info()["notes"]
    assert [note.partition(" ")[0] for note in notes] == ["windows", "sinks", "experts:"]


def test_quantising_alone_is_not_judged(folders: tuple[Path, Path, dict[str, Tensor]]) -> None:
    plain, folder, _ = folders
    difference = compare(open_model(str(plain)), open_model(str(folder)))
    assert (difference.relation, difference.finding.answer) == ("changed", "unjudged")
    assert "NOT JUDGED: quantising alone moves some tokens" in " ".join(difference.verdict)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_on_quantised_experts_adds_to_what_they_stand_for(
    folders: tuple[Path, Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    plain, folder, values = folders
    hf = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    lora = LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], init_lora_weights=False
    )
    get_peft_model(hf, lora).save_pretrained(tmp_path / "adapter")
    base, changed = (
        adapt(open_model(str(place)), tmp_path / "adapter").matrix("value", 1) for place in (plain, folder)
    )
    change = base - open_model(str(plain)).matrix("value", 1)
    assert float(change.norm()) > 0
    torch.testing.assert_close(changed, values[f"{EXPERTS}down_proj"].flatten(0, 1) + change)


DAMAGE: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "no scales": ({"down_proj_scales": None}, "experts.down_proj_scales is missing"),
    "no blocks": ({"gate_up_proj_blocks": None}, r"gate_up_proj_scales' belongs to .* \(MXFP4\)"),
    "scales of another number": ({"down_proj_scales": torch.ones(3, 32, 3).byte()}, r"U8 of \(3, 32, 2\) is right"),
    "scales of another type": ({"down_proj_scales": torch.ones(3, 32, 2)}, r"is F32 of shape \(3, 32, 2\)"),
    "blocks of another size": ({"down_proj_blocks": torch.ones(3, 32, 4, 8).byte()}, r"\(3, 32, 4, 16\) is right"),
    "blocks of one expert": ({"down_proj_blocks": torch.ones(32, 2, 16).byte()}, "must have 4 dimensions"),
    "an expert too few": (
        {"down_proj_blocks": torch.ones(2, 32, 2, 16).byte(), "down_proj_scales": torch.ones(2, 32, 2).byte()},
        r"down_proj\[2\] is missing",
    ),
    "a scale that is NaN": ({"down_proj_scales": torch.full((3, 32, 2), 255).byte()}, "NaN or infinite"),
    "both ways": ({"down_proj": torch.ones(3, 64, 32)}, "down_proj': it is stored both quantised and as F32"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_experts_are_refused_by_name(
    case: str, folders: tuple[Path, Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    changes, says = DAMAGE[case]
    folder = shutil.copytree(folders[1], tmp_path / "damaged")
    state: dict[str, Tensor | None] = {**load_file(folder / "model.safetensors")}
    state |= {f"{EXPERTS}{name}": tensor for name, tensor in changes.items()}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    write(kept, folder, json.loads((folder / "config.json").read_text())["quantization_config"])
    with pytest.raises((BadModel, BadWeights, UnknownFamily), match=says):
        open_model(str(folder)).matrix("value", 1)
