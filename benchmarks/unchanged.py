"""What "already prepared" costs for an image folder of ImageNet's size that has not changed: seconds, peak memory.

make bench-unchanged   ARGS="--files N --bytes N" makes other stand-ins; they are sparse files in a temporary folder
                       ARGS="--cold" also measures with empty caches of the system (root; it slows down what else runs)
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import write
from benchmarks.prepare import Usage
from benchmarks.structure import ROOT
from trainer.contract import RunEnv
from trainer.data.format import INDEX, Copies, Index, Shard, Size, SplitIndex
from trainer.data.making.layout import NONE
from trainer.data.making.parts import default_images
from trainer.data.making.prepare import _prefix
from trainer.data.making.revision.identity import identity_of
from trainer.data.making.revision.manifest import SOURCES, SourceMemory

CLASSES, VAL = 1000, 50_000
LIMITS = {"warm_seconds": 10.0, "cold_seconds": 60.0, "peak_mib": 200.0}


def make_folder(root: Path, files: int, size: int) -> None:
    """Files of ImageNet's names, of about `size` bytes, that take no room on the disk."""
    for split, count in (("train", files - VAL), ("val", VAL)):
        for number in range(CLASSES):
            folder = root / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            at = os.open(folder, os.O_RDONLY)
            for i in range(number, count, CLASSES):
                file = os.open(f"n{number:08d}_{i}.JPEG", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=at)
                os.ftruncate(file, size + i % 100)
                os.close(file)
            os.close(at)


def pretend_prepared(data: Path, store: Path, scratch: Path) -> None:
    """Read all files once, and put an index where their preparation would put it: no stand-in is an image."""
    copies = Copies()
    identity = identity_of(str(data), NONE, SourceMemory(scratch / SOURCES))
    per_shard = {split: default_images(copies.sides(split)) for split in ("train", "val")}
    prefix = _prefix(identity.name, copies, [identity.content, per_shard])
    splits = {
        split: SplitIndex(1, tuple(Size(side, 90, (Shard("x.arrow", 1, 1, 1),)) for side in copies.sides(split)))
        for split in ("train", "val")
    }
    index = Index(identity.name, prefix.rpartition("/")[2], ("a",), splits, "x", identity.origin)
    (store / prefix).mkdir(parents=True)
    (store / prefix / INDEX).write_text(index.to_json())


def already_prepared(data: Path, store: Path, scratch: Path) -> Usage:
    """`python -m trainer.prepare`, which finds all done."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "trainer.prepare", "--data", str(data), "--store", str(store)]
    environ = os.environ | {RunEnv.variable("scratch_dir"): str(scratch)}
    child = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    said = child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or "are unchanged, by size and time" not in said:
        sys.exit(f"trainer.prepare ended with code {child.returncode} and said: {said}")
    return Usage(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def in_child(work: Callable[[Path, Path, Path], None], *folders: Path) -> float:
    """Seconds."""
    started = time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(target=work, args=folders)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{work.__name__} ended with code {process.exitcode}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_331_167)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, store, scratch = (Path(folder) / name for name in ("imagenet", "store", "scratch"))
        make_folder(data, options.files, options.bytes)
        time.sleep(3)  # until the times of the files are settled
        # In a process of its own: what a child is said to need at its peak includes what its parent holds.
        first = in_child(pretend_prepared, data, store, scratch)
        warm = [already_prepared(data, store, scratch) for _ in range(options.rounds)]
        results = {
            "files": options.files,
            "bytes_per_file": options.bytes,
            "first_reading_seconds": round(first, 1),
            "warm_seconds": round(min(used.wall_seconds for used in warm), 2),
            "all_warm_seconds": [round(used.wall_seconds, 2) for used in warm],
            "warm_cpu_seconds": round(min(used.cpu_seconds for used in warm), 2),
            "peak_mib": round(max(used.peak_mib for used in warm), 1),
            "ledger_mb": round(sum(file.stat().st_size for file in (scratch / SOURCES).iterdir()) / 1e6, 1),
        }
        if options.cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
            results["cold_seconds"] = round(already_prepared(data, store, scratch).wall_seconds, 2)
    for name, value in results.items():
        limit = LIMITS.get(name)
        print(f"{name:24} {value}" + (f"  (at most {limit:g})" if limit else ""))
    write("unchanged", results)
    if any(results.get(name, 0) > limit for name, limit in LIMITS.items()):
        sys.exit("slower or larger than it must be")


if __name__ == "__main__":
    main()
