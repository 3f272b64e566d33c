"""One pass over the text: what is kept of a running model's activations for all measures.

Activations are summed by token type as they come, and kept only for a few sampled positions and queries, so memory
does not grow with the text.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeropass._io.progress import Progress
from zeropass.arch.spec import READ_ROLES, site_of
from zeropass.errors import BadOption
from zeropass.model.running import Running, windows
from zeropass.model.vectors import count_of

__all__ = ["Activations", "Attention", "Settings", "Tally", "noise_vectors", "record_activations"]


@dataclass(frozen=True)
class Settings:
    """How much is measured. The defaults keep SmolLM2-135M under ten minutes and 3 GB on two cores.

    tokens: of the text. window: tokens that the model sees at a time. vectors: sampled of each role and layer.
    noise: random vectors. positions: sampled for R_k. k, active: of R_k and Sim_k (k and m of Dar et al. 2023).
    least: how often a token type must occur. contexts, prefix: texts that a vector is added to, and their length.
    written: vectors of each writing role and layer that are added. query_windows, queries: for attention.
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
        """Tokens without which nothing can be measured: two windows."""
        return 2 * self.window

    def generator(self, salt: int) -> torch.Generator:
        """A generator for one purpose: the same numbers whatever else is drawn."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + salt)


@dataclass
class Tally:
    """Sums of the activations of one set of n vectors, by token type; one plane for each target.

    sums: (targets, A + 1, n); the last row takes positions whose types are not counted. squares: (targets, n), of
    the counted positions alone.
    """

    sums: Tensor
    squares: Tensor

    def add(self, at: Tensor, values: Tensor) -> None:
        """Add one window: ``at`` (targets, tokens) type numbers, A where none; ``values`` (tokens, n)."""
        none = self.sums.shape[1] - 1
        for plane, types in enumerate(at):
            self.sums[plane].index_add_(0, types, values)
            self.squares[plane] += values[types < none].square().sum(0)


@dataclass
class Attention:
    """Queries and keys of one window, before RoPE: ids (t,), at (Q,) the positions of the queries."""

    ids: Tensor
    at: Tensor
    q: dict[int, Tensor] = field(default_factory=dict)
    """By layer, (heads, Q, d_h)."""
    k: dict[int, Tensor] = field(default_factory=dict)
    """By layer, (heads, t, d_h)."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    """By layer, (t, d): what attention read, for random heads."""


@dataclass
class Activations:
    """What is kept of the pass.

    types: (A,) token ids that are counted. targets: names of the planes of the tallies. together: (targets, A, A),
    how often target type b came with current type a. chosen: by (layer, role), the sampled vectors. at: (P,) ids of the
    tokens at the sampled positions; kept: by (what, layer), values there.
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
        """Every token (sorted, unique) whose row a measure needs."""
        needed: Tensor = torch.unique(torch.cat((self.types, self.at, *(window.ids for window in self.attention))))
        return needed


def noise_vectors(d: int, settings: Settings, site: str) -> Tensor:
    """Random directions (n, d), the same for every layer: only their direction matters to ranks and lists."""
    generator = settings.generator({"attn": 1, "ff": 2}[site])
    return torch.randn(settings.noise, d, generator=generator)


