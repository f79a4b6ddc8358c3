"""Which machines have room for a run's data: what it stages, and how much their scratch disk takes.

The trainer finds a full disk, too, but then the machine bills already. There is no I/O here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infra.config import AMI_GIB, context_key
from infra.operate.planning.catalog import IMAGENET_SOURCE_GB, TYPES, InstanceType, gpu_types, instance_type
from infra.operate.planning.datasets import Dataset, is_hub_id
from infra.operate.planning.estimate import copy_gb, stored_gb
from infra.operate.planning.work import Work
from trainer.contract import UserError

IMAGE_GIB = 10  # of the root volume: the container image, pulled and unpacked
GB_PER_GIB = 1.0737
# ext4 keeps 5 % for root, which the container is not, and 1.6 % for its own tables (mke2fs without options)
USABLE = 0.93
VAL_COPY_GB = {320: 2.1, 480: 5.9}  # ImageNet's, by the short side (benchmarks/results/copies.json)


class RoomError(UserError):
    """No machine that was asked for has room for the data."""


@dataclass(frozen=True)
class Staged:
    """What a run keeps on its machine: gigabytes, and the short sides of each split.

    `has_index` if they are those of a prepared dataset. Without `is_prepared` the machine downloads the source and
    stores every side itself.
    """

    gb: float
    train: tuple[int, ...] = ()
    val: tuple[int, ...] = ()
    has_index: bool = False
    is_prepared: bool = True

    @property
    def words(self) -> str:
        sides = " ".join(map(str, self.train)), " ".join(map(str, self.val))
        said = f"{self.gb:.0f} GB: training images with {sides[0]} px, validation images with {sides[1]} px"
        return said if self.is_prepared else f"{said}, and their source, as for ImageNet, since nobody prepared them"


def staged_of(work: Work, dataset: Dataset | None) -> Staged:
    """What a run stages: by the index of its data, else what a machine would prepare itself."""
    if dataset:
        sizes = {(split, side): size for split, side, size in dataset.sizes}
        sides = {one: work.staged(one, [side for split, side in sizes if split == one]) for one in ("train", "val")}
        count = sum(sizes[split, side] for split, found in sides.items() for side in found)
        return Staged(count / 1e9, sides["train"], sides["val"], has_index=True)
    if not is_hub_id(work.data):
        return Staged(0.0)
    sides = {"train": tuple(sorted(work.train_sides)), "val": (work.val_side,)}
    return Staged(IMAGENET_SOURCE_GB + stored_gb(work.train_sides), sides["train"], sides["val"], is_prepared=False)


def projected(work: Work) -> Staged:
    """What a recipe stages of its own data, once `make prepare` has stored it. Data that nobody names is ImageNet."""
    if work.data == "digits":
        return Staged(0.0)
    train, val = work.staged("train", work.train_sides), work.staged("val", VAL_COPY_GB)
    return Staged(sum(map(copy_gb, train)) + sum(VAL_COPY_GB[side] for side in val), train, val)


def room_gb(type: InstanceType, disk_gib: int) -> float:
    """Gigabytes that data may take: of the NVMe, else of what machine image and container image leave of the root."""
    if type.nvme_gb:
        return type.nvme_gb * USABLE
    return max(0.0, (disk_gib * USABLE - AMI_GIB - IMAGE_GIB) * GB_PER_GIB)


def with_room(types: Iterable[str], staged: Staged, disk_gib: int) -> tuple[str, ...]:
    """The types whose scratch disk holds it."""
    return tuple(one.name for one in gpu_types(types) if room_gb(one, disk_gib) >= staged.gb)


def without_room(types: Iterable[str], staged: Staged, disk_gib: int) -> str:
    """Those that lack it, each with its room. "" if there are none."""
    types = list(types)
    roomy = with_room(types, staged, disk_gib)
    return ", ".join(show_room(name, disk_gib) for name in types if name not in roomy)


def show_room(name: str, disk_gib: int) -> str:
    """g5.xlarge (232 GB)"""
    type = instance_type(name)
    kind = "" if type.nvme_gb else f" of {disk_gib} GiB, as its NVMe is unknown or it has none"
    return f"{name} ({room_gb(type, disk_gib):.0f} GB{kind})"


def left_out(types: Iterable[str], staged: Staged, disk_gib: int) -> str:
    """A line about types without room. "" if all have it."""
    small = without_room(types, staged, disk_gib)
    return f"left out  {small}: their scratch disk has no room for {staged.words}" if small else ""


def choose_types(
    asked: Sequence[str], types: Sequence[str], work: Work, staged: Staged, disk_gib: int
) -> tuple[str, ...]:
    """The types that have room. Raises RoomError if none is left, or if one that was `asked` for lacks it."""
    fitting = with_room(types, staged, disk_gib)
    small = [name for name in types if name not in fitting]
    if not small or (fitting and not asked):
        return fitting
    raise RoomError(
        f"{without_room(small, staged, disk_gib)}: the scratch disk must hold what {work.recipe} keeps on the "
        f"machine, {staged.words}; use {', or '.join(fixes(small, work, staged, disk_gib))}"
    )


def fixes(small: Sequence[str], work: Work, staged: Staged, disk_gib: int) -> list[str]:
    """What gives the data room: other types, a larger disk, smaller data."""
    others = [name for name, one in TYPES.items() if one.gpu and one.gpus == 1 and name not in small]
    able = [name for name in with_room(others, staged, disk_gib) if name.startswith(("g5.", "g6.", "g6e."))]
    found = [f"TYPES={','.join(able[:3])}"] if able else []
    if any(not TYPES[name].nvme_gb for name in small):
        found.append(f'"{context_key("disk_gib")}": "{needed_gib(staged)}" in cdk.json and `make deploy`')
    if not staged.is_prepared:
        found.append("`make prepare ON=aws` once, so that no machine keeps the source")
    return found + smaller(work, staged)


def needed_gib(staged: Staged) -> int:
    """Of a root disk that has room for it."""
    return math.ceil((AMI_GIB + IMAGE_GIB + staged.gb / GB_PER_GIB) / USABLE)


def smaller(work: Work, staged: Staged) -> list[str]:
    """An option with which less is staged, if there is one: it makes small crops less sharp."""
    if not work.copy_per_crop:
        return []
    if staged.has_index:
        return ['ARGS="--data.no-copy-per-crop", with which small crops are less sharp']
    return ['ARGS="--data.train-sides 256 128", with which small crops are less sharp']
