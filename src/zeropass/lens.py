"""The lens: from the address of a parameter to words, straight from the weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeropass._io.progress import waiting
from zeropass._io.short_repr import ShortRepr
from zeropass.arch.frame_names import FIRST, LENS_FRAMES, Frame, check_count, check_frame, space_of, with_lens
from zeropass.arch.roles import MAP_ROLES, MapRole, NeuronRole, Side
from zeropass.errors import BadAddress, BadOption, BadWeights
from zeropass.model.adapted import Adapted
from zeropass.model.address import FEATURE, Address, canonical_role, parse, with_roles
from zeropass.model.dictionaries import Dictionary, feature_address, open_dictionary
from zeropass.model.directions import Where, as_directions, direction_set
from zeropass.model.frames import Frames
from zeropass.model.identity import values_sha256
from zeropass.model.kept_rows import kept_frames
from zeropass.model.lens_maps import LensMaps
from zeropass.model.list_coherence import ListCoherence
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.model.vectors import VectorSet, locate, neuron_address, require_head, require_site, vector_set
from zeropass.numerics.factored import Factored, close_values
from zeropass.numerics.projection import extremes, strength
from zeropass.numerics.top_pairs import TopPairs, top_pairs
from zeropass.records.parameters import (
    Certificate,
    Coherence,
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
from zeropass.records.sequences import Parameters
from zeropass.records.verdicts import Verdict, Verdicts, footnote, known_verdicts
from zeropass.tokens.shown import View
from zeropass.tokens.undertrained import Judgement
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["READING", "Lens", "Shown", "load", "pairs_with"]

READING = "reading the weights; the first question to a model takes longest"
"""The words that are shown while a question is answered, if that takes more than a moment."""


def load(
    model: object,
    tokenizer: object = None,
    *,
    config: object = None,
    device: str | torch.device | None = None,
    lens: str | Path | LensMaps | None = "auto",
) -> "Lens":
    """Open a model for reading; no weights are read yet.

    Args:
        model: A demo name (``smollm2-135m``), a folder, a ``.gguf`` file or a hub id; a model in memory; or what
            `open_model` returned.
        tokenizer: The tokenizer of a model in memory (`open_model`).
        config: The configuration of a state dict (`open_model`).
        device: Where to compute: ``cpu``, which is the default, or ``cuda``.
        lens: The lens to read through: one from `calibrate`, the path or hub id of one (`read_lens`), ``auto`` for the
            one that is kept for these weights if there is one, or None for the weights alone.

    Returns:
        A lens that reads the parameters of the model as words.

    Example:
        >>> import zeropass as zp
        >>> lens = zp.load("models/first")
        >>> lens["L1.ff.3"]
        Records(L1.ff.3.gate token, L1.ff.3.gate output, L1.ff.3.up token, L1.ff.3.up output, L1.ff.3.value output)
    """
    opened = open_model(model, tokenizer, config=config, device=device)
    return Lens(opened, frames=kept_frames(opened, lens))


@dataclass(frozen=True, eq=False, repr=False)
class Lens(ShortRepr):
    """A reader of a model's parameters as words.

    Attributes:
        model: The model whose parameters are read.
        tokens: The view of the tokens: ``default``, ``words``, ``ascii`` or ``all``.
        verdicts: Verdicts of a text on the model's lists; if not given, those that are known for its weights.
        frames: The frames of the model; they compute their rows when first needed. Made here if not given.
        with_coherence: Whether lists say how coherent they are; the first list of each layer, role and frame then takes
            as long as some more.

    Example:
        >>> import zeropass as zp
        >>> lens = zp.Lens(zp.open_model("models/first"), tokens="words")
        >>> record = lens.explain("L1.ff.3.gate", frame="token", k=5)[0]
        >>> record.address, record.verb, len(record.top), record.hidden.view
        ('L1.ff.3', 'sees', 5, 'words')
    """

    model: Model
    tokens: View = "default"
    verdicts: Verdicts | None = None
    frames: Frames = field(default=None, repr=False)  # type: ignore[assignment]  # `__post_init__` replaces None
    with_coherence: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", self.frames or Frames(self.model))

    @classmethod
    def over(cls, frames: Frames, *, with_coherence: bool = True) -> "Lens":
        """Return a lens that uses existing frames and the rows that they have computed."""
        return cls(frames.model, frames=frames, with_coherence=with_coherence)

    def _repr_words(self) -> str:
        maps = self.frames.lens
        return f"{self.model}, {'the weights alone' if maps is None else maps.facts.words}"

    def __getitem__(self, address: str | Address) -> Records:
        """Return the records of an address in all its roles and usual frames."""
        return self.explain(address)

    @waiting(READING)
    def explain(
        self,
        address: str | Address,
        *,
        frame: Frame | None = None,
        tokens: View | None = None,
        k: int = 20,
        offset: int | None = None,
    ) -> Records:
        """Return the records of an address.

        Args:
            address: The address of a parameter; all its roles are read if it names none.
            frame: The frame to read in; all but ``paper`` if not given.
            tokens: The view of the tokens; that of the lens if not given.
            k: Tokens of each pole of a list, or pairs of a head map.
            offset: Query position minus key position, for ``qk`` of a model with RoPE; `Frames.usual_offset` if not
                given.

        Returns:
            One record for each role and frame.

        Raises:
            BadAddress: The address is out of range.
            BadOption: The parameter has no such frame, view or offset.
        """
        check_frame(frame)
        check_count(k)
        place = parse(address)
        if offset and place.role in MAP_ROLES and place.role != "qk":
            raise BadOption(f"{address}: an offset changes the qk map of a head only; this one does not depend on it.")
        view = self.view(tokens or self.tokens)
        records: list[Record] = []
        for parameter in with_roles(place, self.model.family.ff_roles):
            if parameter.role in MAP_ROLES:
                records.append(self._pairs(parameter, frame or self.map_frame, view, k, offset))
            elif offset:
                raise BadOption(f"{address}: an offset has a meaning for the qk map of a head only.")
            else:
                records += self._lists(parameter, frame, view, k)
        if not records:
            raise BadOption(f"{address} has no list in the {frame} frame; the token frame is for what reads.")
        measurable = None if isinstance(self.model, Adapted) else self.model.name
        return Records(records, footnote(self._verdicts, measurable, self._through(records)))

    @waiting(READING)
    def direction(
        self,
        vectors: Any,
        *,
        layer: int,
        side: Side | None = None,
        at: Where = "block",
        frame: Frame | None = None,
        tokens: View | None = None,
        k: int = 20,
    ) -> Records:
        """Return the records of any direction of the stream: a probe, a steering vector, a feature of a dictionary.

        Args:
            vectors: One direction (d,) or several (n, d): a tensor, an array of NumPy, lists of numbers, or the path of
                a file: ``FILE.npy``, ``FILE.safetensors[:name]`` or ``FILE.gguf[:name]``.
            layer: The layer where it reads or writes; the number of layers for the end of the stream.
            side: ``read`` for what it reacts to, ``write`` for what adding it does; both if not given.
            at: Its place in the layer: ``block`` for the stream that enters it, ``mid`` for the stream between
                attention and MLP, ``attn`` or ``ff`` for what a half of it reads or writes.
            frame: The frame to read in; the usual ones of the side if not given.
            tokens: The view of the tokens; that of the lens if not given.
            k: Tokens of each pole.

        Returns:
            One record for each direction, side and frame. Their coherence is compared with random directions of the
            parameters that read or write at the same place; no verdict is about them.

        Raises:
            BadAddress: There is no such layer.
            BadOption: The vectors are no directions of this model, or there is no such side, place, frame or view.

        Example:
            >>> import zeropass as zp
            >>> lens = zp.load("models/first")
            >>> paris = lens.vectors(1, "value").vectors[3]
            >>> [(record.address, record.verb) for record in lens.direction(paris, layer=2)]
            [('L2.block', 'sees'), ('L2.block', 'is about to say'), ('L2.block', 'writes')]
        """
        check_frame(frame)
        check_count(k)
        table, view = as_directions(self.model, vectors), self.view(tokens or self.tokens)
        sets = [direction_set(self.model, table, layer, each, at) for each in ((side,) if side else ("read", "write"))]
        records: list[Record] = []
        for row in range(len(table)):
            address = f"L{layer}.{at}" + (f".{row}" if len(table) > 1 else "")
            for directions in sets:
                records += self._no_parameter(address, "direction", _single(directions, row), frame, view, k)
        if not records:
            raise BadOption(f"A direction of side {side} has no list in the {frame} frame.")
        return Records(records, self._through(records))

    @waiting(READING)
    def token_direction(self, weights: Mapping[int, float], layer: int) -> Tensor:
        """Return a weighted sum of tokens as a direction of the stream that enters a layer, for `direction`.

        A token stands for the state of a position that holds it, less the mean over the vocabulary: its row in the
        frame ``token``, carried to the layer by the lens if there is one.

        Args:
            weights: The weight of each token id, such as 1 and -1 for a contrast of two words.
            layer: The layer; the number of layers for the end of the stream.

        Returns:
            The direction, (d,).

        Raises:
            BadAddress: There is no such layer.
            BadOption: A token is not in the vocabulary.

        Example:
            >>> import zeropass as zp
            >>> lens = zp.load("models/first", lens=None)
            >>> he, she = (lens.model.vocab.find(word)[0] for word in (" he", " she"))
            >>> contrast = lens.token_direction({he: 1, she: -1}, layer=2)
            >>> lens.direction(contrast, layer=2, side="read", k=2)[0].top[0].token
            ' he'
        """
        layers, size = self.model.dims.layers, self.model.dims.vocab
        if not 0 <= layer <= layers:
            raise BadAddress(f"Layer {layer} is out of range: {self.model.name} has layers 0 to {layers}, the end.")
        if wrong := [i for i in weights if not 0 <= i < size]:
            raise BadOption(f"There is no token {wrong[0]}; the vocabulary has 0 to {size - 1}.")
        rows = self.frames.rows(space_of("token", "read", layer))
        chosen = rows.matrix[list(weights)].double() - rows.moments.mean
        direction = (torch.tensor([*weights.values()], dtype=torch.float64, device=chosen.device) @ chosen).float()
        carried = self.frames.lens.seen(layer) if self.frames.lens and "seen" in self.frames.lens_frames else None
        return direction if carried is None else direction @ carried[0]

    def features(
        self, place: str | Path | Dictionary, *, hook: str | None = None, layer: int | None = None
    ) -> Parameters:
        """Return the features of a dictionary: a sparse autoencoder, a transcoder, or one for each of some layers.

        Their addresses are ``L12.sae.4051``, where 12 is the layer in the name of the place where it reads. Each has an
        encoder, which reads, and a decoder, which writes; no verdict is about them, and their coherence is compared
        with random directions of the parameters that read or write at the same place.

        Args:
            place: The folder of a dictionary, its hub id (`open_dictionary`), or what `open_dictionary` returned.
            hook: Where it reads and writes, if its files do not say it: ``blocks.12.hook_resid_post``.
            layer: The layer in their addresses; all if not given.

        Returns:
            The features; their records are made when they are asked for.

        Raises:
            BadDictionary: There is none, its format or place is not known, or it does not fit the model.
            BadAddress: It has no such layer.
            NotFetched: It cannot be fetched.

        Example:
            >>> import zeropass as zp
            >>> zp.load("models/first", lens=None).features("models/dictionary")
            Parameters(512: L2.sae.0 … L2.sae.511)
        """
        opened = place if isinstance(place, Dictionary) else open_dictionary(self.model, place, hook)
        layers = opened.files if layer is None else [layer]
        addresses = [str(Address(at, FEATURE, index=i)) for at in layers for i in range(opened.count(at))]
        return Parameters(addresses, partial(self.feature, opened), partial(self._feature_strengths, opened))

    @waiting(READING)
    def feature(
        self,
        dictionary: Dictionary,
        address: str | Address,
        *,
        frame: Frame | None = None,
        tokens: View | None = None,
        k: int = 20,
    ) -> Records:
        """Return the records of one feature of a dictionary.

        Args:
            dictionary: The dictionary (`open_dictionary`).
            address: The address: ``L12.sae.4051``, or ``L12.sae.4051.decoder`` for one of its two vectors.
            frame: The frame to read in; the usual ones if not given.
            tokens: The view of the tokens; that of the lens if not given.
            k: Tokens of each pole.

        Raises:
            BadAddress: There is no such feature, or its encoder reads what is no state of a token.
            BadOption: There is no such frame or view.
        """
        check_frame(frame)
        check_count(k)
        feature, view = feature_address(address), self.view(tokens or self.tokens)
        records: list[Record] = []
        for role, vector in dictionary.sets(feature).items():
            records += self._no_parameter(str(feature), role, vector, frame, view, k)
        if not records:
            raise BadOption(f"{address} has no list in the {frame} frame.")
        return Records(records, " ".join(filter(None, (dictionary.note, self._through(records)))))

    def _no_parameter(
        self, address: str, role: str, vector: VectorSet, frame: Frame | None, view: "Shown", k: int
    ) -> list[Record]:
        """Return the lists of a direction that is no parameter, so that no verdict is about it."""
        lists = [self._list(address, vector, name, view, k) for name in self._frames_of(vector, frame)]
        return [replace(record, role=role, evidence=None) for record in lists]

    def _feature_strengths(self, dictionary: Dictionary, addresses: Sequence[str], frame: str | None) -> list[float]:
        """Return how telling the lists of features are (`strength`), the best list of each."""
        features = [feature_address(address) for address in addresses]
        of_layer: dict[int, list[int]] = {}
        for place, feature in enumerate(features):
            of_layer.setdefault(feature.layer, []).append(place)

        def sets() -> Iterator[tuple[list[int], VectorSet]]:
            for layer, places in of_layer.items():
                rows = [features[place].index for place in places]
                for role in dictionary.roles(layer):
                    vectors = dictionary.set(layer, role)
                    yield places, replace(vectors, vectors=vectors.vectors[rows])

        return self._best_strengths(addresses, sets(), frame)

    def _through(self, records: Sequence[Record]) -> str:
        """Return a sentence on the lens if some records need it, else nothing."""
        lens = self.frames.lens if any(record.frame in LENS_FRAMES for record in records) else None
        return lens.facts.note if lens else ""

    @waiting(READING)
    def svd(
        self,
        address: str | Address,
        *,
        frame: Frame | None = None,
        tokens: View | None = None,
        k: int = 8,
        offset: int | None = None,
    ) -> SvdRecord:
        """Return the leading singular directions of a head map over the vocabulary.

        Directions whose singular values nearly coincide are marked: any rotation of them is as good, so a single one
        means nothing. In the pole + of a direction, the left side has its most extreme token of all, hidden tokens
        included (`factored.one_sign`).

        Args:
            address: The address of a head map (``L10.attn.3.vo``).
            frame: The frame to read in; ``seen`` if not given and there is a lens, else ``token``.
            tokens: The view of the tokens; that of the lens if not given.
            k: The number of directions.
            offset: Query position minus key position, for ``qk``; `Frames.usual_offset` if not given.

        Returns:
            The directions, each with the tokens at both poles of its left and right side.

        Raises:
            BadAddress: The address is no head map of the model.
            BadOption: The map has no such frame, view or offset.
        """
        check_frame(frame)
        check_count(k)
        place = parse(address)
        if place.role not in MAP_ROLES:
            raise BadAddress(f"{address}: singular directions are those of a head map, such as L10.attn.3.vo.")
        view, name = self.view(tokens or self.tokens), frame or self.map_frame
        offset = self._offset(place.role, name, offset)
        product = self.head_map(address, frame=name, offset=offset)
        svd = product.svd()  # all of them: whether the last one is close depends on the next
        close = close_values(svd.values)[:k].tolist()
        sides = svd.left.T[:k], svd.right.T[:k]
        energy = svd.values.square().sum().clamp_min(torch.finfo(svd.values.dtype).tiny)  # a map may be zero
        directions = []
        poles = (self.poles(side, view) for side in sides)
        for value, is_close, left, right in zip(svd.values[:k], close, *poles, strict=True):
            directions.append(
                Direction(
                    value=float(value),
                    share=float(value.square() / energy),
                    close=bool(is_close),
                    left=left[0],
                    left_bottom=left[1],
                    right=right[0],
                    right_bottom=right[1],
                )
            )
        note = "≈: too close to a neighbour for the single direction to mean anything" if any(close) else ""
        return SvdRecord(
            address=str(place),
            role=place.role,
            offset=offset,
            frame=name,
            directions=tuple(directions),
            hidden=view.hidden,
            note=note,
            lens=self.lens_words(name),
        )

    def vectors(self, layer: int, role: str) -> VectorSet:
        """Return all canonical vectors of a layer and role as a tensor (n, d), with their addresses."""
        return vector_set(self.model, layer, role)

    def neurons(self, layer: int, role: NeuronRole | None = None) -> Parameters:
        """Return the neurons of a layer, in one role or in all; their records are made when they are asked for.

        Raises:
            BadAddress: The model has no such layer, or its neurons have no such role.
        """
        require_site(self.model, Address(layer, "ff", index=0), "ff")
        (first, *_) = with_roles(Address(layer, "ff", index=0, role=role or ""), self.model.family.ff_roles)
        count, suffix = self.model.rows(first.role, layer), f".{role}" if role else ""
        addresses = [f"{neuron_address(self.model, layer, first.role, row)}{suffix}" for row in range(count)]
        return Parameters(addresses, self.explain, self._strengths)

    def heads(self, layer: int | None = None, role: MapRole | None = None) -> Parameters:
        """Return the attention heads of a layer or of all, with one map or both; their pairs are found when asked for.

        Raises:
            BadAddress: The model has no such layer, or heads have no such map.
        """
        layers = self.model.dims.attending if layer is None else [layer]
        places = [Address(at, "attn", head=head) for at in layers for head in range(self.model.dims.at(at).heads)]
        addresses = [f"{place}.{canonical_role(role)}" if role else str(place) for place in places]
        if layer is not None:
            require_head(self.model, parse(addresses[0]))
        return Parameters(addresses, self.explain)

    def _strengths(self, addresses: Sequence[str], frame: str | None) -> list[float]:
        """Return how telling the lists of neurons of one layer are (`strength`), the best list of each."""

        def sets() -> Iterator[tuple[list[int], VectorSet]]:
            places = [with_roles(parse(address), self.model.family.ff_roles) for address in addresses]
            for of_role in zip(*places, strict=True):
                layer, role, _ = locate(self.model, of_role[0])
                rows = [locate(self.model, place)[2] for place in of_role]
                vectors = self.vectors(layer, role)
                yield [*range(len(rows))], replace(vectors, vectors=vectors.vectors[rows], addresses=of_role)

        return self._best_strengths(addresses, sets(), frame)

    @waiting(READING)
    def _best_strengths(
        self, addresses: Sequence[str], sets: Iterable[tuple[list[int], VectorSet]], frame: str | None
    ) -> list[float]:
        """Return how telling the best list of each address is, from the vectors of some addresses at a time."""
        view, best = self.view(self.tokens), torch.full((len(addresses),), -torch.inf)
        for places, vectors in sets:
            for name in self._frames_of(vectors, frame):
                best[places] = torch.maximum(best[places], self._telling(vectors, name, view).cpu())
        if addresses and not best.isfinite().all():
            raise BadOption(f"{addresses[0]} … have no list in the {frame} frame, or scores beyond float32.")
        return [float(value) for value in best]

    def _telling(self, vectors: VectorSet, frame: str, view: "Shown") -> Tensor:
        """Return how telling the list of each vector of a set is in one frame, (n,)."""
        scaled = self._coherence.scaled(vectors, frame)
        return torch.cat([strength(lists) for lists in self._coherence.lists(scaled, vectors, frame, view.ids)])

    def _ipython_key_completions_(self) -> list[str]:
        """Return what a notebook completes between the brackets: heads with their maps, and where neurons begin."""
        layers = range(self.model.dims.layers)
        return [f"L{layer}.ff." for layer in layers if self.model.dims.has_site("ff", layer)] + [
            f"L{layer}.attn.{head}{suffix}"
            for layer in self.model.dims.attending
            for head in range(self.model.dims.at(layer).heads)
            for suffix in ("", ".qk", ".vo")
        ]

    @waiting(READING)
    def head_map(self, address: str | Address, *, frame: Frame | None = None, offset: int | None = None) -> Factored:
        """Return a head map (``L10.attn.3.qk``) as its two factors over the vocabulary, (V, d_h) each."""
        place = parse(address)
        if place.role not in MAP_ROLES:
            raise BadAddress(f"{address} is not a head map; one looks like L10.attn.3.qk or L10.attn.3.vo.")
        require_head(self.model, place)
        return self.frames.head_map(place.layer, place.head, place.role, frame or self.map_frame, offset)

    @property
    def map_frame(self) -> Frame:
        """The frame in which head maps are read by default."""
        return self.frames.map_frame

    def _offset(self, role: str, frame: str, offset: int | None) -> int:
        """Return the given offset of a map, or the usual one if None is given."""
        return self.frames.usual_offset(role, frame) if offset is None else offset

    @cached_property
    def _coherence(self) -> ListCoherence:
        return ListCoherence(self.frames)

    @cached_property
    def judgement(self) -> Judgement:
        """The under-trained tokens: `Model.judgement`."""
        return self.frames.judgement

    @cached_property
    def _verdicts(self) -> Verdicts | None:
        """The given verdicts, or those that are known for the weights; an adapted model is not looked up by values."""
        model = self.model
        values: Callable[[], str | None] = lambda: None if isinstance(model, Adapted) else values_sha256(model)  # noqa: E731
        return self.verdicts or known_verdicts(model.size, lambda: model.fingerprint, model.dims.layers, values)

    def _verdict(self, role: str, frame: str, layer: int, offset: int = 0) -> Verdict | None:
        """Return the verdict on the lists of a role, frame and layer, if there is one."""
        verdicts = self._verdicts
        return None if verdicts is None else verdicts.of(role, frame, layer, offset, lens=self.lens_words(frame))

    def view(self, name: View) -> "Shown":
        """Return the tokens that lists of a view may show; raise BadOption if the view hides them all."""
        vocab = self.model.vocab
        judgement = () if name == "all" else self.judgement  # `all` hides nothing, whatever the judgement
        mask = torch.from_numpy(vocab.mask(name, *judgement)).to(self.model.device)
        if not mask.any():
            raise BadOption(f"The view {name} hides every token of {self.model.name}.")
        return Shown(
            mask,
            mask.nonzero()[:, 0],
            Hidden(view=name, count=int((~mask).sum()), shown=int(mask.sum()), reasons=vocab.hidden(name, *judgement)),
        )

    def _lists(self, place: Address, frame: str | None, view: "Shown", k: int) -> list[Record]:
        """Return the lists of one vector in a frame, or in all its usual frames for None."""
        layer, role, row = locate(self.model, place)
        vector = vector_set(self.model, layer, role, row, row + 1)
        if len(vector.addresses) > 1:
            vector = _single(vector, row)
        return [self._list(str(place), vector, name, view, k) for name in self._frames_of(vector, frame)]

    def _frames_of(self, vector: VectorSet, frame: str | None) -> tuple[str, ...]:
        """Return the usual frames of a set, or the given one if the set has it."""
        usual = with_lens(vector.frames, vector.role, vector.side, self.frames.lens_frames)
        known = (*vector.frames, *with_lens(vector.frames, vector.role, vector.side, LENS_FRAMES), "paper")
        return usual if frame is None else tuple(f for f in known if f == frame)[:1]

    def _list(self, address: str, vector: VectorSet, frame: str, view: "Shown", k: int) -> VectorRecord:
        """Return the list of a set of one vector in one frame."""
        scores, mean, std = self._scores(vector, frame)
        best = extremes(scores[view.ids][None], max(k, FIRST), view.ids)
        norm = float(vector.vectors.norm())
        ends = (*best.top.flatten().tolist(), *best.bottom.flatten().tolist())
        if not all(map(math.isfinite, (norm, mean, std, *ends))):
            raise BadWeights(f"{self.model.source.path}: the scores of {address}.{vector.role} are beyond float32.")
        null = self._coherence.null(vector, frame, view.hidden.view, view.ids) if self.with_coherence else None
        vocab = self.model.vocab
        return VectorRecord(
            address=address,
            role=vector.role,
            side=vector.side,
            frame=frame,
            norm=norm,
            top=scored_tokens(vocab, best.top_ids[0, :k].tolist(), best.top[0, :k].tolist(), mean, std),
            bottom=scored_tokens(vocab, best.bottom_ids[0, :k].tolist(), best.bottom[0, :k].tolist(), mean, std),
            mean=mean,
            std=std,
            hidden=view.hidden,
            evidence=self._verdict(vector.role, frame, vector.layer),
            lens=self.lens_words(frame),
            coherence=None if null is None else Coherence(float(self._coherence.of(best, vector.side, mean)), null),
        )

    def _scores(self, vector: VectorSet, frame: str) -> tuple[Tensor, float, float]:
        """Return the scores (V,) of a set of one vector in a frame, with their mean and standard deviation."""
        rows = self.frames.rows(vector.space(frame))
        folded = self.frames.folded(vector, frame)
        mean, std = (float(x) for x in rows.moments.of_scores(folded))
        scores = rows.matrix @ folded[0]
        factors = self.frames.factors(vector.layer, vector.role, frame)
        return (scores, mean, std) if factors is None else ((scores - mean) * factors, 0.0, std)

    def _pairs(self, place: Address, frame: str, view: "Shown", k: int, offset: int | None) -> PairRecord:
        """Return the top pairs of a head map; an offset counts for ``qk`` only."""
        require_head(self.model, place)
        shift = self._offset(place.role, frame, offset if place.role == "qk" else None)
        product = self.frames.head_map(place.layer, place.head, place.role, frame, shift)
        try:
            pairs = top_pairs(product, k, left_mask=view.mask, right_mask=view.mask)
        except ValueError as error:  # the weights are damaged: scores of sound weights fit into float32
            raise BadWeights(f"{self.model.source.path}: {place}.{place.role}: {error}") from error
        record = pair_record(self.model.vocab, str(place), place.role, shift, frame, pairs, view.hidden)
        verdict = self._verdict(place.role, frame, place.layer, shift)
        return replace(record, evidence=verdict, lens=self.lens_words(frame))

    def lens_words(self, frame: str) -> str:
        """Return the lens that a frame needs, in words; nothing for a frame of the weights alone."""
        return self.frames.require_lens(frame).facts.words if frame in LENS_FRAMES else ""

    def poles(self, directions: Tensor, view: "Shown") -> list[tuple[tuple[TokenScore, ...], tuple[TokenScore, ...]]]:
        """Return the shown tokens at both ends of each direction's scores (n, V), ten each, best first."""
        best = extremes(directions[:, view.ids], 10, view.ids)
        means, stds = directions.mean(1).tolist(), directions.std(1).tolist()
        ends = (
            [
                scored_tokens(self.model.vocab, *each)
                for each in zip(ids.tolist(), values.tolist(), means, stds, strict=True)
            ]
            for ids, values in ((best.top_ids, best.top), (best.bottom_ids, best.bottom))
        )
        return list(zip(*ends, strict=True))


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
    """Return the best pairs of a head map whose left or right token, or both, are among given ones.

    Args:
        lens: The lens on the model.
        address: The address of the map (``L10.attn.3.qk``).
        product: The map, as `Lens.head_map` returns it for ``offset``.
        offset: Query position minus key position.
        left: Ids of the left tokens, hidden ones allowed; all that the view shows if empty.
        right: Ids of the right tokens, hidden ones allowed; all that the view shows if empty.
        tokens: The view of the tokens; that of the lens if not given.
        k: The number of pairs.

    Returns:
        The pairs, best first.

    Raises:
        BadOption: Neither side is given, or a token is not in the vocabulary.

    Example:
        >>> import zeropass as zp
        >>> lens = zp.load("models/first")
        >>> product = lens.head_map("L1.attn.0.qk", offset=0)
        >>> record = zp.pairs_with(lens, "L1.attn.0.qk", product, 0, left=[300], k=3)
        >>> record.address, record.role, [pair.left.id for pair in record.pairs]
        ('L1.attn.0', 'qk', [300, 300, 300])
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
    pairs = _best_pairs(product, rows, columns, k)
    place = parse(address)
    record = pair_record(lens.model.vocab, str(place), place.role, offset, lens.map_frame, pairs, view.hidden)
    return replace(record, lens=lens.lens_words(lens.map_frame))


def _best_pairs(product: Factored, rows: Tensor, columns: Tensor, k: int) -> TopPairs:
    """Return the k best pairs of some rows and columns; among equal scores, smaller ids come first."""
    scores = (product.left[rows] @ product.right[columns].T).flatten()
    k = min(k, len(scores))
    best, order = scores.sort(descending=True, stable=True)
    best, order = best[:k], order[:k]
    kth = float(best[-1]) if k else float("inf")
    # Every pair was scored, so there is no rest to bound.
    return TopPairs(
        left=rows[order // len(columns)],
        right=columns[order % len(columns)],
        scores=best,
        kth=kth,
        bound=float("inf"),
        complete=True,
        visited=1.0,
    )


@dataclass(frozen=True, eq=False, repr=False)
class Shown(ShortRepr):
    """The tokens that a view shows.

    Attributes:
        mask: True for the tokens that are shown, (V,).
        ids: Their ids, ascending.
        hidden: How many tokens the view hides, and why.
    """

    mask: Tensor
    ids: Tensor
    hidden: Hidden


def scored_tokens(
    vocab: Vocabulary, ids: Sequence[int], scores: Sequence[float], mean: float, std: float
) -> tuple[TokenScore, ...]:
    """Return tokens with raw score and z, which is 0 in a list without spread.

    Args:
        vocab: The vocabulary, for the texts of the tokens.
        ids: Their ids.
        scores: The score of each.
        mean: The mean score over the vocabulary.
        std: The standard deviation of the scores.
    """
    z: Callable[[float], float] = lambda score: (score - mean) / std if std > 0 else 0.0  # noqa: E731
    return tuple(TokenScore(id=i, token=vocab.label(i), score=s, z=z(s)) for i, s in zip(ids, scores, strict=True))


def pair_record(
    vocab: Vocabulary, address: str, role: str, offset: int, frame: str, pairs: TopPairs, hidden: Hidden
) -> PairRecord:
    """Return the record of pairs that are given as token ids and scores.

    Args:
        vocab: The vocabulary, for the texts of the tokens.
        address: The address of the head.
        role: The role of the map: ``qk`` or ``vo``, with its prefix in cross-attention.
        offset: Query position minus key position.
        frame: The frame of the map.
        pairs: The pairs, best first.
        hidden: The tokens that the view hides.
    """
    scored = tuple(
        PairScore(Token(a, vocab.label(a)), Token(b, vocab.label(b)), s)
        for a, b, s in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.scores.tolist(), strict=True)
    )
    bound = pairs.bound if math.isfinite(pairs.bound) else None
    return PairRecord(
        address=address,
        role=role,
        offset=offset,
        frame=frame,
        pairs=scored,
        certificate=Certificate(pairs.kth, bound, pairs.complete),
        hidden=hidden,
    )


def _single(vectors: VectorSet, row: int) -> VectorSet:
    """Return one vector of a set as a set of its own."""
    at = slice(row, row + 1)
    return replace(vectors, addresses=vectors.addresses[at], vectors=vectors.vectors[at])
