"""The activations that the measures need, recorded in one pass of the model over the text.

Activations are summed by token type as they come. Single values are kept only for a few sampled positions and queries,
so memory does not grow with the text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.roles import READ_ROLES, Site
from zeropass.errors import BadOption
from zeropass.model.running import Running
from zeropass.model.texts import special_tokens, windows
from zeropass.model.vectors import count_of

__all__ = ["NOISE_SITES", "Activations", "Attention", "Settings", "Tally", "noise_vectors", "record_activations"]


@dataclass(frozen=True)
class Settings:
    """The extent of a measurement. The defaults keep SmolLM2-135M under ten minutes and 3 GB on two cores.

    Attributes:
        tokens: Tokens of the text.
        window: Tokens that the model sees at a time.
        vectors: Vectors sampled of each role and layer.
        noise: Random vectors.
        positions: Positions sampled for R_k.
        k: The k of R_k and Sim_k (Dar et al. 2023).
        active: The m of R_k: the most active parameters that count.
        least: How often a token type must occur.
        contexts: Texts to which a vector is added.
        prefix: Length of these texts in tokens.
        written: Vectors of each writing role and layer that are added.
        query_windows: Windows in which attention is recorded.
        queries: Queries sampled in each of these windows.
        seed: The seed of every sample and random vector.
    """

    tokens: int = 10_000
    window: int = 256
    vectors: int = 96
    noise: int = 48
    positions: int = 24
    k: int = 50
    active: int = 5
    least: int = 5
    contexts: int = 8
    prefix: int = 32
    written: int = 12
    query_windows: int = 5
    queries: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name == "seed" else 2):
                raise BadOption(f"{name} is {value}; it must be at least 2.")

    @property
    def fewest(self) -> int:
        """The smallest number of tokens that can be measured: two windows."""
        return 2 * self.window

    def generator(self, salt: int) -> torch.Generator:
        """Return the generator for one purpose; it draws the same numbers whatever else is drawn."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + salt)


@dataclass
class Tally:
    """Sums of the activations of a set of n vectors by token type, with one plane for each target.

    Attributes:
        sums: Sums, (targets, A + 1, n); the last row takes the positions whose types are not counted.
        squares: Sums of squares over the counted positions alone, (targets, n).
    """

    sums: Tensor
    squares: Tensor

    def add(self, at: Tensor, values: Tensor) -> None:
        """Add one window.

        Args:
            at: Numbers of the types, (targets, tokens); A where the type is not counted.
            values: Activations, (tokens, n).
        """
        uncounted = self.sums.shape[1] - 1
        for plane, types in enumerate(at):
            self.sums[plane].index_add_(0, types, values)
            self.squares[plane] += values[types < uncounted].square().sum(0)


@dataclass
class Attention:
    """Attention in one window.

    Attributes:
        ids: Token ids of the window, (t,).
        at: Positions of the sampled queries, (Q,).
        logits: Attention logits by layer, (heads, Q, t); minus infinity where a key is hidden.
        inputs: Inputs of attention by layer, (t, d), for random heads.
    """

    ids: Tensor
    at: Tensor
    logits: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Activations:
    """The records of one pass.

    Attributes:
        types: Ids of the token types that are counted, (A,).
        targets: Names of the planes of the tallies.
        together: How often each target type (rows) came with each current type (columns), (targets, A, A).
        chosen: Numbers of the sampled vectors by (layer, role).
        tallies: Sums by (layer, role), and by (layer, ``noise.attn`` and the like) for random vectors.
        at: Token ids at the sampled positions, (P,).
        kept: Values at the sampled positions by (activation, layer).
        attention: Attention in the first windows.
    """

    types: Tensor
    targets: tuple[str, ...]
    together: Tensor
    chosen: dict[tuple[int, str], Tensor]
    tallies: dict[tuple[int, str], Tally]
    at: Tensor
    kept: dict[tuple[str, int], Tensor]
    attention: list[Attention]

    @property
    def ids(self) -> Tensor:
        """All tokens (sorted, unique) whose rows a measure needs."""
        needed: Tensor = torch.unique(torch.cat((self.types, self.at, *(window.ids for window in self.attention))))
        return needed


NOISE_SITES: Mapping[Site, int] = {"attn": 1, "ff": 2, "mixer": 4}
"""The parts of a layer that random directions are read at, with the salt of each."""


def noise_vectors(d: int, settings: Settings, site: Site) -> Tensor:
    """Return random directions (n, d), the same for every layer: ranks and lists depend on the direction alone."""
    generator = settings.generator(NOISE_SITES[site])
    return torch.randn(settings.noise, d, generator=generator)


