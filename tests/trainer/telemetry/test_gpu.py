"""What is recorded of GPUs, with NVML's calls answered by a shared library of our own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.telemetry.nvml import VARIABLE, StandInNvml
from trainer.telemetry import gpu
from trainer.telemetry.gpu import GpuLostError, Gpus

OF_TWO_HEALTHY_CARDS = {
    "gpu/count": 2.0,
    "gpu/utilization": 0.9,
    "gpu/power_watts": 140.0,
    "gpu/temperature_celsius": 60.0,
    "gpu/sm_clock_mhz": 1800.0,
    "gpu/memory_clock_mhz": 6250.0,
    "gpu/pcie_received_bytes_per_second": 614400.0,
    "gpu/pcie_sent_bytes_per_second": 40960.0,
    "gpu/throttle_reasons": 0.0,
    "gpu/ecc_corrected": 0.0,
    "gpu/ecc_uncorrected": 0.0,
    "gpu/memory_used_bytes": 6e9,
    "gpu/memory_total_bytes": 24e9,
    "gpu/xid_count": 0.0,
    "energy/kwh": 0.0,
}
CALLS = {  # and what is absent where the card or the driver does not know it
    "nvmlDeviceGetUtilizationRates": {"gpu/utilization"},
    "nvmlDeviceGetPowerUsage": {"gpu/power_watts"},
    "nvmlDeviceGetTemperatureV": {"gpu/temperature_celsius"},
    "nvmlDeviceGetClockInfo": {"gpu/sm_clock_mhz", "gpu/memory_clock_mhz"},
    "nvmlDeviceGetPcieThroughput": {"gpu/pcie_received_bytes_per_second", "gpu/pcie_sent_bytes_per_second"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"gpu/throttle_reasons"},
    "nvmlDeviceGetTotalEccErrors": {"gpu/ecc_corrected", "gpu/ecc_uncorrected"},
    "nvmlDeviceGetMemoryInfo": {"gpu/memory_used_bytes", "gpu/memory_total_bytes"},
}
NOT_SUPPORTED, NO_PERMISSION, NO_DRIVER, TIMEOUT, UNKNOWN_FUNCTION = 3, 4, 9, 10, 13
LOST, RESET_REQUIRED, VERSION_MISMATCH, UNKNOWN = 15, 16, 18, 999


def test_a_sample_has_what_both_cards_do(gpus: Gpus, said: list[str]) -> None:
    assert gpus.sample() == pytest.approx(OF_TWO_HEALTHY_CARDS)
    assert not said


def test_of_several_cards_the_sum_the_mean_the_hottest_the_slowest_and_the_fullest_count(
    nvml: StandInNvml, gpus: Gpus
) -> None:
    nvml.tell(
        "utilization@1 30", "power@1 300000", "temperature@1 85", "sm_clock@0 210", "received@1 100", "used@1 90000000",
        "memory@1 100000000", "reasons@0 4", "reasons@1 64", "corrected@0 3", "corrected@1 4", "uncorrected@1 1",
    )  # fmt: skip
    assert gpus.sample() == pytest.approx(
        OF_TWO_HEALTHY_CARDS
        | {
            "gpu/utilization": 0.6, "gpu/power_watts": 370.0, "gpu/temperature_celsius": 85.0,
            "gpu/sm_clock_mhz": 210.0,
            "gpu/pcie_received_bytes_per_second": 409600.0, "gpu/memory_used_bytes": 9e7, "gpu/memory_total_bytes": 1e8,
            "gpu/throttle_reasons": 68.0, "gpu/ecc_corrected": 7.0, "gpu/ecc_uncorrected": 1.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_what_one_card_does_not_know_is_absent_and_all_else_is_there(nvml: StandInNvml, gpus: Gpus, call: str) -> None:
    for error in (NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, UNKNOWN):
        nvml.tell(f"{call}@1 {error}")
        assert gpus.sample().keys() == OF_TWO_HEALTHY_CARDS.keys() - CALLS[call]
    nvml.tell()
    assert gpus.sample().keys() == OF_TWO_HEALTHY_CARDS.keys()


def test_a_number_that_cannot_be_true_is_absent(nvml: StandInNvml, gpus: Gpus) -> None:
    nvml.tell(
        "utilization@0 255", "power@1 4294967295", "temperature -300", "sm_clock 4294967295", "used@0 99000000000"
    )
    impossible = {"gpu/utilization", "gpu/power_watts", "gpu/temperature_celsius", "gpu/sm_clock_mhz"}
    memory = CALLS["nvmlDeviceGetMemoryInfo"]
    assert gpus.sample().keys() == OF_TWO_HEALTHY_CARDS.keys() - impossible - memory


def test_an_older_driver_is_asked_by_the_older_calls(nvml: StandInNvml, gpus: Gpus) -> None:
    new = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons")
    nvml.tell(*(f"{call} {UNKNOWN_FUNCTION}" for call in new), "old_reasons 32")
    sample = gpus.sample()
    assert (sample["gpu/temperature_celsius"], sample["gpu/throttle_reasons"]) == (59.0, 32.0)


@pytest.mark.parametrize(("code", "words"), [(LOST, "GPU is lost"), (RESET_REQUIRED, "GPU requires restart")])
def test_a_lost_gpu_is_an_error_at_each_sample_until_it_answers_again(
    nvml: StandInNvml, gpus: Gpus, said: list[str], code: int, words: str
) -> None:
    nvml.tell(f"all@1 {code}")
    for _ in range(2):
        with pytest.raises(GpuLostError, match=rf"GPU 1 \(NVIDIA Stand-in\): NVML says '{words}'$"):
            gpus.sample()
    nvml.tell()
    assert gpus.sample().keys() == OF_TWO_HEALTHY_CARDS.keys()
    assert not said


def test_a_gpu_that_is_lost_before_the_start_is_an_error_of_the_first_sample(
    nvml: StandInNvml, said: list[str]
) -> None:
    nvml.tell(f"nvmlDeviceGetHandleByIndex_v2@1 {LOST}")
    gpus = Gpus.open(said.append)
    assert gpus is not None
    with pytest.raises(GpuLostError, match="GPU 1: NVML says 'GPU is lost'"):
        gpus.sample()
    nvml.tell()
    assert gpus.sample()["gpu/count"] == 2
    gpus.close()


def test_xids_are_counted_and_each_number_is_said_once(nvml: StandInNvml, gpus: Gpus, said: list[str]) -> None:
    nvml.tell("xids 3", "xid 63")
    assert [gpus.sample()["gpu/xid_count"] for _ in range(2)] == [3.0, 3.0]
    assert said == ["the GPU's driver reports Xid 63; NVIDIA's list of Xid errors says what it means"]
    nvml.tell("xids 4", f"all {LOST}")
    with pytest.raises(GpuLostError, match="'GPU is lost' after Xid 79"):
        gpus.sample()


def test_where_the_driver_reports_no_xids_their_count_is_absent(nvml: StandInNvml, said: list[str]) -> None:
    nvml.tell(f"nvmlDeviceRegisterEvents {NOT_SUPPORTED}")
    gpus = Gpus.open(said.append)
    assert gpus is not None
    assert gpus.sample().keys() == OF_TWO_HEALTHY_CARDS.keys() - {"gpu/xid_count"}
    gpus.close()


def test_a_machine_without_a_driver_says_nothing(nvml: StandInNvml, said: list[str]) -> None:
    nvml.tell(f"nvmlInitWithFlags {NO_DRIVER}")
    assert Gpus.open(said.append) is None
    assert not said


@pytest.mark.parametrize("line", ["nvmlInitWithFlags 4", "nvmlInitWithFlags 18", "nvmlDeviceGetHandleByIndex_v2@0 4"])
def test_a_gpu_that_may_not_be_asked_is_one_line(nvml: StandInNvml, said: list[str], line: str) -> None:
    nvml.tell(line)
    assert Gpus.open(said.append) is None
    [text] = said
    assert text.startswith("what the GPU does is not recorded: NVML, a library of its driver, says ")


def test_a_container_that_has_a_gpu_and_not_its_library_is_one_line(
    nvml: StandInNvml, said: list[str], tmp_path: Path
) -> None:
    nvml.tell(f"nvmlInitWithFlags {NO_DRIVER}")
    (tmp_path / "nvidia0").touch()
    assert Gpus.open(said.append) is None
    [text] = said
    assert text.endswith("A container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility")


def test_a_driver_that_begins_to_refuse_is_said_once(nvml: StandInNvml, gpus: Gpus, said: list[str]) -> None:
    nvml.tell("load 2", f"nvmlInitWithFlags {VERSION_MISMATCH}")
    assert [gpus.sample(), gpus.sample()] == [{}, {}]
    [text] = said
    assert text.startswith("what the GPU does is not recorded for now: NVML says ")


def test_a_driver_that_was_loaded_anew_is_asked_again(nvml: StandInNvml, gpus: Gpus, said: list[str]) -> None:
    gpus.sample()
    nvml.tell("load 2", "energy 5000")
    assert gpus.sample().keys() == OF_TWO_HEALTHY_CARDS.keys()
    nvml.tell("load 3", "cards 1")
    for _ in range(2):
        with pytest.raises(GpuLostError, match="1 of 2 GPUs are gone since the driver was loaded anew"):
            gpus.sample()
    assert not said


def test_a_driver_that_hangs_costs_the_wait_once_and_is_said_once(
    nvml: StandInNvml, gpus: Gpus, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "NVML_SECONDS", 0.1)
    nvml.tell("hang nvmlDeviceGetPowerUsage")
    began = time.monotonic()
    assert [gpus.sample() for _ in range(3)] == [{}, {}, {}]
    assert 0.1 <= time.monotonic() - began < 1.0
    assert said == [
        "NVML, a library of the GPU's driver, does not answer: what the GPU does is not recorded until it does"
    ]
    nvml.tell()
    wait_until_answered(gpus)
    assert gpus.sample().keys() == OF_TWO_HEALTHY_CARDS.keys()


def test_a_driver_that_hangs_at_the_start_is_sampled_once_it_answers(
    nvml: StandInNvml, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "NVML_SECONDS", 0.05)
    nvml.tell("hang nvmlInitWithFlags")
    gpus = Gpus.open(said.append)
    assert gpus is not None
    assert gpus.sample() == {}
    nvml.tell()
    wait_until_answered(gpus)
    assert gpus.sample()["gpu/count"] == 2
    gpus.close()


def wait_until_answered(gpus: Gpus) -> None:
    until = time.monotonic() + 10
    while gpus.is_waiting() and time.monotonic() < until:
        time.sleep(0.005)
    assert not gpus.is_waiting()


def test_python_finds_the_library_as_it_finds_the_drivers_and_ends_though_it_hangs(
    library: Path, tmp_path: Path
) -> None:
    file = tmp_path / "nvml.txt"
    file.write_text("hang nvmlDeviceGetPowerUsage\n")
    code = (
        "from trainer.telemetry import gpu; gpu.NVML_SECONDS = 0.05; gpus = gpu.Gpus.open(print); "
        "print(len(gpus.cards), gpus.sample()); gpus.close()"
    )
    environ = {
        name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "TRAINER_GPUS")
    }
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env=environ | {"LD_LIBRARY_PATH": str(library.parent), VARIABLE: str(file)},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2 {}\n", "")
