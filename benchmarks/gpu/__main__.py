"""make bench-gpu: this trainer on this GPU beside its peers, row by row in the order of value.

The rows run in processes of their own, and a fault costs one row. After each row the result is whole on disk:
gpu-<card>.json, and every row as it came in gpu-<card>.jsonl. Rows of the same commit, card, driver and torch that the
result has already stay there. Another result is replaced, and git keeps it; with --only it stays, and the rows are
written beside it as gpu-<card>-some.json.

    make bench-gpu                                            everything, in about ten minutes on an H100
    make bench-gpu ARGS="--seconds 480"                       as much as fits; what matters least is left out
    make bench-gpu ARGS="--only ours_bf16,compile_bf16"
    make bench-gpu ARGS="--tiny"                              every row on a CPU, to see that they work
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.driver import NO_TIME, Message, measure_rows
from benchmarks.gpu.result import Result
from benchmarks.gpu.rows import EAGER, ROWS, Row, chosen

ROOT = Path(__file__).parents[2]
SHOWN = 240  # characters of what a row found
TINY_PATIENCE = 10.0  # a CPU is slow, and other tests run beside


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench-gpu ARGS=…", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1200, help="limit of the whole bench (1200)")
    parser.add_argument("--only", default="", metavar="A,B", help="these rows alone")
    parser.add_argument("--tiny", action="store_true", help="a small net, few images, on a CPU: are the rows right?")
    parser.add_argument("--list", action="store_true", help="show the rows, and measure nothing")
    parser.add_argument("--out", type=Path, help="folder of the result (benchmarks/results; with --tiny a new one)")
    parser.add_argument("--scratch", type=Path, default=Path(".scratch/bench-gpu"), help="for runs, kernels, images")
    parser.add_argument("--images", type=Path, help="prepared images, carried along (made in the scratch folder)")
    options = parser.parse_args(arguments)
    try:
        options.rows = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.tiny:  # a process for all: nothing there is fast, or broken for the next row
        options.rows = [replace(row, process=EAGER) for row in options.rows]
    return options


def listing() -> str:
    return "\n".join(f"{row.name:24} {row.seconds:4} s  {row.what}" for row in ROWS)


class Bench:
    """One call of the bench: its options, and the result once a worker has told which card this is."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.began = options, time.monotonic()
        self.result: Result | None = None

    def started(self, machine: Message) -> None:
        if self.result is not None:
            return
        if machine["gpu"] is None and not self.options.tiny:
            sys.exit("error: torch sees no GPU here: --tiny tries every row on a CPU, and measures nothing")
        self.result = Result(self.options.out, machine, some=bool(self.options.only))
        if self.result.other is not None:
            done = f"it stays, and these rows go to {self.result.path.name}" if self.options.only else "it is replaced"
            print(
                f"the result here is of other code or another machine (commit {self.result.other or 'unknown'}): {done}"
            )

    def record(self, row: Row, found: Message) -> None:
        if self.result is not None:
            self.result.add(row, found)
        short = json.dumps({name: value for name, value in found.items() if name not in ("trace", "stderr")})
        print(f"{time.monotonic() - self.began:6.0f} s  {row.name:24} {short[:SHOWN]}", flush=True)

    def run(self) -> int:
        options = self.options
        scratch = options.scratch.absolute()
        scratch.mkdir(parents=True, exist_ok=True)
        patience = TINY_PATIENCE if options.tiny else 1.0
        images = (options.images or scratch / "images").absolute()

        def command(names: Sequence[str]) -> list[str]:
            told = {"rows": names, "tiny": options.tiny, "patience": patience}
            told |= {"images": str(images), "scratch": str(scratch)}
            return [sys.executable, "-m", "benchmarks.gpu.worker", json.dumps(told)]

        measure_rows(
            options.rows, command, environ=environ(scratch, options.tiny), log=options.out / "gpu-bench.log",
            end=self.began + options.seconds, started=self.started, record=self.record,
            patience=patience,
        )  # fmt: skip
        if self.result is None:
            return 1
        print("\n".join([*self.result.table(), f"written to {self.result.path}"]))
        if rest := [row.name for row in options.rows if self.result.left_out.get(row.name) == NO_TIME]:
            print(f'the rest: make bench-gpu ARGS="--only {",".join(rest)}"')
        return 1 if self.result.failed else 0


def environ(scratch: Path, tiny: bool) -> dict[str, str]:
    """Variables of every worker: one cache of compiled kernels for all, and memory as the trainer asks for it."""
    root = str(ROOT) + (os.pathsep + os.environ["PYTHONPATH"] if os.environ.get("PYTHONPATH") else "")
    return {
        "PYTHONPATH": root, "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "triton"), "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "PYTHONUNBUFFERED": "1",
        **({"OMP_NUM_THREADS": "1"} if tiny else {}),  # threads of small kernels only wait for each other
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options: Any = parse(arguments)
    if options.list:
        print(listing())
        return 0
    if options.out is None:
        options.out = Path(tempfile.mkdtemp(prefix="bench-gpu-")) if options.tiny else ROOT / "benchmarks/results"
    options.out.mkdir(parents=True, exist_ok=True)
    return Bench(options).run()


if __name__ == "__main__":
    raise SystemExit(main())
