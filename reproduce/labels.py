"""Measure how often a labelling program tells the most telling lists of an atlas from wrong ones, by layer.

python reproduce/labels.py demo/smollm2-135m

The program is ``reproduce/copying_labeller.py`` if none is given. The labels are not kept.
"""

import argparse
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import zeropass as zp

ROLES = ("gate", "value")
COPYING = shlex.join([sys.executable, str(Path(__file__).parent / "copying_labeller.py")])


def main() -> None:
    """Print a line for each third of the layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas")
    parser.add_argument("--with", dest="command", default=COPYING)
    parser.add_argument("-k", type=int, default=20, help="how many lists of a role in each third")
    options = parser.parse_args()
    atlas = zp.open_atlas(options.atlas)
    count = atlas.model["layers"]
    right = asked = 0
    with TemporaryDirectory() as folder:
        for third in range(3):
            layers = (count * third // 3, count * (third + 1) // 3)
            lists = [f"{place}.{role}" for role in ROLES for place in atlas.strongest([role], layers, k=options.k)]
            labels = zp.label(atlas, lists, options.command, folder=folder)
            of_third = sum(label.right for label in labels), sum(label.asked for label in labels)
            right, asked = right + of_third[0], asked + of_third[1]
            print(f"layers {layers[0]} to {layers[1] - 1}: {len(labels)} lists, right {of_third[0]} of {of_third[1]}")
    print(f"right {right} of {asked}, {right / asked:.0%}")


if __name__ == "__main__":
    main()
