"""Atlases of families unlike Llama: complete, and equal to what the lens says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_atlas import close, same, without_bounds

import small
import zeropass as zp
from tiny import save
from zeropass.arch.roles import MAP_ROLES, OUTSIDE, SELF_MAPS
from zeropass.errors import BadAddress
from zeropass.model.vectors import VectorSet, roles_at, vector_set
from zoo import ZOO, tiny_model

NAMES = (
    *("gpt_neox", "bloom", "opt", "falcon-7b", "falcon-40b", "gptj", "gemma2", "gemma3", "olmo", "olmo2", "mixtral"),
    *("deepseek_v3", "qwen3_next", "qwen3_moe", "olmoe", "albert", "electra", "roberta", "distilbert"),
    *("modernbert", "t5-encoder", "t5-decoder", "bart-decoder", "gemma4", "gemma4-plain", "laguna"),
)
OPTIONS = zp.Options(k=9, pairs=12, tokens="all")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@dataclass(frozen=True)
class Pair:
    """A checkpoint of the zoo, read by a lens, and its atlas."""

    lens: zp.Lens
    atlas: zp.Atlas


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    folder = tmp_path_factory.mktemp("atlases")

    @cache
    def pair_of(name: str) -> Pair:
        model = save(tiny_model(name), folder / name)
        if ZOO[name][2].get("stack") == "decoder":
            model = Path(f"{model}#decoder")
        return Pair(
            zp.Lens(zp.open_model(str(model)), tokens="all"), small.build(model, folder / f"{name}-atlas", OPTIONS)
        )

    return pair_of


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Iterator[Pair]:
    with small.one_thread():
        yield pairs(request.param)


def layers(model: zp.Model) -> range:
    return range(OUTSIDE, model.dims.layers)


def test_every_vector_of_the_model_is_listed(pair: Pair) -> None:
    model = pair.lens.model
    expected = {
        (str(address), role, frame)
        for layer in layers(model)
        for role in roles_at(model, layer)
        for vectors in [vector_set(model, layer, role)]
        for address in vectors.addresses
        for frame in vectors.frames
    }
    table = pd.read_parquet(pair.atlas.path / "parameters.parquet", columns=["address", "role", "frame"])
    assert set(table.itertuples(index=False, name=None)) == expected
    assert len(table) == len(expected)


def addresses(model: zp.Model) -> list[str]:
    """Return one address of every kind of parameter, from the middle and from the end of its set."""
    listed = []
    for layer in layers(model):
        for role in roles_at(model, layer):
            names = vector_set(model, layer, role).addresses
            listed += [names[len(names) // 2], names[-1]]
    places = ("attn", "cross") if model.family.crosses else ("attn",)
    attending = [layer for layer in range(model.dims.layers) if model.dims.has_site("attn", layer)]
    heads = [
        f"L{layer}.{place}.{head}"
        for layer in attending
        for place in places
        for head in (0, model.dims.at(layer).heads - 1)
    ]
    return [*dict.fromkeys(map(str, listed)), *heads]


def test_atlas_and_lens_say_the_same(pair: Pair) -> None:
    for address in addresses(pair.lens.model):
        stored, expected = (without_bounds(source.explain(address, k=9)) for source in (pair.atlas, pair.lens))
        same(stored, expected, address)


def test_an_address_that_a_layer_lacks_is_refused(pairs: Callable[[str], Pair]) -> None:
    atlas = pairs("qwen3_next").atlas
    for address, message in (
        ("L0.attn.0", "layer 0 has no attention"),
        ("L0.attn.1.q.2", "layer 0 has no attention"),
        ("L1.mixer.in.0", "holds no mixer_in"),
        ("L0.mixer.in.96", "has mixer_in 0 to 95"),
    ):
        with pytest.raises(BadAddress, match=message):
            atlas.explain(address)


def test_head_maps_hold_the_best_pairs_of_the_whole_matrix(pair: Pair) -> None:
    model, frames = pair.lens.model, pair.lens.frames
    for layer in range(model.dims.layers):
        if not model.dims.has_site("attn", layer):
            assert not pair.atlas.head_maps(layer, "qk")
            continue
        for kind in MAP_ROLES if model.family.crosses else SELF_MAPS:
            for row in pd.read_parquet(pair.atlas.path / "pairs" / f"L{layer}.{kind}.parquet").itertuples():
                product = frames.head_map(layer, row.head, kind, row.frame, frames.usual_offset(kind, row.frame))
                matrix = (product.left.double() @ product.right.double().T).numpy()
                assert close(row.scores, np.sort(matrix.ravel())[::-1][: OPTIONS.pairs])
                assert close(matrix[row.left_ids, row.right_ids], row.scores)


def test_a_token_is_found_where_it_stands_out_most(pair: Pair) -> None:
    """Compare the best written list in the output frame, over all layers, with the best of a full scan."""
    model, frames, token = pair.lens.model, pair.lens.frames, 40
    best = max(
        float(scores[:, token].abs().max())
        for layer in layers(model)
        for role in roles_at(model, layer)
        for vectors in [vector_set(model, layer, role)]
        if vectors.side == "write" and "output" in vectors.frames
        for scores in [z(frames, vectors)]
    )
    hits = pair.atlas.find([model.vocab.text(token)], side="write", k=1).hits
    assert abs(hits[0].z) == pytest.approx(best, rel=1e-3)


def z(frames: zp.Frames, vectors: VectorSet) -> torch.Tensor:
    """Return the scores of a set in the output frame, in standard deviations over the tokens in use."""
    folded = frames.folded(vectors, "output").double()
    scores = folded @ frames.matrix(f"output.{vectors.side}").double().T
    used = scores[:, frames.model.vocab.used]
    return (scores - used.mean(1, keepdim=True)) / used.std(1, unbiased=False, keepdim=True)
