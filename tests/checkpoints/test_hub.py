"""Models of the hub, from a local stand-in that serves the hub's own layout."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

import zeropass as zp
from commands import Run
from hubs import Hub, serving_hub
from zeropass.checkpoints.hub import fetch_dictionary, fetch_hub, fetch_lens, is_lens_id
from zeropass.checkpoints.model_files import open_files
from zeropass.errors import BadDictionary, BadLens, BadModel, NotFetched

ROOT = Path(__file__).parents[2]
FIRST, REVIEWS = ROOT / "models" / "first", ROOT / "models" / "tunes" / "reviews"
WEIGHTS = save({"w": torch.arange(50_000, dtype=torch.float32)})
TEXT = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b'{"model": {}}', "merges.txt": b"a b\n"}
OTHER = {
    "README.md": b"# x",
    "onnx/model.onnx": b"x" * 99,
    "training_args.bin": b"x",
    "1_Pooling/config.json": b"{}",
}
LENSES = {
    "gpt/a.pt": b"a",
    "gpt/b.pt": b"b",
    "lens/x/config.json": b"{}",
    "lens/x/params.pt": b"p",
    "lens/x/y.bin": b"y",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Yield a running stand-in to which huggingface_hub is pointed, with an empty cache."""
    repos = {
        "owner/model": TEXT | OTHER | {"model.safetensors": WEIGHTS, "pytorch_model.bin": b"never"},
        "owner/bin": TEXT | OTHER | {"pytorch_model.bin": b"bin"},
        "owner/empty": {"README.md": b"# x"},
        "owner/lenses": LENSES,
    }
    with serving_hub(repos, tmp_path / "hub") as served:
        yield served


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_settings_of_modelopt_are_fetched(hub: Hub) -> None:
    settings = {"hf_quant_config.json": b'{"quantization": {"quant_algo": "FP8"}}'}
    hub.repos["owner/modelopt"] = TEXT | OTHER | settings | {"model.safetensors": WEIGHTS}
    assert names(fetch_hub("owner/modelopt")) == {*TEXT, *settings, "model.safetensors"}


def test_only_needed_files_are_fetched_and_only_once(hub: Hub) -> None:
    folder = fetch_hub("owner/model")
    assert names(folder) == {*TEXT, "model.safetensors"}
    assert set(hub.gets) == names(folder)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    hub.gets.clear()
    assert fetch_hub("owner/model") == folder
    assert hub.gets == []


def test_bin_files_are_fetched_only_without_safetensors(hub: Hub) -> None:
    assert names(fetch_hub("owner/bin")) == {*TEXT, "pytorch_model.bin"}


def test_other_vocabularies_are_fetched_only_without_a_usual_one(hub: Hub) -> None:
    others = {"tokenizer.model": b"a", "tekken.json": b"{}", "qwen.tiktoken": b"b", "tokenizer.model.v3": b"c"}
    weights = {"model.safetensors": WEIGHTS}
    config = {"config.json": TEXT["config.json"]}
    hub.repos["owner/spm"] = config | weights | others | OTHER
    hub.repos["owner/both"] = TEXT | weights | others | OTHER
    assert names(fetch_hub("owner/spm")) == {*config, *weights, *others}
    assert names(fetch_hub("owner/both")) == {*TEXT, *weights}
    with pytest.raises(BadModel, match=r"tekken\.json cannot be read"):
        open_files("owner/spm")
    pieces = {"source.spm": b"a", "vocab.json": b"{}"}
    hub.repos["owner/marian"] = config | weights | pieces | {"target.spm": b"b"}
    assert names(fetch_hub("owner/marian")) == {*config, *weights, *pieces}


def test_a_hub_model_opens(hub: Hub) -> None:
    files = open_files("owner/model@v1")
    assert files.name == "owner/model@v1"
    assert files.source.rows("w", 5, 8).tolist() == [5, 6, 7]
    assert files.config == {"model_type": "llama"}


