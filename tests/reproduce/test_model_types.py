"""The table of all model types of transformers: complete, true of the records, and as the script writes it."""

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from scripts import ROOT, imported
from zeropass.arch.families.multimodal import NOT_READ
from zeropass.arch.family_table import type_rows

(script,) = imported(ROOT / "reproduce", ("model_types",))

SOURCE = script.REASONS.read_text(encoding="utf-8")
KINDS = script.reasons(SOURCE)
UNREAD = {name for types in KINDS.values() for name in types}
READ = {row["model_type"] for row in type_rows()}
PRUNE = "run: python reproduce/model_types.py --prune"


def test_every_model_type_is_read_or_has_a_reason() -> None:
    """Fail when transformers adds a type; write in unread_types.toml why it is not read."""
    assert sorted(CONFIG_MAPPING_NAMES.keys() - READ - UNREAD) == []


def test_no_reason_is_left_over() -> None:
    assert sorted(UNREAD & READ) == [], PRUNE
    assert sorted(UNREAD - CONFIG_MAPPING_NAMES.keys()) == []
    assert sum(map(len, KINDS.values())) == len(UNREAD)


def test_what_is_refused_with_a_reason_has_one_in_the_table() -> None:
    assert NOT_READ.keys() <= UNREAD


def test_the_page_is_what_the_script_writes() -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(KINDS), "run: python reproduce/model_types.py"


def test_a_type_that_gets_a_record_is_moved() -> None:
    names = {"mamba", "speech-encoder-decoder", "kosmos-2.5"}
    pruned = script.pruned(SOURCE, names)
    left = script.reasons(pruned)
    assert UNREAD - {name for types in left.values() for name in types} == names
    assert [line for line in SOURCE.splitlines() if line not in pruned.splitlines()] == [
        line for line in SOURCE.splitlines() if line.split(" = ")[0].strip('"') in names
    ]


def test_a_page_has_one_row_for_each_type() -> None:
    lines = script.PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) == len(CONFIG_MAPPING_NAMES)
    assert len(set(rows)) == len(rows)
    assert any(line.startswith("| `cohere` | safetensors, GGUF | decoder | cohere | `use_qk_norm` f") for line in rows)
    assert any(line.startswith("| `gemma3` | safetensors, GGUF | text model | gemma3 |") for line in rows)
    assert any(line.startswith("| `mamba` | state-space") for line in rows)
