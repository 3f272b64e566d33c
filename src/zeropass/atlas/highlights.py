"""The parts of an atlas that a newcomer reads first: telling neurons of several depths, and heads that relate words."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from zeropass.arch.frame_names import RELATIVE, Frame, judge_space
from zeropass.arch.roles import MapRole
from zeropass.atlas.read import Atlas
from zeropass.errors import BadOption, UnknownWord
from zeropass.records.parameters import PairRecord, Token, TokenScore, VectorRecord
from zeropass.records.search import FindRecord

__all__ = ["TOKENS", "Depth", "Highlights", "compared_frames", "first_search", "highlights_of"]

TOKENS = 8
"""The tokens of a list, and the pairs of a head, by which it is chosen."""

_UNITS, _CANDIDATES = 3, 60
_WORDS = ("Paris", "Monday", "become", "second", "because", "their", "7")
_FRAMES: dict[tuple[bool, bool], Frame] = {
    (False, False): "token",
    (False, True): "seen",
    (True, False): "output",
    (True, True): "distinctive",
}
"""The frame by which neurons are chosen, by whether they are by what they write, and whether there is a lens."""


@dataclass(frozen=True)
class Depth:
    """Some layers: late, middle or early ones, or all of a model of few (an empty name)."""

    name: str
    first: int
    stop: int

    @property
    def words(self) -> str:
        """Its name and layers, such as ``Late layers 20 to 29``."""
        last = self.stop - 1
        where = f"layer {last}" if self.first == last else f"layers {self.first} to {last}"
        return f"{self.name} {where}".strip().capitalize()


@dataclass(frozen=True)
class Highlights:
    """The parts of an atlas that a newcomer reads first.

    Attributes:
        units: Addresses of telling neurons, or features, of each depth, late ones first.
        maps: Head maps of each role whose pairs of words belong together; none of a dictionary.
        words: Common words that the vocabulary has as one token, with its id.
    """

    units: dict[Depth, list[str]]
    maps: dict[MapRole, list[PairRecord]]
    words: dict[str, int]


def highlights_of(atlas: Atlas) -> Highlights:
    """Return the parts of an atlas that a newcomer reads first."""
    first, stop = atlas.layers
    units = {depth: telling_units(atlas, depth) for depth in depths(atlas)}
    layers = range(max(first, 1), stop)
    roles: tuple[MapRole, ...] = () if atlas.is_dictionary else ("vo", "qk")
    return Highlights(units, {role: related_maps(atlas, role, layers) for role in roles}, known_words(atlas))


def known_words(atlas: Atlas) -> dict[str, int]:
    """Return some common words that are one token, with its id."""
    words = {}
    for word in _WORDS:
        with suppress(UnknownWord):
            words[word] = atlas.vocab.find(word)[0]
    return words


def depths(atlas: Atlas) -> list[Depth]:
    """Return the late, middle and early layers of an atlas, or all its layers if they are too few for that."""
    first, stop = atlas.layers
    third = (stop - first) // 3
    if not third:
        return [Depth("", first, stop)]
    middle = Depth("Middle", first + third, stop - third)
    return [Depth("Late", stop - third, stop), middle, Depth("Early", first, first + third)]


def telling_units(atlas: Atlas, depth: Depth) -> list[str]:
    """Return the addresses of neurons, or features of a dictionary, whose lists say most in words, and differ.

    Coherent lists are preferred if there are any.
    """
    layers = depth.first, depth.stop
    role, frame = _chosen_by(atlas, late=depth.name == "Late")
    candidates = atlas.coherent(role, frame, layers, _CANDIDATES)
    candidates = candidates or atlas.strongest([role], layers, frame=frame, k=_CANDIDATES)
    best = sorted(candidates, key=lambda address: -_wordiness(atlas, f"{address}.{role}", frame))
    return _different(atlas, best, role, frame)


def related_maps(atlas: Atlas, role: MapRole, layers: range, k: int = _UNITS) -> list[PairRecord]:
    """Return stored head maps, reduced to pairs of different words, those whose words belong together most first.

    Maps with fewer pairs than are shown come last: one token paired with everything says little.
    """
    maps = [_distinct(atlas, record) for layer in layers for record in atlas.head_maps(layer, role)]
    return sorted(maps, key=lambda record: (-min(len(record.pairs), TOKENS), -_relation(atlas, record)))[:k]


def compared_frames(frames: Sequence[str]) -> set[str]:
    """Return the frames of which others of some frames are a comparison among vectors, and say more."""
    return {RELATIVE[frame] for frame in frames if frame in RELATIVE}


def first_search(atlas: Atlas, k: int) -> tuple[str, FindRecord] | None:
    """Return the first of some common words that an atlas knows, and the parameters that deal with it."""
    for word in _WORDS:
        try:
            return word, atlas.find(word, k=k)
        except (UnknownWord, BadOption):  # there is no such token, or the atlas holds only head maps
            continue
    return None


def _chosen_by(atlas: Atlas, late: bool) -> tuple[str, Frame]:
    """Return the role and frame of the lists by which neurons or features are chosen.

    Late neurons are chosen by what they write; with a lens so are all, since distinctive lists belong to the neuron
    more often than what it sees. Features are chosen by what their encoders see, which is what activates them.
    """
    lens = bool(atlas.lens)
    if atlas.is_dictionary:
        role = atlas.unit_roles[0]
        return role, _FRAMES[role != "encoder", lens]
    reading = next((role for role in ("gate", "key") if role in atlas.model["ff_roles"]), "gate")
    writes = late or lens
    return "value" if writes else reading, _FRAMES[writes, lens]


def _different(atlas: Atlas, addresses: Sequence[str], role: str, frame: Frame) -> list[str]:
    """Return the first addresses whose lists differ: few of their first words are in one before."""
    chosen: dict[str, set[str]] = {}
    for address in addresses:
        record: VectorRecord = atlas.explain(f"{address}.{role}", frame=frame, k=TOKENS)[0]
        words = {_plain_word(atlas, Token(t.id, t.token)) for t in (*record.top, *record.bottom)} - {""}
        if all(len(words & others) <= TOKENS // 4 for others in chosen.values()):
            chosen[address] = words
        if len(chosen) == _UNITS:
            break
    return list(chosen)


def _wordiness(atlas: Atlas, address: str, frame: Frame) -> float:
    """Return how much a list says in words: |z| of the fifth different word of its better pole."""
    record: VectorRecord = atlas.explain(address, frame=frame, k=atlas.options["k"])[0]
    return max(_fifth_word(atlas, record.top), _fifth_word(atlas, record.bottom))


def _fifth_word(atlas: Atlas, pole: Sequence[TokenScore]) -> float:
    """Return |z| of the fifth different word of a pole, 0 if it has fewer words."""
    z_of_words = {_plain_word(atlas, Token(t.id, t.token)): abs(t.z) for t in reversed(pole)}
    largest = sorted((z for word, z in z_of_words.items() if len(word) > 2), reverse=True)
    return largest[4] if len(largest) > 4 else 0.0


def _relation(atlas: Atlas, record: PairRecord) -> float:
    """Return how far the words of the shown pairs belong together: their mean cosine, less that of shuffled pairs."""
    pairs, space = record.pairs[:TOKENS], judge_space("write")
    if len(pairs) < 2 or not atlas.has_rows(space):
        return 0.0
    left, right = (atlas.unit_rows(space, ids) for ids in ([p.left.id for p in pairs], [p.right.id for p in pairs]))
    cosines = left @ right.T
    paired = float(np.trace(cosines))
    return paired / len(pairs) - (float(cosines.sum()) - paired) / (len(pairs) * (len(pairs) - 1))


def _distinct(atlas: Atlas, record: PairRecord) -> PairRecord:
    """Return a head map with only its pairs of different words, each word once on its side."""
    seen_left: set[str] = set()
    seen_right: set[str] = set()
    pairs = []
    for pair in record.pairs:
        left, right = (_plain_word(atlas, token) for token in (pair.left, pair.right))
        # Many heads copy a token or attend to the same one; other pairs say more.
        if left and right and left != right and left not in seen_left and right not in seen_right:
            seen_left.add(left)
            seen_right.add(right)
            pairs.append(pair)
    return replace(record, pairs=tuple(pairs))


def _plain_word(atlas: Atlas, token: Token) -> str:
    """Return the word of a token in lower case, or nothing if it is no word."""
    word = token.token.strip().lower()
    return word if len(word) > 1 and word.isalpha() and atlas.is_word(token.id) else ""
