"""`python -m tests ARGUMENTS…` is what `make test` runs: pytest in both environments at once, one table at the end.

The tests of tests/infra run in .venv-infra, all others in .venv. Paths among the arguments choose the half that they
belong to; options go to every half that runs. The standard library alone is needed here.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests import ROOT
from tests.seconds import SECONDS_FILE, table

NO_TESTS = 5  # pytest's exit code when its options leave none
TAKES_A_VALUE = frozenset(
    {"-c", "-k", "-m", "-n", "-o", "-p", "-r", "-W", "--ignore", "--deselect", "--rootdir", "--confcutdir"}
)  # the next word is not a path
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Half:
    """The tests of one environment."""

    python: str
    whole: str  # the folder of all its tests
    workers: tuple[str, ...]  # options, where the whole half runs
    paths: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=(), kw_only=True)

    def command(self) -> list[str]:
        paths = self.paths or (self.whole,)
        workers = self.workers if self.whole in paths else ()  # of a few files, one at a time is soon done
        return [self.python, "-m", "pytest", *paths, *workers, *self.options]


IN_ORDER = "--no-loadscope-reorder"  # of collection: the slow files first
WAITS = os.environ.get("FAST") != "1"  # many tests wait, for boots, logs and runs; none of the quick ones does
WORKERS = ("-n", "3" if WAITS else "2", IN_ORDER)  # for two cores
TRAINER = Half(".venv/bin/python", "tests", WORKERS)
INFRA = Half(".venv-infra/bin/python", "tests/infra", WORKERS)


def halves(arguments: Sequence[str]) -> list[Half]:
    """Which run, and with what: those that a path belongs to; both, where there is no path."""
    paths: dict[Half, list[str]] = {TRAINER: [], INFRA: []}
    options: list[str] = []
    before = ""
    for word in arguments:
        path = os.path.relpath(ROOT / word.partition("::")[0], ROOT)
        if before in TAKES_A_VALUE or not (path == "tests" or path.startswith("tests/")):
            options.append(word)
        elif path == "tests":
            for half in (TRAINER, INFRA):
                paths[half].append(half.whole)
        else:
            paths[INFRA if Path(path).is_relative_to(INFRA.whole) else TRAINER].append(word)
        before = word
    chosen = [half for half in (TRAINER, INFRA) if paths[half] or not any(paths.values())]
    return [replace(half, paths=tuple(paths[half]), options=tuple(options)) for half in chosen]


def exit_code(codes: Sequence[int]) -> int:
    """That of the first half that failed; options may leave one half without a test, but not both."""
    wrong = [code for code in codes if code not in (0, NO_TESTS)]
    return wrong[0] if wrong else 0 if 0 in codes else NO_TESTS


def run_together(chosen: Sequence[Half]) -> int:
    """The first half is shown as it runs, the next when it has ended. A signal ends them all, and their tests."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"{i}.log") for i in range(len(chosen))]
        measured = [Path(folder, f"{i}.json") for i in range(len(chosen))]
        processes: list[subprocess.Popen[bytes]] = []

        def interrupt(number: int, frame: object) -> None:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)

        for number in SIGNALS:
            signal.signal(number, interrupt)
        for half, log, file in zip(chosen, logs, measured, strict=True):
            with log.open("wb") as hidden:
                process = subprocess.Popen(
                    half.command(), cwd=ROOT, env=os.environ | {SECONDS_FILE: str(file)}, stdin=subprocess.DEVNULL,
                    stdout=hidden if processes else None, stderr=subprocess.STDOUT if processes else None,
                    process_group=0,
                )  # fmt: skip
            processes.append(process)
        codes = []
        for half, process, log in zip(chosen, processes, logs, strict=True):
            codes.append(process.wait())
            sys.stdout.buffer.write(log.read_bytes())
            if codes[-1] < 0:  # it could not say so itself
                print(f"\nerror: {shlex.join(half.command())}: ended by {signal.Signals(-codes[-1]).name}")
            sys.stdout.flush()
        taken = {
            file: values for path in measured if path.exists() for file, values in json.loads(path.read_text()).items()
        }
        if taken:
            print("\nseconds per file:", *table(taken), sep="\n")
        return exit_code(codes)


def main() -> int:
    chosen = halves(sys.argv[1:])
    if len(chosen) == 1:  # this process becomes it: with the terminal, for a debugger, too
        command = chosen[0].command()
        os.chdir(ROOT)
        os.execv(command[0], command)
    return run_together(chosen)


if __name__ == "__main__":
    sys.exit(main())
