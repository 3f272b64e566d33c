"""The choice of a seam without labels: the seams that are tried, and the measures that rank them.

The classifier itself can be run, so its own answers to unlabelled texts are known. The expected accuracy of a stitch is
the mean probability p(answer | text) that the classifier gives to the stitch's answers. That is calibration by
agreement, weighted by the classifier's confidence. Where its accuracy is known, one temperature first brings its mean
confidence to that accuracy (Guo et al. 2017, with a mean instead of labels).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zeropass._io.progress import Progress, silent
from zeropass.errors import BadOption
from zeropass.model.model import Model
from zeropass.model.translation import KERNELS, SEEN, Bridge, Translation
from zeropass.numerics.projection import restored
from zeropass.stitch.halves import Lower, Upper, batches, head_of, load_classifier, load_lower
from zeropass.stitch.results import Try, Verdict, judged
from zeropass.stitch.stitched import seam_norm

__all__ = [
    "LEAST",
    "Answers",
    "Trial",
    "answers",
    "bridge_at",
    "chosen",
    "depths",
    "expected",
    "first_try",
    "measured",
    "require_texts",
    "trial_of",
    "verdict",
]

Batch = tuple[Tensor, dict[int, Tensor], Tensor]
"""The places of some texts, their states (texts, tokens, d) by the number of blocks below, and their mask."""

LEAST = 50
"""The least number of texts to choose with."""

NULLS = 5
"""Shuffles of the vocabulary, each of which a choice has to beat."""

FIRST = ("orthogonal", "both")
"""The kernel and frame of a bridge without lenses."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a classifier to texts.

    Attributes:
        logits: Its logits, (texts, labels).
        lengths: The mean length of the states that each block reads.
        read: The mean of the states that its head reads, (d,).
    """

    logits: Tensor
    lengths: tuple[float, ...]
    read: Tensor

    def chances(self, accuracy: float | None) -> Tensor:
        """Return its probabilities (texts, labels), with mean confidence ``accuracy`` if that is known."""
        return (self.logits / _temperature(self.logits, accuracy)).softmax(1)

    def level(self, logits: Tensor) -> Tensor:
        """Return the constants (labels,) that give other logits (texts, labels) the mean of the classifier's own."""
        return self.logits.mean(0) - logits.mean(0)


