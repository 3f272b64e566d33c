"""The atlas of a change: what each parameter reads or writes more, and less, than before.

All lists are in the base's frames. Their z is in units of the standard deviation that lists of the same role and layer
had before, so a parameter that hardly changed ranks low, however pointed its change is. In a LoRA of rank one, all
neurons of a matrix have the same list, and only the size of the change tells them apart.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.arch.roles import LAYER_ROLES, MAP_ROLES, OUTSIDE, ROUTER, side_of, sides_of, site_of
from zeropass.atlas.build import carry_out, kept_tokens
from zeropass.atlas.jobs import OnScores, Runner, Scored, needed_roles
from zeropass.atlas.plan import identity, plan_jobs, prepare, resolve, vector_roles
from zeropass.atlas.schema import Job, Options
from zeropass.atlas.tables import PairRow
from zeropass.diff.changes import Comparison
from zeropass.errors import BadModel, BadOption
from zeropass.model.frames import Frames
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.vectors import BIAS_TENSORS, VectorSet, roles_at, vector_set
from zeropass.numerics.factored import Factored
from zeropass.numerics.statistics import standardised

__all__ = ["build_change"]

CARRIED_BY = {"q_bias": ("k",), "v_bias": ("o",)}
"""The matrices that carry the biases of a head to the residual stream."""


@shows_progress
def build_change(
    base: ModelLike, tuned: ModelLike, out: str | Path, options: Options | None = None, progress: Progress | bool = True
) -> bool:
    """Build an atlas of what ``tuned`` changed in ``base``, or continue an unfinished one.

    The atlas holds the parameters that changed by more than rounding.

    Args:
        base: The model before, or its name.
        tuned: The model after, or its name.
        out: The folder of the atlas.
        options: Options of the build, as for `atlas.build.build`.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        False if the atlas was complete already.

    Raises:
        BadModel: The models cannot be compared, or no parameter that an atlas holds changed.
        BadOption: A qk map is asked for, but the model norms its queries and keys; or as for `atlas.build.build`.
        BadAtlas: As for `atlas.build.build`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> base = zp.open_model("models/first")
        >>> options = zp.Options(k=10, layers=(2, 3), roles=("gate",))
        >>> with TemporaryDirectory() as folder:
        ...     zp.build_change(base, zp.adapt(base, "models/tunes/reviews"), folder, options)
        ...     zp.open_atlas(folder).explain("L2.ff.3.gate")
        True
        Records(L2.ff.3.gate token, L2.ff.3.gate output)
    """
    report = callback(progress)
    base, tuned, out = open_model(base), open_model(tuned), Path(out)
    options, _ = resolve(options or Options(), None, f"the change from {base.name}")
    pair = Comparison(base, tuned)
    if not prepare(out, _identity(pair, options)):
        return False
    jobs = list(_changed_jobs(pair, options, report))
    if not jobs:
        shutil.rmtree(out)
        raise BadModel(
            f"{tuned.name} has all parameters of {base.name} unchanged that an atlas holds: there is nothing to build. "
            "zeropass diff without --build says what else differs."
        )
    judgement = base.judgement
    carry_out(_ChangeRunner(pair, out, options, jobs, kept_tokens(base, options, judgement)), judgement, report)
    return True


def _identity(pair: Comparison, options: Options) -> dict[str, Any]:
    """Return what tells this atlas from others: the options, and the hashes of both models."""
    base, tuned = (identity(model, options) for model in (pair.base, pair.tuned))
    del base["sha256"]  # it covers the base's files alone
    hashes = {"base_sha256": base["weights_sha256"], "tuned_sha256": tuned["weights_sha256"]}
    name = f"{pair.base.name} → {pair.tuned.name}"
    combined = hashlib.sha256(" ".join(hashes.values()).encode()).hexdigest()
    return base | {"model": base["model"] | {"name": name}, "change": hashes, "weights_sha256": combined}


def _changed_jobs(pair: Comparison, options: Options, progress: Progress) -> Sequence[Job]:
    """Return the jobs of a plain build, reduced to the roles that changed."""
    jobs = plan_jobs(pair.tuned, options)
    reduced = []
    for step, job in enumerate(jobs):
        progress("looking", step, len(jobs))
        changed = {role for role in needed_roles(job) if _changed(pair, pair.base.layer_of(role, job.layer), role)}
        roles = tuple(role for role in vector_roles(job) if role in changed)
        maps = tuple(role for role in job.roles if role in MAP_ROLES and changed & set(sides_of(role)))
        if roles or maps:
            reduced.append(Job(job.layer, roles + maps))
    return reduced


def _changed(pair: Comparison, layer: int, role: str) -> bool:
    """Tell whether the vectors of a role changed, or the gain of a norm that is folded into them."""
    if role in LAYER_ROLES or role == ROUTER:
        site, reads = site_of(role), side_of(role) == "read"
        gains = [f"{site}_norm"] if reads != pair.base.family.stream_normed else []
        gains += [f"{site}_gain"] if reads else []
        gains += [f"{site}_post_norm"] if not reads else [f"{role}_norm"] if role in ("q", "k") else []
        return any(pair.differs(name, layer) for name in (role, *gains) if name == role or pair.base.has(name))
    if layer == OUTSIDE:
        tables = pair.tuned.tables()
        return pair.differs(tables[role][0] if role in tables else f"{role}_bias")
    return any(pair.differs(name, layer) for name in (BIAS_TENSORS[role], *CARRIED_BY.get(role, ())))


def _normed_maps(model: Model) -> dict[str, str]:
    """Return the head maps whose sides are normed token by token, each with what is normed."""
    if model.layout.latent_of("v"):
        return dict.fromkeys(("qk", "vo"), "the latents of its attention")
    keys = {"qk": "its queries and keys"} if model.family.qk_norm else {}
    return keys | ({"vo": "its values"} if model.family.value_normed else {})


class _ChangeRunner(Runner):
    """A runner of the jobs of a plain build on differences: after minus before, both folded as the frames require."""

    def __init__(self, pair: Comparison, out: Path, options: Options, jobs: list[Job], kept: Tensor) -> None:
        # The base's frames lack tokens that only the fine-tune has; task heads that only it has are read.
        dims = replace(pair.tuned.dims, vocab=pair.base.dims.vocab)
        self.pair = pair
        for kind, what in _normed_maps(pair.base).items():
            if any(kind in job.roles for job in jobs):
                raise BadOption(
                    f"{pair.base.name}: a {pair.base.family.name} norms {what}, so the change of a {kind} map is not a "
                    "map itself; name the other roles with --roles."
                )
        super().__init__(replace(pair.tuned, vocab=pair.base.vocab, dims=dims), out, options, jobs, kept)
        self.after, self.frames = self.frames, Frames(pair.base)
        self.plain = Runner(pair.base, out, options, [], kept)
        self.plain.spaces = self.spaces

    def vectors(self, layer: int, role: str) -> VectorSet:
        """Return what was added to the vectors of a role."""
        after = vector_set(self.model, layer, role)
        if role in LAYER_ROLES:
            return replace(after, vectors=self.pair.change(role, layer).dense)
        before = self._before(after)
        return after if before is None else replace(after, vectors=after.vectors - before)

    def folded(self, vectors: VectorSet, frame: str) -> Tensor:
        """Return the change folded for a frame, including the change of the norm's gain."""
        added = self._fold(self.after, vectors, vectors.vectors, frame)
        before = self._before(vectors)
        if before is None or vectors.norm is None:
            return added
        return added + self._fold(self.after, vectors, before, frame) - self._fold(self.frames, vectors, before, frame)

    def scored(self, vectors: VectorSet, frame: str) -> Scored:
        """Scale the change by the standard deviation that the role's scores had before."""
        space, folded = self.space(vectors, frame), self.folded(vectors, frame)
        mean, deviations = space.moments.of_scores(folded)
        before = self._before(vectors)
        usual = 0.0
        if before is not None:
            spread = space.moments.of_scores(self._fold(self.frames, vectors, before, frame))[1]
            usual = float(spread.square().mean().sqrt())
        if not usual:  # The base has no such vectors, so the change sets the scale.
            usual = float(deviations.square().mean().sqrt()) or 1.0
        scale = torch.full_like(deviations, usual)
        return Scored(vectors, frame, space, standardised(folded, scale), mean, scale, deviations / scale)

    def map_heads(self, kind: str, sets: dict[str, VectorSet], _meet: OnScores) -> Iterator[PairRow]:
        """Yield the top pairs of L'R'ᵀ − LRᵀ = (L' − L) R'ᵀ + L (R' − R)ᵀ for every head of a layer."""
        layer = sets[kind[0]].layer
        sides = [_MapSide(self, sets[role], self.map_frame(role)) for role in kind]
        for head in range(self.model.dims.at(layer).heads):
            factors = (side.head(self.model.kv_head(side.role, head, layer)) for side in sides)
            (left, added_left), (right, added_right) = factors
            lefts, rights = (added_left, left), (right + added_right, added_right)
            # The rank is mostly low, and without the columns of missing directions the search has far better bounds.
            product = Factored(torch.cat(lefts, 1), torch.cat(rights, 1)).reduced()
            yield self.pair_row(kind, layer, head, self.map_frame(kind[0]), product)

    def _before(self, vectors: VectorSet) -> Tensor | None:
        """Return the base's vectors of a set, or None if the base has none or another number of them."""
        base, layer, role = self.pair.base, vectors.layer, vectors.role
        if role not in roles_at(base, layer):
            return None
        before = vector_set(base, layer, role).vectors
        return before if before.shape == vectors.vectors.shape else None

    @staticmethod
    def _fold(frames: Frames, vectors: VectorSet, rows: Tensor, frame: str) -> Tensor:
        return frames.folded(replace(vectors, vectors=rows), frame)


