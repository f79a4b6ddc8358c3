"""Images/s: measured where this project measured them, else the table, else projected, and each says which."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from infra.operate.planning import speeds
from infra.operate.planning.catalog import GPUS, TYPES
from infra.operate.planning.speeds import MEASURED, PROJECTED, TABLE, Speed, crop_us, gpu_speed, loader_speed, val_speed
from tests import ROOT
from tests.infra.operate.works import work

H100 = json.loads((ROOT / "benchmarks/results/gpu-h100.json").read_text())["rows"]
LOADER = json.loads((ROOT / "benchmarks/results/data.json").read_text())


def measured(row: str) -> Speed:
    return Speed(H100[row]["images_per_second"], MEASURED)


def test_a_speed_that_was_measured_is_told_as_measured() -> None:
    assert gpu_speed("H100", work(), 224) == measured("ours_bf16")
    assert gpu_speed("H100", work(), 160) == measured("ours_bf16@160")
    assert gpu_speed("H100", work(precision="fp16"), 224) == measured("ours_fp16")
    assert gpu_speed("H100", work(compile=True), 224) == measured("compile_bf16")


def test_a_size_between_two_that_were_measured_lies_between_them_and_is_projected() -> None:
    found = gpu_speed("H100", work(), 192)
    assert found.source == PROJECTED
    times = [1 / gpu_speed("H100", work(), pixels).images_per_second for pixels in (160, 192, 224)]
    share = (192**2 - 160**2) / (224**2 - 160**2)
    assert times[1] == pytest.approx((1 - share) * times[0] + share * times[2])


def test_a_gpu_without_results_has_the_speed_of_the_table_at_224_px() -> None:
    assert gpu_speed("A10G", work(), 224) == Speed(GPUS["A10G"].images_per_second, TABLE)
    assert gpu_speed("A10G", work(), 112) == Speed(4 * GPUS["A10G"].images_per_second, PROJECTED)


def test_compiling_is_as_many_times_faster_as_on_the_gpu_that_was_measured() -> None:
    times = H100["compile_bf16"]["images_per_second"] / H100["ours_bf16"]["images_per_second"]
    found = gpu_speed("A10G", work(compile=True), 224)
    assert found.source == PROJECTED
    assert found.images_per_second == pytest.approx(times * GPUS["A10G"].images_per_second)


@pytest.mark.parametrize("dearer", [{"step_cost": 1.25}, {"network": "resnet18"}], ids=["parts", "network"])
def test_what_costs_more_than_a_plain_resnet50_is_projected(dearer: dict[str, object]) -> None:
    plain, found = gpu_speed("H100", work(), 224), gpu_speed("H100", work(**dearer), 224)
    assert found.source == PROJECTED
    times = plain.images_per_second / found.images_per_second
    assert times == pytest.approx(dearer.get("step_cost", speeds.network_cost("resnet18")))


def test_the_loader_model_is_within_a_fifth_of_every_measurement() -> None:
    for row in LOADER["resolutions"]:
        model = crop_us(work(train_sides=(row["copy"],)), row["pixels"])
        assert model == pytest.approx(1e6 / row["images_per_second_per_core"], rel=0.2), row
    for row in LOADER["stored"]:
        if row["quality"] == 90:
            assert crop_us(work(train_sides=(row["short_side"],)), 224) == pytest.approx(row["cpu_us"], rel=0.2), row


def test_a_copy_for_each_crop_costs_between_its_smallest_and_its_largest() -> None:
    sides = (480, 256, 128)
    per_crop = [crop_us(work(train_sides=sides, copy_per_crop=True), pixels) for pixels in (64, 88, 128, 176, 224)]
    assert per_crop == sorted(per_crop)
    least, most = (crop_us(work(train_sides=(side,)), 88) for side in (128, 480))
    assert all(least <= us <= most for us in per_crop)


def test_more_vcpus_decode_more_up_to_what_a_training_was_seen_to_be_fed() -> None:
    whole = work(train_sides=(480,))
    four, eight, most = (loader_speed(TYPES[f"g5.{size}xlarge"], whole, 224) for size in ("", 2, 8))
    assert eight == pytest.approx(2 * four)
    assert most == pytest.approx(H100["loader@112"]["train_4_threads"]["images_per_second"])


def test_a_larger_batch_on_the_device_launches_less_often() -> None:
    most = [loader_speed(TYPES["g5.8xlarge"], work(device_batch=batch), 224) for batch in (128, 256, 512)]
    assert most == sorted(most)
    assert most[2] < 2 * most[1]  # an image costs, too


def test_validation_is_faster_than_training_and_an_average_halves_it() -> None:
    type = replace(TYPES["g5.8xlarge"], vcpus=64)  # so many that they never hold the GPU up
    times = H100["eval"]["bf16"]["images_per_second"] / H100["ours_bf16"]["images_per_second"]
    assert val_speed(type, work()) == pytest.approx(811 * times)
    assert val_speed(type, work(val_passes=2)) == pytest.approx(811 * times / 2)
    assert val_speed(TYPES["g6e.xlarge"], work()) < 0.8 * val_speed(TYPES["g6e.4xlarge"], work())  # decoding
