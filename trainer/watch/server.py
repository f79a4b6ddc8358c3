"""Answers the browser: one page, its script and style, the figures as JSON, and the report. On 127.0.0.1 only.

A page elsewhere may lead the browser here, under a name of its own that points to 127.0.0.1. Such a request has that
name as its Host, and is refused. Answers allow the browser to load nothing from elsewhere, and to run our script alone.
"""

from __future__ import annotations

import json
import re
import sys
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from trainer.text import tell
from trainer.watch.reader import RunReader

ADDRESS = "127.0.0.1"
FIRST_PORT, MOST_PORTS = 8400, 100
_OWN_HOST = re.compile(
    r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE
)  # any port: it may be forwarded
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/watch.js": ("watch.js", "text/javascript; charset=utf-8"),
    "/watch.css": ("watch.css", "text/css; charset=utf-8"),
}
# The report's charts have styles of their own, and its pictures are within it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@cache
def own_file(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


class PageServer(ThreadingHTTPServer):
    """Each request in a thread that does not outlive the process."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, reader: RunReader, port: int):
        super().__init__((ADDRESS, port), PageHandler)
        self.reader = reader
        self.complaints: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news. Anything else is said."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            self.complain(error)

    def complain(self, error: BaseException) -> str:
        """Say once what went wrong. Returns what was said."""
        text = f"the page cannot be answered: {type(error).__name__}: {error}"
        if text not in self.complaints:
            self.complaints.add(text)
            tell(f"error: {text}", sys.stderr)
        return text


class PageHandler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "watch", ""
    timeout = 10.0  # seconds for a request to arrive

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not _OWN_HOST.fullmatch(self.headers.get("Host", "")):
            self.answer(403, f"this page is at {self.server.address}, and under no other name\n".encode(), "text/plain")
            return
        try:
            status, body, kind = self.found(self.path.partition("?")[0])
        except Exception as error:  # noqa: BLE001  # whatever it is: the page says it, and goes on asking
            status, body, kind = 500, f"{self.server.complain(error)}\n".encode(), "text/plain; charset=utf-8"
        self.answer(status, body, kind)

    def found(self, path: str) -> tuple[int, bytes, str]:
        """Status, body and type of the answer."""
        if path in _FILES:
            name, kind = _FILES[path]
            return 200, own_file(name), kind
        if path == "/live":
            return 200, json.dumps(self.server.reader.document(time.time())).encode(), "application/json"
        if path == "/report":
            return 200, self.server.reader.report, "text/html; charset=utf-8"
        return 404, b"there is no such page\n", "text/plain"

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is for people."""
