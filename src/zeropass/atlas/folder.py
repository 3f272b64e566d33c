"""The files of an atlas: its tables, queried with DuckDB, its memory-mapped arrays, and its manifest. No torch."""

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.dimensions import Mlps
from zeropass.arch.frame_names import ALL_FRAMES, LENS_FRAMES, LENS_MAPS, RELATIVE, lens_map, space_of
from zeropass.arch.roles import FF_ROLES, LAYER_ROLES, OUTSIDE, Side, site_of
from zeropass.atlas.schema import (
    COHERENCE,
    LENS,
    PARAMETERS,
    TOKENIZER,
    TOKENS,
    Place,
    Wanted,
    factor_file,
    file_name,
    mlps_of,
    safe_name,
    vector_file,
)
from zeropass.checkpoints.demo import DEMOS
from zeropass.checkpoints.kept_proofs import proof_facts
from zeropass.errors import BadAtlas, BadOption, ZeropassError
from zeropass.records.parameters import Hidden
from zeropass.tokens.shown import VIEWS
from zeropass.tokens.vocabulary import Vocabulary

__all__ = ["Files", "Finder", "Floats", "Run"]

Floats = npt.NDArray[np.float32]

COLUMN_TYPES: dict[str, type] = {
    **dict.fromkeys(("id", "layer", "head", "index", "offset", "token", "rank"), int),
    **dict.fromkeys(("top_ids", "bottom_ids", "left_ids", "right_ids", "words", "top_words", "bottom_words"), int),
    **dict.fromkeys(("address", "role", "side", "frame", "view", "piece"), str),
    **dict.fromkeys(
        ("norm", "mean", "std", "spread", "strength", "best", "kurtosis", "coherence", "z", "kth", "bound"), float
    ),
    **dict.fromkeys(("top_z", "bottom_z", "scores", "words_z"), float),
    **dict.fromkeys(("complete", "special", "unused", "literal", *(f"in_{view}" for view in VIEWS)), bool),
}
"""The type of the values of every column, or of the entries of its lists."""

ENDLESS = ("kth", "bound")
"""The columns in which a number may be infinite: fewer pairs may exist than were searched for."""

Finder = Callable[[Place, Wanted, Sequence[str]], list[tuple[Any, ...]]]
"""A function that answers `Files.rows_of` for a file."""


@dataclass(frozen=True)
class Run:
    """The lists of one layer, role and frame, which have consecutive ids.

    Attributes:
        layer: The layer, or `OUTSIDE`.
        role: The role.
        side: ``read`` or ``write``.
        frame: The frame.
        first: Id of the first list.
        count: Number of lists.
    """

    layer: int
    role: str
    side: str
    frame: str
    first: int
    count: int


