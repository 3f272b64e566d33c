"""The command line: parses, asks the library, prints. Everything it prints can be had as JSON."""
