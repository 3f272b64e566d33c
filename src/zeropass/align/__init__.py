"""Which parameter of one model does what this one of another does (design.md §4, docs/alignment.md)."""
