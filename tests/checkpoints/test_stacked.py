"""Tensors that stack others along their first axis, such as those of all experts, one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zeropass.checkpoints.safetensors import SafetensorsSource
from zeropass.checkpoints.stacked import unstacked
from zeropass.errors import BadWeights


def test_the_parts_are_tensors_of_their_own(tmp_path: Path) -> None:
    stack, biases, other = torch.randn(3, 4, 5), torch.randn(3, 6), torch.randn(3, 2)
    save_file({"stack": stack, "biases": biases, "other[0]": other}, path := tmp_path / "m.safetensors")
    plain = SafetensorsSource((path,))
    source = unstacked(plain, lambda name: name in ("stack", "biases"))
    assert sorted(source.names()) == [
        *(f"biases[{i}]" for i in range(3)),
        "other[0]",
        *(f"stack[{i}]" for i in range(3)),
    ]
    assert (source.shape("stack[1]"), source.dtype("stack[1]"), source.shape("biases[2]")) == ((4, 5), "F32", (6,))
    np.testing.assert_array_equal(source.rows("stack[1]", 1, 3), stack[1, 1:3])
    np.testing.assert_array_equal(source.rows("stack[2]", columns=slice(1, 4)), stack[2, :, 1:4])
    np.testing.assert_array_equal(source.rows("biases[0]", 2, 5), biases[0, 2:5])
    np.testing.assert_array_equal(source.rows("other[0]", 1, 2), other[1:2])
    with pytest.raises(BadWeights, match="'stack' has rows 0 to 3; rows 3:4"):
        source.rows("stack[3]")
    assert unstacked(plain, lambda name: name == "nothing") is plain
