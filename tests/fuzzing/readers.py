"""The readers under test: their names, the real files to start from, the files to change, and how they are used."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import zeropass as zp
from fuzzing.mutate import mutated_text
from fuzzing.written import WRITTEN
from tiny import VOCAB
from zeropass import errors
from zeropass._io.parse import read_lines, read_text, read_words
from zeropass.atlas.neighbours import neighbours_of
from zeropass.atlas.plan import prepare
from zeropass.errors import ZeropassError
from zeropass.model.adapted import adapt
from zeropass.model.address import parse
from zeropass.model.frames import Frames
from zeropass.records.verdicts import read_verdicts
from zeropass.relations.pair_files import read_pairs
from zeropass.tokens.vocabulary import Vocabulary
from zeropass.web.load import Sources, open_sources
from zeropass.web.pages import comparison_pages, model_pages, parameter_pages, word_pages
from zeropass.web.responder import PageRequest, make_page

__all__ = ["READERS", "UNNAMED", "Reader", "Use"]

Draw = random.Random
Use = Callable[[Path, Path, Draw], None]
"""A function that reads and uses the changed folder; its second path is the folder of all (unchanged) seeds."""


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        seeds: Folders below the folder of all seeds.
        files: Patterns of files in them, of which one or two are changed.
        use: A function that reads the changed folder.
        command: Returns command-line arguments for the same use, given both folders.
        rarely: The command is run in one case out of this many.
        named: True if a refusal must name the changed folder or a file in it, unless it matches ``unnamed``.
        each: Instead of ``use``, one function for each case, without randomness.
    """

    name: str
    seeds: tuple[str, ...]
    files: tuple[str, ...]
    use: Use
    command: Callable[[Path, Path, Draw], Sequence[str | Path]]
    rarely: int = 20
    named: bool = True
    unnamed: str = "neurons of this model have the roles"
    each: tuple[Use, ...] = ()

    def used(self, number: int) -> Use:
        """Return the function that uses the case of a number."""
        return self.each[number % len(self.each)] if self.each else self.use


TEXTS = (
    "a",
    " ba",
    '!!"#',
    "Hello, world 123\n",
    "你好 \U0001f600",
    "\0\ufeff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<|0|>",
    "#" * 300,
)
VECTORS = ("one.npy", "one.safetensors:b", "one.safetensors:table.T", "control.gguf:direction.1")
DICTIONARIES = ("saelens", "layers.1.mlp", "resid_post/layer_0/width", "set")
ADDRESSES = (
    "L0.ff.3",
    "L1.ff.0.gate",
    "L0.attn.1",
    "L1.attn.0.vo",
    "L0.attn.0.v.1",
    "L0.ff.bias",
    "final.norm",
    "pos.1",
)


def _model(path: Path, _seeds: Path, draw: Draw) -> None:
    _read(zp.open_model(str(path)), draw)


def _read(model: zp.Model, draw: Draw) -> None:
    """Use the parts of a model that commands use, some of them in each case."""
    role = draw.choice([role for role in model.family.roles if role not in ("qk", "vo", "cross_qk", "cross_vo")])
    _allowing(lambda: model.matrix(role, draw.randrange(model.dims.layers)))
    _vocabulary(model.vocab, draw)
    kind = draw.random()
    if kind < 0.1:
        json.dumps(model.info(), allow_nan=False)
    elif kind < 0.15:
        lens = zp.Lens(model)
        _allowing(lambda: json.dumps(lens.explain(draw.choice(ADDRESSES), k=3).to_json(), allow_nan=False))


def _allowing(use: Callable[[], object]) -> None:
    """Call a function that may refuse an address which the model lacks, without naming a file."""
    with contextlib.suppress(errors.BadAddress):
        use()


