"""Mutated inputs for every reader: what is mutated (seeds), how (mutate), what reads it (readers), what must hold (judge)."""
