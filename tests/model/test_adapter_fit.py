"""The place of an adapter's changes: full names, checked shapes, tokens of the base, the requested stack."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
import zeropass as zp
from adapters import alike, base_model, close, made, randomise, save, spoiled, trained
from commands import Run
from zeropass.errors import BadModel, BadWeights
from zeropass.model.adapted import Adapted, adapt
from zeropass.model.frames import Frames

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = "base_model.model."


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """Return a LoRA of q_proj, on a base with two tables; tests change copies of it."""
    return made("llama", tmp_path_factory.mktemp("plain"), target_modules=["q_proj"])


@pytest.fixture
def adapter(plain: Adapted, tmp_path: Path) -> Iterator[Path]:
    """Yield a copy of the folder of `plain`."""
    shutil.copytree(plain.adapters[0].path, tmp_path / "adapter")
    yield tmp_path / "adapter"


Q = "model.layers.0.self_attn.q_proj"
FACTORS = (f"{ROOT}{Q}.lora_A.weight", f"{ROOT}{Q}.lora_B.weight")


@pytest.mark.parametrize(
    "module",
    [
        "model.vision_tower.encoder.layers.0.self_attn.q_proj",
        "vision_model.model.layers.0.self_attn.q_proj",
        "model.language_model.layers.0.self_attn.q_proj",
        "transformer.layers.0.self_attn.q_proj",
        "model.layers.00.self_attn.q_proj",
        "model.layers.0.self_attn.q_proj.q_proj",
        "model.layers.2.self_attn.q_proj",
        "model.lm_head",
    ],
)
def test_a_module_is_matched_by_its_whole_path(module: str, plain: Adapted, adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    moved = {name.replace(Q, module): tensors[name] for name in FACTORS}
    with pytest.raises(BadWeights, match=rf"changes {module}\.weight, which .* does not have"):
        adapt(plain.base, spoiled(adapter, {"target_modules": ["q_proj", "lm_head"]}, dict.fromkeys(FACTORS) | moved))


@pytest.mark.parametrize("module", ["model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"])
def test_a_module_has_the_prefixes_of_its_layout(module: str, plain: Adapted, adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    moved = {name.replace(Q, module): tensors[name] for name in FACTORS}
    alike(adapt(plain.base, spoiled(adapter, {}, dict.fromkeys(FACTORS) | moved)), plain)


def test_a_module_that_the_settings_leave_out_is_refused(plain: Adapted, adapter: Path) -> None:
    for targets in (["k_proj"], ["layers.0.self_attn.q_proj"], ["proj"]):
        with pytest.raises(BadModel, match=r"q_proj, which target_modules .* PEFT would leave it out"):
            adapt(plain.base, spoiled(adapter, {"target_modules": targets}, {}))
    for targets in (["q_proj"], ["self_attn.q_proj"], None, r".*\.q_proj", []):
        alike(adapt(plain.base, spoiled(adapter, {"target_modules": targets}, {})), plain)


def test_a_parameter_under_two_names_is_refused(plain: Adapted, adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    again = {name.replace("model.model.", "model."): tensors[name] for name in FACTORS}
    with pytest.raises(BadWeights, match="two of its tensors are of the same parameter"):
        adapt(plain.base, spoiled(adapter, {}, again))
    twice = {"model.norm.weight": torch.ones(24), f"{ROOT}model.norm.weight": torch.ones(24)}
    with pytest.raises(BadWeights, match="are both of"):
        adapt(plain.base, spoiled(adapter, {}, dict.fromkeys(again) | twice))
    base_layer = {f"{ROOT}model.norm.base_layer.weight": torch.ones(24), f"{ROOT}model.norm.weight": torch.zeros(24)}
    with pytest.raises(BadWeights, match="two tensors are of"):
        adapt(plain.base, spoiled(adapter, {}, dict.fromkeys(twice) | base_layer))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("lm_head.weight", (61, 23), r"lm_head.weight is of shape \(61, 23\); unembedding of .* has \(61, 24\)"),
        ("lm_head.weight", (0,), r"lm_head.weight' is empty, \(0,\).*ZeRO-3"),
        ("lm_head.weight", (0, 24), r"is empty, \(0, 24\)"),
        ("lm_head.weight", (61,), r"shape \(61\)"),
        ("lm_head.weight", (20, 24), r"has 20 rows, that of .* 61, with tokens in rows 20 to 60"),
        ("model.embed_tokens.weight", (61, 48), r"shape \(61, 48\); embedding"),
        ("model.norm.weight", (23,), r"shape \(23\); final_norm .* \(24\)"),
        ("model.norm.weight", (1, 24), r"shape \(1, 24\)"),
        ("model.layers.1.mlp.up_proj.weight", (40, 23), r"shape \(40, 23\); up .* \(40, 24\)"),
        ("model.layers.1.mlp.down_proj.weight", (40, 24), r"shape \(40, 24\); value .* \(24, 40\)"),
        ("model.layers.1.self_attn.k_proj.weight", (15, 24), r"shape \(15, 24\); k of .* \(16, 24\)"),
        ("score.weight", (2, 23), r"shape \(2, 23\); classifier .* \(any, 24\)"),
        ("model.layers.0.self_attn.q_proj.bias", (32,), "does not have"),
        ("model.visual.weight", (4, 4), "does not have"),
        (f"{Q}.lora_A.weight", (4, 23), r"q_proj.weight is of shape \(32, 23\); q of .* \(32, 24\)"),
        (f"{Q}.lora_A.weight", (0,), r"lora_A.weight' has shape \(0,\); it should have 2 dimensions.*ZeRO-3"),
        (f"{Q}.lora_A.weight", (0, 24), "is empty"),
        (f"{Q}.lora_B.weight", (31, 4), r"shape \(31, 24\)"),
        (f"{Q}.lora_magnitude_vector", (32,), "use_dora"),
        (f"{Q}.lora_C.weight", (32,), "lora_C"),
    ],
)
def test_every_tensor_is_checked_by_shape(
    name: str, shape: tuple[int, ...], words: str, plain: Adapted, adapter: Path
) -> None:
    with pytest.raises(BadWeights, match=words):
        adapt(plain.base, spoiled(adapter, {}, {ROOT + name: torch.ones(shape)}))


def resized(variant: str, folder: Path, rows: int, **settings: Any) -> Adapted:
    """Return an adapter of a base whose vocabulary was resized first; write the model that PEFT merges beside it."""
    tiny.save(base_model(variant), folder / "base")
    draw = torch.Generator().manual_seed(9)

    def resized_model() -> Any:
        hf = base_model(variant)
        hf.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            for module in (hf.get_input_embeddings(), hf.get_output_embeddings()):
                module.weight[61:] = 0.3 * torch.randn(module.weight[61:].shape, generator=draw.manual_seed(9))
        return hf

    hf: Any = get_peft_model(resized_model(), LoraConfig(r=2, lora_alpha=6, **settings))
    randomise(hf)
    hf.save_pretrained(folder / "adapter", save_embedding_layers=True)
    merged: Any = PeftModel.from_pretrained(resized_model(), str(folder / "adapter")).merge_and_unload()
    merged.save_pretrained(folder / "merged")
    return adapt(zp.open_model(str(folder / "base")), folder / "adapter")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["lm_head"], "use_dora": True},
    ],
)
def test_rows_of_a_resized_vocabulary_are_matched_by_id(settings: dict[str, Any], tmp_path: Path) -> None:
    adapted = resized("llama", tmp_path, 64, **settings)
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    close(adapted.embedding, tensors["model.embed_tokens.weight"][:61], 1e-5, "embedding")
    close(adapted.unembedding, tensors["lm_head.weight"][:61], 1e-5, "unembedding")
    assert adapted.remarks == (
        "the adapter's vocabulary has 64 rows, the base's 61: rows 61 to 63, tokens that were added, are left out",
    )
    assert adapted.remarks[0] in adapted.info()["notes"]
    if (added := adapted.change("unembedding")) is not None:
        assert tuple(added.shape) == (61, 24)


def test_rows_without_a_token_may_be_missing(tmp_path: Path) -> None:
    adapted = resized("llama", tmp_path, 58, target_modules=["lm_head"], modules_to_save=["embed_tokens"])
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    close(adapted.embedding[:58], tensors["model.embed_tokens.weight"], 1e-5, "embedding")
    close(adapted.embedding[58:], adapted.base.embedding[58:], 0, "rows without a token")
    close(adapted.unembedding[:58], tensors["lm_head.weight"], 1e-5, "unembedding")
    close(adapted.unembedding[58:], adapted.base.unembedding[58:], 0, "rows without a token")
    assert "rows 58 to 60, which have no token, stay as they are" in adapted.remarks[0]


def test_trained_tokens_that_the_base_does_not_have_are_left_out(tmp_path: Path) -> None:
    adapted = made("llama-tied", tmp_path, target_modules=["q_proj"], trainable_token_indices=[3, 5])
    again = adapt(adapted.base, spoiled(tmp_path / "adapter", {"trainable_token_indices": [3, 63]}, {}))
    rows = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (delta,) = [tensor for name, tensor in rows.items() if "trainable_tokens" in name]
    torch.testing.assert_close(again.embedding[3], delta[0])
    torch.testing.assert_close(again.embedding[4:], adapted.base.embedding[4:])
    assert "1 tokens from id 63 on" in again.remarks[0]
    for ids in ([3], [3, 3], [3, -1], [3, 5.0], "all", {"wte": [3, 5]}, [True, 3]):
        with pytest.raises(BadModel):
            adapt(adapted.base, spoiled(tmp_path / "adapter", {"trainable_token_indices": ids}, {}))


PAIRS: list[tuple[str, str, Any]] = [
    (variant, stack, config)
    for variant, stack in (("t5-encoder", ""), ("t5-encoder", "#decoder"), ("t5-gated-encoder", "#decoder"))
    for config in (
        LoraConfig(r=3, target_modules=["q", "v", "wo"]),
        IA3Config(target_modules=["k", "wo"], feedforward_modules=["wo"]),
        LNTuningConfig(target_modules=["layer_norm", "final_layer_norm"]),
    )
] + [
    ("t5-encoder", "", LoraConfig(r=3, target_modules=["relative_attention_bias"])),
    ("t5-encoder", "", LoraConfig(r=3, target_modules=["q"], modules_to_save=["relative_attention_bias"])),
    ("bart-encoder", "", LoraConfig(r=3, target_modules=["q_proj", "fc2"], bias="all")),
    ("bart-decoder", "#decoder", LoraConfig(r=3, target_modules=["q_proj", "fc2"], bias="all")),
]


@pytest.mark.parametrize(("variant", "stack", "config"), PAIRS)
def test_an_adapter_of_two_stacks_is_read_for_the_requested_stack(
    variant: str, stack: str, config: Any, tmp_path: Path
) -> None:
    adapted = trained(variant, tmp_path, config, stack)
    alike(adapted, zp.open_model(f"{tmp_path / 'merged'}{stack}"))
    assert "also changes the other stack" in adapted.remarks[0]
    if stack:
        merged = zp.open_model(f"{tmp_path / 'merged'}{stack}")
        close(Frames(adapted).rows("memory").matrix, Frames(merged).rows("memory").matrix, 1e-3, "memory")


def test_each_stack_has_its_own_table(tmp_path: Path) -> None:
    save(
        "bart-encoder",
        tmp_path,
        LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    )
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    encoder, decoder = (
        adapt(zp.open_model(f"{tmp_path / 'base'}{stack}"), tmp_path / "adapter") for stack in ("", "#decoder")
    )
    torch.testing.assert_close(encoder.embedding, tensors[f"{ROOT}model.encoder.embed_tokens.weight"])
    torch.testing.assert_close(decoder.embedding, tensors[f"{ROOT}model.decoder.embed_tokens.weight"])
    torch.testing.assert_close(decoder.unembedding, tensors[f"{ROOT}lm_head.weight"])
    assert not decoder.dims.tied


@pytest.mark.parametrize("module", ["shared", "encoder.block.0.layer.0.SelfAttention.z", "decoder.final_layer_norm.q"])
def test_a_module_that_neither_stack_has_is_refused(module: str, tmp_path: Path) -> None:
    adapted = trained("t5-encoder", tmp_path, LoraConfig(r=3, target_modules=["q"]))
    factors = {f"{ROOT}{module}.lora_A.weight": torch.ones(3, 24), f"{ROOT}{module}.lora_B.weight": torch.ones(24, 3)}
    with pytest.raises(BadWeights, match=rf"changes {module}\.weight"):
        adapt(adapted.base, spoiled(tmp_path / "adapter", {"target_modules": None}, factors))
    with pytest.raises(BadWeights, match=r"changes decoder\.block\.0\.odd\.weight"):
        extra: dict[str, Tensor | None] = {f"{ROOT}decoder.block.0.odd.weight": torch.ones(4)}
        adapt(adapted.base, spoiled(tmp_path / "adapter", {}, dict.fromkeys(factors) | extra))


def test_a_parameter_that_layers_share_changes_in_all_of_them(tmp_path: Path) -> None:
    adapted = trained("albert", tmp_path, LoraConfig(r=3, target_modules=["query", "ffn"], bias="all"))
    alike(adapted, zp.open_model(str(tmp_path / "merged")))
    assert adapted.touches("q", 1)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "falcon-40b", "gemma3", "modernbert-biased", "bert"])
def test_adapters_of_every_layout_are_read(family: str, tmp_path: Path) -> None:
    adapted = trained(
        family, tmp_path, LoraConfig(r=3, target_modules="all-linear", bias="all", modules_to_save=["norm"])
    )
    alike(adapted, zp.open_model(str(tmp_path / "merged")))


def test_a_module_outside_the_stream_is_named(tmp_path: Path) -> None:
    adapted = trained("electra", tmp_path, LoraConfig(r=3, target_modules=["query", "dense_prediction"]))
    assert "dense_prediction" in " ".join(adapted.remarks) or adapted.has("mlm")


def named(plain: Adapted, adapter: Path, base: str, opened: str | None = None, config: str | None = None) -> Adapted:
    """Name a base in the adapter's settings and adapt the base, opened under the given name."""
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    files = plain.base.files
    if config is not None:
        files = replace(files, config=files.config | {"_name_or_path": config})
    return adapt(replace(plain.base, name=opened or plain.base.name, files=files), adapter)


