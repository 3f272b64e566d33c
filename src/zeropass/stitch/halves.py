"""The two halves of a stitched model, cut out of transformers' own: blocks that are left, and entered, half-way.

What stands at a seam is the residual stream itself. Transformers puts more into the path than that, and each piece has
to go (design.md §4, the known traps):

* the last entry of ``hidden_states`` is normed already: the final norm of the lower half is taken out;
* ``inputs_embeds`` gets position embeddings again (GPT-2), or positions, types and a norm (BERT): what the upper half
  does before its first block is taken out. Rotary positions are applied inside the blocks and stay;
* a post-norm block reads a normed stream: there what comes in is put where the norm below the seam puts it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zeropass.arch.rows import row_index
from zeropass.arch.spec import Family, Layout
from zeropass.errors import BadModel, BadOption
from zeropass.model.adapted import Adapted
from zeropass.model.model import Model
from zeropass.model.running import loaded, special_tokens, transformers

__all__ = ["FED", "Lower", "Upper", "batches", "head_of", "load_classifier", "load_lower"]
__all__ += ["load_plain_classifier", "padding", "put", "require_classifier", "require_fed"]

FED = {"llama": "", "gpt2": "wpe", "bert": "embeddings"}
"""The families whose blocks can be fed from outside, and the module that adds something to what comes in."""

BATCH, LONGEST = 32, 256


class _Zero(nn.Module):
    """Stands for a table of positions that adds nothing."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros((), device=ids.device)


class _Given(nn.Module):
    """Stands for an embedding layer that passes on what it is given."""

    def forward(self, inputs_embeds: Tensor, **_others: Any) -> Tensor:
        return inputs_embeds


