"""Token ids and readable text: decoding, word look-up, and the views of tokens.

Only `Vocabulary.encode` runs a tokenizer: a token's text follows from its piece and the kind of vocabulary.
Pieces are untrusted text, so `Vocabulary.shown` is the only form that goes to a terminal.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from zeropass._io.short_repr import ShortRepr
from zeropass.errors import BadModel, BadOption, UnknownWord
from zeropass.tokens.gguf_tokenizer import gguf_spec, gguf_unused
from zeropass.tokens.shown import VIEWS, View, escape, shown_text
from zeropass.tokens.spelling import SPELLINGS, Kind, utf8
from zeropass.tokens.tokenizer_json import (
    Spec,
    added_tokens,
    has_endless_holes,
    merges_of,
    numbered,
    refusing,
    tokenizer_of,
    without_rows,
)

__all__ = ["Vocabulary"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
_RESERVED = re.compile(r"[\[<]\|?(?:unused|pad|reserved|dummy|placeholder|extra_id)[a-z_]*\d+\|?[\]>]", re.I)


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary(ShortRepr):
    """The tokens of a model; arrays are indexed by token id and have shape (V,)."""

    kind: Kind
    pieces: list[str]
    """The tokens as the tokenizer spells them; an empty string for a row of the embedding without a token."""
    special: Bools
    """Control tokens such as ``<|endoftext|>`` and ``[CLS]``."""
    unused: Bools
    """Rows without a token, and tokens that only hold a place, such as ``[unused7]``."""
    literal: Bools
    """Added tokens, whose piece is their text in every kind of vocabulary."""
    uncased: bool = False
    tokenizer: str | Callable[[], str] = ""
    """The text of a tokenizer.json, or a function that reads it when it is first needed."""
    split_note: str = ""
    """A remark on how text is split only approximately; empty if the split is exact."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how the tokenizer was read, one sentence each."""
    path: str = "tokenizer.json"
    """The file that messages name."""
    _cache: dict[int, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_tokenizer_json(
        cls, data: bytes | str, size: int | None = None, path: str = "tokenizer.json"
    ) -> "Vocabulary":
        """Read a Hugging Face ``tokenizer.json``.

        Rows beyond the tokenizer's tokens become unused. Added tokens without a row are left out and named in the
        notes: nothing that the model computes depends on them.

        Args:
            data: Content of the file.
            size: Number of rows of the embedding; None to end at the largest id.
            path: Name of the file in messages.

        Raises:
            BadModel: If the file is not a tokenizer of a known model, or a token that is not an added one has no row.
        """
        try:
            text = data if isinstance(data, str) else data.decode("utf-8")
            spec = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadModel(f"{path} is not JSON in UTF-8: {error}.") from error
        return _from_spec(spec, size, path, text)

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], size: int | None = None, path: str = "the GGUF file"
    ) -> "Vocabulary":
        """Read ``tokenizer.ggml.*`` of a GGUF file, for the models ``gpt2``, ``llama`` and ``bert``.

        The tokens are rewritten as a ``tokenizer.json``, so both formats give the same vocabulary.

        Args:
            metadata: Metadata of the file.
            size: Number of rows of the embedding; None to take the number of tokens.
            path: Name of the file in messages.

        Raises:
            BadModel: If the tokenizer is damaged or of another model.
        """
        try:
            spec, note = gguf_spec(metadata, path)
            unused = gguf_unused(metadata)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BadModel(f"{path}: tokenizer.ggml.* cannot be read ({error}).") from error
        rows = size if size is not None else len(metadata["tokenizer.ggml.tokens"])
        return _from_spec(spec, rows, path, json.dumps(spec), note, unused)

    @property
    def size(self) -> int:
        """The number of tokens, which is that of the rows of the embedding."""
        return len(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def used(self) -> Bools:
        """Rows that stand for a text token or a special token: all but the unused ones."""
        return ~self.unused

    @cached_property
    def absent(self) -> Bools:
        """Rows without a token: padding, which llama.cpp's converter names by the row's number, ``[PAD151700]``."""
        padding = np.array([piece in ("", f"[PAD{i}]") for i, piece in enumerate(self.pieces)], dtype=np.bool_)
        return self.unused & padding

    def text(self, i: int) -> str:
        r"""Return the text of a token, including its leading space; incomplete UTF-8 appears as ``\xNN``."""
        return self._raw(i).decode("utf-8", errors="backslashreplace")

    def label(self, i: int) -> str:
        """Return the name of a token in records: its `text`, but a WordPiece continuation keeps its ``##``."""
        return self.pieces[i] if self.is_continuation(i) else self.text(i)

    def shown(self, i: int) -> str:
        """Return a token as lists show it: on one line, safe for a terminal, with spaces at its ends as ``␣``."""
        if i not in self._cache:
            text = self.label(i)
            self._cache[i] = shown_text(text) if text else f"<no token {i}>"
        return self._cache[i]

    def is_continuation(self, i: int) -> bool:
        """Tell whether a WordPiece token continues a word (``##ing``)."""
        return SPELLINGS[self.kind].continues(self.pieces[i])

    @property
    def spells_spaces(self) -> bool:
        """Tell whether tokens have the space before a word in their text."""
        return bool(SPELLINGS[self.kind].space)

    def boundary(self, text: str) -> tuple[bool, str]:
        """Return whether a token's text has the space that marks a word, and the text without it.

        It stands before the word, or behind it where tokens mark the ends of words (``the</w>``).
        """
        return SPELLINGS[self.kind].boundary(text)

    def find(self, text: str) -> list[int]:
        """Return the ids of the single tokens with this text, the one with a leading space first.

        Text that starts with a space is looked up as it is. Where tokens mark the ends of words, the space is behind
        the text.

        Raises:
            UnknownWord: If no token has this text; it says how the tokenizer splits the text, and what may have been
                meant (`suggestions`).
        """
        ids = [self._ids[piece] for piece in self._spellings(text) if piece in self._ids]
        if not ids:
            raise self._no_such_token(text)
        return list(dict.fromkeys(ids))

    def suggestions(self, text: str) -> list[str]:
        """Return up to three tokens that differ from a text only in case or outer spaces, or else in number.

        Examples are Paris for ``paris``, and kilometre for ``kilometres`` if only the singular is a token. `find`
        accepts each of them.
        """
        word = text.strip()
        return self._tokens_of([word], text) or self._tokens_of(_other_numbers(word), text)

    def encode(self, text: str) -> list[int]:
        """Split a text into token ids, without special tokens around it; raise BadModel if that fails."""
        return self.encode_with_places(text)[0]

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Split a text as `encode` does, and return with the ids where the characters of each token begin and end."""
        with refusing(f"{self.path}: this tokenizer cannot split {escape(repr(text))}"):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            return [int(i) for i in encoding.ids], [(int(start), int(stop)) for start, stop in encoding.offsets]

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids of the special tokens that the tokenizer puts before and after a text.

        A WordPiece tokenizer that states none has those of BERT.
        """
        ordinary = next(
            (i for i in np.flatnonzero(~(self.unused | self.special)).tolist() if self.text(i).strip()), None
        )
        if ordinary is None:
            return (), ()
        with refusing(f"{self.path}: this tokenizer cannot put special tokens around a text"):
            encoded = self._tokenizer.encode(self.text(ordinary))
        text = [at for at, is_special in enumerate(encoded.special_tokens_mask) if not is_special]
        if text and len(text) < len(encoded.ids):
            return tuple(encoded.ids[: text[0]]), tuple(encoded.ids[text[-1] + 1 :])
        first, last = ((self._ids[name],) if name in self._ids else () for name in ("[CLS]", "[SEP]"))
        return (first, last) if self.kind == "wordpiece" else ((), ())

    def to_tokenizer_json(self) -> str:
        """Return the text of a ``tokenizer.json`` that `from_tokenizer_json` can read back."""
        return self.tokenizer if isinstance(self.tokenizer, str) else self.tokenizer()

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges of a BPE tokenizer in order; none for other tokenizers."""
        return merges_of(self._spec["model"])

    def swallowed(self) -> Floats:
        """Estimate the largest share of each token's occurrences that one longer token takes: (V,), 0 to 1.

        BPE merges the most frequent pair first, and pair counts fall about as one over their rank (Zipf), so
        a token made by merge r loses about r / r′ of its occurrences to the token that merge r′ makes of it.
        For example, ``␣strugg`` loses .56 to ``␣struggle`` alone, and a token that no merge uses loses 0. The share
        is NaN for a token that no merge makes (bytes, letters, added tokens, all of WordPiece and Unigram).
        """
        share = np.full(self.size, np.nan)
        merges = self.merges()
        rank: dict[str, int] = {}
        for r, (left, right) in enumerate(merges, start=1):
            rank.setdefault(left + right, r)
        share[[self._ids[piece] for piece in rank if piece in self._ids]] = 0
        for r, pair in enumerate(merges, start=1):
            for piece in pair:
                if piece in rank and piece in self._ids:
                    i = self._ids[piece]
                    share[i] = max(share[i], min(1.0, rank[piece] / r))
        return share

    def mask(
        self,
        view: View = "default",
        undertrained: Bools | None = None,
        fragments: Bools | None = None,
    ) -> Bools:
        """Return a mask (V,) of the tokens that a view shows.

        Args:
            view: ``all``: every token. ``default``: all but special, unused, non-text and under-trained ones.
                ``words``: those of the default that read as a complete word, a number or a punctuation mark.
                ``ascii``: those of the default without a character outside ASCII.
            undertrained: Mask (V,) of the under-trained tokens (`undertrained.judge`).
            fragments: Mask (V,) of the beginnings of words, which are not words (`undertrained.judge`).

        Raises:
            BadOption: For another view.
        """
        return np.equal(self._reasons(view, undertrained, fragments), "")

    def hidden(
        self,
        view: View = "default",
        undertrained: Bools | None = None,
        fragments: Bools | None = None,
    ) -> dict[str, int]:
        """Count the tokens that `mask` hides by the first reason that applies, leaving out reasons that hide none."""
        names, counts = np.unique(self._reasons(view, undertrained, fragments), return_counts=True)
        count_of = dict(zip(names.tolist(), counts.tolist(), strict=True))
        return {reason: count_of[reason] for reason in _REASONS if reason in count_of}

    @cached_property
    def non_text(self) -> Bools:
        """Tokens that are not text by themselves: parts of a character, single bytes, control characters."""
        return np.array([_is_non_text(self._raw(i)) or self._is_byte(i) for i in range(self.size)], dtype=np.bool_)

    @cached_property
    def non_ascii(self) -> Bools:
        """Tokens with a character outside ASCII, or a byte of one."""
        return np.array([not self._raw(i).isascii() for i in range(self.size)], dtype=np.bool_)

    @cached_property
    def words(self) -> Bools:
        """Tokens that read as a complete word, a number or a short punctuation mark.

        A token with a leading space is a word if it is alphabetic and in lower case, upper case or capitalised.
        A token without one is a word if it is also a token with a leading space, as it is or in lower case
        (``Monday``, ``Whilst``, not ``emetery``), or if its script has no case (Chinese, Thai) and often no spaces.
        Where tokens mark the ends of words, a word is one that does.
        """
        texts = [self.text(i) for i in range(self.size)]
        if self.spells_spaces:
            spaced = {t[1:] for t in texts if t.startswith(" ") and _is_wordlike(t[1:])}
            flags = [_is_sign(t.removeprefix(" ")) or _is_word(t, spaced) for t in texts]
        elif SPELLINGS[self.kind].end:
            flags = [_is_sign(word) or (ends and _is_wordlike(word)) for ends, word in map(self.boundary, texts)]
        else:
            flags = [_is_sign(t) or (_is_wordlike(t) and not self.is_continuation(i)) for i, t in enumerate(texts)]
        return np.array(flags, dtype=np.bool_)

    def _raw(self, i: int) -> bytes:
        raws = self._raws
        if i not in raws:
            piece = self.pieces[i]
            raws[i] = utf8(piece) if self.literal[i] else SPELLINGS[self.kind].text(piece)
        return raws[i]

    @cached_property
    def _raws(self) -> dict[int, bytes]:
        return {}

    def _is_byte(self, i: int) -> bool:
        return SPELLINGS[self.kind].is_byte(self.pieces[i])

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: i for i, piece in reversed(list(enumerate(self.pieces))) if piece}

    @cached_property
    def _spec(self) -> Spec:
        with refusing(f"{self.path} is not a tokenizer that can be read"):
            spec: Spec = json.loads(self.to_tokenizer_json())
            merges_of(spec["model"])
        return spec

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.to_tokenizer_json(), self.path)

    def _spellings(self, text: str) -> list[str]:
        """Return the pieces that a text may be stored as, the one with a leading space first."""
        pieces = [*SPELLINGS[self.kind].pieces(text), text]
        if self.uncased and not self.spells_spaces:
            pieces += SPELLINGS[self.kind].pieces(text.lower())
        return pieces

    def _tokens_of(self, words: Iterable[str], text: str) -> list[str]:
        """Return up to three tokens that are one of the words in some letter case, but not the text itself."""
        forms = dict.fromkeys(
            form for w in words for form in (w, w.capitalize(), w.lower(), w.upper()) if form not in ("", text)
        )
        return [form for form in forms if any(piece in self._ids for piece in self._spellings(form))][:3]

    def _no_such_token(self, text: str) -> UnknownWord:
        word = "'" + escape(text) + "'"
        if not text:
            return UnknownWord("An empty text is not a token.")
        suggestions = self.suggestions(text)
        spaced = " " + text if self.spells_spaces and not text.startswith(" ") else text
        try:
            pieces = self.encode(spaced)
            split = " + ".join(map(self.shown, pieces)) + (f" ({self.split_note})" if self.split_note else "")
            reason = f"is not one token; it is split as {split}." if pieces else "cannot be written with these tokens."
        except BadModel:
            pieces, reason = [], "is not one token of this vocabulary, and its tokenizer cannot split it."
        question = f" Did you mean {' or '.join(map(escape, suggestions))}?" if suggestions else ""
        advice = (" If not, ask" if suggestions else " Ask") + " for one or more of these pieces." if pieces else ""
        return UnknownWord(f"{word} {reason}{question}{advice}", text, suggestions, pieces)

    def _reasons(self, view: View, undertrained: Bools | None, fragments: Bools | None) -> npt.NDArray[np.str_]:
        """Return the first reason to hide each token, an empty string for a token that is shown."""
        if view not in VIEWS:
            raise BadOption(f"There is no view '{escape(str(view))}' of tokens; it is one of {', '.join(VIEWS)}.")
        flags: dict[str, Bools | None] = {}
        if view != "all":
            flags = {"special": self.special, "unused": self.unused, "non-text": self.non_text}
            flags["under-trained"] = undertrained
        if view == "words":
            flags |= {"fragment": fragments, "not a word": ~self.words}
        if view == "ascii":
            flags["non-ASCII"] = self.non_ascii
        reasons = np.zeros(self.size, dtype=f"<U{max(map(len, _REASONS))}")
        for reason in reversed(flags):
            flag = flags[reason]
            if flag is not None:
                reasons[flag] = reason
        return reasons


_REASONS = ("special", "unused", "non-text", "under-trained", "fragment", "not a word", "non-ASCII")


def _other_numbers(word: str) -> list[str]:
    """Return the plurals of an English word, and the words that it may be the plural of."""
    plurals = [word + "s", word + "es", *([word[:-1] + "ies"] if word.endswith("y") else [])]
    endings = (("s", ""), ("es", ""), ("ies", "y"))
    return [
        word.removesuffix(end) + back for end, back in endings if len(word) > len(end) + 1 and word.endswith(end)
    ] + (plurals if word else [])


def _is_non_text(raw: bytes) -> bool:
    """Tell whether bytes are not text: empty, not UTF-8, or not only printable characters and white space."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return (
        not text or "\ufffd" in text or not all(c.isprintable() or c.isspace() for c in text) or bool(_C1.search(text))
    )


