"""LAMB: Adam whose step is as long, layer by layer, as the layer's weights ask for (You et al., arXiv:1904.00962).

It is timm's form, NVIDIA's NVLAMB: the decay belongs to the update whose length is compared with the weights', and what
does not decay is not scaled. timm clips gradients in it; here `--optim.clip-norm 1` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Its state is there from the start. A step waits for no device, and a CUDA graph may capture it."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter in parameters:
            for slot in ("exp_avg", "exp_avg_sq"):
                self.state[parameter][slot] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        self.steps = torch.zeros((), device=parameters[0].device)  # done so far, float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update with the gradients, which stay as they are."""
        self.steps += 1
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, squares = ([self.state[p][slot] for p in parameters] for slot in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        steps = self.steps.double()  # in float32 the first corrections would be wrong in the fifth digit
        lengths = torch._foreach_sqrt(squares)
        torch._foreach_div_(lengths, (1 - beta2**steps).sqrt().float())
        torch._foreach_add_(lengths, group["eps"])
        updates = torch._foreach_div(means, (1 - beta1**steps).float())
        torch._foreach_div_(updates, lengths)
        if decay:
            torch._foreach_add_(updates, parameters, alpha=decay)
            torch._foreach_mul_(updates, trust_ratios(parameters, updates))
        torch._foreach_mul_(updates, group["lr"])
        torch._foreach_sub_(parameters, updates)


def trust_ratios(parameters: list[Tensor], updates: tuple[Tensor, ...]) -> list[Tensor]:
    """The length of each parameter over that of its update; 1 where one of them is 0."""
    weights, steps = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, updates))
    return list(torch.where((weights > 0) & (steps > 0), weights / steps, 1.0).unbind())
