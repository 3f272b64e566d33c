"""Multimodal models around a text model of the table: the place of its configuration and tensors, and what is not read.

A `Wrapper` is frozen data, as a `Family` is. The text model is read by the record of its own family, whose layout gets
the names that tensors have inside the wrapper.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zeropass._io.short_repr import ShortRepr
from zeropass.arch.spec import Layout, Stored
from zeropass.checkpoints.model_files import ModelFiles
from zeropass.errors import BadModel, UnknownFamily

__all__ = ["WRAPPERS", "Wrapper", "layouts_in", "text_files", "tower_name", "towers"]
__all__ += ["wrapper_files", "wrapper_notes", "wrapper_of"]


@dataclass(frozen=True, repr=False)
class Wrapper(ShortRepr):
    """A multimodal model, of which the text model is read.

    Attributes:
        model_types: Names of the wrapper in configurations.
        texts: Model types that the text model may have; the first where its configuration is silent.
        prefixes: The prefix of the text model's tensors, in each generation of files -> the prefix of its head.
        towers: Modules that hold no parameter of the text model: name -> description.
        config: The key of the text model's configuration; ``a.b`` looks inside an object.
        others: Keys of the configurations of other parts.
        flat: True if old files have the keys of the text model among those of the wrapper.
        text_ties: True if E and U are tied where the text model's configuration says so, whatever the wrapper's says.
        assumed: Keys of the text model's configuration -> the values where a file leaves them out, if not those of its type.
        fixed: Keys of the text model's configuration -> the values that count inside the wrapper.
        harmless: Regular expressions of keys that change nothing for a text, beyond those in `keys`.
        notes: Sentences on what is not modelled exactly.
    """

    model_types: tuple[str, ...]
    texts: tuple[str, ...]
    prefixes: Mapping[str, str]
    towers: Mapping[str, str]
    config: str = "text_config"
    others: tuple[str, ...] = ("vision_config",)
    flat: bool = False
    text_ties: bool = False
    assumed: Mapping[str, object] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=lambda: {"final_logit_softcapping": None})
    harmless: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_QWEN2_LIKE = ("qwen2", "llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text")
_NESTED = {"language_model.model.": "language_model.", "model.language_model.": ""}
_VISION = {"vision_tower": "vision tower", "multi_modal_projector": "projector"}
_AUDIO = {"audio_tower": "audio tower", "multi_modal_projector": "projector"}
_VISUAL = {"visual": "vision tower"}
_IMAGE_KEYS = (
    r"vision_feature_(layer|select_strategy)|vision_aspect_ratio|(image|video)_(seq_length|grid_pinpoints)",
    r"projector_hidden_act|projector_layernorm_eps|multimodal_projector_bias|projection_dim|ignore_index",
    r"use_image_newline_parameter|spatial_(merge_size|pool_mode|pool_stride)|downsample_ratio|mm_tokens_per_image",
)
_SPEECH_KEYS = (r"position_id_per_seconds|seconds_per_chunk|enable_(audio_output|talker)",)

LLAVA = Wrapper(
    model_types=("llava", "vipllava", "llava_next", "llava_next_video"),
    texts=_LLAMA_LIKE,
    prefixes=_NESTED,
    towers={**_VISION, "image_newline": "end of an image's row"},
    text_ties=True,
    harmless=_IMAGE_KEYS,
)
VIDEO_LLAVA = replace(
    LLAVA,
    model_types=("video_llava",),
    towers={"image_tower": "image tower", "video_tower": "video tower", "multi_modal_projector": "projector"},
)
QWEN_LLAVA = replace(LLAVA, model_types=("llava_onevision", "internvl", "got_ocr2"), texts=_QWEN2_LIKE)
MISTRAL3 = replace(LLAVA, model_types=("mistral3",), texts=("mistral",), towers=_VISION, text_ties=False)
PALIGEMMA = replace(
    MISTRAL3,
    model_types=("paligemma",),
    texts=("gemma", "gemma2"),
    fixed={"use_bidirectional_attention": None},  # the mask is the wrapper's: both ways where the caller marks a prompt
    harmless=(*_IMAGE_KEYS, "num_image_tokens"),
    notes=("a prompt that is marked as one attends both ways; here every text is read as one that the model writes",),
)
GEMMA3 = replace(MISTRAL3, model_types=("gemma3",), texts=("gemma3_text",))

IDEFICS = Wrapper(
    model_types=("idefics3", "smolvlm", "idefics2"),
    texts=_LLAMA_LIKE,
    prefixes={"model.text_model.": ""},
    towers={"vision_model": "vision tower", "connector": "projector"},
    others=("vision_config", "perceiver_config"),
    harmless=(*_IMAGE_KEYS, r"scale_factor|pixel_shuffle_factor|neftune_noise_alpha|_pad_token_id|perceiver_config"),
)

QWEN2_VL = Wrapper(
    model_types=("qwen2_vl",),
    texts=("qwen2_vl_text",),
    prefixes={"model.": "", "model.language_model.": ""},
    towers=_VISUAL,
    flat=True,
    text_ties=True,
)
QWEN2_5_VL = replace(QWEN2_VL, model_types=("qwen2_5_vl",), texts=("qwen2_5_vl_text",))
QWEN3_VL = replace(
    QWEN2_VL,
    model_types=("qwen3_vl",),
    texts=("qwen3_vl_text",),
    prefixes={"model.language_model.": ""},
    flat=False,
    text_ties=False,
)
QWEN2_5_OMNI_THINKER = replace(
    QWEN2_VL,
    model_types=("qwen2_5_omni_thinker",),
    texts=("qwen2_5_omni_text",),
    towers={**_VISUAL, **_AUDIO},
    others=("vision_config", "audio_config"),
    flat=False,
    text_ties=False,
    harmless=_SPEECH_KEYS,
)
QWEN2_5_OMNI = replace(
    QWEN2_5_OMNI_THINKER,
    model_types=("qwen2_5_omni",),
    prefixes={"thinker.model.": "thinker.", "thinker.model.language_model.": "thinker."},
    towers={**QWEN2_5_OMNI_THINKER.towers, "talker": "model of speech", "token2wav": "decoder of sound"},
    config="thinker_config.text_config",
    others=(*QWEN2_5_OMNI_THINKER.others, "talker_config", "token2wav_config"),
)
QWEN2_AUDIO = Wrapper(
    model_types=("qwen2_audio",),
    texts=("qwen2",),
    prefixes=_NESTED,
    towers=_AUDIO,
    others=("audio_config",),
    harmless=_IMAGE_KEYS,
)
VOXTRAL = replace(
    QWEN2_AUDIO,
    model_types=("voxtral",),
    texts=("llama",),
    assumed={
        "hidden_size": 3072,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e8,
    },
)

# The next two are the layouts of their authors' own code, which transformers has in another form.
INTERNVL_CHAT = replace(
    LLAVA,
    model_types=("internvl_chat",),
    texts=_QWEN2_LIKE,
    prefixes={"language_model.model.": "language_model."},
    towers={"vision_model": "vision tower", "mlp1": "projector"},
    config="llm_config",
    harmless=(
        *_IMAGE_KEYS,
        r"force_image_size|dynamic_image_size|(min|max)_dynamic_patch|use_thumbnail|pad2square|ps_version|select_layer",
        r"template|system_message|use_(backbone|llm)_lora",
    ),
)
_JANUS_PARTS = ("vision", "aligner", "gen_vision", "gen_aligner", "gen_head")
MULTI_MODALITY = replace(
    LLAVA,
    model_types=("multi_modality",),
    texts=("llama",),
    prefixes=INTERNVL_CHAT.prefixes,
    towers={
        "vision_model": "vision tower",
        "aligner": "projector",
        **dict.fromkeys(("gen_vision_model", "gen_aligner", "gen_head", "gen_embed"), "image generation"),
    },
    config="language_config",
    others=tuple(f"{part}_config" for part in _JANUS_PARTS),
)

WRAPPERS = (
    LLAVA,
    VIDEO_LLAVA,
    QWEN_LLAVA,
    MISTRAL3,
    PALIGEMMA,
    GEMMA3,
    IDEFICS,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN2_5_OMNI_THINKER,
    QWEN2_5_OMNI,
    QWEN2_AUDIO,
    VOXTRAL,
    INTERNVL_CHAT,
    MULTI_MODALITY,
)

_STACKED = "its experts are stored in one tensor"
_REFUSED: Mapping[str, str] = {
    "aya_vision": "its text model is a cohere2",
    "cohere2_vision": "its text model is a cohere2",
    "gemma3n": "it keeps several streams, and adds an embedding in every layer",
    "gemma4": "it adds an embedding in every layer",
    "glm4v": "its text model is a glm4",
    "glm4v_moe": "its text model is a glm4_moe",
    "llama4": f"{_STACKED}, and some layers have no positions",
    "mllama": "some of its layers read images alone",
    "phi4_multimodal": "its text model has adapters of its own for images and sound",
    "qwen3_omni_moe": _STACKED,
    "qwen3_vl_moe": _STACKED,
}
"""Multimodal models that are well known and not read, each with the reason."""

_LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "rms_norm_eps": 1e-6,
}
_QWEN2 = {**_LLAMA, "num_key_value_heads": 32, "intermediate_size": 22016}
_QWEN2_VL = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
    "rms_norm_eps": 1e-5,
    "max_window_layers": 80,
    "rope_theta": 1e6,
}
_GEMMA2 = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "rms_norm_eps": 1e-6,
}
_ASSUMED: Mapping[str, Mapping[str, object]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336},
    "qwen2": _QWEN2,
    "qwen3": {**_QWEN2, "head_dim": 128},
    "gemma": {
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "intermediate_size": 24576,
        "rms_norm_eps": 1e-6,
    },
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": {**_QWEN2, "head_dim": 128, "rope_theta": 5e5},
    "qwen2_5_omni_text": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "rms_norm_eps": 1e-6,
        "max_window_layers": 28,
        "rope_theta": 1e6,
    },
}
"""The values of keys that files leave out: inside a wrapper, transformers 4 writes none that are its defaults."""

_CARRIED = ("_name_or_path", "quantization_config", "id2label", "problem_type")
"""Keys of the wrapper that are about the text model as well."""

_TIE = "tie_word_embeddings"


def wrapper_of(files: ModelFiles) -> Wrapper | None:
    """Return the wrapper that files hold; None for a text model, and for a configuration that describes no other part.

    Raises:
        UnknownFamily: It is a wrapper that is not read; the message says why.
    """
    config = files.config
    name = config.get("model_type")
    if files.format == "gguf" or not isinstance(name, str):
        return None
    if name in _REFUSED:
        raise UnknownFamily(
            f"{files.place}: this is a {name}, a multimodal model whose text model is not read: {_REFUSED[name]}. "
            f"Known: {', '.join(sorted(name for wrapper in WRAPPERS for name in wrapper.model_types))}."
        )
    wrapper = next((wrapper for wrapper in WRAPPERS if name in wrapper.model_types), None)
    parts = () if wrapper is None else (wrapper.config.partition(".")[0], *wrapper.others)
    return wrapper if any(part in config for part in parts) else None


def text_files(files: ModelFiles, wrapper: Wrapper) -> ModelFiles:
    """Return the files of a wrapper with the configuration of its text model.

    Raises:
        BadModel: There is no such configuration.
        UnknownFamily: The text model is not one that is read inside this wrapper.
    """
    outer, text = _parts(files, wrapper)
    model_type = text.get("model_type", wrapper.texts[0])
    if model_type not in wrapper.texts:
        raise UnknownFamily(
            f"{files.place}: the text model inside this {files.config['model_type']} is {model_type!r}, which is not "
            f"read there. Known: {', '.join(wrapper.texts)}."
        )
    carried = {key: outer[key] for key in _CARRIED if outer.get(key)}
    tied = {_TIE: tie} if (tie := _tie(wrapper, outer.get(_TIE), text.get(_TIE))) is not None else {}
    assumed = {**_ASSUMED[model_type], **wrapper.assumed}
    config = {**assumed, **text, **carried, **tied, **wrapper.fixed, "model_type": model_type}
    return replace(files, config=config)


def _tie(wrapper: Wrapper, outer: object, text: object) -> object:
    """Return what the configurations of a wrapper and its text model say on the tie of E and U; None for nothing."""
    return text if outer is None or (outer is False and wrapper.text_ties and text is not None) else outer


def wrapper_files(files: ModelFiles, wrapper: Wrapper) -> ModelFiles:
    """Return the files of a wrapper with the keys of its configuration that describe none of its parts."""
    return replace(files, config=_parts(files, wrapper)[0])


def _parts(files: ModelFiles, wrapper: Wrapper) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys of a wrapper itself, and the configuration of its text model."""
    outer: dict[str, Any] = {}
    inner: Mapping[str, Any] = files.config
    for part in wrapper.config.split("."):
        rest = {key: value for key, value in inner.items() if key not in (part, *wrapper.others)}
        if part not in inner and wrapper.flat:
            return {}, {**rest, "model_type": wrapper.texts[0]}
        inner = inner.get(part)  # type: ignore[assignment]
        if not isinstance(inner, Mapping):
            raise BadModel(f"{files.place}: {wrapper.config} must be an object, that of the text model, not {inner!r}.")
        outer |= rest
    return outer, dict(inner)


