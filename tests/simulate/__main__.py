"""A day of bad luck, a thousand times: the real `launch` and the real guard against a simulated AWS.

    python -m tests.simulate                      1,000 seeds; results to benchmarks/results/simulate.json
    python -m tests.simulate --seed 17            one seed, event by event
    python -m tests.simulate --without schedule   what a guard is for: without it (again for more)

Exit code 0: no seed went over its budget's bound, and no machine was alive or idle for too long; 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.guard import rules
from infra.operate.terminal import plain, table
from infra.operate.text import duration
from tests.simulate.world import OUTER_GUARDS, Result, simulate

PARTS = (0.5, 0.9, 0.99, 1.0)
RULES = [rule.__name__ for rule in (*rules.STOPS, *rules.TERMINATIONS, rules.on_demand_due, rules.replaced_in_vain)]
COLUMNS: dict[str, Callable[[Result], float]] = {
    "hours": lambda result: result.hours,
    "dollars": lambda result: result.usd,
    "share of budget": lambda result: result.usd / result.budget_usd,
    "machines": lambda result: result.machines,
    "lost steps": lambda result: result.lost_steps,
}


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def summary(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """By column: the quantiles, and the sum where it means something."""
    found: dict[str, dict[str, float]] = {}
    for name, value in COLUMNS.items():
        values = [value(result) for result in results]
        found[name] = {f"p{part:.0%}".rstrip("%"): round(quantile(values, part), 3) for part in PARTS}
        if name != "share of budget":
            found[name]["sum"] = round(sum(values), 2)
    return found


def describe(results: Sequence[Result], seconds: float, without: Sequence[str]) -> str:
    rows = [[name, *(str(values.get(column, "")) for column in (*_parts(), "sum"))]
            for name, values in summary(results).items()]  # fmt: skip
    left_out = f", without {', '.join(without)}" if without else ""
    endings = ", ".join(f"{count} {ending}" for ending, count in Counter(r.ending for r in results).most_common())
    sizes = Counter(result.nodes for result in results)
    lines = [
        f"{len(results)} seeds in {duration(seconds)}{left_out}: {endings}",
        f"machines of a run: {', '.join(f'{n} in {count} seeds' for n, count in sorted(sizes.items()))}",
        plain(table(rows, header=["", "median", "p90", "p99", "most", "sum"])),
    ]
    for wrong, seeds in wrongs(results).items():
        some = " ".join(map(str, seeds[:10]))
        lines.append(f"WRONG: {wrong}: {len(seeds)} seeds: {some}{' …' if len(seeds) > 10 else ''}")
    return "\n".join(lines if wrongs(results) else [*lines, "nothing wrong"])


def wrongs(results: Sequence[Result]) -> dict[str, list[int]]:
    """The seeds by what was wrong in them."""
    found: dict[str, list[int]] = {}
    for result in results:
        for wrong in result.wrong:
            found.setdefault(wrong, []).append(result.seed)
    return found


def _parts() -> list[str]:
    return [f"p{part:.0%}".rstrip("%") for part in PARTS]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, metavar="K", help="this one alone, with its events")
    parser.add_argument(
        "--without", action="append", default=[], choices=[*OUTER_GUARDS, *RULES], metavar="GUARD",
        help=f"leave a guard out: {', '.join([*OUTER_GUARDS, *RULES])}",
    )  # fmt: skip
    options = parser.parse_args()
    if options.seed is not None:
        result = simulate(options.seed, options.without, says=True)
        print("\n".join(result.events))
        print(f"{result.ending}; {result.hours:.2f} h; ${result.usd:.2f} of ${result.budget_usd:.2f}; "
              f"{result.lost_steps} steps lost; {', '.join(result.wrong) or 'nothing wrong'}")  # fmt: skip
        return bool(result.wrong)
    started, worked = time.perf_counter(), time.process_time()
    results = [simulate(seed, options.without) for seed in range(max(1, options.seeds))]
    seconds = time.perf_counter() - started
    print(describe(results, seconds, options.without))
    if not options.without and options.seeds == 1000:
        from benchmarks.machine import write

        path = write("simulate", {"seeds": len(results), "seconds": round(seconds, 1),
                                  "cpu_seconds": round(time.process_time() - worked, 1), "wrong": wrongs(results),
                                  "endings": Counter(r.ending for r in results), **summary(results)})  # fmt: skip
        print(f"written to {path.relative_to(Path.cwd())}")
    return bool(wrongs(results))


if __name__ == "__main__":
    sys.exit(main())
