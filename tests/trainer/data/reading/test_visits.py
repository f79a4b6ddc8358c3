"""Which images an epoch takes, and how often: balanced classes and repeated augmentation, by counting."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.data.reading.loading import CONFIG, STEPS, jobs_of, load
from trainer.data.reading.order import (
    AUGMENT,
    CROP,
    draws,
    epoch_order,
    epoch_visits,
    image_of,
    micro_batches,
    visits_before,
)
from trainer.data.reading.split import PreparedSplit
from trainer.recipes.config import Config, DataConfig
from trainer.recipes.rules import checked

BALANCED, REPEATED = DataConfig(sampling="balanced"), DataConfig(repeats=4)


def config_of(data: DataConfig, batch: int = 32, seed: int = 0) -> Config:
    return checked(Config(global_batch_size=batch, device_batch_size=batch, seed=seed, data=data))


def rare_and_common() -> np.ndarray:
    """(1000,) int64: classes of 1, 9, 90 and 900 images, mixed up; class 2 has none."""
    return np.random.default_rng(0).permutation(np.repeat([0, 1, 3, 4], [1, 9, 90, 900]))


def test_where_every_image_comes_once_a_visit_is_its_number() -> None:
    labels = rare_and_common()
    assert (epoch_visits(config_of(DataConfig(), seed=3), 5, labels) == epoch_order(3, 5, 1000)).all()


@pytest.mark.parametrize("batch", [32, 7, 1000])
def test_balanced_sampling_takes_every_class_and_every_image_of_a_class_equally_often(batch: int) -> None:
    labels, config = rare_and_common(), config_of(BALANCED, batch)
    visits = epoch_visits(config, 2, labels)
    assert visits.dtype == np.int64
    assert len(visits) == 1000 // batch * batch  # an epoch is as long as any other
    images = image_of(visits)
    shares = np.bincount(labels[images], minlength=5)
    assert shares[2] == 0
    assert np.ptp(shares[[0, 1, 3, 4]]) <= 1
    for label in (0, 1, 3, 4):
        times = np.bincount(images, minlength=1000)[labels == label]
        assert np.ptp(times) <= 1
        assert times.sum() == shares[label]


def test_visits_of_one_image_are_numbered_and_each_draws_other_numbers() -> None:
    visits = epoch_visits(config_of(BALANCED), 0, rare_and_common())
    assert len(set(visits.tolist())) == len(visits)
    times, numbers = Counter(image_of(visits).tolist()), Counter[int]()
    for image, before in zip(image_of(visits).tolist(), visits_before(visits).tolist(), strict=True):
        assert 0 <= before < times[image]
        numbers[image] += before
    assert all(numbers[image] == count * (count - 1) // 2 for image, count in times.items())
    assert max(times.values()) >= 248  # the one image of the first class
    for stream in (CROP, AUGMENT):
        found = draws(stream, 0, 0, visits, 2)
        assert len(np.unique(found, axis=0)) == len(visits)
        first = visits_before(visits) == 0  # draws what it always drew
        assert (found[first] == draws(stream, 0, 0, image_of(visits)[first], 2)).all()


def test_the_sample_is_a_function_of_seed_epoch_and_labels_in_random_order() -> None:
    labels = rare_and_common()

    def sample(seed: int, epoch: int, labels: np.ndarray = labels) -> np.ndarray:
        return epoch_visits(config_of(BALANCED, seed=seed), epoch, labels)

    assert (sample(3, 5) == sample(3, 5)).all()
    for other in (sample(3, 6), sample(4, 5), sample(5, 3), sample(3, 5, labels[::-1])):
        assert (image_of(sample(3, 5)) == image_of(other)).mean() < 0.2
    order = labels[image_of(sample(3, 5))]
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1
    config = config_of(BALANCED, batch=7)  # 994 visits in an epoch, two more than four classes can share
    more = [np.bincount(labels[image_of(epoch_visits(config, epoch, labels))]).argmax() for epoch in range(40)]
    assert len(set(more)) > 1  # they go to other classes in other epochs


def test_other_images_of_a_common_class_come_in_other_epochs() -> None:
    labels, config = rare_and_common(), config_of(BALANCED)
    seen = [set(image_of(epoch_visits(config, epoch, labels)).tolist()) for epoch in range(30)]
    assert len(set().union(*seen)) > 990
    assert all(len(some) < 400 for some in seen)


@pytest.mark.parametrize("repeats", [2, 4, 8])
def test_repeated_augmentation_takes_fewer_images_each_so_often_in_one_step(repeats: int) -> None:
    labels, config = rare_and_common(), config_of(DataConfig(repeats=repeats))
    visits = epoch_visits(config, 1, labels)
    assert len(visits) == 992  # steps of an epoch stay
    assert set(Counter(image_of(visits).tolist()).values()) == {repeats}
    distinct = list(dict.fromkeys(image_of(visits).tolist()))
    assert distinct == epoch_order(0, 1, 1000)[: 992 // repeats].tolist()  # as torchvision's RASampler
    for step in range(31):
        (of_step,) = micro_batches(visits, step, 32, 32)
        assert set(Counter(image_of(of_step).tolist()).values()) == {repeats}
        for before in range(repeats):
            assert (visits_before(of_step) == before).sum() == 32 // repeats
        assert (image_of(of_step) != np.roll(image_of(of_step), 1)).all()  # mixing blends neighbours


@pytest.mark.parametrize(("world", "accum"), [(1, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("data", [BALANCED, REPEATED], ids=["balanced", "repeated"])
def test_a_step_has_the_same_visits_whatever_world_and_accumulation(data: DataConfig, world: int, accum: int) -> None:
    visits, batch = epoch_visits(config_of(data), 0, rare_and_common()), 32 // (world * accum)
    for step in (0, 30):
        rows = micro_batches(visits, step, 32, batch)
        shares = [rows[rank::world] for rank in range(world)]
        assert sorted(np.concatenate(shares, axis=None)) == sorted(visits[step * 32 : step * 32 + 32])
    if data is REPEATED:  # a micro-batch no larger than the images of a step has none of them twice
        assert all(len(set(image_of(row).tolist())) == min(batch, 8) for share in shares for row in share)


@pytest.mark.parametrize("data", [BALANCED, REPEATED], ids=["balanced", "repeated"])
def test_the_loader_crops_every_visit_of_an_image_in_its_own_way(train_split: PreparedSplit, data: DataConfig) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, sampling=data.sampling, repeats=data.repeats))
    if data is BALANCED:  # one class becomes rare, so its images come several times
        train_split = rarer(train_split)
    jobs = list(jobs_of(train_split, config))
    batches = load(iter(jobs))
    assert len(batches) == STEPS * 2
    seen: dict[tuple[int, int], list[bytes]] = {}
    for number, (job, batch) in enumerate(zip(jobs, batches, strict=True)):
        assert batch.labels.tolist() == train_split.labels[job.indices].tolist()
        for index, image in zip(job.indices.tolist(), batch.images, strict=True):
            seen.setdefault((number // 6, index), []).append(image.numpy().tobytes())
    assert max(len(images) for images in seen.values()) >= 4
    assert all(len(set(images)) == len(images) for images in seen.values())
    resumed = load(jobs_of(train_split, config, first_step=4))
    assert [batch.images.tolist() for batch in resumed] == [batch.images.tolist() for batch in batches[8:]]


def rarer(split: PreparedSplit) -> PreparedSplit:
    """The same images, of which all but one belong to the first class."""
    other = object.__new__(PreparedSplit)
    other.__dict__.update(split.__dict__)
    other.labels = (np.arange(len(split)) == 5).astype(np.int64)
    return other
