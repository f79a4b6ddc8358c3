"""What is recorded of the machine: psutil's own reading of this machine's /proc, and of folders that stand for one."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from trainer.telemetry import machine
from trainer.telemetry.machine import ThisMachine

LEVELS = {
    "machine/memory_available_bytes", "machine/page_cache_bytes", "disk/scratch_used_bytes", "disk/scratch_free_bytes",
}  # fmt: skip
OF_TRAINER = {"process/trainer_memory_bytes", "process/trainer_threads"}
BLOCK = sorted(path.name for path in Path("/sys/block").glob("*"))  # psutil counts no disk that is not listed there
OF_DISKS = {"disk/read_bytes_per_second", "disk/write_bytes_per_second"} if BLOCK else set()
OF_NETWORK = {"network/received_bytes_per_second", "network/sent_bytes_per_second"}
RATES = {"machine/cpu_fraction"} | OF_NETWORK | OF_DISKS


class Clock:
    """Monotonic time that moves when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(machine, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Proc:
    """A folder in the place of /proc."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        (folder / "net").mkdir(parents=True)
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(folder))
        self.sys = folder.parent / "sys"  # which tells of no device at first
        monkeypatch.setattr(machine, "SYS", self.sys)
        self.write()

    def write(
        self,
        busy: int = 0,
        idle: int = 0,
        sectors: int = 0,
        cards: dict[str, int] | None = None,
        disks: dict[str, int] | None = None,
    ) -> None:
        """Hundredths of seconds of all processors, sectors of 512 bytes, bytes of each network card.

        All `sectors` are those of one disk; `disks` has those of several instead.
        """
        (self.folder / "stat").write_text(f"cpu {busy} 0 0 {idle} 0 0 0 0 0 0\nbtime 1\n")
        (self.folder / "meminfo").write_text(
            "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nBuffers: 0 kB\nCached: 300 kB\nShmem: 50 kB\n"
        )
        disks = disks or {BLOCK[0] if BLOCK else "sda": sectors}
        lines = [f"1 0 {name} 1 0 {count} 1 1 0 {2 * count} 1 0 1 1\n" for name, count in disks.items()]
        (self.folder / "diskstats").write_text("".join(lines))
        lines = [f"{name}: {count} 1 0 0 0 0 0 0 {count // 2} 1 0 0 0 0 0 0" for name, count in (cards or {}).items()]
        (self.folder / "net" / "dev").write_text("\n".join(["head", "head", *lines, ""]))

    def plug_in(self, *devices: str) -> None:
        """Devices as in `block/sda` or `class/net/eth0`."""
        for device in devices:
            (self.sys / device / "device").mkdir(parents=True)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    return Proc(tmp_path / "proc", monkeypatch)


def of(scratch: Path, **processes: Sequence[int]) -> ThisMachine:
    return ThisMachine(scratch, lambda: processes)


def test_a_sample_of_this_machine_has_what_it_and_this_process_do(tmp_path: Path, clock: Clock) -> None:
    seen = of(tmp_path, trainer=[os.getpid()], observer=[os.getpid()])
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    clock.now += 10
    sample = seen.sample()
    assert sample.keys() >= LEVELS | OF_TRAINER | {"machine/cpu_fraction", "process/observer_cores"}
    assert sample.keys() <= LEVELS | OF_TRAINER | RATES | {"process/observer_cores", "process/trainer_cores"}
    assert 0 <= sample["machine/cpu_fraction"] <= 1
    assert 0.004 <= sample["process/trainer_cores"] < 1
    assert sample["process/trainer_memory_bytes"] > 1e6
    assert sample["process/trainer_threads"] >= 1
    assert sample["disk/scratch_free_bytes"] > 0


def test_rates_are_growth_over_monotonic_time(tmp_path: Path, proc: Proc, clock: Clock) -> None:
    seen = of(tmp_path)
    proc.write(busy=300, idle=100, sectors=2000, cards={})
    clock.now += 10
    assert seen.sample() == pytest.approx(
        {name: value for name, value in seen.sample().items() if name.startswith("disk/scratch")}
        | {"machine/cpu_fraction": 0.75, "machine/memory_available_bytes": 409600, "machine/page_cache_bytes": 256000}
        | dict(zip(sorted(OF_DISKS), (102400, 204800), strict=False))
    )  # fmt: skip


def test_the_network_is_what_passes_real_cards(tmp_path: Path, proc: Proc, clock: Clock) -> None:
    proc.write(cards={"lo": 0, "eth0": 1000, "eth1": 0, "docker0": 0, "veth1": 0})
    seen = of(tmp_path)
    proc.write(cards={"lo": 9**9, "eth0": 3000, "eth1": 1000, "docker0": 9**9, "veth1": 9**9})
    clock.now += 10
    sample = seen.sample()
    assert sample["network/received_bytes_per_second"] == 300
    assert sample["network/sent_bytes_per_second"] == 150


def test_what_passes_a_volume_a_bond_or_a_tunnel_counts_once(tmp_path: Path, proc: Proc, clock: Clock) -> None:
    proc.plug_in("block/nvme0n1", "block/nvme1n1", "class/net/ens5", "class/net/ens6")
    names = ("nvme0n1", "nvme1n1", "nvme0n1p1", "md0", "dm-0", "loop0")
    cards = ("lo", "ens5", "ens6", "bond0", "bond0.7", "wg0", "tun0", "docker0")
    proc.write(disks=dict.fromkeys(names, 0), cards=dict.fromkeys(cards, 0))
    seen = of(tmp_path)
    proc.write(disks=dict.fromkeys(names, 2000), cards=dict.fromkeys(cards, 1000))
    clock.now += 10
    sample = seen.sample()
    assert sample["disk/read_bytes_per_second"] == 2 * 2000 * 512 / 10
    assert sample["disk/write_bytes_per_second"] == 4 * 2000 * 512 / 10
    assert (sample["network/received_bytes_per_second"], sample["network/sent_bytes_per_second"]) == (200, 100)


def test_counters_that_go_back_wrap_come_or_go_give_nothing_once(tmp_path: Path, proc: Proc, clock: Clock) -> None:
    proc.write(busy=500, idle=500, sectors=5000, cards={"eth0": 5000})
    seen = of(tmp_path)
    for busy, idle, sectors, cards in [(400, 600, 4000, {"eth0": 10}), (500, 500, 3000, {"eth0": 20, "eth1": 10**12})]:
        proc.write(busy, idle, sectors, cards)
        clock.now += 10
        assert not (RATES - {"machine/cpu_fraction"}) & seen.sample().keys()
    assert "machine/cpu_fraction" not in seen.sample()  # idle time went back
    proc.write(600, 600, 4000, {"eth0": 120, "eth1": 10**12})
    clock.now += 10
    sample = seen.sample()
    assert (sample["machine/cpu_fraction"], sample["network/received_bytes_per_second"]) == (0.5, 10.0)


def test_a_look_too_soon_has_levels_and_no_rates_and_the_next_rate_is_of_the_whole_time(
    tmp_path: Path, proc: Proc, clock: Clock
) -> None:
    seen = of(tmp_path)
    proc.write(busy=10, idle=90, cards={})
    for _ in range(2):
        clock.now += 0.4
        assert not RATES & seen.sample().keys()
    proc.write(busy=50, idle=150, cards={})
    clock.now += 9.2
    assert seen.sample()["machine/cpu_fraction"] == pytest.approx(0.25)
    clock.now -= 5  # no clock of Linux does that
    assert not RATES & seen.sample().keys()


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("stat", {"machine/cpu_fraction"}),
        ("meminfo", {"machine/memory_available_bytes", "machine/page_cache_bytes"}),
        ("diskstats", OF_DISKS),
        ("net/dev", OF_NETWORK),
    ],
)
def test_what_a_container_does_not_show_is_absent_and_all_else_is_there(
    tmp_path: Path, proc: Proc, clock: Clock, name: str, absent: set[str]
) -> None:
    proc.write(cards={"eth0": 0})
    seen = of(tmp_path)
    for number, damage in enumerate(("", "no numbers here\n"), start=1):
        proc.write(busy=number, idle=number, cards={"eth0": number})
        (proc.folder / name).write_text(damage)
        clock.now += 10
        sample = seen.sample()
        assert sample.keys() == (LEVELS | RATES) - absent
    proc.write(busy=9, idle=9, cards={"eth0": 9})
    (proc.folder / name).unlink()
    clock.now += 10
    assert seen.sample().keys() == (LEVELS | RATES) - absent


def test_a_scratch_folder_that_is_gone_is_no_error(tmp_path: Path, proc: Proc) -> None:
    assert of(tmp_path / "gone").sample().keys() == LEVELS - {"disk/scratch_used_bytes", "disk/scratch_free_bytes"}


def test_processes_that_end_are_no_error_and_give_no_rate(tmp_path: Path, clock: Clock) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        seen = of(tmp_path, trainer=[os.getpid(), child.pid], uploader=[child.pid])
        clock.now += 10
        sample = seen.sample()
        assert sample.keys() >= OF_TRAINER | {"process/trainer_cores", "process/uploader_cores"}
        child.kill()
    clock.now += 10
    sample = seen.sample()
    assert not {"process/trainer_cores", "process/uploader_cores"} & sample.keys()  # its last seconds are not known
    assert sample.keys() >= OF_TRAINER
    clock.now += 10
    assert "process/trainer_cores" in seen.sample()
