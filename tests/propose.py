"""Propose a record for a model type of transformers from what the table of families knows; a person reads it.

    python tests/propose.py llama                            # a type of tests/zoo.py, without its own records
    python tests/propose.py NemotronForCausalLM NemotronConfig '{"hidden_size": 24, …}'
    python tests/propose.py --leave-one-out                  # every family of the table, as if it were new

A candidate is a record of the table with the tensors and the keys of the model: a tensor has the role that a record or
a usual name gives it, a key what some record says of it; a flag or a word that none explains restricts the record to
its value. Norms are tried in every order, fused tensors and rotary rows in every arrangement, and so on
(`Search.variants`). A candidate is accepted only if the model's own forward pass proves it in every part, by the checks
of tests/model/test_every_family.py, and if each of its corruptions there is caught. Where none passes, the closest one
is named, with what it does not explain. tests/arch/test_keys.py then changes the keys that a new record ignores.
"""

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice, permutations, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel

from scripts import ROOT, imported
from tensor_roles import NORMS, layers_of, prefix_of, roles_of
from tiny import TOKENS, error, save
from zeropass.arch import families
from zeropass.arch.config_reader import looked_up
from zeropass.arch.families import FAMILIES
from zeropass.arch.keys import is_harmless
from zeropass.arch.layout import Layout, Stored, full_name
from zeropass.arch.spec import Family
from zeropass.checkpoints.model_files import ModelFiles, open_files
from zeropass.errors import ZeropassError
from zeropass.model.blocks import embedded
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zoo import ZOO, drawn, tiny_model

(proof,) = imported(ROOT / "tests" / "model", ("test_every_family",))

BIASES = tuple(f"{role}_bias" for role in ("q", "k", "v", "o", "gate", "up", "key", "value"))
BASES = 12
"""The number of records of the table that are tried, those that explain most first."""

PATIENCE = 60
"""The number of variants after which a candidate is given up that cannot be opened in any."""

LIMIT = 3000
"""The number of candidates after which a search ends."""

MEANINGS = 12
"""The number of combinations of what keys may mean that are tried for a record of the table."""

IDS = torch.randint(TOKENS, (3, len(proof.POSITIONS)), generator=torch.Generator().manual_seed(1))


_IMPOSSIBLE = (ZeropassError, RuntimeError, AssertionError, LookupError, AttributeError, TypeError, ValueError)
"""The errors that opening or checking a wrong candidate may raise."""

Sizes = dict[str, tuple[str, ...]]
When = dict[str, tuple[object, ...]]


@dataclass(frozen=True, eq=False)
class Tiny:
    """A tiny random model of transformers, saved, for which a record is wanted.

    Attributes:
        name: Its model type.
        hf: The model.
        folder: Where it is saved.
        stack: The half of an encoder-decoder.
    """

    name: str
    hf: PreTrainedModel
    folder: Path
    stack: str = ""

    @property
    def place(self) -> str:
        """The name to open it by."""
        return f"{self.folder}{'#decoder' if self.stack == 'decoder' else ''}"

    @property
    def files(self) -> ModelFiles:
        """The files."""
        return open_files(str(self.folder))


@dataclass(frozen=True, eq=False)
class Proposal:
    """The result of a search.

    Attributes:
        base: The record of the table that was changed.
        family: The candidate; its only layout is that of safetensors.
        errors: The largest error of every check of the proof, relative to the largest true value.
        passed: Corruptions of the candidate that the proof did not catch.
        tensors: Tensors of the file that the candidate does not explain, or that it lacks.
        keys: Keys of the configuration that no record explains.
        problem: Why the closest candidate could not be opened.
        tried: The number of candidates.
    """

    base: Family
    family: Family
    errors: Mapping[str, float] = field(default_factory=dict)
    passed: Sequence[str] = ()
    tensors: Sequence[str] = ()
    keys: Sequence[str] = ()
    problem: str = ""
    tried: int = 0

    @property
    def proven(self) -> bool:
        """True if the forward pass proves the record in every part, and nothing is left over."""
        explained = not (self.tensors or self.keys or self.problem or self.passed)
        return explained and bool(self.errors) and max(self.errors.values()) < proof.TOLERANCE

    def text(self) -> str:
        """Return the record as Python, and what was proven or is missing."""
        lines = [record_text(self.base, self.family), ""]
        lines += [f"# {name}: {value:.1e}" for name, value in self.errors.items()]
        lines += [f"# not caught: {', '.join(self.passed)}"] if self.passed else []
        lines += [f"# tensors not explained: {', '.join(self.tensors)}"] if self.tensors else []
        lines += [f"# keys not explained: {', '.join(self.keys)}"] if self.keys else []
        lines += [f"# {self.problem}"] if self.problem else []
        return "\n".join([*lines, f"# {'proven' if self.proven else 'NOT proven'}; {self.tried} candidates"])


