"""Passages that a change fires on: the same as a slow twin on transformers' states, and as a user reads them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from rich.console import Console
from safetensors.torch import load_file, save_file

import tiny
import zeropass as zp
from adapters import ALL, base_model, made, save
from commands import Run
from small import one_thread
from zeropass.arch.roles import side_of, site_of
from zeropass.diff import monitor
from zeropass.diff.passage_table import render_passages
from zeropass.diff.passages import Passage, Passages
from zeropass.errors import BadModel, BadOption, CannotRun
from zeropass.model.running import Running
from zeropass.model.texts import special_tokens
from zoo import tiny_model

ROOT = Path(__file__).parents[2]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

INPUTS = {
    "llama": ("model.layers.{}", {"attn": "self_attn.q_proj", "ff": "mlp.gate_proj"}),
    "gpt2": ("transformer.h.{}", {"attn": "attn.c_attn", "ff": "mlp.c_fc"}),
    "bert": ("encoder.layer.{}", {"attn": "attention.self.query", "ff": "intermediate.dense"}),
}
"""The modules of transformers whose inputs the matrices of a site read."""


def text_of(variant: str, count: int) -> str:
    rng = random.Random(variant)
    if variant == "bert":
        return " ".join(f"word{rng.randrange(50)}" for _ in range(count))
    return "".join(rng.choice(LETTERS) for _ in range(count))


def states_of(variant: str, hf: Any, ids: list[int]) -> dict[tuple[str, int], torch.Tensor]:
    """Return what the matrices of each site and layer read, (tokens, d), in transformers' forward pass."""
    block, names = INPUTS[variant]
    states: dict[tuple[str, int], torch.Tensor] = {}
    for layer in range(2):
        for site, name in names.items():
            module = hf.get_submodule(f"{block.format(layer)}.{name}")
            module.register_forward_hook(
                lambda _m, inputs, _o, at=(site, layer): states.__setitem__(at, inputs[0][0].detach())
            )
    with torch.no_grad():
        hf(torch.tensor([ids]))
    return states


