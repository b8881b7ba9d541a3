"""A stand-in for the Hub: real HTTP on localhost, a repository in memory, and faults on request.

It speaks what `huggingface_hub` asks for when Xet is off: create a repository, preupload, LFS batch and PUT, commit,
revision, tree, resolve. Every commit keeps a snapshot, so a revision can be asked for later.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_FROM_BYTES = 4096


class HubStandIn:
    """The repository and the script of faults."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, bytes]] = [{}]
        self.messages: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.faults: list[tuple[str, int | str]] = []
        """(part of the path, status or "cut") in order; each is used once, on the first request it fits."""
        self.always: tuple[str, int] | None = None
        self.requests: list[str] = []
        self.gate = threading.Event()
        """Commits wait for it; set unless a test holds uploads back."""
        self.gate.set()
        self.lock = threading.Lock()

    @property
    def files(self) -> dict[str, bytes]:
        """What the newest commit holds."""
        return self.snapshots[-1]

    def sha(self, index: int) -> str:
        return hashlib.sha1(f"commit {index}".encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.files
        names = {self.sha(n): snapshot for n, snapshot in enumerate(self.snapshots)}
        return names.get(revision)

    def fault_for(self, path: str) -> int | str | None:
        with self.lock:
            if self.always and self.always[0] in path:
                return self.always[1]
            for n, (part, what) in enumerate(self.faults):
                if part in path:
                    del self.faults[n]
                    return what
        return None


@contextlib.contextmanager
def hub_stand_in() -> Iterator[tuple[HubStandIn, str]]:
    """The stand-in and its address."""
    hub = HubStandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def reply(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {path}")
            fault = hub.fault_for(path)
            if fault == "cut":
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if fault is not None:
                self.reply(int(fault), {"error": f"injected {fault}"}, {"Retry-After": "0"} if fault == 429 else None)
                return
            if path == "/api/repos/create":
                self.reply(200, {"url": f"http://{self.headers['Host']}/me/repo", "name": "me/repo"})
            elif "/preupload/" in path:
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] >= LFS_FROM_BYTES else "regular",
                          "shouldIgnore": False} for f in files]  # fmt: skip
                self.reply(200, {"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                host = f"http://{self.headers['Host']}"
                objects = [{"oid": o["oid"], "size": o["size"],
                            "actions": {"upload": {"href": f"{host}/blob/{o['oid']}"}}}
                           for o in json.loads(body)["objects"]]  # fmt: skip
                self.reply(200, {"transfer": "basic", "objects": objects},
                           {"Content-Type": "application/vnd.git-lfs+json"})  # fmt: skip
            elif path.startswith("/blob/"):
                hub.blobs[path.removeprefix("/blob/")] = body
                self.reply(200, {})
            elif "/commit/" in path:
                hub.gate.wait(600)
                self.commit(body)
            elif found := re.fullmatch(r"/api/models/me/repo/revision/(.+)", path):
                self.revision(found[1])
            elif found := re.fullmatch(r"/api/models/me/repo/tree/([^/]+)/?(.*)", path):
                self.tree(found[1], found[2])
            elif found := re.fullmatch(r"/me/repo/resolve/([^/]+)/(.+)", path):
                self.resolve(found[1], found[2])
            elif path == "/api/models/me/repo":
                self.revision("main")
            else:
                self.reply(404, {"error": f"no such thing: {path}"}, {"X-Error-Code": "RepoNotFound"})

        do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815

        def commit(self, body: bytes) -> None:
            lines = [json.loads(line) for line in body.splitlines()]
            with hub.lock:
                parent = next((line["value"].get("parentCommit") for line in lines if line["key"] == "header"), None)
                if parent is not None and parent != hub.sha(len(hub.snapshots) - 1):
                    self.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
                    return
                files = dict(hub.files)
                for line in lines:
                    value = line["value"]
                    if line["key"] == "header":
                        hub.messages.append(value["summary"])
                    elif line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.blobs[value["oid"]]
                hub.snapshots.append(files)
                oid = hub.sha(len(hub.snapshots) - 1)
            url = f"http://{self.headers['Host']}/me/repo/commit/{oid}"
            self.reply(200, {"commitOid": oid, "commitUrl": url})

        def revision(self, name: str) -> None:
            if hub.at(name) is None:
                self.reply(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
                return
            sha = hub.sha(len(hub.snapshots) - 1) if name == "main" else name
            siblings = [{"rfilename": path} for path in hub.at(name) or {}]
            self.reply(200, {"id": "me/repo", "sha": sha, "siblings": siblings, "private": False, "tags": []})

        def tree(self, name: str, folder: str) -> None:
            files = hub.at(name)
            if files is None:
                self.reply(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
                return
            entries = []
            for path, data in files.items():
                if folder and not path.startswith(f"{folder}/"):
                    continue
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data),
                                         "oid": hashlib.sha1(data).hexdigest()}  # fmt: skip
                if len(data) >= LFS_FROM_BYTES:
                    entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                entries.append(entry)
            self.reply(200, entries)

        def resolve(self, name: str, path: str) -> None:
            files = hub.at(name)
            if files is None:
                self.reply(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
                return
            if path not in files:
                self.reply(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
                return
            data = files[path]
            self.reply(200, data, {"X-Repo-Commit": name, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        hub.gate.set()
        server.shutdown()
        server.server_close()
