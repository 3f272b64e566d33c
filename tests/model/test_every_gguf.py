"""Every family that is read from GGUF gives the same canonical parameters as its safetensors (tests/gguf_files.py)."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES, TokenType
from safetensors.torch import load_file
from test_every_family import interleaved, swapped, unsplit, with_dims, without
from tokenizers import Tokenizer
from torch import Tensor

from canonical import with_tensors
from gguf_files import KEYS, VARIANTS, convert
from zeropass.arch.families import FAMILIES
from zeropass.arch.layout import MIXER_INPUTS, names_of
from zeropass.arch.rows import canonical_shape
from zeropass.checkpoints.gguf import GgufSource
from zeropass.errors import BadModel, BadOption, UnknownFamily, ZeropassError
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.tokens.gguf_tokenizer import gguf_spec

ROUNDING = 1e-6
SPREAD = 1e-4
"""The tolerance of values that are summed and pass through norms."""

UNWRITTEN = {
    "deepseek_v3": {"beyond"},
    "nemotron_h": {"mixer.least_step"},
    "gemma2": {"attention_scale"},
    "gemma3": {"attention_scale", "vocab"},
    "gemma4": {"rope.kind", "rope.options.factor", "rope.options.partial_rotary_factor", "rope.options"},
}
"""Facts that converters do not write: a scale that follows from the size, rows without a token, left-out layers, the
rule that divisors of frequencies follow, a bound of steps."""

ARCHITECTURES = tuple(sorted(MODEL_ARCH_NAMES[arch] for arch in KEYS))
NAMES = (*ARCHITECTURES, *VARIANTS)
Twins = tuple[Model, Model]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


# The comparison


def differ(tensor: Tensor | None, true: Tensor | None, tolerance: float = ROUNDING) -> bool:
    """Tell whether two tensors differ by more than rounding, ignoring rows that one of them lacks."""
    if tensor is None or true is None:
        return tensor is not true
    tensor, true = torch.atleast_1d(tensor), torch.atleast_1d(true)
    rows = min(len(tensor), len(true))
    tensor, true = tensor[:rows], true[:rows]
    return tensor.shape != true.shape or float((tensor - true).abs().max()) > tolerance * float(true.abs().max())


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the numbers of a record by their paths."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        path: number for key, inner in value.items() for path, number in flat(inner, f"{name}.{key}".strip(".")).items()
    }


def constants(file: Model, true: Model) -> Iterator[str]:
    """Yield the names of the sizes and constants that differ."""
    values, true_values = flat(asdict(file.dims)), flat(asdict(true.dims))
    names = {name for name in values.keys() | true_values.keys() if not name.startswith("mixer.rows.")}
    for name in names - UNWRITTEN.get(true.family.name, set()):
        value, expected = values.get(name), true_values.get(name)
        if value != (pytest.approx(expected) if isinstance(expected, float) else expected):
            yield f"{name}: {value} instead of {expected}"


def tensors(file: Model, true: Model) -> Iterator[str]:
    """Yield the canonical matrices and vectors that differ, in all layers, under the names of both records.

    The inputs of a mixer are compared together: files may cut them into tensors in another way.
    """
    names = file.layout.tensors.keys() | true.layout.tensors.keys()
    for name in sorted(names - {"rope_factors", "unembedding", *MIXER_INPUTS[1:]}):
        if file.has(name) != true.has(name):
            yield name
            continue
        inside = any("{layer}" in model.layout.tensors[name].name for model in (file, true) if model.has(name))
        layers = range(true.dims.layers if inside else 1) if true.has(name) else ()
        for layer in (n for n in layers if names_of(true.layout.tensors[name], n, true.dims)):
            matrix = len(canonical_shape(name, true.dims)) == 2 and not name.startswith("inner_")
            tensor, expected = (getattr(m, "matrix" if matrix else "vector")(name, layer) for m in (file, true))
            if name == "positions":  # a file may lack the rows of padding
                expected = expected[true.family.first_position - file.family.first_position :]
            if differ(tensor, expected):
                yield f"{name} of layer {layer}"
    if differ(file.unembedding, true.unembedding):
        yield "unembedding"


def maps(file: Model, true: Model) -> Iterator[str]:
    """Yield the computed values that differ: frequencies, head maps in both layers, tokens after block 0."""
    frames, true_frames = Frames(file), Frames(true)
    for layer in range(true.dims.layers) if true.dims.rope else ():
        if differ(frames.frequencies(layer), true_frames.frequencies(layer)):
            yield f"frequencies of layer {layer}"
    for layer in (n for n in (0, 1) if true.dims.has_site("attn", n)):
        for head in range(true.dims.heads):
            for kind, offset in (("qk", 7 if true.dims.rope else 0), ("vo", 0)):
                product, expected = (f.head_map(layer, head, kind, offset=offset) for f in (frames, true_frames))
                if differ(product.left, expected.left, SPREAD) or differ(product.right, expected.right, SPREAD):
                    yield f"{kind} of L{layer}.attn.{head}"
    if differ(frames.carried(), true_frames.carried(), SPREAD):
        yield "carried"


def differing(file: Model, true: Model) -> Iterator[str]:
    """Yield everything that is read differently from a file than from its folder; an error counts."""
    for check in (constants, tensors, maps):
        try:
            yield from check(file, true)
        except (ZeropassError, RuntimeError, IndexError, ValueError) as error:
            yield f"{check.__name__}: {error}"


def differences(file: Model, true: Model) -> list[str]:
    """Return all that `differing` yields."""
    return [*differing(file, true)]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_as_its_folder(name: str, twins: Callable[[str], Twins]) -> None:
    file, true = twins(name)
    assert file.files.format == "gguf"
    assert differences(file, true) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_the_tokens_of_its_folder(name: str, twins: Callable[[str], Twins]) -> None:
    file, true = twins(name)
    rows = range(file.vocab.size)
    assert [file.vocab.text(i) for i in rows if file.vocab.used[i]] == [
        true.vocab.text(i) for i in rows if true.vocab.used[i]
    ]
    assert not true.vocab.used[file.vocab.size :].any()


def test_unigram_splits_a_text_as_in_the_folder(twins: Callable[[str], Twins]) -> None:
    file, true = twins("t5encoder")
    for text in ("bade  lafo  mase ", "abba", "  Paris", "ba ba"):
        assert file.vocab.encode(text) == true.vocab.encode(text)


def test_gemma4_merges_within_runs_of_line_breaks_and_of_other_characters() -> None:
    """Its pieces are those of SentencePiece, but the file has merges; a merge may be of spaces and of line breaks."""
    pieces = ["<unk>", "▁", "\n", "a", "b", "▁a", "▁ab", "\n\n", "▁▁"]
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [TokenType.UNKNOWN, *[TokenType.NORMAL] * (len(pieces) - 1)],
        "tokenizer.ggml.merges": ["▁ a", "▁a b", "\n \n", "▁ ▁"],
    }
    tokenizer = Tokenizer.from_str(json.dumps(gguf_spec(metadata, "m.gguf")[0]))
    assert tokenizer.encode("a ab\n\n a").tokens == ["a", "▁ab", "\n\n", "▁a"]
    assert tokenizer.decode(tokenizer.encode("ab  a").ids) == "ab  a"


def test_unigram_without_scores_is_refused(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="scores is not a list with a score for each"):
        edited(path_of(twins("t5encoder")[0]), tmp_path / "bare.gguf", {"tokenizer.ggml.scores": [0.5]})


# Wrong records must be caught


def raised(model: Model) -> Model | None:
    """Take gains for those of a Gemma checkpoint, which stores them minus one; the file stores them in full."""
    if not any(name.endswith("norm") for name in model.layout.tensors):
        return None
    return replace(model, layout=replace(model.layout, gain_offset=1.0))


def halved(model: Model) -> Model | None:
    """Swap gate and up where they are fused."""
    gate, up = (model.layout.tensors.get(role) for role in ("gate", "up"))
    return with_tensors(model, gate=up, up=gate) if gate and up and gate.part != up.part else None


def transposed(model: Model) -> Model:
    """Transpose a matrix that writes to the stream."""
    stored = model.layout.tensors["o"]
    return with_tensors(model, o=replace(stored, transpose=not stored.transpose))


def untiled(model: Model) -> Model | None:
    """Take the heads of a mixer for those of one group after another."""
    tiled = {name: stored for name, stored in model.layout.tensors.items() if stored.fused == "tiled"}
    return with_tensors(model, **{name: replace(s, fused="") for name, s in tiled.items()}) if tiled else None


def undecayed(model: Model) -> Model | None:
    """Take rates of decay for their logarithms."""
    decay = model.layout.tensors.get("inner_decay")
    return with_tensors(model, inner_decay=replace(decay, negative_exp=False)) if decay else None


SPOILS: dict[str, Callable[[Model], Model | None]] = {
    "rows interleaved otherwise": interleaved,
    "gains raised": raised,
    "heads split otherwise": unsplit,
    "halves swapped": halved,
    "o transposed": transposed,
    "k and v swapped": swapped("k", "v"),
    "gate and up swapped": swapped("gate", "up"),
    "norms swapped": swapped("attn_norm", "ff_norm"),
    "norms behind swapped": swapped("attn_post_norm", "ff_post_norm"),
    "q norm and k norm swapped": swapped("q_norm", "k_norm"),
    **{
        f"no {name}": without(name)
        for name in ("attn_post_norm", "q_norm", "q_bias", "o_bias", "gate_bias", "key_bias")
    },
    "heads of mixers in order": untiled,
    "rates for their logarithms": undecayed,
    "another RoPE": lambda m: m.dims.rope and with_dims(m, rope=replace(m.dims.rope, theta=77.0)),
    "one RoPE for all": lambda m: with_dims(m, local_rope=None) if m.dims.local_rope else None,
    "no layer local": lambda m: with_dims(m, local=()) if m.dims.local else None,
    "no cap": lambda m: with_dims(m, logit_cap=None) if m.dims.logit_cap else None,
    "another activation": lambda m: with_dims(m, activation="relu") if m.dims.activation != "relu" else None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_record_is_caught(name: str, twins: Callable[[str], Twins]) -> None:
    """The first difference catches it."""
    file, true = twins(name)
    passed = [how for how, spoil in SPOILS.items() if (wrong := spoil(file)) and not any(differing(wrong, true))]
    assert not passed


def test_each_way_to_be_wrong_is_tried(twins: Callable[[str], Twins]) -> None:
    assert {how for how, spoil in SPOILS.items() for name in NAMES if spoil(twins(name)[0])} == set(SPOILS)


# Other files that converters write, or used to write


def edited(path: Path, out: Path, keys: dict[str, Any], **more: np.ndarray | None) -> Model:
    """Change some keys and tensors of a file (None removes one) and open the result."""
    source = GgufSource(path)
    writer = gguf.GGUFWriter(out, source.metadata["general.architecture"])
    for key, value in (source.metadata | keys).items():
        if key != "general.architecture" and value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            inner = gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) and value else None
            writer.add_key_value(key, value, kind, sub_type=inner) if inner or not isinstance(value, list) else None
    stored = [name for name in source.names() if ".xielu." not in name]  # which the header lists
    for name, values in ({name: source.rows(name) for name in stored} | more).items():
        if values is not None:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_model(str(out))


def path_of(model: Model) -> Path:
    """Return the only file of a model."""
    return model.files.weight_files[0]


def test_an_output_that_copies_the_embedding_is_tied(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    """Converters before 2025 wrote GPT-2's tied head as a second tensor."""
    file, true = twins("gpt2")
    embedding = {"output.weight": true.embedding.numpy()}
    copied = edited(path_of(file), tmp_path / "copied.gguf", {}, **embedding)
    assert differences(copied, true) == []


