"""Seeded mutations of real files: of their bytes, and of their contents (JSON, headers, tables)."""

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["mutated", "mutated_text"]

Bytes = Callable[[bytes, Random], bytes]

INTEGERS = (0, 1, 2, 3, 7, 8, 31, 64, 255, 256, 65535, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40, 1 << 60)
INTEGERS += ((1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TEXTS = ("", " ", "\0", "\n", "\r\n", "a" * 5000, "é", "日本語", "\u202e", "\ud800", "\U0010ffff", "../../etc/passwd")
TEXTS += (
    "/dev/zero",
    "nan",
    "1e999",
    "-1",
    "true",
    "null",
    "[",
    "%s{0}",
    "<0x41>",
    "▁",
    "##",
    "Ġ",
    "[unused1]",
    "\x1b[31m",
)
PLAIN: tuple[Any, ...] = (None, True, False, 0, -1, 0.5, -0.0, 1e-300, 1e300, [], {}, [[]], [None], {"": None})
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "-0",
    "1" + "0" * 400,
    "0." + "0" * 400 + "1",
    "1" + "0" * 5000,
)
RAW += ("[" * 3000 + "]" * 3000, '{"a":' * 500 + "1" + "}" * 500, '"\\ud800"', "01", "'x'", "", "tru", '"')
"""Raw JSON texts that Python's objects cannot express, or should not."""


def mutated(name: str, data: bytes, draw: Random) -> bytes:
    """Return the bytes of a file with one to three mutations that suit the suffix of its name."""
    mutate = next((mutation for suffix, mutation in _KINDS.items() if name.endswith(suffix)), None)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if mutate is not None and draw.random() < 0.75:
            try:
                data = mutate(data, draw)
                continue
            except Exception:
                pass  # an earlier mutation destroyed the structure
        data = _bytes(data, draw)
    return data


def mutated_text(text: str, draw: Random) -> str:
    """Return a text with one to three mutations of its characters."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        at, to = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        middle = draw.choice(("", text[at:to] * 2, draw.choice(TEXTS), str(draw.choice(INTEGERS)), chr(_point(draw))))
        text = text[:at] + middle + text[draw.choice((at, to)) :]
    return text


def _point(draw: Random) -> int:
    return draw.choice((draw.randrange(32), draw.randrange(128), draw.randrange(0x110000)))


# --- Bytes ------------------------------------------------------------------------------------------------------------


def _bytes(data: bytes, draw: Random) -> bytes:
    """Mutate bytes without regard to structure, mostly near the beginning or the end, where headers are."""
    where = draw.random()
    near = min(len(data), 400)
    at = draw.randrange(near + 1) if where < 0.5 else len(data) - draw.randrange(near + 1)
    at = draw.randrange(len(data) + 1) if where > 0.8 else at
    some = draw.choice((1, 1, 2, 4, 8, 64))
    kind = draw.randrange(8)
    if kind == 0 and data:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + draw.randbytes(some) + data[at + some :]
    if kind == 2:
        return data[:at] + draw.randbytes(some) + data[at:]
    if kind == 3:
        return data[:at] + data[at + some :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        code = draw.choice("bHIQ")
        number = struct.pack("<" + code.upper(), draw.choice(INTEGERS) % (1 << 8 * struct.calcsize("<" + code)))
        return data[:at] + number + data[at + len(number) :]
    if kind == 6:
        start = draw.randrange(len(data) + 1)
        return data[:at] + data[start : start + draw.choice((1, 8, 100))] + data[at:]
    return draw.choice((b"", b"\0", data * 2, data + draw.randbytes(some), data[::-1], b"\0" * len(data)))


# --- JSON -------------------------------------------------------------------------------------------------------------


class _Raw(str):
    """Text that goes into JSON verbatim."""


def _json(data: bytes, draw: Random) -> bytes:
    return _text_of(_changed(json.loads(data), draw), draw).encode("utf-8", "surrogatepass")


def _text_of(value: Any, draw: Random) -> str:
    """Return the JSON of a value with its raw parts verbatim; sometimes a key occurs twice."""
    parts: list[str] = []

    def plain(item: Any) -> Any:
        if isinstance(item, _Raw):
            parts.append(str(item))
            return f"@raw {len(parts) - 1}@"
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        return [plain(inner) for inner in item] if isinstance(item, list) else item

    text = json.dumps(plain(value), ensure_ascii=draw.random() < 0.5)
    for n, part in enumerate(parts):
        text = text.replace(f'"@raw {n}@"', part)
    if isinstance(value, dict) and value and draw.random() < 0.05:
        key = draw.choice(list(value))
        text = text[:-1] + f", {json.dumps(key)}: {json.dumps(_odd(draw, plain=True))}" + "}"
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container inside a value, with each of its keys."""
    places, todo = [], [value]
    while todo:
        container = todo.pop()
        keys = (
            list(container)
            if isinstance(container, dict)
            else range(len(container))
            if isinstance(container, list)
            else ()
        )
        places += [(container, key) for key in keys]
        todo += [container[key] for key in keys]
    return places


def _odd(draw: Random, plain: bool = False) -> Any:
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: draw.choice(PLAIN),
        lambda: draw.choice(INTEGERS) * draw.choice((1, 1, -1)),
        lambda: draw.choice(TEXTS),
        lambda: None if plain else _Raw(draw.choice(RAW)),
    )
    return draw.choice(kinds)()


