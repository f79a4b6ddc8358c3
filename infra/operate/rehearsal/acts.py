"""The acts of a rehearsal, in their order: prepare, train, lose the machine, go on, be stopped, read the log.

Each returns what it saw, or raises UnseenError. Deploying and launching are the commands' own functions, which the
command `rehearse` passes in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from infra.config import Installation
from infra.operate.planning import datasets
from infra.operate.planning.options import Request
from infra.operate.progress import newest_key
from infra.operate.rehearsal.evidence import RowOfStep, compare_steps, lines_that_differ, resumed, steps_of
from infra.operate.rehearsal.looking import Sight
from infra.operate.rehearsal.notice import send_notice
from infra.operate.rehearsal.record import Record, UnseenError
from infra.operate.rehearsal.scope import PREPARE_RUN, TRAIN_RUN, Scope
from infra.operate.rehearsal.waiting import wait_for
from infra.operate.runs import active_run, read_ending, read_spec
from infra.operate.session import Aws, explained
from infra.operate.text import duration
from infra.run import fleet
from trainer.contract import Exit, parse_manifest_key, run_key

LEAST_REDONE = 20  # steps that the lost machine must have told of beyond its newest checkpoint
GUARD_SECONDS = 300.0  # for the guard's stop: a tick each minute, and a shutdown
LAST_SAVE_SECONDS = 180.0  # for a shutdown, in which the trainer has 100 s to save
NOTICE_SECONDS = 300.0  # from a notice to the machine's end: two minutes, and what AWS takes to begin
LATE_LINES_SECONDS, LINES_PAUSE_SECONDS = 60.0, 3.0
CTRL_C_CODE = 130  # what `launch` returns after Ctrl-C


@dataclass
class Rehearsal:
    """What the acts share."""

    aws: Aws
    scope: Scope
    record: Record
    deploy: Callable[[Installation], None]
    launch: Callable[[Installation, Request], int]
    data: str = ""  # the prepared digits; "" for those of the image
    sight: Sight = field(init=False)

    def __post_init__(self) -> None:
        self.sight = Sight(self.aws, self.scope.installation)

    def perform(self) -> None:
        """Everything between the question and the cleaning. A failed act ends it, but for the preparation's."""
        record = self.record
        if not record.act("deploy", self.put_up):
            return
        self.sight.until = time.time() + self.scope.minutes * 60
        record.act("prepare", self.prepare)
        acts = [("train", self.train), ("lose the machine", self.lose), ("go on", self.go_on)]
        acts += [("a notice", self.be_reclaimed)] if self.scope.has_notice else []
        acts += [("the guard's stop", self.be_stopped), ("the step and the bits", self.compare)]
        for name, act in acts:
            if not record.act(name, act):
                break
        if self.sight.of(TRAIN_RUN):
            record.act("the log", self.read_all_lines)
        record.facts["machines"] = [f"{one.run_id}: {one.type}, {one.zone}, {one.market}" for one in self.sight.known]
        record.facts["usd"] = round(self.sight.spent(PREPARE_RUN, TRAIN_RUN), 3)

    def put_up(self) -> str:
        installation = self.scope.installation
        self.deploy(installation)
        return f"{installation.storage_stack} and {installation.training_stack} are there"

    def prepare(self) -> str:
        self._start(self.scope.preparation(f"s3://{self.sight.bucket.name}", self._hours()))
        machine = self.sight.next_machine(PREPARE_RUN)
        ending = wait_for("the preparation", lambda: read_ending(self.sight.bucket, PREPARE_RUN), self.sight.until)
        if ending and ending.how != "done":
            raise UnseenError(f"the preparation {ending.how}: {ending.message}")
        found = datasets.newest(self.sight.bucket, "digits")
        if found is None:
            raise UnseenError("the preparation is done, and the bucket has no prepared digits")
        self.data = found.uri
        self.record.see("cpu", f"{machine.type}: {self._note_boot('prepare', PREPARE_RUN, machine)}")
        self.sight.wait_for_end(PREPARE_RUN, self.sight.until)
        return f"{found.train_images:,} images by {machine.type} in {machine.zone}, which has left by itself"

    def train(self) -> str:
        self._start(self.scope.training(self.data, self._hours()))
        machine = self.sight.next_machine(TRAIN_RUN)
        if machine.market == fleet.SPOT:
            self.record.see("spot", f"{machine.type} in {machine.zone}")

        def look() -> list[RowOfStep]:
            return self.sight.rows_beyond_checkpoint(TRAIN_RUN, LEAST_REDONE)

        rows = wait_for("steps beyond a checkpoint", look, self.sight.until, lambda: self.sight.last_lines(TRAIN_RUN))
        self.record.see("boot", self._note_boot("train", TRAIN_RUN, machine))
        self.record.see("iam", "the machines' roles, their containers' and the guard's sufficed so far")
        if memory := max((row.get("gpu/memory_bytes", 0) for row in rows), default=0):
            self.record.see("gpu", f"{machine.type} trained on its GPU, {memory / 1e6:,.0f} MB of its memory in use")
        else:
            self.record.miss("gpu", f"{machine.type} trained on its CPU: the container saw no GPU")
        return f"step {max(steps_of(rows)):,} on {machine.id}, {machine.type} in {machine.zone}, {machine.market}"

    def lose(self) -> str:
        """End the machine as a failing host does: without a shutdown, so that the trainer cannot save."""
        lost = self.sight.known[-1]
        with explained(f"terminate {lost.id}"):
            self.aws.client("ec2").terminate_instances(InstanceIds=[lost.id], SkipOsShutdown=True)
        found = self.sight.next_machine(TRAIN_RUN)
        return f"{lost.id} was ended without a shutdown, and its group started {found.id}"

    def go_on(self) -> str:
        """The next machine goes on from the newest checkpoint and computes again what the lost one had told of.

        So the same steps were computed on both sides of the interruption, and no second run is needed to compare bits.
        """
        lost, machine = self.sight.of(TRAIN_RUN)[-2:]
        told = max(
            (step for rows in self.sight.rows_on(TRAIN_RUN, lost).values() for step in steps_of(rows)), default=0
        )
        what = f"step {told:,} on {machine.id}"
        wait_for(
            what, lambda: self.sight.step_in_log(TRAIN_RUN, machine) > told, self.sight.until,
            lambda: self.sight.last_lines(TRAIN_RUN),
        )  # fmt: skip
        return f"{machine.id} is beyond step {told:,}, which {lost.id} had told of"

    def be_reclaimed(self) -> str:
        """AWS itself sends the notice of a reclaim, and takes the machine after two minutes. No step may be lost."""
        machine = self.sight.known[-1]
        send_notice(self.aws, self.scope.installation, machine.id)
        until = min(self.sight.until, time.time() + NOTICE_SECONDS)
        wait_for("AWS to take the machine", lambda: machine.id not in self._billing_ids(), until)
        self.sight.next_machine(TRAIN_RUN)
        self.go_on()
        ended = self.sight.attempts_on(TRAIN_RUN, machine)[-1]
        next_rows = self.sight.rows_on(TRAIN_RUN, self.sight.known[-1])
        begin = resumed(next(iter(next_rows.values()), []))
        last = max(steps_of(self.sight.rows(TRAIN_RUN)[ended["attempt"]]))
        if ended.get("exit") != Exit.INTERRUPTED or (begin and begin.step != last):
            raise UnseenError(f"the reclaimed machine ended at step {last:,} with {ended.get('exit')}: {begin}")
        self.record.see("notice", f"{machine.id} saved step {last:,}, its last one, before AWS took it")
        return f"{machine.id} was reclaimed with a notice, and no step was lost"

    def _billing_ids(self) -> set[str]:
        return {machine.id for machine in self.sight.billing(TRAIN_RUN)}

    def be_stopped(self) -> str:
        """Lower the budget to what is spent: the guard then has to stop a run that goes well."""
        bucket = self.sight.bucket
        spec = read_spec(bucket, TRAIN_RUN)
        if spec is None:
            raise UnseenError("the run has no spec.json any more")
        budget = max(0.01, round(self.sight.spent(TRAIN_RUN), 4))
        with explained("lower the run's budget"):
            bucket.s3.put_object(
                Bucket=bucket.name, Key=run_key(TRAIN_RUN, "spec.json"), ContentType="application/json",
                Body=replace(spec, budget_usd=budget).to_json(),
            )  # fmt: skip
        began, until, guarded = time.monotonic(), time.time() + GUARD_SECONDS, run_key(TRAIN_RUN, "guard.json")
        reason = wait_for("the guard", lambda: str(bucket.read_json(guarded).get("reason") or ""), until)
        self.sight.wait_for_end(TRAIN_RUN, until)
        if "budget" not in reason or active_run(self.aws, self.scope.installation):
            raise UnseenError(f"the guard said {reason!r}, and a group still wants or has machines")
        self.record.see("guard", f"after {duration(time.monotonic() - began)}: {reason}")
        return f"{reason}; {self._saved_last()}"

    def _saved_last(self) -> str:
        """The last machine had its shutdown: so its last step is saved."""
        machine = self.sight.known[-1]

        def over() -> dict[str, Any]:
            newest = self.sight.attempts_on(TRAIN_RUN, machine)[-1]
            return newest if "exit" in newest else {}

        attempt = wait_for("the last save", over, time.time() + LAST_SAVE_SECONDS)
        newest = parse_manifest_key(newest_key(self.sight.bucket, TRAIN_RUN))
        last = max(steps_of(self.sight.rows(TRAIN_RUN)[attempt["attempt"]]))
        if attempt["exit"] != Exit.INTERRUPTED or newest != (attempt["attempt"], last):
            raise UnseenError(f"the last machine ended at step {last:,}, and the newest checkpoint is {newest}")
        return f"step {last:,}, its last one, is saved"

    def compare(self) -> str:
        """The machine that was lost, and the one after it."""
        lost, machine = self.sight.of(TRAIN_RUN)[:2]
        attempt, before = list(self.sight.rows_on(TRAIN_RUN, lost).items())[-1]
        after = next(iter(self.sight.rows_on(TRAIN_RUN, machine).values()), [])
        begin = resumed(after)
        if begin is None or begin.origin != attempt:
            raise UnseenError(f"{machine.id} did not say from which step of attempt {attempt} it went on")
        expected, compared = {step for step in steps_of(before) if step > begin.step}, compare_steps(before, after)
        if set(compared.steps) != expected or not expected:
            raise UnseenError(f"of {len(expected)} steps beyond step {begin.step}, {len(compared.steps)} were redone")
        self.record.see("resume", f"from step {begin.step:,}; {len(expected):,} steps were computed again")
        if compared.different:
            self.record.miss("bits", f"{len(compared.different)} numbers differ, first {compared.different[0]}")
        if compared.different and lost.type == machine.type:
            raise UnseenError(f"the bits differ on one type: {compared.different[0]}")
        if lost.type != machine.type:
            self.record.miss("bits", f"the machines are of two types, {lost.type} and {machine.type}")
            return f"went on from step {begin.step:,}, on another type"
        self.record.see("bits", f"{compared.values:,} numbers of {len(expected):,} steps are the same on both machines")
        return f"went on from step {begin.step:,}, with the same bits in {len(expected):,} steps"

    def read_all_lines(self) -> str:
        """CloudWatch may show a line late, so it is asked again for a while."""
        until = time.time() + LATE_LINES_SECONDS
        while (counted := self._count_lines())[1] and time.time() < until:
            time.sleep(LINES_PAUSE_SECONDS)
        due, odd = counted
        if odd or not due:
            said = f"{len(odd)} of {due} lines did not arrive once: {', '.join(odd[:3])}"
            self.record.miss("logs", said)
            raise UnseenError(said)
        machines = len(self.sight.of(TRAIN_RUN))
        self.record.see("logs", f"{due:,} lines that tell of a step, of {machines} machines, each once")
        return f"{due:,} lines, each once"

    def _count_lines(self) -> tuple[int, list[str]]:
        """How many lines are due of all machines, and which of them did not arrive once.

        The n-th attempt of a machine is its n-th container, whose stream is called n.
        """
        lines, due, odd = self.sight.log(TRAIN_RUN), 0, list[str]()
        for machine in self.sight.of(TRAIN_RUN):
            for number, rows in enumerate(self.sight.rows_on(TRAIN_RUN, machine).values(), 1):
                mine = [line for line in lines if line.stream == f"{TRAIN_RUN}/{machine.id}/{number}"]
                count, differ = lines_that_differ(rows, mine)
                due, odd = due + count, odd + [f"{machine.id}, {one}" for one in differ]
        return due, odd

    def _start(self, request: Request) -> None:
        code = self.launch(self.scope.installation, request)
        if code == CTRL_C_CODE:
            raise KeyboardInterrupt
        if code:
            raise UnseenError(f"the launch of {request.run_id} ended with exit code {code}: see above")

    def _hours(self) -> float:
        left = (self.sight.until - time.time()) / 3600
        if left <= 0.05:
            raise UnseenError("its time is over")
        return round(left, 3)

    def _note_boot(self, kind: str, run: str, machine: fleet.FleetMachine) -> str:
        seconds = self.sight.boot_seconds(run, machine)
        self.record.facts[f"{kind}_seconds"] = seconds
        return f"{seconds['boot']:.0f} s until its first line, {seconds['pull']:.0f} s more until its container"
