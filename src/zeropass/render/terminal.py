"""Records as text for a terminal; every token is escaped before it is shown."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from zeropass.model.address import parse
from zeropass.records.numbers import plain
from zeropass.records.overviews import LayerRecord, Short
from zeropass.records.parameters import (
    VERBS,
    PairRecord,
    Record,
    Records,
    SvdRecord,
    VectorRecord,
    verbs_of,
)
from zeropass.records.proofs import Proof
from zeropass.records.search import MOST_TOKENS, FindRecord, Hit
from zeropass.tokens.shown import shown_text

__all__ = ["ROLE_STYLE", "Flow", "facts_table", "heading", "lists_in_short", "render", "render_find", "render_hidden"]
__all__ += ["render_families", "render_layer", "render_proof", "show_records", "token_text"]

ROLE_STYLE = "bold cyan"

COLUMN = 56
"""The least width of a column in which an address stands beside others."""

SHORT = 6
"""The number of words or pairs of a list in short."""


class Flow:
    """Parts of a paragraph: a line may break between two of them, and never inside one.

    Attributes:
        parts: The parts, each with a style of its own.
        gap: Spaces between two parts.
        indent: Spaces before the first line; further lines get two more.
    """

    def __init__(self, parts: Iterable[Text], gap: int = 2, indent: int = 2) -> None:
        self.parts: tuple[Text, ...] = tuple(parts)
        self.gap: int = gap
        self.indent: int = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines that fit the width of the console."""
        line = Text(" " * self.indent)
        empty = True
        for part in self.parts:
            if not empty and line.cell_len + self.gap + part.cell_len > options.max_width:
                yield line
                line, empty = Text(" " * (self.indent + 2)), True
            line = line.append("" if empty else " " * self.gap).append_text(part)
            empty = False
        yield line


def show_records(console: Console, records: Sequence[Records], k: int) -> None:
    """Print the records of some addresses, then the tokens that their lists hide and what their verdicts rest on.

    The addresses stand beside each other if the terminal is wide enough for that.
    """
    all_records = [record for of_address in records for record in of_address]
    basis = " ".join(dict.fromkeys(of_address.basis for of_address in records if of_address.basis))
    columns: list[RenderableType] = [Group(*(render(record, k) for record in of_address)) for of_address in records]
    if console.is_terminal and console.width // len(columns) >= COLUMN:
        grid = Table.grid(*("" for _ in columns), padding=(0, 2, 0, 0), expand=True)
        for column in grid.columns:
            column.ratio = 1
        grid.add_row(*columns)
        columns = [grid]
    for number, renderable in enumerate(columns):
        console.print(*([""] if number else []), renderable, sep="\n")
    render_hidden(console, all_records)
    if note := Records(all_records, basis).note:
        console.print(_note(note))


def render_layer(neurons: LayerRecord | None, heads: Sequence[Records]) -> RenderableType:
    """Return the most telling neurons of a layer and its heads, each with its first words or pairs."""
    parts: list[RenderableType] = []
    if neurons is not None and neurons.rows:
        count = f"{len(neurons.rows)} of {neurons.count:,}"
        parts.append(Text(f"most telling neurons of layer {neurons.layer}, {count}", style="bold"))
        words = {row.address: _shorts_in_words(row.lists) for row in neurons.rows}
        parts.append(_table_in_short(words))
    if heads:
        parts.append(Text(f"heads of layer {parse(heads[0][0].address).layer}", style="bold"))
        parts.append(_table_in_short({records[0].address: lists_in_short(records) for records in heads}))
    return Group(*parts)


def _shorts_in_words(lists: Sequence[Short]) -> dict[str, Text]:
    """Return the words of the first list of each role; ``up`` says little next to its gate and is left out."""
    first: dict[str, Short] = {}
    for short in lists:
        first.setdefault(short.role, short)
    if len(first) > 1:
        first.pop("up", None)
    return {
        f"{short.role} {short.verb}": Text(" ").join(token_text(token.token) for token in short.tokens)
        for short in first.values()
    }


