"""A screening as text for a terminal and as one HTML page, which needs no script. No torch."""

import html
from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropass.diff.findings import Finding, Standout
from zeropass.diff.screen_results import Nearest, Screened, Screening
from zeropass.diff.verdict import basis
from zeropass.records.numbers import NOTHING, coefficient, percent
from zeropass.render.terminal import token_text
from zeropass.tokens.shown import shown_text

__all__ = ["render_screening", "screening_page"]

LINES, WORDS, LONG = 20, 3, 300
"""Limits of the text: rows, words of a row, characters of a name or a reason."""

MEANINGS = {
    "narrow": "few words stand out in what it writes, far above the rest: what a planted habit, or a single fact, does",
    "topic": "many words stand out in what it writes",
    "unreadable": "it was not read, so nothing is known of it",
    "unjudged": "its kind cannot be told; the reason stands beside it",
    "nothing": "no word stands out more than in ordinary training",
}


def render_screening(screening: Screening) -> RenderableType:
    """Return what stands first: how many changes have which answer, and the rows that need a look."""
    head = Text.assemble((shown_text(str(screening.base["name"])), "bold"), f": {_summary(screening)}")
    parts: list[RenderableType] = [head, *(Text(line) for line in _bases(screening))]
    rows = [row for row in screening if row.answer in ("narrow", "topic")]
    unread = [row for row in screening if row.error]
    if rows:
        parts += [Text(), _table(rows[:LINES])]
    if len(rows) > LINES:
        parts.append(Text(f"{len(rows) - LINES} more of these.", style="dim"))
    if unread:
        parts += [Text(), Text("not read, so nothing is known of them:", style="dim")]
        parts += map(_unread, unread[:LINES])
    if len(unread) > LINES:
        parts.append(Text(f"{len(unread) - LINES} more of these.", style="dim"))
    return Group(*parts)


def _unread(row: Screened) -> Text:
    """Return the line of a change that could not be read."""
    return Text.assemble((shown_text(row.name, limit=LONG), "bold"), f": {shown_text(row.error, limit=LONG)}")


def _table(rows: Iterable[Screened]) -> Table:
    """Return the answer of each row with its words; the page has the rest."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("", "change", "excess", "lead", "writes", "sees"):
        table.add_column(title, overflow="fold")
    for row in rows:
        name = Text(shown_text(row.name, limit=LONG), style="bold")
        words = (
            Text(" ").join(token_text(word.token.token) for word in side[:WORDS]) for side in (row.writes, row.sees)
        )
        table.add_row(row.answer, name, *_numbers(row.finding), *words)
    return table


def _summary(screening: Screening) -> str:
    counts = ", ".join(f"{count} {answer}" for answer, count in screening.counts().items())
    return f"{len(screening)} {'change' if len(screening) == 1 else 'changes'}: {counts}."


def _bases(screening: Screening) -> Iterator[str]:
    """Yield the sentence on what the answers rest on, if any change was judged."""
    judged = next((row.finding for row in screening if row.finding.draws), None)
    if judged is not None:
        yield (
            f"Many words stand out from an excess of {judged.threshold:.1f}, few where the first leads the tenth by "
            f"{judged.lead_threshold:.1f}: {basis(judged)}."
        )


def _what(row: Screened) -> str:
    """Return what a change is, in a few words."""
    if row.kind == "model":
        return "all weights"
    rank = f" of rank {row.rank}" if row.rank else ""
    return shown_text(f"{row.method}{rank}")


# --- The page ---------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --line: #ccc; --faint: #666; --narrow: #b3261e; --topic: #8a5a00; --unread: #5b3c9e; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --faint: #aaa; --narrow: #ff8a80; --topic: #ffc266; --unread: #c3a6ff; }
}
body { margin: 2rem; font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; max-width: 60rem; }
dt { font-weight: 600; } dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { white-space: nowrap; } td.number { text-align: right; } td.name { min-width: 12rem; overflow-wrap: anywhere; }
small { color: var(--faint); } code { font-size: .85em; }
.narrow { color: var(--narrow); font-weight: 700; } .topic { color: var(--topic); font-weight: 700; }
.unreadable { color: var(--unread); font-weight: 700; }
@media print { body { margin: 0; } .scroll { overflow: visible; } tr { break-inside: avoid; } }
"""


