"""Mutated inputs for every reader: of what (seeds), how (mutate), what reads them (readers), what must hold (judge)."""
