"""Tensors in, tensors out: products kept as factors, exact top-k lists and top pairs. Nothing here knows a model."""
