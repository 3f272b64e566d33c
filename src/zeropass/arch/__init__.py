"""The facts known of each family of models, as data."""
