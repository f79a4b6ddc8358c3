"""Trains what is missing, several trainings at a time, and keeps every result at once."""

from __future__ import annotations

import json
import time
from concurrent.futures import Executor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.parity.figures import Row, summarised
from benchmarks.parity.inputs import compare_inputs, staged
from benchmarks.parity.loops import timm_loop, torchvision_loop
from benchmarks.parity.ours import COPIES, our_run
from benchmarks.parity.sets import Settings, make_folder
from trainer.origin import git_commit

LOOPS = {"torchvision": torchvision_loop, "timm": timm_loop}


def contenders_of(settings: Settings) -> list[str]:
    """In the order in which they train: one seed of each, then the next seed. Only photographs lose by small copies."""
    return [*(COPIES if settings.images == "photographs" else ["ours, originals"]), *LOOPS]


def train_one(contender: str, settings: Settings, folder: Path, seed: int, scratch: Path) -> tuple[float, float]:
    """Top-1 of one training as a share, and its seconds. One thread: threads that wait for others waste cores."""
    torch.set_num_threads(1)
    began = time.monotonic()
    if contender in LOOPS:
        top1 = LOOPS[contender](settings, folder, seed)
    else:
        top1 = our_run(contender, settings, folder, seed, scratch)
    return top1, time.monotonic() - began


def begun(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The result so far, if it was made with these settings; else an empty one."""
    empty: dict[str, Any] = {"settings": settings, "rows": [], "inputs": {}}
    if not path.exists():
        return empty
    found: dict[str, Any] = json.loads(path.read_text())
    if json.loads(json.dumps(settings)) != found["settings"]:
        print(f"{path} was made with other settings: it is begun anew, and git has the old one")
        return empty
    return {name: found[name] for name in empty}


def measure(
    path: Path, sets: dict[str, Settings], chosen: list[str], seeds: int, scratch: Path, pool: Executor
) -> dict[str, Any]:
    """Train what is missing of the chosen sets, as many at a time as the pool has workers. The file is always whole."""
    result = begun(path, {name: asdict(settings) for name, settings in sets.items()})
    folders = {name: make_folder(sets[name], scratch) for name in chosen}
    for name in chosen:
        for contender in contenders_of(sets[name]):
            if contender in COPIES:  # prepared once, before two runs want it at the same time
                staged(contender, sets[name], folders[name], scratch)
        if name not in result["inputs"] and sets[name].images == "photographs":
            result["inputs"][name] = compare_inputs(sets[name], folders[name], scratch)
            keep(path, result)
    known = {(row["set"], row["contender"], row["seed"]) for row in result["rows"]}
    todo = [
        (name, contender, seed)
        for seed in range(seeds)
        for name in chosen
        for contender in contenders_of(sets[name])
        if (name, contender, seed) not in known
    ]
    running = {
        pool.submit(train_one, contender, sets[name], folders[name], seed, scratch): (name, contender, seed)
        for name, contender, seed in todo
    }
    try:
        for done in as_completed(running):
            (name, contender, seed), (top1, seconds) = running[done], done.result()
            row: Row = {"set": name, "contender": contender, "seed": seed, "top1": round(top1, 5)}
            result["rows"].append(row | {"seconds": round(seconds, 1), "commit": git_commit()})
            keep(path, result)
            print(f"{name}, seed {seed}: {contender} {100 * top1:.2f} % in {seconds:.0f} s", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return result


def keep(path: Path, result: dict[str, Any]) -> None:
    """The file is the old one or the new one, never half of one."""
    result["summary"] = summarised(result["rows"])
    partial = path.with_suffix(".partial")
    date = time.strftime("%Y-%m-%d", time.gmtime())
    partial.write_text(json.dumps({"date": date, "machine": machine.describe()} | result, indent=1) + "\n")
    partial.rename(path)
