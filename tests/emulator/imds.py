"""The instance metadata service of EC2 (IMDSv2) for the tests: tokens, a spot notice, a rebalance recommendation."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

NOTICE = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"


class Imds:
    """One machine's service at `endpoint`. Without a valid token every answer is 401; what is not set is 404."""

    def __init__(self) -> None:
        self.documents: dict[str, str] = {}
        self.tokens: dict[str, float] = {}  # and when each one ends
        self.answers: list[tuple[str, int]] = []  # "GET /path" and its status, in order
        self.failing: int | None = None  # the status of every answer
        self.answering = threading.Event()  # cleared, no request gets any answer
        self.answering.set()
        imds = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                imds.answering.wait()
                status, body = imds.answer(self.command, self.path, self.headers)
                imds.answers.append((f"{self.command} {self.path}", status))
                self.send_response_only(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_PUT = handle_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that has not waited for its answer

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, method: str, path: str, headers: Message) -> tuple[int, str]:
        if self.failing is not None:
            return self.failing, "planned by the test"
        if method == "PUT":
            ttl = headers.get(TTL, "")
            if path != "/latest/api/token" or not (ttl.isdecimal() and 1 <= int(ttl) <= 21600):
                return 400, ""
            token = secrets.token_urlsafe(32)
            self.tokens[token] = time.monotonic() + int(ttl)
            return 200, token
        if time.monotonic() >= self.tokens.get(headers.get("X-aws-ec2-metadata-token", ""), 0.0):
            return 401, ""
        return (200, self.documents[path]) if path in self.documents else (404, "")

    def set_notice(self, action: str = "terminate", when: str = "2026-01-01T00:02:00Z") -> None:
        self.documents[NOTICE] = json.dumps({"action": action, "time": when})

    def set_rebalance(self, when: str = "2026-01-01T00:00:00Z") -> None:
        self.documents[REBALANCE] = json.dumps({"noticeTime": when})

    def served(self, path: str) -> bool:
        """Whether somebody has read this document."""
        return (f"GET {path}", 200) in self.answers

    def close(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def imds() -> Iterator[Imds]:
    service = Imds()
    yield service
    service.close()
