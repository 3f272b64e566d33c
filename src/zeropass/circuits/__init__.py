"""Circuits: which parameters write what others read, from the weights, beside nulls."""
