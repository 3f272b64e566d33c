"""The atlas: every parameter of a model on disk, searchable from parameters to words and from words to parameters."""