def layouts_in(wrapper: Wrapper | None, layout: Layout) -> tuple[Layout, ...]:
    """Return the layouts that the layout of a text model has inside a wrapper, one for each generation of files."""
    if wrapper is None:
        return (layout,)
    return tuple(_layout_in(wrapper, layout, prefix, head) for prefix, head in wrapper.prefixes.items())


def _layout_in(wrapper: Wrapper, layout: Layout, prefix: str, head: str) -> Layout:
    """Return a text model's layout with a prefix of its tensors, and one of what stands outside of them."""

    def inside(name: str) -> str:
        return f"^{head}{name[1:]}" if name.startswith("^") else name

    def pattern_inside(pattern: str) -> str:
        return rf"\^{re.escape(head)}{pattern[2:]}" if pattern.startswith(r"\^") else pattern

    def stored_inside(stored: Stored) -> Stored:
        return replace(stored, name=inside(stored.name))

    return replace(
        layout,
        prefixes=(prefix,),
        tensors={what: stored_inside(stored) for what, stored in layout.tensors.items()},
        extra={what: (stored_inside(stored), side) for what, (stored, side) in layout.extra.items()},
        copies=tuple(map(inside, layout.copies)),
        head=inside(layout.head),
        unread=(*map(pattern_inside, layout.unread), rf"\^{_tower_pattern(wrapper)}"),
        harmless=(*layout.harmless, *wrapper.harmless),
    )


