"""Which seam, without a label: what is tried, and what tells how good it is.

The classifier that is translated is there, so its own answers on unlabelled texts are too. A stitch is expected to be
right as often as the classifier's probabilities say so of the stitch's answers: the mean of p(answer | text). That is
calibration by agreement, weighted by how sure the classifier is; where its accuracy is known, its probabilities are
brought to that mean first (one temperature, Guo et al. 2017, with a mean instead of labels).
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
from zeropass.model.translation import FRAMES, KERNELS, Bridge, Translation
from zeropass.numerics.projection import restored
from zeropass.stitch.halves import Lower, Upper, batches, head_of, load_classifier, load_lower
from zeropass.stitch.results import Try, Verdict, judged
from zeropass.stitch.stitched import seam_norm

__all__ = [
    "LEAST",
    "Answers",
    "Trial",
    "answers",
    "chosen",
    "depths",
    "expected",
    "measured",
    "require_texts",
    "trial_of",
]
__all__ += ["verdict"]

Batch = tuple[Tensor, dict[int, Tensor], Tensor]
"""Which texts, their states (texts, tokens, d) above so many blocks, and their mask."""

LEAST = 50
"""Fewer texts say too little."""

NULLS = 5
"""Shuffles of the vocabulary that a choice has to beat."""

FIRST = ("orthogonal", "both")
"""Kernel and frame with which depths are compared; the others are tried at the best depth."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A classifier's own logits (texts, labels), the mean length of its states as each block reads them, and the mean
    of what its head reads (d,).
    """

    logits: Tensor
    lengths: tuple[float, ...]
    read: Tensor

    def chances(self, accuracy: float | None) -> Tensor:
        """Its probabilities (texts, labels); of mean confidence ``accuracy`` if that is known."""
        return (self.logits / _temperature(self.logits, accuracy)).softmax(1)

    def level(self, logits: Tensor) -> Tensor:
        """What to add to others' logits (texts, labels) so that their mean over the texts is the classifier's own."""
        return self.logits.mean(0) - logits.mean(0)


@dataclass(frozen=True, eq=False)
class Trial:
    """Unlabelled texts as B's blocks hold them, and what the classifier itself says to them."""

    classifier: Model
    bridge: Bridge
    upper: Upper
    own: Answers
    texts: tuple[Batch, ...]
    chances: Tensor

    def logits(self, choice: Try, translation: Translation) -> Tensor:
        """Logits (texts, labels) of a stitch, not yet levelled."""
        norm = seam_norm(self.classifier, choice.take)
        if norm is None:
            return self.run(choice.keep, choice.take, translation.states)
        gain, shift = norm
        eps = self.classifier.dims.eps
        return self.run(choice.keep, choice.take, lambda x: restored(translation.states(x), "layer", eps, gain, shift))

    def run(self, keep: int, take: int, into: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (texts, labels) of the last ``take`` blocks where states above ``keep`` of B's go in by a function."""
        found = torch.empty_like(self.own.logits)
        with torch.inference_mode(), self.upper.taking(take) as upper:
            for at, states, mask in self.texts:
                found[at] = upper(into(states[keep]), mask).to(found)
        return found

    def fitted(self, choice: Try, bridge: Bridge | None = None) -> Translation:
        """The translation of a choice, `lengthened` where scale matters: a post-norm reader has a norm there."""
        return self.lengthened(choice, (bridge or self.bridge).translation(choice.kernel, choice.frame))

    def lengthened(self, choice: Try, made: Translation) -> Translation:
        """A translation scaled so that states are as long as the classifier's own at the seam."""
        if self.classifier.family.norm_place == "post":
            return made
        total, count = 0.0, 0
        for _, states, mask in self.texts:
            lengths = made.states(states[choice.keep]).norm(dim=-1)[mask.bool()]
            total, count = total + float(lengths.sum()), count + len(lengths)
        here = self.own.lengths[self.classifier.dims.layers - choice.take]
        return made.scaled(here * count / total) if total else made

    def verdict(self, choice: Try, seed: int, progress: Progress) -> Verdict:
        """The verdict on a choice, against the same with shuffled tokens."""

        def wrong(n: int) -> Tensor:
            return self.answered(choice, self.bridge.shuffled(n))

        return verdict(choice, self.own, self.chances, wrong, seed, progress)

    def answered(self, choice: Try, bridge: Bridge | None = None) -> Tensor:
        """Levelled logits (texts, labels) of a stitch."""
        found = self.logits(choice, self.fitted(choice, bridge))
        return found + self.own.level(found)


def trial_of(
    classifier: Model,
    bridge: Bridge,
    texts: Sequence[str],
    accuracy: float | None = None,
    progress: Progress = silent,
    keeps: Collection[int] | None = None,
) -> Trial:
    """Run both models over the texts once, and hold B's states above ``keeps`` blocks (all depths if not given).

    BadOption for too few texts or an accuracy that is none.
    """
    require_texts(texts)
    onto = bridge.first.model
    hf = load_classifier(classifier)
    own = answers(hf, classifier, texts, lambda done, total: progress("classifier", done, total))
    lower = Lower(load_lower(onto), onto.family)
    held = tuple(depths(lower, onto, texts, keeps, lambda done, total: progress("states", done, total)))
    return Trial(classifier, bridge, Upper(hf, classifier.family), own, held, own.chances(accuracy))


def require_texts(texts: Sequence[str]) -> Sequence[str]:
    """The texts; BadOption if they are too few to say anything."""
    if len(texts) < LEAST:
        raise BadOption(f"There are {len(texts)} texts; at least {LEAST} are needed to choose with.")
    return texts


def answers(
    hf: Any, model: Model, texts: Sequence[str], tick: Callable[[int, int], None] = lambda _d, _n: None
) -> Answers:
    """What a classifier says to texts, run whole."""
    logits, totals, count, done = None, torch.zeros(model.dims.layers), 0, 0
    activations: list[Tensor] = []
    recorder = head_of(hf).register_forward_hook(lambda _module, given, _out: activations.append(given[0].sum(0).cpu()))
    for at, ids, mask in batches(model, texts):
        with torch.inference_mode():
            found = hf.base_model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
            part = Upper.logits_of(hf, model.family, found, mask)
        logits = torch.empty(len(texts), part.shape[1]) if logits is None else logits
        logits[at] = part.cpu()
        for layer, states in enumerate(found.hidden_states[: model.dims.layers]):
            totals[layer] += float(states.norm(dim=-1)[mask.bool()].sum())
        count, done = count + int(mask.sum()), done + len(at)
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
    """The stream of texts above ``keeps`` blocks (all depths if not given) of a model that has all of them."""
    done = 0
    for at, ids, mask in batches(model, texts):
        with torch.inference_mode():
            states = lower.depths(ids, mask)
            yield at, {n: one for n, one in enumerate(states) if keeps is None or n in keeps}, mask
        done += len(at)
        tick(done, len(texts))


def chosen(
    trial: Trial, candidates: Sequence[tuple[int, int]], kernel: str | None, frame: str | None, progress: Progress
) -> tuple[Try, ...]:
    """Everything that is tried, the best first: depths (keep, take), then kernels and frames at the best of them."""
    kernels = (kernel,) if kernel else tuple(KERNELS)
    frames = (frame,) if frame else FRAMES
    total = len(candidates) + len(kernels) * len(frames)
    said: dict[Try, Tensor] = {}

    def tried(choice: Try) -> None:
        progress("seams", len(said), total)
        if choice not in said:
            said[choice] = trial.answered(choice)

    for keep, take in candidates:
        tried(Try(keep, take, kernel or FIRST[0], frame or FIRST[1]))
    best = max(said, key=lambda one: expected(said[one], trial.chances))
    for one in kernels:
        for other in frames:
            tried(replace(best, kernel=one, frame=other))
    choices = torch.stack([logits.argmax(1) for logits in said.values()])
    tries = []
    for choice, logits in said.items():
        consensus = float((choices == logits.argmax(1)).float().mean())
        fit = trial.bridge.fit(choice.kernel, choice.frame)
        found = measured(choice, logits, trial.own.logits, trial.chances)
        tries.append(replace(found, fit=fit, consensus=consensus))
    return tuple(sorted(tries, key=lambda one: -(one.expected or 0)))


def verdict(
    choice: Try, own: Answers, chances: Tensor, wrong: Callable[[int], Tensor], seed: int, progress: Progress
) -> Verdict:
    """The verdict on a choice; ``wrong`` gives the logits of the same through tokens that a seed has shuffled."""
    nulls = []
    for n in range(NULLS):
        progress("null", n, NULLS)
        nulls.append(expected(wrong(seed + n), chances))
    return judged(choice.expected or 0.0, expected(own.logits, chances), tuple(nulls))


def expected(logits: Tensor, chances: Tensor) -> float:
    """The accuracy that the classifier's probabilities (texts, labels) give these answers."""
    return float(chances.gather(1, logits.argmax(1, keepdim=True)).mean())


def measured(choice: Try, logits: Tensor, own: Tensor, chances: Tensor) -> Try:
    """A choice with what its answers tell beside the classifier's own logits and probabilities."""
    return replace(
        choice,
        expected=expected(logits, chances),
        agreement=float((logits.argmax(1) == own.argmax(1)).float().mean()),
        confidence=float(functional.softmax(logits, 1).amax(1).mean()),
    )


def _temperature(logits: Tensor, accuracy: float | None) -> float:
    """What to divide logits by so that the mean confidence is the accuracy; one where that is not known."""
    if accuracy is None:
        return 1.0
    if not 1 / logits.shape[1] < accuracy < 1:
        raise BadOption(f"--accuracy is {accuracy}; of {logits.shape[1]} labels it lies between chance and 1.")
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        sure = float((logits / middle).softmax(1).amax(1).mean())
        low, high = (middle, high) if sure > accuracy else (low, middle)
    return float((low * high) ** 0.5)
