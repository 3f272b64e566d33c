"""Text for a terminal: where lines break, what is dim, and what goes to a file."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

import small
import zeropass as zp
from commands import Run
from zeropass.cli import sharing
from zeropass.cli.output import text_output
from zeropass.records.numbers import plain
from zeropass.records.parameters import Hidden, TokenScore, VectorRecord
from zeropass.render.terminal import Flow, facts_table, render, token_text

WORDS = st.lists(st.text("abcd ", min_size=1, max_size=12).map(lambda text: f"<{text}>"), max_size=30)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


def lines_of(renderable: Any, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(renderable)
    return captured.get().splitlines()


@given(WORDS, st.integers(20, 80), st.integers(1, 4))
def test_lines_break_between_parts_and_never_inside_one(words: list[str], width: int, gap: int) -> None:
    lines = lines_of(Flow(map(Text, words), gap=gap), width)
    assert all(len(line) <= width for line in lines)
    assert all(sum(line.count(word) for line in lines) >= words.count(word) for word in words)
    text = "".join(line.strip(" ") for line in lines).replace(" ", "")
    assert text == "".join(words).replace(" ", "")


def styles_of(renderable: Any) -> dict[str, bool]:
    """Return what is dim, by text."""
    console = Console(width=200, force_terminal=True, file=io.StringIO())
    parts = [part for part in console.render(renderable) if part.text.strip()]
    return {part.text.strip(): bool(part.style and part.style.dim) for part in parts}


def listed(z: float) -> VectorRecord:
    tokens = (TokenScore(1, " word", z, z), TokenScore(2, "piece", z, z))
    return VectorRecord("L0.ff.1", "gate", "read", "token", 1.0, tokens, (), 0.0, 1.0, Hidden("default", 0, 600, {}))


def test_tokens_are_dim_only_where_no_token_stands_out() -> None:
    assert styles_of(token_text("piece")) == {"piece": False}
    for z, dim in ((9.0, False), (1.0, True)):
        styles = styles_of(render(listed(z)))
        assert (styles["word"], styles["piece"]) == (dim, dim)
        assert styles["␣"]


def test_text_for_a_file_is_neither_padded_nor_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, llama: small.Built
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with text_output() as console:
        console.print(render(llama.lens["L1.ff.3.gate"][0], 20))
        console.print(Text("word " * 100))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1] == ("word " * 100).rstrip()
    assert all(line == line.rstrip() for line in lines)


def test_nothing_is_printed_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), text_output() as console:
        console.print("half of it")
        1 / 0  # noqa: B018
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("there", [True, False])
def test_serve_opens_the_browser_when_asked(
    run: Run, llama: small.Built, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(sharing.webbrowser, "open", lambda address: opened.append(address) or there)
    monkeypatch.setattr(zp, "serve", lambda *_, say, **__: say("http://127.0.0.1:1/"), raising=False)
    assert run("serve", llama.atlas.path)[0] == 0
    assert opened == []
    code, out, err = run("serve", llama.atlas.path, "--open")
    assert (code, opened) == (0, ["http://127.0.0.1:1/"])
    assert out.startswith("http://127.0.0.1:1/")
    assert ("No browser" in err) is not there


def test_names_of_folders_are_strings_or_paths(llama: small.Built, tmp_path: Path) -> None:
    model = zp.open_model(llama.folder)
    assert zp.load(llama.folder).model.fingerprint == model.fingerprint
    options = zp.Options(k=5, pairs=5, layers=(1, 2), roles=("gate",))
    assert zp.build(model, str(tmp_path / "atlas"), options)
    assert zp.open_sources(zp.Sources(str(tmp_path / "atlas")))[0].name == str(llama.folder)
    alignment = zp.align_models(model, zp.open_model(str(llama.folder)), str(tmp_path / "alignment"))
    assert zp.read_alignment(str(tmp_path / "alignment")).layers == alignment.layers
    zp.write_diff(zp.compare(model, model), str(tmp_path / "diff"))
    assert json.loads((tmp_path / "diff" / "diff.json").read_text())["relation"] == "equal"


def test_numbers_near_one_keep_a_decimal() -> None:
    assert [plain(value) for value in (0.0, 0.052, 0.9, 0.994, 0.998, 1.0, 12.34)] == [
        *("0.0", "0.052", "0.9", "0.99", "1.0", "1.0", "12.3")
    ]
    assert plain(-0.998, "+") == "-1.0"


def test_facts_leave_out_what_is_empty_and_separate_what_has_commas() -> None:
    facts = {
        "atlas": "a",
        "title": "",
        "lists": 15616,
        "tied": True,
        "options": {"frames": ["token", "output"], "k": 50, "layers": None},
        "tokens_hidden": {"ascii": {"special": 1, "non-text": 1158}, "words": {"special": 1}},
    }
    assert [" ".join(line.split()) for line in lines_of(facts_table(facts), 200)] == [
        "atlas a",
        "lists 15,616",
        "tied yes",
        "options frames token, output; k 50",
        "tokens hidden ascii: special 1, non-text 1,158; words: special 1",
    ]
