"""A running model shows and changes what transformers computes, in every family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forward import loaded_name, unbanded, unblocked
from tiny import TOKENS, error, save
from zeropass.arch.roles import Site
from zeropass.errors import CannotRun
from zeropass.model.model import Model
from zeropass.model.opening import open_model
from zeropass.model.running import Contexts, Running
from zoo import DECODERS, NOT_RUN, OF_AUDIO, UNEVEN, ZOO, tiny_model

LENGTH, FIRST = 9, 2
TOLERANCE = 1e-3
FAMILIES = sorted(set(ZOO) - set(NOT_RUN))

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def module(hf: Any, model: Model, layer: int, site: Site) -> Any:
    """Return the module of transformers whose output is what the attention, mixer or MLP of a layer writes."""
    layout = model.family.layout("hf")
    assert layout is not None
    roles = {"attn": "o", "mixer": "mixer_out", "ff": "o" if model.family.routed else "value"}
    stored = layout.tensors[roles[site]].name
    name = stored.format(layer=layer).removesuffix(".weight")
    if site == "ff" and model.family.routed:
        stems = dict.fromkeys(("granitemoe", "granitemoehybrid", "granitemoe_swa"), "block_sparse_moe")
        stems |= {"nemotron_h": "mixer"} | dict.fromkeys(("llama4", "jamba", "lfm2_moe"), "feed_forward")
        stem = stems.get(model.family.name, "mlp")
        inside = model.family.name == "axk1" and model.vector("ff_post_norm", layer) is not None
        name = f"layers.{layer}.{stem}{'.shared_experts' if inside else ''}"  # that module norms what it writes
    names = {name for name, _ in hf.named_modules()}
    candidates = [prefix + name for prefix in layout.prefixes]
    candidates += [loaded_name(hf, name) for name in candidates]
    return hf.get_submodule(next(name for name in candidates if name in names))


@contextmanager
def adding(to: Any, vector: Tensor) -> Iterator[None]:
    """Add a vector to the output of a module at the last token."""

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        first = (output[0] if isinstance(output, tuple) else output).clone()
        first.view(-1, first.shape[-1])[-1] += vector  # some experts' outputs have no batch
        return (first, *output[1:]) if isinstance(output, tuple) else first

    hook = to.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in FAMILIES
        if ("CausalLM" in ZOO[name][0] or "LMHead" in ZOO[name][0]) and name not in ("flaubert", "xlm", *UNEVEN)
    ],
)
@torch.no_grad()
def test_changes_are_those_of_transformers_with_the_vector_added(name: str, tmp_path: Path) -> None:
    hf = tiny_model(name)
    model = open_model(str(save(hf, tmp_path / name)))
    assert model.family.causal
    ids = torch.randint(FIRST, TOKENS, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    vectors = torch.randn(3, model.dims.d, generator=torch.Generator().manual_seed(2))
    contexts = Contexts.of(Running(model), ids)
    sites: tuple[Site, ...] = ("attn", "mixer", "ff")
    for layer in range(model.dims.layers):
        for site in (site for site in sites if model.dims.has_site(site, layer)):
            changes = contexts.changes(layer, site, vectors)
            for number, text in enumerate(ids):
                plain = hf(text[None]).logits[0, -1]
                for vector, change in zip(vectors, changes[number], strict=True):
                    with adding(module(hf, model, layer, site), vector):
                        true = hf(text[None]).logits[0, -1] - plain
                    assert true.abs().max() > 0.01
                    assert error(change, true) < TOLERANCE, (layer, site)


def recorded(running: Running, ids: Tensor, name: str) -> list[Tensor]:
    """Return the activations of one name in every layer."""
    activations: list[Tensor] = []
    keep: Callable[[str, int, Tensor], None] = lambda n, _layer, x: activations.append(x) if n == name else None  # noqa: E731
    running.run(ids, keep)
    return activations


@pytest.mark.parametrize(
    "name",
    # transformers 5.24 gives no attention weights of BigBird, and those of Granite before its sinks take their share
    [n for n in FAMILIES if "attn_implementation" not in ZOO[n][2] and n != "big_bird" and "_swa" not in n],
)
@torch.no_grad()
def test_attention_weights_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    hf = tiny_model(name)
    model = open_model(str(save(hf, tmp_path / name)))
    ids = torch.randint(FIRST, TOKENS, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    encoder: Any = hf.get_encoder() if hf.config.is_encoder_decoder else hf
    running = Running(model)
    true = encoder(ids, output_attentions=True).attentions
    at = torch.tensor([3, LENGTH - 1])
    blocks = [block for block in running.blocks if model.dims.has_site("attn", block.layer)]
    sides = zip(blocks, recorded(running, ids, "rotated.q"), recorded(running, ids, "rotated.k"), strict=True)
    for (block, queries, keys), attention in zip(sides, true, strict=True):
        weights = block.weights(block.heads(queries[:, at]), block.heads(keys), at)
        attention = unblocked(attention, LENGTH) if attention.ndim == 5 else attention
        banded = hasattr(hf.config, "attention_window")
        attention = unbanded(attention.transpose(1, 2), LENGTH) if banded else attention
        assert error(weights, attention[:, :, at]) < TOLERANCE, block.layer


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_reads_an_encoder_is_refused(name: str, tmp_path: Path) -> None:
    mark = "" if name in OF_AUDIO else "#decoder"
    model = open_model(f"{save(tiny_model(name), tmp_path / name)}{mark}")
    with pytest.raises(CannotRun, match="a decoder that reads an encoder's"):
        Running(model)
