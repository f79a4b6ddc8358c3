"""What the exchange of ResNet-50's gradients takes between machines, against the ring model.

make bench-nodes    1, 2 and 4 network namespaces, gloo over links of 1 and 10 Gbit/s (ARGS="--rounds N")
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import write
from tests.chaos.network import GIGABIT, Host, NoNamespacesError, network_of

ROOT = Path(__file__).resolve().parents[1]
RATES = (GIGABIT, 10 * GIGABIT)
WORLDS = (1, 2, 4)
BYTES = {"all-reduce-fp32": 4, "all-reduce-bf16": 2, "ddp-fp32": 4, "ddp-bf16": 2}  # of a number on the wire
STREAM_BYTES = 256 << 20
HEAR = """
import socket, time
server = socket.create_server(("", 9000)); link = server.accept()[0]; began, count = time.time(), 0
print("ready", end=" ")
while part := link.recv(1 << 20): count += len(part)
print(8 * count / (time.time() - began))
"""
SPEAK = """
import socket, sys, time
for _ in range(100):
    try: link = socket.create_connection((sys.argv[1], 9000)); break
    except OSError: time.sleep(.05)
for _ in range(int(sys.argv[2]) >> 20): link.sendall(bytes(1 << 20))
"""
PLACE = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}


def stream(one: Host, other: Host) -> float:
    """Bits/s of one plain TCP stream: what the link really gives on this machine."""
    ear = one.start([sys.executable, "-c", HEAR], ROOT, stdout=subprocess.PIPE)
    mouth = other.start([sys.executable, "-c", SPEAK, one.address, str(STREAM_BYTES)], ROOT)
    said = ear.communicate(timeout=300)[0].decode()
    mouth.wait()
    return float(said.removeprefix("ready "))


def exchange(hosts: list[Host], rounds: int) -> dict[str, Any]:
    """All ways of exchange between these machines; one process each."""
    words = [sys.executable, "-m", "benchmarks.nodes_worker", hosts[0].address]
    processes = [
        host.start([*words, str(rank), str(len(hosts)), str(rounds)], ROOT, env=os.environ | PLACE,
                   stdout=subprocess.PIPE)
        for rank, host in enumerate(hosts)
    ]  # fmt: skip
    said = [process.communicate(timeout=900)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"error: a process ended {[process.returncode for process in processes]}; its words are above")
    found: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return found


def row_of(found: dict[str, Any], world: int, rate: float) -> dict[str, Any]:
    """Medians, and what a ring would take: each machine sends and receives 2 (n - 1) / n of the bytes."""
    medians = {name: statistics.median(seconds) for name, seconds in found["seconds"].items()}
    ways = {}
    for name, width in BYTES.items():
        ring = 2 * (world - 1) / world * found["numbers"] * width * 8 / rate
        over = round(medians[name] / ring, 2) if ring else None
        least = round(min(found["seconds"][name]), 4)
        ways[name] = {"seconds": round(medians[name], 4), "least": least, "ring": round(ring, 4), "over_ring": over}
    return {"machines": world, "gigabits": rate / 1e9, "ways": ways,
            "local_seconds": round(medians["local"], 4), "question_seconds": round(medians["question"], 6)}  # fmt: skip


def show(row: dict[str, Any]) -> None:
    link = f"{row['stream_gigabits']:.2f} Gbit/s of a TCP stream" if "stream_gigabits" in row else "no link"
    question = f"{1000 * row['question_seconds']:.2f} ms for the question of a step"
    print(f"{row['machines']} machines, {row['gigabits']:g} Gbit/s ({link}); {question}")
    for name, way in row["ways"].items():
        over = f"{way['over_ring']:5.2f} x ring's {way['ring']:.3f} s" if way["ring"] else ""
        print(f"  {name:<16} {way['seconds']:8.3f} s (least {way['least']:.3f}) {over}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each way (default: 5)")
    options = parser.parse_args()
    rows = []
    try:
        for rate in RATES:
            for world in WORLDS:
                if world == 1 and rate != RATES[0]:
                    continue
                with tempfile.TemporaryDirectory() as folder, network_of(Path(folder), world, rate) as hosts:
                    row = row_of(exchange(hosts, options.rounds), world, rate)
                    if world > 1:
                        row["stream_gigabits"] = round(stream(*hosts[:2]) / 1e9, 2)
                rows.append(row)
                show(row)
    except NoNamespacesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    about = "network namespaces on one machine, which share its cores; veth and a bridge, tbf in both directions; gloo"
    print(f"in {write('nodes', {'about': about, 'rounds': options.rounds, 'rows': rows})}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
