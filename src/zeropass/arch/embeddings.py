"""Which stored tensors are the embedding and the unembedding: what is stored decides, as in transformers 5.

One of them is stored: it serves as both, where the model ties them. Both are stored and equal: they are tied. Both are
stored and differ: each is what it is, whatever the configuration says (``PreTrainedModel.tie_weights``, transformers
5.24).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from zeropass.arch.config import Names, full_name
from zeropass.arch.spec import Family, Layout, Stored
from zeropass.checkpoints.base import Float32, TensorSource
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, BadWeights

__all__ = ["Tables", "settle"]

_FIRST, _BLOCK = 64, 1 << 23
"""Rows that are compared first, which tell nearly all tables that differ, and numbers that are compared at once."""


@dataclass(frozen=True)
class Tables:
    """A layout in which embedding and unembedding have the names that they are stored under.

    ``tied``: U is E. ``notes`` say where the files and their configuration disagree.
    """

    layout: Layout
    tied: bool
    notes: tuple[str, ...] = ()


def settle(files: ModelFiles, family: Family, layout: Layout, prefix: str, names: Names) -> Tables:
    """Find the tensors of a file that hold E and U.

    Raises BadModel for a ``tie_word_embeddings`` that is no truth value, BadWeights where no tensor is the embedding.
    """
    says = _configured(files)
    ties = family.always_tied or files.format == "gguf" or (family.tied_by_default if says is None else says)
    own = layout.tensors["embedding"].name
    head = layout.tensors["unembedding"].name if "unembedding" in layout.tensors else layout.head
    tried = (*(layout.copies or (own,)), head) if ties else (*layout.copies[:1], own)
    embedding = _first_stored(tried, prefix, names)
    if embedding is None:
        raise _no_embedding(files, tried, head, prefix, names)
    layout = _named(layout, "embedding", embedding)
    unembedding = _first_stored((head, own, embedding) if ties else (head,), prefix, names)
    if "unembedding" not in layout.tensors or unembedding is None:
        return Tables(layout, tied=ties or "unembedding" not in layout.tensors)
    if unembedding == embedding:
        alone = f"Embedding and unembedding are stored once, as {full_name(head, prefix)}."
        return Tables(layout, tied=True, notes=(alone,) if embedding == head else ())
    layout = _named(layout, "unembedding", unembedding)
    first, second = full_name(embedding, prefix), full_name(unembedding, prefix)
    tied = _equal(files.source, first, second)
    return Tables(layout, tied, _disagreement(says, tied, first, second))


def _configured(files: ModelFiles) -> bool | None:
    """Return what the configuration says of ties; None if it is silent, as that of a GGUF file is."""
    says = files.config.get("tie_word_embeddings")
    if says is not None and not isinstance(says, bool):
        raise BadModel(f"{files.path}: tie_word_embeddings is {says!r}; it must be true or false.")
    return says


def _first_stored(tried: Iterable[str], prefix: str, names: Names) -> str | None:
    return next((name for name in tried if name and full_name(name, prefix) in names), None)


def _named(layout: Layout, what: str, name: str) -> Layout:
    return replace(layout, tensors={**layout.tensors, what: Stored(name)})


def _no_embedding(files: ModelFiles, tried: Iterable[str], head: str, prefix: str, names: Names) -> BadWeights:
    expected = " or ".join(full_name(name, prefix) for name in tried if name)
    untied = (
        f" {full_name(head, prefix)} is there, but the configuration says that the two are not tied."
        if head and full_name(head, prefix) in names
        else ""
    )
    return BadWeights(f"{files.source.path}: there is no embedding; expected a tensor named {expected}.{untied}")


def _disagreement(says: bool | None, tied: bool, first: str, second: str) -> tuple[str, ...]:
    """Say what the configuration has otherwise than the tensors."""
    if tied is says:
        return ()
    if tied:
        return (f"{first} and {second} are equal, so they are read as tied; the configuration does not say that.",)
    claim = "says that they are tied" if says else "does not say that they are not tied"
    return (f"{first} and {second} differ, so each is read as it is; the configuration {claim}.",)


def _equal(source: TensorSource, first: str, second: str) -> bool:
    """Return whether two tables hold the same numbers, reading no more of them than it takes to tell.

    Rows that are not finite count as equal: who reads one that is used is told of it.
    """
    shape = source.shape(first)
    if shape != source.shape(second) or len(shape) != 2:
        return False

    def rows(name: str, start: int, stop: int) -> Float32:
        return source.rows(name, start, stop, spare=np.ones(stop - start, dtype=np.bool_))

    return all(np.array_equal(rows(first, *part), rows(second, *part)) for part in _blocks(*shape))


def _blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield where each block of rows begins and ends, the short first one included."""
    yield 0, min(_FIRST, rows)
    step = max(_BLOCK // width, 1)
    for start in range(_FIRST, rows, step):
        yield start, min(start + step, rows)
