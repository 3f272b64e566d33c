"""Conversion of SentencePiece's models to the content of a ``tokenizer.json`` by the class of their tokenizer.

The file numbers its pieces; the class decides which ids they get and which tokens stand around them. The records follow
transformers (5.24): the converters of ``convert_slow_tokenizer``, and the classes that it has only in Python. Of these,
``vocab.json`` numbers the pieces, and need not have the same ones (`numbered_pieces`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zeropass.tokens import languages
from zeropass.tokens.numbered_pieces import SPLITTER
from zeropass.tokens.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, UNUSED, USER_DEFINED, Model
from zeropass.tokens.sentencepiece_steps import DECODER, Rules, bpe, merges_by_score, normalizer, pre_tokenizer, unigram
from zeropass.tokens.tokenizer_json import FLAGS, Spec, numbered

__all__ = ["CLASS_OF_TYPE", "PIECES", "PIECE_CLASSES", "PieceClass", "Variants", "piece_spec"]

_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
_LANGUAGE = "the language"
"""Stands in a template for the token of the language that a setting names."""

_TEXT = {"Sequence": {"id": "A", "type_id": 0}}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class PieceClass:
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
    language: tuple[str, str | None, str] = ("src_lang", "en_XX", "{}")
    """The setting that names the language of the template, its default (None for no language), and its spelling."""
    fixed: tuple[tuple[str, Any], ...] = ()
    """Settings that may have no other value, as the ids or splits follow from them."""
    numbered: bool = False
    """If set, vocab.json numbers the pieces, in place of the file; the last tokens follow."""
    special: tuple[str, ...] = ()
    """The special tokens among those that vocab.json numbers."""
    code: bool = False
    """If set, the code of a language at the beginning of a text, such as ``>>fra<<``, is a piece as it stands."""


@dataclass(frozen=True)
class Variants:
    """A class whose ids a setting tells apart; the first value is its default."""

    setting: str
    classes: Mapping[Any, PieceClass] = field(hash=False)

    def of(self, settings: Settings) -> PieceClass:
        """Return the variant of some settings; raise ValueError for a value that is not known."""
        value = settings.get(self.setting, next(iter(self.classes)))
        if not isinstance(value, str | bool | None) or value not in self.classes:
            known = ", ".join(map(repr, self.classes))
            raise ValueError(f"{self.setting} is {value!r}; known are {known}")
        return self.classes[value]


def _sentences(last: tuple[str, ...], template: tuple[str, ...], **more: Any) -> PieceClass:
    """Return a class that replaces SentencePiece's three control pieces with fairseq's four."""
    return PieceClass("sentencepiece.bpe.model", _FAIRSEQ, ("<unk>", "<s>", "</s>"), last, template=template, **more)


_MULTILINGUAL = PieceClass(
    "sentencepiece.bpe.model",
    template=(_LANGUAGE, "$A", "</s>"),
    language=("src_lang", "en", "__{}__"),
    fixed=(("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")),
    numbered=True,
    special=_FAIRSEQ,
)


def _multilingual(**more: Any) -> Variants:
    """Return the variants of M2M-100, whose languages follow vocab.json."""
    sets = {"m2m100": languages.M2M_100, "wmt21": languages.WMT_21}
    classes = {name: tuple(f"__{code}__" for code in codes) for name, codes in sets.items()}
    return Variants("language_codes", {name: replace(_MULTILINGUAL, last=c, **more) for name, c in classes.items()})


_SPEECH = replace(
    _MULTILINGUAL,
    template=("$A", "</s>"),
    fixed=(*_MULTILINGUAL.fixed, ("do_lower_case", False)),
)
_NLLB = _sentences((*languages.NLLB, "<mask>"), (_LANGUAGE, "$A", "</s>"), language=("src_lang", "eng_Latn", "{}"))


def _plbart(last: tuple[str, ...], default: str | None) -> PieceClass:
    return _sentences(last, ("$A", "</s>", _LANGUAGE), language=("src_lang", default, "__{}__"))


PIECES = PieceClass("tokenizer.model", template=("$A",))
"""Ids and pieces as in the file."""

PIECE_CLASSES: dict[str, PieceClass | Variants] = {
    "T5Tokenizer": PieceClass("spiece.model", extra_ids=True),
    "PegasusTokenizer": PieceClass(
        "spiece.model",
        ("<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103))),
        ("<pad>", "</s>"),
        fixed=(("offset", 103), ("mask_token_sent", "<mask_1>"), ("mask_token", "<mask_2>")),
    ),
    "XLMRobertaTokenizer": _sentences(("<mask>",), ("<s>", "$A", "</s>")),
    "CamembertTokenizer": PieceClass(
        "sentencepiece.bpe.model",
        ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"),
        ("<unk>",),
        ("<mask>",),
        template=("<s>", "$A", "</s>"),
    ),
    "DebertaV2Tokenizer": PieceClass(  # splits of transformers 4; 5 composes characters in place of the file's rules
        "spm.model",
        last=("[MASK]",),
        template=("[CLS]", "$A", "[SEP]"),
        fixed=(("do_lower_case", False), ("split_by_punct", False)),
    ),
    "MBartTokenizer": _sentences((*languages.MBART, "<mask>"), ("$A", "</s>", _LANGUAGE)),
    "MBart50Tokenizer": _sentences((*languages.MBART_50, "<mask>"), (_LANGUAGE, "$A", "</s>")),
    "NllbTokenizer": Variants(
        "legacy_behaviour", {False: _NLLB, True: replace(_NLLB, template=("$A", "</s>", _LANGUAGE))}
    ),
    "XGLMTokenizer": _sentences(tuple(f"<madeupword{i}>" for i in range(7)), ("</s>", "$A")),
    "PLBartTokenizer": Variants(
        "language_codes",
        {
            "base": _plbart((*languages.PLBART[:3], "<mask>"), None),
            "multi": _plbart(languages.PLBART, "en_XX"),
        },
    ),
    "MarianTokenizer": PieceClass(
        "source.spm",
        fixed=(("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>"), ("separate_vocabs", False)),
        numbered=True,
        special=("</s>", "<unk>", "<pad>"),
        code=True,
    ),
    "M2M100Tokenizer": _multilingual(),
    "SMALL100Tokenizer": _multilingual(language=("tgt_lang", "en", "__{}__")),
    "Speech2TextTokenizer": Variants(
        "lang_codes",
        {
            None: _SPEECH,
            "mustc": replace(
                _SPEECH,
                template=(_LANGUAGE, "$A", "</s>"),
                language=("tgt_lang", "pt", "<lang:{}>"),
                special=(*_FAIRSEQ, *(f"<lang:{code}>" for code in languages.MUST_C)),
            ),
        },
    ),
}
"""The classes whose ids are known, by transformers' names without Fast; SMaLL-100's comes with its model."""

CLASS_OF_TYPE = {
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "umt5": "T5Tokenizer",
    "pegasus": "PegasusTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    **dict.fromkeys(("xlm-roberta", "gte", "jina_embeddings_v3"), "XLMRobertaTokenizer"),
    "camembert": "CamembertTokenizer",
    "xglm": "XGLMTokenizer",
    "plbart": "PLBartTokenizer",
    "marian": "MarianTokenizer",
    "m2m_100": "M2M100Tokenizer",
    "speech_to_text": "Speech2TextTokenizer",
}
"""The class of a model type whose folder names none; that of mbart may be MBart or MBart50."""

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def piece_spec(
    model: Model, kind: PieceClass, settings: Settings, named: Mapping[str, str], numbers: Spec | None = None
) -> Spec:
    """Return the tokenizer.json of a SentencePiece model.

    Args:
        model: The pieces.
        kind: The class of the tokenizer.
        settings: tokenizer_config.json.
        named: Special tokens by the setting that names them.
        numbers: vocab.json, for a class that is `numbered`.

    Raises:
        ValueError: If the file is not such a model, or the ids do not follow from what the class states.
    """
    _check_model(model, kind)
    vocab = _vocab(model, kind, settings) if numbers is None else _numbered_vocab(kind, numbers)
    ids = {str(piece): i for i, piece, _ in vocab}
    if len(ids) < len(vocab):
        raise ValueError("two of its tokens are spelled alike")
    _check_settings(kind, settings, named, ids)
    special = {*kind.first, *kind.last, *kind.special, *_extra_ids(kind, settings)}
    unknown = next(piece.text for piece in model.pieces if piece.type == UNKNOWN)
    if numbers is None:
        special |= {piece.text for piece in model.pieces if piece.type in (CONTROL, UNKNOWN)} & {*ids}
        steps: Spec = {"normalizer": normalizer(_rules(model)), "pre_tokenizer": pre_tokenizer(_rules(model))}
        steps["model"] = _model(model, [(piece, score) for _, piece, score in vocab], unknown)
    else:
        _check_languages(model, kind, ids)
        steps = {"normalizer": None, "pre_tokenizer": _splitter(model, kind, unknown)}
        steps["model"] = {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[text], "content": text, "special": True} | FLAGS for text in sorted(special, key=ids.__getitem__)
        ],
        "post_processor": _template(kind, settings, ids, special),
        "decoder": DECODER,
        **steps,
    }


def _check_model(model: Model, kind: PieceClass) -> None:
    texts = tuple(piece.text for piece in model.pieces[: len(kind.dropped)])
    types = [piece.type for piece in model.pieces]
    model_type = model.trainer.get(3, UNIGRAM)
    obstacles = {
        "it is neither a Unigram nor a BPE model": model_type not in (UNIGRAM, BPE),
        "white space is written behind words": bool(model.trainer.get(24, 0)),
        "it keeps spaces as they are": not model.normalizer.get(5, 1),
        "it has unused pieces": UNUSED in types,
        "it is a BPE model with user-defined pieces": model_type == BPE and USER_DEFINED in types,
        "it does not have one unknown piece": types.count(UNKNOWN) != 1,
        f"its first pieces are {', '.join(texts)}, not {', '.join(kind.dropped)}": texts != kind.dropped,
    }
    if reasons := [reason for reason, applies in obstacles.items() if applies]:
        raise ValueError(" and ".join(reasons))


def _check_settings(kind: PieceClass, settings: Settings, named: Mapping[str, str], ids: Mapping[str, int]) -> None:
    """Raise ValueError for a setting that moves ids, renames a token or changes splits."""
    for key, value in (*kind.fixed, ("add_prefix_space", True)):
        stated = named.get(key, settings.get(key, value))
        if stated != value:
            raise ValueError(f"{key} is {stated!r}; known is {value!r}")
    if settings.get("sp_model_kwargs"):
        raise ValueError(f"sp_model_kwargs is {settings['sp_model_kwargs']!r}; known is {{}}")
    if missing := [text for text in kind.special if text not in ids]:
        raise ValueError(f"{missing[0]!r} is none of its tokens")
    for key in _NAMED:
        if key in named and named[key] not in ids:
            raise ValueError(f"{key} is {named[key]!r}, which is none of its pieces")


def _check_languages(model: Model, kind: PieceClass, ids: Mapping[str, int]) -> None:
    """Raise ValueError if vocab.json moves a language: transformers takes the id of its piece in the file."""
    for i, piece in enumerate(model.pieces):
        if piece.text in kind.special[len(_FAIRSEQ) :] and ids[piece.text] != i:
            raise ValueError(f"{piece.text!r} is piece {i}, but vocab.json gives it the id {ids[piece.text]}")


Entry = tuple[int, str, float]
"""A token: its id, its text and its score."""


def _vocab(model: Model, kind: PieceClass, settings: Settings) -> list[Entry]:
    """Return all tokens in the order of their ids."""
    score = {text: -100.0 for text in kind.first if text.startswith("<unk_") or text == "<unk>NOTUSED"}
    first = [(text, score.get(text, 0.0)) for text in kind.first]
    pieces = [(piece.text, piece.score) for piece in model.pieces[len(kind.dropped) :]]
    last = [(text, 0.0) for text in (*kind.last, *_extra_ids(kind, settings))]
    return [(i, text, score) for i, (text, score) in enumerate([*first, *pieces, *last])]


def _numbered_vocab(kind: PieceClass, numbers: Spec) -> list[Entry]:
    """Return the tokens of vocab.json and the last ones, which follow; scores are not used."""
    pieces = numbered({"vocab": numbers})
    if kind.last and max(pieces, default=-1) != len(pieces) - 1:
        raise ValueError(f"vocab.json has {len(pieces)} tokens, and ids that are not 0 to {len(pieces) - 1}")
    return [(i, text, 0.0) for i, text in (*pieces.items(), *enumerate(kind.last, start=len(pieces)))]


def _extra_ids(kind: PieceClass, settings: Settings) -> list[str]:
    if not kind.extra_ids:
        return []
    number = settings.get("extra_ids", 100)
    if type(number) is not int or not 0 <= number <= 10_000:
        raise ValueError(f"extra_ids is {number!r}, which is not a number of tokens")
    return [f"<extra_id_{i}>" for i in reversed(range(number))]


def _rules(model: Model) -> Rules:
    charsmap = model.normalizer.get(2)
    users = frozenset(piece.text for piece in model.pieces if piece.type == USER_DEFINED)
    return Rules(
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        prefix=bool(model.normalizer.get(3, 1)),
        tidy=bool(model.normalizer.get(4, 1)),
        users=users,
    )


def _model(model: Model, vocab: list[tuple[str, float]], unknown: str) -> Spec:
    """Return the Unigram or BPE model of tokens in the order of their ids."""
    byte_fallback = any(piece.type == BYTE for piece in model.pieces)
    ids = {text: i for i, (text, _) in enumerate(vocab)}
    if model.trainer.get(3, UNIGRAM) == UNIGRAM:
        return unigram(vocab, ids[unknown], byte_fallback)
    ordinary = {piece.text: piece.score for piece in model.pieces if piece.type == NORMAL}
    return bpe(ids, merges_by_score(ordinary), unknown, byte_fallback)


def _splitter(model: Model, kind: PieceClass, unknown: str) -> Spec:
    """Return the step that splits a text into pieces, in ids of its own."""
    vocab = [(piece.text, piece.score) for piece in model.pieces if piece.type in (NORMAL, USER_DEFINED, BYTE)]
    rules = _rules(model)
    return {
        "type": SPLITTER,
        "code": kind.code,
        "normalizer": normalizer(rules),
        "pre_tokenizer": pre_tokenizer(rules),
        "model": _model(model, [(unknown, 0.0), *vocab], unknown),
    }


def _template(kind: PieceClass, settings: Settings, ids: Mapping[str, int], special: set[str]) -> Spec | None:
    parts = list(_around(kind, settings))
    around = [part for part in parts if part != "$A"]
    if not around:
        return None
    if missing := [part for part in around if part not in special]:
        raise ValueError(f"{missing[0]!r}, which stands around texts, is none of its pieces")
    single = [_TEXT if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}} for part in parts]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    known = {part: {"id": part, "ids": [ids[part]], "tokens": [part]} for part in around}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}


def _around(kind: PieceClass, settings: Settings) -> Iterator[str]:
    """Yield the parts of the template with the token of the language that the settings name, if any."""
    setting, default, spelling = kind.language
    language = settings.get(setting) or default
    for part in kind.template:
        if part != _LANGUAGE:
            yield part
        elif language:
            yield language if language in kind.last else spelling.format(language)
