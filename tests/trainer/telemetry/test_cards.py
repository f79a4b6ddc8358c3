"""Which GPUs count as those of a run, and the energy that they draw."""

from __future__ import annotations

import itertools

import pytest

from tests.trainer.telemetry.nvml import StandInNvml
from trainer.telemetry import gpu
from trainer.telemetry.energy import Energy
from trainer.telemetry.gpu import Gpus

KWH = 3.6e6  # joules
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
NOT_SUPPORTED = 3


@pytest.mark.parametrize(
    ("environ", "cards"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "2, 0"}, [2, 0]),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, [0]),  # CUDA takes the list up to what it does not know
        ({"CUDA_VISIBLE_DEVICES": "GPU-2-0000"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-,0"}, []),  # three begin with it
        ({"CUDA_VISIBLE_DEVICES": "MIG-1-0,MIG-1-9"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"PET_NPROC_PER_NODE": "2"}, [0, 1]),
        ({"TRAINER_GPUS": "0"}, []),  # --device cpu
        ({}, [0, 1, 2]),
    ],
)
def test_only_the_gpus_that_the_run_uses_count(
    nvml: StandInNvml, said: list[str], monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], cards: list[int]
) -> None:
    nvml.tell("cards 3", "power@0 1000", "power@1 10000", "power@2 100000")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    gpus = Gpus.open(said.append)
    assert (gpus is not None) == bool(cards)
    if gpus is not None:
        sample = gpus.sample()
        assert (sample["gpu/count"], sample["gpu/power_watts"]) == (len(cards), sum(10**card for card in cards))
        gpus.close()
    assert not said


def test_of_two_mig_instances_the_memory_is_theirs_and_the_power_that_of_their_card_once(
    nvml: StandInNvml, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1-0,MIG-1-1")
    nvml.tell(f"nvmlDeviceGetUtilizationRates {NOT_SUPPORTED}")
    gpus = Gpus.open(said.append)
    assert gpus is not None
    sample = gpus.sample()
    assert {name: sample[name] for name in ("gpu/count", "gpu/power_watts", "gpu/memory_total_bytes")} == {
        "gpu/count": 2.0, "gpu/power_watts": 70.0, "gpu/memory_total_bytes": 6e9,
    }  # fmt: skip
    assert "gpu/utilization" not in sample
    gpus.close()


def test_energy_is_what_the_cards_counted_and_else_the_power_over_time(
    nvml: StandInNvml, gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(100.0, 10.0)
    monkeypatch.setattr(gpu, "monotonic", lambda: next(clock))
    kwh = []
    for lines in (["energy 1000"], ["energy 4001000"], ["energy@0 9", "energy@1 9"], [f"{ENERGY} 3"], [f"{ENERGY} 3"]):
        nvml.tell(*lines)
        kwh.append(gpus.sample()["energy/kwh"] * KWH)
    assert kwh == pytest.approx([0, 8000, 9400, 10800, 12200])  # 140 W for 10 s are 1,400 J
    nvml.tell(f"{ENERGY} 3", "nvmlDeviceGetPowerUsage 3")
    assert "energy/kwh" not in gpus.sample()


def test_power_is_not_integrated_over_a_gap_nor_back_in_time() -> None:
    energy = Energy()
    times = (0.0, 10.0, 20.0, 500.0, 510.0, 505.0, 515.0)
    kwh = [energy.add(360.0 if at else 0.0, at) for at in times]  # 3,600 J in ten seconds, half of it in the first
    assert kwh == pytest.approx([0, 0.0005, 0.0015, 0.0015, 0.0025, 0.0025, 0.0035])


def test_power_that_nobody_could_read_for_a_while_counts_again_from_two_readings_on() -> None:
    energy = Energy()
    assert [energy.add(watts, 10.0 * number) for number, watts in enumerate((360.0, None, 360.0, 360.0))] == [
        0, 0, 0, pytest.approx(0.001)
    ]  # fmt: skip


def test_a_counter_of_joules_counts_over_any_gap_unless_it_goes_back_or_leaps() -> None:
    energy = Energy()
    readings = [(0.0, 0.0), (3600.0, KWH), (3610.0, 5.0), (3620.0, 1e12), (3630.0, 1e12 + KWH / 10)]
    assert [energy.add(None, at, joules) for at, joules in readings] == pytest.approx([0, 1, 1, 1, 1.1])
