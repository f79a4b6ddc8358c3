"""What `make runs STORE=` takes for many runs: seconds of the whole command in a folder, and in S3.

S3 is measured by the emulator of the tests, which computes each answer anew and one at a time, and by the same answers
behind a server that needs 30 ms for each and takes many at once, as S3 does from a laptop. There the runs are measured
once more as older versions wrote them, whose `done.json` has no copies.

make bench-runs   ARGS="--runs N"
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.machine import write
from benchmarks.replayed import LATENCY_SECONDS, Replayed
from benchmarks.structure import ROOT
from tests.emulator.s3 import make_bucket
from tests.trainer.watch.stored_runs import put_attempt_record, put_finished, put_running
from trainer.contract import Exit
from trainer.store import ObjectStore, open_store

LIMIT_SECONDS = 2.0
BUCKET = "runs"


def put_runs(store: ObjectStore, count: int, *, copies: bool = True) -> None:
    """Of ten runs eight are finished, one is interrupted, and one runs."""

    def put(number: int) -> None:
        run_id = f"rn50-{number:04d}"
        if number % 10 < 8:
            put_finished(store, run_id, copies=copies)
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


def in_s3(count: int, rounds: int) -> dict[str, Any]:
    names = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    names |= {"AWS_EC2_METADATA_DISABLED": "true"}
    with emulator() as endpoint:
        make_bucket(endpoint, BUCKET)
        os.environ |= names | {"AWS_ENDPOINT_URL": endpoint}
        for prefix, copies in (("new", True), ("older", False)):
            put_runs(open_store(f"s3://{BUCKET}/{prefix}"), count, copies=copies)
        found = {"emulator": listed(f"s3://{BUCKET}/new", count, 1)}
        for name, prefix in (("s3", "new"), ("s3, older runs", "older")):
            server = Replayed(endpoint)
            address = f"http://127.0.0.1:{server.port}"
            listed(f"s3://{BUCKET}/{prefix}", count, 1, AWS_ENDPOINT_URL=address)
            told = {"requests": server.asked, "latency_ms": 1000 * LATENCY_SECONDS}
            found[name] = listed(f"s3://{BUCKET}/{prefix}", count, rounds, AWS_ENDPOINT_URL=address) | told
    return found


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
        print(f"{name:14} {value}")
    write("runs", results)
    if max(results[name]["seconds"] for name in ("folder", "s3", "s3, older runs")) > LIMIT_SECONDS:
        sys.exit(f"slower than {LIMIT_SECONDS:g} s")


if __name__ == "__main__":
    main()
