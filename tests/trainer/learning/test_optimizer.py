"""Schedule, optimizer and average against torch's own, and against their formulas."""

from __future__ import annotations

import copy
import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.learning.nets import backward, small_model
from trainer.learning.average import Average
from trainer.learning.model import build_model
from trainer.learning.optimizer import make_optimizer, set_lr
from trainer.learning.schedule import ema_decay, one_cycle_lr
from trainer.learning.state import state_tensors
from trainer.recipes.config import Config, ModelConfig, OptimConfig, RegularizeConfig


def train_once(model: nn.Module, average: Average, optimizer: torch.optim.Optimizer, step: int) -> None:
    backward(model, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.update(0.9)


@pytest.mark.parametrize("total", [2, 3, 10, 97, 1000])
@pytest.mark.parametrize("shape", ["cos", "linear"])
@pytest.mark.parametrize(
    ("pct_start", "div", "final_div"), [(0.3, 25.0, 1e4), (0.05, 2.0, 10.0), (0.45, 25.0, 1e4), (0.9, 100.0, 1.0)]
)
def test_one_cycle_is_that_of_torch_at_every_step(
    total: int, shape: Literal["cos", "linear"], pct_start: float, div: float, final_div: float
) -> None:
    optim = OptimConfig(peak_lr=0.7, div=div, final_div=final_div, pct_start=pct_start, anneal=shape)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        reference, 0.7, total_steps=total, pct_start=pct_start, anneal_strategy=shape, cycle_momentum=False,
        div_factor=div, final_div_factor=final_div,
    )  # fmt: skip
    for step in range(total):
        assert one_cycle_lr(step, total, optim) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=1e-18)
        reference.step()
        if step < total - 1:
            schedule.step()


def test_one_cycle_is_defined_where_torch_divides_by_zero() -> None:
    """When the rise takes one step, or the run has one."""
    assert one_cycle_lr(0, 4, OptimConfig(peak_lr=1.0, pct_start=0.25)) == 1.0
    for total in (1, 4, 10):
        for pct_start in (0.1, 0.25, 0.5):
            values = [one_cycle_lr(step, total, OptimConfig(pct_start=pct_start)) for step in range(total)]
            assert all(math.isfinite(lr) and 0 < lr <= 0.5 for lr in values)