@dataclass(frozen=True, eq=False)
class Trial:
    """Unlabelled texts to try stitches on.

    Attributes:
        classifier: The classifier.
        bridge: The bridge from the other model to the classifier.
        upper: The blocks of the classifier, with its head.
        own: The classifier's own answers.
        texts: The states of the other model.
        chances: The classifier's probabilities, (texts, labels).
    """

    classifier: Model
    bridge: Bridge
    upper: Upper
    own: Answers
    texts: tuple[Batch, ...]
    chances: Tensor

    def logits(self, choice: Try, translation: Translation) -> Tensor:
        """Return the logits (texts, labels) of a stitch, not yet levelled."""
        norm = seam_norm(self.classifier, choice.take)
        if norm is None:
            return self.run(choice.keep, choice.take, translation.states)
        gain, shift = norm
        eps = self.classifier.dims.eps
        return self.run(choice.keep, choice.take, lambda x: restored(translation.states(x), "layer", eps, gain, shift))

    def run(self, keep: int, take: int, into: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits of a stitch whose seam is any function.

        Args:
            keep: The number of lower blocks.
            take: The number of upper blocks.
            into: The seam: from states of the lower model to states of the upper one.

        Returns:
            Logits, (texts, labels).
        """
        logits = torch.empty_like(self.own.logits)
        with torch.inference_mode(), self.upper.taking(take) as upper:
            for places, states, mask in self.texts:
                logits[places] = upper(into(states[keep]), mask).to(logits)
        return logits

    def fitted(self, choice: Try, bridge: Bridge | None = None) -> Translation:
        """Return the translation of a choice, scaled by `lengthened`."""
        return self.lengthened(
            choice, bridge_at(choice, bridge or self.bridge).translation(choice.kernel, choice.frame)
        )

    def lengthened(self, choice: Try, translation: Translation) -> Translation:
        """Scale a translation so that states are as long as the classifier's own at the seam.

        A post-norm reader has a norm at the seam, so its translation stays as it is.
        """
        if self.classifier.family.norm_place == "post":
            return translation
        total, count = 0.0, 0
        for _, states, mask in self.texts:
            lengths = translation.states(states[choice.keep]).norm(dim=-1)[mask.bool()]
            total, count = total + float(lengths.sum()), count + len(lengths)
        own_length = self.own.lengths[self.classifier.dims.layers - choice.take]
        return translation.scaled(own_length * count / total) if total else translation

    def verdict(self, choice: Try, seed: int, progress: Progress) -> Verdict:
        """Return the verdict on a choice, compared with the same choice with shuffled tokens."""

        def null_logits(n: int) -> Tensor:
            return self.answered(choice, self.bridge.shuffled(n))

        return verdict(choice, self.own, self.chances, null_logits, seed, progress)

    def answered(self, choice: Try, bridge: Bridge | None = None) -> Tensor:
        """Return the levelled logits (texts, labels) of a stitch."""
        logits = self.logits(choice, self.fitted(choice, bridge))
        return logits + self.own.level(logits)


def trial_of(
    classifier: Model,
    bridge: Bridge,
    texts: Sequence[str],
    accuracy: float | None = None,
    progress: Progress = silent,
    keeps: Collection[int] | None = None,
) -> Trial:
    """Run both models over the texts once.

    Args:
        classifier: The classifier.
        bridge: The bridge from the other model to the classifier.
        texts: Unlabelled texts.
        accuracy: The classifier's accuracy, if it is known.
        progress: Is called as the work proceeds.
        keeps: The numbers of lower blocks above which states are held; all depths if None.

    Raises:
        BadOption: There are too few texts, or the accuracy is impossible.
    """
    require_texts(texts)
    onto = bridge.first.model
    hf = load_classifier(classifier)
    own = answers(hf, classifier, texts, lambda done, total: progress("classifier", done, total))
    lower = Lower(load_lower(onto), onto.family)
    batched = tuple(depths(lower, onto, texts, keeps, lambda done, total: progress("states", done, total)))
    return Trial(
        classifier=classifier,
        bridge=bridge,
        upper=Upper(hf, classifier.family),
        own=own,
        texts=batched,
        chances=own.chances(accuracy),
    )


def require_texts(texts: Sequence[str]) -> Sequence[str]:
    """Return the texts; raise BadOption if they are too few to choose with."""
    if len(texts) < LEAST:
        raise BadOption(f"There are {len(texts)} texts; at least {LEAST} are needed to choose with.")
    return texts


def answers(
    hf: Any, model: Model, texts: Sequence[str], tick: Callable[[int, int], None] = lambda _d, _n: None
) -> Answers:
    """Return the answers of a complete classifier to texts.

    Args:
        hf: The classifier in transformers.
        model: The same classifier.
        texts: The texts.
        tick: Is called after each batch with the number of texts that are done and that of all.
    """
    logits, totals, count, done = None, torch.zeros(model.dims.layers), 0, 0
    activations: list[Tensor] = []
    recorder = head_of(hf).register_forward_hook(
        lambda _module, inputs, _out: activations.append(inputs[0].sum(0).cpu())
    )
    for places, ids, mask in batches(model, texts):
        with torch.inference_mode():
            output = hf.base_model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
            batch_logits = Upper.logits_of(hf, model.family, output, mask)
        logits = torch.empty(len(texts), batch_logits.shape[1]) if logits is None else logits
        logits[places] = batch_logits.cpu()
        for layer, states in enumerate(output.hidden_states[: model.dims.layers]):
            totals[layer] += float(states.norm(dim=-1)[mask.bool()].sum())
        count, done = count + int(mask.sum()), done + len(places)
        tick(done, len(texts))
    recorder.remove()
    if logits is None:
        raise BadOption("There are no texts.")
    return Answers(logits, tuple((totals / count).tolist()), torch.stack(activations).sum(0) / len(texts))


def depths(
    lower: Lower,
    model: Model,
    texts: Sequence[str],
    keeps: Collection[int] | None = None,
    tick: Callable[[int, int], None] = lambda _d, _n: None,
) -> Iterator[Batch]:
    """Yield the states of texts, batch by batch.

    Args:
        lower: The model with all its blocks.
        model: The same model.
        texts: The texts.
        keeps: The numbers of blocks above which states are given; all depths if None.
        tick: Is called after each batch with the number of texts that are done and that of all.

    Yields:
        Batches of states.
    """
    done = 0
    for places, ids, mask in batches(model, texts):
        with torch.inference_mode():
            states = lower.depths(ids, mask)
            yield places, {n: stream for n, stream in enumerate(states) if keeps is None or n in keeps}, mask
        done += len(places)
        tick(done, len(texts))


def chosen(
    trial: Trial, candidates: Sequence[tuple[int, int]], kernel: str | None, frame: str | None, progress: Progress
) -> tuple[Try, ...]:
    """Try depths, then kernels and frames at the best depth, and return all tries, the best first.

    Args:
        trial: The texts to try on.
        candidates: Depths (keep, take).
        kernel: The only kernel to try; all if None.
        frame: The only frame to try; all if None.
        progress: Is called as the work proceeds.
    """
    kernels = (kernel,) if kernel else tuple(KERNELS)
    frames = (frame,) if frame else trial.bridge.frames
    total = len(candidates) + len(kernels) * len(frames)
    logits_of: dict[Try, Tensor] = {}

    def try_out(choice: Try) -> None:
        progress("seams", len(logits_of), total)
        if choice not in logits_of:
            logits_of[choice] = trial.answered(choice)

    for keep, take in candidates:
        try_out(first_try(trial.bridge, keep, take, kernel, frame))
    best = max(logits_of, key=lambda choice: expected(logits_of[choice], trial.chances))
    for kernel_name in kernels:
        for frame_name in frames:
            try_out(replace(best, kernel=kernel_name, frame=frame_name))
    all_labels = torch.stack([logits.argmax(1) for logits in logits_of.values()])
    tries = []
    for choice, logits in logits_of.items():
        consensus = float((all_labels == logits.argmax(1)).float().mean())
        fit = bridge_at(choice, trial.bridge).fit(choice.kernel, choice.frame)
        measures = measured(choice, logits, trial.own.logits, trial.chances)
        tries.append(replace(measures, fit=fit, consensus=consensus))
    return tuple(sorted(tries, key=lambda choice: -(choice.expected or 0)))


def first_try(to_classifier: Bridge, keep: int, take: int, kernel: str | None, frame: str | None) -> Try:
    """Return a seam in the kernel and frame in which depths are compared; the others are tried at the best depth.

    Args:
        to_classifier: The bridge from the stream of B to that of the classifier.
        keep: How many lower layers of B are kept.
        take: How many upper layers of the classifier are taken.
        kernel: The kernel; the usual one if None.
        frame: The frame; the usual one if None.
    """
    usual = SEEN if SEEN in to_classifier.frames else FIRST[1]
    return Try(keep=keep, take=take, kernel=kernel or FIRST[0], frame=frame or usual)


def bridge_at(choice: Try, to_classifier: Bridge) -> Bridge:
    """Return the bridge at a seam: from what enters the first block left out to what enters the first one taken."""
    return to_classifier.at((choice.keep, to_classifier.second.model.dims.layers - choice.take))


def verdict(
    choice: Try,
    own: Answers,
    probabilities: Tensor,
    null_logits: Callable[[int], Tensor],
    seed: int,
    progress: Progress,
) -> Verdict:
    """Return the verdict on a choice.

    Args:
        choice: The choice, with its expected accuracy.
        own: The classifier's own answers.
        probabilities: The classifier's probabilities, (texts, labels).
        null_logits: Returns the logits of the same choice with tokens that a seed has shuffled.
        seed: The first of these seeds.
        progress: Is called as the work proceeds.
    """
    nulls = []
    for n in range(NULLS):
        progress("null", n, NULLS)
        nulls.append(expected(null_logits(seed + n), probabilities))
    return judged(choice.expected or 0.0, expected(own.logits, probabilities), tuple(nulls))


def expected(logits: Tensor, probabilities: Tensor) -> float:
    """Return the accuracy of answers, logits (texts, labels), according to the classifier's probabilities."""
    return float(probabilities.gather(1, logits.argmax(1, keepdim=True)).mean())


def measured(choice: Try, logits: Tensor, own: Tensor, probabilities: Tensor) -> Try:
    """Return a choice with the measures of its logits, given the classifier's own logits and probabilities.

    Args:
        choice: The choice.
        logits: Its logits on the texts, (texts, labels).
        own: Those of the classifier itself.
        probabilities: The classifier's probabilities, (texts, labels).
    """
    return replace(
        choice,
        expected=expected(logits, probabilities),
        agreement=float((logits.argmax(1) == own.argmax(1)).float().mean()),
        confidence=float(functional.softmax(logits, 1).amax(1).mean()),
    )


def _temperature(logits: Tensor, accuracy: float | None) -> float:
    """Return the temperature at which the mean confidence is the accuracy; 1 if that is not known."""
    if accuracy is None:
        return 1.0
    if not 1 / logits.shape[1] < accuracy < 1:
        raise BadOption(f"--accuracy is {accuracy}; of {logits.shape[1]} labels it lies between chance and 1.")
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        confidence = float((logits / middle).softmax(1).amax(1).mean())
        low, high = (middle, high) if confidence > accuracy else (low, middle)
    return float((low * high) ** 0.5)
