"""Tokens: ids, text and the rules of a vocabulary, read from whatever file holds it. No torch."""