def record_activations(running: Running, ids: Tensor, settings: Settings, progress: Progress) -> Activations:
    """Run the model over token ids (n,) and record the activations that the measures need."""
    model = running.model
    parts = [part for part in windows(ids, settings.window, special_tokens(model)) if len(part) > settings.window // 2]
    recorder = _Recorder(running, parts, settings)
    for number, part in enumerate(parts):
        recorder.begin(number)
        states = running.run(part[None].to(model.device), recorder.record)
        recorder.end(running.logits(states)[0].argmax(-1).cpu() if model.family.causal else None)
        progress("recording", number + 1, len(parts))
    return recorder.activations()


class _Recorder:
    """A collector of activations, one window at a time."""

    def __init__(self, running: Running, parts: list[Tensor], settings: Settings) -> None:
        self.running, self.parts, self.settings = running, parts, settings
        self.flat = torch.cat(parts)
        self.following = torch.cat((self.flat[1:], self.flat[:1]))
        self.starts = [0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()]
        self.targets = ("current", "next", "predicted") if running.model.family.causal else ("current",)
        self.types, self.numbers = self._types()
        size = len(self.types)
        self.together = torch.zeros(len(self.targets), size, size)
        self.noise = {site: noise_vectors(running.model.dims.d, settings, site) for site in NOISE_SITES}
        self.chosen = self._choose()
        self.tallies: dict[tuple[int, str], Tally] = {}
        self.positions = self._positions()
        self.values: dict[tuple[str, int], list[Tensor]] = {}
        self.attention: list[Attention] = []
        self.buffer: dict[tuple[int, str], Tensor] = {}
        self.queries = torch.zeros(0)

    def begin(self, number: int) -> None:
        self.number, self.buffer = number, {}
        start, stop = self.starts[number], self.starts[number + 1]
        in_window = (self.positions >= start) & (self.positions < stop)
        self.sampled = self.positions[in_window] - start
        if number < self.settings.query_windows:
            length = stop - start
            steps = min(self.settings.queries, length // 2)
            at = torch.unique(torch.linspace(length // 4, length - 1, steps).long())
            self.attention.append(Attention(self.parts[number], at))

    def record(self, name: str, layer: int, values: Tensor) -> None:
        if self.number < self.settings.query_windows:
            self._record_attention(name, layer, values)
        values = values[0].cpu()
        if (layer, name) in self.chosen:
            self.buffer[layer, name] = values[:, self.chosen[layer, name]]
        if name in self.noise:
            self.buffer[layer, f"noise.{name}"] = values @ self.noise[name].T
        if name in ("attn", "ff", "attn.out", "ff.out", "mixer.out", "state", "v", "o.in", "value.in", "up"):
            self.values.setdefault((name, layer), []).append(values[self.sampled])

    def end(self, predicted: Tensor | None) -> None:
        start, stop = self.starts[self.number], self.starts[self.number + 1]
        targets = [self.flat[start:stop], self.following[start:stop], predicted][: len(self.targets)]
        numbers = torch.stack([self.numbers[ids] for ids in targets if ids is not None])
        uncounted = len(self.types)
        # A target counts only where the current type does, so that the effect of the current type can be removed.
        numbers = torch.where(numbers[:1] < uncounted, numbers, uncounted)
        for plane, types in enumerate(numbers):
            counted = types < uncounted
            pairs = (types[counted], numbers[0][counted])
            self.together[plane].index_put_(pairs, torch.ones(int(counted.sum())), accumulate=True)
        for key, values in self.buffer.items():
            if key not in self.tallies:
                planes, width = len(self.targets), values.shape[1]
                self.tallies[key] = Tally(torch.zeros(planes, uncounted + 1, width), torch.zeros(planes, width))
            self.tallies[key].add(numbers, values)

    def activations(self) -> Activations:
        return Activations(
            types=self.types,
            targets=self.targets,
            together=self.together,
            chosen=self.chosen,
            tallies=self.tallies,
            at=self.flat[self.positions],
            kept={key: torch.cat(values) for key, values in self.values.items()},
            attention=self.attention,
        )

    def _types(self) -> tuple[Tensor, Tensor]:
        """Return the ids (A,) of the types that occur often enough, and the number of each id (V,): A for no type."""
        vocab = self.running.model.vocab
        counts = torch.bincount(self.flat, minlength=vocab.size)
        counts[torch.from_numpy(vocab.special)] = 0
        types = (counts >= self.settings.least).nonzero()[:, 0]
        if len(types) < 8:
            raise BadOption(
                f"Only {len(types)} token types occur {self.settings.least} times in {len(self.flat)} tokens; "
                "a longer or more varied text is needed."
            )
        numbers = torch.full((vocab.size,), len(types))
        numbers[types] = torch.arange(len(types))
        return types, numbers

    def _choose(self) -> dict[tuple[int, str], Tensor]:
        """Sample the vectors of every reading role and layer."""
        model, chosen = self.running.model, {}
        for layer in range(model.dims.layers):
            for number, role in enumerate(READ_ROLES):
                if role not in model.matrices(layer):
                    continue
                order = torch.randperm(
                    count_of(model, layer, role), generator=self.settings.generator(100 + 10 * layer + number)
                )
                chosen[layer, role] = order[: self.settings.vectors]
        return chosen

    def _positions(self) -> Tensor:
        """Sample positions (P,), in rising order; never the first of a window, where models park attention."""
        firsts = set(self.starts)
        special = torch.from_numpy(self.running.model.vocab.special)
        order = torch.randperm(len(self.flat), generator=self.settings.generator(7)).tolist()
        eligible = [i for i in order if i not in firsts and not special[self.flat[i]]]
        return torch.tensor(sorted(eligible[: self.settings.positions]))

    def _record_attention(self, name: str, layer: int, values: Tensor) -> None:
        window, block = self.attention[-1], self.running.blocks[layer]
        if name == "attn":
            window.inputs[layer] = values[0].cpu()
        elif name == "rotated.q":
            at = window.at.to(values.device)
            self.queries = block.heads(values[:, at])
        elif name == "rotated.k":
            at = window.at.to(values.device)
            window.logits[layer] = block.logits(self.queries, block.heads(values), at)[0].cpu()