def test_the_stored_tables_decide_whether_they_are_tied(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    file, true = twins("gpt2")
    embedding = true.embedding.numpy()
    alone = {"token_embd.weight": None, "output.weight": embedding}
    assert differences(edited(path_of(file), tmp_path / "alone.gguf", {}, **alone), true) == []
    untied = edited(path_of(file), tmp_path / "untied.gguf", {}, **{"output.weight": embedding + 1})
    assert differences(untied, true) == ["tied: False instead of True", "unembedding"]
    assert np.array_equal(untied.unembedding.numpy(), embedding + 1)


@pytest.mark.parametrize(
    ("key", "value"), [("residual_scale", 0.2), ("attention.causal", False), ("expert_count", 8), ("logit_scale", 2.0)]
)
def test_a_key_that_may_change_the_computation_is_refused(
    key: str, value: Any, twins: Callable[[str], Twins], tmp_path: Path
) -> None:
    file, _ = twins("gpt2")
    with pytest.raises(UnknownFamily, match=f"gpt2.{key} is {value}"):
        edited(path_of(file), tmp_path / "odd.gguf", {f"gpt2.{key}": value})


VARIANT_KEYS = {
    "granite": ("rope.scaling.finetuned", False),  # no rotary positions
    "glm4": ("rope.dimension_sections", [8, 12, 12, 0]),  # of images, with rows in another order
    "bert": ("attention.causal", True),
    "mpt": ("attention.max_alibi_bias", 16.0),
    "dots1": ("expert_gating_func", 1),  # softmax
    "glm4moe": ("expert_gating_func", 1),
    "minimax-m2": ("expert_gating_func", 1),
    "deepseek2": ("expert_gating_func", 1),  # DeepSeek-V2
    "modern-bert": ("attention.causal", True),
    "eurobert": ("attention.causal", True),
    "nomic-bert": ("attention.causal", True),
    "lfm2": ("attention.causal", False),
    "lfm2moe": ("expert_gating_func", 1),
    "exaone-moe": ("expert_gating_func", 1),
    "glm-dsa": ("expert_gating_func", 1),
    "granitehybrid": ("rope.scaling.finetuned", True),  # Bamba
    "llama4": ("attention.sliding_window", 0),  # all layers have positions
    "mistral4": ("rope.scaling.yarn_log_multiplier", 0.07),
}
"""Keys by which llama.cpp computes something else: architecture -> key, value."""


@pytest.mark.parametrize("name", VARIANT_KEYS)
def test_a_variant_is_refused(name: str, twins: Callable[[str], Twins], tmp_path: Path) -> None:
    key, value = VARIANT_KEYS[name]
    with pytest.raises(UnknownFamily, match=f"{name}.{key} is "):
        edited(path_of(twins(name)[0]), tmp_path / "odd.gguf", {f"{name}.{key}": value})


LISTS = {
    "jamba": ("attention.head_count_kv", [0, 2, 0], r"has 3 numbers for 4 layers"),
    "lfm2": ("attention.head_count_kv", [0, -1], r"is -1; it must be a positive whole number"),
    "nemotron_h": ("feed_forward_length", [0, 40, 44], r"is \[40, 44\]; it must be a positive whole number"),
    "gemma4": ("feed_forward_length", [40, 40, 80, 120], "40 for all layers, or twice that for those that share"),
    "gemma4-plain": ("attention.head_count_kv", [3, 1], "4 heads cannot share 3 key/value heads"),
}
"""Lists with a number for each layer that cannot be: checkpoint -> key, value, message."""


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_layers_that_cannot_be_are_refused(name: str, twins: Callable[[str], Twins], tmp_path: Path) -> None:
    key, value, message = LISTS[name]
    file, _ = twins(name)
    architecture = GgufSource(path_of(file)).metadata["general.architecture"]
    with pytest.raises(BadModel, match=message):
        edited(path_of(file), tmp_path / "odd.gguf", {f"{architecture}.{key}": value})


def test_rates_of_decay_above_zero_are_refused(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    model = edited(path_of(twins("qwen35")[0]), tmp_path / "odd.gguf", {}, **{"blk.0.ssm_a": np.ones(6, np.float32)})
    with pytest.raises(BadModel, match=r"blk\.0\.ssm_a has values above zero"):
        model.vector("inner_decay", 0)


def test_divisors_of_gemma4_are_those_of_layers_without_a_window(twins: Callable[[str], Twins]) -> None:
    frames = Frames(twins("gemma4")[0])
    assert bool((frames.frequencies(0) > 0).all())
    assert int((frames.frequencies(1) > 1e-9).sum()) == 3


def test_parameters_of_an_activation_come_from_the_header(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    file, _ = twins("apertus")
    assert GgufSource(path_of(file)).shape("blk.1.xielu.alpha_p") == (1,)
    with pytest.raises(BadModel, match=r"blk\.1\.xielu\.beta is missing"):
        edited(path_of(file), tmp_path / "odd.gguf", {"xielu.beta": [0.5]})


def test_granite_without_a_scale_has_the_usual_one(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    file, _ = twins("granite")
    plain = edited(path_of(file), tmp_path / "plain.gguf", {"granite.attention.scale": None})
    assert plain.dims.attention_scale == pytest.approx(file.dims.head_dim**-0.5)


def test_what_a_stablelm_says_of_its_blocks_is_not_believed(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    """The converter writes that blocks are parallel where a configuration is silent; llama.cpp goes by the norm."""
    file, true = twins("stablelm")
    keys = {"stablelm.use_parallel_residual": True}
    assert differences(edited(path_of(file), tmp_path / "silent.gguf", keys), true) == []
    assert not file.family.parallel and twins("stablelm-parallel")[0].family.parallel


def joined_qkv(model: Model) -> dict[str, np.ndarray | None]:
    """Return the queries, keys and values of a file, and their biases, joined to one tensor each."""
    source, joined = GgufSource(path_of(model)), dict[str, np.ndarray | None]()
    for layer in range(model.dims.layers):
        for kind in ("weight", "bias"):
            names = [f"blk.{layer}.attn_{role}.{kind}" for role in "qkv"]
            joined |= dict.fromkeys(names)
            joined[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate([source.rows(name) for name in names])
    return joined


def test_the_first_files_of_phi2_have_queries_keys_and_values_in_one(
    twins: Callable[[str], Twins], tmp_path: Path
) -> None:
    file, true = twins("phi2")
    assert differences(edited(path_of(file), tmp_path / "fused.gguf", {}, **joined_qkv(file)), true) == []


def test_files_of_chatglm_have_queries_keys_and_values_in_one(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    file, true = twins("chatglm")
    assert differences(edited(path_of(file), tmp_path / "fused.gguf", {}, **joined_qkv(file)), true) == []


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe", "olmoe"])
def test_experts_in_tensors_of_their_own_are_read_alike(
    name: str, twins: Callable[[str], Twins], tmp_path: Path
) -> None:
    """Converters before 2024 wrote a tensor for each expert, under the names by which stacked ones are read."""
    file, true = twins(name)
    assert "blk.0.ffn_up_exps.weight" in {tensor.name for tensor in gguf.GGUFReader(path_of(file)).tensors}
    assert differences(edited(path_of(file), tmp_path / "single.gguf", {}), true) == []


def test_the_first_files_of_qwen3next_have_the_inputs_of_mixers_in_one(
    twins: Callable[[str], Twins], tmp_path: Path, folder: Callable[..., Path]
) -> None:
    file, true = twins("qwen3next")
    fused = load_file(folder("qwen3next") / "model.safetensors")["model.layers.0.linear_attn.in_proj_qkvz.weight"]
    tensors = {"blk.0.attn_qkv.weight": None, "blk.0.attn_gate.weight": None, "blk.0.ssm_in.weight": fused.numpy()}
    assert differences(edited(path_of(file), tmp_path / "first.gguf", {}, **tensors), true) == []


@pytest.mark.parametrize("name", ["qwen35moe", "qwen3next"])
def test_gates_in_one_tensor_with_what_they_multiply_are_read_alike(
    name: str, twins: Callable[[str], Twins], tmp_path: Path
) -> None:
    """The converter joins them if asked to (--fuse-gate-up-exps)."""
    file, true = twins(name)
    source, names = GgufSource(path_of(file)), "blk.{}.ffn_{}.{}.weight"
    apart = {names.format(n, what, i): None for n in (0, 1) for what in ("gate", "up") for i in range(5)}
    joined = {
        f"blk.{n}.ffn_gate_up_exps.weight": np.stack(
            [np.concatenate([source.rows(names.format(n, what, i)) for what in ("gate", "up")]) for i in range(5)]
        )
        for n in (0, 1)
    }
    assert differences(edited(path_of(file), tmp_path / "joined.gguf", {}, **apart, **joined), true) == []


def test_layers_that_predict_further_tokens_are_not_read(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    """Published files of GLM-4.5 count one such layer among the others and hold its tensors."""
    file, true = twins("glm4moe")
    source = GgufSource(path_of(file))
    further = {
        name.replace("blk.1.", "blk.2."): source.rows(name) for name in source.names() if name.startswith("blk.1.")
    }
    further["blk.2.nextn.enorm.weight"] = np.ones(24, np.float32)
    assert (file.dims.layers, source.metadata["glm4moe.block_count"]) == (2, 3)
    assert differences(edited(path_of(file), tmp_path / "longer.gguf", {}, **further), true) == []
    unsaid = {"glm4moe.nextn_predict_layers": None, "glm4moe.block_count": 2}
    with pytest.raises(UnknownFamily, match=r"blk\.2\."):
        edited(path_of(file), tmp_path / "unsaid.gguf", unsaid, **further)


def test_a_row_and_a_vector_are_alike_in_ggml(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    """Converters write the only row of a shared router, and the corrections of experts, with one dimension or two."""
    file, true = twins("qwen2moe")
    name = "blk.{}.ffn_gate_inp_shexp.weight"
    rows = {name.format(n): GgufSource(path_of(file)).rows(name.format(n))[0] for n in (0, 1)}
    assert differences(edited(path_of(file), tmp_path / "row.gguf", {}, **rows), true) == []
    file, true = twins("ernie4_5-moe")
    name = "blk.1.exp_probs_b.bias"
    rows = {name: GgufSource(path_of(file)).rows(name)[None]}
    assert differences(edited(path_of(file), tmp_path / "vector.gguf", {}, **rows), true) == []


def test_experts_in_blocks_of_mxfp4_are_read(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    """The types of published files of gpt-oss; a tiny one is too narrow for blocks of 32, so this is a tensor alone."""
    values = np.random.default_rng(0).normal(size=(3, 4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.MXFP4)
    writer = gguf.GGUFWriter(tmp_path / "packed.gguf", "gpt-oss")
    writer.add_tensor("blk.0.ffn_up_exps.weight", packed, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source, true = GgufSource(tmp_path / "packed.gguf"), gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.MXFP4)
    for expert in range(3):
        assert np.array_equal(source.rows(f"blk.0.ffn_up.{expert}.weight"), true[expert])


def test_factors_of_yarn_that_are_not_known_are_refused(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    file, _ = twins("gpt-oss")
    model = edited(path_of(file), tmp_path / "yarn.gguf", {"gpt-oss.rope.scaling.yarn_ext_factor": 0.5})
    frames = Frames(model)
    assert frames.usual_offset("qk", "token") == 0
    with pytest.raises(BadOption, match="yarn with factors of its own"):
        frames.head_map(1, 0, "qk", offset=3)


def test_another_number_of_experts_is_refused(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    path = path_of(twins("mixtral")[0])
    with pytest.raises(BadModel, match=r"blk\.0\.ffn_gate_inp\.weight has shape \(5, 24\); .* \(4, 24\)"):
        edited(path, tmp_path / "four.gguf", {"llama.expert_count": 4})
    with pytest.raises(BadModel, match=r"ffn_down\.4\.weight"):
        router = {f"blk.{layer}.ffn_gate_inp.weight": np.ones((4, 24), np.float32) for layer in (0, 1)}
        edited(path, tmp_path / "fewer.gguf", {"llama.expert_count": 4}, **router)


def test_keys_that_change_nothing_are_accepted(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    file, true = twins("gpt2")
    keys = {"gpt2.attention.causal": True, "gpt2.expert_count": 0, "quantize.imatrix.file": "a", "other.scale": 3.0}
    assert differences(edited(path_of(file), tmp_path / "more.gguf", keys), true) == []


def test_gemma3_of_older_converters_has_no_base_for_its_local_layers(
    twins: Callable[[str], Twins], tmp_path: Path
) -> None:
    """Such a file gets the base that every Gemma 3 has."""
    file, _ = twins("gemma3")
    older = edited(path_of(file), tmp_path / "older.gguf", {"gemma3.rope.freq_base_swa": None})
    assert older.dims.local_rope == replace(file.dims.local_rope, theta=10000.0)


@pytest.mark.parametrize(
    ("pattern", "local"), [(2, (0, 2, 4, 6)), ([True, False, False, True, True, False, False], (0, 3, 4))]
)
def test_a_written_pattern_of_windows_is_read(
    pattern: Any, local: tuple[int, ...], twins: Callable[[str], Twins], tmp_path: Path
) -> None:
    file, _ = twins("gemma3")
    keys = {"gemma3.attention.sliding_window_pattern": pattern}
    assert edited(path_of(file), tmp_path / "pattern.gguf", keys).dims.local == local


def test_without_a_window_there_is_none(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    """This tells Phi-4 from Phi-3, and a Gemma 3 without windows has one RoPE."""
    assert twins("phi3")[0].dims.window is None
    windowed = edited(path_of(twins("phi3")[0]), tmp_path / "window.gguf", {"phi3.attention.sliding_window": 3})
    assert (windowed.dims.window, windowed.dims.local) == (3, (0, 1))
    keys = {"gemma3.attention.sliding_window": None}
    bare = edited(path_of(twins("gemma3")[0]), tmp_path / "bare.gguf", keys)
    assert (bare.dims.window, bare.dims.local, bare.dims.local_rope) == (None, (), None)


def test_the_length_of_a_text_decides_which_divisors_apply(twins: Callable[[str], Twins]) -> None:
    models = twins("phi3")
    for reach in (31, 32):
        ours, true = (Frames(model).frequencies(0, reach) for model in models)
        assert not differ(ours, true)
        assert differ(ours, Frames(models[0]).frequencies(0, 63 - reach))


LONGROPE = {
    "without one set": ({}, {"rope_factors_short.weight": None}, "longrope without two sets of divisors"),
    "without both": (
        {"phi3.rope.scaling.type": "longrope"},
        {"rope_factors_short.weight": None, "rope_factors_long.weight": None},
        "longrope without two sets of divisors",
    ),
    "with a factor": ({"phi3.rope.scaling.factor": 2.0}, {}, "longrope with linear, factor 2.0"),
    "with YaRN": ({"phi3.rope.scaling.type": "yarn"}, {}, "longrope with yarn with factors of its own, factor 1.0"),
}


@pytest.mark.parametrize("case", LONGROPE)
def test_what_is_not_known_of_longrope_is_refused(case: str, twins: Callable[[str], Twins], tmp_path: Path) -> None:
    keys, more, message = LONGROPE[case]
    with pytest.raises(UnknownFamily, match=f"{message}.*may lengthen the 4 numbers of a head"):
        edited(path_of(twins("phi3")[0]), tmp_path / "odd.gguf", keys, **more)


def test_divisors_of_another_number_are_refused(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"rope_factors_long.weight is 3 numbers; it must be 2 numbers, one for each"):
        longer = np.ones(3, np.float32)
        edited(path_of(twins("phi3")[0]), tmp_path / "odd.gguf", {}, **{"rope_factors_long.weight": longer})


def test_longrope_of_a_file_without_its_length_or_factor(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    """llama.cpp takes the longest text for the original one, and lengthens nothing."""
    keys = {"phi3.rope.scaling.original_context_length": None, "phi3.rope.scaling.attn_factor": None}
    rope = edited(path_of(twins("phi3")[0]), tmp_path / "bare.gguf", keys).dims.rope
    assert rope is not None
    assert (rope.window, rope.lengthening) == (512.0, 1.0)


def test_llama_cpp_takes_a_factor_without_a_type_for_linear_and_lengthens_by_any_rule(
    twins: Callable[[str], Twins], tmp_path: Path
) -> None:
    keys = {"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.attn_factor": 1.5}
    file = edited(path_of(twins("llama")[0]), tmp_path / "linear.gguf", keys)
    plain = twins("llama")[0]
    assert not differ(4 * Frames(file).frequencies(), Frames(plain).frequencies())
    assert file.dims.scale_at(0) == pytest.approx(2.25 * plain.dims.scale_at(0))


@pytest.mark.parametrize(("name", "layers", "scalar"), [("gemma2", 46, 144), ("gemma3", 62, 168)])
def test_the_largest_gemmas_have_their_own_scale(
    name: str, layers: int, scalar: int, folder: Callable[..., Path], twins: Callable[[str], Twins]
) -> None:
    """llama.cpp knows the 27B models by their number of layers, since no key says how their queries are scaled."""
    path = folder(name, "-27b", num_hidden_layers=layers, query_pre_attn_scalar=scalar)
    file, true = open_model(str(convert(path, path / "model.gguf"))), open_model(str(path))
    assert file.dims.attention_scale == pytest.approx(true.dims.attention_scale)
    assert twins(name)[0].dims.attention_scale == pytest.approx(8**-0.5)


# Every tensor that llama.cpp has for these models


def in_blocks(*stems: str) -> set[str]:
    return {f"blk.{{bid}}.{stem}" for stem in stems}


FURTHER = (
    *("nextn.eh_proj", "nextn.embed_tokens", "nextn.enorm", "nextn.hnorm"),
    *("nextn.shared_head_head", "nextn.shared_head_norm"),
)
"""The tensors of layers that predict further tokens."""

OTHER_LAYOUTS = {
    "phi3": in_blocks("attn_q", "attn_k", "attn_v"),  # no converter writes them for it
    "phi2": in_blocks("ffn_norm"),
    "modern-bert": {"cls", "cls.output", "cls.norm"},  # of classifiers and rerankers
    "bert": {"output_norm", "cls", "cls.output"} | in_blocks("attn_qkv"),  # of rerankers; of no converter
    "command-r": in_blocks("attn_q_norm", "attn_k_norm"),  # Command R+
    "stablelm": in_blocks("attn_q_norm", "attn_k_norm"),  # StableLM 2 12B
    "mpt": {"position_embd"} | in_blocks("ffn", "attn_q_norm", "attn_k_norm"),
    "glm4": in_blocks("attn_qkv", *FURTHER),
    "glm4moe": in_blocks(*FURTHER),
    "nemotron_h_moe": in_blocks(
        "ffn_down", "ffn_up", "ffn_latent_down", "ffn_latent_up"
    ),  # of other layers; Nemotron 3
    "mistral4": in_blocks("attn_q", "attn_kv_b", "exp_probs_b", "ffn_gate_exps", "ffn_up_exps"),
    "mistral3": in_blocks("ffn_gate_inp", "ffn_gate_exps", "ffn_down_exps", "ffn_up_exps"),  # of no published model
    "apertus": in_blocks("ffn_gate"),
    "chatglm": {"rope_freqs"},
    "exaone-moe": in_blocks(*FURTHER),
    "nomic-bert": {"position_embd", "output_norm"},  # of other encoders
    "glm-dsa": in_blocks("attn_q", "attn_kv_b", *FURTHER),
    "lfm2": {"dense_2"},  # of LFM2-ColBERT
    "phimoe": in_blocks("attn_qkv"),
    "deepseek2": in_blocks("attn_kv_b", "attn_k", "attn_v"),  # of older converters; of none
}
"""Tensors that are refused by name: the record of a file with them is another one."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_of_the_format_is_known(name: str) -> None:
    arch = next(arch for arch in KEYS if MODEL_ARCH_NAMES[arch] == name)
    layouts = [layout for family in FAMILIES if (layout := family.layout("gguf"))]
    layouts = [layout for layout in layouts if layout.config["layers"] == (f"{name}.block_count",)]
    stored = [stored for layout in layouts for stored in layout.tensors.values()]
    names = {tensor.name.replace("{layer}", "{bid}").replace(".{expert}", "_exps") for tensor in stored}
    read = {re.sub(r"\.(weight|bias(\[.*)?)$", "", name) for name in names}
    for tensor in MODEL_TENSORS[arch]:
        stem = TENSOR_NAMES[tensor]
        example = stem.format(bid=0) + ".weight"
        unread = any(
            example == layout.head or any(re.fullmatch(pattern, example) for pattern in layout.unread)
            for layout in layouts
        )
        refused = stem in OTHER_LAYOUTS.get(name, set())
        known = {stem, stem.format(bid=0)} & read != set()
        assert refused != (known or unread), example


def test_files_of_another_layout_are_refused(twins: Callable[[str], Twins], tmp_path: Path) -> None:
    for name, stems in OTHER_LAYOUTS.items():
        for stem in stems:
            tensor = stem.format(bid=0) + ".weight"
            with pytest.raises(BadModel, match=re.escape(tensor)):
                edited(path_of(twins(name)[0]), tmp_path / "other.gguf", {}, **{tensor: np.ones((4, 24), np.float32)})
