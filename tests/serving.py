"""A server of some contexts on a free port of this machine, and what a page holds, for tests."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import uvicorn

from zeropass.web.app import KEEP_ALIVE, application, bound_socket
from zeropass.web.context import Context
from zeropass.web.load import Sources, open_sources
from zeropass.web.security import DeadlineProtocol, Rules


@contextmanager
def serving(contexts: Sequence[Context], rules: Rules = Rules()) -> Iterator[str]:  # noqa: B008
    """The address of a running server, without a slash at its end."""
    config = uvicorn.Config(
        application(contexts, rules),
        log_level="error",
        lifespan="off",
        ws="none",
        http=DeadlineProtocol,
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = uvicorn.Server(config)
    with bound_socket("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def contexts_of(atlas: Path, model: Path | None = None) -> list[Context]:
    """The context of one atlas."""
    return open_sources(Sources(atlas, None if model is None else str(model)))


def links_of(html: str) -> list[str]:
    """Where a page leads and what it loads, without what is on the page itself; faster than `Seen`."""
    found = re.findall(r'<[^>]*?\s(?:href|src|data-load)="([^"]*)"', html)
    return [unescape(link.partition("#")[0]) for link in found if not link.startswith("#")]


class Seen(HTMLParser):
    """What a page holds: tags, attributes, links, the text, and the texts of its tokens."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self.links, self.loads = "", [], []
        self.chips: list[str] = []
        self._chip = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        own = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in own.items()]
        if tag == "a" and "href" in own:
            self.links.append(own["href"])
        for name in ("src", "href"):
            if tag in ("script", "link") and name in own:
                self.loads.append(own[name])
        if self._chip or own.get("class") == "chip":
            if not self._chip:
                self.chips.append("")
            self._chip += 1

    def handle_endtag(self, tag: str) -> None:
        self._chip = max(0, self._chip - 1)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._chip:
            self.chips[-1] += data