@pytest.mark.parametrize(
    ("base", "opened", "config", "warned", "noted"),
    [
        ("", None, None, False, False),
        ("meta/Llama-3", "meta/Llama-3", None, False, False),
        ("meta/Llama-3", "other/llama_3@main", None, False, False),
        ("meta/Llama-3", "meta/Llama-2", None, True, True),
        ("meta/Llama-3", "meta/Llama-2#decoder", None, True, True),
        ("meta/Llama-3", None, None, False, True),  # a folder may be called anything
        ("meta/Llama-3", None, "meta/Llama-2", True, True),
        ("meta/Llama-3", None, "meta/Llama-3", False, False),
        ("/home/me/run7", None, None, False, True),
        ("/home/me/base", None, None, False, False),
        ("/home/me/run7", "meta/Llama-2", None, False, True),
    ],
)
def test_an_adapter_that_names_another_base_is_read_with_a_warning(
    base: str, opened: str | None, config: str | None, warned: bool, noted: bool, plain: Adapted, adapter: Path
) -> None:
    adapted = named(plain, adapter, base, opened, config)
    assert bool(adapted.warnings) == warned
    assert any(base in note for note in adapted.notes if base) == noted
    close(adapted.matrix("q", 1), plain.matrix("q", 1), 0, "q")


