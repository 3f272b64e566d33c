"""An atlas of some layers of SmolLM2-135M-Instruct (Q4_1), which shows what a trial on the model showed (issue 2)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import zeropass as zp

PARTS = {
    "heads": zp.Options(k=20, pairs=60, layers=(24, 25), roles=("vo",)),
    "early": zp.Options(k=30, pairs=5, layers=(0, 1), roles=("gate",), frames=("token",)),
}


class Atlases:
    """Atlases of a few layers and roles each, built on first use."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = zp.open_model(str(model)), folder
        self.lens = zp.Lens(self.model)

    def __getitem__(self, name: str) -> zp.Atlas:
        if not (self.folder / name).exists():
            zp.build(self.model, self.folder / name, PARTS[name])
        return zp.open_atlas(self.folder / name)


@pytest.fixture(scope="session")
def smol(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlases]:
    yield Atlases(smollm2_path, tmp_path_factory.mktemp("real"))


@pytest.fixture
def late(real_atlas: Path) -> zp.Atlas:
    """Return the atlas that holds everything of the last layers."""
    return zp.open_atlas(real_atlas)


def stripped(tokens: object, count: int) -> list[str]:
    return [t.token.strip() for t in tokens[:count]]  # type: ignore[index]


def test_a_late_neuron_is_about_to_say_two(late: zp.Atlas) -> None:
    record = late.explain("L26.ff.1189.gate", frame="output", k=20)[0]
    assert {"2", "second", "two"} <= set(stripped(record.top, 8))


def test_become_finds_its_neuron(late: zp.Atlas) -> None:
    best = late.find("become", k=3).hits[0]
    assert (best.address, best.role) == ("L29.ff.1488", "up")
    assert best.z == pytest.approx(15, abs=1.5)


def test_paris_finds_its_neuron(late: zp.Atlas) -> None:
    search = late.find("Paris", k=5)
    assert search.hits[0].address == "L29.ff.864"
    value = next(hit for hit in search.hits if (hit.address, hit.role) == ("L29.ff.864", "value"))
    assert value.z < 0
    for role in ("gate", "up"):
        record = late.explain(f"L29.ff.864.{role}", frame="output", k=20)[0]
        assert {"France", "Paris", "French"} & set(stripped(record.top, 10))


def test_an_american_head_turns_british(smol: Atlases) -> None:
    record = smol["heads"].explain("L24.attn.7.vo", k=60)[0]
    assert record.certificate.complete
    left = {pair.left.token.strip() for pair in record.pairs}
    right = {pair.right.token.strip() for pair in record.pairs}
    assert left & {"isational", "Firstly", "Whilst"}
    assert right & {"Whilst", "organisation", "realised", "whilst"}


def test_no_pair_of_sampled_rows_beats_the_listed_ones(smol: Atlases) -> None:
    record = smol["heads"].explain("L24.attn.7.vo", k=60)[0]
    product = smol.lens.head_map("L24.attn.7.vo")
    mask = smol.lens.model.vocab.mask("default", *smol.lens.judgement)
    sample = sorted({*range(0, 49152, 64), *(pair.left.id for pair in record.pairs)})
    sample = [i for i in sample if mask[i]]
    scores = product.left[sample] @ product.right[mask].T
    listed = [pair.score for pair in record.pairs]
    better = scores[scores > record.certificate.kth + 1e-3].sort(descending=True).values.tolist()
    assert better == pytest.approx(listed[: len(better)], rel=1e-4)
    assert len(better) >= 50


def test_a_neuron_lists_words_of_beginning(smol: Atlases) -> None:
    record = smol.lens.explain("L20.ff.241.gate", frame="token", k=20)[0]
    texts = {text.lower() for text in stripped(record.top, 20)}
    assert len(texts & {"initi", "init", "initiation", "first"}) >= 3


def test_a_neuron_lists_all_seven_weekdays(smol: Atlases) -> None:
    atlas = smol["early"]
    search = atlas.find("Monday", k=20)
    assert "L0.ff.1469" in {hit.address for hit in search.hits}
    days = {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}
    best = max(
        (pole for record in atlas.explain("L0.ff.1469", k=30) for pole in (record.top, record.bottom)),
        key=lambda pole: len(days & {t.token.strip().lower() for t in pole}),
    )
    assert days <= {t.token.strip().lower() for t in best}


def test_atlas_and_lens_agree_on_real_weights(smol: Atlases, late: zp.Atlas) -> None:
    stored = late.explain("L29.ff.864.value", k=20)[0]
    direct = smol.lens.explain("L29.ff.864.value", k=20)[0]
    for pole in ("top", "bottom"):
        ours, theirs = getattr(stored, pole), getattr(direct, pole)
        assert [t.score for t in ours] == pytest.approx([t.score for t in theirs], rel=1e-4, abs=1e-4)
        assert {t.id for t in ours[:15]} <= {t.id for t in theirs}
    assert stored.hidden == direct.hidden
