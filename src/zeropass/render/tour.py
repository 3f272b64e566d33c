"""The tour of an atlas: what newcomers see first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.rule import Rule
from rich.text import Text

from zeropass.atlas.highlights import TOKENS, Depth, compared_frames, first_search, highlights_of
from zeropass.atlas.schema import head_count, layers_with
from zeropass.model.address import Address
from zeropass.records.parameters import PairRecord, Record, VectorRecord
from zeropass.render.terminal import heading, render, render_find
from zeropass.tokens.shown import shown_text

if TYPE_CHECKING:
    from zeropass.arch.roles import MapRole
    from zeropass.atlas.read import Atlas

__all__ = ["print_tour"]


def print_tour(console: Console, atlas: Atlas) -> None:
    """Print the model, its most telling neurons or features of some layers, heads, a word and next steps."""
    _introduce(console, atlas)
    highlights = highlights_of(atlas)
    for depth, addresses in highlights.units.items():
        _neurons(console, atlas, depth, addresses)
    if not atlas.is_dictionary:
        _heads(console, highlights.maps)
    _word(console, atlas)
    _next(console, atlas)


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


def _neurons(console: Console, atlas: Atlas, depth: Depth, addresses: Sequence[str]) -> None:
    """Print the most telling neurons or features of some layers, with coherent lists if there are any."""
    units = "features" if atlas.is_dictionary else "neurons"
    console.print(Rule(f"{depth.words}: telling {units}", align="left"))
    for address in addresses:
        records = atlas.explain(address, tokens="words", k=TOKENS)
        compared = compared_frames([record.frame for record in records])
        for record in records:
            if record.role != "up" and record.frame not in compared:
                console.print(_brief(record))
        console.print()


def _brief(record: Record) -> RenderableType:
    """Return a record, or only its heading if the list says little."""
    return heading(record) if isinstance(record, VectorRecord) and record.says_little else render(record, TOKENS)


def _heads(console: Console, maps: Mapping[MapRole, Sequence[PairRecord]]) -> None:
    """Print the heads whose pairs of words belong together most, among those that have enough different words."""
    console.print(Rule("Heads: exact top pairs of the query-key and value-output maps", align="left"))
    verbs: dict[MapRole, str] = {
        "vo": "attending to the first token promotes the second",
        "qk": "the first, as query, attends to the second",
    }
    for role, verb in verbs.items():
        console.print(Text(f"{role}: {verb}", style="italic"))
        for record in maps[role]:
            console.print(render(record, TOKENS))
        console.print()


def _word(console: Console, atlas: Atlas) -> None:
    """Print the parameters that deal with the first word that the atlas knows, and the lists of the best one."""
    if (search := first_search(atlas, 4)) is None:
        return
    word, record = search
    console.print(Rule(f"What deals with {word}?", align="left"))
    console.print(render_find(replace(record, notes=()), 4))  # the tour printed the note at its beginning
    console.print()
    for vector in atlas.explain(record.hits[0].address, tokens="words", k=TOKENS):
        console.print(_brief(vector))
    console.print()


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
