"""Pages of the explorer: records and what a template needs beside them. Nothing here knows of a server."""
