"""The Parquet files of an atlas: equal content gives equal bytes, and every file is whole or not there."""

from collections.abc import Iterable, Iterator, Sequence
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

from zeropass.arch.spec import Side
from zeropass.atlas.schema import atlas_file
from zeropass.errors import BadAtlas
from zeropass.model.address import Address
from zeropass.numerics.projection import Extremes
from zeropass.numerics.statistics import blocks
from zeropass.numerics.token_index import TokenIndex
from zeropass.numerics.top_pairs import TopPairs
from zeropass.tokens.undertrained import Judgement
from zeropass.tokens.vocabulary import VIEWS, Vocabulary

__all__ = ["ListBlock", "read_mark", "write_lists", "write_mark", "write_pairs", "write_table", "write_token_index"]

Kind = tuple[Side, str]
"""(side, frame) of a list."""


@dataclass(frozen=True, eq=False)
class ListBlock:
    """The lists of a run of vectors in one frame: ids, addresses, and top and bottom tokens by z.

    ``spread`` is the standard deviation of z over the tokens in use, ``kurtosis`` tells its tails over the shown ones.
    """

    first_id: int
    addresses: Sequence[Address]
    frame: str
    norm: Tensor
    mean: Tensor
    std: Tensor
    spread: Tensor
    kurtosis: Tensor
    extremes: Extremes

    @cached_property
    def about(self) -> dict[str, Any]:
        """What tables have of them besides their tokens."""
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
    """Write a table whole or not at all."""
    _write_groups(path, table.schema, [table], row_group, compression)


def _write_groups(
    path: Path, schema: pa.Schema, groups: Iterable[pa.Table], row_group: int, compression: str = "zstd"
) -> None:
    """Write tables of one schema under each other as they come, whole or not at all; none shares a group of rows."""
    options: dict[str, Any] = {
        "compression": compression,
        "use_dictionary": [f.name for f in schema if pa.types.is_string(f.type) and f.name != "address"],
        "use_byte_stream_split": [f.name for f in schema if pa.types.is_floating(f.type)],
    }
    with atlas_file(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=row_group)


def _full_groups(tables: Iterable[pa.Table], row_group: int) -> Iterator[pa.Table]:
    """The same rows in tables of whole groups; only the last may be short."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if (count := sum(map(len, waiting))) >= row_group:
            whole, cut = pa.concat_tables(waiting), count // row_group * row_group
            yield whole.slice(0, cut)
            waiting = [whole.slice(cut)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def write_lists(path: Path, blocks: Iterable[ListBlock]) -> None:
    """Lists of one layer and role: one row a vector and frame, tokens and z in arrays of equal length."""
    # Small row groups, so that showing one parameter reads little; smaller ones take longer to find than to read.
    write_table(path, pa.concat_tables([_list_table(block) for block in blocks]), row_group=256)


def _list_table(block: ListBlock) -> pa.Table:
    e = block.extremes
    poles = {"top_ids": e.top_ids.int(), "top_z": e.top, "bottom_ids": e.bottom_ids.int(), "bottom_z": e.bottom}
    return pa.table(block.about | {name: _arrays(values) for name, values in poles.items()})


def strength(e: Extremes, rank: int = 10) -> Tensor:
    """How telling a list is, (n,): |z| of the tenth token of its stronger pole. One odd token does not make it so."""
    at = min(rank, e.top.shape[1]) - 1
    return torch.maximum(e.top[:, at].abs(), e.bottom[:, at].abs())


def write_index(path: Path, blocks: Iterable[ListBlock], layer: int, role: str, side: Side) -> None:
    """The lists of one layer and role as they stand in the index over all, which `write_parameters` makes of these."""
    tables = (_index_table(block, layer, role, side) for block in blocks)
    _write_groups(path, _PARAMETERS, tables, 1 << 20, compression="none")  # it is not kept for long


def _index_table(block: ListBlock, layer: int, role: str, side: Side) -> pa.Table:
    e, n = block.extremes, len(block.addresses)
    up = e.top[:, :1] >= -e.bottom[:, :1]
    words = torch.where(up, e.top_ids[:, :WORDS], e.bottom_ids[:, :WORDS])
    columns = block.about | {
        "layer": pa.repeat(pa.scalar(layer, pa.int32()), n),
        "role": pa.repeat(role, n),
        "side": pa.repeat(side, n),
        "words": _lists(words.int()),
        "words_z": _lists(torch.where(up, e.top[:, :WORDS], e.bottom[:, :WORDS])),
    }
    return pa.table({name: columns[name] for name in _PARAMETERS.names}, schema=_PARAMETERS)


def write_parameters(path: Path, parts: Iterable[Path]) -> int:
    """The index over all lists from its parts, in their order; returns how many."""
    count = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal count
        for part in map(_read, parts):
            count += len(part)
            yield part

    # What is asked of one layer then reads little.
    _write_groups(path, _PARAMETERS, _full_groups(counted(), 8192), 8192)
    return count


WORDS = 6
"""The first tokens of a list's stronger pole, as the index over all lists has them."""

_PARAMETERS = pa.schema(
    {"id": pa.int32(), "address": pa.string(), "layer": pa.int32(), "role": pa.string(), "side": pa.string()}
    | {"head": pa.int32(), "index": pa.int32(), "frame": pa.string()}
    | dict.fromkeys(("norm", "mean", "std", "spread", "strength", "best", "kurtosis"), pa.float32())
    | {"words": pa.list_(pa.int32()), "words_z": pa.list_(pa.float32())}
)


