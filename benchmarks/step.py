"""What a training step costs the host: operations that it dispatches, and milliseconds, at earlier commits and now.

make bench-step ARGS="--before COMMIT COMMIT"

`benchmarks.step_probe` measures one checkout. Each gets a process of its own; they measure in turns, and while one
does, the others wait.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import write
from benchmarks.structure import ROOT, at

PROBE = Path(__file__).with_name("step_probe.py")
NOW = "now"


@contextlib.contextmanager
def probe(checkout: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that measures the code of a checkout whenever it gets a line."""
    command = [sys.executable, "-P", "-W", "ignore", str(PROBE)]
    environ = os.environ | {"PYTHONPATH": str(checkout)}
    with subprocess.Popen(
        command, cwd=checkout, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process  # the end of its input ends it


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Its next line."""
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        sys.exit("the probe of a commit has ended; its reason is above")
    found: dict[str, Any] = json.loads(line)
    return found


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """Milliseconds of a step now, by case."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def measure(checkouts: dict[str, Path], rounds: int) -> dict[str, dict[str, Any]]:
    """By checkout and case: what is counted, and the milliseconds of each round."""
    with contextlib.ExitStack() as stack:
        probes = {name: stack.enter_context(probe(folder)) for name, folder in checkouts.items()}
        found = {name: answer(process) for name, process in probes.items()}
        took = [{name: ask(process) for name, process in probes.items()} for _ in range(rounds)]
        for process in probes.values():
            assert process.stdin is not None
            process.stdin.close()
    for name, cases in found.items():
        for case, figures in cases.items():
            times = [one[name][case] for one in took]
            ratios = [one[name][case] / one[NOW][case] for one in took]
            figures |= {
                "milliseconds": round(statistics.median(times), 2),
                "times_now": round(statistics.median(ratios), 3),  # within a round
                "all": [round(value, 2) for value in times],
            }
    return found


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-step", description="Counts and times a step's work on the host.")
    parser.add_argument("--before", nargs="+", default=["f2853a4", "2a2b5b3"], metavar="COMMIT",
                        help="compare with these commits (default: %(default)s)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=15, help="interleaved measurements (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {name: at(name, Path(folder) / name) for name in options.before}
        found = measure(checkouts | {NOW: ROOT}, options.rounds)
    print(f"{'':12}{'':12}{'operations':>12}{'kernels':>9}{'ms':>8}{'times now':>11}")
    for case in found[NOW]:
        for name, cases in found.items():
            figures = cases[case]
            print(f"{case:12}{name:12}{figures['operations']:12}{figures['kernels']:9}"
                  f"{figures['milliseconds']:8.2f}{figures['times_now']:11.3f}")  # fmt: skip
    path = write("step", {"now": commit(), "rounds": options.rounds, "commits": found})
    print(f"\nwritten to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
