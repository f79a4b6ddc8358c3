"""What a rehearsal looks at while it goes on: machines, attempts, rows, lines. It reads only."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from infra.config import Installation
from infra.operate.progress import newest_key
from infra.operate.rehearsal.evidence import LoggedLine, RowOfStep, read_log, read_rows, steps_of
from infra.operate.rehearsal.record import UnseenError
from infra.operate.rehearsal.waiting import wait_for
from infra.operate.runs import (
    ExplainedBucket,
    launched_at,
    need_bucket,
    read_attempts,
    read_ending,
    read_spend,
)
from infra.operate.session import Aws, explained
from infra.run import fleet
from trainer.contract import parse_manifest_key

MACHINE_SECONDS = 480.0  # for so long AWS may look for one


@dataclass
class Sight:
    """One account and what a run has left in it. `until` is in Unix seconds: no wait is longer."""

    aws: Aws
    installation: Installation
    until: float = 0.0
    known: list[fleet.FleetMachine] = field(default_factory=list)  # the machines that came, in their order

    @cached_property
    def bucket(self) -> ExplainedBucket:
        return need_bucket(self.aws, self.installation)

    def of(self, run: str) -> list[fleet.FleetMachine]:
        return [machine for machine in self.known if machine.run_id == run]

    def seen(self, run: str) -> list[fleet.FleetMachine]:
        with explained("the machines"):
            return fleet.machines(self.aws.client("ec2"), self.installation.name, run)

    def billing(self, run: str) -> list[fleet.FleetMachine]:
        return [machine for machine in self.seen(run) if machine.is_billing]

    def next_machine(self, run: str) -> fleet.FleetMachine:
        """A machine that was not known before. Raises UnseenError with AWS's reasons if none comes."""
        ids = {machine.id for machine in self.known}

        def look() -> list[fleet.FleetMachine]:
            return [machine for machine in self.billing(run) if machine.id not in ids]

        def why() -> str:
            autoscaling, since = self.aws.client("autoscaling"), launched_at(self.bucket, run)
            group = fleet.wanted_group(fleet.read_groups(autoscaling, self.installation.groups), run)
            return "; ".join(map(str, fleet.why_no_machine(autoscaling, group, since))) if group else ""

        until = min(self.until, time.time() + MACHINE_SECONDS)
        self.known.append(wait_for(f"a machine for {run}", look, until, why)[0])
        return self.known[-1]

    def wait_for_end(self, run: str, until: float) -> None:
        """Until its machines bill no more."""
        wait_for("the machine to end", lambda: not self.billing(run), until)

    def attempts_on(self, run: str, machine: fleet.FleetMachine) -> list[dict[str, Any]]:
        """What the attempts of a machine wrote down, in their order."""
        found = read_attempts(self.bucket, run)
        return [one for one in found if (one.get("machine") or {}).get("id") == machine.id]

    def rows(self, run: str) -> dict[int, list[RowOfStep]]:
        return read_rows(self.bucket, run)

    def rows_on(self, run: str, machine: fleet.FleetMachine) -> Mapping[int, list[RowOfStep]]:
        """The rows of each attempt of a machine."""
        rows = self.rows(run)
        return {one["attempt"]: rows.get(one["attempt"], []) for one in self.attempts_on(run, machine)}

    def rows_beyond_checkpoint(self, run: str, least: int) -> list[RowOfStep]:
        """The rows of the newest attempt, once so many of its steps are beyond the newest checkpoint, which is its own.

        Raises UnseenError if the run has ended.
        """
        if ending := read_ending(self.bucket, run):
            raise UnseenError(f"{run} {ending.how}: {ending.message}")
        newest = parse_manifest_key(newest_key(self.bucket, run))
        if newest is None:
            return []
        rows = self.rows(run).get(newest[0], [])
        return rows if sum(step > newest[1] for step in steps_of(rows)) >= least else []

    def step_in_log(self, run: str, machine: fleet.FleetMachine) -> int:
        """The newest step that the log has of a machine; 0 for none. Raises UnseenError if the run has ended."""
        if ending := read_ending(self.bucket, run):
            raise UnseenError(f"{run} {ending.how}: {ending.message}")
        lines = self.log(run, machine.launched)
        return max((line.step for line in lines if line.machine == machine.id), default=0)

    def log(self, run: str, since: float = 0.0) -> list[LoggedLine]:
        return read_log(self.aws.client("logs"), self.installation.log_group, run, since)

    def last_lines(self, run: str) -> str:
        """For whoever asks why nothing came."""
        lines = [line.text for line in self.log(run)[-3:]] if run in self.bucket.run_names() else []
        return f"its last lines: {' | '.join(lines)}" if lines else "its log has no line"

    def boot_seconds(self, run: str, machine: fleet.FleetMachine) -> dict[str, float]:
        """From the launch to the first line of its boot scripts, and from there to the container.

        Raises UnseenError if the log does not say.
        """
        boot = [line for line in self.log(run) if line.machine == machine.id and line.stream.endswith("/boot")]
        started = [line.at for line in boot if re.match(r"container \d+ of ", line.text)]
        if not started:
            raise UnseenError(f"the boot of {machine.id} has no line in the log that its container runs")
        first = min(line.at for line in boot)
        return {"boot": round(first - machine.launched, 1), "pull": round(min(started) - first, 1)}

    def spent(self, *runs: str) -> float:
        """Dollars, by the guard's tally."""
        return sum(read_spend(self.bucket, run).usd(time.time()) for run in runs)