def screening_page(screening: Screening) -> str:
    """Return a screening as one HTML page; every text of a file is escaped."""
    name = _escaped(str(screening.base["name"]))
    counts = screening.counts()
    meanings = "".join(
        f'<dt class="{answer}">{answer}: {counts[answer]}</dt><dd>{text}</dd>'
        for answer, text in MEANINGS.items()
        if answer in counts
    )
    heads = (
        "answer", "change", "what it is", "size", "excess", "lead", "writes", "sees", "most changed",
        "nearest others in what they write",
    )  # fmt: skip
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "\n".join(map(_row, screening))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Changes of {name}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Changes of {name}</h1>
<p>{_escaped(_summary(screening))} {" ".join(map(_escaped, _bases(screening)))}
Nothing was run: the answers come from the weights alone.</p>
<dl>{meanings}</dl>
<p><small>Base: <code>{_escaped(str(screening.base["sha256"]))}</code>. The excess of a word is how
far the length that the change gives to it stands out, over the length that the base's own matrices give to it; the lead
is the excess of the first word less that of the tenth. The similarity of two changes is the cosine of the excess of the
words that each writes most. Usual is the median over all others, and those in bold are nearer than that by five robust
deviations; others are no nearer than chance makes them. zeropass diff says more about one change.</small></p>
<div class="scroll">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
</main>
</body>
</html>
"""


def _row(row: Screened) -> str:
    """Return the row of a change."""
    title = f'<span class="{row.answer}">{row.answer}</span>'
    sha256 = f"<br><small><code>{row.sha256[:16]}</code></small>" if row.sha256 else ""
    warnings = "".join(f"<br><small>{_escaped(text)}</small>" for text in row.warnings)
    name = f'<td class="name">{_escaped(row.name)}{sha256}{warnings}</td>'
    if row.error:
        return f'<tr><td>{title}</td>{name}<td colspan="8">{_escaped(row.error)}</td></tr>'
    reason = f"<br><small>{_escaped(row.finding.reason)}</small>" if row.finding.reason else ""
    numbers = "".join(f'<td class="number">{text}</td>' for text in (percent(row.relative), *_numbers(row.finding)))
    cells = (_words(row.writes), _words(row.sees), _where(row), _nearest(row))
    rest = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr><td>{title}{reason}</td>{name}<td>{_escaped(_what(row))}</td>{numbers}{rest}</tr>"


def _numbers(finding: Finding) -> tuple[str, str]:
    if finding.answer == "unjudged":
        return NOTHING, NOTHING
    return f"{finding.excess:.1f}", f"{finding.lead:.1f}"


def _words(words: Iterable[Standout]) -> str:
    """Return words with their excess, or with their z where there is none."""
    scores = ((word, word.z if word.excess is None else word.excess) for word in words)
    return ", ".join(f"{_escaped(word.token.token)} <small>{score:.1f}</small>" for word, score in scores)


def _where(row: Screened) -> str:
    """Return the layers and roles that changed most, and what changed outside the matrices of blocks."""
    layers = f"layers {', '.join(map(str, row.layers))}<br>" if row.layers else ""
    outside = f"<br><small>also {_escaped(', '.join(row.outside))}</small>" if row.outside else ""
    return f"{layers}{_escaped(' '.join(row.roles))}{outside}"


def _nearest(row: Screened) -> str:
    """Return the nearest other changes; where the others say what is usual, those that are near in bold."""
    usual = "" if row.usual is None else f"<br><small>usual {coefficient(row.usual)}</small>"
    return "<br>".join(map(_other, row.nearest)) + (usual if row.nearest else "")


def _other(other: Nearest) -> str:
    shown = f"{_escaped(other.name)} {coefficient(other.similarity)}"
    return f"<strong>{shown}</strong>" if other.alike else shown if other.alike is None else f"<small>{shown}</small>"


def _escaped(text: str) -> str:
    return html.escape(shown_text(text, limit=LONG))
