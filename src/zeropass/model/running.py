"""Models that run in transformers, with hooks on their modules.

The name of a canonical tensor in a family's ``hf`` layout is also the name of a module in transformers, so no family
needs anything else here. The activations of a layer, each (tokens, width):

    attn, ff             inputs of its attention and its MLP, norm and gain included
    q k v gate up key    outputs of its linear layers (before RoPE)
    o.in, value.in       inputs of its output layers: the coefficients of ``o`` and ``value``
    state                the stream as the layer leaves it
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeropass.arch.rows import row_index
from zeropass.arch.spec import Layout, site_of
from zeropass.errors import BadOption, CannotRun, MissingExtra
from zeropass.model.model import Model

try:
    import transformers
except ImportError as error:
    raise MissingExtra("This runs the model and needs an extra: pip install 'zeropass[run]'.") from error

__all__ = ["Recorder", "Running", "load_running", "loaded", "quiet", "special_tokens", "transformers", "windows"]

Recorder = Callable[[str, int, Tensor], None]
"""A callback for activations: the name, the layer, and the values (batch, tokens, width) or (tokens, width)."""


@dataclass(frozen=True, eq=False)
class Running:
    """A model in transformers, float32, with the parameters that were read from the same file.

    Attributes:
        model: The parameters.
        device: The device of the running model.
        hf: The model in transformers.
        layout: The ``hf`` layout of the family, by which modules are found.
        prefix: The prefix of the names of modules.
    """

    model: Model
    device: torch.device
    hf: Any
    layout: Layout
    prefix: str

    @property
    def predicts_next(self) -> bool:
        """True if it predicts the next token: a causal language model with its head."""
        return self.model.family.causal and self.hf.get_output_embeddings() is not None

    def module(self, what: str, layer: int = 0) -> Any:
        """Return the module that holds a canonical tensor."""
        return self.hf.get_submodule(_module_name(self.layout.tensors[what].name.format(layer=layer), self.prefix))

    def recording(self, recorder: Recorder) -> AbstractContextManager[None]:
        """Call the recorder with the activations of every layer while the context lasts."""
        return _hooked(handle for layer in range(self.model.dims.layers) for handle in self._hooks(layer, recorder))

    def adding(self, added: Mapping[tuple[int, str], tuple[Tensor, Tensor]]) -> AbstractContextManager[None]:
        """Add vectors to the stream at the last token, after ``o`` or ``value`` of a layer, while the context lasts.

        Args:
            added: By layer and role (``o`` or ``value``): rows of the batch (n,), and the vectors (n, d) added to them.
        """
        return _hooked(
            self.module(role, layer).register_forward_hook(_adder(rows, vectors))
            for (layer, role), (rows, vectors) in added.items()
        )

    def run(self, ids: Tensor, cache: Any = None) -> Any:
        """Run the model on ids (batch, tokens); a cache, if given, supplies and takes up keys and values."""
        options = {} if cache is None else {self._cache_name: cache}
        with torch.inference_mode():
            return self.hf(ids, use_cache=cache is not None, **options)

    @cached_property
    def _cache_name(self) -> str:
        """The name of the cache among the parameters of the forward pass; transformers 5.24 renamed it."""
        return "cache" if "cache" in signature(self.hf.forward).parameters else "past_key_values"

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The `special_tokens` of the model."""
        return special_tokens(self.model)

    def _hooks(self, layer: int, recorder: Recorder) -> Iterator[Any]:
        roles = (*(r for r in self.model.family.ff_roles if r != "value"), "q", "k", "v")
        recorded_sites = set()
        for role in roles:
            stored = self.layout.tensors[role]
            site = site_of(role)
            index = row_index(stored, role, self.model.dims)
            hook = _hook(recorder, layer, role, index, "" if site in recorded_sites else site)
            recorded_sites.add(site)
            yield self.module(role, layer).register_forward_hook(hook)
        for role in ("o", "value"):
            yield self.module(role, layer).register_forward_hook(_input_hook(recorder, layer, f"{role}.in"))
        yield self._state_hook(layer, recorder)

    def _state_hook(self, layer: int, recorder: Recorder) -> Any:
        """Attach a hook to the stream after a layer: the next norm's input (pre-norm) or its last output."""
        if self.model.family.stream_normed:
            return self.module("ff_norm", layer).register_forward_hook(_output_hook(recorder, layer, "state"))
        last = layer + 1 == self.model.dims.layers
        norm = self.module("final_norm") if last else self.module("attn_norm", layer + 1)
        return norm.register_forward_hook(_input_hook(recorder, layer, "state"))


def load_running(model: Model, device: torch.device | str = "cpu") -> Running:
    """Load the model in transformers from the same files.

    Args:
        model: The parameters.
        device: The device to run on; weights are read on the CPU.

    Returns:
        The running model.

    Raises:
        CannotRun: If transformers cannot run the model, with its reason, or if the activations of this family cannot be
            recorded.
    """
    layout = model.family.layout("hf")
    if layout is None:
        raise CannotRun(f"{model.name}: the record of {model.family.name} has no hf layout to find modules by.")
    if unsupported := _unsupported(model, layout):
        raise CannotRun(
            f"{model.name} is a {model.family.name}: {unsupported}, which cannot be measured yet. Its words can be "
            "read all the same; what a text says of them is not known."
        )
    # Only the states of an encoder are needed, so its head is not loaded.
    auto_class = transformers.AutoModelForCausalLM if model.family.causal else transformers.AutoModel
    hf = loaded(auto_class, model).to(device)
    running = Running(model, torch.device(device), hf, layout, _prefix(hf, layout, model))
    _require_same(running)
    _clear_spare_rows(running)
    return running


