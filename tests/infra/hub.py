"""A stand-in for the Hugging Face hub on loopback: whom it lets into which dataset."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IMAGENET = "ILSVRC/imagenet-1k"
OPEN = "someone/open"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass
class Hub:
    endpoint: str = ""
    accepted: set[str] = field(default_factory=lambda: {TOKEN})  # tokens whose accounts accepted ImageNet's terms
    moved: dict[str, str] = field(default_factory=dict)  # to which address a dataset's page sends
    tokens: list[str] = field(default_factory=list)  # all that it was sent
    known: set[str] = field(default_factory=lambda: {TOKEN})

    def status(self, path: str, token: str) -> int:
        if token and token not in self.known:
            return 401
        if path == f"/api/datasets/{OPEN}/auth-check":
            return 200
        if path == f"/api/datasets/{IMAGENET}/auth-check":
            return 200 if token in self.accepted else 403 if token else 401
        return 404


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.tokens.append(token)
            if moved := hub.moved.get(self.path):
                self.send_response(307)
                self.send_header("Location", moved)
            else:
                self.send_response(hub.status(self.path, token))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