def write_tokens(path: Path, vocab: Vocabulary, judgement: Judgement) -> None:
    """Every token: its text, its piece as the tokenizer has it, and in which views it is shown."""
    columns = {
        "id": pa.array(np.arange(vocab.size, dtype=np.int32)),
        "token": pa.array([_storable(vocab.label(i)) for i in range(vocab.size)], pa.string()),
        "piece": pa.array([_storable(piece) for piece in vocab.pieces], pa.string()),
        "special": pa.array(vocab.special),
        "unused": pa.array(vocab.unused),
        "literal": pa.array(vocab.literal),
        "hardly_trained": pa.array(judgement.hardly_trained),
    }
    views = {f"in_{view}": pa.array(vocab.mask(view, *judgement)) for view in VIEWS}
    write_table(path, pa.table({**columns, **views}))


def _read(path: Path) -> pa.Table:
    """A table of an earlier run. Raises BadAtlas, naming the file, where it is damaged."""
    with _reading(path):
        return pq.read_table(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # what pyarrow's errors derive from
        raise BadAtlas(f"{path} cannot be read ({error}); delete the folder and build again.") from error


def _storable(text: str) -> str:
    """Text that Parquet can hold: lone surrogates are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_pairs(path: Path, rows: Sequence[PairRow]) -> None:
    """Top pairs of head maps: one row each, pairs best first, with the certificate."""
    found = [row.pairs for row in rows]
    table = pa.table(
        {
            "address": pa.array([row.address for row in rows], pa.string()),
            "head": pa.array([row.head for row in rows], pa.int32()),
            "offset": pa.array([row.offset for row in rows], pa.int32()),
            "frame": pa.array([row.frame for row in rows], pa.string()),
            "left_ids": pa.array([p.left.tolist() for p in found], pa.list_(pa.int32())),
            "right_ids": pa.array([p.right.tolist() for p in found], pa.list_(pa.int32())),
            "scores": pa.array([p.scores.tolist() for p in found], pa.list_(pa.float32())),
            "kth": pa.array([p.kth for p in found], pa.float32()),
            "bound": pa.array([p.bound for p in found], pa.float32()),
            "complete": pa.array([p.complete for p in found], pa.bool_()),
        }
    )
    write_table(path, table)


def write_mark(path: Path, found: Iterable[tuple[Kind, Tensor, Tensor]]) -> None:
    """What a job found for the tokens: (kind, tokens, keys) as `TokenIndex.entries` gives them."""
    kinds = (_full_groups(_mark_tables(kind, parts), 1 << 18) for kind, parts in groupby(found, itemgetter(0)))
    _write_groups(path, _MARK, chain.from_iterable(kinds), 1 << 20, compression="none")  # it is not kept for long


def _mark_tables(kind: Kind, found: Iterable[tuple[Kind, Tensor, Tensor]]) -> Iterator[pa.Table]:
    for _, tokens, keys in found:
        columns = {"token": _column(tokens.int()), "key": _column(keys)}
        yield pa.table(_names(kind, len(tokens)) | columns, schema=_MARK)


def _names(kind: Kind, count: int) -> dict[str, Any]:
    """The columns that say of what kind all rows are."""
    return {name: pa.repeat(value, count) for name, value in zip(("side", "frame"), kind, strict=True)}


def read_mark(path: Path) -> Iterator[tuple[Kind, Tensor, Tensor]]:
    """The entries that `write_mark` kept, all of a kind together."""
    found: dict[Kind, list[pa.Table]] = {}
    with _reading(path), pq.ParquetFile(path) as file:
        for table in map(file.read_row_group, range(file.num_row_groups)):  # none is of two kinds
            if len(table):
                kind = table["side"][0].as_py(), table["frame"][0].as_py()
                found.setdefault(kind, []).append(table.select(["token", "key"]))
    for kind in sorted(found):
        table = pa.concat_tables(found.pop(kind))
        yield kind, _tensor(table["token"]).long(), _tensor(table["key"])


_MARK = pa.schema({"side": pa.string(), "frame": pa.string(), "token": pa.int32(), "key": pa.int64()})


def write_token_index(path: Path, lists: dict[Kind, TokenIndex], kept: Tensor) -> None:
    """For each kind of list and kept token the best parameters, by falling |z|; sorted so that a token is one run."""
    kinds = (_full_groups(_index_tables(kind, lists[kind], kept), 25_000) for kind in sorted(lists))
    _write_groups(path, _INDEX_SCHEMA, chain.from_iterable(kinds), 25_000)


_INDEX_SCHEMA = pa.schema(
    {"side": pa.string(), "frame": pa.string(), "token": pa.int32(), "rank": pa.int16(), "id": pa.int32()}
    | {"z": pa.float32()}
)


def _index_tables(kind: Kind, index: TokenIndex, kept: Tensor) -> Iterator[pa.Table]:
    """Yield the index of one kind of list, some tokens at a time."""
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
        yield pa.table(_names(kind, len(token)) | columns, schema=_INDEX_SCHEMA)


def _column(values: Tensor) -> pa.Array:
    return pa.array(values.cpu().numpy())


def _arrays(values: Tensor) -> pa.Array:
    flat = pa.array(values.cpu().contiguous().flatten().numpy())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _lists(values: Tensor) -> pa.Array:
    """As `_arrays`, but typed as lists of any length."""
    ends = pa.array(np.arange(0, values.numel() + 1, max(1, values.shape[1]), dtype=np.int32))
    return pa.ListArray.from_arrays(ends, _column(values.flatten()))


def _tensor(column: pa.ChunkedArray) -> Tensor:
    return torch.from_numpy(column.to_numpy().copy())
