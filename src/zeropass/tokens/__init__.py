"""Tokens: ids, text and the rules of a vocabulary, read from any file that holds one, without torch."""
