"""The scripts behind docs/stitching.md: those that train the classifiers and the one that writes the tables."""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zeropass.model.translation import FRAMES, KERNELS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """Put the folder of the scripts, which import each other, on the path."""
    sys.path.insert(0, str(ROOT / "reproduce"))
    yield
    sys.path.remove(str(ROOT / "reproduce"))


def test_texts_of_like_length_share_a_batch() -> None:
    from classifiers import BATCH, shuffled

    texts = [("x" * random.Random(n).randrange(1, 200), n % 2) for n in range(10 * BATCH + 3)]
    batched = shuffled(texts, 1, alike=4)
    assert sorted(batched) == sorted(texts)
    assert batched != shuffled(texts, 2, alike=4)
    plain = shuffled(texts, 1, alike=1)

    def padding(order: list[tuple[str, int]]) -> int:
        parts = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        return sum(len(part) * max(len(text) for text, _ in part) for part in parts)

    assert padding(batched) < 0.9 * padding(plain)


def test_only_the_top_layers_and_the_head_are_trained() -> None:
    from classifiers import with_head
    from tops import base_of, only_top

    model = with_head(base_of("first"))
    only_top(model, 2)
    moved = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split(".")[2] for name in moved if "layers" in name} == {"2", "3"}
    assert {name for name in moved if "layers" not in name} == {"model.norm.weight", "score.weight"}


def drawn(draw: random.Random) -> dict[str, float]:
    """Draw the measurements of a seam."""
    names = ("fit", "expected", "agreement", "confidence", "consensus", "accuracy")
    return {name: draw.random() for name in names}


def made_up(first: str, onto: str, seed: int) -> dict[str, Any]:
    """Draw a run as stitching.py writes it."""
    draw = random.Random(f"{first} {onto} {seed}")
    names = ("ours", "not levelled", "random map", "no map", "no scale", "all layers kept")
    seam = {"keep": 1, "take": 2, "kernel": "ridge", "frame": "both", **drawn(draw)}
    return {
        "classifier": first,
        "onto": onto,
        "seed": seed,
        "own": 0.7,
        "seconds": 60,
        "curve": {name: [draw.random() for _ in range(3)] for name in ("ours", "paper", "shuffled")},
        "traps": {name: draw.random() for name in (*names, "all layers kept, normed state")},
        "chosen": seam | {"shuffled": 0.5, "expected_known": 0.6, "trusted": True},
        "tries": [
            *(seam | {"kernel": k, "frame": f, **drawn(draw)} for k in KERNELS for f in FRAMES),
            seam | {"keep": 2, **drawn(draw)},
        ],
        "labels": {"10": 0.5, "100": 0.6, "1000": 0.7, "answers": 0.65},
        "transplant": {
            "layers": [[2, 2]],
            "strength": 2.0,
            "accuracy": 0.6,
            "expected": 0.6,
            "null": 0.5,
            "trusted": True,
        },
    }


def test_the_tables_are_written_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stitching_tables

    (tmp_path / "docs").mkdir()
    (tmp_path / "out" / "measured").mkdir(parents=True)
    page = (ROOT / "docs" / "stitching.md").read_text(encoding="utf-8")
    (tmp_path / "docs" / "stitching.md").write_text(page, encoding="utf-8")
    for first, onto in (("first", "second"), ("minilm-l6", "minilm-l3"), ("distilbert-tagger", "minilm-l6")):
        for seed in range(3):
            run = made_up(first, onto, seed)
            if first != "first":
                del run["tries"]
            path = tmp_path / "out" / "measured" / f"{first}-{onto}-{seed}.json"
            path.write_text(json.dumps(run), encoding="utf-8")
    monkeypatch.setattr(stitching_tables, "ROOT", tmp_path)
    stitching_tables.main(tmp_path / "out")
    written = (tmp_path / "docs" / "stitching.md").read_text(encoding="utf-8")
    assert re.search(r"^\| first → second \| 3 \| 0\.700 ", written, re.M)
    assert "| DistilBERT → L6 | 3 |" in written
    assert "nan" not in written
    drawn = (tmp_path / "docs" / "stitching" / "accuracy.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<svg")


def test_a_probe_learns_a_linear_boundary() -> None:
    from stitching import probe

    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(300, 8, generator=draw), torch.randn(8, generator=draw)
    y = (x @ w > 0).float()
    assert probe(x[:200], y[:200], x[200:], y[200:]) > 0.9
