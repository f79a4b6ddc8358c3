"""What a sample of the GPUs and the machine costs: processor time of one, and the share of a core at one every 10 s.

make bench-telemetry    the driver's NVML where there is one, else the tests' stand-in (ARGS="--rounds N")
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pynvml

from benchmarks.machine import write
from trainer.telemetry.gpu import Gpus
from trainer.telemetry.machine import ThisMachine
from trainer.telemetry.samples import SAMPLE_SECONDS
from trainer.text import say

MOST_OF_A_CORE = 0.001  # what all of telemetry may cost
PAUSE_SECONDS = 1.1  # between two samples: others use the caches meanwhile, as they do while a run trains
WORKERS = 8  # processes of a trainer with eight GPUs; one of them costs less
IMPORT = "import time; import trainer.telemetry.gpu, trainer.telemetry.machine; print(time.process_time())"


def cpu_ms(work: Callable[[], Mapping[str, float]], rounds: int) -> dict[str, Any]:
    """Milliseconds of processor time of a call, all threads together, with a pause before each; what the last told."""
    spent: list[float] = []
    metrics: Mapping[str, float] = {}
    for _ in range(rounds):
        time.sleep(PAUSE_SECONDS)
        before = time.process_time()
        metrics = work()
        spent.append(1000 * (time.process_time() - before))
    return {"median": round(statistics.median(spent), 3), "most": round(max(spent), 3), "metrics": metrics}


def open_gpus(folder: Path) -> tuple[Gpus, str]:
    """The GPUs of this machine, or two of the stand-in, and which it is."""
    if gpus := Gpus.open(say):
        return gpus, ", ".join(card.name for card in gpus.cards)
    from tests.trainer.telemetry.nvml import build_nvml  # a GPU box may lack the tests

    pynvml.nvmlLib = ctypes.CDLL(str(build_nvml(folder)))
    gpus = Gpus.open(say)
    assert gpus is not None
    return gpus, "none: two cards of the stand-in, so the driver's own time is missing"


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """The cost of both kinds of samples, and of the imports."""
    gpus, kind = open_gpus(folder)
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(WORKERS + 1)]
    pids = [process.pid for process in sleepers]
    machine = ThisMachine(folder, lambda: {"trainer": pids[1:], "uploader": pids[:1], "observer": [os.getpid()]})
    try:
        found = {"gpus": cpu_ms(gpus.sample, rounds), "machine": cpu_ms(machine.sample, rounds)}
    finally:
        for process in sleepers:
            process.kill()
            process.wait()
        gpus.close()
    imports = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True).stdout) for _ in range(3)
    ]
    share = sum(one["median"] for one in found.values()) / 1000 / SAMPLE_SECONDS
    return {
        "gpu_asked": kind,
        "rounds": rounds,
        "trainer_processes": WORKERS,
        "cpu_ms_of_a_sample": found,
        "share_of_a_core": round(share, 6),
        "limit": MOST_OF_A_CORE,
        "holds": share <= MOST_OF_A_CORE,
        "import_cpu_seconds": round(min(imports), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="samples of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), options.rounds)
    print(json.dumps(found, indent=1))
    print(f"written to {write('telemetry', found)}")


if __name__ == "__main__":
    main()
