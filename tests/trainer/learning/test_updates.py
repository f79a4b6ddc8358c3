"""The other optimizers against torch's and timm's, step by step; and what they leave behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from timm.optim.lamb import Lamb
from torch import Tensor, nn

from tests.trainer.learning.nets import backward, small_model
from trainer.learning.optimizer import clip_gradients, make_optimizer, set_lr
from trainer.learning.state import state_tensors
from trainer.recipes.config import OptimConfig

LR = (0.1, 0.02, 0.07, 0.05)  # at each step, so that nothing may depend on the one of the start
OFF = torch.amp.GradScaler("cpu", enabled=False)
LAMB = OptimConfig(name="lamb", peak_lr=0.1, weight_decay=0.02, eps=1e-6, clip_norm=1.0)
ADAMW = OptimConfig(name="adamw", peak_lr=0.1, betas=(0.85, 0.95), weight_decay=0.05)
DECOUPLED = OptimConfig(peak_lr=0.1, momentum=0.875, weight_decay=0.05, decoupled_decay=True, decayed="all")
EACH = [LAMB, ADAMW, DECOUPLED, OptimConfig(peak_lr=0.1, nesterov=True, clip_norm=0.5)]
pytestmark = pytest.mark.usefixtures("one_thread")
Reference = Callable[[nn.Module], torch.optim.Optimizer]


def split(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Parameters in the groups of timm and others."""
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, optim: OptimConfig) -> None:
    """As `Execution` does it."""
    backward(model, number)
    set_lr(optimizer, LR[number % len(LR)])
    if optim.clip_norm:
        clip_gradients(optimizer, OFF, optim.clip_norm)
    optimizer.step()
    optimizer.zero_grad()


def assert_follows(optim: OptimConfig, reference: Reference, *, clip: float = 0.0) -> None:
    """Ours and the reference, over a few steps with the same gradients."""
    ours, theirs = small_model(), small_model()
    optimizer, expected = make_optimizer(ours, optim), reference(theirs)
    for number, lr in enumerate(LR):
        step(ours, optimizer, number, optim)
        backward(theirs, number)
        if clip:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        for group in expected.param_groups:
            group["lr"] = lr
        expected.step()
        expected.zero_grad()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6, msg=f"{name} after step {number}")


def test_lamb_is_that_of_timm_with_its_clipping() -> None:
    """timm clips to a norm of 1 in the optimizer; our option does before it."""
    assert_follows(LAMB, lambda model: Lamb(split(model, 0.02), lr=1.0))


def test_lamb_is_that_of_timm_with_other_betas_and_without_clipping() -> None:
    optim = replace(LAMB, betas=(0.8, 0.99), eps=1e-3, clip_norm=0)
    assert_follows(optim, lambda model: Lamb(split(model, 0.02), betas=(0.8, 0.99), eps=1e-3, max_grad_norm=None))


def test_adamw_is_that_of_torch() -> None:
    def reference(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(split(model, 0.05), betas=(0.85, 0.95), foreach=False)

    assert_follows(ADAMW, reference)
    assert_follows(replace(ADAMW, clip_norm=0.1), reference, clip=0.1)


def test_clipped_nesterov_is_that_of_torch() -> None:
    def reference(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(split(model, 1e-3), lr=1.0, momentum=0.8, nesterov=True)

    optim = OptimConfig(peak_lr=0.1, momentum=0.8, nesterov=True, weight_decay=1e-3, clip_norm=0.1)
    assert_follows(optim, reference, clip=0.1)


class Decoupled(torch.optim.Optimizer):
    """The formula of Composer's DecoupledSGDW: m = momentum m + g; w = (1 - decay lr / first lr) w - lr m."""

    def __init__(self, model: nn.Module, first: float, momentum: float, decay: float):
        super().__init__(model.parameters(), {"lr": first})
        self.first, self.momentum, self.decay = first, momentum, decay

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.copy_(self.momentum * mean + p.grad)
                p.copy_((1 - self.decay * group["lr"] / self.first) * p - group["lr"] * mean)


def test_decoupled_decay_is_that_of_composer() -> None:
    assert_follows(DECOUPLED, lambda model: Decoupled(model, 0.1, 0.875, 0.05))


def test_decoupled_decay_shrinks_by_the_share_of_the_peak_in_every_group() -> None:
    """A stage with a smaller learning rate shrinks as the others do."""
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, replace(DECOUPLED, layer_decay=0.5, decayed="weights"))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    set_lr(optimizer, 0.05)
    optimizer.step()
    for name, p in model.named_parameters():
        expected = before[name] * (0.975 if p.ndim > 1 else 1)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("optim", EACH, ids=["lamb", "adamw", "decoupled", "nesterov"])
def test_a_run_restored_half_way_is_the_uninterrupted_one_bit_for_bit(optim: OptimConfig) -> None:
    def run(start: dict[str, Tensor], first: int, until: int) -> dict[str, Tensor]:
        model = small_model()
        optimizer = make_optimizer(model, optim)
        state = state_tensors(model, None, optimizer)
        assert not start or start.keys() == state.keys()
        with torch.no_grad():
            for name, tensor in start.items():
                state[name].copy_(tensor)
        for number in range(first, until):
            step(model, optimizer, number, optim)
        return {name: tensor.clone() for name, tensor in state.items()}

    whole, half = run({}, 0, 4), run({}, 0, 2)
    again = run(half, 2, 4)
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    kinds = {name.partition(".")[0] for name in whole}
    assert kinds == {"model", *(["momentum"] if optim.name == "sgd" else ["exp_avg", "exp_avg_sq", "optimizer"])}
    if optim.name != "sgd":
        assert set(whole["optimizer.steps"].flatten().tolist()) == {4}


@pytest.mark.parametrize("optim", [*EACH[1:], replace(ADAMW, clip_norm=0.1)])
def test_a_step_of_fp16_whose_gradients_overflow_changes_nothing_but_the_scale(optim: OptimConfig) -> None:
    model = small_model()
    optimizer, scaler = make_optimizer(model, optim), torch.amp.GradScaler("cpu", init_scale=4.0)
    for number, factor in enumerate([1.0, math.inf, 1.0]):
        before = {name: t.clone() for name, t in state_tensors(model, None, optimizer).items()}
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(number))
        loss = nn.functional.cross_entropy(model.eval()(images), torch.tensor([0, 1, 2, 3]))
        scaler.scale(loss * factor).backward()
        set_lr(optimizer, 0.05)
        if optim.clip_norm:
            clip_gradients(optimizer, scaler, optim.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        after = state_tensors(model, None, optimizer)
        same = [name for name in after if torch.equal(after[name], before[name])]
        assert len(same) == len(after) if factor == math.inf else len(same) < len(after) / 2
    assert scaler.get_scale() == 2.0
    if optim.name == "adamw":
        assert set(after["optimizer.steps"].tolist()) == {2}


def test_clipping_takes_the_scale_off_first_and_looks_at_all_weights_together() -> None:
    model = small_model()
    optimizer, scaler = make_optimizer(model, OptimConfig(layer_decay=0.5)), torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))  # it makes its scale at the first use
    gradients = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for longest in (0.125, 1e6):
        for name, p in model.named_parameters():
            p.grad = gradients[name] * scaler.get_scale()
        clip_gradients(optimizer, scaler, longest)
        length = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, gradients[name] * min(1, longest / length), rtol=1e-5, atol=1e-8)
        scaler.update()
