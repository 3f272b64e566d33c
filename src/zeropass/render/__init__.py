"""How records look: in a terminal, as a tour, as SVG. Each technique once."""
