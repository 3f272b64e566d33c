"""Stitched classifiers: exact where the models compute the same function, honest where they do not."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from rich.console import Console
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    pipeline,
)

import tiny
import twins
import zeropass as zp
from commands import Run
from tiny_classifiers import TEXTS, classifier, logits_of
from zeropass.arch.families import FAMILIES
from zeropass.errors import BadLens, BadOption, CannotRun
from zeropass.model.shared_tokens import Shared
from zeropass.model.translation import KERNELS, Translation, bridge
from zeropass.stitch import halves
from zeropass.stitch import run as stitching
from zeropass.stitch.halves import Lower, Upper, batches, load_classifier, load_lower
from zeropass.stitch.render import render_stitch
from zeropass.stitch.results import judged
from zeropass.stitch.seam_choice import Answers, answers, depths, expected
from zeropass.stitch.stitched import Stitched, load_stitched, stitched
from zoo import ZOO, drawn, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

MODELS = Path(__file__).parents[2] / "models"
REVIEWS = MODELS / "tunes" / "reviews"
HEADED = {
    "llama": (LlamaForSequenceClassification, "model"),
    "llama-tied": (LlamaForSequenceClassification, "model"),
    "gpt2": (GPT2ForSequenceClassification, "transformer"),
    "bert": (BertForSequenceClassification, "bert"),
}


def headed(plain: Any, variant: str) -> Any:
    """Put the blocks of a tiny model under a head of two labels."""
    kind, name = HEADED[variant]
    plain.config.num_labels, plain.config.pad_token_id = 2, 0
    torch.manual_seed(1)
    hf: Any = kind(plain.config).float().eval()
    getattr(hf, name).load_state_dict(getattr(plain, name, plain).state_dict(), strict=False)
    return hf


def one_by_one(hf: Any, model: zp.Model, texts: list[str]) -> Tensor:
    """Return the logits of every text run alone, without padding: the slow twin."""
    with torch.inference_mode():
        rows = [next(iter(batches(model, [text]))) for text in texts]
        return torch.cat([hf(input_ids=ids, attention_mask=mask).logits for _, ids, mask in rows])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> zp.Model:
    return zp.open_model(str(classifier(MODELS / "first", tmp_path_factory.mktemp("tuned") / "model")))


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> zp.Model:
    first = zp.open_model(str(MODELS / "first"))
    return zp.open_model(str(twins.twin(first, 4, tmp_path_factory.mktemp("twin") / "model")[0]))


@pytest.fixture(scope="module")
def first() -> zp.Model:
    return zp.open_model(str(MODELS / "first"))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("frame", ["both", "token", "paper"])
def test_a_stitch_onto_a_rotated_and_permuted_copy_gives_the_same_answers(
    tuned: zp.Model, moved: zp.Model, kernel: str, frame: str
) -> None:
    expected_logits = logits_of(load_classifier(tuned), tuned, TEXTS)
    assert 5 < int(expected_logits.argmax(1).sum()) < 55
    stitch, record = zp.stitch_models(
        tuned, moved, keep=2, take=2, options=zp.StitchOptions(kernel=kernel, frame=frame)
    )
    assert (record.choice.kernel, record.choice.frame, record.verdict.trusted) == (kernel, frame, None)
    logits = logits_of(stitch, moved, TEXTS)
    same = logits.argmax(1) == expected_logits.argmax(1)
    if kernel in ("ridge", "weighted"):  # damped, so near ties may turn
        assert float(same.float().mean()) > 0.95
    else:
        assert bool(same.all())
        torch.testing.assert_close(logits, expected_logits, rtol=0.02, atol=0.02 * float(expected_logits.std()))


def test_lenses_of_the_base_and_of_the_copy_give_the_same_answers(
    tuned: zp.Model, moved: zp.Model, first: zp.Model
) -> None:
    """The classifier's lower blocks are those of its base, whose lens therefore holds for it at the seam."""
    lenses = [zp.calibrate(model, source="random", tokens=512) for model in (first, moved)]
    options = zp.StitchOptions(lenses=(lenses[0], lenses[1]))
    stitch, record = zp.stitch_models(tuned, moved, base=first, keep=2, options=options)
    assert (record.choice.kernel, record.choice.frame) == ("orthogonal", "seen")
    assert record.lenses == ("mean-field lens from 512 random tokens",) * 2
    console = Console(width=200)
    with console.capture() as shown:
        console.print(render_stitch(record))
    assert "Tokens of both are read through a mean-field lens from 512 random tokens." in shown.get()
    expected_logits = logits_of(load_classifier(tuned), tuned, TEXTS)
    same = logits_of(stitch, moved, TEXTS).argmax(1) == expected_logits.argmax(1)
    assert float(same.float().mean()) > 0.95
    _, chosen = zp.stitch_models(tuned, moved, base=first, options=replace(options, texts=TEXTS))
    assert {choice.frame for choice in chosen.tries} == {"seen", "both", "token", "paper"}
    assert chosen.verdict.trusted is True
    with pytest.raises(BadLens, match="is a lens of"):  # above the first block that changed, the base's does not hold
        zp.stitch_models(tuned, moved, base=first, keep=2, take=1, options=options)


