"""The same pages as files: a static site with relative links, that works from any file server.

Pages are written into a folder beside the site, each whole or not at all, its HTML last; the folder gets the site's
name at the end. The same command continues where one was stopped.
"""

import hashlib
import json
import posixpath
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import zeropass
from zeropass._io.atomic import atomic_write, make_folder
from zeropass.arch.spec import FF_ROLES, HEAD_ROLES, MAP_ROLES, OUTSIDE, base_role
from zeropass.atlas import summary
from zeropass.errors import BadOption, MissingExtra
from zeropass.records.overviews import LayerRecord
from zeropass.web import overviews, pairs, parameters, words
from zeropass.web.book import Book
from zeropass.web.page import Page, at, by, count_pages, layer_path, token

try:
    from zeropass.web.render import STATIC, Site, as_csv, as_json
except ImportError as error:
    raise MissingExtra("The explorer needs an extra: pip install 'zeropass[web]'.") from error

__all__ = ["Chosen", "export_site", "plan"]

Progress = Callable[[str, int, int], None]
Makers = dict[str, Callable[[], Page]]
WORKERS = 2
"""Pages made at once: most of the work is reading and products, which do not wait for one another."""


@dataclass(frozen=True)
class Chosen:
    """What of a book is written. ``most``: neurons, and columns of heads, of a layer, most telling first.

    ``tokens``: those with a page, most mentioned first. None stands for all.
    """

    layers: tuple[int, int] | None = None
    most: int | None = 20
    tokens: int | None = 1000


