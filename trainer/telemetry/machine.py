"""The machine of a run as samples: processors, memory, processes, scratch disk, network. psutil tells.

Counters become rates by monotonic time. A metric is absent where the system does not tell it, as in some containers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import psutil

Counters = dict[str, float]
LEAST_SECONDS = 1.0  # of a rate: the system counts processor time in hundredths of a second
# What psutil raises where /proc lacks a file, a line or a word that it expects.
NOT_READABLE = (psutil.Error, OSError, NotImplementedError, LookupError, RuntimeError, TypeError, ValueError)
VIRTUAL = ("lo", "veth", "docker", "br-", "virbr")  # what passes them passes a real card, too, or never leaves
SYS = Path("/sys")  # has a link `device` for each disk and network card that is one, and stands on no other


class ThisMachine:
    """What the machine and the processes of a run do. A rate is of the time since the `sample` before.

    `processes` gives the process ids of each name (trainer, uploader, observer) at the moment; some may have ended.
    """

    def __init__(self, scratch: Path, processes: Callable[[], Mapping[str, Sequence[int]]]):
        self.scratch, self.processes = scratch, processes
        self.before: dict[str, tuple[float, Counters]] = {}
        self.sample()  # what the first rates begin from

    def sample(self) -> dict[str, float]:
        """The metrics that this system tells, by name: `machine/…`, `process/…`, `disk/…`, `network/…`."""
        metrics: dict[str, float] = {}
        for look in (self._processor, self._memory, self._scratch, self._disks, self._network, self._processes):
            with suppress(*NOT_READABLE):
                metrics |= look()
        return metrics

    def _rates(self, name: str, counters: Counters) -> Counters:
        """The growth of each counter per second; {} where one has come, gone or gone back, or too soon."""
        now = monotonic()
        then, before = self.before.get(name, (now, counters))
        if 0 < now - then < LEAST_SECONDS:
            return {}
        self.before[name] = (now, counters)
        if now <= then or before.keys() != counters.keys():
            return {}
        growth = {key: value - before[key] for key, value in counters.items()}
        is_whole = all(value >= 0 for value in growth.values())
        return {key: value / (now - then) for key, value in growth.items()} if is_whole else {}

    def _processor(self) -> dict[str, float]:
        times = psutil.cpu_times()
        twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # within user and nice
        idle = times.idle + getattr(times, "iowait", 0.0)
        rates = self._rates("processor", {"idle": idle, "all": sum(times) - twice})
        return {"machine/cpu_fraction": max(0.0, 1 - rates["idle"] / rates["all"])} if rates.get("all") else {}

    def _memory(self) -> dict[str, float]:
        # Not psutil.virtual_memory(): it puts 0 for what is not told.
        lines = Path(psutil.PROCFS_PATH, "meminfo").read_text().splitlines()
        sizes = {name: 1024.0 * int(size.split()[0]) for name, _, size in (line.partition(":") for line in lines)}
        files = sizes["Cached"] - sizes["Shmem"]  # shared memory counts as cached, and cannot be dropped
        return {"machine/memory_available_bytes": sizes["MemAvailable"], "machine/page_cache_bytes": max(0.0, files)}

    def _scratch(self) -> dict[str, float]:
        usage = shutil.disk_usage(self.scratch)
        return {"disk/scratch_used_bytes": float(usage.used), "disk/scratch_free_bytes": float(usage.free)}

    def _disks(self) -> dict[str, float]:
        disks = real(psutil.disk_io_counters(perdisk=True, nowrap=False), "block")
        if not disks:  # this system does not tell which ones are: then all, without partitions
            whole = psutil.disk_io_counters(nowrap=False)
            disks = {"all": whole} if whole else {}
        read = self._rates("disks read", {name: float(disk.read_bytes) for name, disk in disks.items()})
        write = self._rates("disks write", {name: float(disk.write_bytes) for name, disk in disks.items()})
        rates = {"disk/read_bytes_per_second": read, "disk/write_bytes_per_second": write}
        return {name: sum(rate.values()) for name, rate in rates.items() if rate}

    def _network(self) -> dict[str, float]:
        found = psutil.net_io_counters(pernic=True, nowrap=False)
        cards = real(found, "class/net") or {n: card for n, card in found.items() if not n.startswith(VIRTUAL)}
        received = self._rates("received", {name: float(card.bytes_recv) for name, card in cards.items()})
        sent = self._rates("sent", {name: float(card.bytes_sent) for name, card in cards.items()})
        rates = {"network/received_bytes_per_second": received, "network/sent_bytes_per_second": sent}
        return {name: sum(rate.values()) for name, rate in rates.items() if rate}

    def _processes(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, pids in self.processes().items():
            spent: Counters = {}
            memory = threads = 0.0
            for pid in pids:
                with suppress(psutil.Error, OSError):
                    process = psutil.Process(pid)  # anew each time: its number may be that of another by now
                    with process.oneshot():
                        times = process.cpu_times()
                        memory += process.memory_info().rss
                        threads += process.num_threads()
                        spent[f"{pid} {process.create_time()}"] = times.user + times.system
            if rates := self._rates(f"process {name}", spent):
                metrics[f"process/{name}_cores"] = sum(rates.values())
            if spent and name == "trainer":
                metrics |= {"process/trainer_memory_bytes": memory, "process/trainer_threads": threads}
        return metrics


def real(found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Those with a device of their own: no volume (LVM, RAID, loop), bond, VLAN or tunnel counts beside what it uses.

    `kind` is the folder in /sys that has them. {} where the system does not tell, as in a container.
    """
    return {name: counters for name, counters in found.items() if (SYS / kind / name / "device").exists()}
