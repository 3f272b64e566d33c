"""The names of what lies on a hub. The client of the hub takes long to import, so it is not needed here."""

import re

__all__ = ["DATASETS", "REPO_ID", "REVISION"]

DATASETS = "hf://datasets/"
"""The beginning of the address of a dataset, as in the client's own file system; ``owner/name@revision`` follows."""

REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