def _changed(value: Any, draw: Random) -> Any:
    """Return a value with one entry removed, doubled, renamed, or given another type or an odd value."""
    places = _places(value)
    if not places or draw.random() < 0.02:
        return _odd(draw)
    # Long lists and vocabularies would get nearly all mutations, so more than half go to short containers.
    few = [place for place in places if len(place[0]) < 30] or places
    holder, key = draw.choice(few if draw.random() < 0.6 else places)
    old = holder[key]
    kind = draw.randrange(9)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = _of_other_type(old, draw)
    elif kind == 2:
        holder[key] = draw.choice([inner[k] for inner, k in places])
    elif kind == 3 and isinstance(holder, dict):
        holder[draw.choice((draw.choice(TEXTS), f"{key}_", str(key).upper()))] = holder.pop(key)
    elif kind == 4:
        if isinstance(holder, list):
            holder[key:key] = [old] * draw.choice((1, 1, 2, 1000))
        else:
            holder[f"{key}2"] = old
    elif kind in (5, 6) and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = draw.choice(
            (old + 1, old - 1, old * 2, -old, old / 2, float(old), old + 0.5, 0, old * 10**9, 10**30)
        )
    elif kind == 5 and isinstance(old, str):
        holder[key] = mutated_text(old, draw)
    else:
        holder[key] = _odd(draw)
    return value


def _of_other_type(old: Any, draw: Random) -> Any:
    return draw.choice((str(old)[:1000], [old], {"a": old}, [old, old], None, bool(old), len(str(old)), [[old]]))


# --- Containers of tensors --------------------------------------------------------------------------------------------


def _safetensors(data: bytes, draw: Random) -> bytes:
    """Change the JSON header and correct its length, or change the length itself."""
    (length,) = struct.unpack_from("<Q", data)
    if draw.random() < 0.1:
        return struct.pack("<Q", draw.choice((*INTEGERS, length + 1, length - 1))) + data[8:]
    header = json.loads(data[8 : 8 + length])
    kind = draw.random()
    tensors = [entry for entry in header.values() if isinstance(entry, dict) and "data_offsets" in entry]
    if kind < 0.4 and tensors:
        entry = draw.choice(tensors)
        if draw.random() < 0.5:
            at = draw.randrange(2)
            entry["data_offsets"][at] = draw.choice((*INTEGERS, entry["data_offsets"][at] + draw.randint(-8, 8)))
        else:
            entry["shape"] = draw.choice(
                (entry["shape"][::-1], [], [0], entry["shape"] + [1], [draw.choice(INTEGERS)], [1 << 32, 1 << 32])
            )
    elif kind < 0.5 and tensors:
        kinds = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "F8_E8M0", "C64", "Q4", "")
        draw.choice(tensors)["dtype"] = draw.choice(kinds)
    else:
        header = _changed(header, draw)
    text = _text_of(header, draw).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _gguf(data: bytes, draw: Random) -> bytes:
    """Change one number of the header (a count, length, type or offset) or one value of the metadata."""
    at, width, counts = draw.choice(_gguf_places(data))
    if counts and draw.random() < 0.7:
        (old,) = struct.unpack_from("<" + {1: "B", 2: "H", 4: "I", 8: "Q"}[width], data, at)
        new = draw.choice((*INTEGERS, old + 1, old - 1, old * 2, draw.randrange(16))) % (1 << 8 * width)
        return data[:at] + new.to_bytes(width, "little") + data[at + width :]
    some = draw.randbytes(max(1, min(width, 64)))
    return data[:at] + some + data[at + draw.choice((width, len(some))) :]


