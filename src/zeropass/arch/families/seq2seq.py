"""Encoder-decoders: two records a family, for two stacks of layers with a stream each lie in one file."""

from zeropass.arch.spec import Family

FAMILIES: tuple[Family, ...] = ()
