"""Gemma 4: layers that share keys and values, heads of two sizes, normed values, embeddings in every layer."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import zeropass as zp
from adapters import alike, made
from adapters import save as write_lora
from forward import run_forward
from tiny import edit, error, save
from zeropass.errors import BadAddress, BadModel, CannotRun, UnknownFamily
from zeropass.labels.line_ups import wrong_lists
from zeropass.model.blocks import Block, embedded, layer_embedding
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.running import Contexts, Running
from zeropass.model.vectors import roles_at
from zoo import VOCAB, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

Opened = Callable[[str], tuple[Any, Model, Path]]
PROJECTION = "model.layers.{}.per_layer_projection.weight"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    root = tmp_path_factory.mktemp("gemma4")

    @cache
    def model(name: str) -> tuple[Any, Model, Path]:
        hf = tiny_model(name)
        folder = save(hf, root / name)
        return hf, zp.open_model(folder), folder

    return model


def test_layers_that_share_keys_and_values_have_none_of_their_own(opened: Opened) -> None:
    _, model, _ = opened("gemma4")
    own, sharing = (roles_at(model, layer) for layer in (1, 3))
    assert set(own) - set(sharing) == {"k", "v"}
    assert model.dims.kv_layers == (0, 1, 0, 1)
    assert [model.rows("q", layer) for layer in range(4)] == [32, 48, 32, 48]
    assert [model.rows("gate", layer) for layer in range(4)] == [40, 40, 80, 80]
    assert "layers that attend to the keys and values of an earlier one" in " ".join(model.notes)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("L2.attn.1.k.0", "no k of its own there, because the layer attends to those of layer 0"),
        ("L3.attn.1.v.0", "no v of its own there, because the layer attends to those of layer 1"),
        ("L0.attn.1.q.8", "a head has columns 0 to 7"),
        ("L1.attn.1.q.12", "a head has columns 0 to 11"),
        ("L1.ff.40.gate", "has gate 0 to 39"),
        ("L3.ple.in.6", "has ple_in 0 to 5"),
        ("L3.ple.up.0", "is not an address"),
    ],
)
def test_what_a_layer_lacks_is_refused(address: str, message: str, opened: Opened) -> None:
    with pytest.raises(BadAddress, match=message):
        zp.Lens(opened("gemma4")[1]).explain(address)


def test_a_model_without_embeddings_in_its_layers_has_no_roles_for_them(opened: Opened) -> None:
    _, model, _ = opened("gemma4-plain")
    assert not {"ple_in", "ple_out"} & {*roles_at(model, 0), *model.family.roles}
    assert torch.equal(model.matrix("v", 1), model.matrix("k", 1))
    assert "layers whose keys are their values" in " ".join(model.notes)
    assert not torch.equal(model.matrix("v", 0), model.matrix("k", 0))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["gemma4", "gemma4-plain"])
def test_the_values_of_a_vo_map_are_those_of_tokens_alone(name: str, opened: Opened) -> None:
    hf, model, _ = opened(name)
    attended = run_forward(hf, model, torch.arange(VOCAB)[:, None]).took("o", 0)[:, 0]
    for head, values in enumerate(attended.split(8, -1)):
        assert error(Frames(model).head_map(0, head, "vo").left, values) < 1e-4


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layer", [2, 3])
def test_a_map_of_a_sharing_layer_meets_the_stream_of_both_layers(layer: int, opened: Opened) -> None:
    """The query of a token in its layer, and the key of a token in the layer whose keys are shared, in its stream."""
    _, model, _ = opened("gemma4")
    frames, source = Frames(model), model.dims.kv_layer(layer)
    head_dim = model.dims.at(layer).head_dim
    rows = {place: frames.rows("token" if place else "embedded").matrix for place in (layer, source)}

    def normed(role: str, place: int, head: int) -> Tensor:
        vectors, norm = model.head(role, place, head), model.vector("attn_norm", place)
        x = rows[place] @ (vectors * norm).T
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + model.dims.eps)

    used = torch.from_numpy(model.vocab.used)
    for head in (0, 3):
        q = normed("q", layer, head) * model.vector("q_norm", layer)
        k = normed("k", source, head) * model.vector("k_norm", source)
        entries = frames.head_map(layer, head, "qk", offset=0)
        assert entries.left.shape == (VOCAB, head_dim)
        true, given = q @ k.T, entries.left @ entries.right.T
        assert error(*(scores - scores[:, used].mean(-1, keepdim=True) for scores in (given, true))) < 1e-4
        assert error(frames.head_map(layer, head, "vo").left, normed("v", source, head)) < 1e-4


@pytest.mark.usefixtures("one_thread")
def test_a_written_vector_has_the_factors_of_the_layers_behind_it(opened: Opened) -> None:
    hf, model, _ = opened("gemma4")
    scalars = torch.cat([layer.layer_scalar for layer in hf.model.layers])
    vectors, frames = model.matrix("value", 1), Frames(model)
    expected = scalars[1:].prod() * vectors * model.vector("ff_post_norm", 1)
    assert error(frames.fold(vectors, "output", "write", "ff_norm", 1), expected) < 1e-6
    behind = frames.fold(vectors, "output", "write", None, 1, "ff")
    assert error(behind, scalars[2:].prod() * vectors) < 1e-6


@torch.no_grad()
@pytest.mark.usefixtures("one_thread")
def test_what_meets_no_norm_is_scored_by_tokens_as_they_are(opened: Opened, tmp_path: Path) -> None:
    """The gates of a per-layer embedding read the stream itself: its length counts, in a list and in an atlas."""
    hf, model, folder = opened("gemma4")
    alone = hf(torch.arange(VOCAB)[:, None], output_hidden_states=True).hidden_states
    atlas_folder = tmp_path / "atlas"
    zp.build(folder, atlas_folder, zp.Options(roles=("ple_in", "q"), k=5, tokens="all"))
    atlas = zp.open_atlas(atlas_folder)
    used = torch.from_numpy(model.vocab.used)
    for layer in (0, 1):
        gates, rows = hf.model.layers[layer].per_layer_input_gate.weight, alone[layer][:, 0]
        scores = (rows @ gates.T)[:, 3]
        z = (scores - scores[used].mean()) / scores[used].std(correction=0)
        for source in (zp.Lens(model), atlas):
            (record,) = source.explain(f"L{layer}.ple.in.3", frame="token", tokens="all", k=5)
            best = z.masked_fill(~used, float("-inf")).topk(5)
            assert [token.id for token in record.top] == best.indices.tolist()
            assert error(torch.tensor([token.z for token in record.top]), best.values) < 1e-3
    assert (atlas.has_rows("embedded.bare"), atlas.has_rows("token.bare")) == (True, True)
    assert {atlas.space(run) for run in atlas.runs if run.role == "q"} >= {"embedded", "token"}


def test_a_layer_says_what_it_needs(opened: Opened) -> None:
    _, model, _ = opened("gemma4")
    ids = torch.tensor([[5, 6]])
    x = embedded(model, ids)
    with pytest.raises(CannotRun, match="layer 0 adds an embedding of the tokens, which are not given"):
        Block(model, 0)(x)
    with pytest.raises(CannotRun, match="layer 3 attends to the keys and values of layer 1, which are not given"):
        Block(model, 3)(x, ids=ids)
    with pytest.raises(CannotRun, match="layer 2 attends to the keys and values of layer 0"):
        Block(model, 2).alone(x[0], ids=ids[0])
    assert layer_embedding(model, 3, ids).shape == (1, 2, 6)


@pytest.mark.parametrize("name", ["gemma4", "gemma4-plain"])
def test_what_does_not_know_such_layers_refuses_them(name: str, opened: Opened) -> None:
    _, model, _ = opened(name)
    for asked, call in {
        "the mean-field lens": lambda: zp.calibrate(model, source="random", tokens=512),
        "an alignment": lambda: zp.pair_of(model, model),
        "vectors added to a text": lambda: Contexts.of(Running(model), torch.tensor([[5, 6]])),
    }.items():
        with pytest.raises(CannotRun, match=f"{asked} does not know such layers: "):
            call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_shared_layers": 3}, "there must be a layer of each of their kinds"),
        ({"num_kv_shared_layers": 4}, "there must be a layer of each of their kinds"),
        ({"per_layer_config": {"1": {"head_dim": 0}}}, "per_layer_config is 0; it must be a positive whole number"),
        (
            {"per_layer_config": {"1": {"head_dim": 12, "sliding_window": 5}}},
            "has '1': .*only num_attention_heads, num_key_value_heads, head_dim",
        ),
        ({"per_layer_config": {"1": {"num_key_value_heads": 3}}}, "cannot share 3 key/value heads"),
        ({"per_layer_config": {"9": {"head_dim": 12}}}, "sizes of layer '9'; there are layers 0 to 3"),
    ],
)
def test_layers_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str, opened: Opened, tmp_path: Path
) -> None:
    folder = save(opened("gemma4")[0], tmp_path / "gemma4")
    edit(folder, changes)
    with pytest.raises(BadModel, match=message):
        zp.open_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention_bias", True), ("use_bidirectional_attention", "all"), ("enable_moe_block", "some")],
)
def test_variants_are_refused_by_name(key: str, value: object, opened: Opened, tmp_path: Path) -> None:
    folder = save(opened("gemma4")[0], tmp_path / "gemma4")
    edit(folder, {key: value})
    with pytest.raises(UnknownFamily, match=f"{key} is {value!r}"):
        zp.open_model(folder)


def test_the_sizes_of_global_heads_are_read_as_published_files_state_them(opened: Opened, tmp_path: Path) -> None:
    """Published files have ``global_head_dim``; what transformers 5.24 saves lists the sizes layer by layer."""
    hf, model, _ = opened("gemma4-plain")
    folder = save(hf, tmp_path / "gemma4")
    config = json.loads((folder / "config.json").read_text())
    del config["per_layer_config"]
    published = {"global_head_dim": 12, "num_global_key_value_heads": 1}
    (folder / "config.json").write_text(json.dumps(config | published))
    assert zp.open_model(folder).dims == model.dims


def test_a_comparison_follows_heads_within_their_layer(opened: Opened, tmp_path: Path) -> None:
    """Keys of a layer that others share have queries of their own at the other end; sharing queries have none."""
    hf, model, _ = opened("gemma4")
    folder = save(hf, tmp_path / "tuned")
    stem = "model.layers.{}.self_attn.{}_proj.weight"
    matrices = {(1, "k"): stem.format(1, "k"), (3, "q"): stem.format(3, "q"), (2, "ple_out"): PROJECTION.format(2)}
    state = hf.state_dict()
    edit(folder, tensors={name: state[name] + torch.randn(1, state[name].shape[1]) for name in matrices.values()})
    difference = zp.compare(model, folder)
    ends = {(change.layer, change.role): bool(change.directions) for change in difference.matrices}
    assert ends == {(1, "k"): True, (3, "q"): False, (2, "ple_out"): False}
    assert zp.build_change(model, folder, tmp_path / "atlas", zp.Options(roles=("k", "q", "ple_out")))
    assert {(run.layer, run.role) for run in zp.open_atlas(tmp_path / "atlas").runs} == {*ends}


@pytest.mark.parametrize("name", ["gemma4", "gemma4-plain"])
def test_an_adapter_changes_all_that_its_matrices_are(name: str, tmp_path: Path) -> None:
    """Where keys are values, an adapter of keys is one of values; the tables behind per-layer embeddings change too."""
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    more = ["per_layer_input_gate", "per_layer_projection", "per_layer_model_projection", "embed_tokens_per_layer"]
    adapted = made(name, tmp_path, target_modules=[*modules, *(more if name == "gemma4" else ())])
    merged = zp.open_model(tmp_path / "merged")
    alike(adapted, merged)
    ids = torch.tensor([[5, 6, 7]])
    running = [Running(model).run(ids) for model in (adapted, merged)]
    assert error(*running) < 1e-4
    assert not torch.equal(adapted.matrix("v", 1), adapted.base.matrix("v", 1))


def test_wrong_lists_for_an_embedding_are_those_of_its_layer(opened: Opened) -> None:
    lens = zp.Lens(opened("gemma4")[1])
    record = lens.explain("L1.ple.in.3")[0]
    wrong = wrong_lists(lens, record, 9, np.random.default_rng(0))
    assert {other.address for other in wrong} <= {f"L1.ple.in.{i}" for i in range(6)} - {record.address}


def test_keys_that_a_sharing_layer_does_not_use_are_not_read(opened: Opened, tmp_path: Path) -> None:
    """Published files have them; transformers does not load them."""
    hf, model, _ = opened("gemma4")
    folder = save(hf, tmp_path / "gemma4")
    names = [f"model.layers.3.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm")]
    edit(folder, tensors=dict(zip(names, (torch.randn(24, 24), torch.randn(24, 24), torch.ones(12)), strict=True)))
    other = zp.open_model(folder)
    assert other.info()["tensors_unread"] == sorted(names)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(Running(other).run(ids), Running(model).run(ids))


def test_experts_with_norms_of_their_own_carry_their_gains(opened: Opened, tmp_path: Path) -> None:
    hf, model, _ = opened("gemma4-moe")
    layer = hf.model.layers[1]
    gain, behind = layer.pre_feedforward_layernorm_2.weight, layer.post_feedforward_layernorm_2.weight
    assert error(model.matrix("gate", 1, 16, 32), layer.experts.gate_up_proj[1, :16] * gain) < 1e-6
    assert error(model.matrix("value", 1, 0, 16), layer.experts.down_proj[0].T * behind) < 1e-6
    shared = layer.mlp.up_proj.weight * layer.pre_feedforward_layernorm.weight
    assert error(model.matrix("up", 1, 80), shared) < 1e-6
    assert error(model.matrix("router", 1), layer.router.proj.weight * layer.router.scale) < 1e-6
    with pytest.raises(BadModel, match="a comparison could not tell what changed"):
        zp.compare(model, model)
    write_lora("gemma4-moe", tmp_path, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(BadModel, match="which an adapter of them does not know"):
        zp.adapt(model, tmp_path / "adapter")
