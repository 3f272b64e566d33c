"""The files to hand over: the page, the JSON and its schema, SARIF; and the exit code for a pipeline."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import zeropass as zp
from commands import Run
from planted_word import MODEL, plant, planted
from zeropass.diff.findings import unjudged
from zeropass.diff.report import report
from zeropass.diff.results import Constant, Moved, ParameterChange, TensorChange, diff_schema
from zeropass.diff.sarif import sarif
from zeropass.diff.verdict import FailOn, failure, verdict

SCHEMA = Path(__file__).parents[2] / "docs" / "diff.schema.json"
"""The schema in the docs, which ``python tests/diff/test_report.py`` writes."""

BAD = "<script>alert(1)</script>"
VOID = {"meta", "rect"}


class Tags(HTMLParser):
    """The tags of a page, checked to be closed in order, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def strange() -> zp.Diff:
    """Return a comparison in which every text of a stranger is a script."""
    difference = planted()
    word = replace(difference.writes[0], token=replace(difference.writes[0].token, token=BAD))
    direction = replace(
        difference.matrices[0].directions[0], left=(replace(difference.matrices[0].directions[0].left[0], token=BAD),)
    )
    neuron = difference.neurons[0]
    outside = ParameterChange(address="classifier.0", relative=1.0, before=(), after=neuron.after, label=BAD)
    bad = replace(
        difference,
        base=difference.base | {"name": BAD, "files": {BAD: BAD}, "types": [BAD], "sha256": BAD},
        tuned=difference.tuned | {"name": BAD},
        writes=(word, *difference.writes[1:]),
        writes_others=(word,),
        matrices=(replace(difference.matrices[0], directions=(direction,)), *difference.matrices[1:]),
        outside=(outside,),
        added=(BAD,),
        removed=(BAD,),
        constants=(Constant(name=BAD, before=BAD, after=BAD),),
        tables=(
            TensorChange(
                name=BAD,
                what=BAD,
                layer=None,
                state="changed",
                rows_before=2,
                rows_after=2,
                moved=1,
                most=(Moved(BAD, 0.1, 0.9),),
            ),
        ),
        words=(replace(difference.words[0], word=BAD, pieces=(BAD, BAD), split=True),),
        made=difference.made | {"command": BAD, BAD: BAD},
    )
    return replace(bad, verdict=verdict(bad))


def test_the_page_says_the_verdict_the_null_the_places_and_what_it_was_made_from() -> None:
    difference = replace(planted(), made=planted().made | {"command": "zeropass diff a b"})
    page = Tags(report(difference))
    for line in difference.verdict:
        assert line in page.text
    assert f"reach {difference.finding.chance:.1f}" in page.text
    places = difference.writes[0].places
    assert ", ".join(f"L{place.layer} {place.role} {place.share:.0%}" for place in places) in page.text
    for side in (difference.base, difference.tuned):
        assert all(name in page.text and digest in page.text for name, digest in side["files"].items())
    assert all(version in page.text for version in difference.made.values())
    assert "Watched words" in page.text
    assert page.tags.count("svg") == 1


def test_the_page_is_complete_in_itself_and_escapes_what_strangers_wrote() -> None:
    page = Tags(report(strange()))
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert page.text.count(BAD) > 20
    assert not re.search(r"url\(|@import", report(strange()))


def test_a_page_of_equal_models_and_of_unrelated_ones_has_no_words() -> None:
    model = zp.open_model(MODEL)
    equal = zp.compare(model, model)
    assert "The models are equal" in Tags(report(equal)).text
    apart = replace(planted(), relation="unrelated")
    assert "Words that it writes most" not in Tags(report(replace(apart, verdict=verdict(apart)))).text


def test_the_schema_is_that_of_the_records_and_holds_for_what_is_written(run: Run, tmp_path: Path) -> None:
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(diff_schema())), f"run python {__file__}"
    validator = jsonschema.Draft202012Validator(diff_schema())
    validator.check_schema(diff_schema())
    values = [planted().to_json(), strange().to_json(), run.json("diff", MODEL, MODEL)]
    values += [run.json("diff", MODEL, "--adapter", Path(MODEL).parent / "tunes" / "reviews")]
    for value in values:
        validator.validate(json.loads(json.dumps(value)))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(values[0] | {"alarm": []})