_C1 = re.compile("[\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")  # control characters that Python counts as white space


def _is_sign(text: str) -> bool:
    """Tell whether a text is a number, or one to three punctuation marks or symbols."""
    return text.isdigit() or (
        0 < len(text) <= 3 and text.isprintable() and not any(c.isalnum() or c == " " for c in text)
    )


def _is_wordlike(text: str) -> bool:
    """Tell whether a text is all letters, in lower case, in upper case or capitalised."""
    return text.isalpha() and text in (text.lower(), text.upper(), text.capitalize())


def _is_word(text: str, spaced: set[str]) -> bool:
    if text.startswith(" "):
        return text[1:] in spaced
    return _is_wordlike(text) and (text in spaced or text.lower() in spaced or text.lower() == text.upper())


def _from_spec(
    spec: Spec, size: int | None, path: str, text: str, note: str = "", unused: Iterable[int] = ()
) -> Vocabulary:
    """Build the vocabulary of a parsed tokenizer.json, whose every shape and id is checked."""
    try:
        names = numbered(spec["model"])
        added = added_tokens(spec, names)
        names |= {i: str(t["content"]) for i, t in added.items()}
        vocab_kind = _kind(spec)
        merges_of(spec["model"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadModel(f"{path} is not a tokenizer that can be read ({type(error).__name__}: {error}).") from error
    rows = _checked_size(names, {*added, *unused}, size, path)
    notes = [sentence for sentence in (_renumbered(added, path), _dropped(names, rows, path)) if sentence]
    pieces = [names.get(i, "") for i in range(rows)]
    empty = np.array([not p or _RESERVED.fullmatch(p) is not None for p in pieces], dtype=np.bool_)
    empty |= _flags(rows, unused)
    if empty.all():
        raise BadModel(f"{path} has no token that stands for anything.")
    special = _flags(rows, (i for i, t in added.items() if t.get("special")))
    literal = _flags(rows, added)
    lower = '"lowercase": true' in json.dumps(spec.get("normalizer")) or _has(spec.get("normalizer"), "Lowercase")
    source = text if max(names) < rows else partial(without_rows, text, rows)
    return Vocabulary(
        kind=vocab_kind,
        pieces=pieces,
        special=special & ~empty,
        unused=empty,
        literal=literal,
        uncased=lower,
        tokenizer=source,
        split_note=note,
        notes=tuple(notes),
        path=path,
    )


def _checked_size(names: dict[int, str], spare: Collection[int], size: int | None, path: str) -> int:
    """Return the number of rows; raise BadModel if a token that is not one of the ``spare`` ids has no row."""
    last = max(names, default=-1)
    if not names or min(names) < 0:
        raise BadModel(f"{path} has no tokens, or a token with a negative id.")
    if size is None:
        if has_endless_holes(last, len(names)):
            raise BadModel(f"{path} has a token with id {last}, but only {len(names)} tokens.")
        return last + 1
    above = [i for i in names if i >= size]
    ordinary = [i for i in above if i not in spare]
    if ordinary or len(above) == len(names):
        i = max(ordinary or above)
        raise BadModel(
            f"{path} is the tokenizer of another model: {len(above)} of its {len(names)} tokens, such as "
            f"{shown_text(names[i])} with the id {i}, are beyond the {size} rows of the embedding."
        )
    return size


_NAMED = 5
"""The number of tokens that a note names."""


def _dropped(names: Mapping[int, str], rows: int, path: str) -> str:
    """Return a sentence that names the tokens without a row; an empty text if there are none."""
    above = sorted(i for i in names if i >= rows)
    if not above:
        return ""
    tokens = "1 added token" if len(above) == 1 else f"{len(above)} added tokens"
    return f"{path} has {tokens} beyond the {rows} rows of the embedding, left out: {_listed(names, above)}."


def _renumbered(added: Mapping[int, Spec], path: str) -> str:
    """Return a sentence that names the added tokens whose ids are not those that the file states, or an empty text."""
    moved = [i for i, token in added.items() if token["id"] != i]
    if not moved:
        return ""
    listed = _listed({i: str(added[i]["content"]) for i in moved}, moved)
    return f"{path} states other ids than the tokenizers library gives, which are taken: {listed}."


def _listed(names: Mapping[int, str], ids: Sequence[int]) -> str:
    """List the first few of some tokens with their ids."""
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(f"{shown_text(names[i])} ({i})" for i in ids[:_NAMED]) + more


def _flags(size: int, ids: Iterable[int]) -> Bools:
    flags = np.zeros(size, dtype=np.bool_)
    flags[[i for i in ids if i < size]] = True
    return flags


def _has(part: Any, part_type: str) -> bool:
    """Tell whether a part of a tokenizer.json, or a member of its sequence, is of a type."""
    if isinstance(part, list):
        return any(_has(member, part_type) for member in part)
    if not isinstance(part, dict):
        return False
    nested = (part.get(key) for key in ("pretokenizers", "decoders", "normalizers"))
    return part.get("type") == part_type or any(_has(member, part_type) for member in nested)


def _kind(spec: Spec) -> Kind:
    model = spec["model"]
    ends = model.get("end_of_word_suffix") == SPELLINGS["word-ends"].end
    if _has([spec.get("pre_tokenizer"), spec.get("decoder")], "ByteLevel"):
        return "byte-word-ends" if ends else "bytes"
    if ends:
        return "word-ends"
    if model.get("type") == "WordPiece" or ("continuing_subword_prefix" in model and "merges" not in model):
        return "wordpiece"
    pieces = (str(piece) for piece in numbered(model).values())
    return "sentencepiece" if any(p.startswith("▁") for p in pieces) else "plain"
