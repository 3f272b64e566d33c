"""The stitched classifier, one model of transformers made from two, and the folder that holds it.

    model = zeropass.load_stitched("DIR")

It is a ``PreTrainedModel``: ``model(input_ids=…, attention_mask=…).logits`` works as usual. After the import,
``AutoModelForSequenceClassification.from_pretrained("DIR")`` returns the same.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zeropass._io.parse import load_json
from zeropass.arch.families import FAMILIES
from zeropass.arch.spec import Family
from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.errors import BadOption, CannotRun, ZeropassError
from zeropass.model.loading import quiet, transformers
from zeropass.model.model import Model
from zeropass.model.translation import Translation
from zeropass.numerics.projection import restored
from zeropass.stitch.halves import FED, LONGEST, Lower, Upper, load_classifier, load_lower

__all__ = ["Seam", "Stitched", "StitchedConfig", "classify", "load_stitched", "seam_norm", "stitched"]


class Seam(nn.Module):
    """The map ``x W + b``, followed for a post-norm reader by the norm that is below it in its own model."""

    def __init__(self, widths: tuple[int, int], eps: float | None) -> None:
        super().__init__()
        self.weight: nn.Parameter = nn.Parameter(torch.zeros(widths))
        self.bias: nn.Parameter = nn.Parameter(torch.zeros(widths[1]))
        self.eps = eps
        if eps is not None:
            self.gain: nn.Parameter = nn.Parameter(torch.ones(widths[1]))
            self.shift: nn.Parameter = nn.Parameter(torch.zeros(widths[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map states (…, d₁) of the lower model to states (…, d₂) of the upper one."""
        x = x @ self.weight + self.bias
        return x if self.eps is None else restored(x, "layer", self.eps, self.gain, self.shift)


class StitchedConfig(transformers.PretrainedConfig):  # type: ignore[no-untyped-call]
    """The configurations of both halves, each with the number of layers that the half has."""

    model_type = "zeropass-stitched"

    def __init__(
        self,
        lower: dict[str, Any] | None = None,
        upper: dict[str, Any] | None = None,
        renormed: float | None = None,
        **others: Any,
    ) -> None:
        self.lower: dict[str, Any] = lower or {}
        self.upper: dict[str, Any] = upper or {}
        self.renormed: float | None = renormed
        super().__init__(**others)


class Stitched(transformers.PreTrainedModel):  # type: ignore[no-untyped-call]
    """Lower blocks of one model, a seam, upper blocks and head of another, and constants that level the logits."""

    config_class: type[StitchedConfig] = StitchedConfig
    base_model_prefix = ""

    def __init__(self, config: StitchedConfig, lower: Lower | None = None, upper: Upper | None = None) -> None:
        super().__init__(config)
        settings: Any = transformers.AutoConfig
        below, above = (settings.for_model(**half) for half in (config.lower, config.upper))
        plain: Any = transformers.AutoModel
        headed: Any = transformers.AutoModelForSequenceClassification
        self.lower: Lower = lower or Lower(plain.from_config(below), _family(below))
        self.upper: Upper = upper or Upper(headed.from_config(above), _family(above))
        self.seam: Seam = Seam((below.hidden_size, above.hidden_size), config.renormed)
        self.level: nn.Parameter = nn.Parameter(torch.zeros(above.num_labels))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_others: Any,
    ) -> Any:
        """Return logits (batch, labels) for token ids (batch, tokens), with a loss if labels are given."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.seam(self.lower(input_ids, mask, token_type_ids))
        logits = self.upper(states, mask) + self.level
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: every weight is read."""


transformers.AutoConfig.register(StitchedConfig.model_type, StitchedConfig, exist_ok=True)
transformers.AutoModelForSequenceClassification.register(StitchedConfig, Stitched, exist_ok=True)


def stitched(
    classifier: Model, onto: Model, keep: int, take: int, translation: Translation, level: Tensor | None = None
) -> Stitched:
    """Join the first blocks of one model, a translation, the last blocks of a classifier and its head.

    Args:
        classifier: The classifier.
        onto: The model of the lower blocks.
        keep: The number of lower blocks.
        take: The number of upper blocks.
        translation: The translation from ``onto`` to the classifier.
        level: Constants to add to the logits, (labels,).
    """
    lower = Lower(load_lower(onto), onto.family, keep)
    upper = Upper(load_classifier(classifier), classifier.family, take)
    norm = seam_norm(classifier, take)
    above = upper.classifier.config
    config = StitchedConfig(
        lower=lower.base.config.to_dict(),
        upper=above.to_dict(),
        renormed=classifier.dims.eps if norm else None,
        id2label=above.id2label,
        label2id=above.label2id,
    )
    model = Stitched(config, lower, upper)
    with torch.no_grad():
        model.seam.weight.copy_(translation.weight)
        model.seam.bias.copy_(translation.bias)
        if level is not None:
            model.level.copy_(level)
        if norm:
            model.seam.gain.copy_(norm[0])
            model.seam.shift.copy_(norm[1])
    model.train(False)
    untyped: Any = model
    untyped.to(classifier.device)
    return model


