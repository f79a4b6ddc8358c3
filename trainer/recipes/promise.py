"""What a recipe promises: the accuracy that its source reports, as a value that code reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The accuracy on ImageNet's 50,000 validation images that the source of a recipe reports."""

    top1: float  # percent
    pixels: int  # the side of the validation images
    source: str  # who measured it, and where it stands
    note: str  # what differs here; "" for nothing
