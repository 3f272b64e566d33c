"""The pages of the explorer: records and what their templates need. Nothing here depends on a server."""
