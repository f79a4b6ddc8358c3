"""torchvision's and timm's ways to train, from the public parts of their packages, on a CPU in fp32.

The loops are written after torchvision's references/classification/train.py and timm's train.py. Neither is in a
package that one can import. Where the two choose differently, the settings decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.parity.sets import MEAN, STD, Settings

Batches = Iterable[tuple[Tensor, Tensor]]


def torchvision_loop(settings: Settings, folder: Path, seed: int) -> float:
    """Top-1 on the validation images after the last epoch, as a share."""
    torch.manual_seed(seed)
    dataset = ImageFolder(folder / "train", torchvision_transform(settings))
    classes = len(dataset.classes)
    mixup = v2.MixUp(alpha=settings.mixup_alpha, num_classes=classes)
    mixing = v2.RandomChoice([mixup, v2.CutMix(alpha=settings.cutmix_alpha, num_classes=classes)])
    collate = (lambda batch: mixing(*default_collate(batch))) if settings.mixed else default_collate
    loader = DataLoader(dataset, settings.batch, sampler=RandomSampler(dataset), collate_fn=collate)
    net = torchvision.models.get_model(settings.network, weights=None, num_classes=classes)
    parameters = list(net.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=settings.peak_lr, momentum=settings.momentum)
    _train(net, loader, optimizer, nn.CrossEntropyLoss(label_smoothing=settings.smoothing), settings)
    seen = v2.Compose([v2.Resize(settings.resize), v2.CenterCrop(settings.pixels), *_to_normalised()])
    return _top1(net, DataLoader(ImageFolder(folder / "val", seen), 100))


def torchvision_transform(settings: Settings) -> v2.Compose:
    """From a PIL image to a normalised tensor, in the order of torchvision's presets."""
    return v2.Compose([*torchvision_pixels(settings), *_to_normalised()])


def torchvision_pixels(settings: Settings) -> list[Any]:
    """The part of it that gives pixels."""
    crop = v2.RandomResizedCrop(settings.pixels, scale=settings.crop_scale, ratio=settings.crop_ratio)
    return [crop, v2.RandomHorizontalFlip(settings.flip), *([v2.TrivialAugmentWide()] if settings.mixed else [])]


def _to_normalised() -> list[Any]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def timm_loop(settings: Settings, folder: Path, seed: int) -> float:
    """Top-1 on the validation images after the last epoch, as a share."""
    data, losses, models, optim = (import_module(f"timm.{name}") for name in ("data", "loss", "models", "optim"))
    torch.manual_seed(seed)
    _seed_others(seed)
    loader = timm_loader(settings, folder / "train", training=True)
    classes = len(ImageFolder(folder / "train").classes)
    net = models.create_model(settings.network, num_classes=classes, zero_init_last=False)
    optimizer = optim.create_optimizer_v2(
        net, opt="momentum", lr=settings.peak_lr, weight_decay=settings.weight_decay, momentum=settings.momentum
    )
    loss: nn.Module = losses.LabelSmoothingCrossEntropy(settings.smoothing)
    batches: Batches = loader
    if settings.mixed:
        mixup = data.Mixup(
            mixup_alpha=settings.mixup_alpha, cutmix_alpha=settings.cutmix_alpha, label_smoothing=settings.smoothing,
            num_classes=classes,
        )  # fmt: skip
        batches, loss = Mixed(loader, mixup), losses.SoftTargetCrossEntropy()
    _train(net, batches, optimizer, loss, settings)
    return _top1(net, timm_loader(settings, folder / "val", training=False))


class Mixed:
    """The batches of a loader, mixed by timm on the way; again in each epoch."""

    def __init__(self, batches: Batches, mixup: Any):
        self.batches, self.mixup = batches, mixup

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.mixup(images, labels) for images, labels in self.batches)


def timm_loader(settings: Settings, folder: Path, *, training: bool) -> Any:
    """timm's own loader and transforms; its colour jitter is off, and it interpolates as the others do."""
    dataset = ImageFolder(folder)
    loader = import_module("timm.data").create_loader(
        dataset, (3, settings.pixels, settings.pixels), settings.batch if training else 100, is_training=training,
        use_prefetcher=False, scale=settings.crop_scale, ratio=settings.crop_ratio, hflip=settings.flip,
        color_jitter=None, interpolation="bilinear", mean=MEAN, std=STD, num_workers=0, persistent_workers=False,
        crop_pct=settings.pixels / settings.resize, device=torch.device("cpu"), pin_memory=False,
    )  # fmt: skip
    if training and settings.mixed:  # timm has no TrivialAugment: torchvision's comes at the same place
        dataset.transform.transforms.insert(2 if settings.flip else 1, v2.TrivialAugmentWide())
    return loader


def _seed_others(seed: int) -> None:
    """timm's transforms and mixup draw from Python and numpy."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed)


def _train(
    net: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    settings: Settings,
) -> None:
    """All epochs. torch's OneCycleLR steps after each batch; momentum stays."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.peak_lr, total_steps=settings.steps, cycle_momentum=False, div_factor=25.0,
        final_div_factor=1e4, pct_start=0.3,
    )  # fmt: skip
    net.train()
    for _ in range(settings.epochs):
        for images, targets in batches:
            loss: Any = loss_of(net(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def _top1(net: nn.Module, batches: Batches) -> float:
    net.eval()
    hits = [(net(images).argmax(1) == labels).float() for images, labels in batches]
    return float(torch.cat(hits).mean())
