"""Where the weights come from that a model starts from: torchvision, a file or a store."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torchvision

from trainer.contract import UserError
from trainer.learning.weight_file import parse_file
from trainer.recipes.config import ModelConfig
from trainer.store import StoreError, open_store

TORCHVISION_WEIGHTS = ("IMAGENET1K_V1", "IMAGENET1K_V2")


def read_weights(config: ModelConfig) -> object:
    """What torchvision's weights API, a file, or a store (`s3://bucket/key`) has. Raises UserError."""
    if config.weights in TORCHVISION_WEIGHTS:
        return download_weights(config)
    if config.weights.startswith(("http://", "https://")):
        raise UserError(f"--model.weights {config.weights!r} is an address: download the file, and name the file")
    try:
        if "://" in config.weights:
            parent, _, key = config.weights.rpartition("/")
            body = open_store(parent).get(key)
        else:
            body = Path(config.weights).read_bytes()
    except (OSError, StoreError) as error:
        raise UserError(
            f"--model.weights {config.weights!r} cannot be read ({error}): use one of "
            f"{', '.join(TORCHVISION_WEIGHTS)}, a .pth or .safetensors file, or s3://bucket/key"
        ) from error
    return parse_file(body, config.weights)


def download_weights(config: ModelConfig) -> object:
    """The state dict of torchvision's own weights, from its cache or the internet. Raises UserError."""
    choices = torchvision.models.get_model_weights(config.name)
    if config.weights not in choices.__members__:
        raise UserError(f"torchvision has no {config.weights} of {config.name}: use {', '.join(choices.__members__)}")
    try:
        return choices[config.weights].get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the file's hash is wrong
        raise UserError(
            f"the weights {config.weights} of {config.name} could not be downloaded ({error}): where there is no "
            "internet, name a copy with --model.weights FILE.pth, FILE.safetensors or s3://bucket/key"
        ) from error
