"""The loss of a micro-batch, as a function of logits and targets; and what each class counts in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.recipes.config import RegularizeConfig


def mean_loss(logits: Tensor, targets: Tensor, reg: RegularizeConfig, class_weights: Tensor | None = None) -> Tensor:
    """The mean over the images, () float32. `logits` and `targets` are (N, classes) float32.

    With `class_weights`, (classes,) float32, each image's loss is multiplied by the weight of its class; where images
    are mixed, by the mean of the weights, as they are mixed.
    """
    if class_weights is None and reg.loss == "cross_entropy":
        return F.cross_entropy(logits, targets, label_smoothing=reg.label_smoothing)
    losses = image_losses(logits, targets, reg)
    return losses.mean() if class_weights is None else (losses * (targets * class_weights).sum(1)).mean()


def image_losses(logits: Tensor, targets: Tensor, reg: RegularizeConfig) -> Tensor:
    """The loss of each image: (N,) float32.

    Binary cross entropy asks of each class whether the image shows it. "bce" is its sum over the classes, Composer's;
    "bce_mean" its mean, timm's, which is smaller by the number of classes and wants another learning rate.
    """
    if reg.loss == "cross_entropy":
        return F.cross_entropy(logits, targets, label_smoothing=reg.label_smoothing, reduction="none")
    answers = binary_targets(targets, reg)
    of_each_class = F.binary_cross_entropy_with_logits(logits, answers, reduction="none")
    return of_each_class.sum(1) if reg.loss == "bce" else of_each_class.mean(1)


def binary_targets(targets: Tensor, reg: RegularizeConfig) -> Tensor:
    """Targets (N, classes), smoothed as cross entropy's are; with a threshold, 1 where they are above it, else 0."""
    smooth = targets * (1 - reg.label_smoothing) + reg.label_smoothing / targets.shape[1]
    return (smooth > reg.bce_threshold).to(smooth.dtype) if reg.bce_threshold else smooth


def balanced_weights(labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """(classes,) float32: the fewer images a class has, the more each counts, and all classes count alike.

    The mean over the images is 1, so that the learning rate keeps its meaning. A class without images has 0.
    """
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    weights = np.divide(len(labels), present.sum() * counts, out=np.zeros(classes), where=present)
    return torch.from_numpy(weights).float()
