"""Try variants of the mean-field lens, and compare each with the present one in one table (docs/evidence.md).

    python reproduce/lens_variants.py [MODEL] [--only text,fit,blocks,classes,size,vo] [--layers 4,13,22]

Every variant is a lens in memory, measured as in reproduce/lens.py on newspaper prose, but on another part of it: what
is adopted was chosen here, and what docs/evidence.md says of it is measured there. Variants of the blocks are for
Llamas: gated MLPs, RMS norms before each half, rotary positions.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

import zeropass as zp
from lens import CONTEXTS, PREFIX, WINDOW, reading, writing
from zeropass.evidence.corpus import press_text
from zeropass.evidence.resampling import spearman
from zeropass.evidence.writing import SAMPLED, STRENGTH
from zeropass.model import calibrate as calibration
from zeropass.model import generate
from zeropass.model.blocks import Block, embedded
from zeropass.model.frames import Frames
from zeropass.model.lens_maps import LensMaps
from zeropass.model.mean_field import BlockJacobians, BlockMeans, final_slope, slope
from zeropass.model.running import Contexts, Running

HELD_OUT = 10_000
"""The last tokens of the text, which reproduce/lens.py measures: nothing is chosen on them."""

PAIRS = 36
VO_COLUMNS = ("token frame", "seen", "seen, with the mean state", "its wrong token", "what was written")
VO_COLUMNS += ("less the mean: seen", "less the mean: wrong token", "less the mean: what was written")
CLASS_LAYER = 3
TOKENS, MORE = 3072, (6144, 12_288)
"""The tokens of every lens that is compared, and numbers that are tried; few, since a lens needs no more."""

FITS: dict[str, dict[str, float]] = {
    "penalty .1": {"_RIDGE": 0.1},
    "penalty 1": {"_RIDGE": 1.0},
    "not shrunk": {"_SHRINK": 0.0},
    "shrunk to the identity": {"_SHRINK": 1.0},
    "weights stop at 1": {"_SATURATION": 1},
    "weights stop at 16": {"_SATURATION": 16},
}
QUERIES = 4
"""Every so many queries count in the mean reaction of attention: the sum over keys is costly."""


# --- Settings ------------------------------------------------------------------------------------------------


@cache
def written(model: zp.Model, pieces: int, length: int, words: int) -> Tensor:
    """Return text of the model's own, each piece from some random words on."""
    with patch.object(generate, "_FIRST_WORDS", words):
        return generate.own_text(model, pieces, length)


@contextmanager
def changed(settings: Mapping[str, object]) -> Iterator[None]:
    """Change what the module of the calibration knows by these names."""
    with ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(patch.object(calibration, name, value))
        yield


def calibrated(
    model: zp.Model, tokens: int | None = None, source: str = "own", words: int = 4, **settings: object
) -> LensMaps:
    """Calibrate with other settings; text is written once for several lenses."""
    with changed(settings | {"own_text": lambda model, pieces, length, *_: written(model, pieces, length, words)}):
        return zp.calibrate(model, tokens=tokens or TOKENS, source=source)


def texts(model: zp.Model) -> Iterator[tuple[str, LensMaps]]:
    """Yield lenses from other text, in other windows, and from more of it."""
    for words in (1, 8):
        yield f"text after {words} random words", calibrated(model, words=words)
    yield "random tokens", calibrated(model, source="random")
    for window in (64, 256):
        yield f"windows of {window}", calibrated(model, _WINDOW=window)
    for tokens in MORE:
        yield f"{tokens:,} tokens", calibrated(model, tokens)


