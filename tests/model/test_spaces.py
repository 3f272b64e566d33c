"""The spaces of a model by their names: each has its own rows, and unknown names are refused everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import small
import tiny
import zeropass as zp
from zeropass.errors import BadOption
from zeropass.evidence.compared_frames import Spaces
from zeropass.model.frames import Frames
from zeropass.model.vectors import vector_set
from zoo import tiny_model

SPACES = ("embedded", "token", "output.read", "output.write", "paper.read", "paper.write")
UNKNOWN = (
    "foo",
    "embedding",
    "output",
    "paper",
    "output.red",
    "paper.raw",
    "token.read",
    "Token",
    "",
    "memory",
    "../x",
)
METHODS: dict[str, Callable[[Any, str], Any]] = {
    "rows": lambda frames, space: frames.rows(space),
    "matrix": lambda frames, space: frames.matrix(space),
    "blocks": lambda frames, space: list(frames.blocks(space)),
    "release": lambda frames, space: frames.release(space),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    return small.built("llama", tmp_path_factory)


@pytest.mark.parametrize("space", UNKNOWN)
@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_space_is_refused_with_the_names(llama: small.Built, method: str, space: str) -> None:
    for frames in (llama.lens.frames, zp.lens_of(llama.atlas, str(llama.folder)).frames):
        with pytest.raises(BadOption) as error:
            METHODS[method](frames, space)
        assert str(error.value).startswith(f"There is no space {space!r} of ")
        assert str(error.value).endswith(f"; it has {', '.join(SPACES)}.")


def test_every_space_has_its_own_rows(llama: small.Built) -> None:
    frames = llama.lens.frames
    assert frames.spaces == SPACES
    matrices = [frames.matrix(space) for space in SPACES]
    for n, matrix in enumerate(matrices):
        assert torch.equal(matrix, frames.rows(SPACES[n]).matrix)
        assert not any(torch.equal(matrix, other) for other in matrices[:n])
    assert torch.equal(frames.matrix("paper.read"), llama.lens.model.embedding)
    assert torch.equal(frames.matrix("paper.write"), llama.lens.model.unembedding)


def test_a_decoder_that_reads_an_encoder_has_its_memory(tmp_path: Path) -> None:
    model = zp.open_model(f"{tiny.save(tiny_model('t5-decoder'), tmp_path)}#decoder")
    assert Frames(model).spaces == (*SPACES, "memory")
    assert Frames(model).rows("memory").matrix.shape == (model.dims.vocab, model.dims.d)
    with pytest.raises(BadOption, match=r"There is no space 'foo' .* paper\.write, memory\.$"):
        Frames(model).rows("foo")


@pytest.mark.parametrize("name", ["gemma4", "modernbert"])
def test_a_model_in_which_some_read_the_stream_as_it_is_has_rows_without_a_norm(name: str, tmp_path: Path) -> None:
    model = zp.open_model(tiny.save(tiny_model(name), tmp_path))
    frames = Frames(model)
    assert frames.spaces == (*SPACES, "embedded.bare", "token.bare")
    for space in ("embedded", "token"):
        bare = frames.matrix(f"{space}.bare")
        assert torch.equal(frames.matrix(space), frames.as_read(bare))
    assert torch.equal(frames.matrix("token.bare"), frames.carried())
    first = {role: vector_set(model, 0, role).space("token") for role in ("q", "gate")}
    assert first == {"q": "embedded.bare" if name == "modernbert" else "embedded", "gate": "embedded"}


def test_an_atlas_names_the_spaces_that_it_holds(llama: small.Built) -> None:
    for space in ("token", "output.write", "paper.read"):
        assert llama.atlas.rows(space).shape == (small.V, small.D)
    with pytest.raises(BadOption, match=r"There is no space 'foo' in .*; it has embedded, output\.read, output\.write"):
        llama.atlas.rows("foo")


def test_unknown_frames_are_refused_in_comparisons_and_folds(llama: small.Built) -> None:
    spaces = Spaces(llama.lens.frames, torch.zeros(0))
    for frame in ("foo", "token.foo", "output.foo", "embedding"):
        with pytest.raises(BadOption, match=rf"no frame '{frame}' to compare; there are paper, paper\.inverse"):
            spaces.matrix(frame, "read", 1)
    vectors = llama.lens.model.matrix("gate")
    for frame, side in (("foo", "read"), ("token", "both")):
        with pytest.raises(BadOption, match=f"no frame '{frame}' of a side '{side}'"):
            llama.lens.frames.fold(vectors, frame, side, "ff_norm", 0)  # type: ignore[arg-type]
