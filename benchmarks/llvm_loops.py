"""Time what the loops in LLVM IR of `numba_kernels` are worth, against the same loops in ordinary numba or torch.

    python benchmarks/llvm_loops.py [MODEL]

Tiles: pair search of real head maps with the compiled tile, against torch's int8 products (`tiles`). Survey: lists of
real vectors with the dot products in ordinary numba code.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numba
import numpy as np

import zeropass as zp
from machine import called, machine
from recorded import Ratio, add_record, report
from top_k import seconds, sets, token_index
from zeropass.numerics import numba_kernels
from zeropass.numerics.tiles import products_for
from zeropass.numerics.top_k import survey
from zeropass.numerics.top_pairs import top_pairs

MAPS = ("L10.attn.3.qk", "L15.attn.2.vo", "L23.attn.4.vo")


@numba.njit
def plain_dots(vectors: Any, places: Any, count: int, row: Any, scores: Any, _bases: Any) -> None:
    """Write the dot products of a row with ``count`` vectors, each summed in the order of its numbers."""
    for at in range(count):
        total = np.float32(0.0)
        for place in range(row.shape[0]):
            total += vectors[places[at], place] * row[place]
        scores[at] = total


@contextmanager
def with_plain_dots() -> Iterator[None]:
    """Compile `look` anew with `plain_dots` while the context lasts."""
    with mock.patch.object(numba_kernels, "_dots", plain_dots):
        look = numba.njit(nogil=True)(numba_kernels.look.py_func)
        with mock.patch.object(numba_kernels, "look", look):
            yield


def main() -> None:
    """Print both tables and compare with what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    add_record(parser)
    arguments = parser.parse_args()
    lens, ratios = zp.load(arguments.model, lens=None), []
    print(f"Loops in LLVM IR, {called(arguments.model)} ({machine()})\n")
    print("| search | ordinary loops take, times as long |\n|---|---:|")
    for name in MAPS:
        product = lens.head_map(name)
        slow = seconds(lambda: top_pairs(product, 100, ways=products_for))  # noqa: B023
        ratio = slow / seconds(lambda: top_pairs(product, 100))  # noqa: B023
        print(f"| pairs of {name}: torch's products | {ratio:.2f} |")
        ratios.append(Ratio(f"pairs of {name}: torch's tiles against compiled ones", ratio, "times as long", "more"))
    with tempfile.TemporaryDirectory(prefix="zeropass-bench-") as folder:
        for name, scored, ids in sets(lens.model, Path(folder)):
            unit, ready = scored.unit[:512].contiguous(), scored.space.prepared

            def work() -> object:
                return survey(unit, ready, 50, ids, token_index(len(ids), 50, True), 0)  # noqa: B023

            usual = seconds(work)
            with with_plain_dots():
                ratio = seconds(work) / usual
            print(f"| lists of {name}: plain dot products | {ratio:.2f} |")
            ratios.append(Ratio(f"lists of {name}: plain _dots", ratio, "times as long", "more"))
    print()
    report(ratios, arguments.record)


if __name__ == "__main__":
    main()
