"""Hand-written inputs that random mutation does not find, each a function that makes one in a folder and reads it."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import zeropass as zp
from zeropass._io.parse import read_text, read_words
from zeropass.align.alignment_folder import read_alignment
from zeropass.model.adapted import adapt
from zeropass.records.verdicts import read_verdicts
from zeropass.web.pages.comparison_pages import read_diff

__all__ = ["HARMLESS", "WRITTEN"]

Make = Callable[[Path], object]


def _model(make: Make, path: Path, seeds: Path, _draw: Any, seed: str = "llama") -> None:
    """Change a copy of a tiny model; then open, read and explain it."""
    folder = shutil.copytree(seeds / seed, path / "x")
    make(folder)
    model = zp.open_model(str(folder))
    for role in ("q", "gate", "value"):
        model.matrix(role)
    model.vocab.mask("words")
    model.vocab.encode("a" * 28 + "! aaaa")
    zp.Lens(model).explain("L0.ff.1", k=3)
    json.dumps(model.info())


def _gguf(content: bytes, path: Path, _seeds: Path, _draw: Any) -> None:
    file = path / "x.gguf"
    file.write_bytes(content)
    zp.open_model(str(file))


def _adapter(make: Make, path: Path, seeds: Path, _draw: Any) -> None:
    folder = shutil.copytree(seeds / "adapters" / "plain", path / "x")
    make(folder)
    model = adapt(zp.open_model(str(seeds / "llama")), folder)
    zp.Lens(model).explain("L0.ff.1", k=3)


def _atlas(make: Make, path: Path, seeds: Path, _draw: Any) -> None:
    folder = shutil.copytree(seeds / "atlas", path / "x")
    make(folder)
    atlas = zp.open_atlas(folder)
    atlas.find("!", k=3)
    atlas.find(["!", "#"], like="?", without="$", k=3)
    atlas.explain("L0.ff.3")
    atlas.explain("L0.attn.1")
    atlas.explain("L0.ff.3", k=50, tokens="all")


def _file(make: Make, name: str, read: Callable[[Path], object], path: Path, _seeds: Path, _draw: Any) -> None:
    make(path / name)
    read(path / name)


# --- How files are made -----------------------------------------------------------------------------------------------


def _safetensors(folder: Path, header: Any, data: bytes = bytes(64), length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    (folder / "model.safetensors").write_bytes(content)


def _tensor(shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _config_text(folder: Path, key: str, text: str) -> None:
    _config(folder, **{key: "@"})
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"@"', text))


def _tokenizer(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))


def _deep(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:-1] + ', "x": ' + "[" * 10**6 + "]" * 10**6 + "}")


def _regex(pattern: str, spec: Any) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, spec["pre_tokenizer"]]}


def _chained_merges(spec: Any) -> None:
    """Replace the merges by a chain in which each extends the last, up to pieces of a thousand letters."""
    letter, vocab = next(iter(spec["model"]["vocab"])), spec["model"]["vocab"]
    spec["model"]["merges"] = [[letter * n, letter] for n in range(1, 1000)]
    for n in range(2, 1001):
        vocab[letter * n] = len(vocab)


def _index(folder: Path, shards: int) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {f"t{n}": f"m{n}.safetensors" for n in range(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _bomb(folder: Path) -> None:
    """Write an archive of 256 KiB that unpacks to a pickle of 256 MiB, more than a case is allowed."""
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x/data.pkl", "w", force_zip64=True) as member:
            for _ in range(1 << 4):
                member.write(bytes(1 << 24))
        archive.writestr("x/version", "3\n")


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/zeropass-ran",)


def _running(folder: Path, zipped: bool) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if zipped:
        torch.save({"a": _Runs()}, path)
    else:
        path.write_bytes(pickle.dumps({"a": _Runs()}))


def _replaced(name: str, target: str, folder: Path) -> None:
    """Replace a file by a folder, a link to something else, or a pipe that nobody writes to."""
    path = folder / name
    path.unlink(missing_ok=True)
    if target == "pipe":
        os.mkfifo(path)
    elif target == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)


def _itself(target: str, path: Path) -> None:
    _replaced(path.name, target, path.parent)


def _manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    for name, change in changes.items():
        part, _, key = name.partition("__")
        if key:
            value[part][key] = change
        else:
            value[part] = change
    path.write_text(json.dumps(value))


def _table(folder: Path, name: str, column: str, value: Any) -> None:
    table = pq.read_table(folder / name)
    place = table.column_names.index(column)
    kind = pa.int64() if isinstance(value, int) else table.schema.field(column).type
    values = [value] * table.num_rows
    pq.write_table(table.set_column(place, column, pa.array(values, kind)), folder / name)


def _twice(folder: Path, name: str) -> None:
    table = pq.read_table(folder / name)
    pq.write_table(pa.concat_tables([table, table]), folder / name)


def _capitals(folder: Path, name: str, column: str) -> None:
    table = pq.read_table(folder / name)
    pq.write_table(table.rename_columns([c.upper() if c == column else c for c in table.column_names]), folder / name)


def _stitched(settings: dict[str, Any], path: Path, seeds: Path, _draw: Any) -> None:
    folder = shutil.copytree(seeds / "stitch", path / "x")
    config = json.loads((folder / "config.json").read_text())
    config["upper"] = {key: value for key, value in (config["upper"] | settings).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    zp.classify(folder, ["!"])


def _lying_footer(folder: Path, length: int) -> None:
    path = folder / "parameters.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + struct.pack("<I", length) + content[-4:])


def _gguf_of(tensors: int = 0, fields: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + rest


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


_ARRAY = struct.pack("<I", 9)
_NESTED = _text("a") + _ARRAY + b"".join(struct.pack("<IQ", 9, 1) for _ in range(10_000))

DEVICES = ("/dev/zero", "pipe", "config.json", "folder", "/dev/full")
NUMBERS = ("1e999", "NaN", "-0", "-0.0", "1" + "0" * 400, "1" + "0" * 5000, "1e-400", "9223372036854775808")

WRITTEN: dict[str, Callable[[Path, Path, Any], None]] = {
    "a header of 2^63 bytes": partial(_model, lambda folder: _safetensors(folder, {}, length=1 << 63)),
    "a header of 2^64 - 1 bytes": partial(_model, lambda folder: _safetensors(folder, {}, length=(1 << 64) - 1)),
    "a header of 90 MB that is not there": partial(_model, lambda folder: _safetensors(folder, {}, length=90 << 20)),
    "a tensor of 2^64 numbers": partial(
        _model, lambda folder: _safetensors(folder, {"a": _tensor([1 << 32, 1 << 32], 0, 64)})
    ),
    "a tensor of 2^62 numbers": partial(
        _model, lambda folder: _safetensors(folder, {"a": _tensor([1 << 62], 0, 1 << 63)})
    ),
    "overlapping tensors": partial(
        _model, lambda folder: _safetensors(folder, {"a": _tensor([16], 0, 64), "b": _tensor([8], 32, 64)})
    ),
    "offsets backwards": partial(_model, lambda folder: _safetensors(folder, {"a": _tensor([16], 64, 0)})),
    "a header of 100,000 brackets": partial(_model, lambda folder: _safetensors(folder, b'{"a":' + b"[" * 100_000)),
    "an empty safetensors file": partial(_model, lambda folder: (folder / "model.safetensors").write_bytes(b"")),
    "2^60 tensors": partial(_gguf, _gguf_of(1 << 60)),
    "2^60 keys": partial(_gguf, _gguf_of(0, 1 << 60)),
    "a key of 2^60 letters": partial(_gguf, _gguf_of(0, 1, struct.pack("<Q", 1 << 60))),
    "a string of 2^60 letters": partial(_gguf, _gguf_of(0, 1, _text("a") + struct.pack("<IQ", 8, 1 << 60))),
    "a list of 2^60 numbers": partial(_gguf, _gguf_of(0, 1, _text("a") + struct.pack("<IIQ", 9, 4, 1 << 60))),
    "a list of 2^60 strings": partial(_gguf, _gguf_of(0, 1, _text("a") + struct.pack("<IIQ", 9, 8, 1 << 60))),
    "a list of a list, ten thousand deep": partial(_gguf, _gguf_of(0, 1, _NESTED)),
    "2^32 - 1 dimensions": partial(_gguf, _gguf_of(1, 0, _text("a") + struct.pack("<I", (1 << 32) - 1))),
    "dimensions of 2^63": partial(
        _gguf, _gguf_of(1, 0, _text("a") + struct.pack("<IQQIQ", 2, 1 << 63, 1 << 63, 0, 0) + bytes(64))
    ),
    "an alignment of 2^31": partial(
        _gguf, _gguf_of(0, 1, _text("general.alignment") + struct.pack("<II", 4, 1 << 31) + bytes(64))
    ),
    "a gigabyte in a megabyte": partial(_model, _bomb),
    "a pickle that runs, in an archive": partial(_model, partial(_running, zipped=True)),
    "a pickle that runs": partial(_model, partial(_running, zipped=False)),
    "a million brackets": partial(_model, _deep),
    "a regular expression that takes exponential time": partial(
        _model, lambda folder: _tokenizer(folder, partial(_regex, r"(a+)+$|(a|a)*b"))
    ),
    "a regular expression with look-behind": partial(
        _model, lambda folder: _tokenizer(folder, partial(_regex, r"(?<=(a*)*)b|(x+x+)+y|((a?){25})(a{25})z"))
    ),
    "merges of merges": partial(_model, lambda folder: _tokenizer(folder, _chained_merges)),
    "token ids beyond 2^63": partial(
        _model,
        lambda folder: _tokenizer(folder, lambda spec: spec["model"]["vocab"].update({"x": 1 << 70, "y": -(1 << 70)})),
    ),
    "an added token with id 2^40": partial(
        _model,
        lambda folder: _tokenizer(folder, lambda spec: spec["added_tokens"].append({"id": 1 << 40, "content": "x"})),
    ),
    "an index of 300,000 shards": partial(_model, partial(_index, shards=300_000)),
    "10^9 layers": partial(_model, lambda folder: _config(folder, num_hidden_layers=10**9)),
    "no heads": partial(_model, lambda folder: _config(folder, num_attention_heads=0)),
    "10^18 heads": partial(
        _model, lambda folder: _config(folder, num_attention_heads=10**18, num_key_value_heads=10**18)
    ),
    "a vocabulary of 2^40": partial(_model, lambda folder: _config(folder, vocab_size=1 << 40)),
    "a width of 2^62": partial(_model, lambda folder: _config(folder, hidden_size=1 << 62, head_dim=None)),
    "a million experts": partial(_model, lambda folder: _config(folder, model_type="mixtral", num_local_experts=10**6)),
    **{
        f"{key} of {text[:12]}": partial(_model, partial(_config_text, key=key, text=text))
        for key in ("rms_norm_eps", "num_hidden_layers", "rope_theta")
        for text in NUMBERS
    },
    **{
        f"{name} is {target}": partial(_model, partial(_replaced, name, target))
        for name in ("config.json", "tokenizer.json", "model.safetensors")
        for target in DEVICES
    },
    **{
        f"{name} is {target}, in an adapter": partial(_adapter, partial(_replaced, name, target))
        for name in ("adapter_config.json", "adapter_model.safetensors")
        for target in ("/dev/zero", "pipe", "adapter_config.json", "folder")
    },
    **{
        f"{name} is {target}, in an atlas": partial(_atlas, partial(_replaced, name, target))
        for name in (
            "manifest.json",
            "tokens.parquet",
            "parameters.parquet",
            "rows/output-write.npy",
            "lists/L0.gate.parquet",
        )
        for target in ("/dev/zero", "pipe", "folder")
    },
    **{
        f"{name} is {target}": partial(_file, partial(_itself, target), name, read)
        for target in ("/dev/zero", "pipe", "folder")
        for name, read in (("diff.json", lambda path: read_diff(path.parent)), ("verdicts.json", read_verdicts))
    },
    "an alignment of zeros": partial(
        _file, partial(_itself, "/dev/zero"), "alignment.json", lambda path: read_alignment(path.parent)
    ),
    "words of zeros": partial(
        _file, lambda path: path.symlink_to("/dev/zero"), "list.txt", partial(read_words, option="--words")
    ),
    "a text of zeros": partial(_file, lambda path: path.symlink_to("/dev/zero"), "text.txt", read_text),
    "a rank of 10^9": partial(
        _adapter, lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1000000000}')
    ),
    "a rank of 10^400": partial(
        _adapter,
        lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1' + "0" * 400 + "}"),
    ),
    "an atlas of 10^18 layers": partial(_atlas, lambda folder: _manifest(folder, model__layers=10**18)),
    "an atlas of 10^18 heads": partial(
        _atlas, lambda folder: _manifest(folder, model__heads=10**18, model__kv_heads=10**18)
    ),
    "an atlas of no experts": partial(_atlas, lambda folder: _manifest(folder, model__experts=0)),
    "an atlas of a list of experts": partial(_atlas, lambda folder: _manifest(folder, model__experts=["token"])),
    "an atlas of 10^18 tokens": partial(_atlas, lambda folder: _manifest(folder, model__vocabulary=10**18)),
    "an atlas of 10^18 lists": partial(_atlas, lambda folder: _manifest(folder, lists=10**18)),
    "an atlas whose lists lie elsewhere": partial(
        _atlas, lambda folder: _table(folder, "parameters.parquet", "role", "../../../../secret")
    ),
    "an atlas with frames elsewhere": partial(
        _atlas, lambda folder: _table(folder, "parameters.parquet", "frame", "/etc/passwd")
    ),
    "ids beyond 2^62": partial(_atlas, lambda folder: _table(folder, "hits.parquet", "id", (1 << 63) - 1)),
    "tokens beyond 2^62": partial(_atlas, lambda folder: _table(folder, "hits.parquet", "token", (1 << 63) - 1)),
    "an atlas that has its tokens twice": partial(_atlas, lambda folder: _twice(folder, "tokens.parquet")),
    "a column in capitals, of the tokens": partial(_atlas, lambda folder: _capitals(folder, "tokens.parquet", "piece")),
    "a column in capitals, of the lists": partial(
        _atlas, lambda folder: _capitals(folder, "parameters.parquet", "std")
    ),
    "a stitched classifier of 2,048 layers": partial(_stitched, {"num_hidden_layers": 2048}),
    "a stitched classifier of 10^300 layers": partial(_stitched, {"num_hidden_layers": 10**300}),
    "a stitched classifier of 10^9 labels": partial(_stitched, {"num_labels": 10**9}),
    "a stitched classifier without its width": partial(_stitched, {"hidden_size": None}),
    "a footer of 2^31 bytes": partial(_atlas, partial(_lying_footer, length=(1 << 31) - 1)),
    "a footer of 2^32 - 1 bytes": partial(_atlas, partial(_lying_footer, length=(1 << 32) - 1)),
    "an array of pickles": partial(
        _atlas, lambda folder: np.save(folder / "rows" / "output-write.npy", np.array([{}], object), allow_pickle=True)
    ),
}
"""All cases, by a description."""

HARMLESS = {
    name for name in WRITTEN if name.startswith(("a regular expression", "rope_theta of", "rms_norm_eps of 9223"))
}
HARMLESS |= {
    "a column in capitals, of the tokens",
    "a column in capitals, of the lists",
    "tokens beyond 2^62",
    "an added token with id 2^40",
}
"""Cases that may be read, since their oddity is unused or a valid number. All others must be refused."""