def _gguf_places(data: bytes) -> list[tuple[int, int, bool]]:
    """Return (offset, bytes, True if it is a number that guides parsing) of everything in a GGUF header."""
    places = [(4, 4, True), (8, 8, True), (16, 8, True)]
    tensors, fields = struct.unpack_from("<QQ", data, 8)
    at = 24

    def number(width: int, counts: bool = True) -> int:
        nonlocal at
        places.append((at, width, counts))
        at += width
        if at > len(data):
            raise ValueError("cut short")
        return int.from_bytes(data[at - width : at], "little")

    def text() -> None:
        nonlocal at
        length = number(8)
        if at + length > len(data):
            raise ValueError("cut short")
        places.append((at, length, False))
        at += length

    for _ in range(fields):
        text()
        kind, count = number(4), 1
        if kind == 9:
            kind, count = number(4), number(8)
        for _ in range(count):
            if kind == 8:
                text()
            else:
                number(_SIZES[kind], counts=False)
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4), number(8)
    return places


def _torch(data: bytes, draw: Random) -> bytes:
    """Change a member of the archive and repack it with a correct checksum, or change the bytes of a pickle."""
    if not data.startswith(b"PK"):
        return _pickle(data, draw)
    packed, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    members = {member.filename: packed.read(member) for member in packed.infolist()}
    name = draw.choice([member for member in members if member.endswith("data.pkl")] * 8 + list(members))
    change = _pickle if name.endswith(".pkl") else _bytes
    members[name] = change(members[name], draw)
    if draw.random() < 0.1:
        members.pop(draw.choice(list(members)))
    if draw.random() < 0.05:
        members[draw.choice(("x/data.pkl", "../data.pkl", "archive/data/0"))] = draw.randbytes(20)
    how = draw.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(out, "w", how) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return out.getvalue()


def _pickle(data: bytes, draw: Random) -> bytes:
    """Remove, double or replace one instruction of a pickle, or change its argument."""
    steps = [
        place for _, _, place in pickletools.genops(data)
    ]  # in a legacy file, the first pickle is its magic number
    if data.startswith(b"\x80") and len(steps) < 8:  # several pickles follow each other
        return _bytes(data, draw)
    n = draw.randrange(len(steps))
    start, stop = steps[n], steps[n + 1] if n + 1 < len(steps) else len(data)
    step = data[start:stop]
    other = draw.randrange(len(steps) - 1)
    new = draw.choice(
        (
            b"",
            step * 2,
            data[steps[other] : steps[other + 1]],
            step[:1] + draw.randbytes(len(step) - 1),
            bytes([draw.randrange(256)]) + step[1:],
            b"M" + draw.randbytes(2),
            b"\x8a\x08" + draw.randbytes(8),
            b"cos\nsystem\n",
            b"cbuiltins\neval\n",
            b"c__builtin__\nbytearray\n",
            b"G" + draw.choice((b"\x7f\xf0", b"\x7f\xf8", b"\xff\xf0")) + bytes(6),
        )
    )
    return data[:start] + new + data[stop:]


# --- Tables and lists -------------------------------------------------------------------------------------------------


