"""Run `zeropass relation` in one call: find the heads of a model that take words to their partners."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from zeropass._io.progress import Progress, callback, shows_progress
from zeropass.arch.frame_names import Frame, check_count, check_frame, space_of
from zeropass.atlas.read import Atlas
from zeropass.atlas.weights import lens_of
from zeropass.errors import BadOption, BadWeights
from zeropass.lens import Lens, Shown, load
from zeropass.model.opening import ModelLike
from zeropass.numerics.factored import Factored
from zeropass.records.tabular import POLES
from zeropass.relations.head_shares import HeadShares, PairTable
from zeropass.relations.pair_files import MOST, PairSet, read_pairs, shipped_sets
from zeropass.relations.results import HeadScore, Relation, Relations
from zeropass.relations.shuffles import Shuffles, shuffled_share
from zeropass.relations.token_pairs import VOCABULARY_SETS, TokenPairs, looked_up, of_vocabulary
from zeropass.tokens.shown import View, shown_text
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["FEWEST", "SHUFFLES", "Pairs", "relation", "set_names"]

Pairs = str | Path | PairSet | Iterable[tuple[str, str]]
"""Pairs of words: the path of a file of them, or the pairs."""

FEWEST = 5
"""The fewest pairs of a set: of four there are 24 orders, so that no p is below .04, and none of two sets below .08."""

SHUFFLES = 1999
"""The fewest shuffles of a set; with many sets there are more, so that a p times their number can be small."""

_PER_SET = 80
"""The shuffles for each set of a call: the smallest p times the number of sets is then .0125 at most."""

_EXAMPLES = 4
"""The number of pairs that are kept as examples of what a named head does."""


def set_names() -> tuple[str, ...]:
    """Return the names of the sets that ship with the package, and of those that a vocabulary gives."""
    return (*shipped_sets(), *VOCABULARY_SETS)


@shows_progress
def relation(
    model: "ModelLike | Lens | Atlas",
    pairs: Pairs | None = None,
    *,
    sets: str | Sequence[str] = (),
    k: int = 10,
    frame: Frame | None = None,
    tokens: View | None = None,
    layers: tuple[int, int] | None = None,
    seed: int = 0,
    progress: Progress | bool = True,
) -> Relations:
    """Measure how far the ``vo`` map of each head takes the left word of a pair to the right one.

    A head that takes Paris to France and Rome to Italy deals with capitals; one that takes each capital to every
    country does not, so right words are compared with those of other pairs (docs/relations.md). Also measured is the
    other pole, where a head suppresses the right word.

    Args:
        model: A model or its name, a lens on one, or an atlas whose model can be opened by the name that it states.
        pairs: Pairs of words: the path of a file (`read_pairs`), or tuples.
        sets: Names of sets that ship with the package (`set_names`); all of them if there are no pairs either.
        k: The number of most extreme tokens of a row that count.
        frame: The frame to read in; that of head maps if not given: ``seen`` if there is a lens, else ``token``.
        tokens: The view of the tokens that have a rank; that of the lens if not given.
        layers: A half-open range of layers; all if not given.
        seed: The seed of the shuffles.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        A score of every head for each set, at both poles.

    Raises:
        BadOption: There is no such set, frame, view or layer, or the vocabulary lacks nearly all of the pairs.

    Example:
        >>> import zeropass as zp
        >>> lens = zp.load("models/first", lens=None)
        >>> relations = zp.relation(lens, sets=["copying"], layers=(1, 3))
        >>> relations.heads, len(relations[0].scores), relations[0].count
        (12, 24, 200)
    """
    report = callback(progress)
    check_frame(frame)
    check_count(k)
    lens = _lens(model)
    view = lens.view(tokens or lens.tokens)
    if k > len(view.ids):
        raise BadOption(f"-k is {k}; the view {view.hidden.view} shows {len(view.ids):,} tokens.")
    addresses = _heads(lens, layers)
    chosen, left_out = _chosen(lens, view, _given(pairs), [sets] if isinstance(sets, str) else list(sets))
    name = frame or lens.map_frame
    count = max(SHUFFLES, _PER_SET * len(chosen))
    table = PairTable(chosen, view.ids)
    work = [_Work(token_pairs, Shuffles(len(token_pairs.pairs), count, seed)) for token_pairs in chosen]
    for done, address in enumerate(addresses):
        report("heads", done, len(addresses))
        for of_set, shares in zip(work, table.shares(lens.head_map(address, frame=name), k), strict=True):
            if not shares.z.isfinite().all():
                raise BadWeights(f"{lens.model.source.path}: the scores of {address} are beyond float32.")
            of_set.add(address, shares)
    report("heads", len(addresses), len(addresses))
    by_copying = table.shares_of_pairs(_copier(lens, name), k)
    return Relations(
        model=lens.model.name,
        frame=name,
        lens=lens.lens_words(name),
        k=k,
        view=view.hidden.view,
        heads=len(addresses),
        shuffles=count,
        seed=seed,
        sets=tuple(
            of_set.relation(lens.model.vocab, len(work), share) for of_set, share in zip(work, by_copying, strict=True)
        ),
        left_out=left_out,
    )


def _lens(model: "ModelLike | Lens | Atlas") -> Lens:
    """Return a lens on what was given; of an atlas on the model that it was built from."""
    if isinstance(model, Atlas):
        return lens_of(model, str(model.model.get("command", model.model["name"])))
    return model if isinstance(model, Lens) else load(model)


def _heads(lens: Lens, layers: tuple[int, int] | None) -> list[str]:
    """Return the addresses of the ``vo`` maps of the heads of some layers."""
    first, stop = layers or (0, lens.model.dims.layers)
    if not 0 <= first < stop <= lens.model.dims.layers:
        raise BadOption(f"There are no layers {first}:{stop}; {lens.model.name} has 0:{lens.model.dims.layers}.")
    addresses = [
        address
        for layer in range(first, stop)
        if lens.model.dims.has_site("attn", layer)
        for address in lens.heads(layer, "vo").addresses
    ]
    if not addresses:
        raise BadOption(f"The layers {first}:{stop} of {lens.model.name} have no attention heads.")
    return addresses


def _copier(lens: Lens, frame: str) -> Factored:
    """Return the map of a head that writes each token's own row of the output."""
    rows = lens.frames.rows(space_of(lens.frames.right_frame("vo", frame), "write", 1)).matrix
    return Factored(rows, rows)


