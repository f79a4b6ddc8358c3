"""How many members fit on a device at a time, and what is told where its memory is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from trainer.contract import UserError
from trainer.scoring.members import Member

SHARE_OF_WEIGHTS = 0.5  # of the memory that is free: activations and the library's workspaces need the rest


def fitting_groups(members: Sequence[Member], free_bytes: Callable[[], float]) -> Iterator[tuple[Member, ...]]:
    """Members in groups, in their order: as many as fit into the memory of the device; else one after the other.

    `free_bytes()` is asked before every group. By then the members of the group before must have left the device.
    """
    waiting = list(members)
    while waiting:
        group, room = [waiting.pop(0)], SHARE_OF_WEIGHTS * free_bytes()
        while waiting and sum(map(weight_bytes, (*group, waiting[0]))) <= room:
            group.append(waiting.pop(0))
        yield tuple(group)


def weight_bytes(member: Member) -> int:
    """Of its weights and statistics."""
    return sum(tensor.nbytes for tensor in member.model.state_dict().values())


def free_memory(device: torch.device) -> float:
    """Bytes on a GPU. A CPU has its members in memory since they were opened: a pass with all of them adds nothing."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


@contextmanager
def telling_full_gpu(images: int) -> Iterator[None]:
    """A GPU that has no room for so many images at a time becomes a UserError with its fix."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        fix = f"--batch-size {images // 2}" if images > 1 else "--device cpu"
        raise UserError(
            f"the GPU has no memory left for {images} image(s) at a time (other programs may use some): pass {fix}"
        ) from error
