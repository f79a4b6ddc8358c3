"""An S3 endpoint over TLS that swallows: large bodies are counted and dropped, small objects are kept.

It speaks what boto3 and our store say while a checkpoint is stored: objects with If-None-Match and If-Match, multipart
uploads, tags, listings. Bodies are read at a pace shared by all connections. A process of its own, so that its seconds
of the processor are nobody else's: `python -m benchmarks.checkpoint_sink CERTIFICATE KEY` prints its port, and answers
each line of its standard input: `pace BYTES_PER_SECOND` (0: none), `count`.
"""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEPT_BYTES = 1 << 20  # larger objects have a size and an etag, but no bytes
PIECE_BYTES = 1 << 18  # of a body: what the pace is kept by
CHECKSUM = "x-amz-checksum-"
KINDS = {"partNumber": "part", "uploadId": "upload", "uploads": "uploads", "tagging": "tags", "list-type": "list"}


class Pace:
    """So many bytes per second, over all threads."""

    def __init__(self) -> None:
        self.rate, self.free_at, self.lock = 0.0, 0.0, threading.Lock()

    def wait(self, size: int) -> None:
        if not self.rate:
            return
        with self.lock:
            start = max(time.monotonic(), self.free_at)
            self.free_at = start + size / self.rate
        time.sleep(max(0.0, start - time.monotonic()))


@dataclass(frozen=True)
class Stored:
    size: int
    etag: str
    body: bytes | None