class Lower(nn.Module):
    """Embedding and first ``keep`` blocks of a model; all blocks if not given."""

    def __init__(self, base: Any, family: Family, keep: int | None = None) -> None:
        super().__init__()
        self.base, self.typed = base, family.name == "bert"
        _cut(base, family, slice(0, keep))
        _set(base, _final_norm(family), nn.Identity())
        if getattr(base, "pooler", None) is not None:
            base.pooler = None

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """The stream (batch, tokens, d) above the last block that is kept."""
        found: Tensor = self._run(ids, mask, types).last_hidden_state
        return found

    def depths(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> tuple[Tensor, ...]:
        """The stream as it enters the first block and as it leaves each one."""
        states: tuple[Tensor, ...] = self._run(ids, mask, types, output_hidden_states=True).hidden_states
        return states

    def _run(self, ids: Tensor, mask: Tensor, types: Tensor | None, **more: Any) -> Any:
        if self.typed and types is not None:
            more["token_type_ids"] = types
        return self.base(input_ids=ids, attention_mask=mask, use_cache=False, **more)


class Upper(nn.Module):
    """Last ``take`` blocks of a classifier with its head; all blocks if not given. Fed with a stream, not with ids."""

    def __init__(self, classifier: Any, family: Family, take: int | None = None) -> None:
        super().__init__()
        self.classifier, self.family = classifier, family
        blocks = _blocks(classifier.base_model, family)
        if take is not None and take < len(blocks):
            _cut(classifier.base_model, family, slice(len(blocks) - take, None))
        if FED[family.name]:
            _set(classifier.base_model, FED[family.name], _Given() if family.name == "bert" else _Zero())
        if family.name != "bert":  # the ids are never asked for
            classifier.base_model.set_input_embeddings(nn.Identity())

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Logits (batch, labels) from the stream (batch, tokens, d) below the first block."""
        model = self.classifier
        found = model.base_model(inputs_embeds=states, attention_mask=mask, use_cache=False)
        return self.logits_of(model, self.family, found, mask)

    @staticmethod
    def logits_of(classifier: Any, family: Family, found: Any, mask: Tensor) -> Tensor:
        """Logits (batch, labels) from what the blocks give: of the pooled first token, or of the last one attended."""
        if family.name == "bert":
            logits: Tensor = classifier.classifier(found.pooler_output)
            return logits
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        spoken: Tensor = classifier.score(found.last_hidden_state[torch.arange(len(mask), device=mask.device), last])
        return spoken

    @contextmanager
    def taking(self, take: int) -> Iterator["Upper"]:
        """With the last ``take`` blocks only, while the context lasts."""
        base = self.classifier.base_model
        whole = _blocks(base, self.family)
        try:
            _cut(base, self.family, slice(len(whole) - take, None))
            yield self
        finally:
            _set(base, _blocks_name(self.family), whole)
            base.config.num_hidden_layers = len(whole)


def require_fed(model: Model, what: str) -> None:
    """BadOption, with the families that can, for one whose blocks cannot be fed from outside."""
    if model.family.name not in FED:
        raise BadOption(
            f"{what} {model.name} is a {model.family.name}; the blocks of these families can be fed from outside: "
            f"{', '.join(FED)}."
        )


def require_classifier(model: Model) -> None:
    """BadOption for a model without a classifier's head, naming the tensor that is looked for, or with one of a kind
    that does not choose between labels.
    """
    head = model.layout.extra.get("classifier")
    if head is None or not model.has("classifier"):
        wanted = head[0].name.removeprefix("^") if head else "a classifier"
        raise BadOption(f"{model.name} has no classifier's head: there is no tensor {wanted}.")
    if model.rows("classifier") < 2:
        raise BadOption(f"The head of {model.name} has one row: a score (a reward, say), and no labels to choose from.")
    if model.files.config.get("problem_type") in ("multi_label_classification", "regression"):
        raise BadOption(f"The head of {model.name} is for {model.files.config['problem_type']}, which is not stitched.")


def load_lower(model: Model) -> Any:
    """The blocks of a model in transformers, float32, without any head."""
    return loaded(transformers.AutoModel, model).to(model.device)


def load_classifier(model: Model) -> Any:
    """A classifier in transformers, float32; of an adapter on a base: the base's with every change put in."""
    require_classifier(model)
    if not isinstance(model, Adapted):
        return loaded(transformers.AutoModelForSequenceClassification, model).to(model.device)
    made = load_plain_classifier(model.base, model)
    with torch.no_grad():
        for what, layer in {**model.changed, **model.replaced}:
            if (what, layer) in model.changed:
                values = model.vector(what, layer) if what.endswith("bias") else model.matrix(what, layer)
            else:
                values = model.replaced[what, layer]
            if values is not None:
                put(made, model, what, layer, values)
        bias = [values for name, values in model.adapter.whole.items() if name.endswith("classifier.bias")]
        if bias and head_of(made).bias is not None:
            head_of(made).bias.copy_(bias[0])
    return made


def put(hf: Any, model: Model, what: str, layer: int, values: Tensor) -> None:
    """Set a canonical tensor in transformers' module, as the record of transformers' own names says that it lies."""
    layout = _layout(model.family)
    stored = layout.tensors.get(what) or layout.extra[what][0]
    name = stored.name.format(layer=layer)
    weight = (hf if name.startswith("^") else hf.base_model).get_parameter(name.removeprefix("^")).data
    rows = weight.T if stored.transpose and weight.ndim == 2 else weight
    index = row_index(stored, what, model.dims)
    rows[slice(None) if index is None else index] = values


def load_plain_classifier(model: Model, like: Model) -> Any:
    """A model in transformers under a head with the labels of another; the head's weights mean nothing yet."""
    names = like.files.config.get("id2label")
    labels = {int(n): str(name) for n, name in names.items()} if names else None
    count = like.rows("classifier")
    if labels is None or len(labels) != count:
        labels = {n: f"LABEL_{n}" for n in range(count)}
    kind = transformers.AutoModelForSequenceClassification
    made = loaded(kind, model, id2label=labels, label2id={name: n for n, name in labels.items()})
    if made.config.pad_token_id is None:
        made.config.pad_token_id = padding(model)
    return made.to(model.device)


def padding(model: Model) -> int:
    """The token that fills up short texts; any will do where the vocabulary has none for it."""
    pieces = model.vocab.pieces
    return pieces.index("[PAD]") if "[PAD]" in pieces else 0


def head_of(classifier: Any) -> Any:
    """The linear layer that gives the logits."""
    return classifier.classifier if hasattr(classifier, "classifier") else classifier.score


def batches(model: Model, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(which texts, ids, mask): texts of like length together, padded on the right, cut at `LONGEST` tokens.

    An encoder gets the special tokens around each that it expects.
    """
    before, after = special_tokens(model)
    rows = [[*before, *model.vocab.encode(text)[:LONGEST], *after] for text in texts]
    if empty := [text for text, row in zip(texts, rows, strict=True) if not row]:
        raise BadOption(f"The text {empty[0]!r} has no token of {model.name}.")
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        width = max(len(rows[n]) for n in part)
        ids = torch.tensor([rows[n] + [0] * (width - len(rows[n])) for n in part])
        mask = torch.tensor([[1] * len(rows[n]) + [0] * (width - len(rows[n])) for n in part])
        yield torch.tensor(part), ids.to(model.device), mask.to(model.device)


def _layout(family: Family) -> Layout:
    """The record of transformers' own names."""
    found = family.layout("hf")
    if found is None:
        raise BadModel(f"{family.name} has no layout in transformers' own names.")
    return found


def _blocks_name(family: Family) -> str:
    """The list of blocks, from the name of a tensor in one of them: ``layers``, ``h``, ``encoder.layer``."""
    return _layout(family).tensors["q"].name.split(".{layer}")[0]


def _final_norm(family: Family) -> str:
    """The norm above the last block; a post-norm family has none."""
    stored = _layout(family).tensors.get("final_norm")
    return stored.name.removesuffix(".weight") if stored else ""


def _blocks(base: Any, family: Family) -> Any:
    return base.get_submodule(_blocks_name(family))


def _cut(base: Any, family: Family, part: slice) -> None:
    """Leave some of the blocks only, and let the configuration say so."""
    kept = _blocks(base, family)[part]
    _set(base, _blocks_name(family), kept)
    base.config.num_hidden_layers = len(kept)


def _set(base: Any, name: str, module: nn.Module) -> None:
    if name:
        parent, _, last = name.rpartition(".")
        setattr(base.get_submodule(parent), last, module)
