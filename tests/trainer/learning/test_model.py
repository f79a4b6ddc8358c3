"""Models by name, and where their weights come from: files, stores, torchvision; what does not fit is refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests import PATIENCE
from trainer.contract import UserError
from trainer.learning.model import build_model
from trainer.learning.weights import read_weights
from trainer.recipes.config import ModelConfig
from trainer.store import open_store

SMALL = "shufflenet_v2_x0_5"  # 350,000 parameters, BatchNorm, a head named fc as ResNet's


def small(weights: str = "", classes: int = 4) -> nn.Module:
    return build_model(ModelConfig(name=SMALL, num_classes=classes, weights=weights))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(11)
    return small().state_dict()


def save(path: Path, state: object) -> str:
    torch.save(state, path)
    return str(path)


def is_loaded(model: nn.Module, state: dict[str, Tensor], *, but: str = "?") -> bool:
    return all(torch.equal(t, state[name]) for name, t in model.state_dict().items() if not name.startswith(but))


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_181_642), ("resnet50", 23_528_522)])
def test_a_model_is_built_by_its_name_with_so_many_outputs(name: str, parameters: int) -> None:
    model = build_model(ModelConfig(name=name, num_classes=10))
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.inference_mode():
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_an_unknown_name_is_told_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"--model\.name 'resnet51' is not .*: use one of resnet101, .*resnet50, "):
        build_model(ModelConfig(name="resnet51"))
    with pytest.raises(UserError, match="classification model"):  # torchvision has it, for another task
        build_model(ModelConfig(name="fcn_resnet50"))


def test_without_weights_the_seed_decides_and_nothing_else() -> None:
    def built(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return small().state_dict()

    assert torch.equal(built(1)["fc.weight"], built(1)["fc.weight"])
    assert not torch.equal(built(1)["fc.weight"], built(2)["fc.weight"])


def test_weights_come_from_a_pth_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    assert not is_loaded(small(), state)
    assert is_loaded(small(save(tmp_path / "w.pth", state)), state)


def test_weights_come_from_a_safetensors_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors.torch.save(state))
    assert is_loaded(small(str(path)), state)


def test_weights_come_from_a_directory_store(tmp_path: Path, state: dict[str, Tensor]) -> None:
    open_store(str(tmp_path)).put("final/w.safetensors", safetensors.torch.save(state))
    assert is_loaded(small(f"file://{tmp_path}/final/w.safetensors"), state)
    assert is_loaded(small(f"{tmp_path}/final/w.safetensors"), state)


def test_weights_come_from_s3_whether_the_bucket_has_a_prefix_or_not(s3_uri: str, state: dict[str, Tensor]) -> None:
    bucket = "/".join(s3_uri.split("/")[:3])
    for uri in (s3_uri, bucket):
        open_store(uri).put("w.safetensors", safetensors.torch.save(state))
        assert is_loaded(small(f"{uri}/w.safetensors"), state)
    with pytest.raises(UserError, match=r"missing\.pth' cannot be read"):
        small(f"{s3_uri}/missing.pth")


def test_a_checkpoint_of_this_trainer_gives_its_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    noise = {f"{kind}.{name}": torch.zeros_like(t) for name, t in state.items() for kind in ("ema", "momentum")}
    path = tmp_path / "step-00000010.1.safetensors"
    path.write_bytes(safetensors.torch.save(noise | {f"model.{name}": t for name, t in state.items()}))
    assert is_loaded(small(str(path)), state)


def test_weights_are_left_alone_when_a_checkpoint_will_follow() -> None:
    build_model(ModelConfig(name=SMALL, num_classes=4, weights="/there/is/no.pth"), initialise=False)


def test_a_head_of_another_number_of_classes_starts_at_random_and_it_is_said(
    tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "w.pth", state)
    small(path)
    assert capsys.readouterr().out == ""
    model = small(path, classes=7)
    assert is_loaded(model, state, but="fc.")
    assert model.state_dict()["fc.weight"].shape[0] == 7
    assert model.state_dict()["fc.weight"].std() > 0
    said = capsys.readouterr().out
    assert path in said
    assert "head has another number of classes and starts at random" in said


def test_weights_of_another_model_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save(tmp_path / "w.pth", state)
    with pytest.raises(UserError, match=r"w\.pth' does not fit .*tensors differ .*--model\.name"):
        build_model(ModelConfig(name="resnet18", num_classes=4, weights=path))
    with pytest.raises(UserError, match="does not fit"):
        build_model(ModelConfig(name="shufflenet_v2_x1_0", num_classes=4, weights=path))  # same names, other shapes


@pytest.mark.parametrize("change", ["missing", "missing head", "unexpected", "shape"])
def test_a_single_tensor_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, state: dict[str, Tensor], change: str
) -> None:
    changed, name = dict(state), "conv5.0.weight"
    match change:
        case "missing":
            del changed[name]
        case "missing head":
            del changed[name := "fc.weight"]
        case "unexpected":
            changed[name := "extra.weight"] = torch.zeros(1)
        case "shape":
            changed[name] = changed[name][:3]
    with pytest.raises(UserError, match=rf"does not fit the model: 1 tensors differ \({name}"):
        small(save(tmp_path / "w.pth", changed))


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "the code in the file has run")


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path, state: dict[str, Tensor]) -> None:
    trap = tmp_path / "trap"
    for name, write in (("zip.pth", torch.save), ("plain.pth", None)):
        content = state | {"evil": Payload(trap)}
        if write:
            write(content, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=rf"{name}' is no state dict"):
            small(str(tmp_path / name))
        assert not trap.exists()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"epoch": 3, "model": {"a": torch.zeros(1)}}])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(UserError, match="is no state dict"):
        small(save(tmp_path / "w.pth", content))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(state, path)
    else:
        path.write_bytes(safetensors.torch.save(state))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is no state dict"):
        small(str(path))


@pytest.mark.parametrize("weights", ["IMAGENET1K_V3", "DEFAULT", "nowhere.pth", "gs://bucket/w.pth", "."])
def test_weights_that_are_nowhere_are_told_with_what_is_possible(weights: str) -> None:
    with pytest.raises(UserError) as caught:
        small(weights)
    assert weights.rpartition("/")[0] in str(caught.value)
    assert "s3://bucket/" in str(caught.value)


def test_torchvision_has_no_v2_of_every_model() -> None:
    with pytest.raises(UserError, match="torchvision has no IMAGENET1K_V2 of resnet18: use IMAGENET1K_V1"):
        read_weights(ModelConfig(name="resnet18", weights="IMAGENET1K_V2"))


@pytest.mark.slow
def test_torchvision_weights_without_internet_say_what_to_do(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # nobody listens: nothing leaves this machine
    environ = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environ |= {"TORCH_HOME": str(tmp_path), "HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere}
    environ |= {"https_proxy": nowhere, "http_proxy": nowhere}
    code = """
from trainer.recipes.config import ModelConfig
from trainer.learning import weights
from trainer.learning.model import build_model
from trainer.store import StoreError
weights.TRY_SECONDS = 0.1
try:
    build_model(ModelConfig(weights="IMAGENET1K_V2"))
except StoreError as error:  # it may pass: the next start tries again
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=PATIENCE, check=True
    )  # fmt: skip
    assert "IMAGENET1K_V2 of resnet50 could not be downloaded" in done.stdout
    assert "--model.weights FILE.pth, FILE.safetensors or s3://bucket/key" in done.stdout
    assert list(tmp_path.rglob("*.pth")) == []
