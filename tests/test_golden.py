"""The form of what zeropass writes and prints is as recorded; `golden.py` says how to inspect a difference."""

import subprocess
import sys
from pathlib import Path

import golden


def test_the_form_of_everything_is_as_recorded() -> None:
    line = [sys.executable, str(Path(golden.__file__)), "--form"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"


def test_a_form_ignores_numbers_and_nothing_else(tmp_path: Path) -> None:
    texts = ("a  12.5 | 3e-7", "a 1.25 | -4", "b 12.5 | 3", "a 12.5 | 3 | 4", "a .5 | -.4")
    paths = [tmp_path / f"{n}.txt" for n in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    first, same, word, more, sign = map(golden.form, paths)
    assert first == same == sign
    assert len({first, word, more}) == 3


def test_differences_are_named() -> None:
    items = {"a": {"form": "1", "whole": "2"}, "b": {"form": "1", "whole": "2"}, "c": {"form": "1", "whole": "2"}}
    recorded = {"a": {"form": "1", "whole": "3"}, "b": {"form": "4", "whole": "2"}, "d": {"form": "1", "whole": "2"}}
    assert golden.differences(items, recorded, "form") == ["differs: b", "new: c", "missing: d"]
    assert golden.differences(items, recorded, "whole") == ["differs: a", "new: c", "missing: d"]
