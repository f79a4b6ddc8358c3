"""What `make prepare` costs: images/s per core, hours and gigabytes for all of ImageNet, peak memory.

make bench-prepare   ARGS="--images FOLDER" measures real JPEG files instead of the photographs;
                     ARGS="--before COMMIT" compares the processor time of an image with that of an older version
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import photographs
from benchmarks.machine import write
from benchmarks.structure import ROOT, at
from trainer.data.format import INDEX, Index, read_index

IMAGENET = {"train": 1_281_167, "val": 50_000}
LINKS = 10  # names of each file: enough for several shards, so that memory is what it is for millions


@dataclass(frozen=True)
class Usage:
    """Of a whole process."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float

    def __sub__(self, start: Usage) -> Usage:
        return Usage(
            self.wall_seconds - start.wall_seconds, self.cpu_seconds - start.cpu_seconds, self.peak_mib
        )  # fmt: skip


def run(data: Path, store: Path, code: Path = ROOT) -> Usage:
    """`python -m trainer.prepare`, as a user calls it, of the version in the folder `code`."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "trainer.prepare", "--data", str(data), "--store", str(store)]
    child = subprocess.Popen(command, cwd=code, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"trainer.prepare ended with code {child.returncode}")
    return Usage(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def prepared_once(data: Path, code: Path = ROOT) -> tuple[Usage, Index]:
    """The cost of the images alone: that of a second call, which finds all done, is taken off."""
    with tempfile.TemporaryDirectory() as folder:
        used = run(data, Path(folder), code)
        (found,) = Path(folder).rglob(INDEX)
        return used - run(data, Path(folder), code), read_index(found.parent)


def multiply(folder: Path) -> None:
    """Give every file LINKS names."""
    for file in list(folder.rglob("*.JPEG")):
        for number in range(1, LINKS):
            file.with_stem(f"{file.stem}-{number}").symlink_to(file.resolve())


def compare(data: Path, commit: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of processor time for an image, now and at a commit, in turns; and whether the shards are equal."""
    spent: dict[str, list[float]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as folder:
        code = {"before": at(commit, Path(folder)), "now": ROOT}
        for number in range(rounds + 1):
            made = {name: prepared_once(data, code[name]) for name in sorted(code, reverse=number % 2 == 1)}
            for name, (used, index) in made.items():
                images = sum(split.images for split in index.splits.values())
                spent[name].append(1000 * used.cpu_seconds / images)
        splits = [index.splits for _, index in made.values()]
    medians = {name: statistics.median(values[1:]) for name, values in spent.items()}  # at first, numba compiles
    return {
        "commit": commit,
        "prepared_images": images,
        "cpu_ms_per_image": {name: round(value, 3) for name, value in medians.items()},
        "now_to_before": round(medians["now"] / medians["before"], 3),
        "same_shards": splits[0] == splits[1],
        "all_cpu_ms_per_image": {name: [round(value, 3) for value in values[1:]] for name, values in spent.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-prepare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--count", type=int, default=1000, help=f"different training images; each is there {LINKS} times"
    )
    parser.add_argument("--before", metavar="COMMIT", help="compare with this commit, and measure nothing else")
    parser.add_argument("--images", type=Path, help="a folder with real JPEG files, at any depth")
    options = parser.parse_args()
    val = max(10, round(options.count * IMAGENET["val"] / IMAGENET["train"]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        if options.images:
            photographs.link(folder, options.images, options.count, val)
        else:
            photographs.make(folder, options.count, val)
        described = photographs.describe(sorted((folder / "train").rglob("*.JPEG")))
        multiply(folder)
        if options.before:
            compared = compare(folder, options.before, options.rounds)
            print(
                f"{compared['cpu_ms_per_image']} ms of a core for an image: {compared['now_to_before']} times as long"
            )
            print(f"written to {write('prepare-before', compared).relative_to(ROOT)}")
            return
        rounds = [prepared_once(folder) for _ in range(options.rounds)]

    index = rounds[0][1]
    images, all_images = sum(split.images for split in index.splits.values()), sum(IMAGENET.values())
    per_core = statistics.median(images / used.cpu_seconds for used, _ in rounds)
    here = statistics.median(images / used.wall_seconds for used, _ in rounds)
    gigabytes = {
        f"{name} {size.short_side} px": sum(shard.bytes for shard in size.shards) / split.images * IMAGENET[name] / 1e9
        for name, split in index.splits.items()
        for size in split.sizes
    }
    results = {
        "images": {"from": "real files" if options.images else "photographs", **described, "links": LINKS},
        "prepared_images": images,
        "images_per_second_per_core": round(per_core, 1),
        "images_per_second_here": round(here, 1),
        "imagenet_core_hours": round(all_images / per_core / 3600, 2),
        "imagenet_hours_here": round(all_images / here / 3600, 2),
        "imagenet_gb": {name: round(value, 1) for name, value in gigabytes.items()},
        "imagenet_gb_in_all": round(sum(gigabytes.values()), 1),
        "peak_mib": round(max(used.peak_mib for used, _ in rounds)),
        "all_cpu_seconds": [round(used.cpu_seconds, 1) for used, _ in rounds],
        "all_wall_seconds": [round(used.wall_seconds, 1) for used, _ in rounds],
    }
    print(f"{per_core:,.0f} images/s per core, {here:,.0f} on these {len(os.sched_getaffinity(0))} cores")
    print(f"all of ImageNet: {results['imagenet_core_hours']} core hours, {results['imagenet_hours_here']} hours here, "
          f"{results['imagenet_gb_in_all']} GB {results['imagenet_gb']}")  # fmt: skip
    print(f"peak memory {results['peak_mib']} MiB")
    print(f"written to {write('prepare', results).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
