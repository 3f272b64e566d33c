"""A model: its parameters by address, in canonical shape, and the frames that give its stream words."""
