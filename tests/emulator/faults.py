"""A proxy before the S3 endpoint that knows which operation of a commit a request is, and can do any harm to it.

What passed is kept (`calls`, `leases`), so that a test can check the order of all that took effect.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

# Of keys, by what they hold; the first that fits. The rest is "other".
KEYS = {
    "lease": r"/checkpoints/[^/]+/HEAD\.json$",
    "manifest": r"/checkpoints/[^/]+/manifest/",
    "data": r"/checkpoints/[^/]+/data/",
    "metrics": r"/runs/[^/]+/(metrics|tensorboard)/",
    "heartbeat": r"/runs/[^/]+/heartbeat\.json$",
    "attempt": r"/runs/[^/]+/attempts/",
}


def operation_of(method: str, target: str) -> str:
    """The name of a request's operation: `put-lease`, `upload-part`, `list`, …"""
    url = urlsplit(target)
    query = parse_qs(url.query, keep_blank_values=True)
    if "uploadId" in query:
        return {"PUT": "upload-part", "POST": "complete", "DELETE": "abort"}.get(method, "list-parts")
    if "uploads" in query:
        return "create-multipart" if method == "POST" else "list-uploads"
    if "tagging" in query:
        return "tag" if method == "PUT" else "get-tags"
    if "lifecycle" in query:
        return f"{method.lower()}-lifecycle"
    if method == "GET" and ("list-type" in query or url.path.count("/") < 2):
        return "list"
    kind = next((name for name, pattern in KEYS.items() if re.search(pattern, url.path)), "other")
    return f"{ {'HEAD': 'look'}.get(method, method.lower()) }-{kind}".replace(" ", "")


@dataclass
class Call:
    """One request, and what became of it."""

    operation: str
    method: str
    target: str
    started: float = field(default_factory=time.time)
    status: int = 0  # the endpoint's; 0: it never got there
    harmed: str = ""


Answer = tuple[int, Mapping[str, str], bytes]


class Exchange:
    """A request in the hands of a fault, which chooses what to do of: read it, forward it, answer, hang up."""

    def __init__(self, handler: BaseHTTPRequestHandler, proxy: FaultProxy, call: Call):
        self.handler, self.proxy, self.call = handler, proxy, call
        self.left = int(handler.headers.get("Content-Length") or 0)
        self.body = b""

    def read(self, fraction: float = 1.0) -> bytes:
        """The request's body, or so much of it."""
        size = int(self.left * fraction)
        self.body += self.handler.rfile.read(size)
        self.left -= size
        return self.body

    def forward(self) -> Answer:
        """Let it take effect; the endpoint's answer."""
        self.read()
        headers = {k: v for k, v in self.handler.headers.items() if k.lower() not in ("expect", "connection")}
        with self.proxy.one_at_a_time if self.call.operation == "put-lease" else contextlib.nullcontext():
            connection = http.client.HTTPConnection(self.proxy.target, timeout=30)
            try:
                connection.request(self.handler.command, self.handler.path, self.body, headers)
                response = connection.getresponse()
                answer = response.status, dict(response.getheaders()), response.read()
            finally:
                connection.close()
            self.call.status = answer[0]
            if self.call.operation == "put-lease" and answer[0] == 200:
                document = self.body[self.body.index(b"{") : self.body.rindex(b"}") + 1]  # it may come in chunks
                self.proxy.leases.append((time.time(), json.loads(document)))
        return answer

    def answer(self, answer: Answer, *, keep: float = 1.0) -> None:
        """Send it; only a part of it for `keep` < 1, and then hang up."""
        status, headers, content = answer
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{k}: {v}" for k, v in headers.items() if k.lower() not in ("connection", "transfer-encoding")]
        if "content-length" not in {name.lower() for name in headers}:
            lines.append(f"Content-Length: {len(content)}")
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        whole = head if self.handler.command == "HEAD" else head + content
        if keep == 1:
            self.handler.wfile.write(whole)
        else:  # within the body, where there is one
            cut = int(len(head) + len(content) * keep) if len(whole) > len(head) else int(len(head) * keep)
            self.handler.wfile.write(whole[:cut])
            self.handler.close_connection = True

    def reset(self) -> None:
        """RST instead of an end."""
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.handler.connection.close()
        self.handler.close_connection = True

    def hang_up(self) -> None:
        self.handler.close_connection = True


Fault = Callable[[Exchange], None]


