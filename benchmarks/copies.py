"""What each choice of stored copies costs, and how sharp crops of them are beside torchvision's crops of the originals.

make bench-copies     gigabytes of ImageNet's training images, CPU time per image, and twelve statistics of the pixels
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional

from benchmarks import photographs
from benchmarks.machine import write
from benchmarks.sharpness import STATISTICS, distances, ratios, statistics_of
from trainer.data.format import Copies, read_index
from trainer.data.making.convert import convert
from trainer.data.making.prepare import prepare
from trainer.data.reading import copies as reading
from trainer.data.reading.decode import center_into
from trainer.data.reading.loader import Job, Loader, train_jobs
from trainer.data.reading.order import CROP, CROP_DRAWS, draws, random_resized_crop
from trainer.recipes.config import Config, DataConfig
from trainer.setup import Data
from trainer.store import open_store

TRAIN_IMAGES, VAL_IMAGES = 1_281_167, 50_000  # of ImageNet
PACKAGES = tuple(photographs.PHOTOGRAPHS)  # whose photographs are the images
PIXELS = (88, 128, 160, 176, 192, 224)
VALIDATION = ((232, 224), (293, 256))  # resize, crop
VAL_SIDES = (320, 480)
BATCH = 32
THREADS = 2
ORIGINAL = 2048  # larger than any image here: nothing is shrunk


@dataclass(frozen=True)
class Choice:
    """Stored short sides, and how a crop finds its own."""

    name: str
    sides: tuple[int, ...]
    per_crop: bool
    spare: float = 8 / 7  # wanted pixels of a crop, over those that it is shown with


CHOICES = (
    Choice("256 128", (256, 128), per_crop=False),
    Choice("320 128", (320, 128), per_crop=False),
    Choice("480 256 128, by crop", (480, 256, 128), per_crop=True),
    Choice("480 256 128, by crop, no pixel to spare", (480, 256, 128), per_crop=True, spare=1.0),
    Choice("320 256 128, by crop", (320, 256, 128), per_crop=True),
    Choice("originals", (ORIGINAL,), per_crop=False),
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """One choice at one resolution, ready to be read."""

    choice: Choice
    pixels: int
    data: Data

    @classmethod
    def of(cls, choice: Choice, pixels: int, folder: Path) -> Prepared:
        config = DataConfig(
            resolution=pixels, start_resolution=pixels, copy_per_crop=choice.per_crop, train_sides=choice.sides
        )
        return cls(choice, pixels, Data(folder, read_index(folder), config))

    @cached_property
    def images(self) -> int:
        return self.data.index.splits["train"].images // BATCH * BATCH

    @contextmanager
    def rule(self) -> Iterator[None]:
        """With this choice's pixels to spare."""
        with mock.patch.object(reading, "wanted_pixels", lambda pixels: pixels * self.choice.spare):
            yield

    def jobs(self, epochs: int) -> Iterator[Job]:
        config = Config(global_batch_size=BATCH, device_batch_size=BATCH, data=self.data.config)
        return train_jobs(
            config, partial(self.data.copies, "train"), lambda step: self.pixels,
            images=self.images, rank=0, world=1, first_step=0, steps=epochs * self.images // BATCH,
        )  # fmt: skip

    def batches(self, epochs: int) -> Iterator[np.ndarray]:
        with (
            self.rule(),
            Loader(
                self.jobs(epochs),
                max_images=BATCH,
                image_bytes=self.pixels**2 * 3,
                workers=THREADS,
                device=torch.device("cpu"),
            ) as loader,  # fmt: skip
        ):
            for batch in loader:
                yield batch.images.numpy()

    def cpu_us(self, epochs: int) -> float:
        """Of one image, by all threads."""
        before = time.process_time()
        for _ in self.batches(epochs):
            pass
        return (time.process_time() - before) / (epochs * self.images) * 1e6

    def read_from(self) -> dict[str, float]:
        """The share of the crops that are read from each stored side."""
        found = Counter[int]()
        with self.rule():
            copies = self.data.copies("train", self.pixels)
            for job in self.jobs(1):
                uniform = draws(CROP, 0, 0, job.indices, CROP_DRAWS)[:, 1:]
                likely = reading.likely_copies(copies, self.pixels, uniform, self.data.config).tolist()
                for row, image in enumerate(job.indices.tolist()):
                    jpeg, _ = reading.find_crop(
                        copies, likely[row], image, self.pixels, uniform[row].tolist(), self.data.config
                    )
                    (side,) = [c.short_side for c in copies if np.shares_memory(c.jpeg(image), jpeg)]
                    found[side] += 1
        return {f"{side}": round(count / found.total(), 3) for side, count in sorted(found.items())}


