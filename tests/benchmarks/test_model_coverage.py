"""The benchmark of coverage: its registry, its groups, and the types that docs/benchmarks.md names."""

from pathlib import Path

import pytest

from scripts import ROOT, imported

(coverage,) = imported(ROOT / "benchmarks", ("model_coverage",))

KINDS = {"no text stream": {"vit": "images"}, "latent attention": {"deepseek_v3": "latent projections"}}


def test_the_registry_is_read_without_importing_it(tmp_path: Path) -> None:
    source = tmp_path / "factory.py"
    source.write_text('raise ImportError\nSUPPORTED_ARCHITECTURES: dict = {"LlamaForCausalLM": Adapter, **more}\n')
    assert coverage.registered(source) == ["LlamaForCausalLM"]
    source.write_text("OTHER = {}\n")
    with pytest.raises(SystemExit, match="SUPPORTED_ARCHITECTURES"):
        coverage.registered(source)


def test_a_class_has_all_its_model_types() -> None:
    types = coverage.types_of_classes()
    assert types["GPT2LMHeadModel"] == {"gpt2", "gpt-sw3"}
    assert "llama" in types["LlamaForCausalLM"]


def test_types_are_grouped_by_why_they_are_not_read() -> None:
    assert coverage.by_kind({"vit", "deepseek_v3"}, KINDS) == {
        "no text stream": ["vit"],
        "latent attention": ["deepseek_v3"],
    }
    assert coverage.attention_and_mlp({"vit", "deepseek_v3"}, KINDS) == ["deepseek_v3"]


def test_the_kinds_of_other_blocks_are_kinds_of_the_table() -> None:
    assert set(coverage.OTHER_BLOCKS) <= coverage.tomllib.loads(coverage.REASONS.read_text(encoding="utf-8")).keys()


def test_the_formats_are_those_of_the_records() -> None:
    table = coverage.formats(134)
    assert "| model types | " in table
    assert "bitsandbytes, fp8" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1
