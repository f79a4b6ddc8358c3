"""`make bench-parity`: trains with many seeds, each contender in turn, and keeps every result at once.

    ARGS="--seeds 10"               the seeds 0 to 9 of each set
    ARGS="--sets photographs"       one set, or several with commas between them
    ARGS=--tiny                     every line in a minute, in a folder of its own; it measures nothing

Stop it with Ctrl-C whenever you like. The same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks import machine
from benchmarks.parity.figures import text_of
from benchmarks.parity.run import measure
from benchmarks.parity.sets import SETS, tiny

NAME = "parity"
SEEDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-parity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--sets", default=",".join(SETS), help=", ".join(SETS))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    chosen = options.sets.split(",")
    if unknown := [name for name in chosen if name not in SETS]:
        parser.error(f"--sets {', '.join(unknown)}: the sets are {', '.join(SETS)}")
    sets, scratch = SETS, Path(os.environ.get("TRAINER_SCRATCH_DIR", ".scratch")).absolute() / "parity"
    path = machine.RESULTS / f"{NAME}.json"
    if options.tiny:
        scratch = Path(tempfile.mkdtemp(prefix="parity-"))
        sets, path = {name: tiny(settings) for name, settings in SETS.items()}, scratch / f"{NAME}.json"
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"))
        result = measure(path, sets, chosen, options.seeds, scratch, pool)
        print(text_of(result["summary"], result["inputs"]))
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():  # else it would begin the next training
            worker.kill()
        raise SystemExit("stopped; the same command goes on with what is missing") from None
    finally:
        if options.tiny:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
