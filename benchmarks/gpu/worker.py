"""One process that measures rows, one after the other, and tells the driver in lines of JSON.

    python -m benchmarks.gpu.worker '{"rows": ["ours_bf16"], "tiny": false, "patience": 1, "images": "…", …}'

Its input stays open as long as the driver lives: at its end this process and all that it started are killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.descendants import VARIABLE, kill_marked
from benchmarks.gpu.rows import BY_NAME, Row

FATAL = (
    "CUDA error",
    "cuDNN error",
    "CUBLAS_STATUS",
    "device-side assert",
)  # after these a process is good for nothing
BROKEN = 3  # exit code
TRACE_CHARACTERS = 2000


def end_with_driver() -> None:
    """Kill this process and all that it started when the driver's end of the pipe is closed, however it was."""

    def watch() -> None:
        sys.stdin.buffer.read()
        if mark := os.environ.get(VARIABLE):
            kill_marked(mark)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def only_messages_on_output() -> int:
    """A descriptor for messages. What libraries print goes to standard error instead."""
    messages = os.dup(1)
    os.dup2(2, 1)
    return messages


def measure(row: Row, told: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """What a row found, or why it failed, or was not measured; and whether this process can go on."""
    import torch

    from benchmarks.gpu.measure import BATCH, TINY_BATCH, TINY_PIXELS, NotMeasuredError, Place

    cuda = torch.cuda.is_available()
    if row.needs == "cuda" and not cuda:
        return {"needs": "cuda", "not_measured": "it needs a GPU"}, True
    place = Place(
        torch.device("cuda", 0) if cuda else torch.device("cpu"), told["tiny"],
        TINY_BATCH if told["tiny"] else BATCH, TINY_PIXELS if told["tiny"] else row.pixels,
        Path(told["images"]), Path(told["scratch"]), row.seconds * told["patience"],
    )  # fmt: skip
    if told["tiny"]:  # a compiler of C++ would take minutes, and say nothing of one for a GPU
        torch.compile = partial(torch.compile, backend="eager")
    module, _, function = row.function.partition(".")
    place.forget()
    try:
        return getattr(import_module(f"benchmarks.gpu.{module}"), function)(place, **row.options), True
    except NotMeasuredError as error:
        return {"not_measured": str(error)}, True
    except Exception as error:  # noqa: BLE001  a row that fails is a result
        text = f"{type(error).__name__}: {error}"[:600]
        trace = traceback.format_exc()[-TRACE_CHARACTERS:]
        return {"error": text, "trace": trace}, not (cuda and any(word in text for word in FATAL))


def main() -> None:
    end_with_driver()
    messages, told = only_messages_on_output(), json.loads(sys.argv[1])

    def tell(**message: Any) -> None:
        os.write(messages, json.dumps(message).encode() + b"\n")

    from benchmarks.gpu.machine import identify

    tell(started=identify())
    for name in told["rows"]:
        tell(begin=name)
        began = time.perf_counter()
        found, can_go_on = measure(BY_NAME[name], told)
        tell(row=name, found={"took_s": round(time.perf_counter() - began, 1), **found})
        if not can_go_on:
            os._exit(BROKEN)
    os._exit(0)  # the end of CUDA and of compile's workers is nobody's time


if __name__ == "__main__":
    main()
