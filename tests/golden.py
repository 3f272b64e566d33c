"""Hash what zeropass writes and prints for a few small models, to check that a refactoring changes nothing.

    python tests/golden.py            compare with tests/golden.json; exit code 1 if anything differs
    python tests/golden.py --record   write tests/golden.json
    python tests/golden.py --form     compare only the form, as `make test` does
    python tests/golden.py --keep DIR leave everything that was hashed in a folder, to compare two commits with diff -r

Every item has two hashes. The form must be the same on any machine: names of files, keys, words and markup with all
numbers replaced; for a table, its columns, types and number of rows. The whole covers every byte and is compared only
on the machine that recorded it, since processors round differently.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

if __name__ == "__main__":  # set before the imports that read it, and only when run as a script
    os.environ |= {"COLUMNS": "100", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}

import numpy as np
import pyarrow.parquet as pq
import torch
import typer

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import machine
import small
from tiny_classifiers import classifier
from zeropass.checkpoints import kept_proofs
from zeropass.cli import main as cli
from zeropass.evidence import proof
from zeropass.model import lens_maps

GOLDEN = Path(__file__).parent / "golden.json"
MODELS = Path(__file__).parent.parent / "models"
DATE = r"\b20\d\d-\d\d-\d\d\b"
VOLATILE = r"""("peak_mb": |"seconds": |(?:peak mb|seconds)</dt>\s*<dd>| MB, )([\d.,]+(?:e[-+]?\d+)?)(\b| s)"""
"""A pattern of the time and memory that a run took, with the text around them."""

MEASURED = {
    r'"above": (true|false)|(?<=<td) class="[a-z ]*"|·(?=</td>)|</?strong>': "",
    r"[-−+]?(\d[\d.,]*|\.\d+)(e[-+]?\d+)?": "0",
    r"[\s│─━█▏▎▍▌▋▊▉▇▆▅▄▃▂▁]+": " ",
}
"""Patterns of what rounding can change, with their replacements: judgements of a value beside its null, numbers and
their signs, and space and bars, whose width follows the numbers beside them."""

SHOWN = ("L1.ff.3", "L0.attn.1", "L1.attn.2.qk", "L1.attn.2.vo", "L0.attn.1.q.2")
OUTSIDE = {"llama": (), "gpt2": ("pos.3", "L0.ff.bias"), "bert": ("pos.3", "type.1", "L0.ff.bias")}
"""Addresses outside the blocks, by family."""

TEXTUAL = (".txt", ".json", ".html", ".csv", ".svg")
WORD = "bababa"
TEXTS = tuple(f"{what} {number} times" for what in ("good", "bad", "the end", "one two") for number in range(15))


class Golden:
    """Hashes of items below one folder, in the order they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items: dict[str, dict[str, str]] = {}

    def run(self, name: str, *arguments: object, expected: int = 0) -> None:
        """Run a command line and note what it prints to both streams; raise RuntimeError for another exit code."""
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with (
            mock.patch.object(sys, "argv", ["zeropass", *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
        output = f"{out.getvalue()}\n--- stderr\n{err.getvalue()}"
        if (code or 0) != expected:
            raise RuntimeError(f"{name}: exit code {code}: {output}")
        path = self.folder / "said" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(output, encoding="utf-8")
        self.note(path)

    def files(self, folder: Path) -> None:
        """Note every file below a folder; the files of one folder are one item."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.note(path, str(path.parent.relative_to(self.folder)))

    def note(self, path: Path, item: str = "") -> None:
        """Note a file, as an item of its own or as part of one."""
        name = str(path.relative_to(self.folder))
        if path.suffix in TEXTUAL:
            path.write_text(self._lasting(path.read_text(encoding="utf-8")), encoding="utf-8")
        noted = self.items.setdefault(item or name, {"form": "", "whole": ""})
        for part, content in (("form", form(path)), ("whole", path.read_bytes())):
            noted[part] = _hash(f"{noted[part]} {name} {_hash(content)}".encode())

    def _lasting(self, text: str) -> str:
        """Return the text without what differs from run to run: paths, days, time and memory."""
        text = text.replace(str(self.folder), "FOLDER").replace(str(MODELS), "MODELS")
        return re.sub(VOLATILE, r"\1VOLATILE\3", re.sub(DATE, "DATE", text))


def form(path: Path) -> bytes:
    """Return the part of a file that is the same on any machine."""
    if path.suffix == ".parquet":
        return f"{pq.read_metadata(path).num_rows} {pq.read_schema(path)}".encode()
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r")
        return f"{array.dtype} {array.shape}".encode()
    if path.suffix in (".png", ".safetensors"):
        return path.suffix.encode()
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in MEASURED.items():
        text = re.sub(pattern, replacement, text)
    return text.encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def make(golden: Golden) -> None:
    """Run every command on small models and note what each prints and writes."""
    golden.run("help", "--help")
    for command in typer.main.get_command(cli.app).commands:
        golden.run(f"help-{command}", command, "--help")
    golden.run("families", "families", "--json")
    for family, outside in OUTSIDE.items():
        _family(golden, family, (*SHOWN, *outside))
    _two(golden)
    _lens(golden)
    _mistakes(golden)


def _family(golden: Golden, family: str, addresses: Sequence[str]) -> None:
    """Note an atlas and its pages, and what commands read from it and from the weights."""
    model = small.VARIANTS[family](golden.folder / "models" / family)
    atlas = golden.folder / "atlases" / family
    golden.run(f"{family}-build", "build", model, "--out", atlas)
    golden.files(atlas)
    for what, name in ((model, "model"), (atlas, "atlas")):
        golden.run(f"{family}-info-{name}", "info", what)
        golden.run(f"{family}-info-{name}-json", "info", what, "--json")
    for verb, what in (("explain", model), ("show", atlas)):
        golden.run(f"{family}-{verb}", verb, what, addresses[0])
        for address in addresses:
            golden.run(f"{family}-{verb}-{address}", verb, what, address, "--json")
    golden.run(f"{family}-find", "find", atlas, WORD)
    golden.run(f"{family}-find-json", "find", atlas, WORD, "--json")
    golden.run(f"{family}-tour", "tour", atlas)
    site = golden.folder / "sites" / family
    golden.run(f"{family}-export", "export", atlas, site, "--most", "2", "--tokens", "3")
    golden.files(site)


def _two(golden: Golden) -> None:
    """Note what commands make of two models."""
    first, second = MODELS / "first", MODELS / "second"
    tuned = small.tuned(first, golden.folder / "models" / "tuned")
    aligned, change = golden.folder / "aligned", golden.folder / "change"
    golden.run("align", "align", first, second, "--out", aligned)
    golden.files(aligned)
    golden.run("match", "match", first, "L1.ff.3", second)
    golden.run("match-json", "match", first, "L1.ff.3", second, "--json")
    golden.run("relation", "relation", first, "--set", "family", "--set", "copying", "--layers", "2:4")
    golden.run("diff", "diff", first, tuned, "--out", change, "--build")
    golden.files(change)
    golden.run("diff-json", "diff", first, tuned, "--json")
    golden.run("against", "diff", first, tuned, "--against", MODELS / "tunes" / "reviews", "--out", change / "against")
    golden.files(change / "against")
    golden.run("screen", "screen", tuned, "--base", first, "--out", golden.folder / "screen")
    evidence, stitch = golden.folder / "evidence", golden.folder / "stitch"
    golden.run("heads", "heads", first, "--layers", "1", "--json")
    golden.run("prove", "prove", first, "--tokens", "32")
    golden.run("evidence", "evidence", first, "--out", evidence, "--tokens", "600")
    golden.files(evidence)
    labelled = classifier(first, golden.folder / "models" / "classifier")
    texts = golden.folder / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    given = ("--classifier", labelled, "--onto", second, "--text", texts, "--keep", "2", "--take", "2")
    golden.run("stitch", "stitch", *given, "--out", stitch)
    golden.files(stitch)
    golden.run("classify", "classify", stitch, *TEXTS[::9], "--json")


def _lens(golden: Golden) -> None:
    """Note a lens, and what is read through it."""
    first, lens = MODELS / "first", golden.folder / "lens"
    golden.run("calibrate", "calibrate", first, "--source", "random", "--tokens", "512", "--out", lens)
    for address in ("L1.ff.3", "L1.attn.2.vo", "L1.attn.2.qk"):
        golden.run(f"lens-show-{address}", "show", first, address, "--lens", lens)
        golden.run(f"lens-show-{address}-json", "show", first, address, "--lens", lens, "--json")
    golden.run("circuit-feeds", "circuit", first, "L1.ff.3", "--lens", lens, "-k", "3")
    golden.run("circuit-head-json", "circuit", first, "L1.attn.2", "--lens", lens, "-k", "3", "--json")
    golden.run("circuit-pairs", "circuit", first, "--lens", lens, "-k", "3")
    golden.run("circuit-induction", "circuit", first, "--lens", lens, "--induction", "--run", "-k", "3")
    golden.run("circuit-paths", "circuit", first, "the", "--to", "of", "--lens", lens, "-k", "3")
    atlas = golden.folder / "atlases" / "lens"
    golden.run("lens-build", "build", first, "--lens", lens, "--layers", "1:3", "--k", "10", "--out", atlas)
    golden.run("lens-find", "find", atlas, "the", "--layers", "1:2")
    golden.run("lens-find-contrast", "find", atlas, "he", "--like", "the*", "--not", "she", "--layers", "1:2")
    golden.run("lens-find-pieces", "find", atlas, "thethethe", "--layers", "1:2", "--json")
    golden.run("lens-tour", "tour", atlas)
    golden.files(atlas)
    features = golden.folder / "atlases" / "features"
    golden.run("features-show", "show", first, "L2.sae.17", "--features", MODELS / "dictionary", "--lens", lens)
    given = ("--features", MODELS / "dictionary", "--lens", lens, "--k", "10")
    golden.run("features-build", "build", first, *given, "--out", features)
    golden.run("features-find", "find", features, "the")
    golden.run("features-tour", "tour", features)
    golden.files(features)
    golden.files(lens)  # last, since it takes the date out of the lens


def _mistakes(golden: Golden) -> None:
    """Note the messages for requests that are refused."""
    atlas = golden.folder / "atlases" / "llama"
    for name, *arguments in (
        ("no-model", "explain", golden.folder / "nothing", "L0.ff.1"),
        ("no-address", "show", atlas, "L99.ff.1"),
        ("no-parameter", "show", atlas, "nonsense"),
        ("no-word", "find", atlas, "BABADE"),
        ("atlas-there", "build", golden.folder / "models" / "gpt2", "--out", atlas),
        ("no-option", "show", atlas, "L0.ff.1", "--sideways"),
    ):
        golden.run(str(name), *arguments, expected=2)


def differences(items: dict[str, dict[str, str]], recorded: dict[str, dict[str, str]], part: str) -> list[str]:
    """Name the items that differ, are missing or are new."""
    names = sorted(items.keys() | recorded.keys())
    states = {name: "new" if name not in recorded else "missing" if name not in items else "differs" for name in names}
    return [
        f"{states[name]}: {name}" for name in names if items.get(name, {}).get(part) != recorded.get(name, {}).get(part)
    ]


def make_items(keep: Path | None = None) -> dict[str, dict[str, str]]:
    """Make all items, and copy their files to a folder if one is given."""
    torch.set_num_threads(1)
    lens_maps.kept_lens = lambda _model: None  # a lens that this user has made changes nothing
    kept_proofs.known_proof = lambda *_arguments: None  # nor does a proof, and none is kept
    proof.keep_proof = lambda *_arguments: None
    with tempfile.TemporaryDirectory(prefix="zeropass-golden-") as folder:
        golden = Golden(Path(folder))
        make(golden)
        if keep is not None:
            shutil.copytree(folder, keep, dirs_exist_ok=True)
        return golden.items


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--form", action="store_true", help="compare only the form")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    items = make_items(options.keep)
    if options.record:
        GOLDEN.write_text(json.dumps({"machine": machine.shape(), "items": items}, indent=1) + "\n", encoding="utf-8")
        print(f"{len(items)} items recorded")
        return 0
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))
    here = recorded["machine"] == machine.shape() and not options.form
    changes = differences(items, recorded["items"], "whole" if here else "form")
    print(*changes, f"{len(changes)} of {len(items)} items differ in {'any byte' if here else 'form'}", sep="\n")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
