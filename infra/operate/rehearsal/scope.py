"""What a rehearsal is: an installation of its own, two small runs, and the most that they may cost and take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from infra.config import PREPARE_DISK_GIB, PREPARE_PREFIX, Installation
from infra.guard.rules import SHUTDOWN_SECONDS, TICK_SECONDS
from infra.operate.planning.options import Request
from infra.operate.planning.prices import Prices
from trainer.contract import UserError

SUFFIX = "-rehearsal"
NAME_LETTERS = 24  # the rule of `name` in infra.config
REHEARSAL_USD = 0.50
# aws.amazon.com/fis/pricing: $0.10 for each minute of an action, and a notice comes two minutes before the end.
NOTICE_USD = 0.30
OTHER_USD = 0.02  # the image's hours in the registry, requests, log lines and alarms of less than an hour
PREPARE_USD = 0.06  # the budget of the preparation: ten minutes of the dearest CPU type at its list price
MACHINE_MINUTES = 25.0  # from the first launch until every machine must be gone
NOTICE_MINUTES = 10.0  # so much longer with a notice, after which another machine boots
LEAST_MINUTES = 20.0  # that the budget must pay for at the spot price: two boots and the training between them
TRAIN_RUN = "rehearsal"
PREPARE_RUN = f"{PREPARE_PREFIX}rehearsal"
# The trainer ships what it measured half a minute after a save. A save must not come first, else a machine that is lost
# leaves no step behind that the next one does again.
SAVE_EVERY_SECONDS = 40
# So long that no GPU finishes them within the deadline; without validations, since each ends with a save.
EPOCHS = 100_000


def rehearsal_of(installation: Installation) -> Installation:
    """The installation that is rehearsed, under another name and with a bucket that AWS names."""
    name = installation.name + SUFFIX
    if len(name) > NAME_LETTERS:  # two long names may begin alike
        mark = sha256(installation.name.encode()).hexdigest()[:4]
        name = f"{installation.name[: NAME_LETTERS - len(SUFFIX) - 5]}-{mark}{SUFFIX}"
    return replace(installation, name=name, bucket_name="", market="spot")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The limits of one rehearsal. `usd_per_hour` are list prices with disk and address, by instance type."""

    installation: Installation
    types: tuple[str, ...]  # of the training
    usd_per_hour: Mapping[str, float]
    has_notice: bool = False  # a second interruption, with AWS's notice of two minutes

    @property
    def minutes(self) -> float:
        return MACHINE_MINUTES + (NOTICE_MINUTES if self.has_notice else 0.0)

    @property
    def train_usd(self) -> float:
        """The training's budget: what the rest leaves of REHEARSAL_USD."""
        rest = PREPARE_USD + late_usd(self._dearest_cpu) + late_usd(self._dearest_gpu) + OTHER_USD
        return math.floor(100 * min(REHEARSAL_USD - rest, self._dearest_gpu * self.minutes / 60)) / 100

    @property
    def most_usd(self) -> float:
        """The budgets, what the guard may find out too late, and the notice."""
        budgets = PREPARE_USD + self.train_usd
        rest = late_usd(self._dearest_cpu) + late_usd(self._dearest_gpu) + OTHER_USD
        return budgets + rest + (NOTICE_USD if self.has_notice else 0.0)

    @property
    def _dearest_gpu(self) -> float:
        return max(self.usd_per_hour[type] for type in self.types)

    @property
    def _dearest_cpu(self) -> float:
        return max(self.usd_per_hour[type] for type in self.installation.prepare_instance_types.split(","))

    def preparation(self, store: str, hours: float) -> Request:
        arguments = ("--data", "digits", "--store", store, "--train-sides", "32", "--val-sides", "32")
        return Request(
            kind="prepare", data="digits", arguments=arguments, run_id=PREPARE_RUN, hours=hours, budget_usd=PREPARE_USD,
            anyway=True,
        )  # fmt: skip

    def training(self, data: str, hours: float) -> Request:
        """`data` is the prepared digits; "" for those that come with the image."""
        options = {"epochs": EPOCHS, "val-every-epochs": EPOCHS, "checkpoint.every-seconds": SAVE_EVERY_SECONDS}
        arguments = tuple(word for name, value in options.items() for word in (f"--{name}", str(value)))
        return Request(
            recipe="digits", data=data, arguments=arguments, run_id=TRAIN_RUN, types=self.types, hours=hours,
            budget_usd=self.train_usd, anyway=True,
        )  # fmt: skip


def late_usd(usd_per_hour: float) -> float:
    """What a run may cost beyond its budget: one period of the guard and one shutdown."""
    return (TICK_SECONDS + SHUTDOWN_SECONDS) / 3600 * usd_per_hour


def make_scope(installation: Installation, types: tuple[str, ...], prices: Prices, *, has_notice: bool) -> Scope:
    """Without `types`, the one whose spot price is the lowest now. Raises UserError if $0.50 are not enough."""
    gpus, expected = tuple(installation.instance_types.split(",")), prices.expected("spot")
    chosen = types or (min(gpus, key=lambda type: expected[type]),)
    gpu_extras = prices.extras_usd_per_hour(int(installation.disk_gib))
    cpus = installation.prepare_instance_types.split(",")
    listed = {type: prices.on_demand[type] + gpu_extras for type in chosen}
    listed |= {type: prices.on_demand[type] + prices.extras_usd_per_hour(PREPARE_DISK_GIB) for type in cpus}
    scope = Scope(installation=installation, types=chosen, usd_per_hour=listed, has_notice=has_notice)
    hourly = max(expected[type] for type in chosen) + gpu_extras
    if scope.train_usd < hourly * LEAST_MINUTES / 60:
        raise UserError(
            f"TYPES={','.join(chosen)} costs ${hourly:.2f} an hour on the spot market, and the ${scope.train_usd:.2f} "
            f"that are left for it must pay for {LEAST_MINUTES:.0f} minutes: name a smaller type, for example "
            f"TYPES={gpus[0]}"
        )
    return scope