def _unsupported(model: Model, layout: Layout) -> str:
    """Return what the hooks of `Running` do not cover in a family, in words; empty if they cover everything."""
    family = model.family
    reasons = {
        "queries and keys are changed between their matrices and the product": bool(family.qk_norm or model.dims.clip),
        "its MLPs are experts": family.routed,
        "it has two stacks": bool(family.stack),
        "its stream meets no norm before a block": "attn_norm" not in layout.tensors or family.bare_start,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def windows(ids: Tensor, size: int, around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())) -> Iterator[Tensor]:
    """Cut token ids into windows, with special tokens around each.

    Args:
        ids: Token ids, (n,).
        size: Tokens in a window, special tokens included; the last window may be shorter.
        around: Special tokens before and after each window, as `special_tokens` gives them.

    Yields:
        The ids of each window, (size,).
    """
    before, after = (torch.tensor(part, dtype=ids.dtype) for part in around)
    step = size - len(before) - len(after)
    for start in range(0, len(ids), step):
        yield torch.cat((before, ids[start : start + step], after))


def special_tokens(model: Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that an encoder expects before and after a text; none for a causal model."""
    pieces = model.vocab.pieces
    before, after = (
        (pieces.index(name),) if name in pieces and model.family.name == "bert" else () for name in ("[CLS]", "[SEP]")
    )
    return before, after


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers prints while it loads, including progress bars that have no switch."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def loaded(kind: Any, model: Model, **more: Any) -> Any:
    """Load the model in float32 as one of transformers' classes.

    Args:
        kind: The class (``AutoModel`` …).
        model: The parameters, whose files are loaded.
        **more: Further arguments of ``from_pretrained``.

    Returns:
        The model in transformers.

    Raises:
        CannotRun: If transformers cannot load it; gives the reason.
    """
    path = Path(model.files.path)
    if model.files.format == "gguf":
        path, more = path.parent, more | {"gguf_file": path.name}
    try:
        with quiet():
            return kind.from_pretrained(path, dtype=torch.float32, local_files_only=True, **more).eval()
    except Exception as error:  # a third party's loader may raise anything, and the user needs the reason
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CannotRun(f"transformers cannot run {model.name}: {reason[0]}") from error


def _prefix(hf: Any, layout: Layout, model: Model) -> str:
    names = {name for name, _ in hf.named_modules()}
    for prefix in layout.prefixes:
        if _module_name(layout.tensors["q"].name.format(layer=0), prefix) in names:
            return prefix
    raise CannotRun(f"transformers runs {model.name} as {type(hf).__name__}, whose modules have other names.")


def _module_name(tensor: str, prefix: str) -> str:
    return (tensor[1:] if tensor.startswith("^") else prefix + tensor).removesuffix(".weight")


def _require_same(running: Running) -> None:
    """Raise CannotRun unless the running embedding is the one that was read: measurements must be of this file."""
    model = running.model
    table = running.hf.get_input_embeddings().weight
    ids = torch.from_numpy(model.vocab.used).nonzero()[:64, 0]
    rows = model.matrix("embedding", 0, 0, int(ids.max()) + 1)[ids.to(model.device)]
    same = table.shape[0] >= model.dims.vocab and torch.allclose(
        table[ids.to(table.device)].to(rows), rows, rtol=1e-3, atol=1e-4
    )
    if not same:
        raise CannotRun(
            f"transformers runs {model.name} with another embedding ({tuple(table.shape)}) than the one that was read "
            f"({model.dims.vocab} tokens): the tokenizer, the weights and the configuration do not fit each other."
        )


@torch.no_grad()
def _clear_spare_rows(running: Running) -> None:
    """Set rows of unused tokens that are not finite to zero, as when reading: each would make a logit NaN."""
    unused = torch.from_numpy(running.model.vocab.unused).to(running.device)
    for table in (running.hf.get_input_embeddings(), running.hf.get_output_embeddings()):
        if table is not None:
            rows = table.weight[: len(unused)]
            rows[unused & ~rows.isfinite().all(1)] = 0


@contextmanager
def _hooked(hooks: Iterable[Any]) -> Iterator[None]:
    """Register hooks one by one as the context begins, and remove all registered ones when it ends."""
    with ExitStack() as stack:
        for handle in hooks:
            stack.callback(handle.remove)
        yield


def _hook(recorder: Recorder, layer: int, role: str, index: Tensor | None, site: str) -> Any:
    def hook(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if site:
            recorder(site, layer, inputs[0])
        recorder(role, layer, output if index is None else output[..., index])

    return hook


def _input_hook(recorder: Recorder, layer: int, what: str) -> Any:
    return lambda _module, inputs, _output: recorder(what, layer, inputs[0])


def _output_hook(recorder: Recorder, layer: int, what: str) -> Any:
    return lambda _module, _inputs, output: recorder(what, layer, output)


def _adder(rows: Tensor, vectors: Tensor) -> Any:
    def add(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[rows, -1] += vectors
        return changed

    return add


def require_tokens(ids: Tensor, least: int, model: Model) -> None:
    """Check that a text has enough tokens, and that the vocabulary can spell it.

    Args:
        ids: The token ids of the text, (n,).
        least: The least number of tokens.
        model: The model whose tokens they are.

    Raises:
        BadOption: If there are fewer tokens, or if more than a fifth of them are special or unknown.
    """
    if len(ids) < least:
        raise BadOption(f"The text has {len(ids)} tokens of {model.name}; at least {least} are needed.")
    special = torch.from_numpy(model.vocab.special)[ids].double().mean()
    if special > 0.2:
        raise BadOption(
            f"{special:.0%} of the text are special or unknown tokens to {model.name}: another tokenizer's?"
        )
