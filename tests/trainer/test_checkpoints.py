"""The command for checkpoints: what it lists, what it finds damaged, and weights that torchvision loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
import torchvision

from tests.checkpoints import RUN, commit, object_key, owning
from tests.runs import NETWORK
from trainer.checkpoints import main
from trainer.contract import Exit, UserError, metrics_key
from trainer.learning.state import State, make_state
from trainer.learning.weights import read_weights
from trainer.recipes.config import Config, ModelConfig, OptimConfig, RegularizeConfig
from trainer.recipes.fields import to_json
from trainer.store import ObjectStore, open_store

CONFIG = Config(
    model=ModelConfig(name=NETWORK, num_classes=3), regularize=RegularizeConfig(ema_decay=0.9), optim=OptimConfig()
)
BEST: dict[str, Any] = {"top1": 0.5, "step": 4, "weights": "ema"}


def make(seed: int) -> State:
    state = make_state(Config(**{**vars(CONFIG), "seed": seed}), torch.device("cpu"), initialise=True)
    assert state.average is not None
    with torch.no_grad():
        for parameter in state.average.model.parameters():
            parameter.add_(1)
    return state


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run with three checkpoints, of which the second scored best with its average."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "store").mkdir()
    store = open_store(str(folder / "store"))
    with owning(store, 1, folder) as ownership:
        for step in (2, 4, 6):
            details = {"config": to_json(CONFIG), "counters": {"best": BEST}}
            commit(ownership, step, make(step).tensors(), is_best=step == 4, **details)
    rows = [
        {"step": 0, "event": "start", "attempt": 1, "origin": 0},
        *({"step": i, "train/loss": 1} for i in range(1, 7)),
    ]
    store.put(metrics_key(RUN, 1, "a.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())
    return folder / "store"


@pytest.fixture
def store(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A copy of it, for a test to do with as it likes, and named as the command expects."""
    shutil.copytree(saved, tmp_path / "store")
    store = open_store(str(tmp_path / "store"))
    monkeypatch.setenv("TRAINER_STORE", store.uri)
    monkeypatch.setenv("TRAINER_RUN_ID", RUN)
    return store


def test_the_list_shows_the_newest_first_and_what_the_lease_says(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list"]) == Exit.FINISHED
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [(line.split()[0], line.split("  ")[-1]) for line in lines] == [("6", "newest"), ("4", "previous, best")]


def test_verify_names_the_damaged_one_and_the_missing_steps(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify"]) == Exit.FINISHED
    (newest,) = [info.key for info in store.list("checkpoints/job/manifest/step-00000006")]
    body = bytearray(store.get(object_key(store, newest)))
    body[-1] ^= 1
    store.put(object_key(store, newest), bytes(body))
    store.put(
        metrics_key(RUN, 1, "a.jsonl"), b'{"step": 0, "event": "start", "origin": 0}\n{"step": 4, "train/loss": 1}\n'
    )
    assert main(["verify"]) == Exit.USER
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[-3:]] == ["DAMAGED", "ok", "MISSING"]
    assert "[1, 2, 3]" in said[-1]


@pytest.mark.parametrize(
    ("options", "step", "average"),
    [([], 4, True), (["--weights", "model"], 4, False), (["--which", "newest"], 6, True), (["--step", "6"], 6, True)],
)
def test_the_exported_weights_are_those_that_were_saved_and_torchvision_loads_them(
    options: list[str], step: int, average: bool, store: ObjectStore, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(file), *options]) == Exit.FINISHED
    model = torchvision.models.get_model(NETWORK, num_classes=3)
    model.load_state_dict(safetensors.torch.load_file(file), strict=True)
    state = make(step)
    expected = state.models()["val_ema" if average else "val"].state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata()["step"] == str(step)


@pytest.mark.parametrize("blur", ["none", "convs"])
def test_an_exported_file_says_whether_its_network_blurs_and_is_refused_where_another_one_is_built(
    blur: Literal["none", "convs"], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    store, config = open_store(str(tmp_path / "store")), Config(model=ModelConfig(name="resnet18", blur_pool=blur))
    with owning(store, 1, tmp_path) as ownership:
        commit(ownership, 2, {"model.fc.bias": torch.ones(3)}, config=to_json(config), counters={"best": BEST})
    file = str(tmp_path / "weights.safetensors")
    assert main(["--store", store.uri, "--run-id", RUN, "export", file]) == Exit.FINISHED
    said = capsys.readouterr().out
    assert ("a plain resnet18 loads these weights, and computes something else" in said) is (blur == "convs")
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata()["blur_pool"] == blur
    assert read_weights(ModelConfig(name="resnet18", weights=file, blur_pool=blur))
    other: Literal["none", "convs"] = "none" if blur == "convs" else "convs"
    with pytest.raises(UserError, match=f"with --model.blur-pool {blur}, and this run has {other}: .*pass .* {blur}$"):
        read_weights(ModelConfig(name="resnet18", weights=file, blur_pool=other))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "x.safetensors", "--step", "5"], "has no checkpoint of it"),
        (["export", "/no/such/folder/x"], "cannot be written"),
        (["--run-id", "other", "list"], "run 'other' has no checkpoint"),
        (["--store", "s3:/typo", "list"], "s3:/typo"),
        (["--store", "/no/such/store", "list"], "/no/such/store"),
        ([], "list"),
    ],
)
def test_what_is_asked_wrongly_is_answered_with_the_fix(
    arguments: list[str], said: str, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) != Exit.FINISHED
    assert said in capsys.readouterr().err


def test_an_infinite_loss_of_a_validation_loses_no_step(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"step": 6, "train/loss": 1.0, "val/loss": float("inf"), "val/top1": 0.5}
    store.put(metrics_key(RUN, 1, "b.jsonl"), f"{json.dumps(row)}\n".encode())
    body = b"".join(line + b"\n" for line in store.get(metrics_key(RUN, 1, "a.jsonl")).splitlines()[:-1])
    store.put(metrics_key(RUN, 1, "a.jsonl"), body)
    assert main(["verify"]) == Exit.FINISHED
    assert "ok       metrics of steps 1 to 6" in capsys.readouterr().out
