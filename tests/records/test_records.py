"""Records: plain data, JSON, and a notebook display from which no token can escape."""

import importlib
import inspect
import json
import pkgutil
import re
from html.parser import HTMLParser
from typing import Any

import pytest

import small
import zeropass as zp
from zeropass.records.parameters import (
    Certificate,
    Hidden,
    PairRecord,
    PairScore,
    Records,
    Token,
    TokenScore,
    VectorRecord,
)
from zeropass.records.search import FindRecord, Hit

HIDDEN = Hidden("default", 0, 47_029, {})


def vector(*texts: str) -> VectorRecord:
    tokens = tuple(TokenScore(i, text, 1.5, 2.25) for i, text in enumerate(texts))
    return VectorRecord("L1.ff.2", "gate", "read", "token", 1.0, tokens, tokens, 0.0, 1.0, HIDDEN)


def pair(text: str) -> PairRecord:
    pairs = (PairScore(Token(1, text), Token(2, text), 3.0),)
    return PairRecord("L1.attn.2", "vo", 0, "token", pairs, Certificate(3.0, None, True), HIDDEN)


def find(text: str) -> FindRecord:
    return FindRecord((Token(1, text),), (Hit("L1.ff.2", "read", "gate", "token", 1.0, 2.0),))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[Any] = []

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.add(tag)
        self.attributes += attrs


@pytest.mark.parametrize("text", small.HOSTILE)
def test_the_notebook_shows_a_token_and_never_runs_it(text: str) -> None:
    for record in (vector(text), pair(text), find(text), Records([vector(text), pair(text)])):
        shown = record._repr_html_()
        parser = Tags()
        parser.feed(shown)
        assert parser.tags <= {"table", "caption", "b", "i", "tr", "th", "td", "code", "small", "p"}
        assert set(parser.attributes) <= {("style", "opacity:.6")}  # of a list in which no token stands out
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
        assert len(shown) < 2000


@pytest.mark.parametrize("text", small.HOSTILE)
def test_json_keeps_a_token_unchanged(text: str) -> None:
    record = json.loads(json.dumps(vector(text).to_json(), allow_nan=False))
    assert record["top"] == [{"id": 0, "token": text, "score": 1.5, "z": 2.25}]
    assert json.loads(json.dumps(pair(text).to_json()))["pairs"][0]["left"] == {"id": 1, "token": text}
    assert json.loads(json.dumps(find(text).to_json()))["query"] == [{"id": 1, "token": text}]


def test_the_notebook_displays_every_type_of_record(tmp_path_factory: pytest.TempPathFactory) -> None:
    built = small.built("llama", tmp_path_factory)
    shown = built.lens["L1.ff.2"]._repr_html_() + built.atlas["L1.attn.2"]._repr_html_()
    shown += built.lens.svd("L1.attn.2.vo")._repr_html_() + built.atlas.find("babade")._repr_html_()
    for part in ("L1.ff.2", "is about to say", "writes", "as query attends to", "when attended to, promotes"):
        assert part in shown
    for part in ("tokens are hidden", "exact: the search ended at", "token frame", "<th>query</th><th>key</th>"):
        assert part in shown
    parser = Tags()
    parser.feed(shown)
    assert "table" in parser.tags


def test_records_are_a_sequence() -> None:
    first, second = vector("a"), pair("b")
    records = Records(iter([first, second]))
    assert len(records) == 2
    assert list(records) == [first, second]
    assert records[0] is first
    assert records[-1] is second
    assert list(records[:1]) == [first]
    assert first in records
    assert list(reversed(records)) == [second, first]
    assert repr(records) == "Records(L1.ff.2.gate token, L1.attn.2.vo token)"
    assert [r["role"] for r in records.to_json()] == ["gate", "vo"]
    with pytest.raises(IndexError):
        records[2]


@pytest.mark.parametrize(
    ("side", "frame", "verb"),
    [
        ("read", "token", "sees"),
        ("read", "output", "is about to say"),
        ("write", "output", "writes"),
        ("read", "paper", "reads (paper)"),
        ("write", "paper", "writes (paper)"),
    ],
)
def test_a_list_says_what_it_does_in_words(side: str, frame: str, verb: str) -> None:
    assert VectorRecord("L1.ff.2", "gate", side, frame, 1.0, (), (), 0.0, 1.0, HIDDEN).verb == verb


def test_the_public_names_are_as_listed() -> None:
    assert zp.__all__ == sorted(zp.__all__)
    assert set(zp.__all__) == {
        *(
            "Adapted",
            "Address",
            "Against",
            "Alignment",
            "Atlas",
            "Dictionary",
            "Diff",
            "Evidence",
            "Factored",
            "Frames",
            "HeadCatalogue",
            "Lens",
            "LensMaps",
            "Model",
            "Options",
            "Proof",
            "TopPairs",
            "ZeropassError",
        ),
        *(
            "__version__",
            "build",
            "build_on_cluster",
            "calibrate",
            "catalogue_heads",
            "collect_evidence",
            "compare",
            "load",
            "open_atlas",
            "open_dictionary",
            "open_model",
            "open_tuned",
            "parse",
            "parse_size",
            "prove",
            "push_atlas",
            "read_evidence",
            "read_lens",
        ),
        *(
            "adapt",
            "against",
            "align_models",
            "build_change",
            "build_on_cluster",
            "fired_passages",
            "match",
            "pair_of",
            "read_alignment",
            "write_against",
            "write_diff",
            "top_pairs",
        ),
        *("Push", "Chosen", "Sources", "export_site", "lens_of", "open_sources", "pairs_with", "serve", "serve_mcp"),
        *("Feeds", "HeadPairs", "InductionHeads", "WordPaths", "feeds", "head_pairs", "induction_heads", "paths"),
        *("Labels", "kept_labels", "label"),
        *("Relations", "relation"),
        *("Screening", "screen", "thresholds_of", "write_thresholds"),
        *("Stitch", "StitchOptions", "bridge", "classify", "load_stitched", "stitch_models", "translate", "transplant"),
    }
    assert dir(zp) == zp.__all__
    for name in zp.__all__:
        assert getattr(zp, name) is not None
    with pytest.raises(AttributeError, match="nose"):
        zp.nose  # noqa: B018


def _names(module: Any) -> list[str]:
    defined = [n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
    return getattr(module, "__all__", [name for name in defined if not name.startswith("_")])


def _public(thing: Any) -> list[tuple[str, Any]]:
    """Return a class or function, and the public methods and properties that the class itself defines."""
    members = [(thing.__name__, thing)]
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            member = getattr(member, "func", member)  # cached_property
            if not name.startswith("_") and (callable(member) or isinstance(member, property | classmethod)):
                members.append((f"{thing.__name__}.{name}", member))
    return members


def test_everything_public_has_a_docstring() -> None:
    names = [info.name for info in pkgutil.walk_packages(zp.__path__, "zeropass.")]
    for module in map(
        importlib.import_module, sorted({*names} - {"zeropass.__main__", "zeropass.numerics.triton_kernels"})
    ):
        assert module.__doc__
        for thing in (getattr(module, name) for name in _names(module)):
            for name, member in _public(thing) if inspect.isclass(thing) or inspect.isfunction(thing) else []:
                assert inspect.getdoc(member), f"{module.__name__}.{name} has no docstring"
    for name in zp.errors.__all__ if hasattr(zp, "errors") else []:
        assert inspect.getdoc(getattr(zp.errors, name))
