"""Where a step's time goes: the kernels of one step by kind, and those that take the most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.measure import Found, Place
from benchmarks.gpu.steps import config_of, dotted, ours

TOP, NAME_CHARACTERS = 25, 80
KINDS = (
    ("batchnorm", ("batch_norm", "bn_fw", "bn_bw", "batchnorm", "_bn_")),
    ("copy", ("memcpy", "memset")),
    ("nchw_nhwc", ("nchwtonhwc", "nhwctonchw")),
    ("convolution", ("gemm", "conv", "cudnn", "xmma", "sm90", "sm80", "cutlass", "wgrad", "dgrad", "nvjet")),
    ("pool", ("pool",)),
    ("triton", ("triton",)),
    ("multi_tensor", ("multi_tensor",)),
    ("reduce", ("reduce",)),
    ("elementwise", ("elementwise",)),
)


def profile_step(place: Place, **options: Any) -> Found:
    small = {"model.name": "resnet18"} if place.tiny else {}  # of fewer operations
    return kernels(place, ours(place, config_of(place, {**dotted(options), **small})).step)


def kernels(place: Place, step: Callable[[], Any]) -> Found:
    """The kernels of one step; on a CPU its operations."""
    for _ in range(1 if place.tiny else 3):
        step()
    place.drain()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        place.drain()
    found = [(event.key, event.count, _milliseconds(place, event)) for event in profiler.key_averages()]
    found = [one for one in found if one[2] > 0 and not one[0].startswith("Optimizer.step")]
    kinds: Counter[str] = Counter()
    for name, _, milliseconds in found:
        kinds[kind_of(name)] += milliseconds  # type: ignore[assignment]
    top = sorted(found, key=lambda one: -one[2])[:TOP]
    return {
        "kernels": sum(count for _, count, _ in found),
        "ms": round(sum(milliseconds for *_, milliseconds in found), 2),
        "by_kind_ms": {kind: round(milliseconds, 3) for kind, milliseconds in kinds.most_common()},
        "top": [[name.split("(")[0][:NAME_CHARACTERS], count, round(ms, 3)] for name, count, ms in top],
    }


def _milliseconds(place: Place, event: Any) -> float:
    """Of a kernel on the GPU; 0 for what ran on the host, which only waits for it."""
    if not place.on_gpu:
        return float(event.self_cpu_time_total) / 1e3
    return float(event.self_device_time_total) / 1e3 if str(event.device_type).endswith("CUDA") else 0.0


def kind_of(kernel: str) -> str:
    return next((kind for kind, words in KINDS if any(word in kernel.lower() for word in words)), "other")
