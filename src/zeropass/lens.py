"""A model seen through its frames: from an address to words, straight from the weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from zeropass.arch.spec import MAP_ROLES, check_count, check_frame, space_of
from zeropass.errors import BadAddress, BadOption, BadWeights
from zeropass.model.adapted import Adapted
from zeropass.model.address import Address, parse, with_roles
from zeropass.model.frames import Frames
from zeropass.model.identity import values_sha256
from zeropass.model.model import Model, open_model
from zeropass.model.vectors import VectorSet, locate, require_head, vector_set
from zeropass.numerics.factored import Factored, close_values
from zeropass.numerics.projection import extremes
from zeropass.numerics.top_pairs import TopPairs, top_pairs
from zeropass.records.parameters import (
    Certificate,
    Direction,
    Hidden,
    PairRecord,
    PairScore,
    Record,
    Records,
    SvdRecord,
    Token,
    TokenScore,
    VectorRecord,
)
from zeropass.records.verdicts import Verdict, Verdicts, footnote, known_verdicts
from zeropass.tokens.undertrained import Judgement
from zeropass.tokens.vocabulary import View, Vocabulary

__all__ = ["Lens", "Shown", "load", "pairs_with"]


def load(model: str, device: str = "cpu") -> "Lens":
    """Open a model for reading: a demo name, a folder, a ``.gguf`` file or a hub id. No weights are read yet.

    ::

        import zeropass as zp
        lens = zp.load("smollm2-135m")
        lens["L26.ff.1189"]
    """
    return Lens(open_model(model, device))


@dataclass(frozen=True, eq=False)
class Lens:
    """Reads parameters of a model as words. ``tokens`` is the view: ``default``, ``words``, ``ascii`` or ``all``.

    ``verdicts`` are what a text said of the model's kinds of list; if not given, those that are known of its weights.
    """

    model: Model
    tokens: View = "default"
    verdicts: Verdicts | None = None

    @classmethod
    def over(cls, frames: Frames) -> "Lens":
        """A lens through frames that are at hand already."""
        lens = cls(frames.model)
        lens.__dict__["frames"] = frames
        return lens

    @cached_property
    def frames(self) -> Frames:
        """The spaces of the model; computed when first needed, then kept."""
        return Frames(self.model)

    def __getitem__(self, address: str) -> Records:
        """The records of an address in all its roles and usual frames."""
        return self.explain(address)

    def explain(
        self,
        address: str,
        *,
        frame: str | None = None,
        tokens: View | None = None,
        k: int = 20,
        offset: int | None = None,
    ) -> Records:
        """Records of an address: all its roles if it names none, all frames but ``paper`` if none is given.

        k: tokens a pole, or pairs. offset: query position minus key position, for ``qk`` of a model with RoPE; the
        usual one (`Frames.usual_offset`) if not given.
        Raises BadAddress (out of range), BadOption (no such frame, view or offset here).
        """
        check_frame(frame)
        check_count(k)
        place = parse(address)
        if offset and place.role in MAP_ROLES and place.role != "qk":
            raise BadOption(f"{address}: an offset changes the qk map of a head only; this one does not depend on it.")
        view = self.view(tokens or self.tokens)
        records: list[Record] = []
        for one in with_roles(place, self.model.family.ff_roles):
            if one.role in MAP_ROLES:
                records.append(self._pairs(one, frame or "token", view, k, offset))
            elif offset:
                raise BadOption(f"{address}: an offset has a meaning for the qk map of a head only.")
            else:
                records += self._lists(one, frame, view, k)
        if not records:
            raise BadOption(f"{address} has no list in the {frame} frame; the token frame is for what reads.")
        measurable = None if isinstance(self.model, Adapted) else self.model.name
        return Records(records, footnote(self._verdicts, measurable))

    def svd(
        self, address: str, *, frame: str = "token", tokens: View | None = None, k: int = 8, offset: int | None = None
    ) -> SvdRecord:
        """Leading singular directions of a head map over the vocabulary: what each reads, and what goes with it.

        ``address`` must name a map (``L10.attn.3.vo``). Directions whose singular values nearly coincide
        are marked: any rotation of them would do as well, so single ones mean nothing. The pole + of a direction is
        the one where the left side has its most extreme token of all, hidden ones included (`factored.one_sign`).
        """
        check_frame(frame)
        check_count(k)
        place = parse(address)
        if place.role not in MAP_ROLES:
            raise BadAddress(f"{address}: singular directions are those of a head map, such as L10.attn.3.vo.")
        view = self.view(tokens or self.tokens)
        offset = self._offset(place.role, frame, offset)
        product = self.head_map(address, frame=frame, offset=offset)
        found = product.svd()  # all of them: the last one is judged by its neighbour
        close = close_values(found.values)[:k].tolist()
        sides = found.left.T[:k], found.right.T[:k]
        energy = found.values.square().sum().clamp_min(torch.finfo(found.values.dtype).tiny)  # a map may be zero
        directions = [
            Direction(
                float(value),
                float(value.square() / energy),
                bool(near),
                *self.poles(left, view),
                *self.poles(right, view),
            )
            for value, near, left, right in zip(found.values[:k], close, *sides, strict=True)
        ]
        note = "≈: too close to a neighbour for the single direction to mean anything" if any(close) else ""
        return SvdRecord(str(place), place.role, offset, frame, tuple(directions), view.hidden, note)

    def vectors(self, layer: int, role: str) -> VectorSet:
        """All canonical vectors of a layer and role as a tensor (n, d), with their addresses."""
        return vector_set(self.model, layer, role)

    def head_map(self, address: str, *, frame: str = "token", offset: int | None = None) -> Factored:
        """A head map (``L10.attn.3.qk``) as its two factors over the vocabulary, (V, d_h) each."""
        place = parse(address)
        if place.role not in MAP_ROLES:
            raise BadAddress(f"{address} is not a head map; one looks like L10.attn.3.qk or L10.attn.3.vo.")
        require_head(self.model, place)
        return self.frames.head_map(place.layer, place.head, place.role, frame, self._offset(place.role, frame, offset))

    def _offset(self, kind: str, frame: str, asked: int | None) -> int:
        """The offset of a map: what was asked, or else the usual one."""
        return self.frames.usual_offset(kind, frame) if asked is None else asked

    @cached_property
    def judgement(self) -> Judgement:
        """Which tokens were hardly trained: `Model.judgement`."""
        return self.model.judgement

    @cached_property
    def _verdicts(self) -> Verdicts | None:
        model = self.model
        values: Callable[[], str | None] = lambda: None if isinstance(model, Adapted) else values_sha256(model)  # noqa: E731
        return self.verdicts or known_verdicts(model.size, lambda: model.fingerprint, model.dims.layers, values)

    def _verdict(self, role: str, frame: str, layer: int, offset: int = 0) -> Verdict | None:
        return self._verdicts.of(role, frame, layer, offset) if self._verdicts else None

    def view(self, name: View) -> "Shown":
        """The tokens that lists of a view may show; BadOption for one that hides them all."""
        vocab = self.model.vocab
        judged = () if name == "all" else self.judgement  # which hides nothing, whatever the judgement
        mask = torch.from_numpy(vocab.mask(name, *judged)).to(self.model.device)
        if not mask.any():
            raise BadOption(f"The view {name} hides every token of {self.model.name}.")
        return Shown(
            mask,
            mask.nonzero()[:, 0],
            Hidden(name, int((~mask).sum()), int(mask.sum()), vocab.hidden(name, *judged)),
        )

    def _lists(self, place: Address, frame: str | None, view: "Shown", k: int) -> list[Record]:
        layer, role, row = locate(self.model, place)
        found = vector_set(self.model, layer, role, row, row + 1)
        if len(found.addresses) > 1:  # a lone vector among its set
            found = _only(found, row)
        frames = found.frames if frame is None else tuple(f for f in (*found.frames, "paper") if f == frame)[:1]
        return [self._list(place, found, one, view, k) for one in frames]

    def _list(self, place: Address, found: VectorSet, frame: str, view: "Shown", k: int) -> VectorRecord:
        rows = self.frames.rows(space_of(frame, found.side, found.reads_at))
        folded = self.frames.fold(found.vectors, frame, found.side, found.norm, found.layer)
        mean, std = (float(x) for x in rows.moments.of_scores(folded))
        values = (rows.matrix @ folded[0])[view.ids]
        best = extremes(values[None], k, view.ids)
        norm = float(found.vectors.norm())
        ends = (*best.top.flatten().tolist(), *best.bottom.flatten().tolist())
        if not all(map(math.isfinite, (norm, mean, std, *ends))):
            raise BadWeights(f"{self.model.source.path}: the scores of {place}.{found.role} are beyond float32.")
        vocab = self.model.vocab
        return VectorRecord(
            address=str(place),
            role=found.role,
            side=found.side,
            frame=frame,
            norm=norm,
            top=scored_tokens(vocab, best.top_ids[0].tolist(), best.top[0].tolist(), mean, std),
            bottom=scored_tokens(vocab, best.bottom_ids[0].tolist(), best.bottom[0].tolist(), mean, std),
            mean=mean,
            std=std,
            hidden=view.hidden,
            evidence=self._verdict(found.role, frame, place.layer),
        )

    def _pairs(self, place: Address, frame: str, view: "Shown", k: int, offset: int | None) -> PairRecord:
        require_head(self.model, place)
        shift = self._offset(place.role, frame, offset if place.role == "qk" else None)
        product = self.frames.head_map(place.layer, place.head, place.role, frame, shift)
        try:
            found = top_pairs(product, k, left_mask=view.mask, right_mask=view.mask)
        except ValueError as error:  # of damaged weights: no score of sound ones is beyond float32
            raise BadWeights(f"{self.model.source.path}: {place}.{place.role}: {error}") from error
        record = pair_record(self.model.vocab, str(place), place.role, shift, frame, found, view.hidden)
        return replace(record, evidence=self._verdict(place.role, frame, place.layer, shift))

    def poles(self, direction: Tensor, view: "Shown") -> tuple[tuple[TokenScore, ...], tuple[TokenScore, ...]]:
        """The shown tokens at both ends of a direction's scores (V,), ten each, best first."""
        mean, std = float(direction.mean()), float(direction.std())
        best = extremes(direction[view.ids][None], 10, view.ids)
        vocab = self.model.vocab
        return (
            scored_tokens(vocab, best.top_ids[0].tolist(), best.top[0].tolist(), mean, std),
            scored_tokens(vocab, best.bottom_ids[0].tolist(), best.bottom[0].tolist(), mean, std),
        )


