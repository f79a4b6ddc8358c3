"""A machine and the trainer on it, after `infra/boot` and DESIGN's table of exit codes; what goes wrong with them.

Waits are those of infra/boot/lib.sh. The trainer is a clock that counts steps: what it computes does not matter here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random

from tests.simulate import team
from tests.simulate.clock import Clock
from tests.simulate.cloud import Cloud, Instance
from tests.simulate.training import Training
from tests.simulate.trouble import OFF, RECLAIMED, YOUNG
from trainer.contract import attempt_key, run_key

HEARTBEAT_SECONDS = 30.0
SAVE_SECONDS = 45.0
STOP_SECONDS = 150.0  # before the deadline: lib.sh
CRASH_SECONDS = 10.0
STEPS_PER_SECOND = {"g6.xlarge": 0.4, "g5.xlarge": 0.8, "g6e.xlarge": 1.1}
CRASHES = 3  # and then, without a newer checkpoint, the run has failed


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
    speed: float = 0.0  # steps per second
    sign: float = 0.0  # when it first wrote to the store; 0: never
    silent: float = 0.0  # since when it writes nothing more; 0: it does
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
        if self.is_used_up():
            self.fail("4 crashes")
        elif self.training.finished or self.training.failed:
            self.leave()
        elif self.training.has_head and self.training.beating is not self:
            if self.training.nodes > 1:
                self.life += 1
                team.join(self)
            else:
                self.soon(60, self.start)  # exit code 76: another trainer holds the run
        else:
            self.life += 1
            self.soon(self.random.uniform(5, 20), self.claim)

    def is_used_up(self) -> bool:
        """Counts a start, and says whether there were too many without a newer checkpoint."""
        if self.training.checkpoint != self.newest:
            self.newest, self.starts = self.training.checkpoint, 0
        self.starts += 1
        return self.starts > CRASHES + 1

    # The trainer.

    def claim(self) -> None:
        training, now = self.training, self.clock.now
        if training.trouble.refuses:
            self.fail("the recipe has no such option")
            return
        if training.nodes > 1 and not team.gather(self):
            return
        team.give_sign(self)
        self.beats_from = now
        training.beating = self
        self.begin_attempt()

    def begin_attempt(self) -> None:
        training = self.training
        training.attempts += 1
        self.attempt = training.attempts
        self.cloud.write(attempt_key(training.run_id, self.attempt), b"{}")
        self.first, self.began, self.stands, self.is_mute = training.committed, 0.0, 0.0, False
        for one in training.team:
            one.attempt = self.attempt
            one.rest()
        self.soon(self.random.uniform(30, 240), self.train)  # staging, compiling

    def written(self, at: float) -> float:
        """When S3 got what was to be written then, if it failed at that moment."""
        return next((start for start, end in self.cloud.weather.no_store if start <= at < end), at)

    def rest(self) -> None:
        """From now on it computes nothing."""
        self.idle = self.idle or self.clock.now

    def train(self) -> None:
        training, trouble = self.training, self.training.trouble
        self.began = self.clock.now
        together = [one for one in training.team if one.is_alive] or [self]
        for one in together:
            one.idle = 0.0
        speed = self.speed = sum(STEPS_PER_SECOND[one.instance.type] for one in together)
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
        return min(self.training.total, self.first + int(seconds * self.speed))

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
        body = {"phase": phase, "step": self.step, "progress": self.step, "attempt": self.attempt}
        if self.training.nodes > 1:
            body["nodes"] = len(self.training.team)
        return json.dumps(body).encode(), self.written(at)

    def mute(self) -> None:
        """The last heartbeat stays in the store."""
        if self.training.beating is self:
            self.training.last_beat = self.beat()
            self.training.beating = None

    # Its ends.

    def hang(self) -> None:
        if self.stands:
            return
        kind, trouble = self.random.random(), self.training.trouble
        if self.training.nodes > 1 and kind < trouble.frozen_share and team.freeze_member(self):
            return
        self.stands = self.clock.now
        for one in {self, *self.training.team}:
            one.rest()
        if kind < trouble.mute_share:
            self.silence()
            self.mute()
        self.is_frozen |= kind < trouble.frozen_share
        if kind < max(trouble.mute_share, trouble.frozen_share):
            team.part(self, was_head=True)

    def silence(self) -> None:
        self.silent = self.clock.now
        self.rest()

    def crash(self) -> None:
        if self.stands:
            return
        if self.training.nodes > 1 and not self.is_used_up():
            team.reform(self, is_planned=False)
            return
        self.lose()
        self.life_over()
        self.soon(CRASH_SECONDS, self.start)

    def lose(self) -> None:
        if self.began:
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
        team.send_home(self.training, self)

    def end(self, then: Callable[[], None]) -> None:
        """Exit code 75. Told to stop, it saves, where it still can, and is gone within 100 s."""
        if self.began and not self.stands:
            self.commit()
        self.lose()
        was_head = self.training.beating is self
        self.life_over()
        team.part(self, was_head=was_head, is_planned=True)
        self.soon(self.random.uniform(5, 20) if not self.stands else 100.0, then)

    def fail(self, message: str) -> None:
        if self.cloud.is_store_up:
            self.training.failed = self.clock.now
            body = {"attempt": self.training.attempts, "message": message}
            self.cloud.write(run_key(self.training.run_id, "failed.json"), json.dumps(body).encode())
        self.life_over()
        self.leave()
        team.send_home(self.training, self)

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
        self.lose()
        was_head = self.training.beating is self
        self.mute()
        team.part(self, was_head=was_head)
