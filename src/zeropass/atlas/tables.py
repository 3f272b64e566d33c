"""The Parquet files of an atlas: equal content gives equal bytes, and every file is written atomically."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from zeropass.arch.roles import Side
from zeropass.atlas.schema import atlas_file
from zeropass.errors import BadAtlas
from zeropass.model.address import Address
from zeropass.numerics.projection import Extremes, strength
from zeropass.numerics.statistics import blocks
from zeropass.numerics.token_index import TokenIndex
from zeropass.numerics.top_pairs import TopPairs
from zeropass.tokens.shown import VIEWS
from zeropass.tokens.undertrained import Judgement
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["ListBlock", "read_mark", "write_lists", "write_mark", "write_pairs", "write_table", "write_token_index"]

Kind = tuple[Side, str]
"""(side, frame) of a list."""


@dataclass(frozen=True, eq=False)
class ListBlock:
    """The lists of a run of n vectors in one frame: ids, addresses, and top and bottom tokens by z.

    Attributes:
        first_id: Id of the first list.
        addresses: Addresses of the vectors.
        frame: The frame.
        norm: Norm of each vector, (n,).
        mean: Mean of each list's scores over the tokens in use, (n,).
        std: Standard deviation of these scores, (n,).
        spread: Standard deviation of z over the tokens in use, (n,).
        kurtosis: Kurtosis of the scores of the shown tokens, (n,).
        coherence: How far the first tokens of the stronger pole belong together, (n,).
        extremes: Top and bottom tokens.
    """

    first_id: int
    addresses: Sequence[Address]
    frame: str
    norm: Tensor
    mean: Tensor
    std: Tensor
    spread: Tensor
    kurtosis: Tensor
    coherence: Tensor
    extremes: Extremes

    @cached_property
    def about(self) -> dict[str, Any]:
        """The columns about the lists, without their tokens."""
        e, n = self.extremes, len(self.addresses)
        return {
            "id": pa.array(np.arange(self.first_id, self.first_id + n, dtype=np.int32)),
            "address": pa.array([str(a) for a in self.addresses], pa.string()),
            "head": pa.array([a.head for a in self.addresses], pa.int32()),
            "index": pa.array([a.index for a in self.addresses], pa.int32()),
            "frame": pa.repeat(self.frame, n),
            "norm": _column(self.norm),
            "mean": _column(self.mean),
            "std": _column(self.std),
            "spread": _column(self.spread),
            "strength": _column(strength(e)),
            "best": _column(strength(e, rank=1)),
            "kurtosis": _column(self.kurtosis),
            "coherence": _column(self.coherence),
        }


@dataclass(frozen=True, eq=False)
class PairRow:
    """The top pairs of one head map, in token ids."""

    address: str
    role: str
    head: int
    offset: int
    frame: str
    pairs: TopPairs


def write_table(path: Path, table: pa.Table, row_group: int = 65536, compression: str = "zstd") -> None:
    """Write a table atomically."""
    _write_groups(path, table.schema, [table], row_group, compression)


def _write_groups(
    path: Path, schema: pa.Schema, groups: Iterable[pa.Table], row_group: int, compression: str = "zstd"
) -> None:
    """Write tables of one schema one after the other, atomically; no two of them share a row group."""
    options: dict[str, Any] = {
        "compression": compression,
        "use_dictionary": [f.name for f in schema if pa.types.is_string(f.type) and f.name != "address"],
        "use_byte_stream_split": [f.name for f in schema if pa.types.is_floating(f.type)],
    }
    with atlas_file(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=row_group)


def _full_groups(tables: Iterable[pa.Table], row_group: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of complete row groups; only the last may be short."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if (count := sum(map(len, waiting))) >= row_group:
            joined, cut = pa.concat_tables(waiting), count // row_group * row_group
            yield joined.slice(0, cut)
            waiting = [joined.slice(cut)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def write_lists(path: Path, blocks: Iterable[ListBlock]) -> None:
    """Write the lists of one layer and role: a row for each vector and frame, tokens and z in arrays of one length."""
    # Small row groups let a query of one parameter read little; in yet smaller ones the search takes longer than that.
    write_table(path, pa.concat_tables([_list_table(block) for block in blocks]), row_group=256)


def _list_table(block: ListBlock) -> pa.Table:
    e = block.extremes
    poles = {"top_ids": e.top_ids.int(), "top_z": e.top, "bottom_ids": e.bottom_ids.int(), "bottom_z": e.bottom}
    return pa.table(block.about | {name: _arrays(values) for name, values in poles.items()})


def write_index(path: Path, blocks: Iterable[ListBlock], layer: int, role: str, side: Side, is_word: Tensor) -> None:
    """Write one layer and role's part of the index over all lists, which `write_parameters` joins.

    Args:
        path: The file.
        blocks: The lists.
        layer: Their layer.
        role: Their role.
        side: Their side.
        is_word: The tokens that are words, (V,).
    """
    tables = (_index_table(block, layer, role, side, is_word) for block in blocks)
    _write_groups(path, _PARAMETERS, tables, 1 << 20, compression="none")  # The file is temporary.


def _index_table(block: ListBlock, layer: int, role: str, side: Side, is_word: Tensor) -> pa.Table:
    e, n = block.extremes, len(block.addresses)
    up = e.top[:, :1] >= -e.bottom[:, :1]
    words = torch.where(up, e.top_ids[:, :WORDS], e.bottom_ids[:, :WORDS])
    columns = block.about | {
        "layer": pa.repeat(pa.scalar(layer, pa.int32()), n),
        "role": pa.repeat(role, n),
        "side": pa.repeat(side, n),
        "words": _lists(words.int()),
        "words_z": _lists(torch.where(up, e.top[:, :WORDS], e.bottom[:, :WORDS])),
        "top_words": _first_words(e.top_ids, is_word),
        "bottom_words": _first_words(e.bottom_ids, is_word),
    }
    return pa.table({name: columns[name] for name in _PARAMETERS.names}, schema=_PARAMETERS)


def write_parameters(path: Path, parts: Iterable[Path]) -> int:
    """Write the index over all lists from its parts, in their order; return the number of lists."""
    count = 0

    def count_rows() -> Iterator[pa.Table]:
        nonlocal count
        for part in map(_read, parts):
            count += len(part)
            yield part

    # Small row groups let a query of one layer read little.
    _write_groups(path, _PARAMETERS, _full_groups(count_rows(), 8192), 8192)
    return count


WORDS = 6
"""Number of tokens of a list's stronger pole in the index over all lists."""

