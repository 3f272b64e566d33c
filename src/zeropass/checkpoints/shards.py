"""The shards of one model as one: which file's copy of a tensor counts, and which tensors are no part of the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeropass.errors import BadModel, BadWeights, in_short

__all__ = ["Merged", "merge_shards"]


@dataclass(frozen=True)
class Merged:
    """Where each tensor of a model is read.

    Attributes:
        home: tensor name to its file, shard by shard.
        unindexed: tensors that are in the shards and not in their index.
        notes: what a user should know of it, a sentence each.
    """

    home: dict[str, Path]
    unindexed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def merge_shards(shards: Mapping[Path, Sequence[str]], index: Mapping[str, str] | None) -> Merged:
    """Find the file of each tensor.

    The index decides which of two copies counts. What it does not name is left out and told: transformers would load
    such a tensor where its model has a place for it, and of two copies it takes the one in the last file.

    Args:
        shards: the tensor names of each file, in the order of the files.
        index: tensor name to file name.

    Raises BadModel for a tensor that is in two files where no index says which counts, BadWeights for one that is
    not where the index says.
    """
    copies: dict[str, list[Path]] = {}
    for file, names in shards.items():
        for name in names:
            copies.setdefault(name, []).append(file)
    twice = {name: files for name, files in copies.items() if len(files) > 1}
    if index is None:
        for name, (first, second, *_) in twice.items():
            raise BadModel(
                f"{second}: tensor {name!r} is also in {first.name}; without an index it must be in one shard."
            )
        return Merged({name: files[0] for name, files in copies.items()})
    home = {name: file for name, files in copies.items() for file in files if index.get(name) == file.name}
    for name, shard in index.items():
        if name not in home:
            raise BadWeights(
                f"{next(iter(shards)).parent / shard}: tensor {name!r} is not in it, though the index says so."
            )
    unindexed = sorted(copies.keys() - index.keys())
    notes = (*_of_copies(sorted(twice.keys() & index.keys()), twice, home), *_of_unindexed(unindexed))
    return Merged(home, frozenset(unindexed), notes)


def _of_copies(names: Sequence[str], twice: Mapping[str, list[Path]], home: Mapping[str, Path]) -> Iterator[str]:
    if names:
        yield f"In several shards: {in_short(map(repr, names))}. The copy was read that the index names."
    if early := [name for name in names if home[name] != twice[name][-1]]:
        yield (
            f"Of {in_short(map(repr, early))} the index names another copy than that in the last file, which is the "
            "one that transformers 5 takes."
        )


def _of_unindexed(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"In the shards, but not in their index, and therefore not read: {in_short(map(repr, names))}."
