"""The server for language models, asked by the client of the official SDK over stdio."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import mcp
import pytest
from mcp.client.stdio import stdio_client

import zeropass as zp
from commands import ENVIRONMENT, Run
from zeropass.atlas.neighbours import neighbours_of
from zeropass.atlas.summary import telling
from zeropass.errors import BadOption
from zeropass.mcp.server import application
from zeropass.mcp.tools import Tools

MODELS = Path(__file__).parents[2] / "models"
FIRST, SECOND, REVIEWS = (str(MODELS / name) for name in ("first", "second", "tunes/reviews"))
DICTIONARY = str(MODELS / "dictionary")
FOR_ALL = ["info", "show", "pairs", "singular_directions", "direction"]
"""The tools that need no more than an atlas or a model."""

HANDSHAKE = {
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
}

Call = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def no_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give servers and commands an empty cache: no lens and no verdict is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROPASS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("atlas")
    zp.build(FIRST, folder, zp.Options(k=20, pairs=30, layers=(1, 3)))
    return str(folder)


class Answers:
    """The answers of a server to a client: its instructions, its tools, its results and its stderr."""

    def __init__(self, arguments: Sequence[str], calls: Sequence[Call], log: Path) -> None:
        environment = ENVIRONMENT | {"ZEROPASS_CACHE": os.environ["ZEROPASS_CACHE"]}
        server = mcp.StdioServerParameters(
            command=sys.executable, args=["-m", "zeropass", "mcp", *arguments], env=environment
        )
        self.progress: list[tuple[float, float | None, str | None]] = []
        with log.open("w") as errors:
            anyio.run(self._ask, mcp.Client(stdio_client(server, errlog=errors)), calls)
        self.errors = log.read_text()

    async def _ask(self, connection: mcp.Client, calls: Sequence[Call]) -> None:
        async with connection as client:
            self.instructions = client.instructions or ""
            self.tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            self.results = [
                await client.call_tool(name, arguments, progress_callback=self._note) for name, arguments in calls
            ]

    async def _note(self, progress: float, total: float | None, message: str | None) -> None:
        self.progress.append((progress, total, message))

    @property
    def texts(self) -> list[str]:
        return [content.text for result in self.results for content in result.content if content.type == "text"]

    @property
    def values(self) -> list[Any]:
        assert not any(result.is_error for result in self.results), self.texts
        return [json.loads(text) for text in self.texts]


def test_an_atlas_answers_as_the_commands_do(atlas: str, run: Run, tmp_path: Path) -> None:
    calls: list[tuple[str, dict[str, Any], list[object]]] = [
        ("info", {}, ["info", atlas]),
        ("show", {"address": "L1.ff.3"}, ["show", atlas, "L1.ff.3", "-k", 12]),
        ("show", {"address": "L2.attn.1", "k": 3}, ["show", atlas, "L2.attn.1", "-k", 3]),
        (
            "show",
            {"address": "L1.ff.3.gate", "tokens": "words", "k": 30},
            ["show", atlas, "L1.ff.3.gate", "--tokens", "words", "-k", 30],
        ),
        ("find", {"words": ["the"]}, ["find", atlas, "the"]),
        (
            "find",
            {"words": ["the", "of"], "side": "read", "role": "gate", "layers": "1:2", "k": 3},
            ["find", atlas, "the", "of", "--side", "read", "--role", "gate", "--layers", "1:2", "-k", 3],
        ),
        (
            "find",
            {"words": ["the"], "without": ["of"], "like": ["an*"], "k": 2},
            ["find", atlas, "the", "--not", "of", "--like", "an*", "-k", 2],
        ),
    ]
    answers = Answers([atlas], [(name, arguments) for name, arguments, _ in calls], tmp_path / "log")
    for value, (_, _, command) in zip(answers.values, calls, strict=True):
        assert value == run.json(*command)
    assert list(answers.tools) == [*FOR_ALL, "find", "layer", "neighbours"]
    assert answers.errors == ""
    assert "L26.ff.1189" in answers.instructions


def test_what_no_command_prints_is_the_json_of_the_library(atlas: str, tmp_path: Path) -> None:
    offset = {"address": "L1.attn.2.qk", "offset": 1, "k": 4}
    paired = {"address": "L2.attn.1.ov", "left": "the", "k": 5}
    calls = [
        ("layer", {"layer": 1, "first": 2, "k": 3}),
        ("neighbours", {"address": "L1.ff.3", "k": 4}),
        ("show", offset),
        ("pairs", paired),
    ]
    answers = Answers([atlas, "--model", FIRST], calls, tmp_path / "log")
    opened = zp.open_atlas(atlas)
    lens = zp.lens_of(opened, FIRST)
    layer, neighbours, shown, pairs = answers.values
    assert layer == _plain(telling(opened, 1, 2, 3))
    assert neighbours == _plain(neighbours_of(opened, "L1.ff.3", 4))
    assert shown == _plain(lens.explain("L1.attn.2.qk", k=4, offset=1))
    assert (shown[0]["offset"], pairs["role"], pairs["offset"]) == (1, "vo", 0)
    # The slow way: every pair of shown tokens whose left token is the word, with or without a space before it.
    left, ids = lens.model.vocab.find("the"), lens.view("default").ids
    product = lens.head_map("L2.attn.1.vo")
    scores = product.left[left] @ product.right[ids].T
    assert [pair["score"] for pair in pairs["pairs"]] == pytest.approx(
        scores.flatten().sort(descending=True).values[:5].tolist()
    )
    assert {pair["left"]["id"] for pair in pairs["pairs"]} <= set(left)


def _plain(record: Any) -> Any:
    """Return a record as a client gets it."""
    return json.loads(json.dumps(record.to_json()))


def test_a_model_is_read_and_compared_as_the_commands_do(run: Run, tmp_path: Path) -> None:
    calls: list[Call] = [
        ("info", {}),
        ("show", {"address": "L2.ff.3", "k": 2}),
        ("match", {"address": "L2.ff.3", "k": 2}),
        ("diff", {}),
        ("changed_matrix", {"layer": 3, "role": "q"}),
        ("show_second", {"address": "L2.ff.3.gate", "frame": "token", "tokens": "words", "k": 3}),
    ]
    answers = Answers([FIRST, "--adapter", REVIEWS, "--second", SECOND], calls, tmp_path / "log")
    info, shown, matches, changes, matrix, of_second = answers.values
    expected = run.json("diff", FIRST, "--adapter", REVIEWS)
    del expected["made"]["command"], expected["sees_others"], expected["writes_others"]
    adapted = zp.adapt(zp.open_model(FIRST), REVIEWS)
    assert info["fingerprint"] == adapted.fingerprint
    assert shown == run.json("show", FIRST, "L2.ff.3", "-k", 2, "--adapter", REVIEWS)
    words = matches.pop("words")
    assert matches == _plain(zp.match(zp.pair_of(adapted, SECOND), "L2.ff.3", 2))
    assert list(words["matches"]) == [match["address"] for match in matches["matches"]]
    printed = " ".join(run("match", FIRST, "L2.ff.3", SECOND, "-k", 40)[1].split())
    best = words["matches"][matches["matches"][0]["address"]]
    assert list(best) == list(words["query"]) == ["gate sees", "value writes"]
    assert best["gate sees"].split()[0] in printed
    options = ("--frame", "token", "--tokens", "words", "-k", 3)
    assert of_second == [run.json("show", SECOND, "L2.ff.3.gate", *options)]
    assert matrix == next(m for m in expected["matrices"] if (m["layer"], m["role"]) == (3, "q"))
    for change in expected["matrices"]:
        del change["directions"]
    for change in (*expected["neurons"], *expected["heads"], *expected["outside"]):
        del change["before"], change["after"]
    assert changes == expected
    assert len(answers.texts[3]) < 20_000
    expected_tools = ["match", "show_second", "diff", "changed_matrix", "changed_parameter"]
    assert list(answers.tools) == [*FOR_ALL, *expected_tools]
    assert answers.errors == ""
    steps = [progress for progress, _, _ in answers.progress]
    assert steps == sorted(set(steps))
    assert answers.progress[-1] == (4, 5, "summing up")


def test_a_model_is_compared_with_its_base(tmp_path: Path) -> None:
    calls = [("diff", {}), ("changed_parameter", {"address": "L3.ff.7"})]
    answers = Answers([SECOND, "--base", FIRST], calls, tmp_path / "log")
    assert json.loads(answers.texts[0])["relation"] == "unrelated"
    assert (answers.results[1].is_error, "not among the parameters" in answers.texts[1]) == (True, True)


def test_directions_and_features_are_those_of_the_library(atlas: str, run: Run, tmp_path: Path) -> None:
    calls: list[Call] = [
        ("singular_directions", {"address": "L2.attn.1.vo", "k": 3, "tokens": "words"}),
        ("direction", {"words": [" he"], "without": [" she"], "layer": 2, "k": 3}),
        ("direction", {"words": [" he", "she"], "layer": 4, "side": "write", "frame": "output", "k": 2}),
        ("features", {"layer": 2, "first": 1, "k": 2}),
        ("feature", {"address": "L2.sae.17.encoder", "k": 3}),
    ]
    answers = Answers([atlas, "--model", FIRST, "--features", DICTIONARY], calls, tmp_path / "log")
    singular, contrast, concept, features, feature = answers.values
    lens = zp.lens_of(zp.open_atlas(atlas), FIRST)
    assert singular == _plain(lens.svd("L2.attn.1.vo", k=3, tokens="words"))
    rows = lens.frames.rows("token").matrix
    he, she = (lens.model.vocab.find(word)[0] for word in (" he", " she"))
    _check_alike(contrast, lens.direction(rows[he] - rows[she], layer=2, k=3))
    tokens = [lens.model.vocab.find(word) for word in (" he", "she")]
    mean = sum(rows[ids].mean(0) for ids in tokens) / 2 - rows[lens.frames.used].mean(0)
    _check_alike(concept, lens.direction(mean, layer=4, side="write", frame="output", k=2))
    strongest = lens.features(DICTIONARY, layer=2).strongest(3)
    assert features == [entry for records in strongest[1:3] for entry in _plain(records)]
    assert feature == run.json("show", FIRST, "L2.sae.17.encoder", "--features", DICTIONARY, "-k", 3)
    assert [*answers.tools][-2:] == ["features", "feature"]
    assert answers.errors == ""


def _check_alike(answer: Any, records: Any) -> None:
    """Check records that were computed in another way, so that their numbers are rounded otherwise."""
    for value, record in zip(answer, _plain(records), strict=True):
        assert [value[name] for name in ("address", "side", "frame")] == [
            record[name] for name in ("address", "side", "frame")
        ]
        for pole in ("top", "bottom"):
            assert [token["token"] for token in value[pole]] == [token["token"] for token in record[pole]]
            assert [token["z"] for token in value[pole]] == pytest.approx(
                [token["z"] for token in record[pole]], abs=1e-3
            )


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("show", {}, "show does not take these arguments: address: Field required."),
    ("show", {"address": "L1.ff.3", "path": "/etc/passwd"}, "path: Extra inputs are not permitted"),
    ("show", {"address": "L1.ff.3", "frame": "sideways"}, "frame: Input should be 'seen', 'token'"),
    ("show", {"address": "L1.ff.3", "k": "many"}, "k: Input should be a valid integer"),
    ("show", {"address": "L1.ff.3", "k": 0}, "must be at least 1"),
    ("show", {"address": "L1.ff.3", "k": 10**9}, "at most 200"),
    ("show", {"address": "L99.ff.3"}, "layer 99 is out of range"),
    ("show", {"address": "/etc/passwd"}, "'/etc/passwd' is not an address"),
    ("show", {"address": "\x1b[31m"}, "is not an address"),
    ("show", {"address": "L1.ff.3", "frame": "paper"}, "has no paper list"),
    ("pairs", {"address": "L1.ff.3", "left": "the"}, "is not a head map"),
    ("pairs", {"address": "L1.attn.0.vo"}, "a filter needs a token"),
    ("pairs", {"address": "L1.attn.0.vo", "left": "the", "offset": 3}, "changes qk only"),
    ("find", {"words": [], "like": ["qwertyuiop*"]}, "matches no token that lists show"),
    ("find", {"words": ["the"], "without": ["the"]}, "is looked for and counts against"),
    ("find", {"words": []}, "at least one word"),
    ("find", {"words": "the"}, "words: Input should be a valid list"),
    ("find", {"words": ["the"], "layers": "last"}, "looks like 4:8"),
    ("find", {"words": ["the"], "role": "../../x"}, "is not one of"),
    ("layer", {"layer": 0}, "Layer 0 is out of range"),
    ("layer", {"layer": 1, "first": -1}, "at least 0"),
    ("neighbours", {"address": "L1.attn.0.vo"}, "is a head map"),
    ("diff", {}, "There is no tool 'diff'; tools are info, show"),
    ("singular_directions", {"address": "L1.ff.3"}, "singular directions are those of a head map"),
    ("singular_directions", {"address": "L1.attn.0.vo", "k": 0}, "must be at least 1"),
    ("direction", {"words": [], "layer": 2}, "at least one word"),
    ("direction", {"words": ["the"], "without": ["the"], "layer": 2}, "which leaves nothing"),
    ("direction", {"words": ["the"], "layer": 99}, "Layer 99 is out of range"),
    ("direction", {"words": ["the"], "layer": -1}, "Layer -1 is out of range"),
    ("direction", {"words": ["the"], "layer": 2, "side": "both"}, "side: Input should be 'read' or 'write'"),
    ("direction", {"words": ["the"], "layer": 2, "vector": "/etc/passwd"}, "vector: Extra inputs"),
    ("direction", {"words": ["\u6211\u4eec\x00"], "layer": 2}, "is not"),
    ("feature", {"address": "L1.ff.3"}, "a feature looks like L12.sae.4051"),
    ("feature", {"address": "L2.sae.512"}, "features 0 to 511"),
    ("feature", {"address": "../models"}, "is not an address"),
    ("features", {"layer": 3}, "no features of layer 3"),
    ("features", {"layer": 2, "first": -1}, "at least 0"),
]


def test_nonsense_is_refused_with_our_messages(atlas: str, tmp_path: Path) -> None:
    calls = [(name, arguments) for name, arguments, _ in MISTAKES]
    arguments = [atlas, "--model", FIRST, "--features", DICTIONARY]
    answers = Answers(arguments, [*calls, ("show", {"address": "L1.ff.3"})], tmp_path / "log")
    for result, text, mistake in zip(answers.results, answers.texts, MISTAKES, strict=False):
        assert result.is_error, mistake
        assert mistake[2] in text, text
        assert "Traceback" not in text
        assert text.isprintable()
    assert not answers.results[-1].is_error
    assert answers.errors == ""


def every_tool() -> Tools:
    """Return tools that offer everything."""
    model = zp.open_model(FIRST)
    dictionary = zp.open_dictionary(model, DICTIONARY)
    return Tools(lambda: zp.Lens(model), atlas=zp.Atlas(Path(), {}), second=model, base=model, dictionary=dictionary)


def test_no_tool_takes_a_path_or_says_that_it_writes() -> None:
    tools = _in_memory(every_tool(), None)
    arguments = {name for tool in tools for name in tool.input_schema["properties"]}
    assert arguments == {
        *("address", "first", "frame", "k", "layer", "layers", "left", "like", "offset", "right", "role", "side"),
        *("tokens", "without", "words"),
    }
    for tool in tools:
        assert tool.annotations.read_only_hint
        assert tool.input_schema["additionalProperties"] is False
        assert all(f"{name}:" in tool.description for name in tool.input_schema["properties"])


def test_the_page_lists_the_tools_and_its_configuration_works(atlas: str, tmp_path: Path) -> None:
    page = (MODELS.parent / "docs" / "mcp.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == [tool.name for tool in _in_memory(every_tool(), None)]
    (configuration,) = re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)
    (server,) = json.loads(configuration)["mcpServers"].values()
    assert Path(server["command"]).name == "zeropass"
    command, *arguments = [atlas if "demo" in argument else argument for argument in server["args"]]
    assert (command, Answers(arguments, [("info", {})], tmp_path / "log").values[0]["atlas"]) == ("mcp", atlas)


def _in_memory(tools: Tools, name: str | None) -> Any:
    """Return the tools that a server in this process lists, or the result of calling one."""

    async def ask() -> Any:
        async with mcp.Client(application(tools)) as client:
            return (await client.list_tools()).tools if name is None else await client.call_tool(name, {})

    return anyio.run(ask)


def test_what_nobody_foresaw_is_told_to_the_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> zp.Lens:
        raise RuntimeError("secret")

    result = _in_memory(Tools(fail), "info")
    assert (result.is_error, "secret" in result.content[0].text) == (True, False)
    assert "RuntimeError: secret" in capsys.readouterr().err


def test_text_that_cannot_be_sent_is_escaped(tmp_path: Path) -> None:
    opened = zp.Atlas(Path(os.fsdecode(b"\xff")), {})
    result = _in_memory(Tools(lambda: zp.load(FIRST), atlas=opened), "info")
    assert json.loads(result.content[0].text)["atlas"] == os.fsdecode(b"\xff")


def test_tools_that_need_more_say_what() -> None:
    tools = Tools(lambda: zp.load(FIRST))
    for call, advice in (
        (lambda: tools.find(["the"]), "zeropass build"),
        (lambda: tools.match("L1.ff.3"), "--second MODEL"),
        (tools.diff, "--base MODEL"),
        (lambda: tools.show_second("L1.ff.3"), "--second MODEL"),
        (lambda: tools.feature("L2.sae.1"), "--features PLACE"),
        (lambda: tools.features(2), "--features PLACE"),
    ):
        with pytest.raises(BadOption, match=advice):
            call()


def _server(*arguments: str) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "zeropass", "mcp", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, env=ENVIRONMENT, text=True, **pipes)


def _send(server: "subprocess.Popen[str]", **message: Any) -> None:
    server.stdin.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
    server.stdin.flush()


@pytest.mark.parametrize("interrupted", [True, False])
def test_it_ends_when_it_is_interrupted_or_its_client_leaves(atlas: str, interrupted: bool) -> None:
    with _server(atlas) as server:
        _send(server, id=1, **HANDSHAKE)
        assert json.loads(server.stdout.readline())["result"]["serverInfo"]["name"] == "zeropass"
        if interrupted:
            server.send_signal(signal.SIGINT)
        else:
            server.stdin.write("nonsense\n")  # is left out
            _send(server, id=2, method="ping")
            server.stdin.close()
        assert server.wait(20) == (-signal.SIGINT if interrupted else 0)
        lines = [json.loads(line) for line in server.stdout]
        assert [line["id"] for line in lines if "result" in line] == ([] if interrupted else [2])
        assert server.stderr.read() == ""


def test_an_extra_that_is_missing_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['mcp'] = None\n"
        "sys.argv = ['zeropass', 'mcp', 'nowhere']\n"
        "from zeropass.cli import main as cli\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'zeropass[mcp]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([FIRST, "--model", FIRST], "--model is for an atlas"),
        ([FIRST, "--base", SECOND, "--adapter", REVIEWS], "exclude each other"),
        ([FIRST, "--adapter", REVIEWS, "--weight", "1", "--weight", "2"], "each adapter has one weight"),
        (["ATLAS", "--adapter", REVIEWS], "zeropass mcp "),
        (["nowhere"], "nowhere"),
        ([FIRST, "--base", "nowhere"], "nowhere"),
        ([FIRST, "--features", "nowhere"], "nowhere"),
        ([FIRST, "--hook", "blocks.2.hook_resid_pre"], "--hook is about --features"),
        ([SECOND, "--features", FIRST], "first"),
    ],
)
def test_a_server_that_cannot_start_says_why(atlas: str, run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run("mcp", *(atlas if argument == "ATLAS" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