def propose(tiny: Tiny, table: Sequence[Family]) -> Proposal:
    """Return the first proven record, or the closest candidate.

    Args:
        tiny: The model.
        table: The records to propose from.
    """
    search = Search(tiny, table)
    closest: list[Proposal] = []
    for base in search.bases():
        for candidate in search.adapted(base):
            result = search.judged(base, candidate)
            if result.proven:
                return replace(result, tried=search.tried)
            closest.append(result)
    if not closest:
        raise SystemExit(f"No record of the table resembles a {tiny.name}.")
    return replace(min(closest, key=_distance), tried=search.tried)


def _distance(proposal: Proposal) -> tuple[bool, int, float]:
    """Return how far a candidate is from a proof: opened or not, what is left over, the largest error."""
    worst = max(proposal.errors.values(), default=float("inf"))
    return bool(proposal.problem or not proposal.errors), len(proposal.tensors) + len(proposal.keys), worst


class Search:
    """A search for a record of one model."""

    def __init__(self, tiny: Tiny, table: Sequence[Family]) -> None:
        self.tiny, self.files, self.tried = tiny, tiny.files, 0
        self.names = frozenset(self.files.source.names())
        self.records = [family for family in table if family.layout("hf")]
        self.stored = _by_role(self.records)
        self.prefix, self.roles = self._places()
        self.sizes = {size for name in self.names for size in self.files.source.shape(name)}
        self._attention: dict[str, bool] = {}
        self._runs: dict[bool, Any] = {}

    def bases(self) -> list[Family]:
        """Return the records with the roles and keys that the model has, best first."""
        alike = [family for family in self.records if family.stack == self.tiny.stack]
        return sorted(alike, key=self._unlike)[:BASES]

    def _unlike(self, base: Family) -> float:
        layout = _hf(base)
        needed = {role for role in layout.tensors if role not in layout.optional}
        roles = len(needed - self.roles.keys()) + len(self.roles.keys() - layout.tensors.keys())
        own = sum(self.roles.get(role) == stored for role, stored in layout.tensors.items())
        used = {key.partition(".")[0] for keys in layout.config.values() for key in keys}
        rotary = base.rotary != any(key.startswith("rope_") for key in self.files.config)
        return 4 * roles + len(used - self.files.config.keys()) + 4 * len(self._unmet(base)) + 8 * rotary - own / 8

    def _unmet(self, base: Family) -> list[str]:
        return [key for key, known in base.when.items() if looked_up(self.files.config, key) not in known]

    def _places(self) -> tuple[str, dict[str, Stored]]:
        """Return the prefix of names, and a place for each role that the model has: by its name, else by the table."""
        stem = layers_of(self.names, self.tiny.stack)
        prefix = prefix_of(self.tiny.hf, stem, _prefixes(self.records))
        roles = roles_of(self.tiny.hf, self.files.source, stem, prefix)
        known = {role: stored for role, places in self.stored.items() for stored in places if self._has(stored, prefix)}
        taken = {name for stored in roles.values() for name in self._first(stored)}
        more = {role: s for role, s in known.items() if role not in roles and not taken.intersection(self._first(s))}
        return prefix, {**roles, **more}

    def _first(self, stored: Stored) -> list[str]:
        """Return the name of an entry in layer 0, of its first expert."""
        return [stored.name.format(layer=0, expert=0)]

    def _has(self, stored: Stored, prefix: str) -> bool:
        names = [stored.name.format(layer=layer, expert=0) for layer in (0, 1, 2)]
        return any(full_name(name.partition("[")[0], prefix) in self.names for name in names)

    # From a record of the table to candidates

    def adapted(self, base: Family) -> Iterator[Family]:
        """Yield candidates from a record: its tensors and keys replaced by those of others where the model has them."""
        layout = _hf(base)
        tensors = self._tensors(layout)
        gated = "gate" in tensors
        prefixes = (self.prefix, *(prefix for prefix in layout.prefixes if prefix != self.prefix))
        for config, only, more in self._keys(base, replace(layout, tensors=tensors)):
            changed = replace(layout, prefixes=prefixes, tensors=tensors, config=config, **more)
            when = {key: values for key, values in base.when.items() if key not in self._unmet(base)}
            yield replace(
                base,
                name=self.tiny.name,
                model_types=(str(self.files.config["model_type"]),),
                ff_roles=("gate", "up", "value") if gated else ("key", "value"),
                layouts=(self._optional(changed),),
                when={**when, **only},
            )

    def _tensors(self, layout: Layout) -> dict[str, Stored]:
        """Return a place for each role: the record's own where the model has it, else the one that was found."""
        kept = {role: stored for role, stored in layout.tensors.items() if self._has(stored, self.prefix)}
        norms = {name for role in NORMS if role in self.roles for name in self._first(self.roles[role])}
        if norms - {name for stored in kept.values() for name in self._first(stored)}:
            kept = {role: stored for role, stored in kept.items() if role.removesuffix("_bias") not in NORMS}
        taken = {name for stored in kept.values() for name in self._first(stored)}
        found = {r: s for r, s in self.roles.items() if r not in kept and not taken.intersection(self._first(s))}
        optional = {r: s for r, s in layout.tensors.items() if r in layout.optional and r not in {*kept, *found}}
        return {**kept, **found, **optional}

    def _optional(self, layout: Layout) -> Layout:
        """Return the layout with every bias that the model has among the tensors that it may lack."""
        more = [role for role in layout.tensors if role in BIASES and role not in layout.optional]
        absent = [role for role in layout.tensors if role not in layout.optional and role not in more]
        absent = [
            role for role in absent if role.endswith("_bias") and not self._has(layout.tensors[role], self.prefix)
        ]
        switches = {
            key: (present, default)
            for key, (roles, default) in layout.switches.items()
            if (present := tuple(role for role in roles if role in layout.tensors))
        }
        kept = tuple(role for role in layout.optional if role in layout.tensors)
        return replace(layout, optional=(*kept, *more, *absent), switches=switches)

    def _keys(self, base: Family, layout: Layout) -> Iterator[tuple[Sizes, When, dict[str, Any]]]:
        """Yield what keys may mean: those of sizes and constants; values that a record is for; switches, harmless keys.

        A flag or a word that no record explains restricts the candidate to the value at hand.
        """
        config = dict(layout.config)
        for size, keys in config.items():
            if not any(looked_up(self.files.config, key) is not None for key in keys):
                others = [key for key in _keys_of(self.records, size) if key in self.files.config]
                config[size] = (*keys, *others[:1])
        unknown = self.unknown(base, replace(layout, config=config))
        inner = [(key, size) for size, key in _inner_keys(self.records) if size not in config]
        inner = [(key, size) for key, size in inner if looked_up(self.files.config, key) is not None]
        options = [self._meanings(key, layout) for key in unknown]
        options += [[("size", size), ("none", None)] for _, size in inner]
        for meanings in islice(product(*options), MEANINGS):
            sizes, when = dict(config), dict[str, tuple[object, ...]]()
            more = dict[str, Any](switches=dict(layout.switches), harmless=layout.harmless)
            for key, (kind, meaning) in zip([*unknown, *(key for key, _ in inner)], meanings, strict=True):
                if kind == "size":
                    sizes[meaning] = (key, *sizes.get(meaning, ()))
                elif kind == "switch":
                    more["switches"][key] = meaning
                elif kind == "harmless":
                    more["harmless"] = (*more["harmless"], meaning)
                elif kind == "when":
                    when[key] = meaning
            yield sizes, when, more

    def unknown(self, family: Family, layout: Layout) -> list[str]:
        """Return the keys of the configuration that a record does not know."""
        stated = ("model_type", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters")
        used = {*stated, "id2label", "transformers_weights", *layout.switches, *family.when}
        used |= {part for keys in layout.config.values() for key in keys for part in (key, key.partition(".")[0])}
        return [
            key
            for key, value in self.files.config.items()
            if key not in used and not is_harmless(self.files, layout, key, value)
        ]

    def _meanings(self, key: str, layout: Layout) -> list[tuple[str, Any]]:
        """Return what records of the table say of a key; if none does, its value if it is a flag or a word.

        A number that divides a size of a tensor may also stand for a size whose other keys are all absent.
        """
        meanings: list[tuple[str, Any]] = []
        for record in self.records:
            other = _hf(record)
            meanings += [("size", size) for size, keys in other.config.items() if key in keys]
            if key in other.switches and set(other.switches[key][0]) <= layout.tensors.keys():
                meanings.append(("switch", other.switches[key]))
            meanings += [("harmless", pattern) for pattern in other.harmless if re.fullmatch(pattern, key)]
        value = self.files.config[key]
        if type(value) is int and any(value > 1 and size % value == 0 for size in self.sizes):
            meanings += [
                ("size", size)
                for size in _SIZES
                if not any(k in self.files.config for k in layout.config.get(size, ()))
            ]
        unique = [m for n, m in enumerate(meanings) if m not in meanings[:n]]
        if not unique and isinstance(self.files.config[key], bool | str):
            return [("when", (self.files.config[key],))]
        return unique or [("unknown", None)]

    # From candidates to a proof

    def judged(self, base: Family, candidate: Family) -> Proposal:
        """Return the best variant of a candidate: the first that is proven, or the one with the smallest error."""
        keys = self.unknown(candidate, _hf(candidate))
        result = Proposal(base, candidate, tensors=self._unexplained(_hf(candidate)), keys=keys)
        if result.tensors:
            return replace(result, problem="tensors are not explained")
        failed, wrong = 0, set[str]()
        silenced = replace(_hf(candidate), harmless=(*_hf(candidate).harmless, *map(re.escape, keys)))
        for variant in self.variants(replace(candidate, layouts=(silenced,))):
            if self.tried >= LIMIT:
                break
            if (attention := _attention_of(variant)) in wrong:
                continue
            self.tried += 1
            try:
                model = self.opened(variant)
                worst = self._quick(model)
            except _IMPOSSIBLE as problem:
                result = result if result.errors else replace(result, problem=self._said(problem))
                failed += 1
                if failed > PATIENCE and not result.errors:
                    break
                continue
            if worst == float("inf"):
                wrong.add(attention)
            family = replace(variant, layouts=(replace(_hf(variant), harmless=_hf(candidate).harmless),))
            if worst > proof.TOLERANCE:
                if worst < max(result.errors.values(), default=float("inf")):
                    result = replace(result, family=family, errors={"layer 0": worst}, problem="")
                elif not result.errors:
                    result = replace(result, problem="no variant explains the attention of layer 0")
                continue
            result = replace(result, family=family, problem="", **self._proof(model))
            if result.proven:
                break
        return result

    def _said(self, problem: Exception) -> str:
        """Return an error in a line, without the folder of the model."""
        return f"{type(problem).__name__}: {problem}".replace(f"{self.tiny.folder}", "").replace(
            "/model.safetensors: ", ""
        )

    def _unexplained(self, layout: Layout) -> list[str]:
        prefix = self.prefix
        entries = [*layout.tensors.values(), *(stored for stored, _ in layout.extra.values())]
        heads = {full_name(name, prefix) for name in (*layout.copies, layout.head) if name}
        patterns = [re.escape(full_name(s.name.partition("[")[0], prefix)) for s in entries]
        patterns = [re.sub(r"\\\{(layer|expert)\\\}", r"\\d+", pattern) for pattern in patterns]
        patterns += [p[2:] if p.startswith(r"\^") else re.escape(prefix) + p for p in layout.unread]
        return sorted(name for name in self.names - heads if not any(re.fullmatch(p, name) for p in patterns))[:8]

    def opened(self, family: Family) -> Model:
        """Open the model by one record."""
        with patch("zeropass.model.model.FAMILIES", (family,)):
            return open_model(self.tiny.place)

    def variants(self, candidate: Family) -> Iterator[Family]:
        """Yield the candidate itself, then with every order of its norms and every variant that its tensors admit."""
        layout = _hf(candidate)
        routed = _first_of(candidate.router_normed, (False, True)) if candidate.routed else (candidate.router_normed,)
        starts = _first_of(candidate.first_position, (0, 2)) if "positions" in layout.tensors else (0,)
        unplaced = not candidate.rotary and not {"positions", "relative"} & layout.tensors.keys()
        biases = _first_of(candidate.alibi, ("", "plain", "scaled")) if unplaced else ("",)
        changes = [
            [{"router_normed": normed} for normed in routed],
            [{"first_position": first} for first in starts],
            [{"causal": causal} for causal in _first_of(candidate.causal, (True, False))],
            [{"alibi": bias} for bias in biases],
            [{"norm": norm} for norm in _first_of(candidate.norm, ("rms", "layer"))],
            [{"norm_place": place} for place in _first_of(candidate.norm_place, ("pre", "post", "out"))],
            [{"qk_norm": how} for how in self._qk_norms(layout)],
            [{"parallel": parallel} for parallel in _first_of(candidate.parallel, (False, True))],
            [{"embed_scaled": scaled} for scaled in _first_of(candidate.embed_scaled, (False, True))],
        ]
        layouts = [
            replace(layout, tensors=tensors, gain_offset=offset)
            for tensors in self._arranged(layout, candidate.rotary)
            for offset in _first_of(layout.gain_offset, (0.0, 1.0))
        ]
        many = [
            replace(candidate, layouts=(each,), **{k: v for change in chosen for k, v in change.items()})
            for each, chosen in product(layouts, product(*changes))
        ]
        admitted = (variant for variant in many if _norms_fit(variant))
        yield from sorted(admitted, key=lambda variant: _changes(candidate, variant))

    def _qk_norms(self, layout: Layout) -> tuple[str, ...]:
        """Return what norms of queries and keys there are: none, as long as a head, or as long as all heads."""
        stored = layout.tensors.get("q_norm")
        name = stored and full_name(stored.name.format(layer=0), self.prefix)
        if name not in self.names:
            return ("",)
        rows = full_name(layout.tensors["q"].name.format(layer=0), self.prefix)
        alike = rows in self.names and self.files.source.shape(rows)[:1] == self.files.source.shape(name)
        return ("whole",) if alike else ("head",)

    def _arranged(self, layout: Layout, rotary: bool) -> Iterator[dict[str, Stored]]:
        """Yield the tensors with each arrangement of rotary rows, of fused tensors, and each order of norms."""
        fused = {role for role, stored in layout.tensors.items() if stored.fused}
        hows = _first_of(next((layout.tensors[r].fused for r in fused), ""), ("stacked", "grouped", "quarters"))
        for how in hows if fused else ("",):
            for turned in (False, True) if rotary else (False,):
                tensors = {
                    role: replace(
                        stored,
                        fused=how if role in fused else "",
                        paired_rows=stored.paired_rows != turned if role in _PAIRED else stored.paired_rows,
                    )
                    for role, stored in layout.tensors.items()
                }
                yield from _norm_orders(tensors)

    def _quick(self, model: Model) -> float:
        """Return the largest error of layer 0 and of the embedding; infinite where its attention is wrong."""
        case = self._case(model)
        if not self._attends(case, model):
            return float("inf")
        worst = max(proof.neurons_error(case, model, 0), proof.stream_error(case, model, 0))
        if worst < proof.TOLERANCE and not model.family.crosses:
            worst = max(worst, error(embedded(model, IDS), case.text.states(0)))
        return float(worst)

    def _attends(self, case: Any, model: Model) -> bool:
        """Tell whether attention in layer 0 is right; it is the same for all variants that differ elsewhere."""
        key = f"{_attention_of(model.family)} {asdict(replace(model.dims, embed_scale=1.0))}"
        if key not in self._attention:
            worst = max(proof.logits_error(case, model, 0), proof.heads_error(case, model, 0))
            self._attention[key] = worst < proof.TOLERANCE
        return self._attention[key]

    def _case(self, model: Model) -> Any:
        """Return a case of the proof, with the run of transformers that all candidates share."""
        case, rotary = proof.Case(self.tiny.hf, model, IDS), model.dims.rope is not None
        if rotary not in self._runs:
            self._runs[rotary] = case.text
        case.__dict__["text"] = replace(self._runs[rotary], model=model)
        return case

    def _proof(self, model: Model) -> dict[str, Any]:
        """Return the error of every check, and the corruptions that are not caught if all checks pass."""
        case, errors = self._case(model), dict[str, float]()
        for measure in proof.CHECKS:
            layers = range(model.dims.layers) if measure in proof.BY_LAYER else (0,)
            try:
                worst = max(measure(case, model, layer) for layer in layers)
            except _IMPOSSIBLE:
                worst = float("inf")
            errors[measure.__name__.removesuffix("_error")] = worst
        if max(errors.values()) >= proof.TOLERANCE:
            return {"errors": errors}
        spoilt = ((name, spoil(model)) for name, spoil in proof.SPOILS.items())
        passed = [name for name, wrong in spoilt if wrong and proof.largest_error(case, wrong) <= proof.WRONG]
        return {"errors": errors, "passed": passed}


# Pieces of records

_SIZES = ("neurons", "kv_heads", "head_dim", "layers", "d", "heads", "rotary")
_PAIRED = ("q", "k", "q_bias", "k_bias")


def _hf(family: Family) -> Layout:
    """Return the layout of safetensors of a record that has one."""
    layout = family.layout("hf")
    assert layout is not None
    return layout


def _by_role(records: Sequence[Family]) -> dict[str, list[Stored]]:
    """Return the places that records have for each role, the usual ones first."""
    counts: dict[str, Counter[Stored]] = {}
    for record in records:
        for role, stored in _hf(record).tensors.items():
            counts.setdefault(role, Counter())[stored] += 1
    return {role: [stored for stored, _ in places.most_common()] for role, places in counts.items()}


def _prefixes(records: Sequence[Family]) -> list[str]:
    """Return the prefixes of the names of tensors in any record, longest first."""
    return sorted({prefix for record in records for prefix in _hf(record).prefixes}, key=len, reverse=True)


def _keys_of(records: Sequence[Family], size: str) -> list[str]:
    """Return the keys that records have for a size, the usual ones first."""
    counts = Counter(key for record in records for key in _hf(record).config.get(size, ()))
    return [key for key, _ in counts.most_common()]


def _inner_keys(records: Sequence[Family]) -> list[tuple[str, str]]:
    """Return the keys inside objects that records have, each behind the size that it is for."""
    pairs = ((size, key) for r in records for size, keys in _hf(r).config.items() for key in keys if "." in key)
    return list(dict.fromkeys(pairs))


def _first_of(first: Any, choices: Sequence[Any]) -> tuple[Any, ...]:
    """Return the choices with one in front."""
    return (first, *(choice for choice in choices if choice != first))


def _norm_orders(tensors: Mapping[str, Stored]) -> Iterator[dict[str, Stored]]:
    """Yield the tensors with their norms in every order, in front of attention and MLP and behind."""
    roles = [role for role in NORMS if role in tensors]
    places = list(dict.fromkeys((tensors[role], tensors.get(f"{role}_bias")) for role in roles))
    others = {role: s for role, s in tensors.items() if role.removesuffix("_bias") not in NORMS}
    yield dict(tensors)
    sets = {1: [NORMS[:2]], 2: [NORMS[:2], NORMS[2:]], 4: [NORMS]}
    for names in sets.get(len(places), ()):
        for order in permutations(places if len(places) > 1 else places * 2):
            norms = {role: stored for role, (stored, _) in zip(names, order, strict=True)}
            biases = {f"{role}_bias": bias for role, (_, bias) in zip(names, order, strict=True) if bias}
            if {**others, **norms, **biases} != tensors:
                yield {**others, **norms, **biases}


def _norms_fit(family: Family) -> bool:
    """Tell whether a record has the norms that its kind of block needs."""
    before, behind = (all(role in _hf(family).tensors for role in roles) for roles in (NORMS[:2], NORMS[2:]))
    if family.parallel and family.norm_place != "pre":
        return False
    none = not any(role in _hf(family).tensors for role in NORMS)
    return {"pre": before or none, "post": before and not behind, "out": behind and not before}[family.norm_place]


def _attention_of(family: Family) -> str:
    """Return what of a record attention in layer 0 depends on, but for sizes and constants."""
    layout = _hf(family)
    parts = [layout.tensors.get(role) for role in (*"qkvo", "attn_norm", "q_norm", "k_norm")]
    kind = (family.norm, family.reads_normed, family.qk_norm, family.alibi, family.causal, family.bare_start)
    return f"{parts} {layout.gain_offset} {kind}"


def _changes(base: Family, family: Family) -> int:
    """Return the number of fields and of tensors that differ."""
    own, other = _hf(family), _hf(base)
    changed = sum(getattr(family, f.name) != getattr(base, f.name) for f in fields(Family) if f.name != "layouts")
    offset = own.gain_offset != other.gain_offset
    return changed + offset + sum(own.tensors.get(r) != other.tensors.get(r) for r in {*own.tensors, *other.tensors})


def record_text(base: Family, family: Family) -> str:
    """Return a record as Python: what differs from another record of the table."""
    name = _constant(base)
    changed = [
        f"    {f.name}={getattr(family, f.name)!r},"
        for f in fields(Family)
        if f.name != "layouts" and getattr(family, f.name) != getattr(base, f.name)
    ]
    layout, own = _hf(base), _hf(family)
    parts = [
        f"            {f.name}={_difference(f'{name}.layouts[0].{f.name}', getattr(layout, f.name), value)},"
        for f in fields(Layout)
        if (value := getattr(own, f.name)) != getattr(layout, f.name)
    ]
    inner = f"replace({name}.layouts[0]" + (",\n" + "\n".join(parts) + "\n        )" if parts else ")")
    return "\n".join([f"{own_name(family)} = replace(", f"    {name},", *changed, f"    layouts=({inner},),", ")"])


def own_name(family: Family) -> str:
    """Return the name of the constant of a new record."""
    return re.sub(r"\W", "_", family.name).upper()


def _constant(family: Family) -> str:
    """Return the name of the constant that holds a record of the table."""
    modules = (value for value in vars(families).values() if type(value).__name__ == "module")
    names = (name for module in modules for name, value in vars(module).items() if value is family and name.isupper())
    return next(names, own_name(family))


def _stored_text(value: Any) -> str:
    """Return a value as Python; of a place, what is not the default."""
    if not isinstance(value, Stored):
        return repr(value)
    more = [f"{f.name}={getattr(value, f.name)!r}" for f in fields(Stored)[1:] if getattr(value, f.name) != f.default]
    return f"Stored({', '.join([repr(value.name), *more])})"


def _difference(name: str, old: Any, new: Any) -> str:
    """Return a value as Python; of a mapping, what it has in addition to another one, without what it lacks."""
    if not isinstance(new, Mapping):
        return repr(new)
    lines = [
        f"\n                {key!r}: {_stored_text(value)}"
        for key, value in new.items()
        if key not in old or old[key] != value
    ]
    lacks = [key for key in old if key not in new]
    kept = f"**{name}" if not lacks else f"**{{k: v for k, v in {name}.items() if k not in {lacks!r}}}"
    return "{" + ", ".join([kept, *lines]) + "}"


# The command


def tiny_of(name: str, folder: Path) -> Tiny:
    """Return a tiny model of the ZOO."""
    hf = tiny_model(name)
    return Tiny(name, hf, save(hf, folder / name), ZOO[name][2].get("stack", ""))


def without(name: str, folder: Path) -> tuple[Tiny, list[Family]]:
    """Return a tiny model of the ZOO, and the table without the records of its family and of its model type."""
    tiny = tiny_of(name, folder)
    family = open_model(tiny.place).family
    left = [f for f in FAMILIES if f.name != family.name and not set(f.model_types) & set(family.model_types)]
    return tiny, left


def left_out() -> list[str]:
    """Return the models of the ZOO that have one record: those that are no wrapper around another."""
    return [name for name, (_, _, settings) in ZOO.items() if "text_config" not in settings]


def main() -> None:
    """Print a proposal, or the table of leave-one-out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="a name of tests/zoo.py; or a class, a configuration and its settings")
    parser.add_argument("--leave-one-out", action="store_true", help="try every family of the table as if it were new")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.leave_one_out:
            for line in table(left_out(), folder):
                print(line, flush=True)
        elif len(given.model) == 1:
            print(propose(*without(given.model[0], folder)).text())
        elif len(given.model) == 3:
            hf = drawn(*given.model[:2], json.loads(given.model[2]))
            tiny = Tiny(hf.config.model_type, hf, save(hf, folder / "model"))
            print(propose(tiny, FAMILIES).text())
        else:
            parser.print_help()


def table(names: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the lines of a Markdown table: for each family, what the table without it led to."""
    yield "| family | found from | candidates | seconds | |"
    yield "| --- | --- | ---: | ---: | --- |"
    for name in names:
        start = time.monotonic()
        result = propose(*without(name, folder))
        spent = time.monotonic() - start
        why = "; ".join(part for part in (*result.tensors[:2], *result.keys[:2], result.problem) if part)
        worst = max(result.errors.values(), default=float("nan"))
        outcome = "proven" if result.proven else f"not proven: {why or f'largest error {worst:.1g}'}"
        yield f"| {name} | {result.base.name} | {result.tried} | {spent:.0f} | {outcome} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
