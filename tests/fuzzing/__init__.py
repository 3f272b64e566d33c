"""Mutated inputs for every reader: the files to start from, the mutations, the readers, and the judge of outcomes."""