def test_the_command_line_warns_on_stderr(
    run: Run,
    plain: Adapted,
    adapter: Path,
) -> None:
    base = adapter.parent / "base"
    shutil.copytree(plain.base.files.path, base)
    tiny.edit(base, {"_name_or_path": "meta/Llama-2"})
    spoiled(adapter, {"base_model_name_or_path": "meta/Llama-3\x1b[31m"}, {})
    code, _, err = run("explain", base, "L0.ff.3", "--adapter", adapter)
    assert (code, err) == (0, "")  # not a valid hub id, so there is nothing to compare
    spoiled(adapter, {"base_model_name_or_path": "meta/Llama-3"}, {})
    for command in (("explain", base, "L0.ff.3"), ("diff", base)):
        code, shown, err = run(*command, "--adapter", adapter, "--json")
        assert code == 0
        assert json.loads(shown)
        assert err.startswith("warning: the adapter was trained on meta/Llama-3, and this is meta/Llama-2")
        assert err.count("\n") == 1


def test_the_parent_of_named_adapters_lists_them(plain: Adapted, adapter: Path) -> None:
    for name in ("style", "facts"):
        shutil.copytree(adapter, adapter.parent / "all" / name)
    with pytest.raises(BadModel, match=r"its adapters are in facts, style: give one of these folders"):
        adapt(plain.base, adapter.parent / "all")
    alike(adapt(plain.base, adapter.parent / "all" / "style"), plain)


def test_an_adapter_on_an_adapted_model_adds_to_it(plain: Adapted, adapter: Path) -> None:
    twice = adapt(plain, adapter)
    added = plain.matrix("q") - plain.base.matrix("q")
    close(twice.matrix("q"), plain.matrix("q") + added, 1e-5, "q")


def test_fingerprints_tell_adapters_apart(plain: Adapted, adapter: Path) -> None:
    same = adapt(plain.base, adapter).fingerprint
    tensors = load_file(adapter / "adapter_model.safetensors")
    other = adapt(plain.base, spoiled(adapter, {}, {FACTORS[0]: tensors[FACTORS[0]] * 2})).fingerprint
    assert same == plain.fingerprint != other
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert adapt(plain.base, spoiled(adapter, {"lora_alpha": 7}, {})).fingerprint != plain.fingerprint
