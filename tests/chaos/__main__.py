"""Fault injection at scale: what a spot machine, a network and a store can do to a run, done to it on purpose.

    python -m tests.chaos                        every scenario, until its number of tries is reached
    python -m tests.chaos races mutations        these alone
    python -m tests.chaos kill-calls --seed 17   one try again, exactly, without counting it

Results go to benchmarks/results/chaos.json after every try, and a second call goes on where the first one stopped.
Exit code 0: nothing was lost and nothing was wrong; 1 otherwise.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import environment, faults, kills, mutations, nodes, races, runs
from tests.chaos.lab import Case, Lab, WrongError, standalone
from tests.chaos.tally import PATH, Tally, table


@dataclass(frozen=True)
class Scenario:
    """`work(lab, seed)` is one try. WrongError is a wrong case, and so is whatever else it raises."""

    work: Callable[[Lab, int], Case]
    tries: int  # of a full `make chaos`
    about: str


SCENARIOS = {
    "kill-calls": Scenario(
        kills.kill_calls, 264, "SIGKILL before and after each call to S3: of all processes, the uploader, the trainer"
    ),
    "kill-folder": Scenario(kills.kill_folder, 100, "SIGKILL at random times of commits to a folder"),
    "kill-runs": Scenario(runs.kill_run, 20, "real runs killed 10 times each at random instants: bitwise the same end"),
    "sigterm": Scenario(runs.sigterm, 50, "SIGTERM in a phase of a real run: exit 75, no step lost"),
    "mutations": Scenario(mutations.mutation, 1000, "stored bytes changed, cut, swapped, old, another run's, missing"),
    "mutations-s3": Scenario(mutations.mutation_s3, 40, "the same in S3"),
    "faults": Scenario(faults.fault, faults.COUNT, "each kind of fault on each operation of a commit, for seconds"),
    "races": Scenario(races.race, 100, "two trainers start one run at the same time"),
    "sleepers": Scenario(races.sleeper, 30, "an owner is stopped (SIGSTOP) and wakes after another took over"),
    "nodes": Scenario(
        nodes.node_faults, nodes.COUNT, "runs on 2 to 4 machines: killed, cut off, slowed, stopped, late"
    ),
    "environment": Scenario(environment.trouble, 12, "full scratch disk, dead uploader, clocks that differ"),
}


def attempt(scenario: Scenario, lab: Lab, seed: int) -> Case:
    try:
        return scenario.work(lab, seed)
    except WrongError as error:
        return Case(wrong=str(error), lost=int(str(error).startswith("lost:")))
    except Exception as error:  # noqa: BLE001  # of the harness itself: to be seen and replayed, not to end a night
        return Case(wrong=f"{type(error).__name__}: {error} {traceback.format_exc(limit=-3)}")


def main() -> int:
    about = "\n".join(f"  {name:<13} {s.tries:>5} tries  {s.about}" for name, s in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, epilog=f"scenarios:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("scenario", nargs="*", help="which (default: all)")
    parser.add_argument("--tries", type=int, help="at most so many of each scenario now")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further try after so long")
    parser.add_argument("--seed", type=int, help="this try alone; it is printed, not counted")
    parser.add_argument("--fresh", action="store_true", help="forget the results of these scenarios first")
    parser.add_argument("--table", action="store_true", help="print the results so far, inject nothing")
    options = parser.parse_args()
    if unknown := set(options.scenario) - set(SCENARIOS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(SCENARIOS)}")
    chosen = options.scenario or list(SCENARIOS)
    targets = {name: scenario.tries for name, scenario in SCENARIOS.items()}
    tally, end = Tally(), time.monotonic() + options.seconds
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left running
    try:
        if not options.table:
            inject(options, chosen, tally, end)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
    if options.seed is None:
        print(table(tally, targets))
        print(f"\nin {PATH}; a wrong case again: python -m tests.chaos SCENARIO --seed N")
    return int(any(tally.of(name)["lost"] or tally.of(name)["wrong"] for name in chosen))


def inject(options: argparse.Namespace, chosen: list[str], tally: Tally, end: float) -> None:
    tally.begin()
    with standalone() as lab:
        for name in chosen:
            scenario = SCENARIOS[name]
            if options.fresh:
                tally.body["scenarios"].pop(name, None)
            first = tally.of(name)["tries"]
            seeds = range(first, min(scenario.tries, first + (options.tries or scenario.tries)))
            for seed in seeds if options.seed is None else [options.seed]:
                if time.monotonic() > end:
                    return
                began = time.monotonic()
                case = attempt(scenario, lab, seed)
                seconds = time.monotonic() - began
                if options.seed is None:
                    tally.add(name, seed, case, seconds)
                if case.wrong or options.seed is not None:
                    print(f"{name} --seed {seed}: {case.wrong or 'right'} {case.notes}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
