"""What can be known before data is staged is refused before: staging may take an hour of a machine that costs money."""

from __future__ import annotations

from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import torch
import torchvision

from tests.runs import NETWORK
from tests.shards import noise
from tests.trainer.lab import CONFIG, Lab
from trainer import setup
from trainer.contract import Phase, RefusedError, UserError
from trainer.data.stage import known_index
from trainer.process.interruption import Interrupted
from trainer.recipes.config import Config


class StagedError(Exception):
    """Data would be staged now."""


@pytest.fixture
def unstaged(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A laboratory in which nothing may be staged."""

    def stage_data(*arguments: Any) -> None:
        raise StagedError

    monkeypatch.setattr(setup, "stage_data", stage_data)
    return lab


def with_model(**changes: Any) -> Config:
    return replace(CONFIG, model=replace(CONFIG.model, **changes))


def weights_of(folder: Path, name: str, classes: int) -> str:
    path = folder / f"{name}-{classes}.pth"
    torch.save(torchvision.models.get_model(name, num_classes=classes).state_dict(), path)
    return str(path)


def test_weights_that_fit_no_such_network_are_refused_before_data_is_staged(unstaged: Lab, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"does not fit the model.*they fit {NETWORK}"):
        unstaged.train(with_model(name="resnet18", weights=weights_of(tmp_path, NETWORK, 3)))
    assert Phase.STAGING not in unstaged.entered()


def test_weights_of_another_number_of_classes_are_fine(unstaged: Lab, tmp_path: Path) -> None:
    with pytest.raises(StagedError):
        unstaged.train(with_model(weights=weights_of(tmp_path, NETWORK, 7)))


def test_torchvisions_own_weights_are_fetched_before_data_is_staged(
    unstaged: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise HTTPError("https://download.pytorch.org/x.pth", 403, "as planned", Message(), None)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"IMAGENET1K_V1 of .* could not be downloaded"):
        unstaged.train(with_model(weights="IMAGENET1K_V1"))
    assert Phase.STAGING not in unstaged.entered()
    own = torchvision.models.get_model(NETWORK).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *arguments, **named: own)
    with pytest.raises(StagedError):
        unstaged.train(with_model(weights="IMAGENET1K_V1"))


def test_more_frozen_stages_than_the_network_has_are_refused_before_data_is_staged(
    unstaged: Lab, tmp_path: Path
) -> None:
    config = with_model(weights=weights_of(tmp_path, NETWORK, 7))
    with pytest.raises(UserError, match=r"--optim.freeze-stages is 99: this network has \d+ stages"):
        unstaged.train(replace(config, optim=replace(config.optim, freeze_stages=99)))
    assert Phase.STAGING not in unstaged.entered()


def test_a_run_that_goes_on_needs_no_weights_any_more(lab: Lab, tmp_path: Path) -> None:
    path = weights_of(tmp_path, NETWORK, 7)
    config = with_model(weights=path)
    lab.train(config)
    Path(path).unlink()
    lab.train(config)


@pytest.mark.parametrize("place", ["folder", "store"])
def test_the_classes_of_prepared_data_are_counted_before_it_is_staged(
    place: str, unstaged: Lab, tmp_path: Path, s3_uri: str
) -> None:
    unstaged.environ["TRAINER_DATA"] = noise(tmp_path / "prepared" if place == "folder" else s3_uri)[0]
    with pytest.raises(UserError, match=r"--model\.num-classes is 7, but 'noise' has 1 classes"):
        unstaged.train(with_model(num_classes=7))
    few = (
        r"is more than the \d+ training images: .* pass --global-batch-size \d+ --device-batch-size \d+ --optim.peak-lr"
    )
    with pytest.raises(UserError, match=few):
        unstaged.train(replace(with_model(num_classes=0), global_batch_size=4096))
    with pytest.raises(StagedError):
        unstaged.train(replace(with_model(num_classes=0), global_batch_size=1, device_batch_size=1))


def test_data_that_is_yet_to_be_prepared_has_no_index_that_is_known() -> None:
    assert known_index("digits") is None
    assert known_index("ILSVRC/imagenet-1k") is None


def test_a_run_with_another_config_is_refused_before_data_is_staged(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.train(replace(CONFIG, epochs=1))
    monkeypatch.setattr(setup, "stage_data", lambda *arguments: pytest.fail("staged"))
    with pytest.raises(RefusedError, match="epochs: 1 -> 2"):
        lab.train(replace(with_model(num_classes=0), epochs=2))


def test_the_start_says_what_is_unusual_for_a_network(lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    lab.stop_in = Phase.WAITING_FOR_STORE  # after all that a start says, and before any step
    with pytest.raises(Interrupted):
        lab.train(with_model(name="mobilenet_v3_large"))
    assert "mobilenet_v3_large is usually trained from scratch with rmsprop" in capfd.readouterr().err