def of_originals(files: list[Image.Image], prepared: Prepared, epochs: int) -> Iterator[np.ndarray]:
    """torchvision's crops of the decoded files, by the same draws: one batch after the other."""
    config, pixels = prepared.data.config, prepared.pixels
    for number, job in enumerate(prepared.jobs(epochs)):
        uniform = draws(CROP, 0, number * BATCH // prepared.images, job.indices, CROP_DRAWS)[:, 1:]
        batch = np.empty((BATCH, pixels, pixels, 3), np.uint8)
        for row, image in enumerate(job.indices.tolist()):
            file = files[image]
            left, top, width, height = random_resized_crop(
                uniform[row].tolist(), file.width, file.height, config.crop_scale, config.crop_ratio
            )
            batch[row] = np.asarray(functional.resized_crop(file, top, left, height, width, [pixels, pixels]))
        yield batch


def measured(batches: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    found = [statistics_of(batch) for batch in batches]
    return {name: np.concatenate([one[name] for one in found]) for name in STATISTICS}


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def validation(folders: Mapping[int, Path], files: list[Image.Image]) -> list[dict[str, Any]]:
    """The whole image, resized and cut, from stored copies and from the originals."""
    rows = []
    for resize, crop in VALIDATION:
        theirs = np.stack(
            [np.asarray(functional.center_crop(functional.resize(file, [resize]), [crop])) for file in files]
        )
        for side, folder in folders.items():
            data = Data(folder, read_index(folder), DataConfig(val_resize=resize, val_crop=crop))
            split, ours = data.open("val", resize), np.empty_like(theirs)
            for i in range(len(split)):
                center_into(ours[i], split.jpeg(i), resize)
            found = rounded(ratios(statistics_of(ours), statistics_of(theirs)))
            rows.append({"resize": resize, "crop": crop, "side": side, "to_originals": found})
    return rows


def decoded(folder: Path, split: str) -> list[Image.Image]:
    """The files of an image folder in the order of its prepared form."""
    paths = sorted((folder / split).rglob("*.JPEG"), key=lambda path: path.relative_to(folder).parts)
    return [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths]


def prepared_copies(folder: Path, scratch: Path, copies: Copies) -> Path:
    with redirect_stderr(io.StringIO()):  # its progress
        return scratch / prepare(str(folder), open_store(str(scratch)), copies, workers=THREADS).prefix


def gigabytes(folder: Path) -> dict[str, float]:
    """Of all of ImageNet's training images, in each size."""
    split = read_index(folder).splits["train"]
    return {
        str(size.short_side): round(sum(shard.bytes for shard in size.shards) / split.images * TRAIN_IMAGES / 1e9, 1)
        for size in split.sizes
    }


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The least of each, measured there and back: other work on the machine makes a figure larger, never smaller."""
    for run in runs.values():
        run()  # warms up
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            found[name].append(runs[name]())
    return {name: min(values) for name, values in found.items()}


def preparing(folder: Path, rounds: int) -> dict[str, float]:
    """CPU milliseconds for the copies of one image, by the short sides."""
    jpegs = [path.read_bytes() for path in sorted((folder / "train").rglob("*.JPEG"))[:64]]

    def cpu_ms(sides: tuple[int, ...]) -> float:
        before = time.process_time()
        for jpeg in jpegs:
            convert(jpeg, "image", sides, 90)
        return (time.process_time() - before) / len(jpegs) * 1000

    runs = {" ".join(map(str, sides)): partial(cpu_ms, sides) for sides in sorted({one.sides for one in CHOICES})}
    return {name: round(value, 2) for name, value in interleaved(runs, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-copies", description=__doc__)
    parser.add_argument("--count", type=int, default=256, help="training images")
    parser.add_argument(
        "--rounds", type=int, default=3, help="interleaved rounds of the time, whose least values count"
    )
    parser.add_argument("--epochs", type=int, default=2, help="crops of each image for the statistics")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = photographs.make(scratch / "images", options.count, 64, packages=PACKAGES)
        files = decoded(folder, "train")
        described = photographs.describe(sorted((folder / "train").rglob("*.JPEG")))
        made = {sides: prepared_copies(folder, scratch, Copies(sides, (320,))) for sides in {c.sides for c in CHOICES}}
        for_val = {side: prepared_copies(folder, scratch, Copies((128,), (side,))) for side in VAL_SIDES}
        rows = []
        for pixels in PIXELS:
            ready = {choice.name: Prepared.of(choice, pixels, made[choice.sides]) for choice in CHOICES}
            costs = interleaved({name: partial(one.cpu_us, 2) for name, one in ready.items()}, options.rounds)
            theirs = measured(of_originals(files, ready["originals"], options.epochs))
            for name, one in ready.items():
                ours = measured(one.batches(options.epochs))
                rows.append({
                    "pixels": pixels, "copies": name, "cpu_us": round(costs[name]), "read_from": one.read_from(),
                    "to_originals": rounded(ratios(ours, theirs)), "distance": rounded(distances(ours, theirs)),
                })  # fmt: skip
                print(rows[-1], flush=True)
        results = {
            "images": {"from": f"photographs of {' and '.join(PACKAGES)}", **described},
            "imagenet_gb": {" ".join(map(str, sides)): gigabytes(path) for sides, path in sorted(made.items())},
            "imagenet_val_gb": {str(side): _val_gb(path) for side, path in for_val.items()},
            "prepare_cpu_ms": preparing(folder, options.rounds),
            "crop_scale": DataConfig().crop_scale, "rounds": options.rounds, "crops": options.epochs * len(files),
            "training": rows, "validation": validation(for_val, decoded(folder, "val")),
        }  # fmt: skip
    print(results["imagenet_gb"], results["imagenet_val_gb"], *results["validation"], sep="\n")
    print(f"written to {write('copies', results).relative_to(Path.cwd())}")


def _val_gb(folder: Path) -> float:
    split = read_index(folder).splits["val"]
    return round(sum(shard.bytes for shard in split.sizes[0].shards) / split.images * VAL_IMAGES / 1e9, 1)


if __name__ == "__main__":
    main()
