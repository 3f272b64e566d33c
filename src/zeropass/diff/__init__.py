"""Comparisons of two models: what a fine-tune or an adapter changed, in numbers and in words."""
