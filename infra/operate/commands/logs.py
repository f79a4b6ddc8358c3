"""`logs`: follow what a run prints, from CloudWatch Logs to the terminal, also when the machine is replaced.

Lines go to standard output, everything else to standard error. CloudWatch may show a line late and out of order. So
each poll begins some time before the newest line, and skips the lines that were shown.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import botocore.exceptions
from botocore.exceptions import ClientError

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.ends import EndTeller
from infra.operate.nodes import choose_node, machines_of, short_id
from infra.operate.runs import (
    Ending,
    ExplainedBucket,
    active_run,
    choose_run,
    launched_at,
    machine_stays_until,
    need_bucket,
    read_ending,
    read_spec,
)
from infra.operate.session import Aws, AwsError, ExitCode, explained
from infra.operate.terminal import Text, display, display_line, next_commands, show_line
from infra.operate.text import duration, weekday_time
from infra.run import fleet
from infra.run.values import printable
from trainer.contract import UserError, run_key

HELP = "follow what the run prints, whichever machine it is on, until it ends (Ctrl-C leaves the run alone)"
LINE_LETTERS = 1 << 18  # of a line of the log: all that CloudWatch takes
LINES_SECONDS = 1.0  # AWS takes 5 calls of FilterLogEvents a second from an account
MOST_WAIT_SECONDS = 8.0  # between polls, while AWS does not answer or throttles
OVERLAP_SECONDS = 120  # how far behind the newest line every poll looks …
SWEEP_OVERLAP_SECONDS = 3600  # … and one in SWEEP_SECONDS; when the run has ended, everything is read once more
SWEEP_SECONDS = 60.0
ENDING_SECONDS = 5.0  # between two reads of the machines and of whether the run has ended
QUIET_SECONDS = 6.0  # without a line after the run's end: the log driver and CloudWatch are through within that
OLD_SECONDS = 60.0  # after the run's end nothing more is waited for
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
THROTTLING = ("ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown")
LOST = (
    botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError, botocore.exceptions.IncompleteReadError,
    OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    stream: str
    text: str

    @property
    def machine(self) -> str:
        """The id of the machine. A stream is called `<run>/<instance id>/<n>`."""
        return self.stream.split("/")[1]


class Tail:
    """Reads a run's lines. It remembers which lines were shown, and the time of the newest."""

    def __init__(self, client: Any, group: str, run_id: str, since: float, machine: str = ""):
        self.client, self.group, self.prefix = client, group, f"{run_id}/{machine and f'{machine}/'}"
        self.since = self.newest = int(since * 1000)
        self.shown: set[str] = set()

    def poll(self, back_seconds: float | None = None) -> Iterator[Line]:
        """Yield the lines that were not shown yet, from `back_seconds` before the newest line on. None means from the
        beginning.

        If a poll fails in the middle, `newest` stays as it was, so the next poll misses nothing.
        """
        with explained(f"the log group {self.group}"):
            try:
                yield from self._new_lines(back_seconds)
            except self.client.exceptions.ResourceNotFoundException as error:
                raise UserError(
                    f"there is no log group {self.group}: `make destroy` removes it with the stack; what else the run "
                    "left is still there: `make status`, `make pull`"
                ) from error

    def _new_lines(self, back_seconds: float | None) -> Iterator[Line]:
        start = self.since if back_seconds is None else max(self.since, self.newest - int(back_seconds * 1000))
        pages = self.client.get_paginator("filter_log_events").paginate(
            logGroupName=self.group, logStreamNamePrefix=self.prefix, startTime=start
        )
        newest = self.newest
        for page in pages:
            for event in sorted(page["events"], key=lambda event: int(event["timestamp"])):
                if event["eventId"] in self.shown or not event["logStreamName"].startswith(self.prefix):
                    continue
                self.shown.add(event["eventId"])
                newest = max(newest, min(event["timestamp"], event["ingestionTime"]))  # a clock may be ahead
                yield Line(event["logStreamName"], event["message"].rstrip("\n"))
        self.newest = newest


