"""Bytes that a training step of ResNet-50 moves beside its convolutions, by how much is fused, and what that takes.

python -m benchmarks.fusion_bytes      prints the tables of docs/decisions/fused-convolutions.md

A pass reads or writes one activation once. What a convolution reads and writes by itself is not counted: its time is
the measured one, in every column. So the last two columns suppose that our convolutions are as fast as cuDNN's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH, BYTES = 256, 2  # bf16
STAGES = ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7))  # width, blocks, side at 224 px
WAYS = ("eager", "fused norm", "1x1 fused", "all fused")
MEASURED = Path(__file__).parent / "results" / "gpu-h100.json"
PROFILES = ("profile_bf16", "profile_compiled")  # rows of the bench, whose `ms` and `by_kind_ms` are read
OLD_COMPILED = "profile_cfull"  # in results before the bench had one name a row, whose `ms` was `gpu_ms`

# Passes (forward, backward) by way. In a block a, b and c are the outputs of its three convolutions, d is that of the
# downsampling, i the block's input. x is what a norm reads, y what it gives, g the gradient before its ReLU.
NORM_RELU = ((5, 8), (3, 5))  # BatchNorm's own 3 + 5, ReLU's 2 + 3; fused: x, x -> y; dy x, dy x -> dx
NORM_ADD_RELU = ((8, 8), (4, 7))  # BatchNorm's own, the addition's 3 + 0, ReLU's 2 + 3; fused: see kernels/norm.py
NORM = ((3, 5), (3, 5))
PASSES = {
    "stem": (*NORM_RELU, (3, 5), (3, 5)),
    # 1x1: statistics come from conv1; g, x -> dx moves into the prologues of its two backward kernels, one x more each.
    # All: conv2 normalises what it reads; its gradient's epilogue reads x for the mask and makes the sums.
    "a": (*NORM_RELU, (2, 4), (0, 3)),
    # 1x1: conv3 normalises what it reads, and its gradient's epilogue reads x, makes g and the sums; g, x -> dx stays.
    # All: conv2 makes the statistics, and the prologues of its two backward kernels read one x more each.
    "b": (*NORM_RELU, (1, 4), (0, 3)),
    # 1x1: statistics come from conv3; x, residual -> y stays; two prologues read one x more each.
    "c": (*NORM_ADD_RELU, (3, 2), (3, 2)),
    # 1x1: statistics come from the convolution; the sums read x once; two prologues.
    "d": (*NORM, (2, 3), (2, 3)),
    # The block's input gets two gradients, which are added. 1x1: conv1's gradient has an epilogue that reads the other
    # one, and y and x of the norm before, and writes g of it. In the first block there is no norm before.
    "i": ((0, 3), (0, 3), (0, 3), (0, 3)),
    "i of the first": ((0, 3), (0, 3), (0, 1), (0, 1)),
    "c of the last": (*NORM_ADD_RELU, (3, 6), (3, 6)),  # dy x y -> g has no convolution behind it to go into
}


@dataclass(frozen=True)
class Layer:
    """Layers that are alike."""

    name: str
    kind: str  # of `PASSES`
    channels: int
    side: int
    count: int = 1

    @property
    def bytes(self) -> int:
        """Of one pass over one of them."""
        return self.channels * self.side**2 * BATCH * BYTES

    def passes(self, way: str) -> tuple[int, int]:
        return PASSES[self.kind][WAYS.index(way)]

    def moved(self, way: str) -> int:
        """Bytes of all of them, there and back."""
        return self.count * self.bytes * sum(self.passes(way))


def layers() -> Iterator[Layer]:
    """What follows each convolution of ResNet-50, whose stride is in the 3x3 convolution, and the sums of gradients."""
    yield Layer("stem", "stem", 64, 112)
    channels, above = 64, 56
    for stage, (width, blocks, side) in enumerate(STAGES, 1):
        out = 4 * width
        yield Layer(f"layer{stage} bn1", "a", width, above)
        yield Layer(f"layer{stage} bn1", "a", width, side, blocks - 1)
        yield Layer(f"layer{stage} bn2", "b", width, side, blocks)
        last = stage == len(STAGES)
        yield Layer(f"layer{stage} bn3, add", "c", out, side, blocks - last)
        if last:
            yield Layer(f"layer{stage} bn3, add, the last", "c of the last", out, side)
        yield Layer(f"layer{stage} downsample", "d", out, side)
        yield Layer(f"layer{stage} gradients added", "i of the first" if stage == 1 else "i", channels, above)
        yield Layer(f"layer{stage} gradients added", "i", out, side, blocks - 1)
        channels, above = out, side


def table() -> list[str]:
    """The rows of the page, in Markdown."""
    lines = [
        "| layer | alike | C x H x W | MB a pass | " + " | ".join(WAYS) + " |",
        "|---|---|---|---|" + "---|" * len(WAYS),
    ]
    for layer in layers():
        passes = " | ".join("{} + {}".format(*layer.passes(way)) for way in WAYS)
        shape = f"{layer.channels} x {layer.side} x {layer.side}"
        lines.append(f"| {layer.name} | {layer.count} | {shape} | {layer.bytes / 1e6:.0f} | {passes} |")
    sums = " | ".join(f"**{sum(layer.moved(way) for layer in layers()) / 1e9:.1f} GB**" for way in WAYS)
    return [*lines, f"| all | | | | {sums} |"]


def prediction() -> list[str]:
    """Milliseconds of a step on the measured H100, in Markdown: the rest of a step as it was measured."""
    measured: dict[str, Any] = json.loads(MEASURED.read_text())
    rows, rate = measured["rows"], measured["ceilings"]["copy_tb_s"] * 1e12
    profile = rows[PROFILES[0]]
    eager, compiled = profile["by_kind_ms"], (rows.get(PROFILES[1]) or rows[OLD_COMPILED])["by_kind_ms"]
    moved = {way: sum(layer.moved(way) for layer in layers()) for way in WAYS}
    norms = {"eager": eager["batchnorm"] + eager["elementwise"]}
    reached = moved["fused norm"] / rate * 1e3 / (sum(compiled.get(kind, 0) for kind in ("batchnorm", "triton")))
    rest = profile.get("ms", profile.get("gpu_ms")) - norms["eager"]
    lines = ["| way | GB | ms at the rate of a copy | ms expected | step, ms | images/s |", "|---|---|---|---|---|---|"]
    for way in WAYS:
        ideal = moved[way] / rate * 1e3
        expected = norms.get(way, ideal / reached)
        step = rest + expected
        milliseconds = " | ".join(f"{value:.1f}" for value in (ideal, expected, step))
        lines.append(f"| {way} | {moved[way] / 1e9:.1f} | {milliseconds} | {BATCH / step * 1e3:,.0f} |")
    return [
        *lines,
        "",
        f"inductor's kernels reach {reached:.0%} of a copy; convolutions and the rest take {rest:.1f} ms",
    ]


if __name__ == "__main__":
    print("\n".join([*table(), "", *prediction()]))
