"""The contenders: each goes from storage to batches, over the same images and crop boxes, with the same threads.

Batches are uint8 NHWC, neither flipped nor normalised, which is the device's work; the classic's are float, and ready.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from nvidia import nvimgcodec
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import functional
from torchvision.transforms.v2 import functional as functional_v2

from benchmarks.images import BATCH, THREADS, Images, Visits, config
from trainer.data.jpeg import Bytes
from trainer.data.reading.decode import crop_into
from trainer.data.reading.loader import CHUNK_IMAGES, Loader, train_jobs
from trainer.data.reading.window import Box

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Contender = Callable[[Images, Visits, int], Iterator[Any]]  # batches, each valid until the next one is asked for
Write = Callable[[np.ndarray, Bytes, Box], None]  # into (pixels, pixels, 3) uint8
_thread = threading.local()


def loader(images: Images, pixels: int, steps: int) -> Loader:
    """The trainer's own."""
    split = images.split
    jobs = train_jobs(
        config(pixels), lambda _: (split,), lambda _: pixels,
        images=len(split), rank=0, world=1, first_step=0, steps=steps,
    )  # fmt: skip
    return Loader(jobs, max_images=BATCH, image_bytes=pixels * pixels * 3, workers=THREADS, device=torch.device("cpu"))


def ours(images: Images, visits: Visits, pixels: int) -> Iterator[np.ndarray]:
    """The trainer's path; it draws order and boxes again, and they are those of `visits`."""
    with loader(images, pixels, len(visits) // BATCH) as batches:
        for batch in batches:
            yield batch.images.numpy()


class Views(Dataset[Tensor]):
    """What workers of a DataLoader compute."""

    def __init__(self, visits: Visits, view: Callable[[int, Box], Tensor]) -> None:
        self.visits, self.view = visits, view

    def __len__(self) -> int:
        return len(self.visits)

    def __getitem__(self, k: int) -> Tensor:
        return self.view(*self.visits[k])


def classic(images: Images, visits: Visits, pixels: int) -> Iterator[Tensor]:
    """ImageFolder, PIL, torchvision's first transforms, DataLoader: what public EC2 projects do."""
    finish = transforms.Compose(
        [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )

    def view(i: int, box: Box) -> Tensor:
        left, top, width, height = box
        crop = functional.resized_crop(images.listed[i][0], top, left, height, width, [pixels, pixels])
        finished: Tensor = finish(crop)
        return finished

    yield from DataLoader(Views(visits, view), batch_size=BATCH, num_workers=THREADS)


def torchvision_v2(images: Images, visits: Visits, pixels: int) -> Iterator[np.ndarray]:
    """decode_jpeg, v2 on uint8, DataLoader; channels stay last, which is the faster way."""

    def view(i: int, box: Box) -> Tensor:
        left, top, width, height = box
        image = decode_jpeg(read_file(images.listed.samples[i][0]), mode=ImageReadMode.RGB)
        crop = functional_v2.resized_crop(image, top, left, height, width, [pixels, pixels], antialias=True)
        return crop.permute(1, 2, 0)

    for batch in DataLoader(Views(visits, view), batch_size=BATCH, num_workers=THREADS):
        yield batch.numpy()


def dali(antialias: bool) -> Contender:
    """DALI's file reader, its decoder of regions, linear resizing: antialiased, as is its default and ours, or not."""

    def contender(images: Images, visits: Visits, pixels: int) -> Iterator[np.ndarray]:
        if not len(visits):
            return
        files = [images.listed.samples[i][0] for i in visits.order]

        def boxes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(visits), BATCH):
                left, top, width, height = visits.boxes[start : start + BATCH].astype(np.int32).T
                yield np.stack([top, left], 1), np.stack([height, width], 1)

        @pipeline_def(batch_size=BATCH, num_threads=THREADS, device_id=None)
        def pipeline() -> Any:
            encoded, _ = fn.readers.file(files=files, name="files")
            start, shape = fn.external_source(source=boxes(), num_outputs=2, dtype=types.INT32)
            crop = fn.decoders.image_slice(
                encoded, start=start, shape=shape, axis_names="HW", adjust_orientation=False
            )  # fmt: skip
            return fn.resize(
                crop, resize_x=pixels, resize_y=pixels, interp_type=types.INTERP_LINEAR, antialias=antialias
            )  # fmt: skip

        built = pipeline()
        built.build()
        for _ in range(len(visits) // BATCH):
            (batch,) = built.run()
            yield np.asarray(batch.as_tensor())

    return contender


def pooled(write: Write) -> Contender:
    """A thread pool over mapped shards, as ours, with another decoder."""

    def contender(images: Images, visits: Visits, pixels: int) -> Iterator[np.ndarray]:
        out = np.empty((BATCH, pixels, pixels, 3), np.uint8)

        def chunk(first: int) -> None:
            for k in range(first, first + CHUNK_IMAGES):
                i, box = visits[k]
                write(out[k % BATCH], images.split.jpeg(i), box)

        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(visits), BATCH):
                done, _ = wait([pool.submit(chunk, first) for first in range(start, start + BATCH, CHUNK_IMAGES)])
                for future in done:
                    future.result()
                yield out

    return contender


def full_decode(out: np.ndarray, jpeg: Bytes, box: Box) -> None:
    """libjpeg-turbo, all pixels of the image, into memory that is there; no crop, no resizing: `out` is not written."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    if len(getattr(_thread, "pixels", b"")) < height * width * 3:
        _thread.pixels = bytearray(height * width * 3)
    simplejpeg.decode_jpeg(jpeg, "RGB", buffer=_thread.pixels)


def opencv(out: np.ndarray, jpeg: Bytes, box: Box) -> None:
    """Linear resizing, not antialiased: OpenCV's fast one."""
    left, top, width, height = box
    image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    crop = image[top : top + height, left : left + width]
    cv2.resize(crop, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_LINEAR)


def nvimagecodec(out: np.ndarray, jpeg: Bytes, box: Box) -> None:
    """Its CPU decoder of regions, torch's antialiased resizing."""
    if not hasattr(_thread, "decoder"):
        _thread.decoder = nvimgcodec.Decoder(
            device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1,
            backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)],
        )  # fmt: skip
        _thread.params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB,
            sample_format=nvimgcodec.SampleFormat.I_RGB,
        )  # fmt: skip
    left, top, width, height = box
    stream = nvimgcodec.CodeStream(jpeg)
    region = nvimgcodec.Region((top, left), (top + height, left + width))
    decoded = _thread.decoder.decode(stream.get_sub_code_stream(region=region), params=_thread.params)
    source, target = (torch.from_numpy(pixels).permute(2, 0, 1)[None] for pixels in (np.asarray(decoded), out))
    torch.ops.aten._upsample_bilinear2d_aa.out(source, [*out.shape[:2]], False, out=target)


def bare(images: Images, visits: Visits, pixels: int) -> Iterator[np.ndarray]:
    """Our decode functions alone: bytes in memory, boxes at hand, one buffer, a plain loop in each thread."""
    todo = list(visits)

    def loop(part: list[tuple[int, Box]]) -> None:
        out = np.empty((pixels, pixels, 3), np.uint8)
        for i, box in part:
            crop_into(out, images.jpegs[i], box)

    threads = [threading.Thread(target=loop, args=(todo[k::THREADS],)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield np.empty(0)