POLE_WORDS = 3
"""Number of words of each pole in the index over all lists: the first tokens that are words."""

_PARAMETERS = pa.schema(
    {"id": pa.int32(), "address": pa.string(), "layer": pa.int32(), "role": pa.string(), "side": pa.string()}
    | {"head": pa.int32(), "index": pa.int32(), "frame": pa.string()}
    | dict.fromkeys(("norm", "mean", "std", "spread", "strength", "best", "kurtosis", "coherence"), pa.float32())
    | {"words": pa.list_(pa.int32()), "words_z": pa.list_(pa.float32())}
    | dict.fromkeys(("top_words", "bottom_words"), pa.list_(pa.int32()))
)


def _first_words(ids: Tensor, is_word: Tensor) -> pa.Array:
    """Return the first tokens of lists (n, k) that are words, as lists of at most `POLE_WORDS` ids."""
    kept = is_word[ids]
    kept &= kept.cumsum(1) <= POLE_WORDS
    counts = kept.sum(1).cpu().numpy()
    offsets = np.concatenate(([0], counts.cumsum())).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids[kept].int().cpu().numpy()))


def write_coherence(path: Path, layer: int, nulls: Mapping[tuple[str, str, str], float]) -> None:
    """Write a layer's part of the coherence that random directions stay below, by (role, frame, view)."""
    columns: dict[str, Any] = {"layer": pa.array([layer] * len(nulls), pa.int32())}
    for place, name in enumerate(("role", "frame", "view")):
        columns[name] = pa.array([key[place] for key in nulls], pa.string())
    columns["coherence"] = pa.array(list(nulls.values()), pa.float32())
    write_table(path, pa.table(columns))


def write_all_coherence(path: Path, parts: Iterable[Path]) -> None:
    """Write the table of random directions' coherence from its parts, in their order."""
    write_table(path, pa.concat_tables(map(_read, parts)))


def write_tokens(path: Path, vocab: Vocabulary, judgement: Judgement) -> None:
    """Write the table of all tokens: text, piece as the tokenizer has it, and the views that show them."""
    columns = {
        "id": pa.array(np.arange(vocab.size, dtype=np.int32)),
        "token": pa.array([_storable(vocab.label(i)) for i in range(vocab.size)], pa.string()),
        "piece": pa.array([_storable(piece) for piece in vocab.pieces], pa.string()),
        "special": pa.array(vocab.special),
        "unused": pa.array(vocab.unused),
        "literal": pa.array(vocab.literal),
        "hardly_trained": pa.array(judgement.undertrained),
    }
    views = {f"in_{view}": pa.array(vocab.mask(view, *judgement)) for view in VIEWS}
    write_table(path, pa.table({**columns, **views}))


