"""An hour of a researcher with the demo model: what she would ask, in the order in which she would ask it.

French things, negation, months, heads, directions and features of her own, two checkpoints, a figure and a table. Each
step takes what a step before returned, as the cells of a notebook do, and is held against the words that it shows.
"""

from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from torch import Tensor

import dictionaries
import zeropass as zp
from scripts import ROOT
from zeropass.records.parameters import VectorRecord
from zeropass.records.search import Hit

pytestmark = pytest.mark.usefixtures("kept_real_rows")
LAYERS = (26, 30)
"""The layers of the atlas of the tests."""

GROUPS = {
    "months": ("January", "February", "March", "June", "August", "October"),
    "days": ("Monday", "Tuesday", "Thursday", "Friday", "Sunday"),
    "colours": ("red", "green", "yellow", "purple", "brown"),
    "numbers": ("two", "three", "four", "six", "seven"),
}


@pytest.fixture(scope="module")
def atlas(real_atlas: Path) -> zp.Atlas:
    return zp.open_atlas(real_atlas)


@pytest.fixture(scope="module")
def lens(smollm2_path: Path) -> zp.Lens:
    return zp.load(str(smollm2_path), lens=None)


def words(record: VectorRecord) -> set[str]:
    """Return the words of the stronger pole of a list, in lower case."""
    up = record.top[0].z >= -record.bottom[0].z
    return {token.token.strip().lower() for token in (record.top if up else record.bottom)}


def words_of_hits(atlas: zp.Atlas, hits: Iterable[Hit]) -> set[str]:
    """Return the words of the lists of some hits."""
    return set().union(*(words(atlas[hit][0]) for hit in hits))


def mean_row(lens: zp.Lens, group: Iterable[str]) -> Tensor:
    """Return the mean row of some words in the token frame, (d,)."""
    ids = [lens.model.vocab.find(f" {word}")[0] for word in group]
    return lens.frames.rows("token").matrix[ids].mean(0)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("French", "Paris"), {"france", "french"}),  # French things
        (("not", "never"), {"no", "cannot", "nor", "nothing"}),  # negation
        (("January", "March"), {"february", "october", "august"}),  # months
    ],
)
def test_words_of_a_kind_lead_to_parameters_that_say_others_of_the_kind(
    asked: tuple[str, ...], expected: set[str], atlas: zp.Atlas
) -> None:
    hits = atlas.find(asked, k=4)
    best = [hit for hit in hits if not hit.says_little]
    assert best
    assert words_of_hits(atlas, best) & expected
    table = hits.to_pandas()
    assert list(table.address) == [hit.address for hit in hits]
    assert [list(row) for row in table[[f"z of {word}" for word in asked]].to_numpy()] == [list(hit.zs) for hit in hits]


def test_a_contrast_separates_two_languages(atlas: zp.Atlas) -> None:
    hit = atlas.find("French", without="Spanish", k=3)[0]
    french, spanish = hit.zs
    assert abs(french - spanish) > 4


def test_a_head_takes_a_pronoun_to_its_kin(lens: zp.Lens, atlas: zp.Atlas) -> None:
    (record,) = atlas.explain("L27.attn.5.vo", k=12)
    pairs = [(pair.left.token.strip().lower(), pair.right.token.strip().lower()) for pair in record.pairs]
    assert {("me", "my"), ("you", "your")} & set(pairs)
    assert record.certificate.complete
    (from_weights,) = lens.explain("L27.attn.5.vo", k=12)
    assert [(pair.left.id, pair.right.id) for pair in record.pairs] == [
        (pair.left.id, pair.right.id) for pair in from_weights.pairs
    ]


def test_a_direction_of_her_own_reads_as_two_countries(lens: zp.Lens) -> None:
    france, germany = (mean_row(lens, group) for group in (("Paris", "French"), ("Berlin", "German")))
    sees = lens.direction(france - germany, layer=28, side="read", tokens="words", k=10)[0]
    assert {"france", "french"} & {token.token.strip().lower() for token in sees.top}
    assert {"berlin", "heinrich"} & {token.token.strip().lower() for token in sees.bottom}
    assert sees.coherence.value > sees.coherence.null


def test_features_of_her_own_are_searched(lens: zp.Lens, tmp_path: Path) -> None:
    """Build an atlas of a dictionary whose features are groups of words, among as many that are noise."""
    rows = torch.stack([mean_row(lens, group) for group in GROUPS.values()])
    centred = rows - lens.frames.rows("token").moments.mean.float()
    noise = torch.randn(20, rows.shape[1], generator=torch.Generator().manual_seed(0)) * centred.std()
    vectors = torch.cat((noise, centred))
    folder = dictionaries.saelens(tmp_path / "sae", vectors, vectors, "blocks.28.hook_resid_pre")
    features = lens.features(folder)
    assert {records[0].address for records in features.strongest(len(GROUPS), frame="token")} == {
        f"L28.sae.{20 + place}" for place in range(len(GROUPS))
    }
    zp.build(lens.model, tmp_path / "atlas", zp.Options(k=20, frames=("token",)), features=folder, lens=None)
    found = zp.open_atlas(tmp_path / "atlas")
    for place, word in enumerate(("September", "Wednesday", "blue", "five")):  # none of which is in a group
        best = found.find(word, k=1)[0]
        assert (best.address, best.says_little) == (f"L28.sae.{20 + place}", False)


def test_two_checkpoints_differ_where_one_was_changed() -> None:
    base = zp.open_model(str(ROOT / "models" / "first"))
    difference = zp.compare(base, zp.adapt(base, ROOT / "models" / "tunes" / "reviews"))
    table = difference.to_pandas()
    assert (table.relative > 0).any()
    assert set(table.role) <= {"gate", "up", "value", "q", "k", "v", "o"}


def test_a_figure_and_a_table_for_the_paper(atlas: zp.Atlas, tmp_path: Path) -> None:
    mpl.use("Agg")
    best = atlas.find("become", k=1)[0]
    (record,) = atlas.explain(best.place, frame=best.frame, k=8)
    record.plot().figure.savefig(tmp_path / "list.pdf")
    assert (tmp_path / "list.pdf").read_bytes().startswith(b"%PDF")
    tabular = record.to_latex()
    assert tabular.rstrip().endswith("\\end{tabular}")
    assert "become" in tabular
    table = atlas.sql("SELECT layer, max(strength) AS most FROM parameters WHERE layer >= 0 GROUP BY layer").df()
    assert sorted(table.layer) == list(range(*LAYERS))
