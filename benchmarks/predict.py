"""How long one answer takes from a fresh start, and how much of that is ours beyond importing torch and torchvision.

make bench-predict      a JPEG and an exported ResNet-50; processes of both kinds take turns (ARGS="--rounds N")
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.evaluate import put_weights
from benchmarks.machine import write
from trainer.imagenet import wnids

HEIGHT, WIDTH = 375, 500  # of many of ImageNet's photographs
LIMITS = {"predict": 4.0, "beyond imports": 0.3}  # seconds that are promised on 2 quiet cores


def fresh(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a Python process of its own. Raises CalledProcessError."""
    before = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments, stderr=said)
    return time.perf_counter() - before, usage.ru_utime + usage.ru_stime


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both kinds, one of each in a round; a first round, not counted, brings files into memory."""
    put_weights(folder / "resnet50.safetensors", "resnet50", wnids(), 256, 224)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    (folder / "image.jpg").write_bytes(simplejpeg.encode_jpeg(image))
    (folder / "store").mkdir()
    predict = ["-m", "trainer.predict", str(folder / "image.jpg"), "--model", str(folder / "resnet50.safetensors")]
    predict += ["--store", str(folder / "store"), "--scratch", str(folder / "scratch"), "--device", "cpu"]
    kinds = {"predict": predict, "imports": ["-c", "import torch, torchvision"]}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name in list(kinds)[:: -1 if number % 2 else 1]:  # there and back: a drift of the machine cancels out
            seconds = fresh(kinds[name])
            if number:
                found[name].append(seconds)
    results: dict[str, Any] = {"network": "resnet50, 224 px, fp32, on the CPU", "rounds": rounds, "limits": LIMITS}
    for at, clock in enumerate(("wall", "cpu")):
        lists = {name: [round(one[at], 3) for one in pairs] for name, pairs in found.items()}
        medians = {name: statistics.median(seconds) for name, seconds in lists.items()}
        medians["beyond imports"] = statistics.median(
            predict - imports for predict, imports in zip(lists["predict"], lists["imports"], strict=True)
        )
        results[f"{clock}_seconds"] = {"median": medians, "all": lists}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), options.rounds)
    print(json.dumps(found, indent=1))
    print(f"written to {write('predict', found)}")


if __name__ == "__main__":
    main()
