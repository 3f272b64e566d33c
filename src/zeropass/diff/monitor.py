"""Run the base once over a text, and find the passages that a change reads most.

Zhong and Raghunathan (2025, *Watch the Weights*, arXiv:2508.00161) monitor cosines along the top singular vectors of
the difference of two models. Here a state x that a changed matrix reads is projected on the leading right singular
directions of the change ΔW. Each projection becomes a robust z over the text, so that directions and matrices count
alike and the singular values do not matter, and the largest of a matrix counts: a token's activation is the root mean
square of these over all matrices. The null is the same of random changes, whose directions are random sums of the base
matrix's own rows: some tokens stand out in any direction. A token's score is its activation over the mean of the
null's there.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.arch.roles import reads_memory, side_of, site_of
from zeropass.diff.changes import Comparison, leading
from zeropass.diff.passages import Passage, Passages
from zeropass.diff.random_changes import drawn
from zeropass.diff.relations import UNRELATED
from zeropass.errors import BadModel
from zeropass.model.adapted import Adapted
from zeropass.model.blocks import Block, Cache, caches, embedded, require_forward
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.positions import longest_text
from zeropass.model.texts import require_tokens, special_tokens
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["CHUNK", "fired_passages"]

DIRECTIONS, DRAWS = 4, 12
"""Directions of the change of a matrix, and random changes."""

MARGIN = 12
"""The tokens on either side of the hottest one that belong to its passage."""

PASSAGES = 10
"""The number of passages by default."""

FEWEST = 128
"""The least number of tokens for which a median of the text means something."""

WINDOW, CONTEXT = 128, 16
"""The tokens that the model sees at once, and those of them that only are the context of the others."""

CHUNK = 8192
"""The tokens that pass all layers together; of a longer text, medians come from so many tokens all over it."""

BATCH = 1024
"""The tokens that pass a layer at once."""

BLOCK = 1 << 16
"""The characters that are split into tokens at once."""


@torch.no_grad()
@shows_progress
def fired_passages(
    base: ModelLike,
    tuned: ModelLike,
    text: str,
    *,
    source: str = "",
    passages: int = PASSAGES,
    progress: Progress | bool = True,
) -> Passages:
    """Return the passages of a text that the change from ``base`` to ``tuned`` reads most.

    The base runs once over the text, from its parameters, a layer at a time; of a long text, one part of 8,192 tokens
    after another. Memory grows with the text by some 20 bytes a token only.

    Args:
        base: The model before, or its name.
        tuned: The model after, or its name.
        text: The text.
        source: The name of the text.
        passages: The number of passages.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Raises:
        BadModel: The models cannot be compared, or were trained apart.
        BadOption: The text has fewer than 128 tokens, or is not of this vocabulary.
        CannotRun: The base is a decoder that reads an encoder, or computes something that is not modelled.

    Example:
        >>> from pathlib import Path
        >>> import zeropass as zp
        >>> base, text = zp.open_model("models/first"), Path("models/tunes/reviews/texts.txt").read_text()[:4000]
        >>> len(zp.fired_passages(base, zp.adapt(base, "models/tunes/reviews"), text, passages=3))
        3
    """
    report = callback(progress)
    base, tuned = open_model(base), open_model(tuned)
    require_forward(base)
    tokens = _Tokens.of(base.vocab, text)
    require_tokens(tokens.ids, FEWEST, base)
    readers = _readers(Comparison(base, tuned), report)
    monitor = _Monitor(model=base, readers=readers, ids=tokens.ids, progress=report)
    if readers:
        monitor.run()
    return Passages(
        base=base.name,
        tuned=tuned.name,
        source=source,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        tokens=len(tokens.ids),
        matrices=len(readers),
        passages=tuple(_passages(monitor, tokens, passages)) if readers else (),
        null=tuple(sorted(monitor.null.tolist())) if readers else (),
        method={"directions": DIRECTIONS, "draws": DRAWS, "window": monitor.window, "context": CONTEXT},
    )


@dataclass(frozen=True)
class _Tokens:
    """A text in tokens.

    Attributes:
        vocab: The vocabulary.
        text: The text.
        ids: The ids, (n,).
        blocks: The first character and the first token of each part that is split by itself.
    """

    vocab: Vocabulary
    text: str
    ids: Tensor
    blocks: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, vocab: Vocabulary, text: str) -> "_Tokens":
        """Split a text, one part of some `BLOCK` characters after another."""
        parts, blocks, first = [], [], 0
        for start, stop in _pieces(text):
            ids = torch.tensor(vocab.encode(text[start:stop]), dtype=torch.int32)
            blocks.append((start, first))
            parts.append(ids)
            first += len(ids)
        ids = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32)
        return cls(vocab=vocab, text=text, ids=ids, blocks=blocks)

    def around(self, token: int) -> tuple[int, str, str, str]:
        """Return the line of a token, the text before it, its own text and the text behind it."""
        start, first = next(block for block in reversed(self.blocks) if block[1] <= token)
        stop = next((s for s, _ in self.blocks if s > start), len(self.text))
        places = self.vocab.encode_with_places(self.text[start:stop])[1]
        at = token - first
        begin, (left, right), end = places[max(at - MARGIN, 0)][0], places[at], places[at + MARGIN : at + MARGIN + 1]
        word = self.text[start + left : start + right]
        left += len(word) - len(word.lstrip(" ")) if word.strip(" ") else 0
        stop = start + end[0][1] if end else stop
        line = 1 + self.text.count("\n", 0, start + left)
        left, right, begin = start + left, start + right, start + min(begin, left)
        return line, self.text[begin:left], self.text[left:right], self.text[right:stop]


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Yield the ends of parts of a text of up to `BLOCK` characters, behind a line or a word where possible."""
    start = 0
    while start < len(text):
        stop = start + BLOCK
        if stop < len(text):
            cut = max(text.rfind("\n", start, stop) + 1, start) or text.rfind(" ", start, stop)
            stop = cut if cut > start else stop
        yield start, min(stop, len(text))
        start = stop


