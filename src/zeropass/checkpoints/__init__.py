"""Checkpoints: the files that hold a model or an adapter, found, fetched and read."""
