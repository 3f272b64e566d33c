"""Measure the evidence for one model: text in, results out. Finished parts are kept, so that a stopped run continues.

The model runs over the text once (`activations`); each measure compares what was recorded with what the weights alone
say (`reading`, `attention`, `overlap`, `inverses`; `writing` runs the model again); every number gets its nulls
(`resampling`), and all of them become one `Evidence` (`results`).
"""

import hashlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from zeropass._io.atomic import Parts, atomic_write, key_of
from zeropass._io.progress import Progress, silent
from zeropass.errors import BadOption, CannotRun
from zeropass.evidence import overlap
from zeropass.evidence.activations import Activations, Settings, noise_vectors, record_activations
from zeropass.evidence.attention import attention
from zeropass.evidence.compared_frames import Spaces
from zeropass.evidence.inverses import inverses
from zeropass.evidence.reading import reading
from zeropass.evidence.results import SCHEMA_VERSION, Evidence, Result, result_from_json, write_parquet
from zeropass.evidence.writing import writing
from zeropass.model.frames import Frames
from zeropass.model.identity import values_sha256
from zeropass.model.model import Model
from zeropass.model.running import Running, load_running, require_tokens

__all__ = ["PARTS", "Settings", "measure", "write_evidence"]

PARTS = ("writing", "reading", "attention", "states", "pairs", "inverses")
"""What is measured one after the other; ``writing``, alone in running the model again, gives ``promotes`` too."""


