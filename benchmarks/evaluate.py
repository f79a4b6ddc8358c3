"""What an evaluation costs beyond its forward passes, and how much memory it takes for few and for many images.

make bench-evaluate     a ResNet-50 at 224 px, plain and with flips, against its forward passes alone; peak memory with
                        500 and 5,000 images
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import simplejpeg
import torch
import torchvision

from benchmarks import photographs
from benchmarks.machine import write
from trainer.data.augment.batch import normalise
from trainer.data.format import INDEX, Copies, ImageRow, Index, Shard, Size, SplitIndex, read_index, write_shard
from trainer.data.making.prepare import prepare
from trainer.data.reading.decode import center_into
from trainer.data.reading.split import PreparedSplit
from trainer.evaluate import main as evaluate
from trainer.model_card import METADATA_KEY, ModelCard
from trainer.recipes.config import DataConfig
from trainer.store import open_store

BATCH = 32
COUNTS = (500, 5000)  # of small images
SMALL, SMALL_CLASSES = 32, 1000


def put_weights(file: Path, network: str, classes: tuple[str, ...], resize: int, crop: int) -> None:
    """Random weights with a card."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None, num_classes=len(classes))
    data = DataConfig()
    card = ModelCard(
        network=network, classes=classes, mean=data.mean, std=data.std, val_resize=resize, val_crop=crop
    )  # fmt: skip
    safetensors.torch.save_file(model.state_dict(), file, metadata={METADATA_KEY: card.to_text()})


def score(file: Path, data: Path, scratch: Path, *more: str) -> None:
    """The whole command, in this process."""
    arguments = [str(file), "--store", str(scratch), "--scratch", str(scratch), "--data", str(data), *more]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        code = evaluate([*arguments, "--batch-size", str(BATCH)])
    if code:
        raise SystemExit(f"the evaluation ended with {code}")


def cpu_seconds(work: Callable[[], None]) -> float:
    """Of all threads."""
    before = time.process_time()
    work()
    return time.process_time() - before


def forward_passes(file: Path, folder: Path) -> Callable[[], None]:
    """The network alone over the same images in the same batches, decoded and normalised beforehand."""
    index = read_index(folder)
    split = PreparedSplit(folder, index, "val", index.splits["val"].sizes[0].short_side)
    images = torch.empty(len(split), 224, 224, 3, dtype=torch.uint8)
    for i in range(len(split)):
        center_into(images[i].numpy(), split.jpeg(i), 232)
    batches = [normalise(part, DataConfig()) for part in images.split(BATCH)]
    model = torchvision.models.resnet50(weights=None, num_classes=len(index.classes))
    model.load_state_dict(safetensors.torch.load_file(file))
    model.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            model(batch)

    return run


def cost(folder: Path, counts: tuple[int, int], rounds: int) -> dict[str, Any]:
    """CPU seconds of an image in the command, plain and with flips, and in the forward passes alone.

    Each is the difference between many and few images, so that start, weights and the tries of the latency drop out.
    All take turns, and the least of each counts.
    """
    file, works = folder / "random.safetensors", dict[str, Callable[[], None]]()
    for count in counts:
        photographs.make(folder / f"photographs-{count}", 2, count, packages=("sklearn",))
        prepared = prepare(str(folder / f"photographs-{count}"), open_store(str(folder)), Copies((256,), (320,), 90))
        data = folder / prepared.prefix
        put_weights(file, "resnet50", prepared.index.classes, 232, 224)
        works |= {
            f"plain, {count}": partial(score, file, data, folder),
            f"flip, {count}": partial(score, file, data, folder, "--views", "flip"),
            f"forward, {count}": forward_passes(file, data),
        }
    for work in works.values():  # once before: imports, and verified shards
        work()
    seconds = {name: list[float]() for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(cpu_seconds(work))
    few, many = counts
    image = {
        name: (min(seconds[f"{name}, {many}"]) - min(seconds[f"{name}, {few}"])) / (many - few)
        for name in ("plain", "flip", "forward")
    }
    return {
        "network": "resnet50, 224 px, fp32", "batch": BATCH, "rounds": rounds, "cpu_seconds": seconds,
        "cpu_seconds_of_an_image": image, "plain_over_forward": image["plain"] / image["forward"],
        "flip_over_plain": image["flip"] / image["plain"],
    }  # fmt: skip


def small_images(folder: Path, count: int) -> Path:
    """Prepared data of so many small validation images of 1,000 classes. Every image has a colour of its own."""
    rng = np.random.default_rng(0)
    names = tuple(f"class-{i:04}" for i in range(SMALL_CLASSES))
    folder.mkdir()

    def split(name: str, images: int) -> SplitIndex:
        colours = (np.tile(rng.integers(0, 256, 3, dtype=np.uint8), (SMALL, SMALL, 1)) for _ in range(images))
        body = write_shard(
            names,
            (ImageRow(f"{i}.jpg", i % SMALL_CLASSES, simplejpeg.encode_jpeg(one)) for i, one in enumerate(colours)),
        )
        file = f"{name}-{SMALL}px-00000.arrow"
        (folder / file).write_bytes(body)
        shard = Shard(file, images, len(body), zlib.crc32(body), hashlib.sha256(body).hexdigest())
        return SplitIndex(images, (Size(SMALL, 90, (shard,)),))

    index = Index("small", f"n{count}", names, {"train": split("train", 1), "val": split("val", count)}, "")
    (folder / INDEX).write_text(index.to_json())
    return folder


def memory(folder: Path) -> dict[str, Any]:
    """Peak bytes of the whole command, each number of images in a process of its own."""
    names = tuple(f"class-{i:04}" for i in range(SMALL_CLASSES))
    put_weights(folder / "small.safetensors", "resnet18", names, SMALL, SMALL)
    peaks = {}
    for count in COUNTS:
        small_images(folder / f"small-{count}", count)
        command = [sys.executable, "-m", "benchmarks.evaluate", "--peak", str(folder), str(count)]
        peaks[count] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    held = (max(COUNTS) - min(COUNTS)) * SMALL_CLASSES * 4
    return {
        "network": f"resnet18, {SMALL} px, {SMALL_CLASSES} classes", "peak_bytes": peaks,
        "growth_bytes": peaks[max(COUNTS)] - peaks[min(COUNTS)], "bytes_of_the_answers_of_what_is_more": held,
    }  # fmt: skip


def peak(folder: Path, count: int) -> int:
    """Of this process, after it has scored so many images."""
    score(folder / "small.safetensors", folder / f"small-{count}", folder)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=(32, 128), help="of 224 px, few and many")
    parser.add_argument("--rounds", type=int, default=3, help="the least of them counts")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(Path(options.peak[0]), int(options.peak[1])))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"memory": memory(folder), "cost": cost(folder, tuple(options.images), options.rounds)}
    print(json.dumps(found, indent=1))
    print(write("evaluate", found))


if __name__ == "__main__":
    main()
