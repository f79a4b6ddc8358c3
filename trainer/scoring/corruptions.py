"""ImageNet-C: 15 corruptions of ImageNet's validation images, each at five severities, and the mean corruption error.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv:1903.12261).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import UserError
from trainer.scoring.found_images import FoundFiles, FoundImages, find_files, open_found

# Error of AlexNet, the mean of five severities. The authors' sheet, linked from README.md of hendrycks/robustness, has
# them; google-research/augmix has the same numbers in imagenet.py (ALEXNET_ERR), and names hendrycks/robustness.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360,
    "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
    "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
SEVERITIES = range(1, 6)
PUBLISHED_SIDE = 224  # pixels of a side of every image
PART = re.compile(rf"(?P<prefix>(?:.*/)?(?P<corruption>{'|'.join(ALEXNET_ERRORS)})/(?P<severity>[1-5])/)[^/]+/[^/]+")
MOST_DEPTH = 2  # folders around those of the corruptions: noise/, blur/ and so on, as the archives are called


@dataclass(frozen=True)
class Corruption:
    name: str
    severity: int


@dataclass(frozen=True)
class CorruptionErrors:
    """Shares of images that a network got wrong."""

    errors: Mapping[Corruption, float]

    @property
    def by_corruption(self) -> dict[str, float]:
        """The mean error over the severities that are there."""
        found: dict[str, float] = {}
        for name in ALEXNET_ERRORS:
            of_name = [error for corruption, error in self.errors.items() if corruption.name == name]
            if of_name:
                found[name] = sum(of_name) / len(of_name)
        return found

    @property
    def mean(self) -> float:
        """Over the corruptions."""
        found = self.by_corruption
        return sum(found.values()) / len(found)

    @property
    def mce(self) -> float | None:
        """The mean over 15 corruptions of the error over AlexNet's. None unless all 75 parts are there."""
        if len(self.errors) < len(ALEXNET_ERRORS) * len(SEVERITIES):
            return None
        return sum(error / ALEXNET_ERRORS[name] for name, error in self.by_corruption.items()) / len(ALEXNET_ERRORS)

    def scores(self, prefix: str) -> dict[str, float]:
        """By their flat names."""
        found = {f"{prefix}/error": self.mean, f"{prefix}/top1": 1 - self.mean}
        if self.mce is not None:
            found[f"{prefix}/mce"] = self.mce
        return found

    def to_json(self) -> dict[str, Any]:
        """Errors by corruption and severity, and those of AlexNet that they are divided by."""
        return {
            name: {
                "error": error,
                "severities": {
                    str(corruption.severity): value
                    for corruption, value in self.errors.items() if corruption.name == name
                },
                "alexnet_error": ALEXNET_ERRORS[name],
            }
            for name, error in self.by_corruption.items()
        }  # fmt: skip


def find_parts(data: str, scratch: Path, workers: int) -> dict[Corruption, Callable[[], FoundImages]]:
    """What opens each corruption and severity, in the authors' order: <corruption>/<severity>/<class>/<image>.

    Raises UserError where there is none.
    """
    folder = Path(data).expanduser()
    if folder.is_dir():
        found = _parts_of_folder(folder, scratch)
    else:
        files = find_files(data, scratch, workers=workers)
        found = {part: _opener(files, prefix) for part, prefix in _prefixes(files).items()}
    if not found:
        raise UserError(
            f"DATA={data} has no corruption (looked for folders such as gaussian_noise/1/n01440764/): give the folder "
            "that the archives noise.tar, blur.tar, weather.tar and digital.tar were unpacked into"
        )
    every = [Corruption(name, severity) for name in ALEXNET_ERRORS for severity in SEVERITIES]
    return {part: found[part] for part in every if part in found}


def _parts_of_folder(folder: Path, scratch: Path) -> dict[Corruption, Callable[[], FoundImages]]:
    """Without a look at 3.75 million files: only the folders around the classes."""
    found: dict[Corruption, Callable[[], FoundImages]] = {}
    around = [folder]
    for _ in range(MOST_DEPTH):
        inside = [one for outer in around for one in sorted(outer.iterdir()) if one.is_dir()]
        for corruption in inside:
            for severity in SEVERITIES if corruption.name in ALEXNET_ERRORS else ():
                part, place = Corruption(corruption.name, severity), corruption / str(severity)
                if place.is_dir():
                    if part in found:
                        raise UserError(f"DATA={folder} has {part.name}/{severity} twice, also in {place}: remove one")
                    found[part] = _opener_of_folder(place, scratch)
        around = [one for one in inside if one.name not in ALEXNET_ERRORS]
    return found


def _opener_of_folder(place: Path, scratch: Path) -> Callable[[], FoundImages]:
    return lambda: open_found(find_files(str(place), scratch))


def _opener(files: FoundFiles, prefix: str) -> Callable[[], FoundImages]:
    return lambda: open_found(files, prefix)


def _prefixes(files: FoundFiles) -> dict[Corruption, str]:
    found: dict[Corruption, str] = {}
    for path in files.listing:
        if match := PART.fullmatch(path):
            part = Corruption(match["corruption"], int(match["severity"]))
            if found.setdefault(part, match["prefix"]) != match["prefix"]:
                raise UserError(f"DATA={files.data} has {found[part]} twice, also in {match['prefix']}")
    return found