@dataclass
class Fits:
    """The present lens, with what its fits were made from: rows, ids and states, and the Jacobians of the blocks."""

    present: LensMaps
    given: list[tuple[Tensor, Tensor, Tensor]]
    jacobians: list[BlockJacobians]

    @classmethod
    def of(cls, model: zp.Model) -> "Fits":
        """Calibrate as always."""
        given: list[tuple[Tensor, Tensor, Tensor]] = []
        blocks: list[BlockJacobians] = []
        fit, jacobians = calibration.fitted_map, BlockMeans.jacobians

        def kept_fit(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            given.append(arguments)  # type: ignore[arg-type]
            return fit(*arguments)

        def kept_jacobians(means: BlockMeans) -> BlockJacobians:
            blocks.append(jacobians(means))
            return blocks[-1]

        with patch.object(BlockMeans, "jacobians", kept_jacobians):
            return cls(calibrated(model, fitted_map=kept_fit), given, blocks)

    def variants(self, layers: list[int]) -> Iterator[tuple[str, LensMaps]]:
        """Yield the lens with other fits of what is read in some layers."""
        for name, settings in FITS.items():
            with changed(settings):
                yield name, self._with({layer: calibration.fitted_map(*self.given[layer - 1]) for layer in layers})
        yield "shrunk halfway to the forward flow", self._with({layer: self._by_flow(layer) for layer in layers})

    def _with(self, fits: dict[int, tuple[Tensor, Tensor]]) -> LensMaps:
        names = (f"seen.{layer}{part}" for layer in fits for part in ("", ".shift"))
        tensors = dict(zip(names, (x for fit in fits.values() for x in fit), strict=True))
        return replace(self.present, tensors={**self.present.tensors, **tensors})

    def _by_flow(self, layer: int) -> tuple[Tensor, Tensor]:
        """Fit from rows that the mean Jacobians of the blocks between carried forward."""
        rows, ids, states = self.given[layer - 1]
        flow = torch.eye(rows.shape[1])
        for block in reversed(self.jacobians[1:layer]):
            flow = block.whole(flow)
        linear, shift = calibration.fitted_map(rows @ flow, ids, states)
        return flow @ linear, shift


# --- Blocks --------------------------------------------------------------------------------------------------


@dataclass
class ExactMeans(BlockMeans):
    """Means that give the mean Jacobian of each half exactly, with the norm, and with what queries and keys do.

    With n the normed state, y = n γ, a_i the slope of neuron i and w_i its folded row, the MLP of one state has
    (I − nᵀn/d)/σ Σ a_i w_iᵀ v_i; its mean needs E[a_i/σ] and E[nᵀ (n w_i) a_i/σ]. Attention at one position has, for a
    head with weights α_j, Σ_j α_j s k_j ⊗ (v_j − v̄) behind the query and α s q ⊗ (v − v̄) behind the own key.
    """

    reacts: bool = True
    sums: dict[str, Tensor] = field(default_factory=dict)
    recorded: dict[str, Tensor] = field(default_factory=dict)

    def record(self, name: str, values: Tensor) -> None:
        """Take the activations of one point of the block."""
        super().record(name, values)
        self.recorded[name] = values
        if name == "ff.out":
            self._add_exact_mlp()
        elif name == "attn.out":
            self._add_exact_attention()

    def jacobians(self) -> BlockJacobians:
        """Return the mean Jacobians."""
        means = {name: total / self.sums["count"] for name, total in self.sums.items()}
        d = self.block.model.dims.d
        gate, up = (self._folded(role, "ff") for role in ("gate", "up"))
        inner = (gate.T * means["gate"] + up.T * means["up"] - means["ff.norm"] / d) @ self.block.matrix("value")
        return BlockJacobians(
            self._exact_attention(means) if self.reacts else super().jacobians().attn, inner, {}, False
        )

    def _folded(self, role: str, site: str) -> Tensor:
        gain = self.block.vector(f"{site}_norm")
        return self.block.matrix(role) if gain is None else self.block.matrix(role) * gain

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, torch.zeros(())) + value

    def _normed(self, site: str) -> tuple[Tensor, Tensor]:
        """Return 1/σ (batch, tokens, 1) and the normed states (batch, tokens, d)."""
        x = self.recorded[f"{site}.stream"]
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.block.model.dims.eps)
        return inverse, x * inverse

    def _add_exact_mlp(self) -> None:
        inverse, normed = (x[:, 1:].flatten(0, 1) for x in self._normed("ff"))
        gate, up = (self.recorded[name][:, 1:].flatten(0, 1) for name in ("gate", "up"))
        of_gate, of_up = slope(functional.silu, gate) * up * inverse, functional.silu(gate) * inverse
        self._add("gate", of_gate.sum(0))
        self._add("up", of_up.sum(0))
        self._add("ff.norm", normed.T @ (gate * of_gate + up * of_up))
        self._add("count", torch.tensor(float(len(gate))))

    def _add_exact_attention(self) -> None:
        block, dims = self.block, self.block.model.dims
        inverse, normed = self._normed("attn")
        q, k = (block.heads(self.recorded[name]) for name in ("rotated.q", "rotated.k"))
        at = torch.arange(q.shape[2])
        logits = block.logits(q, k, at)
        weights = logits.softmax(-1)
        logits = torch.where(logits.isfinite(), logits, 0.0)
        k, v = (x.repeat_interleave(dims.group, 1) for x in (k, block.heads(self.recorded["v"])))
        mixed, own = weights @ v, weights.diagonal(dim1=-2, dim2=-1)[..., None]
        by_query = (weights * logits) @ v - (weights * logits).sum(-1, keepdim=True) * mixed
        by_key = own * logits.diagonal(dim1=-2, dim2=-1)[..., None] * (v - mixed)
        changed = (own * v + by_query + by_key).transpose(1, 2).flatten(2)
        self._add("attn.norm", (normed * inverse)[:, 1:].flatten(0, 1).T @ changed[:, 1:].flatten(0, 1))
        self._add("own", (own * inverse[:, None])[:, :, 1:].sum((0, 2)))
        turned = dims.attention_scale * block.turned(q, -at) * own * inverse[:, None]
        self._add(
            "key",
            turned[:, :, 1:].transpose(0, 1).flatten(1, 2).mT @ (v - mixed)[:, :, 1:].transpose(0, 1).flatten(1, 2),
        )
        for query in range(1 + block.layer % QUERIES, len(at), QUERIES):
            weight = (weights[:, :, query] * inverse[:, None, query])[..., None]
            moment = (k * weight).mT @ v - (k * weight).sum(2)[..., None] * mixed[:, :, query, None]
            moment = block.turned(moment.mT, -query).mT
            self._add("query", dims.attention_scale * QUERIES * moment.sum(0))

    def _exact_attention(self, means: dict[str, Tensor]) -> Tensor:
        dims, o = self.block.model.dims, self.block.matrix("o")
        q, k, v = (self._folded(role, "attn").reshape(-1, dims.head_dim, dims.d) for role in "qkv")
        total = -means["attn.norm"] @ o / dims.d
        for head, written in enumerate(o.reshape(-1, dims.head_dim, dims.d)):
            shared = head // dims.group
            by_value = means["own"][head] * v[shared].T
            total += (by_value + q[head].T @ means["query"][head] + k[shared].T @ means["key"][head]) @ written
        return total


