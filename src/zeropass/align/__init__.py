"""Alignment of two models: which parameters of one do what those of the other do (docs/alignment.md)."""
