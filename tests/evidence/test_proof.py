"""A model is proven on its own files, however they are stored; what is not proven is named, and the outcome kept."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adapters
import tiny
import zeropass as zp
from commands import Run
from gguf_files import convert, write_gguf
from multimodal import tiny_multimodal
from quantised_files import quantised
from tiny_classifiers import classifier
from zeropass.checkpoints import kept_proofs
from zeropass.errors import CannotRun
from zeropass.evidence import proof
from zeropass.evidence.judge import open_judge
from zeropass.model.loading import quiet
from zoo import tiny_model

KNOWN_PROOF = kept_proofs.known_proof

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def saved(name: str, folder: Path) -> Path:
    with quiet():
        return tiny.save(tiny_model(name), folder / name)


def adapted(folder: Path) -> zp.Model:
    return adapters.made("llama", folder, target_modules=["q_proj", "down_proj"])


def in_memory(folder: Path) -> zp.Model:
    hf = tiny_model("mixtral")
    return zp.open_model(hf, tiny.save(hf, folder / "mixtral"))


def halved(folder: Path) -> Path:
    path = saved("llama", folder) / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return path.parent


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dense": (lambda folder: saved("llama", folder), ""),
    "in 16 bits": (halved, ""),
    "experts": (lambda folder: saved("qwen2_moe", folder), ""),
    "hybrid": (lambda folder: saved("qwen3_next", folder), ""),
    "encoder": (lambda folder: saved("roberta", folder), "the head of an encoder"),
    "encoder of two": (lambda folder: saved("t5-encoder", folder), "the head of an encoder"),
    "decoder of two": (lambda folder: f"{saved('bart-decoder', folder)}#decoder", ""),
    "inside a multimodal model": (lambda folder: tiny.save(tiny_multimodal("llava"), folder / "llava"), ""),
    "gguf": (lambda folder: convert(saved("qwen2", folder), folder / "qwen2.gguf"), ""),
    "quantised": (lambda folder: quantised(saved("llama", folder), folder / "q", "gptq")[0], "zeropass decodes"),
    "adapter": (adapted, "by PEFT"),
    "in memory": (in_memory, "given in memory"),
    "classifier": (lambda folder: classifier(Path("models/first"), folder / "c"), "predicts no token"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_proven_however_it_is_stored(kind: str, tmp_path: Path) -> None:
    make, limit = KINDS[kind]
    result = zp.prove(make(tmp_path), keep=False, tokens=64)
    assert result.proven, result.words
    assert limit in "; ".join(result.limits)


def test_a_model_in_16_bits_stays_so_but_for_the_block_that_runs(tmp_path: Path) -> None:
    judge = open_judge(zp.open_model(halved(tmp_path)))
    layers = judge.hf.model.layers
    seen: list[list[torch.dtype]] = []
    layers[1].mlp.register_forward_hook(lambda *_: seen.append([layer.mlp.up_proj.weight.dtype for layer in layers]))
    judge.run(torch.arange(5)[None])
    assert seen == [[torch.bfloat16, torch.float32]]
    assert {parameter.dtype for parameter in layers.parameters()} == {torch.bfloat16}


# What is not proven


def test_a_parameter_that_cannot_be_seen_is_named(tmp_path: Path) -> None:
    folder = saved("mixtral", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"].zero_()
    tensors["model.layers.1.input_layernorm.weight"].fill_(1)
    for name in (0, 1):
        tensors[f"model.layers.{name}.block_sparse_moe.gate.weight"][3] = 0
    tensors["model.layers.1.block_sparse_moe.gate.weight"][:3] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    result = zp.prove(folder, keep=False, tokens=32)
    assert result.proven
    words = {unproven.words for unproven in result.unproven}
    assert "o of layer 0: it is 0" in words
    assert "attn_norm of layer 1: it is a gain of 1" in words
    assert any(word.startswith("expert ") and word.endswith("no token went through it") for word in words)
    # what is read only where nothing is written back cannot be seen either
    assert {f"{role} of layer 0: no change of it is seen in these texts" for role in "qkv"} <= words


def test_what_the_pass_does_not_read_is_named(tmp_path: Path) -> None:
    unproven = {each.words for each in zp.prove(saved("bert", tmp_path), keep=False, tokens=32).unproven}
    assert {
        "mlm: the pass does not read it",
        "k_bias of layers 0 to 1: no change of it is seen in these texts",
    } <= unproven


# What is kept of it


@pytest.fixture
def kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the kept proofs, which are looked up in this test."""
    monkeypatch.setattr(kept_proofs, "known_proof", KNOWN_PROOF)
    return cache / "proofs"


