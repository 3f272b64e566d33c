"""The two halves of a stitched model, cut out of models of transformers at a seam between two blocks.

The residual stream itself crosses the seam. Transformers does more on the way, which has to be removed
(docs/stitching.md, "Traps"):

* The last entry of ``hidden_states`` is already normed, so the final norm of the lower half is removed.
* ``inputs_embeds`` gets position embeddings again (GPT-2), or positions, types and a norm (BERT), so everything before
  the first block of the upper half is removed. Rotary positions are applied inside the blocks and stay.
* A post-norm block reads a normed stream, so the incoming states are normed as the norm below the seam would do it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zeropass.arch.layout import Layout
from zeropass.arch.rows import row_index
from zeropass.arch.spec import Family
from zeropass.errors import BadModel, BadOption
from zeropass.model.adapted import Adapted
from zeropass.model.loading import loaded, transformers
from zeropass.model.model import Model
from zeropass.model.texts import special_tokens

__all__ = ["FED", "Lower", "Upper", "batches", "head_of", "load_classifier", "load_lower"]
__all__ += ["load_plain_classifier", "padding", "put", "require_classifier", "require_fed"]

FED = {"llama": "", "gpt2": "wpe", "bert": "embeddings"}
"""The families whose blocks can be fed from outside, with the module that changes their input."""

BATCH, LONGEST = 32, 256
"""Texts of a batch, and tokens of a text."""


class _Zero(nn.Module):
    """A table of positions that adds nothing."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros((), device=ids.device)


class _PassThrough(nn.Module):
    """An embedding layer that returns its input."""

    def forward(self, inputs_embeds: Tensor, **_others: Any) -> Tensor:
        return inputs_embeds