def test_sharded_weights_are_fetched(hub: Hub) -> None:
    shards = {"model-00001-of-00002.safetensors": b"a", "model-00002-of-00002.safetensors": b"b"}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()}
    hub.repos["owner/big"] = TEXT | shards | index | {"consolidated.safetensors": b"never"}
    assert names(fetch_hub("owner/big")) == {*TEXT, *shards, *index}


def test_offline_reads_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_hub("owner/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_hub("owner/model") == folder
    with pytest.raises(NotFetched, match=r"owner/bin is not, or not wholly, in the hub's cache"):
        fetch_hub("owner/bin")


def test_an_unreachable_hub_reads_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_hub("owner/model")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # huggingface_hub waits longer after each of its tries
    assert fetch_hub("owner/model") == folder
    with pytest.raises(NotFetched, match="the hub cannot be reached"):
        fetch_hub("owner/bin")


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("owner/nothing", None, "There is no model owner/nothing on the hub"),
        ("owner/gated", None, "owner/gated is gated: accept its terms"),
        ("owner/model", "v9", "owner/model has no revision 'v9'"),
    ],
)
def test_a_model_that_the_hub_does_not_give_says_why(hub: Hub, repo: str, revision: str | None, message: str) -> None:
    with pytest.raises(NotFetched, match=message):
        fetch_hub(repo, revision)


def test_a_model_without_files_says_what_is_missing(hub: Hub) -> None:
    with pytest.raises((BadModel, NotFetched), match=r"config\.json"):
        open_files("owner/empty")