def test_info_says_what_was_proven(kept: Path, tmp_path: Path, run: Run) -> None:
    folder = saved("llama", tmp_path)
    unproven = {"proven": None, "words": "not proven (zeropass prove MODEL)"}
    assert run.json("info", folder)["proof"] == unproven
    record = run.json("prove", folder, "--tokens", "32")
    words = "proven against transformers 5.24.0: embedding, 2 blocks, logits (largest error"
    assert record["words"].startswith(words)
    assert record["proven"]
    assert len(list(kept.iterdir())) == 1
    assert run.json("info", folder)["proof"] == {"proven": True, "words": record["words"]}
    assert "proof           proven against transformers" in run("info", folder)[1]
    atlas = tmp_path / "atlas"
    zp.build(folder, atlas, zp.Options(k=5, pairs=5))
    assert run.json("info", atlas)["proof"]["words"] == record["words"]
    model = zp.open_model(folder)
    changed = replace(model, dims=replace(model.dims, eps=0.5))
    assert changed.info()["proof"] == unproven  # by another record nothing is proven
    assert open_in(tmp_path / "other").info()["proof"] == unproven
    for path in kept.iterdir():
        path.write_text("{")
    assert run.json("info", folder)["proof"] == unproven


def open_in(folder: Path) -> zp.Model:
    """Return a model of the same size with other weights."""
    path = saved("llama", folder) / "model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return zp.open_model(path.parent)


def test_the_halves_of_a_file_are_proven_apart(kept: Path, tmp_path: Path) -> None:
    folder = saved("bart-decoder", tmp_path)
    zp.prove(f"{folder}#decoder", tokens=32)
    assert zp.open_model(f"{folder}#decoder").info()["proof"]["proven"]
    assert zp.open_model(folder).info()["proof"]["proven"] is None
    zp.build(folder, tmp_path / "atlas", zp.Options(k=5, pairs=5))
    assert zp.open_atlas(tmp_path / "atlas").info()["proof"]["proven"] is None


def test_a_failed_proof_is_exit_code_1_and_said_loudly(
    kept: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("llama", tmp_path)
    judge = open_judge(zp.open_model(folder))
    judge.hf.model.layers[1].self_attn.o_proj.bias.data += 0.01
    monkeypatch.setattr(proof, "open_judge", lambda _model: judge)
    code, out, err = run("prove", folder, "--tokens", "32")
    assert (code, err) == (1, "")
    loud = "DIFFERS from transformers 5.24.0: block 1 is the first that does, at its attn.out (error "
    assert out.startswith(loud)
    assert "DIFFERS at attn.out" in out
    assert run.json("info", folder)["proof"]["words"].startswith(loud)
    assert not run.json("info", folder)["proof"]["proven"]


def test_what_transformers_cannot_run_is_refused(tmp_path: Path, run: Run) -> None:
    code, out, err = run("prove", saved("whisper", tmp_path))
    assert (code, out) == (2, "")
    assert "an encoder of something other than text" in err
    code, out, err = run("prove", tiny.edit(saved("llama", tmp_path), {"hidden_act": "swish", "rope_scaling": 3}))
    assert (code, out) == (2, "")


def test_tensors_that_transformers_shapes_otherwise_are_named(tmp_path: Path) -> None:
    gguf = write_gguf(tiny.save(tiny.make("llama-rope3"), tmp_path / "a"), tmp_path / "a.gguf")
    with pytest.raises(CannotRun, match=r"it takes .*k_proj.weight to be \(12, 24\), and the file has \(16, 24\)"):
        zp.prove(gguf)


def test_the_extra_is_needed(tmp_path: Path) -> None:
    code = "import sys; sys.modules['transformers'] = None; import zeropass as zp; zp.prove"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("zeropass.errors.MissingExtra: This needs transformers")


def test_real_weights_are_proven(smollm2_path: Path) -> None:
    result = zp.prove(str(smollm2_path), keep=False)
    assert result.proven
    assert result.unproven == ()
    assert len(result) == 32
    assert max(part.error for part in result) < 1e-5


@pytest.mark.parametrize(("name", "norm"), [("bitnet", "value_in_norm"), ("gemma4-moe", "ff_routed_norm")])
def test_gains_that_are_folded_into_rows_are_read_by_the_pass(name: str, norm: str, tmp_path: Path) -> None:
    proof = zp.prove(saved(name, tmp_path), tokens=64, keep=False)
    assert proof.proven
    assert norm not in {unproven.parameter for unproven in proof.unproven}
    assert all(unproven.reason == "no token went through it" for unproven in proof.unproven)
