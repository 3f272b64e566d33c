"""Text models inside multimodal ones, against the forward pass of those on a text, in every generation of files."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tiny
from adapters import randomise
from commands import Run
from multimodal import MULTIMODAL, save_as_in_memory, tiny_multimodal
from zeropass.arch import wrappers
from zeropass.arch.families import FAMILIES
from zeropass.arch.families.multimodal import ASSUMED, WRAPPERS
from zeropass.arch.spec import Family, Wrapper
from zeropass.arch.wrappers import layouts_in, towers
from zeropass.diff.run import compare
from zeropass.errors import BadModel, BadWeights, CannotRun, UnknownFamily, ZeropassError
from zeropass.model.adapted import adapt
from zeropass.model.loading import loaded
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.model.running import Running
from zoo import tiny_model

TOLERANCE = 1e-4
IDS = torch.arange(4, 52).reshape(4, 12)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread", "unprinted_configs"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path, Path]]:
    """Return a function that makes a model once, and saves it with the names of files and with those in memory."""
    root = tmp_path_factory.mktemp("multimodal")

    @cache
    def model(name: str) -> tuple[Any, Path, Path]:
        hf, stem = tiny_multimodal(name), name.replace(", ", "-").replace(" ", "-")
        return hf, tiny.save(hf, root / f"{stem}-files"), save_as_in_memory(hf, root / f"{stem}-memory")

    return model


@pytest.fixture(params=sorted(MULTIMODAL))
def case(request: pytest.FixtureRequest, made: Callable[[str], Any]) -> tuple[Any, Path, Path]:
    hf, files, memory = made(request.param)
    return hf, files, memory


@torch.no_grad()
def error(hf: Any, model: Model) -> float:
    """Return the error of the logits of a text, computed from the canonical parameters."""
    running = Running(model)
    return tiny.error(running.logits(running.run(IDS)), logits(hf, IDS))


RUN_INSIDE = {"llama4": "language_model", "shieldgemma2": "model"}
RUN_INSIDE |= dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), "language_model")
RUN_INSIDE |= dict.fromkeys(("siglip", "siglip2"), "text_model")
"""The part that is run of a model that transformers 5.24 does not run without images, or not for logits.

The multimodal model hands it the embeddings of a text as they are.
"""


def part_that_runs(hf: Any) -> Any:
    return hf.get_submodule(RUN_INSIDE.get(hf.config.model_type, ""))


def logits(hf: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a text, or of a model without a head what its states are to the embedding."""
    inner = part_that_runs(hf)
    inner = inner.get_encoder() if inner.config.is_encoder_decoder else getattr(inner, "vlm", inner)
    result = inner(ids)
    if "logits" in result:
        scores: torch.Tensor = result.logits
        return scores
    states: torch.Tensor = result.last_hidden_state
    return states @ hf.get_input_embeddings().weight.T


def named(model: Model) -> Family:
    """Return the family of a model without its layouts: experts may be stored in one tensor or in many."""
    return replace(model.family, layouts=())


# What is read


def test_a_text_model_computes_what_the_multimodal_one_computes(case: tuple[Any, Path, Path]) -> None:
    hf, *folders = case
    for folder in folders:
        model = open_model(folder)
        assert model.wrapper is not None
        assert error(hf, model) < TOLERANCE
        ties = getattr(getattr(hf, "vlm", part_that_runs(hf)).config, "tie_word_embeddings", False)
        assert model.dims.tied == (ties or model.family.always_tied)


def test_both_generations_of_files_hold_the_same_model(case: tuple[Any, Path, Path]) -> None:
    _, *folders = case
    first, second = (open_model(folder) for folder in folders)
    renamed = ({"vision_embedder"}, {"projector", "vision_projector"})  # Gemma 4 Unified, HyperCLOVA X Vision
    notes = ([note.partition("; not read")[0] for note in model.notes] for model in (first, second))
    assert (named(first), first.dims, next(notes)) == (named(second), second.dims, next(notes))
    for role in (*first.matrices(1), "embedding"):
        assert torch.equal(first.matrix(role, 1), second.matrix(role, 1))
    rows = [model.info()["towers_unread"] for model in (first, second)]
    names = [{row["tower"] for row in each} for each in rows]
    assert rows[0] == rows[1] or names[0] ^ names[1] in renamed
    assert len({sum(row["parameters"] for row in each) for each in rows}) == 1


