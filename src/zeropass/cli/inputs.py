"""The arguments of commands as models, layers and names."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import zeropass as zp
from zeropass.checkpoints.hub_address import DATASETS
from zeropass.errors import BadModel, BadOption, NotFetched
from zeropass.model.address import part_of_layer
from zeropass.tokens.shown import shown_text

__all__ = ["adapters_of", "is_atlas", "open_named", "open_tuned", "parse_layers", "parse_lenses", "parse_names"]
__all__ += [
    "put_adapters",
    "refuse_layers",
    "refuse_mixed",
    "refuse_weights_only",
    "require_features",
    "require_vector_or_address",
]


def adapters_of(places: list[str] | None, weights: list[float] | None) -> list[str]:
    """Return the adapters that are given; raise BadOption for weights that do not belong to them."""
    if weights and len(weights) != len(places or ()):
        raise BadOption(
            f"--weight is given {len(weights)} times, --adapter {len(places or ())} times: each adapter has one weight."
        )
    return places or []


def put_adapters(base: Any, places: list[str], weights: list[float] | None = None) -> Any:
    """Put adapters on a model, if there are any, and print to stderr any doubt that they belong there."""
    return _with_warnings(zp.adapt(base, places, weights or None)) if places else base


def open_tuned(name: str, base: Any, device: str) -> Any:
    """Open a fine-tuned model, which may be an adapter on its base."""
    if base is not None:
        return _with_warnings(zp.open_tuned(base, name))
    if (Path(name) / "adapter_config.json").is_file():
        raise BadOption(f"{name} is an adapter: it needs --base, the model that it was trained on.")
    return zp.open_model(name, device=device)


def _with_warnings(model: Any) -> Any:
    """Print to stderr the doubts that an adapter belongs to its base, and return the model."""
    for warning in getattr(model, "warnings", ()):
        print(f"warning: {shown_text(warning, limit=500)}", file=sys.stderr)
    return model


def open_named(name: str, device: str = "cpu") -> Any:
    """Open a model; if nothing has this name, the error also says how to make an atlas."""
    try:
        return zp.open_model(name, device=device)
    except (BadModel, NotFetched) as error:
        if os.path.lexists(name):
            raise
        command = f"zeropass build MODEL --out {name}"
        raise type(error)(f"{str(error).rstrip('.')}. If an atlas is meant, it is made by: {command}") from error


def is_atlas(name: str) -> bool:
    """Tell whether a name is that of a folder with an atlas, finished or not, or the address of one on the hub."""
    path = Path(name)
    return name.startswith(DATASETS) or (path / "plan.json").is_file() or (path / "manifest.json").is_file()


def parse_layers(text: str | None) -> tuple[int, int] | None:
    """Return ``A:B`` as a half-open range; a single number is that layer."""
    if text is None:
        return None
    match = re.fullmatch("([0-9]{1,9})(?::([0-9]{1,9}))?", text)
    if match is None:
        raise BadOption(f"--layers {text!r} is not a range; it looks like 4:8 (layers 4 to 7) or 4.")
    first = int(match[1])
    return first, int(match[2]) if match[2] else first + 1


def parse_lenses(lenses: list[str] | None) -> tuple[str, str]:
    """Return the lens of each of two models; auto and none may stand for both."""
    first, *others = lenses or ["auto"]
    if not others and first in ("auto", "none"):
        return first, first
    if len(others) != 1:
        raise BadOption(
            f"--lens is given {len(lenses or ())} times: two models need a lens each, or auto or none once."
        )
    return first, others[0]


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Return names that are separated by commas; None for None."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def require_vector_or_address(vector: str | None, addresses: list[str], options: dict[str, Any]) -> None:
    """Raise BadOption unless there is an address, or a file of vectors with its layer.

    Args:
        vector: The file of vectors.
        addresses: The addresses.
        options: What is said of vectors, by option.
    """
    if vector is None:
        if given := [name for name, value in options.items() if value is not None]:
            raise BadOption(f"{given[0]} is about --vector FILE; an address says where a parameter is.")
        if not addresses:
            raise BadOption("An address is needed, such as L26.ff.1189, or --vector FILE.")
    elif addresses:
        raise BadOption(f"--vector is read instead of a parameter, so it takes no address ({addresses[0]!r}).")
    elif options["--layer"] is None:
        raise BadOption("--vector needs --layer: where the vector reads or writes.")


def refuse_layers(what: str, addresses: list[str]) -> None:
    """Raise BadOption for the address of a layer beside others, or of a model, which has no table of its lists."""
    layers = [address for address in addresses if part_of_layer(address)]
    if layers and not is_atlas(what):
        raise BadOption(
            f"{layers[0]} is a layer, which an atlas shows (zeropass build MODEL --out DIR); of a model, an address is "
            "that of a parameter, such as L26.ff.1189 or L10.attn.3."
        )
    if layers and len(addresses) > 1:
        raise BadOption(f"{layers[0]} is a layer, which is shown alone.")


def refuse_mixed(
    vector: str | None, features: str | None, of_features: dict[str, Any], of_maps: dict[str, bool]
) -> None:
    """Raise BadOption for options of ``zeropass show`` that do not go together.

    Args:
        vector: The file of vectors.
        features: The place of a dictionary.
        of_features: What is said of a dictionary, by option.
        of_maps: Whether an option is given that is about head maps.
    """
    require_features(features, of_features)
    if features is not None and vector is not None:
        raise BadOption(
            "--features says what ADDRESS is a feature of, and --vector takes no address; give one of them."
        )
    if (vector or features) and (given := [name for name, value in of_maps.items() if value]):
        raise BadOption(f"{given[0]} is for head maps; directions and features have lists.")


def require_features(features: str | None, of_features: dict[str, Any]) -> None:
    """Raise BadOption for what is said of a dictionary, by option, if no dictionary is named."""
    if features is None and (given := [name for name, value in of_features.items() if value is not None]):
        raise BadOption(f"{given[0]} is about --features PLACE.")


def refuse_weights_only(folder: str, options: dict[str, Any], command: str = "show MODEL …") -> None:
    """Raise BadOption if an option is given that needs the weights, which an atlas does not hold.

    Args:
        folder: The folder of the atlas.
        options: The options, by name.
        command: The command that takes them, with MODEL for the model of the atlas.
    """
    if given := [name for name, value in options.items() if value not in (None, False)]:
        facts = zp.open_atlas(folder).model
        model = facts.get("command", facts["name"])
        raise BadOption(
            f"--{given[0]} needs the weights, and {folder} is an atlas; ask its model: "
            f"zeropass {command.replace('MODEL', model)}"
        )
