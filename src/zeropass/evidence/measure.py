"""Measure the evidence for one model on a text. Finished parts are stored, so that a stopped run can continue.

The model runs over the text once (`activations`). Each measure compares its activations with what the weights alone say
(`reading`, `attention`, `overlap`, `inverses`; `writing` runs the model again). Every number gets its nulls
(`resampling`), and all numbers become one `Evidence` (`results`).
"""

import hashlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeropass._io.atomic import Parts, key_of, write_json, write_text
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
from zeropass.model.lens_maps import LensMaps
from zeropass.model.model import Model, usable_device
from zeropass.model.running import Running
from zeropass.model.texts import require_tokens

__all__ = ["PARTS", "Settings", "measure", "write_evidence"]

PARTS = ("writing", "reading", "attention", "states", "pairs", "inverses")
"""The parts of a measurement, in order. ``writing``, which alone runs the model again, gives ``promotes`` too."""


def measure(
    model: Model,
    text: str,
    source: str,
    settings: Settings | None = None,
    *,
    parts: tuple[str, ...] = PARTS,
    folder: Path | None = None,
    lens: LensMaps | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Evidence:
    """Measure how well the words that zeropass reads from a model's weights agree with what the model does on a text.

    Args:
        model: The model, whose weights are read on the processor.
        text: The text.
        source: A description of the text, for the record.
        settings: The extent of the measurement; by default `Settings()`.
        parts: Some of `PARTS`.
        folder: Where finished parts are stored; the same call then continues there.
        lens: A lens whose frames are measured as well.
        device: Where the model runs.
        progress: Reports progress.

    Returns:
        The evidence. For a model that cannot be run it holds what the weights alone give, and ``left_out``
        says why.

    Raises:
        BadOption: The text is too short, or a part does not exist.
    """
    settings = settings or Settings()
    for part in parts:
        if part not in PARTS:
            raise BadOption(f"There is no measure {part!r}; measures are {', '.join(PARTS)}.")
    stopwatch = _Stopwatch()
    measurement = _Measurement(model=model, text=text, settings=settings, lens=lens, device=device, progress=progress)
    require_tokens(measurement.ids, settings.fewest, model)
    stored = _StoredParts(Parts(folder, _key(measurement), BadOption), stopwatch) if folder is not None else None
    results: list[Result] = []
    left_out: dict[str, str] = {}
    for part in (p for p in PARTS if p in parts):
        loaded = stored.load(part) if stored else None
        part_results, reason = measurement.results_of(part) if loaded is None else (loaded, "")
        if reason:
            left_out[part] = reason
        elif stored and loaded is None:
            stored.save(part, part_results)
        results += part_results
    method = _method(measurement, source, stopwatch) | {"measures": [part for part in PARTS if part in parts]}
    return Evidence(
        model=_model_facts(model), method=method, results=tuple(results), left_out=left_out, notes=measurement.notes
    )


def write_evidence(evidence: Evidence, folder: Path, html: str) -> None:
    """Write ``evidence.json``, ``evidence.parquet`` and ``report.html`` into a folder, each file atomically."""
    write_json(folder / "evidence.json", evidence.to_json())
    write_parquet(evidence.results, folder / "evidence.parquet")
    write_text(folder / "report.html", html)


@dataclass(frozen=True, eq=False)
class _Measurement:
    """A measurement of one model on one text; what the measures share is computed when first needed."""

    model: Model
    text: str
    settings: Settings
    lens: LensMaps | None
    device: str
    progress: Progress

    @cached_property
    def ids(self) -> Tensor:
        """The first tokens of the text."""
        return torch.tensor(self.model.vocab.encode(self.text)[: self.settings.tokens], dtype=torch.long)

    @cached_property
    def running(self) -> Running | CannotRun:
        """The running model, or why it cannot be run."""
        try:
            self.model.require_alike_layers("a measurement on a text")
            return Running(replace(self.model, device=usable_device(self.device)))
        except CannotRun as error:
            return error

    @cached_property
    def reasons(self) -> dict[str, str]:
        """The reasons why parts cannot be measured in full, by part."""
        if isinstance(self.running, CannotRun):
            reasons = {part: str(self.running) for part in PARTS if part != "pairs"}
            return reasons | {"inverses": f"{self.running} Hidden states are missing."}
        headless = f"{self.model.name} has no language model's head that writes could be measured by."
        return {} if self.model.family.causal else {"writing": headless}

    @cached_property
    def activations(self) -> Activations | None:
        """The activations on the text; None if the model cannot be run."""
        if isinstance(self.running, CannotRun):
            return None
        return record_activations(self.running, self.ids, self.settings, self.progress)

    @cached_property
    def spaces(self) -> Spaces:
        """The rows of every frame for the tokens of the text."""
        return Spaces(
            Frames(self.model, self.lens), torch.zeros(0) if self.activations is None else self.activations.ids
        )

    @cached_property
    def shown(self) -> Tensor:
        """The ids (V',) of the tokens that lists show by default."""
        mask = self.model.vocab.mask("default", *self.model.judgement)
        return torch.from_numpy(np.flatnonzero(mask))

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the evidence, for a text that is shorter than asked for."""
        short = len(self.ids) < self.settings.tokens
        note = f"The text has {len(self.ids)} tokens; {self.settings.tokens} were asked for." if short else ""
        return (note,) if note else ()

    def results_of(self, part: str) -> tuple[list[Result], str]:
        """Return the results of a part, and the reason why they are missing or incomplete, if they are."""
        if part == "pairs":  # Pairs need the weights alone: no text, no running model.
            textless = Spaces(Frames(self.model), torch.zeros(0))
            return overlap.pairs(textless, self.shown, self.settings, self.progress), ""
        reason = self.reasons.get(part, "")
        if part == "inverses":
            return inverses(self.spaces, self.activations, self.settings, self.progress), reason
        return ([], reason) if reason else (_MEASURES[part](self, self.text_activations), "")

    @property
    def text_activations(self) -> Activations:
        """The activations, for a part that needs them; raises CannotRun if there are none."""
        if self.activations is None:
            raise CannotRun(self.reasons["reading"])
        return self.activations

    def writing(self, activations: Activations) -> list[Result]:
        """Measure what vectors write, then release the running model: no later part needs it."""
        if isinstance(self.running, CannotRun):
            raise self.running
        results = writing(self.running, self.spaces, activations, self.ids, self.shown, self.settings, self.progress)
        self.__dict__.pop("running")
        return results

    def reading(self, activations: Activations) -> list[Result]:
        """Measure what vectors read."""
        noise = {site: noise_vectors(self.model.dims.d, self.settings, site) for site in ("attn", "ff")}
        return reading(self.spaces, activations, noise, self.settings, self.progress)


_MEASURES: dict[str, Callable[[_Measurement, Activations], list[Result]]] = {
    "writing": _Measurement.writing,
    "reading": _Measurement.reading,
    "attention": lambda m, activations: attention(m.spaces, activations, m.settings, m.progress),
    "states": lambda m, activations: overlap.states(m.spaces, activations, m.shown, m.settings, m.progress),
}


@dataclass(frozen=True)
class _StoredParts:
    """The finished parts in a folder, each with its time and memory; those of another key are ignored."""

    parts: Parts
    stopwatch: "_Stopwatch"

    def load(self, part: str) -> list[Result] | None:
        """Return the results of a part, and count its time and memory; None if it is not stored."""
        value = self.parts.load(part)
        try:
            results = [result_from_json(result) for result in value["results"]]
            self.stopwatch.add(float(value["seconds"]), float(value["peak_mb"]))
            return results
        except (ValueError, KeyError, TypeError):
            return None

    def save(self, part: str, results: list[Result]) -> None:
        """Store the results of a part with its time and memory."""
        cost = {"seconds": self.stopwatch.lap(), "peak_mb": _peak()}
        self.parts.save(part, cost | {"results": [asdict(result) for result in results]})


class _Stopwatch:
    """The seconds and the memory of a measurement, including parts that an earlier run finished."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.before, self.peak = 0.0, 0.0

    def lap(self) -> float:
        """Return the seconds since the last lap, and begin another."""
        last, self.last = self.last, time.monotonic()
        return self.last - last

    def add(self, seconds: float, peak: float) -> None:
        """Count the time and memory of a part that an earlier run finished."""
        self.before, self.peak = self.before + seconds, max(self.peak, peak)

    @property
    def total(self) -> float:
        """The seconds of this run and of the earlier parts."""
        return self.before + time.monotonic() - self.started


def _key(measurement: _Measurement) -> str:
    """Return the key of everything that a part depends on: weights, tokens, settings and the version of torch."""
    settings, ids = asdict(measurement.settings), measurement.ids.tolist()
    lens = [] if measurement.lens is None else [measurement.lens.facts.identity]
    return key_of(SCHEMA_VERSION, measurement.model.fingerprint, ids, settings, torch.__version__, *lens)


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


def _method(measurement: _Measurement, source: str, stopwatch: _Stopwatch) -> dict[str, Any]:
    ids = measurement.ids.tolist()
    lens = {} if measurement.lens is None else {"lens": measurement.lens.facts.words}
    return lens | {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_memory():.0f} GiB",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "text": source,
        "text_tokens_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "tokens": len(ids),
        "types": len(set(ids)),
        "settings": asdict(measurement.settings),
        "seconds": round(stopwatch.total),
        "peak_mb": round(max(stopwatch.peak, _peak())),
    }


def _memory() -> float:
    """Return the memory of this machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _peak() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
