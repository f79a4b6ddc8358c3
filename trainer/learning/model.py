"""The network: torchvision's classification models by name."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from trainer.learning.blur_pool import blur_pools
from trainer.learning.groups import check_stages, stages_of
from trainer.learning.matching import check_fits, load_matching
from trainer.learning.random_start import start_as_composer, zero_last_norms
from trainer.learning.stem import block_stem
from trainer.learning.stochastic_depth import skip_blocks, skips_blocks
from trainer.learning.weights import TORCHVISION_WEIGHTS, read_weights
from trainer.recipes.config import Config, ModelConfig
from trainer.recipes.networks import network_of
from trainer.text import tell


class ExactLinear(nn.Linear):
    """The classifier in fp32 whatever the precision: in bf16 logits of 8 to 16 have steps of 0.06, and classes tie."""

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


def build_model(config: ModelConfig, *, initialise: bool = True) -> nn.Module:
    """The model, with its starting weights unless they are restored later. (N, 3, H, W) in, (N, classes) logits out.

    Raises UserError.
    """
    network_of(config.name)
    model: nn.Module = torchvision.models.get_model(config.name, weights=None, num_classes=config.num_classes)
    if linears := [module for module in model.modules() if type(module) is nn.Linear]:
        linears[-1].__class__ = ExactLinear  # names and weights stay as they are
    if config.blur_pool != "none":
        blur_pools(model, config.blur_pool)
    if config.stochastic_depth:
        skip_blocks(model, config.stochastic_depth)
    if config.blocked_stem:
        block_stem(model, config.name)
    if initialise:
        start(model, config)
    return model


def check_weights(config: ModelConfig) -> None:
    """Raises UserError where `config.weights` cannot be had, or are none of this network.

    What is downloaded stays in torch's cache. Raises StoreError as `read_weights`.
    """
    if config.weights:
        check_fits(config.name, read_weights(config), config.weights)


def check_frozen(config: Config) -> None:
    """Raises UserError where --optim.freeze-stages leaves nothing of the network to train."""
    if count := config.optim.freeze_stages:
        with torch.device("meta"):
            check_stages(stages_of(torchvision.models.get_model(config.model.name, weights=None)), count)


def start(model: nn.Module, config: ModelConfig) -> None:
    """Give a model that was just made its starting weights. Raises UserError."""
    if config.init == "composer":
        start_as_composer(model)
    if config.zero_init:
        zero_last_norms(model)
    if config.weights in TORCHVISION_WEIGHTS and config.blur_pool != "none":
        tell(f"{config.weights} was trained without BlurPool: with it, the first accuracy is lower than without")
    if config.weights:
        load_matching(model, config.name, read_weights(config), config.weights)


def draws_numbers(model: nn.Module) -> bool:
    """Whether a forward pass may draw random numbers. Of other networks than ResNets nobody has looked."""
    return not isinstance(model, torchvision.models.ResNet) or skips_blocks(model)
