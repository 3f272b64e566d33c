"""Make a classifier of two models, say how far to believe it, and write it (Dar et al. 2023, §5; docs/stitching.md)."""

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
from zeropass._io.progress import Progress, silent
from zeropass.diff.changes import Comparison
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.model.translation import Bridge, bridge
from zeropass.stitch.halves import load_classifier, padding, require_classifier, require_fed
from zeropass.stitch.results import Stitch, Try, Verdict
from zeropass.stitch.seam_choice import (
    FIRST,
    Trial,
    answers,
    chosen,
    measured,
    require_texts,
    trial_of,
    verdict,
)
from zeropass.stitch.stitched import Stitched, stitched
from zeropass.stitch.transplant import Transplant, put_level, transplant_of

__all__ = ["StitchOptions", "first_changed", "seams", "stitch_models", "transplant"]

_Made = TypeVar("_Made")

UNLIKE = 0.5
"""Tuning does not move an embedding by so much of its length; models trained apart differ by more than all of it."""

DEPTHS = 6
"""Seams of the classifier that are tried, evenly spaced, where it is not known from which block on it was tuned."""

STRENGTHS = (0.5, 1.0, 2.0, 4.0)
"""What a transplanted change is multiplied by."""


@dataclass(frozen=True)
class StitchOptions:
    """How a classifier is made of two models, whether it is stitched or transplanted.

    Attributes:
        kernel: How streams are translated; the usual one if not given.
        frame: What stands for a token: ``both``, ``token`` or ``paper``; the usual one if not given.
        texts: Texts without labels, to choose by and to say what to expect.
        accuracy: What the classifier is known to have, from 0 to 1.
        labels: Names for its answers, in place of its own.
        seed: Of the shuffled tokens.
    """

    kernel: str | None = None
    frame: str | None = None
    texts: Sequence[str] = ()
    accuracy: float | None = None
    labels: Sequence[str] = ()
    seed: int = 0


NOT_CHECKED = Verdict(
    None,
    "Not checked: with --text FILE (a text a line, no labels) it chooses better, and says what to expect.",
)


def stitch_models(
    classifier: Model,
    onto: Model,
    out: Path | None = None,
    *,
    base: Model | None = None,
    keep: int | None = None,
    take: int | None = None,
    options: StitchOptions | None = None,
    progress: Progress = silent,
) -> tuple[Stitched, Stitch]:
    """Join the lower blocks of one model and the upper blocks and head of a classifier by a translation.

    What is not given is chosen: by unlabelled texts where there are some (`seam_choice`), else by the vocabulary.

    Args:
        classifier: The fine-tuned classifier.
        onto: The model that was only pretrained.
        out: The folder to write; nothing is written if not given.
        base: What the classifier was tuned from: only blocks that changed are taken.
        keep: How many lower blocks of ``onto`` to keep.
        take: How many upper blocks of ``classifier`` to take.
        options: See `StitchOptions`.
        progress: Is called as the work goes on.

    Returns:
        The model, and the record of what it is made of and how far to believe it.

    Raises:
        BadOption: For parts that do not fit, or a folder that holds something else.
    """
    options = options or StitchOptions()
    texts = options.texts
    _require(classifier, onto, options.labels)
    if out is not None:
        claim_folder(out, "a stitched model", ("stitch.json",))
    found = bridge(onto, classifier)
    first, notes = (first_changed(base, classifier), []) if base else (None, [])
    if first == 0:
        notes.append("Fine-tuning changed every block: those that are not taken are lost.")
    candidates = seams(classifier, onto, keep, take, first)
    if texts:
        trial = trial_of(classifier, found, texts, options.accuracy, progress, {keep for keep, _ in candidates})
        tries = chosen(trial, candidates, options.kernel, options.frame, progress)
        made, told = _finished(trial, tries[0], options.seed, progress)
    else:
        tries = (_by_vocabulary(found, candidates, options.kernel, options.frame),)
        choice = tries[0]
        translation = found.translation(choice.kernel, choice.frame)
        made, told = stitched(classifier, onto, choice.keep, choice.take, translation), NOT_CHECKED
    record = _record("stitch", (classifier, onto), found, tries, told, len(texts), _labels(made, options.labels))
    return _kept(made, onto, replace(record, notes=tuple(notes)), out)