class Contents:
    """All buckets as one dictionary, `bucket/key` to what is stored, and the open multipart uploads."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, tuple[str, dict[int, int]]] = {}  # id -> key, part number -> bytes
        self.lock, self.numbers = threading.Lock(), itertools.count(1)
        self.requests: Counter[str] = Counter()

    def etag(self) -> str:
        return f'"{next(self.numbers):032x}"'


PACE, CONTENTS = Pace(), Contents()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 1 << 16

    def setup(self) -> None:
        super().setup()
        self.scratch = memoryview(bytearray(PIECE_BYTES))

    def pieces(self, size: int) -> Iterator[memoryview]:
        while size:
            piece = self.scratch[: min(size, PIECE_BYTES)]
            PACE.wait(len(piece))
            if (count := self.rfile.readinto(piece)) < len(piece):
                raise ConnectionError("the body was cut off")
            size -= count
            yield piece

    def chunks(self) -> Iterator[memoryview]:
        while size := int(self.rfile.readline(), 16):
            yield from self.pieces(size)
            self.rfile.readline()
        self.rfile.readline()

    def read(self) -> tuple[int, bytes | None]:
        """The body's size, and the body itself where it is small."""
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        pieces = self.chunks() if chunked else self.pieces(int(self.headers.get("Content-Length") or 0))
        size, kept = 0, bytearray()
        for piece in pieces:
            size += len(piece)
            if size <= KEPT_BYTES:
                kept += piece
        body = bytes(kept) if size <= KEPT_BYTES else None
        if self.headers.get("Content-Encoding") == "aws-chunked":  # inside of HTTP's own chunks
            size = int(self.headers["X-Amz-Decoded-Content-Length"])
            body = unpacked(body) if body is not None else None
        return size, body

    def answer(
        self, status: int = 200, body: bytes = b"", etag: str = "", size: int | None = None, *, repeats: bool = False
    ) -> None:
        headers = {"Content-Length": str(len(body) if size is None else size)} | ({"ETag": etag} if etag else {})
        self.send_response_only(status)
        for name, value in (headers | (self.checksums() if repeats else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode() if self.command != "HEAD" else b"")

    def checksums(self) -> dict[str, str]:
        """What the client says of its bytes, which S3 repeats when it is true."""
        return {name.lower(): value for name, value in self.headers.items() if name.lower().startswith(CHECKSUM)}

    def handle_any(self) -> None:
        size, body = self.read()
        url = urlsplit(self.path)
        key, query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
        kind = next((word for name, word in KINDS.items() if name in query), "")
        with CONTENTS.lock:
            CONTENTS.requests[f"{self.command} {kind}".strip()] += 1
            if kind in ("part", "upload", "uploads"):
                self.multipart(key, query, size)
            elif kind == "list" or "/" not in key:
                self.bucket(key, query)
            elif kind == "tags":
                self.answer() if key in CONTENTS.objects else self.refuse(404, "NoSuchKey")
            elif self.command == "PUT":
                self.put(key, size, body)
            elif self.command == "DELETE":
                CONTENTS.objects.pop(key, None)
                self.answer(204)
            else:
                self.get(key)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def put(self, key: str, size: int, body: bytes | None) -> None:
        found = CONTENTS.objects.get(key)
        wanted = self.headers.get("If-Match")
        if wanted and found is None:
            return self.refuse(404, "NoSuchKey")
        if (self.headers.get("If-None-Match") and found) or (wanted and found and wanted != found.etag):
            return self.refuse(412, "PreconditionFailed")
        CONTENTS.objects[key] = stored = Stored(size, CONTENTS.etag(), body)
        return self.answer(etag=stored.etag, repeats=True)

    def get(self, key: str) -> None:
        found = CONTENTS.objects.get(key)
        if found is None:
            return self.refuse(404, "NoSuchKey")
        if self.command == "HEAD":
            return self.answer(size=found.size, etag=found.etag)
        if found.body is None:
            return self.refuse(500, "NotKept")
        return self.answer(body=found.body, etag=found.etag)

    def multipart(self, key: str, query: dict[str, list[str]], size: int) -> None:
        if "uploadId" not in query:
            if self.command == "GET":
                opened = [f"<Upload><Key>{escape(key.partition('/')[2])}</Key><UploadId>{upload}</UploadId></Upload>"
                          for upload, (key, _) in CONTENTS.uploads.items()]  # fmt: skip
                text = f"<ListMultipartUploadsResult>{''.join(opened)}</ListMultipartUploadsResult>"
                return self.answer(body=text.encode())
            upload = str(next(CONTENTS.numbers))
            CONTENTS.uploads[upload] = (key, {})
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return self.answer(body=text.encode())
        upload = query["uploadId"][0]
        if upload not in CONTENTS.uploads:
            return self.refuse(404, "NoSuchUpload")
        parts = CONTENTS.uploads[upload][1]
        if self.command == "PUT":
            parts[int(query["partNumber"][0])] = size
            return self.answer(etag=CONTENTS.etag(), repeats=True)
        del CONTENTS.uploads[upload]
        if self.command == "DELETE":
            return self.answer(204)
        CONTENTS.objects[key] = stored = Stored(sum(parts.values()), CONTENTS.etag(), None)
        sums = "".join(
            f"<Checksum{name.removeprefix(CHECKSUM).upper()}>{value}</Checksum{name.removeprefix(CHECKSUM).upper()}>"
            for name, value in self.checksums().items()
            if name != f"{CHECKSUM}type"
        )
        text = f"<CompleteMultipartUploadResult><ETag>{stored.etag}</ETag>{sums}</CompleteMultipartUploadResult>"
        return self.answer(body=text.encode())

    def bucket(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix = f"{bucket}/{query.get('prefix', [''])[0]}"
        listed = "".join(
            f"<Contents><Key>{escape(key.partition('/')[2])}</Key><Size>{stored.size}</Size>"
            f"<ETag>{escape(stored.etag)}</ETag></Contents>"
            for key, stored in sorted(CONTENTS.objects.items())
            if key.startswith(prefix)
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"
        self.answer(body=text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def unpacked(body: bytes) -> bytes:
    """The bytes in boto3's chunks, which end with a checksum that is not looked at."""
    plain = b""
    while size := int(body[: body.index(b"\r\n")], 16):
        start = body.index(b"\r\n") + 2
        plain, body = plain + body[start : start + size], body[start + size + 2 :]
    return plain


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, certificate: str, key: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # The handshake is left to the thread of this connection: it comes with the first read.
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that left
            super().handle_error(request, client_address)


def main() -> None:
    server = Server(sys.argv[1], sys.argv[2])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    for line in sys.stdin:
        word, _, value = line.strip().partition(" ")
        found: dict[str, int] = {}
        if word == "pace":
            PACE.rate = float(value)
        else:
            with CONTENTS.lock:
                found, CONTENTS.requests = dict(CONTENTS.requests), Counter()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