def _read(path: Path) -> pa.Table:
    """Read a table that an earlier run may have written; raise BadAtlas, naming the file, if it is damaged."""
    with _reading(path):
        return pq.read_table(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise BadAtlas for an error of pyarrow."""
    try:
        yield
    except (OSError, ValueError) as error:  # The base classes of pyarrow's errors.
        raise BadAtlas(f"{path} cannot be read ({error}); delete the folder and build again.") from error


def _storable(text: str) -> str:
    """Return text that Parquet can hold: lone surrogates are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_pairs(path: Path, rows: Sequence[PairRow]) -> None:
    """Write the top pairs of head maps: one row for each map, pairs best first, with the certificate."""
    pairs = [row.pairs for row in rows]
    table = pa.table(
        {
            "address": pa.array([row.address for row in rows], pa.string()),
            "head": pa.array([row.head for row in rows], pa.int32()),
            "offset": pa.array([row.offset for row in rows], pa.int32()),
            "frame": pa.array([row.frame for row in rows], pa.string()),
            "left_ids": pa.array([p.left.tolist() for p in pairs], pa.list_(pa.int32())),
            "right_ids": pa.array([p.right.tolist() for p in pairs], pa.list_(pa.int32())),
            "scores": pa.array([p.scores.tolist() for p in pairs], pa.list_(pa.float32())),
            "kth": pa.array([p.kth for p in pairs], pa.float32()),
            "bound": pa.array([p.bound for p in pairs], pa.float32()),
            "complete": pa.array([p.complete for p in pairs], pa.bool_()),
        }
    )
    write_table(path, table)


def write_mark(path: Path, entries: Iterable[tuple[Kind, Tensor, Tensor]]) -> None:
    """Write what a job found for the tokens: (type of list, tokens, keys) as `TokenIndex.entries` yields them."""
    groups = (_full_groups(_mark_tables(name, parts), 1 << 18) for name, parts in groupby(entries, itemgetter(0)))
    _write_groups(path, _MARK, chain.from_iterable(groups), 1 << 20, compression="none")  # The file is temporary.


def _mark_tables(list_type: Kind, entries: Iterable[tuple[Kind, Tensor, Tensor]]) -> Iterator[pa.Table]:
    """Yield the entries of one type of list as tables."""
    for _, tokens, keys in entries:
        columns = {"token": _column(tokens.int()), "key": _column(keys)}
        yield pa.table(_type_columns(list_type, len(tokens)) | columns, schema=_MARK)


def _type_columns(list_type: Kind, count: int) -> dict[str, Any]:
    """Return the columns with the type of list, the same in all rows."""
    return {name: pa.repeat(value, count) for name, value in zip(("side", "frame"), list_type, strict=True)}


def read_mark(path: Path) -> Iterator[tuple[Kind, Tensor, Tensor]]:
    """Yield the entries of a file of `write_mark`, all of one type of list together."""
    tables: dict[Kind, list[pa.Table]] = {}
    with _reading(path), pq.ParquetFile(path) as file:
        for table in map(file.read_row_group, range(file.num_row_groups)):  # Each group has one type of list.
            if len(table):
                list_type = table["side"][0].as_py(), table["frame"][0].as_py()
                tables.setdefault(list_type, []).append(table.select(["token", "key"]))
    for list_type in sorted(tables):
        table = pa.concat_tables(tables.pop(list_type))
        yield list_type, _tensor(table["token"]).long(), _tensor(table["key"])


_MARK = pa.schema({"side": pa.string(), "frame": pa.string(), "token": pa.int32(), "key": pa.int64()})


def write_token_index(path: Path, lists: dict[Kind, TokenIndex], kept: Tensor) -> None:
    """Write the best parameters for each type of list and token, by falling |z|; the rows of a token are adjacent."""
    groups = (_full_groups(_index_tables(name, lists[name], kept), 25_000) for name in sorted(lists))
    _write_groups(path, _INDEX_SCHEMA, chain.from_iterable(groups), 25_000)


_INDEX_SCHEMA = pa.schema(
    {"side": pa.string(), "frame": pa.string(), "token": pa.int32(), "rank": pa.int16(), "id": pa.int32()}
    | {"z": pa.float32()}
)


def _index_tables(list_type: Kind, index: TokenIndex, kept: Tensor) -> Iterator[pa.Table]:
    """Yield the index of one type of list, a block of tokens at a time."""
    rank = torch.arange(index.keys.shape[1], dtype=torch.int16, device=kept.device)
    for part in blocks(len(kept), 2048):
        taken, ids, z = index.ranked(part)
        token, place = taken.nonzero(as_tuple=True)
        columns: dict[str, Any] = {
            "token": _column(kept[part][token].int()),
            "rank": _column(rank[place]),
            "id": _column(ids[taken].int()),
            "z": _column(z[taken]),
        }
        yield pa.table(_type_columns(list_type, len(token)) | columns, schema=_INDEX_SCHEMA)


def _column(values: Tensor) -> pa.Array:
    return pa.array(values.cpu().numpy())


def _arrays(values: Tensor) -> pa.Array:
    flat = pa.array(values.cpu().contiguous().flatten().numpy())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _lists(values: Tensor) -> pa.Array:
    """Return the same as `_arrays`, typed as lists of any length."""
    ends = pa.array(np.arange(0, values.numel() + 1, max(1, values.shape[1]), dtype=np.int32))
    return pa.ListArray.from_arrays(ends, _column(values.flatten()))


def _tensor(column: pa.ChunkedArray) -> Tensor:
    return torch.from_numpy(column.to_numpy().copy())
