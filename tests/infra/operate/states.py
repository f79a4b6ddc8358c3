"""A run as the commands know it, made up: a training at work with everything that it tells of itself."""

from __future__ import annotations

import json
import math
from typing import Any

from infra.operate.documents import Beat, Checkpoint
from infra.operate.progress import Progress, Recent
from infra.operate.state import RunState
from infra.run import fleet
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from tests.infra.deployed import RUN

NOW = 1_800_000_000.0
SAMPLE = {
    "gpu/count": 1, "gpu/utilization": 0.97, "gpu/memory_used_bytes": 20.1e9, "gpu/memory_total_bytes": 24.0e9,
    "gpu/power_watts": 71.4, "gpu/temperature_celsius": 64,
}  # fmt: skip
GPU_TEXT = "97 % busy, 20.1 of 24.0 GB, 71 W, 64 °C"


def alert(kind: str, text: str, ago: float, level: str = "warning") -> dict[str, Any]:
    return {"id": f"1-{kind}", "time": NOW - ago, "step": 340, "kind": kind, "level": level, "text": text}


def heartbeat(*alerts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """heartbeat.json, with what the observer adds."""
    observed = {"sample": SAMPLE, "alerts": [*alerts]}
    return {"phase": "training", "step": 350, "progress": 350, "attempt": 1, "observed": observed} | fields


def metrics(seconds: int = 180, wait: float = 0.02) -> list[dict[str, float]]:
    """Rows of the last seconds, a step each."""
    return [
        {"step": 350 - age, "time": NOW - age, "train/epoch": (350 - age) / 100,
         "train/loss": 2 + math.exp(-2 + age / 99), "train/top1": 0.5, "speed/images_per_second": 250.0 - age % 7,
         "speed/data_wait_fraction": wait}
        for age in range(seconds, 0, -1)
    ]  # fmt: skip


def samples(seconds: int = 180) -> list[dict[str, float]]:
    return [{"step": 340, "time": NOW - age, **SAMPLE, "gpu/utilization": 0.97 - age % 30 / 100}
            for age in range(seconds, 0, -10)]  # fmt: skip


def running(*alerts: dict[str, Any], now: float = NOW, wait: float = 0.02, **fields: Any) -> RunState:
    """The state, `now` seconds after all of it was written."""
    machine = fleet.FleetMachine(
        id="i-0123456789abcdef0", type="g6.xlarge", zone="us-east-1b", market="spot", state="running",
        launched=NOW - 7200,
    )  # fmt: skip
    beat = Beat.from_json(json.loads(json.dumps(heartbeat(*alerts))))
    progress = Progress(
        heartbeat=beat, heartbeat_at=NOW, step=350, total_steps=1000, images_per_second=250.0, global_batch_size=256,
        train_top1=0.5, val_top1=0.625, recent=Recent.of(metrics(wait=wait), samples()),
        best_top1=0.63, checkpoint=Checkpoint(
            step=350, attempt=1, time=NOW - 31, best_top1=0.63, best_step=200, validated=300, total_steps=1000
        ),
        attempts=({"attempt": 1, "started": NOW - 7000, "machine": {"type": "g6.xlarge"}},),
    )  # fmt: skip
    spent = Machine(id=machine.id, type="g6.xlarge", zone="us-east-1b", market="spot", launched=NOW - 7200,
                    usd_per_hour=0.4)  # fmt: skip
    spec = Spec(run_id=RUN, kind="train", recipe="rn50", budget_usd=10, hours=10, nodes=1, created=NOW - 7200,
                deadline=NOW + 28800, prices={"g6.xlarge": 0.8})  # fmt: skip
    made: dict[str, Any] = {
        "now": now, "run_id": RUN, "spec": spec, "machines": (machine,), "refusals": (), "guard": {}, "ending": None,
        "group": fleet.Group(name="g", desired=1, maximum=1, run_id=RUN), "progress": progress,
        "spend": Spend(at=NOW, machines=(spent,)),
    }  # fmt: skip
    return RunState(**made | fields)
