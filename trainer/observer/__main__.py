"""Watch one attempt: take a sample every ten seconds, judge it, tell what is wrong, and keep the report up to date.

The supervisor starts it, with the uploader's process id, and tells it on standard input how the attempt ended. Then, or
when the supervisor is gone, it hands over what it has and ends.

    python -m trainer.observer 4711
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.alerts.delivery import Delivery
from trainer.checkpoint.line import parse_row
from trainer.contract import Exit, Phase, RunEnv, run_key
from trainer.observer.facts import FACTS_SECONDS, StoreFacts
from trainer.observer.lifecycle import begun, best, budget_stage, ended, spent
from trainer.observer.link import Link
from trainer.observer.live_report import LiveReport
from trainer.observer.sensors import LostDeviceError, Sensor, open_gpus
from trainer.observer.telling import Telling
from trainer.process.channel import SOCKET_VARIABLE, attempt_dir, observer_socket, read_json, write_json
from trainer.process.counts import GPU_COUNT
from trainer.telemetry.health import Course, Moment, Observation, Surroundings, is_validation, judge_rows, judge_samples
from trainer.telemetry.machine import ThisMachine
from trainer.telemetry.metrics import Row
from trainer.telemetry.samples import SAMPLE_SECONDS, samples_key
from trainer.text import forgive_output, say

NICENESS = 15  # the trainer goes first, then the uploader
SEGMENT_SECONDS = 60.0  # how often samples go to the store; the newest one is in the heartbeat sooner
VALIDATIONS_KEPT, SAMPLES_KEPT, ROWS_WAITING = 100, 120, 5000
DELIVERY_SECONDS = 3.0  # for the last alert; the supervisor ends this process two seconds later
REACHED_SECONDS = 20.0  # how long the news of a resumed run waits for what it has lost
REACHED_RETRY_SECONDS = 5.0
SHORTEST_SPAN_SECONDS = 1.0  # between two samples
OWNED = (Phase.COMPILING, Phase.TRAINING, Phase.EVALUATING, Phase.SAVING)  # phases in which the trainer has the run


class Observer:
    """What is known of one attempt."""

    def __init__(self, env: RunEnv, uploader: int):
        self.env, self.attempt, self.folder = env, int(env.attempt), attempt_dir(env)
        self.link = Link(observer_socket(os.environ[SOCKET_VARIABLE]))
        self.telling = Telling(env.run_id, self.attempt, Delivery.open(os.environ, say))
        self.report = LiveReport(self.folder / "report", self.folder.parent / "segments", os.environ)
        gpus = int(os.environ.get(GPU_COUNT) or 0)
        self.surroundings = Surroundings(has_gpu=gpus > 0, cores=len(os.sched_getaffinity(0)))
        self.gpus = Sensor("gpus", open_gpus)
        self.machine = ThisMachine(
            Path(env.scratch_dir).absolute(),
            lambda: {"trainer": self.workers(), "uploader": [uploader], "observer": [os.getpid()]},
        )
        self.course = Course()  # of the rows of metrics
        self.validations: deque[Row] = deque(maxlen=VALIDATIONS_KEPT)  # the newest validations
        self.has_begun = False
        self.samples: deque[Moment] = deque(maxlen=SAMPLES_KEPT)
        self.waiting: deque[Row] = deque(maxlen=ROWS_WAITING)  # samples and alerts that are not handed over yet
        self.segments, self.sent_at = 0, time.monotonic()
        self.status: dict[str, Any] = {}
        self.moved_at = time.monotonic()
        self.facts: StoreFacts | None = None
        self.reached: Sensor | None = None
        self.cost: Sensor | None = None
        self.start: Row | None = None  # until it is told
        self.begun_at = 0.0
        self.stage = 0.0  # of the budget, told in this attempt
        self.has_news = False  # rows since the last report
        self.faults: set[str] = set()  # that were said

    def do_part(self, part: Callable[..., None], *given: Any) -> None:
        """Do a part of the work. One that fails is left out this time, which is said once for each kind of error."""
        try:
            part(*given)
        except Exception as error:  # noqa: BLE001  # a machine at its limits: the other parts, and later ones, may work
            if (kind := f"{part.__name__}: {type(error).__name__}") not in self.faults:
                self.faults.add(kind)
                say(f"the observer has left out a part of its work ({part.__name__}: {error!r}); training goes on")

    def workers(self) -> list[int]:
        with contextlib.suppress(OSError):
            return [int(path.name) for path in (self.folder / "pids").iterdir() if path.name.isdecimal()]
        return []

    def watch(self) -> dict[str, Any]:
        """Until the supervisor tells how the attempt ended, and returns that; {} if the supervisor is gone."""
        try:
            self.link.open()
        except OSError as error:
            say(f"the samples of this attempt are not stored: there is no way to the uploader ({error})")
        due = time.monotonic() + SAMPLE_SECONDS
        while (end := self.listen(due)) is None:
            self.look()
            due = max(due, time.monotonic()) + SAMPLE_SECONDS
        return end

    def listen(self, until: float) -> dict[str, Any] | None:
        """Hear what the uploader tells, until a time. Returns what the supervisor told meanwhile, if it did."""
        while (left := until - time.monotonic()) > 0:
            channel = self.link.channel
            ends = [0] if channel is None else [0, channel.connection.fileno()]
            ready = select.select(ends, [], [], left)[0]
            self.do_part(self.hear)
            if 0 in ready:
                line = os.read(0, 1 << 16)
                return dict(json.loads(line)) if line else {}
        return None

    def hear(self) -> None:
        """Rows and commits, as the uploader tells them."""
        for message, segment in self.link.heard():
            if "segment" in message:
                self.do_part(self.take_rows, segment)
                self.do_part(self.tell_lifecycle)
            elif message.get("is_best"):
                self.do_part(self.tell_best, message["committed"])

    def tell_best(self, step: int) -> None:
        self.tell(best(self.validations, step), step)

    def take_rows(self, segment: bytes) -> None:
        try:
            rows = [parse_row(line) for line in segment.splitlines()]
        except ValueError:  # no trainer of ours wrote it
            return
        if not rows:
            return
        self.has_news = True
        for row in rows:
            if row.get("event") == "start":
                self.start, self.begun_at, self.has_begun = row, time.monotonic(), True
                self.facts = StoreFacts(self.env.store, self.env.run_id, self.attempt, row["origin"])
                self.reached = Sensor("reached", self.facts.find_reached, REACHED_RETRY_SECONDS)
                self.cost = Sensor("cost", self.facts.open_cost, FACTS_SECONDS)
        self.validations.extend(filter(is_validation, rows))
        before, self.course = self.course, self.course.plus(rows)
        for found in judge_rows(before, rows, self.surroundings, self.samples[-1] if self.samples else None):
            self.tell(found, rows[-1]["step"])

    def look(self) -> None:
        """Take a sample, judge it, tell, hand over what is due, and make a report where that is due."""
        for part in (
            self.take_sample, self.judge, self.tell_faults, self.tell_lifecycle, self.hand_over, self.renew_report,
            self.write_observed,
        ):  # fmt: skip
            self.do_part(part)

    def judge(self) -> None:
        for found in judge_samples(list(self.samples)):
            self.tell(found, self.step)

    def tell_faults(self) -> None:
        """What cannot be measured, or read of the store, once; and a GPU that is lost."""
        has_budget = self.facts is not None and self.facts.budget_usd > 0
        cost = "what the run has cost" if has_budget else "whether the run has a budget"
        named = ((self.gpus, "what the GPU does"), (self.reached, "how many steps are done again"), (self.cost, cost))
        for sensor, what in named:
            if sensor is not None and isinstance(sensor.fault, LostDeviceError):
                self.tell(Observation("gpu-lost", "error", str(sensor.fault)), self.step)
            elif sensor is not None and sensor.fault is not None and what not in self.faults:
                self.faults.add(what)
                say(f"{what} is not known for now: {sensor.fault!r}; training goes on")

    @property
    def step(self) -> int:
        return int(self.status.get("step", 0))

    def take_sample(self) -> None:
        now = time.monotonic()
        if self.samples and now < self.samples[-1].at + SHORTEST_SPAN_SECONDS:
            return  # over less time, rates mean nothing
        status = read_status(self.folder)
        if status != self.status:
            self.status, self.moved_at = status, now
        values = self.machine.sample() | {"heartbeat/age_seconds": now - self.moved_at}
        for sensor in (self.gpus, self.reached, self.cost):
            values |= sensor.newest() if sensor is not None else {}
        values = {name: round(float(value), 6) for name, value in values.items() if math.isfinite(value)}
        phase = str(status.get("phase", Phase.STARTING))
        self.samples.append(Moment(now, phase, self.step, now - self.moved_at, values))
        self.waiting.append({"step": self.step, "time": round(time.time(), 3), "phase": phase} | values)

    def tell(self, found: Observation | None, step: int) -> None:
        if found is not None and (rows := self.telling.tell(found, step)):
            self.waiting.extend(rows)
            self.sent_at = -math.inf  # soon

    def tell_lifecycle(self) -> None:
        """How the attempt began, once that is known, and what the budget has come to."""
        if self.start is None and self.facts is None:
            return
        reached = self.facts.reached if self.facts is not None else None
        if self.start is not None:
            if self.start["origin"] and reached is None and time.monotonic() < self.begun_at + REACHED_SECONDS:
                return
            self.tell(begun(self.start, reached), self.start["step"])
            self.start = None
        usd = self.cost.newest().get("cost/usd") if self.cost is not None else None
        if usd is not None and self.facts is not None:
            stage = budget_stage(usd, self.facts.budget_usd)
            if stage > max(self.stage, budget_stage(self.facts.told_usd, self.facts.budget_usd)):
                self.tell(spent(stage, usd, self.facts.budget_usd), self.step)
                self.stage = stage

    def hand_over(self) -> None:
        """Samples to the uploader once a minute. What it does not take waits.

        Nothing of an attempt that has not begun yet, and may never have the run.
        """
        if self.status.get("phase") not in OWNED:
            return
        if self.waiting and time.monotonic() >= self.sent_at + SEGMENT_SECONDS:
            body = "".join(json.dumps(row) + "\n" for row in self.waiting).encode()
            if self.link.put(samples_key(self.env.run_id, self.attempt, self.segments + 1), body):
                self.segments, self.sent_at = self.segments + 1, time.monotonic()
                self.waiting.clear()

    def renew_report(self) -> None:
        """Hand a report over that is done, and begin another where it is due. Likewise."""
        if self.status.get("phase") not in OWNED:
            return
        for name, content in self.report.finished().items():
            self.link.put(run_key(self.env.run_id, f"report/{name}"), content)
        if self.report.start_if_due(has_news=self.has_news):
            self.has_news = False

    def write_observed(self) -> None:
        """`observed.json`, which the uploader adds to the heartbeat."""
        newest: dict[str, float] = {}
        if self.samples:
            age = time.monotonic() - self.samples[-1].at
            newest = {"time": round(time.time() - age, 3)} | dict(self.samples[-1].values)
        with contextlib.suppress(OSError):  # a full disk, or the folder is not there yet
            write_json(self.folder / "observed.json", self.telling.observed(newest))

    def finish(self, end: dict[str, Any]) -> None:
        """Tell how the attempt ended, and hand over what is left."""
        close = self.report.forget if end.get("code") == Exit.FINISHED else self.report.kill
        for part in (close, self.take_sample, self.hear, self.tell_lifecycle):
            self.do_part(part)
        self.do_part(self.tell_end, end)
        self.do_part(self.write_observed)
        self.do_part(self.hand_over_rest)
        self.link.close()
        if self.telling.delivery is not None:
            self.telling.delivery.close(DELIVERY_SECONDS)

    def tell_end(self, end: dict[str, Any]) -> None:
        self.tell(ended(end, self.validations, has_begun=self.has_begun), self.step)

    def hand_over_rest(self) -> None:
        self.sent_at = -math.inf
        self.hand_over()


def read_status(folder: Path) -> dict[str, Any]:
    """The trainer's status file; {} while there is none."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(folder / "status.json") or {}
    return {}


def main() -> None:
    os.nice(NICENESS)
    observer = Observer(RunEnv.from_environ(os.environ), int(sys.argv[1]))
    observer.finish(observer.watch())
    os._exit(0)  # a thread may hang in a driver, and nobody waits for it


if __name__ == "__main__":
    forgive_output()
    main()
