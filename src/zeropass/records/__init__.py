"""Records: what everything shows, as plain data. No torch."""
