"""Connections whose question does not come are closed: neither uvicorn nor h11 sets a limit to that."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEAD", "Impatient"]

HEAD = 10.0
"""Seconds in which a question must have come whole, from when its connection was made or its first byte came."""


class Impatient(H11Protocol):
    """uvicorn's protocol, with a deadline for the head of every request."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection: its first question is awaited."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """A part of a question, or a whole one."""
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """An answer is out: a next question that had begun behind the last one is awaited like any other."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of a connection: nothing is awaited any more."""
        self._cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # a whole head has come
            self._cancel()
        elif self._due is None:
            self._due = self.loop.call_later(HEAD, self._close)

    def _cancel(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _close(self) -> None:
        self._due = None
        if not self.transport.is_closing():
            self.transport.close()
