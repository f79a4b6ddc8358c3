"""One run in one seed's world: the real `start` and the real guard on the simulated cloud; and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from random import Random
from typing import Any

from infra.config import Installation
from infra.guard import Guard, GuardSettings
from infra.guard.rules import BOOT_SECONDS, OVERDUE_SECONDS, SHUTDOWN_SECONDS, STALL_SECONDS, TICK_SECONDS
from infra.operate.planning.start import Place, start_run
from infra.run.spec import Spec
from tests.simulate.clients import clients
from tests.simulate.clock import Clock
from tests.simulate.cloud import FORGET_SECONDS, ON_DEMAND_USD, ZONES, Cloud, Instance, Weather
from tests.simulate.judge import most_at_once, were_in_vain
from tests.simulate.machine import Machine
from tests.simulate.training import Training, publish
from tests.simulate.trouble import YOUNG, Trouble
from trainer.contract import UserError

BEGAN = 1_800_000_000.0
INSTALLATION = Installation()
RUN = "run-1"
OUTER_GUARDS = ("deadline-timer", "schedule", "exit-path", "guard")
LATE_SECONDS = 300.0  # past the deadline no machine may be alive for longer
IDLE_SECONDS = 1200.0  # nor one that computes nothing: 15 minutes of boot, 10 without progress
ROUNDING_USD = 1e-9  # of sums of floats
PATIENCE_SECONDS = 6 * 3600.0  # past the deadline: machines that still run then run for ever


@dataclass(frozen=True)
class Result:
    seed: int
    nodes: int
    hours: float  # from the launch to the end
    usd: float
    budget_usd: float
    tallied_usd: float  # what the guard's tally says
    machines: int
    steps: int
    lost_steps: int
    ending: str
    wrong: tuple[str, ...]
    events: tuple[str, ...] = ()


class LaptopDiedError(BaseException):
    """In the middle of a launch."""


class Laptop:
    """The operator's clients, which after so many calls are no more. Between two calls others may act."""

    def __init__(self, client: Callable[[str], Any], calls: int, between: Callable[[], None]):
        self.client, self.calls, self.between = client, calls, between

    def __call__(self, service: str) -> Any:
        laptop, real = self, self.client(service)

        class Client:
            def __getattr__(self, name: str) -> Any:
                if name == "exceptions":
                    return real.exceptions
                if laptop.calls <= 0:
                    raise LaptopDiedError
                laptop.calls -= 1
                laptop.between()
                return getattr(real, name)

        return Client()