def transplant(
    classifier: Model,
    onto: Model,
    base: Model,
    out: Path | None = None,
    *,
    strength: float | None = None,
    options: StitchOptions | None = None,
    progress: Progress = silent,
) -> tuple[Any, Stitch]:
    """Put what tuning changed from ``base`` to ``classifier`` into the blocks of ``onto``, with the head.

    Args:
        classifier: The fine-tuned classifier.
        onto: The model that was only pretrained.
        base: What the classifier was tuned from.
        out: The folder to write; nothing is written if not given.
        strength: What the change is multiplied by. If not given it is chosen by unlabelled texts, or 1 without any.
        options: See `StitchOptions`.
        progress: Is called as the work goes on.

    Returns:
        An ordinary checkpoint of ``onto``'s architecture, and the record of it.

    Raises:
        BadOption: For parts that do not fit, or a folder that holds something else.
    """
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
        progress,
    )
    strengths = (strength,) if strength is not None else STRENGTHS if texts else (1.0,)
    choice = Try(onto.dims.layers, len(plan.layers), plan.kernel, plan.frame)
    if texts:
        made, tries, told = _best_strength(plan, choice, strengths, options, progress)
    else:
        tries = (replace(choice, strength=strengths[0]),)
        made, told = plan.classifier(strengths[0]), NOT_CHECKED
    record = _record(
        "transplant", (classifier, onto), plan.bridge, tries, told, len(texts), _labels(made, options.labels)
    )
    layers = tuple((one.first, one.second) for one in plan.layers)
    return _kept(made, onto, replace(record, notes=plan.notes, layers=layers), out)


def first_changed(base: Model, tuned: Model) -> int:
    """The first block that fine-tuning changed; BadModel for two models that are no base and its tune.

    BadOption if no block differs.
    """
    compared = Comparison(base, tuned)
    before, after = base.embedding, tuned.embedding
    if before.shape == after.shape and float((after - before).norm()) > UNLIKE * float(before.norm()):
        raise BadOption(f"{tuned.name} was not tuned from {base.name}: their embeddings have little in common.")
    vectors = [f"{role}_bias" for role in compared.roles]
    vectors += [f"{site}_norm{part}" for site in ("attn", "ff") for part in ("", "_bias")]
    for layer in range(base.dims.layers):
        if any(compared.differs(what, layer) for what in (*compared.roles, *vectors)):
            return layer
    raise BadOption(f"{tuned.name} has the blocks of {base.name}: nothing was fine-tuned but, perhaps, the head.")


def _require(classifier: Model, onto: Model, labels: Sequence[str]) -> None:
    require_fed(classifier, "The classifier")
    require_fed(onto, "The model to stitch onto,")
    require_classifier(classifier)
    if labels and len(labels) != classifier.rows("classifier"):
        raise BadOption(f"--labels are {len(labels)}; {classifier.name} has {classifier.rows('classifier')}.")
    if classifier.family.norm_place != onto.family.norm_place:
        raise BadOption(
            f"{classifier.name} ({classifier.family.name}) and {onto.name} ({onto.family.name}) do not fit: the head "
            "of an encoder reads the first token, that of a causal model the last one."
        )