def test_set_lr_reaches_every_group() -> None:
    optimizer = make_optimizer(small_model(), OptimConfig())
    set_lr(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_weight_decay_spares_every_norm_and_bias_and_nothing_else() -> None:
    model = build_model(ModelConfig(name="resnet18", num_classes=4))
    decayed, spared = (group["params"] for group in make_optimizer(model, OptimConfig(weight_decay=0.25)).param_groups)
    names = {parameter: name for name, parameter in model.named_parameters()}
    of_norms = {
        f"{module}.{name}"
        for module, part in model.named_modules()
        if isinstance(part, nn.BatchNorm2d)
        for name, _ in part.named_parameters()
    }
    assert {names[p] for p in spared} == of_norms | {name for name in names.values() if name.endswith("bias")}
    assert {"layer2.0.downsample.1.weight", "layer2.0.downsample.1.bias", "bn1.weight", "fc.bias"} <= of_norms | {
        names[p] for p in spared
    }
    assert all(p.ndim > 1 for p in decayed)
    assert {*decayed, *spared} == set(names)
    assert len(decayed) + len(spared) == len(names)


def test_weight_decay_moves_only_what_it_should() -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(model, OptimConfig(peak_lr=1.0, weight_decay=0.25))
    optimizer.step()  # with gradients of zero, only the decay moves anything
    for name, parameter in model.named_parameters():
        expected = before[name] * 0.75 if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_allocated_in_advance_steps_as_torch_does_from_scratch_bit_for_bit(nesterov: bool) -> None:
    optim = OptimConfig(peak_lr=0.1, weight_decay=0.01, nesterov=nesterov)
    ours, theirs = small_model(), small_model()
    optimizer = make_optimizer(ours, optim)
    reference = torch.optim.SGD(
        [
            {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [p for p in theirs.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.1, momentum=0.9, nesterov=nesterov, fused=True,
    )  # fmt: skip
    assert all("momentum_buffer" not in reference.state[p] for p in theirs.parameters())
    start = copy.deepcopy(ours.state_dict())
    for step in range(3):
        for model, stepped in ((ours, optimizer), (theirs, reference)):
            backward(model, step)
            stepped.step()
            stepped.zero_grad()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
        assert not torch.equal(tensor, start[name]), name
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["momentum_buffer"], reference.state[q]["momentum_buffer"])


def test_momentum_lies_in_memory_as_its_parameter_does() -> None:
    model = small_model()
    optimizer = make_optimizer(model, OptimConfig())
    assert all(optimizer.state[p]["momentum_buffer"].stride() == p.stride() for p in model.parameters())
    assert any(p.stride() != p.contiguous().stride() for p in model.parameters())  # channels last


def test_the_average_follows_its_formula_for_weights_and_batchnorm_statistics() -> None:
    model = small_model()
    average, decay = Average(model), 0.8
    config = Config(regularize=RegularizeConfig(ema_decay=decay))
    expected = {name: tensor.double() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, OptimConfig(peak_lr=0.1))
    seen = set()
    for step in range(1, 51):
        if step <= 3:
            backward(model, step)
            optimizer.step()
        seen.add(now := min(decay, (1 + step) / (10 + step)))
        for name, tensor in model.state_dict().items():
            expected[name] = now * expected[name] + (1 - now) * tensor.double()
        average.update(ema_decay(step, 100, config))
        if step == 3:
            three = {name: tensor.clone() for name, tensor in average.model.state_dict().items()}
            expected_of_three = dict(expected)
    assert min(seen) == 2 / 11  # it warms up
    assert max(seen) == decay
    for name, tensor in three.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected_of_three[name], rtol=1e-5, atol=1e-6)
            assert not torch.equal(tensor, model.state_dict()[name]), name
        else:
            assert name.endswith("num_batches_tracked")
            assert tensor == 3
    assert {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"} < set(three)
    for name, tensor in average.model.state_dict().items():  # the model stood still for 47 steps: the average arrives
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-4)


def all_tensors(model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that model, average and optimizer hold, however it is called there."""
    found = {f"{owner}/{name}": t for owner, part in (("model", model), ("average", average)) for name, t in (
        *part.named_parameters(), *part.named_buffers())}  # fmt: skip
    for i, state in enumerate(optimizer.state.values()):
        found |= {f"optimizer/{i}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return found


def test_the_state_holds_every_tensor_that_a_step_changes() -> None:
    model = small_model()
    average, optimizer = Average(model), make_optimizer(model, OptimConfig(peak_lr=0.1))
    held = {tensor.data_ptr(): name for name, tensor in state_tensors(model, average, optimizer).items()}
    before = {name: tensor.detach().clone() for name, tensor in all_tensors(model, average.model, optimizer).items()}
    train_once(model, average, optimizer, 1)
    after = all_tensors(model, average.model, optimizer)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert set(after) == set(before)  # a step makes no new state
    assert len(changed) > len(before) * 0.9
    assert {name for name in changed if after[name].data_ptr() not in held} == set()
    assert len(held) == len(state_tensors(model, average, optimizer))  # each has memory of its own


def test_putting_the_state_back_repeats_a_step_bit_for_bit() -> None:
    model = small_model()
    average, optimizer = Average(model), make_optimizer(model, OptimConfig(peak_lr=0.1))
    train_once(model, average, optimizer, 1)
    state = state_tensors(model, average, optimizer)
    saved = {name: tensor.clone() for name, tensor in state.items()}
    train_once(model, average, optimizer, 2)
    first = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(saved[name])
    train_once(model, average, optimizer, 2)
    assert [name for name in first if not torch.equal(first[name], state[name])] == []
    assert any(not torch.equal(first[name], saved[name]) for name in first)


def test_without_an_average_the_state_has_model_and_momentum_alone() -> None:
    model = small_model()
    names = state_tensors(model, None, make_optimizer(model, OptimConfig()))
    assert {name.split(".")[0] for name in names} == {"model", "momentum"}
    assert {name.removeprefix("model.") for name in names if name.startswith("model.")} == set(model.state_dict())
