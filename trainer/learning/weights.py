"""The weights that a model starts from: torchvision's, a file's or a store's."""

from __future__ import annotations

import io
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from trainer.contract import UserError
from trainer.recipes.config import ModelConfig
from trainer.store import StoreError, open_store

TORCHVISION_WEIGHTS = ("IMAGENET1K_V1", "IMAGENET1K_V2")


def read_weights(config: ModelConfig) -> dict[str, Tensor]:
    """A state dict from torchvision's weights API, a file, or a store (`s3://bucket/key`)."""
    if config.weights in TORCHVISION_WEIGHTS:
        choices = torchvision.models.get_model_weights(config.name)
        if config.weights not in choices.__members__:
            raise UserError(
                f"torchvision has no {config.weights} of {config.name}: use {', '.join(choices.__members__)}"
            )
        try:
            options = {"progress": True, "check_hash": True, "weights_only": True}
            state: dict[str, Tensor] = choices[config.weights].get_state_dict(**options)
        except (URLError, OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the file's hash is wrong
            raise UserError(
                f"the weights {config.weights} of {config.name} could not be downloaded ({error}): where there is no "
                "internet, name a copy with --model.weights FILE.pth, FILE.safetensors or s3://bucket/key"
            ) from error
        return state
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
    try:
        if config.weights.endswith(".safetensors"):
            return safetensors.torch.load(body)
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("it holds more or other than tensors by name")
    except Exception as error:
        raise UserError(
            f"--model.weights {config.weights!r} is no state dict ({type(error).__name__}: {error}): "
            "save one with torch.save(model.state_dict(), …) or safetensors"
        ) from error
    return state


def load_matching(model: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load a state dict; a head of another number of classes stays random, anything else must fit."""
    state = {name.removeprefix("model."): t for name, t in state.items() if not name.startswith(("ema.", "momentum."))}
    own = model.state_dict()
    head = {name for name in own if name in state and own[name].shape != state[name].shape}
    result = model.load_state_dict({name: t for name, t in state.items() if name not in head}, strict=False)
    missing = set(result.missing_keys) - head
    if missing or result.unexpected_keys or any(not name.startswith(("fc.", "classifier.", "head")) for name in head):
        odd = sorted(missing | set(result.unexpected_keys) | head)
        raise UserError(
            f"--model.weights {origin!r} does not fit the model: {len(odd)} tensors differ ({', '.join(odd[:4])}, …); "
            "choose the --model.name that the weights are of"
        )
    if head:
        print(f"weights of {origin}: the head has another number of classes and starts at random", flush=True)
