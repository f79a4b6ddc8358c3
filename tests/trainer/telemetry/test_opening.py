"""What a run leaves for TensorBoard when it begins: the images that its first step sees, and its config."""

from __future__ import annotations

import io
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from PIL import Image

from tests import PATIENCE
from tests.curves import summary_values
from tests.trainer.lab import CONFIG, WORLD, Lab
from tests.trainer.standins import TRAIN_IMAGES, StandInData
from trainer.contract import Exit
from trainer.data.augment.batch import normalisation, to_input
from trainer.data.reading.loader import Batch, Loader, train_jobs
from trainer.learning.forward import inputs_of
from trainer.learning.step import draws_of
from trainer.recipes.config import Config, RegularizeConfig
from trainer.telemetry.metrics import MetricsWriter
from trainer.telemetry.opening import first_images, opening, with_opening

REGULARIZE = {
    "plain": RegularizeConfig(),
    "mixup": RegularizeConfig(mixup_alpha=0.5),
    "all": RegularizeConfig(mixup_alpha=0.2, cutmix_alpha=1, augment="rand", erasing_probability=0.5),
}
PIXELS, PADDING = 32, 2


def config_of(regularize: str, precision: Literal["fp32", "bf16"] = "fp32") -> Config:
    return replace(CONFIG, precision=precision, device_batch_size=4, regularize=REGULARIZE[regularize])


@contextmanager
def batches(config: Config) -> Iterator[Iterator[Batch]]:
    jobs = train_jobs(
        config, partial(StandInData().copies, "train"), lambda step: PIXELS, images=TRAIN_IMAGES, rank=0, world=1,
        first_step=0, steps=4,
    )  # fmt: skip
    with Loader(jobs, max_images=4, image_bytes=PIXELS**2 * 3, workers=1, device=WORLD.device) as loader:
        yield iter(loader)


def contents(found: Iterator[Batch]) -> list[tuple[Any, ...]]:
    """All of each batch, before the next one is asked for."""
    return [(b.images.tolist(), b.labels.tolist(), b.flips.tolist(), b.draws.tolist()) for b in found]


class Sent:
    """In the place of the metrics' writer."""

    run_id, attempt = "job", 1

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def send_file(self, key: str, body: bytes) -> None:
        self.files[key] = body


@pytest.mark.parametrize("regularize", REGULARIZE)
def test_the_grid_has_the_first_images_as_the_network_sees_them(regularize: str) -> None:
    config = config_of(regularize)
    with batches(config) as found:
        batch = next(found)
        inputs = inputs_of(batch, config, draws_of(config, 0, 0))
        images = inputs.images
        if images.dtype == torch.uint8:
            images = to_input(images, inputs.flips, config.data)
        mean, std = normalisation(config.data.mean, config.data.std, WORLD.device)
        seen = images * std[:, None, None] + mean[:, None, None]
        shown = first_images(batch, config, draws_of(config, 0, 0))
    assert shown.shape == (4, 3, PIXELS, PIXELS)
    assert (shown - seen.clamp(0, 255)).abs().max() < 0.51
    assert shown.float().std() > 20, "not empty"


def test_the_batches_come_in_their_order_with_their_numbers_and_nothing_is_drawn() -> None:
    config, sent = config_of("all"), Sent()
    with batches(config) as found:
        plain = contents(found)
    torch.manual_seed(7)
    np.random.seed(7)  # that of others must not move either
    before = torch.get_rng_state(), str(np.random.get_state())
    with batches(config) as found:
        metrics = cast(MetricsWriter, sent)
        assert contents(with_opening(found, config, ["val"], metrics)) == plain
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert list(sent.files) == ["runs/job/tensorboard/1/events.out.tfevents.0.trainer.opening"]
    assert len(plain) == 4


