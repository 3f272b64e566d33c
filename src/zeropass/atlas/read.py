"""An atlas opened: the words of a parameter, from its stored lists and vectors. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from zeropass.arch.frame_names import FIRST, Frame, check_count, check_frame, judge_space
from zeropass.arch.roles import FF_ROLES, MAP_ROLES, OUTSIDE, MapRole, base_role
from zeropass.atlas.folder import Finder, Run
from zeropass.atlas.list_search import Searchable
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
    group_size,
    head_count,
    head_width,
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
)
from zeropass.records.search import Hit
from zeropass.records.verdicts import Verdicts, known_verdicts
from zeropass.tokens.shown import View

__all__ = ["Atlas", "open_atlas"]

_LIST = ("id", "frame", "norm", "mean", "std", "spread", "coherence", "top_ids", "top_z", "bottom_ids", "bottom_z")
_PAIRS = ("offset", "frame", "left_ids", "right_ids", "scores", "kth", "bound", "complete")

_K = 20
"""Tokens of each pole, and pairs, by default."""


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
class Atlas(Searchable):
    """A complete atlas on disk: the words of its parameters, and the search for parameters.

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
        heads = [f"L{layer}.attn.{head}" for layer in layers for head in range(head_count(self.model, layer))]
        return [f"L{layer}.ff." for layer in layers] + heads

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
            experts, form = (f"{len(sizes)} experts", "e0.0") if len(sizes) > 1 else ("no experts", "0")
            layer = f"L{place.layer}.ff"
            raise BadAddress(f"{place}: {layer} has {experts}; a neuron of it is {layer}.{form}.")
        in_head = place.part in ("attn", "cross") and place.index >= 0
        width = head_width(self.model, place.role, place.layer) if in_head else 0
        for what, value, count in (
            ("head", place.head, head_count(self.model, place.layer)),
            ("expert", place.expert, len(sizes)),
            ("neuron", place.index if place.part == "ff" else -1, sizes[min(max(place.expert, 0), len(sizes) - 1)]),
            ("subhead", place.index if in_head else -1, width),
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
            group = group_size(self.model, place.layer)
            place = replace(place, head=place.head // group * group)
        return file_name(place.layer, role), role, place

    def _lists(self, place: Address, k: int, view: str) -> list[VectorRecord]:
        """Return the lists of an address of vectors, one for each frame."""
        stem, role, stored = self.stored_name(place)
        held = {run.role for run in self.runs if run.layer == place.layer}
        if role not in held:
            known = held or {run.role for run in self.runs}
            raise BadAddress(f"{place}: this atlas holds no {role}; it has {', '.join(sorted(known))}.")
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
                "zeropass show MODEL searches others in the weights."
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
