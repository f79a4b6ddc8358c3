"""Sources as people have them, drawn at random: a form, damages, and a moment of interruption, prepared and judged.

    python -m tests.draws --draws 2000 --seed 0   so many, from this seed on
    python -m tests.draws --draws 1 --seed 17     one alone, with what it was and what was said

Exit code 0: each was right, or was refused with the file named; 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.draws.draw import Draw, draw

FAST_DISK = Path("/dev/shm")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.draws", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000, metavar="N", help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="the first one's (default: 0)")
    options = parser.parse_args()
    began, worked = time.perf_counter(), time.process_time()
    draws = []
    with tempfile.TemporaryDirectory(prefix="draws-", dir=FAST_DISK if FAST_DISK.is_dir() else None) as folder:
        for seed in range(options.seed, options.seed + options.draws):
            draws.append(made := draw(seed, Path(folder)))
            if made.wrong or options.draws == 1:
                print(describe(made, whole=options.draws == 1), flush=True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    if options.draws > 1:
        print(table(draws))
        print(f"{len(draws)} draws in {seconds:.0f} s, {1000 * seconds / len(draws):.0f} ms each")
    if (options.draws, options.seed) == (2000, 0):
        from benchmarks.machine import write

        path = write("draws", {"draws": len(draws), "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1),
                               "wrong": {made.seed: made.wrong for made in draws if made.wrong},
                               "ends": Counter(made.end for made in draws),
                               **{kind: Counter(getattr(made, kind) for made in draws) for kind in ("form", "moment")},
                               "damages": Counter(name for made in draws for name in made.damages)})  # fmt: skip
        print(f"written to {path.relative_to(Path.cwd())}")
    return int(any(made.wrong for made in draws))


def describe(made: Draw, whole: bool) -> str:
    about = f"{made.form}, {', '.join(made.damages) or 'whole'}, {made.moment}; {'; '.join(made.notes)}"
    lines = [f"--seed {made.seed} --draws 1: {made.wrong or made.end}", f"  {about}"]
    if whole:
        lines += [*made.files, *(f"  {line}" for said in made.said for line in said.splitlines())]
    return "\n".join(lines)


def table(draws: list[Draw]) -> str:
    lines = [f"{'form':<22} {'right':>6} {'refused':>8} {'wrong':>6}"]
    for form in sorted({made.form for made in draws}):
        ends = Counter(made.end for made in draws if made.form == form)
        lines.append(f"{form:<22} {ends['right']:>6} {ends['refused']:>8} {ends['wrong']:>6}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
