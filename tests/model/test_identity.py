"""The same weights in another file: their values share one hash, which finds the verdicts on them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import small
import tiny
import zeropass as zp
from commands import Run
from gguf_files import convert
from kept_verdicts import verdict, verdicts
from zeropass.model.identity import values_sha256
from zeropass.records.verdicts import SHIPPED, keep, known_verdicts, read_verdicts
from zoo import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gemma3", "phi3"])
def test_a_gguf_file_and_its_folder_hold_the_same_values(twins: Any, name: str) -> None:
    file, checkpoint = twins(name)
    assert file.fingerprint != checkpoint.fingerprint
    assert values_sha256(file) == values_sha256(checkpoint) is not None


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("llama"))


@given(
    st.sampled_from(("embed_tokens", "lm_head", "self_attn", "mlp", "layernorm", "model.norm")), st.integers(0, 2**31)
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_change_of_any_tensor_changes_the_hash(llama: Path, tmp_path_factory: Any, part: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(llama / "model.safetensors")
    names = sorted(name for name in tensors if part in name)
    name = names[int(torch.randint(len(names), (), generator=generator))]
    shape = tensors[name].shape
    rank_one = [torch.randn(size, generator=generator) for size in shape]
    change = rank_one[0] if len(shape) == 1 else rank_one[0][:, None] * rank_one[1]
    other = tmp_path_factory.mktemp("other")
    for file in ("config.json", "tokenizer.json"):
        (other / file).write_bytes((llama / file).read_bytes())
    save_file(tensors | {name: tensors[name] + 1e-3 * change}, other / "model.safetensors")
    assert values_sha256(zp.open_model(str(other))) != values_sha256(zp.open_model(str(llama)))


def test_values_that_are_not_finite_have_no_hash(tmp_path: Path) -> None:
    path = small.llama(tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.gate_proj.weight"][:] = float("nan")
    save_file(tensors, path / "model.safetensors")
    assert values_sha256(zp.open_model(str(path))) is None


def test_lists_of_the_same_values_find_their_verdicts(
    tmp_path: Path,
    cache: Path,
    run: Run,
) -> None:
    checkpoint = tiny.save(tiny_model("llama"), tmp_path / "folder")
    file = convert(checkpoint, tmp_path / "model.gguf")
    model = zp.open_model(str(file))
    kept = verdicts(verdict("gate", "token", 1), sha256=model.fingerprint, size=model.size, text="a novel")
    kept.model.update(name="the file", layers=model.dims.layers, values_sha256=values_sha256(model))
    zp.build(zp.open_model(str(checkpoint)), tmp_path / "before", zp.Options(k=5, pairs=5))
    assert zp.open_atlas(tmp_path / "before").verdicts is None
    keep(kept)
    (by_hash,) = [r.evidence for r in zp.load(str(file)).explain("L1.ff.3.gate", frame="token")]
    assert by_hash is not None
    assert "another file" not in by_hash.basis
    for records in (
        zp.load(str(checkpoint)).explain("L1.ff.3.gate", frame="token"),
        zp.open_atlas(tmp_path / "before").explain("L1.ff.3.gate", frame="token"),
    ):
        (evidence,) = [r.evidence for r in records]
        assert evidence is not None
        assert (evidence.value, evidence.above) == (by_hash.value, by_hash.above)
        assert evidence.basis.endswith("in another file of the same values, the file")
        assert "in another file of the same values, the file." in records.note
    shown = run("show", tmp_path / "before", "L1.ff.3")[1]
    assert "in another file of the same values, the file." in " ".join(shown.split())


def test_values_are_hashed_only_where_known_verdicts_may_be_theirs(cache: Path) -> None:
    def never() -> str:
        raise AssertionError("the values were read")

    kept = verdicts(verdict("gate", "token", 1))
    keep(kept)
    assert known_verdicts(8, never, 3, never) is None  # no hash of values is known
    kept.model.update(layers=3, values_sha256="ef" * 32)
    keep(kept)
    assert known_verdicts(8, never, 4, never) is None
    assert known_verdicts(8, never) is None
    assert known_verdicts(8, never, 3, lambda: None) is None
    assert known_verdicts(8, never, 3, lambda: "00" * 32) is None
    known = known_verdicts(8, never, 3, lambda: "ef" * 32)
    assert known is not None
    assert (known.kinds, known.by_values) == (kept.kinds, True)


def test_an_adapter_on_measured_weights_has_no_verdicts(tmp_path: Path, cache: Path) -> None:
    base = zp.open_model("models/first")
    kept = verdicts(verdict("gate", "token", 1), sha256=base.fingerprint, size=base.size)
    kept.model.update(layers=base.dims.layers, values_sha256=values_sha256(base))
    keep(kept)
    tuned = zp.Lens(zp.adapt(base, Path("models/tunes/reviews")))
    assert zp.Lens(base).explain("L1.ff.3.gate", frame="token")[0].evidence is not None
    records = tuned.explain("L1.ff.3.gate", frame="token")
    assert records[0].evidence is None
    assert records.note.startswith("No measurement of these weights is known. Coherence:")


def test_shipped_verdicts_name_the_hash_of_their_values() -> None:
    for path in SHIPPED.glob("*.json"):
        assert len(str(read_verdicts(path).model["values_sha256"])) == 64


def test_the_demo_model_as_safetensors_keeps_its_verdicts(smollm2_path: Path, tmp_path: Path) -> None:
    """Transformers reads the values of the GGUF file, and safetensors writes them."""
    hf = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32, local_files_only=True
    )
    values = {name: tensor for name, tensor in hf.state_dict().items() if name != "lm_head.weight"}  # it is tied
    save_file(values, tmp_path / "model.safetensors")
    config = {key: value for key, value in hf.config.to_dict().items() if key != "quantization_config"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = zp.open_model(str(smollm2_path))
    (tmp_path / "tokenizer.json").write_text(model.vocab.to_tokenizer_json(), encoding="utf-8")
    records = zp.load(str(tmp_path)).explain("L29.ff.864.gate", frame="output")
    assert records[0].evidence.words == "gate lists of layer 29: correlation .16 (null -.01)"
    assert "in another file of the same values, smollm2-135m" in records.note
    assert json.dumps(records.to_json()).count("another file of the same values") == 1