def _vocabulary(vocab: Any, draw: Draw) -> None:
    vocab.mask(draw.choice(("default", "words", "ascii", "all")))
    vocab.swallowed()
    for i in range(0, len(vocab), 1 + len(vocab) // 50):
        vocab.shown(i)
    text = draw.choice(TEXTS)
    with contextlib.suppress(errors.UnknownWord):
        vocab.find(text)
    try:
        vocab.encode(text)
    except errors.BadModel as error:  # about the text; opening the model has already named the file
        raise replace_message(error) from error


def replace_message(error: ZeropassError) -> ZeropassError:
    """Return the error with a message that need not name a file."""
    error.args = (f"{UNNAMED}{error}",)
    return error


UNNAMED = "(no file) "


def _gguf(path: Path, seeds: Path, draw: Draw) -> None:
    for file in sorted(path.glob("*.gguf")):
        if file.name in _changed_names(path):
            _read(zp.open_model(str(file)), draw)


def _gguf_tokenizer(path: Path, seeds: Path, draw: Draw) -> None:
    """Use the metadata of a tokenizer that is stored as JSON; GGUF has no objects, so they become text."""
    file = path / draw.choice(_changed_names(path) or ["bytes.json"])
    try:
        metadata = json.loads(file.read_bytes(), parse_int=lambda text: int(text[:30]))
    except (ValueError, RecursionError):
        return
    if isinstance(metadata, dict):
        plain = {key: str(value) if isinstance(value, dict) else value for key, value in metadata.items()}
        _vocabulary(Vocabulary.from_gguf(plain, VOCAB, str(file)), draw)


def _changed_names(path: Path) -> list[str]:
    """Return the names of the changed files, which a case stores next to the folder."""
    return json.loads((path.parent / "changed.json").read_text())


def _adapted(path: Path, seeds: Path, draw: Draw) -> None:
    model = adapt(_base(seeds / "llama"), path)
    for role, layer in list(model.changed)[:3]:
        model.matrix(role, layer)
    for role, layer in list(model.replaced)[:3]:
        model.matrix(role, layer)
    if draw.random() < 0.05:
        model.fingerprint  # noqa: B018
        _allowing(lambda: zp.Lens(model).explain(draw.choice(ADDRESSES), k=3))


_BASES: dict[Path, zp.Model] = {}


def _base(path: Path) -> zp.Model:
    if path not in _BASES:
        _BASES[path] = zp.open_model(str(path))
    return _BASES[path]


def _atlas(path: Path, seeds: Path, draw: Draw) -> None:
    atlas = zp.open_atlas(path)
    kind = draw.randrange(7)
    if kind == 0:
        _allowing(lambda: json.dumps(atlas.find("!", k=3).to_json(), allow_nan=False))
    elif kind == 1:
        options: dict[str, Any] = draw.choice(({}, {"like": "?"}, {"without": "$"}))
        _allowing(lambda: json.dumps(atlas.find(["!", "#"], k=3, **options).to_json(), allow_nan=False))
    elif kind == 2:
        json.dumps(atlas.info(), allow_nan=False, default=str)
        _vocabulary(atlas.vocab, draw)
    elif kind == 3:
        _allowing(lambda: atlas.explain(draw.choice(ADDRESSES[:2]), tokens="all", k=30))
    elif kind == 4:
        context = open_sources(Sources(path))[0]
        page = draw.choice(
            ((model_pages.model,), (model_pages.layer, 0), (model_pages.tokens, 1), (word_pages.of_token, 3))
        )
        kind_ = draw.choice(("html", "json", "csv", "svg"))
        _allowing(lambda: make_page([context], PageRequest(0, page[0], page[1:], kind=kind_)))
    else:
        _allowing(lambda: json.dumps(atlas.explain(draw.choice(ADDRESSES), k=3).to_json(), allow_nan=False))


def _plan(path: Path, seeds: Path, draw: Draw) -> None:
    before = json.loads((seeds / "atlas" / "plan.json").read_text())
    try:
        prepare(path, before)
    finally:
        for name in ("scratch",):
            shutil.rmtree(path / name, ignore_errors=True)


def _verdicts(path: Path, seeds: Path, draw: Draw) -> None:
    verdicts = read_verdicts(path / "verdicts.json")
    for verdict in verdicts.kinds:
        verdicts.of(verdict.role, verdict.frame, verdict.layer)
        verdict.words.encode()
    json.dumps(verdicts.to_json(), allow_nan=False)


def _lens(path: Path, seeds: Path, draw: Draw) -> None:
    frames = Frames.through(zp.open_model(seeds / "first"), path)
    frames.require_lens("effect").facts.note.encode()
    records = zp.Lens.over(frames)[draw.choice(("L1.ff.3", "L0.ff.3", "L0.attn.1.o.2", "L1.attn.0.vo", "L1.attn.0.qk"))]
    json.dumps(records.to_json(), allow_nan=False)


def _dictionary(path: Path, seeds: Path, draw: Draw) -> None:
    lens = zp.load(seeds / "first", lens=None)
    folder = draw.choice(DICTIONARIES)
    features = lens.features(path / folder)
    json.dumps(features[draw.randrange(len(features))].to_json(), allow_nan=False)


def _vectors(path: Path, seeds: Path, draw: Draw) -> None:
    lens = zp.load(seeds / "first", lens=None)
    records = lens.direction(str(path / draw.choice(VECTORS)), layer=1, k=3)
    json.dumps(records.to_json(), allow_nan=False)


def _features(path: Path, seeds: Path, draw: Draw) -> None:
    atlas = zp.open_atlas(path)
    address = draw.choice(("L1.sae.3", "L1.sae.39.decoder"))
    uses: tuple[Callable[[], Any], ...] = (
        lambda: atlas.find("!", k=3),
        lambda: atlas.find(["!", "#"], k=3),
        lambda: atlas.explain(address, tokens="all", k=30),
        lambda: neighbours_of(atlas, address),
    )
    use = draw.choice(uses)
    _allowing(lambda: json.dumps(use().to_json(), allow_nan=False))


def _alignment(path: Path, seeds: Path, draw: Draw) -> None:
    alignment = zp.read_alignment(path)
    json.dumps(alignment.summary(), allow_nan=False)
    _pages(
        Sources(seeds / "first-atlas", alignment=path),
        draw,
        [(comparison_pages.alignment,), (comparison_pages.align_layer, 1)],
    )


def _diff(path: Path, seeds: Path, draw: Draw) -> None:
    _pages(Sources(seeds / "first-atlas", diff=path), draw, [(comparison_pages.difference,)])


def _pages(sources: Sources, draw: Draw, pages: Sequence[tuple[Any, ...]]) -> None:
    contexts = open_sources(sources)
    for page in pages:
        for kind in ("html", draw.choice(("json", "csv", "svg"))):
            _allowing(lambda: make_page(contexts, PageRequest(0, page[0], page[1:], kind=kind)))  # noqa: B023


def _stitch(path: Path, seeds: Path, draw: Draw) -> None:
    json.dumps(zp.classify(path, [draw.choice(TEXTS[:3])]))


# --- Text that a user types ----------------------------------------------------------------------------------------


ASKED = (*ADDRESSES, "L26.ff.1189.value", "L10.cross.3.q.bias", "type.0", "embed.norm", "L0.ff.e1.2", "L0.attn.1.k")


def _addresses(path: Path, seeds: Path, draw: Draw) -> None:
    text = mutated_text(draw.choice(ASKED), draw)
    place = None
    try:
        place = parse(text)
    finally:
        if place is not None and draw.random() < 0.3:
            if draw.random() < 0.5:
                zp.Lens(_base(seeds / "llama")).explain(text, k=2)
            else:
                zp.open_atlas(seeds / "atlas").explain(text, k=2)


SEARCHES = (
    '"in front" the',
    "L0.ff.1",
    "babade babafi",
    " ba",
    "#300",
    "Paris London",
    '"',
    "a b c d e f g h i j k l m n o p q r",
)


def _searches(path: Path, seeds: Path, draw: Draw) -> None:
    text = mutated_text(draw.choice(SEARCHES), draw)[:400]
    context = _context(seeds / "first-atlas")
    kind = draw.randrange(4)
    if kind == 0:
        word_pages.goal(context, text)
    elif kind == 1:
        kind_ = draw.choice(("html", "json", "csv", "svg"))
        make_page([context], PageRequest(0, word_pages.find, (text, 5), "/find", f"q={text}", kind_))
    elif kind == 2:
        make_page([context], PageRequest(0, parameter_pages.parameter, (text,), kind="html"))
    else:
        context.atlas.find(text, like=draw.choice(((), text)), k=3)


_CONTEXTS: dict[Path, Any] = {}


def _context(path: Path) -> Any:
    if path not in _CONTEXTS:
        _CONTEXTS[path] = open_sources(Sources(path))[0]
    return _CONTEXTS[path]


def _texts(path: Path, seeds: Path, draw: Draw) -> None:
    file = path / "words.txt"
    read_words(file, "--words")
    read_text(file)
    read_lines(file, "--text", "text", 5)


# --- Arguments of the command line ------------------------------------------------------------------------------------


def _explain(path: Path, seeds: Path, draw: Draw) -> Sequence[str | Path]:
    more = ("--json",) if draw.random() < 0.3 else ()
    return draw.choice((("info", path, *more), ("explain", path, draw.choice(ADDRESSES[:5]), "-k", "3", *more)))


def _explain_gguf(path: Path, seeds: Path, draw: Draw) -> Sequence[str | Path]:
    name = next((name for name in _changed_names(path) if name.endswith(".gguf")), "bytes.gguf")
    return _explain(path / name, seeds, draw)


def _show(path: Path, seeds: Path, draw: Draw) -> Sequence[str | Path]:
    commands: tuple[Sequence[str | Path], ...] = (
        ("show", path, draw.choice(ADDRESSES[:5])),
        ("find", path, "!"),
        ("info", path),
        ("info", path, "--json"),
        ("tour", path),
        ("show", path, "L0.ff.3", "--tokens", "all", "-k", "30"),
    )
    return draw.choice(commands)


def _show_lens(path: Path, seeds: Path, draw: Draw) -> Sequence[str | Path]:
    return ("show", seeds / "first", draw.choice(("L0.ff.3", "L1.ff.3")), "--lens", path)


def _show_feature(path: Path, seeds: Path, draw: Draw) -> Sequence[str | Path]:
    return ("show", seeds / "first", "L1.sae.3", "--features", path / draw.choice(DICTIONARIES))


def _export(option: str, path: Path, seeds: Path, draw: Draw) -> Sequence[str | Path]:
    site = path.parent / "site"
    shutil.rmtree(site, ignore_errors=True)
    return ("export", seeds / "first-atlas", site, "--tokens", "0", "--most", "1", "--layers", "0:1", option, path)


READERS = {
    reader.name: reader
    for reader in (
        Reader(
            "written",
            ("words",),
            (),
            _texts,
            lambda path, seeds, draw: ("families",),
            rarely=10**9,
            each=tuple(WRITTEN.values()),
        ),
        Reader("safetensors", ("llama",), ("model.safetensors",), _model, _explain),
        Reader(
            "quantised", ("quantised/*",), ("model.safetensors", "model.safetensors", "config.json"), _model, _explain
        ),
        Reader("torch-zip", ("zip",), ("pytorch_model.bin",), _model, _explain),
        Reader("torch-legacy", ("legacy",), ("pytorch_model.bin",), _model, _explain),
        Reader("gguf", ("gguf",), ("*.gguf",), _gguf, _explain_gguf),
        Reader(
            "gguf-tokenizer",
            ("gguf-tokenizer",),
            ("*.json",),
            _gguf_tokenizer,
            lambda p, s, d: ("families",),
            rarely=10**9,
        ),
        Reader(
            "index", ("shards",), ("*.index.json", "*.index.json", "*.index.json", "*.safetensors"), _model, _explain
        ),
        Reader("config", ("families/*", "llama"), ("config.json",), _model, _explain),
        Reader("tokenizer", ("tokenizers/*",), ("tokenizer.json",), _model, _explain),
        Reader(
            "vocabulary-files",
            ("vocabularies/*",),
            (
                "vocab.json",
                "merges.txt",
                "vocab.txt",
                "*.model",
                "*.spm",
                "special_tokens_map.json",
                "tokenizer_config.json",
                "added_tokens.json",
            ),
            _model,
            _explain,
        ),
        Reader(
            "adapter-config",
            ("adapters/*",),
            ("adapter_config.json",),
            _adapted,
            lambda path, seeds, draw: ("explain", seeds / "llama", "L0.ff.3", "-k", "3", "--adapter", path),
        ),
        Reader(
            "adapter-weights",
            ("adapters/*",),
            ("adapter_model.safetensors",),
            _adapted,
            lambda path, seeds, draw: ("diff", seeds / "llama", "--adapter", path),
            rarely=50,
        ),
        Reader("atlas-manifest", ("atlas",), ("manifest.json",), _atlas, _show),
        Reader(
            "atlas-plan",
            ("atlas",),
            ("plan.json",),
            _plan,
            lambda p, s, d: ("build", s / "llama", "--out", p, "--k", "4", "--pairs", "4"),
            rarely=50,
        ),
        Reader(
            "atlas-parquet",
            ("atlas",),
            (
                "tokens.parquet",
                "parameters.parquet",
                "hits.parquet",
                "coherence.parquet",
                "lists/L0.*.parquet",
                "pairs/L0.*.parquet",
            ),
            _atlas,
            _show,
        ),
        Reader(
            "atlas-arrays",
            ("atlas",),
            ("rows/*.npy", "vectors/L0.*.npy", "lens/*.safetensors", "tokenizer.json"),
            _atlas,
            _show,
        ),
        Reader("verdicts", ("verdicts",), ("verdicts.json",), _verdicts, lambda p, s, d: ("families",), rarely=10**9),
        Reader("lens", ("lens",), ("lens.json", "lens.safetensors"), _lens, _show_lens),
        Reader("jacobian-lens", ("jacobian",), ("lens.pt",), _lens, _show_lens),
        Reader("tuned-lens", ("tuned-lens",), ("config.json", "params.pt"), _lens, _show_lens),
        Reader(
            "dictionary",
            ("dictionaries",),
            (
                *("saelens/cfg.json", "saelens/*.safetensors", "layers.1.mlp/cfg.json", "layers.1.mlp/*.safetensors"),
                *("resid_post/layer_0/width/*.npz", "set/config.yaml", "set/*.safetensors"),
            ),
            _dictionary,
            _show_feature,
            unnamed="has no features of layer",
        ),
        Reader(
            "vectors",
            ("vectors",),
            ("*.npy", "*.safetensors", "*.gguf"),
            _vectors,
            lambda path, seeds, draw: (
                *("show", seeds / "first", "--vector", str(path / draw.choice(VECTORS))),
                *("--layer", "1", "-k", "3"),
            ),
        ),
        Reader(
            "features",
            ("features",),
            ("manifest.json", "parameters.parquet", "lists/*.parquet", "vectors/*.npy"),
            _features,
            lambda path, seeds, draw: draw.choice((("show", path, "L1.sae.3"), ("find", path, "!"), ("tour", path))),
        ),
        Reader(
            "alignment",
            ("alignment",),
            ("alignment.json", "matches.parquet"),
            _alignment,
            partial(_export, "--alignment"),
            rarely=400,
        ),
        Reader("diff", ("diff",), ("diff.json",), _diff, partial(_export, "--diff"), rarely=400),
        Reader(
            "stitch",
            ("stitch",),
            (
                "config.json",
                "config.json",
                "stitch.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "model.safetensors",
            ),
            _stitch,
            lambda path, seeds, draw: ("classify", path, "ba", "du fi"),
            rarely=50,
        ),
        Reader(
            "words-file",
            ("words",),
            ("words.txt",),
            _texts,
            lambda p, s, d: ("diff", s / "llama", s / "llama", "--watch", p / "words.txt"),
            rarely=100,
            unnamed="this vocabulary|is not one token",
        ),
        Reader(
            "pairs-file",
            ("pairs",),
            ("pairs.txt",),
            lambda path, seeds, draw: read_pairs(path / "pairs.txt"),
            lambda p, s, d: ("relation", s / "llama", p / "pairs.txt"),
            rarely=100,
            unnamed="can use",
        ),
        Reader(
            "address",
            ("words",),
            (),
            _addresses,
            lambda p, s, d: ("show", s / "atlas", f"x{mutated_text(d.choice(ASKED), d)}".replace("\0", "")),
            named=False,
        ),
        Reader(
            "search",
            ("words",),
            (),
            _searches,
            lambda p, s, d: ("find", s / "first-atlas", f"x{mutated_text(d.choice(SEARCHES), d)}".replace("\0", "")),
            named=False,
        ),
    )
}
"""All readers by name."""
