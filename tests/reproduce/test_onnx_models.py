"""Models that reproduce/onnx_models.py takes out of ONNX files, which compute what the files compute."""

from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import AutoModel

import zeropass as zp
from scripts import ROOT, imported

IDS = [[101, 2023, 2003, 1037, 3231, 102]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return imported(ROOT / "reproduce", ["onnx_models"])[0]


@pytest.mark.real
def test_a_model_out_of_onnx_computes_the_same(script: ModuleType) -> None:
    folder = script.model_folder("minilm-l3")
    path = folder / "package" / script.MODELS["minilm-l3"].package.files[0].name
    evaluator = ReferenceEvaluator(onnx.load(path))
    ids = np.array(IDS)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    outputs = evaluator.run(None, {name: given[name] for name in evaluator.input_names})
    hidden = next(output for output in outputs if output.ndim == 3 and output.shape[-1] == 384)
    with torch.inference_mode():
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
        states = model(torch.tensor(IDS)).last_hidden_state
    assert np.abs(hidden - states.numpy()).max() < 1e-4
    assert zp.open_model(str(folder)).dims.layers == 3
