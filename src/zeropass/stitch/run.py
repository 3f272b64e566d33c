"""Make a classifier from two models, judge it, and write it (Dar et al. 2023, §5; docs/stitching.md)."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from zeropass._io.atomic import claim_folder
from zeropass._io.progress import Progress, callback, shows_progress
from zeropass._io.short_repr import ShortRepr
from zeropass.diff.changes import Comparison
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.model.opening import ModelLike, open_model
from zeropass.model.paired_lenses import LENSES, LensChoice, paired_lens
from zeropass.model.translation import SEEN, Bridge, bridge
from zeropass.stitch.halves import load_classifier, padding, require_classifier, require_fed
from zeropass.stitch.results import Stitch, Try, Verdict
from zeropass.stitch.seam_choice import (
    FIRST,
    Trial,
    answers,
    bridge_at,
    chosen,
    first_try,
    measured,
    require_texts,
    trial_of,
    verdict,
)
from zeropass.stitch.stitched import Stitched, stitched
from zeropass.stitch.transplant import Transplant, put_level, transplant_of

__all__ = ["StitchOptions", "first_changed", "seams", "stitch_models", "transplant"]

_Classifier = TypeVar("_Classifier")

UNLIKE = 0.5
"""The relative change of an embedding that tuning does not reach; for models trained apart it is more than 1."""

DEPTHS = 6
"""Seams of the classifier that are tried, evenly spaced, if the first tuned block is unknown."""

STRENGTHS = (0.5, 1.0, 2.0, 4.0)
"""Factors of a transplanted change that are tried."""


@dataclass(frozen=True, repr=False)
class StitchOptions(ShortRepr):
    """Options for making a classifier from two models, stitched or transplanted.

    Attributes:
        kernel: The kernel of the translation; chosen, or the default, if None.
        frame: The rows that represent tokens: ``both``, ``token`` or ``paper``; likewise if None.
        texts: Texts without labels, from which parts are chosen and the accuracy is predicted.
        accuracy: The classifier's accuracy, from 0 to 1, if it is known.
        labels: Names of the answers that replace the classifier's own.
        seed: The seed of the shuffled tokens.
        lenses: The lens of the classifier, and that of the other model, as for `paired_lenses.paired_lens`; a
            transplant uses none. If ``base`` is given, that of the base serves below the first block that changed.

    Example:
        >>> import zeropass as zp
        >>> zp.StitchOptions(kernel="orthogonal", labels=("bad", "good")).labels
        ('bad', 'good')
    """

    kernel: str | None = None
    frame: str | None = None
    texts: Sequence[str] = ()
    accuracy: float | None = None
    labels: Sequence[str] = ()
    seed: int = 0
    lenses: tuple[LensChoice, LensChoice] = LENSES


NOT_CHECKED = Verdict(
    None,
    "Not checked: with --text FILE (a text a line, no labels) it chooses better, and says what to expect.",
)


@shows_progress
def stitch_models(
    classifier: ModelLike,
    onto: ModelLike,
    out: str | Path | None = None,
    *,
    base: ModelLike | None = None,
    keep: int | None = None,
    take: int | None = None,
    options: StitchOptions | None = None,
    progress: Progress | bool = True,
) -> tuple[Stitched, Stitch]:
    """Join the lower blocks of one model and the upper blocks and head of a classifier by a translation.

    Parts that are not given are chosen: by unlabelled texts if there are any (`seam_choice`), else by the vocabulary.

    Args:
        classifier: The fine-tuned classifier, or its name.
        onto: The model that was only pretrained, or its name.
        out: The folder to write; nothing is written if it is None.
        base: The model from which the classifier was tuned; if given, only blocks that changed are taken.
        keep: The number of lower blocks of ``onto`` to keep.
        take: The number of upper blocks of ``classifier`` to take.
        options: See `StitchOptions`.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        The model, and the record of its parts with the verdict on it.

    Raises:
        BadOption: The parts do not fit, or the folder holds something else.
        BadLens: A lens belongs to another model, or cannot be read.

    Example:
        >>> import zeropass as zp
        >>> tuned = zp.adapt(zp.open_model("models/first"), "models/tunes/reviews")
        >>> stitched, record = zp.stitch_models(tuned, zp.open_model("models/second"), keep=2, take=2)
        >>> type(stitched).__name__, record.choice.kernel, record.verdict.trusted
        ('Stitched', 'orthogonal', None)
    """
    report = callback(progress)
    classifier, onto, base = open_model(classifier), open_model(onto), None if base is None else open_model(base)
    out = None if out is None else Path(out)
    options = options or StitchOptions()
    texts = options.texts
    _require(classifier, onto, options.labels)
    if out is not None:
        claim_folder(out, "a stitched model", ("stitch.json",))
    first, notes = (first_changed(base, classifier), []) if base else (None, [])
    if first == 0:
        notes.append("Fine-tuning changed every block: those that are not taken are lost.")
    candidates = seams(classifier, onto, keep, take, first)
    below = base if base is not None and _unchanged_below(classifier, candidates, first) else classifier
    lenses = [paired_lens(model, lens) for model, lens in zip((below, onto), options.lenses, strict=True)]
    to_classifier = bridge(onto, classifier, (lenses[1], lenses[0]))
    if texts:
        trial = trial_of(classifier, to_classifier, texts, options.accuracy, report, {keep for keep, _ in candidates})
        tries = chosen(trial, candidates, options.kernel, options.frame, report)
        model, judgement = _finished(trial, tries[0], options.seed, report)
    else:
        tries = (_by_vocabulary(to_classifier, candidates, options.kernel, options.frame),)
        choice = tries[0]
        translation = bridge_at(choice, to_classifier).translation(choice.kernel, choice.frame)
        model, judgement = stitched(classifier, onto, choice.keep, choice.take, translation), NOT_CHECKED
    labels = _labels(model, options.labels)
    record = _record("stitch", (classifier, onto), to_classifier, tries, judgement, len(texts), labels)
    return _write_if_asked(model, onto, replace(record, notes=tuple(notes)), out)


@shows_progress
def transplant(
    classifier: ModelLike,
    onto: ModelLike,
    base: ModelLike,
    out: str | Path | None = None,
    *,
    strength: float | None = None,
    options: StitchOptions | None = None,
    progress: Progress | bool = True,
) -> tuple[Any, Stitch]:
    """Put the change that tuning made from ``base`` to ``classifier`` into the blocks of ``onto``, with the head.

    Args:
        classifier: The fine-tuned classifier, or its name.
        onto: The model that was only pretrained, or its name.
        base: The model from which the classifier was tuned.
        out: The folder to write; nothing is written if it is None.
        strength: The factor of the change. If it is None, unlabelled texts choose it; without texts it is 1.
        options: See `StitchOptions`.
        progress: True for a bar in a notebook or on a terminal, False for none; or a function that is called with the
            stage, the step and the number of steps.

    Returns:
        An ordinary checkpoint of ``onto``'s architecture, and the record of it.

    Raises:
        BadOption: The parts do not fit, or the folder holds something else.

    Example:
        >>> import zeropass as zp
        >>> base, onto = zp.open_model("models/first"), zp.open_model("models/second")
        >>> model, record = zp.transplant(zp.adapt(base, "models/tunes/reviews"), onto, base)
        >>> type(model).__name__, record.layers
        ('LlamaForSequenceClassification', ((2, 2), (3, 3)))
    """
    report = callback(progress)
    classifier, onto, base = open_model(classifier), open_model(onto), open_model(base)
    out = None if out is None else Path(out)
    options = options or StitchOptions()
    texts = options.texts
    _require(classifier, onto, options.labels)
    if out is not None:
        claim_folder(out, "a stitched model", ("stitch.json",))
    plan = transplant_of(
        base,
        classifier,
        onto,
        first_changed(base, classifier),
        options.kernel or FIRST[0],
        options.frame or FIRST[1],
        report,
    )
    strengths = (strength,) if strength is not None else STRENGTHS if texts else (1.0,)
    choice = Try(keep=onto.dims.layers, take=len(plan.layers), kernel=plan.kernel, frame=plan.frame)
    if texts:
        model, tries, judgement = _best_strength(plan, choice, strengths, options, report)
    else:
        tries = (replace(choice, strength=strengths[0]),)
        model, judgement = plan.classifier(strengths[0]), NOT_CHECKED
    labels = _labels(model, options.labels)
    record = _record("transplant", (classifier, onto), plan.bridge, tries, judgement, len(texts), labels)
    layers = tuple((moved.first, moved.second) for moved in plan.layers)
    return _write_if_asked(model, onto, replace(record, notes=plan.notes, layers=layers), out)


def first_changed(base: Model, tuned: Model) -> int:
    """Return the first block that fine-tuning changed.

    Raises:
        BadModel: The models cannot be compared.
        BadOption: One was not tuned from the other, or no block differs.
    """
    comparison = Comparison(base, tuned)
    before, after = base.embedding, tuned.embedding
    if before.shape == after.shape and float((after - before).norm()) > UNLIKE * float(before.norm()):
        raise BadOption(f"{tuned.name} was not tuned from {base.name}: their embeddings have little in common.")
    vectors = [f"{role}_bias" for role in comparison.roles]
    vectors += [f"{site}_norm{part}" for site in ("attn", "ff") for part in ("", "_bias")]
    for layer in range(base.dims.layers):
        if any(comparison.differs(name, layer) for name in (*comparison.roles, *vectors)):
            return layer
    raise BadOption(f"{tuned.name} has the blocks of {base.name}: nothing was fine-tuned but, perhaps, the head.")


def _require(classifier: Model, onto: Model, labels: Sequence[str]) -> None:
    require_fed(classifier, "The classifier")
    require_fed(onto, "The model to stitch onto,")
    require_classifier(classifier)
    if labels and len(labels) != classifier.rows("classifier"):
        raise BadOption(
            f"--labels must name the {classifier.rows('classifier')} labels of {classifier.name}; it has {len(labels)}."
        )
    if classifier.family.norm_place != onto.family.norm_place:
        raise BadOption(
            f"{classifier.name} ({classifier.family.name}) and {onto.name} ({onto.family.name}) do not fit: the head "
            "of an encoder reads the first token, that of a causal model the last one."
        )


def seams(
    classifier: Model, onto: Model, keep: int | None, take: int | None, first: int | None
) -> list[tuple[int, int]]:
    """Return the depths to try: seams of the classifier, each with the depths of ``onto`` around the same height.

    Args:
        classifier: The fine-tuned classifier, or its name.
        onto: The model that was only pretrained, or its name.
        keep: The number of lower blocks, if it is given.
        take: The number of upper blocks, if it is given.
        first: The first block that fine-tuning changed, if it is known: then only the seam below it is tried.

    Returns:
        Depths (keep, take).

    Raises:
        BadOption: A model does not have as many layers.
    """
    above, below = classifier.dims.layers, onto.dims.layers
    for option, value, most in (("--keep", keep, below), ("--take", take, above)):
        if value is not None and not 0 <= value <= most:
            model = onto if option == "--keep" else classifier
            raise BadOption(f"{option} is {value}; {model.name} has {most} layers, so it is from 0 to {most}.")
    possible = range(1, above) or range(above, above + 1)
    spaced = [possible[n * len(possible) // DEPTHS] for n in range(DEPTHS)] if len(possible) > DEPTHS else possible
    takes: Iterable[int] = [take] if take is not None else [above - first] if first else spaced
    depths = []
    for m in takes:
        same_depth = round((above - m) / above * below)
        around = (same_depth - 1, same_depth, same_depth + 1)
        keeps = [keep] if keep is not None else [n for n in around if 1 <= n <= below]
        depths += [(n, m) for n in keeps]
    return depths


def _by_vocabulary(
    to_classifier: Bridge, candidates: list[tuple[int, int]], kernel: str | None, frame: str | None
) -> Try:
    """Return the middle of the depths, in the kernel and frame that are best overall (docs/stitching.md)."""
    choice = first_try(to_classifier, *candidates[len(candidates) // 2], kernel, frame)
    return replace(choice, fit=bridge_at(choice, to_classifier).fit(choice.kernel, choice.frame))


def _unchanged_below(classifier: Model, candidates: list[tuple[int, int]], first: int | None) -> bool:
    """Tell whether all seams lie below the first block that changed, where states are those of the base."""
    return first is not None and all(classifier.dims.layers - take <= first for _, take in candidates)


def _finished(trial: Trial, choice: Try, seed: int, progress: Progress) -> tuple[Stitched, Verdict]:
    """Return the model of a choice, scaled and levelled, and the verdict on it."""
    translation = trial.fitted(choice)
    level = trial.own.level(trial.logits(choice, translation))
    judgement = trial.verdict(choice, seed, progress)
    onto = trial.bridge.first.model
    return stitched(trial.classifier, onto, choice.keep, choice.take, translation, level), judgement


def _best_strength(
    plan: Transplant, choice: Try, strengths: Sequence[float], options: StitchOptions, progress: Progress
) -> tuple[Any, tuple[Try, ...], Verdict]:
    """Return the model with the highest expected accuracy, all tries with the best first, and the verdict."""
    texts = options.texts
    own = answers(load_classifier(plan.tuned), plan.tuned, require_texts(texts))
    probabilities = own.chances(options.accuracy)

    def levelled(source: Transplant, strength: float) -> tuple[Any, Tensor]:
        model = source.classifier(strength)
        model_answers = answers(model, plan.onto, texts)
        level = own.level(model_answers.logits)
        put_level(model, level, model_answers.read)
        return model, model_answers.logits + level

    tries: list[tuple[Try, Any]] = []
    for n, strength in enumerate(strengths):
        progress("strengths", n, len(strengths))
        model, logits = levelled(plan, strength)
        tries.append((measured(replace(choice, strength=strength), logits, own.logits, probabilities), model))
    tries.sort(key=lambda candidate: -(candidate[0].expected or 0))
    best, model = tries[0]

    def null_logits(n: int) -> Tensor:
        return levelled(plan.null(n), best.strength or 0.0)[1]

    judgement = verdict(best, own, probabilities, null_logits, options.seed, progress)
    return model, tuple(tried for tried, _ in tries), judgement


def _record(
    command: str,
    models: tuple[Model, Model],
    to_classifier: Bridge,
    tries: tuple[Try, ...],
    judgement: Verdict,
    texts: int,
    labels: tuple[str, ...],
) -> Stitch:
    """Return the record of a model that was made from a classifier and another model as in the first of the tries."""
    classifier, onto = map(_facts, models)
    shared = {"tokens": len(to_classifier.shared), "of": list(to_classifier.shared.sizes)}
    return Stitch(
        kind=command,
        classifier=classifier,
        onto=onto,
        shared=shared,
        choice=tries[0],
        tries=tries,
        verdict=judgement,
        texts=texts,
        labels=labels,
        lenses=_lens_words(to_classifier),
    )


def _lens_words(to_classifier: Bridge) -> tuple[str, ...]:
    """Return the lenses of the classifier and of the other model in words; none if tokens are not seen through both."""
    if SEEN not in to_classifier.frames:
        return ()
    return tuple(frames.require_lens(SEEN).facts.words for frames in (to_classifier.second, to_classifier.first))


def _write_if_asked(model: _Classifier, onto: Model, record: Stitch, out: Path | None) -> tuple[_Classifier, Stitch]:
    """Return the model and its record, and write them if there is a folder to write."""
    if out is not None:
        _write(model, onto, record, out)
    return model, record


def _labels(model: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of a model, after giving them the names if there are any."""
    if names:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: n for n, name in enumerate(names)}
    return tuple(str(model.config.id2label[n]) for n in range(model.config.num_labels))


def _facts(model: Model) -> dict[str, Any]:
    return {"name": model.name, "family": model.family.name, "layers": model.dims.layers, "sha256": model.fingerprint}


def _write(model: Any, onto: Model, record: Stitch, out: Path) -> None:
    """Write the folder completely or not at all: under another name, and rename it at the end."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        pad = onto.vocab.pieces[padding(onto)]
        settings = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
        settings |= {"architectures": [type(model).__name__], "dtype": "float32"}
        (part / "config.json").write_text(json.dumps(settings, default=str, indent=1) + "\n", encoding="utf-8")
        (part / "tokenizer.json").write_text(onto.vocab.to_tokenizer_json(), encoding="utf-8")
        (part / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad}) + "\n", encoding="utf-8"
        )
        (part / "stitch.json").write_text(json.dumps(record.to_json(), allow_nan=False) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        part.replace(out)
    except OSError as error:
        raise BadOption(f"{out} could not be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
