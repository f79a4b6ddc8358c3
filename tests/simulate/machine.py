"""A machine and the trainer on it, after `infra/boot` and DESIGN's table of exit codes; what goes wrong with them.

Waits are those of infra/boot/lib.sh. The trainer is a clock that counts steps: what it computes does not matter here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random

from tests.simulate.clock import Clock
from tests.simulate.cloud import Cloud, Instance
from tests.simulate.trouble import OFF, RECLAIMED, YOUNG, Trouble
from trainer.contract import Lease, attempt_key, checkpoint_key, run_key

HEARTBEAT_SECONDS = 30.0
SAVE_SECONDS = 45.0
STOP_SECONDS = 150.0  # before the deadline: lib.sh
CRASH_SECONDS = 10.0
STEPS_PER_SECOND = {"g6.xlarge": 0.4, "g5.xlarge": 0.8, "g6e.xlarge": 1.1}
CRASHES = 3  # and then, without a newer checkpoint, the run has failed


@dataclass
class Training:
    """What the store knows of the run."""

    run_id: str
    deadline: float
    total: int  # steps
    trouble: Trouble
    committed: int = 0
    attempts: int = 0
    lost: int = 0  # steps that were computed and not committed
    checkpoint: str = ""
    finished: float = 0.0
    failed: float = 0.0
    beating: Machine | None = None
    last_beat: tuple[bytes, float] | None = None


@dataclass(eq=False)
class Machine:
    """One life of an instance."""

    clock: Clock
    random: Random
    cloud: Cloud
    instance: Instance
    training: Training
    without: Collection[str]
    life: int = 0  # counts the starts of the container, so that what was planned for an earlier one is void
    starts: int = 0  # without a newer checkpoint in between
    newest: str = ""
    attempt: int = 0
    first: int = 0  # the step that this life of the container began with
    began: float = 0.0  # when it came to training; 0: it is not
    beats_from: float = 0.0
    stands: float = 0.0  # since when it hangs
    idle: float = 0.0  # since when it computes nothing; 0: it does
    is_mute: bool = False
    is_frozen: bool = False
    is_leaving: bool = False

    @property
    def is_alive(self) -> bool:
        return self.instance.is_billing and not self.is_frozen

    def soon(self, seconds: float, what: Callable[[], None], *, life: bool = True) -> None:
        """Unless the machine is gone by then, or (life) another container runs."""
        planned = self.life

        def event() -> None:
            if self.is_alive and (not life or (planned == self.life and not self.is_leaving)):
                what()

        self.clock.after(seconds, event)

    # Boot.

    def boot(self) -> None:
        self.idle = self.clock.now
        trouble = self.training.trouble
        if trouble.young and self.random.random() < trouble.young_share:
            (least, most), reason = YOUNG[trouble.young]
            self.soon(self.random.uniform(least, most), lambda: self.cloud.terminate(self.instance, reason))
            return
        self.soon(self.random.uniform(15, 40), self.arm, life=False)

    def arm(self) -> None:
        """The deadline, first of all."""
        self.cloud.running(self.instance)
        deadline = float(self.instance.tags["resnet-spot:deadline"])
        if "deadline-timer" not in self.without:
            self.soon(deadline - STOP_SECONDS - self.clock.now, self.stop_at_deadline, life=False)
        if self.random.random() < self.training.trouble.boot_hangs:
            return
        self.soon(self.random.uniform(60, 300), self.start)

    def stop_at_deadline(self) -> None:
        self.end(then=lambda: self.leave("deadline-timer"))

    def start(self) -> None:
        """boot/run: is the run still wanted? Then the container."""
        if not self.cloud.is_store_up:
            self.soon(60, self.start)
            return
        if self.training.checkpoint != self.newest:
            self.newest, self.starts = self.training.checkpoint, 0
        self.starts += 1
        if self.starts > CRASHES + 1:
            self.fail("4 crashes")
        elif self.training.finished or self.training.failed:
            self.leave()
        elif (other := self.training.beating) and other is not self and other.is_alive:
            self.soon(60, self.start)  # exit code 76: another trainer holds the run
        else:
            self.life += 1
            self.soon(self.random.uniform(5, 20), self.claim)

    # The trainer.

    def claim(self) -> None:
        training, now = self.training, self.clock.now
        if training.trouble.refuses:
            self.fail("the recipe has no such option")
            return
        training.attempts += 1
        self.attempt = training.attempts
        self.cloud.write(attempt_key(training.run_id, self.attempt), b"{}")
        self.first, self.began, self.stands, self.is_mute = training.committed, 0.0, 0.0, False
        self.beats_from = now
        training.beating = self
        self.soon(self.random.uniform(30, 240), self.train)  # staging, compiling

    def train(self) -> None:
        training, trouble = self.training, self.training.trouble
        self.began, self.idle = self.clock.now, 0.0
        speed = STEPS_PER_SECOND[self.instance.type]
        self.soon((training.total - self.first) / speed, self.finish)
        self.soon(SAVE_SECONDS, self.save)
        for step, event in ((trouble.bug_at, self.crash), (trouble.hang_at, self.hang)):
            if step >= self.first and step:
                self.soon((step - self.first) / speed, event)
        for rate, event in ((trouble.crashes_per_hour, self.crash), (trouble.hangs_per_hour, self.hang)):
            if rate:
                self.soon(self.random.expovariate(rate / 3600), event)

    @property
    def step(self) -> int:
        if not self.began:
            return self.first
        seconds = (self.stands or self.clock.now) - self.began
        return min(self.training.total, self.first + int(seconds * STEPS_PER_SECOND[self.instance.type]))

    def save(self) -> None:
        if not self.stands:
            self.commit()
            self.soon(SAVE_SECONDS, self.save)

    def commit(self) -> None:
        """Waits for a store that fails: it is tried again at the next save."""
        if self.cloud.is_store_up and self.step > self.training.committed:
            self.training.committed = self.step
            self.training.checkpoint = f"manifest-{self.step}"

    def beat(self) -> tuple[bytes, float] | None:
        """heartbeat.json as it is in the store now."""
        phase = "training" if self.began else "starting"
        at = self.clock.now - (self.clock.now - self.beats_from) % HEARTBEAT_SECONDS
        at = next((start for start, end in self.cloud.weather.no_store if start <= at < end), at)
        body = f'{{"phase": "{phase}", "step": {self.step}, "progress": {self.step}, "attempt": {self.attempt}}}'
        return body.encode(), at

    def mute(self) -> None:
        """The last heartbeat stays in the store."""
        if self.training.beating is self:
            self.training.last_beat = self.beat()
            self.training.beating = None

    # Its ends.

    def hang(self) -> None:
        self.stands = self.idle = self.clock.now
        kind = self.random.random()
        if kind < self.training.trouble.mute_share:
            self.mute()
        if kind < self.training.trouble.frozen_share:
            self.is_frozen = True

    def crash(self) -> None:
        if not self.stands:
            self.lose()
            self.life_over()
            self.soon(CRASH_SECONDS, self.start)

    def lose(self) -> None:
        self.training.lost += max(0, self.step - self.training.committed)

    def life_over(self) -> None:
        self.mute()
        self.life += 1
        self.began, self.idle = 0.0, self.idle or self.clock.now

    def finish(self) -> None:
        if self.stands:
            return
        if not self.cloud.is_store_up:
            self.soon(30, self.finish)
            return
        self.commit()
        self.training.finished = self.clock.now
        self.cloud.write(run_key(self.training.run_id, "done.json"), b'{"attempt": 1}')
        self.life_over()
        self.soon(self.random.uniform(5, 60), self.leave)

    def end(self, then: Callable[[], None]) -> None:
        """Exit code 75. Told to stop, it saves, where it still can, and is gone within 100 s."""
        if self.began and not self.stands:
            self.commit()
        if self.began:
            self.lose()
        self.life_over()
        self.soon(self.random.uniform(5, 20) if not self.stands else 100.0, then)

    def fail(self, message: str) -> None:
        if self.cloud.is_store_up:
            self.training.failed = self.clock.now
            body = {"attempt": self.training.attempts, "message": message}
            self.cloud.write(run_key(self.training.run_id, "failed.json"), json.dumps(body).encode())
        self.life_over()
        self.leave()

    def leave(self, guard: str = "exit-path") -> None:
        """Nobody comes after this machine."""
        if guard in self.without:
            return
        self.is_leaving = True
        if not self.cloud.is_silent:
            group = self.cloud.groups[self.instance.tags["aws:autoscaling:groupName"]]
            group.shape["DesiredCapacity"] = 0
            self.cloud.reconcile(group)
        self.soon(self.random.uniform(10, 60), lambda: self.cloud.terminate(self.instance, OFF), life=False)

    def reclaim(self, *, is_announced: bool) -> None:
        """EC2 wants it back: two minutes' notice, and a replacement is on its way meanwhile."""
        if not self.instance.is_billing:
            return
        if is_announced and self.is_alive:
            self.cloud.give_up(self.instance)
            self.soon(self.random.uniform(1, 5), lambda: self.end(then=lambda: None), life=False)
            self.clock.after(120, lambda: self.cloud.terminate(self.instance, RECLAIMED))
        else:
            self.cloud.terminate(self.instance, RECLAIMED)

    def gone(self) -> None:
        """EC2 took it, or someone terminated it."""
        if self.began:
            self.lose()
        self.mute()


def publish(cloud: Cloud, training: Training) -> None:
    """The objects that a trainer keeps writing, as the store shows them at any time."""

    def heartbeat() -> tuple[bytes, float] | None:
        if training.beating and cloud.is_store_up:
            training.last_beat = training.beating.beat()
        return training.last_beat

    def lease() -> tuple[bytes, float] | None:
        if not training.checkpoint:
            return None
        return Lease(attempt=training.attempts, newest=training.checkpoint).to_json(), cloud.clock.now

    cloud.live[run_key(training.run_id, "heartbeat.json")] = heartbeat
    cloud.live[checkpoint_key(training.run_id, "HEAD.json")] = lease