def export_site(
    books: Sequence[Book], site: Path, chosen: Chosen | None = None, progress: Progress = lambda *_: None
) -> int:
    """Write the pages of some books as a static site; how many there are. Links to pages that are not in it are text.

    Raises BadOption for a folder that exists, or cannot be written, and for layers that the atlas does not have.
    """
    chosen = chosen or Chosen()
    if site.exists() and (not site.is_dir() or any(site.iterdir())):
        raise BadOption(f"{site} exists; the site is written whole, into a folder of its own: give another.")
    plans = [plan(book, chosen) for book in books]
    part = _begin(site, books, chosen)
    there = {book.prefix + path for book, pages in zip(books, plans, strict=True) for path in pages}
    jobs = [(book, path, make) for book, pages in zip(books, plans, strict=True) for path, make in pages.items()]
    with ThreadPoolExecutor(WORKERS) as pool:
        work = [pool.submit(_write, part, books, there, *job) for job in jobs]
        try:
            for done, one in enumerate(as_completed(work)):
                one.result()
                progress("pages", done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _finish(part, site, books, plans)
    progress("done", len(jobs), len(jobs))
    return len(jobs)


def _begin(site: Path, books: Sequence[Book], chosen: Chosen) -> Path:
    """The folder that pages are written into; what an earlier run of other pages left there is taken away."""
    part = site.absolute().with_name(f".{site.absolute().name}.part")
    key = hashlib.sha256(
        json.dumps([asdict(chosen), zeropass.__version__, *map(_identity, books)]).encode()
    ).hexdigest()
    mark = part / "key"
    try:
        if part.exists() and (not mark.is_file() or mark.read_text(encoding="utf-8") != key):
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        mark.write_text(key, encoding="utf-8")
    except OSError as error:
        raise BadOption(f"{part} cannot be written ({error.strerror or error}); give another place.") from error
    return part


def _identity(book: Book) -> list[Any]:
    found = [book.prefix, json.dumps(book.atlas.manifest, sort_keys=True)]
    found += [hashlib.sha256(repr(one).encode()).hexdigest() for one in (book.alignment, book.diff)]
    return found


def _write(part: Path, books: Sequence[Book], there: set[str], book: Book, path: str, make: Callable[[], Page]) -> None:
    """One page in all its formats, unless it is there."""
    file = part / book.prefix / (path or "index")
    html = file.with_name(f"{file.name}.html")
    if html.exists():
        return
    page = make()
    site = _site(book.prefix + (path or "index"), books, there)
    texts = {"json": as_json(page)}
    if page.table is not None:
        texts["csv"] = as_csv(page)
    if page.picture is not None:
        texts["svg"] = site.svg(page, book)
    make_folder(file.parent, BadOption)
    for kind, text in [*texts.items(), ("html", site.html(page, book))]:
        with atomic_write(file.with_name(f"{file.name}.{kind}"), BadOption) as temporary:
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def _site(file: str, books: Sequence[Book], there: set[str]) -> Site:
    """How a page, by its file without a suffix, links the others: relative to its own folder."""
    folder = posixpath.dirname(file)

    def relative(target: str) -> str:
        return posixpath.relpath(target, folder or ".")

    def to(path: str, book: Book) -> str:
        whole = book.prefix + path
        return relative(f"{book.prefix}{path or 'index'}.html") if whole in there else ""

    def asset(name: str) -> str:
        found = relative(posixpath.join("static", name))
        return f"{found}/" if name.endswith("/") else found

    return Site(to, lambda kind: f"{posixpath.basename(file)}.{kind}", asset, live=False, books=books)


def _finish(part: Path, site: Path, books: Sequence[Book], plans: Sequence[Makers]) -> None:
    """Style, script and the search's tokens; then the folder gets its name."""
    try:
        shutil.copytree(STATIC, part / "static", dirs_exist_ok=True)
        for book, pages in zip(books, plans, strict=True):
            ids = sorted((int(path.partition("/")[2]) for path in pages if path.startswith("token/")), reverse=True)
            tokens = {book.atlas.vocab.label(i): i for i in ids}
            name = f"{book.prefix.replace('/', '-')}tokens.json"
            (part / "static" / name).write_text(json.dumps(tokens), encoding="utf-8")
        (part / "key").unlink()
        if site.exists():
            site.rmdir()
        part.replace(site)
    except OSError as error:
        raise BadOption(f"{site} could not be written ({error.strerror or error}).") from error


# --- Which pages there are --------------------------------------------------------------------------------------------


def plan(book: Book, chosen: Chosen) -> Makers:
    """All pages of a book that are written: a maker for each path."""
    layers = _layers(book, chosen)
    pages: Makers = {"": partial(overviews.model, book), "help": partial(overviews.help_page, book)}
    for side, frame in summary.kinds_of(book.atlas):
        for measure in summary.MEASURES:
            pages[by(measure, side, frame)] = partial(overviews.model, book, measure, f"{side}-{frame}")
    pages["outside"] = partial(overviews.outside, book)
    for number in layers:
        pages |= _of_layer(book, number, chosen)
    pages |= _of_vectors(book, _vectors(book, layers, chosen))
    pages |= _of_tokens(book, layers, chosen)
    return pages | _of_two(book)


def _layers(book: Book, chosen: Chosen) -> range:
    first, stop = book.atlas.layers
    low, high = chosen.layers or (first, stop)
    if not first <= low < high <= stop:
        raise BadOption(f"--layers {low}:{high} is out of range: {book.atlas.path} has layers {first} to {stop - 1}.")
    return range(low, high)


def _of_layer(book: Book, number: int, chosen: Chosen) -> Makers:
    count = summary.telling(book.atlas, number, 0, 1).count
    wanted = count if chosen.most is None else min(count, chosen.most)
    pages: Makers = {
        layer_path(number, page): partial(overviews.layer, book, number, page)
        for page in range(1, count_pages(wanted, overviews.NEURONS) + 1)
    }
    columns = summary.has_columns(book.atlas, number)
    for kind in MAP_ROLES:
        for record in book.atlas.head_maps(number, kind, 1):
            pages[at(record.address)] = partial(parameters.parameter, book, record.address)
            whole = f"{record.address}.{base_role(kind)}"
            pages[f"map/{whole}"] = partial(parameters.head_map, book, whole)
            if columns:
                pages[f"subheads/{record.address}"] = partial(parameters.subheads, book, record.address)
    return pages


def _vectors(book: Book, layers: range, chosen: Chosen) -> Iterator[str]:
    """Addresses of neurons, columns and lone vectors that have pages."""
    for number in layers:
        for roles in (FF_ROLES, HEAD_ROLES):
            yield from summary.most_telling(book.atlas, number, roles, chosen.most)
        yield from (row.address for row in summary.outside(book.atlas, number))
    yield from (row.address for row in summary.outside(book.atlas, OUTSIDE))


def _of_vectors(book: Book, addresses: Iterator[str]) -> Makers:
    makers: tuple[tuple[str, Callable[..., Page]], ...] = (
        ("at", parameters.parameter),
        ("near", parameters.near),
        ("spread", parameters.spread),
        ("cloud", parameters.cloud),
    )
    return {f"{name}/{address}": partial(make, book, address) for address in addresses for name, make in makers}


def _of_tokens(book: Book, layers: range, chosen: Chosen) -> Makers:
    size = len(book.atlas.vocab)
    pages: Makers = {
        overviews.tokens_path(page): partial(overviews.tokens, book, page)
        for page in range(1, count_pages(size, overviews.TOKENS) + 1)
    }
    for i in range(size) if chosen.tokens is None else _mentioned(book, layers, chosen.tokens):
        pages[token(i)] = partial(words.of_token, book, i)
        pages[f"nearest/{i}"] = partial(words.nearest, book, i)
    return pages


def _mentioned(book: Book, layers: range, count: int) -> list[int]:
    """The tokens that the pages of some layers mention most."""
    mentions: Counter[int] = Counter()
    for number in layers:
        record: LayerRecord = summary.telling(book.atlas, number, 0, overviews.NEURONS)
        mentions.update(t.id for row in record.rows for one in row.lists for t in one.tokens)
        for kind in MAP_ROLES:
            for found in book.atlas.head_maps(number, kind, 5):
                mentions.update(i for pair in found.pairs for i in (pair.left.id, pair.right.id))
    return sorted(mentions, key=lambda i: (-mentions[i], i))[:count]


def _of_two(book: Book) -> Makers:
    pages: Makers = {}
    if book.diff is not None:
        pages["diff"] = partial(pairs.difference, book)
    if book.alignment is None or book.part:
        return pages
    pages["align"] = partial(pairs.alignment, book)
    for number in pairs.align_layers(book.alignment):
        count = sum(one.first.startswith(f"L{number}.") for one in book.alignment.pairings)
        for page in range(1, count_pages(count, pairs.MATCHES) + 1):
            path = f"align/{number}" if page == 1 else f"align/{number}/{page}"
            pages[path] = partial(pairs.align_layer, book, number, page)
    return pages