def record_activations(running: Running, ids: Tensor, settings: Settings, progress: Progress) -> Activations:
    """Run the model over token ids (n,) and keep what the measures need."""
    parts = list(windows(ids, settings.window, running.around))
    parts = [part for part in parts if len(part) > settings.window // 2]
    recorder = _Recorder(running, parts, settings)
    with running.recording(recorder.record):
        for number, part in enumerate(parts):
            recorder.begin(number)
            out = running.run(part[None].to(running.device))
            recorder.end(out.logits[0].argmax(-1).cpu() if running.speaks else None)
            progress("recording", number + 1, len(parts))
    return recorder.activations()


class _Recorder:
    """Collects one window at a time."""

    def __init__(self, running: Running, parts: list[Tensor], settings: Settings) -> None:
        self.running, self.parts, self.settings = running, parts, settings
        self.flat = torch.cat(parts)
        self.following = torch.cat((self.flat[1:], self.flat[:1]))
        self.starts = [0, *torch.tensor([len(p) for p in parts]).cumsum(0).tolist()]
        self.targets = ("current", "next", "predicted") if running.speaks else ("current",)
        self.types, self.numbers = self._types()
        size = len(self.types)
        self.together = torch.zeros(len(self.targets), size, size)
        self.noise = {site: noise_vectors(running.model.dims.d, settings, site) for site in ("attn", "ff")}
        self.chosen = self._choose()
        self.tallies: dict[tuple[int, str], Tally] = {}
        self.positions = self._positions()
        self.kept: dict[tuple[str, int], list[Tensor]] = {}
        self.attention: list[Attention] = []
        self.buffer: dict[tuple[int, str], Tensor] = {}

    def begin(self, number: int) -> None:
        self.number, self.buffer = number, {}
        start, stop = self.starts[number], self.starts[number + 1]
        here = self.positions[(self.positions >= start) & (self.positions < stop)]
        self.here = here - start
        if number < self.settings.query_windows:
            length = stop - start
            steps = min(self.settings.queries, length // 2)
            at = torch.unique(torch.linspace(length // 4, length - 1, steps).long())
            self.attention.append(Attention(self.parts[number], at))

    def record(self, what: str, layer: int, values: Tensor) -> None:
        values = values.reshape(-1, values.shape[-1]).cpu()
        if (layer, what) in self.chosen:
            self.buffer[layer, what] = values[:, self.chosen[layer, what]]
        if what in self.noise:
            self.buffer[layer, f"noise.{what}"] = values @ self.noise[what].T
        if what in ("attn", "ff", "state", "v", "o.in", "value.in", "up"):
            self.kept.setdefault((what, layer), []).append(values[self.here])
        if self.number < self.settings.query_windows:
            self._attend(what, layer, values)

    def end(self, predicted: Tensor | None) -> None:
        start, stop = self.starts[self.number], self.starts[self.number + 1]
        wanted = [self.flat[start:stop], self.following[start:stop], predicted][: len(self.targets)]
        at = torch.stack([self.numbers[ids] for ids in wanted if ids is not None])
        none = len(self.types)
        # A target counts where the current type does: what the current one explains can then be removed.
        at = torch.where(at[:1] < none, at, none)
        for plane, types in enumerate(at):
            counted = types < none
            pairs = (types[counted], at[0][counted])
            self.together[plane].index_put_(pairs, torch.ones(int(counted.sum())), accumulate=True)
        for key, values in self.buffer.items():
            if key not in self.tallies:
                planes, width = len(self.targets), values.shape[1]
                self.tallies[key] = Tally(torch.zeros(planes, none + 1, width), torch.zeros(planes, width))
            self.tallies[key].add(at, values)

    def activations(self) -> Activations:
        return Activations(
            self.types,
            self.targets,
            self.together,
            self.chosen,
            self.tallies,
            self.flat[self.positions],
            {key: torch.cat(values) for key, values in self.kept.items()},
            self.attention,
        )

    def _types(self) -> tuple[Tensor, Tensor]:
        """Ids (A,) of types that occur often enough, and each id's number (V,), A for none."""
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
        """A sample of the vectors of every reading role and layer."""
        model, found = self.running.model, {}
        for layer in range(model.dims.layers):
            for number, role in enumerate(READ_ROLES):
                if site_of(role) == "ff" and role not in model.family.ff_roles:
                    continue
                order = torch.randperm(
                    count_of(model, layer, role), generator=self.settings.generator(100 + 10 * layer + number)
                )
                found[layer, role] = order[: self.settings.vectors]
        return found

    def _positions(self) -> Tensor:
        """Sampled positions (P,), rising; never the first of a window, where models park attention."""
        firsts = set(self.starts)
        special = torch.from_numpy(self.running.model.vocab.special)
        order = torch.randperm(len(self.flat), generator=self.settings.generator(7)).tolist()
        fine = [i for i in order if i not in firsts and not special[self.flat[i]]]
        return torch.tensor(sorted(fine[: self.settings.positions]))

    def _attend(self, what: str, layer: int, values: Tensor) -> None:
        window, width = self.attention[-1], self.running.model.dims.head_dim
        if what == "q":
            window.q[layer] = values[window.at].reshape(len(window.at), -1, width).swapaxes(0, 1).clone()
        elif what == "k":
            window.k[layer] = values.reshape(len(values), -1, width).swapaxes(0, 1).clone()
        elif what == "attn":
            window.inputs[layer] = values.clone()