def test_texts_choose_the_right_seam_and_trust_it(tuned: zp.Model, moved: zp.Model, first: zp.Model) -> None:
    stitch, record = zp.stitch_models(tuned, moved, base=first, options=zp.StitchOptions(texts=TEXTS))
    assert record.choice.take == 2
    assert (record.choice.keep, record.choice.agreement) == (2, 1.0)
    assert record.verdict.trusted is True
    assert record.verdict.kept == pytest.approx(1, abs=0.02)
    expected_logits = logits_of(load_classifier(tuned), tuned, TEXTS)
    torch.testing.assert_close(
        logits_of(stitch, moved, TEXTS), expected_logits, rtol=0.05, atol=0.05 * float(expected_logits.std())
    )
    assert record.tries[0] == record.choice
    assert all((attempt.expected or 0) <= (record.choice.expected or 0) for attempt in record.tries)
    assert all(0 <= (attempt.consensus or -1) <= 1 for attempt in record.tries)


@pytest.mark.parametrize("variant", HEADED)
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_two_halves_of_one_model_are_the_model(variant: str, keep: int, tmp_path: Path) -> None:
    hf = headed(tiny.make(variant), variant)
    with torch.no_grad():
        for weight in [w for n, w in hf.named_parameters() if "pooler" in n or "score" in n or n.startswith("classif")]:
            weight.normal_(std=0.5)
    model = zp.open_model(str(tiny.save(hf, tmp_path / "model")))
    texts = [model.vocab.text(n).strip() or "a" for n in range(20, 40)]
    texts = [" ".join(texts[n : n + 1 + n % 4]) for n in range(12)]
    unit = Translation(torch.eye(model.dims.d), torch.zeros(model.dims.d))
    stitch = stitched(model, model, keep, model.dims.layers - keep, unit)
    expected_logits = one_by_one(load_classifier(model), model, texts)
    close = 2e-2 if variant == "bert" else 1e-4  # applied twice, a norm with eps 0.01 shrinks a little
    torch.testing.assert_close(logits_of(stitch, model, texts), expected_logits, rtol=close, atol=close)


def test_a_post_norm_seam_norms_what_comes_in(tmp_path: Path) -> None:
    hf: Any = tiny._bert(BertForSequenceClassification, num_labels=2).float().eval()
    model = zp.open_model(str(tiny.save(hf, tmp_path / "model")))
    unit = Translation(3 * torch.eye(model.dims.d), torch.ones(model.dims.d))
    stitch = stitched(model, model, 1, 1, unit)
    texts = [model.vocab.text(n) for n in range(20, 30)]
    # The norm removes the scale and the shift of the seam; transformers begins with gain one and shift zero.
    torch.testing.assert_close(logits_of(stitch, model, texts), one_by_one(hf, model, texts), rtol=1e-3, atol=1e-3)