class FaultProxy:
    """`harm(exchange)`, where it is set, handles every request that arrives; else they are passed on."""

    def __init__(self, endpoint: str) -> None:
        self.target = urlsplit(endpoint).netloc
        self.calls: list[Call] = []
        self.leases: list[tuple[float, dict[str, Any]]] = []  # every HEAD.json that took effect, in this order
        self.harm: Fault | None = None
        self.released = threading.Event()  # ends black holes
        self.one_at_a_time = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                call = Call(operation_of(self.command, self.path), self.command, self.path)
                proxy.calls.append(call)
                exchange = Exchange(self, proxy, call)
                with contextlib.suppress(OSError):  # who asked is gone
                    harm = proxy.harm
                    if harm is not None:
                        harm(exchange)
                    else:
                        exchange.answer(exchange.forward())
                    return
                self.close_connection = True

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError):  # killed in the middle of a request, or reset by us
                    super().handle()

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._handler = Handler
        self._server = self._serve(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @staticmethod
    def _serve(server: ThreadingHTTPServer) -> ThreadingHTTPServer:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    @contextlib.contextmanager
    def serve_at(self, listener: socket.socket) -> Iterator[None]:
        """Serve at this socket, too: at one of another network namespace."""
        server = ThreadingHTTPServer(("", 0), self._handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        self._serve(server)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()

    def heal(self) -> None:
        """No more harm."""
        self.harm = None
        self.released.set()

    def forget(self) -> None:
        """A fresh start for the next test."""
        self.heal()
        self.calls, self.leases = [], []

    def inflict(self, kind: str, operations: set[str], *, share: float = 1.0, also: Mapping[str, str] = {}) -> None:
        """Let requests of these operations meet a fault (a name of FAULTS), or that share of them.

        `also`: other faults, by operation.
        """
        dice, kinds = random.Random(0), dict(also) | dict.fromkeys(operations, kind)
        self.released.clear()

        def harm(exchange: Exchange) -> None:
            found = kinds.get(exchange.call.operation)
            if found and dice.random() < share:
                exchange.call.harmed = found
                FAULTS[found](exchange)
            else:
                exchange.answer(exchange.forward())

        self.harm = harm

    def close(self) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()


def refuse(status: int, code: str) -> Fault:
    """An error of S3, without asking the endpoint."""

    def fault(exchange: Exchange) -> None:
        exchange.read()
        body = f"<Error><Code>{code}</Code><Message>planned by the test</Message></Error>".encode()
        if exchange.handler.command == "HEAD":
            body = b""
        exchange.answer((status, {"Content-Type": "application/xml"}, body))

    return fault


def reset_before(exchange: Exchange) -> None:
    exchange.reset()


def reset_inside(exchange: Exchange) -> None:
    exchange.read(0.5)
    exchange.reset()


def black_hole(exchange: Exchange) -> None:
    """It accepts everything and never answers."""
    exchange.read()
    exchange.proxy.released.wait(120)
    exchange.hang_up()


def lose_answer(exchange: Exchange) -> None:
    exchange.forward()
    exchange.hang_up()


def delay(exchange: Exchange) -> None:
    time.sleep(2)
    exchange.answer(exchange.forward())


def cut_answer(exchange: Exchange) -> None:
    exchange.answer(exchange.forward(), keep=0.5)


def flip_bit(exchange: Exchange) -> None:
    """One bit of the request's body, in its middle; what has no body loses a bit of its answer."""
    if body := exchange.read():
        exchange.body = flipped(body)
        exchange.answer(exchange.forward())
    else:
        status, headers, content = exchange.forward()
        exchange.answer((status, headers, flipped(content) if content else content))


def flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 4]) + body[middle + 1 :]


FAULTS: dict[str, Fault] = {
    "500": refuse(500, "InternalError"),
    "503": refuse(503, "SlowDown"),
    "expired-token": refuse(403, "ExpiredToken"),
    "denied": refuse(403, "AccessDenied"),
    "clock-skew": refuse(403, "RequestTimeTooSkewed"),
    "no-bucket": refuse(404, "NoSuchBucket"),
    "reset-before": reset_before,
    "reset-inside": reset_inside,
    "black-hole": black_hole,
    "lost-answer": lose_answer,
    "conflict": refuse(409, "ConditionalRequestConflict"),
    "delay": delay,
    "cut-answer": cut_answer,
    "flipped-bit": flip_bit,
}
