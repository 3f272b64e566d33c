"""The real files that mutations start from: tiny random checkpoints in every format, and zeropass output."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForSequenceClassification
from transformers.utils import logging
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_pb2

import dictionaries
import gguf_files
import small
import tiny
import zeropass as zp
from gguf_files import sentencepiece
from quantised_files import GPT_OSS, mxfp4_experts, quantised, torchao_model
from zeropass.checkpoints.gguf import GgufSource
from zeropass.records.verdicts import Verdict, Verdicts
from zoo import drawn, tiny_model

__all__ = ["make"]

FAMILIES = ("gpt2", "gpt_neox", "opt", "falcon-40b", "phi", "gemma3", "phi3", "mixtral", "bert", "modernbert", "albert")
FAMILIES += ("t5-gated-decoder", "bart-encoder", "electra", "gemma3-multimodal", "qwen2-vl")


def make(folder: Path) -> Path:
    """Write all seeds, each in a folder of its own."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llama = _checkpoints(folder)
        _ggufs(folder, llama)
        _adapter(folder)
        _atlases(folder, llama)
    (folder / "words").mkdir()
    (folder / "words" / "words.txt").write_text("ba\n du fi\n\nHello, world!\n日本語\n", encoding="utf-8")
    (folder / "pairs").mkdir()
    pairs = "# Pairs\nba\tdu\ndu fi\n\n# Source: here\nHello\tworld!\n日本\t語\n ba\tfi\nfi go\n"
    (folder / "pairs" / "pairs.txt").write_text(pairs, encoding="utf-8")
    return folder


