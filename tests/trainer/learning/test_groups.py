"""Which parameters decay, which learn at another rate, and which stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn
from torchvision.ops import StochasticDepth

from tests.trainer.learning.nets import backward, small_model
from tests.trainer.learning.test_execution import CONFIG, Lab
from trainer.contract import UserError
from trainer.learning.groups import freeze, groups_of, stages_of
from trainer.learning.model import build_model
from trainer.learning.optimizer import make_optimizer, set_lr
from trainer.learning.state import State, make_state, state_tensors
from trainer.learning.world import World
from trainer.recipes.config import Config, ModelConfig, OptimConfig, RegularizeConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def network(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


def named(model: nn.Module, optim: OptimConfig, key: str) -> dict[str, float]:
    """A figure of each parameter's group, by the parameter's name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group[key] for group in groups_of(model, optim) for p in group["params"]}


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 6, "conv1 bn1", "fc"),
        ("vit_b_32", 14, "class_token conv_proj encoder.pos_embedding", "heads"),
        ("convnext_tiny", 9, "features.0", "classifier"),
        ("mobilenet_v3_small", 14, "features.0", "classifier"),
        ("densenet121", 9, "features.conv0 features.norm0", "classifier"),
    ],
)
def test_a_network_has_stages_from_the_image_to_the_classifier(name: str, count: int, first: str, last: str) -> None:
    model = network(name)
    stages = stages_of(model)
    assert stages.keys() == dict(model.named_parameters()).keys()
    assert set(stages.values()) == set(range(count))
    for number, parts in ((0, first), (count - 1, last)):
        of_parts = {name for name in stages for part in parts.split() if f"{name}.".startswith(f"{part}.")}
        assert {name for name, stage in stages.items() if stage == number} == of_parts


def test_a_stage_of_a_resnet_learns_slower_than_the_next_one_as_with_timm() -> None:
    """timm counts blocks, or as here stages."""
    model: Any = timm.create_model("resnet18", num_classes=4)
    matcher = model.group_matcher
    model.group_matcher = lambda coarse: matcher(coarse=True)
    theirs = param_groups_layer_decay(model, weight_decay=0.25, layer_decay=0.5, no_opt_scale=0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = {names[p]: group["lr_scale"] for group in theirs for p in group["params"]}
    decays = {names[p]: group["weight_decay"] for group in theirs for p in group["params"]}
    ours = torchvision.models.resnet18(num_classes=4)
    optim = OptimConfig(weight_decay=0.25, layer_decay=0.5)
    assert named(ours, optim, "lr_scale") == expected
    assert named(ours, optim, "weight_decay") == decays
    assert set(expected.values()) == {1, 0.5, 0.25, 0.125, 0.0625, 0.03125}


def test_the_classifier_has_a_learning_rate_of_its_own() -> None:
    model = small_model()
    optimizer = make_optimizer(model, OptimConfig(head_lr_multiplier=10))
    set_lr(optimizer, 0.25)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[p] for name, p in model.named_parameters()} == {
        name: 2.5 if name.startswith("fc.") else 0.25 for name, _ in model.named_parameters()
    }
    both = named(model, OptimConfig(head_lr_multiplier=10, layer_decay=0.5), "lr_scale")
    assert {both[name] for name in ("conv1.weight", "bn1.bias")} == {0.25}
    assert (both["layer1.conv1.weight"], both["fc.bias"]) == (0.5, 10)


def test_a_tenth_of_the_learning_rate_moves_a_stage_by_a_tenth() -> None:
    moved = {}
    for decay in (1.0, 0.1):
        model = small_model()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = make_optimizer(model, OptimConfig(peak_lr=0.1, weight_decay=0, layer_decay=decay))
        backward(model, 0)
        set_lr(optimizer, 0.1)
        optimizer.step()
        moved[decay] = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    for name, share in (("conv1.weight", 0.01), ("layer1.bn2.bias", 0.1), ("fc.weight", 1)):
        torch.testing.assert_close(moved[0.1][name], share * moved[1.0][name], rtol=1e-3, atol=1e-7)
        assert moved[1.0][name].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("decayed", "spared"),
    [
        ("weights", {"bn1.weight", "bn1.bias", "layer1.0.bn1.bias", "layer2.0.downsample.1.weight", "fc.bias"}),
        ("not_norms", {"bn1.weight", "bn1.bias", "layer1.0.bn1.bias", "layer2.0.downsample.1.weight"}),
        ("not_bn", {"bn1.weight", "bn1.bias", "layer1.0.bn1.bias"}),
        ("all", set[str]()),
    ],
)
def test_what_decays_can_be_chosen(decayed: Any, spared: set[str]) -> None:
    decays = named(network("resnet18"), replace(OptimConfig(weight_decay=0.5), decayed=decayed), "weight_decay")
    looked_at = {"bn1.weight", "bn1.bias", "layer1.0.bn1.bias", "layer2.0.downsample.1.weight", "fc.bias", "fc.weight",
                 "conv1.weight", "layer2.0.downsample.0.weight"}  # fmt: skip
    assert {name for name in looked_at if decays[name] == 0} == spared
    assert {decays[name] for name in looked_at - spared} == {0.5}


