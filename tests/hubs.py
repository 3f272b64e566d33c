"""A local stand-in for a hub, with the routes of the real one that its client asks: reading, ranges and commits."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" * 6 + "c0ff"
REPO = r"(models|spaces|datasets)/([\w.-]+/[\w.-]+)"
Files = dict[str, bytes]


@dataclass
class Hub:
    """The files that the stand-in serves, and the requests that it got.

    A dataset is stored under ``datasets/owner/name``; it has a commit of its own for each state.
    """

    repos: dict[str, Files]
    url: str = ""
    gets: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    sent: int = 0
    """Bytes of files that were sent."""
    breaks: int = 0
    """The number of coming downloads of weights that break off half-way."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, by SHA-256; those of an interrupted push have no commit."""
    uploads: int = 0
    """The number of large files that were uploaded."""
    history: dict[str, dict[str, Files]] = field(default_factory=dict)
    """The files of each dataset at each commit."""
    private: set[str] = field(default_factory=set)
    created: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    """The status of the answers of a route: ``head``, ``resolve``, ``create``, ``batch``, ``upload`` or ``commit``."""
    most_uploads: int | None = None
    """The number of uploads after which the hub refuses further ones."""
    answers: str = "parts"
    """The answer to a request for a part: ``parts``, ``everything``, ``less`` or ``other`` bytes, or ``late``."""

    def head(self, repo: str) -> str:
        """Return the newest commit of a repository."""
        return list(self.history.get(repo, {COMMIT: {}}))[-1]

    def at(self, repo: str, revision: str) -> Files | None:
        """Return the files of a repository at a revision, if there is one."""
        if revision in self.history.get(repo, {}):
            return self.history[repo][revision]
        return self.repos.get(repo) if revision in ("main", "v1", self.head(repo)) else None

    def commit(self, repo: str, files: Files) -> str:
        """Make a new state of a dataset, and return its commit."""
        content = json.dumps([(name, hashlib.sha1(data).hexdigest()) for name, data in sorted(files.items())])
        commit = hashlib.sha1((repo + content + str(len(self.history.get(repo, {})))).encode()).hexdigest()
        self.repos[repo] = files
        self.history.setdefault(repo, {})[commit] = files
        return commit


