"""Files of anybody, read with suspicion, and files of ours, written whole or not at all."""