@dataclass(frozen=True, eq=False, repr=False)
class Files(ShortRepr):
    """The files in the folder of a complete atlas, each read when it is first needed; files are named as in the folder.

    Attributes:
        path: The folder, on this machine or on the hub.
        manifest: The manifest.
        finder: A function that answers `rows_of`; by default DuckDB does.
    """

    path: Place
    manifest: dict[str, Any]
    finder: Finder | None = field(default=None, kw_only=True)

    def is_word(self, token: int) -> bool:
        """Tell whether a token is a complete word or punctuation (the ``words`` view)."""
        return bool(self.mask("words")[token])

    def info(self) -> dict[str, Any]:
        """Return the manifest with the path and the size of the atlas, ready for JSON."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        return {
            "atlas": str(self.path),
            **self.manifest,
            "bytes": size,
            **({"proof": self.proof} if self.proof else {}),
        }

    @property
    def proof(self) -> dict[str, Any]:
        """The facts about a proof of the model (`kept_proofs.proof_facts`); empty for an atlas of a change."""
        return (
            {}
            if self.is_change
            else proof_facts(lambda: str(self.manifest.get("weights_sha256")), str(self.manifest.get("record")))
        )

    @property
    def model(self) -> dict[str, Any]:
        """The entry of the manifest about the model."""
        return self.manifest["model"]  # type: ignore[no-any-return]

    @property
    def title(self) -> str:
        """The title of the model (`Model.title`); an old atlas has none, so for a demo model `DEMOS` says it."""
        demo = DEMOS.get(str(self.model["name"]))
        return str(self.manifest.get("title") or (demo.title if demo else ""))

    @property
    def options(self) -> dict[str, Any]:
        """The options of the build."""
        return self.manifest["options"]  # type: ignore[no-any-return]

    @cached_property
    def mlps(self) -> Mlps:
        """The MLPs of the layers."""
        mlps = mlps_of(self.model)
        assert mlps is not None  # `check_manifest` has refused any other
        return mlps

    @property
    def is_change(self) -> bool:
        """True if the atlas holds what a fine-tune changed (`diff.change_atlas`), not a model."""
        return "change" in self.manifest

    @property
    def is_dictionary(self) -> bool:
        """True if the atlas holds the features of a dictionary (`atlas.features`), not a model's parameters."""
        return "dictionary" in self.manifest

    @cached_property
    def unit_roles(self) -> tuple[str, ...]:
        """The roles of neurons or, in an atlas of a dictionary, of its features."""
        return tuple(dict.fromkeys(run.role for run in self.runs)) if self.is_dictionary else FF_ROLES

    @property
    def many_roles(self) -> tuple[str, ...]:
        """The roles with many vectors in a layer: of neurons and columns of heads, or of features."""
        return self.unit_roles if self.is_dictionary else LAYER_ROLES

    @property
    def view(self) -> str:
        """The view of the tokens in which the stored lists were made."""
        return str(self.options["tokens"])

    @property
    def layers(self) -> tuple[int, int]:
        """The half-open range of layers that the atlas covers."""
        first, stop = self.options.get("layers") or (0, self.model["layers"])
        return int(first), int(stop)

    @cached_property
    def vocab(self) -> Vocabulary:
        """The vocabulary, from the stored table; the tokenizer is read only when a word has to be split."""
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
        """Return the error for a damaged file, with the first line of the reason."""
        reason = str(why).splitlines()[0] if str(why) else type(why).__name__
        advice = "delete the folder and build it again" if isinstance(self.path, Path) else "it has to be pushed again"
        return BadAtlas(f"{self.path / file} cannot be read ({reason}); {advice}.")

    def _existing(self, file: str) -> Place:
        """Return the path of a file; raise BadAtlas if it is missing, or a device or a pipe, which may have no end."""
        path = self.path / file
        if not path.is_file():
            raise self._damaged(file, "there is no such file")
        return path

    def _copy_of(self, file: str) -> str:
        """Return the path of a file on this machine, after fetching it if it is on the hub."""
        return os.fspath(self._existing(file))

    def _numpy(self, columns: Sequence[str], file: str) -> dict[str, Any]:
        """Return columns of a table in the order of its ids; raise BadAtlas if it is damaged."""
        copy = self._copy_of(file)
        # DuckDB ignores case when it looks for a column, and would return the name that stands in the file.
        names = ", ".join(f'"{name}" AS "{name}"' for name in columns)
        query = f"SELECT {names} FROM read_parquet($file) ORDER BY id"  # noqa: S608
        try:
            arrays = self._db.cursor().execute(query, {"file": copy}).fetchnumpy()
        except (duckdb.Error, UnicodeError) as error:
            raise self._damaged(file, error) from error
        for name, column in arrays.items():
            well_typed = not len(column) or _python_type(column[0]) is COLUMN_TYPES.get(name, _python_type(column[0]))
            if np.ma.is_masked(column) or not well_typed:  # A column with missing values comes as a masked array.
                raise self._damaged(file, f"its column {name} is not what it should be")
        return arrays

    @cached_property
    def _db(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect()

    def query(self, query: str, *, file: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows that an SQL query finds in a Parquet file of the atlas.

        Args:
            query: The query, which reads ``read_parquet($file)``.
            file: The file.
            **parameters: Values of the query's other parameters.

        Raises:
            BadAtlas: The file is damaged.
        """
        if self._kept_finders and file == PARAMETERS:
            query = query.replace("read_parquet($file)", "parameters")
        else:
            parameters["file"] = self._copy_of(file)
        try:
            cursor = self._db.cursor().execute(query, parameters)  # A cursor for each query: threads may query at once.
            names, rows = [column[0].lower() for column in cursor.description], cursor.fetchall()
        except (duckdb.Error, UnicodeError) as error:  # DuckDB's messages may quote bytes that are not text.
            raise self._damaged(file, error) from error
        return self._checked(file, names, rows)

    def _checked(self, file: str, names: Sequence[str], rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Return the rows; raise BadAtlas, naming file and column, if a value is missing or of the wrong type."""
        for name, column in zip(names, zip(*rows, strict=True), strict=False):
            lists = isinstance(column[0], list)
            values = [value for entry in column for value in entry or ()] if lists else column
            wrong = (
                None in column
                or None in values
                or (values and type(values[0]) is not COLUMN_TYPES.get(name, type(values[0])))
            )
            numbers = isinstance(values[0], float) if values else False
            if wrong or (numbers and name not in ENDLESS and not all(map(math.isfinite, values))):
                raise self._damaged(file, f"its column {name} is not what it should be")
        return rows

    def rows_of(self, file: str, wanted: Wanted, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return the rows of a file that have the first wanted value, in the order of the file.

        Args:
            file: A Parquet file of the atlas.
            wanted: The values. All rows that have the first one have the others too, so DuckDB is not asked for those.
            columns: Names of the columns to return.

        Raises:
            BadAtlas: The file is damaged.
        """
        finder = self._kept_finders[0] if self._kept_finders else self.finder
        if finder is None:
            name, value = next(iter(wanted.items()))
            names = ", ".join(f'"{column}"' for column in columns)
            query = f'SELECT {names} FROM read_parquet($file, file_row_number = true) WHERE "{name}" = $value'  # noqa: S608
            return self.query(f"{query} ORDER BY file_row_number", file=file, value=value)
        path = self._existing(file)
        try:
            rows = finder(path, wanted, columns)
        except ZeropassError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(file, error) from error
        return self._checked(file, columns, rows)

    def keep_index(self, finder: Finder) -> None:
        """Keep the index over all lists in memory (100 MB for SmolLM2), and answer each query on one core.

        This suits a server, which answers several clients at once.

        Args:
            finder: Answers `rows_of` from now on: `parquet_rows.rows_of`, which says when it pays.
        """
        self._db.execute("SET threads = 1")
        rows = "SELECT * FROM read_parquet($file) ORDER BY id"
        self.query(f"CREATE OR REPLACE TABLE parameters AS {rows}", file=PARAMETERS)
        self._kept_finders.append(finder)

    @cached_property
    def _kept_finders(self) -> list[Finder]:
        return []

    def reconnect(self) -> None:
        """Open a new connection in a forked process, which does not have the threads of its parent."""
        self.__dict__.pop("_db", None)
        self._kept_finders.clear()

    def mask(self, view: str) -> npt.NDArray[np.bool_]:
        """Return which tokens a view shows, (V,)."""
        return np.asarray(self._tokens[f"in_{view}"], bool)

    def hidden(self, view: str) -> Hidden:
        """Return how many tokens a view hides, by reason."""
        reasons = self.manifest["tokens_hidden"][view]
        return Hidden(view=view, count=sum(reasons.values()), shown=int(self.mask(view).sum()), reasons=reasons)

    @cached_property
    def runs(self) -> list[Run]:
        """All lists, as runs of consecutive ids."""
        rows = self.query(
            "SELECT layer, role, side, frame, min(id), count(*) FROM read_parquet($file) GROUP BY ALL ORDER BY 5",
            file=PARAMETERS,
        )
        runs = [Run(*row) for row in rows]
        starts = np.cumsum([0, *(run.count for run in runs)]).tolist()
        known = all(
            run.side in ("read", "write") and run.frame in self._frames and run.layer >= OUTSIDE and self._is_known(run)
            for run in runs  # They become parts of file names.
        )
        if not known or [*(run.first for run in runs), self.manifest["lists"]] != starts:
            raise self._damaged(PARAMETERS, f"it does not have the {self.manifest['lists']} lists of the manifest")
        return runs

    def _is_known(self, run: Run) -> bool:
        """Tell whether a run has a role that may be part of a file name: of features, one that the manifest names."""
        if not self.is_dictionary:
            return run.role.isidentifier()
        return file_name(run.layer, run.role) in self.manifest["dictionary"]["like"]

    def run_of(self, i: int) -> Run:
        """Return the run that a list belongs to, by the list's id."""
        place = bisect_right(self.runs, i, key=lambda run: run.first) - 1
        if place < 0 or i >= self.runs[place].first + self.runs[place].count:
            raise self._damaged(PARAMETERS, f"there is no list {i}")
        return self.runs[place]

    @property
    def lens(self) -> str:
        """The lens that lists were made through, in words; empty for the weights alone."""
        return str(self.manifest["lens"]["words"]) if self.manifest.get("lens") else ""

    def lens_words(self, frame: str) -> str:
        """Return the lens of the lists of a frame, in words; empty for a frame of the weights alone."""
        return self.lens if frame in LENS_FRAMES else ""

    @property
    def _frames(self) -> tuple[str, ...]:
        """The frames that lists of the atlas may have."""
        return tuple(frame for frame in ALL_FRAMES if self.lens or frame not in LENS_FRAMES)

    @cached_property
    def random_coherence(self) -> dict[tuple[int, str, str, str], float]:
        """The coherence that random directions stay below, by (layer, role, frame, view)."""
        query = "SELECT layer, role, frame, view, coherence FROM read_parquet($file)"
        return {(*key,): null for *key, null in self.query(query, file=COHERENCE)}

    @cached_property
    def _columns(self) -> dict[str, Floats]:
        columns = self._numpy(("mean", "std", "spread"), PARAMETERS)
        finite = all(np.isfinite(values).all() for values in columns.values())
        if len(columns["mean"]) != self.manifest["lists"] or not finite:
            raise self._damaged(PARAMETERS, "means and deviations are missing or not finite")
        return columns

    @property
    def means(self) -> Floats:
        """The mean score of every list, by its id."""
        return self._columns["mean"]

    @property
    def stds(self) -> Floats:
        """The standard deviation of the scores of every list, by its id."""
        return self._columns["std"]

    @property
    def spreads(self) -> Floats:
        """The standard deviation of z of every list, by its id: one, except in an atlas of a change."""
        return self._columns["spread"]

    @cached_property
    def _arrays(self) -> dict[str, Floats]:
        return {}

    def _array(self, file: str, *shape: int) -> Floats:
        """Map an array of the atlas into memory; raise BadAtlas for pickles and other shapes."""
        if file not in self._arrays:
            copy = self._copy_of(file)
            try:
                array = np.load(copy, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # NumPy raises nearly any error for a damaged header.
                raise self._damaged(file, error) from error
            if (array.shape, array.dtype) != (shape, np.dtype(np.float32)):
                raise self._damaged(file, f"{array.dtype} {array.shape} instead of {shape}")
            self._arrays[file] = array
        return self._arrays[file]

    def _rows_at(self, file: str, ids: Sequence[int], *shape: int) -> Floats:
        """Return some rows of an array; if they are few, no others of an array on the hub are fetched."""
        path = self._existing(file)
        if isinstance(path, Path) or not path.in_parts(len(ids) * path.BLOCK):
            return self._array(file, *shape)[list(ids)]
        try:
            stored, offset = path.read_array_header()
        except ZeropassError:
            raise
        except Exception as error:  # NumPy raises nearly any error for a damaged header.
            raise self._damaged(file, error) from error
        width = 4 * math.prod(shape[1:])
        if stored != (shape, np.dtype(np.float32)) or path.size != offset + width * shape[0]:
            raise self._damaged(file, f"{stored[1]} {stored[0]} instead of {shape}")
        parts = path.read_parts([(offset + i * width, offset + (i + 1) * width) for i in ids])
        return np.frombuffer(b"".join(parts), np.float32).reshape(len(ids), *shape[1:])

    def vectors(self, run: Run) -> Floats:
        """Return the folded vectors of a run's lists without the lens, (n, d)."""
        return self._array(self._vectors_file(run), run.count, self.model["d"])

    def fetch_vectors(self, runs: Sequence[Run]) -> None:
        """Fetch the vectors of runs at once if they are on the hub, and not each when it is read."""
        if not isinstance(self.path, Path):
            self.path.fetch(self.path / self._vectors_file(run) for run in runs)

    @staticmethod
    def _vectors_file(run: Run) -> str:
        return f"vectors/{vector_file(run.layer, run.role, run.frame)}"

    def vector(self, run: Run, row: int) -> Floats:
        """Return the vector that gave a list, through the lens if the run has one, (d,)."""
        carried = self._lens_map(run)
        (vector,) = self._rows_at(self._vectors_file(run), [row], run.count, self.model["d"])
        return vector if carried is None else np.asarray(vector @ carried, np.float32)

    def products(self, run: Run, row: Floats) -> Floats:
        """Return the products of a row (d,) with all vectors that gave a run's lists, (n,).

        The row is taken back through the lens, which costs as much as one vector.
        """
        carried = self._lens_map(run)
        direction = row if carried is None else np.asarray(carried @ row, np.float32)
        return np.asarray(self.vectors(run) @ direction, np.float32)

    def _lens_map(self, run: Run) -> Floats | None:
        """Return the map of the lens that a run's vectors are multiplied by from the right, (d, d), if there is one."""
        if run.frame not in LENS_FRAMES:
            return None
        side: Side = "read" if run.side == "read" else "write"
        layer, role = self._like(run)
        name = lens_map(side, site_of(role), layer, self.model["layers"])
        if not name:
            return None
        if name not in self._lens_maps:
            self._lens_maps[name] = self._read_map(name)
        return self._lens_maps[name].T if side == "read" else self._lens_maps[name]

    def _read_map(self, name: str) -> Floats:
        """Return a map of the lens in single precision; raise BadAtlas if it is damaged."""
        file, d = f"{LENS}/{LENS_MAPS}", self.model["d"]
        path = self._existing(file)
        try:
            if isinstance(path, Path) or not path.in_parts(4 * d * d):
                with safe_open(os.fspath(path), framework="np") as tensors:
                    stored = tensors.get_tensor(name)
            else:
                stored = load(path.read_tensor(name))[name]
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise self._damaged(file, error) from error
        if stored.shape != (d, d) or stored.dtype not in (np.float16, np.float32) or not np.isfinite(stored).all():
            raise self._damaged(file, f"{name} is {stored.dtype} {stored.shape}, or not finite")
        matrix: Floats = stored.astype(np.float32)
        return matrix

    @cached_property
    def _lens_maps(self) -> dict[str, Floats]:
        return {}

    def rows(self, space: str) -> Floats:
        """Return the rows of the tokens in a space, (V, d); raise BadOption for one in which the atlas has no list."""
        return self._array(self._rows_file(space), self.model["vocabulary"], self.model["d"])

    def rows_at(self, space: str, ids: Sequence[int]) -> Floats:
        """Return the rows of some tokens in a space, (n, d), as `rows` does."""
        return self._rows_at(self._rows_file(space), ids, self.model["vocabulary"], self.model["d"])

    def _rows_file(self, space: str) -> str:
        file = f"rows/{safe_name(space)}.npy"
        if not self.has_rows(space) and space not in (known := sorted({self.space(run) for run in self.runs})):
            raise BadOption(f"There is no space {space!r} in {self.path}; it has {', '.join(known)}.")
        return file

    def has_rows(self, space: str) -> bool:
        """Tell whether the atlas holds the rows of a space."""
        return (self.path / f"rows/{safe_name(space)}.npy").is_file()

    def scores(self, run: Run, row: int) -> Floats:
        """Return the scores of all tokens in one list, (V,): one product with the rows of the vocabulary."""
        scores = np.asarray(self.rows(self.space(run)) @ self.vector(run, row), np.float32)
        return scores if (factors := self.factors(run)) is None else scores * factors

    def is_relative(self, run: Run) -> bool:
        """Tell whether the scores of a run's lists are multiplied by `factors`."""
        return run.frame in RELATIVE

    def factors(self, run: Run) -> Floats | None:
        """Return what the frame of a run multiplies the scores of the tokens by, (V,), if it is a relative one."""
        if not self.is_relative(run):
            return None
        file = f"vectors/{factor_file(run.layer, run.role, run.frame)}"
        return self._array(file, self.model["vocabulary"])

    def moments(self, space: str) -> npt.NDArray[np.float64]:
        """Return the mean row of a space, with the covariance below it, (1 + d, d); raise BadAtlas if it is damaged."""
        if space not in self._moments:
            file, d = f"rows/{safe_name(space)}.moments.npy", self.model["d"]
            copy = self._copy_of(file)
            try:
                stacked = np.load(copy, allow_pickle=False)
            except Exception as error:  # NumPy raises nearly any error for a damaged header.
                raise self._damaged(file, error) from error
            if stacked.shape != (d + 1, d) or stacked.dtype != np.float64:
                raise self._damaged(file, f"{stacked.dtype} {stacked.shape} instead of {(d + 1, d)}")
            self._moments[space] = stacked
        return self._moments[space]

    def unit_rows(self, space: str, ids: Sequence[int]) -> Floats:
        """Return the rows of some tokens less the mean row, each of length one, (n, d)."""
        centred = self.rows_at(space, ids) - self.moments(space)[0].astype(np.float32)
        unit: Floats = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-20)
        return unit

    @cached_property
    def _moments(self) -> dict[str, npt.NDArray[np.float64]]:
        return {}

    def space(self, run: Run) -> str:
        """Return the name of the space whose rows a run's lists score."""
        layer, _ = self._like(run)
        bare = file_name(run.layer, run.role) in self.manifest.get("bare", ())
        return space_of(run.frame, "read" if run.side == "read" else "write", self._stream_layer(layer), bare)

    def _like(self, run: Run) -> tuple[int, str]:
        """Return the layer and role of the parameters that a run's lists are made like: of features, those there."""
        if not self.is_dictionary:
            return run.layer, run.role
        layer, role = self.manifest["dictionary"]["like"][file_name(run.layer, run.role)]
        return layer, role

    def _stream_layer(self, layer: int) -> int:
        return int(self.model["layers"]) if layer == OUTSIDE else layer

    def label(self, token: int) -> str:
        """Return the text of a token of a list; raise BadAtlas for one that the vocabulary does not have."""
        if token not in self._labels:
            if not 0 <= token < len(self.vocab):
                raise self._damaged("lists", f"there is no token {token}")
            self._labels[token] = self.vocab.label(token)
        return self._labels[token]

    @cached_property
    def _labels(self) -> dict[int, str]:
        return {}


def _python_type(value: Any) -> type:
    """Return the Python type of an entry of a NumPy array."""
    return type(value.item()) if isinstance(value, np.generic) else type(value)
