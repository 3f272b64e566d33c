"""Find the embedding and the unembedding among the stored tensors; as in transformers 5, what is stored decides.

If only one is stored, it serves as both where the model ties them. If both are stored and equal, they are tied. If both
are stored and differ, each is read as it is, whatever the configuration says (``PreTrainedModel.tie_weights``,
transformers 5.24).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from zeropass.arch.layout import Layout, Names, Stored, full_name
from zeropass.arch.spec import Family
from zeropass.checkpoints.base import Float32, TensorSource
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, BadWeights

__all__ = ["Tables", "settle"]

_FIRST_ROWS, _BLOCK_NUMBERS = 64, 1 << 23
"""The rows that are compared first, enough to tell most differing tables apart, and the numbers compared at once."""


@dataclass(frozen=True)
class Tables:
    """A layout in which embedding and unembedding have the names that they are stored under.

    Attributes:
        layout: The layout.
        tied: True if U is E.
        notes: Sentences on where the files and their configuration disagree.
    """

    layout: Layout
    tied: bool
    notes: tuple[str, ...] = ()


def settle(files: ModelFiles, family: Family, layout: Layout, prefix: str, names: Names) -> Tables:
    """Find the tensors of a file that hold E and U.

    Raises:
        BadModel: The value of ``tie_word_embeddings`` is neither true nor false.
        BadWeights: No tensor is the embedding.
    """
    claim = _claimed_tie(files)
    ties = family.always_tied or files.format == "gguf" or (family.tied_by_default if claim is None else claim)
    table = layout.tensors["embedding"].name
    head = layout.tensors["unembedding"].name if "unembedding" in layout.tensors else layout.head
    candidates = (*(layout.copies or (table,)), head) if ties else (*layout.copies[:1], table)
    embedding = _first_stored(candidates, prefix, names)
    if embedding is None:
        raise _no_embedding(files, candidates, head, prefix, names)
    layout = _renamed(layout, "embedding", embedding)
    unembedding = _first_stored((head, table, embedding) if ties else (head,), prefix, names)
    if "unembedding" not in layout.tensors or unembedding is None:
        return Tables(layout, tied=ties or "unembedding" not in layout.tensors)
    if unembedding == embedding:
        note = f"Embedding and unembedding are stored once, as {full_name(head, prefix)}."
        return Tables(layout, tied=True, notes=(note,) if embedding == head else ())
    layout = _renamed(layout, "unembedding", unembedding)
    first, second = full_name(embedding, prefix), full_name(unembedding, prefix)
    tied = _equal(files.source, first, second)
    return Tables(layout, tied, _disagreement(claim, tied, first, second))


def _claimed_tie(files: ModelFiles) -> bool | None:
    """Return whether the configuration calls E and U tied; None if it is silent, as in a GGUF file."""
    claim = files.config.get("tie_word_embeddings")
    if claim is not None and not isinstance(claim, bool):
        raise BadModel(f"{files.place}: tie_word_embeddings is {claim!r}; it must be true or false.")
    return claim


def _first_stored(candidates: Iterable[str], prefix: str, names: Names) -> str | None:
    return next((name for name in candidates if name and full_name(name, prefix) in names), None)


def _renamed(layout: Layout, table: str, name: str) -> Layout:
    return replace(layout, tensors={**layout.tensors, table: Stored(name)})


def _no_embedding(files: ModelFiles, candidates: Iterable[str], head: str, prefix: str, names: Names) -> BadWeights:
    expected = " or ".join(full_name(name, prefix) for name in candidates if name)
    hint = (
        f" {full_name(head, prefix)} is there, but the configuration says that the two are not tied."
        if head and full_name(head, prefix) in names
        else ""
    )
    return BadWeights(f"{files.source.path}: there is no embedding; expected a tensor named {expected}.{hint}")


def _disagreement(claim: bool | None, tied: bool, first: str, second: str) -> tuple[str, ...]:
    """Return a note if the configuration contradicts the tensors."""
    if tied is claim:
        return ()
    if tied:
        return (f"{first} and {second} are equal, so they are read as tied; the configuration does not say that.",)
    clause = "says that they are tied" if claim else "does not say that they are not tied"
    return (f"{first} and {second} differ, so each is read as it is; the configuration {clause}.",)


def _equal(source: TensorSource, first: str, second: str) -> bool:
    """Tell whether two tables hold the same numbers, reading no more of them than necessary.

    Rows that are not finite count as equal; reading one that is used raises BadWeights later.
    """
    shape = source.shape(first)
    if shape != source.shape(second) or len(shape) != 2:
        return False

    def rows(name: str, start: int, stop: int) -> Float32:
        return source.rows(name, start, stop, spare=np.ones(stop - start, dtype=np.bool_))

    return all(np.array_equal(rows(first, *bounds), rows(second, *bounds)) for bounds in _blocks(*shape))


def _blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each block of rows, beginning with a short block."""
    yield 0, min(_FIRST_ROWS, rows)
    step = max(_BLOCK_NUMBERS // width, 1)
    for start in range(_FIRST_ROWS, rows, step):
        yield start, min(start + step, rows)
