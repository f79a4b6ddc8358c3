"""Whether what was written computes what the weights compute here: logits of the same images, side by side.

Nothing is handed on unseen: each form is read back from its file, and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.contract import UserError
from trainer.scoring.members import Member
from trainer.scoring.views import ONE_VIEW

SAMPLE_BATCHES = (1, 3)  # images; more than one size, since the number of images of a batch is open
SAME_LIBRARY = 1e-4  # the largest difference of logits where PyTorch computes both
OTHER_LIBRARY = 1e-3  # where somebody else's kernels compute one of them


@dataclass(frozen=True, eq=False)
class Sample:
    """Noise of the form of normalised images, and what a member answers."""

    images: Tensor  # (N, 3, H, W) float32
    logits: Tensor  # (N, classes) float32

    @property
    def classes(self) -> int:
        return self.logits.shape[1]


@dataclass(frozen=True)
class Difference:
    """How far the logits of what was written are from those of the weights."""

    absolute: float  # the largest; nan where one is no number
    largest_logit: float

    def is_within(self, limit: float) -> bool:
        """Logits beyond 1 count in parts of the largest one, which the words say: float32 has no more digits."""
        return self.absolute / max(1.0, self.largest_logit) <= limit

    def in_words(self) -> str:
        if self.largest_logit <= 1:
            return f"{self.absolute:.1g}"
        return f"{self.absolute:.1g} ({self.absolute / self.largest_logit:.1g} of the largest logit)"


@torch.no_grad()
def take_sample(member: Member) -> Sample:
    """Raises UserError where the sizes of the card do not fit, or an answer has numbers that are not finite."""
    ONE_VIEW.pictures(member.card)  # as predict and evaluate check them: what is written must be of use to them
    side = member.card.val_crop
    noise = torch.randn(max(SAMPLE_BATCHES), 3, side, side, generator=torch.Generator().manual_seed(0))
    logits: Tensor = member.model(noise)
    if not logits.isfinite().all():
        raise UserError(
            f"the weights of {member.name!r} answer noise with numbers that are not finite, so nothing was written: "
            "take an earlier checkpoint (RUN@STEP)"
        )
    return Sample(noise, logits.float())


@torch.no_grad()
def largest_difference(sample: Sample, answer: Callable[[Tensor], Tensor]) -> Difference:
    """Over batches of several sizes."""
    found = [sample.logits[:count] - answer(sample.images[:count]) for count in SAMPLE_BATCHES]
    largest = torch.stack([one.abs().max() for one in found]).max()  # nan where one is
    return Difference(float(largest), float(sample.logits.abs().max()))


def check_agreement(difference: Difference, limit: float, what: str) -> None:
    """Raises UserError where the difference is larger than allowed, or not a number."""
    if not difference.is_within(limit):
        raise UserError(
            f"{what} computes other logits than these weights do here: they differ by up to "
            f"{difference.in_words()}, and {limit:g} is allowed; nothing was written, so leave this form out "
            "(--forms), and report it"
        )


def needs_package(form: str, packages: tuple[str, ...]) -> UserError:
    return UserError(
        f"--forms {form} needs the packages {', '.join(packages)}, and this environment lacks one: `make export` "
        "installs them (requirements/export.txt); or leave the form out"
    )
