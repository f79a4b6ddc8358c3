"""A web server on 127.0.0.1 that answers as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.images import encode, photo

JPEG = encode(photo(1))


class Web:
    """A server on 127.0.0.1. `answer` writes what a test wants."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: send(handler, JPEG, "image/jpeg")
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/cat.jpg"


def send(handler: BaseHTTPRequestHandler, body: bytes, kind: str, status: int = 200, **more: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | more).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
