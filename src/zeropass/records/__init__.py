"""Records: the plain data that every output shows. Nothing here imports torch."""
