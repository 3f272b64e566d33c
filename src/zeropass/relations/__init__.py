"""Relations: the heads that take the left word of a pair to the right one, from the weights (docs/relations.md)."""
