"""How long a newcomer waits: `--help`, the table of recipes, and a warm `make train` until its first step.

make bench-start
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import write

ROUNDS = 5  # interleaved
LIMITS = {"help_seconds": 3.0, "recipes_seconds": 2.0, "first_step_seconds": 15.0}  # what is promised on 2 quiet cores


def help_seconds() -> float:
    """`python -m trainer.train --help`, the whole process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trainer.train", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def contract_seconds() -> float:
    """The import of trainer.contract in a fresh interpreter, the interpreter's own start included."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import trainer.contract"], check=True)
    return time.perf_counter() - started


def recipes_seconds() -> float:
    """`make recipes` without region and credentials, the whole process."""
    nobody = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    started = time.perf_counter()
    subprocess.run(["make", "recipes"], env=nobody, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def first_step_seconds() -> float:
    """From the command to the first optimizer step: environment and data ready, a new run."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["make", "train", f"STORE={folder}", "ARGS=--log-every-steps 1"]
        started = time.perf_counter()
        run = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - started
                break
        else:
            sys.exit("the run ended before its first step")
        os.killpg(run.pid, signal.SIGINT)
        run.communicate()
        return seconds


def main() -> None:
    measures: dict[str, Callable[[], float]] = {
        "help_seconds": help_seconds, "contract_seconds": contract_seconds, "recipes_seconds": recipes_seconds,
        "first_step_seconds": first_step_seconds,
    }  # fmt: skip
    for measure in measures.values():
        measure()  # warm: files in memory, data prepared, byte code written
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(ROUNDS):
        for name, measure in measures.items():
            seconds[name].append(round(measure(), 3))
    results = {
        name: {"median": statistics.median(found), "all": found, "limit": LIMITS.get(name)}
        for name, found in seconds.items()
    }
    for name, result in results.items():
        limit = f"(must be under {result['limit']})" if result["limit"] else ""
        print(f"{name:20} median {result['median']:.2f}  of {result['all']} {limit}")
    print(f"written to {write('start', results).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
