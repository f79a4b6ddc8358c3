"""The answers of an emulated endpoint, given again as a store far away gives them: each after 30 ms, many at once."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import threading

LATENCY_SECONDS = 0.03  # of S3, from a laptop
HOP_BY_HOP = ("connection", "transfer-encoding", "content-length")


class Replayed:
    """Each answer of an endpoint, asked once and then given again after LATENCY_SECONDS, to many at once."""

    def __init__(self, endpoint: str):
        self.host, self.known, self.asked = endpoint.removeprefix("http://"), dict[tuple[str, bytes], bytes](), 0
        self.loop, self.port = asyncio.new_event_loop(), 0
        is_ready = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            is_ready.set()
            await server.serve_forever()

        threading.Thread(target=self.loop.run_until_complete, args=[serve()], daemon=True).start()
        is_ready.wait()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                asked = (head.split(b"\r\n", 1)[0].decode(), body)
                self.asked += 1
                if asked in self.known:
                    await asyncio.sleep(LATENCY_SECONDS)
                else:
                    self.known[asked] = await self.loop.run_in_executor(None, self.fetch, head, body)
                writer.write(self.known[asked])
                await writer.drain()

    def fetch(self, head: bytes, body: bytes) -> bytes:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        first, *lines = head.decode().strip().split("\r\n")
        method, path, _ = first.split(" ")
        connection.request(method, path, body=body or None, headers=dict(line.split(": ", 1) for line in lines))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        kept = [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        told = [f"HTTP/1.1 {answer.status} {answer.reason}", *kept, f"Content-Length: {len(content)}", "", ""]
        return "\r\n".join(told).encode() + content
