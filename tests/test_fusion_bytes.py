"""The tables of the page on fusion are what the script computes, and the script knows ResNet-50."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

from benchmarks.fusion_bytes import PASSES, WAYS, layers, prediction, table
from tests import ROOT

PAGE = ROOT / "docs" / "decisions" / "fused-convolutions.md"


def test_the_page_shows_what_the_script_computes() -> None:
    page = PAGE.read_text().splitlines()
    for lines in (table(), prediction()[: 2 + len(WAYS)]):
        start = page.index(lines[0])
        assert page[start : start + len(lines)] == lines


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