class Lower(nn.Module):
    """The embedding and the first ``keep`` blocks of a model, or all blocks."""

    def __init__(self, base: Any, family: Family, keep: int | None = None) -> None:
        super().__init__()
        self.base: Any = base
        self.typed: bool = family.name == "bert"
        _cut(base, family, slice(0, keep))
        _set(base, _final_norm(family), nn.Identity())
        if getattr(base, "pooler", None) is not None:
            base.pooler = None

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """Return the stream (batch, tokens, d) above the last block."""
        states: Tensor = self._run(ids, mask, types).last_hidden_state
        return states

    def depths(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the stream as it enters the first block and as it leaves each one."""
        states: tuple[Tensor, ...] = self._run(ids, mask, types, output_hidden_states=True).hidden_states
        return states

    def _run(self, ids: Tensor, mask: Tensor, types: Tensor | None, **options: Any) -> Any:
        if self.typed and types is not None:
            options["token_type_ids"] = types
        return self.base(input_ids=ids, attention_mask=mask, use_cache=False, **options)


class Upper(nn.Module):
    """The last ``take`` blocks of a classifier, or all, with its head. It reads a stream, not token ids."""

    def __init__(self, classifier: Any, family: Family, take: int | None = None) -> None:
        super().__init__()
        self.classifier: Any = classifier
        self.family: Family = family
        blocks = _blocks(classifier.base_model, family)
        if take is not None and take < len(blocks):
            _cut(classifier.base_model, family, slice(len(blocks) - take, None))
        if FED[family.name]:
            _set(classifier.base_model, FED[family.name], _PassThrough() if family.name == "bert" else _Zero())
        if family.name != "bert":  # it never sees ids
            classifier.base_model.set_input_embeddings(nn.Identity())

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return logits (batch, labels) for the stream (batch, tokens, d) below the first block."""
        model = self.classifier
        output = model.base_model(inputs_embeds=states, attention_mask=mask, use_cache=False)
        return self.logits_of(model, self.family, output, mask)

    @staticmethod
    def logits_of(classifier: Any, family: Family, output: Any, mask: Tensor) -> Tensor:
        """Return logits (batch, labels) for the output of the blocks.

        The head reads the pooled first token, or in a causal model the last token that the mask leaves.
        """
        if family.name == "bert":
            logits: Tensor = classifier.classifier(output.pooler_output)
            return logits
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        scores: Tensor = classifier.score(output.last_hidden_state[torch.arange(len(mask), device=mask.device), last])
        return scores

    @contextmanager
    def taking(self, take: int) -> Iterator["Upper"]:
        """Leave only the last ``take`` blocks while the context lasts."""
        base = self.classifier.base_model
        blocks = _blocks(base, self.family)
        try:
            _cut(base, self.family, slice(len(blocks) - take, None))
            yield self
        finally:
            _set(base, _blocks_name(self.family), blocks)
            base.config.num_hidden_layers = len(blocks)


def require_fed(model: Model, what: str) -> None:
    """Raise BadOption, naming the families that work, for a model whose blocks cannot be fed from outside."""
    if model.family.name not in FED:
        raise BadOption(
            f"{what} {model.name} is a {model.family.name}; the blocks of these families can be fed from outside: "
            f"{', '.join(FED)}."
        )


def require_classifier(model: Model) -> None:
    """Raise BadOption for a model without a classifier's head, or with a head that does not choose between labels."""
    head = model.layout.extra.get("classifier")
    if head is None or not model.has("classifier"):
        tensor_name = head[0].name.removeprefix("^") if head else "a classifier"
        raise BadOption(f"{model.name} has no classifier's head: there is no tensor {tensor_name}.")
    if model.rows("classifier") < 2:
        raise BadOption(f"The head of {model.name} has one row: a score (a reward, say), and no labels to choose from.")
    if model.files.config.get("problem_type") in ("multi_label_classification", "regression"):
        raise BadOption(f"The head of {model.name} is for {model.files.config['problem_type']}, which is not stitched.")


def load_lower(model: Model) -> Any:
    """Load the blocks of a model in transformers, as float32, without any head."""
    return loaded(transformers.AutoModel, model).to(model.device)


def load_classifier(model: Model) -> Any:
    """Load a classifier in transformers, as float32; for an adapter, its base with every change applied."""
    require_classifier(model)
    if not isinstance(model, Adapted):
        return loaded(transformers.AutoModelForSequenceClassification, model).to(model.device)
    classifier = load_plain_classifier(model.base, model)
    with torch.no_grad():
        for name, layer in {**model.changed, **model.replaced}:
            if (name, layer) in model.changed:
                values = model.vector(name, layer) if name.endswith("bias") else model.matrix(name, layer)
            else:
                values = model.replaced[name, layer]
            if values is not None:
                put(classifier, model, name, layer, values)
        whole = [entry for adapter in model.adapters for entry in adapter.whole.items()]
        biases = [values for name, values in whole if name.endswith("classifier.bias")]
        if biases and head_of(classifier).bias is not None:
            head_of(classifier).bias.copy_(biases[0])
    return classifier


def put(hf: Any, model: Model, what: str, layer: int, values: Tensor) -> None:
    """Set a canonical tensor in a module of transformers, at the place that the layout ``hf`` gives.

    Args:
        hf: The module.
        model: The model whose layout and sizes it has.
        what: The canonical name of the tensor.
        layer: The layer.
        values: The canonical tensor.
    """
    layout = _layout(model.family)
    stored = layout.tensors.get(what) or layout.extra[what][0]
    name = stored.name.format(layer=layer)
    weight = (hf if name.startswith("^") else hf.base_model).get_parameter(name.removeprefix("^")).data
    rows = weight.T if stored.transpose and weight.ndim == 2 else weight
    index = row_index(stored, what, model.dims)
    rows[slice(None) if index is None else index] = values


def load_plain_classifier(model: Model, like: Model) -> Any:
    """Load a model in transformers with a head for the labels of another model; the head is not trained."""
    names = like.files.config.get("id2label")
    labels = {int(n): str(name) for n, name in names.items()} if names else None
    count = like.rows("classifier")
    if labels is None or len(labels) != count:
        labels = {n: f"LABEL_{n}" for n in range(count)}
    auto_class = transformers.AutoModelForSequenceClassification
    classifier = loaded(auto_class, model, id2label=labels, label2id={name: n for n, name in labels.items()})
    if classifier.config.pad_token_id is None:
        classifier.config.pad_token_id = padding(model)
    return classifier.to(model.device)


def padding(model: Model) -> int:
    """Return the id of the token that pads short texts; any token will do if the vocabulary has none for padding."""
    pieces = model.vocab.pieces
    return pieces.index("[PAD]") if "[PAD]" in pieces else 0


def head_of(classifier: Any) -> Any:
    """Return the linear layer that computes the logits."""
    return classifier.classifier if hasattr(classifier, "classifier") else classifier.score


def batches(model: Model, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield texts in batches of similar length, each text cut at `LONGEST` tokens and padded on the right.

    For an encoder each text has the special tokens around it that the model expects.

    Args:
        model: The model whose tokens are used.
        texts: The texts.

    Yields:
        The places of the texts (batch,), their ids (batch, tokens) and their mask (batch, tokens).

    Raises:
        BadOption: A text has no token.
    """
    before, after = special_tokens(model)
    rows = [[*before, *model.vocab.encode(text)[:LONGEST], *after] for text in texts]
    if empty := [text for text, row in zip(texts, rows, strict=True) if not row]:
        raise BadOption(f"The text {empty[0]!r} has no token of {model.name}.")
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        width = max(len(rows[n]) for n in batch)
        ids = torch.tensor([rows[n] + [0] * (width - len(rows[n])) for n in batch])
        mask = torch.tensor([[1] * len(rows[n]) + [0] * (width - len(rows[n])) for n in batch])
        yield torch.tensor(batch), ids.to(model.device), mask.to(model.device)


def _layout(family: Family) -> Layout:
    """Return the layout with the tensor names of transformers."""
    layout = family.layout("hf")
    if layout is None:
        raise BadModel(f"{family.name} has no layout in transformers' own names.")
    return layout


def _blocks_name(family: Family) -> str:
    """Return the name of the list of blocks: ``layers``, ``h``, ``encoder.layer``."""
    return _layout(family).tensors["q"].name.split(".{layer}")[0]


def _final_norm(family: Family) -> str:
    """Return the name of the norm above the last block; empty for a post-norm family, which has none."""
    stored = _layout(family).tensors.get("final_norm")
    return stored.name.removesuffix(".weight") if stored else ""


def _blocks(base: Any, family: Family) -> Any:
    return base.get_submodule(_blocks_name(family))


def _cut(base: Any, family: Family, part: slice) -> None:
    """Keep only some of the blocks, and change the configuration accordingly."""
    blocks = _blocks(base, family)[part]
    _set(base, _blocks_name(family), blocks)
    base.config.num_hidden_layers = len(blocks)


def _set(base: Any, name: str, module: nn.Module) -> None:
    if name:
        parent, _, last = name.rpartition(".")
        setattr(base.get_submodule(parent), last, module)