def _parquet(data: bytes, draw: Random) -> bytes:
    """Change rows, columns, types or values of a table, in a valid file."""
    table = pq.read_table(io.BytesIO(data))
    column = draw.randrange(table.num_columns)
    kind = draw.randrange(7)
    if kind == 0:
        table = table.drop_columns([table.column_names[column]])
    elif kind == 1:
        table = table.slice(draw.randrange(table.num_rows + 1), draw.randrange(table.num_rows + 1))
    elif kind == 2:
        table = pa.concat_tables([table, table.slice(0, draw.randrange(table.num_rows + 1))])
    elif kind == 3:
        names = list(table.column_names)
        names[column] = draw.choice((draw.choice(names), names[column].upper(), draw.choice(TEXTS[:9])))
        table = table.rename_columns(names)
    elif kind == 4:
        to = draw.choice(
            (pa.string(), pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.bool_(), pa.null(), pa.binary())
        )
        values = pa.nulls(table.num_rows, to) if draw.random() < 0.5 else table.column(column).cast(to)
        table = table.set_column(column, table.column_names[column], values)
    else:
        values = table.column(column).to_pylist()
        row = draw.randrange(len(values))
        for at in range(len(values)) if draw.random() < 0.3 else (row,):
            values[at] = _other_value(values[at], draw)
        type_ = table.schema.field(column).type
        table = table.set_column(
            column, table.column_names[column], pa.array(values, type_ if draw.random() < 0.7 else None)
        )
    out = io.BytesIO()
    pq.write_table(table, out, compression=draw.choice(("snappy", "none", "zstd")))
    return out.getvalue()


def _other_value(old: Any, draw: Random) -> Any:
    if isinstance(old, list) and draw.random() < 0.8:
        if old and draw.random() < 0.6:
            at = draw.randrange(len(old))
            return [*old[:at], _other_value(old[at], draw), *old[at + 1 :]]
        return draw.choice(([], old[:-1], old * 2, None, old[::-1], [None]))
    if isinstance(old, str):
        return draw.choice((None, "", mutated_text(old, draw).encode("utf-8", "replace").decode(), "L0.ff.999999999"))
    if isinstance(old, bool):
        return draw.choice((None, not old))
    if isinstance(old, int):
        return draw.choice((None, -1, 0, old + 1, old - 1, 10**6, (1 << 31) - 1, -(1 << 31), 10**12, (1 << 63) - 1))
    return draw.choice((None, float("nan"), float("inf"), float("-inf"), 0.0, -1e30, 1e308))


def _lines(data: bytes, draw: Random) -> bytes:
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    line = lines[at]
    lines[at : at + draw.choice((0, 1, 1))] = draw.choice(
        (
            [],
            [line] * 2,
            [line + b" " + line],
            [draw.choice(lines)],
            [mutated_text(line.decode("utf-8", "replace"), draw).encode("utf-8", "replace")],
            [draw.choice(TEXTS).encode("utf-8", "surrogatepass")],
            [b"\xff\xfe" + line],
            [line + b"\r"],
        )
    )
    return b"\n".join(lines)


def _npy(data: bytes, draw: Random) -> bytes:
    """Change the text of the header, and correct its length."""
    (length,) = struct.unpack_from("<H", data, 8)
    header = data[10 : 10 + length].decode("latin-1")
    old, new = draw.choice(
        (
            ("<f4", draw.choice(("<f8", ">f4", "|O", "<i4", "<U8", "|V4", "(3,)<f4"))),
            ("False", "True"),
            (
                "(",
                draw.choice(("(-1, ", "(999999999999, ", "(0, ", "((", "[")),
            ),
            ("shape", draw.choice(("Shape", "descr"))),
            (", }", draw.choice((", 'a': 1}", "", ", '__class__': 1, }"))),
        )
    )
    text = header.replace(old, new).encode("latin-1")
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + length :]


_KINDS: dict[str, Bytes] = {
    ".json": _json,
    ".safetensors": _safetensors,
    ".gguf": _gguf,
    ".bin": _torch,
    ".pt": _torch,
    ".parquet": _parquet,
    ".npy": _npy,
    ".txt": _lines,
}
