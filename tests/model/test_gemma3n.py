"""Gemma 3n: several streams of which layers read one, an augmented residual, gates that are cut off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zeropass as zp
from adapters import alike, made
from tiny import edit, error, save
from zeropass.errors import BadAddress, BadLens, BadModel, BadWeights, CannotRun, UnknownFamily
from zeropass.model.model import Model
from zeropass.model.published_lenses import PublishedFacts
from zeropass.model.running import Contexts, Running
from zeropass.model.vectors import roles_at
from zoo import ZOO, drawn, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

IDS = torch.tensor([[5, 6, 7, 50, 3]])
_CLASS, _CONFIG, _SETTINGS = ZOO["gemma3n"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Model, Path]:
    hf = tiny_model("gemma3n")
    folder = save(hf, tmp_path_factory.mktemp("gemma3n") / "model")
    return hf, zp.open_model(folder), folder


def test_what_writes_to_streams_that_no_layer_reads_has_no_role(opened: tuple[Any, Model, Path]) -> None:
    _, model, _ = opened
    assert {"laurel_in", "laurel_out", "ple_in"} <= set(roles_at(model, 1))
    assert "ple_out" not in {*roles_at(model, 1), *model.family.roles}
    lens = zp.Lens(model)
    assert [record.address for record in lens.explain("L1.laurel.in.3")] == ["L1.laurel.in.3"] * 2
    with pytest.raises(BadAddress, match="no ple_out, because it writes to the streams that no layer reads"):
        lens.explain("L1.ple.out.0")
    notes = " ".join(model.notes)
    assert "the output frame has the way through the first one" in notes
    assert "ple.out" not in notes


@torch.no_grad()
def test_the_token_frame_is_what_layers_read_of_tokens_alone(opened: tuple[Any, Model, Path]) -> None:
    """Layer 0 reads a mixture of the streams that embeddings become; behind it the rows are the active stream."""
    hf, model, _ = opened
    read: list[torch.Tensor] = []
    hooks = [
        hf.model.layers[0].input_layernorm.register_forward_hook(lambda _, inputs, _out: read.append(inputs[0])),
        hf.model.layers[0].register_forward_hook(lambda _, _in, out: read.append(out[0])),
    ]
    hf(torch.arange(model.dims.vocab)[:, None])
    for hook in hooks:
        hook.remove()
    for space, states in zip(("embedded", "token"), read, strict=True):
        rows = states[:, 0] * torch.rsqrt(states[:, 0].square().mean(-1, keepdim=True) + model.dims.eps)
        assert error(zp.Frames(model).rows(space).matrix, rows) < 1e-4


def test_keys_that_a_file_leaves_out_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    """Every fifth layer is global, 15 share keys and values, and the first ten of more layers cut gates off."""
    silent = ("layer_types", "activation_sparsity_pattern", "num_kv_shared_layers", "rope_parameters", "laurel_rank")
    settings = {key: value for key, value in _SETTINGS.items() if key not in silent} | {"num_hidden_layers": 20}
    folder = save(drawn(_CLASS, _CONFIG, settings), tmp_path / "model")
    stated = zp.open_model(folder).dims
    config = json.loads((folder / "config.json").read_text())
    left = {key: value for key, value in config.items() if key not in (*silent, *(k for k in config if "altup" in k))}
    (folder / "config.json").write_text(json.dumps(left | {"altup_lr_multiplier": 1.0, "query_pre_attn_scalar": 256}))
    assert zp.open_model(folder).dims == stated
    assert stated.gate_sparsity == (0.95,) * 10 + (0.0,) * 10
    assert [layer for layer in range(20) if layer not in stated.local] == [4, 9, 14, 19]
    published = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(left | published))
    assert zp.open_model(folder).dims == stated


@pytest.mark.parametrize(
    ("changes", "error_type", "message"),
    [
        ({"altup_num_inputs": 2}, UnknownFamily, "altup_num_inputs is 2"),
        ({"altup_active_idx": 1}, UnknownFamily, "altup_active_idx is 1"),
        ({"altup_correct_scale": False}, UnknownFamily, "altup_correct_scale is False"),
        ({"attention_bias": True}, UnknownFamily, "attention_bias is True"),
        ({"activation_sparsity_pattern": [0.5]}, BadModel, r"for each of the 4 layers; it is \[0.5\]"),
        ({"activation_sparsity_pattern": [0.5, 0, 1, 0]}, BadModel, "a number from 0 to below 1"),
        ({"activation_sparsity_pattern": 0.5}, BadModel, "a number from 0 to below 1"),
        ({"intermediate_size": [40, 20, 40, 40]}, BadModel, r"intermediate_size is \[40, 20\]"),
        ({"laurel_rank": 4}, BadWeights, "laurel.linear_left.weight has shape"),
        ({"vocab_size_per_layer_input": 61}, BadWeights, "embed_tokens_per_layer.weight has shape"),
    ],
)
def test_variants_and_what_cannot_be_are_refused(
    changes: dict[str, Any],
    error_type: type[Exception],
    message: str,
    opened: tuple[Any, Model, Path],
    tmp_path: Path,
) -> None:
    folder = save(opened[0], tmp_path / "model")
    edit(folder, changes)
    with pytest.raises(error_type, match=message):
        zp.open_model(folder)


def test_what_does_not_know_several_streams_refuses_them(opened: tuple[Any, Model, Path]) -> None:
    _, model, _ = opened
    calls: tuple[Callable[[], Any], ...] = (
        lambda: zp.calibrate(model, source="random", tokens=512),
        lambda: zp.pair_of(model, model),
        lambda: Contexts.of(Running(model), IDS),
    )
    for call in calls:
        with pytest.raises(CannotRun, match="there are several streams side by side"):
            call()
    facts = PublishedFacts(kind="Jacobian", model="", layers=4, d=24, prompts=None, sha256="0")
    with pytest.raises(BadLens, match=r"a Jacobian lens, of one stream; .* has 4 side by side"):
        facts.require(model)


def test_a_comparison_sees_what_mixes_streams_and_what_gates_are_folded_with(
    opened: tuple[Any, Model, Path], tmp_path: Path
) -> None:
    hf, model, _ = opened
    folder, state = save(hf, tmp_path / "tuned"), hf.state_dict()
    stem = "model.layers.1."
    changed = {
        "altup_router": f"{stem}altup.modality_router.weight",
        "ple_gain": f"{stem}altup.correct_output_scale",
        "ple_out": f"{stem}per_layer_projection.weight",
    }
    edit(folder, tensors={name: state[name] + 0.1 * torch.ones_like(state[name]) for name in changed.values()})
    difference = zp.compare(model, folder)
    assert {change.what for change in difference.tables} == {*changed}
    assert zp.build_change(model, folder, tmp_path / "atlas", zp.Options(roles=("q", "laurel_in", "ple_in")))
    assert {(run.layer, run.role) for run in zp.open_atlas(tmp_path / "atlas").runs} == {(1, "ple_in")}


def test_an_adapter_changes_what_mixes_streams_and_the_residual(tmp_path: Path) -> None:
    modules = ["q_proj", "down_proj", "linear_left", "linear_right", "modality_router", "prediction_coefs"]
    modules += ["altup_projections.1", "altup_unembed_projections.2", "per_layer_input_gate"]
    adapted, merged = made("gemma3n", tmp_path, target_modules=modules), zp.open_model(tmp_path / "merged")
    alike(adapted, merged)
    assert error(*(Running(model).run(IDS) for model in (adapted, merged))) < 1e-4
    assert not torch.equal(adapted.matrix("stream_out_3"), adapted.base.matrix("stream_out_3"))


def test_the_text_model_is_read_inside_the_multimodal_one(opened: tuple[Any, Model, Path], tmp_path: Path) -> None:
    """Published files have these names; transformers needs timm to make the tower of images."""
    hf, model, _ = opened
    folder = save(hf, tmp_path / "model")
    text = json.loads((folder / "config.json").read_text())
    around = {
        "vision_config": {"hidden_size": 8},
        "audio_config": {"hidden_size": 8},
        "vision_soft_tokens_per_image": 4,
    }
    around |= {"model_type": "gemma3n", "text_config": text, "audio_soft_tokens_per_image": 4, "image_token_id": 59}
    (folder / "config.json").write_text(json.dumps(around))
    tensors = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    parts = ("vision_tower.conv.weight", "audio_tower.norm.weight", "embed_vision.embedding.weight")
    save_file(tensors | {f"model.{part}": torch.ones(3, 5) for part in parts}, folder / "model.safetensors")
    inside = zp.open_model(folder)
    assert inside.dims == model.dims
    assert torch.equal(Running(inside).run(IDS), Running(model).run(IDS))
    assert [row["tower"] for row in inside.info()["towers_unread"]] == ["vision_tower", "audio_tower", "embed_vision"]
    assert "tokens that stand for images and sound have embeddings of their own" in " ".join(inside.notes)
