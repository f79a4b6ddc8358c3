"""Soups: one network with the mean of the members' weights (Wortsman et al., arXiv:2203.05482), and a file of it.

Members that began with the same weights have such a mean. Its BatchNorm statistics are new, from training images.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from trainer.checkpoint.layout import BLUR_POOL
from trainer.contract import UserError
from trainer.data.format import Index
from trainer.learning.norms import IMAGES, renew_norms, share_norms
from trainer.learning.schedule import Clock
from trainer.learning.world import World, all_sum
from trainer.model_card import METADATA_KEY, ModelCard
from trainer.recipes.config import Config
from trainer.scoring.members import Member, check_same_classes
from trainer.scoring.memory import telling_full_gpu
from trainer.setup import Data, open_loader

ALIKE = ("network", "blur_pool", "mean", "std", "val_resize", "val_crop", "resize_mode")  # in the cards of a soup
SOUP_SUFFIX = ".safetensors"


def check_ingredients(members: Sequence[Member]) -> None:
    """Raises UserError where the weights of members have no mean: other networks, classes or preprocessing."""
    if len(members) < 2:
        raise UserError(f"a soup needs two members or more, not {members[0].name!r} alone: name them as a,b,c")
    check_same_classes(members)
    first = members[0]
    shapes = {name: tensor.shape for name, tensor in first.model.state_dict().items()}
    for other in members[1:]:
        for field in ALIKE:
            before, after = getattr(first.card, field), getattr(other.card, field)
            if before != after:
                raise UserError(
                    f"{first.name!r} and {other.name!r} make no soup: {field} is {before} and {after}, and the mean of "
                    "their weights would fit neither; choose members alike, or leave --soup out: an ensemble takes both"
                )
        if {name: tensor.shape for name, tensor in other.model.state_dict().items()} != shapes:
            raise UserError(
                f"{first.name!r} and {other.name!r} make no soup: their tensors have other shapes, for another number "
                "of classes perhaps; choose members with the same classes"
            )


@torch.no_grad()
def soup_of(members: Sequence[Member], name: str) -> Member:
    """The mean of the members' weights. Its statistics are a mean, too, which fits no weights: `renew_statistics` next.

    What is counted, and not measured, is the first member's. One member alone is given back as it is.
    """
    if len(members) == 1:
        return members[0]
    model, states = copy.deepcopy(members[0].model), [member.model.state_dict() for member in members]
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([state[key].double() for state in states]).mean(dim=0))
    return Member(name, model, soup_card([member.card for member in members]))


def soup_card(cards: Sequence[ModelCard]) -> ModelCard:
    """The first one's, without what only holds for one run, or what they have different."""
    first = cards[0]
    recipe = first.recipe if all(card.recipe == first.recipe for card in cards) else ""
    data = first.data if all(card.data == first.data for card in cards) else {}
    pixels = first.train_pixels if all(card.train_pixels == first.train_pixels for card in cards) else 0
    return replace(
        first, recipe=recipe, data=data, train_pixels=pixels, run_id="", step=0, seed=0, weights="soup",
        checkpoint_sha256="",
    )  # fmt: skip


def statistics_pixels(card: ModelCard) -> int:
    """Of a side of the training images that statistics come from: as at the end of training, if anybody knows it."""
    return card.train_pixels or card.val_crop


def statistics_config(card: ModelCard, trained: Config, base: Config, index: Index, world: World) -> Config:
    """How training images are shown for the statistics: as `trained`, at its last size, and on this device.

    `base` says precision, batch, threads and device.
    """
    pixels = statistics_pixels(card)
    batch = max(1, min(base.val_batch_size, index.splits["train"].images // world.size))
    data = replace(
        trained.data, mean=card.mean, std=card.std, resolution=pixels, start_resolution=pixels, ramp_start_epoch=0.0,
        ramp_end_epoch=0.0, repeats=1, sampling="shuffled", workers=base.data.workers,
    )  # fmt: skip
    return replace(
        trained, data=data, epochs=1, global_batch_size=batch * world.size, device_batch_size=batch,
        precision=base.precision, device=base.device, model=replace(trained.model, num_classes=len(index.classes)),
    )  # fmt: skip


def renew_statistics(member: Member, data: Data, config: Config, world: World, alive: Callable[[int], None]) -> int:
    """BatchNorm statistics from training images, about norms.IMAGES of them, the same on all processes.

    Gives back how many images all processes took. `config` is that of `statistics_config`. The network stays in eval
    mode, on the device. Raises UserError where there are fewer images than processes.
    """
    images, taken = data.index.splits["train"].images, torch.zeros(1, dtype=torch.float64, device=world.device)
    if images < config.global_batch_size:
        raise UserError(
            f"the {images} training image(s) of {data.index.name} are too few for the BatchNorm statistics of a "
            f"soup on {world.size} processes, which take one each: start fewer processes, or leave --soup out"
        )

    def count(batch: int) -> None:
        taken.add_(batch)
        alive(batch)

    clock = Clock(config=config, steps_per_epoch=images // config.global_batch_size)
    steps = min(clock.steps_per_epoch, -(-IMAGES // config.global_batch_size))
    with telling_full_gpu(config.device_batch_size), open_loader(config, data, clock, world, range(steps)) as batches:
        model = member.model.to(world.device)
        batches_taken = renew_norms(model, batches, config, world, 0, count)
    share_norms(model, world, batches_taken)
    model.eval()
    return int(all_sum(taken, world).item())


def check_soup(kind: str, file: str, members: Sequence[Member]) -> None:
    """Raises UserError for what is known before anything is scored. `file` is where the soup goes, or ""."""
    if kind != "none":
        check_ingredients(members)
    elif file:
        raise UserError(f"--write {file}: it is a soup that is written; add --soup greedy or --soup uniform")
    if file:
        check_soup_file(file)


def check_soup_file(file: str) -> None:
    """Raises UserError where a soup cannot be written there: before it is made, which takes a while."""
    path = Path(file)
    if path.suffix != SOUP_SUFFIX:
        raise UserError(f"--write {file!r}: use a name that ends in {SOUP_SUFFIX}, such as soup{SOUP_SUFFIX}")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"--write {file!r}: that is a folder, or lies in none that you may write to: name another file")


def write_soup(soup: Member, ingredients: Sequence[str], file: str) -> None:
    """A safetensors file with the card in its metadata: whole, or not at all. Raises UserError."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in soup.model.state_dict().items()}
    about = {
        "format": "pt",
        "model": soup.card.network,
        "weights": soup.card.weights,
        "ingredients": ",".join(ingredients),
    }
    about |= {BLUR_POOL: soup.card.blur_pool, METADATA_KEY: soup.card.to_text()}
    part = Path(f"{file}.part")
    try:
        safetensors.torch.save_file(tensors, part, metadata=about)
        part.replace(file)
    except (OSError, safetensors.SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{file!r} cannot be written: {error}; name another file") from error
