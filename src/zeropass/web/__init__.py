"""The explorer: the records of an atlas as pages, on a local server or as a static site."""