def seams(
    classifier: Model, onto: Model, keep: int | None, take: int | None, first: int | None
) -> list[tuple[int, int]]:
    """Depths (keep, take) to try: seams of the classifier, each with the like depth of the other and its neighbours.

    Only the seam below the ``first`` block that fine-tuning changed, where that is known.
    """
    above, below = classifier.dims.layers, onto.dims.layers
    for name, value, most in (("--keep", keep, below), ("--take", take, above)):
        if value is not None and not 0 <= value <= most:
            model = onto if name == "--keep" else classifier
            raise BadOption(f"{name} is {value}; {model.name} has {most} layers, so it is from 0 to {most}.")
    every = range(1, above) or range(above, above + 1)
    spaced = [every[n * len(every) // DEPTHS] for n in range(DEPTHS)] if len(every) > DEPTHS else every
    takes: Iterable[int] = [take] if take is not None else [above - first] if first else spaced
    found = []
    for m in takes:
        like = round((above - m) / above * below)
        keeps = [keep] if keep is not None else [n for n in (like - 1, like, like + 1) if 1 <= n <= below]
        found += [(n, m) for n in keeps]
    return found


def _by_vocabulary(found: Bridge, candidates: list[tuple[int, int]], kernel: str | None, frame: str | None) -> Try:
    """The middle of the depths, in the kernel and frame that do best on the whole (docs/stitching.md)."""
    keep, take = candidates[len(candidates) // 2]
    kernel, frame = kernel or FIRST[0], frame or FIRST[1]
    return Try(keep, take, kernel, frame, fit=found.fit(kernel, frame))


def _finished(trial: Trial, choice: Try, seed: int, progress: Progress) -> tuple[Stitched, Verdict]:
    """The model of a choice, scaled and levelled, and the verdict on it."""
    translation = trial.fitted(choice)
    level = trial.own.level(trial.logits(choice, translation))
    told = trial.verdict(choice, seed, progress)
    onto = trial.bridge.first.model
    return stitched(trial.classifier, onto, choice.keep, choice.take, translation, level), told


def _best_strength(
    plan: Transplant, choice: Try, strengths: Sequence[float], options: StitchOptions, progress: Progress
) -> tuple[Any, tuple[Try, ...], Verdict]:
    """Return the model of the strength that is expected to be right most often, all that were tried, and a verdict."""
    texts = options.texts
    own = answers(load_classifier(plan.tuned), plan.tuned, require_texts(texts))
    chances = own.chances(options.accuracy)

    def levelled(source: Transplant, one: float) -> tuple[Any, Tensor]:
        made = source.classifier(one)
        said = answers(made, plan.onto, texts)
        level = own.level(said.logits)
        put_level(made, level, said.read)
        return made, said.logits + level

    found: list[tuple[Try, Any]] = []
    for n, one in enumerate(strengths):
        progress("strengths", n, len(strengths))
        made, logits = levelled(plan, one)
        found.append((measured(replace(choice, strength=one), logits, own.logits, chances), made))
    found.sort(key=lambda each: -(each[0].expected or 0))
    best, made = found[0]

    def wrong(n: int) -> Tensor:
        return levelled(plan.null(n), best.strength or 0.0)[1]

    told = verdict(best, own, chances, wrong, options.seed, progress)
    return made, tuple(one for one, _ in found), told


def _record(
    kind: str,
    models: tuple[Model, Model],
    found: Bridge,
    tries: tuple[Try, ...],
    told: Verdict,
    texts: int,
    labels: tuple[str, ...],
) -> Stitch:
    """What was made of a classifier and another model; the best of what was tried is what was made."""
    classifier, onto = map(_named, models)
    shared = {"tokens": len(found.shared), "of": list(found.shared.sizes)}
    return Stitch(kind, classifier, onto, shared, tries[0], tries, told, texts, labels=labels)


def _kept(made: _Made, onto: Model, record: Stitch, out: Path | None) -> tuple[_Made, Stitch]:
    """What was made, written where that is asked for."""
    if out is not None:
        _write(made, onto, record, out)
    return made, record


def _labels(made: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The labels of a model, by the names given if any are."""
    if names:
        made.config.id2label = dict(enumerate(names))
        made.config.label2id = {name: n for n, name in enumerate(names)}
    return tuple(str(made.config.id2label[n]) for n in range(made.config.num_labels))


def _named(model: Model) -> dict[str, Any]:
    return {"name": model.name, "family": model.family.name, "layers": model.dims.layers, "sha256": model.fingerprint}


def _write(made: Any, onto: Model, record: Stitch, out: Path) -> None:
    """The folder, whole or not at all: made beside, then renamed."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        kept = {name: tensor.detach().contiguous().cpu() for name, tensor in made.state_dict().items()}
        save_file(kept, part / "model.safetensors", metadata={"format": "pt"})
        pad = onto.vocab.pieces[padding(onto)]
        settings = {k: v for k, v in made.config.to_dict().items() if k != "quantization_config"}
        settings |= {"architectures": [type(made).__name__], "dtype": "float32"}
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
