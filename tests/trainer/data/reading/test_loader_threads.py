"""The threads of the loader: how far they go ahead, how they end, whose error they carry, and who waits for whom."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.images import open_split
from tests.trainer.data.reading.loading import CONFIG, CPU, STEPS, Watch, jobs_of, load
from trainer.data.making.prepare import Prepared
from trainer.data.reading.loader import Loader, val_jobs
from trainer.data.reading.split import PreparedSplit


def decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_no_more_than_three_batches_are_in_memory(train_split: PreparedSplit) -> None:
    watch = Watch()
    with Loader(watch.over(jobs_of(train_split)), max_images=4, image_bytes=3 * 32**2, workers=5, device=CPU) as loader:
        assert Loader.DEPTH == 3
        for number, _ in enumerate(loader):
            assert watch.batches == min(number + 3, STEPS * 2)
            assert len(watch.decoded) <= watch.batches * 4
    assert len(watch.decoded) == STEPS * 8


def test_a_batch_in_use_is_not_written_to_until_the_next_is_asked_for(train_split: PreparedSplit) -> None:
    watch = Watch()
    with Loader(watch.over(jobs_of(train_split)), max_images=4, image_bytes=3 * 32**2, workers=5, device=CPU) as loader:
        for number, batch in enumerate(loader):
            before = batch.images.clone(), batch.labels.clone(), batch.flips.clone()
            deadline = time.monotonic() + 10
            while len(watch.decoded) < min(number + 3, STEPS * 2) * 4:  # all that may be decoded ahead is
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert all(
                torch.equal(a, b) for a, b in zip(before, (batch.images, batch.labels, batch.flips), strict=True)
            )


def test_a_broken_image_is_named_by_split_and_number_and_the_threads_end(
    two_splits: tuple[Path, Prepared], tmp_path: Path
) -> None:
    root, result = two_splits
    shutil.copytree(root / result.prefix, tmp_path / result.prefix)
    jpeg = open_split(tmp_path, result).jpeg(13).tobytes()
    (shard,) = (tmp_path / result.prefix).glob("train-*.arrow")
    body = shard.read_bytes()
    assert body.count(jpeg) == 1
    shard.write_bytes(body.replace(jpeg, bytes(len(jpeg))))
    with pytest.raises(
        RuntimeError, match=r"image 13 of train \(train/n01443537/n01443537_5.JPEG\) cannot be decoded"
    ) as caught:
        load(jobs_of(open_split(tmp_path, result)))
    assert isinstance(caught.value.__cause__, ValueError)
    assert decoders() == []


def test_closing_ends_the_threads_at_the_end_in_the_middle_and_before_the_start(val_split: PreparedSplit) -> None:
    for taken in (0, 1, 2, 4):
        with Loader(
            val_jobs(CONFIG, val_split, rank=0, world=1), max_images=4, image_bytes=3 * 32**2, workers=3, device=CPU
        ) as loader:
            batches = iter(loader)
            for _ in range(taken):
                next(batches)
                assert decoders() != []
        assert decoders() == []
        loader.close()  # again: fine


def test_closing_does_not_decode_what_is_still_queued(train_split: PreparedSplit) -> None:
    config, watch = replace(CONFIG, global_batch_size=24, device_batch_size=24), Watch(lambda i: time.sleep(0.02))
    with Loader(
        watch.over(jobs_of(train_split, config)), max_images=24, image_bytes=3 * 32**2, workers=1, device=CPU
    ) as loader:
        next(iter(loader))
    assert watch.batches == 3
    assert 24 <= len(watch.decoded) < 3 * 24


def test_an_error_in_the_body_of_the_loop_ends_the_threads(train_split: PreparedSplit) -> None:
    def run() -> None:
        with Loader(jobs_of(train_split), max_images=4, image_bytes=3 * 32**2, workers=2, device=CPU) as loader:
            for _ in loader:
                raise KeyError("of the loop")

    with pytest.raises(KeyError):
        run()
    assert decoders() == []


def test_waiting_is_counted_when_decoding_is_slow_and_not_when_it_is_ahead(val_split: PreparedSplit) -> None:
    def waits(before: Callable[[int], None], work: float) -> float:
        jobs = Watch(before).over(val_jobs(CONFIG, val_split, rank=0, world=1))
        with Loader(jobs, max_images=4, image_bytes=3 * 32**2, workers=1, device=CPU) as loader:
            assert loader.wait_seconds == 0
            for _ in loader:
                time.sleep(work)
            return loader.wait_seconds

    assert waits(lambda index: time.sleep(0.01), work=0.0) >= 15 * 0.01 * 0.9
    assert waits(lambda index: None, work=0.03) < 15 * 0.01 * 0.9
