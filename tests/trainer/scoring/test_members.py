"""What one may name to score: runs, files of ours and of others, torchvision's weights; the rest is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from tests.checkpoints import RUN, commit, file_of, owning
from trainer.contract import UserError, run_key
from trainer.imagenet import wnids
from trainer.learning.model import build_model
from trainer.learning.places import CLASSES as CLASSES_OF_OUTLINE
from trainer.learning.places import outline
from trainer.model_card import CARD_FILE, METADATA_KEY, ModelCard
from trainer.recipes.config import Config, DataConfig, ModelConfig
from trainer.recipes.fields import to_json
from trainer.scoring.members import Member, check_same_classes, open_member
from trainer.store import ObjectStore, open_store

NAME, CLASSES = "shufflenet_v2_x0_5", ("ant", "bee", "cow")
CONFIG = Config(model=ModelConfig(name=NAME), data=DataConfig(val_resize=40, val_crop=32))
CARD = ModelCard(
    network=NAME, classes=CLASSES, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), val_resize=40, val_crop=32, run_id=RUN
)
State = dict[str, Tensor]


def random_state(seed: int, classes: int = len(CLASSES), name: str = NAME) -> State:
    torch.manual_seed(seed)
    state: State = build_model(ModelConfig(name=name, num_classes=classes)).state_dict()
    return state


def named(kind: str, state: State) -> State:
    return {f"{kind}.{key}": tensor for key, tensor in state.items()}


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(1)


@pytest.fixture(scope="module")
def average() -> State:
    return random_state(2)


@pytest.fixture(scope="module")
def store(state: State, average: State, tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    """A run with two checkpoints: the average scored best at step 2."""
    folder = tmp_path_factory.mktemp("members")
    (folder / "store").mkdir()
    store = open_store(str(folder / "store"))
    best = {"best": {"top1": 0.5, "step": 2, "weights": "ema"}}
    with owning(store, 1, folder) as ownership:
        for step in (2, 4):
            tensors = named("model", state) | named("ema", average)
            commit(ownership, step, tensors, is_best=step == 2, config=to_json(CONFIG), counters=best)
    store.put(run_key(RUN, CARD_FILE), CARD.to_text().encode())
    return store


def holds(member: Member, state: State) -> bool:
    own = member.model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in state)


def refusal(name: str | Path, store: ObjectStore, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_member(str(name), store, *arguments)
    assert "--model." not in str(caught.value), "an option of training"
    return str(caught.value)


def test_a_run_gives_its_best_checkpoint_and_what_it_knows_of_its_weights(
    store: ObjectStore, state: State, average: State
) -> None:
    best = open_member(RUN, store)
    assert holds(best, average)
    assert (best.card.classes, best.card.step, best.card.weights) == (CLASSES, 2, "ema")
    assert not best.model.training
    newest = open_member(f"{RUN}@newest", store, "model")
    assert holds(newest, state)
    assert newest.card.step == 4
    assert holds(open_member(f"{RUN}@4", store, "ema"), average)


def test_a_checkpoint_named_by_its_file_has_the_card_of_its_run(store: ObjectStore, state: State) -> None:
    key = f"checkpoints/{RUN}/data/step-00000004.1.safetensors"
    member = open_member(store.describe(key), open_store("/nowhere"), "model")
    assert holds(member, state)
    assert (member.card.classes, member.card.val_crop, member.card.step) == (CLASSES, 32, 4)
    assert "is beside the line" in refusal(store.describe(key.replace("4.1", "4.2")), store)


def test_an_exported_file_says_all_of_itself(
    store: ObjectStore, state: State, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.safetensors"
    safetensors.torch.save_file(state, path, {METADATA_KEY: replace(CARD, weights="model").to_text()})
    member = open_member(str(path), store)
    assert holds(member, state)
    assert member.card == replace(CARD, weights="model")
    assert capfd.readouterr() == ("", "")
    assert "has only model weights" in refusal(path, store, "ema")
    assert "leave --network resnet18 out" in refusal(path, store, "auto", "resnet18")


def test_a_foreign_file_is_scored_as_usual_for_its_network_and_that_is_said(
    store: ObjectStore, state: State, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": named("module", state), "epoch": 3}, path)
    member = open_member(str(path), store)
    assert holds(member, state)
    assert (member.card.network, member.card.classes) == (NAME, ())
    assert (member.card.val_resize, member.card.val_crop, member.card.resize_mode) == (256, 224, "bilinear")
    out, said = capfd.readouterr()
    assert out == "", "standard output has the answer alone"
    assert f"is scored as {NAME} at 224 px of 256 (bilinear)" in said
    assert "and classes without names" in said
    assert "taken from the mapping 'state_dict' and the prefix 'module.'" in said


def test_a_copied_checkpoint_gives_its_average_or_what_is_asked_for(
    store: ObjectStore, state: State, average: State, tmp_path: Path
) -> None:
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(file_of(named("model", state) | named("ema", average) | named("momentum", average), "none"))
    assert holds(open_member(str(path), store, "auto", NAME), average)
    assert holds(open_member(str(path), store, "model", NAME), state)
    assert "has no swa weights: use --weights ema or model" in refusal(path, store, "swa", NAME)


def test_of_a_foreign_file_with_an_average_one_may_choose(
    store: ObjectStore, state: State, average: State, tmp_path: Path
) -> None:
    path = tmp_path / "timm.pth"
    torch.save({"state_dict": state, "state_dict_ema": average}, path)
    assert holds(open_member(str(path), store, "auto", NAME), state)
    assert holds(open_member(str(path), store, "ema", NAME), average)


def test_torchvisions_weights_bring_their_sizes_and_classes(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state(3, 1000)
    entry = torchvision.models.ShuffleNet_V2_X0_5_Weights
    monkeypatch.setattr(entry, "get_state_dict", lambda self, **options: state)
    member = open_member("ShuffleNet_V2_X0_5_Weights.DEFAULT", store)
    assert holds(member, state)
    assert member.card.weights == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert (member.card.classes, member.card.val_resize, member.card.val_crop) == (wnids(), 256, 224)
    assert "torchvision has no IMAGENET1K_V9 of ShuffleNet_V2_X0_5_Weights: use IMAGENET1K_V1" in refusal(
        "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V9", store
    )
    assert "torchvision has no Resnet50_Weights" in refusal("Resnet50_Weights.IMAGENET1K_V2", store)


@pytest.mark.parametrize("name", ["mnasnet0_5", "swin_t", "squeezenet1_1"])
def test_networks_of_every_kind_are_made_whole_without_random_weights(
    name: str, store: ObjectStore, tmp_path: Path
) -> None:
    sizes = {
        key: [5 if size == CLASSES_OF_OUTLINE else size for size in own.shape] for key, own in outline(name).items()
    }
    state = {key: torch.full(size, 0.25).to(outline(name)[key].dtype) for key, size in sizes.items()}
    torch.save(state, path := tmp_path / "weights.pth")
    member = open_member(str(path), store, "auto", name)
    assert holds(member, state)
    assert not {key for key, _ in member.model.named_buffers()} - state.keys(), "a buffer that no file has"


def test_a_file_without_its_classifier_is_refused(store: ObjectStore, state: State, tmp_path: Path) -> None:
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("fc.")}, path := tmp_path / "b.pth")
    assert "has no classifier (fc.bias, fc.weight)" in refusal(path, store, "auto", NAME)


def test_what_is_missing_damaged_or_of_another_network_is_told_in_one_message(
    store: ObjectStore, state: State, tmp_path: Path
) -> None:
    other, odd, cut = tmp_path / "other.pth", tmp_path / "odd.pth", tmp_path / "cut.safetensors"
    torch.save(state, other)
    assert f"they fit {NAME}; choose the --network" in refusal(other, store, "auto", "resnet18")
    torch.save({"fc.weight": torch.zeros(3, 9), "x": torch.zeros(2)}, odd)
    assert "nobody knows the network" in refusal(odd, store)
    torch.save({"epoch": 3}, odd)
    assert "it holds epoch, and no tensors by name" in refusal(odd, store)
    cut.write_bytes(safetensors.torch.save(state)[:-9])
    assert "is no state dict: it is cut off" in refusal(cut, store)
    assert "cannot be read" in refusal(tmp_path / "none.pth", store)
    torch.save(state | {"fc.bias": torch.full((3,), torch.nan)}, odd)
    assert "3 of the 3 numbers of fc.bias are not finite" in refusal(odd, store, "auto", NAME)
    safetensors.torch.save_file(state, cut, {METADATA_KEY: "{}"})
    assert "the model card in" in refusal(cut, store)
    safetensors.torch.save_file(state, cut, {METADATA_KEY: replace(CARD, classes=("ant",)).to_text()})
    assert "has 3 outputs, and its card names 1 classes" in refusal(cut, store)
    assert "run 'gone' has no checkpoint" in refusal("gone", store)
    assert "is no run" in refusal("Digits", store)
    assert "names no checkpoint: use @best" in refusal(f"{RUN}@last", store)
    assert "is not a torchvision classification model" in refusal(other, store, "auto", "resnet51")
    assert "googlenet cannot be scored: torchvision's weights of it want another normalisation" in refusal(
        "GoogLeNet_Weights.DEFAULT", store
    )


def test_members_of_other_classes_are_refused(store: ObjectStore) -> None:
    first = open_member(RUN, store)
    check_same_classes([first, replace(first, card=replace(CARD, classes=()))])
    with pytest.raises(UserError, match="have other classes"):
        check_same_classes([first, replace(first, card=replace(CARD, classes=("bee", "ant", "cow")))])