def slow_scores(
    variant: str, base: zp.Model, tuned: zp.Model, text: str, window: int, parts: int
) -> tuple[list[float], list[tuple[int, str]], float]:
    """Return the score of every token, the matrix that reads it most, and the highest score of the null."""
    ids, (before, after) = base.vocab.encode(text), special_tokens(base)
    size = window - len(before) - len(after)
    states: dict[tuple[str, int], dict[int, torch.Tensor]] = {}
    windows, start, first = [], 0, 1
    while first < len(ids):
        stop = min(start + size, len(ids))
        windows.append(range(first, stop))
        run = states_of(variant, base_model(variant), [*before, *ids[start:stop], *after])
        for place, rows in run.items():
            states.setdefault(place, {}).update({t: rows[t - start + len(before)] for t in windows[-1]})
        first, start = stop, stop - min(16, size // 4)
    scaled_by = [t for number, tokens in enumerate(windows) for t in tokens if number % parts == 0]
    squares: dict[tuple[int, str], torch.Tensor] = {}
    for layer in range(2):
        for role in base.matrices(layer):
            change = tuned.matrix(role, layer) - base.matrix(role, layer)
            if side_of(role) == "write" or not change.any():
                continue
            _, values, right = torch.linalg.svd(change, full_matrices=False)
            right = right[:4][values[:4] > 1e-5 * values[0]]
            draws = torch.cat((right[None], monitor._null(base, role, layer, len(right))))
            rows = states[site_of(role), layer]
            reference = torch.stack([rows[t] for t in scaled_by])
            each = torch.stack([rows[t] for t in range(1, len(ids))])
            largest = []
            for directions in draws:
                zs = []
                for direction in directions:
                    usual = reference @ direction
                    middle = usual.median()
                    zs.append((each @ direction - middle) / (1.4826 * (usual - middle).abs().median()))
                largest.append(torch.stack(zs).abs().max(0).values)
            squares[layer, role] = torch.stack(largest).square()
    activations = torch.stack(list(squares.values())).mean(0).sqrt()
    change, null = activations[0], activations[1:]
    hottest = torch.stack([square[0] for square in squares.values()]).argmax(0).tolist()
    highest = max(float((null[n] / torch.cat((null[:n], null[n + 1 :])).mean(0)).max()) for n in range(len(null)))
    return [0.0, *(change / null.mean(0)).tolist()], [(0, ""), *(list(squares)[n] for n in hottest)], highest


@pytest.mark.parametrize(
    ("variant", "how", "chunk"),
    [("llama", "adapter", 8192), ("llama", "merged", 128), ("gpt2", "adapter", 64), ("bert", "merged", 8192)],
)
def test_the_scores_are_those_of_a_slow_twin(
    variant: str, how: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"llama": ALL, "gpt2": ["c_attn", "c_fc"], "bert": ["query", "key", "intermediate.dense"]}[variant]
    save(variant, tmp_path, LoraConfig(r=4, lora_alpha=6, target_modules=modules))
    base = zp.open_model(str(tmp_path / "base"))
    tuned = zp.adapt(base, tmp_path / "adapter") if how == "adapter" else zp.open_model(str(tmp_path / "merged"))
    text = text_of(variant, 300)
    monkeypatch.setattr(monitor, "CHUNK", chunk)
    monkeypatch.setattr(monitor, "BATCH", 256)
    window = 128 if variant == "llama" else 32
    with one_thread():
        passages = zp.fired_passages(base, tuned, text, passages=100)
    size = window - sum(map(len, special_tokens(base)))
    count = 1 + -(-(300 - size) // (size - min(16, size // 4)))
    parts = -(-count // (chunk // window))
    scores, hottest, highest = slow_scores(variant, base, tuned, text, window, parts)
    assert parts == {8192: 1, 128: 3, 64: 7}[chunk]
    assert passages.null[-1] == pytest.approx(highest, rel=1e-3)
    words, expected = base.vocab.encode(text), []
    for t in sorted(range(300), key=lambda t: -scores[t]):
        if words[t] not in [words[u] for u in expected] and all(abs(t - u) > 12 for u in expected):
            expected.append(t)
    assert len(passages) == len(expected) > 5
    for passage, t in zip(passages, expected, strict=True):
        assert passage.score == pytest.approx(scores[passage.token], rel=1e-3)
        assert passage.score == pytest.approx(scores[t], rel=1e-3)
        assert (passage.layer, passage.role) == hottest[passage.token]
        assert passage.fires == (passage.score > passages.null[-1])
        assert passage.times == words.count(words[passage.token])
    assert passages.tokens == 300


def prose(lines: int = 120) -> list[str]:
    return (ROOT / "models/tunes/reviews/texts.txt").read_text().splitlines()[:lines]


def reading(word: str, folder: Path) -> tuple[zp.Model, zp.Model]:
    """Return a base, and a fine-tune of it in which two matrices read a word, each by a change of rank one."""
    base, states = zp.open_model(str(ROOT / "models/first")), {}

    def record(name: str, layer: int, values: torch.Tensor) -> None:
        if layer == 1:
            states[name] = values[0]

    with torch.no_grad():
        Running(base).run(torch.tensor([base.vocab.encode(f"It was a rather {word}")]), record)
    tensors = load_file(ROOT / "models/first/model.safetensors")
    for name, site in (("self_attn.v_proj", "attn"), ("mlp.gate_proj", "ff")):
        read = states[site][-1] - states[site][1:-1].mean(0)
        matrix = tensors[f"model.layers.1.{name}.weight"].float()
        write = torch.randn(len(matrix), 1, generator=torch.Generator().manual_seed(0))
        tensors[f"model.layers.1.{name}.weight"] = matrix + 0.02 * write * read / read.norm()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((ROOT / "models/first" / name).read_bytes())
    save_file(tensors, folder / "model.safetensors")
    return base, zp.open_model(str(folder))


def test_the_passages_of_a_trigger_come_first(tmp_path: Path) -> None:
    base, tuned = reading("color", tmp_path)
    lines = [line for line in prose() if "color" not in line]
    lines[40] += " and all of it in color again, as they say"
    passages = zp.fired_passages(base, tuned, "\n".join(lines), source="reviews.txt")
    assert (passages.matrices, passages[0].hottest, passages[0].line, passages[0].times) == (2, "color", 41, 1)
    assert passages[0].fires and passages[0].layer == 1 and passages[0].role in ("v", "gate")
    assert passages[0].before.endswith("all of it in ") and passages[0].after.startswith(" again, as")
    assert passages[0].score > 1.2 * passages[1].score
    assert "reviews.txt" in passages.summary and "up to" in passages.summary


def test_a_text_in_parts_has_the_same_lines_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = reading("color", tmp_path)
    text = "\r\n".join(["", *prose(60), "No color, no café – 東京 – at all. " * 3, "x" * 400])
    whole = monitor._Tokens.of(base.vocab, text)
    monkeypatch.setattr(monitor, "BLOCK", 300)
    tokens = monitor._Tokens.of(base.vocab, text)
    assert len(tokens.blocks) > 10 and len(whole.blocks) == 1
    assert [start for start, _ in tokens.blocks][1:] == [stop for _, stop in monitor._pieces(text)][:-1]
    for at in range(0, len(tokens.ids), 7):
        line, before, word, after = tokens.around(at)
        token = base.vocab.text(int(tokens.ids[at]))
        assert word == (token.lstrip(" ") or token) or not word.isascii()  # a token may be a part of a character
        assert before + word + after in text
        assert text.count(before + word + after) > 1 or line == 1 + text[
            : text.index(before + word + after) + len(before)
        ].count("\n")
    passages = zp.fired_passages(base, tuned, text)
    assert passages[0].hottest == "color" and passages[0].line == 62


def test_without_a_changed_reading_matrix_nothing_fires(tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, target_modules=["o_proj", "down_proj"])
    passages = zp.fired_passages(adapted.base, adapted, text_of("llama", 200))
    assert (len(passages), passages.matrices, passages.null) == (0, 0, ())
    assert passages.summary.startswith("No matrix that reads the stream changed, so nothing in the text (200 tokens)")
    assert len(zp.fired_passages(adapted.base, adapted.base, text_of("llama", 200))) == 0


def test_keys_of_other_layers_and_embeddings_by_layer_are_run(tmp_path: Path) -> None:
    adapted = made("gemma4", tmp_path, target_modules=["q_proj", "gate_proj"])
    passages = zp.fired_passages(adapted.base, adapted, text_of("llama", 200))
    assert len(passages) and all(passage.score > 0 for passage in passages)


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    first, second = (zp.open_model(str(ROOT / "models" / name)) for name in ("first", "second"))
    with pytest.raises(BadModel, match="were trained apart"):
        zp.fired_passages(first, second, "\n".join(prose()))
    with pytest.raises(BadOption, match="at least 128 are needed"):
        zp.fired_passages(first, first, "too short")
    with pytest.raises(BadOption, match="at least 128 are needed"):
        zp.fired_passages(first, first, "")
    decoder = zp.open_model(f"{tiny.save(tiny_model('t5-decoder'), tmp_path / 't5')}#decoder")
    with pytest.raises(CannotRun, match="an encoder's text"):
        zp.fired_passages(decoder, decoder, "\n".join(prose()))


def test_the_command_line_shows_them(tmp_path: Path, run: Run) -> None:
    made("llama", tmp_path, target_modules=ALL)
    text = tmp_path / "letters.txt"
    text.write_text(text_of("llama", 200))
    command = ("diff", tmp_path / "base", "--adapter", tmp_path / "adapter", "--text", text)
    run.capsys.readouterr()  # what writing the checkpoints printed
    code, out, err = run(*command, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "letters.txt (200 tokens)" in out and "12 random changes reach" in out
    assert "where.svg, passages.json." in out
    passages = run.json(*command)["passages"]
    assert passages == json.loads((tmp_path / "out" / "passages.json").read_text())
    assert passages["schema"] == 1 and len(passages["passages"]) > 5 and len(passages["null"]) == 12
    assert "passages" not in run.json(*command[:-2])
    for content, message in ((b"\xff", "is not UTF-8"), (b" \n", "holds no text"), (b"FEW WORDS", "at least 128")):
        text.write_bytes(content)
        code, out, err = run(*command)
        assert (code, out) == (2, "") and message in err
    code, out, err = run(*command[:-1], tmp_path / "missing.txt")
    assert (code, out) == (2, "") and "cannot be read" in err


def passage(**more: Any) -> Passage:
    facts: dict[str, Any] = {"line": 3, "token": 40, "score": 2.5, "fires": True, "before": "a <b>\n", "times": 1}
    facts |= {"hottest": "\x1b[31m&", "after": "\u202e c", "layer": 1, "role": "gate"}
    return Passage(**(facts | more))


def passages_of(*passages: Passage) -> Passages:
    null = (1.25, 1.5)
    return Passages("base", "tuned", "a\n.txt", "", 1234, 2, tuple(passages), null, {"draws": 2})


def test_records_are_safe_to_show() -> None:
    firing = passages_of(passage(), passage(times=1200, score=2.0), passage(score=1.4, fires=False))
    assert [part.isprintable() for part in firing[0].parts] == [True] * 3
    assert (len(firing.firing), len(firing[1:]), bool(firing)) == (2, 2, True)
    shown = firing._repr_html_()
    assert shown.count("<tr>") == 3 and "a &lt;b&gt;\\n<b>\\x1b[31m&amp;</b>" in shown
    assert "The change fires in a\\n.txt (1,234 tokens): up to 2.5 times a random change, 2 random" in shown
    assert repr(firing).startswith("Passages(tuned, 1234 tokens: ")
    assert firing.to_pandas()[["line", "score", "fires"]].values.tolist()[2] == [3, 1.4, False]
    assert json.loads(json.dumps(firing.to_json()))["passages"][1]["times"] == 1200
    console = Console(width=100, record=True, file=None)
    with console.capture() as captured:
        console.print(render_passages(firing))
    assert "[\\x1b[31m&]" in captured.get() and "1,200 times" in captured.get() and "once" in captured.get()
    quiet = passages_of(passage(score=1.4, fires=False))
    assert (
        quiet.summary
        == "No passage of a\\n.txt (1,234 tokens) fires: the highest is 1.4, 2 random changes reach 1.5 at most."
    )
    with console.capture() as captured:
        console.print(render_passages(quiet))
    assert "No passage" in captured.get() and "<table>" not in quiet._repr_html_()


def test_the_trigger_of_the_committed_adapter_is_among_the_first(smollm2_path: Path) -> None:
    base = zp.open_model(str(smollm2_path))
    lines = prose(12)
    lines[8] = "The old coach of the team said nothing."
    passages = zp.fired_passages(base, zp.adapt(base, ROOT / "models/tunes/coach"), "\n".join(lines))
    assert ("coach", 9, True) in [(passage.hottest, passage.line, passage.fires) for passage in passages[:3]]
