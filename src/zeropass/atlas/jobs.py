"""Run the jobs of a build: lists and token index from a survey of the scores, pairs from the factors of head maps."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from zeropass.arch.frame_names import ALL_FRAMES, FIRST, LENS_FRAMES, RELATIVE, judge_space
from zeropass.arch.roles import HEAD_ROLES, LAYER_ROLES, MAP_ROLES, base_role, sides_of, site_of
from zeropass.atlas.plan import ListKey, list_bases, list_frames, vector_roles
from zeropass.atlas.schema import Job, Options, factor_file, file_name, vector_file
from zeropass.atlas.tables import (
    Kind,
    ListBlock,
    PairRow,
    read_mark,
    write_coherence,
    write_index,
    write_lists,
    write_mark,
    write_pairs,
)
from zeropass.atlas.token_rows import Space, Spaces, save_array
from zeropass.model.address import Address
from zeropass.model.frames import Frames, Lengths
from zeropass.model.lens_maps import LensMaps
from zeropass.model.model import Model
from zeropass.model.vectors import SetFacts, VectorSet, facts_of, vector_set
from zeropass.numerics.coherence import coherence, percentile, random_sums, stronger_pole, within
from zeropass.numerics.factored import Factored
from zeropass.numerics.parallel import each_core, in_turn
from zeropass.numerics.projection import Extremes
from zeropass.numerics.statistics import blocks, relative_factors, standardised
from zeropass.numerics.token_index import TokenIndex
from zeropass.numerics.top_k import PreparedRows, Scores, Survey, joined, survey
from zeropass.numerics.top_pairs import top_pairs

__all__ = ["COLUMNS", "JUDGED", "JobResults", "OnScores", "Runner", "Scored"]

_LONG = 50
"""Tokens of each pole of a random direction's list: enough for ten of them to be in most views."""

JUDGED = 1_000_000
"""Coordinates of the rows that are gathered at once for coherence."""

_ROWS = 4096
"""Number of rows that are multiplied with the columns of heads at once."""

COLUMNS = 128
"""Columns of heads whose factors a job holds at once, 25 MB for V = 49,152; those of one head if it has more."""


@dataclass(frozen=True, eq=False)
class Relative:
    """The rows of a relative frame, for the lists of one set of vectors.

    Attributes:
        factors: What the scores of all tokens are multiplied by, (V,).
        rows: The rows of the kept tokens, multiplied by their factors.
    """

    factors: Tensor
    rows: PreparedRows


@dataclass(frozen=True, eq=False)
class Scored:
    """A set of vectors folded for one frame and scaled: z = unit · centred row, score = z · std + mean.

    Attributes:
        vectors: The set, n vectors.
        frame: The frame.
        space: The rows that the set is multiplied with.
        unit: The scaled vectors, (n, d).
        mean: Mean of each vector's scores, (n,).
        std: Standard deviation of each vector's scores, (n,).
        spread: Standard deviation of z, (n,): one, unless ``std`` is not that of the scores (`diff.change_atlas`).
        relative: What the lists of a relative frame are made with; None in another frame.
    """

    vectors: VectorSet
    frame: str
    space: Space
    unit: Tensor
    mean: Tensor
    std: Tensor
    spread: Tensor
    relative: "Relative | None" = None

    @property
    def prepared(self) -> PreparedRows:
        """The rows that the lists are made with."""
        return self.space.prepared if self.relative is None else self.relative.rows

    def over_rows(self, part: slice) -> Tensor:
        """Return the scores of some of the vectors over the rows, less their means, (V', m)."""
        vectors = (self.unit[part] * self.std[part, None]).T
        scores = self.space.rows.new_empty(len(self.space.rows), vectors.shape[1])

        def multiply(rows: slice) -> None:
            torch.mm(self.space.rows[rows], vectors, out=scores[rows])
            self.space.rest()

        each_core(scores.device)(multiply, list(blocks(len(scores), _ROWS)))
        return scores


OnScores = Callable[[Scored, slice, Tensor], None]
"""A function that is called with a set, a part of it, and the scores of that part less their means, (V', m).

The scores are overwritten afterwards.
"""


