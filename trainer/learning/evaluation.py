"""Validation: every image exactly once, whatever the number of processes. Training accuracy is the loop's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.augment.batch import to_input
from trainer.learning.world import World, all_sum
from trainer.recipes.config import Config

if TYPE_CHECKING:
    from trainer.data.reading.split import PreparedSplit


def hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number of images whose label is the first, and among the first five (or fewer classes): two 0-d tensors."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return top[:, 0].sum(), top.sum()


@torch.inference_mode()
def evaluate(
    models: dict[str, nn.Module], split: PreparedSplit, config: Config, world: World, alive: Callable[[int], None]
) -> dict[str, Tensor]:
    """For each model, sums over this process's images of loss, top-1 hits, top-5 hits, and images: (4,) float64.

    Cross entropy without smoothing, in fp32. All models see each decoded batch, so a second one costs no decoding.
    `alive(images)` is called after every batch. No collectives here: one process may be interrupted on its own.
    """
    from trainer.data.reading.loader import Loader, val_jobs  # it imports pyarrow, which one image does not need

    sums = {name: torch.zeros(4, dtype=torch.float64, device=world.device) for name in models}
    for model in models.values():
        model.eval()
    jobs = val_jobs(config, split, rank=world.rank, world=world.size)
    try:
        with Loader(
            jobs, max_images=min(config.val_batch_size, len(split)), image_bytes=config.data.val_crop**2 * 3,
            workers=config.data.workers, device=world.device,
        ) as loader:  # fmt: skip
            for batch in loader:
                images = to_input(batch.images, batch.flips, config.data, dtype=forward_dtype(config))
                for name, model in models.items():
                    with autocast(config, world.device):
                        logits = model(images)
                    logits = logits.float()
                    loss = F.cross_entropy(logits, batch.labels, reduction="sum")
                    sums[name] += torch.stack([loss, *hits(logits, batch.labels), loss.new_full((), len(images))])
                alive(len(batch.labels))
    finally:
        for model in models.values():
            model.train()
    return sums


def scores(sums: dict[str, Tensor], world: World) -> dict[str, float]:
    """`val/loss`, `val/top1`, `val/top5` over all processes; the names of the models are the prefixes."""
    found: dict[str, float] = {}
    for name, values in sums.items():
        loss, top1, top5, count = all_sum(values, world).tolist()
        found |= {f"{name}/loss": loss / count, f"{name}/top1": top1 / count, f"{name}/top5": top5 / count}
    return found


def best_of(found: dict[str, float], step: int) -> dict[str, Any]:
    """The best of model and averages by top-1, as a checkpoint and `result.json` name it."""
    top1, name = max((value, name.removesuffix("/top1")) for name, value in found.items() if name.endswith("/top1"))
    return {"top1": top1, "step": step, "weights": name.removeprefix("val_") if name != "val" else "model"}


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The forward pass's precision; a no-op for fp32."""
    # A cache serves weights that are used twice, of which a ResNet has none, and a CUDA graph must not see it.
    return torch.autocast(
        device.type, dtype=forward_dtype(config), enabled=config.precision != "fp32", cache_enabled=False
    )


def forward_dtype(config: Config) -> torch.dtype:
    """What convolutions compute in, and so the type of the images that the first one gets."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
