"""The rendering of records: in a terminal, as a tour, as SVG."""
