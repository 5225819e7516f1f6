"""A stand-in for the Hugging Face hub on 127.0.0.1: as much of its API as a commit to a model repository takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Iterator

TOKEN = "hf_right"


class Hub:
    """What the hub has: `repos` by their ids, each the files' contents by their names; and what it was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.full = False  # takes no commit
        self.read_only: set[str] = set()  # repositories of others

    def answer(self, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        self.asked.append(path)
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/large/"):
            self.large[path[len("/large/") :]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path.startswith("/api/models/") and path.endswith("/auth-check/write"):
            repo = path[len("/api/models/") : -len("/auth-check/write")]
            return (403, {"error": "No write access"}) if repo in self.read_only else (200, {})
        if path[len("/api/models/") :] in self.read_only:
            return 200, {"id": path[len("/api/models/") :], "siblings": []}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'student'}/{wanted['name']}"
            if repo in self.read_only:
                return 403, {"error": "You don't have the rights to create a model under this namespace"}
            self.repos.setdefault(repo, {})
            return 200, {"url": f"{self.url}/{repo}"}
        if path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "regular" if name.endswith((".md", ".json")) else "lfs" for name in files}
            return 200, {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [{**o, "actions": {"upload": {"href": f"{self.url}/large/{o['oid']}"}}} for o in objects]
            return 200, {"transfer": "basic", "objects": upload}
        if path.endswith("/commit/main"):
            return self.commit(path[len("/api/models/") : -len("/commit/main")], body)
        return 404, {"error": "unknown"}

    def commit(self, repo: str, body: bytes) -> tuple[int, Any]:
        if self.full:
            return 403, {"error": "Private repository storage limit reached"}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.repos[repo][value["path"]] = content
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{repo}/commit/{'0' * 40}"}


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, answer = hub.answer(self.path, body, self.headers["Authorization"])
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
