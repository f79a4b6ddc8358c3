"""How long a line takes from a container's output to the terminal of `make logs`, through Docker's awslogs driver.

make bench-logs        as root (it starts a Docker engine of its own, whose driver has the emulator's credentials)

Not measured: CloudWatch itself. The emulator shows an event as soon as it has it, AWS after a second or so more.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.limits import Limit
from benchmarks.machine import RESULTS, write
from tests.emulator.aws import Aws
from tests.infra import awslogs
from tests.infra.deployed import INSTALLATION, RUN, Deployed, client, deploy

ROOT = Path(__file__).parents[1]
LINES, MEAN_PAUSE_SECONDS = 600, 0.2
LIMIT_SECONDS = 3.0  # 95 of 100 lines
DEFAULT = "the driver's default (5 s)"
FLUSHES = {DEFAULT: {}, "1 s": {"awslogs_force_flush_interval_seconds": "1"}}  # boot uses the second


@contextmanager
def emulator() -> Iterator[Aws]:
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        [sys.executable, "-m", "tests.emulator.aws"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=errors,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        yield Aws(f"http://127.0.0.1:{int(server.stdout.readline())}")
        server.terminate()


def printed(line: str) -> tuple[int, float]:
    """Number and Unix seconds of `line <number> <time>`."""
    _, number, at = line.rsplit(" ", 2)
    return int(number), float(at)


def measure(deployed: Deployed, engine: awslogs.Engine, run_id: str, options: dict[str, str]) -> dict[str, Any]:
    """One container's lines, followed by the command as the user runs it."""
    deployed.launch(run_id)
    shown: list[tuple[int, float, float]] = []  # number, when printed, when on the terminal
    with subprocess.Popen(
        [sys.executable, "-m", "infra", "logs", "--run", run_id], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={"PATH": os.environ["PATH"]} | deployed.aws.environ,
    ) as command:  # fmt: skip

        def read() -> None:
            for line in command.stdout or ():
                if line.startswith("line "):
                    shown.append((*printed(line), time.time()))

        reader = threading.Thread(target=read)
        reader.start()
        stream = f"{run_id}/i-1/1"
        container = engine.print_lines(INSTALLATION.log_group, stream, LINES, MEAN_PAUSE_SECONDS, **options)
        if code := engine.wait(container):
            sys.exit(f"error: the container ended with {code}: {engine.docker('logs', container)}")
        deployed.end("done", "all is printed", run_id)
        reader.join()
    pages = client(deployed.aws, "logs").get_paginator("filter_log_events").paginate(
        logGroupName=INSTALLATION.log_group, logStreamNames=[stream]
    )  # fmt: skip
    events = [event for page in pages for event in page["events"]]
    taken = {printed(event["message"])[0]: event["ingestionTime"] / 1000 for event in events}
    return {
        "lines": LINES,
        "taken_by_the_emulator": len(events),
        "lost": len(taken.keys() - {number for number, _, _ in shown}),
        "doubled": len(shown) - len({number for number, _, _ in shown}),
        "to_the_terminal_seconds": percentiles([on - at for _, at, on in shown]),
        "to_cloudwatch_seconds": percentiles([taken[number] - at for number, at, _ in shown]),
        "from_cloudwatch_seconds": percentiles([on - taken[number] for number, _, on in shown]),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{share}": round(ordered[int(share / 100 * (len(ordered) - 1))], 3) for share in (50, 95, 100)}


def main() -> int:
    if reason := awslogs.why_no_engine():
        sys.exit(f"error: {reason}")
    results: dict[str, Any] = {}
    with emulator() as aws:
        os.environ |= aws.environ
        deployed = deploy(aws)
        with awslogs.run_engine(aws.endpoint, aws.environ) as engine:
            results["engine"] = engine.docker("version", "--format", "{{.Server.Version}}")
            for number, (name, options) in enumerate(FLUSHES.items()):
                results[f"flush: {name}"] = measure(deployed, engine, f"{RUN}-{number}", options)
    best = results["flush: 1 s"]
    limits = [
        Limit("seconds from output to terminal, 95 % of lines, flush 1 s", best["to_the_terminal_seconds"]["p95"],
              most=LIMIT_SECONDS),
        *(Limit(f"lines lost or doubled, {name}", found["lost"] + found["doubled"], most=0)
          for name, found in results.items() if name.startswith("flush")),
    ]  # fmt: skip
    for name, found in results.items():
        if name.startswith("flush"):
            print(f"\n{name}")
            for part in ("to_the_terminal", "to_cloudwatch", "from_cloudwatch"):
                print(f"  {part.replace('_', ' '):18} {found[f'{part}_seconds']}")
    print()
    print(*limits, sep="\n")
    results["limits"] = [limit.row() for limit in limits]
    write("logs", results)
    print(f"written to {RESULTS / 'logs.json'}")
    return 0 if all(limit.holds for limit in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
