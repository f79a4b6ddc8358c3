"""What every result says about the machine that it was measured on."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Processor, cores, memory, GPU and versions."""
    try:
        import torch
    except ImportError:  # the AWS half has an environment without it
        torch = None  # type: ignore[assignment]

    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__ if torch else None,
        "load_average": os.getloadavg()[0],
    }


def write(name: str, results: dict[str, Any]) -> Path:
    """`benchmarks/results/<name>.json`: results, machine, date."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    body = {"date": datetime.now(UTC).date().isoformat(), "machine": describe(), **results}
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path
