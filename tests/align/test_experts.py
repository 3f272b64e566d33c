"""Comparisons of models with experts name the neurons of an expert as its addresses do."""

from pathlib import Path

import pytest

import zeropass as zp
from tiny import edit, save
from zeropass.align.run import align_models
from zeropass.model.vectors import locate
from zoo import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> zp.Model:
    return zp.open_model(str(save(tiny_model("glm4_moe"), tmp_path_factory.mktemp("experts") / "base")))


def test_the_matches_of_neurons_are_addresses(model: zp.Model, tmp_path: Path) -> None:
    alignment = align_models(model, model, tmp_path / "alignment", lenses=(None, None))
    places = [zp.parse(pairing.first) for pairing in alignment.pairings if pairing.kind == "neuron"]
    assert {place.expert for place in places if place.layer == 0} == {-1}
    assert {place.expert for place in places if place.layer == 1} == set(range(7))
    assert all(locate(model, place.with_role("gate")) for place in places)


def test_a_changed_neuron_of_a_shared_expert_is_named(model: zp.Model, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.shared_experts.up_proj.weight"
    tuned = save(tiny_model("glm4_moe"), tmp_path / "tuned")
    values = tiny_model("glm4_moe").state_dict()[name].clone()
    values[1] += 1
    edit(tuned, tensors={name: values})
    difference = zp.compare(model, zp.open_model(str(tuned)))
    assert [(change.layer, change.role) for change in difference.matrices] == [(1, "up")]
    assert difference.neurons[0].address == "L1.ff.e6.1"
