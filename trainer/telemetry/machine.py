"""The machine of a run as samples: processors, memory, processes, scratch disk, network. psutil tells.

Counters become rates by monotonic time. A metric is absent where the system does not tell it, as in some containers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

Counters = dict[str, float]
VIRTUAL = ("lo", "veth", "docker", "br-", "virbr")  # what passes them is counted again at a card, or stays here


class ThisMachine:
    """What the machine and the processes of a run do. Rates are of the time since the last `sample`.

    `processes` gives the process ids of each name (trainer, uploader, observer) at the moment; some may have ended.
    """

    def __init__(self, scratch: Path, processes: Callable[[], Mapping[str, Sequence[int]]]):
        self.scratch, self.processes = scratch, processes
        self.before: dict[str, Counters] = {}
        self.at = time.monotonic()
        self.sample()

    def sample(self) -> dict[str, float]:
        """The metrics that this system tells, by name: `machine/…`, `process/…`, `disk/…`, `network/…`."""
        now = time.monotonic()
        seconds, self.at = now - self.at, now
        metrics: dict[str, float] = {}
        for look in (self._processor, self._memory, self._scratch, self._disks, self._network, self._processes):
            with suppress(psutil.Error, OSError, NotImplementedError, RuntimeError, ValueError):
                metrics |= look(seconds)
        return metrics

    def _growth(self, name: str, counters: Counters) -> Counters | None:
        """How much each counter has grown since the last look; None where one has come, gone, or gone back."""
        before = self.before.get(name)
        self.before[name] = counters
        if before is None or before.keys() != counters.keys():
            return None
        growth = {key: value - before[key] for key, value in counters.items()}
        return None if any(value < 0 for value in growth.values()) else growth

    def _processor(self, seconds: float) -> dict[str, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # within user and nice
        growth = self._growth("processor", {"idle": idle, "all": sum(times) - twice})
        if growth is None or growth["all"] <= 0:
            return {}
        return {"machine/cpu_fraction": max(0.0, 1 - growth["idle"] / growth["all"])}

    def _memory(self, seconds: float) -> dict[str, float]:
        memory = psutil.virtual_memory()
        cached = memory.cached - memory.shared  # files in memory count as shared, and cannot be dropped
        return {
            "machine/memory_available_bytes": float(memory.available),
            "machine/page_cache_bytes": float(max(0, cached)),
        }

    def _scratch(self, seconds: float) -> dict[str, float]:
        usage = shutil.disk_usage(self.scratch)
        return {"disk/scratch_used_bytes": float(usage.used), "disk/scratch_free_bytes": float(usage.free)}

    def _disks(self, seconds: float) -> dict[str, float]:
        found = psutil.disk_io_counters(nowrap=False)
        counters = {"read": float(found.read_bytes), "write": float(found.write_bytes)} if found else {}
        growth = self._growth("disks", counters)
        if not growth or seconds <= 0:
            return {}
        return {f"disk/{way}_bytes_per_second": count / seconds for way, count in growth.items()}

    def _network(self, seconds: float) -> dict[str, float]:
        counters: Counters = {}
        for card, found in psutil.net_io_counters(pernic=True, nowrap=False).items():
            if not card.startswith(VIRTUAL):
                counters |= {f"received {card}": float(found.bytes_recv), f"sent {card}": float(found.bytes_sent)}
        growth = self._growth("network", counters)
        if not growth or seconds <= 0:
            return {}
        return {
            f"network/{way}_bytes_per_second": sum(count for name, count in growth.items() if name.startswith(way))
            / seconds
            for way in ("received", "sent")
        }

    def _processes(self, seconds: float) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, pids in self.processes().items():
            spent: Counters = {}
            memory = threads = 0.0
            for pid in pids:
                with suppress(psutil.Error, OSError):
                    process = psutil.Process(pid)  # anew each time: the system may have given its number to another
                    with process.oneshot():
                        times = process.cpu_times()
                        spent[f"{pid} {process.create_time()}"] = times.user + times.system
                        memory += process.memory_info().rss
                        threads += process.num_threads()
            growth = self._growth(f"process {name}", spent)
            if growth and seconds > 0:
                metrics[f"process/{name}_cores"] = sum(growth.values()) / seconds
            if spent and name == "trainer":
                metrics |= {"process/trainer_memory_bytes": memory, "process/trainer_threads": threads}
        return metrics