def test_a_multimodal_model_in_memory_is_read_as_its_files(case: tuple[Any, Path, Path]) -> None:
    hf, folder, _ = case
    file = open_model(folder)
    in_memory = [open_model(hf, folder)]
    if file.dims.experts == 1:  # a state dict has them joined
        in_memory.append(open_model(hf.state_dict(), folder, config=folder))
    for model in in_memory:
        assert (named(model), model.dims) == (named(file), file.dims)
        assert torch.equal(model.matrix("q", 1), file.matrix("q", 1))


def test_experts_that_files_hold_either_way_are_read_alike(made: Callable[[str], Any], tmp_path: Path) -> None:
    """Published files of Qwen3-VL have the transpose of what transformers 5 writes; it goes by the shape."""
    hf, files, _ = made("qwen3_vl_moe")
    first, folder = open_model(files), Path(shutil.copytree(files, tmp_path / "turned"))
    tensors = load_file(folder / "model.safetensors")
    turned = {name: tensor.mT.contiguous() for name, tensor in tensors.items() if ".experts." in name}
    save_file(tensors | turned, folder / "model.safetensors")
    second = open_model(folder)
    for role in ("gate", "up", "value"):
        assert torch.equal(first.matrix(role), second.matrix(role))
        assert first.layout.tensors[role].transpose != second.layout.tensors[role].transpose
    assert error(hf, second) < TOLERANCE
    square = {name: torch.ones(5, 24, 24) for name in turned}
    save_file(tensors | square, folder / "model.safetensors")
    tiny.edit(folder, {"text_config": json.loads((files / "config.json").read_text())["text_config"]})
    with pytest.raises(BadWeights, match="a square one does not tell which"):
        open_model(folder)


def test_every_tensor_is_read_or_belongs_to_a_named_part(case: tuple[Any, Path, Path]) -> None:
    for folder in case[1:]:
        model = open_model(folder)
        facts = model.info()
        other = facts["tensors_unread"]  # beside an encoder: its decoder, copies of the embedding, the bias of a head
        assert all(re.search(r"(^|\.)(decoder|lm_head|embed_tokens|shared|head)\.", name) for name in other)
        assert not (other and model.family.causal)
        parts = facts["towers_unread"]
        assert sum(part["tensors"] for part in parts) + facts["tensors_read"] + len(other) == facts["tensors"]
        assert parts
        for part in parts:
            assert part["tower"] in facts["notes"][-1 - len(model.wrapper.notes if model.wrapper else ())]


def test_every_known_wrapper_is_tested() -> None:
    """Two are the layouts of their authors' code, two hold another, one needs timm; they have tests of their own."""
    known = {name for wrapper in WRAPPERS for name in wrapper.model_types}
    tested = {getattr(transformers, config).model_type for _, config, _ in MULTIMODAL.values()}
    assert known - tested == {"internvl_chat", "multi_modality", "qwen2_5_omni", "qwen3_omni_moe", "gemma3n"}
    assert tested <= known
    assert len(known) == sum(len(wrapper.model_types) for wrapper in WRAPPERS)


def test_the_layouts_of_text_models_begin_with_model() -> None:
    """A wrapper puts its prefixes in the place of this one; T5 and SigLIP's text model are inside as they are."""
    texts = {name for wrapper in WRAPPERS for name in wrapper.texts}
    for family in FAMILIES:
        layout = family.layout("hf")
        if layout and texts & set(family.model_types):
            assert layout.prefixes[0].startswith(("model.", "text_model.")) or layout.prefixes == ("",)
    assert texts <= {name for family in FAMILIES for name in family.model_types}


def relabelled(folder: Path, prefix: str, config: dict[str, Any], *parts: str) -> Path:
    """Put a text model inside another one: its tensors behind a prefix, and some tensors of other parts."""
    tensors = {f"{prefix}{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors | {part: torch.ones(3, 5) for part in parts}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("family", "wrapper", "key", "parts"),
    [
        ("qwen2", "internvl_chat", "llm_config", ["vision_model.encoder.weight", "mlp1.0.weight"]),
        ("llama", "multi_modality", "language_config", ["vision_model.blocks.weight", "aligner.layers.0.weight"]),
        ("llama", "multi_modality", "language_config", ["gen_embed.weight", "gen_vision_model.quantize.weight"]),
    ],
)
def test_layouts_of_other_authors_are_read(
    family: str, wrapper: str, key: str, parts: list[str], tmp_path: Path
) -> None:
    hf = tiny_model(family)
    folder = tiny.save(hf, tmp_path / family)
    text = json.loads((folder / "config.json").read_text())
    config = {"model_type": wrapper, key: text, "vision_config": {"hidden_size": 8}}
    model = open_model(relabelled(folder, "language_model.", config, *parts))
    assert error(hf, model) < TOLERANCE
    unread = {part["tower"] for part in model.info()["towers_unread"]}
    assert unread == {part.partition(".")[0] for part in parts}


