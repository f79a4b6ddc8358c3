"""A Hugging Face hub on 127.0.0.1: datasets with commits, as the hub's client expects them, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "x" * 30
GRANTED = "hf_" + "y" * 30

Answer = tuple[int, dict[str, str], bytes]


class Hub:
    """One free data set (`lab/photos`) and one gated (`lab/gated`), of the same files; the rest does not exist.

    `publish` makes the newest commit from what is in the folder; earlier commits are still served. `fault` may answer
    in place of the hub; it is given method and path.
    """

    def __init__(self, files: Path) -> None:
        self.files, self.commit = files, ""
        self.requests: list[tuple[str, str]] = []  # path, authorization
        self.fault: Callable[[str, str], Answer | None] = lambda method, path: None
        self._commits: dict[str, dict[str, bytes]] = {}
        self.publish()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.requests.append((path, self.headers.get("Authorization", "")))
                self.answer(*(hub.fault(self.command, path) or hub.respond(path, self.headers.get("Authorization"))))

            do_HEAD = do_GET  # noqa: N815

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                if not status:  # hang up
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def publish(self) -> str:
        """The new commit."""
        content = {
            str(file.relative_to(self.files)): file.read_bytes()
            for file in sorted(self.files.rglob("*"))
            if file.is_file()
        }
        digests = [(path, hashlib.sha1(body).hexdigest()) for path, body in content.items()]
        self.commit = hashlib.sha1(json.dumps(digests).encode()).hexdigest()
        self._commits[self.commit] = content
        return self.commit

    def respond(self, path: str, token: str | None) -> Answer:
        if "lab/gated" in path and "/resolve/" in path and token != f"Bearer {GRANTED}":
            return 403 if token else 401, {"X-Error-Code": "GatedRepo"}, b""  # its listing is open to all
        if "lab/photos" not in path and "lab/gated" not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if "/tree/" in path:
            content = self._commits[path.split("/tree/")[1].split("/")[0]]
            return as_json([_listed(name, body) for name, body in content.items()])
        if path.startswith("/api/"):
            commit = path.partition("/revision/")[2] or self.commit
            if commit not in self._commits:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            siblings = [_sibling(name, body) for name, body in self._commits[commit].items()]
            return as_json({"id": "/".join(path.split("/")[3:5]), "sha": commit, "siblings": siblings})
        commit, _, name = path.split("/resolve/")[1].partition("/")
        body = self._commits[commit][name]
        return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}, body

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def as_json(value: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def git_oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _listed(name: str, body: bytes) -> dict[str, object]:
    if not name.endswith(".parquet"):
        return {"type": "file", "path": name, "size": len(body), "oid": git_oid(body)}
    sha256 = hashlib.sha256(body).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(body)}\n".encode()
    lfs = {"oid": sha256, "size": len(body), "pointerSize": len(pointer)}
    return {"type": "file", "path": name, "size": len(body), "oid": git_oid(pointer), "lfs": lfs}


def _sibling(name: str, body: bytes) -> dict[str, object]:
    listed = _listed(name, body)
    found = {"rfilename": name, "size": listed["size"], "blobId": listed["oid"]}
    if name.endswith(".parquet"):
        found["lfs"] = {
            "sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130,
        }  # fmt: skip
    return found
