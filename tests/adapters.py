"""Adapters on tiny models, as PEFT makes and merges them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import tiny
import zeropass as zp
from zeropass.adapted import Adapted, adapt

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def made(variant: str, folder: Path, **settings: Any) -> Adapted:
    """A tiny base with a random adapter on it, and beside it the model into which PEFT has merged it."""
    base = tiny.save(tiny.make(variant), folder / "base")
    hf: Any = get_peft_model(tiny.make(variant), LoraConfig(r=4, lora_alpha=6, **settings))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                noise = 0.3 * torch.randn(parameter.shape, generator=draw)
                parameter.copy_(parameter + noise if "magnitude" in name else noise)
    hf.save_pretrained(folder / "adapter")
    merged = PeftModel.from_pretrained(tiny.make(variant), str(folder / "adapter")).merge_and_unload()
    tiny.save(merged, folder / "merged")
    return adapt(zp.open_model(str(base)), folder / "adapter")
