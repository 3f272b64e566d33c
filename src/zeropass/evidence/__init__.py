"""Measures of how well words read from weights agree with what the running model does (docs/evidence.md)."""
