"""Norms inside attention and MLP: the rows of o and value have their gains, whatever an adapter changes."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

import adapters
from tiny import save
from zeropass.errors import CannotRun
from zeropass.model.calibrate import calibrate
from zeropass.model.opening import open_model
from zoo import WITHOUT_LENS, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_an_adapter_is_what_peft_merges(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["o_proj", "down_proj"], modules_to_save=["ffn_sub_norm"])
    model, merged = adapters.trained("bitnet", tmp_path, config), open_model(str(tmp_path / "merged"))
    for role in ("o", "value"):
        assert model.touches(role, 1)
        torch.testing.assert_close(model.matrix(role, 1), merged.matrix(role, 1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.matrix(role, 1, 3, 9), merged.matrix(role, 1)[3:9], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.matrix_on_cpu(role, 1), model.matrix(role, 1))
        change = model.change(role, 1)
        assert isinstance(change, torch.Tensor)
        torch.testing.assert_close(model.base.matrix(role, 1) + change, merged.matrix(role, 1), atol=1e-5, rtol=1e-5)


def test_an_adapter_on_a_gain_alone_touches_the_rows(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["attn_sub_norm"])
    model, merged = adapters.trained("bitnet", tmp_path, config), open_model(str(tmp_path / "merged"))
    assert model.touches("o", 0) and not model.touches("value", 0)
    torch.testing.assert_close(model.matrix("o", 0), merged.matrix("o", 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", WITHOUT_LENS)
def test_the_lens_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"does not know (the output gates of heads|norms inside attention and MLP)"):
        calibrate(open_model(str(save(tiny_model(name), tmp_path / name))), source="random", progress=False)
