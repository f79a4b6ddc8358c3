"""What the card and its bus can do at most: bytes copied, products computed, bytes to and from the host."""

from __future__ import annotations

import torch
from torch.utils.benchmark import Timer

from benchmarks.gpu.measure import Found, Place, card_now

COPY_BYTES, HOST_BYTES, SIDE = 2**30, 2**28, 8192


def _seconds(statement: str, **names: object) -> float:
    return float(Timer(statement, globals=names).blocked_autorange(min_run_time=0.3).median)


def measure(place: Place) -> Found:
    one = torch.empty(COPY_BYTES, dtype=torch.uint8, device=place.device)
    other, host = torch.empty_like(one), torch.empty(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
    found: Found = {"copy_tb_s": round(2 * COPY_BYTES / _seconds("b.copy_(a)", a=one, b=other) / 1e12, 3)}
    for dtype in (torch.bfloat16, torch.float16):
        square = torch.randn(SIDE, SIDE, device=place.device).to(dtype)
        seconds = _seconds("m @ m", m=square)
        found[f"{str(dtype).removeprefix('torch.')}_tflops"] = round(2 * SIDE**3 / seconds / 1e12)
    part = one[:HOST_BYTES]
    for name, statement in (("d2h_gb_s", "h.copy_(p, non_blocking=True); drain()"),
                            ("h2d_gb_s", "p.copy_(h, non_blocking=True); drain()")):  # fmt: skip
        found[name] = round(HOST_BYTES / _seconds(statement, p=part, h=host, drain=place.drain) / 1e9, 1)
    settings = torch.cuda.memory._snapshot()["allocator_settings"]
    found["expandable_segments"] = settings.get("expandable_segments")
    small = torch.zeros(8, device=place.device)
    found["tiny_op_us"] = round(_seconds("x.add_(1)", x=small) * 1e6, 2)
    return found | card_now()