@dataclass(frozen=True, eq=False)
class JobResults:
    """The results of a job.

    Attributes:
        job: The job.
        lists: The lists of each role, a block for each frame.
        pairs: The top pairs of each head map.
        nulls: The coherence that random directions stay below, by (role, frame, view).
    """

    job: Job
    lists: dict[str, list[ListBlock]]
    pairs: list[PairRow]
    nulls: dict[tuple[str, str, str], float]


@dataclass(eq=False)
class Runner:
    """The state that the jobs of one build share: the model, the rows, and the running index of every type of list.

    Attributes:
        model: The model.
        out: Folder of the atlas.
        options: Options of the build.
        jobs: All jobs of the build, in order.
        kept: Ids of the tokens that lists may show, (V',).
        lens: The lens through which lists are made, if there is one.
        views: The tokens that each view shows, (V,), for the coherence of random directions; without any, it is not
            computed.
    """

    model: Model
    out: Path
    options: Options
    jobs: list[Job]
    kept: Tensor
    lens: LensMaps | None = None
    views: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.frames: Frames = Frames(self.model, self.lens)
        self.spaces: Spaces = Spaces(self.out / "rows", self.kept)
        self.bases: dict[ListKey, int] = list_bases(self.facts, self.options, self.jobs)
        self._lengths: dict[tuple[int, str, str], Lengths | None] = {}
        self._lock = Lock()

    def run(self, job: Job) -> None:
        """Run one job."""
        self.write(self.compute(job, self.sets(job)))

    def sets(self, job: Job) -> dict[str, VectorSet]:
        """Return the sets of vectors that a job needs, by role."""
        return {role: self.vectors(self.model.layer_of(role, job.layer), role) for role in needed_roles(job)}

    def compute(self, job: Job, sets: dict[str, VectorSet]) -> JobResults:
        """Compute the results of a job, and write its vectors."""
        lists: dict[str, list[ListBlock]] = {role: [] for role in vector_roles(job)}
        nulls: dict[tuple[str, str, str], float] = {}
        surveys: dict[tuple[str, str], tuple[Scored, list[Survey]]] = {}

        def meet(scored: Scored, part: slice, scores: Tensor) -> None:
            """Survey some columns of heads, whose scores a head map needs anyway."""
            role, frame = scored.vectors.role, scored.frame
            if role in lists and frame in self._listed_frames(job.layer, role):
                first_id = self.bases[job.layer, role, frame]
                part_survey = self._survey(scored, first_id, part, (scores, scored.std[part]))
                surveys.setdefault((role, frame), (scored, []))[1].append(part_survey)

        maps = [map_role for map_role in MAP_ROLES if map_role in job.roles]
        pairs = [pair for map_role in maps for pair in self.map_heads(map_role, sets, meet)]
        for role in lists:
            for frame in self._listed_frames(job.layer, role):
                first_id = self.bases[job.layer, role, frame]
                if (role, frame) not in surveys:
                    scored = self.scored(sets[role], frame)
                    surveys[role, frame] = scored, [self._survey(scored, first_id, slice(None))]
                scored, parts = surveys[role, frame]
                lists[role].append(self._list_block(scored, first_id, joined(parts)))
                nulls |= {(role, frame, view): null for view, null in self._random_coherence(scored)}
                if scored.relative is not None:
                    path = self.out / "vectors" / factor_file(job.layer, role, frame)
                    save_array(path, scored.relative.factors.cpu().numpy())
            self._save_vectors(job.layer, role, sets[role])
        return JobResults(job, lists, pairs, nulls)

    def vectors(self, layer: int, role: str) -> VectorSet:
        """Return the set of vectors of a layer and role."""
        return vector_set(self.model, layer, role)

    def facts(self, layer: int, role: str) -> SetFacts:
        """Return the facts about the set of vectors of a layer and role."""
        return facts_of(self.model, layer, role)

    def peers(self, _vectors: VectorSet, unit: Tensor, _frame: str) -> Tensor:
        """Return the scaled vectors of the parameters that a set is compared with: its own, ``unit``."""
        return unit

    def folded(self, vectors: VectorSet, frame: str) -> Tensor:
        """Return the vectors of a set, folded for a frame, (n, d)."""
        return self.frames.folded(vectors, frame)

    def mark(self, job: Job) -> Path:
        """Return the path of a job's mark, written when the job is done, which holds its entries of the token index."""
        return self.out / "scratch" / f"{job.name}.parquet"

    def coherence_part(self, job: Job) -> Path:
        """Return the path of a job's part of the table of random directions' coherence, a temporary file."""
        return self.out / "scratch" / f"{job.name}.coherence.parquet"

    def index(self, layer: int, role: str) -> Path:
        """Return the path of one layer and role's part of the index over all lists, a temporary file."""
        return self.out / "scratch" / f"{file_name(layer, role)}.index.parquet"

    @property
    def indexes(self) -> dict[Kind, TokenIndex]:
        """The running index of each type of list, which starts with what finished jobs found."""
        with self._lock:
            return self._indexes

    @cached_property
    def _indexes(self) -> dict[Kind, TokenIndex]:
        list_types = {(self.facts(layer, role).side, frame) for layer, role, frame in self.bases}
        k, device = self.options.k, self.kept.device
        indexes = {list_type: TokenIndex(len(self.kept), k, device) for list_type in sorted(list_types)}
        for job in self.jobs:
            if self.mark(job).exists():
                for list_type, tokens, keys in read_mark(self.mark(job)):
                    indexes[list_type].add(tokens, keys)
        return indexes

    def spaces_of(self, job: Job) -> set[str]:
        """Return the names of the spaces whose rows a job multiplies with."""
        spaces = set()
        for role in needed_roles(job):
            facts = self.facts(self.model.layer_of(role, job.layer), role)
            frames = set(list_frames(facts, self.options)) if role in job.roles else set()
            if role in HEAD_ROLES and set(MAP_ROLES) & set(job.roles):
                frames.add(self.map_frame(role))
            spaces |= set(map(facts.space, frames))
        return spaces

    def stored_spaces(self, job: Job) -> set[str]:
        """Return the names of the spaces whose rows a job needs in the folder: also those that judge coherence."""
        sets = [self.facts(job.layer, role) for role in vector_roles(job)]
        return self.spaces_of(job) | {judge_space(facts.side) for facts in sets if facts.role in LAYER_ROLES}

    def map_frame(self, role: str) -> str:
        """Return the frame in which a role enters the stored head maps: that of a lens, or the first of the options."""
        frames = ("seen",) if self.lens else self.options.frames or ()
        first = next(frame for frame in ALL_FRAMES if frame in frames)
        return self.frames.right_frame("vo", first) if base_role(role) == "o" else first

    def scored(self, vectors: VectorSet, frame: str) -> Scored:
        """Return a set folded and scaled for a frame."""
        space, folded = self.space(vectors, frame), self.folded(vectors, frame)
        mean, std = space.moments.of_scores(folded)
        unit, ones = standardised(folded, std), torch.ones_like(std)
        if frame not in RELATIVE:
            return Scored(vectors, frame, space, unit, mean, std, ones)
        rows, _ = self.spaces.stored(vectors.space(frame))
        factors = relative_factors(rows, self.peers(vectors, unit, frame))
        made_with = Relative(factors, space.prepared.scaled(factors[self.kept]))
        return Scored(vectors, frame, space, unit, torch.zeros_like(mean), std, ones, made_with)

    def space(self, vectors: VectorSet, frame: str) -> Space:
        """Return the rows that a set is multiplied with in a frame."""
        return self.spaces.load(vectors.space(frame))

    def _survey(self, scored: Scored, first_id: int, part: slice, scores: Scores | None = None) -> Survey:
        """Return both poles of some vectors of a set, and add their best entries to the running index."""
        index, first = self.indexes[scored.vectors.side, scored.frame], first_id + (part.start or 0)
        k = max(self.options.k, FIRST)  # coherence is that of ten tokens, however many are stored
        return survey(scored.unit[part], scored.prepared, k, self.kept, index, first, scores)

    def _list_block(self, scored: Scored, first_id: int, lists: Survey) -> ListBlock:
        """Return the lists of a set with the data about its vectors that the tables hold."""
        source = scored.vectors
        return ListBlock(
            first_id=first_id,
            addresses=source.addresses,
            frame=scored.frame,
            norm=source.vectors.norm(dim=1),
            mean=scored.mean,
            std=scored.std,
            spread=scored.spread,
            kurtosis=lists.kurtosis,
            coherence=self._coherence(source, lists.extremes),
            extremes=lists.extremes.first(self.options.k),
        )

    def _coherence(self, vectors: VectorSet, lists: Extremes) -> Tensor:
        """Return the coherence of the lists of some vectors, (n,); zero for lone vectors, which have no null."""
        if vectors.role not in LAYER_ROLES:
            return torch.zeros_like(lists.top[:, 0])
        rows, mean = self.spaces.stored(judge_space(vectors.side))
        ids = stronger_pole(lists, FIRST)
        parts = torch.split(ids, max(1, JUDGED // (ids.shape[1] * self.model.dims.d)))
        return torch.cat([coherence(rows[part], mean) for part in parts])

    def _random_coherence(self, scored: Scored) -> Iterator[tuple[str, float]]:
        """Yield each view with the coherence that random directions stay below, as `ListCoherence.null`."""
        vectors = scored.vectors
        if vectors.role not in LAYER_ROLES or not self._views_within:
            return
        directions = random_sums(self.peers(vectors, scored.unit, scored.frame), vectors.layer)
        lists = survey(directions, scored.prepared, _LONG, self.kept, None, 0).extremes
        for name, mask in self._views_within.items():
            null = percentile(self._coherence(vectors, within(lists, mask, FIRST)))
            if null is not None:
                yield name, null

    @cached_property
    def _is_word(self) -> Tensor:
        """The tokens that are words, (V,); a worker of a cluster is sent them and need not judge tokens itself."""
        if "words" in self.views:
            return self.views["words"]
        return torch.from_numpy(self.model.vocab.mask("words", *self.model.judgement)).to(self.kept.device)

    @cached_property
    def _views_within(self) -> dict[str, Tensor]:
        """The views all of whose tokens the lists may show."""
        return {name: mask for name, mask in self.views.items() if int(mask[self.kept].sum()) == int(mask.sum())}

    def map_heads(self, kind: str, sets: dict[str, VectorSet], meet: OnScores) -> Iterator[PairRow]:
        """Yield the top pairs of every head of a layer.

        Key/value heads come in chunks, each followed by its query heads, so that few factors are held at once; with
        ``--memory``, one search runs at a time.

        Args:
            kind: ``qk`` or ``vo``, or such a role of cross attention.
            sets: Sets of vectors by role.
            meet: Called with the scores of all columns of heads.
        """
        left, right = sides_of(kind)
        # The side with columns for every query head, and the side that the query heads of a group share.
        query, shared = (left, right) if base_role(kind) == "qk" else (right, left)
        scored = {role: self.scored(sets[role], self.map_frame(role)) for role in (query, shared)}
        each = in_turn if self.spaces.room is not None else each_core(self.kept.device)
        layer = sets[query].layer  # of keys and values, it may be an earlier one
        dims = self.model.dims.at(layer)
        step = max(1, COLUMNS // dims.width(kind))

        def search(columns: tuple[int, Tensor, Tensor]) -> PairRow:
            head, scores, shared_factor = columns
            factor = self.factor(scored[query], head, scores)
            product = Factored(factor, shared_factor) if query == left else Factored(shared_factor, factor)
            return self.pair_row(kind, layer, head, scored[left].frame, product)

        for first in range(0, dims.kv_heads, step):
            stored = range(first, min(first + step, dims.kv_heads))
            # The factor may be a copy, so no variable may hold the scores any longer.
            factors = {
                head: self.factor(scored[shared], head, x) for head, x in self._columns(scored[shared], stored, meet)
            }
            heads = range(stored.start * dims.group, stored.stop * dims.group)
            for start in range(heads.start, heads.stop, step):
                block = self._columns(scored[query], range(start, min(start + step, heads.stop)), meet)
                yield from each(
                    search, [(head, x, factors[self.model.kv_head(shared, head, layer)]) for head, x in block]
                )

    def pair_row(self, kind: str, layer: int, head: int, frame: str, product: Factored) -> PairRow:
        """Return the top pairs of one head map, given as its factors over the kept tokens."""
        pairs = top_pairs(product, self.options.pairs)
        pairs = replace(pairs, left=self.kept[pairs.left], right=self.kept[pairs.right])
        offset = self.frames.usual_offset(kind, frame)
        return PairRow(
            address=str(Address(layer, site_of(kind), head=head)),
            role=kind,
            head=head,
            offset=offset,
            frame=frame,
            pairs=pairs,
        )

    def _listed_frames(self, layer: int, role: str) -> tuple[str, ...]:
        return list_frames(self.facts(layer, role), self.options)

    def _columns(self, scored: Scored, heads: range, meet: OnScores) -> list[tuple[int, Tensor]]:
        """Return each stored head with the scores of its columns over the rows, less their means, (V', d_h)."""
        width = self.model.dims.at(scored.vectors.layer).width(scored.vectors.role)
        part = slice(heads.start * width, heads.stop * width)
        scores = scored.over_rows(part)
        meet(scored, part, scores)
        return list(zip(heads, torch.split(scores, width, dim=1), strict=True))

    def factor(self, scored: Scored, head: int, scores: Tensor) -> Tensor:
        """Return one stored head's factor of a head map (`Frames.head_map`), computed in place.

        Args:
            scored: The set of the head's columns.
            head: The stored head.
            scores: Scores of its columns (`Scored.over_rows`), (V', d_h); they are overwritten.
        """
        role, frame = scored.vectors.role, scored.frame
        layer = scored.vectors.layer
        dims = self.model.dims.at(layer)
        part = slice(head * dims.width(role), (head + 1) * dims.width(role))
        factor = scores.add_(scored.mean[part])
        if base_role(role) == "k":
            first = head * dims.group  # The first of the query heads that share this key head.
            return self.frames.as_key(factor, scored.mean[part], layer, first, frame, self._lengths_of(scored), role)
        if base_role(role) == "q":
            offset = self.frames.usual_offset(f"{role}k", frame)
            return self.frames.as_query(factor, layer, head, frame, offset, self._lengths_of(scored), role)
        if base_role(role) != "v":
            return factor
        return self.frames.as_value(factor, layer, head * dims.group, frame, self._lengths_of(scored), role)

    def _lengths_of(self, scored: Scored) -> Lengths | None:
        """Return `Frames.lengths` of a role, computed once for all heads of its layer."""
        key = scored.vectors.layer, scored.vectors.role, scored.frame
        with self._lock:
            if key not in self._lengths:
                # Jobs that run at once may belong to adjacent layers.
                self._lengths = {name: lengths for name, lengths in self._lengths.items() if abs(name[0] - key[0]) < 2}
                rows, mean = scored.space.rows, scored.space.moments.mean
                self._lengths[key] = self.frames.lengths(*key[:2], rows, mean, centred=True, frame=key[2])
            return self._lengths[key]

    def _save_vectors(self, layer: int, role: str, vectors: VectorSet) -> None:
        """Write the folded vectors of a set, for questions that the lists cannot answer."""
        frames = self._listed_frames(layer, role)
        for paper in sorted({frame == "paper" for frame in frames}):
            frame = "paper" if paper else next(LENS_FRAMES.get(f, f) for f in frames if f != "paper")
            path = self.out / "vectors" / vector_file(layer, role, frame)
            save_array(path, self.folded(vectors, frame).cpu().numpy())

    def write(self, finds: JobResults) -> None:
        """Write lists and pairs of a job, and its mark last; the next job may run meanwhile."""
        job, pairs = finds.job, finds.pairs
        for role, list_blocks in finds.lists.items():
            if list_blocks:
                write_lists(self.out / "lists" / f"{file_name(job.layer, role)}.parquet", list_blocks)
                side = self.facts(job.layer, role).side
                write_index(self.index(job.layer, role), list_blocks, job.layer, role, side, self._is_word)
        if pairs:
            write_pairs(self.out / "pairs" / f"{file_name(job.layer, pairs[0].role)}.parquet", pairs)
        write_coherence(self.coherence_part(job), job.layer, finds.nulls)
        write_mark(self.mark(job), self._index_entries(job))

    def _index_entries(self, job: Job) -> Iterator[tuple[Kind, Tensor, Tensor]]:
        """Yield the entries of the running index that come from a job and that no other job has replaced."""
        for role in vector_roles(job):
            facts = self.facts(job.layer, role)
            for frame in list_frames(facts, self.options):
                first = self.bases[job.layer, role, frame]
                for tokens, keys in self.indexes[facts.side, frame].entries(first, first + facts.count):
                    yield (facts.side, frame), tokens, keys


def needed_roles(job: Job) -> list[str]:
    """Return the roles whose sets a job multiplies: its own, and both sides of its head maps."""
    roles = dict.fromkeys(vector_roles(job))
    for map_role in MAP_ROLES:
        if map_role in job.roles:
            roles.update(dict.fromkeys(sides_of(map_role)))
    return list(roles)
