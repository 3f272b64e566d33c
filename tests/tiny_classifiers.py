"""A tiny classifier, texts for it, and its logits, for tests of stitching."""

import random
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForSequenceClassification

import zeropass as zp
from zeropass.stitch.halves import batches

WORDS = ("good", "bad", "film", "that", "is", "not", "so", "dull", "and", "never", "warm", "funny", "long", "story")
TEXTS = [" ".join(random.Random(n).choices(WORDS, k=3 + n % 11)) for n in range(60)]


def classifier(base: Path, folder: Path, amount: float = 0.02, first: int = 2) -> Path:
    """Write a Llama with a random head, and with noise in all weights of its blocks from ``first`` on."""
    torch.manual_seed(3)
    hf = LlamaForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=0, dtype=torch.float32)
    with torch.no_grad():
        hf.score.weight.normal_()
        for block in hf.model.layers[first:]:
            for weight in block.parameters():
                weight += amount * torch.randn_like(weight)
    hf.save_pretrained(folder)
    shutil.copy(base / "tokenizer.json", folder)
    return folder


def logits_of(hf: Any, model: zp.Model, texts: list[str]) -> Tensor:
    """Return the logits (texts, labels) of a model that takes ids."""
    logits = torch.empty(len(texts), 2)
    with torch.inference_mode():
        for rows, ids, mask in batches(model, texts):
            logits[rows] = hf(input_ids=ids, attention_mask=mask).logits.cpu()
    return logits
