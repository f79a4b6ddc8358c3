"""What was measured, on disk after every row: a line of JSON as it came, and the whole result, replaced in one step.

A bench that is cut off at any point leaves both whole. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import EAGER_OURS, EAGER_PEERS, ROWS, Row

METHOD = (
    "Batch 256 at 224 px unless a row says otherwise (name@px). Rates: wall clock of a drained GPU, 5 rounds (3 where "
    "a row has several variants) of at least half a second, the median; spread is (most - least) / median; enqueue_ms "
    "is what the processor needs to enqueue the first step of a round. One batch of random uint8 images lies on the "
    "GPU. Rows of ours run the trainer's own train_step on ResNet-50 with average and label smoothing, with the "
    "options that the row names. Peers run ResNet-50s of torchvision or timm: plain loops on one batch of random "
    "floats; reference is torchvision's train_one_epoch with the numbers that it prints; ffcv starts from uint8. "
    "Loader and run_photographs read prepared photographs, repeated. Runs go through the supervisor. fp32 is TF32 in "
    "convolutions. Ratios: best_peer is the fastest eager row of peers, best_eager that of peers and ours, of those "
    "that were measured. PYTORCH_ALLOC_CONF=expandable_segments:True."
)
RATE = "images_per_second"
PEERS, EAGER = (tuple(f"{name}.{RATE}" for name in names) for names in (EAGER_PEERS, EAGER_PEERS + EAGER_OURS))
RATIOS: Mapping[str, tuple[str, str | tuple[str, ...]]] = {  # a figure over another or the best of several, each a path
    "fp16_over_bf16_eager": (f"ours_fp16.{RATE}", f"ours_bf16.{RATE}"),
    "ours_fp16_over_best_peer": (f"ours_fp16.{RATE}", PEERS),
    "compile_bf16_over_ours_bf16": (f"compile_bf16.{RATE}", f"ours_bf16.{RATE}"),
    "compile_bf16_over_ours_fp16": (f"compile_bf16.{RATE}", f"ours_fp16.{RATE}"),
    "compile_bf16_over_best_peer": (f"compile_bf16.{RATE}", PEERS),
    "compile_bf16_over_compiled_peer": (f"compile_bf16.{RATE}", f"peer_compile_nhwc_bf16.{RATE}"),
    "compile_graph_bf16_over_best_peer": (f"compile_graph_bf16.{RATE}", PEERS),
    "compiled_stem_graph_over_best_peer": (f"compile_graph_stem.{RATE}", PEERS),
    "compile_bf16_over_best_eager": (f"compile_bf16.{RATE}", EAGER),
    "compile_graph_bf16_over_best_eager": (f"compile_graph_bf16.{RATE}", EAGER),
    "compiled_stem_graph_over_best_eager": (f"compile_graph_stem.{RATE}", EAGER),
    "graph_norm_stem_over_best_eager": (f"graph_norm_stem_bf16.{RATE}", EAGER),
    "compiled_graph_over_ours_at_112": (f"compile_graph_bf16@112.{RATE}", f"ours_bf16@112.{RATE}"),
    "stem_over_ours_bf16": (f"stem_bf16.{RATE}", f"ours_bf16.{RATE}"),
    "fused_norm_over_ours_bf16": (f"norm_bf16.{RATE}", f"ours_bf16.{RATE}"),
    "deterministic_step_times": ("deterministic.deterministic.ms", "deterministic.fastest.ms"),
    "warm_first_step_times": ("compile_warm.first_step_s", "compile_bf16.first_step_s"),
}
UNKNOWN = ("unknown", "-dirty", " and later changes")  # ends of a commit that does not tell the code; the kit has some
SAME = ("gpu", "torch", "driver")  # of the machine, in rows of one result
LEFT_OUT = ("stderr", "trace", "said")  # they may name paths; the lines have them
NEVER = ("several GPUs",)  # what no row measures


def card_name(gpu: str | None) -> str:
    """`h100` of NVIDIA H100 80GB HBM3, `rtx-4090` of NVIDIA GeForce RTX 4090, `cpu` of none."""
    words = [word for word in re.split(r"[ -]", (gpu or "cpu").lower()) if word not in ("nvidia", "geforce", "tesla")]
    return re.sub(r"[^a-z0-9-]", "", "-".join(words[:2] if words[0] in ("rtx", "gtx", "quadro") else words[:1]))


class Result:
    """The result of one machine at one commit, in a folder: gpu-<card>.json, and its lines in gpu-<card>.jsonl.

    It goes on from a result of the same commit, card, driver and torch. Another one is replaced, or, where only `some`
    rows are measured, left: then this one is beside it as gpu-<card>-some.json. `other` is the commit of the other.
    """

    def __init__(self, folder: Path, machine: Mapping[str, Any], *, some: bool = False):
        self.machine = {name: value for name, value in machine.items() if name != "commit"}
        self.commit = machine["commit"]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"gpu-{card_name(machine['gpu'])}.json"
        self.found: dict[str, Any] = {}
        self.failed: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self.other: str | None = None
        before = self._before()
        if before and not self._is_continued(before):
            self.other, before = before["commit"], {}
            if some:
                self.path = self.path.with_stem(f"{self.path.stem}-some")
                before = self._before()
        self.lines = self.path.with_suffix(".jsonl")
        if before and self._is_continued(before):
            self.found, self.failed = before["rows"] | {"ceilings": before["ceilings"]}, before["failed"]
            self.found = {name: found for name, found in self.found.items() if found}

    def _before(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        return found

    def _is_continued(self, before: Mapping[str, Any]) -> bool:
        """Whether its rows are of this code and this machine. `UNKNOWN` code is never the same."""
        known = self.commit and not self.commit.endswith(UNKNOWN)
        same = all(before["machine"].get(name) == self.machine.get(name) for name in SAME)
        return bool(known and before["commit"] == self.commit and same)

    def add(self, row: Row, found: Mapping[str, Any]) -> None:
        """Take a row in, and write both files. A failure is told beside what the row found before, if it did."""
        line = json.dumps({"commit": self.commit, "name": row.name, **found})
        with self.lines.open("a") as file:
            file.write(line + "\n")
        short = _without(found, LEFT_OUT)
        if "not_measured" in found:
            self.left_out[row.name] = found["not_measured"]
            return self.write()
        for place in (self.failed, self.left_out):
            place.pop(row.name, None)
        (self.failed if "error" in found else self.found)[row.name] = short
        return self.write()

    def write(self) -> None:
        body = json.dumps(self.as_json(), indent=1)
        body = re.sub(r'\[\s+("[^"\]]*"),\s+(\d+),\s+([\d.]+)\s+\]', r"[\1, \2, \3]", body)  # kernels, one a line
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(body + "\n")
        temporary.replace(self.path)

    def as_json(self) -> dict[str, Any]:
        rows = {row.name: self.found[row.name] for row in ROWS if row.name in self.found and row.name != "ceilings"}
        missing = [row.name for row in ROWS if row.name not in self.found and row.name not in self.failed]
        reasons = [f"{name}: {self.left_out[name]}" if name in self.left_out else name for name in missing]
        return {
            "date": datetime.now(UTC).date().isoformat(), "commit": self.commit, "machine": self.machine,
            "method": METHOD, "ratios": self.ratios(), "ceilings": self.found.get("ceilings", {}), "rows": rows,
            "failed": self.failed, "not_measured": [*reasons, *NEVER],
        }  # fmt: skip

    def ratios(self) -> dict[str, float]:
        """By name, where both figures were measured; a warm first step only over one that is known to be cold."""
        pairs = {name: (self.value(above), self.best(below)) for name, (above, below) in RATIOS.items()}
        if not self.found.get("compile_bf16", {}).get("cold"):
            del pairs["warm_first_step_times"]
        return {name: round(above / below, 3) for name, (above, below) in pairs.items() if above and below}

    def best(self, paths: str | tuple[str, ...]) -> float:
        return max(map(self.value, (paths,) if isinstance(paths, str) else paths))

    def value(self, path: str) -> float:
        """A figure of the rows by its path; 0 where it was not measured."""
        found: Any = self.found
        for name in path.split("."):
            found = found.get(name, {}) if isinstance(found, Mapping) else {}
        return float(found) if isinstance(found, int | float) else 0.0

    def has(self, name: str) -> bool:
        return name in self.found

    def table(self) -> list[str]:
        """A line for each rate: images/s, ms, spread, GB at the peak, and the row that it belongs to."""
        lines = [f"{'row':34}{'images/s':>10}{'ms':>10}{'spread':>9}{'enqueue':>9}{'peak GB':>9}"]
        for name, found in self.found.items():
            lines += [_rate_line(label, rate) for label, rate in _rates(name, found)]
        lines += [f"{name:44} {ratio:.3f}" for name, ratio in self.ratios().items()]
        lines += [f"FAILED {name}: {failure['error']}" for name, failure in self.failed.items()]
        return lines + [f"not measured: {name}: {reason}" for name, reason in self.left_out.items()]


def _rates(name: str, found: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(found, Mapping):
        return []
    mine = [(name, found)] if "images_per_second" in found else []
    return mine + [rate for key, value in found.items() for rate in _rates(f"{name} {key}", value)]


def _rate_line(label: str, rate: Mapping[str, Any]) -> str:
    cells = [("images_per_second", 10, ",.0f"), ("ms", 10, ".2f"), ("spread", 9, ".1%"), ("enqueue_ms", 9, ".1f"),
             ("peak_gb", 9, ".2f")]  # fmt: skip
    return f"{label[:33]:34}" + "".join(
        f"{format(rate[name], form) if rate.get(name) is not None else '':>{width}}" for name, width, form in cells
    )


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {name: _without(one, names) for name, one in value.items() if name not in names}
    return [_without(one, names) for one in value] if isinstance(value, list) else value
