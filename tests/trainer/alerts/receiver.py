"""A webhook's server on 127.0.0.1, which keeps what it was sent and answers as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from trainer.alerts import Alert

SECRET = "/services/T0/B0/XYZZY"


def made(kind: str = "best", text: str = "top-1 is 76.13 %", at: float = 1000.0, level: str = "info") -> Alert:
    return Alert(kind=kind, level=level, text=text, run_id="rn50-1", step=1200, time=at)


def answering(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer of this status, without a body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": "0"} | {k.replace("_", "-"): v for k, v in headers.items()}).items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


class Receiver:
    """`answers` are given one after the other, the last of them for ever."""

    def __init__(self) -> None:
        self.answers: list[Callable[[BaseHTTPRequestHandler], None]] = [answering(204)]
        self.got: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                answers = receiver.answers
                with suppress(OSError):  # the client may have left
                    (answers.pop(0) if len(answers) > 1 else answers[0])(self)

            def do_GET(self) -> None:
                receiver.got.append({"followed": self.path})

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}{SECRET}"

    def texts(self) -> list[str]:
        return [body["text"] for body in self.got]


def wait_for(is_true: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)
