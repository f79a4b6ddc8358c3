"""A Hugging Face hub on 127.0.0.1 that takes models: repositories, large files, commits, as the hub's client expects.

What a test wants it to refuse stands in `fault`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub import Answer, as_json, git_oid

WRITER = "hf_" + "w" * 30  # may write to repositories of somebody and of lab

WRONG_TOKEN = "Invalid credentials in Authorization header"  # the client knows it by these words


@dataclass
class Repository:
    is_private: bool
    commit: str = "0" * 40
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: list[str] = field(default_factory=list)  # what each one says of itself


class ModelHub:
    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[str] = []  # method and path
        self.fault: Callable[[str, str], Answer | None] = lambda method, path: None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, body = unquote(urlsplit(self.path).path), self.body()
                hub.requests.append(f"{self.command} {path}")
                is_known = self.headers.get("Authorization") in (f"Bearer {WRITER}", None)
                refused = (
                    None if is_known else (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"")
                )
                status, headers, answer = (
                    hub.fault(self.command, path) or refused or hub.respond(self.command, path, body)
                )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

            def body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def respond(self, method: str, path: str, body: bytes) -> Answer:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return as_json({"errors": [], "warnings": []})
        if parts[0] == "large":
            if method == "PUT":
                self.large[hashlib.sha256(body).hexdigest()] = body
            return as_json({})
        if path.endswith("/info/lfs/objects/batch"):
            return as_json({"transfer": "basic", "objects": [self.wanted(one) for one in json.loads(body)["objects"]]})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if "resolve" in parts:
            return self.resolve(repository, "/".join(parts[4:]))
        match parts[4:]:
            case ["preupload", _]:
                return as_json({"files": [self.mode(repository, one) for one in json.loads(body)["files"]]})
            case ["commit", _]:
                return self.take(repository, name, [json.loads(line) for line in body.splitlines()])
        siblings = [{"rfilename": file} for file in repository.files]
        return as_json({"id": name, "private": repository.is_private, "sha": repository.commit, "siblings": siblings})

    def create(self, asked: dict[str, Any]) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in ("somebody", "lab"):
            return 403, {"X-Error-Message": f"You don't have the rights to create a model under {name}"}, b""
        if name in self.repositories:
            return 409, {"X-Error-Message": "You already created this model repo"}, b""
        self.repositories[name] = Repository(asked.get("visibility") == "private")
        return as_json({"url": f"{self.endpoint}/{name}", "name": name})

    def wanted(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.large:
            return asked
        actions = {"upload": {"href": f"{self.endpoint}/large/{asked['oid']}"}}
        return asked | {"actions": actions | {"verify": {"href": f"{self.endpoint}/large/verify"}}}

    def mode(self, repository: Repository, asked: dict[str, Any]) -> dict[str, Any]:
        is_large = asked["path"].endswith((".safetensors", ".onnx", ".pt2"))
        old = repository.files.get(asked["path"])
        found = {"path": asked["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
        return found | ({"oid": git_oid(old)} if old is not None else {})

    def take(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> Answer:
        if lines[0]["value"].get("parentCommit", repository.commit) != repository.commit:
            return 412, {"X-Error-Message": "A commit has happened since"}, b""
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        repository.files = files
        repository.commits.append(lines[0]["value"]["summary"])
        repository.commit = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
        return as_json(
            {"commitUrl": f"{self.endpoint}/{name}/commit/{repository.commit}", "commitOid": repository.commit}
        )

    def resolve(self, repository: Repository, file: str) -> Answer:
        if file not in repository.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = repository.files[file]
        return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": repository.commit}, body