@dataclass(frozen=True, eq=False)
class _Reader:
    """The directions that the change of a matrix reads, and those of the null.

    Attributes:
        layer: The layer of the matrix.
        role: The role of the matrix.
        directions: Those of the change and of each draw, (1 + draws, k, d).
    """

    layer: int
    role: str
    directions: Tensor


def _readers(pair: Comparison, progress: Progress) -> list[_Reader]:
    """Return a reader for each matrix that reads the stream and that changed by more than rounding.

    Raises:
        BadModel: The models were trained apart.
    """
    base, readers, cosines = pair.base, [], []
    for layer in range(base.dims.layers):
        progress("comparing", layer, base.dims.layers)
        for role in base.matrices(layer):
            if side_of(role) == "write" or reads_memory(role):
                continue
            change = pair.change(role, layer)
            cosines.append(change.cosine)
            if change.norm and not change.rounding:
                directions, _ = leading(change, DIRECTIONS)
                right = directions.right[:, directions.values > 0].T
                readers.append(_Reader(layer, role, torch.cat((right[None], _null(base, role, layer, len(right))))))
    if cosines and not isinstance(pair.tuned, Adapted) and sum(cosines) / len(cosines) < UNRELATED:
        raise BadModel(f"{pair.tuned.name} and {base.name} were trained apart: their difference reads nothing.")
    return readers


def _null(base: Model, role: str, layer: int, count: int) -> Tensor:
    """Return directions of random changes, (draws, count, d): random sums of a matrix's rows."""
    return drawn(base.matrix(role, layer), role, layer, DRAWS * count).reshape(DRAWS, count, -1)


@dataclass(frozen=True)
class _Window:
    """The tokens that the model sees at once: those from ``start``, of which those from ``first`` are scored."""

    start: int
    first: int
    stop: int


