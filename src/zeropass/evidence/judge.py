"""The forward pass of transformers on the files that a model was read from: the judge of `proof`.

A model whose tensors are all of one 16-bit type stays in it, and each block is float32 only while it runs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from zeropass.checkpoints.base import TensorSource
from zeropass.checkpoints.model_files import open_files
from zeropass.errors import CannotRun
from zeropass.model.adapted import Adapted
from zeropass.model.blocks import require_modelled
from zeropass.model.loading import naming, transformers
from zeropass.model.model import Model

__all__ = ["Judge", "Pass", "open_judge"]

_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}
"""The types in which a model may stay, as files name them."""


@dataclass(frozen=True, eq=False)
class Pass:
    """The states and logits that transformers computes on texts.

    Attributes:
        states: The stream before each block and behind the last one, there usually normed; (texts, tokens, d) each.
        logits: The logits, (texts, tokens, V); None where the class predicts no token.
        memory: What a decoder's attention to its encoder reads, (texts, tokens, d).
    """

    states: Sequence[Tensor]
    logits: Tensor | None
    memory: Tensor | None


@dataclass(frozen=True, eq=False)
class Judge:
    """A model in transformers.

    Attributes:
        model: The model, as zeropass reads it.
        hf: The same in transformers.
        notes: Sentences on how it was opened.
    """

    model: Model
    hf: Any
    notes: tuple[str, ...]

    @property
    def padding(self) -> int | None:
        """The id of the token that stands for padding."""
        padding = getattr(self.hf.config.get_text_config(), "pad_token_id", None)
        return padding if type(padding) is int else None

    @torch.no_grad()
    def run(self, ids: Tensor) -> Pass:
        """Run the model on token ids, (texts, tokens); a decoder that reads an encoder gets them on both sides.

        Raises:
            CannotRun: If transformers fails, or gives other states than one before each block and one behind the last.
        """
        family, hf = self.model.family, self.hf
        with naming(self.model.name):
            if family.stack == "decoder":
                given = {"decoder_input_ids": ids, "output_hidden_states": True, "use_cache": False}
                result = hf(input_ids=ids.flip(0), **given)
                states, memory = result.decoder_hidden_states, result.encoder_last_hidden_state
            else:
                runs = hf.get_encoder() if hf.config.is_encoder_decoder else hf if self._predicts else hf.base_model
                result, memory = runs(input_ids=ids, output_hidden_states=True, return_dict=True), None
                states = result.hidden_states
        if states is None or len(states) != self.model.dims.layers + 1:
            raise CannotRun(
                f"transformers gives {0 if states is None else len(states)} states of {self.model.name}, not one "
                f"before each of its {self.model.dims.layers} blocks and one behind the last."
            )
        if self.model.dims.streams > 1:  # transformers stacks them before the texts
            states = [state.movedim(0, -2).flatten(-2) for state in states]
        logits = result.logits if family.causal and self._predicts else None
        return Pass(states, logits, memory)

    @property
    def _predicts(self) -> bool:
        """True if the class of transformers has the unembedding."""
        head = self.hf.get_output_embeddings()
        return head is not None and head.weight.shape[0] == self.model.dims.vocab

    def modules_run(self, ids: Tensor, see: Callable[[Any], None]) -> None:
        """Run the model once more and hand on what every module reads first and what it gives."""

        def tap(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            see(inputs[0] if inputs else None)
            see(output[0] if isinstance(output, tuple) and output else output)

        hooks = [module.register_forward_hook(tap) for module in self.hf.modules()]
        try:
            self.run(ids)
        finally:
            for hook in hooks:
                hook.remove()


def open_judge(model: Model) -> Judge:
    """Open a model in transformers.

    Args:
        model: The model. Files are loaded by transformers; those that are quantised, and tensors in memory, are handed
            to it as zeropass decodes them. An adapter is put on it by PEFT.

    Raises:
        CannotRun: If transformers or PEFT cannot load it; gives the reason.
    """
    if model.family.other_memory:
        raise CannotRun(f"{model.name} reads an encoder of something other than text, which no text can feed.")
    require_modelled(model)
    if isinstance(model, Adapted):
        base = open_judge(model.base)
        with naming(model.name):
            hf = _with_adapters(base.hf, model)
        return Judge(model, hf, (*base.notes, "the adapter is put on the model by PEFT"))
    with naming(model.name):
        hf, notes = _from_tensors(model) if _is_decoded(model) else _from_files(model)
        if hf.dtype != torch.float32:
            _widen_in_turn(hf)
    return Judge(model, hf.eval().to(model.device), notes)


def _is_decoded(model: Model) -> bool:
    """Tell whether transformers gets tensors as zeropass reads them: those in memory, and quantised ones."""
    return model.files.path is None or (model.files.format == "hf" and "quantization_config" in model.files.config)


def _class(model: Model, names: Sequence[str]) -> Any:
    """Return the class of transformers that a configuration names, or the usual one for such a model."""
    known = [kind for name in names[:1] if (kind := getattr(transformers, str(name), None)) is not None]
    if known:
        return known[0]
    if model.wrapper is not None:
        return transformers.AutoModelForImageTextToText
    if model.family.stack:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM if model.family.causal else transformers.AutoModel


def _from_files(model: Model) -> tuple[Any, tuple[str, ...]]:
    path, more = model.files.path, {}
    assert path is not None
    if model.files.format == "gguf":
        kind = transformers.AutoModelForCausalLM if model.family.causal else transformers.AutoModel
        path, more = path.parent, {"gguf_file": path.name}
    else:
        kind = _class(model, _config(model).architectures or ())
    return _opened(kind, path, dtype=_type(model), local_files_only=True, **more)


def _from_tensors(model: Model) -> tuple[Any, tuple[str, ...]]:
    """Open a model from its tensors, decoded to float32."""
    files = model.files
    if files.path is None:
        if model.wrapper is not None:
            raise CannotRun(
                "it is inside a multimodal model in memory: save that (save_pretrained) and give the folder"
            )
        source: TensorSource | None = files.state
        note = "its tensors were given in memory"
        config = transformers.AutoConfig.for_model(**files.config)
    else:
        source, note = open_files(str(files.path)).source, "its quantised tensors are those that zeropass decodes"
        config = _config(model)
        del config.quantization_config
    assert source is not None
    state = {name: torch.from_numpy(source.rows(name)) for name in source.names()}
    kind = _class(model, config.architectures or ())
    hf, notes = _opened(kind, None, config=config, state_dict=state, dtype=torch.float32)
    return hf, (note, *notes)


def _config(model: Model) -> Any:
    return transformers.AutoConfig.from_pretrained(str(model.files.path), local_files_only=True)


def _type(model: Model) -> torch.dtype:
    """Return the type to load a model in: that of its files if it is one 16-bit type, so that nothing is rounded."""
    types = {model.source.dtype(name) for name in model.source.names()}
    return _NARROW.get(types.pop(), torch.float32) if len(types) == 1 else torch.float32


def _opened(kind: Any, place: Any, **given: Any) -> tuple[Any, tuple[str, ...]]:
    """Return a model of transformers, with a note on the parameters that it found no values for."""
    hf, facts = kind.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **given)
    for name, *shapes in sorted(facts["mismatched_keys"]):
        stored, expected = map(tuple, shapes)
        raise CannotRun(f"it takes {name} to be {expected}, and the file has {stored}")
    names = sorted(facts["missing_keys"])
    if not names:
        return hf, ()
    return hf, (
        f"transformers found no values for {len(names)} of its parameters ({names[0]} …) and drew them at random",
    )


def _with_adapters(hf: Any, model: Adapted) -> Any:
    """Return a model of transformers in which PEFT has put all adapters of a model, active with their weights."""
    kind: Any = import_module("peft").PeftModel  # part of the same extra
    paths = [adapter.path for adapter in model.adapters]
    if None in paths:
        raise CannotRun("its adapter is in memory: save it (save_pretrained) and give the folder")
    names = [str(n) for n in range(len(paths))]
    adapted = kind.from_pretrained(hf, str(paths[0]), adapter_name=names[0])
    for name, path in zip(names[1:], paths[1:], strict=True):
        adapted.load_adapter(str(path), adapter_name=name)
    if len(names) > 1:
        adapted.base_model.set_adapter(names)
    scales = [module.scaling for module in adapted.modules() if isinstance(getattr(module, "scaling", None), dict)]
    for name, weight in zip(names, model.weights, strict=True):
        for scaling in (scaling for scaling in scales if name in scaling):
            scaling[name] *= weight
    return adapted.eval().get_base_model()


def _widen_in_turn(hf: nn.Module) -> None:
    """Make a model in a 16-bit type compute in float32, of its blocks only the one that runs.

    Blocks are the parts of the outermost lists of modules.
    """
    blocks = list(_blocks(hf))
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    for parameter in hf.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.float()
    for buffer in hf.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    for block in blocks:
        kept: list[Tensor] = []

        def widen(module: nn.Module, _inputs: Any, kept: list[Tensor] = kept) -> None:
            kept[:] = [parameter.data for parameter in module.parameters()]
            for parameter in module.parameters():
                parameter.data = parameter.data.float()

        def narrow(module: nn.Module, _inputs: Any, _output: Any, kept: list[Tensor] = kept) -> None:
            for parameter, values in zip(module.parameters(), kept, strict=True):
                parameter.data = values
            kept.clear()

        block.register_forward_pre_hook(widen)
        block.register_forward_hook(narrow)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)
