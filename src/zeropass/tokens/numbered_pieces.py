"""Tokenizers that split a text by SentencePiece and number the pieces by a list of their own, ``vocab.json``.

The list may lack pieces of the file, which are then unknown, and have others, such as those of the target language:
nothing but a run of characters that the file does not know is ever split into one. No model of the tokenizers library
does both, so a tokenizer.json keeps SentencePiece as a step before a list of words (``WordLevel``), a step that this
module runs: other readers refuse its type, rather than read other ids.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import NormalizedString, PreTokenizedString, Tokenizer, pre_tokenizers

__all__ = ["SPLITTER", "numbering_tokenizer"]

SPLITTER = "SentencePiece"
"""The type of the step."""

_CODE = re.compile(">>.*?<<", re.DOTALL)


class _Pieces:
    """SentencePiece as a pre-tokenizer of the library: it splits a text into the pieces themselves."""

    def __init__(self, step: dict[str, Any]) -> None:
        parts = {key: step[key] for key in ("normalizer", "pre_tokenizer", "model")}
        tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **parts}))
        self._normalizer, self._spaces, self._model = tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model
        model = parts["model"]
        self._unknown = model["unk_id"] if "unk_id" in model else model["vocab"][model["unk_token"]]
        self._coded = bool(step["code"])

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Split each part of a text that is not an added token."""
        text.split(lambda _, part: [NormalizedString(piece) for piece in self._split(str(part))])

    def _split(self, text: str) -> Iterator[str]:
        if self._coded and (match := _CODE.match(text)):
            yield match[0]
            text = text[match.end() :]
        for part, _ in self._spaces.pre_tokenize_str(self._normalizer.normalize_str(text)):
            letters = part.encode()
            for token in self._model.tokenize(part):
                start, end = token.offsets
                yield letters[start:end].decode() if token.id == self._unknown else token.value


def numbering_tokenizer(spec: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json whose first step is SentencePiece."""
    tokenizer = Tokenizer.from_str(json.dumps(spec | {"pre_tokenizer": None}))
    tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(_Pieces(spec["pre_tokenizer"]))
    return tokenizer
