"""Decoders of audio: what reads the encoder's states has no words, and is refused with the reason."""

import pytest

from tiny import save
from zeropass.errors import BadAddress, BadOption
from zeropass.lens import load
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zoo import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module", params=["whisper", "speech_to_text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(str(save(tiny_model(request.param), tmp_path_factory.mktemp(request.param))))


def test_queries_and_outputs_of_cross_attention_have_roles(model: Model) -> None:
    cross = [role for role in model.family.roles if role.startswith("cross_")]
    assert cross == ["cross_q", "cross_o"]
    assert any("no tokens stand for" in note for note in model.info()["notes"])


@pytest.mark.parametrize("address", ["L0.cross.0.q.1", "L0.cross.0.o.1", "L0.cross.0.v.bias", "L0.cross.bias"])
def test_what_the_decoder_reads_and_writes_is_shown(model: Model, address: str) -> None:
    assert load(model, lens="none")[address]


@pytest.mark.parametrize(
    "address", ["L0.cross.0", "L0.cross.0.qk", "L0.cross.0.ov", "L0.cross.0.k.1", "L0.cross.0.v.1", "L0.cross.0.q.bias"]
)
def test_what_reads_the_encoder_is_refused(model: Model, address: str) -> None:
    with pytest.raises(BadAddress, match="because its encoder does not read text"):
        load(model, lens="none")[address]


def test_there_is_no_encoder_to_open(model: Model) -> None:
    with pytest.raises(BadOption, match="has one stack"):
        open_model(f"{model.files.path}#decoder")