@dataclass
class World:
    seed: int
    without: Collection[str] = ()
    says: bool = False
    nodes: int = 0  # of the run; 0: 1, 2 or 4, by the seed
    clock: Clock = field(default_factory=lambda: Clock(BEGAN))
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = self.random = Random(self.seed)
        of_nodes = Random(f"nodes {self.seed}")  # so that runs of one machine are the same whatever the others are
        self.nodes = self.nodes or of_nodes.choice((1, 1, 2, 4))
        speed = 0.4 * 3600  # steps per hour of the slowest type
        hours = random.choice((1, 2, 4))
        self.estimate_usd = 0.5 * hours * self.nodes
        self.spec = Spec(
            run_id=RUN, budget_usd=round(self.estimate_usd * random.choice((0.4, 1.0, 2.0, 4.0)), 2),
            hours=hours * random.choice((0.7, 2, 4)), created=BEGAN, deadline=0.0, prices=ON_DEMAND_USD,
            extras_usd_per_hour=0.0, on_demand_after_minutes=random.choice((0.0, 0.0, 20.0)),
            market=random.choice(("spot", "spot", "on-demand")), nodes=self.nodes,
        )  # fmt: skip
        self.horizon = BEGAN + (self.spec.hours + 3) * 3600
        self.weather = self.make_weather()
        trouble = Trouble(
            crashes_per_hour=random.choice((0, 0, 0.5)), hangs_per_hour=random.choice((0, 0, 0.3)),
            frozen_share=random.choice((0.0, 0.3)), boot_hangs=random.choice((0.0, 0.0, 0.1)),
            bug_at=random.choice((0, 0, 0, 0, 500)), hang_at=random.choice((0, 0, 0, 0, 300)),
            refuses=random.random() < 0.03, young=random.choice((*YOUNG, *[""] * 35)),
            young_share=random.choice((0.5, 1.0)), loner_share=of_nodes.choice((0.0, 0.0, 0.3, 1.0)),
        )  # fmt: skip
        self.training = Training(RUN, 0.0, int(hours * speed) * self.nodes, trouble, self.nodes)
        self.cloud = Cloud(self.clock, random, self.weather, INSTALLATION.groups, INSTALLATION.on_demand_group)
        self.client = clients(self.cloud)
        self.cloud.on_launch, self.cloud.on_terminate = self.launched, self.terminated
        publish(self.cloud, self.training)
        self.lives: dict[str, Machine] = {}
        self.place = Place(installation=INSTALLATION, bucket="store", scheduler_role="arn:aws:iam::1:role/stop")
        self.settings = GuardSettings(
            installation=INSTALLATION.name, bucket="store", topic="topic", groups=INSTALLATION.groups
        )
        self.guard = self.new_guard()
        self.deadline, self.looked, self.gap = 0.0, BEGAN, TICK_SECONDS
        self.wrong: set[str] = set()
        self.dead_launches, self.blind = 0, 0.0  # for so long a guard that remembers no budget lets machines boot
        self.rest = 0.0

    def make_weather(self) -> Weather:
        random, pools = self.random, [(type, zone) for type in ON_DEMAND_USD for zone in ZONES]
        is_scarce = random.random() < 0.3
        return Weather(
            droughts={pool: list(self.windows(3.0 if is_scarce else 0.3, 2.0)) for pool in pools},
            on_demand_droughts=list(self.windows(0.05, 0.5)),
            store_outages=list(self.windows(random.choice((0.0, 0.0, 0.3)), 0.3)),
            guard_outages=list(self.windows(random.choice((0.0, 0.0, 0.0, 0.2)), 0.5)),
            blackouts=[(start := BEGAN + random.uniform(0, 2 * 3600), start + 3600)] if random.random() < 0.1 else [],
            silences=[(at, at + 60) for at, _ in self.windows(random.choice((0.0, 0.0, 0.5)), 0.1)],
            throttled=random.choice((0.0, 0.01)),
            overlooked=random.choice((0.0, 0.01)),
            share={pool: [random.uniform(0.25, 0.7) for _ in range(6)] for pool in pools},
            reclaims_per_hour=random.choice((0.0, 0.1, 0.5, 2.0)),
            unannounced=0.2,
            is_rebalancing=random.random() < 0.2,
            is_sticky=random.random() < 0.1,
        )

    def windows(self, per_hour: float, mean_hours: float) -> Iterator[tuple[float, float]]:
        at = BEGAN
        while per_hour:
            at += self.random.expovariate(per_hour / 3600)
            end = at + self.random.expovariate(1 / mean_hours / 3600)
            if at > self.horizon:
                return
            yield at, end
            at = end

    # What happens.

    def launch(self) -> None:
        """The operator's command, on a laptop that may die in its middle, now or in the second try."""
        self.deadline = self.clock.now + self.spec.hours * 3600
        self.training.deadline = self.deadline
        spec = Spec(**vars(self.spec) | {"deadline": self.deadline})
        calls = self.random.randrange(1, 12) if self.dead_launches < 2 and self.random.random() < 0.15 else 999
        known = f"runs/{RUN}/spec.json" in self.cloud.objects
        try:
            if "schedule" in self.without:
                self.cloud.refuses_schedules = True
            laptop = Laptop(clients(self.cloud, is_operator=True), calls, self.look_meanwhile)
            start_run(laptop, self.place, spec, list(ON_DEMAND_USD), replaces="etag" if known else "")
        except LaptopDiedError:
            self.say(f"the laptop died after {calls} calls")
            self.dead_launches += 1
            self.clock.after(self.random.uniform(60, 3600), self.launch)
        except UserError as error:
            self.say(f"launch: {error}")
        except Exception as error:  # noqa: BLE001  # AWS refused it: the operator tries again
            self.say(f"launch: {error}")
            self.clock.after(60, self.launch)

    def launched(self, instance: Instance) -> None:
        self.say(f"{instance.id} {instance.type} {instance.zone} {instance.market}")
        machine = Machine(self.clock, self.random, self.cloud, instance, self.training, self.without)
        self.lives[instance.id] = machine
        machine.boot()
        if instance.market == "spot" and self.weather.reclaims_per_hour:
            seconds = self.random.expovariate(self.weather.reclaims_per_hour / 3600)
            is_announced = self.random.random() >= self.weather.unannounced
            self.clock.after(seconds, lambda: machine.reclaim(is_announced=is_announced))

    def terminated(self, instance: Instance) -> None:
        self.say(f"{instance.id} gone, step {self.lives[instance.id].step}, committed {self.training.committed}")
        self.lives[instance.id].gone()

    def new_guard(self) -> Guard:
        return Guard(self.client, self.settings, self.without)

    def look_meanwhile(self) -> None:
        if self.random.random() < 0.05:
            self.look()

    def tick(self) -> None:
        self.clock.after(TICK_SECONDS, self.tick)
        self.look()

    def look(self) -> None:
        now = self.clock.now
        if "guard" not in self.without:
            self.gap = max(self.gap, now - self.looked)
        self.watch(now)
        if "guard" in self.without or any(start <= now < end for start, end in self.weather.guard_outages):
            return
        if self.random.random() < 0.005:
            self.guard = self.new_guard()  # a cold start
            self.blind = self.blind if self.cloud.is_store_up else BOOT_SECONDS
        if not self.cloud.is_silent:
            self.looked = now
        desired = self.cloud.desired
        for problem in self.guard.tick(now):
            self.say(problem)
        if desired and not self.cloud.desired:
            self.say("the guard set the groups to 0")

    def watch(self, now: float) -> None:
        """What must never be."""
        for instance in self.cloud.instances:
            if instance.is_billing:
                machine = self.lives[instance.id]
                deadline = float(instance.tags["resnet-spot:deadline"])  # timer, schedule and guard may all be broken
                is_lost = machine.is_frozen and self.weather.is_sticky and self.looked < deadline + OVERDUE_SECONDS
                if now > deadline + LATE_SECONDS and not is_lost:
                    self.wrong.add("alive past the deadline")
                idle = now - machine.idle if machine.idle else 0.0
                most = IDLE_SECONDS + (STALL_SECONDS if machine in self.training.team else 0)  # it waits for others
                if idle > most + self.gap - TICK_SECONDS and self.is_store_steady(now):
                    self.wrong.add("idle")
        is_quiet = not self.cloud.desired and not any(i.is_billing for i in self.cloud.instances)
        self.rest = (self.rest or now) if is_quiet and self.cloud.instances else 0.0

    def is_store_steady(self, now: float) -> bool:
        return not any(start <= now < end + IDLE_SECONDS for start, end in self.weather.store_outages)

    def is_over(self) -> bool:
        """At rest for half an hour (the guard has settled by then), or running for ever."""
        is_settled = self.rest > 0 and self.clock.now - self.rest > 1800
        return is_settled or 0 < self.deadline < self.clock.now - PATIENCE_SECONDS

    def say(self, event: str) -> None:
        if self.says:
            self.told.append(f"{(self.clock.now - BEGAN) / 60:8.1f} min  {event}")

    # What came of it.

    def run(self) -> Result:
        with quiet() as printed:
            self.launch()
            self.clock.after(self.random.uniform(0, 60), self.tick)
            self.clock.run(self.is_over, self.horizon + 48 * 3600)
        if self.says:
            self.told += printed.getvalue().splitlines()
        now = self.clock.now
        usd = sum(instance.usd(now) for instance in self.cloud.instances)
        dearest = max((price for i in self.cloud.instances for _, price in i.prices), default=0.0)
        at_once = most_at_once(self.cloud.instances)
        bound = self.spec.budget_usd + dearest * at_once * (self.gap + self.blind + SHUTDOWN_SECONDS) / 3600
        if usd > bound:
            self.wrong.add("over budget")
        signs = {id: life.sign for id, life in self.lives.items()}
        vain = were_in_vain(self.cloud.instances, signs, self.gap, self.nodes)
        if self.gap < FORGET_SECONDS and any(self.is_store_steady(instance.launched) for instance in vain):
            self.wrong.add("replaced in vain")
        tally = self.guard.runs.get(RUN)
        tallied = tally.spend.usd_at_most(now) if tally and tally.spend else 0.0
        last = max((instance.ended for instance in self.cloud.instances), default=0.0)
        was_seen = self.gap < FORGET_SECONDS and self.looked > last  # EC2 had forgotten nothing meanwhile
        if "guard" not in self.without and was_seen and tallied < usd - ROUNDING_USD and self.is_store_steady(now):
            self.wrong.add("undercounted")
        if "guard" not in self.without and was_seen and self.rest and tally and tally.spend and tally.spend.open:
            self.wrong.add("tally left open")
        ending = "finished" if self.training.finished else "failed" if self.training.failed else "stopped"
        if not self.cloud.instances:
            ending = "no machine"
        ends = [instance.ended or now for instance in self.cloud.instances]
        return Result(
            seed=self.seed, nodes=self.nodes,
            hours=(max(ends, default=BEGAN) - BEGAN) / 3600, usd=usd, budget_usd=self.spec.budget_usd,
            tallied_usd=tallied, machines=len(self.cloud.instances), steps=self.training.committed,
            lost_steps=self.training.lost, ending=ending, wrong=tuple(sorted(self.wrong)),
            events=tuple(self.told),
        )  # fmt: skip


@contextmanager
def quiet() -> Iterator[StringIO]:
    """The guard prints for Lambda's log."""
    printed = StringIO()
    with redirect_stdout(printed):
        yield printed


def simulate(seed: int, without: Collection[str] = (), *, says: bool = False, nodes: int = 0) -> Result:
    return World(seed, without, says, nodes).run()
