"""Dictionaries in files: all formats give the vectors that were written, and what is not known is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import dictionaries
from zeropass.checkpoints.dictionary_files import read_dictionaries
from zeropass.checkpoints.npz import NpzSource
from zeropass.errors import BadDictionary, BadModel, BadWeights, ZeropassError

N, D = 40, 32
ENCODERS, DECODERS = torch.randn(2, N, D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("write", "reads", "writes"),
    [
        (lambda path: dictionaries.saelens(path, ENCODERS, DECODERS), "hook_resid_pre", "hook_resid_pre"),
        (lambda path: dictionaries.old_saelens(path, ENCODERS, DECODERS), "hook_resid_pre", "hook_resid_pre"),
        (
            lambda path: dictionaries.saelens(
                path,
                ENCODERS,
                DECODERS,
                "blocks.1.ln2.hook_normalized",
                architecture="jumprelu_transcoder",
                metadata={"hook_name_out": "blocks.1.hook_mlp_out"},
            ),
            "ln2.hook_normalized",
            "hook_mlp_out",
        ),
        (lambda path: dictionaries.sparsify(path / "layers.1", ENCODERS, DECODERS), "", ""),
        (lambda path: dictionaries.sparsify(path / "layers.1.mlp", ENCODERS, DECODERS), "mlp", "mlp"),
        (
            lambda path: dictionaries.sparsify(path / "h.1.mlp", ENCODERS, DECODERS, transcode=True),
            "mlp.in",
            "mlp",
        ),
        (
            lambda path: dictionaries.gemma_scope(path / "gemma-scope-2b-pt-mlp" / "layer_1" / "a", ENCODERS, DECODERS),
            "hook_mlp_out",
            "hook_mlp_out",
        ),
        (
            lambda path: dictionaries.gemma_scope(path / "transcoder_all" / "layer_1_w", ENCODERS, DECODERS),
            "ln2.hook_normalized",
            "hook_mlp_out",
        ),
        (
            lambda path: dictionaries.transcoders(path, [(DECODERS, DECODERS.T), (ENCODERS, DECODERS)]),
            "mlp.hook_in",
            "mlp.hook_out",
        ),
        (
            lambda path: dictionaries.transcoders(
                path,
                [(ENCODERS, DECODERS.T)] * 2,
                model_kind="transcoder_set",
                transcoders=[{"id": "b", "layer": 1, "filepath": "hf://owner/name/layer_1.safetensors?revision=x"}],
            ),
            "mlp.hook_in",
            "mlp.hook_out",
        ),
    ],
)
def test_every_format_gives_its_vectors(write: Callable[[Path], Path], reads: str, writes: str, tmp_path: Path) -> None:
    file = read_dictionaries(write(tmp_path))[1]
    (decoders,), (hook,) = file.decoders, file.writes
    assert (file.reads.name, hook.name, file.reads.layer) == (reads, writes, 1)
    for vectors, expected in ((file.encoder, ENCODERS), (decoders, DECODERS)):
        assert (vectors.count, vectors.width) == (N, D)
        assert np.array_equal(vectors.rows(), expected)
        assert np.array_equal(vectors.rows(3, 7), expected[3:7])


def test_a_cross_layer_transcoder_has_decoders_for_every_later_layer(tmp_path: Path) -> None:
    later = torch.randn(N, 2, D)
    files = read_dictionaries(dictionaries.cross_layer(tmp_path, [(ENCODERS, later), (DECODERS, later[:, :1])]))
    assert [[str(hook) for hook in file.writes] for file in files.values()] == [
        ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"],
        ["blocks.1.hook_mlp_out"],
    ]
    assert np.array_equal(files[0].encoder.rows(), ENCODERS)
    for part, decoders in enumerate(files[0].decoders):
        assert (decoders.count, decoders.width) == (N, D)
        assert np.array_equal(decoders.rows(2, 5), later[2:5, part])
    (tmp_path / "W_dec_1.safetensors").unlink()
    with pytest.raises(BadModel, match=r"W_dec_1\.safetensors"):
        read_dictionaries(tmp_path)
    save_file({"W_dec_1": torch.ones(N, D)}, tmp_path / "W_dec_1.safetensors")
    with pytest.raises(BadDictionary, match="encoders and decoders of layer 1 have the shapes"):
        read_dictionaries(tmp_path)
    save_file({"W_mix_1": torch.ones(N, D)}, tmp_path / "W_dec_1.safetensors")
    with pytest.raises(BadDictionary, match="not known what the tensor 'W_mix_1' does"):
        read_dictionaries(tmp_path)


def test_a_folder_of_several_has_one_for_each_layer(tmp_path: Path) -> None:
    for layer in (2, 10):
        dictionaries.saelens(tmp_path / f"l{layer}", ENCODERS, DECODERS, f"blocks.{layer}.hook_resid_post")
    (tmp_path / "README.md").write_text("Some words.")
    (tmp_path / "empty").mkdir()
    assert [*read_dictionaries(tmp_path)] == [2, 10]
    dictionaries.saelens(tmp_path / "again", ENCODERS, DECODERS, "blocks.10.hook_mlp_out")
    with pytest.raises(BadDictionary, match=r"two dictionaries of layer 10.*Name the folder of one"):
        read_dictionaries(tmp_path)


def test_a_user_says_where_a_dictionary_reads_that_does_not_say_it(tmp_path: Path) -> None:
    folder = dictionaries.gemma_scope(tmp_path / "mine", ENCODERS, DECODERS)
    with pytest.raises(BadDictionary, match="does not say where it reads"):
        read_dictionaries(folder)
    assert str(read_dictionaries(folder, "blocks.3.hook_resid_post")[3].writes[0]) == "blocks.3.hook_resid_post"
    file = read_dictionaries(folder, "blocks.3.ln2.hook_normalized>blocks.3.hook_mlp_out")[3]
    assert (file.reads.name, file.writes[0].name) == ("ln2.hook_normalized", "hook_mlp_out")


@pytest.mark.parametrize(
    ("write", "stated"),
    [
        (lambda path: dictionaries.saelens(path, ENCODERS, DECODERS), "blocks.1.hook_resid_pre"),
        (lambda path: dictionaries.sparsify(path / "layers.1.mlp", ENCODERS, DECODERS), "layers.1.mlp"),
        (
            lambda path: dictionaries.gemma_scope(path / "gemma-scope-2b-pt-res" / "layer_1", ENCODERS, DECODERS),
            "blocks.1.hook_resid_post",
        ),
        (lambda path: dictionaries.transcoders(path, [(ENCODERS, DECODERS)]), None),
    ],
)
def test_a_user_cannot_contradict_what_a_dictionary_says(
    write: Callable[[Path], Path], stated: str | None, tmp_path: Path
) -> None:
    folder = write(tmp_path)
    with pytest.raises(BadDictionary, match="leave out --hook" if stated is None else "contradicts"):
        read_dictionaries(folder, "blocks.1.hook_resid_mid")
    if stated:
        assert str(read_dictionaries(folder, stated)[1].writes[0]) == stated


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "temporal"}, "architecture is 'temporal'; what is read is standard, gated"),
        ({"normalize_activations": "constant_scalar_rescale"}, "normalize_activations is 'constant_scalar_rescale'"),
        ({"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'"),
        ({"metadata": {"hook_head_index": 3}}, "hook_head_index is '3'"),
        ({"metadata": {"hook_name": "blocks.x.mlp"}}, "'blocks.x.mlp' is no place that is known"),
        ({"metadata": {"hook_name": None}}, "'None' is no place"),
        ({"metadata": {"hook_name": "blocks.\x1b[31m1.x"}}, "no place that is known"),
        ({"architecture": "transcoder"}, "'' is no place that is known"),
    ],
)
def test_settings_that_are_not_known_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = dictionaries.saelens(tmp_path / "sae", ENCODERS, DECODERS, **settings)
    with pytest.raises(BadDictionary) as caught:
        read_dictionaries(folder)
    assert words in str(caught.value)
    assert "\x1b" not in str(caught.value)


def _with_tensors(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """Change tensors of a dictionary of SAELens; None leaves one out."""
    dictionaries.saelens(folder, ENCODERS, DECODERS)
    path = folder / "sae_weights.safetensors"
    kept = load_file(path) | tensors
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, path)
    return folder


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"W_rotation": torch.ones(2)}, "not known what the tensor 'W_rotation' does"),
        ({"W_dec": None}, "has a tensor 'W_dec'; this file has none"),
        ({"W_dec": torch.ones(N, 2, D)}, "are matrices; these have the shapes"),
        ({"W_dec": torch.ones(N - 1, D)}, f"has {N} encoders and {N - 1} decoders"),
        ({"W_enc": torch.ones(D, 0), "W_dec": torch.ones(0, D)}, "are matrices"),
    ],
)
def test_tensors_that_do_not_belong_there_are_refused(
    tensors: dict[str, torch.Tensor | None], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadDictionary) as caught:
        read_dictionaries(_with_tensors(tmp_path / "sae", **tensors))
    assert words in str(caught.value)


def test_values_are_checked_when_they_are_read(tmp_path: Path) -> None:
    file = read_dictionaries(_with_tensors(tmp_path / "sae", W_dec=torch.full((N, D), float("nan"))))[1]
    with pytest.raises(BadWeights, match=r"W_dec.*NaN"):
        file.decoders[0].rows()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_kind": "crosscoder"}, "crosscoder' is not read"),
        ({"scale": 3}, "not known what 'scale' means"),
        ({"feature_input_hook": "hook_x/../y"}, "no place that is known"),
        ({"transcoders": [{"layer": "0", "filepath": "x"}]}, "should be a list of layers"),
        ({"transcoders": [{"layer": 0, "filepath": "../../layer_7.safetensors"}]}, "lacks layer_7.safetensors"),
    ],
)
def test_sets_that_are_not_known_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadDictionary) as caught:
        read_dictionaries(dictionaries.transcoders(tmp_path, [(ENCODERS, DECODERS)], **settings))
    assert words in str(caught.value)


def test_a_square_transcoder_is_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(BadDictionary, match="not clear which are which"):
        read_dictionaries(dictionaries.transcoders(tmp_path, [(ENCODERS[:D], DECODERS[:D])]))


@pytest.mark.parametrize("text", ["a: [", "- 1", "!!python/object/apply:os.getcwd []", "\x00", "a: &a [*a]"])
def test_yaml_that_is_no_set_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadDictionary, match=r"config\.yaml"):
        read_dictionaries(tmp_path)


def test_what_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDictionary, match="no folder"):
        read_dictionaries(tmp_path / "none")
    with pytest.raises(BadDictionary, match=r"SAELens \(cfg\.json and sae_weights\.safetensors\), sparsify"):
        read_dictionaries(tmp_path)


@given(st.binary(max_size=200) | st.just(b"PK\x05\x06" + bytes(18)))
def test_damaged_archives_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("npz") / "params.npz"
    path.write_bytes(content)
    try:
        assert NpzSource(path).names() == []
    except BadModel as error:
        assert "params.npz" in str(error)


def test_an_archive_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([print], object), W_dec=np.arange(4), **{"b": np.float32(3)})
    source = NpzSource(tmp_path / "params.npz")
    for name in ("W_enc", "W_dec"):
        with pytest.raises(BadWeights, match="real numbers"):
            source.rows(name)
    assert source.rows("b") == np.float32(3)
    with pytest.raises(BadWeights, match="no tensor 'z'"):
        source.rows("z")


def test_an_archive_that_was_cut_is_refused_when_it_is_read(tmp_path: Path) -> None:
    folder = dictionaries.gemma_scope(tmp_path / "layer_1" / "resid_post" / "x", ENCODERS, DECODERS)
    content = bytearray((folder / "params.npz").read_bytes())
    content[300] ^= 255  # in the numbers of the first array, whose checksum then differs
    (folder / "params.npz").write_bytes(content)
    with pytest.raises(ZeropassError, match=r"params\.npz"):
        read_dictionaries(folder)[1].encoder.rows()


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    folder = dictionaries.saelens(tmp_path, ENCODERS, DECODERS)
    (folder / "cfg.json").write_text(json.dumps([1]))
    with pytest.raises(BadModel, match=r"cfg\.json holds a JSON list"):
        read_dictionaries(folder)
