"""What the rows were measured on. Nothing here names a host or a path."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu.measure import Found, Place
from trainer.origin import git_commit

ROOT = Path(__file__).parents[2]
QUERY = {
    "driver": "driver_version", "power_limit_watts": "power.limit", "sm_mhz_max": "clocks.max.sm",
    "memory_mhz_max": "clocks.max.memory", "pcie_generation": "pcie.link.gen.current",
    "pcie_width": "pcie.link.width.current",
}  # fmt: skip
PACKAGES = ("numpy", "torchvision", "triton", "timm", "numba", "simplejpeg", "awscrt", "safetensors", "pyarrow")


def commit() -> str:
    """The commit of this code. What the bench itself has written to its results does not make it dirty."""
    found = git_commit()
    ask = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", ".", ":(exclude)benchmarks/results"]
    if found.endswith("-dirty") and shutil.which("git") and subprocess.run(ask, check=False).returncode == 0:
        return found.removesuffix("-dirty")
    return found


def identify() -> Found:
    """Card, driver, power limit, clocks, processor, versions and commit: the head of a result."""
    cuda = torch.cuda.is_available()
    found = machine.describe() | {"cudnn": torch.backends.cudnn.version() if cuda else None, "commit": commit()}
    del found["load_average"]
    if cuda:
        card = torch.cuda.get_device_properties(0)
        found |= {"sms": card.multi_processor_count, "gpu_memory_gb": round(card.total_memory / 1e9, 1)}
        found |= {"capability": f"{card.major}.{card.minor}", **_nvidia_smi()}
    return found | {name: _version(name) for name in PACKAGES}


def _nvidia_smi() -> Found:
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY.values())}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    values = [value.strip() for value in line.split(",")]
    return {name: _number(value) for name, value in zip(QUERY, values, strict=True)}


def _number(text: str) -> float | str:
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else text


def _version(package: str) -> str:
    try:
        return str(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe(place: Place) -> Found:
    """What torch chooses on this card, beside `identify`: BatchNorm by precision, layout after `roll`."""
    found: dict[str, Any] = {"bf16": torch.cuda.is_bf16_supported() if place.on_gpu else None}
    weights = torch.ones(64, device=place.device)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        images = torch.empty(8, 64, 56, 56, device=place.device, dtype=dtype).to(memory_format=torch.channels_last)
        chosen = torch._C._select_batch_norm_backend(images, *[weights] * 4, True, 1e-5)
        found[f"batch_norm_{str(dtype).removeprefix('torch.')}"] = str(chosen).rpartition(".")[2]
    return found
