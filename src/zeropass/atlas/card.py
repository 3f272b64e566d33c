"""The card of a dataset that holds an atlas: settings for the hub, and what a reader of it has to know. No torch."""

import hashlib
import re
import shlex

from huggingface_hub import DatasetCardData

from zeropass.atlas.read import Atlas
from zeropass.atlas.schema import SCHEMA_VERSION
from zeropass.atlas.sql import TABLES
from zeropass.checkpoints.hub_address import DATASETS
from zeropass.records.verdicts import Verdicts
from zeropass.tokens.shown import shown_text

__all__ = ["UNKNOWN", "card", "is_edited"]

UNKNOWN = "unknown"
"""The name that hubs give a licence that is not known."""

TAGS = ["zeropass", "interpretability", "mechanistic-interpretability", "embedding-space"]

_MARK = re.compile("\n<!-- Written by zeropass push; [0-9a-f]{64} -->\n")
"""The line of a card with the hash of all others: a card that was edited has another hash."""

_TEXT = """# Atlas of `{name}`

{subject}
zeropass made it from the weights{through} ([the method](https://arxiv.org/abs/2209.02535)).
A list says which tokens a direction has the largest inner products with.
It is no proof that the model uses the parameter that way.

- Model: {title}, family {family}, layers {first} to {last} of {layers}, width {d}, {vocabulary:,} tokens
- SHA-256 of its weights: `{sha256}`
- Licence of the model: {license}
- Lens: {lens}
- {lists:,} lists, {k} tokens of each pole, schema version {schema}
- Evidence: {evidence}

Only what a question needs is downloaded:

```python
import zeropass as zp

atlas = zp.open_atlas("{address}")
print(atlas["{example}"].to_json())
```

```sh
zeropass show {command} {example}
```

The tables are Parquet files, which anything reads; `vectors` and `rows` are arrays of NumPy.
"""


def card(atlas: Atlas, repo_id: str, license_id: str = UNKNOWN) -> str:
    """Return the card of an atlas.

    Args:
        atlas: The atlas.
        repo_id: The hub id of the dataset.
        license_id: The licence of the model, as hubs name it.
    """
    tables = {name: files for name, files in TABLES.items() if any(atlas.path.glob(files))}
    settings = DatasetCardData(
        license=license_id,
        pretty_name=f"Atlas of {_text(atlas.model['name'])}",
        tags=TAGS,
        configs=[
            {"config_name": name, "data_files": files} | ({"default": True} if name == "parameters" else {})
            for name, files in tables.items()
        ],
    )
    model, (first, stop), address = atlas.model, atlas.layers, f"{DATASETS}{repo_id}"
    unknown = "unknown; the atlas is made from its weights, so ask before you use it"
    text = _TEXT.format(
        name=_text(model["name"]),
        title=_text(atlas.title or model["name"]),
        through=", through a lens" if atlas.lens else " alone",
        subject=_subject(atlas),
        family=_text(model["family"]),
        first=first,
        last=stop - 1,
        layers=model["layers"],
        d=model["d"],
        vocabulary=model["vocabulary"],
        sha256=_text(str(atlas.manifest.get("weights_sha256"))),
        license=unknown if license_id == UNKNOWN else license_id,
        lens=_text(atlas.lens) if atlas.lens else "none",
        lists=atlas.manifest["lists"],
        k=atlas.options["k"],
        schema=SCHEMA_VERSION,
        evidence=_evidence(atlas.verdicts),
        address=address,
        command=shlex.quote(address),
        example=_example(atlas),
    )
    return _marked(f"---\n{settings.to_yaml()}\n---\n{text}")


def is_edited(text: str) -> bool:
    """Tell whether a card is another one than `card` returned."""
    return _marked(_MARK.sub("", text)) != text


def _subject(atlas: Atlas) -> str:
    """Return a sentence that says what the lists of an atlas are about."""
    if atlas.is_dictionary:
        return f"Every feature of a dictionary as words: {_text(atlas.note)}"
    if atlas.is_change:
        return "A fine-tune as words: the tokens that each neuron and each column of a head reads or writes since then."
    return "Every parameter of a model as words: the tokens that each neuron and each column of a head reads or writes."


def _evidence(verdicts: Verdicts | None) -> str:
    """Return the measurement behind the verdicts on a model, in words."""
    if not verdicts:
        return "none; how far the words agree with the running model was not measured for these weights"
    return f"its lists were compared with the running model, on {_text(verdicts.basis)}"


def _example(atlas: Atlas) -> str:
    """Return the address of the first list with a high strength that an atlas holds."""
    return next(iter(atlas.strongest([run.role for run in atlas.runs], (-1, atlas.model["layers"]), k=1)), "L0.ff.0")


def _marked(text: str) -> str:
    """Return the text of a card with its hash."""
    return f"{text}\n<!-- Written by zeropass push; {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def _text(text: str) -> str:
    """Return a text of an atlas on one line, without what Markdown or HTML would read."""
    return re.sub(r"[`<>\[\]|*\\]", "", shown_text(" ".join(text.split()), limit=500))