def pairs_with(
    lens: "Lens",
    address: str,
    product: Factored,
    offset: int,
    *,
    left: Sequence[int] = (),
    right: Sequence[int] = (),
    tokens: View | None = None,
    k: int = 50,
) -> PairRecord:
    """The k best pairs of a head map whose left (or right) token is among some; of both, those that fit both.

    address: of the map (``L10.attn.3.qk``). product: the map in the token frame, as `Lens.head_map` gives it at an
    ``offset``. left, right: token ids; tokens that the view hides may be asked for, they only never answer.
    Raises BadOption where neither side is given, or a token is not in the vocabulary.
    """
    check_count(k)
    if not left and not right:
        raise BadOption(f"{address}: a filter needs a token, on the left or on the right.")
    view = lens.view(tokens or lens.tokens)
    size = len(view.mask)
    if wrong := [i for i in (*left, *right) if not 0 <= i < size]:
        raise BadOption(f"There is no token {wrong[0]}; the vocabulary has 0 to {size - 1}.")
    rows = torch.tensor(sorted(set(left)), device=view.ids.device) if left else view.ids
    columns = torch.tensor(sorted(set(right)), device=view.ids.device) if right else view.ids
    found = _best(product, rows, columns, k)
    place, _, role = address.rpartition(".")
    return pair_record(lens.model.vocab, place, role, offset, "token", found, view.hidden)


