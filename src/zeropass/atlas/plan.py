"""The plan of a build: its jobs, its identity, and whether a folder may be used for it."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from zeropass._io.atomic import claim_folder
from zeropass.arch.spec import FRAMES, MAP_ROLES, OUTSIDE, sides_of, site_of
from zeropass.atlas.schema import FOLDERS, MANIFEST, PLAN, SCHEMA_VERSION, Job, Options, read_json, write_json
from zeropass.errors import BadAtlas, BadOption
from zeropass.model.model import Model
from zeropass.model.vectors import bias_roles, count_of, kind_of, table_roles

__all__ = ["ListKey", "clear", "identity", "list_bases", "list_frames", "plan_jobs", "prepare", "sweep", "vector_roles"]

ListKey = tuple[int, str, str]
"""(layer, role, frame): what one run of list ids belongs to."""


def plan_jobs(model: Model, options: Options) -> list[Job]:
    """The jobs of a build in order: FF roles, heads (a role's subheads with its map), lone vectors, tables."""
    first, stop = options.layers or (0, model.dims.layers)
    if not 0 <= first < stop <= model.dims.layers:
        raise BadOption(
            f"--layers {first}:{stop} is out of range: {model.name} has layers 0 to {model.dims.layers - 1} "
            f"(0:{model.dims.layers} for all)."
        )
    known = (*model.family.roles, *bias_roles(model), *table_roles(model))
    wanted = options.roles or known
    if unknown := [role for role in wanted if role not in known]:
        raise BadOption(f"--roles: {model.name} has no {', '.join(unknown)}; it has {', '.join(known)}.")
    groups: list[tuple[str, ...]] = [(role,) for role in model.family.roles if site_of(role) == "ff"]
    maps = [kind for kind in model.family.roles if kind in MAP_ROLES]
    groups += [*((*sides_of(kind), kind) for kind in maps), bias_roles(model)]
    chosen = [tuple(role for role in group if role in wanted) for group in groups]
    jobs = [Job(layer, roles) for layer in range(first, stop) for roles in chosen if roles]
    return jobs + [Job(OUTSIDE, (role,)) for role in table_roles(model) if role in wanted]


def identity(model: Model, options: Options) -> dict[str, Any]:
    """What makes two builds the same: weights, vocabulary and options."""
    vocabulary = hashlib.sha256("\0".join(model.vocab.pieces).encode("utf-8", "surrogatepass")).hexdigest()
    return {
        "schema": SCHEMA_VERSION,
        "model": {
            "name": model.name,
            "family": model.family.name,
            "format": model.files.format,
            "layers": model.dims.layers,
            "d": model.dims.d,
            "neurons": model.dims.neurons,
            "experts": model.dims.experts,
            "heads": model.dims.heads,
            "kv_heads": model.dims.kv_heads,
            "head_dim": model.dims.head_dim,
            "vocabulary": model.dims.vocab,
            "tied": model.dims.tied,
            "norm": f"{model.family.norm_place}-{model.family.norm}",
            "rotary": model.dims.rope is not None,
            "parallel": model.family.parallel,
            "ff_roles": list(model.family.ff_roles),
        },
        "weights_sha256": model.fingerprint,
        "sha256": model.sha256,
        "vocabulary_sha256": vocabulary,
        "options": options.to_json(),
    }


def prepare(out: Path, plan: dict[str, Any]) -> bool:
    """Make the folder ready for a plan, as `identity` gives it; False if the very same atlas is complete in it."""
    if out.exists() and not out.is_dir():
        raise BadAtlas(f"{out} is a file; --out names the folder of the atlas.")
    if (out / PLAN).exists():
        found = read_json(out / PLAN)
        if _unnamed(found) != _unnamed(plan):
            raise BadAtlas(
                f"{out} holds another atlas ({_difference(found, plan)}); choose another --out or delete it."
            )
        if (out / MANIFEST).exists():
            clear(out)
            return False
    else:
        claim_folder(out, "an atlas", (PLAN,), BadAtlas)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / PLAN).exists():
            write_json(out / PLAN, plan)  # first of all: it is what makes the folder ours
        for folder in FOLDERS:
            (out / folder).mkdir(exist_ok=True)
        sweep(out)
    except OSError as error:
        raise BadAtlas(f"{out} cannot be made ({error.strerror}); choose another --out.") from error
    return True


def clear(out: Path) -> None:
    """Remove what only an unfinished atlas needs, and needs as a whole: a part of it would be a job half done."""
    shutil.rmtree(out / "scratch", ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove what was being written when a process died."""
    for leftover in out.rglob(".*.part"):
        leftover.unlink(missing_ok=True)


def _unnamed(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan without what the model and its files were called: the same weights may be asked for by another path."""
    model = plan.get("model")
    return plan | {"model": {**model, "name": ""} if isinstance(model, dict) else None, "sha256": None}


def _difference(found: dict[str, Any], plan: dict[str, Any]) -> str:
    """The first thing in which two plans differ, in words."""
    for part in ("options", "model"):
        a, b = found.get(part), plan[part]
        if not isinstance(a, dict):
            return f"its {part} is no object"
        for key in (key for key in b if key != "name"):
            if a.get(key) != b[key]:
                return f"{key} {a.get(key)!r} instead of {b[key]!r}"
    return "another schema version" if found.get("schema") != plan["schema"] else "other weights or vocabulary"


def vector_roles(job: Job) -> list[str]:
    """The roles of a job that are sets of vectors; the others are head maps."""
    return [role for role in job.roles if role not in MAP_ROLES]


def list_frames(model: Model, options: Options, layer: int, role: str) -> tuple[str, ...]:
    """The frames in which a set is listed: those asked for that it has, or the only one it has."""
    own = kind_of(model, layer, role)[1]
    if own == ("paper",):
        return own
    return tuple(f for f in FRAMES if f in options.frames and (f in own or f == "paper"))


def list_bases(model: Model, options: Options, jobs: list[Job]) -> dict[ListKey, int]:
    """Id of the first list of every (layer, role, frame), in the order of the plan."""
    bases: dict[ListKey, int] = {}
    next_id = 0
    for job in jobs:
        for role in vector_roles(job):
            for frame in list_frames(model, options, job.layer, role):
                bases[job.layer, role, frame] = next_id
                next_id += count_of(model, job.layer, role)
    return bases