@dataclass
class Product(ExactMeans):
    """The mean of the product of norm and MLP, with attention as it is."""

    reacts: bool = False


def exact(model: zp.Model) -> Iterator[tuple[str, LensMaps]]:
    """Yield lenses with exact mean Jacobians of the MLP alone, and of both halves."""
    yield "mean of products in the MLP", calibrated(model, BlockMeans=Product)
    yield "and queries and keys react", calibrated(model, BlockMeans=ExactMeans)


# --- Classes of tokens ---------------------------------------------------------------------------------------


def clustered(x: Tensor, count: int, rounds: int = 15) -> Tensor:
    """Return the cluster of each row (n,) by k-means."""
    centres = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]]
    for _ in range(rounds):
        label = (2 * x @ centres.T - centres.square().sum(1)).argmax(1)
        sizes = torch.bincount(label, minlength=count).clamp_min(1)
        centres = torch.zeros_like(centres).index_add_(0, label, x) / sizes[:, None]
    return label


def of_classes(model: zp.Model, present: LensMaps, count: int) -> LensMaps:
    """Return a lens whose means are those of classes of tokens; the maps of the classes are mixed by their sizes."""
    window = calibration._WINDOW
    ids = written(model, TOKENS // window, window, 4)
    x = embedded(model, ids)
    states = [x := torch.cat([Block(model, layer)(part) for part in torch.split(x, 8)]) for layer in range(CLASS_LAYER)]
    label = clustered(functional.normalize(states[-1][:, 1:].flatten(0, 1), dim=1), count).reshape(len(ids), -1)
    x, blocks = embedded(model, ids), []
    for layer in range(model.dims.layers):
        block = Block(model, layer)
        whole, means = BlockMeans(block), [BlockMeans(block) for _ in range(count)]
        parts = []
        for part, labels in zip(torch.split(x, 8), torch.split(label, 8), strict=True):
            parts.append(block(part, record=partial(recorded, whole, means, labels)))
        x = torch.cat(parts)
        attn = whole.jacobians().attn
        blocks.append([BlockJacobians(attn, each._framed("ff", each._of_neurons()), {}, False) for each in means])
    last, shares = x[:, 1:], torch.bincount(label.flatten(), minlength=count) / label.numel()
    inverse = torch.rsqrt(last.square().mean(-1) + model.dims.eps)
    after = [final_slope(model, last[label == number]) * inverse[label == number].mean() for number in range(count)]
    tensors = {f"{name}": present.map(name) for name in present.tensors if name.startswith("seen")}
    for layer in reversed(range(model.dims.layers)):
        for site in ("attn", "ff"):
            maps = [block.through(site, rest) for block, rest in zip(blocks[layer], after, strict=True)]
            tensors[f"effect.{layer}.{site}"] = mixed(maps, shares)
        after = [block.whole(rest) for block, rest in zip(blocks[layer], after, strict=True)]
    return replace(present, tensors=tensors | {"effect.start": mixed(after, shares)})


def recorded(whole: BlockMeans, means: list[BlockMeans], labels: Tensor, name: str, values: Tensor) -> None:
    """Record activations for all tokens and, of the MLP, for the tokens of each class."""
    whole.record(name, values)
    if name in ("gate", "up", "value.in", "ff.stream"):
        for number, each in enumerate(means):
            of_class = values[:, 1:][labels == number]
            each.record(name, torch.cat((of_class[:1], of_class))[None])  # the first position does not count


def mixed(maps: list[Tensor], shares: Tensor) -> Tensor:
    """Return the mean of maps with weights."""
    return torch.einsum("cij,c->ij", torch.stack(maps), shares)


# --- Size ----------------------------------------------------------------------------------------------------


def rounded(matrix: Tensor, bits: int) -> Tensor:
    """Return a matrix in integers of so many bits, with a scale for each row after one for each column."""
    columns = matrix.square().mean(0).sqrt()
    rows = (matrix / columns).abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (matrix / columns / rows).round() * rows * columns


def low_rank(matrix: Tensor, rank: int) -> Tensor:
    """Return a multiple of the identity plus a matrix of low rank, the nearest one."""
    identity = matrix.diagonal().mean() * torch.eye(len(matrix))
    u, s, v = torch.linalg.svd(matrix - identity)
    return identity + (u[:, :rank] * s[:rank]) @ v[:rank]


def small(present: LensMaps) -> Iterator[tuple[str, LensMaps]]:
    """Yield the present lens in fewer bytes."""

    def smaller(change: Callable[[Tensor], Tensor]) -> LensMaps:
        maps = {name: present.map(name) for name in present.tensors}
        return replace(present, tensors={name: change(x) if x.ndim > 1 else x for name, x in maps.items()})

    d = present.facts.d
    for bits in (8, 6, 4):
        yield f"{bits} bits ({bits / 16:.2f} of the size)", smaller(lambda x: rounded(x, bits))  # noqa: B023
    for rank in (d // 4, d // 2):
        yield f"identity and rank {rank} ({2 * rank / d:.2f} of the size)", smaller(lambda x: low_rank(x, rank))  # noqa: B023


# --- What heads write for a token ----------------------------------------------------------------------------


def heads_write(frames: Frames, contexts: Contexts, windows: Tensor, layers: list[int], sample: Tensor) -> None:
    """Print how well rows of ``vo`` predict what heads write for tokens, with and without what all tokens share."""
    print_table(["layer", *VO_COLUMNS])
    model, dims = frames.model, frames.model.dims
    lens, rows = frames.require_lens("seen"), frames.rows("output.write").matrix[sample]
    generator = torch.Generator().manual_seed(5)
    values: dict[int, Tensor] = {}
    contexts.running.run(windows, lambda name, layer, x: values.setdefault(layer, x) if name == "v" else None)
    for layer in layers:
        heads = torch.arange(PAIRS) % dims.heads
        at = torch.stack([torch.randint(1, size, (PAIRS,), generator=generator) % size for size in windows.shape])
        linear, shift = lens.seen(layer) or (torch.eye(dims.d), torch.zeros(dims.d))
        reads = [
            frames.fold(model.head("v", layer, head), "token", "read", "attn_norm", layer) for head in heads.tolist()
        ]
        writes = [model.head("o", layer, head) for head in heads.tolist()]
        v = dims.head_dim * (heads // dims.group)[:, None] + torch.arange(dims.head_dim)
        full = as_written(values[layer][at[0], at[1]].gather(1, v), writes)
        common = as_written(values[layer][:, 1:].mean((0, 1)).expand(PAIRS, -1).gather(1, v), writes)
        token = frames.rows("token").matrix[windows[at[0], at[1]]]
        mean = frames.rows("token").moments.mean.to(token)
        through = {
            "token": as_written(stacked(token, reads), writes),
            "seen": as_written(stacked(token @ linear, reads), writes),
            "state": as_written(stacked(token @ linear + shift, reads), writes),
            "part": as_written(stacked((token - mean) @ linear, reads), writes),
        }
        length = STRENGTH * contexts.streams[layer + 1].norm(dim=-1).median()
        of_full, of_part = (
            contexts.changes(layer, "attn", length * functional.normalize(x, dim=1))[..., sample].mean(0)
            for x in (full, full - common)
        )
        direct = frames.fold(through.pop("token"), "output", "write", "attn_norm", layer) @ rows.T
        through |= {"full": full, "less": full - common}
        lists = {name: frames.fold(x, "effect", "write", "attn_norm", layer) @ rows.T for name, x in through.items()}
        wrong = {name: x.roll(dims.heads, 0) for name, x in lists.items()}  # the same head, another token
        columns = [(direct, of_full), (lists["seen"], of_full), (lists["state"], of_full), (wrong["state"], of_full)]
        columns += [(lists["full"], of_full), (lists["part"], of_part), (wrong["part"], of_part)]
        columns += [(lists["less"], of_part)]
        print_row([str(layer)], [float(spearman(x, y, 1).mean()) for x, y in columns])


def stacked(states: Tensor, reads: list[Tensor]) -> Tensor:
    """Return what each head reads of its state, (n, d_h)."""
    return torch.stack([state @ read.T for state, read in zip(states, reads, strict=True)])


def as_written(values: Tensor, writes: list[Tensor]) -> Tensor:
    """Return what each head writes for its values (n, d_h), (n, d)."""
    return torch.stack([value @ write for value, write in zip(values, writes, strict=True)])


# --- The table -----------------------------------------------------------------------------------------------


def print_table(heads: list[str]) -> None:
    """Print the head of a table."""
    print(f"\n| {' | '.join(heads)} |\n|---{'|---:' * (len(heads) - 1)}|", flush=True)


def print_row(names: list[str], numbers: list[float]) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join((*names, *(f'{x:.2f}'.replace('0.', '.', 1) for x in numbers)))} |", flush=True)


def _print_measured(
    lenses: list[tuple[str, LensMaps]],
    model: zp.Model,
    contexts: Contexts,
    layers: list[int],
    sample: Tensor,
    windows: Tensor,
) -> None:
    frames = [Frames(model, lens) for _, lens in lenses]
    columns = [*writing(frames, contexts, layers, sample), *reading(frames, windows, layers)]
    print_table(["lens", *(f"{role} {layer}" for role, layer, _ in columns)])
    for number, (name, _) in enumerate(lenses, 1):
        print_row([name], [x[number] for _, _, x in columns])
    print_row(["ceiling, or a wrong list"], [x[-1] for _, _, x in columns])


@torch.no_grad()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--only", default="text,fit,blocks,classes,size,vo")
    parser.add_argument("--layers", default="4,13,22")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of the text")
    options = parser.parse_args()
    parts, layers = options.only.split(","), [int(layer) for layer in options.layers.split(",")]
    model = zp.open_model(options.model)
    ids = torch.tensor(model.vocab.encode(press_text())[:-HELD_OUT][-options.tokens :])
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    shown = torch.from_numpy(model.vocab.mask("default", *model.judgement)).nonzero()[:, 0]
    sample = shown[torch.randperm(len(shown), generator=torch.Generator().manual_seed(21))[:SAMPLED]]
    starts = torch.randperm(len(ids) - PREFIX, generator=torch.Generator().manual_seed(23))[: 2 * CONTEXTS].tolist()
    contexts = Contexts.of(Running(model), torch.stack([ids[start : start + PREFIX] for start in starts]))
    fits = Fits.of(model)
    present = fits.present
    variants: dict[str, Callable[[], Iterator[tuple[str, LensMaps]]]] = {
        "text": lambda: texts(model),
        "fit": lambda: fits.variants(layers),
        "blocks": lambda: exact(model),
        "classes": lambda: ((f"{n} classes of tokens", of_classes(model, present, n)) for n in (4,)),
        "size": lambda: small(present),
    }
    print(f"{model.name}, {present.facts.words}")
    for part in parts:
        if part in variants:
            lenses = [("present", present), *variants[part]()]
            _print_measured(lenses, model, contexts, layers, sample, windows)
    if "vo" in parts:
        heads_write(Frames(model, present), contexts, windows, layers, sample)


if __name__ == "__main__":
    main()