RULES = {"narrow": "error", "topic": "warning", "unjudged": "note"}


@pytest.mark.parametrize("answer", [*RULES, "nothing"])
def test_a_finding_is_one_result_for_code_scanning(answer: Any) -> None:
    """Check what GitHub requires; the log of each answer was validated against the schema of OASIS by hand."""
    difference = replace(planted(), finding=replace(planted().finding, answer=answer, reason="it is a test"))
    difference = replace(difference, verdict=verdict(difference))
    log = sarif(difference, "adapters/one two")
    assert log["version"] == "2.1.0"
    (part,) = log["runs"]
    rules = part["tool"]["driver"]["rules"]
    if answer == "nothing":
        assert part["results"] == []
        return
    (result,) = part["results"]
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == f"zeropass/{answer}-change"
    assert result["level"] == rules[result["ruleIndex"]]["defaultConfiguration"]["level"] == RULES[answer]
    location = result["locations"][0]["physicalLocation"]
    assert location["artifactLocation"]["uri"] == "adapters/one%20two/adapter_model.safetensors"
    assert location["region"]["startLine"] == 1
    assert difference.verdict[0] in result["message"]["text"]
    assert "␣music" in result["message"]["text"]
    assert result["partialFingerprints"]


def test_the_location_is_relative_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def uri(place: Path) -> str:
        result = sarif(planted(), place)["runs"][0]["results"][0]
        return str(result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])

    monkeypatch.chdir(tmp_path)
    assert uri(tmp_path / "a") == "a/adapter_model.safetensors"
    assert uri(Path("/elsewhere")) == "file:///elsewhere/adapter_model.safetensors"
    assert uri(Path("a/adapter_model.safetensors")) == "a/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("answer", "failing"),
    [("narrow", {"narrow", "topic", "any"}), ("topic", {"topic", "any"}), ("nothing", {"any"})],
)
def test_each_level_fails_on_its_kinds(answer: Any, failing: set[str]) -> None:
    difference = replace(planted(), finding=replace(planted().finding, answer=answer))
    levels: tuple[FailOn, ...] = ("narrow", "topic", "any")
    assert {level for level in levels if failure(difference, level)} == failing
    for relation in ("equal", "rounded"):
        same = replace(planted(), relation=relation, finding=unjudged("nothing changed"))  # type: ignore[arg-type]
        assert not any(failure(same, level) for level in levels)
    unknown = replace(planted(), finding=unjudged("it is a test"))
    assert all("not judged" in failure(unknown, level) for level in levels)
    apart = replace(unknown, relation="unrelated")
    assert all(failure(apart, level) for level in levels)


def test_a_pipeline_gets_an_exit_code_after_all_output(run: Run, tmp_path: Path) -> None:
    adapter, out, log = plant(tmp_path / BAD.replace("/", "_")), tmp_path / "out", tmp_path / "log.sarif"
    arguments = ("diff", MODEL, "--adapter", adapter, "--out", out, "--sarif", log, "--json")
    code, text, err = run(*arguments, "--fail-on", "narrow")
    assert code == 1
    assert err == "--fail-on narrow: the change is narrow.\n"
    value = json.loads(text)
    assert value == json.loads((out / "diff.json").read_text())
    assert value["finding"]["answer"] == "narrow"
    assert "--fail-on narrow" in value["made"]["command"]
    page = Tags((out / "report.html").read_text())
    assert "script" not in page.tags
    assert "with <script>alert(1)<_script>" in page.text
    assert "--fail-on narrow" in page.text
    assert json.loads(log.read_text())["runs"][0]["results"][0]["level"] == "error"
    reviews = Path(MODEL).parent / "tunes" / "reviews"
    assert run("diff", MODEL, "--adapter", reviews, "--fail-on", "topic")[0] == 0
    code, text, err = run("diff", MODEL, "--adapter", reviews, "--fail-on", "any")
    assert (code, "nothing in particular" in err) == (1, True)
    assert "NOTHING IN PARTICULAR" in text
    assert run("diff", MODEL, MODEL, "--fail-on", "any")[0] == 0
    assert run("diff", MODEL, MODEL, "--fail-on", "all")[0] == 2


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(diff_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
