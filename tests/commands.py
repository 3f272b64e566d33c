"""The command line as tests run it: in this process or in a new one."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

import small
from zeropass.cli import main as cli

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


class Run:
    """A callable that runs the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["zeropass", *map(str, arguments)])
        code: Any = 0
        try:
            with small.one_thread():
                cli.main()
        except SystemExit as end:
            code = end.code
        captured = self.capsys.readouterr()
        return code or 0, captured.out, captured.err

    def json(self, *arguments: object) -> Any:
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def shell(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process."""
    line = [sys.executable, "-m", "zeropass", *map(str, arguments)]
    options = {"env": ENVIRONMENT, "timeout": 300, "text": True, "capture_output": True} | options
    return subprocess.run(line, **options)
