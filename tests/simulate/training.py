"""What the store knows of a simulated run, and the objects in it that its trainer keeps writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulate.cloud import Cloud
from tests.simulate.trouble import Trouble
from trainer.contract import Lease, checkpoint_key, run_key

if TYPE_CHECKING:
    from tests.simulate.machine import Machine


@dataclass
class Training:
    run_id: str
    deadline: float
    total: int  # steps
    trouble: Trouble
    nodes: int = 1
    committed: int = 0
    attempts: int = 0
    lost: int = 0  # steps that were computed and not committed
    checkpoint: str = ""
    finished: float = 0.0
    failed: float = 0.0
    beating: Machine | None = None
    last_beat: tuple[bytes, float] | None = None
    team: list[Machine] = field(default_factory=list)  # of a run of several: those that train together

    @property
    def has_head(self) -> bool:
        return self.beating is not None and self.beating.is_alive


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
