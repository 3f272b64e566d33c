"""Another program, which gets a prompt on stdin and answers on stdout. It is called without a shell."""

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from zeropass.errors import BadOption
from zeropass.tokens.shown import shown_text

__all__ = ["Program"]

_MOST = 20_000
"""The most bytes of an answer, and the last bytes of stderr that are kept."""

_TICK = 0.05
"""Seconds between two looks at the clock while a program is silent."""


@dataclass(frozen=True)
class Program:
    """A command that answers prompts.

    Attributes:
        command: The command with its arguments, quoted as in a shell.
        timeout: The most seconds of an answer.
    """

    command: str
    timeout: float

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise BadOption(f"--timeout is {self.timeout}; it must be more than 0 seconds.")
        if not (arguments := self.arguments):
            raise BadOption("--with is empty; it names a command that reads a prompt and prints an answer.")
        if shutil.which(arguments[0]) is None:
            raise BadOption(f"--with {self._name}: there is no program {shown_text(arguments[0])}.")

    @property
    def arguments(self) -> list[str]:
        """The program and its arguments; raises BadOption if a quotation mark is not closed."""
        try:
            return shlex.split(self.command)
        except ValueError as error:
            raise BadOption(f"--with {self._name} is no command: {error}.") from error

    @property
    def _name(self) -> str:
        return shown_text(self.command, limit=120)

    def answer(self, prompt: str) -> str:
        """Return the answer to a prompt.

        Raises:
            BadOption: The program cannot be started, fails, takes too long, or answers too much or something other
                than text.
        """
        with self._started(prompt) as process:
            answer, errors = self._output(process)
            code = process.wait()
        if code:
            reason = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise self.failure(f"It ended with code {code}" + (f": {shown_text(reason, limit=200)}" if reason else "."))
        try:
            return answer.decode()
        except UnicodeDecodeError as error:
            raise self.failure(f"Its answer is not UTF-8 text (byte {error.start}).") from error

    def failure(self, what: str) -> BadOption:
        """Return the error that says what is wrong with the command."""
        return BadOption(f"--with {self._name}: {what}")

    @contextmanager
    def _started(self, prompt: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Yield the running program, in a session of its own so that all of it ends with an error or Ctrl-C."""
        with tempfile.TemporaryFile() as file:
            file.write(prompt.encode("utf-8", "backslashreplace"))
            file.seek(0)
            pipe = subprocess.PIPE
            try:
                process = subprocess.Popen(  # noqa: S603  (the user's own command)
                    self.arguments, stdin=file, stdout=pipe, stderr=pipe, start_new_session=True
                )
            except OSError as error:
                raise self.failure(f"It cannot be started ({error.strerror or error}).") from error
            with process:
                try:
                    yield process
                except BaseException:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    raise

    def _output(self, process: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
        """Return what a program writes to stdout before it ends, and the last that it writes to stderr."""
        answer, errors, deadline = bytearray(), bytearray(), time.monotonic() + self.timeout
        with selectors.DefaultSelector() as pipes:
            for pipe, into in ((process.stdout, answer), (process.stderr, errors)):
                pipes.register(pipe, selectors.EVENT_READ, into)  # type: ignore[arg-type]  # both are pipes
            while pipes.get_map() or process.poll() is None:
                ready = pipes.select(_TICK)
                for key, _ in ready:
                    part = os.read(key.fd, _MOST)
                    key.data.extend(part)
                    if not part:
                        pipes.unregister(key.fileobj)
                if not ready and process.poll() is not None:
                    break  # what still holds a pipe open is a server that the program has started
                if len(answer) > _MOST:
                    raise self.failure(f"It answered more than {_MOST:,} bytes.")
                if time.monotonic() > deadline:
                    raise self.failure(f"It took longer than {self.timeout:g} seconds (--timeout).")
                del errors[:-_MOST]
        return bytes(answer), bytes(errors)
