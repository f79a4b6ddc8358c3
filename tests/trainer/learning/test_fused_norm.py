"""`--fused-norm`: what it changes in a model, and what is refused. test_kernels.py tests what is computed."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from trainer.contract import UserError
from trainer.learning.batch_counts import take_over_counts
from trainer.learning.device import check_device
from trainer.learning.fused_norm import fuse_norms
from trainer.learning.state import make_state
from trainer.recipes.config import Config, ModelConfig
from trainer.recipes.rules import checked

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_names_and_tensors_of_a_fused_model_stay(name: str) -> None:
    with torch.device("meta"):
        plain = torchvision.models.get_model(name)
    model = copy.deepcopy(plain)
    counts = take_over_counts(model)
    fuse_norms(model)
    assert [*model.state_dict()] == [*plain.state_dict()]
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]
    assert len(counts) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds >= {"NormReLU", "Norm", "Identity"}
    assert not kinds & {"BatchNorm2d", "UncountedBatchNorm"}


def test_the_state_of_a_run_has_them() -> None:
    state = make_state(Config(fused_norm=True, model=ModelConfig(name="resnet18"), device="cpu"), CPU, initialise=True)
    assert type(state.model.bn1).__name__ == "NormReLU"
    plain = make_state(Config(model=ModelConfig(name="resnet18"), device="cpu"), CPU, initialise=True)
    assert all(torch.equal(plain.tensors()[name], tensor) for name, tensor in state.tensors().items())


def test_another_network_is_no_resnet() -> None:
    with torch.device("meta"), pytest.raises(TypeError, match="SqueezeNet is no ResNet"):
        fuse_norms(torchvision.models.get_model("squeezenet1_0"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compile": True}, "--fused-norm is True: it must be off with --compile, which fuses these layers itself"),
        ({"channels_last": False}, "--fused-norm is True: it must be off with --no-channels-last"),
        ({"model": ModelConfig(name="vgg11")}, "--fused-norm is True: it must be off with --model.name vgg11"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, reason: str) -> None:
    checked(Config(fused_norm=True))
    checked(Config(**options))
    with pytest.raises(UserError, match=re.escape(reason)):
        checked(Config(fused_norm=True, **options))


def test_a_machine_that_cannot_run_the_kernels_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = Config(fused_norm=True, device="cpu")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="--fused-norm needs a GPU, and this run is on the cpu: leave it out"):
        check_device(config, CPU)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="needs a C compiler, and this machine has none: install gcc"):
        check_device(config, CUDA)
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    compiler.rename(tmp_path / "cc")  # which Triton does not look for
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs a C compiler"):
        check_device(config, CUDA)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"needs Python's headers .*Python.h is missing: install python3\.[0-9]+-dev"):
        check_device(config, CUDA)
    (tmp_path / "Python.h").touch()
    check_device(config, CUDA)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check_device(config, CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs Triton, and this environment lacks it: install triton"):
        check_device(config, CUDA)