def test_the_names_that_transformers_4_gave_a_classifier_are_read(made: Callable[[str], Any], tmp_path: Path) -> None:
    hf, files, _ = made("shieldgemma2")
    folder = Path(shutil.copytree(files, tmp_path / "published"))
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    model = open_model(folder)
    assert model.prefix == "model.language_model.model."
    assert error(hf, model) < TOLERANCE


@pytest.mark.parametrize(("name", "sound"), [("qwen2_5_omni", "token2wav"), ("qwen3_omni_moe", "code2wav")])
def test_the_thinker_of_a_model_that_speaks_is_read(
    name: str, sound: str, made: Callable[[str], Any], tmp_path: Path
) -> None:
    hf, files, _ = made(f"{name}_thinker")
    folder = Path(shutil.copytree(files, tmp_path / "omni"))
    thinker = json.loads((folder / "config.json").read_text())
    config = {"model_type": name, "thinker_config": thinker, "talker_config": {}, f"{sound}_config": {}}
    model = open_model(relabelled(folder, "thinker.", config, "talker.model.norm.weight", f"{sound}.dit.weight"))
    assert error(hf, model) < TOLERANCE
    parts = ["thinker.visual", "thinker.audio_tower", "talker", sound]
    assert [part["tower"] for part in model.info()["towers_unread"]] == parts
    assert model.info()["tensors_unread"] == []


@pytest.mark.parametrize("name", ["florence2", "blip-2 of t5"])
def test_the_decoder_inside_is_that_of_the_text_model_alone(
    name: str, made: Callable[[str], Any], tmp_path: Path
) -> None:
    hf, *folders = made(name)
    inner = hf.language_model if name == "blip-2 of t5" else hf.model.language_model
    state = inner.state_dict() | ({} if name == "blip-2 of t5" else {"lm_head.weight": hf.lm_head.weight})
    alone = open_model(state, folders[0], config=inner.config, stack="decoder")
    for folder in folders:
        model = open_model(folder, stack="decoder")
        assert (named(model), model.dims) == (named(alone), alone.dims)
        for role in model.matrices(1):
            assert torch.equal(model.matrix(role, 1), alone.matrix(role, 1))
        assert torch.equal(model.unembedding, alone.unembedding)


# Configurations


@pytest.mark.parametrize("kind", sorted(ASSUMED))
def test_a_key_that_a_file_leaves_out_means_what_it_means_to_transformers(kind: str) -> None:
    config = CONFIG_MAPPING[kind]()
    config.allow_global_per_layer_attribute_access = True
    for key, value in ASSUMED[kind].items():
        theirs = config.rope_parameters[key] if key == "rope_theta" else getattr(config, key)
        alike = isinstance(theirs, list) and theirs == [value] * config.num_hidden_layers
        assert theirs == value or alike, (kind, key)


@pytest.mark.parametrize("name", sorted(MULTIMODAL))
def test_a_missing_key_of_a_text_model_means_what_it_means_to_transformers(
    name: str, made: Callable[[str], Any], tmp_path: Path
) -> None:
    _, files, _ = made(name)
    partial, full = (Path(shutil.copytree(files, tmp_path / part)) for part in ("partial", "full"))
    config = json.loads((files / "config.json").read_text())
    around = config.get("vlm_config", config)
    tried = 0
    for key in sorted(around["text_config"].keys() - {"model_type", "vocab_size"}):
        text = {"text_config": {k: v for k, v in around["text_config"].items() if k != key}}
        (partial / "config.json").write_text(
            json.dumps(config | ({"vlm_config": around | text} if "vlm_config" in config else text))
        )
        try:
            theirs = transformers.AutoConfig.from_pretrained(partial).to_dict()
        except Exception:  # sizes of the default that do not fit the others
            continue
        (full / "config.json").write_text(json.dumps(theirs))
        try:
            model = open_model(partial)
        except ZeropassError:
            continue
        true = open_model(full)
        assert (model.dims, model.family) == (true.dims, true.family), key
        tried += 1
    assert tried >= 9


