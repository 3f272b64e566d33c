"""A comparison as one page of HTML to hand over: no script, nothing fetched, light and dark, and made to be printed."""

import html
from collections.abc import Iterable, Iterator, Sequence

from zeropass.diff.render import draw_changes
from zeropass.diff.results import ChangeDirection, Diff, MatrixChange
from zeropass.diff.telling import exchange, telling
from zeropass.diff.verdict import (
    CAUTION,
    NO_NEW_WORDS,
    meaning,
    none_telling,
    sides,
    telling_basis,
    watched_basis,
    where,
)
from zeropass.records.numbers import percent, share
from zeropass.records.parameters import TokenScore, VectorRecord
from zeropass.tokens.shown import shown_text

__all__ = ["report"]

WORDS, FEW, DIRECTIONS, PARAMETERS, ROWS, NAME = 12, 6, 8, 12, 60, 500
"""Limits of the page: words of a side, words of a list, directions, neurons and heads, rows of a table, letters."""

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1d21;--faint:#5b5e66;--line:#dfe0e4;--accent:#1d5aa6;--chip:#eef1f6;
--narrow:#a32020;--topic:#8a5a00;--nothing:#2c6a3f;--unjudged:#5b5e66}
@media (prefers-color-scheme:dark){:root{--paper:#16171b;--ink:#e7e8ec;--faint:#a4a8b3;--line:#33363f;--accent:#8bbcf7;
--chip:#272a33;--narrow:#ff9c94;--topic:#f0c36b;--nothing:#8ed6a5;--unjudged:#a4a8b3}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 ui-sans-serif,system-ui,"Segoe UI",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem 1.25rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.12rem;margin:2rem 0 .4rem;break-after:avoid}
h3{font-size:1rem;margin:1.2rem 0 .3rem;break-after:avoid}
p,li,dd,caption{overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:48rem}
.note{color:var(--faint);font-size:.9rem}
.answer{border-left:6px solid var(--unjudged);padding:.1rem 1rem;margin:1rem 0}
.answer p:first-child{font-size:1.1rem;font-weight:600}
.narrow{border-color:var(--narrow)}.topic{border-color:var(--topic)}.nothing{border-color:var(--nothing)}
.scroll{overflow-x:auto;margin:.5rem 0}
.scroll:focus-visible{outline:2px solid var(--accent)}
table{border-collapse:collapse;font-size:.92rem;width:100%;min-width:48rem}
th,td{text-align:left;vertical-align:top;padding:.28rem .9rem .28rem 0;border-bottom:1px solid var(--line)}
thead th{color:var(--faint);font-weight:500;font-size:.85rem}
tbody th{font-weight:500;white-space:nowrap}
tr{break-inside:avoid}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:.875em ui-monospace,"DejaVu Sans Mono",monospace;background:var(--chip);border-radius:4px;padding:.1em .35em;
unicode-bidi:isolate;overflow-wrap:anywhere}
td code{display:inline-block;margin:.08rem 0}
dt{color:var(--faint);font-size:.88rem;margin-top:.6rem}
dd{margin:0}
.picture{display:block;height:auto}
.picture text{fill:var(--ink)}
.picture .paper{fill:none}.picture .cell{fill:var(--accent);stroke:var(--line)}.picture .faint{fill:var(--faint)}
@page{size:A4;margin:15mm}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--faint:#444;--line:#bbb;--accent:#1d5aa6;--chip:#f0f0f0;
--narrow:#a32020;--topic:#8a5a00;--nothing:#2c6a3f;--unjudged:#5b5e66}
body{font-size:10pt}table{min-width:0}main{max-width:none;padding:0}.scroll{overflow:visible}.picture{max-width:100%}}
"""


def report(difference: Diff) -> str:
    """Return a comparison as one page of HTML, complete in itself.

    Args:
        difference: The comparison.

    Returns:
        The page; all that comes from files is escaped.

    Example:
        >>> import zeropass as zp
        >>> from zeropass.diff.report import report
        >>> base = zp.open_model("models/first")
        >>> page = report(zp.compare(base, zp.adapt(base, "models/tunes/reviews")))
        >>> page.startswith("<!doctype html>"), "<script" in page
        (True, False)
    """
    base, tuned = (_text(side.get("name", ""), NAME) for side in (difference.base, difference.tuned))
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'\">\n"
        f"<title>{base} → {tuned} · zeropass</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    return "".join([head, f"<h1>{base} → {tuned}</h1>\n", *_parts(difference), "</main>\n</body>\n</html>\n"])


def _parts(difference: Diff) -> Iterator[str]:
    """Yield the sections of the page."""
    yield from _verdict(difference)
    if difference.relation != "unrelated":
        yield from _watched(difference)
        yield from _words(difference)
        yield from _where(difference)
        yield from _directions(difference)
        yield from _parameters(difference)
        yield from _outside(difference)
        yield from _tables(difference)
    yield from _made(difference)


def _verdict(difference: Diff) -> Iterator[str]:
    first, *rest = difference.verdict
    judged = difference.relation not in ("equal", "rounded", "unrelated")
    kind = difference.finding.answer if judged else "unjudged"
    yield f'<section class="answer {kind}" aria-label="Verdict"><p>{_escaped(first)}</p>'
    if text := meaning(difference):
        yield f"<p>{_escaped(text)}</p>"
    yield f"</section>\n{''.join(f'<p>{_escaped(line)}</p>' for line in rest)}\n"


def _words(difference: Diff) -> Iterator[str]:
    """Yield what the change sees and writes, with the figures and places of each word."""
    for side in sides(difference):
        writes = side.verb == "writes"
        columns = ["word", *(("excess",) if writes else ()), "z of the change", "matrices with most of the effect"]
        rows = []
        for word in side.words[:WORDS]:
            figures = (word.z,) if word.excess is None else (word.excess, word.z)
            rows.append([_token(word.token.token), *(f"{value + 0.0:.1f}" for value in figures), _escaped(where(word))])
        equal = f" Were all matrices alike, each would have {side.equal:.0%} of the effect." if side.equal < 1 else ""
        yield f"<h2>Words that it {side.verb} most</h2><p class='note'>{_escaped(side.basis)}.{equal}</p>"
        yield _table(f"Words that it {side.verb} most", columns, rows, numbers=range(1, len(columns) - 1))
        if side.others:
            tokens = _tokens(word.token.token for word in side.others[:WORDS])
            yield f'<p class="note">Of other tokens, which are no whole words: {tokens}</p>'


def _where(difference: Diff) -> Iterator[str]:
    """Yield the heat map of the sizes."""
    if difference.matrices:
        cells = [(matrix.layer, matrix.role, matrix.relative, matrix.rank) for matrix in difference.matrices]
        yield "<h2>Where it changed the model</h2>"
        yield f'<div class="scroll" tabindex="0" role="group" aria-label="Heat map">{draw_changes(cells)}</div>'


def _directions(difference: Diff) -> Iterator[str]:
    if not any(matrix.directions for matrix in difference.matrices):
        return
    yield "<h2>Telling directions</h2>"
    chosen = telling(difference)
    if not chosen:
        yield f"<p>{_escaped(none_telling(difference))}</p>"
        return
    yield f'<p class="note">{_escaped(telling_basis(difference))}</p>'
    rows = [_direction(matrix, direction) for matrix, direction in chosen[:DIRECTIONS]]
    columns = ("matrix", "share of its change", "z", "chance", "reads", "writes")
    yield _table("Telling directions", columns, rows, numbers=range(1, 4))


def _direction(matrix: MatrixChange, direction: ChangeDirection) -> list[str]:
    """Return the cells of a direction, both poles below each other."""
    poles = ((direction.left, direction.left_bottom), (direction.right, direction.right_bottom))
    sides_of_it = [f"<div>+ {_scores(top)}</div><div>− {_scores(bottom)}</div>" for top, bottom in poles]
    close = " <small>(too close to a neighbour to mean anything alone)</small>" if direction.close else ""
    place = f"L{matrix.layer} {_text(matrix.role)}{close}"
    return [place, f"{direction.share:.0%}", f"{direction.z:.1f}", f"{direction.chance:.1f}", *sides_of_it]


def _parameters(difference: Diff) -> Iterator[str]:
    """Yield the neurons and heads with new words, with the words that came and went."""
    changes = [(change, exchange(change)) for change in (*difference.neurons, *difference.heads)]
    if not changes:
        return
    rows = [
        [
            _text(change.address),
            percent(change.relative),
            _text(f"{words.role} {words.sign} {words.verb}"),
            _tokens(words.came),
            _tokens(words.went),
        ]
        for change, words in changes
        if words is not None
    ]
    yield "<h2>Neurons and heads that changed most</h2>"
    if rows:
        columns = ("parameter", "changed by", "list", "words that came", "words that went")
        yield _table("Neurons and heads that changed most", columns, rows[:PARAMETERS], numbers=(1,))
    if rest := len(changes) - len(rows):
        yield f'<p class="note">{rest} of the {len(changes)} that changed most have {NO_NEW_WORDS}.</p>'


def _outside(difference: Diff) -> Iterator[str]:
    """Yield the rows outside the blocks that are new or changed most."""
    rows = []
    for change in difference.outside:
        for record in change.after:
            if isinstance(record, VectorRecord):
                name = f"{_text(change.address)} <small>{_text(change.label)}</small>"
                faint = " (no token stands out)" if record.faint else ""
                size = percent(change.relative) if change.before else "new"
                words = f"<div>+ {_scores(record.top)}</div><div>− {_scores(record.bottom)}</div>"
                rows.append([name, size, f"{_text(record.verb)}{faint}", words])
    if rows:
        yield "<h2>Rows outside the blocks</h2>"
        yield _table("Rows outside the blocks", ("row", "changed by", "list", "words"), rows[:ROWS], numbers=(1,))


def _tables(difference: Diff) -> Iterator[str]:
    """Yield the tables, norms, biases and constants that changed."""
    if difference.tables:
        rows = [
            [
                _text(table.name, NAME),
                _text(table.state) + ("" if table.read else ", not read"),
                f"{table.moved:,} of {table.rows_before or table.rows_after:,}",
                percent(table.relative),
                _tokens(row.name for row in table.most[:FEW]),
            ]
            for table in difference.tables[:ROWS]
        ]
        columns = ("tensor", "state", "rows moved", "changed by", "rows that moved most")
        yield "<h2>Tables, norms and biases</h2>"
        yield _table("Tables, norms and biases", columns, rows, numbers=(2, 3))
        if (rest := len(difference.tables) - ROWS) > 0:
            yield f'<p class="note">{rest} more, in diff.json.</p>'
    if difference.constants:
        constants = [[_text(c.name), _text(str(c.before)), _text(str(c.after))] for c in difference.constants]
        yield "<h2>Constants of the configuration</h2>"
        yield _table("Constants of the configuration", ("constant", "before", "after"), constants)
    for title, tokens in (("Added tokens", difference.added), ("Removed tokens", difference.removed)):
        if tokens:
            more = f" and {len(tokens) - ROWS:,} more" if len(tokens) > ROWS else ""
            yield f"<h2>{title}</h2><p>{_tokens(tokens[:ROWS])}{more}</p>"


def _watched(difference: Diff) -> Iterator[str]:
    """Yield the verdict on each watched word."""
    if not difference.words:
        return
    rows = []
    for word in difference.words:
        pieces = f" <small>{_tokens(word.pieces)}</small>" if word.split else ""
        answer = "cannot be told" if word.concerned is None else "yes" if word.concerned else "no"
        figures = ("" if part is None else share(part) for part in (word.sees, word.writes))
        rows.append([f"{_token(word.word)}{pieces}", answer, f"{word.chance:.1%}", *figures])
    columns = ("word", "concerned", "chance", "sees it more than", "writes it more than")
    yield f"<h2>Watched words</h2><p class='note'>{_escaped(watched_basis())}</p>"
    yield _table("Watched words", columns, rows, numbers=(2, 3, 4))


def _made(difference: Diff) -> Iterator[str]:
    """Yield what the page was made from: files with their hashes, versions, the day and the command."""
    yield f"<h2>What it was made from</h2><p>{_escaped(CAUTION)}</p><dl>"
    for title, side in (("Base", difference.base), ("Changed model", difference.tuned)):
        types = f", stored as {_text(', '.join(map(str, side['types'])))}" if side.get("types") else ""
        yield f"<dt>{title}</dt><dd>{_text(side.get('name', ''), NAME)}{types}</dd>"
        for name, digest in side.get("files", {}).items():
            yield f"<dd>SHA-256 of {_text(name, NAME)}: <code>{_text(digest)}</code></dd>"
        yield f"<dd>fingerprint of zeropass: <code>{_text(side.get('sha256', ''))}</code></dd>"
    made = dict(difference.made)
    command, day = made.pop("command", ""), made.pop("date", "")
    if day:
        yield f"<dt>Day</dt><dd>{_text(day)}</dd>"
    if made:
        yield f"<dt>Versions</dt><dd>{_text(', '.join(f'{name} {version}' for name, version in made.items()))}</dd>"
    if command:
        yield f"<dt>Command</dt><dd><code>{_text(command, 4 * NAME)}</code></dd>"
    yield "</dl>\n"


def _table(label: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table that scrolls if it is wider than the page; its cells are HTML.

    Args:
        label: Its name for screen readers.
        columns: The names of its columns, as text.
        rows: The cells of each row; the first is its header.
        numbers: The columns of numbers.
    """
    kinds = [' class="num"' if n in numbers else "" for n in range(len(columns))]
    heads = "".join(f'<th scope="col"{kind}>{_escaped(name)}</th>' for kind, name in zip(kinds, columns, strict=True))
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], rest, strict=True))
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{_escaped(label)}"><table><thead><tr>{heads}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>\n"
    )


def _scores(scores: Sequence[TokenScore]) -> str:
    return _tokens(score.token for score in scores[:FEW])


def _tokens(tokens: Iterable[str]) -> str:
    return " ".join(map(_token, tokens))


def _token(token: str) -> str:
    return f"<code>{_text(token)}</code>"


def _text(text: object, limit: int = 120) -> str:
    """Return a text of a stranger as HTML: on one line, the unprintable spelled out, cut at ``limit``."""
    return _escaped(shown_text(str(text), limit=limit))


def _escaped(text: str) -> str:
    return html.escape(text)
