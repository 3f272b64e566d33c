"""The command line: it parses options, calls the library and prints; all results are available as JSON."""