def flat(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder in the first form of Qwen2-VL, with the text model's keys at the top."""
    config = json.loads((folder / "config.json").read_text())
    return config | config.pop("text_config") | {"model_type": config["model_type"]}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_the_first_configurations_of_qwen2_vl_are_read(name: str, made: Callable[[str], Any], tmp_path: Path) -> None:
    hf, files, _ = made(name)
    folder = Path(shutil.copytree(files, tmp_path / name))
    config = flat(folder)
    rope = config.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(config))
    model = open_model(folder)
    assert model.dims == open_model(files).dims
    assert error(hf, model) < TOLERANCE


def test_where_both_configurations_have_a_key_the_text_models_counts(
    made: Callable[[str], Any], tmp_path: Path
) -> None:
    """Files of transformers 4.52 and later have the keys of the text model twice; only those inside are used."""
    hf, files, _ = made("qwen2_5_vl")
    folder = Path(shutil.copytree(files, tmp_path / "both"))
    tiny.edit(folder, {"rms_norm_eps": 0.5, "hidden_size": 999})
    assert open_model(folder).dims == open_model(files).dims
    assert error(hf, open_model(folder)) < TOLERANCE


@pytest.mark.parametrize("outer", [True, False, None])
@pytest.mark.parametrize("inner", [True, False, None])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_a_tie_may_stand_in_either_configuration(
    name: str, inner: bool | None, outer: bool | None, made: Callable[[str], Any], tmp_path: Path
) -> None:
    _, files, _ = made(name)
    folder = Path(shutil.copytree(files, tmp_path / "tied"))
    config = json.loads((folder / "config.json").read_text())
    heads: dict[str, Any] = dict.fromkeys(("lm_head.weight", "language_model.lm_head.weight"))
    flags = {} if inner is None else {"tie_word_embeddings": inner}
    text = {k: v for k, v in config["text_config"].items() if k != "tie_word_embeddings"} | flags
    tiny.edit(folder, {"text_config": text, "tie_word_embeddings": outer}, heads)
    hf = getattr(transformers, MULTIMODAL[name][0]).from_pretrained(folder)
    if hf.config.tie_word_embeddings or (outer is None and inner):
        assert open_model(folder).dims.tied
    else:
        with pytest.raises(BadWeights, match=r"not tied, but .*lm_head.weight is missing"):
            open_model(folder)


# What is refused


SPOILS: dict[str, Callable[[Wrapper], Wrapper]] = {
    "prefixes": lambda w: replace(w, prefixes={"model.language.": ""}),
    "heads": lambda w: replace(w, prefixes=dict.fromkeys(w.prefixes, "head.")),
    "towers": lambda w: replace(w, towers=dict(list(w.towers.items())[1:])),
    "text_config": lambda w: replace(w, config="language_config", flat=False),
    "texts": lambda w: replace(w, texts=("olmo",)),
}