def test_lower_blocks_give_the_stream_before_the_last_norm(first: zp.Model) -> None:
    at, states, mask = next(iter(depths(Lower(load_lower(first), first.family), first, TEXTS[:3])))
    assert (len(at), len(states)) == (3, 5)
    hf = load_lower(first)
    _, ids, _ = next(iter(batches(first, TEXTS[:3])))
    full = hf(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    for state, hidden in zip([states[n] for n in range(4)], full.hidden_states[:4], strict=True):
        torch.testing.assert_close(state, hidden)
    torch.testing.assert_close(hf.norm(states[4]), full.last_hidden_state)


def test_taking_fewer_blocks_is_undone(tuned: zp.Model) -> None:
    upper = Upper(load_classifier(tuned), tuned.family)
    with pytest.raises(ZeroDivisionError), upper.taking(1):
        assert len(upper.classifier.base_model.layers) == 1
        raise ZeroDivisionError
    assert len(upper.classifier.base_model.layers) == upper.classifier.config.num_hidden_layers == 4


def test_the_folder_is_a_model_of_transformers(tuned: zp.Model, tmp_path: Path) -> None:
    onto = zp.open_model(str(MODELS / "wide"))
    stitch, _ = zp.stitch_models(tuned, onto, tmp_path / "out", keep=3, take=2)
    again = load_stitched(tmp_path / "out")
    assert isinstance(again, Stitched)
    expected_logits = logits_of(stitch, onto, TEXTS)
    torch.testing.assert_close(logits_of(again, onto, TEXTS), expected_logits)
    auto = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(auto, onto, TEXTS), expected_logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    scores = pipeline("text-classification", model=again, tokenizer=tokenizer)(TEXTS[0], top_k=2)
    ours = zp.classify(tmp_path / "out", TEXTS[:1])[0]
    assert {score["label"]: pytest.approx(score["score"], abs=1e-4) for score in scores} == ours
    sizes = sum(p.numel() for p in stitch.parameters())
    assert sizes == 917_504 + 3 * 502_208 + 2 * 442_752 + 192 + 192 * 224 + 192 + 2 * 192 + 2  # nothing else is stored
    again.save_pretrained(tmp_path / "again")
    loss = again(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([1])).loss
    assert float(loss) > 0


@pytest.mark.parametrize("target", ["itself", "its twin"])
def test_a_change_transplanted_into_the_same_function_is_the_tune(
    tuned: zp.Model, moved: zp.Model, first: zp.Model, target: str
) -> None:
    onto = first if target == "itself" else moved
    transplanted, record = zp.transplant(tuned, onto, first)
    assert record.layers == ((2, 2), (3, 3))
    assert record.notes == ()
    expected_logits = logits_of(load_classifier(tuned), tuned, TEXTS)
    logits = logits_of(transplanted, onto, TEXTS)
    assert bool((logits.argmax(1) == expected_logits.argmax(1)).all())
    torch.testing.assert_close(logits, expected_logits, rtol=0.02, atol=0.02 * float(expected_logits.std()))


@pytest.mark.parametrize("variant", ["gpt2", "bert"])
def test_a_transplant_carries_biases_and_other_norms(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeropass.align.pair.shared_tokens", _all_tokens)
    monkeypatch.setattr("zeropass.model.translation.shared_tokens", _all_tokens)
    hf = headed(tiny.make(variant), variant)
    base = zp.open_model(str(tiny.save(hf, tmp_path / "base")))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for label, weight in hf.named_parameters():
            if any(part in label for part in ("c_attn", "c_proj", "c_fc", "query", "key", "value", "dense")):
                weight += 0.1 * torch.randn(weight.shape, generator=draw)
        (hf.score if variant == "gpt2" else hf.classifier).weight.normal_(generator=draw)
    tune = zp.open_model(str(tiny.save(hf, tmp_path / "tuned")))
    transplanted, record = zp.transplant(tune, base, base)
    assert record.layers == ((0, 0), (1, 1))
    texts = [text for text in (base.vocab.text(n).strip() for n in range(20, 50)) if text]
    expected_logits = logits_of(load_classifier(tune), tune, texts)
    logits = logits_of(transplanted, base, texts)
    if variant == "bert":
        torch.testing.assert_close(logits, expected_logits, rtol=1e-2, atol=1e-2)
    else:  # GPT-2's head has no bias to undo the shift of the last norm: equal up to a constant
        torch.testing.assert_close(
            logits - logits.mean(0), expected_logits - expected_logits.mean(0), rtol=1e-2, atol=1e-2
        )


def _all_tokens(first: zp.Model, second: zp.Model) -> Any:

    ids = torch.arange(tiny.TOKENS)
    return Shared(ids, ids, (first.vocab.size, second.vocab.size), True)


def test_a_transplant_is_an_ordinary_checkpoint(tuned: zp.Model, first: zp.Model, tmp_path: Path) -> None:
    onto = zp.open_model(str(MODELS / "wide"))
    transplanted, record = zp.transplant(
        tuned, onto, first, tmp_path / "out", strength=1.0, options=zp.StitchOptions(texts=TEXTS)
    )
    assert record.choice.strength == 1.0
    again = LlamaForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(again, onto, TEXTS), logits_of(transplanted, onto, TEXTS))
    read = zp.open_model(str(tmp_path / "out"))
    assert read.has("classifier")
    assert read.dims == onto.dims
    changed = [layer for layer in range(6) if not torch.equal(read.matrix("gate", layer), onto.matrix("gate", layer))]
    assert changed == sorted(b for _, b in record.layers)
    tune_answers, again_answers = (
        answers(hf, model, TEXTS) for hf, model in ((load_classifier(tuned), tuned), (again, onto))
    )
    # The head is levelled: its mean answers are those of the fine-tune.
    torch.testing.assert_close(again_answers.logits.mean(0), tune_answers.logits.mean(0), rtol=1e-2, atol=1e-2)
    assert record.verdict.trusted is False  # noise means nothing that another model could take over


def test_shared_heads_stay_behind_and_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("align.pair", "model.translation"):
        monkeypatch.setattr(f"zeropass.{place}.shared_tokens", _all_tokens)
    plain = tiny.make("llama")
    hf = headed(plain, "llama")
    base = zp.open_model(str(tiny.save(plain, tmp_path / "base")))
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight += 0.1
    tune = zp.open_model(str(tiny.save(hf, tmp_path / "tuned")))
    _, record = zp.transplant(tune, base, base)
    assert record.notes == ("Changes of heads stay behind: key and value heads are shared.",)


def test_experts_are_not_transplanted(tmp_path: Path) -> None:
    """The families that can be fed from outside have none, so `put` never meets the name of an expert's tensor."""
    hf = drawn("MixtralForSequenceClassification", *ZOO["mixtral"][1:])
    hf.config.pad_token_id = 0
    tune = zp.open_model(str(tiny.save(hf, tmp_path / "tuned")))
    base = zp.open_model(str(tiny.save(tiny_model("mixtral"), tmp_path / "base")))
    with pytest.raises(BadOption, match="is a mixtral; the blocks of these families can be fed"):
        zp.transplant(tune, base, base)
    families = [family for family in FAMILIES if family.name in halves.FED]
    assert not [
        family.name for family in families if any("{expert}" in s.name for s in family.layout("hf").tensors.values())
    ]


def test_expected_accuracy_is_the_mean_probability_of_the_answers() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert expected(torch.tensor([[2.0, 0.0], [3.0, 1.0]]), probabilities) == pytest.approx((0.9 + 0.4) / 2)
    own_answers = Answers(torch.tensor([[4.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), (), torch.zeros(1))
    assert float(own_answers.chances(0.7).amax(1).mean()) == pytest.approx(0.7, abs=1e-4)
    torch.testing.assert_close(own_answers.chances(None), own_answers.logits.softmax(1))
    with pytest.raises(BadOption, match="between chance and 1"):
        own_answers.chances(0.4)


@pytest.mark.parametrize(
    ("expected_accuracy", "trusted", "message"),
    [
        (0.7, True, "keeps 67% of the difference"),
        (0.58, False, "Do not trust this one: .* it keeps 27% of what that has"),
        (0.51, False, "Do not trust this one: .* shuffled tokens give up to 0.52"),
    ],
)
def test_the_verdict_follows_the_expected_accuracy(expected_accuracy: float, trusted: bool, message: str) -> None:
    verdict = judged(expected_accuracy, 0.8, (0.48, 0.5, 0.52))
    assert verdict.trusted is trusted
    assert re.search(message, verdict.text)


def test_the_command_stitches_and_classifies(run: Run, tuned: zp.Model, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    out = tmp_path / "out"
    command = ("stitch", "--classifier", tuned.name, "--onto", MODELS / "second", "--out", out)
    code, shown, err = run(*command, "--base", MODELS / "first", "--text", tmp_path / "texts.txt", "--keep", 2)
    assert (code, err) == (0, "")
    assert "the first 2 of 4 layers of" in shown
    assert "the last 2 of 4 layers of" in shown
    assert "zeropass.load_stitched(" in shown.replace("\n", "")
    record = json.loads((out / "stitch.json").read_text(encoding="utf-8"))
    assert record["texts"] == 60
    assert record["choice"]["keep"] == 2
    code, shown, err = run("classify", out, "a good film", "so dull and long")
    assert (code, err) == (0, "")
    assert len(shown.splitlines()) == 2
    probabilities = run.json("classify", out, "a good film")
    assert sum(probabilities[0].values()) == pytest.approx(1)
    again = run.json(*command)  # it overwrites its own work
    assert again["verdict"]["trusted"] is None
    assert "Not checked" in again["verdict"]["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts.txt"]
    code, shown, err = run(*command, "--base", MODELS / "first", "--transplant", "--text", tmp_path / "texts.txt")
    assert (code, err) == (0, "")
    assert "layers 2 → 2, 3 → 3" in shown
    assert "strength" in shown
    assert len(run.json("classify", out, "a good film")) == 1


def merged() -> Any:
    """Return the committed LoRA merged into its base by PEFT."""
    hf = LlamaForSequenceClassification.from_pretrained(
        MODELS / "first", num_labels=2, pad_token_id=0, dtype=torch.float32
    )
    return PeftModel.from_pretrained(hf, REVIEWS).merge_and_unload().eval()


def test_an_adapter_is_a_classifier_too(first: zp.Model) -> None:
    tuned = zp.adapt(first, REVIEWS)
    expected_logits = logits_of(merged(), first, TEXTS)
    torch.testing.assert_close(logits_of(load_classifier(tuned), first, TEXTS), expected_logits, rtol=1e-4, atol=1e-4)
    assert stitching.first_changed(first, tuned) == 2
    stitch, record = zp.stitch_models(
        tuned, first, base=first, keep=2, options=zp.StitchOptions(labels=("bad", "good"))
    )
    assert record.labels == ("bad", "good")
    assert stitch.config.label2id == {"bad": 0, "good": 1}
    torch.testing.assert_close(logits_of(stitch, first, TEXTS), expected_logits, rtol=1e-2, atol=1e-2)


def test_an_adapter_on_an_encoder_brings_its_bias(tmp_path: Path, minilm_path: Path) -> None:
    hf = BertForSequenceClassification.from_pretrained(minilm_path, num_labels=3)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "dense"], init_lora_weights=False)
    peft_model: Any = get_peft_model(hf, lora).eval()
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if "classifier" in name and "modules_to_save" in name:
                weight.normal_()
    peft_model.save_pretrained(tmp_path / "adapter")
    base = zp.open_model(str(minilm_path))
    classifier_model = load_classifier(zp.adapt(base, tmp_path / "adapter"))
    ids = torch.tensor([[101, 2204, 2143, 102]])
    with torch.inference_mode():
        torch.testing.assert_close(classifier_model(ids).logits, peft_model(ids).logits, rtol=1e-3, atol=1e-3)


def test_the_committed_adapter_does_what_the_documents_say(first: zp.Model) -> None:
    """Stitch a LoRA of the first model onto the second: trusted, and far above its shuffled twin."""
    texts = (REVIEWS / "texts.txt").read_text(encoding="utf-8").splitlines()
    second = zp.open_model(str(MODELS / "second"))
    _, record = zp.stitch_models(
        zp.adapt(first, REVIEWS),
        second,
        base=first,
        options=zp.StitchOptions(texts=texts, kernel="centred", frame="both"),
    )
    assert record.verdict.trusted is True
    assert record.choice.agreement is not None
    assert record.choice.agreement > 0.7
    assert record.verdict.null_best is not None
    assert record.verdict.null_best < 0.6


Asked = Callable[[Path, zp.Model], list[object]]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            lambda _p, _t: ["--classifier", MODELS / "first"],
            "has no classifier's head: there is no tensor score.weight",
        ),
        (
            lambda _p, t: ["--classifier", t.name, "--keep", 9],
            "--keep is 9; .*second has 4 layers, so it is from 0 to 4",
        ),
        (lambda _p, t: ["--classifier", t.name, "--take", -1], "--take is -1; .* has 4 layers"),
        (lambda _p, t: ["--classifier", t.name, "--kernel", "nose"], "There is no kernel 'nose'"),
        (lambda _p, t: ["--classifier", t.name, "--frame", "nose"], "There is no frame 'nose'"),
        (lambda _p, t: ["--classifier", t.name, "--out", MODELS], "exists and does not hold a stitched model"),
        (lambda _p, t: ["--classifier", t.name, "--transplant"], "needs --base"),
        (lambda _p, t: ["--classifier", t.name, "--strength", 2], "--strength is for --transplant"),
        (lambda p, t: ["--classifier", t.name, "--lens", p], "--lens is given 1 times: two models need a lens each"),
        (lambda p, t: ["--classifier", t.name, "--lens", p, "--lens", p], "holds no lens"),
        (lambda _p, t: ["--classifier", t.name, "--frame", "seen"], "The frame seen needs a lens of the model"),
        (
            lambda p, t: ["--classifier", t.name, "--transplant", "--base", MODELS / "first", *["--lens", p] * 2],
            "--lens is for a stitch",
        ),
        (
            lambda _p, t: ["--classifier", t.name, "--transplant", "--base", MODELS / "first", "--keep", 2],
            "--keep and --take are for a stitch",
        ),
        (lambda _p, t: ["--classifier", t.name, "--base", MODELS / "wide"], "is no fine-tune of .*layers is 4, and 6"),
        (lambda _p, t: ["--classifier", t.name, "--base", MODELS / "second"], "was not tuned from .*second"),
        (lambda _p, t: ["--classifier", t.name, "--labels", "one"], "--labels must name the 2 labels of .*; it has 1"),
        (lambda _p, _t: ["--classifier", REVIEWS], "reviews is an adapter: it needs --base"),
        (lambda p, t: ["--classifier", t.name, "--text", p / "none.txt"], "none.txt cannot be read"),
        (lambda p, t: ["--classifier", t.name, "--text", _few(p)], "There are 3 texts; at least 50"),
        (lambda p, t: ["--classifier", t.name, "--text", _many(p), "--accuracy", 0.3], "--accuracy is 0.3"),
        (lambda p, t: ["--classifier", t.name, "--onto", _other_words(p)], "share 0 tokens|too few|share"),
    ],
)
def test_bad_arguments_are_refused(
    run: Run,
    tuned: zp.Model,
    tmp_path: Path,
    asked: Asked,
    message: str,
) -> None:
    arguments = ["--onto", MODELS / "second", "--out", tmp_path / "out", *asked(tmp_path, tuned)]
    code, out, err = run("stitch", *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err.replace("\n", " ")), err
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in err


