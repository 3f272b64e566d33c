"""Task heads: the rows of a classifier in the stream, also behind a pooler or from an adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

import tiny
import zeropass as zp
from commands import Run
from zeropass.arch.roles import OUTSIDE
from zeropass.model.adapted import adapt
from zeropass.model.vectors import vector_set

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

LABELS = {0: "negative", 1: "positive"}


def llama(labels: int = 2) -> Any:
    """Return a tiny Llama under a classifier, on the blocks of `tiny.make`."""
    plain = tiny.make("llama-tied")
    settings: LlamaConfig = plain.config
    settings.num_labels, settings.pad_token_id = labels, 0
    if labels == 2:
        settings.id2label, settings.label2id = LABELS, {"negative": 0, "positive": 1}
    torch.manual_seed(4)
    hf = LlamaForSequenceClassification(settings)
    hf.model = plain.model
    return hf


def test_rows_are_centred_because_softmax_ignores_their_mean(tmp_path: Path) -> None:
    hf = llama(3)
    model = zp.open_model(str(tiny.save(hf, tmp_path / "model")))
    rows = hf.score.weight.detach()
    torch.testing.assert_close(vector_set(model, OUTSIDE, "classifier").vectors, rows - rows.mean(0))
    torch.testing.assert_close(vector_set(model, OUTSIDE, "classifier", 1, 2).vectors, (rows - rows.mean(0))[1:2])
    tiny.edit(tmp_path / "model", {"problem_type": "multi_label_classification"})
    multi_label = zp.open_model(str(tmp_path / "model"))
    torch.testing.assert_close(vector_set(multi_label, OUTSIDE, "classifier").vectors, rows)


def test_a_reward_head_of_one_row_is_not_centred(tmp_path: Path) -> None:
    hf = llama(1)
    model = zp.open_model(str(tiny.save(hf, tmp_path / "model")))
    torch.testing.assert_close(vector_set(model, OUTSIDE, "classifier").vectors, hf.score.weight.detach())
    assert [record.frame for record in zp.Lens(model)["classifier.0"]] == ["token", "output"]


def test_a_classifier_behind_a_pooler_is_its_slope_at_zero(tmp_path: Path) -> None:
    hf: Any = tiny._bert(BertForSequenceClassification, num_labels=2).float().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    model = zp.open_model(str(tiny.save(hf, tmp_path / "model")))

    def logits(state: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = hf.classifier(hf.bert.pooler(state[None, None]))[0]
        return scores - scores.mean()

    slope: Any = torch.autograd.functional.jacobian(logits, torch.zeros(24))
    torch.testing.assert_close(vector_set(model, OUTSIDE, "classifier").vectors, slope)


def test_an_adapter_brings_its_head(run: Run, tmp_path: Path) -> None:
    base = zp.open_model(str(tiny.save(tiny.make("llama-tied"), tmp_path / "base")))
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
    hf: Any = get_peft_model(llama(), lora)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.2)
    hf.save_pretrained(tmp_path / "adapter")
    adapted = adapt(base, tmp_path / "adapter")
    assert adapted.tables()["classifier"] == ("classifier", "read", 2)
    rows = hf.base_model.model.score.modules_to_save["default"].weight.detach()
    torch.testing.assert_close(vector_set(adapted, OUTSIDE, "classifier").vectors, rows - rows.mean(0))
    assert "classifier" not in base.tables()
    diff = zp.compare(base, adapted)
    assert [(vector.address, vector.before, vector.relative) for vector in diff.outside] == [
        ("classifier.0", (), 1.0),
        ("classifier.1", (), 1.0),
    ]
    assert {matrix.role for matrix in diff.matrices} == {"q", "up"}
    run.capsys.readouterr()
    shown = run.json("explain", tmp_path / "base", "classifier.1", "--adapter", tmp_path / "adapter")
    assert [record["frame"] for record in shown] == ["token", "output"]
    code, _, err = run("explain", tmp_path / "base", "classifier.1")
    assert (code, "no classifier" in err) == (2, True)


def test_a_difference_names_the_labels_of_a_new_classifier(run: Run, tmp_path: Path) -> None:
    tiny.save(tiny.make("llama-tied"), tmp_path / "base")
    hf = llama()
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    tiny.save(hf, tmp_path / "tuned")
    run.capsys.readouterr()
    code, shown, _ = run("diff", tmp_path / "base", tmp_path / "tuned")
    assert code == 0
    assert "It has a classifier that the base lacks:" in shown
    assert "classifier.1 positive  new" in shown
    diff = zp.compare(zp.open_model(str(tmp_path / "base")), zp.open_model(str(tmp_path / "tuned")))
    assert [vector.label for vector in diff.outside] == ["negative", "positive"]
    atlas = tmp_path / "atlas"
    zp.build_change(
        *(zp.open_model(str(tmp_path / name)) for name in ("base", "tuned")), atlas, zp.Options(tokens="all")
    )
    assert zp.open_atlas(atlas)["classifier.1"][0].role == "classifier"
    # Further fine-tuning of a classifier: the head itself changes.
    with torch.no_grad():
        hf.score.weight[1].mul_(2)
    tiny.save(hf, tmp_path / "more")
    again = zp.compare(zp.open_model(str(tmp_path / "tuned")), zp.open_model(str(tmp_path / "more")))
    assert [(vector.address, round(vector.relative, 3)) for vector in again.outside] == [
        ("classifier.0", 0),
        ("classifier.1", 1),
    ]
    assert all(vector.before for vector in again.outside)
