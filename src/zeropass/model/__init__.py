"""Models: parameters by address in canonical shape, and the frames that relate their stream to tokens."""
