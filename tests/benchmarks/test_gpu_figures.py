"""The figures of the H100 on the pages are those of the bench's result: a new result says which lines to change."""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

import pytest

from benchmarks.fusion_bytes import PROFILES
from benchmarks.gpu.result import RATIOS
from benchmarks.gpu.rows import BY_NAME
from tests import ROOT

RATE = "images_per_second"
LINES = {  # a line of docs/results.md, and where its figures are in the rows
    "bf16, the default | 224": [f"ours_bf16.{RATE}"],
    "fp16 | 224": [f"ours_fp16.{RATE}"],
    "bf16 with `--compile` | 224": [f"compile_bf16.{RATE}"],
    "fp16 with `--compile` | 224": [f"compile_fp16.{RATE}"],
    "bf16 | 160": [f"ours_bf16@160.{RATE}"],
    "bf16 | 112": [f"ours_bf16@112.{RATE}"],
    "torchvision, channels last, fp16": [f"peer_amp_nhwc_fp16.{RATE}"],
    "torchvision, channels last, bf16": [f"peer_amp_nhwc_bf16.{RATE}"],
    "timm": [f"peer_timm.{RATE}"],
    "torchvision, fp16, channels first": [f"peer_amp_nchw_fp16.{RATE}"],
    "none, random images": [f"loader.synthetic.{RATE}", f"loader@112.synthetic.{RATE}"],
    "4": [f"loader.train_4_threads.{RATE}", f"loader@112.train_4_threads.{RATE}"],
    "8, the default": [f"loader.train_8_threads.{RATE}", f"loader@112.train_8_threads.{RATE}"],
    "16": [f"loader.train_16_threads.{RATE}", f"loader@112.train_16_threads.{RATE}"],
}
ROWS: dict[str, Any] = json.loads((ROOT / "benchmarks/results/gpu-h100.json").read_text())["rows"]
SECTION = (ROOT / "docs/results.md").read_text().split("## On one H100")[1].split("\n## ")[0]


def figure(path: str) -> str:
    found: Any = ROWS
    for name in path.split("."):
        found = found[name]
    return f"{found:,}"


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_table_has_the_figures_of_the_result(line: str) -> None:
    assert f"| {line} | {' | '.join(map(figure, LINES[line]))} |" in SECTION.splitlines()


def test_what_pages_and_scripts_read_are_rows_of_the_bench() -> None:
    """Else the next result would break them."""
    ratios = [above for above, _ in RATIOS.values()]
    for _, below in RATIOS.values():
        ratios += [below] if isinstance(below, str) else below
    paths = [*chain.from_iterable(LINES.values()), *ratios, *PROFILES]
    assert {path.split(".")[0] for path in paths} <= BY_NAME.keys()


def test_every_line_of_the_tables_is_compared() -> None:
    lines = re.findall(r"^\| (.+) \|$", SECTION, re.MULTILINE)
    figures = [line for line in lines if re.search(r"[0-9],[0-9]", line)]
    assert len(figures) == len(LINES)


def test_the_first_page_has_the_same_figures() -> None:
    one, compiled = figure(f"ours_bf16.{RATE}"), figure(f"compile_bf16.{RATE}")
    assert f"| {one} images/s; {compiled} with `--compile` |" in (ROOT / "README.md").read_text()
