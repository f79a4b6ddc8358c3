"""The robustness sets of ImageNet: their classes, how many images they have, and which outputs of a network mean them.

How each is scored follows its authors. `found_images` opens the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainer.contract import UserError
from trainer.imagenet import class_wnids, wnids, wnids_of_a, wnids_of_r
from trainer.scoring.members import Member
from trainer.scoring.weight_files import head_size
from trainer.text import say


@dataclass(frozen=True)
class ImageSet:
    """A set that somebody published for networks with ImageNet's classes."""

    name: str
    wnids: tuple[str, ...]  # its classes, in the order of its labels
    images: int  # that were published
    source: str  # where it comes from


IMAGE_SETS = {
    one.name: one
    for one in (
        ImageSet("imagenet-v2", wnids(), 10_000, "github.com/modestyachts/ImageNetV2"),
        ImageSet("imagenet-real", wnids(), 50_000, "github.com/google-research/reassessed-imagenet"),
        ImageSet("imagenet-a", wnids_of_a(), 7_500, "github.com/hendrycks/natural-adv-examples"),
        ImageSet("imagenet-r", wnids_of_r(), 30_000, "github.com/hendrycks/imagenet-r"),
        ImageSet("imagenet-sketch", wnids(), 50_889, "github.com/HaohanWang/ImageNet-Sketch"),
        ImageSet("imagenet-c", wnids(), 50_000, "github.com/hendrycks/robustness"),
    )
}


class SomeOutputs(nn.Module):
    """A network with some of its outputs, in another order: (N, 3, H, W) in, (N, outputs) logits out."""

    def __init__(self, model: nn.Module, outputs: npt.NDArray[np.int64]) -> None:
        super().__init__()
        self.model = model
        self.outputs: Tensor
        self.register_buffer("outputs", torch.from_numpy(outputs), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits.index_select(1, self.outputs)


def labels_of_set(data: str, image_set: ImageSet, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """(classes,) the place in the set of each class of the data, which is called by WordNet id, name or number.

    A number is that of ImageNet's 1,000 classes, and means nothing in a set of 200. Raises UserError for a class that
    the set does not have.
    """
    named = class_wnids(classes)
    if not named and len(image_set.wnids) == len(wnids()) and all(name.isdecimal() for name in classes):
        if high := [name for name in classes if int(name) >= len(wnids())]:
            raise UserError(f"DATA={data}: class {high[0]} is out of range: {image_set.name} has the classes 0 to 999")
        named = tuple(wnids()[int(name)] for name in classes)  # by value: as text, 10 comes before 2
    places = {wnid: place for place, wnid in enumerate(image_set.wnids)}
    if odd := [name for name, wnid in zip(classes, named or classes, strict=True) if wnid not in places]:
        raise UserError(
            f"DATA={data}: class {odd[0]!r} is none of the {len(places):,} of {image_set.name} ({len(odd):,} such of "
            f"{len(classes):,}): give the files of {image_set.source}, whose classes are called like "
            f"{image_set.wnids[0]}"
        )
    return np.array([places[wnid] for wnid in named or classes], np.int64)


def outputs_for_set(member: Member, image_set: ImageSet) -> Member:
    """The member with the outputs of the set's classes alone, in their order: others cannot be answered.

    So do the authors of ImageNet-A and ImageNet-R (eval.py of both). Raises UserError where it has no such outputs.
    """
    outputs = {wnid: output for output, wnid in enumerate(_wnids_of_outputs(member, image_set))}
    if lacking := [wnid for wnid in image_set.wnids if wnid not in outputs]:
        raise UserError(
            f"{member.name} has no output for {lacking[0]} ({len(lacking):,} of the {len(image_set.wnids):,} classes "
            f"of {image_set.name} are missing): it takes weights that know all of them"
        )
    chosen = np.array([outputs[wnid] for wnid in image_set.wnids], np.int64)
    is_whole = np.array_equal(chosen, np.arange(len(outputs)))
    model = member.model if is_whole else SomeOutputs(member.model, chosen).eval()
    return replace(member, model=model, card=replace(member.card, classes=image_set.wnids))


class SetOptions(Protocol):
    """What of the options of the command concerns sets."""

    @property
    def set(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def labels(self) -> str: ...
    @property
    def scratch(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def store(self) -> str: ...
    @property
    def views(self) -> str: ...
    @property
    def sweep(self) -> str: ...
    @property
    def soup(self) -> str: ...
    @property
    def resize(self) -> int: ...
    @property
    def crop(self) -> int: ...
    @property
    def workers(self) -> int: ...


def narrowed(members: Sequence[Member], options: SetOptions) -> list[Member]:
    """Every member with the outputs of a set. Raises UserError, too for options that mean nothing to a set."""
    plain: dict[str, str | int] = {"sweep": "", "soup": "none"}
    if (name := options.set) == "imagenet-c":
        plain |= {"views": "none", "resize": 0, "crop": 0}
    if other := [option for option, value in plain.items() if getattr(options, option) != value]:
        raise UserError(f"--set {name} is scored as its authors do: leave out --{other[0]}")
    if name == "imagenet-real" and len(members) > 1:
        raise UserError("--set imagenet-real scores one model at a time: name one")
    return [outputs_for_set(member, IMAGE_SETS[name]) for member in members]


def _wnids_of_outputs(member: Member, image_set: ImageSet) -> tuple[str, ...]:
    classes, count = member.card.classes, head_size(member.model.state_dict(), member.card.network)
    if classes and len(classes) != count:
        raise UserError(
            f"{member.name} has {count:,} outputs, and its card names {len(classes):,} classes: nobody knows which "
            "output means which class, so use other weights"
        )
    if named := class_wnids(classes):
        return named
    if count == len(wnids()) and (not classes or classes == tuple(map(str, range(count)))):
        say(f"note: {member.name} does not say the names of its 1,000 classes: the usual order of ImageNet is believed")
        return wnids()
    raise UserError(
        f"{member.name} has {count:,} classes{f' (such as {classes[0]!r})' if classes else ''}, which are not "
        f"ImageNet's: {image_set.name} takes weights that were trained on ImageNet"
    )
