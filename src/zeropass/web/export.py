"""The pages of the explorer as files: a static site with relative links, which works from any file server.

Pages are written into a folder next to the site, each of them atomically, its HTML last; the folder gets the site's
name at the end. The same command continues an export that was stopped.
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
from zeropass._io.atomic import atomic_write, key_of, make_folder
from zeropass._io.progress import Progress, callback, shows_progress
from zeropass._io.short_repr import ShortRepr
from zeropass.arch.roles import HEAD_ROLES, MAP_ROLES, OUTSIDE, base_role
from zeropass.atlas import summary
from zeropass.errors import BadOption, MissingExtra
from zeropass.model.address import parse
from zeropass.records.overviews import LayerRecord
from zeropass.web.context import Context
from zeropass.web.pages import comparison_pages, glossary_page, model_pages, parameter_pages, word_pages
from zeropass.web.pages.page import Page, at, by, count_pages, layer_path, token

try:
    from zeropass.web.formats import STATIC, Site, as_csv, as_json
except ImportError as _error:
    raise MissingExtra("The explorer needs an extra: pip install 'zeropass[web]'.") from _error

__all__ = ["Chosen", "export_site", "plan"]

Makers = dict[str, Callable[[], Page]]
WORKERS = 2
"""The number of pages made at once: most of the work is reading and products, which run in parallel."""


@dataclass(frozen=True, repr=False)
class Chosen(ShortRepr):
    """The part of a context that is written.

    Attributes:
        layers: The first layer and the one after the last; None for all.
        most: The number of neurons, and of columns of heads, of each layer, most telling first; None for all.
        tokens: The number of tokens that have a page, most mentioned first; None for all.

    Example:
        >>> import zeropass as zp
        >>> zp.Chosen(layers=(0, 4), most=10)
        Chosen(layers=(0, 4), most=10, tokens=1000)
    """

    layers: tuple[int, int] | None = None
    most: int | None = 20
    tokens: int | None = 1000


@shows_progress
def export_site(
    contexts: Sequence[Context], site: str | Path, chosen: Chosen | None = None, progress: Progress | bool = True
) -> int:
    """Write the pages of some contexts as a static site. Pages that it lacks are not linked.

    Args:
        contexts: The contexts to write.
        site: The folder of the site. If it exists, it must be empty.
        chosen: The part of each context to write; by default the most telling parameters and most mentioned tokens.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The number of pages.

    Raises:
        BadOption: If the site is not an empty folder or cannot be written, or the atlas does not have the layers.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> with TemporaryDirectory() as folder:
        ...     atlas, site = Path(folder, "atlas"), Path(folder, "site")
        ...     fresh = zp.build(zp.open_model("models/first"), atlas, zp.Options(k=10, layers=(1, 2), roles=("gate",)))
        ...     pages = zp.export_site(zp.open_sources(zp.Sources(atlas)), site, zp.Chosen(most=1, tokens=5))
        ...     Path(site, "index.html").is_file()
        True
    """
    report = callback(progress)
    site = Path(site)
    chosen = chosen or Chosen()
    if site.exists() and (not site.is_dir() or any(site.iterdir())):
        raise BadOption(f"{site} exists; the site is written whole, into a folder of its own: give another.")
    plans = [plan(context, chosen) for context in contexts]
    part = _begin(site, contexts, chosen)
    paths = {context.prefix + path for context, pages in zip(contexts, plans, strict=True) for path in pages}
    jobs = [
        (context, path, make) for context, pages in zip(contexts, plans, strict=True) for path, make in pages.items()
    ]
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(_write, part, contexts, paths, *job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures)):
                future.result()
                report("pages", done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _finish(part, site, contexts, plans)
    report("done", len(jobs), len(jobs))
    return len(jobs)


def _begin(site: Path, contexts: Sequence[Context], chosen: Chosen) -> Path:
    """Return the folder that pages are written into, without what an export of other pages left there."""
    part = site.absolute().with_name(f".{site.absolute().name}.part")
    key = key_of(asdict(chosen), zeropass.__version__, *map(_identity, contexts))
    mark = part / "key"
    try:
        if part.exists() and (not mark.is_file() or mark.read_text(encoding="utf-8") != key):
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        mark.write_text(key, encoding="utf-8")
    except OSError as error:
        raise BadOption(f"{part} cannot be written ({error.strerror or error}); give another place.") from error
    return part


def _identity(context: Context) -> list[Any]:
    parts = [context.prefix, json.dumps(context.atlas.manifest, sort_keys=True)]
    parts += [hashlib.sha256(repr(result).encode()).hexdigest() for result in (context.alignment, context.diff)]
    return parts


def _write(
    part: Path, contexts: Sequence[Context], paths: set[str], context: Context, path: str, make: Callable[[], Page]
) -> None:
    """Write one page in all its formats, unless it exists already."""
    file = part / context.prefix / (path or "index")
    html = file.with_name(f"{file.name}.html")
    if html.exists():
        return
    page = make()
    site = _site(context.prefix + (path or "index"), contexts, paths)
    texts = {"json": as_json(page)}
    if page.table is not None:
        texts["csv"] = as_csv(page)
    if page.picture is not None:
        texts["svg"] = site.svg(page, context)
    make_folder(file.parent, BadOption)
    for suffix, text in [*texts.items(), ("html", site.html(page, context))]:
        with atomic_write(file.with_name(f"{file.name}.{suffix}"), BadOption) as temporary:
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def _site(file: str, contexts: Sequence[Context], paths: set[str]) -> Site:
    """Return how a page links others: relative to its own folder. ``file`` is the page's, without a suffix."""
    folder = posixpath.dirname(file)

    def relative(target: str) -> str:
        return posixpath.relpath(target, folder or ".")

    def to(path: str, context: Context) -> str:
        full_path = context.prefix + path
        return relative(f"{context.prefix}{path or 'index'}.html") if full_path in paths else ""

    def asset(name: str) -> str:
        address = relative(posixpath.join("static", name))
        return f"{address}/" if name.endswith("/") else address

    return Site(to, lambda suffix: f"{posixpath.basename(file)}.{suffix}", asset, live=False, contexts=contexts)


