"""The plan of a build: its jobs, its identity, and whether a folder may be used for it."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from zeropass._io.atomic import claim_folder
from zeropass.arch.frame_names import ALL_FRAMES, LENS_FRAMES, default_frames, with_lens
from zeropass.arch.roles import MAP_ROLES, OUTSIDE, sides_of, site_of
from zeropass.atlas.schema import (
    FOLDERS,
    MANIFEST,
    PLAN,
    SCHEMA_VERSION,
    Job,
    Options,
    head_facts,
    hybrid_facts,
    mlp_facts,
    read_json,
    write_json,
)
from zeropass.errors import BadAtlas, BadOption
from zeropass.model.lens_maps import LensMaps
from zeropass.model.model import Model
from zeropass.model.vectors import SetFacts, bias_roles, roles_at, table_roles

__all__ = ["ListKey", "clear", "identity", "list_bases", "list_frames", "plan_jobs", "prepare", "resolve"]
__all__ += ["sweep", "vector_roles"]

ListKey = tuple[int, str, str]
"""(layer, role, frame): the key of a run of list ids."""


def plan_jobs(model: Model, options: Options) -> list[Job]:
    """Return the jobs of a build: in each layer FF roles, head maps with their subheads, biases; at the end tables."""
    first, stop = options.layers or (0, model.dims.layers)
    if not 0 <= first < stop <= model.dims.layers:
        raise BadOption(
            f"--layers {first}:{stop} is out of range: {model.name} has layers 0 to {model.dims.layers - 1} "
            f"(0:{model.dims.layers} for all)."
        )
    known = (*model.family.roles, *bias_roles(model), *table_roles(model))
    requested = options.roles or known
    if unknown := [role for role in requested if role not in known]:
        raise BadOption(f"--roles: {model.name} has no {', '.join(unknown)}; it has {', '.join(known)}.")
    maps = [role for role in model.family.roles if role in MAP_ROLES]
    with_maps: list[tuple[str, ...]] = [(*sides_of(map_role), map_role) for map_role in maps]
    mapped = {*chain(*with_maps)}
    alone: list[tuple[str, ...]] = [(role,) for role in model.family.roles if role not in mapped]
    groups = [group for group in alone if site_of(group[0]) == "ff"] + with_maps
    groups += [*(group for group in alone if group not in groups), bias_roles(model)]
    jobs = []
    for layer in range(first, stop):
        present = {*roles_at(model, layer), *(maps if model.dims.has_site("attn", layer) else ())}
        chosen = [tuple(role for role in group if role in requested and role in present) for group in groups]
        jobs += [Job(layer, roles) for roles in chosen if roles]
    return jobs + [Job(OUTSIDE, (role,)) for role in table_roles(model) if role in requested]


def resolve(options: Options, lens: LensMaps | None, model: str) -> tuple[Options, LensMaps | None]:
    """Return the options and the lens that a build uses.

    Without a lens the usual frames are those of the weights alone; a lens that no frame needs is left out.

    Args:
        options: The options.
        lens: The lens, if there is one.
        model: The name of the model.

    Raises:
        BadOption: A frame needs a lens, but there is none, or the lens lacks a frame.
    """
    if lens is not None and not set(LENS_FRAMES) <= set(lens.frames):
        raise BadOption(
            f"An atlas is made through a lens of what reads and of what writes, as `zeropass calibrate {model}` makes; "
            f"this is a {lens.facts.words}. --lens none leaves it out, and zeropass show reads through it."
        )
    if options.frames is None:
        return (options if lens else replace(options, frames=default_frames("read"))), lens
    needing = [frame for frame in options.frames if frame in LENS_FRAMES]
    if needing and lens is None:
        raise BadOption(f"The frame {needing[0]} needs a lens of {model}: `zeropass calibrate` makes one.")
    return options, lens if needing else None


def identity(model: Model, options: Options, lens: LensMaps | None = None) -> dict[str, Any]:
    """Return the plan of a build, by which two builds are the same: weights, vocabulary, options and lens."""
    facts = {} if lens is None else {"lens": {"words": lens.facts.words, "note": lens.facts.note} | lens.facts.identity}
    vocabulary = hashlib.sha256("\0".join(model.vocab.pieces).encode("utf-8", "surrogatepass")).hexdigest()
    return {
        "schema": SCHEMA_VERSION,
        "model": {
            "name": model.name,
            **({"command": model.command} if model.command != model.name else {}),
            "family": model.family.name,
            "format": model.files.format,
            "layers": model.dims.layers,
            "d": model.dims.d,
            "neurons": model.dims.neurons,
            "experts": model.dims.experts,
            **mlp_facts(model.dims.mlps),
            **hybrid_facts(model.dims),
            **head_facts(model.dims),
            "heads": model.dims.heads,
            "kv_heads": model.dims.kv_heads,
            "head_dim": model.dims.head_dim,
            "vocabulary": model.dims.vocab,
            "tied": model.dims.tied,
            "norm": f"{model.family.norm_place}-{model.family.norm}",
            "rotary": model.dims.rope is not None or model.has("distances"),
            "parallel": model.family.parallel,
            "ff_roles": list(model.family.ff_roles),
        },
        "weights_sha256": model.fingerprint,
        "sha256": model.sha256,
        "vocabulary_sha256": vocabulary,
        "options": options.to_json(),
    } | facts


def prepare(out: Path, plan: dict[str, Any]) -> bool:
    """Prepare the folder for a plan, as `identity` returns it; return False if the same atlas is complete in it."""
    if out.exists() and not out.is_dir():
        raise BadAtlas(f"{out} is a file; --out names the folder of the atlas.")
    if (out / PLAN).exists():
        stored = read_json(out / PLAN)
        if _unnamed(stored) != _unnamed(plan):
            raise BadAtlas(
                f"{out} holds another atlas ({_difference(stored, plan)}); choose another --out or delete it."
            )
        if (out / MANIFEST).exists():
            clear(out)
            return False
    else:
        claim_folder(out, "an atlas", (PLAN,), BadAtlas)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / PLAN).exists():
            write_json(out / PLAN, plan)  # First of all, because it marks the folder as an atlas.
        for folder in FOLDERS:
            (out / folder).mkdir(exist_ok=True)
        sweep(out)
    except OSError as error:
        raise BadAtlas(f"{out} cannot be made ({error.strerror}); choose another --out.") from error
    return True


def clear(out: Path) -> None:
    """Remove the scratch folder, which only an unfinished atlas needs."""
    shutil.rmtree(out / "scratch", ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove the temporary files of processes that died."""
    for leftover in out.rglob(".*.part"):
        leftover.unlink(missing_ok=True)