def _given(pairs: Pairs | None) -> PairSet | None:
    """Return the pairs that a user gives as a set."""
    if pairs is None or isinstance(pairs, PairSet):
        return pairs
    if isinstance(pairs, str | Path):
        return read_pairs(Path(pairs))
    words = tuple(dict.fromkeys((str(left), str(right)) for left, right in pairs))
    if len(words) > MOST:
        raise BadOption(f"There are {len(words):,} pairs; a set has {MOST:,} at most, so split it.")
    return PairSet("pairs", "", "", words)


def _chosen(
    lens: Lens, view: Shown, given: PairSet | None, names: list[str]
) -> tuple[list[TokenPairs], tuple[str, ...]]:
    """Return the sets as tokens, and the names of those that have too few pairs, if nothing was asked for by name."""
    if unknown := [name for name in names if name not in set_names()]:
        raise BadOption(f"There is no set {shown_text(unknown[0])}; sets are {', '.join(set_names())}.")
    is_everything = given is None and not names
    vocab, shown = lens.model.vocab, view.mask.cpu().numpy()
    chosen = list(dict.fromkeys(set_names() if is_everything else names))
    of_files = {name: looked_up(shipped_sets()[name], vocab, shown) for name in chosen if name in shipped_sets()}
    names_of_rest = [name for name in chosen if name not in of_files]
    made = of_files | of_vocabulary(names_of_rest, vocab, shown, lens.view("words").mask.cpu().numpy())
    sets = [*([] if given is None else [looked_up(given, vocab, shown)]), *(made[name] for name in chosen)]
    few = [token_pairs for token_pairs in sets if len(token_pairs.pairs) < FEWEST]
    if few and (not is_everything or len(few) == len(sets)):
        reasons = ", ".join(f"{count} {reason}" for reason, count in few[0].unused.items()) or "it has no others"
        raise BadOption(
            f"Of {shown_text(few[0].name)}, {lens.model.name} can use {len(few[0].pairs)} pairs ({reasons}); "
            f"shuffles need at least {FEWEST}."
        )
    return [each for each in sets if each not in few], tuple(each.name for each in few)


@dataclass
class _Work:
    """The scores of one set so far, still without p, and the first pairs that each head takes to each other."""

    pairs: TokenPairs
    shuffles: Shuffles
    scores: list[tuple[HeadScore, list[int]]] = field(default_factory=list)

    def add(self, address: str, shares: HeadShares) -> None:
        """Take account of one head, at both poles."""
        n = len(shares.z)
        wrong = ~torch.eye(n, dtype=torch.bool, device=shares.z.device)
        z, shuffled_z = float(shares.z.diagonal().median()), float(shares.z[wrong].median())
        for pole, reached, copied in zip(POLES, shares.reached.cpu(), shares.copied, strict=True):
            self.shuffles.add(reached)
            own = reached.diagonal()
            score = HeadScore(
                address=address.removesuffix(".vo"),
                pole=pole,
                share=float(own.double().mean()),
                shuffled=shuffled_share(int(own.sum()), int(reached.sum()), n),
                z=z,
                shuffled_z=shuffled_z,
                copies=float(copied.double().mean()) if len(copied) else None,
                p=1.0,
            )
            self.scores.append((score, own.nonzero()[:_EXAMPLES, 0].tolist()))

    def relation(self, vocab: Vocabulary, sets: int, by_copying: float) -> Relation:
        """Return the result, with the p of each head times the number of sets, and the share by copying."""
        texts = [("".join(map(vocab.text, left)), vocab.text(right)) for left, right in self.pairs.pairs]
        scores = []
        for score, places in self.scores:
            tested = replace(score, p=min(1.0, sets * self.shuffles.p(score.gain)))
            scores.append(replace(tested, pairs=tuple(texts[at] for at in places)) if tested.named else tested)
        return Relation(
            name=self.pairs.name,
            about=self.pairs.about,
            source=self.pairs.source,
            count=len(texts),
            unused=self.pairs.unused,
            by_copying=by_copying,
            scores=tuple(scores),
        )
