"""A hub on 127.0.0.1: as much of its HTTP interface as uploading a repository asks, and a record of what was asked."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import RepoCard

WRITE, READ, FINE = "hf_writes0123456789", "hf_reads0123456789", "hf_fine0123456789"


@dataclass
class Repository:
    """One repository: its files, and how often it was committed to."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}{self.commits}".encode()).hexdigest()

    @property
    def card(self) -> dict[str, Any]:
        text = self.files.get("README.md", b"").decode()
        return RepoCard(text).data.to_dict() if text.startswith("---\n") else {}


class FakeHub:
    """What lies there, and what was asked: pairs of a method and a path."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.refuse: dict[str, int] = {}  # Part of a path → the status it is answered with.
        self.scopes: list[dict[str, Any]] = [{"entity": {"name": "me"}, "permissions": ["repo.content.read"]}]
        self.url = ""

    @property
    def written(self) -> list[tuple[str, str]]:
        """What was asked and changes something."""
        changing = ("/api/repos", "/preupload/", "/commit/", "/objects/batch", "/lfs/")
        return [one for one in self.asked if one[0] != "GET" and any(part in one[1] for part in changing)]

    def user(self, token: str) -> dict[str, Any]:
        role = {WRITE: "write", READ: "read", FINE: "fineGrained"}[token]
        told: dict[str, Any] = {"displayName": "a token", "role": role}
        told |= {"fineGrained": {"scoped": self.scopes}} if role == "fineGrained" else {}
        return {
            "type": "user", "name": "me", "fullname": "Me", "orgs": [{"name": "lab"}], "auth": {"accessToken": told},
        }  # fmt: skip


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, content: Any = None, **headers: str) -> None:
            data = json.dumps({} if content is None else content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def handle_any(self) -> None:
            body = self.body()
            path = self.path.split("?")[0]
            hub.asked.append((self.command, path))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if refused := next((status for part, status in hub.refuse.items() if part in path), 0):
                return self.answer(refused, {"error": "refused"})
            if path.startswith("/lfs/"):  # The storage knows no token.
                hub.blobs[path.removeprefix("/lfs/")] = body
                return self.answer(200)
            if token not in (WRITE, READ, FINE):
                return self.answer(401, {"error": "Invalid username or password."})
            if path == "/api/whoami-v2":
                return self.answer(200, hub.user(token))
            if path == "/api/validate-yaml":
                assert RepoCard(json.loads(body)["content"]).data.to_dict()
                return self.answer(200, {"errors": [], "warnings": []})
            if path == "/api/repos/create":
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                if name in hub.repositories:
                    return self.answer(
                        409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}
                    )
                private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
                hub.repositories[name] = Repository(private)
                return self.answer(200, {"url": f"{hub.url}/{name}", "name": name})
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                return self.answer(200, {"transfer": "basic", "objects": objects})
            parts = path.removeprefix("/api/models/").split("/")
            name, rest = "/".join(parts[:2]), parts[2:]
            repository = hub.repositories.get(name)
            if repository is None:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            if rest[:1] == ["preupload"]:
                modes = [
                    {
                        "path": one["path"], "shouldIgnore": False, "oid": None,
                        "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    }
                    for one in json.loads(body)["files"]
                ]  # fmt: skip
                return self.answer(200, {"files": modes})
            if rest[:1] == ["commit"]:
                return self.commit(repository, name, [json.loads(line) for line in body.decode().splitlines()])
            files = [{"rfilename": file} for file in sorted(repository.files)]
            return self.answer(
                200,
                {
                    "_id": "0", "id": name, "modelId": name, "sha": repository.sha, "private": repository.private,
                    "siblings": files, "cardData": repository.card, "tags": [], "downloads": 0, "likes": 0,
                },
            )  # fmt: skip

        def commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> None:
            header = lines[0]["value"]
            if header.get("parentCommit") not in (None, repository.sha):
                return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = hub.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del repository.files[value["path"]]
            repository.commits.append(header["summary"])
            self.answer(
                200,
                {
                    "success": True, "commitOid": repository.sha, "hookOutput": "",
                    "commitUrl": f"{hub.url}/{name}/commit/{repository.sha}",
                },
            )  # fmt: skip

        do_GET = do_POST = do_PUT = do_HEAD = handle_any

    return Handler


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that answers while the block runs."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
