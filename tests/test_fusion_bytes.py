"""The tables of the page on fusion are what the script computes, and the script knows ResNet-50."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from benchmarks import fusion_bytes
from benchmarks.fusion_bytes import OLD_COMPILED, PASSES, PROFILES, WAYS, layers, prediction, table
from tests import ROOT

PAGE = ROOT / "docs" / "decisions" / "fused-convolutions.md"


def test_the_page_shows_what_the_script_computes() -> None:
    page = PAGE.read_text().splitlines()
    for lines in (table(), prediction()[: 2 + len(WAYS)]):
        start = page.index(lines[0])
        assert page[start : start + len(lines)] == lines


def test_results_of_the_bench_as_it_is_now_are_read_as_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = json.loads(fusion_bytes.MEASURED.read_text())
    profiles = {name: measured["rows"].get(name) for name in (*PROFILES, OLD_COMPILED)}
    profiles[PROFILES[1]] = profiles[PROFILES[1]] or profiles.pop(OLD_COMPILED)
    ways = {"profile_bf16": profiles["profile_bf16"], "profile_compiled": profiles["profile_compiled"]}
    now = {
        name: {"ms": row.get("ms", row.get("gpu_ms")), "by_kind_ms": row["by_kind_ms"]} for name, row in ways.items()
    }
    before = prediction()
    monkeypatch.setattr(fusion_bytes, "MEASURED", tmp_path / "gpu-h100.json")
    fusion_bytes.MEASURED.write_text(json.dumps(measured | {"rows": now}))
    assert prediction() == before


def test_each_norm_of_torchvisions_model_is_counted() -> None:
    counted = sorted(
        (layer.channels, layer.side) for layer in layers() if not layer.kind.startswith("i") for _ in range(layer.count)
    )
    seen: list[tuple[int, int]] = []
    with torch.device("meta"):
        model = torchvision.models.resnet50()
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:3])))
        model(torch.zeros(2, 3, 224, 224))
    assert counted == sorted(seen)
    assert len(counted) == 53
    assert {layer.kind for layer in layers()} == set(PASSES)