def seam_norm(classifier: Model, take: int) -> tuple[Tensor, Tensor] | None:
    """Return the gain and shift of the norm below the last ``take`` blocks; None in a pre-norm family."""
    if classifier.family.norm_place == "pre":
        return None
    below = classifier.dims.layers - take - 1
    name = "ff_norm" if below >= 0 else "embed_norm"
    gain, shift = (classifier.vector(f"{name}{part}", max(below, 0)) for part in ("", "_bias"))
    if gain is None or shift is None:
        raise BadOption(f"{classifier.name} has no {name} to put at the seam.")
    return gain, shift


def load_stitched(folder: str | Path, device: str = "cpu") -> Any:
    """Load a classifier that `zeropass stitch` wrote, as a model of transformers.

    Args:
        folder: The folder.
        device: The device of the model.

    Returns:
        A `Stitched`, or after a transplant a model of an ordinary class.

    Raises:
        CannotRun: The folder holds something else; the message names it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> tuned = zp.adapt(zp.open_model("models/first"), "models/tunes/reviews")
        >>> with TemporaryDirectory() as folder:
        ...     stitched, record = zp.stitch_models(tuned, zp.open_model("models/second"), folder, keep=2, take=2)
        ...     zp.load_stitched(folder).config.num_labels
        2
    """
    path = Path(folder)
    if not (path / "stitch.json").is_file():
        raise CannotRun(f"{path} does not hold a stitched model: there is no stitch.json.")
    auto_class: Any = transformers.AutoModelForSequenceClassification
    with _holding(path):
        _require_sizes(path, auto_class)
        model, loading_info = auto_class.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if unread := sorted(str(tensor) for name in _UNREAD for tensor in loading_info.get(name) or ()):
            raise ValueError(f"its weights do not fit its configuration, {unread[0]} for one")
        return model.eval().to(device)


_UNREAD = ("missing_keys", "mismatched_keys", "unexpected_keys")
"""Keys of the loading info for tensors that were initialised or ignored. Transformers only warns of them."""


def _widest(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the longest side of any tensor."""
    return max((max(shape, default=0) for shape in shapes), default=0)


def _require_sizes(path: Path, auto_class: Any) -> None:
    """Raise ValueError if the configuration describes a model larger than the weights, before memory is allocated.

    Counts of repeated modules are checked first, then the total size, on tensors without memory.
    """
    source = SafetensorsSource(sorted(path.glob("*.safetensors")))
    shapes = [source.shape(name) for name in source.names()]
    settings = load_json(path / "config.json")
    for part in (settings, *(settings.get(name) for name in ("lower", "upper"))):
        for name, most in _LOOPS.items():
            count = part.get(name) if isinstance(part, dict) else None
            if isinstance(count, int) and count > most(shapes):
                raise ValueError(f"the {name} of its configuration is more than its weights have room for")
    stored = sum(map(math.prod, shapes))
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    with torch.device("meta"):
        described = sum(parameter.numel() for parameter in auto_class.from_config(config).parameters())
    if described > stored:
        raise ValueError(f"its configuration is that of a model of {described} numbers, its weights have {stored}")


_LOOPS = {"num_hidden_layers": len, "n_layer": len, "num_labels": _widest, "_num_labels": _widest}
"""Settings that count repeated modules, each with its upper bound as a function of the tensors' shapes."""


@contextmanager
def _holding(path: Path) -> Iterator[None]:
    """Raise CannotRun, naming the folder, for any error that damaged files cause in transformers and tokenizers.

    Panics of Rust are among them, which are no subclass of Exception.
    """
    try:
        with quiet():
            yield
    except (ZeropassError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CannotRun(f"{path} does not hold a stitched model: {reason[0]}") from error


def classify(folder: str | Path, texts: Sequence[str], device: str = "cpu") -> list[dict[str, float]]:
    """Classify texts with a model that `zeropass stitch` wrote.

    Args:
        folder: The folder of the model.
        texts: The texts.
        device: The device to run on.

    Returns:
        For each text the probability of each label, by its name.

    Raises:
        BadOption: A text has no token.
        CannotRun: The folder holds something else.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import zeropass as zp
        >>> tuned = zp.adapt(zp.open_model("models/first"), "models/tunes/reviews")
        >>> onto, options = zp.open_model("models/second"), zp.StitchOptions(labels=("negative", "positive"))
        >>> with TemporaryDirectory() as folder:
        ...     stitched, record = zp.stitch_models(tuned, onto, folder, keep=2, options=options)
        ...     probabilities = zp.classify(folder, ["A wonderful film, full of joy.", "A dull film. I hated it."])
        >>> [max(text, key=text.get) for text in probabilities]
        ['positive', 'negative']
    """
    model = load_stitched(folder, device)
    results = []
    with _holding(Path(folder)), torch.inference_mode():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        names = [str(model.config.id2label[n]) for n in range(model.config.num_labels)]
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")["input_ids"].long()
            if ids.shape[1] == 0:
                raise BadOption(f"The text {text!r} has no token of {folder}.")
            ids = ids.to(device)
            probabilities = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].softmax(-1)
            results.append(dict(zip(names, probabilities.tolist(), strict=True)))
    return results


def _family(config: Any) -> Family:
    for family in FAMILIES:
        if config.model_type in family.model_types and family.name in FED:
            return family
    raise ValueError(f"half of it is a {config.model_type!r}, which is none of {', '.join(FED)}")
