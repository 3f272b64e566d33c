"""The search of an atlas: the parameters of a word or a concept. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zeropass.arch.frame_names import check_count
from zeropass.arch.roles import OUTSIDE, Side
from zeropass.atlas.folder import Files, Floats, Run
from zeropass.atlas.index_search import Entries, best_sums
from zeropass.atlas.query import token_of, weights_of, with_similar, words_of
from zeropass.atlas.schema import PARAMETERS, TOKEN_INDEX
from zeropass.errors import BadOption
from zeropass.records.parameters import Token, is_faint
from zeropass.records.search import FindRecord, Hit, QueryWord, largest
from zeropass.records.verdicts import Verdict, Verdicts, footnote

__all__ = ["Searchable"]

_INDEXED = 8
"""The largest number of tokens that are looked up in the index: with more, reading all vectors is as fast."""


@dataclass(frozen=True, eq=False, repr=False)
class Searchable(Files):
    """The files of an atlas, and the search for the parameters whose lists rank some words highest.

    Attributes:
        verdicts: Verdicts on the model's types of list, if there are any.
    """

    verdicts: Verdicts | None = None

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
        """Return what `search` returns, for token ids.

        Args:
            ids: The ids, each a word of its own.
            side: As in `find`.
            role: As in `find`.
            layers: As in `find`.
            k: As in `find`.

        Raises:
            BadOption: The vocabulary has no such token, or nothing fits.
        """
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