def _few(folder: Path) -> Path:
    (folder / "few.txt").write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    return folder / "few.txt"


def _many(folder: Path) -> Path:
    (folder / "many.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder / "many.txt"


def _other_words(folder: Path) -> Path:
    """Write a model of the same family whose tokens are single letters; return its folder."""
    return tiny.save(tiny.make("llama-tied"), folder / "other")


def test_an_encoders_head_does_not_fit_a_causal_model(tuned: zp.Model, tmp_path: Path) -> None:
    hf: Any = tiny._bert(BertForSequenceClassification, num_labels=2)
    encoder = zp.open_model(str(tiny.save(hf, tmp_path / "bert")))
    with pytest.raises(BadOption, match="reads the first token, that of a causal model the last one"):
        zp.stitch_models(encoder, tuned)


def test_a_family_that_cannot_be_fed_from_outside_is_refused(tuned: zp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(halves.FED, "llama")
    with pytest.raises(BadOption, match="is a llama; the blocks of these families can be fed from outside: gpt2, bert"):
        zp.stitch_models(tuned, tuned)


@pytest.mark.parametrize("kind", ["one row", "regression"])
def test_heads_without_labels_are_refused(first: zp.Model, tmp_path: Path, kind: str) -> None:
    more = {"problem_type": "regression"} if kind == "regression" else {}
    hf = LlamaForSequenceClassification.from_pretrained(MODELS / "first", num_labels=1 + len(more), **more)
    hf.save_pretrained(tmp_path / "model")
    shutil.copy(MODELS / "first" / "tokenizer.json", tmp_path / "model")
    with pytest.raises(BadOption, match=r"has one row: a score|is for regression, which is not stitched"):
        zp.stitch_models(zp.open_model(str(tmp_path / "model")), first)


def test_a_base_with_the_same_blocks_is_refused(tuned: zp.Model) -> None:
    with pytest.raises(BadOption, match="nothing was fine-tuned but, perhaps, the head"):
        stitching.first_changed(tuned, tuned)


def test_a_full_disk_leaves_nothing_half_written(
    tuned: zp.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_given: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stitching, "save_file", full)
    with pytest.raises(BadOption, match=r"out could not be written \(No space left on device\)"):
        zp.stitch_models(tuned, zp.open_model(str(MODELS / "second")), tmp_path / "out", keep=2, take=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["nothing", "no stitch", "no weights", "other family", "not JSON"])
def test_a_damaged_folder_is_named(run: Run, tuned: zp.Model, tmp_path: Path, harm: str) -> None:
    out = tmp_path / "out"
    if harm != "nothing":
        zp.stitch_models(tuned, zp.open_model(str(MODELS / "second")), out, keep=2, take=2)
    if harm == "no stitch":
        (out / "stitch.json").unlink()
    if harm == "no weights":
        (out / "model.safetensors").unlink()
    if harm == "other family":
        settings = json.loads((out / "config.json").read_text(encoding="utf-8"))
        settings["upper"]["model_type"] = "opt"
        (out / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    if harm == "not JSON":
        (out / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CannotRun, match="out does not hold a stitched model"):
        load_stitched(out)
    code, shown, err = run("classify", out, "good")
    assert (code, shown) == (2, "")
    assert "does not hold a stitched model" in err.replace("\n", " ")


def test_the_missing_extra_is_named() -> None:
    names = ("classify", "load_stitched", "stitch_models")
    code = f"""
import sys
sys.modules["transformers"] = None
import zeropass as zp
for name in {names}:
    try:
        getattr(zp, name)
    except zp.ZeropassError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)
    assert all(line.startswith("MissingExtra") and "zeropass[run]" in line for line in lines)


def test_a_text_without_a_token_is_refused(tuned: zp.Model, tmp_path: Path) -> None:
    zp.stitch_models(tuned, zp.open_model(str(MODELS / "second")), tmp_path / "out", keep=2, take=2)
    with pytest.raises(BadOption, match="The text '' has no token"):
        zp.classify(tmp_path / "out", [""])


@pytest.mark.real
def test_minilm_takes_a_head_over_a_seam(minilm_path: Path, tmp_path: Path) -> None:
    """Stitch MiniLM-L6 under a random head onto itself: the norm at the seam leaves normed states as they are."""
    hf = BertForSequenceClassification.from_pretrained(minilm_path, num_labels=2)
    hf.save_pretrained(tmp_path / "tuned")
    shutil.copy(minilm_path / "tokenizer.json", tmp_path / "tuned")
    tune, base = zp.open_model(str(tmp_path / "tuned")), zp.open_model(str(minilm_path))
    expected_logits = logits_of(load_classifier(tune), tune, TEXTS)
    for kernel in ("orthogonal", "identity"):
        stitch, _ = zp.stitch_models(tune, base, keep=3, take=3, options=zp.StitchOptions(kernel=kernel, frame="token"))
        torch.testing.assert_close(logits_of(stitch, base, TEXTS), expected_logits, rtol=1e-2, atol=1e-3)
    assert bridge(base, tune).fit("orthogonal", "both") == 1.0
