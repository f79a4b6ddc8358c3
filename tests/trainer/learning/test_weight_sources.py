"""Where weights come from: this trainer's own checkpoints come out right, and a fault that passes ends no run."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.checkpoints import file_of
from tests.emulator.s3 import FaultyProxy, refuse
from trainer.contract import UserError
from trainer.learning import weights
from trainer.learning.model import build_model
from trainer.learning.weights import read_weights
from trainer.recipes.config import ModelConfig
from trainer.store import StoreError, open_store
from trainer.store.retry import Retry

SMALL = "shufflenet_v2_x0_5"
State = dict[str, Tensor]


def build(path: str | Path, name: str = SMALL) -> State:
    state: State = build_model(ModelConfig(name=name, num_classes=1000, weights=str(path))).state_dict()
    return state


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    made: State = build_model(ModelConfig(name=SMALL, num_classes=1000)).state_dict()
    return made


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hurry:
        def wait(self, seconds: float) -> None: ...

        def clear(self) -> None: ...

    def hurried(self: Retry, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        self.hurry = Hurry()  # type: ignore[assignment]

    begin = Retry.__init__
    monkeypatch.setattr(Retry, "__init__", hurried)


@pytest.mark.parametrize("name", [SMALL, "squeezenet1_1"])
def test_a_checkpoint_of_this_trainer_with_channels_last_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    model = build_model(ModelConfig(name=name, num_classes=1000)).to(memory_format=torch.channels_last)
    state: State = model.state_dict()
    (tmp_path / "step-1.safetensors").write_bytes(file_of({f"model.{key}": t for key, t in state.items()}))
    assert all(torch.equal(tensor, state[key]) for key, tensor in build(tmp_path / "step-1.safetensors", name).items())


def test_a_checkpoint_says_whether_its_network_blurs_and_an_older_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(ModelConfig(name="resnet18", num_classes=3, blur_pool="convs"))
    tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    file = tmp_path / "step-1.safetensors"
    for blur in ("none", "convs"):
        file.write_bytes(file_of(tensors, blur))
        other = "convs" if blur == "none" else "none"
        with pytest.raises(UserError, match=f"was trained with --model.blur-pool {blur}, and this run has {other}"):
            read_weights(ModelConfig(name="resnet18", weights=str(file), blur_pool=other))  # type: ignore[arg-type]
        read_weights(ModelConfig(name="resnet18", weights=str(file), blur_pool=blur))
    assert capsys.readouterr().out == ""
    file.write_bytes(file_of(tensors))
    read_weights(ModelConfig(name="resnet18", weights=str(file)))
    assert "does not say whether its network blurs: this run has --model.blur-pool none" in capsys.readouterr().out


def test_a_store_that_fails_for_a_moment_is_asked_again(
    s3_uri: str, s3_proxy: FaultyProxy, state: State, no_pauses: None
) -> None:
    open_store(s3_uri).put("w.safetensors", safetensors.torch.save(state))
    s3_proxy.plan("GET", *[refuse(503, "SlowDown")] * 3)
    assert all(torch.equal(tensor, state[key]) for key, tensor in build(f"{s3_uri}/w.safetensors").items())


def test_a_store_that_refuses_for_good_is_asked_once(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    s3_proxy.plan("GET", refuse(403, "AccessDenied"))
    with pytest.raises(UserError, match=r"w\.safetensors' cannot be used: .*AccessDenied.*allow the role or user"):
        build(f"{s3_uri}/w.safetensors")
    assert sum(line.startswith("GET") for line in s3_proxy.requests) == 1


@pytest.mark.parametrize("end", ["dir/", ""])
def test_a_name_that_ends_in_a_slash_is_told_as_no_file(s3_uri: str, tmp_path: Path, end: str) -> None:
    for place in (f"{s3_uri}/{end}", f"file://{tmp_path}/{end}", f"file://{tmp_path}/nowhere/w.pth"):
        with pytest.raises(UserError, match=rf"'{place}' cannot be read .*use one of IMAGENET1K_V1"):
            build(place)


Download = Callable[..., object]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[object]]:
    """Lets torchvision's downloads end as given, one each; returns those that are left."""

    def plan(*ends: object) -> list[object]:
        left = list(ends)

        def download(*_: object, **__: object) -> object:
            if isinstance(end := left.pop(0), Exception):
                raise end
            return end

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
        return left

    return plan


def answer(code: int) -> HTTPError:
    return HTTPError("https://download.pytorch.org/x.pth", code, "as planned", Message(), None)


PASSING = [
    URLError(socket.gaierror(-3, "Temporary failure in name resolution")),
    ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
    answer(503), answer(429), RuntimeError("invalid hash value"),
]  # fmt: skip


@pytest.mark.parametrize("fault", PASSING, ids=repr)
def test_a_download_that_fails_for_a_moment_is_tried_again(
    fault: Exception, downloads: Callable[..., list[object]], state: State, no_pauses: None
) -> None:
    left = downloads(fault, state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in build("IMAGENET1K_V1").items())
    assert not left


def test_a_network_that_stays_away_is_left_to_the_next_start(
    downloads: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "TRY_SECONDS", 0.0)
    downloads(PASSING[0])
    with pytest.raises(StoreError, match=r"IMAGENET1K_V1 of .* could not be downloaded .*name a copy with"):
        build("IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([answer(404)], "could not be downloaded .*404"),
        ([URLError(ssl.SSLCertVerificationError("self-signed certificate"))], "could not be downloaded .*self-signed"),
        ([RuntimeError("invalid hash value")] * 2, "could not be downloaded .*invalid hash"),
        ([OSError(errno.ENOSPC, "No space left on device")], "No space left.*free disk space"),
    ],
)  # fmt: skip
def test_a_download_that_cannot_work_is_told_at_once(
    ends: list[object], said: str, downloads: Callable[..., list[object]]
) -> None:
    left = downloads(*ends)
    with pytest.raises(UserError, match=said):
        build("IMAGENET1K_V1")
    assert not left
