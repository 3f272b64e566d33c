"""Conversion of SentencePiece's Unigram models to the content of a ``tokenizer.json``.

The file numbers its pieces; the class of the tokenizer decides which ids they get and which tokens stand around them.
The records follow transformers' converters (5.24, ``convert_slow_tokenizer``), the splits SentencePiece itself, as
``SpmConverter.build_tokenizer_from_spm_proto`` does; only a byte that a text spells out, ``<0x41>``, is taken for one.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zeropass.tokens.sentencepiece import BYTE, CONTROL, UNIGRAM, UNKNOWN, UNUSED, USER_DEFINED, Model, model_of
from zeropass.tokens.tokenizer_json import FLAGS, Spec

__all__ = ["CLASS_OF_TYPE", "UNIGRAM_CLASSES", "UnigramClass", "unigram_spec"]

_LANGUAGES = (
    *("ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX"),
    *("kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN"),
    "zh_CN",
)
_FURTHER_LANGUAGES = (
    *("af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK", "ml_IN", "mn_MN"),
    *("mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN", "th_TH", "tl_XX", "uk_UA", "ur_PK"),
    *("xh_ZA", "gl_ES", "sl_SI"),
)
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
_LANGUAGE = "the source language"
"""Stands in a template for the token that the setting src_lang names."""

_TEXT = {"Sequence": {"id": "A", "type_id": 0}}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class UnigramClass:
    """The ids of a class of tokenizers: tokens of its own, the pieces of the file, and further tokens."""

    file: str
    """The file of the pieces."""
    first: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    """The pieces at the beginning of the file that the first tokens replace."""
    last: tuple[str, ...] = ()
    extra_ids: bool = False
    """If set, T5's extra ids stand at the end, the last one first."""
    template: tuple[str, ...] = ("$A", "</s>")
    """The special tokens around a text."""
    fixed: tuple[tuple[str, Any], ...] = ()
    """Settings that may have no other value, as the ids follow from them."""


def _sentences(last: tuple[str, ...], template: tuple[str, ...]) -> UnigramClass:
    """Return a class that replaces SentencePiece's three control pieces with fairseq's four."""
    return UnigramClass("sentencepiece.bpe.model", _FAIRSEQ, ("<unk>", "<s>", "</s>"), last, template=template)


UNIGRAM_CLASSES = {
    "T5Tokenizer": UnigramClass("spiece.model", extra_ids=True),
    "PegasusTokenizer": UnigramClass(
        "spiece.model",
        ("<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103))),
        ("<pad>", "</s>"),
        fixed=(("offset", 103), ("mask_token_sent", "<mask_1>"), ("mask_token", "<mask_2>")),
    ),
    "XLMRobertaTokenizer": _sentences(("<mask>",), ("<s>", "$A", "</s>")),
    "CamembertTokenizer": UnigramClass(
        "sentencepiece.bpe.model",
        ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"),
        ("<unk>",),
        ("<mask>",),
        template=("<s>", "$A", "</s>"),
    ),
    "MBartTokenizer": _sentences((*_LANGUAGES, "<mask>"), ("$A", "</s>", _LANGUAGE)),
    "MBart50Tokenizer": _sentences((*_LANGUAGES, *_FURTHER_LANGUAGES, "<mask>"), (_LANGUAGE, "$A", "</s>")),
}
"""The classes whose ids are known, by transformers' names without Fast."""

CLASS_OF_TYPE = {
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "umt5": "T5Tokenizer",
    "pegasus": "PegasusTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
}
"""The class of a model type whose folder names none; that of mbart may be MBart or MBart50."""

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def unigram_spec(data: bytes, kind: UnigramClass, settings: Settings, named: Mapping[str, str]) -> Spec:
    """Return the tokenizer.json of a Unigram model.

    Args:
        data: Content of the file.
        kind: The class of the tokenizer.
        settings: tokenizer_config.json.
        named: Special tokens by the setting that names them.

    Raises:
        ValueError: If the file is not such a model, or the ids do not follow from what the class states.
    """
    model = model_of(data)
    _check_model(model, kind)
    vocab = _vocab(model, kind, settings)
    ids = {piece: i for i, (piece, _) in enumerate(vocab)}
    if len(ids) < len(vocab):
        raise ValueError("two of its tokens are spelled alike")
    _check_settings(kind, settings, named, ids)
    special = {*kind.first, *kind.last, *_extra_ids(kind, settings)}
    unknown = next(piece.text for piece in model.pieces if piece.type == UNKNOWN)
    controls = {piece.text for piece in model.pieces if piece.type in (CONTROL, UNKNOWN)} & {*ids}
    users = {piece.text for piece in model.pieces if piece.type == USER_DEFINED}
    added = [
        {"id": ids[text], "content": text, "special": True} | FLAGS
        for text in sorted(special | controls, key=ids.__getitem__)
    ]
    byte_fallback = any(piece.type == BYTE for piece in model.pieces)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": _pre_tokenizer(model, users),
        "post_processor": _template(kind, settings, ids),
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": ids[unknown], "vocab": vocab, "byte_fallback": byte_fallback},
    }