READ = """
import json, sys
from google.protobuf.json_format import MessageToDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
found = EventAccumulator(sys.argv[1])
found.Reload()
(image,) = found.Images("train/images")
hparams = found.PluginTagToContent("hparams")
print(json.dumps({
    "image": [image.step, image.width, image.height, image.encoded_image_string.hex()],
    "text": found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode(),
    "texts": list(found.PluginTagToContent("text")),
    "start": MessageToDict(metadata.parse_session_start_info_plugin_data(hparams["_hparams_/session_start_info"])),
    "experiment": MessageToDict(metadata.parse_experiment_plugin_data(hparams["_hparams_/experiment"])),
}))
"""


def test_tensorboard_reads_the_grid_the_config_and_the_options(tmp_path: Path, trackers_python: str) -> None:
    config = replace(config_of("all"), recipe="<b>mine</b>", model=replace(CONFIG.model, weights="caf\udce9.pt"))
    images = torch.randint(256, (10, 3, PIXELS, PIXELS), dtype=torch.uint8)
    (tmp_path / "events.out.tfevents.0").write_bytes(opening(images, config, ["val", "val_ema"]))
    command = [trackers_python, "-W", "ignore", "-c", READ, str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE).stdout)
    width, height = 8 * (PIXELS + PADDING) + PADDING, 2 * (PIXELS + PADDING) + PADDING
    step, *size, jpeg = found["image"]
    assert (step, size) == (0, [width, height])
    grid = np.asarray(Image.open(io.BytesIO(bytes.fromhex(jpeg))).convert("RGB"), np.float32)
    tile = grid[PADDING : PADDING + PIXELS, PADDING : PADDING + PIXELS]
    assert abs(tile.mean() - images[0].float().mean()) < 3
    assert grid[-PIXELS:, 3 * (PIXELS + PADDING) :].max() < 30, "there are ten images, and then nothing"
    assert found["texts"] == ["config/text_summary"]
    assert json.loads(found["text"].removeprefix("```json\n").removesuffix("\n```"))["recipe"] == "<b>mine</b>"
    options = found["start"]["hparams"]
    assert (options["recipe"], options["model.weights"]) == ("<b>mine</b>", "caf?.pt")
    assert options["optim.peak_lr"] == config.optim.peak_lr
    assert options["data.resolution"] == PIXELS
    assert (options["optim.nesterov"], options["data.crop_scale"]) == (False, "[0.08, 1.0]")
    assert "data.workers" not in options, "it changes nothing that is computed"
    kinds = {info["name"]: info["type"] for info in found["experiment"]["hparamInfos"]}
    assert kinds.keys() == options.keys()
    assert (kinds["optim.peak_lr"], kinds["recipe"]) == ("DATA_TYPE_FLOAT64", "DATA_TYPE_STRING")
    metrics = {info["name"]["tag"] for info in found["experiment"]["metricInfos"]}
    assert {"val/top1", "val_ema/top5", "train/loss"} < metrics


def test_a_run_opens_once_before_its_first_rows_and_not_when_it_is_continued(lab: Lab) -> None:
    lab.signals = {2: signal.SIGTERM}
    assert lab.train()[0] == Exit.INTERRUPTED
    puts = [key for kind, key in lab.uploader.events if kind == "put"]
    (place,) = [at for at, key in enumerate(puts) if key.endswith(".opening")]
    assert place < min(at for at, key in enumerate(puts) if "/metrics/" in key)
    tags = {value.tag for _, value in summary_values(lab.store.get(puts[place]))}
    assert {"train/images", "config/text_summary"} < tags
    assert lab.train()[0] == Exit.FINISHED
    assert not [key for kind, key in lab.uploader.events if kind == "put" and "/tensorboard/" in key]


def test_a_run_whose_first_images_cannot_be_shown_goes_on_and_says_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.telemetry.opening.make_grid", lambda *arguments, **options: 1 / 0)
    assert lab.train()[0] == Exit.FINISHED
    assert "TensorBoard gets no first images and no config: ZeroDivisionError" in capfd.readouterr().err
