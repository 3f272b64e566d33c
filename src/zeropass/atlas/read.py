"""Queries of an atlas: the words of a parameter, the parameters of a word. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from zeropass.arch.spec import (
    FF_ROLES,
    FIRST,
    MAP_ROLES,
    OUTSIDE,
    Frame,
    MapRole,
    Side,
    base_role,
    check_count,
    check_frame,
    judge_space,
)
from zeropass.atlas.folder import Files, Finder, Floats, Run
from zeropass.atlas.index_search import Entries, best_sums
from zeropass.atlas.query import token_of, weights_of, with_similar, words_of
from zeropass.atlas.schema import (
    COHERENCE,
    MANIFEST,
    PARAMETERS,
    PLAN,
    SCHEMA_VERSION,
    TOKEN_INDEX,
    TOKENIZER,
    TOKENS,
    Place,
    check_manifest,
    check_view,
    file_name,
    lists_file,
    of_address,
    pairs_file,
    read_json,
)
from zeropass.atlas.sql import result_of
from zeropass.errors import BadAddress, BadAtlas, BadOption
from zeropass.model.address import FEATURE, Address, canonical_role, feature_roles, parse, with_roles
from zeropass.records.parameters import (
    Certificate,
    Coherence,
    Hidden,
    PairRecord,
    PairScore,
    Record,
    Records,
    Token,
    TokenScore,
    VectorRecord,
    is_faint,
)
from zeropass.records.search import FindRecord, Hit, QueryWord, largest
from zeropass.records.verdicts import Verdict, Verdicts, footnote, known_verdicts
from zeropass.tokens.vocabulary import View

__all__ = ["Atlas", "open_atlas"]

_LIST = ("id", "frame", "norm", "mean", "std", "spread", "coherence", "top_ids", "top_z", "bottom_ids", "bottom_z")
_PAIRS = ("offset", "frame", "left_ids", "right_ids", "scores", "kth", "bound", "complete")

_K = 20
"""Tokens of each pole, and pairs, by default."""

_INDEXED = 8
"""The largest number of tokens that are looked up in the index: with more, reading all vectors is as fast."""


def open_atlas(folder: str | Path, verdicts: Verdicts | None = None) -> "Atlas":
    """Open an atlas.

    Args:
        folder: Folder of the atlas; or an atlas on the hub, ``hf://datasets/owner/name@revision``, of which only what
            is read is fetched.
        verdicts: Verdicts of a measured text on the model's types of list; by default those known for its weights.

    Raises:
        BadAtlas: The folder is not an atlas, or the atlas is not complete or has another version.
        NotFetched: The hub does not give it.

    Example:
        >>> import tempfile
        >>> import zeropass as zp
        >>> folder = tempfile.mkdtemp()
        >>> fresh = zp.build(zp.open_model("models/first"), folder, zp.Options(k=10, layers=(1, 2), roles=("gate",)))
        >>> atlas = zp.open_atlas(folder)
        >>> atlas.explain("L1.ff.3.gate")
        Records(L1.ff.3.gate token, L1.ff.3.gate output)
        >>> len(atlas.find(" the", k=2).hits)
        4
    """
    path, finder = _place_of(folder)
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
    missing = [name for name in (TOKENS, TOKENIZER, PARAMETERS, TOKEN_INDEX, COHERENCE) if not (path / name).is_file()]
    if missing:
        raise BadAtlas(f"{folder} lacks {', '.join(missing)}; delete it and build it again.")
    layers, values = manifest["model"]["layers"], manifest.get("values_sha256")
    if "dictionary" in manifest:
        return Atlas(path, manifest, verdicts, finder=finder)  # what was measured is about parameters
    known = verdicts or known_verdicts(None, lambda: str(manifest.get("weights_sha256")), layers, lambda: values)
    return Atlas(path, manifest, known, finder=finder)


def _place_of(folder: str | Path) -> tuple[Place, Finder | None]:
    """Return the folder of an atlas, and a function that answers `Files.rows_of` there if DuckDB cannot."""
    if isinstance(folder, str) and "://" in folder:  # what reads from the hub is imported when it is needed
        hub_files, parquet_rows = map(import_module, ("zeropass.checkpoints.hub_files", "zeropass.atlas.parquet_rows"))
        return hub_files.open_dataset(folder), parquet_rows.rows_of
    return Path(folder), None


@dataclass(frozen=True, eq=False, repr=False)
class Atlas(Files):
    """A complete atlas on disk, with its queries.

    Attributes:
        verdicts: Verdicts on the model's types of list, if there are any.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> options = zp.Options(k=10, layers=(1, 2), roles=("gate",))
        >>> with TemporaryDirectory() as folder:
        ...     fresh = zp.build(zp.open_model("models/first"), folder, options)
        ...     atlas = zp.open_atlas(folder)
        ...     [(record.frame, len(record.top)) for record in atlas.explain("L1.ff.3.gate", k=5)]
        [('token', 5), ('output', 5)]
    """

    verdicts: Verdicts | None = None

    def _repr_words(self) -> str:
        layers = "layers {}:{}".format(*self.layers)
        return f"{str(self.path)!r}, {self.model['name']}, {layers}, {self.manifest['lists']} lists"

    def __getitem__(self, what: str | Address | Hit) -> Records:
        """Return the records of an address in all its roles and stored frames, or the list that a search was led to."""
        if isinstance(what, Hit):
            return self.explain(what.place, frame=what.frame)
        return self.explain(what)

    def explain(
        self, address: str | Address, *, frame: Frame | None = None, tokens: View | None = None, k: int | None = None
    ) -> Records:
        """Return the records of an address as `Lens.explain` does, from the stored lists.

        Longer lists and lists in another view are computed from the stored vectors.

        Args:
            address: The address; without a role it stands for all its roles.
            frame: One frame; by default all stored frames.
            tokens: View of the tokens; by default that of the stored lists.
            k: Tokens of each pole, or pairs; by default 20, or the stored pairs if they are fewer.

        Raises:
            BadAddress: The atlas does not have the address.
            BadOption: There is no such frame or view, or fewer pairs are stored.
        """
        check_frame(frame)
        check_count(_K if k is None else k)
        place = parse(address)
        view = tokens or self.view
        check_view(view)
        records: list[Record] = []
        for part in self._stored_parts(place):
            self.check_range(part)
            stored = self._pairs(part, k, view) if part.role in MAP_ROLES else self._lists(part, k or _K, view)
            records += [record for record in stored if frame in (None, record.frame)]
        if not records:
            raise BadOption(f"{address} has no {frame} list in {self.path}; zeropass show can make it from the model.")
        return Records(records, self.note)

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Return the result of a query on the tables ``parameters``, ``tokens``, ``hits``, ``lists`` and ``pairs``.

        docs/atlas.md says what they hold.

        Args:
            query: SQL of DuckDB.

        Returns:
            DuckDB's relation: ``.df()`` is a data frame of pandas, ``.fetchall()`` the rows, ``.show()`` prints them.

        Raises:
            BadOption: DuckDB cannot run the query.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> import zeropass as zp
            >>> with TemporaryDirectory() as folder:
            ...     fresh = zp.build("models/first", folder, zp.Options(layers=(1, 2), roles=("gate",)))
            ...     zp.open_atlas(folder).sql("SELECT count(*) FROM parameters WHERE frame = 'token'").fetchall()
            [(512,)]
        """
        return result_of(self._tables, self.path, query)

    @cached_property
    def _tables(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect()

    def _ipython_key_completions_(self) -> list[str]:
        """Return what a notebook completes between the brackets: heads, and where neurons begin."""
        layers = range(*self.layers)
        if self.is_dictionary:
            return [f"L{layer}.{FEATURE}." for layer in layers]
        heads = [f"L{layer}.attn.{head}" for layer in layers for head in range(self.model["heads"])]
        return [f"L{layer}.ff." for layer in layers] + heads

    @property
    def note(self) -> str:
        """A note on the lens, and on the measurement behind the verdicts or on the lack of one.

        It is empty for an atlas of a change, whose lists are not measured; that of a dictionary says what it is.
        """
        if self.is_change and not self.verdicts:
            return ""
        lens = str(self.manifest["lens"]["note"]) if self.lens else ""
        if self.is_dictionary:
            return " ".join(filter(None, (self.manifest["dictionary"]["note"], lens)))
        return footnote(self.verdicts, str(self.model["name"]), lens)

    def find(
        self,
        words: str | Sequence[str] = (),
        *,
        like: str | Sequence[str] = (),
        without: str | Sequence[str] = (),
        side: Side | None = None,
        role: str | None = None,
        layers: tuple[int, int] | None = None,
        k: int = 20,
    ) -> FindRecord:
        """Return the k parameters of each type of list that rank highest by |z| for a word or a concept.

        The z of a word is the mean over its tokens: with and without a space before it, or else its pieces, which the
        result says. That of several words is their mean.

        Args:
            words: One word, or several words as a concept.
            like: Shell patterns such as ``re*``, each a further word: the shown tokens that match.
            without: Words that count against: their mean z is subtracted.
            side: ``read`` or ``write``; by default both.
            role: One role; by default all.
            layers: Half-open range of layers; by default all.
            k: Parameters of each type of list.

        Raises:
            UnknownWord: A word is no token, but one in another case or number is; or it has hidden pieces.
            BadOption: There is no such side or role, or nothing fits; a pattern matches nothing or too much.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> import zeropass as zp
            >>> with TemporaryDirectory() as folder:
            ...     fresh = zp.build("models/first", folder, zp.Options(layers=(1, 2), roles=("gate",)))
            ...     matches = zp.open_atlas(folder).find("he", without="she", k=3)
            >>> [(word.text, word.against) for word in matches.words], len(matches[0].zs)
            ([('he', False), ('she', True)], 2)
        """
        texts, patterns, negative = map(_listed, (words, like, without))
        query = words_of(self.vocab, texts, patterns, negative, self.mask("default"))
        return self.search(query, side=side, role=role, layers=layers, k=k)

    def find_tokens(
        self,
        ids: Sequence[int],
        *,
        side: Side | None = None,
        role: str | None = None,
        layers: tuple[int, int] | None = None,
        k: int = 20,
    ) -> FindRecord:
        """Return what `search` returns, for token ids; raise BadOption for one that the vocabulary does not have."""
        words = [token_of(self.vocab, i) for i in ids]
        return self.search(words, side=side, role=role, layers=layers, k=k)

    def search(
        self,
        words: Sequence[QueryWord],
        *,
        side: Side | None = None,
        role: str | None = None,
        layers: tuple[int, int] | None = None,
        k: int = 20,
    ) -> FindRecord:
        """Return what `find` returns, for words that were looked up as `atlas.query` does.

        Args:
            words: The words.
            side: As in `find`.
            role: As in `find`.
            layers: As in `find`.
            k: As in `find`.
        """
        check_count(k)
        runs, weights = self._select_runs(side, role, layers), weights_of(words)
        best, others = self._best_of_index(weights, runs, k)
        if others:
            best = sorted(best + self.scan(weights, others, k), key=_by_size)
        scores = self._word_scores(words, [i for i, _ in best])
        return FindRecord(
            query=tuple(Token(i, self.vocab.label(i)) for i in weights),
            hits=self._ranked_parameters(best, sum(weights.values()), scores),
            notes=(self.note,) if self.note else (),
            words=with_similar(self.vocab, words, self.mask("words")),
        )

    def scan(
        self, weights: Mapping[int, float], runs: "Sequence[Run] | None" = None, k: int = 20
    ) -> list[tuple[int, float]]:
        """Return the k best lists of each type for a weighted sum of the z of some tokens, from the stored vectors.

        The sum of z over tokens is the z of the sum of their rows, so a concept costs as much as a word.

        Args:
            weights: The weight of each token id.
            runs: The runs of lists to score; by default all.
            k: Lists of each type.

        Returns:
            (list id, z), by falling |z|.
        """
        runs = self.runs if runs is None else runs
        self.fetch_vectors(runs)
        ids, parts = list(weights), np.array(list(weights.values()), np.float32)
        z = np.zeros(len(self.means), np.float32)
        with np.errstate(all="ignore"):
            rows = {space: self.rows_at(space, ids) for space in {self.space(run) for run in runs}}
            sums = {space: parts @ of_tokens for space, of_tokens in rows.items()}
            for run in runs:
                factors, space = self.factors(run), self.space(run)
                row = sums[space] if factors is None else (parts * factors[ids]) @ rows[space]
                z[run.first : run.first + run.count] = self.products(run, np.asarray(row, np.float32))
            z = np.where(self.stds > 0, (z - parts.sum() * self.means) / self.stds, 0)
        self._require_finite(z)
        best: list[tuple[int, float]] = []
        for list_type in sorted({(run.side, run.frame) for run in runs}):
            members = [np.arange(r.first, r.first + r.count) for r in runs if (r.side, r.frame) == list_type]
            list_ids = np.concatenate(members)
            best += [(int(i), float(z[i])) for i in list_ids[_largest(np.abs(z[list_ids]), k)]]
        return sorted(best, key=_by_size)

    def _require_finite(self, z: Floats) -> None:
        if not np.isfinite(z).all():
            raise self._damaged("vectors", "scores of rows and vectors are not finite")

    def _word_scores(self, words: Sequence[QueryWord], lists: Sequence[int]) -> dict[int, tuple[float, ...]]:
        """Return the z of each word in some lists, by the id of the list; of a single word nothing."""
        if len(words) < 2:
            return {}
        ids = list(weights_of(words))
        place_of = {token: place for place, token in enumerate(ids)}
        places = [[place_of[token] for token in word.ids] for word in words]
        rows: dict[str, Floats] = {}
        scores = {}
        for i in lists:
            z = self._z_of(i, ids, rows)
            scores[i] = tuple(float(z[of_word].mean()) for of_word in places)
        return scores

    def _z_of(self, i: int, ids: Sequence[int], rows: dict[str, Floats]) -> Floats:
        """Return the z of some tokens in a list, (n,).

        Args:
            i: The id of the list.
            ids: The ids of the tokens.
            rows: The rows of these tokens by space, to which those are added that are read.
        """
        run = self.run_of(i)
        space, factors, std = self.space(run), self.factors(run), self.stds[i]
        if space not in rows:
            rows[space] = self.rows_at(space, ids)
        with np.errstate(all="ignore"):
            products = rows[space] @ self.vector(run, i - run.first)
            products = products if factors is None else products * factors[list(ids)]
            z = np.asarray((products - self.means[i]) / std if std > 0 else np.zeros_like(products), np.float32)
        self._require_finite(z)
        return z

    def strongest(
        self, roles: Sequence[str], layers: tuple[int, int], *, frame: Frame | None = None, k: int | None = None
    ) -> list[str]:
        """Return the addresses with the most telling lists, best first: highest |z| of the tenth token of a pole.

        Args:
            roles: Roles of the lists.
            layers: Half-open range of layers.
            frame: One frame; by default all.
            k: Number of addresses; by default all.
        """
        rows = self.query(
            "SELECT address FROM read_parquet($file) WHERE list_contains($roles, role) "
            "AND layer >= $first AND layer < $stop AND frame = coalesce($frame, frame) "
            "GROUP BY address ORDER BY max(strength) DESC, min(id) LIMIT $k",
            file=PARAMETERS,
            roles=list(roles),
            first=layers[0],
            stop=layers[1],
            frame=frame,
            k=len(self.means) if k is None else k,
        )
        return [address for (address,) in rows]

    def coherent(self, role: str, frame: Frame, layers: tuple[int, int], k: int) -> list[str]:
        """Return the addresses of the strongest lists whose tokens belong together more than random directions' do.

        Args:
            role: The role of the lists.
            frame: Their frame.
            layers: Half-open range of layers.
            k: The largest number of addresses.
        """
        nulls = {layer: self.random_coherence.get((layer, role, frame, self.view), 1.0) for layer in range(*layers)}
        rows = self.query(
            "SELECT address FROM read_parquet($file) WHERE role = $role AND frame = $frame AND layer >= $first "
            "AND layer < $stop AND coherence > list_extract($nulls, layer - $first + 1) "
            "ORDER BY strength DESC, id LIMIT $k",
            file=PARAMETERS,
            role=role,
            frame=frame,
            first=layers[0],
            stop=layers[1],
            nulls=list(nulls.values()),
            k=k,
        )
        return [address for (address,) in rows]

    def head_maps(self, layer: int, kind: MapRole, k: int | None = None) -> list[PairRecord]:
        """Return the stored head maps of a layer, none if the atlas was built without them.

        Args:
            layer: The layer.
            kind: ``qk`` or ``vo``, also called ``ov``.
            k: Pairs of each map; by default all that are stored.
        """
        role = canonical_role(kind)
        file = pairs_file(layer, role)
        if not (self.path / file).exists():
            return []
        columns = ", ".join(f'"{name}"' for name in _PAIRS)
        rows = self.query(f"SELECT address, {columns} FROM read_parquet($file) ORDER BY head", file=file)  # noqa: S608
        k, hidden = min(k or self.options["pairs"], self.options["pairs"]), self.hidden(self.view)
        return [self._pair_record(parse(f"{address}.{base_role(role)}"), row, k, hidden) for address, *row in rows]

    def _verdict(self, role: str, frame: str, layer: int, offset: int = 0) -> Verdict | None:
        return self.verdicts.of(role, frame, layer, offset, lens=self.lens_words(frame)) if self.verdicts else None

    def _is_shown(self, token: int) -> bool:
        return bool(self.mask(self.view)[token])

    def _select_runs(self, side: str | None, role: str | None, layers: tuple[int, int] | None) -> list[Run]:
        """Return the runs of a side, role and layers; raise BadOption, with what there is, if nothing fits."""
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

    def _best_of_index(
        self, weights: Mapping[int, float], runs: Sequence[Run], k: int
    ) -> tuple[list[tuple[int, float]], list[Run]]:
        """Return what `scan` returns, from the index and a few vectors, and the runs of which those do not tell it."""
        if len(weights) > _INDEXED or not all(map(self._is_shown, weights)):
            return [], list(runs)
        ids, rows, chosen = list(weights), dict[str, Floats](), set(runs)
        index = {token: self._entries(token) for token in ids}
        best: list[tuple[int, float]] = []
        others: list[Run] = []
        for list_type in sorted({(run.side, run.frame) for run in runs}):
            sums = best_sums(
                {token: of_types.get(list_type, Entries({}, 0.0)) for token, of_types in index.items()},
                weights,
                k,
                allowed=lambda i: self.run_of(i) in chosen,
                compute=lambda i: float(self._z_of(i, ids, rows) @ np.array(list(weights.values()), np.float32)),
            )
            best += sums or []
            others += [run for run in runs if sums is None and (run.side, run.frame) == list_type]
        return sorted(best, key=_by_size), others

    def _entries(self, token: int) -> dict[tuple[str, str], Entries]:
        """Return what the stored index holds of a token, by the side and frame of the lists."""
        zs: dict[tuple[str, str], dict[int, float]] = {}
        for side, frame, i, z in self.rows_of(TOKEN_INDEX, {"token": token}, ("side", "frame", "id", "z")):
            if not 0 <= i < self.manifest["lists"]:
                raise self._damaged(TOKEN_INDEX, f"there is no list {i}")
            zs.setdefault((side, frame), {})[i] = z
        stored = self.options["k"]
        return {key: Entries(z, 0.0 if len(z) < stored else min(map(abs, z.values()))) for key, z in zs.items()}

    def _ranked_parameters(
        self,
        best: Sequence[tuple[int, float]],
        total: float,
        scores: Mapping[int, tuple[float, ...]],
    ) -> tuple[Hit, ...]:
        """Return the records of lists.

        Args:
            best: (list id, z).
            total: The sum of the weights of the tokens, by which the mean score of a list counts.
            scores: The z of each word of the search in a list, by list id.
        """
        rows = self.query(
            "SELECT id, address, side, role, frame, layer, mean, std, spread, best, coherence, top_words, bottom_words "
            "FROM read_parquet($file) WHERE id IN (SELECT unnest($ids))",
            file=PARAMETERS,
            ids=[i for i, _ in best],
        )
        by_id, shown = {row[0]: row[1:] for row in rows}, self.hidden(self.view).shown
        records = []
        for i, z in best:
            if i not in by_id:
                raise self._damaged(PARAMETERS, f"there is no list {i}")
            address, side, role, frame, layer, mean, std, spread, strongest, coherence, *words = by_id[i]
            zs = scores.get(i, ())
            verdict = self._verdict(role, frame, layer)
            null = self.random_coherence.get((layer, role, frame, self.view))
            faint = is_faint(strongest, shown, spread if self.is_change else None)
            records.append(
                Hit(
                    address=address,
                    side=side,
                    role=role,
                    frame=frame,
                    score=z * std + total * mean,
                    z=z,
                    above=verdict.above if verdict else None,
                    words=tuple(Token(token, self.label(token)) for token in words[not largest(zs or (z,)) > 0]),
                    says_little=faint and (null is None or coherence <= null),
                    zs=zs,
                )
            )
        return tuple(records)

    def _stored_parts(self, place: Address) -> list[Address]:
        """Return an address with each role that it stands for and the atlas holds; with all its roles if it holds none.

        Raises BadAddress if the atlas is one of a change and nothing of the place changed.
        """
        parts = self.with_roles(place)
        stored = [part for part in parts if self._has_role(part.role) and (not self.is_change or self._changed(part))]
        if not stored and self.is_change:
            self.check_range(place)
            role = f".{place.role}" if place.index >= 0 and place.role in FF_ROLES else ""
            raise BadAddress(f"{place}{role}: nothing of it changed from {self.model['name']}.")
        return stored or parts

    def with_roles(self, place: Address) -> list[Address]:
        """Return the addresses with a role that an address stands for: `address.with_roles`, and those of a feature."""
        if not self.is_dictionary:
            return with_roles(place, self.model["ff_roles"])
        if place.part != FEATURE:
            raise BadAddress(f"{place}: {self.path} holds features of a dictionary, such as L{self.layers[0]}.sae.0.")
        roles = [run.role for run in self.runs if run.layer == place.layer]
        return feature_roles(place, list(dict.fromkeys(roles))) or [place]

    def _changed(self, place: Address) -> bool:
        """Tell whether an atlas of a change has files of a place's layer and role."""
        if place.role in MAP_ROLES:
            return (self.path / pairs_file(place.layer, place.role)).exists()
        return (self.path / lists_file(self.stored_name(place)[0])).exists()

    def _has_role(self, role: str) -> bool:
        """Tell whether the atlas was built with a role."""
        return self.is_dictionary or role in (self.options.get("roles") or (role,))

    def check_range(self, place: Address) -> None:
        """Raise BadAddress, with the range, for a layer, head, neuron or column that the atlas does not have."""
        if place.layer == OUTSIDE:
            return
        first, stop = self.layers
        if not first <= place.layer < stop:
            raise BadAddress(
                f"{place}: layer {place.layer} is out of range, {self.path} has layers {first} to {stop - 1}."
            )
        for part, names in (("attention", ("attn", "cross")), ("mlp", ("ff",))):
            if place.part in names and place.layer in self.model.get(f"no_{part}", ()):
                raise BadAddress(f"{place}: layer {place.layer} has no {'MLP' if part == 'mlp' else part}.")
        sizes = self.mlps.sizes(place.layer)
        if place.part == "ff" and (place.index >= 0 or place.expert >= 0) and (len(sizes) > 1) != (place.expert >= 0):
            form = "e0.0" if len(sizes) > 1 else "0"
            raise BadAddress(f"{place}: of {len(sizes)} experts; a neuron is L{place.layer}.ff.{form}.")
        for what, value, count in (
            ("head", place.head, self.model["heads"]),
            ("expert", place.expert, len(sizes)),
            ("neuron", place.index if place.part == "ff" else -1, sizes[min(max(place.expert, 0), len(sizes) - 1)]),
            ("subhead", place.index if place.part in ("attn", "cross") else -1, self.model["head_dim"]),
        ):
            if value >= count:
                raise BadAddress(f"{place}: {what} {value} is out of range, the model has {what}s 0 to {count - 1}.")

    def stored_name(self, place: Address) -> tuple[str, str, Address]:
        """Return file stem, role and stored address; a k or v column is stored under the first head of its group."""
        if place.layer == OUTSIDE:
            role = f"{place.part}_norm" if place.index < 0 else place.part
        elif place.role in ("bias", "norm"):
            role = f"{place.part}_{place.role}"
        else:
            role = place.role
        if base_role(role) in ("k", "v"):
            group = self.model["heads"] // self.model["kv_heads"]
            place = replace(place, head=place.head // group * group)
        return file_name(place.layer, role), role, place

    def _lists(self, place: Address, k: int, view: str) -> list[VectorRecord]:
        """Return the lists of an address of vectors, one for each frame."""
        stem, role, stored = self.stored_name(place)
        if role not in {run.role for run in self.runs if run.layer == place.layer}:
            raise BadAddress(
                f"{place}: this atlas holds no {role}; it has {', '.join(sorted({r.role for r in self.runs}))}."
            )
        rows = sorted(self.rows_of(lists_file(stem), of_address(stored), _LIST))
        if not rows:
            count = max((run.count for run in self.runs if (run.layer, run.role) == (place.layer, role)), default=0)
            raise BadAddress(f"{place} is out of range, {self.path} has {role} 0 to {count - 1}.")
        hidden = self.hidden(view)
        records = []
        for i, frame, norm, mean, std, spread, coherence, *lists in rows:
            run = self.run_of(i)
            if view != self.view or k > len(lists[0]):
                lists = self._new_poles(run, i - run.first, mean, std, max(k, FIRST), view)
            null = self.random_coherence.get((run.layer, role, frame, view))
            if view != self.view and null is not None:
                coherence = self._coherence(run, lists)
            top, bottom = (self._token_scores(ids[:k], zs[:k], mean, std) for ids, zs in (lists[:2], lists[2:]))
            verdict = self._verdict(role, frame, place.layer)
            spread = spread if self.is_change else None
            records.append(
                VectorRecord(
                    address=str(place),
                    role=role,
                    side=run.side,
                    frame=frame,
                    norm=norm,
                    top=top,
                    bottom=bottom,
                    mean=mean,
                    std=std,
                    hidden=hidden,
                    evidence=verdict,
                    spread=spread,
                    lens=self.lens_words(frame),
                    coherence=None if null is None else Coherence(coherence, null),
                )
            )
        return records

    def _coherence(self, run: Run, lists: Sequence[Any]) -> float:
        """Return the coherence of the first tokens of a list's stronger pole, as `numerics.coherence` computes it."""
        top_ids, top_z, bottom_ids, bottom_z = lists
        last = min(FIRST, len(top_z)) - 1
        ids = (top_ids if top_z[last] >= -bottom_z[last] else bottom_ids)[: last + 1]
        if last < 1:
            return 0.0
        unit = self.unit_rows(judge_space("read" if run.side == "read" else "write"), ids)
        return float((np.square(unit.sum(0)).sum() - np.square(unit).sum()) / ((last + 1) * last))

    def _new_poles(self, run: Run, row: int, mean: float, std: float, k: int, view: str) -> list[list[Any]]:
        """Compute both poles of one vector in any view from the stored vector and rows: one product with V rows."""
        ids = np.flatnonzero(self.mask(view))
        with np.errstate(all="ignore"):
            z = self.scores(run, row)[ids]
            z = (z - mean) / std if std > 0 else np.zeros_like(z)
        self._require_finite(z)
        order = np.argsort(-z, kind="stable")
        top, bottom = order[:k], order[::-1][:k]
        return [ids[top].tolist(), z[top].tolist(), ids[bottom].tolist(), z[bottom].tolist()]

    def _token_scores(self, ids: Sequence[int], zs: Sequence[float], mean: float, std: float) -> tuple[TokenScore, ...]:
        return tuple(
            TokenScore(id=i, token=self.label(i), score=z * std + mean, z=z) for i, z in zip(ids, zs, strict=True)
        )

    def _pairs(self, place: Address, k: int | None, view: str) -> list[PairRecord]:
        """Return the stored top pairs of a head map."""
        if not self._has_role(place.role):
            raise BadAddress(f"{place}: this atlas was built without {place.role}.")
        stored = int(self.options["pairs"])
        k = min(_K, stored) if k is None else k
        if view != self.view or k > stored:
            raise BadOption(
                f"{place}.{place.role}: this atlas holds the best {stored} pairs of the {self.view} view; "
                "zeropass explain searches others from the model."
            )
        rows = self.rows_of(pairs_file(place.layer, place.role), of_address(place), _PAIRS)
        hidden = self.hidden(view)
        return [self._pair_record(place, row, k, hidden) for row in rows]

    def _pair_record(self, place: Address, row: Sequence[Any], k: int, hidden: Hidden) -> PairRecord:
        offset, frame, left, right, scores, kth, bound, complete = row
        pairs = tuple(
            PairScore(Token(a, self.label(a)), Token(b, self.label(b)), s)
            for a, b, s in zip(left[:k], right[:k], scores[:k], strict=True)
        )
        kth = pairs[-1].score if pairs else kth  # The stored score is that of the last pair that was searched for.
        certificate = Certificate(kth, bound if np.isfinite(bound) else None, complete)
        verdict = self._verdict(place.role, frame, place.layer, offset)
        return PairRecord(
            address=str(place),
            role=place.role,
            offset=offset,
            frame=frame,
            pairs=pairs,
            certificate=certificate,
            hidden=hidden,
            evidence=verdict,
            change=self.is_change,
            lens=self.lens_words(frame),
        )


def _listed(texts: str | Sequence[str]) -> list[str]:
    """Return several texts, or the only one, as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


def _by_size(entry: tuple[int, float]) -> tuple[float, int]:
    """Return what (list id, z) is sorted by: falling size, then the id."""
    return -abs(entry[1]), entry[0]


def _largest(sizes: Floats, k: int) -> npt.NDArray[np.intp]:
    """Return the places of the k largest sizes, best first, equal ones in their order.

    A complete sort would take most of the time of a query.
    """
    if k >= len(sizes):
        return np.argsort(-sizes, kind="stable")
    least = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    chosen = np.flatnonzero(sizes >= least)
    return chosen[np.argsort(-sizes[chosen], kind="stable")[:k]]