@pytest.mark.parametrize("what", SPOILS)
@pytest.mark.parametrize("name", sorted(MULTIMODAL))
def test_a_wrong_record_of_a_wrapper_is_caught(
    name: str, what: str, made: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, files, _ = made(name)
    if what == "heads" and open_model(files).dims.tied:
        return
    monkeypatch.setattr(wrappers, "WRAPPERS", tuple(map(SPOILS[what], WRAPPERS)))
    try:
        assert error(hf, open_model(files)) > TOLERANCE
    except ZeropassError as refused:
        assert str(files) in str(refused)


def refusal(folder: Path, error_type: type[ZeropassError]) -> str:
    with pytest.raises(error_type) as caught:
        open_model(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "error_type", "says"),
    [
        ({"text_config": "llama"}, BadModel, ["text_config must be an object", "'llama'"]),
        ({"text_config": None}, BadModel, ["text_config must be an object", "None"]),
        ({"text_config": {"model_type": "mamba"}}, UnknownFamily, ["text model inside this llava is 'mamba'", "qwen2"]),
        ({"text_config": {"model_type": ["llama"]}}, UnknownFamily, ["text model inside this llava is ['llama']"]),
        ({"use_foo": True}, UnknownFamily, ["use_foo is True"]),
        ({"tie_word_embeddings": "yes"}, BadModel, ["tie_word_embeddings is 'yes'"]),
        ({"quantization_config": {"quant_method": "bitnet"}}, BadModel, ["BitNet"]),
        ({"model_type": ["llava"]}, UnknownFamily, ["model_type is ['llava']"]),
        ({"model_type": "mllama"}, UnknownFamily, ["mllama", "read images alone", "Known: ", "gemma3"]),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    config: dict[str, Any], error_type: type[ZeropassError], says: list[str], made: Callable[[str], Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made("llava")[1], tmp_path / "llava"))
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    message = refusal(folder, error_type)
    assert str(folder) in message
    for part in says:
        assert part in message


@pytest.mark.parametrize("key", ["residual_multiplier", "use_foo"])
def test_an_unknown_key_of_a_text_model_is_refused(key: str, made: Callable[[str], Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("llava")[1], tmp_path / "llava"))
    config = json.loads((folder / "config.json").read_text())
    tiny.edit(folder, {"text_config": config["text_config"] | {key: 0.5}})
    assert f"{key} is 0.5" in refusal(folder, UnknownFamily)


def test_a_text_model_that_would_see_what_follows_is_refused(made: Callable[[str], Any], tmp_path: Path) -> None:
    """The image tower's model masks attention itself, but the window of its text model is half as wide."""
    folder = Path(shutil.copytree(made("gemma3")[1], tmp_path / "gemma3"))
    config = json.loads((folder / "config.json").read_text())
    tiny.edit(folder, {"text_config": config["text_config"] | {"use_bidirectional_attention": True}})
    assert "use_bidirectional_attention is True" in refusal(folder, UnknownFamily)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(MULTIMODAL))
def test_a_token_of_a_text_sees_none_that_follows(name: str, made: Callable[[str], Any]) -> None:
    if not open_model(made(name)[1]).family.causal:
        return
    first, second = (logits(made(name)[0], torch.tensor([ids]))[0, 1] for ids in ([5, 6, 7, 8], [5, 6, 9, 8]))
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    "tensor",
    [
        "language_model.model.layers.0.unheard_of.weight",
        "language_model.extra.weight",
        "another_tower.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "vision_towers.weight",
    ],
)
def test_an_unknown_tensor_is_refused_by_name(tensor: str, made: Callable[[str], Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("llava")[1], tmp_path / "llava"))
    tiny.edit(folder, tensors={tensor: torch.ones(3)})
    assert repr(tensor) in refusal(folder, UnknownFamily)


def test_a_missing_tensor_has_the_name_that_the_file_would_have(made: Callable[[str], Any], tmp_path: Path) -> None:
    for n, stem in enumerate(("language_model.model.", "model.language_model.")):
        folder = Path(shutil.copytree(made("llava")[1 + n], tmp_path / str(n)))
        tensor = f"{stem}layers.1.self_attn.q_proj.weight"
        tiny.edit(folder, tensors={tensor: None})
        assert f"tensor {tensor} is missing" in refusal(folder, BadWeights)


def test_a_configuration_without_other_parts_is_that_of_a_text_model(tmp_path: Path) -> None:
    """A Gemma 3 without an image tower may have the type of the multimodal model."""
    folder = tiny.save(tiny_model("gemma3"), tmp_path / "gemma3")
    tiny.edit(folder, {"model_type": "gemma3"})
    assert open_model(folder).wrapper is None


def test_stitching_refuses_it(made: Callable[[str], Any]) -> None:
    with pytest.raises(CannotRun, match=r"inside a multimodal one.*save the text model alone"):
        loaded(transformers.AutoModel, open_model(made("llava")[1]))


# Commands


def test_info_names_the_parts_that_are_not_read(made: Callable[[str], Any], run: Run) -> None:
    _, text, _ = run("info", made("llava")[1])
    assert "vision_tower (vision tower): 23 tensors, 2,756 parameters" in text
    assert "multi_modal_projector (projector): 4 tensors" in text
    assert "text model inside a model of type llava" in " ".join(text.split())


def test_a_difference_between_generations_is_none(made: Callable[[str], Any], tmp_path: Path) -> None:
    _, files, memory = made("llava")
    assert compare(files, memory).relation == "equal"
    folder = Path(shutil.copytree(memory, tmp_path / "tuned"))
    tower = "model.vision_tower.pre_layrnorm.weight"
    tiny.edit(folder, tensors={tower: load_file(folder / "model.safetensors")[tower] + 1})
    changed = compare(files, folder).to_json()
    assert "vision_tower.pre_layrnorm.weight" in json.dumps(changed)