def _unnamed(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan without the names of model and files: the same weights may have another path."""
    model = plan.get("model")
    return plan | {"model": {**model, "name": "", "command": ""} if isinstance(model, dict) else None, "sha256": None}


def _difference(stored: dict[str, Any], plan: dict[str, Any]) -> str:
    """Return the first difference of two plans, in words."""
    for part in ("lens", "dictionary", "options", "model"):
        a, b = stored.get(part, {}), plan.get(part, {})
        if not isinstance(a, dict):
            return f"its {part} is no object"
        if bool(a) != bool(b):
            return f"{part}: {'one' if a else 'none'} instead of {'one' if b else 'none'}"
        for key in (key for key in b if key != "name"):
            if a.get(key) != b[key]:
                return f"{key} {a.get(key)!r} instead of {b[key]!r}"
    return "another schema version" if stored.get("schema") != plan["schema"] else "other weights or vocabulary"


def vector_roles(job: Job) -> list[str]:
    """Return the roles of a job that are sets of vectors; the others are head maps."""
    return [role for role in job.roles if role not in MAP_ROLES]


def list_frames(facts: SetFacts, options: Options) -> tuple[str, ...]:
    """Return the frames in which a set is listed: those of the options that it has, or the only one it has."""
    if facts.frames == ("paper",):
        return facts.frames
    through_lens = with_lens(facts.frames, facts.role, facts.side, LENS_FRAMES)
    if options.frames is None:
        return through_lens
    return tuple(f for f in ALL_FRAMES if f in options.frames and f in (*facts.frames, *through_lens, "paper"))


def list_bases(facts_of: Callable[[int, str], SetFacts], options: Options, jobs: list[Job]) -> dict[ListKey, int]:
    """Return the id of the first list of every (layer, role, frame), in the order of the plan."""
    bases: dict[ListKey, int] = {}
    next_id = 0
    for job in jobs:
        for role in vector_roles(job):
            facts = facts_of(job.layer, role)
            for frame in list_frames(facts, options):
                bases[job.layer, role, frame] = next_id
                next_id += facts.count
    return bases
