"""What `make runs STORE=` takes for many runs: seconds of the whole command in a folder, and in S3.

S3 is measured twice: the emulator of the tests, which computes each answer anew and one at a time, and the same answers
behind a server that needs 30 ms for each and takes many at once, as S3 does from a laptop.

make bench-runs   ARGS="--runs N"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import write
from benchmarks.structure import ROOT
from tests.emulator.s3 import make_bucket
from tests.trainer.watch.stored_runs import put_attempt_record, put_finished, put_running
from trainer.contract import Exit
from trainer.store import ObjectStore, open_store

LIMIT_SECONDS = 2.0
LATENCY_SECONDS = 0.03
BUCKET = "runs"
HOP_BY_HOP = ("connection", "transfer-encoding", "content-length")


def put_runs(store: ObjectStore, count: int) -> None:
    """Of ten runs eight are finished, one is interrupted, and one runs."""

    def put(number: int) -> None:
        run_id = f"rn50-{number:04d}"
        if number % 10 < 8:
            put_finished(store, run_id)
            return
        put_running(store, run_id, at=time.time())
        if number % 10 == 8:
            put_attempt_record(store, run_id, 1, exit=int(Exit.INTERRUPTED), message="spot notice")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(count)))


def listed(store: str, count: int, rounds: int, **environ: str) -> dict[str, Any]:
    """Seconds of the command, from its start to its end: the least, all, and those of the processor, the least."""
    seconds, busy = list[float](), list[float]()
    for _ in range(rounds):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "trainer.runs", "--store", store, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode or len(json.loads(done.stdout)["runs"]) != count:
            sys.exit(f"trainer.runs ended with code {done.returncode}: {done.stderr}")
    return {
        "seconds": round(min(seconds), 2), "cpu_seconds": round(min(busy), 2),
        "all_seconds": [round(one, 2) for one in seconds],
    }  # fmt: skip


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    """The endpoint's address."""
    command = [sys.executable, "-m", "tests.emulator.s3"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.communicate()


class Replayed:
    """Each answer of an endpoint, asked once and then given again after LATENCY_SECONDS, to many at once."""

    def __init__(self, endpoint: str):
        self.host, self.known, self.asked = endpoint.removeprefix("http://"), dict[str, bytes](), 0
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
                path = head.split(b" ", 2)[1].decode()
                self.asked += 1
                if path in self.known:
                    await asyncio.sleep(LATENCY_SECONDS)
                else:
                    self.known[path] = await self.loop.run_in_executor(None, self.fetch, path, head)
                writer.write(self.known[path])
                await writer.drain()

    def fetch(self, path: str, head: bytes) -> bytes:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        lines = head.decode().strip().split("\r\n")[1:]
        connection.request("GET", path, headers=dict(line.split(": ", 1) for line in lines))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        kept = [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        told = [f"HTTP/1.1 {answer.status} {answer.reason}", *kept, f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(told).encode() + body


def in_s3(count: int, rounds: int) -> dict[str, Any]:
    names = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    names |= {"AWS_EC2_METADATA_DISABLED": "true"}
    with emulator() as endpoint:
        make_bucket(endpoint, BUCKET)
        os.environ |= names | {"AWS_ENDPOINT_URL": endpoint}
        put_runs(open_store(f"s3://{BUCKET}/some"), count)
        slow = listed(f"s3://{BUCKET}/some", count, 1)
        server = Replayed(endpoint)
        address = f"http://127.0.0.1:{server.port}"
        listed(f"s3://{BUCKET}/some", count, 1, AWS_ENDPOINT_URL=address)
        requests = server.asked
        fast = listed(f"s3://{BUCKET}/some", count, rounds, AWS_ENDPOINT_URL=address)
    return {
        "emulator": slow,
        "s3": fast | {"requests": requests, "latency_ms": 1000 * LATENCY_SECONDS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        put_runs(open_store(folder), options.runs)
        files = sum(path.is_file() for path in Path(folder).rglob("*"))
        seconds = listed(folder, options.runs, options.rounds)
    results = {"runs": options.runs, "files": files, "folder": seconds} | in_s3(options.runs, options.rounds)
    for name, value in results.items():
        print(f"{name:10} {value}")
    write("runs", results)
    if max(results[name]["seconds"] for name in ("folder", "s3")) > LIMIT_SECONDS:
        sys.exit(f"slower than {LIMIT_SECONDS:g} s")


if __name__ == "__main__":
    main()
