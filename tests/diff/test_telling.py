"""The directions and words of a change that say most: against slow twins, and on a planted word."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zeropass as zp
from planted_word import MODEL, SAID, SEEN, plant, planted
from zeropass.arch.frame_names import space_of
from zeropass.arch.roles import norm_of, side_of
from zeropass.diff.changes import Comparison
from zeropass.diff.effects import word_mask
from zeropass.diff.findings import MARGIN
from zeropass.diff.random_changes import drawn
from zeropass.diff.telling import exchange, ranked, telling
from zeropass.diff.verdict import none_telling, sides
from zeropass.model.frames import Frames
from zeropass.model.vectors import reads_at
from zeropass.records.parameters import PairRecord, VectorRecord


def test_the_planted_word_is_the_most_telling_direction() -> None:
    matrix, direction = ranked(planted())[0]
    assert matrix.role == "value"
    assert SAID in {direction.right[0].token, direction.right_bottom[0].token}
    assert direction.z > MARGIN * direction.chance
    assert telling(planted())[0] == (matrix, direction)
    assert planted().finding.answer == "narrow"


def test_directions_are_ranked_by_words_beyond_chance_and_share() -> None:
    for matrix in planted().matrices:
        for direction in matrix.directions:
            expected = direction.share**0.5 * (direction.z / direction.chance - 1)
            assert direction.telling == pytest.approx(expected)
    figures = [direction.telling for _, direction in ranked(planted())]
    assert figures == sorted(figures, reverse=True)


def test_chance_is_what_random_sums_of_the_base_rows_reach() -> None:
    """Fold and score the draws of one matrix alone."""
    frames = Frames(zp.open_model(MODEL))
    vocab, rows = frames.model.vocab, frames.rows("output.write")
    ids = zp.Lens.over(frames, with_coherence=False).view("default").ids
    words = ids[word_mask(vocab, ids)]
    matrix, direction = ranked(planted())[0]
    draws = drawn(frames.model.matrix("value", matrix.layer), "value", matrix.layer)
    scores = frames.fold(draws, "output", "write", norm_of("value"), matrix.layer) @ rows.matrix.T
    used = scores[:, frames.used]
    z = (scores[:, words] - used.mean(1, keepdim=True)) / used.std(1, correction=0, keepdim=True)
    assert direction.chance == pytest.approx(float(z.abs().amax(1).median()), rel=1e-3)


def test_no_telling_direction_is_stated() -> None:
    dull = replace(
        planted(),
        matrices=tuple(
            replace(matrix, directions=tuple(replace(d, z=d.chance) for d in matrix.directions))
            for matrix in planted().matrices
        ),
    )
    assert not telling(dull)
    assert "No direction of a change is telling" in none_telling(dull)
    assert "1.0 times" in none_telling(dull)


def test_the_places_of_a_word_are_shares_of_its_whole_effect(tmp_path: Path) -> None:
    """Compute every matrix' effect on a word from the whole change, divided by its mean over all tokens in use."""
    base = zp.open_model(MODEL)
    for adapter in (Path(MODEL).parent / "tunes" / "reviews", plant(tmp_path / "planted")):
        tuned = zp.adapt(base, adapter)
        difference = zp.compare(base, tuned)
        frames, pair = Frames(base), Comparison(base, tuned)
        for side, word in (("read", difference.sees[0]), ("write", difference.writes[0])):
            effects = {}
            for matrix in (matrix for matrix in difference.matrices if side_of(matrix.role) == side):
                frame = "token" if side == "read" else "output"
                rows = frames.rows(space_of(frame, side, reads_at(base, matrix.layer, matrix.role))).matrix
                dense = pair.change(matrix.role, matrix.layer).dense
                folded = frames.fold(dense, frame, side, norm_of(matrix.role), matrix.layer)
                each = (rows @ folded.T).square().sum(1)
                effects[matrix.layer, matrix.role] = float(each[word.token.id] / each[frames.used].mean())
            total = sum(effects.values())
            best = sorted(effects.items(), key=lambda entry: -entry[1])[:3]
            assert [(place.layer, place.role) for place in word.places] == [place for place, _ in best]
            shares = [effect / total for _, effect in best]
            assert [place.share for place in word.places] == pytest.approx(shares, rel=1e-3)


def test_the_sides_say_what_they_are_measured_by() -> None:
    sees, writes = sides(planted())
    assert (sees.words[0].token.token, writes.words[0].token.token) == (SEEN, SAID)
    assert f"reach {planted().finding.chance:.1f}" in writes.basis
    assert (sees.equal, writes.equal) == pytest.approx((1 / 3, 1 / 3))
    assert sum(place.share for place in writes.words[0].places) == pytest.approx(1.0)


def test_only_what_differs_is_shown_of_a_parameter() -> None:
    changes = (*planted().neurons, *planted().heads)
    exchanges = [words for change in changes if (words := exchange(change)) is not None]
    assert exchanges, "a planted word is new to some neuron"
    for change in changes:
        words = exchange(change)
        pairs = list(zip(change.before, change.after, strict=True))
        if words is None:
            assert not any(_new(before, after) for before, after in pairs)
            continue
        before, after = next(pair for pair in pairs if set(words.came) <= _tokens(pair[1]) - _tokens(pair[0]))
        assert set(words.went) <= _tokens(before) - _tokens(after)
    assert SAID in {token for words in exchanges for token in words.came}


def _tokens(record: object) -> set[str]:
    if isinstance(record, VectorRecord):
        return {token.token for token in (*record.top, *record.bottom)}
    assert isinstance(record, PairRecord)
    return {f"{pair.left.token}→{pair.right.token}" for pair in record.pairs}


def _new(before: object, after: object) -> bool:
    """Tell whether a list that is not faint has a first word that the list before lacks."""
    if isinstance(before, PairRecord) and isinstance(after, PairRecord):
        old = {(pair.left.token, pair.right.token) for pair in before.pairs}
        return bool({(pair.left.token, pair.right.token) for pair in after.pairs[:5]} - old)
    assert isinstance(before, VectorRecord)
    assert isinstance(after, VectorRecord)
    poles = ((before.top, after.top), (before.bottom, after.bottom))
    return not after.faint and any(
        {token.token for token in new[:5]} - {token.token for token in old} for old, new in poles
    )


def test_files_are_named_with_the_hash_that_sha256sum_prints(tmp_path: Path) -> None:
    adapter = plant(tmp_path / "planted")
    base = zp.open_model(MODEL)
    difference = zp.compare(base, zp.adapt(base, adapter))
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert difference.tuned["files"] == {n: hashlib.sha256((adapter / n).read_bytes()).hexdigest() for n in names}
    weights = Path(MODEL) / "model.safetensors"
    assert difference.base["files"] == {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert set(difference.made) == {"date", "zeropass", "torch", "python"}
    assert difference.made["torch"] == torch.__version__