# Adapters


@pytest.fixture(scope="module")
def lora(made: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains a LoRA of every q_proj of a model, also in its vision tower."""
    root = tmp_path_factory.mktemp("loras")

    @cache
    def saved(name: str) -> Path:
        hf: Any = get_peft_model(tiny_multimodal(name), LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"]))
        randomise(hf)
        hf.save_pretrained(root / name)
        merged = hf.merge_and_unload()
        save_as_in_memory(merged, root / f"{name}-merged")
        return root / name

    return saved


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "smolvlm"])
def test_an_adapter_of_a_multimodal_model_is_put_on_its_text_model(
    name: str, made: Callable[[str], Any], lora: Callable[[str], Path]
) -> None:
    for folder in made(name)[1:]:
        model = adapt(open_model(folder), lora(name))
        merged = open_model(lora(name).with_name(f"{name}-merged"))
        for layer in (0, 1):
            assert tiny.error(model.matrix("q", layer), merged.matrix("q", layer)) < 1e-6
            assert not torch.equal(model.matrix("q", layer), model.base.matrix("q", layer))
        notes = [note for note in model.notes if "changes tensors that hold no parameter of the stream" in note]
        assert len(notes) == (name != "qwen2_5_vl")  # its image tower calls them otherwise


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llava", {"target_modules": "all-linear"}),
        ("qwen2_5_vl", {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}),
        ("gemma3", {"target_modules": r".*language_model.*\.(v_proj|up_proj)"}),
        ("smolvlm", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    ],
)
def test_an_adapted_multimodal_model_computes_what_peft_computes(
    name: str, settings: dict[str, Any], made: Callable[[str], Any], tmp_path: Path
) -> None:
    hf: Any = get_peft_model(tiny_multimodal(name), LoraConfig(r=2, **settings)).eval()
    randomise(hf)
    hf.save_pretrained(tmp_path)
    folder = made(name)[1]
    for model in (open_model(hf, folder), adapt(open_model(folder), tmp_path)):
        assert error(hf, model) < TOLERANCE


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm"])
def test_a_prefix_of_training_code_is_left_out(
    name: str, prefix: str, made: Callable[[str], Any], tmp_path: Path
) -> None:
    for folder in made(name)[1:]:
        copied = Path(shutil.copytree(folder, tmp_path / folder.name))
        tensors = load_file(copied / "model.safetensors")
        save_file({f"{prefix}{tensor}": values for tensor, values in tensors.items()}, copied / "model.safetensors")
        model = open_model(copied)
        assert any(repr(prefix) in note for note in model.notes)
        assert model.info()["towers_unread"] == open_model(folder).info()["towers_unread"]


def test_an_adapter_may_have_the_names_of_an_older_generation(
    made: Callable[[str], Any], lora: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lora("llava"), tmp_path / "old"))
    file = folder / "adapter_model.safetensors"
    old = {
        name.replace("model.language_model.", "language_model.model.").replace(
            "model.vision_tower.", "vision_tower."
        ): t
        for name, t in load_file(file).items()
    }
    assert not {name for name in old if ".model.language_model." in name and "base_model.model.language" not in name}
    save_file(old, file)
    base = open_model(made("llava")[1])
    first, second = adapt(base, folder), adapt(base, lora("llava"))
    assert torch.equal(first.matrix("q", 1), second.matrix("q", 1))


def test_an_adapter_of_the_text_model_alone_is_refused(
    made: Callable[[str], Any], lora: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lora("llava"), tmp_path / "text"))
    file = folder / "adapter_model.safetensors"
    text = {k.replace("model.language_model.", "model."): t for k, t in load_file(file).items() if "vision" not in k}
    save_file(text, file)
    with pytest.raises(
        BadWeights, match=r"changes model\.layers\.0\.self_attn\.q_proj\.weight, which .* does not have"
    ):
        adapt(open_model(made("llava")[1]), folder)


def test_the_layout_of_a_text_model_alone_stays_as_it_is() -> None:
    layout = FAMILIES[0].layout("hf")
    assert layout is not None
    assert layouts_in(None, layout) == (layout,)
    assert towers(None, ["vision_tower.weight"]) == {}
