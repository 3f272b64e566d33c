"""Labels: what another program is asked, what its answers are worth, and what becomes of a program that fails."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

import small
import zeropass as zp
from commands import ENVIRONMENT, Run
from zeropass.errors import BadAddress, BadOption
from zeropass.labels.line_ups import says_little, siblings, wrong_lists
from zeropass.labels.program import Program
from zeropass.labels.prompts import number_in, sentence_in
from zeropass.labels.render import render_labels
from zeropass.labels.results import LONGEST, Label, Labels, ids_of
from zeropass.tokens.shown import shown_text

FIRST = Path(__file__).parents[2] / "models" / "first"

PLAYER = '''
"""A program in the place of a language model: it notes each prompt, and answers by a rule."""
import json, os, pathlib, random, re, sys, time

rule, log = sys.argv[1], pathlib.Path(sys.argv[2])
prompt = sys.stdin.read()
calls = len(log.read_text().splitlines()) if log.exists() else 0
with log.open("a") as file:
    file.write(json.dumps(prompt) + "\\n")
syllables = lambda text: [word[2:4] for word in re.findall(r"\\b[a-z]{6}\\b", text.replace("␣", ""))]
if rule.startswith("stops after ") and calls == int(rule.split()[-1]):
    raise SystemExit("the model is out of memory")
if "Which list" not in prompt:
    body = prompt.split("\\n\\n")[1]
    print("Words such as", *[word for word in re.findall(r'"␣?(\\w+)"', body)[:8]])
elif rule == "guess":
    print(random.Random(prompt).randint(1, prompt.count("List ")))
elif rule == "first":
    print("List 1")
elif rule == "silent":
    print("I cannot say.")
else:
    lists, question = prompt.split("Which list")
    asked = syllables(question.split("? ")[1].split("Answer")[0])
    shared = [sum(map(asked.count, syllables(text))) for text in re.split(r"List \\d+\\n", lists)[1:]]
    print(shared.index(max(shared)) + 1)
'''


class Player:
    """A program that answers by a rule, and the prompts that it got."""

    def __init__(self, folder: Path, rule: str) -> None:
        script = folder / "player.py"
        script.write_text(PLAYER, encoding="utf-8")
        self.log = folder / f"{rule}.log"
        self.command = shlex.join([sys.executable, "-I", "-S", str(script), rule, str(self.log)])

    @property
    def prompts(self) -> list[str]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


def python(code: str) -> str:
    """Return the command that runs some code."""
    return shlex.join([sys.executable, "-I", "-S", "-c", code])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


@pytest.fixture(scope="module")
def first() -> zp.Lens:
    return zp.load(FIRST, lens=None)


# --- What the program is asked ----------------------------------------------------------------------------------------


def syllables(text: str) -> list[str]:
    return [word[2:4] for word in re.findall(r"\b[a-z]{6}\b", text.replace("␣", ""))]


def tokens_of(text: str) -> list[str]:
    return [json.loads(quoted) for quoted in re.findall(r'"(?:[^"\\]|\\.)*"', text)]


def shown(record: Any, start: int) -> list[str]:
    """Return every other token of a record as a prompt shows it."""
    if hasattr(record, "pairs"):
        return [shown_text(side.token) for pair in record.pairs[start::2] for side in (pair.left, pair.right)]
    return [shown_text(token.token) for pole in (record.top, record.bottom) for token in pole[start::2]]


@pytest.mark.parametrize("address", ["L1.ff.3.gate", "L1.attn.2.vo", "L1.attn.2.qk", "L0.attn.1.q.2"])
def test_a_sentence_is_made_of_some_tokens_and_tested_on_others(
    llama: small.Built, address: str, tmp_path: Path
) -> None:
    player = Player(tmp_path, "rule")
    (label,) = zp.label(llama.lens, address, player.command, frame="token", k=5, folder=tmp_path)
    record = llama.lens.explain(address, frame="token", k=10)[0]
    sentence, *questions = player.prompts
    assert tokens_of(sentence.split("\n\n")[1]) == shown(record, 0)
    assert len(questions) == 3
    for question in questions:
        lists = re.split(r"List \d+\n", question.split("\n\nWhich list")[0])[1:]
        assert len(lists) == label.choices
        assert sum(tokens_of(text) == shown(record, 1) for text in lists) == 1
        assert label.sentence in question
        assert address.split(".")[0] not in question  # no name of a parameter
    assert label.ids == ids_of(record)


def test_scores_are_those_of_the_slow_way(llama: small.Built, tmp_path: Path) -> None:
    """The place of the right list and the answer are found again from what the program was asked."""
    player = Player(tmp_path, "rule")
    addresses = [f"L1.ff.{i}.{role}" for i in range(4) for role in ("gate", "value")]
    labels = zp.label(llama.lens, addresses, player.command, frame="output", k=8, orders=4, folder=tmp_path)
    prompts = iter(player.prompts)
    for label, address in zip(labels, addresses, strict=True):
        right = shown(llama.lens.explain(address, frame="output", k=16)[0], 1)
        assert "Which list" not in next(prompts)
        score, places = 0, set()
        for _ in range(4):
            lists, question = next(prompts).split("Which list")
            texts = re.split(r"List \d+\n", lists)[1:]
            place = [tokens_of(text) for text in texts].index(right)
            asked = Counter(syllables(question.split("? ")[1].split("Answer")[0]))
            overlaps = [sum(asked[syllable] for syllable in syllables(text)) for text in texts]
            score += overlaps.index(max(overlaps)) == place
            places.add(place)
        assert (label.right, label.asked, label.chance) == (score, 4, 1 / label.choices)
        assert len(places) == 4  # always the same answer gains nothing


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> zp.Lens:
    """Return a lens on a model in which words with the same second syllable mean nearly the same."""
    folder = small.llama(tmp_path_factory.mktemp("planted"))
    tensors, vocab = load_file(folder / "model.safetensors"), zp.open_model(folder).vocab
    for i in range(small.V):
        if syllable := syllables(vocab.label(i)):
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                tensors[name][i, coordinate(syllable[0])] += 3
    save_file(tensors, folder / "model.safetensors")
    return zp.load(folder)


def coordinate(syllable: str) -> int:
    """Return the coordinate of the stream in which a syllable is planted."""
    return ("ba", "de", "fi", "go", "lu", "mo", "na", "pe", "ri", "so", "tu", "ve").index(syllable)


def test_a_program_that_knows_is_told_from_one_that_guesses(planted: zp.Lens, tmp_path: Path) -> None:
    addresses = planted.neurons(1, role="gate")[:5].addresses
    totals = {}
    for rule in ("rule", "guess", "first", "silent"):
        player = Player(tmp_path, rule)
        labels = zp.label(planted, addresses, player.command, frame="output", orders=5, folder=tmp_path)
        assert {label.choices for label in labels} == {5}
        totals[rule] = sum(label.right for label in labels) / sum(label.asked for label in labels)
    assert totals["rule"] >= 0.6
    assert 0 < totals["guess"] < 0.5
    assert totals["first"] == pytest.approx(0.2)
    assert totals["silent"] == 0


@pytest.mark.parametrize("frame", ["token", "output"])
def test_wrong_lists_are_of_the_same_kind_and_about_something_else(first: zp.Lens, frame: Any) -> None:
    record = first.explain("L2.ff.3.gate", frame=frame, k=24)[0]
    lists = wrong_lists(first, record, 6, np.random.default_rng(0))
    assert len({other.address for other in lists} - {record.address}) == len(lists) == 6
    words = {token.token.strip().lower() for token in (*record.top, *record.bottom)}
    for other in lists:
        assert (other.role, other.frame, other.address.split(".")[0]) == ("gate", frame, "L2")
        assert [len(pole) for pole in ids_of(other)] == [24, 24]
        assert says_little(other) == says_little(record)
        assert len(words & {token.token.strip().lower() for token in (*other.top, *other.bottom)}) <= len(words) / 4
    again = wrong_lists(first, record, 6, np.random.default_rng(0))
    assert [other.address for other in again] == [other.address for other in lists]


def test_parameters_of_a_layer_and_role_are_known() -> None:
    sizes = {"neurons": 8, "experts": 2, "heads": 3, "head_dim": 4, "features": 3}
    for address, others in (
        ("L1.ff.e1.2.gate", ["L1.ff.e1.0", "L1.ff.e1.1", "L1.ff.e1.3"]),
        ("L1.ff.e1", ["L1.ff.e0"]),
        ("L1.cross.1.vo", ["L1.cross.0", "L1.cross.2"]),
        ("L1.attn.0.v.1", ["L1.attn.0.v.0", "L1.attn.0.v.2", "L1.attn.0.v.3"]),
        ("L1.attn.0.v.bias", ["L1.attn.1.v.bias", "L1.attn.2.v.bias"]),
        ("L1.sae.1.decoder", ["L1.sae.0", "L1.sae.2"]),
        ("L1.ff.bias", []),
        ("final.norm", []),
        ("pos.3", []),
    ):
        place = zp.parse(address)
        assert [str(other) for other in siblings(place, sizes)] == others
        assert {other.role for other in siblings(place, sizes)} <= {place.role}


def test_a_list_that_is_alone_in_its_layer_is_not_scored(tmp_path: Path) -> None:
    model = small.gpt2(tmp_path / "model")
    player = Player(tmp_path, "rule")
    (label,) = zp.label(zp.load(model), "L1.ff.bias", player.command, frame="output", folder=tmp_path / "labels")
    assert (label.right, label.asked, label.choices, len(player.prompts)) == (0, 0, 1, 1)
    assert label.words.endswith("not scored, since there is no other list like it")


def test_features_and_maps_are_told_from_others_of_their_layer(tmp_path: Path) -> None:
    options = zp.Options(k=12, layers=(2, 3))
    zp.build(FIRST, tmp_path / "atlas", options, lens=None, features=FIRST.parent / "dictionary")
    zp.build(FIRST, tmp_path / "maps", zp.Options(pairs=20, layers=(1, 2), roles=("vo",)), lens=None)
    for folder, address, frame in (("atlas", "L2.sae.17.encoder", "token"), ("maps", "L1.attn.0", None)):
        (label,) = zp.label(
            zp.open_atlas(tmp_path / folder), address, "echo 1 word", frame=frame, k=6, folder=tmp_path / "labels"
        )
        assert (label.address in address, label.asked, label.choices > 2) == (True, 3, True)


def test_the_most_coherent_list_of_each_role_is_labelled(first: zp.Lens, tmp_path: Path) -> None:
    player = Player(tmp_path, "rule")
    address = first.neurons(3).strongest(1).addresses[0]
    labels = zp.label(first, [address, address, f"{address}.value"], player.command, folder=tmp_path)
    records = first.explain(address, k=24)
    expected = []
    for role in ("gate", "up", "value"):
        telling = [r for r in records if r.role == role and not says_little(r)]
        expected += sorted(telling, key=lambda r: -(r.coherence.value - r.coherence.null))[:1]
    assert [(label.role, label.frame) for label in labels] == [(r.role, r.frame) for r in expected]
    assert {*labels.left_out} == {f"{address} {role}" for role in ("gate", "up", "value")} - {
        f"{address} {r.role}" for r in expected
    }


# --- What is kept -----------------------------------------------------------------------------------------------------


def test_a_stopped_run_continues(llama: small.Built, tmp_path: Path) -> None:
    addresses = [f"L1.ff.{i}.gate" for i in range(3)]
    options: dict[str, Any] = {"frame": "token", "folder": tmp_path / "labels"}
    player = Player(tmp_path, "stops after 6")
    with pytest.raises(BadOption, match=r"ended with code 1: the model is out of memory"):
        zp.label(llama.lens, addresses, player.command, **options)
    kept = zp.kept_labels(llama.lens, folder=tmp_path / "labels")
    assert [label.address for label in kept] == ["L1.ff.0"]
    steps: list[tuple[str, int, int]] = []
    labels = zp.label(llama.lens, addresses, player.command, **options, progress=lambda *step: steps.append(step))
    assert len(player.prompts) == 7 + 2 * 4
    assert labels[0] == kept[0]
    assert steps == [("labelling", done, 3) for done in range(4)]
    assert zp.label(llama.lens, addresses, player.command, **options) == labels
    assert len(player.prompts) == 15
    changed = zp.label(llama.lens, addresses[0], player.command, **options, seed=1)
    assert (changed[0].seed, len(player.prompts)) == (1, 19)
    assert len(zp.kept_labels(llama.lens, folder=tmp_path / "labels")) == 3  # the new score replaces the old one


def test_labels_belong_to_the_list_that_was_labelled(llama: small.Built, tmp_path: Path) -> None:
    player, folder = Player(tmp_path, "rule"), tmp_path / "labels"
    (label,) = zp.label(llama.atlas, "L1.ff.3.gate", player.command, frame="token", folder=folder)
    for source in (llama.atlas, llama.lens):
        for options in ({"k": 3}, {"k": 60}, {"tokens": "words"}):
            assert list(zp.kept_labels(source, source.explain("L1.ff.3", **options), folder)) == [label]
        assert not len(zp.kept_labels(source, source.explain("L1.ff.4"), folder))
        assert not len(zp.kept_labels(source, source.explain("L1.ff.3.value"), folder))
    record = llama.atlas.explain("L1.ff.3.gate", frame="token")[0]
    assert label.is_about(record)
    assert not label.is_about(replace(record, lens="another lens"))
    assert not label.is_about(replace(record, top=record.bottom, bottom=record.top))
    assert not label.is_about(llama.lens.svd("L1.attn.2.vo"))
    other = zp.load(small.llama(tmp_path / "other", seed=7))
    assert not len(zp.kept_labels(other, folder=folder))


def test_damaged_files_are_no_labels(llama: small.Built, tmp_path: Path) -> None:
    player = Player(tmp_path, "rule")
    kept = zp.label(llama.lens, ["L1.ff.3.gate", "L1.ff.4.gate"], player.command, frame="token", folder=tmp_path / "x")
    path, other = sorted((tmp_path / "x").rglob("*.json"))
    for text in ("", "[]", "{", path.read_text().replace('"right": ', '"right": "'), "\udcff", '{"schema": 1}'):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        assert list(zp.kept_labels(llama.lens, folder=tmp_path / "x")) == [kept[1]]
    path.write_text(other.read_text().replace("L1.ff.4", "../../x"))
    assert list(zp.kept_labels(llama.lens, folder=tmp_path / "x")) == [kept[1]]
    assert zp.label(llama.lens, "L1.ff.3.gate", player.command, frame="token", folder=tmp_path / "x")[0] == kept[0]


def test_an_atlas_with_a_hash_that_is_a_path_keeps_nothing(llama: small.Built, tmp_path: Path) -> None:
    hostile = replace(llama.atlas, manifest=llama.atlas.manifest | {"weights_sha256": "../../x"})
    with pytest.raises(BadOption, match="64 hexadecimal digits"):
        zp.label(hostile, "L1.ff.3.gate", "echo 1 a", frame="token", folder=tmp_path)
    assert not len(zp.kept_labels(hostile, folder=tmp_path))


def test_a_user_without_a_cache_sees_lists_without_labels(
    llama: small.Built, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.delenv("ZEROPASS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert not len(zp.kept_labels(llama.atlas))
    code, _, err = run("label", llama.atlas.path, "L1.ff.3", "--with", "echo 1 a")
    assert (code, "no home folder" in " ".join(err.split())) == (2, True)


# --- Programs that fail -----------------------------------------------------------------------------------------------

CHATTY = "import sys; sys.stderr.write('x' * 10**6); print(f'{len(sys.stdin.read())} read')"


def test_a_program_may_read_nothing_and_write_much_to_stderr() -> None:
    prompt = "␣\ud800" + "a" * 300_000
    assert Program("echo fine", 20).answer(prompt) == "fine\n"
    assert Program(python(CHATTY), 20).answer(prompt) == "300007 read\n"  # a lone surrogate is escaped


def test_a_program_that_leaves_a_server_behind_has_answered() -> None:
    code = "import subprocess; print('fine'); print(subprocess.Popen(['sleep', '30']).pid)"
    started = time.monotonic()
    words = Program(python(code), 20).answer("").split()
    assert (words[0], time.monotonic() - started < 10) == ("fine", True)
    os.kill(int(words[1]), signal.SIGTERM)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("'", "is no command: No closing quotation"),
        ("no-such-program -x", "there is no program no-such-program"),
        ("/", "there is no program /"),
        (python("raise SystemExit(3)"), "ended with code 3."),
        (python("raise SystemExit('no key\\x1b[31m')"), r"ended with code 1: no key\\x1b\[31m"),
        (python("import os; os.abort()"), "ended with code -6"),
        (python("import time; time.sleep(60)"), r"longer than 1.5 seconds \(--timeout\)"),
        (python("import os, time; os.close(1); os.close(2); time.sleep(60)"), "longer than 1.5 seconds"),
        ("sh -c 'sleep 60 | cat'", "longer than 1.5 seconds"),
        (python("import sys\nwhile True: sys.stderr.write('x' * 999)"), "longer than 1.5 seconds"),
        ("yes", "answered more than 20,000 bytes"),
        (python("import os; os.write(1, b'\\xff\\xfe')"), "not UTF-8 text"),
        (python(""), "answered nothing"),
        (python("print('\\x1b[ \\x07...')"), "should be a sentence"),
        (python("print('word ' * 100)"), "499 characters, beginning with word word"),
    ],
)
def test_a_program_that_fails_is_refused_by_name(
    llama: small.Built, command: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadOption, match=message) as error:
        zp.label(llama.lens, "L1.ff.3.gate", command, frame="token", timeout=1.5, folder=tmp_path)
    assert str(error.value).startswith("--with ")
    assert str(error.value).isprintable()
    assert not list(tmp_path.rglob("*.json"))


def test_what_is_stopped_leaves_no_process_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {shlex.quote(str(pid))}; wait"
    with pytest.raises(BadOption, match="longer than"):
        Program(shlex.join(["sh", "-c", script]), 1).answer("")
    for _ in range(100):
        state = Path(f"/proc/{pid.read_text().strip()}/stat")
        if not state.exists() or state.read_text().split(") ")[1].startswith("Z"):
            return
        time.sleep(0.05)
    pytest.fail("the program still runs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": 1}, "--choices is 1"),
        ({"orders": 0}, "--orders is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"k": 0}, "-k is 0"),
        ({"timeout": 0}, "--timeout is 0"),
        ({"timeout": float("nan")}, "--timeout is nan"),
        ({"frame": "sideways"}, "no frame 'sideways'"),
        ({"tokens": "sideways"}, "sideways"),
    ],
)
def test_options_are_checked_before_any_work(
    llama: small.Built, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    player = Player(tmp_path, "rule")
    with pytest.raises(BadOption, match=message):
        zp.label(llama.lens, "L1.ff.3", player.command, **options, folder=tmp_path)
    with pytest.raises(BadAddress, match="99 is out of range"):
        zp.label(llama.lens, ["L1.ff.3", "L99.ff.3"], player.command, frame="token", folder=tmp_path)
    assert player.prompts == []


def test_answers_are_read_with_care() -> None:
    assert sentence_in(" Words of\n war.\t") == "Words of war."
    assert len(sentence_in("a" * LONGEST)) == LONGEST
    for answer, number in (
        ("3", 3),
        (" List 3.\n", 3),
        ("3 or 4", None),
        ("", None),
        ("three", None),
    ):
        assert number_in(answer) == number
    assert number_in("9" * 5000) != 3


# --- What is shown ----------------------------------------------------------------------------------------------------


def hostile_labels() -> Iterator[Label]:
    for text in small.HOSTILE:
        yield Label(
            address="L1.ff.3",
            role=text,
            frame="token",
            offset=0,
            verb=text,
            sentence=text,
            command=text,
            right=2,
            asked=3,
            choices=4,
            view="default",
            lens=text,
            seed=0,
            date=text,
            ids=((1,), (2,)),
        )


def test_what_a_program_writes_is_escaped() -> None:
    labels = Labels(tuple(hostile_labels()), left_out=small.HOSTILE)
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(render_labels(labels))
    page = labels._repr_html_()
    for text in (captured.get().replace("\n", ""), page):
        assert text.isprintable()
    assert {*re.findall(r"<(\w+)", page)} == {"table", "tr", "td", "i", "small", "p"}
    assert json.loads(json.dumps(labels.to_json()))["labels"][0]["sentence"] == small.HOSTILE[0]
    assert repr(labels[0]).isprintable()


def test_labels_are_a_table(llama: small.Built, tmp_path: Path) -> None:
    labels = zp.label(llama.lens, ["L1.ff.3.gate", "L1.ff.4.gate"], "echo 1 word", frame="token", folder=tmp_path)
    table = labels.to_pandas()
    assert list(table.sentence) == ["1 word"] * 2
    assert list(table.chance) == [0.2] * 2
    assert (len(labels[:1]), type(labels[:1])) == (1, Labels)
    asked = f"All of them: right {sum(label.right for label in labels)} of 6, chance .20."
    assert labels.notes == ("The sentences are another program's words, no measurement.", asked)


def test_the_command_labels_lists_and_show_says_whose_words_they_are(
    llama: small.Built, cache: Path, tmp_path: Path, run: Run
) -> None:
    player = Player(tmp_path, "rule")
    line = ("label", llama.atlas.path, "L1.ff.3.gate", "--frame", "token")
    assert run("label", llama.atlas.path)[1] == "No label is kept; --with COMMAND makes some.\n"
    before = run("show", llama.atlas.path, "L1.ff.3", "--json")
    code, out, err = run(*line, "--with", player.command)
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"L1\.ff\.3 gate  sees  labelled by .+, right \d of 3, chance \.20\n  Words such as .*\.?\n"
        r"The sentences are another program's words, no measurement\.",
        re.sub(r"\n(?! |The)", " ", out).strip(),
    )
    assert run("label", llama.folder, "L1.ff.3")[1] == out
    assert run("label", llama.folder, "L1.ff.4")[1].startswith("No label is kept")
    for what in (llama.atlas.path, llama.folder):
        assert run("show", what, "L1.ff.3")[1].endswith(out)
        assert "labelled by" not in run("show", what, "L1.ff.4")[1]
    assert run("show", llama.atlas.path, "L1.ff.3", "--json") == before  # JSON holds measurements
    assert run.json("label", llama.atlas.path)["labels"][0]["command"] == player.command
    assert list((cache / "labels").iterdir())
    assert "labels" in run("cache")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--with", "echo a"], "An address is needed"),
        (["L1.ff.3", "--with", "nowhere"], "there is no program nowhere"),
        (["L1.ff.3", "--with", "false"], "ended with code 1"),
        (["L99.ff.3", "--with", "echo a"], "out of range"),
        (["nonsense", "--with", "echo a"], "is not an address"),
        (["L1.ff.3", "--with", "echo a", "--choices", "1"], "choices"),
        (["L1.ff.3", "--device", "cuda"], "needs the weights"),
    ],
)
def test_mistakes_end_with_a_message(
    llama: small.Built, cache: Path, run: Run, arguments: list[str], message: str
) -> None:
    code, out, err = run("label", llama.atlas.path, *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert not (cache / "labels").exists()


def test_ctrl_c_ends_the_program_too(llama: small.Built, cache: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    watch = (
        "import os, signal, sys, threading, time\n"
        "def interrupt():\n"
        f"    while not (os.path.exists({str(pid)!r}) and open({str(pid)!r}).read()): time.sleep(.05)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "from zeropass.cli.main import main; main()\n"
    )
    line = [watch, "label", llama.atlas.path, "L1.ff.3.gate", "--frame", "token", "--with", python(code)]
    environment = ENVIRONMENT | {"ZEROPASS_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", *map(str, line)], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 130
    assert b"continues with the same command" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