class Handler(BaseHTTPRequestHandler):
    """The hub's routes."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        if match := re.fullmatch(rf"/api/{REPO}", path):
            self.api(match[1], match[2], "revision", "main")
        elif match := re.fullmatch(rf"/api/{REPO}/(revision|tree)/(\w+)", path):
            self.api(*match.groups())
        elif match := re.fullmatch(r"/(?:spaces/)?((?:datasets/)?[\w.-]+/[\w.-]+)/resolve/(\w+)/(.+)", path):
            self.resolve(*match.groups())
        else:
            self.reply(404, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(rf"/api/{REPO}/preupload/main", path):
            self.preupload(f"{match[1]}/{match[2]}", json.loads(body))
        elif match := re.fullmatch(r"/(datasets/[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            self.batch(json.loads(body))
        elif match := re.fullmatch(rf"/api/{REPO}/commit/main", path):
            self.commit(f"{match[1]}/{match[2]}", [json.loads(line) for line in body.splitlines()])
        else:
            self.reply(404, b"{}")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.hub
        if hub.refused.get("upload") or (hub.most_uploads is not None and hub.uploads >= hub.most_uploads):
            self.reply(hub.refused.get("upload", 403), b"{}")
            return
        hub.uploads += 1
        hub.objects[hashlib.sha256(body).hexdigest()] = body
        self.reply(200, b"")

    def refuses(self, route: str) -> bool:
        """Answer with the status that a test wants of a route, if it wants one."""
        if status := self.hub.refused.get(route):
            headers = {"X-Error-Message": "Invalid username or password."} if status == 401 else {}
            self.reply(status, b"{}", headers)
        return bool(status)

    def answer(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def api(self, kind: str, name: str, route: str, revision: str) -> None:
        repo = f"datasets/{name}" if kind == "datasets" else name
        files = self.hub.at(repo, revision)
        if name == "owner/gated":
            self.reply(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
        elif repo not in self.hub.repos:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif files is None:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif route == "tree":
            self.answer(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
            )
        else:
            commit = revision if revision in self.hub.history.get(repo, {}) else self.hub.head(repo)
            info = {"id": name, "modelId": name, "sha": commit, "private": repo in self.hub.private}
            self.answer(info | {"siblings": [{"rfilename": name} for name in files]})

    def create(self, wanted: dict[str, Any]) -> None:
        if self.refuses("create"):
            return
        self.hub.created.append(wanted)
        name = f"{wanted['organization']}/{wanted['name']}"
        if f"datasets/{name}" in self.hub.repos:
            self.reply(409, json.dumps({"url": f"{self.hub.url}/datasets/{name}"}).encode())
            return
        if "private" in (wanted.get("visibility"), "private" if wanted.get("private") else ""):
            self.hub.private.add(f"datasets/{name}")
        self.hub.commit(f"datasets/{name}", {".gitattributes": b"*.npy filter=lfs\n"})
        self.answer({"url": f"{self.hub.url}/datasets/{name}"})

    def preupload(self, repo: str, wanted: dict[str, Any]) -> None:
        """Say how each file is sent, and the hash of the file that has its name now."""
        stored = self.hub.repos[repo]
        files = []
        for file in wanted["files"]:
            name = file["path"]
            mode = "regular" if name.endswith((".json", ".md")) else "lfs"
            entry: dict[str, Any] = {"path": name, "uploadMode": mode, "shouldIgnore": False}
            if name in stored:
                data = stored[name]
                git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
                entry["oid"] = git if mode == "regular" else hashlib.sha256(data).hexdigest()
            files.append(entry)
        self.answer({"files": files})

    def batch(self, wanted: dict[str, Any]) -> None:
        """Say where the large files go that the hub does not have."""
        if self.refuses("batch"):
            return
        objects = []
        for entry in wanted["objects"]:
            href = f"{self.hub.url}/upload/{entry['oid']}"
            action = {} if entry["oid"] in self.hub.objects else {"actions": {"upload": {"href": href}}}
            objects.append(entry | action)
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if self.refuses("commit"):
            return
        files = dict(self.hub.repos[repo])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, self.hub.head(repo)):
                self.reply(412, b'{"error": "the branch has moved"}')
                return
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(repo, files)
        self.answer({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def resolve(self, repo: str, revision: str, name: str) -> None:
        """Send a file or a part of it."""
        if repo.startswith("datasets/") and repo not in self.hub.repos:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        files = self.hub.at(repo, revision)
        if files is None and repo.startswith("datasets/"):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        data = (files or {}).get(name)
        if data is None:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.refuses("head" if self.command == "HEAD" else "resolve"):
            return
        commit = revision if revision in self.hub.history.get(repo, {}) else self.hub.head(repo)
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.hub.gets.append(name)
            span = self.headers.get("Range")
            if span and self.hub.answers != "everything":
                self.hub.ranges.append(span)
                self.send_part(name, data, span, headers)
                return
            if self.broken_off(name, data, headers):
                return
            self.hub.sent += len(data)
        self.reply(200, data, headers)

    def send_part(self, name: str, data: bytes, span: str, headers: dict[str, str]) -> None:
        start, _, end = span.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(end or len(data)), len(data) - 1)
        part = data[first : last + 1]
        if self.hub.answers == "late":
            threading.Event().wait(2)  # tests replace time.sleep, by which the client waits before it tries again
        if self.hub.answers == "other":
            first += 1
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        if self.hub.answers == "less":
            part = part[: len(part) // 2]
        if not self.broken_off(name, part, headers):
            self.hub.sent += len(part)
            self.reply(206, part, headers)

    def broken_off(self, name: str, body: bytes, headers: dict[str, str]) -> bool:
        """Send half of some weights and close the connection, if a test wants it."""
        if name != "model.safetensors" or not self.hub.breaks:
            return False
        self.hub.breaks -= 1
        self.send_response(200 if "Content-Range" not in headers else 206)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True
        return True

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """A server that says nothing of clients that went away."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving_hub(repos: dict[str, Files], cache: Path) -> Iterator[Hub]:
    """Run a stand-in to which huggingface_hub is pointed, with an empty cache."""
    hub = Hub(repos)
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        # The client reads these from the environment on import, so they are patched.
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