def test_a_short_break_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.breaks = 1
    assert (fetch_hub("owner/model") / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges == [f"bytes={len(WEIGHTS) // 2 // 1000 * 1000}-"]


def test_an_interrupted_download_completes_later(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.breaks = 1000
    with pytest.raises(NotFetched, match=r"owner/model from the hub broke off .*try again"):
        fetch_hub("owner/model")
    hub.breaks = 0
    assert (fetch_hub("owner/model") / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("repo", ["model", "a/b/c", "../x", "a/..", "a/b c", "-a/b", "a--b/c", "a/b\n", "é/x"])
def test_a_bad_hub_id_is_refused(repo: str) -> None:
    with pytest.raises(BadModel, match=r"(?s)is no hub id.*MODEL may be"):
        fetch_hub(repo)


@pytest.mark.parametrize("revision", ["", "../../x", "a//b", "-x", "a b"])
def test_a_bad_revision_is_refused(revision: str) -> None:
    with pytest.raises(BadModel, match="is no hub id"):
        fetch_hub("owner/model", revision)


def test_the_environment_is_respected(hub: Hub, tmp_path: Path) -> None:
    code = "import sys; from zeropass.checkpoints.hub import fetch_hub; print(fetch_hub(sys.argv[1]))"
    settings = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}

    def run(repo: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | settings | {"PYTHONPATH": os.pathsep.join(sys.path)} | more
        return subprocess.run(
            [sys.executable, "-c", code, repo], env=environment, capture_output=True, text=True, check=False
        )

    first = run("owner/model")
    assert first.stdout.startswith(str(tmp_path / "home" / "hub"))
    offline = run("owner/model", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.stdout == first.stdout
    assert "NotFetched" in run("owner/bin", HF_HUB_OFFLINE="1").stderr


# Weights in the layouts of releases -----------------------------------------------------------------------


def index_of(*shards: str) -> dict[str, bytes]:
    weight_map = {f"t{i}": shard for i, shard in enumerate(shards)}
    return {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}


SHARD = {"model-00001-of-00001.safetensors": b"s"}
VARIANT = {"model.fp16.safetensors": b"v"}
BIN = {"pytorch_model.bin": b"b"}
NAMED = {"base.safetensors": b"1", "new.safetensors": b"2"}


@pytest.mark.parametrize(
    ("shipped", "read"),
    [
        (SHARD | VARIANT, SHARD),
        (SHARD | VARIANT | BIN, BIN),  # which is what transformers reads
        (VARIANT | {"consolidated.safetensors": b"c"}, VARIANT),
        (index_of("base.safetensors", "new.safetensors") | NAMED | SHARD, NAMED),
        (index_of("base.safetensors") | NAMED | SHARD | VARIANT | BIN, {"base.safetensors": b"1"}),
        ({"model.safetensors": b"m"} | index_of("base.safetensors") | SHARD, {"model.safetensors": b"m"}),
    ],
)
def test_files_that_would_be_read_are_fetched_and_no_others(
    hub: Hub, shipped: dict[str, bytes], read: dict[str, bytes]
) -> None:
    hub.repos["owner/shipped"] = TEXT | OTHER | shipped
    indexed = "model.safetensors" not in shipped and "model.safetensors.index.json" in shipped
    expected = {*TEXT, *read, *(index_of("") if indexed else ())}
    assert names(fetch_hub("owner/shipped")) == expected
    assert set(hub.gets) == expected


def test_weights_that_the_configuration_names_are_fetched(hub: Hub) -> None:
    config = {"config.json": json.dumps({"transformers_weights": "new.safetensors"}).encode()}
    hub.repos["owner/named"] = TEXT | config | NAMED | {"model.safetensors": b"m"}
    assert names(fetch_hub("owner/named")) == {*TEXT, "new.safetensors"}


def test_an_index_that_leaves_its_folder_fetches_nothing(hub: Hub) -> None:
    hub.repos["owner/bad"] = TEXT | index_of("../x.safetensors") | SHARD
    with pytest.raises(BadModel, match="only a plain file name is right"):
        fetch_hub("owner/bad")
    assert not set(SHARD) & set(hub.gets)


@pytest.mark.parametrize(
    ("shipped", "message"),
    [
        (TEXT | {"tf_model.h5": b"t"}, r"owner/other has no weights; .* It has tf_model\.h5: let transformers 4"),
        (
            {"a-q4.gguf": b"g", "README.md": b""},
            r"owner/other has no config\.json\. It has a-q4\.gguf: give the file itself",
        ),
        (TEXT | {"model-00001-of-00002.safetensors": b"s"}, r"owner/other lacks 1 of its 2 shards"),
    ],
)
def test_a_model_that_cannot_be_read_says_what_it_has(hub: Hub, shipped: dict[str, bytes], message: str) -> None:
    hub.repos["owner/other"] = shipped
    with pytest.raises(BadModel, match=message):
        fetch_hub("owner/other")
    assert not {"tf_model.h5", "a-q4.gguf", "model-00001-of-00002.safetensors"} & set(hub.gets)


def test_weights_that_the_cache_lacks_are_named_when_the_hub_cannot_be_asked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = hub.repos["owner/model"].pop("model.safetensors")
    hub.repos["owner/model"].pop("pytorch_model.bin")
    with pytest.raises(BadModel, match="has no weights"):
        fetch_hub("owner/model")
    hub.repos["owner/model"]["model.safetensors"] = weights
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFetched, match="The weights of owner/model are not in the hub's cache"):
        fetch_hub("owner/model")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("429 Too Many Requests"), "The weights of owner/model are not in the hub's cache.*429 Too Many"),
        (ValueError("Expecting value: line 1"), "list of the files of owner/model cannot be read: Expecting value"),
    ],
)
def test_a_list_of_files_that_fails_says_why(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("zeropass.checkpoints.hub.HfApi.list_repo_files", fail)
    with pytest.raises(NotFetched, match=message):
        fetch_hub("owner/model")


def test_only_the_files_of_one_lens_are_fetched(hub: Hub) -> None:
    assert fetch_lens("owner/lenses/gpt/a.pt").read_bytes() == b"a"
    assert hub.gets == ["gpt/a.pt"]
    for name in ("spaces/owner/lenses/lens/x", "owner/lenses/lens/x@v1"):
        hub.gets.clear()
        assert sorted(path.name for path in fetch_lens(name).iterdir()) == ["config.json", "params.pt"]
        assert sorted(hub.gets) == ["lens/x/config.json", "lens/x/params.pt"]


def test_of_a_dictionary_only_its_files_are_fetched(hub: Hub) -> None:
    files = {f"layer_3/{name}": b"x" for name in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")}
    hub.repos["owner/saes"] = files | {"README.md": b"x"}
    folder = fetch_dictionary("owner/saes/layer_3")
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    with pytest.raises(BadDictionary, match="Of owner/saes there is no dictionary 'layer_4' on the hub"):
        fetch_dictionary("owner/saes/layer_4")
    with pytest.raises(BadDictionary, match="no hub id of a dictionary"):
        fetch_dictionary("saes")


def test_adapters_on_the_hub_are_read_wherever_a_folder_is(
    hub: Hub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in REVIEWS.iterdir() if path.is_file()}
    hub.repos["owner/reviews"] = files | {"optimizer.bin": b"x"}
    hub.repos["owner/several"] = {f"epoch-2/{name}": data for name, data in files.items()}
    hub.repos["owner/first"] = {path.name: path.read_bytes() for path in FIRST.iterdir()}
    base = zp.open_model(str(FIRST))
    local = zp.adapt(base, REVIEWS)
    shown = run.json("show", FIRST, "L2.ff.3.up", "--adapter", "owner/reviews@v1")
    assert shown == run.json("show", FIRST, "L2.ff.3.up", "--adapter", REVIEWS)
    assert sorted(hub.gets) == ["adapter_config.json", "adapter_model.safetensors"]
    for name in ("owner/reviews", "owner/several/epoch-2"):
        tuned = zp.open_tuned(base, name)
        assert (tuned.name, tuned.fingerprint) == (f"{FIRST} with {name}", local.fingerprint)
    assert zp.open_tuned(base, "owner/first").fingerprint == base.fingerprint
    with pytest.raises(BadModel, match=r"owner/first holds no adapter on the hub: it has no adapter_config\.json"):
        zp.adapt(base, "owner/first")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert zp.adapt(base, "owner/several/epoch-2").name == f"{FIRST} with owner/several/epoch-2"
    assert zp.open_tuned(base, "owner/first").name == "owner/first"
    with pytest.raises(NotFetched, match="not, or not wholly, in the hub's cache"):
        zp.open_tuned(base, "owner/unknown")
    with pytest.raises(BadModel, match=r"has no adapter_config\.json"):
        zp.adapt(base, "owner/first")
    with pytest.raises(BadModel, match="has no adapter_config"):
        zp.adapt(base, tmp_path / "nowhere")


def test_what_is_no_lens_on_the_hub_is_refused(hub: Hub) -> None:
    for name, error, message in (
        ("owner/lenses/gpt/c.pt", BadLens, "there is no lens 'gpt/c.pt' on the hub"),
        ("owner/lenses/lens/y", BadLens, "there is no lens 'lens/y' on the hub"),
        ("owner/nothing/lens", NotFetched, "There is no model owner/nothing"),
        ("spaces/owner/nothing/lens", NotFetched, "There is no space owner/nothing"),
        ("owner/lenses/lens/x@v2", NotFetched, "no revision 'v2'"),
        ("owner/lenses/lens/x@ v2", BadLens, "no hub id of a lens"),
    ):
        with pytest.raises(error, match=message):
            fetch_lens(name)
    assert is_lens_id("spaces/owner/lenses/lens/x@v1")
    for name in ("lens", "../owner/lens", "./owner/lens", "owner/../lens", "owner/lens/../..", "a b/c", "owner/le*ns"):
        assert not is_lens_id(name), name
