"""The tour of an atlas: what newcomers see first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.rule import Rule
from rich.text import Text

from zeropass.arch.frame_names import RELATIVE, judge_space
from zeropass.atlas.schema import head_count, layers_with
from zeropass.errors import BadOption, UnknownWord
from zeropass.model.address import Address
from zeropass.records.parameters import PairRecord, Record, Token, TokenScore, VectorRecord
from zeropass.render.terminal import heading, render, render_find
from zeropass.tokens.shown import shown_text

if TYPE_CHECKING:
    from zeropass.arch.frame_names import Frame
    from zeropass.arch.roles import MapRole
    from zeropass.atlas.read import Atlas

__all__ = ["print_tour"]

_WORDS = ("Paris", "Monday", "become", "second")
_TOKENS, _NEURONS, _CANDIDATES = 8, 3, 60
_FRAMES: dict[tuple[bool, bool], Frame] = {
    (False, False): "token",
    (False, True): "seen",
    (True, False): "output",
    (True, True): "distinctive",
}
"""The frame of neurons in the tour, by whether they are chosen by what they write, and whether there is a lens."""


def print_tour(console: Console, atlas: Atlas) -> None:
    """Print the model, its most telling neurons or features of some layers, heads, a word and next steps."""
    _introduce(console, atlas)
    for name, layers in _parts(*atlas.layers).items():
        _neurons(console, atlas, name, layers)
    if not atlas.is_dictionary:
        _heads(console, atlas)
    _word(console, atlas)
    _next(console, atlas)


def _parts(first: int, stop: int) -> dict[str, tuple[int, int]]:
    """Return the ranges of late, middle and early layers, or all layers if they are too few for that."""
    third = (stop - first) // 3
    if not third:
        return {"": (first, stop)}
    return {"Late": (stop - third, stop), "Middle": (first + third, stop - third), "Early": (first, first + third)}


def _introduce(console: Console, atlas: Atlas) -> None:
    """Print what the model is, how its lists are read, and the note of the atlas."""
    model = atlas.model
    family = escape(shown_text(model["family"]))
    heads = sorted({head_count(model, layer) for layer in range(model["layers"])})
    console.print(Rule(Text(shown_text(model["name"], limit=200), style="bold")))
    if atlas.title:
        console.print(Text(f"What it is: {shown_text(atlas.title, limit=300)}."))
    console.print(
        f"A {family} model: {model['layers']} layers, width {model['d']}, {model['neurons']:,} neurons and "
        f"{' or '.join(map(str, heads))} heads a layer, {model['vocabulary']:,} tokens. "
        f"{atlas.manifest['lists']:,} lists of words were read from "
        f"{'the features of a dictionary' if atlas.is_dictionary else 'its weights'}"
        f"{', through a lens (below)' if atlas.lens else '; it was never run'}.\n",
        highlight=False,
    )
    console.print(
        "Each list has two poles. z says how many standard deviations a token stands from the mean of all. "
        "[bold]sees[/]: the token it stands on. [bold]is about to say[/]: the token the stream is turning into. "
        "[bold]writes[/]: the token it pushes for; [bold]distinctively[/], compared with others of its layer. "
        "[bold]coherence[/]: how far the first tokens of a list belong together; random directions stay below the "
        "number in brackets.\n",
        highlight=False,
    )
    if atlas.note:
        console.print(Text(f"{shown_text(atlas.note, limit=500)}\n"))


def _neurons(console: Console, atlas: Atlas, name: str, layers: tuple[int, int]) -> None:
    """Print the most telling neurons or features of some layers, with coherent lists if there are any."""
    units = "features" if atlas.is_dictionary else "neurons"
    last = layers[1] - 1
    where = f"layer {last}" if layers[0] == last else f"layers {layers[0]} to {last}"
    console.print(Rule(f"{name} {where}: telling {units}".strip().capitalize(), align="left"))
    role, frame = _chosen_by(atlas, late=name == "Late")
    candidates = atlas.coherent(role, frame, layers, _CANDIDATES)
    candidates = candidates or atlas.strongest([role], layers, frame=frame, k=_CANDIDATES)
    best = sorted(candidates, key=lambda address: -_wordiness(atlas, f"{address}.{role}", frame))
    for address in _different(atlas, best, role, frame):
        records = atlas.explain(address, tokens="words", k=_TOKENS)
        compared = {RELATIVE[record.frame] for record in records if record.frame in RELATIVE}
        for record in records:
            if record.role != "up" and record.frame not in compared:
                console.print(_brief(record))
        console.print()


def _chosen_by(atlas: Atlas, late: bool) -> tuple[str, Frame]:
    """Return the role and frame of the lists by which neurons or features are chosen.

    Late neurons are chosen by what they write; with a lens so are all, since distinctive lists belong to the neuron
    more often than what it sees. Features are chosen by what their encoders see, which is what activates them.
    """
    lens = bool(atlas.lens)
    if atlas.is_dictionary:
        role = atlas.unit_roles[0]
        return role, _FRAMES[role != "encoder", lens]
    reading = next((role for role in ("gate", "key") if role in atlas.model["ff_roles"]), "gate")
    writes = late or lens
    return "value" if writes else reading, _FRAMES[writes, lens]


def _different(atlas: Atlas, addresses: Sequence[str], role: str, frame: Frame) -> list[str]:
    """Return the first addresses whose lists differ: few of their first words are in one before."""
    chosen: dict[str, set[str]] = {}
    for address in addresses:
        record: VectorRecord = atlas.explain(f"{address}.{role}", frame=frame, k=_TOKENS)[0]
        words = {_plain_word(atlas, Token(t.id, t.token)) for t in (*record.top, *record.bottom)} - {""}
        if all(len(words & others) <= _TOKENS // 4 for others in chosen.values()):
            chosen[address] = words
        if len(chosen) == _NEURONS:
            break
    return list(chosen)


def _brief(record: Record) -> RenderableType:
    """Return a record, or only its heading if the list says little."""
    return heading(record) if isinstance(record, VectorRecord) and record.says_little else render(record, _TOKENS)


def _wordiness(atlas: Atlas, address: str, frame: Frame) -> float:
    """Return how much a list says in words: |z| of the fifth different word of its better pole."""
    record: VectorRecord = atlas.explain(address, frame=frame, k=atlas.options["k"])[0]
    return max(_fifth_word(atlas, record.top), _fifth_word(atlas, record.bottom))


def _fifth_word(atlas: Atlas, pole: Sequence[TokenScore]) -> float:
    """Return |z| of the fifth different word of a pole, 0 if it has fewer words."""
    z_of_words = {_plain_word(atlas, Token(t.id, t.token)): abs(t.z) for t in reversed(pole)}
    largest = sorted((z for word, z in z_of_words.items() if len(word) > 2), reverse=True)
    return largest[4] if len(largest) > 4 else 0.0


def _heads(console: Console, atlas: Atlas) -> None:
    """Print the heads whose pairs of words belong together most, among those that have enough different words."""
    console.print(Rule("Heads: exact top pairs of the query-key and value-output maps", align="left"))
    first, stop = atlas.layers
    verbs: dict[MapRole, str] = {
        "vo": "attending to the first token promotes the second",
        "qk": "the first, as query, attends to the second",
    }
    for role, verb in verbs.items():
        console.print(Text(f"{role}: {verb}", style="italic"))
        for record in _related(atlas, role, range(max(first, 1), stop))[:_NEURONS]:
            console.print(render(record, _TOKENS))
        console.print()


def _related(atlas: Atlas, role: MapRole, layers: range) -> list[PairRecord]:
    """Return stored head maps, reduced to pairs of different words, those whose words belong together most first.

    Maps with fewer pairs than are shown come last: one token paired with everything says little.
    """
    maps = [_distinct(atlas, record) for layer in layers for record in atlas.head_maps(layer, role)]
    return sorted(maps, key=lambda record: (-min(len(record.pairs), _TOKENS), -_relation(atlas, record)))


def _relation(atlas: Atlas, record: PairRecord) -> float:
    """Return how far the words of the shown pairs belong together: their mean cosine, less that of shuffled pairs."""
    pairs, space = record.pairs[:_TOKENS], judge_space("write")
    if len(pairs) < 2 or not atlas.has_rows(space):
        return 0.0
    left, right = (atlas.unit_rows(space, ids) for ids in ([p.left.id for p in pairs], [p.right.id for p in pairs]))
    cosines = left @ right.T
    paired = float(np.trace(cosines))
    return paired / len(pairs) - (float(cosines.sum()) - paired) / (len(pairs) * (len(pairs) - 1))


def _distinct(atlas: Atlas, record: PairRecord) -> PairRecord:
    """Return a head map with only its pairs of different words, each word once on its side."""
    seen_left: set[str] = set()
    seen_right: set[str] = set()
    pairs = []
    for pair in record.pairs:
        left, right = (_plain_word(atlas, token) for token in (pair.left, pair.right))
        # Many heads copy a token or attend to the same one; other pairs say more.
        if left and right and left != right and left not in seen_left and right not in seen_right:
            seen_left.add(left)
            seen_right.add(right)
            pairs.append(pair)
    return replace(record, pairs=tuple(pairs))


def _plain_word(atlas: Atlas, token: Token) -> str:
    """Return the word of a token in lower case, or nothing if it is no word."""
    word = token.token.strip().lower()
    return word if len(word) > 1 and word.isalpha() and atlas.is_word(token.id) else ""


def _word(console: Console, atlas: Atlas) -> None:
    """Print the parameters that deal with the first word that the atlas knows, and the lists of the best one."""
    for word in _WORDS:
        try:
            record = atlas.find(word, k=4)
        except (UnknownWord, BadOption):  # there is no such token, or the atlas holds only head maps
            continue
        console.print(Rule(f"What deals with {word}?", align="left"))
        console.print(render_find(replace(record, notes=()), 4))  # the tour printed the note at its beginning
        console.print()
        for vector in atlas.explain(record.hits[0].address, tokens="words", k=_TOKENS):
            console.print(_brief(vector))
        console.print()
        return


def _nearest(atlas: Atlas, part: Literal["attention", "mlp"], layer: int) -> int:
    """Return the layer with such a part that is nearest to one; the layer itself if none has it."""
    layers = layers_with(part, atlas.model, range(*atlas.layers))
    return min(layers, key=lambda other: abs(other - layer), default=layer)


def _next(console: Console, atlas: Atlas) -> None:
    """Print commands to go on with."""
    folder, model = (shlex.quote(shown_text(str(name), limit=500)) for name in (atlas.path, atlas.model["name"]))
    first, stop = atlas.layers
    late, middle = (max(first, min(layer, stop - 1)) for layer in (26, 24))  # as in the README, for the demo model
    late, middle = (_nearest(atlas, "mlp", late), _nearest(atlas, "attention", middle))
    expert, index = atlas.mlps.expert_of(late, min(1189, sum(atlas.mlps.sizes(late)) - 1))  # 1189 as in the README
    neuron = str(Address(late, "ff", index=index, expert=expert))
    if atlas.is_dictionary:
        neuron = f"L{first}.sae.0"
    head = f"L{middle}.attn.{min(7, head_count(atlas.model, middle) - 1)}.vo"
    console.print(Rule("Next", align="left"))
    unit = "a feature" if atlas.is_dictionary else "a neuron"
    commands = [
        (f"zeropass show {folder} {neuron} --tokens words", unit),
        *([] if atlas.is_dictionary else [(f"zeropass show {folder} {head}", "a head")]),
        (f"zeropass find {folder} Monday Tuesday", "the parameters that deal with a word, or with several"),
    ]
    if not atlas.is_change:
        commands.append((f"zeropass show {model} {head} --svd", "straight from the weights"))
    for command, purpose in commands:
        console.print(Text(f"  {command}", style="bold").append(f"   {purpose}", style="dim"), soft_wrap=True)
