"""Input and output: untrusted files are checked as they are read, and our own files are written atomically."""