def _best(product: Factored, rows: Tensor, columns: Tensor, k: int) -> TopPairs:
    """The k best of all pairs of some rows and columns; of equal scores the smaller ids first."""
    scores = (product.left[rows] @ product.right[columns].T).flatten()
    k = min(k, len(scores))
    best, order = scores.sort(descending=True, stable=True)
    best, order = best[:k], order[:k]
    kth = float(best[-1]) if k else float("inf")
    # Every pair was looked at: nothing is left that a bound could be about.
    return TopPairs(rows[order // len(columns)], columns[order % len(columns)], best, kth, float("inf"), True, 1.0)


@dataclass(frozen=True, eq=False)
class Shown:
    """A view's tokens: as a mask (V,), as ids, and what it hides."""

    mask: Tensor
    ids: Tensor
    hidden: Hidden


def scored_tokens(
    vocab: Vocabulary, ids: Sequence[int], scores: Sequence[float], mean: float, std: float
) -> tuple[TokenScore, ...]:
    """Tokens with raw score and z; a list without spread has z 0."""
    z: Callable[[float], float] = lambda score: (score - mean) / std if std > 0 else 0.0  # noqa: E731
    return tuple(TokenScore(i, vocab.label(i), s, z(s)) for i, s in zip(ids, scores, strict=True))


def pair_record(
    vocab: Vocabulary, address: str, role: str, offset: int, frame: str, found: TopPairs, hidden: Hidden
) -> PairRecord:
    """A record from token ids and scores."""
    pairs = tuple(
        PairScore(Token(a, vocab.label(a)), Token(b, vocab.label(b)), s)
        for a, b, s in zip(found.left.tolist(), found.right.tolist(), found.scores.tolist(), strict=True)
    )
    bound = found.bound if math.isfinite(found.bound) else None
    return PairRecord(address, role, offset, frame, pairs, Certificate(found.kth, bound, found.complete), hidden)


def _only(found: VectorSet, row: int) -> VectorSet:
    return VectorSet(
        found.layer,
        found.role,
        found.side,
        found.addresses[row : row + 1],
        found.vectors[row : row + 1],
        found.norm,
        found.frames,
        found.reads_at,
    )
