"""What a checkpoint costs the training, against the usual ways to write one, to the same S3 endpoint on 127.0.0.1.

make bench-checkpoint        ARGS="--rounds N"

The state is ResNet-50 with momentum and average on the CPU. Blocked time is divided by a copy of the same tensors into
memory that is there, measured right before; lock wait is what a thread of Python loses to the interpreter's lock while
the upload is under way. Each round starts every process anew, so that each has a first save. Where there is a GPU, a
second half measures a training on it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import checkpoint_gpu
from benchmarks.checkpoint_peers import BUFFERS, OURS, SAVERS
from benchmarks.checkpoint_restore import verify_and_copy
from benchmarks.checkpoint_worker import memory, processor_seconds, send_files, serve, worker
from benchmarks.limits import Limit
from benchmarks.machine import write

PACED = 100e6  # bytes per second
FILES_BYTES = 2e9  # what the peers write: into memory, where there is room, so that no disk is measured
SAVES, PEER_SAVES = 35, 4  # per round after the first one
Rounds = list[dict[str, Any]]


class Sink:
    """The endpoint of `checkpoint_sink`, a process of its own."""

    def __init__(self, folder: Path):
        self.bundle, key = folder / "certificate.pem", folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", key, "-out", self.bundle],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.checkpoint_sink", self.bundle, key],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.endpoint = f"https://127.0.0.1:{self._answer()}"

    def pace(self, bytes_per_second: float) -> None:
        self._ask(f"pace {bytes_per_second}")

    def count(self) -> dict[str, int]:
        """Requests since the last call, by what they are: "PUT part", "GET", …"""
        found: dict[str, int] = self._ask("count")
        return found

    def close(self) -> None:
        self.process.communicate()

    def _ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def sink(folder: Path) -> Iterator[Sink]:
    server = Sink(folder)
    try:
        yield server
    finally:
        server.close()


def one_round(name: str, server: Sink, saves: int) -> dict[str, Any]:
    """A fresh process: its first save, the others, one for its memory, one each to train beside."""
    with worker(serve, name) as one:
        before, _ = one.memory([])
        others = list(one.do("build").values())
        resting = sum(memory(pid) for pid in others)
        server.pace(0)
        idle, first = one.do("idle"), one.do("save")
        begin, found, requests = sum(map(processor_seconds, others)), [], []
        for _ in range(saves):
            server.count()
            found.append(one.do("save"))
            requests.append(server.count())
        used = sum(map(processor_seconds, others)) - begin
        mine, theirs = one.peak("save", others)
        fast = one.do("steps")
        server.pace(PACED)
        slow = one.do("steps")
    return {
        "bytes": one.greeting, "first": first, "saves": found, "requests": requests,
        "idle": idle, "unlimited": fast, "paced": slow,
        "extra_bytes": mine - before + theirs - resting, "uploader_rest_bytes": resting,
        "processor_seconds_per_gb": used / saves / one.greeting * 1e9,
    }  # fmt: skip


def plain_uploads(server: Sink, size: int, times: int) -> float:
    """boto3's `upload_file` of as many bytes: seconds of the processor per GB."""
    server.pace(0)
    with worker(send_files, str(size)) as one:
        one.do("upload")  # the first one loads boto3's own parts
        return float(sum(one.do("upload") for _ in range(times)) / times / size * 1e9)


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank: the worst one, where there are fewer than a hundred."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def blocked(rounds: Rounds, by: str = "memcpy") -> list[float]:
    """Times a copy, of all saves but the first ones."""
    return [save["blocked"] / save[by] for one in rounds for save in one["saves"]]


def lock_wait(rounds: Rounds, kind: str) -> float | None:
    """Per cent of the time that an upload was under way; None where there is nothing beside which to train."""
    shares = [100 * one[kind]["lock_wait"] / one[kind]["wall"] for one in rounds if one[kind]]
    return round(statistics.median(shares), 3) if shares else None


def of_saves(rounds: Rounds, value: str) -> float:
    return statistics.median(float(save[value]) for one in rounds for save in one["saves"])


def of_rounds(rounds: Rounds, value: Callable[[dict[str, Any]], float]) -> float:
    return statistics.median(map(value, rounds))


def row(rounds: Rounds) -> dict[str, Any]:
    times, first = blocked(rounds), [one["first"]["blocked"] / one["first"]["memcpy"] for one in rounds]
    steps = {kind: sorted(seconds for one in rounds if one[kind] for seconds in one[kind]["steps"])
             for kind in ("idle", "unlimited", "paced")}  # fmt: skip
    counts = [sum(count.values()) for one in rounds for count in one["requests"]]
    return {
        "blocked_p50": round(statistics.median(times), 3),
        "blocked_p99": round(percentile(times, 0.99), 3),
        "blocked_over_copy_in_one_piece_p50": round(statistics.median(blocked(rounds, "memcpy_whole")), 3),
        "first_save": round(statistics.median(first), 3),
        "blocked_ms": round(of_saves(rounds, "blocked") * 1e3, 2),
        "memcpy_ms": round(of_saves(rounds, "memcpy") * 1e3, 2),
        "stored_after_seconds": round(of_saves(rounds, "stored"), 3),
        "lock_wait_percent": {kind: lock_wait(rounds, kind) for kind in ("unlimited", "paced", "idle")},
        "step_ms": {
            kind: {"p50": round(percentile(found, 0.5) * 1e3, 2), "p99": round(percentile(found, 0.99) * 1e3, 2)}
            for kind, found in steps.items()
            if found
        },
        "extra_mb": round(of_rounds(rounds, lambda one: one["extra_bytes"]) / 1e6),
        "requests": {"median": statistics.median(counts), "most": max(counts)},
        "saves": len(times),
        "all_blocked": [round(value, 3) for value in times],
        "all_first": [round(value, 3) for value in first],
    }  # fmt: skip