def _finish(part: Path, site: Path, contexts: Sequence[Context], plans: Sequence[Makers]) -> None:
    """Write the style sheet, the script and the tokens for the search; then give the folder its final name."""
    try:
        shutil.copytree(STATIC, part / "static", dirs_exist_ok=True)
        for context, pages in zip(contexts, plans, strict=True):
            ids = sorted((int(path.partition("/")[2]) for path in pages if path.startswith("token/")), reverse=True)
            tokens = {context.atlas.vocab.label(i): i for i in ids}
            name = f"{context.prefix.replace('/', '-')}tokens.json"
            (part / "static" / name).write_text(json.dumps(tokens), encoding="utf-8")
        (part / "key").unlink()
        if site.exists():
            site.rmdir()
        part.replace(site)
    except OSError as error:
        raise BadOption(f"{site} could not be written ({error.strerror or error}).") from error


# --- Which pages there are --------------------------------------------------------------------------------------------


def plan(context: Context, chosen: Chosen) -> Makers:
    """Return the pages of a context that are written: for each path, a function that makes the page."""
    layers = _layers(context, chosen)
    pages: Makers = {
        "": partial(model_pages.model, context),
        "help": partial(model_pages.help_page, context),
        "glossary": partial(glossary_page.glossary, context),
    }
    for side, frame in summary.list_types_of(context.atlas):
        for measure in summary.MEASURES:
            pages[by(measure, side, frame)] = partial(model_pages.model, context, measure, f"{side}-{frame}")
    if context.has_outside:
        pages["outside"] = partial(model_pages.outside, context)
    if context.heads is not None:
        for trait in ("", *context.heads.traits):
            pages[model_pages.heads_path(trait)] = partial(model_pages.heads, context, trait)
    for number in layers:
        pages |= _of_layer(context, number, chosen)
    pages |= _of_vectors(context, _vectors(context, layers, chosen))
    pages |= _of_tokens(context, layers, chosen)
    return pages | _of_two(context)