def _tower_pattern(wrapper: Wrapper) -> str:
    return rf"(?:(?:model|thinker|thinker\.model)\.)?(?P<inside>(?:{'|'.join(wrapper.towers)})(?:\..*)?)"


def tower_name(wrapper: Wrapper | None, name: str) -> str:
    """Return the name of a tensor inside the part of a wrapper that is not read; empty for one of the text model."""
    match = re.fullmatch(_tower_pattern(wrapper), name) if wrapper else None
    return match["inside"] if match else ""


def towers(wrapper: Wrapper | None, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the tensors of each part of a wrapper that is not read; an empty dict for a text model."""
    parts: dict[str, list[str]] = {tower: [] for tower in wrapper.towers} if wrapper else {}
    for name in names:
        if inside := tower_name(wrapper, name):
            parts[inside.partition(".")[0]].append(name)
    return {tower: tensors for tower, tensors in parts.items() if tensors}


def wrapper_notes(files: ModelFiles, wrapper: Wrapper, names: Iterable[str]) -> tuple[str, ...]:
    """Return what a user should know of a text model that is read inside a wrapper."""
    parts = ", ".join(f"{name} ({wrapper.towers[name]})" for name in towers(wrapper, names))
    unread = f"; not read: {parts}" if parts else ""
    return (f"This is the text model inside a model of type {files.config['model_type']}{unread}.", *wrapper.notes)
