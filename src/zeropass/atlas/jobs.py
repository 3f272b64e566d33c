"""Runs the jobs of a build: lists and token index from a survey of the scores, pairs from the factors of head maps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from zeropass.arch.spec import FRAMES, HEAD_ROLES, MAP_ROLES, base_role, sides_of, site_of, space_of
from zeropass.atlas.plan import list_bases, list_frames, vector_roles
from zeropass.atlas.schema import Job, Options, file_name, vector_file
from zeropass.atlas.tables import Kind, ListBlock, PairRow, read_mark, write_index, write_lists, write_mark, write_pairs
from zeropass.atlas.token_rows import Space, Spaces, save_array
from zeropass.model.address import Address
from zeropass.model.frames import Frames, Lengths
from zeropass.model.model import Model
from zeropass.model.vectors import VectorSet, count_of, kind_of, reads_at, vector_set
from zeropass.numerics.factored import Factored
from zeropass.numerics.parallel import each_core, in_turn
from zeropass.numerics.statistics import blocks, standardised
from zeropass.numerics.token_index import TokenIndex
from zeropass.numerics.top_k import Scores, Survey, joined, survey
from zeropass.numerics.top_pairs import top_pairs

__all__ = ["COLUMNS", "Finds", "Meet", "Runner", "Scored"]

_ROWS = 4096
"""Rows that are multiplied with the columns of heads at once."""

COLUMNS = 128
"""Columns of heads whose factors a job holds at once, 25 MB for V = 49,152; one head's if that is more."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A set folded for one frame, ready to be multiplied: z = unit · centred row, score = z · std + mean.

    ``spread`` is the standard deviation of z: one, unless ``std`` is not that of the scores (`diff.change_atlas`).
    """

    vectors: VectorSet
    frame: str
    space: Space
    unit: Tensor
    mean: Tensor
    std: Tensor
    spread: Tensor

    def over_rows(self, own: slice) -> Tensor:
        """Scores (V', m) of some of the vectors over the rows, less their means."""
        vectors = (self.unit[own] * self.std[own, None]).T
        found = self.space.rows.new_empty(len(self.space.rows), vectors.shape[1])

        def multiply(part: slice) -> None:
            torch.mm(self.space.rows[part], vectors, out=found[part])
            self.space.rest()

        each_core(found.device)(multiply, list(blocks(len(found), _ROWS)))
        return found


Meet = Callable[[Scored, slice, Tensor], None]
"""Called with a set, which of its vectors, and their scores (V', m), less their means, which change afterwards."""


@dataclass(frozen=True, eq=False)
class Finds:
    """What a job found: the lists of each role, and the pairs."""

    job: Job
    lists: dict[str, list[ListBlock]]
    pairs: list[PairRow]


@dataclass(eq=False)
class Runner:
    """What the jobs of one build share: the model, the rows, and the running index of every kind of list.

    ``kept`` (V',) are the ids of the tokens that lists may show.
    """

    model: Model
    out: Path
    options: Options
    jobs: list[Job]
    kept: Tensor

    def __post_init__(self) -> None:
        self.frames = Frames(self.model)
        self.spaces = Spaces(self.out / "rows", self.kept)
        self.bases = list_bases(self.model, self.options, self.jobs)
        self._made_lengths: dict[tuple[int, str, str], Lengths | None] = {}
        self._lock = Lock()

    def run(self, job: Job) -> None:
        """Run one job."""
        self.write(self.look(job, self.sets(job)))

    def sets(self, job: Job) -> dict[str, VectorSet]:
        """The vectors that a job takes, role by role."""
        return {role: self.vectors(job.layer, role) for role in needed_roles(job)}

    def look(self, job: Job, sets: dict[str, VectorSet]) -> Finds:
        """Make what a job is for, and write its vectors."""
        lists: dict[str, list[ListBlock]] = {role: [] for role in vector_roles(job)}
        met: dict[tuple[str, str], tuple[Scored, list[Survey]]] = {}

        def meet(scored: Scored, own: slice, scores: Tensor) -> None:
            """The lists of some columns of heads, whose scores a map takes anyway."""
            role, frame = scored.vectors.role, scored.frame
            if role in lists and frame in self._listed_frames(scored.vectors):
                found = self._surveyed(scored, own, (scores, scored.std[own]))
                met.setdefault((role, frame), (scored, []))[1].append(found)

        pairs = [pair for kind in MAP_ROLES if kind in job.roles for pair in self.map_heads(kind, sets, meet)]
        for role in lists:
            for frame in self._listed_frames(sets[role]):
                if (role, frame) not in met:
                    scored = self.scored(sets[role], frame)
                    met[role, frame] = scored, [self._surveyed(scored, slice(None))]
                scored, surveys = met[role, frame]
                lists[role].append(self._listed(scored, joined(surveys)))
            self._save_vectors(sets[role])
        return Finds(job, lists, pairs)

    def vectors(self, layer: int, role: str) -> VectorSet:
        """The vectors that are listed."""
        return vector_set(self.model, layer, role)

    def folded(self, vectors: VectorSet, frame: str) -> Tensor:
        """The same as a frame takes them, (n, d)."""
        return self.frames.fold(vectors.vectors, frame, vectors.side, vectors.norm, vectors.layer)

    def mark(self, job: Job) -> Path:
        """The file whose presence says that a job is done: what it found for every token."""
        return self.out / "scratch" / f"{job.name}.parquet"

    def index(self, layer: int, role: str) -> Path:
        """The file of what the index over all lists has of a layer and role, until there is one."""
        return self.out / "scratch" / f"{file_name(layer, role)}.index.parquet"

    @property
    def indexes(self) -> dict[Kind, TokenIndex]:
        """Running best of each kind of list, beginning with what finished jobs found."""
        with self._lock:
            return self._indexes

    @cached_property
    def _indexes(self) -> dict[Kind, TokenIndex]:
        kinds = {(kind_of(self.model, layer, role)[0], frame) for layer, role, frame in self.bases}
        lists = {kind: TokenIndex(len(self.kept), self.options.k, self.kept.device) for kind in sorted(kinds)}
        for job in self.jobs:
            if self.mark(job).exists():
                for kind, tokens, keys in read_mark(self.mark(job)):
                    lists[kind].add(tokens, keys)
        return lists

    def spaces_of(self, job: Job) -> set[str]:
        """The rows that a job multiplies with."""
        used = set()
        for role in needed_roles(job):
            frames = set(list_frames(self.model, self.options, job.layer, role)) if role in job.roles else set()
            if role in HEAD_ROLES and set(MAP_ROLES) & set(job.roles):
                frames.add(self.map_frame(role))
            side = kind_of(self.model, job.layer, role)[0]
            used |= {space_of(frame, side, reads_at(self.model, job.layer, role)) for frame in frames}
        return used

    def map_frame(self, role: str) -> str:
        """The frame in which a role enters the stored head maps: the first that was asked for."""
        first = next(frame for frame in FRAMES if frame in self.options.frames)
        return self.frames.right_frame("vo", first) if base_role(role) == "o" else first

    def scored(self, vectors: VectorSet, frame: str) -> Scored:
        """A set ready to be multiplied."""
        space, folded = self.space(vectors, frame), self.folded(vectors, frame)
        mean, std = space.moments.of_scores(folded)
        return Scored(vectors, frame, space, standardised(folded, std), mean, std, torch.ones_like(std))

    def space(self, vectors: VectorSet, frame: str) -> Space:
        """The rows that a set meets in a frame."""
        return self.spaces.load(space_of(frame, vectors.side, vectors.reads_at))

    def _surveyed(self, scored: Scored, own: slice, made: Scores | None = None) -> Survey:
        """Both poles of some vectors of a set; what the tokens can use of them goes to the running index."""
        source = scored.vectors
        first, index = self.bases[source.layer, source.role, scored.frame], self.indexes[source.side, scored.frame]
        unit, first_id = scored.unit[own], first + (own.start or 0)
        return survey(unit, scored.space.prepared, self.options.k, self.kept, index, first_id, made)

    def _listed(self, scored: Scored, found: Survey) -> ListBlock:
        """The lists of a set of vectors."""
        source = scored.vectors
        return ListBlock(
            first_id=self.bases[source.layer, source.role, scored.frame],
            addresses=source.addresses,
            frame=scored.frame,
            norm=source.vectors.norm(dim=1),
            mean=scored.mean,
            std=scored.std,
            spread=scored.spread,
            kurtosis=found.kurtosis,
            extremes=found.extremes,
        )

    def map_heads(self, kind: str, sets: dict[str, VectorSet], meet: Meet) -> Iterator[PairRow]:
        """Top pairs of every head of a layer; ``meet`` is shown the scores of all columns of heads.

        Key/value heads come in chunks, each followed by its query heads, so that few factors are held; with
        ``--memory`` one search at a time.
        """
        left, right = sides_of(kind)
        own, shared = (left, right) if base_role(kind) == "qk" else (right, left)
        scored = {role: self.scored(sets[role], self.map_frame(role)) for role in (own, shared)}
        each = in_turn if self.spaces.room is not None else each_core(self.kept.device)
        dims, step = self.model.dims, max(1, COLUMNS // self.model.dims.head_dim)

        def searched(found: tuple[int, Tensor, Tensor]) -> PairRow:
            head, scores, other = found
            factor = self.factor(scored[own], head, scores)
            product = Factored(factor, other) if own == left else Factored(other, factor)
            return self.pair_row(kind, sets[own].layer, head, scored[left].frame, product)

        for first in range(0, dims.kv_heads, step):
            stored = range(first, min(first + step, dims.kv_heads))
            # Nothing else holds the scores: a factor may be a copy.
            others = {
                head: self.factor(scored[shared], head, x) for head, x in self._columns(scored[shared], stored, meet)
            }
            heads = range(stored.start * dims.group, stored.stop * dims.group)
            for at in range(heads.start, heads.stop, step):
                block = self._columns(scored[own], range(at, min(at + step, heads.stop)), meet)
                yield from each(searched, [(head, x, others[self.model.kv_head(shared, head)]) for head, x in block])

    def pair_row(self, kind: str, layer: int, head: int, frame: str, product: Factored) -> PairRow:
        """The top pairs of one head map, which comes as its factors over the kept tokens."""
        found = top_pairs(product, self.options.pairs)
        found = replace(found, left=self.kept[found.left], right=self.kept[found.right])
        offset = self.frames.usual_offset(kind, frame)
        return PairRow(str(Address(layer, site_of(kind), head=head)), kind, head, offset, frame, found)

    def _listed_frames(self, vectors: VectorSet) -> tuple[str, ...]:
        return list_frames(self.model, self.options, vectors.layer, vectors.role)

    def _columns(self, scored: Scored, heads: range, meet: Meet) -> list[tuple[int, Tensor]]:
        """Scores (V', d_h) of each stored head's columns over the rows, less their means."""
        width = self.model.dims.head_dim
        own = slice(heads.start * width, heads.stop * width)
        scores = scored.over_rows(own)
        meet(scored, own, scores)
        return list(zip(heads, torch.split(scores, width, dim=1), strict=True))

    def factor(self, scored: Scored, head: int, scores: Tensor) -> Tensor:
        """`Scored.over_rows` (V', d_h) of one stored head made into what `Frames.head_map` defines; changes it."""
        width, role, frame = self.model.dims.head_dim, scored.vectors.role, scored.frame
        own, layer = slice(head * width, (head + 1) * width), scored.vectors.layer
        factor = scores.add_(scored.mean[own])
        if base_role(role) == "k":
            first = head * self.model.dims.group  # of the query heads that share it
            return self.frames.as_key(factor, scored.mean[own], layer, first, frame, self._lengths(scored), role)
        if base_role(role) == "q":
            offset = self.frames.usual_offset(f"{role}k", frame)
            return self.frames.as_query(factor, layer, head, frame, offset, self._lengths(scored), role)
        return factor

    def _lengths(self, scored: Scored) -> Lengths | None:
        """`Frames.lengths` of a role, made once for all heads of its layer."""
        key = scored.vectors.layer, scored.vectors.role, scored.frame
        with self._lock:
            if key not in self._made_lengths:
                self._made_lengths = {one: kept for one, kept in self._made_lengths.items() if abs(one[0] - key[0]) < 2}
                rows, mean = scored.space.rows, scored.space.moments.mean
                self._made_lengths[key] = self.frames.lengths(*key[:2], rows, mean, centred=True)
            return self._made_lengths[key]

    def _save_vectors(self, vectors: VectorSet) -> None:
        """Keep the vectors as the frames take them, for questions that the lists cannot answer."""
        frames = self._listed_frames(vectors)
        for paper in sorted({frame == "paper" for frame in frames}):
            frame = "paper" if paper else next(f for f in frames if f != "paper")
            path = self.out / "vectors" / vector_file(vectors.layer, vectors.role, frame)
            save_array(path, self.folded(vectors, frame).cpu().numpy())

    def write(self, finds: Finds) -> None:
        """Write lists and pairs, and the mark last; the next job may be looking meanwhile."""
        job, pairs = finds.job, finds.pairs
        for role, listed in finds.lists.items():
            if listed:
                write_lists(self.out / "lists" / f"{file_name(job.layer, role)}.parquet", listed)
                side = kind_of(self.model, job.layer, role)[0]
                write_index(self.index(job.layer, role), listed, job.layer, role, side)
        if pairs:
            write_pairs(self.out / "pairs" / f"{file_name(job.layer, pairs[0].role)}.parquet", pairs)
        write_mark(self.mark(job), self._found(job))

    def _found(self, job: Job) -> Iterator[tuple[Kind, Tensor, Tensor]]:
        """The entries of the running index that this job put there, as far as a later one has not taken their place."""
        for role in vector_roles(job):
            side = kind_of(self.model, job.layer, role)[0]
            for frame in list_frames(self.model, self.options, job.layer, role):
                first = self.bases[job.layer, role, frame]
                count = count_of(self.model, job.layer, role)
                for tokens, keys in self.indexes[side, frame].entries(first, first + count):
                    yield (side, frame), tokens, keys


def needed_roles(job: Job) -> list[str]:
    """The sets that a job multiplies: its own, and for a head map both of the map's sides."""
    roles = dict.fromkeys(vector_roles(job))
    for kind in MAP_ROLES:
        if kind in job.roles:
            roles.update(dict.fromkeys(sides_of(kind)))
    return list(roles)
