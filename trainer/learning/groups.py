"""The parameters of a network in groups: what decays, what learns faster or slower, and what stays as it is.

A network is a list of stages, from the image to the classifier. A ResNet has six: the stem, four, and the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Self

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from trainer.contract import UserError
from trainer.recipes.config import OptimConfig

CONTAINERS = frozenset({"features", "trunk_output", "encoder", "layers", "blocks"})  # torchvision's; stages lie in them
DRAWING = (nn.modules.dropout._DropoutNd, StochasticDepth)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def groups_of(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """What trains, as groups for an optimizer of torch: those that decay first.

    Each has `params`, `weight_decay`, and `lr_scale`, its learning rate over that of the schedule.
    """
    stages, spared = stages_of(model), spared_names(model, optim.decayed)
    last = max(stages.values())
    found: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        stage, decays = stages[name], name not in spared
        scale = optim.layer_decay ** (last - stage) * (optim.head_lr_multiplier if stage == last else 1.0)
        group = {"params": [], "weight_decay": optim.weight_decay * decays, "lr_scale": scale}
        found.setdefault((decays, scale), group)["params"].append(parameter)
    return [found[key] for key in sorted(found, key=lambda key: not key[0])]


def spared_names(model: nn.Module, decayed: str) -> set[str]:
    """The parameters without weight decay. `decayed` is `OptimConfig.decayed`."""
    if decayed == "all":
        return set()
    if decayed == "weights":
        return {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
    if decayed == "not_bn":
        return {name for name, _ in model.named_parameters() if "bn" in name}
    norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in norms}


def stages_of(model: nn.Module) -> dict[str, int]:
    """The stage of each parameter, from 0, by its name. The last stage is the classifier.

    A part with nothing but norms belongs to the stage before it. What is in no part, such as the position embedding of
    a ViT, belongs to the first.
    """
    stages, stage = {name: 0 for name, _ in model.named_parameters()}, -1
    for prefix, part in _parts(model):
        named = dict(part.named_parameters(prefix))
        stage += stage < 0 or any(parameter.ndim > 1 for parameter in named.values())
        stages |= dict.fromkeys(named, stage)
    return stages


def _parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What stages are made of: the children that have parameters, in order; containers are opened."""
    for name, child in model.named_children():
        if name in CONTAINERS:
            yield from _parts(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}", child


def freeze(model: nn.Module, count: int) -> list[Tensor]:
    """Let the first `count` stages stay as they are: no gradients, and BatchNorm by its statistics, which stay, too.

    What drops activations or skips blocks in them is off. Returns the buffers of their norms. Raises UserError where
    nothing would be left to train.
    """
    if not count:
        return []
    stages = stages_of(model)
    check_stages(stages, count)
    frozen = {name for name, stage in stages.items() if stage < count}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    buffers: list[Tensor] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" in frozen:
            _hold(module)
            buffers += module.buffers()
    for prefix, part in _parts(model):
        if any(f"{prefix}.{name}" in frozen for name, _ in part.named_parameters()):
            for module in part.modules():
                if isinstance(module, DRAWING):
                    _hold(module)
    return buffers


def check_stages(stages: dict[str, int], count: int) -> None:
    """Raises UserError where `count` stages to freeze leave nothing to train."""
    if count > (last := max(stages.values())):
        raise UserError(
            f"--optim.freeze-stages is {count}: this network has {last + 1} stages, and the last one, its classifier, "
            f"must train; pass at most {last}"
        )


def _hold(module: nn.Module) -> None:
    """Let a layer compute as in a validation, whatever the model does."""
    kind: Any = type(module)
    module.__class__ = _frozen(kind)
    module.eval()


class Frozen(nn.Module):
    """A layer that `train()` does not reach."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


@cache
def _frozen(kind: Any) -> Any:
    """The same kind of layer, frozen."""
    return type(f"Frozen{kind.__name__}", (Frozen, kind), {})
