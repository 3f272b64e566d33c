"""The files of an atlas: its tables through DuckDB, its arrays mapped, and what its manifest says. No torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from zeropass.arch.spec import FRAMES, OUTSIDE, space_of
from zeropass.atlas.schema import PARAMETERS, TOKENIZER, TOKENS, Wanted, safe_name, vector_file
from zeropass.checkpoints.demo import DEMOS
from zeropass.errors import BadAtlas, BadOption
from zeropass.records.parameters import Hidden
from zeropass.tokens.vocabulary import VIEWS, Vocabulary

__all__ = ["Files", "Floats", "Run"]

Floats = npt.NDArray[np.float32]

KINDS: dict[str, type] = {
    **dict.fromkeys(("id", "layer", "head", "index", "offset", "token", "rank"), int),
    **dict.fromkeys(("top_ids", "bottom_ids", "left_ids", "right_ids", "words"), int),
    **dict.fromkeys(("address", "role", "side", "frame", "piece"), str),
    **dict.fromkeys(("norm", "mean", "std", "spread", "strength", "best", "kurtosis", "z", "kth", "bound"), float),
    **dict.fromkeys(("top_z", "bottom_z", "scores", "words_z"), float),
    **dict.fromkeys(("complete", "special", "unused", "literal", *(f"in_{view}" for view in VIEWS)), bool),
}
"""Type of the values of every column, or of the entries of its lists."""

ENDLESS = ("kth", "bound")
"""Columns in which a number may be infinite: where fewer pairs were found than were asked for."""
Finder = Callable[[Path, Wanted, Sequence[str]], list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Run:
    """Consecutive list ids of one layer, role and frame."""

    layer: int
    role: str
    side: str
    frame: str
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Files:
    """What lies in the folder of a complete atlas; nothing is read before it is asked for."""

    path: Path
    manifest: dict[str, Any]

    def is_word(self, token: int) -> bool:
        """Whether a token reads as a whole word or punctuation (the ``words`` view)."""
        return bool(self.mask("words")[token])

    def info(self) -> dict[str, Any]:
        """What the atlas is of, how it was made and how large it is, JSON-ready."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return {"atlas": str(self.path), **self.manifest, "bytes": sum(path.stat().st_size for path in files)}

    @property
    def model(self) -> dict[str, Any]:
        """What the manifest says of the model."""
        return self.manifest["model"]  # type: ignore[no-any-return]

    @property
    def title(self) -> str:
        """What the model is (`Model.title`); of a demo model its record knows, where the atlas is older than titles."""
        demo = DEMOS.get(str(self.model["name"]))
        return str(self.manifest.get("title") or (demo.title if demo else ""))

    @property
    def options(self) -> dict[str, Any]:
        """The options of the build."""
        return self.manifest["options"]  # type: ignore[no-any-return]

    @property
    def is_change(self) -> bool:
        """Whether it is an atlas of what a fine-tune changed (`diff.change_atlas`), not of a model."""
        return "change" in self.manifest

    @property
    def view(self) -> str:
        """The view of the tokens that the stored lists were made in."""
        return str(self.options["tokens"])

    @property
    def layers(self) -> tuple[int, int]:
        """The half-open range of layers that the atlas covers."""
        first, stop = self.options.get("layers") or (0, self.model["layers"])
        return int(first), int(stop)

    @cached_property
    def vocab(self) -> Vocabulary:
        """The vocabulary, from the stored table; the tokenizer is read only to split a word."""
        table = self._tokens
        return Vocabulary(
            kind=self.manifest["token_kind"],
            pieces=table["piece"].tolist(),
            special=table["special"],
            unused=table["unused"],
            literal=table["literal"],
            uncased=bool(self.manifest["uncased"]),
            tokenizer=self._tokenizer,
            split_note=str(self.manifest["split_note"]),
            path=str(self.path / TOKENIZER),
        )

    def _tokenizer(self) -> str:
        try:
            return (self.path / TOKENIZER).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise self._damaged(TOKENIZER, error) from error

    @cached_property
    def _tokens(self) -> dict[str, Any]:
        columns = self._numpy(("piece", "special", "unused", "literal", *(f"in_{view}" for view in VIEWS)), TOKENS)
        if len(columns["piece"]) != self.model["vocabulary"]:
            raise self._damaged(TOKENS, f"{len(columns['piece'])} tokens instead of {self.model['vocabulary']}")
        return columns

    def _damaged(self, file: str | Path, why: object) -> BadAtlas:
        said = str(why).splitlines()[0] if str(why) else type(why).__name__
        return BadAtlas(f"{self.path / file} cannot be read ({said}); delete the folder and build it again.")

    def _require_file(self, path: Path) -> None:
        """Raise BadAtlas for a file that is not there, or is a device or a pipe, which may have no end."""
        if not path.is_file():
            raise self._damaged(path.relative_to(self.path), "there is no such file")

    def _numpy(self, columns: Sequence[str], file: str) -> dict[str, Any]:
        """Columns of a table by its ids; BadAtlas if it is damaged."""
        self._require_file(self.path / file)
        # Named here: DuckDB finds a column whatever the case of its letters, and would give it the file's.
        names = ", ".join(f'"{name}" AS "{name}"' for name in columns)
        query = f"SELECT {names} FROM read_parquet($file) ORDER BY id"  # noqa: S608
        try:
            found = self._db.cursor().execute(query, {"file": str(self.path / file)}).fetchnumpy()
        except (duckdb.Error, UnicodeError) as error:
            raise self._damaged(file, error) from error
        # What has no value comes as a masked array.
        for name, column in found.items():
            of_kind = not len(column) or _kind(column[0]) is KINDS.get(name, _kind(column[0]))
            if np.ma.is_masked(column) or not of_kind:
                raise self._damaged(file, f"its column {name} is not what it should be")
        return found

    @cached_property
    def _db(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect()

    def query(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Rows that a query finds in ``$file``, a Parquet file of the atlas; BadAtlas, naming it, if it is damaged."""
        asked = parameters
        self._require_file(Path(parameters["file"]))
        if self._finders and parameters["file"] == str(self.path / PARAMETERS):
            query = query.replace("read_parquet($file)", "parameters")
            asked = {name: value for name, value in parameters.items() if name != "file"}
        try:
            found = self._db.cursor().execute(query, asked)  # a cursor each: threads may ask at once
            names, rows = [one[0].lower() for one in found.description], found.fetchall()
        except (duckdb.Error, UnicodeError) as error:  # its own messages may quote bytes that are no text
            raise self._damaged(Path(parameters["file"]).relative_to(self.path), error) from error
        return self._sound(Path(parameters["file"]), names, rows)

    def _sound(self, path: Path, names: Sequence[str], rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The rows, if each value is there and of its column's type; BadAtlas, naming file and column, if not."""
        for name, column in zip(names, zip(*rows, strict=True), strict=False):
            lists = isinstance(column[0], list)
            values = [value for one in column for value in one or ()] if lists else column
            wrong = (
                None in column or None in values or (values and type(values[0]) is not KINDS.get(name, type(values[0])))
            )
            numbers = isinstance(values[0], float) if values else False
            if wrong or (numbers and name not in ENDLESS and not all(map(math.isfinite, values))):
                raise self._damaged(path.relative_to(self.path), f"its column {name} is not what it should be")
        return rows

    def rows_of(self, path: Path, wanted: Wanted, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows of a file whose columns have the wanted values, in their order; BadAtlas if it is damaged."""
        if not self._finders:  # for a question or two
            name, value = next(iter(wanted.items()))
            names = ", ".join(f'"{column}"' for column in columns)
            query = f'SELECT {names} FROM read_parquet($file, file_row_number = true) WHERE "{name}" = $value'  # noqa: S608
            return self.query(f"{query} ORDER BY file_row_number", file=str(path), value=value)
        self._require_file(path)
        try:
            rows = self._finders[0](path, wanted, columns)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(path.relative_to(self.path), error) from error
        return self._sound(path, columns, rows)

    def keep_index(self, finder: Finder) -> None:
        """Keep the index over all lists in memory (100 MB for SmolLM2), and answer each query on one core.

        For a server, which is asked by several at once. ``finder`` finds rows in a file from then on:
        `parquet_rows.rows_of` takes a fifth of the time of a query, but twenty times as long to load.
        """
        self._db.execute("SET threads = 1")
        rows = "SELECT * FROM read_parquet($file) ORDER BY id"
        self.query(f"CREATE OR REPLACE TABLE parameters AS {rows}", file=str(self.path / PARAMETERS))
        self._finders.append(finder)

    @cached_property
    def _finders(self) -> list[Finder]:
        return []

    def reconnect(self) -> None:
        """For a process that was forked: a connection of its own, since the parent's threads did not come along."""
        self.__dict__.pop("_db", None)
        self._finders.clear()

    def mask(self, view: str) -> npt.NDArray[np.bool_]:
        """Which tokens a view shows, (V,)."""
        return np.asarray(self._tokens[f"in_{view}"], bool)

    def hidden(self, view: str) -> Hidden:
        """Which tokens a view hides, and why."""
        reasons = self.manifest["tokens_hidden"][view]
        return Hidden(view, sum(reasons.values()), int(self.mask(view).sum()), reasons)

    @cached_property
    def runs(self) -> list[Run]:
        """All lists, as runs of consecutive ids."""
        rows = self.query(
            "SELECT layer, role, side, frame, min(id), count(*) FROM read_parquet($file) GROUP BY ALL ORDER BY 5",
            file=str(self.path / PARAMETERS),
        )
        runs = [Run(*row) for row in rows]
        starts = np.cumsum([0, *(run.count for run in runs)]).tolist()
        known = all(
            run.side in ("read", "write") and run.frame in FRAMES and run.layer >= OUTSIDE and run.role.isidentifier()
            for run in runs  # names of files are made of them
        )
        if not known or [*(run.first for run in runs), self.manifest["lists"]] != starts:
            raise self._damaged(PARAMETERS, f"it does not have the {self.manifest['lists']} lists of the manifest")
        return runs

    @cached_property
    def _columns(self) -> dict[str, Floats]:
        columns = self._numpy(("mean", "std", "spread"), PARAMETERS)
        finite = all(np.isfinite(values).all() for values in columns.values())
        if len(columns["mean"]) != self.manifest["lists"] or not finite:
            raise self._damaged(PARAMETERS, "means and deviations are missing or not finite")
        return columns

    @property
    def means(self) -> Floats:
        """Mean score of every list, by its id."""
        return self._columns["mean"]

    @property
    def stds(self) -> Floats:
        """Standard deviation of the scores of every list, by its id."""
        return self._columns["std"]

    @property
    def spreads(self) -> Floats:
        """Standard deviation of z of every list, by its id: one, but in an atlas of a change."""
        return self._columns["spread"]

    @cached_property
    def _arrays(self) -> dict[str, Floats]:
        return {}

    def _array(self, file: str, count: int) -> Floats:
        """A memory-mapped (count, d) array of the atlas; pickles and other shapes are refused."""
        if file not in self._arrays:
            self._require_file(self.path / file)
            try:
                array = np.load(self.path / file, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # numpy raises nearly anything for a damaged header
                raise self._damaged(file, error) from error
            if (array.shape, array.dtype) != ((count, self.model["d"]), np.dtype(np.float32)):
                raise self._damaged(file, f"{array.dtype} {array.shape} instead of {(count, self.model['d'])}")
            self._arrays[file] = array
        return self._arrays[file]

    def vectors(self, run: Run) -> Floats:
        """The folded vectors (n, d) of a run's lists."""
        return self._array(f"vectors/{vector_file(run.layer, run.role, run.frame)}", run.count)

    def rows(self, space: str) -> Floats:
        """Return the rows (V, d) that stand for the tokens in a space; BadOption for one that no list here is in."""
        file = f"rows/{safe_name(space)}.npy"
        if not (self.path / file).is_file() and space not in (known := sorted({self.space(run) for run in self.runs})):
            raise BadOption(f"There is no space {space!r} in {self.path}; it has {', '.join(known)}.")
        return self._array(file, self.model["vocabulary"])

    def space(self, run: Run) -> str:
        """The space of the rows that a run's lists score."""
        return space_of(run.frame, "read" if run.side == "read" else "write", self._stream_layer(run.layer))

    def _stream_layer(self, layer: int) -> int:
        return int(self.model["layers"]) if layer == OUTSIDE else layer

    def label(self, token: int) -> str:
        """The text of a token that stands in a list; BadAtlas for one that the vocabulary does not have."""
        if token not in self._labels:
            if not 0 <= token < len(self.vocab):
                raise self._damaged("lists", f"there is no token {token}")
            self._labels[token] = self.vocab.label(token)
        return self._labels[token]

    @cached_property
    def _labels(self) -> dict[int, str]:
        return {}


def _kind(value: Any) -> type:
    """Python's type of an entry of a NumPy array."""
    return type(value.item()) if isinstance(value, np.generic) else type(value)