def measure(
    model: Model,
    text: str,
    source: str,
    settings: Settings | None = None,
    *,
    parts: tuple[str, ...] = PARTS,
    folder: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Evidence:
    """Measure how well the words that zeropass reads from a model's weights agree with what the model does on a text.

    ``model`` is read on the processor and run on ``device``. source: what the text is, for the record. parts: some of
    `PARTS`. folder: where finished parts are kept, so that the same call continues there. Raises BadOption for a text
    that is too short or a part that does not exist; a model that transformers cannot run gives the static part, and
    ``left_out`` says why.
    """
    settings = settings or Settings()
    for part in parts:
        if part not in PARTS:
            raise BadOption(f"There is no measure {part!r}; measures are {', '.join(PARTS)}.")
    clock = _Clock()
    bench = _Bench(model, text, settings, device, progress)
    require_tokens(bench.ids, settings.fewest, model)
    kept = _Kept(Parts(folder, _key(bench), BadOption), clock) if folder is not None else None
    results: list[Result] = []
    left_out: dict[str, str] = {}
    for part in (p for p in PARTS if p in parts):
        loaded = kept.load(part) if kept else None
        found, reason = bench.measured(part) if loaded is None else (loaded, "")
        if reason:
            left_out[part] = reason
        elif kept and loaded is None:
            kept.save(part, found)
        results += found
    method = _method(bench, source, clock) | {"measures": [part for part in PARTS if part in parts]}
    return Evidence(_model_facts(model), method, tuple(results), left_out, bench.notes)


def write_evidence(evidence: Evidence, folder: Path, html: str) -> None:
    """Write ``evidence.json``, ``evidence.parquet`` and ``report.html`` into a folder, each whole or not at all."""
    with atomic_write(folder / "evidence.json", BadOption) as temporary:
        temporary.write_text(json.dumps(evidence.to_json(), allow_nan=False) + "\n", encoding="utf-8")
    write_parquet(evidence.results, folder / "evidence.parquet")
    with atomic_write(folder / "report.html", BadOption) as temporary:
        temporary.write_text(html, encoding="utf-8")


@dataclass(frozen=True, eq=False)
class _Bench:
    """One model and one text; what the measures share is made when first needed."""

    model: Model
    text: str
    settings: Settings
    device: str
    progress: Progress

    @cached_property
    def ids(self) -> Tensor:
        """The first tokens of the text."""
        return torch.tensor(self.model.vocab.encode(self.text)[: self.settings.tokens], dtype=torch.long)

    @cached_property
    def running(self) -> Running | CannotRun:
        """The model in transformers, or why it cannot be run."""
        self.progress("loading", 0, 1)
        try:
            return load_running(self.model, self.device)
        except CannotRun as error:
            return error

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why parts cannot be measured in full, by part."""
        if isinstance(self.running, CannotRun):
            every = {part: str(self.running) for part in PARTS if part != "pairs"}
            return every | {"inverses": f"{self.running} Hidden states are missing."}
        headless = f"{self.model.name} has no language model's head that writes could be measured by."
        return {} if self.running.speaks else {"writing": headless}

    @cached_property
    def activations(self) -> Activations | None:
        if isinstance(self.running, CannotRun):
            return None
        return record_activations(self.running, self.ids, self.settings, self.progress)

    @cached_property
    def spaces(self) -> Spaces:
        """Rows of every frame, those of the text's tokens kept."""
        return Spaces(Frames(self.model), torch.zeros(0) if self.activations is None else self.activations.ids)

    @cached_property
    def shown(self) -> Tensor:
        """Ids (V',) of the tokens that lists show by default."""
        mask = self.model.vocab.mask("default", *self.model.judgement)
        return torch.from_numpy(np.flatnonzero(mask))

    @property
    def notes(self) -> tuple[str, ...]:
        short = len(self.ids) < self.settings.tokens
        found = f"The text has {len(self.ids)} tokens; {self.settings.tokens} were asked for." if short else ""
        return (found,) if found else ()

    def measured(self, part: str) -> tuple[list[Result], str]:
        """The results of a part, and why they are not what could be, if so."""
        if part == "pairs":  # from the weights alone
            unsupported = Spaces(Frames(self.model), torch.zeros(0))
            return overlap.pairs(unsupported, self.shown, self.settings, self.progress), ""
        reason = self.reasons.get(part, "")
        if part == "inverses":
            return inverses(self.spaces, self.activations, self.settings, self.progress), reason
        return ([], reason) if reason else (_MEASURES[part](self, self.text_activations), "")

    @property
    def text_activations(self) -> Activations:
        """The activations, for a part that there is no reason against."""
        if self.activations is None:
            raise CannotRun(self.reasons["reading"])
        return self.activations

    def writing(self, activations: Activations) -> list[Result]:
        """The one part that runs the model again; nothing needs it afterwards, so its memory is given back."""
        if isinstance(self.running, CannotRun):
            raise self.running
        found = writing(self.running, self.spaces, activations, self.ids, self.shown, self.settings, self.progress)
        self.__dict__.pop("running")
        return found

    def reading(self, activations: Activations) -> list[Result]:
        noise = {site: noise_vectors(self.model.dims.d, self.settings, site) for site in ("attn", "ff")}
        return reading(self.spaces, activations, noise, self.settings, self.progress)


_MEASURES: dict[str, Callable[[_Bench, Activations], list[Result]]] = {
    "writing": _Bench.writing,
    "reading": _Bench.reading,
    "attention": lambda b, activations: attention(b.spaces, activations, b.settings, b.progress),
    "states": lambda b, activations: overlap.states(b.spaces, activations, b.shown, b.settings, b.progress),
}


@dataclass(frozen=True)
class _Kept:
    """Finished parts with what they took; those of another model, text or setting are not used."""

    parts: Parts
    clock: "_Clock"

    def load(self, part: str) -> list[Result] | None:
        value = self.parts.load(part)
        try:
            results = [result_from_json(one) for one in value["results"]]
            self.clock.add(float(value["seconds"]), float(value["peak_mb"]))
            return results
        except (ValueError, KeyError, TypeError):
            return None

    def save(self, part: str, results: list[Result]) -> None:
        spent = {"seconds": self.clock.lap(), "peak_mb": _peak()}
        self.parts.save(part, spent | {"results": [asdict(one) for one in results]})


class _Clock:
    """Seconds and memory of a measurement, those of parts that an earlier run finished included."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.before, self.peak = 0.0, 0.0

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.last = self.last, time.monotonic()
        return self.last - before

    def add(self, seconds: float, peak: float) -> None:
        self.before, self.peak = self.before + seconds, max(self.peak, peak)

    @property
    def total(self) -> float:
        return self.before + time.monotonic() - self.started


def _key(bench: _Bench) -> str:
    """What a part depends on: weights, tokens, settings, versions of the arithmetic."""
    settings = asdict(bench.settings)
    return key_of(SCHEMA_VERSION, bench.model.fingerprint, bench.ids.tolist(), settings, torch.__version__)


def _model_facts(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "title": model.title,
        "family": model.family.name,
        "layers": model.dims.layers,
        "roles": list(model.family.roles),
        "sha256": model.fingerprint,
        "values_sha256": values_sha256(model),
        "bytes": model.size,
    }


def _method(bench: _Bench, source: str, clock: _Clock) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_memory():.0f} GiB",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "text": source,
        "text_tokens_sha256": hashlib.sha256(json.dumps(bench.ids.tolist()).encode()).hexdigest(),
        "tokens": len(bench.ids),
        "types": len(set(bench.ids.tolist())),
        "settings": asdict(bench.settings),
        "seconds": round(clock.total),
        "peak_mb": round(max(clock.peak, _peak())),
    }


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