class _MapSide:
    """One side of a layer's head maps: the scores (V', d_h) of a head's columns before, and what was added to them."""

    def __init__(self, runner: _ChangeRunner, added: VectorSet, frame: str) -> None:
        self.runner, self.role, self.frame = runner, added.role, frame
        self.plain = runner.plain
        self.before = self.plain.scored(self.plain.vectors(added.layer, added.role), frame)
        self.added = runner.scored(added, frame)
        self.last: tuple[int, tuple[Tensor, Tensor]] | None = None

    def head(self, stored: int) -> tuple[Tensor, Tensor]:
        """Return both for a stored head; the last result is kept, since several query heads may share a head."""
        if self.last is None or self.last[0] != stored:
            self.last = stored, self._head(stored)
        return self.last[1]

    def _head(self, stored: int) -> tuple[Tensor, Tensor]:
        """Compute both for a stored head; what was added comes from the change, since a difference would be noise."""
        width = self.runner.model.dims.at(self.added.vectors.layer).width(self.role)
        columns = slice(stored * width, (stored + 1) * width)
        before = self.plain.factor(self.before, stored, self.before.over_rows(columns))
        added = self.added.over_rows(columns)
        if self.role == "k" and self.frame != "paper":
            return before, added
        added = added + self.added.mean[columns]
        return before, self._as_query(added, stored) if self.role == "q" else added

    def _as_query(self, added: Tensor, head: int) -> Tensor:
        """Return R (q' + c') − R (q + c), computed from the added q' − q, so R q never enters."""
        layer, frame, zero = self.added.vectors.layer, self.frame, torch.zeros_like(added[:1])
        offset = self.runner.frames.usual_offset("qk", frame)
        constant = self.runner.frames.as_query(zero, layer, head, frame, offset)
        return self.runner.after.as_query(added, layer, head, frame, offset) - constant
