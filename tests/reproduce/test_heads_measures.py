"""The script behind docs/heads.md: the attention that it takes, and its ablation."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import planted_models
import zeropass as zp

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "reproduce"))

import heads  # noqa: E402
from zeropass.model.running import Running  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Running, Any]:
    folder = planted_models.at_random(tmp_path_factory.mktemp("heads") / "model")
    hf = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return Running(zp.open_model(str(folder))), hf


@torch.no_grad()
def test_the_attention_is_that_of_transformers(model: tuple[Running, Any]) -> None:
    running, hf = model
    once = torch.randint(planted_models.V, (2, heads.PERIOD), generator=torch.Generator().manual_seed(0))
    ids = torch.cat((once, once), 1)
    attended = heads.Attended(running, ids)
    attended.run()
    weights = hf(ids, output_attentions=True).attentions[1]
    place = torch.arange(heads.PERIOD, 2 * heads.PERIOD)
    induction = weights[:, :, place, place - heads.PERIOD + 1].mean((0, 2))
    first = weights[:, :, 16:, 0].mean((0, 2))
    assert attended.values["induction"][1] == pytest.approx(induction.numpy(), abs=1e-5)
    assert attended.values["first"][1] == pytest.approx(first.numpy(), abs=1e-5)


@torch.no_grad()
def test_an_ablated_head_writes_nothing(model: tuple[Running, Any]) -> None:
    running, hf = model
    ids = torch.arange(12)[None]
    without = heads.ablated(running, ids, [(1, 0)], slice(3, -1))
    width = planted_models.D // planted_models.HEADS
    weight = hf.model.layers[1].self_attn.o_proj.weight
    kept = weight.clone()
    weight[:, :width] = 0
    true = hf(ids).logits.log_softmax(-1)[:, 3:-1]
    weight.copy_(kept)
    assert torch.allclose(without, true, atol=1e-5)
    assert not torch.allclose(heads.ablated(running, ids, [], slice(3, -1)), true, atol=1e-5)
