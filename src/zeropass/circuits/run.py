"""Ask for the wiring of a model in one call: pairs of heads, what a parameter feeds, induction heads."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from zeropass._io.progress import Progress, callback, shows_progress, waiting
from zeropass.arch.frame_names import check_count
from zeropass.circuits.feeds import feed_tables
from zeropass.circuits.flow import paths_of, without_flow
from zeropass.circuits.head_factors import head_addresses, require_wiring
from zeropass.circuits.head_pairs import dimensions, pair_table
from zeropass.circuits.induction import induction, require_offsets
from zeropass.circuits.measured import attention_scores, repeated_tokens
from zeropass.circuits.results import Feeds, HeadPairs, InductionHeads, WordPaths
from zeropass.circuits.word_paths import RANDOM, word_paths
from zeropass.lens import READING, Lens, load
from zeropass.model.address import Address, parse
from zeropass.model.dictionaries import Dictionary, open_dictionary
from zeropass.model.lens_maps import LensMaps
from zeropass.model.opening import ModelLike
from zeropass.records.parameters import Token

__all__ = ["feeds", "head_pairs", "induction_heads", "paths"]

Source = Lens | ModelLike
"""A model that is asked about: the lens that `load` returned, or what it takes."""


def opened_lens(source: Source, lens: str | Path | LensMaps | None) -> Lens:
    """Return the lens on a model that is given, or that of a name; raise CannotRun if its wiring is not known."""
    opened = source if isinstance(source, Lens) else load(source, lens=lens)
    require_wiring(opened.model)
    return opened


@shows_progress
@torch.no_grad()
def head_pairs(
    source: Source, *, lens: str | Path | LensMaps | None = "auto", progress: Progress | bool = True
) -> HeadPairs:
    """Return the Q-, K- and V-composition of all pairs of heads, and the overlap of their subspaces, beside nulls.

    Both are exact, from d_h rows a head. With a lens that holds the Jacobians of single blocks they are also those of
    the flow, through the blocks between (docs/circuits.md).

    Args:
        source: A model: what `load` returned, or what it takes.
        lens: The lens, for a name (`load`).
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        All pairs: `HeadPairs.strongest` lists the best.

    Raises:
        CannotRun: If what heads read and write is no matter of their vectors alone, as with latent attention.

    Example:
        >>> import zeropass as zp
        >>> pairs = zp.head_pairs(zp.load("models/first", lens=None))
        >>> pair = pairs.strongest(1, into="k")[0]
        >>> pair.into, pair.path, pair.z > 0
        ('k', 'direct', True)
    """
    opened, report = opened_lens(source, lens), callback(progress)
    model, maps = opened.model, opened.frames.lens
    ways = paths_of(model, maps)
    return HeadPairs(
        model=model.name,
        lens=maps.facts.words if maps is not None and len(ways) > 1 else "",
        d=dimensions(opened.frames),
        heads=tuple(address for layer in model.dims.attending for address in head_addresses(model, layer)),
        tables=tuple(pair_table(opened.frames, flow, report) for flow in ways),
        notes=tuple(filter(None, (PAIRS_NOTE, without_flow(model, maps)))),
    )


@waiting(READING)
@torch.no_grad()
def feeds(
    source: Source,
    address: str | Address,
    *,
    k: int = 12,
    features: str | Path | Dictionary | None = None,
    lens: str | Path | LensMaps | None = "auto",
) -> Feeds:
    """Return the parameters that one feeds and those that feed it, beside a null.

    Args:
        source: A model: what `load` returned, or what it takes.
        address: A neuron, a head, a column or row of a head, or a feature; all its roles if it names none.
        k: The number of parameters of each table.
        features: The dictionary of the feature, or what `open_dictionary` takes.
        lens: The lens, for a name (`load`).

    Returns:
        A table for each role, way and kind: vectors and heads; by the flow with a lens that holds Jacobians.

    Raises:
        BadAddress: If the address is out of range, or names what has no others of its kind in its layer.
        BadDictionary: If there is no such dictionary, or if it does not fit the model.
        CannotRun: As `head_pairs`.

    Example:
        >>> import zeropass as zp
        >>> wiring = zp.feeds(zp.load("models/first", lens=None), "L1.ff.3.value", k=3)
        >>> [(table.relation, table.kind, len(table)) for table in wiring]
        [('feeds', 'vectors', 3), ('feeds', 'heads', 3)]
    """
    check_count(k)
    opened = opened_lens(source, lens)
    model, maps = opened.model, opened.frames.lens
    ways, place = paths_of(model, maps), parse(address)
    if features is not None and not isinstance(features, Dictionary):
        features = open_dictionary(model, features)
    return Feeds(
        model=model.name,
        address=str(place),
        lens=maps.facts.words if maps is not None and len(ways) > 1 else "",
        tables=tuple(feed_tables(opened.frames, place, ways, k, features)),
        notes=tuple(filter(None, (FEEDS_NOTE, without_flow(model, maps)))),
    )


@shows_progress
@torch.no_grad()
def induction_heads(
    source: Source,
    *,
    lens: str | Path | LensMaps | None = "auto",
    run: bool = False,
    progress: Progress | bool = True,
) -> InductionHeads:
    """Return the heads of a model by how likely they do induction, from the weights alone or beside a run.

    A head does induction if its keys read what an earlier head wrote that attends to the previous token, and if its
    queries match the same token in that. The score is the attention of the earlier head to the previous token times
    that match (docs/circuits.md).

    Args:
        source: A model: what `load` returned, or what it takes.
        lens: The lens, for a name (`load`). With one, heads read the states that it gives for tokens.
        run: True to run the model on random tokens that repeat, and to give what its heads attend to there.
        progress: As `head_pairs`.

    Returns:
        The heads, the best first; those of the first layer with attention have no earlier head and are left out.

    Raises:
        CannotRun: As `head_pairs`, and if positions are added to the embedding or tokens see those that follow.

    Example:
        >>> import zeropass as zp
        >>> heads = zp.induction_heads(zp.load("models/first", lens=None))
        >>> heads[0].head, heads[0].previous, heads[0].measured
        ('L2.attn.4', 'L1.attn.5', None)
    """
    opened, report = opened_lens(source, lens), callback(progress)
    require_offsets(opened.frames)
    heads = sorted(induction(opened.frames, report), key=lambda head: -head.score)
    if run:
        report("running", 0, 1)
        ids = repeated_tokens(opened.model, length=REPEATED)
        previous, repeats = attention_scores(opened.model, ids, REPEATED)
        heads = [
            replace(head, measured=_at(repeats, head.head), measured_previous=_at(previous, head.previous))
            for head in heads
        ]
    seen = "seen" in opened.frames.lens_frames
    return InductionHeads(
        model=opened.model.name,
        lens=opened.frames.lens.facts.words if seen and opened.frames.lens is not None else "",
        heads=tuple(heads),
        notes=(INDUCTION_NOTE,) if heads else (),
    )


@shows_progress
@torch.no_grad()
def paths(
    source: Source,
    word: str,
    to: str,
    *,
    k: int = 12,
    lens: str | Path | LensMaps | None = "auto",
    progress: Progress | bool = True,
) -> WordPaths:
    """Return the strongest paths from reading a word to writing another, beside a null.

    A path begins at a neuron or a head that sees the word, may go on to a neuron of a later layer that it feeds, and
    ends with the other word in what that writes. The null is the best path to random words (docs/circuits.md).

    Args:
        source: A model: what `load` returned, or what it takes.
        word: The word that is read, which must be a token; with a leading space if there is such a token.
        to: The word that is written.
        k: The number of paths.
        lens: The lens, for a name (`load`).
        progress: As `head_pairs`.

    Returns:
        The paths, the strongest first; by the flow with a lens that holds Jacobians.

    Raises:
        UnknownWord: If a word is no token.
        CannotRun: As `head_pairs`.

    Example:
        >>> import zeropass as zp
        >>> best = zp.paths(zp.load("models/first", lens=None), "one", "two", k=3)
        >>> best.word.token, best.to.token, len(best)
        (' one', ' two', 3)
    """
    check_count(k)
    opened, report = opened_lens(source, lens), callback(progress)
    model, maps = opened.model, opened.frames.lens
    first, last = (model.vocab.find(text)[0] for text in (word, to))
    flow = paths_of(model, maps)[-1]
    return WordPaths(
        model=model.name,
        word=Token(first, model.vocab.label(first)),
        to=Token(last, model.vocab.label(last)),
        path=flow.name,
        lens="" if maps is None else maps.facts.words,
        paths=tuple(word_paths(opened.frames, flow, first, last, k, report)),
        notes=tuple(filter(None, (PATHS_NOTE, without_flow(model, maps)))),
    )


PATHS_NOTE = (
    f"p: the share of {RANDOM} random words to which some path is as strong. Steps say what fits what, not that the "
    "model takes the path; the sign of up, which multiplies a gate, is left out."
)
REPEATED = 64
"""The number of random tokens that are repeated in a run."""


def _at(scores: dict[int, Tensor], address: str) -> float:
    """Return the score of a head by its address."""
    place = parse(address)
    return float(scores[place.layer][place.head])


INDUCTION_NOTE = (
    "match and copying are means of diagonals of maps from tokens to tokens, in standard deviations of their entries; "
    "of shuffled tokens they are 0. Both are needed, and neither says how often the head is used."
)
FEEDS_NOTE = (
    "The null: others of the same layer and role in the parameter's place. Scores say how well vectors fit, not how "
    "strongly the parameter fires."
)
PAIRS_NOTE = (
    "Rotary positions and biases are left out. z is against random turns of one head, which any common direction of "
    "trained heads beats: compare it with that of other pairs."
)
