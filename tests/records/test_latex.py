"""Tables of LaTeX: every character of a token comes out as text."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_records import pair, vector

import small
from zeropass.records.latex import escaped, tabular
from zeropass.records.parameters import Records
from zeropass.tokens.shown import escape, shown_text

COMMANDS = {
    "textbackslash": "\\",
    "textasciicircum": "^",
    "textasciitilde": "~",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textquotesingle": "'",
    "textasciigrave": "`",
    "textvisiblespace": "␣",
    "textellipsis": "…",
}
"""Commands of the kernel of LaTeX (2020) and what they print."""

SYMBOLS = "{}$&#%_ "
"""Signs that a backslash before them makes print as they are."""

SPECIAL = "\\{}$&#%_^~"
LIGATURES = ("--", ",,", "<<", ">>", "''", "``", "!`", "?`")


def typeset(source: str) -> str:
    """Return what LaTeX prints in typewriter type; fail where a sign would be taken as something else."""
    printed, run = [], ""
    while source:
        if command := re.match(r"\\char(\d+)\{\}", source):
            printed.append(chr(int(command[1])))
        elif command := re.match(r"\\([A-Za-z]+)\{\}", source):
            printed.append(COMMANDS[command[1]])
        elif command := re.match(r"\\([^A-Za-z])", source):
            assert command[1] in SYMBOLS
            printed.append(command[1])
        elif command := re.match(r"\{\}", source):  # ends a ligature
            pass
        else:
            command = re.match(r".", source, re.DOTALL)
            assert command
            assert command[0] not in SPECIAL
            assert command[0] != " ", "a run of spaces would become one"
            assert run + command[0] not in LIGATURES
            run = command[0]
            printed.append(run)
            source = source[1:]
            continue
        run, source = "", source[command.end() :]
    return "".join(printed)


@given(st.text())
@example("\\{}$&#%_^~<>|\"'`-- ,,!`?`  ␣…")
@example("\\textbf{x}\\\\[1em]\\end{tabular}%")
@example("ﬁ我עᏣ\u0301😀")
def test_every_character_is_printed(text: str) -> None:
    shown = escape(text)
    assert typeset(escaped(shown)) == shown


@given(st.text(alphabet="\\{}$&#%_^~<>|\"'`-, !?[]*xy0", max_size=12))
def test_signs_of_tex_are_printed(text: str) -> None:
    assert typeset(escaped(text)) == text


def cells_of(table: str) -> list[list[str]]:
    """Return the cells of the rows of a table, whatever their tokens hold."""
    body = table.split("\\midrule\n")[-1].split("\\bottomrule")[0]
    return [re.split(r" & ", line.removesuffix(r" \\")) for line in body.splitlines()]


@pytest.mark.parametrize("text", [*small.HOSTILE, "&", r" \\ ", "% comment", "]", "[2cm]", "a & b", "$", "}{"])
def test_a_table_has_a_row_for_each_rank(text: str) -> None:
    (left, z, right, _), other = cells_of(vector(text, "other").to_latex())
    for cell in (left, right):
        token = re.fullmatch(r"\\texttt\{(.*)\}", cell)
        assert token
        assert typeset(token[1]) == shown_text(text)
    assert (z, len(other)) == ("$2.2$", 4)
    ((left, right, score),) = cells_of(pair(text).to_latex())
    assert left == right
    assert score == "$3.0$"


def test_poles_of_unequal_length_leave_cells_empty() -> None:
    record = vector("a", "b")
    table = type(record)(**{**vars(record), "bottom": record.bottom[:1]}).to_latex()
    assert cells_of(table)[1] == [r"\texttt{b}", "$2.2$", "", ""]


def test_records_are_tables_in_turn() -> None:
    tables = Records([vector("a"), pair("b")]).to_latex()
    assert tables.count(r"\begin{tabular}") == tables.count(r"\end{tabular}") == 2
    assert r"\begin{tabular}{lrlr}" in tables
    assert r"attended to & promoted & score" in tables


def test_singular_directions_are_a_table(tmp_path_factory: pytest.TempPathFactory) -> None:
    record = small.built("llama", tmp_path_factory).lens.svd("L1.attn.2.qk", k=3)
    rows = cells_of(record.to_latex())
    assert len(rows) == 2 * len(record)
    assert {len(row) for row in rows} == {3}
    assert rows[0][0].endswith(r"\%")


def test_what_a_caption_may_say_is_a_comment() -> None:
    lines = tabular("l", "50% of\nit", ["a note\nof two lines"], ["x"], [["y"]]).splitlines()
    assert lines[:2] == [r"% \usepackage{booktabs}", r"% a note\nof two lines"]
    assert lines[4] == r"\multicolumn{1}{l}{50\% of\textbackslash{}nit} \\"
    assert all(line.startswith(("%", "\\", "x", "y")) for line in lines)
