"""The shards of one model, merged: the file whose copy of each tensor counts, and tensors outside the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zeropass.errors import BadModel, BadWeights, in_short

__all__ = ["Merged", "merge_shards"]


@dataclass(frozen=True)
class Merged:
    """The files of a model's tensors.

    Attributes:
        home: Tensor name to its file, shard by shard.
        unindexed: Tensors that are in the shards but not in their index.
        notes: Notes for the user, a sentence each.
    """

    home: dict[str, Path]
    unindexed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def merge_shards(shards: Mapping[Path, Sequence[str]], index: Mapping[str, str] | None) -> Merged:
    """Find the file of each tensor.

    The index decides which of two copies counts. A tensor that it does not name is left out, with a note, because
    transformers would load it if the model has such a parameter. Of two copies, transformers takes the last.

    Args:
        shards: The tensor names of each file, in the order of the files.
        index: Tensor name to file name; None if there is no index.

    Raises:
        BadModel: For a tensor that is in two files while there is no index.
        BadWeights: For a tensor that is not in the file that the index names.
    """
    copies: dict[str, list[Path]] = {}
    for file, names in shards.items():
        for name in names:
            copies.setdefault(name, []).append(file)
    duplicates = {name: files for name, files in copies.items() if len(files) > 1}
    if index is None:
        for name, (first, second, *_) in duplicates.items():
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
    notes = (*_copy_notes(sorted(duplicates.keys() & index.keys()), duplicates, home), *_unindexed_note(unindexed))
    return Merged(home, frozenset(unindexed), notes)


def _copy_notes(names: Sequence[str], duplicates: Mapping[str, list[Path]], home: Mapping[str, Path]) -> Iterator[str]:
    """Yield notes on tensors with several copies."""
    if names:
        yield f"In several shards: {in_short(map(repr, names))}. The copy was read that the index names."
    if early := [name for name in names if home[name] != duplicates[name][-1]]:
        yield (
            f"Of {in_short(map(repr, early))} the index names another copy than that in the last file, which is the "
            "one that transformers 5 takes."
        )


def _unindexed_note(names: Sequence[str]) -> Iterator[str]:
    """Yield a note on tensors that the index does not name."""
    if names:
        yield f"In the shards, but not in their index, and therefore not read: {in_short(map(repr, names))}."