@dataclass(frozen=True, eq=False)
class _Batch:
    """Windows of one length, with special tokens around each.

    Attributes:
        ids: The ids, (windows, tokens).
        scored: True for the tokens that are scored, (windows, tokens).
    """

    ids: Tensor
    scored: Tensor


@dataclass(eq=False)
class _Monitor:
    """The scores of the tokens of a text.

    Attributes:
        model: The base.
        readers: The directions that states are projected on.
        ids: The ids of the text, (n,).
        progress: Receives the layers that are done.
        scales: The median and the spread of the projections of each reader, (1 + draws, k, 1).
    """

    model: Model
    readers: Sequence[_Reader]
    ids: Tensor
    progress: Progress
    scales: dict[_Reader, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with a score of 0 everywhere."""
        self.around: tuple[Tensor, ...] = tuple(torch.tensor(ids).long() for ids in special_tokens(self.model))
        self.window: int = min(WINDOW, longest_text(self.model) or WINDOW)
        self.scores: Tensor = torch.zeros(len(self.ids))
        self.hottest: Tensor = torch.zeros(len(self.ids), dtype=torch.int16)
        self.null: Tensor = torch.zeros(DRAWS)

    def run(self) -> None:
        """Score all tokens: note for each the reader that reads it most, and for each draw its highest score."""
        windows = list(self._windows())
        size = max(CHUNK // self.window, 1)
        chunks = [windows[first : first + size] for first in range(0, len(windows), size)]
        if len(chunks) > 1:  # the scales are those of the whole text
            self._activations(windows[:: len(chunks)], 0, 1 + len(chunks))
        for number, chunk in enumerate(chunks):
            settled = len(chunks) > 1
            activations, hottest = self._activations(chunk, number + settled, len(chunks) + settled)
            part = slice(chunk[0].first, chunk[-1].stop)
            change, draws = activations[0], activations[1:]
            others = (draws.sum(0) - draws) / (DRAWS - 1)
            tiny = torch.finfo(torch.float32).tiny
            self.scores[part] = (change / draws.mean(0).clamp_min(tiny)).cpu()
            self.hottest[part] = hottest.short().cpu()
            self.null = torch.maximum(self.null, (draws / others.clamp_min(tiny)).amax(1).cpu())

    def _windows(self) -> Iterator[_Window]:
        """Yield windows that score every token once but the first, where models park attention, behind some context."""
        size = self.window - sum(map(len, self.around))
        context, first, start = min(CONTEXT, size // 4), 1, 0
        while first < len(self.ids):
            stop = min(start + size, len(self.ids))
            yield _Window(start, first, stop)
            first, start = stop, stop - context

    def _activations(self, windows: Sequence[_Window], chunk: int, chunks: int) -> tuple[Tensor, Tensor]:
        """Pass windows through the layers.

        Args:
            windows: The windows.
            chunk: Their number among those that pass one after another.
            chunks: The number of these.

        Returns:
            The activation of each token scored by the change and by each draw, (1 + draws, tokens), and the number of
            the reader that reads each token most, (tokens,).
        """
        model, layers = self.model, 1 + max(reader.layer for reader in self.readers)
        batches = list(self._batches(windows))
        states = [embedded(model, batch.ids) for batch in batches]
        kept: list[list[Cache | None]] = [
            [*caches(model)] if model.dims.kv_layers else [None] * layers for _ in batches
        ]
        squares: list[Tensor] = []
        for layer in range(layers):
            self.progress("running", chunk * layers + layer, chunks * layers)
            block, projections = Block(model, layer), _Projections([r for r in self.readers if r.layer == layer])
            for place, batch in enumerate(batches):
                projections.scored = batch.scored
                states[place] = block(states[place], kept[place][layer], projections.record, ids=batch.ids)
            squares += (self._largest(reader, projections.of(reader)).square() for reader in projections.readers)
        return torch.stack(squares).mean(0).sqrt(), torch.stack([largest[0] for largest in squares]).argmax(0)

    def _batches(self, windows: Sequence[_Window]) -> Iterator[_Batch]:
        """Yield the windows in batches."""
        before, after = self.around
        for length, alike in itertools.groupby(windows, lambda window: window.stop - window.start):
            at = torch.arange(-len(before), length + len(after))
            every, size = list(alike), max(BATCH // self.window, 1)
            for part in (every[first : first + size] for first in range(0, len(every), size)):
                ids = [torch.cat((before, self.ids[window.start : window.stop].long(), after)) for window in part]
                scored = [(at >= window.first - window.start) & (at < length) for window in part]
                yield _Batch(*(torch.stack(rows).to(self.model.device) for rows in (ids, scored)))

    def _largest(self, reader: _Reader, projections: Tensor) -> Tensor:
        """Return the largest size of the robust z of projections (1 + draws, k, tokens) of each change."""
        if reader not in self.scales:
            median = projections.median(-1, keepdim=True).values
            spread = 1.4826 * (projections - median).abs().median(-1, keepdim=True).values
            self.scales[reader] = median, torch.where(spread > 0, spread, torch.inf)
        median, spread = self.scales[reader]
        return ((projections - median) / spread).abs().amax(1)


@dataclass(eq=False)
class _Projections:
    """The projections of a layer's states, as they come.

    Attributes:
        readers: The readers of the layer.
        scored: True for the tokens of the batch that are scored.
        parts: The projections of each batch, by reader.
    """

    readers: Sequence[_Reader]
    scored: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    parts: dict[_Reader, list[Tensor]] = field(default_factory=dict)

    def record(self, name: str, values: Tensor) -> None:
        """Project states (windows, tokens, d) if they are what readers read."""
        for reader in self.readers:
            if site_of(reader.role) == name:
                self.parts.setdefault(reader, []).append(reader.directions @ values[self.scored].T)

    def of(self, reader: _Reader) -> Tensor:
        """Return the projections of a reader, (1 + draws, k, tokens)."""
        return torch.cat(self.parts[reader], -1)


def _passages(monitor: _Monitor, tokens: _Tokens, count: int) -> Iterator[Passage]:
    """Yield the passages with the highest scores, one for each word, hottest first."""
    scores, least = monitor.scores, float(monitor.null.max())
    times = _times(tokens)
    for at in itertools.islice(_hottest(scores, tokens), count):
        reader = monitor.readers[int(monitor.hottest[at])]
        line, before, hottest, after = tokens.around(at)
        yield Passage(
            line=line,
            token=at,
            score=float(scores[at]),
            fires=float(scores[at]) > least,
            before=before,
            hottest=hottest,
            after=after,
            times=times[_word(tokens.vocab, int(tokens.ids[at]))],
            layer=reader.layer,
            role=reader.role,
        )


def _hottest(scores: Tensor, tokens: _Tokens) -> Iterator[int]:
    """Yield the tokens with the highest scores, each word once, without others of a passage that was yielded."""
    words: set[str] = set()
    places: list[int] = []
    for at in map(int, scores.argsort(descending=True, stable=True)):
        word = _word(tokens.vocab, int(tokens.ids[at]))
        if word not in words and all(abs(at - place) > MARGIN for place in places):
            words.add(word)
            places.append(at)
            yield at


def _times(tokens: _Tokens) -> Counter[str]:
    """Count the words of a text."""
    times: Counter[str] = Counter()
    for i, count in zip(*(part.tolist() for part in torch.unique(tokens.ids, return_counts=True)), strict=True):
        times[_word(tokens.vocab, i)] += count
    return times


def _word(vocab: Vocabulary, i: int) -> str:
    """Return the text of a token in small letters without spaces; that of white space as it is."""
    text = vocab.text(i)
    return text.strip().lower() or text