def measure(server: Sink, rounds: int, saves: int) -> dict[str, Any]:
    found: dict[str, Rounds] = {name: [] for name in SAVERS}
    restored: list[tuple[float, float]] = []
    plain: list[float] = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for name in list(SAVERS)[:: -1 if number % 2 else 1]:  # there and back: a drift of the machine cancels out
            found[name].append(one_round(name, server, saves if name == OURS else PEER_SAVES))
        plain.append(plain_uploads(server, found[OURS][-1]["bytes"], PEER_SAVES))
        with worker(verify_and_copy, "restore") as one:
            restored += one.do("times")
    ours = found[OURS]
    used = [one["processor_seconds_per_gb"] for one in ours]
    return {
        "rounds": rounds,
        "state_bytes": ours[0]["bytes"],
        "methods": {name: row(them) for name, them in found.items()},
        "upload": {
            "processor_seconds_per_gb": round(statistics.median(used), 3),
            "boto3_upload_file": round(statistics.median(plain), 3),
            "times_boto3": round(statistics.median(a / b for a, b in zip(used, plain, strict=True)), 3),
            "all": [[round(a, 3), round(b, 3)] for a, b in zip(used, plain, strict=True)],
            "extra_per_buffer_times_state": round(
                of_rounds(ours, lambda one: one["extra_bytes"] / BUFFERS / one["bytes"]), 3),
            "uploader_without_a_checkpoint_mb": round(of_rounds(ours, lambda one: one["uploader_rest_bytes"]) / 1e6),
            "requests": statistics.mode(str(count) for one in ours for count in one["requests"]),
        },
        "restore_times_memcpy": {
            "from_a_buffer": round(statistics.median(first for first, _ in restored), 3),
            "through_the_reader": round(statistics.median(second for _, second in restored), 3),
            "all": [[round(first, 3), round(second, 3)] for first, second in restored],
        },
    }  # fmt: skip


def limits(results: dict[str, Any]) -> list[Limit]:
    ours, upload = results["methods"][OURS], results["upload"]
    return [
        Limit("blocked, times a copy of the state: median", ours["blocked_p50"], most=1.10),
        Limit("blocked, times a copy of the state: p99", ours["blocked_p99"], most=1.5),
        Limit("blocked, times a copy of the state: first save", ours["first_save"], most=1.5),
        Limit("lock wait while saving at 100 MB/s, %", ours["lock_wait_percent"]["paced"], most=0.5),
        Limit("lock wait while saving unlimited, %", ours["lock_wait_percent"]["unlimited"], most=0.5),
        Limit("processor per byte, times boto3's upload_file", upload["times_boto3"], most=1.1),
        Limit("extra memory of a buffer, times the state", upload["extra_per_buffer_times_state"], most=1.15),
        Limit("bytes to verified live state, times a copy", results["restore_times_memcpy"]["from_a_buffer"], most=1.6),
        Limit("requests per checkpoint", ours["requests"]["median"], most=25),
    ]


def show(results: dict[str, Any]) -> None:
    state = f"state {results['state_bytes'] / 1e6:.0f} MB"
    print(f"\n{state:40} {'blocked, times memcpy':>23} {'lock wait, %':>19} {'extra':>6} {'stored':>6}")
    print(f"{'':40} {'p50':>7} {'p99':>7} {'first':>7} {'100 MB/s':>9} {'unlimited':>9} {'MB':>6} {'s':>6}")
    for name, one in results["methods"].items():
        waits = [one["lock_wait_percent"][kind] for kind in ("paced", "unlimited")]
        slow, fast = ("-" if value is None else f"{value:.2f}" for value in waits)
        print(f"{name:40} {one['blocked_p50']:7.2f} {one['blocked_p99']:7.2f} {one['first_save']:7.2f} {slow:>9} "
              f"{fast:>9} {one['extra_mb']:6} {one['stored_after_seconds']:6.2f}")  # fmt: skip
    ours, upload = results["methods"][OURS], results["upload"]
    print(f"\nnothing under way: lock wait {ours['lock_wait_percent']['idle']:.2f} %, the floor of this measurement")
    print(f"memcpy {ours['memcpy_ms']} ms; blocked, times a copy in one piece: "
          f"{ours['blocked_over_copy_in_one_piece_p50']}")  # fmt: skip
    print(f"upload over TLS, processor s/GB: {upload['processor_seconds_per_gb']}, boto3 {upload['boto3_upload_file']}")
    print(f"requests: {upload['requests']}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-checkpoint", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds, each with fresh processes")
    parser.add_argument("--saves", type=int, default=SAVES, help="of ours per round, after the first one")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    memory_folder = Path("/dev/shm")
    roomy = memory_folder.is_dir() and shutil.disk_usage(memory_folder).free > FILES_BYTES
    with tempfile.TemporaryDirectory(dir=memory_folder if roomy else None) as folder, sink(Path(folder)) as server:
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_CA_BUNDLE": str(server.bundle), "TRAINER_SCRATCH_DIR": folder,
        }  # fmt: skip
        results = measure(server, options.rounds, options.saves)
        server.pace(0)
        results["gpu"] = checkpoint_gpu.measure() if torch.cuda.is_available() else None
    checks = limits(results) + checkpoint_gpu.limits(results["gpu"])
    show(results)
    for check in checks:
        print(check)
    results = {"limits": [check.row() for check in checks], **results}
    print(f"written to {write('checkpoint', results).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