class Screen:
    """Prints lines and notes. A line shows its machine as soon as there are two machines. A note is printed once.

    Of a run of several machines, each line begins with the start of its machine's id.
    """

    def __init__(self, *, is_team: bool = False) -> None:
        self.is_team = is_team
        self.machines: set[str] = set()
        self.notes: set[str] = set()

    def show(self, lines: Iterable[Line]) -> int:
        """Print the lines, and return how many there were."""
        count = 0
        for line in lines:
            count += 1
            self.machines.add(line.machine)
            text = line.text.rstrip("\r").rpartition("\r")[2]  # of a bar, its last state
            prefix = short_id(line.machine) if self.is_team else line.machine
            display_line(f"{prefix} " if self.is_team or len(self.machines) > 1 else "", text, LINE_LETTERS)
        sys.stdout.flush()
        return count

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.add(text)
            self.tell(text)

    def note_all(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.note(text)

    def tell(self, text: str) -> None:
        show_line(f"-- {text}", file=sys.stderr)


class Connection:
    """Waits while the network is lost, AWS is at fault, or AWS throttles. It says once that it waits, and when it is
    over.
    """

    def __init__(self, screen: Screen) -> None:
        self.screen, self.wait, self.lost_at = screen, LINES_SECONDS, 0.0

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        try:
            yield
        except AwsError as error:
            if not is_passing(error):
                raise
            self.wait = min(2 * self.wait, MOST_WAIT_SECONDS)
            if not self.lost_at and not is_throttling(error):
                self.lost_at = time.monotonic()
                self.screen.tell(f"{error}; trying again until it answers, no line is lost (Ctrl-C leaves)")
        else:
            if self.lost_at:
                self.screen.tell(f"AWS answers again, after {duration(time.monotonic() - self.lost_at)}")
            self.wait, self.lost_at = LINES_SECONDS, 0.0


def is_throttling(error: AwsError) -> bool:
    cause = error.__cause__
    return isinstance(cause, ClientError) and cause.response["Error"].get("Code") in THROTTLING


def is_passing(error: AwsError) -> bool:
    """Whether the same call may succeed later without the user doing anything."""
    cause = error.__cause__
    if isinstance(cause, ClientError):
        return is_throttling(error) or cause.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= 500
    return isinstance(cause, LOST)


def follow(tail: Tail, screen: Screen, find_ending: Callable[[], Ending | None]) -> Ending:
    """Show lines until the run has ended and no more lines come. Returns how it ended."""
    connection = Connection(screen)
    ending: Ending | None = None
    ask_at = sweep_at = settle_at = give_up_at = 0.0
    while True:
        now = time.monotonic()
        with connection.forgiving():
            if ending is None and now >= ask_at:
                ending, ask_at = find_ending(), now + ENDING_SECONDS
                if ending and time.time() < ending.at + OLD_SECONDS:
                    settle_at, give_up_at = now + QUIET_SECONDS, now + OLD_SECONDS
            is_over = ending is not None and now >= min(settle_at, give_up_at)
            back = None if is_over else SWEEP_OVERLAP_SECONDS if now >= sweep_at else OVERLAP_SECONDS
            if screen.show(tail.poll(back)):
                settle_at = now + QUIET_SECONDS
            if ending and is_over:
                return ending
            if back == SWEEP_OVERLAP_SECONDS:
                sweep_at = now + SWEEP_SECONDS
        time.sleep(connection.wait)


def parse_since(text: str, now: float) -> float:
    """Unix seconds for `10m`, `2h`, or a date and time. A time without a zone is in this machine's time zone."""
    if found := re.fullmatch(r"([0-9]+)([smhd])", text):
        return now - int(found[1]) * SECONDS[found[2]]
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise UserError(
            f"SINCE={text!r} is no time: write how long ago (90s, 10m, 2h, 1d) or when (2026-11-23T14:00)"
        ) from None


def configure(parser: CommandLine) -> None:
    parser.option(
        "run", "which run (default: the active one, else the newest)", dest="run_id", default="", metavar="RUN"
    )
    parser.option("node", "only this machine: its id, or the first letters of it", default="", metavar="ID")
    parser.option("since", "only from then on: 10m, 2h, 2026-11-23T14:00", default="", metavar="WHEN")
    parser.add_argument("--no-follow", dest="follow", action="store_false", help="print what there is, and end")


def find_ending(
    aws: Aws, installation: Installation, bucket: ExplainedBucket, run_id: str, screen: Screen, ends: EndTeller
) -> Ending | None:
    """Note what is new about machines and attempts. Returns how the run ended, or None while it can go on."""
    screen.note_all(ends.tell())
    if ending := read_ending(bucket, run_id):
        return ending
    with explained("the machines of the run"):
        autoscaling = aws.client("autoscaling")
        group = fleet.wanted_group(fleet.read_groups(autoscaling, installation.groups), run_id)
        machines = fleet.machines(aws.client("ec2"), installation.name, run_id)
        billing = [machine for machine in machines if machine.is_billing]
        for machine in billing:
            screen.note(f"machine {machine.id}: {machine.type} in {machine.zone}, {machine.market}")
        if not billing and (group is None or not group.desired):
            reason = bucket.read_json(run_key(run_id, "guard.json")).get("reason") or "its group is scaled to zero"
            return Ending("stopped", printable(str(reason)), max((machine.ended for machine in machines), default=0.0))
        if not billing:
            screen.note("no machine yet: AWS is looking for one")
        if group and len(billing) < group.desired:
            for refusal in fleet.why_no_machine(autoscaling, group, launched_at(bucket, run_id)):
                screen.note(f"{'too few machines' if billing else 'no machine'}: {refusal}")
    return None


def say_ending(run_id: str, ending: Ending) -> None:
    styles = {"done": "green", "failed": "red", "stopped": "yellow"}
    display(Text.assemble(f"\nrun {run_id} ", (ending.how, styles[ending.how]), f": {ending.message}"))
    if ending.how == "done":
        next_commands(("make report", "result and curves"), ("make pull", "copy them here"),
                      ("make destroy", "remove what bills; the data stays"))  # fmt: skip
    else:
        next_commands((f"make launch RUN={run_id}", "continue from the newest checkpoint"),
                      ("make status", "what was spent, and why it stopped"))  # fmt: skip


def run(aws: Aws, installation: Installation, options: argparse.Namespace) -> int:
    bucket = need_bucket(aws, installation)
    run_id = choose_run(bucket, options.run_id, active_run(aws, installation))
    spec = read_spec(bucket, run_id)
    began = spec.created - OLD_SECONDS if spec else 0.0
    since = parse_since(options.since, time.time()) if options.since else began
    node = choose_node(options.node, machines_of(aws, installation, bucket, run_id)) if options.node else ""
    tail = Tail(aws.client("logs"), installation.log_group, run_id, since, node)
    nodes = int(spec.nodes) if spec else 1
    screen = Screen(is_team=nodes > 1 and not node)
    ends = EndTeller(bucket, run_id, nodes)
    if not options.follow:
        screen.show(tail.poll())
        screen.note_all(ends.tell())
        return ExitCode.DONE
    screen.note(f"run {run_id} (Ctrl-C leaves the run alone)")
    try:
        ending = follow(tail, screen, lambda: find_ending(aws, installation, bucket, run_id, screen, ends))
    except KeyboardInterrupt:
        next_commands(("make logs", "follow again"), ("make status", "step, ETA, dollars"), ("make stop", "stop it"))
        return ExitCode.DONE
    kept = machine_stays_until(ending, spec, spec.deadline if spec else 0.0)
    if kept > time.time():
        screen.note(f"a machine of the run is kept until {weekday_time(kept)}: make shell opens it, make stop ends it")
    screen.note_all(ends.tell(is_over=not kept))
    say_ending(run_id, ending)
    return ExitCode.DONE