def _table_in_short(words: dict[str, dict[str, Text]]) -> Padding:
    """Return a table of addresses with the words of each of their lists, a list a line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for address, lists in words.items():
        for number, (label, text) in enumerate(lists.items()):
            name = "" if number else shown_text(address)
            table.add_row(Text(name, style="bold"), Text(shown_text(label), style=ROLE_STYLE), text)
    return Padding(table, (0, 0, 0, 2))


def render(record: Record, k: int = 12) -> RenderableType:
    """Return one record as its heading with both poles, pairs or directions."""
    if isinstance(record, VectorRecord):
        return Group(heading(record), *(_pole(record, sign, k) for sign in ("+", "−")))
    if isinstance(record, PairRecord):
        return Group(_heading(record, record.verb, *record.notes), _pairs(record, k), _certificate(record))
    return Group(_heading(record, "singular directions", record.note), *_directions(record, k))


def render_find(record: FindRecord, k: int) -> RenderableType:
    """Return parameters by what they do with the word: see it, are about to say it, write it."""
    parts: list[RenderableType] = [_tokens_used(record), *map(_note, record.explanations)]
    verbs = verbs_of((match.side, match.frame) for match in record.hits if (match.side, match.frame) in VERBS)
    for list_type, verb in verbs.items():
        matches = [match for match in record.hits if (match.side, match.frame) == list_type]
        parts += [Text(verb, style="bold"), _match_table(record, matches[:k])]
    others = [match for match in record.hits if (match.side, match.frame) not in VERBS]
    if others:
        parts += [Text("other frames", style="bold"), _match_table(record, others[:k])]
    with_notes = any(match.doubt for match in record.hits) or all(match.above is None for match in record.hits)
    return Group(*parts, *(_note(note) for note in record.notes if with_notes))


def _tokens_used(record: FindRecord) -> Flow:
    """Return the first tokens of a search."""
    tokens = [token_text(token.token) for token in record.query[:MOST_TOKENS]]
    more = [Text(f"and {rest} more", style="dim")] if (rest := len(record.query) - len(tokens)) > 0 else []
    return Flow([Text("tokens used:", style="dim"), *tokens, *more], indent=0)


def _note(note: str) -> Text:
    """Return a note as dim text."""
    return Text(shown_text(note, limit=500), style="dim")


def lists_in_short(records: Sequence[Record]) -> dict[str, Text]:
    """Return the first words of the first list of each role; ``up`` says little next to its gate and is left out."""
    first: dict[str, VectorRecord | PairRecord] = {}
    for record in records:
        if not isinstance(record, SvdRecord):
            first.setdefault(record.role, record)
    if len(first) > 1:
        first.pop("up", None)
    return {f"{role} {record.verb}": _first_words(record) for role, record in first.items()}


def _first_words(record: VectorRecord | PairRecord) -> Text:
    """Return the first words or pairs of a record in one line."""
    if isinstance(record, VectorRecord):
        return Text(" ").join(token_text(score.token) for score in record.top[:SHORT])
    pairs = record.pairs[:SHORT]
    return Text(" ").join(Text.assemble(token_text(p.left.token), "→", token_text(p.right.token)) for p in pairs)


def render_hidden(console: Console, records: Sequence[Record]) -> None:
    """Print once which tokens the lists hide, and why."""
    for hidden in {record.hidden.view: record.hidden for record in records}.values():
        if hidden.count:
            console.print(Text(f"{hidden.words}; --tokens all shows them.", style="dim"))


def token_text(text: str, style: str = "") -> Text:
    """Return a token as escaped text, a leading space as a dim ␣."""
    shown = shown_text(text)
    if shown.startswith("␣"):
        return Text.assemble(("␣", "dim"), (shown[1:], style))
    return Text(shown, style=style)


def heading(record: VectorRecord) -> Text:
    """Return the heading of a list, with its coherence, its verdict and a note if no token stands out."""
    return _heading(record, record.verb, *record.notes)


def _heading(record: Record, verb: str, *notes: str) -> Text:
    """Return the address, role and verb of a record, then its notes."""
    heading = Text.assemble((record.address, "bold"), (f" {record.role}", ROLE_STYLE), (f"  {verb}", "italic"))
    note = "; ".join(note for note in notes if note)
    return heading.append(f"  {note}", style="dim") if note else heading


def _pole(record: VectorRecord, sign: str, k: int) -> Flow:
    """Return one pole of a list; that of a list that says little is dim."""
    tokens, style = (record.top if sign == "+" else record.bottom)[:k], "dim" if record.says_little else ""
    scores = (plain(token.z if sign == "+" else -token.z) for token in tokens)
    parts = [
        Text.assemble(token_text(token.token, style), (f" {score}", "dim"))
        for token, score in zip(tokens, scores, strict=True)
    ]
    return Flow([Text.assemble((f"{sign} ", "dim"), parts[0] if parts else ""), *parts[1:]])


def _pairs(record: PairRecord, k: int) -> Flow:
    """Return the first pairs of a head map with their scores."""
    return Flow(
        (
            Text.assemble(
                token_text(pair.left.token),
                (" → ", "dim"),
                token_text(pair.right.token),
                (f" {plain(pair.score)}", "dim"),
            )
            for pair in record.pairs[:k]
        ),
        gap=3,
    )


def _certificate(record: PairRecord) -> Padding:
    """Return the certificate of the pairs in words."""
    return Padding(Text(record.certificate.words, style="dim"), (0, 0, 0, 2))


def _directions(record: SvdRecord, k: int) -> list[RenderableType]:
    """Return the singular directions of a head map: share, then the first tokens of both poles on both sides."""
    parts: list[RenderableType] = []
    for number, direction in enumerate(record.directions, 1):
        close = " ≈" if direction.close else ""
        parts.append(Text(f"  {number}. {direction.share:.1%} of the map{close}", style="dim"))
        for sign, left, right in (
            ("+", direction.left, direction.right),
            ("−", direction.left_bottom, direction.right_bottom),
        ):
            reads, writes = ([token_text(token.token) for token in side[:k]] for side in (left, right))
            parts.append(Flow([Text(sign, style="dim"), *reads, Text("→", style="dim"), *writes], indent=4))
    return parts


def _match_table(record: FindRecord, matches: Sequence[Hit]) -> Padding:
    """Return a table of parameters with z, address, role, first words, pole, the z of each word, and doubt."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    for match in matches:
        words = (token_text(token.token, "dim" if match.says_little else "") for token in match.words)
        scores = (f"{shown_text(text)} {plain(z, '+')}" for text, z in record.word_scores(match))
        table.add_row(
            plain(match.z, "+"),
            Text(shown_text(match.address), style="bold"),
            Text(shown_text(match.role), style=ROLE_STYLE),
            Text(" ").join(words),
            Text("; ".join(filter(None, (match.pole_words, ", ".join(scores), match.doubt))), style="dim"),
        )
    return Padding(table, (0, 0, 0, 2))


