"""Classifiers without training: tuned upper layers of one model on lower layers of another (Dar et al. 2023, §5)."""
