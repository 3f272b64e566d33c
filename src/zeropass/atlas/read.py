"""Reads an atlas, through DuckDB and memory-mapped arrays: words of a parameter, parameters of a word. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from zeropass.address import Address, parse, with_roles
from zeropass.arch.spec import FF_ROLES, MAP_ROLES, OUTSIDE, base_role, check_count, check_frame, space_of
from zeropass.atlas.lookup import Wanted, of_address, rows_of
from zeropass.atlas.schema import (
    HITS,
    MANIFEST,
    PARAMETERS,
    PLAN,
    SCHEMA_VERSION,
    TOKENIZER,
    TOKENS,
    check_manifest,
    check_view,
    file_name,
    read_json,
    safe_name,
    vector_file,
)
from zeropass.errors import BadAddress, BadAtlas, BadOption
from zeropass.evidence.verdicts import Verdict, Verdicts, known_verdicts
from zeropass.views import (
    Certificate,
    FindRecord,
    Hidden,
    Hit,
    PairRecord,
    PairScore,
    Record,
    Records,
    Token,
    TokenScore,
    VectorRecord,
)
from zeropass.vocab import VIEWS, Vocabulary

__all__ = ["Atlas", "Run", "open_atlas"]

Floats = npt.NDArray[np.float32]

_LIST = ("id", "frame", "norm", "mean", "std", "spread", "top_ids", "top_z", "bottom_ids", "bottom_z")
_PAIRS = ("offset", "frame", "left_ids", "right_ids", "scores", "kth", "bound", "complete")

_K = 20
"""Tokens a pole, and pairs, if nothing else is asked for."""


def open_atlas(folder: str | Path, verdicts: Verdicts | None = None) -> "Atlas":
    """Open an atlas. Raises BadAtlas if the folder is not one, is not complete, or is of another version.

    verdicts: what a text said of the model's kinds of list; if not given, those that are known of its weights.
    """
    path = Path(folder)
    if not path.is_dir():
        raise BadAtlas(f"{folder} is not a folder; an atlas is made by: zeropass build MODEL --out {folder}")
    if not (path / MANIFEST).exists():
        if (path / PLAN).exists():
            raise BadAtlas(f"{folder} is not complete; run the same zeropass build again, it continues.")
        raise BadAtlas(f"{folder} is not an atlas (it has no {MANIFEST}).")
    manifest = read_json(path / MANIFEST)
    if manifest.get("schema") != SCHEMA_VERSION:
        raise BadAtlas(
            f"{folder} has schema version {manifest.get('schema')!r}, this zeropass reads {SCHEMA_VERSION}; rebuild it."
        )
    check_manifest(manifest, path / MANIFEST)
    missing = [name for name in (TOKENS, TOKENIZER, PARAMETERS, HITS) if not (path / name).is_file()]
    if missing:
        raise BadAtlas(f"{folder} lacks {', '.join(missing)}; delete it and build it again.")
    return Atlas(path, manifest, verdicts or known_verdicts(None, lambda: str(manifest.get("weights_sha256"))))


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
class Atlas:
    """A complete atlas on disk; every method reads only what it needs."""

    path: Path
    manifest: dict[str, Any]
    verdicts: Verdicts | None = None

    def __getitem__(self, address: str) -> Records:
        """The records of an address in all its roles and stored frames."""
        return self.explain(address)

    def explain(
        self, address: str, *, frame: str | None = None, tokens: str | None = None, k: int | None = None
    ) -> Records:
        """What `Lens.explain` says, from the stored lists; a longer list or another view from the stored vectors.

        k: tokens a pole, or pairs; 20 if not given, or the stored pairs where they are fewer.
        Raises BadAddress (out of range), BadOption (no such frame or view, more pairs than are stored).
        """
        check_frame(frame)
        check_count(_K if k is None else k)
        place = parse(address)
        view = tokens or self.view
        check_view(view)
        records: list[Record] = []
        for one in self._held(place):
            self.check_range(one)
            found = self._pairs(one, k, view) if one.role in MAP_ROLES else self._lists(one, k or _K, view)
            records += [r for r in found if frame in (None, r.frame)]
        if not records:
            raise BadOption(
                f"{address} has no {frame} list in {self.path}; zeropass explain can make it from the model."
            )
        return Records(records)

    def find(
        self,
        words: str | Sequence[str],
        *,
        side: str | None = None,
        role: str | None = None,
        layers: tuple[int, int] | None = None,
        k: int = 20,
    ) -> FindRecord:
        """The k parameters of each kind that rank highest by |z| for a word, or for several as a concept (mean z).

        side: ``read`` or ``write``. layers: half-open range. Raises UnknownWord for a word that is no token.
        """
        check_count(k)
        asked = [words] if isinstance(words, str) else list(words)
        if not asked:
            raise BadOption("find needs at least one word.")
        ids = list(dict.fromkeys(i for word in asked for i in self.vocab.find(word)))
        return self.find_tokens(ids, side=side, role=role, layers=layers, k=k)

    def find_tokens(
        self,
        ids: Sequence[int],
        *,
        side: str | None = None,
        role: str | None = None,
        layers: tuple[int, int] | None = None,
        k: int = 20,
    ) -> FindRecord:
        """What `find` finds, for tokens by their ids; BadOption for one that the vocabulary does not have."""
        if wrong := [i for i in ids if not 0 <= i < len(self.vocab)]:
            raise BadOption(f"There is no token {wrong[0]}; the vocabulary has 0 to {len(self.vocab) - 1}.")
        runs = self._chosen(side, role, layers)
        plain = len(ids) == 1 and (side, role, layers) == (None, None, None) and k <= self.options["k"]
        stored = plain and self._is_shown(ids[0])
        best = self._stored_hits(ids[0], k) if stored else self.scan(ids, runs, k)
        return FindRecord(tuple(Token(i, self.vocab.label(i)) for i in ids), self._hits(best))

    def scan(self, ids: Sequence[int], runs: "Sequence[Run] | None" = None, k: int = 20) -> list[tuple[int, float]]:
        """(list id, z) of the k best of each kind for the mean of some tokens, from every stored vector.

        The mean of z over tokens is the z of their mean row, so a concept costs as much as a word.
        """
        runs = self.runs if runs is None else runs
        z = np.zeros(len(self.means), np.float32)
        means = {space: np.asarray(self.rows(space)[list(ids)].mean(0)) for space in {self.space(run) for run in runs}}
        for run in runs:
            z[run.first : run.first + run.count] = self.vectors(run) @ means[self.space(run)]
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(self.stds > 0, (z - self.means) / self.stds, 0)
        best: list[tuple[int, float]] = []
        for kind in sorted({(run.side, run.frame) for run in runs}):
            own = np.concatenate([np.arange(r.first, r.first + r.count) for r in runs if (r.side, r.frame) == kind])
            best += [(int(i), float(z[i])) for i in own[_largest(np.abs(z[own]), k)]]
        return sorted(best, key=lambda hit: (-abs(hit[1]), hit[0]))

    def strongest(self, role: str, frame: str, layers: tuple[int, int], k: int = 3) -> list[str]:
        """Addresses of the k most telling lists of a role and frame: highest |z| of the tenth token of a pole."""
        rows = self.query(
            "SELECT address FROM read_parquet($file) WHERE role = $role AND frame = $frame "
            "AND layer >= $first AND layer < $stop ORDER BY strength DESC, id LIMIT $k",
            file=str(self.path / PARAMETERS),
            role=role,
            frame=frame,
            first=layers[0],
            stop=layers[1],
            k=k,
        )
        return [row[0] for row in rows]

    def head_maps(self, layer: int, kind: str, k: int | None = None) -> list[PairRecord]:
        """All stored head maps of a layer, ``qk`` or ``vo``, k pairs each; none if the atlas was built without."""
        path = self.path / "pairs" / f"{file_name(layer, kind)}.parquet"
        if not path.exists():
            return []
        columns = ", ".join(f'"{name}"' for name in _PAIRS)
        rows = self.query(f"SELECT address, {columns} FROM read_parquet($file) ORDER BY head", file=str(path))  # noqa: S608
        k, hidden = min(k or self.options["pairs"], self.options["pairs"]), self.hidden(self.view)
        return [self._pair_record(parse(f"{address}.{base_role(kind)}"), row, k, hidden) for address, *row in rows]

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
    def options(self) -> dict[str, Any]:
        """The options of the build."""
        return self.manifest["options"]  # type: ignore[no-any-return]

    @property
    def is_change(self) -> bool:
        """Whether it is an atlas of what a fine-tune changed (`delta.build`), not of a model."""
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
        pieces = table["piece"].tolist()
        if len(pieces) != self.model["vocabulary"]:
            raise self._damaged(TOKENS, f"{len(pieces)} tokens instead of {self.model['vocabulary']}")
        return Vocabulary(
            kind=self.manifest["token_kind"],
            pieces=pieces,
            special=table["special"],
            unused=table["unused"],
            literal=table["literal"],
            uncased=bool(self.manifest["uncased"]),
            tokenizer=self._tokenizer,
            split_note=str(self.manifest["split_note"]),
        )

    def _tokenizer(self) -> str:
        try:
            return (self.path / TOKENIZER).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise self._damaged(TOKENIZER, error) from error

    @cached_property
    def _tokens(self) -> dict[str, Any]:
        columns = ", ".join(("piece", "special", "unused", "literal", *(f"in_{view}" for view in VIEWS)))
        return self._numpy(f"SELECT {columns} FROM read_parquet($file) ORDER BY id", TOKENS)  # noqa: S608

    def _verdict(self, role: str, frame: str, layer: int, offset: int = 0) -> Verdict | None:
        return self.verdicts.of(role, frame, layer, offset) if self.verdicts else None

    def _damaged(self, file: str | Path, why: object) -> BadAtlas:
        said = str(why).splitlines()[0] if str(why) else type(why).__name__
        return BadAtlas(f"{self.path / file} cannot be read ({said}); delete the folder and build it again.")

    def _numpy(self, query: str, file: str) -> dict[str, Any]:
        try:
            return self._db.cursor().execute(query, {"file": str(self.path / file)}).fetchnumpy()
        except duckdb.Error as error:
            raise self._damaged(file, error) from error

    @cached_property
    def _db(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect()

    def query(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Rows that a query finds in ``$file``, a Parquet file of the atlas; BadAtlas, naming it, if it is damaged."""
        asked = parameters
        if self._kept and parameters["file"] == str(self.path / PARAMETERS):
            query = query.replace("read_parquet($file)", "parameters")
            asked = {name: value for name, value in parameters.items() if name != "file"}
        try:
            return self._db.cursor().execute(query, asked).fetchall()  # a cursor each: threads may ask at once
        except duckdb.Error as error:
            raise self._damaged(Path(parameters["file"]).relative_to(self.path), error) from error

    def rows_of(self, path: Path, wanted: Wanted, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Rows of a file of the atlas by the values of some columns (`lookup.rows_of`); BadAtlas if it is damaged."""
        try:
            return rows_of(path, wanted, columns)
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(path.relative_to(self.path), error) from error

    def keep_index(self) -> None:
        """Keep the index over all lists in memory (100 MB for SmolLM2), and answer each query on one core.

        For a server, which is asked by several at once.
        """
        self._db.execute("SET threads = 1")
        rows = "SELECT * FROM read_parquet($file) ORDER BY id"
        self.query(f"CREATE OR REPLACE TABLE parameters AS {rows}", file=str(self.path / PARAMETERS))
        self._kept.add(PARAMETERS)

    @cached_property
    def _kept(self) -> set[str]:
        return set()

    def mask(self, view: str) -> npt.NDArray[np.bool_]:
        """Which tokens a view shows, (V,)."""
        return np.asarray(self._tokens[f"in_{view}"], bool)

    def hidden(self, view: str) -> Hidden:
        """Which tokens a view hides, and why."""
        reasons = self.manifest["tokens_hidden"][view]
        return Hidden(view, sum(reasons.values()), int(self.mask(view).sum()), reasons)

    def _is_shown(self, token: int) -> bool:
        return bool(self.mask(self.view)[token])

    @cached_property
    def runs(self) -> list[Run]:
        """All lists, as runs of consecutive ids."""
        rows = self.query(
            "SELECT layer, role, side, frame, min(id), count(*) FROM read_parquet($file) GROUP BY ALL ORDER BY 5",
            file=str(self.path / PARAMETERS),
        )
        return [Run(*row) for row in rows]

    @cached_property
    def _columns(self) -> dict[str, Floats]:
        return self._numpy("SELECT mean, std, spread FROM read_parquet($file) ORDER BY id", PARAMETERS)

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
            try:
                array = np.load(self.path / file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise self._damaged(file, error) from error
            if (array.shape, array.dtype) != ((count, self.model["d"]), np.dtype(np.float32)):
                raise self._damaged(file, f"{array.dtype} {array.shape} instead of {(count, self.model['d'])}")
            self._arrays[file] = array
        return self._arrays[file]

    def vectors(self, run: Run) -> Floats:
        """The folded vectors (n, d) of a run's lists."""
        return self._array(f"vectors/{vector_file(run.layer, run.role, run.frame)}", run.count)

    def rows(self, space: str) -> Floats:
        """The rows (V, d) that stand for the tokens in a space."""
        return self._array(f"rows/{safe_name(space)}.npy", self.model["vocabulary"])

    def space(self, run: Run) -> str:
        """The space of the rows that a run's lists score."""
        return space_of(run.frame, "read" if run.side == "read" else "write", self._stream_layer(run.layer))

    def _stream_layer(self, layer: int) -> int:
        return int(self.model["layers"]) if layer == OUTSIDE else layer

    def _chosen(self, side: str | None, role: str | None, layers: tuple[int, int] | None) -> list[Run]:
        """The runs that a question asks for; BadOption, with what there is, if that is none."""
        for name, value, known in (
            ("--side", side, {"read", "write"}),
            ("--role", role, {run.role for run in self.runs}),
        ):
            if value is not None and value not in known:
                raise BadOption(f"{name} {value!r} is not one of {', '.join(sorted(known))}.")
        first, stop = layers or (OUTSIDE, self.model["layers"])
        chosen = [
            run
            for run in self.runs
            if side in (None, run.side) and role in (None, run.role) and first <= run.layer < stop
        ]
        if not chosen:
            have = "{}:{}".format(*self.layers)
            raise BadOption(f"Nothing in this atlas fits the options; it has layers {have}.")
        return chosen

    def _stored_hits(self, token: int, k: int) -> list[tuple[int, float]]:
        rows = self.rows_of(self.path / HITS, {"token": token}, ("rank", "id", "z"))
        return sorted(((i, z) for rank, i, z in rows if rank < k), key=lambda hit: (-abs(hit[1]), hit[0]))

    def _hits(self, best: Iterable[tuple[int, float]]) -> tuple[Hit, ...]:
        found = list(best)
        rows = self.query(
            "SELECT id, address, side, role, frame, layer, mean, std FROM read_parquet($file) "
            "WHERE id IN (SELECT unnest($ids))",
            file=str(self.path / PARAMETERS),
            ids=[i for i, _ in found],
        )
        by_id = {row[0]: row[1:] for row in rows}
        hits = []
        for i, z in found:
            if i not in by_id:
                raise self._damaged(HITS, f"there is no list {i}")
            address, side, role, frame, layer, mean, std = by_id[i]
            known = self._verdict(role, frame, layer)
            hits.append(Hit(address, side, role, frame, z * std + mean, z, known.above if known else None))
        return tuple(hits)

    def _held(self, place: Address) -> list[Address]:
        """The addresses that one stands for; without a role, those of the roles that this atlas has there.

        Raises BadAddress, where the atlas is one of a change, if nothing of the place changed.
        """
        every = with_roles(place, self.model["ff_roles"])
        held = [one for one in every if self._built(one.role) and (not self.is_change or self._changed(one))]
        if not held and self.is_change:
            self.check_range(place)
            role = f".{place.role}" if place.index >= 0 and place.role in FF_ROLES else ""
            raise BadAddress(f"{place}{role}: nothing of it changed from {self.model['name']}.")
        return held or every

    def _changed(self, place: Address) -> bool:
        if place.role in MAP_ROLES:
            return (self.path / "pairs" / f"{file_name(place.layer, place.role)}.parquet").exists()
        return (self.path / "lists" / f"{self.stored_name(place)[0]}.parquet").exists()

    def _built(self, role: str) -> bool:
        return role in (self.options.get("roles") or (role,))

    def check_range(self, place: Address) -> None:
        """Raise BadAddress, with the range, for a layer, head, neuron or column that the atlas does not have."""
        if place.layer == OUTSIDE:
            return
        first, stop = self.layers
        if not first <= place.layer < stop:
            raise BadAddress(
                f"{place}: layer {place.layer} is out of range, {self.path} has layers {first} to {stop - 1}."
            )
        experts = self.model.get("experts", 1)
        if place.part == "ff" and (place.index >= 0 or place.expert >= 0) and (experts > 1) != (place.expert >= 0):
            form = "e0.0" if experts > 1 else "0"
            raise BadAddress(f"{place}: of {experts} experts; a neuron is L{place.layer}.ff.{form}.")
        for what, value, count in (
            ("head", place.head, self.model["heads"]),
            ("expert", place.expert, experts),
            ("neuron", place.index if place.part == "ff" else -1, self.model["neurons"] // experts),
            ("subhead", place.index if place.part in ("attn", "cross") else -1, self.model["head_dim"]),
        ):
            if value >= count:
                raise BadAddress(f"{place}: {what} {value} is out of range, the model has {what}s 0 to {count - 1}.")

    def stored_name(self, place: Address) -> tuple[str, str, Address]:
        """(file stem, role, address as stored): a k or v column is stored under the first head of its group."""
        if place.layer == OUTSIDE:
            role = f"{place.part}_norm" if place.index < 0 else place.part
        elif place.head < 0 and place.index < 0 and place.expert < 0:
            role = f"{place.part}_{place.role}"
        else:
            role = place.role
        if base_role(role) in ("k", "v"):
            group = self.model["heads"] // self.model["kv_heads"]
            place = replace(place, head=place.head // group * group)
        return file_name(place.layer, role), role, place

    def _lists(self, place: Address, k: int, view: str) -> list[VectorRecord]:
        stem, role, stored = self.stored_name(place)
        path = self.path / "lists" / f"{stem}.parquet"
        if role not in {run.role for run in self.runs if run.layer == place.layer}:
            raise BadAddress(
                f"{place}: this atlas holds no {role}; it has {', '.join(sorted({r.role for r in self.runs}))}."
            )
        rows = sorted(self.rows_of(path, of_address(stored), _LIST))
        if not rows:
            count = max((run.count for run in self.runs if (run.layer, run.role) == (place.layer, role)), default=0)
            raise BadAddress(f"{place} is out of range, {self.path} has {role} 0 to {count - 1}.")
        hidden = self.hidden(view)
        records = []
        for i, frame, norm, mean, std, spread, *lists in rows:
            run = next((run for run in self.runs if run.first <= i < run.first + run.count), None)
            if run is None:
                raise self._damaged(PARAMETERS, f"there is no list {i}")
            if view != self.view or k > len(lists[0]):
                lists = self._relisted(run, i - run.first, mean, std, k, view)
            top, bottom = (self._scored(ids[:k], zs[:k], mean, std) for ids, zs in (lists[:2], lists[2:]))
            known = self._verdict(role, frame, place.layer)
            of_change = spread if self.is_change else None
            records.append(
                VectorRecord(str(place), role, run.side, frame, norm, top, bottom, mean, std, hidden, known, of_change)
            )
        return records

    def _relisted(self, run: Run, row: int, mean: float, std: float, k: int, view: str) -> list[list[Any]]:
        """Both poles of one vector over another view, from the stored vector and rows: one product with V rows."""
        ids = np.flatnonzero(self.mask(view))
        z = (self.rows(self.space(run)) @ self.vectors(run)[row])[ids]
        z = (z - mean) / std if std > 0 else np.zeros_like(z)
        order = np.argsort(-z, kind="stable")
        top, bottom = order[:k], order[::-1][:k]
        return [ids[top].tolist(), z[top].tolist(), ids[bottom].tolist(), z[bottom].tolist()]

    def _scored(self, ids: Sequence[int], zs: Sequence[float], mean: float, std: float) -> tuple[TokenScore, ...]:
        return tuple(TokenScore(i, self.label(i), z * std + mean, z) for i, z in zip(ids, zs, strict=True))

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

    def _pairs(self, place: Address, k: int | None, view: str) -> list[PairRecord]:
        path = self.path / "pairs" / f"{file_name(place.layer, place.role)}.parquet"
        if not self._built(place.role):
            raise BadAddress(f"{place}: this atlas was built without {place.role}.")
        stored = int(self.options["pairs"])
        k = min(_K, stored) if k is None else k
        if view != self.view or k > stored:
            raise BadOption(
                f"{place}.{place.role}: this atlas holds the best {stored} pairs of the {self.view} view; "
                "zeropass explain searches others from the model."
            )
        rows = self.rows_of(path, of_address(place), _PAIRS)
        hidden = self.hidden(view)
        return [self._pair_record(place, row, k, hidden) for row in rows]

    def _pair_record(self, place: Address, row: Sequence[Any], k: int, hidden: Hidden) -> PairRecord:
        offset, frame, left, right, scores, kth, bound, complete = row
        pairs = tuple(
            PairScore(Token(a, self.label(a)), Token(b, self.label(b)), s)
            for a, b, s in zip(left[:k], right[:k], scores[:k], strict=True)
        )
        kth = pairs[-1].score if pairs else kth  # fewer may be shown than were searched for
        certificate = Certificate(kth, bound if np.isfinite(bound) else None, complete)
        known = self._verdict(place.role, frame, place.layer, offset)
        return PairRecord(str(place), place.role, offset, frame, pairs, certificate, hidden, known, self.is_change)


def _largest(sizes: Floats, k: int) -> npt.NDArray[np.intp]:
    """Places of the k largest, best first; of equal ones the first. A full sort of all would take most of a query."""
    if k >= len(sizes):
        return np.argsort(-sizes, kind="stable")
    least = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    near = np.flatnonzero(sizes >= least)
    return near[np.argsort(-sizes[near], kind="stable")[:k]]
