"""Checkpoints: where the bytes of a model or an adapter come from."""
