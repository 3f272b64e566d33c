"""The command line: its records, its messages, and the characters that it must never print."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from safetensors.torch import load_file, save_file

import small
import zeropass as zp
from commands import ENVIRONMENT, Run, shell
from zeropass.atlas import summary
from zeropass.cli.commands import COMMANDS, loaded
from zeropass.render.terminal import show_records
from zeropass.render.tour import print_tour

CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("gpt2", tmp_path_factory)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("hostile", tmp_path_factory)


# --- Records -------------------------------------------------------------------------------------------------


def check_tokens(tokens: list[Any], count: int, falling: bool) -> None:
    assert len(tokens) == count
    for token in tokens:
        assert list(token) == ["id", "token", "score", "z"]
        assert [type(value) for value in token.values()] == [int, str, float, float]
    zs = [token["z"] if falling else -token["z"] for token in tokens]
    assert zs == sorted(zs, reverse=True)


def check_vector(record: Any, count: int) -> None:
    keys = ["address", "role", "side", "frame", "norm", "top", "bottom"]
    assert list(record)[: len(keys)] == keys
    check_tokens(record["top"], count, falling=True)
    check_tokens(record["bottom"], count, falling=False)
    assert record["norm"] > 0


def check_map(record: Any, count: int) -> None:
    keys = ["address", "role", "offset", "frame", "pairs", "certificate"]
    assert list(record)[: len(keys)] == keys
    assert len(record["pairs"]) == count
    for pair in record["pairs"]:
        assert list(pair) == ["left", "right", "score"]
        assert list(pair["left"]) == list(pair["right"]) == ["id", "token"]
    scores = [pair["score"] for pair in record["pairs"]]
    assert scores == sorted(scores, reverse=True)
    assert list(record["certificate"]) == ["kth", "bound", "complete"]
    assert record["certificate"]["kth"] == pytest.approx(scores[-1])
    assert record["certificate"]["complete"] is True


@pytest.mark.parametrize("command", ["show", "explain"])
def test_vector_records_have_a_fixed_form(run: Run, llama: small.Built, command: str) -> None:
    where = llama.atlas.path if command == "show" else llama.folder
    records = run.json(command, where, "L1.ff.3", "-k", 7)
    of_default_frames = [
        r for r in records if r["frame"] != "paper"
    ]  # an atlas that was built with this frame shows it
    assert [(r["role"], r["frame"]) for r in of_default_frames] == [
        *(("gate", "token"), ("gate", "output"), ("up", "token"), ("up", "output"), ("value", "output")),
    ]
    assert {r["side"] for r in records if r["role"] == "value"} == {"write"}
    for record in records:
        check_vector(record, 7)
        assert record["address"] == "L1.ff.3"
    assert isinstance(run.json(command, where, "L1.ff.3.gate"), list)
    assert isinstance(run.json(command, where, "L1.ff.3", "--frame", "output"), list)
    single = run.json(command, where, "L1.ff.3.gate", "--frame", "output", "-k", 3)
    check_vector(single, 3)
    assert (single["role"], single["frame"], single["side"]) == ("gate", "output", "read")


@pytest.mark.parametrize("command", ["show", "explain"])
def test_map_records_have_a_fixed_form(run: Run, llama: small.Built, command: str) -> None:
    where = llama.atlas.path if command == "show" else llama.folder
    records = run.json(command, where, "L1.attn.3", "-k", 5)
    assert [(r["role"], r["frame"], r["offset"]) for r in records] == [("qk", "token", 16), ("vo", "token", 0)]
    for record in records:
        check_map(record, 5)
    single = run.json(command, where, "L1.attn.3.vo", "--frame", "token", "-k", 4)
    check_map(single, 4)
    if command == "explain":
        assert run.json(command, where, "L1.attn.3.qk", "--offset", 2)[0]["offset"] == 2


def test_find_records_have_a_fixed_form(run: Run, llama: small.Built) -> None:
    record = run.json("find", llama.atlas.path, "babade", " bafigo", "-k", 3)
    assert list(record)[:2] == ["query", "hits"]
    assert [list(token) for token in record["query"]] == [["id", "token"]] * 3
    assert [token["token"] for token in record["query"]] == [" babade", "babade", " bafigo"]
    for hit in record["hits"]:
        assert list(hit) == ["address", "side", "role", "frame", "score", "z", "above", "words", "says_little", "zs"]
        assert [list(token) for token in hit["words"]] == [["id", "token"]] * len(hit["words"])
        assert len(hit["words"]) <= 3
        assert (len(hit["zs"]), type(hit["says_little"])) == (2, bool)
    assert [list(word) for word in record["words"]] == [["text", "ids", "source", "against", "similar"]] * 2
    sizes = [abs(hit["z"]) for hit in record["hits"]]
    assert sizes == sorted(sizes, reverse=True)
    some = run.json("find", llama.atlas.path, "babade", "--side", "read", "--role", "gate", "--layers", "1:3")
    assert {hit["role"] for hit in some["hits"]} == {"gate"}
    assert {hit["address"][:2] for hit in some["hits"]} <= {"L1", "L2"}
    assert {h["address"][:3] for h in run.json("find", llama.atlas.path, "babade", "--layers", "2")["hits"]} == {"L2."}


def test_svd_records_have_a_fixed_form(run: Run, llama: small.Built) -> None:
    record = run.json("explain", llama.folder, "L1.attn.3.vo", "--svd", "-k", 3)
    assert len(record["directions"]) == 3
    assert 0 < sum(d["share"] for d in record["directions"]) <= 1 + 1e-6
    check_tokens(record["directions"][0]["left"], 10, falling=True)


def test_info_records_agree_for_model_and_atlas(run: Run, llama: small.Built) -> None:
    model, atlas = run.json("info", llama.folder), run.json("info", llama.atlas.path)
    assert (model["family"], model["layers"], model["d"]) == ("llama", small.LAYERS, small.D)
    assert model["fingerprint"] == atlas["weights_sha256"] != model["sha256"]
    assert model["sha256"] == atlas["sha256"] == hashlib.sha256(Path(model["files"][0]).read_bytes()).hexdigest()
    assert atlas["lists"] == llama.atlas.manifest["lists"]
    assert atlas["bytes"] > 0


def test_info_shows_the_full_hash_of_each_file(run: Run, llama: small.Built, tmp_path: Path) -> None:
    tensors, expected = load_file(llama.folder / "model.safetensors"), {}
    shutil.copytree(llama.folder, tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    for i in (0, 1):
        path = tmp_path / "shards" / f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in list(tensors)[i::2]}, path)
        expected[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run.json("info", tmp_path / "shards")["sha256"] == expected
    lines = [" ".join(line.split()) for line in run("info", tmp_path / "shards")[1].splitlines()]
    for name, sha256 in expected.items():
        assert any(line.endswith(f"{sha256} {name}") for line in lines), lines


def test_text_output_has_the_expected_words(run: Run, llama: small.Built) -> None:
    for arguments, parts in (
        (("show", llama.atlas.path, "L1.ff.3"), ("sees", "is about to say", "writes", "are hidden", "+ ", "− ")),
        (("show", llama.atlas.path, "L1.attn.3"), ("as query attends to", "promotes", " → ", "exact")),
        (("explain", llama.folder, "L1.attn.3.qk"), ("query 16 after key", "exact")),
        (("explain", llama.folder, "L1.attn.3.vo", "--svd"), ("singular directions", "of the map")),
        (("find", llama.atlas.path, "babade"), ("tokens used", "sees", "is about to say", "writes", "other frames")),
        (("info", llama.folder), ("llama", "sha256", "fingerprint")),
        (("info", llama.atlas.path), ("fingerprint", "sha256", "lists")),
        (("tour", llama.atlas.path), ("telling neurons", "Heads", "Next")),
    ):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        for part in parts:
            assert part in out, (arguments, part)
        assert not CONTROLS.search(out)


def test_a_tour_works_on_an_atlas_of_few_roles(run: Run, llama: small.Built, tmp_path: Path) -> None:
    for name, roles in (("neurons", "gate"), ("maps", "vo"), ("writes", "value")):
        line = ("build", llama.folder, "--out", tmp_path / name, "--k", 5, "--pairs", 5, "--layers", "1:2")
        assert run(*line, "--roles", roles)[0] == 0
        code, out, err = run("tour", tmp_path / name)
        assert (code, err) == (0, "")
        assert "Next" in out


def test_ov_is_accepted_where_vo_is(run: Run, llama: small.Built) -> None:
    for verb, what in (("explain", llama.folder), ("show", llama.atlas.path)):
        assert run.json(verb, what, "L1.attn.3.ov") == run.json(verb, what, "L1.attn.3.vo")
    by_name = [run.json("explain", llama.folder, f"L1.attn.3.{name}", "--svd", "-k", 3) for name in ("ov", "vo")]
    assert by_name[0] == by_name[1]
    assert zp.Options(roles=("gate", "ov")) == zp.Options(roles=("gate", "vo"))
    assert llama.atlas.head_maps(1, "ov") == llama.atlas.head_maps(1, "vo") != []
    maps = [llama.lens.frames.head_map(1, 3, name) for name in ("ov", "vo")]
    assert torch.equal(maps[0].left, maps[1].left)
    assert torch.equal(maps[0].right, maps[1].right)


def test_a_map_may_store_fewer_pairs_than_the_default(run: Run, llama: small.Built, tmp_path: Path) -> None:
    line = ("build", llama.folder, "--out", tmp_path / "a", "--k", 5, "--pairs", 5, "--layers", "1:2", "--roles", "vo")
    code, out, err = run(*line)
    assert code == 0
    assert "complete" in out
    check_map(run.json("show", tmp_path / "a", "L1.attn.0.vo")[0], 5)
    code, out, err = run("show", tmp_path / "a", "L1.attn.0.vo", "-k", 6)
    assert code == 2
    assert "best 5 pairs" in err
    code, out, err = run(*line)
    assert code == 0
    assert "reused" in out


# --- Mistakes ------------------------------------------------------------------------------------------------


def mistakes() -> list[tuple[str, str]]:
    """Return command lines with their messages; A is the atlas, M the model, G a GPT-2."""
    return [
        ("explain nowhere L0.ff.1", "no file or folder"),
        ("explain ./nowhere.gguf L0.ff.1", "no file or folder"),
        ("info nowhere", "no file or folder"),
        ("build nowhere --out nothing", "no file or folder"),
        ("show nowhere L0.ff.1", "zeropass build"),
        ("find nowhere word", "zeropass build"),
        ("tour nowhere", "zeropass build"),
        ("show A nonsense", "not an address"),
        ("explain M nonsense", "not an address"),
        ("show A L1.attn.0.q", "whole matrix"),
        ("show A L9.ff.1", "layers 0 to 2"),
        ("explain M L9.ff.1", "layers 0 to 2"),
        ("show A L0.ff.99", "0 to 47"),
        ("explain M L0.ff.99", "0 to 47"),
        ("show A L0.attn.9", "0 to 3"),
        ("explain M L0.attn.9", "0 to 3"),
        ("explain M L0.attn.1.v.8", "0 to 7"),
        ("explain M L0.ff.1.key", "gate, up, value"),
        ("show A L9", "layers 0 to 2"),
        ("show A L9.attn", "layers 0 to 2"),
        ("show M L1", "which an atlas shows"),
        ("show A L1 L1.ff.2", "which is shown alone"),
        ("show A", "An address is needed"),
        ("show SmolLM2-135M L1.ff.2", "did you mean smollm2-135m?"),
        ("find A Babade", "split as"),
        ("find A", "at least one word"),
        ("find A babade --layers x", "--layers"),
        ("find A babade --layers 1:", "--layers"),
        ("find A babade --layers -1:2", "--layers"),
        ("find A babade --layers 5:9", "0:3"),
        ("find A babade --side up", "read, write"),
        ("find A babade --role nose", "--role"),
        ("build M --out nothing --layers 2:9", "layers 0 to 2"),
        ("build M --out nothing --layers 1:٣", "--layers"),
        ("build M --out nothing --roles nose", "gate, up, value"),
        ("build M --out nothing --frame nose", "seen, token, distinctive, effect, output, paper"),
        ("build M --out nothing --frame ,", "frame"),
        ("build M --out nothing --k 0", "--k is 0"),
        ("build M --out nothing --pairs -4", "--pairs is -4"),
        ("build M --out nothing --memory lots", "--memory 'lots' is not a size; it looks like 4GB"),
        ("build M --out nothing --memory 1MB", "MB at least"),
        ("build M --out nothing --memory 4GB --engine ray", "--memory is for builds in one process"),
        ("show A L0.ff.1 --frame nose", "seen, token, distinctive, effect, output, paper"),
        ("explain M L0.ff.1 --frame nose", "seen, token, distinctive, effect, output, paper"),
        ("show A L0.ff.1.value --frame token", "no token list"),
        ("explain M L0.ff.1.value --frame token", "token frame"),
        ("explain M L0.attn.1.vo --offset 3", "offset"),
        ("explain M L0.attn.1.q.2 --offset 3", "offset"),
        ("explain M L0.ff.1 --offset 3", "offset"),
        ("explain M L0.ff.1 --svd", "head map"),
        ("explain M L0.attn.1 --svd", "head map"),
        ("explain M L0.attn.1.vo --svd --offset 2", "vo does not depend"),
        ("explain G L0.attn.1.qk --offset 1", "rotary"),
        ("show A L0.attn.1.vo -k 1000", "best 30 pairs"),
        ("show A L0.attn.1.vo --tokens words", "zeropass show MODEL"),
    ]


@pytest.mark.parametrize(("line", "message"), mistakes())
def test_a_mistake_is_one_message_and_code_2(
    run: Run, llama: small.Built, gpt2: small.Built, tmp_path: Path, line: str, message: str
) -> None:
    places = {"A": llama.atlas.path, "M": llama.folder, "G": gpt2.folder, "nothing": tmp_path / "nothing"}
    code, out, err = run(*(places.get(word, word) for word in line.split()))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "line",
    [
        "show A L0.ff.1 -k 0",
        "show A L0.ff.1 -k -3",
        "explain M L0.ff.1 -k -3",
        "find A babade -k x",
        "show A L0.ff.1 --tokens some",
        "build M --out nothing --tokens some",
        "build M",
        "match M",
        "nonsense",
        "show A L0.ff.1 --nonsense",
    ],
)
def test_a_line_that_does_not_parse_gives_a_usage_message(run: Run, llama: small.Built, line: str) -> None:
    code, out, err = run(*({"A": llama.atlas.path, "M": llama.folder}.get(word, word) for word in line.split()))
    assert code == 2
    assert out == ""
    assert "Usage" in err
    assert "Traceback" not in err


# --- Hostile tokens ------------------------------------------------------------------------------------------


def test_no_hostile_token_reaches_the_terminal_unescaped(run: Run, hostile: small.Built) -> None:
    vocab = hostile.lens.model.vocab
    ids = [i for i in range(vocab.size) if vocab.pieces[i] in small.HOSTILE]
    assert len(ids) == len(small.HOSTILE)
    output = ""
    for place in (hostile.atlas.path, hostile.folder):
        command = "show" if place == hostile.atlas.path else "explain"
        code, out, err = run(command, place, "L0.ff.1", "--tokens", "all", "-k", 600)
        assert (code, err) == (0, "")
        output += out
    _, out, _ = run("explain", hostile.folder, "L0.attn.1", "--tokens", "all", "-k", 2000)
    output += out + run("explain", hostile.folder, "L0.attn.1.vo", "--svd", "--tokens", "all")[1]
    output += run("tour", hostile.atlas.path)[1]
    for text in small.HOSTILE:
        code, out, err = run("find", hostile.atlas.path, text.replace("\x00", "") or "x")
        output += out + err
    assert not CONTROLS.search(output)
    flat = re.sub(r"\s+", "", output)
    assert "[boldred]loud[/]" in flat
    assert r"\x1b[31mred" in flat
    assert "x" * 41 not in output


def test_json_holds_every_token_unchanged(run: Run, hostile: small.Built) -> None:
    code, out, _ = run("show", hostile.atlas.path, "L0.ff.1", "--tokens", "all", "-k", 600, "--json")
    assert code == 0
    assert out.isascii()
    assert not CONTROLS.search(out)
    tokens = {token["token"] for token in json.loads(out)[0]["top"]}
    assert set(small.HOSTILE) <= tokens


def test_a_hostile_manifest_is_shown_escaped(run: Run, hostile: small.Built, tmp_path: Path) -> None:
    """Control sequences in the names of a manifest are shown, not obeyed."""
    manifest = hostile.atlas.manifest | {
        "model": hostile.atlas.model | {"name": "\x1b[31m[bold red]x[/]", "family": "[/]\x1b]0;t\x07"}
    }
    for name in hostile.atlas.path.iterdir():
        (tmp_path / name.name).symlink_to(name)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for command in ("tour", "info"):
        code, out, err = run(command, tmp_path)
        assert (code, err) == (0, "")
        assert not CONTROLS.search(out)
        assert "[/]" in out


def test_hostile_arguments_are_shown_escaped(run: Run, llama: small.Built) -> None:
    for line in (
        ("show", llama.atlas.path, "\x1b[31mL0"),
        ("find", llama.atlas.path, "\x1b[31m\u202eq"),
        ("show", "\x1b[31m/nowhere", "L0.ff.1"),
        ("find", llama.atlas.path, "x", "--role", "\x1b[31m"),
        ("explain", "\x1b[31m", "L0.ff.1"),
    ):
        code, out, err = run(*line)
        assert code == 2
        assert not CONTROLS.search(out + err)


# --- From the shell ------------------------------------------------------------------------------------------


def test_reading_an_atlas_loads_nothing_slow(llama: small.Built) -> None:
    code = (
        "import sys; from zeropass.cli import main as cli\n"
        "for line in LINES:\n"
        "    sys.argv = ['zeropass', *line]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "    slow = {'torch', 'pyarrow', 'pandas'} & set(sys.modules)\n"
        "    assert not slow, (line, slow)\n"
    )
    where = str(llama.atlas.path)
    lines = [["--help"], ["show", "--help"], ["show", where, "L1.ff.3"], ["show", where, "L1.attn.3", "--json"]]
    lines += [["find", where, "babade"], ["find", where, " bafigo", "--json"], ["info", where], ["tour", where]]
    lines += [["families"], ["families", "--json"]]
    done = subprocess.run(
        [sys.executable, "-c", f"LINES = {lines!r}\n{code}"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Usage" in done.stdout


def test_the_shell_gets_the_message_and_the_exit_code(llama: small.Built) -> None:
    for line in (("show", llama.atlas.path, "nonsense"), ("find", llama.atlas.path, "Babade")):
        done = shell(*line)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


def test_a_closed_pipe_is_not_an_error(llama: small.Built) -> None:
    read, write = os.pipe()
    os.close(read)
    done = shell("find", llama.atlas.path, "babade", stdout=write, stderr=subprocess.PIPE, capture_output=False)
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_an_ascii_terminal_gets_escapes(llama: small.Built) -> None:
    done = shell("show", llama.atlas.path, "L1.attn.3", env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u2192" in done.stdout


def test_help_names_every_command() -> None:
    done = shell("--help")
    assert done.returncode == 0
    for command in ("build", "show", "explain", "find", "info", "families", "tour"):
        assert command in done.stdout
    assert shell().returncode == 2


def test_show_and_explain_both_read_atlases_and_models(llama: small.Built, run: Run) -> None:
    for what in (llama.atlas.path, llama.folder):
        assert run("show", what, "L1.ff.3") == run("explain", what, "L1.ff.3")
    assert [record["role"] for record in run.json("show", llama.folder, "L1.attn.2.vo")] == ["vo"]
    for option in (["--svd"], ["--offset", "3"], ["--device", "cuda"], ["--adapter", "x"]):
        code, out, err = run("show", llama.atlas.path, "L1.attn.2.qk", *option)
        assert (code, out) == (2, "")
        assert f"{option[0]} needs the weights, and {llama.atlas.path} is an atlas" in err.replace("\n", " ")


def test_several_addresses_are_shown_after_one_another_or_beside_each_other(run: Run, llama: small.Built) -> None:
    atlas = llama.atlas.path
    code, out, _ = run("show", atlas, "l1.FF.3.gate", "L0.attn.1")
    assert code == 0
    assert out.index("L1.ff.3 gate") < out.index("L0.attn.1 qk")
    assert out.count("are hidden") <= 1
    each = [run.json("show", atlas, address) for address in ("L1.ff.3.gate", "L0.attn.1")]
    assert run.json("show", atlas, "l1.FF.3.gate", "L0.attn.1") == each[0] + each[1]
    records = [llama.atlas.explain(address) for address in ("L1.ff.3", "L1.ff.4")]
    for width, beside in ((60, False), (130, True)):
        console = Console(width=width, record=True, force_terminal=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
        with console.file:
            show_records(console, records, 3)
        first = console.export_text().splitlines()[0]
        assert ("L1.ff.3" in first, "L1.ff.4" in first) == (True, beside)


def test_an_atlas_shows_a_layer(run: Run, llama: small.Built) -> None:
    atlas = llama.atlas.path
    code, out, _ = run("show", atlas, "l1", "-k", 3)
    assert code == 0
    assert "most telling neurons of layer 1, 3 of" in out
    assert [line.split()[0] for line in out.splitlines() if "L1.attn." in line] == [
        f"L1.attn.{head}" for head in range(llama.lens.model.dims.heads)
    ]
    neurons, heads = (run("show", atlas, f"L1.{part}")[1] for part in ("ff", "attn"))
    assert ("heads of" in neurons, "neurons" in heads) == (False, False)
    value = run.json("show", atlas, "L1", "-k", 2)
    telling = [row["address"] for row in value["neurons"]["rows"]]
    assert telling == [row.address for row in summary.telling(llama.atlas, 1, count=2).rows]
    assert {record["address"] for record in value["heads"]} == {
        f"L1.attn.{n}" for n in range(llama.lens.model.dims.heads)
    }


def test_version_and_help_have_several_spellings() -> None:
    version = f"zeropass {zp.__version__}\n"
    assert (shell("--version").stdout, shell("--version", "show").stdout) == (version, version)
    module = subprocess.run([sys.executable, "-m", "zeropass", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == version
    assert shell("-h").stdout == shell("--help").stdout
    assert shell("show", "-h").stdout == shell("show", "--help").stdout


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("build", "ray"),
        ("stitch", "run"),
        ("classify", "run"),
        ("serve", "web"),
        ("export", "web"),
        ("mcp", "mcp"),
    ],
)
def test_help_names_the_extra_that_is_needed(command: str, extra: str) -> None:
    assert f"zeropass[{extra}]" in " ".join(shell(command, "--help").stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_commands_says_of_each_what_its_own_help_says(name: str) -> None:
    assert COMMANDS[name][1] == loaded(name).help.split("\n\n")[0].replace("\n", " ")


def test_every_command_of_a_module_is_listed() -> None:
    modules = {module for module, _ in COMMANDS.values()}
    apps = [typer.main.get_group(import_module(f"zeropass.cli.{module}").app) for module in sorted(modules)]
    assert sorted(name for app in apps for name in app.commands) == sorted(COMMANDS)


def test_the_help_loads_no_library_but_its_own() -> None:
    code = (
        "import sys; from zeropass.cli.main import main; sys.argv = ['zeropass', '--help']\n"
        "try: main()\n"
        "except SystemExit: print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert not {"numpy", "pydantic", "rich", "duckdb", "pyarrow", "torch"} & {*done.stdout.splitlines()[-1].split()}


def test_the_tour_fits_in_a_narrow_console(llama: small.Built) -> None:
    console = Console(width=60, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with console.file:
        print_tour(console, llama.atlas)
    assert all(len(line) <= 60 or "zeropass" in line for line in console.export_text().splitlines())


def test_a_script_that_keeps_an_atlas_exits_quietly(llama: small.Built) -> None:
    code = f"import zeropass as zp; atlas = zp.open_atlas({str(llama.atlas.path)!r}); atlas.find('babade')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