def _check_model(model: Model, kind: UnigramClass) -> None:
    texts = tuple(piece.text for piece in model.pieces[: len(kind.dropped)])
    unknown = [piece for piece in model.pieces if piece.type == UNKNOWN]
    obstacles = {
        "it is not a Unigram model": model.trainer.get(3, UNIGRAM) != UNIGRAM,
        "white space is written behind words": bool(model.trainer.get(24, 0)),
        "it keeps spaces as they are": not model.normalizer.get(5, 1),
        "it has unused pieces": any(piece.type == UNUSED for piece in model.pieces),
        "it does not have one unknown piece": len(unknown) != 1,
        f"its first pieces are {', '.join(texts)}, not {', '.join(kind.dropped)}": texts != kind.dropped,
    }
    if reasons := [reason for reason, applies in obstacles.items() if applies]:
        raise ValueError(" and ".join(reasons))


def _check_settings(kind: UnigramClass, settings: Settings, named: Mapping[str, str], ids: Mapping[str, int]) -> None:
    """Raise ValueError for a setting that moves ids, renames a token or changes splits."""
    for key, value in (*kind.fixed, ("add_prefix_space", True)):
        stated = named.get(key, settings.get(key, value))
        if stated != value:
            raise ValueError(f"{key} is {stated!r}; known is {value!r}")
    if settings.get("sp_model_kwargs"):
        raise ValueError(f"sp_model_kwargs is {settings['sp_model_kwargs']!r}; known is {{}}")
    for key in _NAMED:
        if key in named and named[key] not in ids:
            raise ValueError(f"{key} is {named[key]!r}, which is none of its pieces")


def _vocab(model: Model, kind: UnigramClass, settings: Settings) -> list[list[Any]]:
    """Return all tokens in the order of their ids, each with its score."""
    score = {text: -100.0 for text in kind.first if text.startswith("<unk_") or text == "<unk>NOTUSED"}
    first = [[text, score.get(text, 0.0)] for text in kind.first]
    pieces = [[piece.text, piece.score] for piece in model.pieces[len(kind.dropped) :]]
    return [*first, *pieces, *([text, 0.0] for text in (*kind.last, *_extra_ids(kind, settings)))]


def _extra_ids(kind: UnigramClass, settings: Settings) -> list[str]:
    if not kind.extra_ids:
        return []
    number = settings.get("extra_ids", 100)
    if type(number) is not int or not 0 <= number <= 10_000:
        raise ValueError(f"extra_ids is {number!r}, which is not a number of tokens")
    return [f"<extra_id_{i}>" for i in reversed(range(number))]


def _normalizers(model: Model) -> list[Spec]:
    """Return the steps of SentencePiece in its order."""

    def replace(pattern: dict[str, str], content: str) -> Spec:
        return {"type": "Replace", "pattern": pattern, "content": content}

    steps: list[Spec] = []
    charsmap = model.normalizer.get(2)
    if isinstance(charsmap, bytes) and charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if model.normalizer.get(4, 1):
        steps += [replace({"Regex": r"\A +| +\z"}, ""), replace({"Regex": " {2,}"}, " ")]
    steps.append(replace({"String": " "}, "▁"))
    if model.normalizer.get(4, 1):
        steps.append(replace({"Regex": r"▁+\z"}, ""))
    if model.normalizer.get(3, 1):  # the next step adds no space before a ▁ that the text itself begins with
        steps.append(replace({"Regex": r"\A▁"}, "▁▁"))
    return steps


def _pre_tokenizer(model: Model, users: set[str]) -> Spec:
    """Return the steps that put a space before a text and keep the pieces of users whole."""
    steps: list[Spec] = []
    if model.normalizer.get(3, 1):
        steps.append({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False})
    if users:
        pattern = "|".join(map(re.escape, sorted(users, key=lambda text: (-len(text), text))))
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": steps}


def _template(kind: UnigramClass, settings: Settings, ids: Mapping[str, int]) -> Spec:
    language = settings.get("src_lang") or "en_XX"
    parts = [language if part == _LANGUAGE else part for part in kind.template]
    special = [part for part in parts if part != "$A"]
    if missing := [part for part in special if part not in ids]:
        raise ValueError(f"{missing[0]!r}, which stands around texts, is none of its pieces")
    single = [_TEXT if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}} for part in parts]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    known = {part: {"id": part, "ids": [ids[part]], "tokens": [part]} for part in special}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}