def _layers(context: Context, chosen: Chosen) -> range:
    first, stop = context.atlas.layers
    low, high = chosen.layers or (first, stop)
    if not first <= low < high <= stop:
        raise BadOption(
            f"--layers {low}:{high} is out of range: {context.atlas.path} has layers {first} to {stop - 1}."
        )
    return range(low, high)


def _of_layer(context: Context, number: int, chosen: Chosen) -> Makers:
    count = summary.telling(context.atlas, number, 0, 1).count
    shown = count if chosen.most is None else min(count, chosen.most)
    pages: Makers = {
        layer_path(number, page): partial(model_pages.layer, context, number, page)
        for page in range(1, count_pages(shown, model_pages.NEURONS) + 1)
    }
    columns = summary.has_columns(context.atlas, number)
    for role in MAP_ROLES:
        for record in context.atlas.head_maps(number, role, 1):
            pages[at(record.address)] = partial(parameter_pages.parameter, context, record.address)
            address = f"{record.address}.{base_role(role)}"
            pages[f"map/{address}"] = partial(parameter_pages.head_map, context, address)
            if columns:
                pages[f"subheads/{record.address}"] = partial(parameter_pages.subheads, context, record.address)
    return pages


def _vectors(context: Context, layers: range, chosen: Chosen) -> Iterator[str]:
    """Yield the addresses of the neurons, columns and lone vectors that have pages."""
    for addresses in context.highlights.units.values():
        yield from (address for address in addresses if parse(address).layer in layers)
    for number in layers:
        for roles in (context.atlas.unit_roles, HEAD_ROLES):
            yield from context.atlas.strongest(roles, (number, number + 1), k=chosen.most)
        yield from (row.address for row in summary.outside(context.atlas, number))
    yield from (row.address for row in summary.outside(context.atlas, OUTSIDE))


def _of_vectors(context: Context, addresses: Iterator[str]) -> Makers:
    makers: tuple[tuple[str, Callable[..., Page]], ...] = (
        ("at", parameter_pages.parameter),
        ("near", parameter_pages.surroundings),
        ("spread", parameter_pages.spread),
        ("cloud", parameter_pages.cloud),
    )
    return {f"{name}/{address}": partial(make, context, address) for address in addresses for name, make in makers}


def _of_tokens(context: Context, layers: range, chosen: Chosen) -> Makers:
    size = len(context.atlas.vocab)
    pages: Makers = {
        model_pages.tokens_path(page): partial(model_pages.tokens, context, page)
        for page in range(1, count_pages(size, model_pages.TOKENS) + 1)
    }
    for i in range(size) if chosen.tokens is None else _mentioned(context, layers, chosen.tokens):
        pages[token(i)] = partial(word_pages.of_token, context, i)
        pages[f"nearest/{i}"] = partial(word_pages.nearest, context, i)
    return pages


def _mentioned(context: Context, layers: range, count: int) -> list[int]:
    """Return the tokens that the pages of some layers mention most."""
    mentions: Counter[int] = Counter()
    for number in layers:
        record: LayerRecord = summary.telling(context.atlas, number, 0, model_pages.NEURONS)
        mentions.update(t.id for row in record.rows for short in row.lists for t in short.tokens)
        for role in MAP_ROLES:
            for head_map in context.atlas.head_maps(number, role, 5):
                mentions.update(i for pair in head_map.pairs for i in (pair.left.id, pair.right.id))
    return sorted(mentions, key=lambda i: (-mentions[i], i))[:count]


def _of_two(context: Context) -> Makers:
    pages: Makers = {}
    if context.diff is not None:
        pages["diff"] = partial(comparison_pages.difference, context)
    if context.alignment is None or context.part:
        return pages
    pages["align"] = partial(comparison_pages.alignment, context)
    for number in comparison_pages.align_layers(context.alignment):
        count = sum(pairing.first.startswith(f"L{number}.") for pairing in context.alignment.pairings)
        for page in range(1, count_pages(count, comparison_pages.MATCHES) + 1):
            path = f"align/{number}" if page == 1 else f"align/{number}/{page}"
            pages[path] = partial(comparison_pages.align_layer, context, number, page)
    return pages
