"""A server on a free local port, and the contents of a page, for tests."""

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
    """Run a server and yield its address, without a slash at the end."""
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
    """Return the contexts of a single atlas."""
    return open_sources(Sources(atlas, None if model is None else str(model)))


def links_of(html: str) -> list[str]:
    """Return what a page links to and loads, except anchors on itself; faster than `Seen`."""
    links = re.findall(r'<[^>]*?\s(?:href|src|data-load)="([^"]*)"', html)
    return [unescape(link.partition("#")[0]) for link in links if not link.startswith("#")]


class Seen(HTMLParser):
    """The contents of a page: tags, attributes, links, its text and the texts of its tokens."""

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
        attributes = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in attributes.items()]
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        for name in ("src", "href"):
            if tag in ("script", "link") and name in attributes:
                self.loads.append(attributes[name])
        if self._chip or attributes.get("class") == "chip":
            if not self._chip:
                self.chips.append("")
            self._chip += 1

    def handle_endtag(self, tag: str) -> None:
        self._chip = max(0, self._chip - 1)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._chip:
            self.chips[-1] += data
