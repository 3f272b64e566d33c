"""Every parameter of a model on disk, both directions searchable."""
