"""Several adapters on one base, with weights: what PEFT's model computes in which all of them are active."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import tiny
import zeropass as zp
from adapters import ALL, IDS, alike, base_model, randomise
from commands import Run
from zeropass.errors import BadModel, BadOption
from zeropass.model.adapted import adapt

pytestmark = pytest.mark.filterwarnings("ignore")


def trained(variant: str, folder: Path, config: peft.PeftConfig) -> Path:
    """Save a random adapter."""
    hf: Any = peft.get_peft_model(base_model(variant), config)
    randomise(hf)
    with torch.no_grad():  # each folder has numbers of its own
        for name, parameter in hf.named_parameters():
            if "lora_" in name:
                parameter.mul_(1 + len(folder.name) / 7)
    hf.save_pretrained(folder)
    return folder


def running(variant: str, folders: Sequence[Path], weights: Sequence[float]) -> Any:
    """Return PEFT's model in which several adapters are active with weights."""
    names = [folder.name for folder in folders]
    model: Any = peft.PeftModel.from_pretrained(base_model(variant), str(folders[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    model.base_model.set_adapter(names)
    for module in model.modules():
        for name, weight in zip(names, weights, strict=True):
            if isinstance(scaling := getattr(module, "scaling", None), dict) and name in scaling:
                scaling[name] *= weight
    return model.eval()


CONFIGS: dict[str, tuple[str, dict[str, peft.PeftConfig]]] = {
    "ranks": (
        "llama",
        {
            "one": peft.LoraConfig(r=4, lora_alpha=6, target_modules=ALL, alpha_pattern={"up_proj": 5}),
            "other": peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], use_rslora=True),
            "third": peft.LoraConfig(r=1, lora_alpha=2, target_modules=["lm_head", "v_proj"]),
        },
    ),
    "biases": (
        "llama-biased",
        {
            "one": peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], lora_bias=True),
            "other": peft.LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "v_proj"], lora_bias=True),
        },
    ),
    "fused": (
        "gpt2",
        {
            "one": peft.LoraConfig(r=2, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True),
            "other": peft.LoraConfig(r=3, lora_alpha=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        },
    ),
    "adaptive": (
        "llama",
        {
            "one": peft.AdaLoraConfig(init_r=2, target_r=1, total_step=9, lora_alpha=6, target_modules=["q_proj"]),
            "other": peft.AdaLoraConfig(
                init_r=3, target_r=1, total_step=9, lora_alpha=3, target_modules=["q_proj"], inference_mode=True
            ),
        },
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_adapters_add_up_as_in_peft(case: str, tmp_path: Path) -> None:
    variant, configs = CONFIGS[case]
    weights = (1.0, -0.5, 2.0)[: len(configs)]
    base = zp.open_model(str(tiny.save(base_model(variant), tmp_path / "base")))
    folders = [trained(variant, tmp_path / name, config) for name, config in configs.items()]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = running(variant, folders, weights)
        logits = theirs(input_ids=IDS)[0]
        merged: Any = theirs.merge_and_unload(adapter_names=[folder.name for folder in folders])
        torch.testing.assert_close(merged.eval()(input_ids=IDS)[0], logits, rtol=1e-3, atol=1e-3)
    tiny.save(merged, tmp_path / "merged")
    mine = adapt(base, folders, weights)
    assert mine.name == f"{tmp_path / 'base'} with one + -0.5 × other{' + 2 × third' if len(folders) > 2 else ''}"
    if case != "biases":  # a bias that PEFT adds to a base without one
        alike(mine, zp.open_model(str(tmp_path / "merged")))
    for layer in range(base.dims.layers):
        reference = zp.open_model(str(tmp_path / "merged"))
        torch.testing.assert_close(mine.matrix("q", layer), reference.matrix("q", layer), rtol=1e-4, atol=1e-5)
        bias, expected = mine.vector("q_bias", layer), reference.vector("q_bias", layer)
        if bias is not None and expected is not None:
            torch.testing.assert_close(bias, expected, rtol=1e-4, atol=1e-5)
        assert (bias is None) == (expected is None)


def test_the_sum_is_what_peft_concatenates(tmp_path: Path) -> None:
    configs = CONFIGS["ranks"][1]
    folders = [trained("llama", tmp_path / name, configs[name]) for name in ("one", "other")]
    base = zp.open_model(str(tiny.save(base_model("llama"), tmp_path / "base")))
    theirs = running("llama", folders, (1, 1))
    theirs.add_weighted_adapter(["one", "other"], [0.7, 0.2], "both", combination_type="cat")
    theirs.save_pretrained(tmp_path, selected_adapters=["both"])
    mine, saved = adapt(base, folders, [0.7, 0.2]), adapt(base, tmp_path / "both")
    for role in base.matrices(1):
        torch.testing.assert_close(mine.matrix(role, 1), saved.matrix(role, 1), rtol=1e-4, atol=1e-5)
    change = mine.change("q", 1)
    assert isinstance(change, zp.Factored)
    assert change.left.shape[1] == 6


def test_one_adapter_may_have_a_weight(tmp_path: Path) -> None:
    folder = trained("llama", tmp_path / "one", CONFIGS["ranks"][1]["one"])
    base = zp.open_model(str(tiny.save(base_model("llama"), tmp_path / "base")))
    plain, half, twice = adapt(base, folder), adapt(base, folder, [0.5]), adapt(base, [folder, folder])
    whole = plain.matrix("up", 1) - base.matrix("up", 1)
    torch.testing.assert_close(half.matrix("up", 1) - base.matrix("up", 1), whole / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(twice.matrix("up", 1) - base.matrix("up", 1), 2 * whole, rtol=1e-4, atol=1e-6)
    assert len({plain.fingerprint, half.fingerprint, twice.fingerprint, base.fingerprint}) == 4
    assert plain.fingerprint == adapt(base, [folder], [1]).fingerprint
    assert half.command == f"{base.name} --adapter {folder} --weight 0.5"
    assert zp.against(base, plain, half).cosine == pytest.approx(1)


REFUSED: dict[str, tuple[peft.PeftConfig, str]] = {
    "dora": (peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "DoRA sets lengths"),
    "scaled": (peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]), "IA3 multiplies"),
    "norms": (peft.LNTuningConfig(target_modules=["norm"]), "brings final_norm whole"),
    "saved": (peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]), "brings .*norm whole"),
    "tokens": (peft.TrainableTokensConfig(token_indices=[3]), "trained tokens replace rows"),
    "computed": (peft.LoHaConfig(r=2, target_modules=["q_proj"]), "computes its method"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_sum_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    config, words = REFUSED[kind]
    folders = [
        trained("llama", tmp_path / "plain", peft.LoraConfig(r=2, target_modules=["v_proj"])),
        trained("llama", tmp_path / kind, config),
    ]
    base = zp.open_model(str(tiny.save(base_model("llama"), tmp_path / "base")))
    for places, weights in ((folders, None), (folders[::-1], None), (folders[1:], [0.5])):
        with pytest.raises(BadModel, match=f"{kind} has no weighted sum .*{words}"):
            adapt(base, places, weights)
    assert adapt(base, folders[1]).changed or adapt(base, folders[1]).replaced


def test_the_commands_take_several(run: Run, tmp_path: Path) -> None:
    configs = CONFIGS["ranks"][1]
    one, other = (trained("llama", tmp_path / name, configs[name]) for name in ("one", "other"))
    base = tiny.save(base_model("llama"), tmp_path / "base")
    both = ("--adapter", one, "--adapter", other, "--weight", "1", "--weight", "-0.5")
    stacked = zp.load(adapt(zp.open_model(str(base)), [one, other], [1, -0.5]))
    run.capsys.readouterr()
    shown = [record["top"][0] for record in run.json("show", base, "L1.ff.3", *both)]
    assert [entry["token"] for entry in shown] == [record.top[0].token for record in stacked.explain("L1.ff.3")]
    run.capsys.readouterr()
    assert run.json("prove", base, *both)["proven"]
    assert run.json("diff", base, *both)["tuned"]["name"] == stacked.model.name
    against = run.json("diff", base, *both, "--against", one)
    assert (against["relation"], against["second"]["name"]) == ("different", f"{base} with one")
    for options, words in (
        (("--adapter", one, "--weight", "1", "--weight", "2"), "--weight is given 2 times, --adapter 1 times"),
        (("--weight", "1"), "--adapter 0 times"),
        (("--adapter", one, "--weight", "nan"), "finite number"),
    ):
        code, _, err = run("show", base, "L1.ff.3", *options)
        assert code == 2
        assert words in err
    with pytest.raises(BadOption, match="No adapter"):
        adapt(zp.open_model(str(base)), [])
    with pytest.raises(BadOption, match="2 weights for 1 adapters"):
        adapt(zp.open_model(str(base)), one, [1, 2])