def facts_table(facts: dict[str, Any]) -> Table:
    """Return the facts about a model or an atlas, one a line; empty ones are left out."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    for name, value in facts.items():
        if value in _EMPTY:
            continue
        for i, line in enumerate(_lines(name, value)):
            label = Text("" if i else _LABELS.get(name, name.replace("_", " ")), style="dim")
            table.add_row(label, Text(shown_text(str(line), limit=500), overflow="fold"))  # a hash must not be cut off
    return table


_EMPTY: tuple[Any, ...] = (None, "", {}, [], ())

_LABELS = {
    "title": "what it is",
    "title_from": "by",
    "local": "its layers",
    "local_rope": "their rope",
    "mlp": "MLP",
    "weights_sha256": "fingerprint",
}


def _lines(name: str, value: Any) -> Sequence[Any]:
    """Return a fact in lines: one for each note, part or hash, as ``sha256sum`` prints those; else one in all."""
    if name == "notes" and isinstance(value, list | tuple):
        return value
    if name == "sha256" and isinstance(value, dict):
        return [f"{sha256}  {file}" for file, sha256 in value.items()]
    if name == "proof":
        return [value["words"]]
    if name == "towers_unread":
        return [f"{t['tower']} ({t['holds']}): {t['tensors']:,} tensors, {t['parameters']:,} parameters" for t in value]
    return [_fact(value)]


def _fact(value: Any) -> str:
    """Return a value as readable text: lists with commas, objects with semicolons where their values have commas."""
    if isinstance(value, dict):
        items = {key: item for key, item in value.items() if item not in _EMPTY}
        compound = any(isinstance(item, dict | list | tuple) for item in items.values())
        between = "; " if compound else ", "
        return between.join(f"{key}{':' * isinstance(item, dict)} {_fact(item)}" for key, item in items.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def render_families(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Return a table of what each family has, the models around them, then each note with the families it is about."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("family", "files", "norm", "positions", "attention", "MLP"):
        table.add_column(name, no_wrap=name == "family")
    families_of: dict[str, list[str]] = {}
    for row in rows:
        facts = (row["norm"], row["positions"], row["attention"], row["mlp"])
        table.add_row(Text(row["family"], style=ROLE_STYLE), ", ".join(row["formats"]), *facts)
        for note in row["notes"]:
            families_of.setdefault(note, []).append(row["family"])
    notes = [
        Padding(Text(note).append(f"  {', '.join(names)}", style="dim"), (0, 0, 0, 2))
        for note, names in families_of.items()
    ]
    inside = ", ".join(sorted({name for row in rows for name in row["inside"]}))
    return Group(
        table,
        Text(_LEGEND, style="dim"),
        Text("multimodal models, of which the text model is read", style="bold"),
        Padding(Text(inside), (0, 0, 0, 2)),
        Text("not exact, or good to know", style="bold"),
        *notes,
    )


def render_proof(proof: Proof) -> RenderableType:
    """Return the outcome of a proof, a table of its parts, then what is not proven and what the pass does not show."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("part", "error", "rounding explains", "tokens", ""):
        table.add_column(name, justify="left" if name in ("part", "") else "right")
    for part in proof.parts:
        verdict = "" if part.agrees else " ".join(filter(None, ("DIFFERS", part.differs and f"at {part.differs}")))
        table.add_row(part.part, f"{part.error:.1e}", f"{part.tolerance:.1e}", f"{part.tokens:,}", verdict)
    unproven = [_note(f"not proven: {each.words}") for each in proof.unproven]
    heading = Text(shown_text(proof.words, limit=500), style="bold" if proof.proven else "bold red")
    return Group(heading, table, *unproven, *map(_note, proof.limits))


_LEGEND = (
    "before, after, around: the norm of what a block reads, of what it writes, of both; post: of the stream itself; "
    "parallel: the MLP reads the same stream as attention; GQA: query heads share keys and values; both ways: "
    "attention sees what follows, too; cross: a decoder's heads that attend to an encoder"
)
