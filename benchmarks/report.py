"""How long the report of a long run takes from a fresh start, and how many bytes its page has.

make bench-report      a run of 100,000 steps and three attempts, whose numbers are made up (ARGS="--rounds N")
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import write
from benchmarks.predict import fresh
from tests.trainer.made_run import MadeRun
from trainer.recipes.rn50 import rn50_88
from trainer.store import open_store

STEPS, STEPS_PER_EPOCH = 100_000, 1_250
LIMITS = {"wall_seconds": 3.0, "page_bytes": 2_000_000}  # that are promised on 2 quiet cores


def made_run() -> MadeRun:
    return MadeRun(
        config=replace(rn50_88(), epochs=STEPS // STEPS_PER_EPOCH), steps_per_epoch=STEPS_PER_EPOCH, done=STEPS,
        continues=(40_000, 71_000), lost=200, seconds_per_step=0.5,
    )  # fmt: skip


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a process of its own for each round; a first one, not counted, brings files into memory."""
    made, store = made_run(), open_store(str(folder / "store"))
    made.put(store)
    arguments = ["-m", "trainer.report", "--store", str(folder / "store"), "--run-id", made.run_id]
    arguments += ["--into", str(folder / "report")]
    seconds = [fresh(arguments) for _ in range(rounds + 1)][1:]
    sizes = {path.name: path.stat().st_size for path in sorted((folder / "report").iterdir())}
    objects = [info.bytes for info in store.list(f"runs/{made.run_id}/")]
    results: dict[str, Any] = {"steps": STEPS, "attempts": 3, "rounds": rounds, "limits": LIMITS}
    results |= {"objects_read": len(objects), "bytes_read": sum(objects), "bytes_written": sizes}
    for at, clock in enumerate(("wall", "cpu")):
        found = [round(one[at], 3) for one in seconds]
        results[f"{clock}_seconds"] = {"median": statistics.median(found), "least": min(found), "all": found}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), options.rounds)
    print(json.dumps(found, indent=1))
    print(f"written to {write('report', found)}")


if __name__ == "__main__":
    main()
