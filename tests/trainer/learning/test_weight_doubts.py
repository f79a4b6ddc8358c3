"""Weights that may not be what is meant, and damaged files: told with what to do, and nothing is taken by guess."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.contract import UserError
from trainer.learning.matching import load_matching
from trainer.learning.model import build_model
from trainer.recipes.config import ModelConfig

SMALL = "shufflenet_v2_x0_5"
State = dict[str, Tensor]


def load(content: object) -> State:
    model = build_model(ModelConfig(name=SMALL, num_classes=4))
    load_matching(model, SMALL, content, "w.pth")
    state: State = model.state_dict()
    return state


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    made: State = build_model(ModelConfig(name=SMALL, num_classes=4)).state_dict()
    return made


def test_a_body_and_a_whole_model_without_counters_are_two_sets(state: State) -> None:
    body = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    whole = {key: tensor for key, tensor in state.items() if "num_batches" not in key}
    with pytest.raises(UserError, match="several sets of weights that fit"):
        load({"backbone": body, "net": whole})
    assert all(torch.equal(tensor, state[key]) for key, tensor in load({"net": state, "backbone": body}).items())


def test_an_encoder_by_momentum_is_an_average_and_it_is_said(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    other = {key: tensor + 1 for key, tensor in state.items()}
    assert torch.equal(load({"momentum_encoder": other, "encoder": state})["fc.bias"], state["fc.bias"])
    assert "not from the mapping 'momentum_encoder', which fits, too" in capsys.readouterr().out
    assert torch.equal(load({"momentum_encoder": other})["fc.bias"], other["fc.bias"])
    assert "taken from the mapping 'momentum_encoder'" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["momentum", "exp_avg"])
def test_what_an_optimizer_keeps_is_taken_for_no_weights_and_it_is_said(
    name: str, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {key: tensor + 1 for key, tensor in state.items()}
    assert torch.equal(load({name: other, "net": state})["fc.bias"], state["fc.bias"])
    assert f"not from the mapping '{name}', which fits, too" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"nothing that fits .* but what an optimizer keeps: the mapping '{name}'"):
        load({name: other})


def test_where_the_chosen_model_is_the_nearest_the_tensors_are_to_be_changed(state: State) -> None:
    with pytest.raises(UserError) as caught:
        load(state | {"conv1.0.bias": torch.zeros(24)})
    assert f"the nearest is {SMALL}, with tensors that do not fit: 1; that is the one you chose" in str(caught.value)
    assert "rename or remove those tensors in the file" in str(caught.value)
    assert "choose the --model.name" not in str(caught.value)


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def odd_zip(at: int, value: bytes) -> bytes:
    """A zip archive whose directory has other bytes in its first entry."""
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    body = bytearray(file.getvalue())
    start = body.rindex(b"PK\x01\x02") + at
    body[start : start + len(value)] = value
    return bytes(body)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(a={"dtype": "F32", "shape": [1], "data_offsets": []}), "a damaged safetensors file"),
        (header(a=[]), "a damaged safetensors file"),
        (odd_zip(6, b"\xff\x00"), "a damaged zip archive .*zip file version 25.5"),
        (odd_zip(8, b"\x00\x08").replace(b"data.pkl", b"\xff\xfedata.p"), "a damaged zip archive .*codec can't decode"),
    ],
    ids=["no offsets", "no entry", "version", "name"],
)  # fmt: skip
def test_a_damaged_file_is_told_as_damaged(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.pth' is no state dict: it is {said}.*download or copy it again"):
        build_model(ModelConfig(name=SMALL, weights=str(tmp_path / "w.pth")))
