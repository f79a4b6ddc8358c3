"""Other people's ways to train a ResNet-50, on the same card in the same run: torchvision's, timm's, FFCV's.

torchvision's reference loop and FFCV's are written after their scripts; neither is in a package that one can import.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.gpu.measure import Found, NotMeasuredError, Place, noise, timed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(place: Place, *, channels_last: bool) -> nn.Module:
    net = torchvision.models.get_model(place.network, weights=None)
    return _placed(net, place, channels_last)


def _placed(net: Any, place: Place, channels_last: bool) -> nn.Module:
    placed: nn.Module = net.to(
        place.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    return placed


def floats(place: Place, *, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Normalised images, as a loader of theirs would give them, and labels."""
    images = torch.randn(place.batch, 3, place.pixels, place.pixels, device=place.device)
    labels = noise(place, place.batch, 1)[1]
    return (images.contiguous(memory_format=torch.channels_last) if channels_last else images), labels


def plain(place: Place, *, precision: str, channels_last: bool, timm: bool = False, compiled: bool = False) -> Found:
    """The usual few lines: autocast, loss, backward, SGD. No average, no accuracy, no preprocessing.

    With `compiled`, torch.compile of the network, as its documentation shows it.
    """
    _set_backends()
    if timm:
        try:
            from timm import create_model  # type: ignore[import-not-found]
        except ImportError as error:
            raise NotMeasuredError("timm is not installed") from error
        net = _placed(create_model("resnet10t" if place.tiny else "resnet50"), place, channels_last)
    else:
        net = network(place, channels_last=channels_last)
    images, labels = floats(place, channels_last=channels_last)
    if compiled:
        torch._dynamo.reset()
        faster: Any = torch.compile(net)
        net = faster
    return timed(place, stepping(place, net, lambda: images, labels, precision, fused=place.on_gpu))


def reference(place: Place, *, amp: bool, channels_last: bool) -> Found:
    """torchvision's references/classification/train.py: `train_one_epoch`, with the numbers that it prints."""
    _set_backends()
    net = network(place, channels_last=channels_last)
    images, labels = floats(place, channels_last=channels_last)
    seen: list[float] = []

    def after(loss: Tensor, logits: Tensor) -> None:
        best = logits.topk(5, dim=1).indices == labels[:, None]
        top1, top5 = best[:, :1].float().sum() * (100 / len(labels)), best.float().sum() * (100 / len(labels))
        seen[:] = [loss.item(), top1.item(), top5.item()]  # which wait for the GPU, as theirs do

    return timed(place, stepping(place, net, lambda: images, labels, "fp16" if amp else "fp32", after))


def ffcv(place: Place) -> Found:
    """libffcv/ffcv-imagenet's train_imagenet.py: fp16, channels last, images normalised to fp16 on the GPU."""
    _set_backends()
    net = network(place, channels_last=True)
    images, labels, _ = noise(place, place.batch, place.pixels)
    mean, std = (torch.tensor(values, device=place.device, dtype=torch.float16) * 255 for values in (MEAN, STD))

    def normalised() -> Tensor:
        return ((images.half() - mean) / std).permute(0, 3, 1, 2)

    return timed(place, stepping(place, net, normalised, labels, "fp16", fused=place.on_gpu))


def stepping(
    place: Place,
    net: nn.Module,
    images: Callable[[], Tensor],
    labels: Tensor,
    precision: str,
    after: Callable[[Tensor, Tensor], None] = lambda loss, logits: None,
    *,
    fused: bool = False,
) -> Callable[[], None]:
    """One step of a peer. An SGD that is not `fused` makes GradScaler wait for the GPU at each step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=fused)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    scaler = torch.amp.GradScaler(place.device.type, enabled=precision == "fp16")

    def step() -> None:
        lower = torch.autocast(place.device.type, DTYPES[precision]) if precision != "fp32" else nullcontext()
        with lower:
            logits = net(images())
            loss = loss_of(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        after(loss.detach(), logits.detach())

    return step


def _set_backends() -> None:
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