def test_norms_of_other_networks_are_found() -> None:
    """LayerNorm, in both of torchvision's forms."""
    for name in ("convnext_tiny", "vit_b_32"):
        model = network(name)
        optim = OptimConfig(weight_decay=0.5, decayed="not_norms")
        spared = {name for name, decay in named(model, optim, "weight_decay").items() if decay == 0}
        modules = dict(model.named_modules())
        assert {type(modules[name.rpartition(".")[0]]).__name__ for name in spared} <= {"LayerNorm", "LayerNorm2d"}
        assert spared


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.learning.state.build_model", lambda config, initialise: small_model())


@pytest.fixture
def half_frozen(small: None) -> State:
    config = Config(
        precision="fp32", model=ModelConfig(name="small", num_classes=4, weights="elsewhere"),
        optim=OptimConfig(peak_lr=0.1, freeze_stages=1), regularize=RegularizeConfig(ema_decay=0.5),
    )  # fmt: skip
    return make_state(config, CPU, initialise=True)


def test_frozen_stages_keep_every_bit_also_after_a_validation(half_frozen: State) -> None:
    state = half_frozen
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    for number in range(3):
        state.model.eval()
        state.model.train()
        backward(state.model, number)
        state.optimizer.step()
        state.optimizer.zero_grad()
        assert state.average is not None
        state.average.update(0.5)
    changed = {name for name, tensor in state.tensors().items() if not torch.equal(tensor, before[name])}
    assert not {name for name in changed if name.partition(".")[2].startswith(("conv1.", "bn1."))}
    assert {"model.layer1.bn1.running_mean", "model.layer1.conv1.weight", "ema.fc.weight", "momentum.fc.bias"} < changed
    assert len(state.batch_counts) == 3  # of the block: those that training raises
    assert all(f"{kind}.conv1.weight" in before for kind in ("model", "ema"))
    assert "momentum.conv1.weight" not in before
    assert "momentum.bn1.bias" not in before


def test_a_frozen_norm_uses_its_statistics_in_training() -> None:
    model = small_model()
    freeze(model, 1)
    norm = model.get_submodule("bn1")
    images = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(model.train().get_submodule("bn1")(images), norm.eval()(images), rtol=0, atol=0)
    assert model.get_submodule("layer1.bn1").training


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 0.2), ("convnext_tiny", 0.0), ("efficientnet_b0", 0.0)])
def test_frozen_stages_draw_no_random_numbers(name: str, depth: float) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name, num_classes=4, stochastic_depth=depth), initialise=False)
    drawing = [name for name, module in model.named_modules() if isinstance(module, StochasticDepth | nn.Dropout)]
    stages = stages_of(model)
    freeze(model, last := max(stages.values()))
    model.train()
    trained = tuple({name.partition(".")[0] if "fc." in name else name.rpartition(".")[0].rpartition(".")[0]
                     for name, stage in stages.items() if stage == last})  # fmt: skip
    for name in drawing:
        assert model.get_submodule(name).training == name.startswith(trained), name
    assert drawing


def test_freezing_everything_is_refused_with_the_number_of_stages() -> None:
    model = small_model()
    assert freeze(model, 0) == []
    with pytest.raises(UserError, match=r"--optim.freeze-stages is 3: this network has 3 stages, .*; pass at most 2"):
        freeze(model, 3)
    assert all(parameter.requires_grad for parameter in model.parameters())
    freeze(model, 2)
    names = state_tensors(model, None, make_optimizer(model, OptimConfig(name="lamb")))
    assert {name for name in names if name.startswith("exp_avg.")} == {"exp_avg.fc.weight", "exp_avg.fc.bias"}


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated")
@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_frozen_stages_train_in_several_processes_as_in_one(tmp_path: Path, name: Any) -> None:
    """torch's DistributedDataParallel, whose only process has the whole batch."""
    optim = OptimConfig(name=name, peak_lr=0.1, freeze_stages=1, clip_norm=0.5, head_lr_multiplier=3)
    alone = Lab(replace(CONFIG, optim=optim, global_batch_size=4))
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        together = Lab(replace(CONFIG, optim=optim), World(0, 0, 2, CPU))
        for _ in range(2):
            torch.testing.assert_close(together.step(32), alone.step(32), rtol=1e-6, atol=0)
    finally:
        torch.distributed.destroy_process_group()
    expected = alone.tensors()
    for name, tensor in together.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-8, msg=name)
