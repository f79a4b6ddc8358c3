"""FFCV as a contender, in an interpreter of its own: it has no wheels, and its versions of what it needs are older.

Both ends of the pipe are here; only the far one imports ffcv, and nothing of the trainer. FFCV draws boxes of its own,
from the same distribution, and always encodes again: it cannot store a JPEG as it is.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from types import TracebackType

BATCH, THREADS, QUALITY = 128, 2, 90


class Ffcv:
    """The near end: a run for `cpu.interleaved`. A context manager, which ends the process."""

    def __init__(self, python: str, folder: Path, beton: Path, pixels: int, max_side: int) -> None:
        arguments = [str(folder), str(beton), str(pixels), str(max_side)]
        self.process = subprocess.Popen(
            [python, "-P", __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def measure(self, epochs: int) -> tuple[int, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{epochs}\n")
        self.process.stdin.flush()
        count, seconds = self._answer()
        return int(count), float(seconds)

    def _answer(self) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"FFCV ended with code {self.process.wait()}: what it said is above; leave --ffcv out")
        return line.split()

    def __enter__(self) -> Ffcv:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()


def serve(folder: str, beton: str, pixels: int, max_side: int) -> None:
    """The far end: one line in, epochs; one line out, images and CPU seconds."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    fields = {"image": RGBImageField("jpg", max_resolution=max_side, jpeg_quality=QUALITY), "label": IntField()}
    DatasetWriter(beton, fields, num_workers=THREADS).from_indexed_dataset(ImageFolder(folder))
    pipelines = {
        "image": [RandomResizedCropRGBImageDecoder((pixels, pixels)), ToTensor()],
        "label": [IntDecoder(), ToTensor()],
    }
    loader = Loader(
        beton, BATCH, THREADS, os_cache=True, order=OrderOption.RANDOM, drop_last=True, pipelines=pipelines
    )  # fmt: skip
    for _ in loader:  # compiles, once
        pass
    print("ready", flush=True)
    for line in sys.stdin:
        before, count = _cpu_seconds(), 0
        for _ in range(int(line)):
            count += sum(len(batch[0]) for batch in loader)
        print(count, _cpu_seconds() - before, flush=True)
    os._exit(0)  # its threads do not end


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