def _checkpoints(folder: Path) -> Path:
    llama = tiny.save(tiny.make("llama"), folder / "llama")
    (llama / "generation_config.json").unlink()
    state = load_file(llama / "model.safetensors")
    for name, zipped in (("zip", True), ("legacy", False)):
        copy = _without_weights(llama, folder / name)
        torch.save(state, copy / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    shards = _without_weights(llama, folder / "shards")
    home = {name: f"model-{1 + n % 3:05}-of-00003.safetensors" for n, name in enumerate(state)}
    for file in set(home.values()):
        save_file({name: state[name] for name in state if home[name] == file}, shards / file)
    index = {"metadata": {"total_size": 12345}, "weight_map": home}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    for method in (
        "nf4-nested",
        "int8",
        "fp8",
        "gptq",
        "awq",
        "packed",
        "nvfp4-packed",
        "modelopt-fp8",
        "mlx-3",
        "hqq-4",
    ):
        quantised(tiny.save(_of_words(), folder / "wide"), folder / "quantised" / method, method)
        shutil.rmtree(folder / "wide")
    torchao_model(tiny.save(_of_words(), folder / "wide"), folder / "quantised" / "torchao")
    shutil.rmtree(folder / "wide")
    experts = tiny.save(drawn("GptOssForCausalLM", "GptOssConfig", GPT_OSS), folder / "wide")
    mxfp4_experts(experts, folder / "quantised" / "mxfp4")
    shutil.rmtree(folder / "wide")
    for name in FAMILIES:
        copy = tiny.save(tiny_model(name), folder / "families" / name)
        (copy / "generation_config.json").unlink(missing_ok=True)
    _tokenizers(folder, llama)
    return llama


def _of_words() -> Any:
    """Return a tiny model whose rows fill words of 32 bits."""
    return tiny.MAKERS["llama"](hidden_size=32, intermediate_size=64)


def _without_weights(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def _tokenizers(folder: Path, llama: Path) -> None:
    """Write the same weights with every type of tokenizer, and with the vocabulary files of older models."""
    for name, text in (
        ("bytes", _byte_level()),
        ("sentencepiece", sentencepiece(tiny.TOKENS)),
        ("wordpiece", tiny.tokenizer_json(tiny.TOKENS, wordpiece=True)),
        ("unigram", _unigram()),
    ):
        copy = shutil.copytree(llama, folder / "tokenizers" / name)
        (copy / "tokenizer.json").write_text(text)
    _sentencepieces(folder, llama)
    for name in ("bpe", "wordpiece"):
        copy = shutil.copytree(llama, folder / "vocabularies" / name)
        (copy / "tokenizer.json").unlink()
        special = {"unk_token": "[UNK]", "pad_token": {"content": "[PAD]", "special": True}, "bos_token": "!"}
        (copy / "special_tokens_map.json").write_text(json.dumps(special))
        settings = {
            "do_lower_case": True,
            "model_max_length": 512,
            "cls_token": "[CLS]",
            "tokenizer_class": "GPT2Tokenizer" if name == "bpe" else "BertTokenizer",
        }
        size = 50 if name == "bpe" else 51
        added = {str(size): {"content": "<extra>", "special": True}}
        (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": added}))
        (copy / "added_tokens.json").write_text(json.dumps({"<extra>": size}))
        if name == "bpe":
            spec = json.loads(_byte_level())["model"]
            (copy / "vocab.json").write_text(json.dumps(spec["vocab"]))
            (copy / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in spec["merges"]))
        else:
            names = [
                "[PAD]",
                "[UNK]",
                "[CLS]",
                "[SEP]",
                *(f"word{i}" for i in range(40)),
                *(f"##{c}" for c in "abcdefg"),
            ]
            (copy / "vocab.txt").write_text("\n".join(names) + "\n")


def _sentencepieces(folder: Path, llama: Path) -> None:
    """Write the same weights with SentencePiece's files: Unigram, BPE, and pieces that vocab.json numbers."""
    for name, kind, file in (
        ("t5", "T5Tokenizer", "spiece.model"),
        ("xglm", "XGLMTokenizer", "sentencepiece.bpe.model"),
        ("marian", "MarianTokenizer", "source.spm"),
    ):
        copy = shutil.copytree(llama, folder / "vocabularies" / name)
        (copy / "tokenizer.json").unlink()
        proto = sentencepiece_pb2.ModelProto()
        for piece, piece_type in (("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<user>", 4)):
            if name != "xglm" or piece_type != 4:
                proto.pieces.add(piece=piece, score=0.0, type=piece_type)
        for n, piece in enumerate(("▁", *"abcdefg", "▁a", "▁ab", "ab", "bc", "abc")):
            proto.pieces.add(piece=piece, score=-1.5 * n, type=1)
        proto.trainer_spec.model_type = 2 if name == "xglm" else 1
        (copy / file).write_bytes(proto.SerializeToString())
        settings = {"tokenizer_class": kind, "extra_ids": 3, "unk_token": "<unk>"}
        (copy / "tokenizer_config.json").write_text(json.dumps(settings))
        if name == "marian":
            pieces = ["</s>", "<unk>", "▁", *"abcd", "▁a", "ab", "▁x", "xyz", "<pad>"]
            (copy / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))


def _byte_level() -> str:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:40]
    merges = [(letters[n], letters[n + 1]) for n in range(0, 20, 2)]
    pieces = [*letters, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    spec = json.loads(tokenizer.to_str())
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+"}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split | {"invert": False}, level]}
    spec["decoder"] = level
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    spec["added_tokens"] = [{"id": 50 + n, "content": f"<|{n}|>", "special": n < 2} | flags for n in range(3)]
    return json.dumps(spec)


def _unigram() -> str:
    pieces = ["<unk>", *(f"▁{a}{b}" for a in "bdfgl" for b in "aeio"), *"abcdefghilmnoprst▁"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer.to_str()


def _ggufs(folder: Path, llama: Path) -> None:
    target = folder / "gguf"
    target.mkdir()
    gguf_files.convert(llama, target / "bytes.gguf")
    spm = shutil.copytree(llama, folder / "spm")
    (spm / "tokenizer.json").write_text(sentencepiece(tiny.TOKENS))
    gguf_files.convert(spm, target / "pieces.gguf")
    shutil.rmtree(spm)
    (folder / "gguf-tokenizer").mkdir()
    for name in ("bytes", "pieces"):
        metadata = GgufSource(target / f"{name}.gguf").metadata
        tokenizer = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        (folder / "gguf-tokenizer" / f"{name}.json").write_text(json.dumps(tokenizer))


def _adapter(folder: Path) -> None:
    torch.manual_seed(0)
    targets = ["q_proj", "o_proj", "up_proj", "down_proj"]
    for name, more in (("plain", {"alpha_pattern": {"o_proj": 3}}), ("dora", {"use_dora": True, "use_rslora": True})):
        settings: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": targets} | more
        hf: Any = get_peft_model(tiny.make("llama"), LoraConfig(**settings))
        target = folder / "adapters" / name
        hf.save_pretrained(target)
        (target / "README.md").unlink(missing_ok=True)


def _atlases(folder: Path, llama: Path) -> None:
    options = zp.Options(k=4, pairs=4)
    opened = zp.open_model(str(llama))
    zp.build(opened, folder / "atlas", options, lens=zp.calibrate(opened, source="random", tokens=256))
    first = small.llama(folder / "first", layers=2)
    second = small.llama(folder / "second", seed=1, layers=2)
    model, other = zp.open_model(str(first)), zp.open_model(str(second))
    zp.build(model, folder / "first-atlas", options)
    zp.calibrate(model, folder / "lens", source="random", tokens=256)
    _published_lenses(folder, model.dims.layers, model.dims.d)
    _dictionaries(folder / "dictionaries", model.dims.d)
    _vectors(folder / "vectors", model.dims.d)
    zp.build(model, folder / "features", options, lens=None, features=folder / "dictionaries" / "saelens")
    zp.align_models(model, other, folder / "alignment")
    shutil.rmtree(folder / "alignment" / "parts", ignore_errors=True)
    tuned = shutil.copytree(first, folder / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    changed = {n: t + 0.01 * torch.randn(t.shape, generator=draw) for n, t in tensors.items() if "layers.1" in n}
    save_file(tensors | changed, tuned / "model.safetensors")
    zp.write_diff(zp.compare(model, zp.open_model(str(tuned))), folder / "diff")
    _stitched(folder, first, other)
    kinds = tuple(
        Verdict(role, "output", layer, "reading", "predicted", "spearman", 0.25, 0.01, 32, above=True)
        for role in ("gate", "up", "q")
        for layer in range(2)
    )
    about = {"name": "first", "bytes": model.size, "sha256": model.fingerprint}
    Verdicts(about, {"text": "made up", "tokens": 1200, "seed": 0}, kinds).write(folder / "verdicts" / "verdicts.json")


def _published_lenses(folder: Path, layers: int, d: int) -> None:
    draw = torch.Generator().manual_seed(0)
    matrices = [0.1 * torch.randn(d, d, generator=draw) for _ in range(layers)]
    (folder / "jacobian").mkdir()
    jacobian = {"J": dict(enumerate(matrices[1:])), "n_prompts": 9, "source_layers": [*range(layers - 1)], "d_model": d}
    torch.save(jacobian, folder / "jacobian" / "lens.pt")
    (folder / "tuned-lens").mkdir()
    translators = {f"{n}.{part}": t for n, m in enumerate(matrices) for part, t in (("weight", m), ("bias", m[0]))}
    torch.save(translators, folder / "tuned-lens" / "params.pt")
    config = {"base_model_name_or_path": "first", "d_model": d, "num_hidden_layers": layers, "unembed_hash": "0" * 64}
    (folder / "tuned-lens" / "config.json").write_text(json.dumps(config | {"lens_type": "linear_tuned_lens"}))


def _dictionaries(folder: Path, d: int) -> None:
    encoders, decoders = torch.randn(2, 40, d, generator=torch.Generator().manual_seed(0))
    dictionaries.saelens(folder / "saelens", encoders, decoders)
    dictionaries.sparsify(folder / "layers.1.mlp", encoders, decoders)
    dictionaries.gemma_scope(folder / "resid_post" / "layer_0" / "width", encoders, decoders)
    dictionaries.transcoders(folder / "set", [(encoders, decoders)])


def _vectors(folder: Path, d: int) -> None:
    folder.mkdir()
    table = torch.randn(3, d, generator=torch.Generator().manual_seed(0))
    np.save(folder / "one.npy", table.numpy())
    save_file({"b": table[0].clone(), "table": table.T.contiguous()}, folder / "one.safetensors")
    writer = gguf.GGUFWriter(folder / "control.gguf", "controlvector")
    writer.add_tensor("direction.1", table[0].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stitched(folder: Path, first: Path, onto: zp.Model) -> None:
    torch.manual_seed(0)
    hf = LlamaForSequenceClassification.from_pretrained(first, num_labels=2, pad_token_id=0, dtype=torch.float32)
    hf.save_pretrained(folder / "classifier")
    shutil.copy(first / "tokenizer.json", folder / "classifier")
    zp.stitch_models(zp.open_model(str(folder / "classifier")), onto, folder / "stitch", keep=1, take=1)
