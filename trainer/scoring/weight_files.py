"""Weights that are of no run in the store: torchvision's own, and files of anybody, as tensors with a model card.

A run's card says everything. A foreign file says little: what it does not say is taken as usual for its network, and
told. Nothing stays random: a file without its classifier is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import torchvision
from torch import Tensor

from trainer.checkpoint.layout import BLUR_POOL, NHWC
from trainer.contract import RUN_ID_RULE, UserError
from trainer.imagenet import wnids
from trainer.learning.matching import (
    check_finite,
    explain_misfit,
    fitting_networks,
    fitting_place,
    nearest,
    tell_place,
    tell_tensors,
)
from trainer.learning.places import CLASSES, Found, Target, choose_place, find_places, mappings, outline
from trainer.learning.weight_file import is_safetensors, metadata, parse_file
from trainer.learning.weights import download_weights, read_body
from trainer.model_card import METADATA_KEY, ModelCard, mode_named
from trainer.recipes.config import DataConfig, ModelConfig
from trainer.recipes.networks import network_of
from trainer.store import StoreError
from trainer.text import say

ENDINGS = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt", ".pkl", ".pt2", ".onnx")  # names that are no run's
PROGRAMS = MappingProxyType({".pt2": "a program of torch.export", ".onnx": "an ONNX graph"})  # others run them
AVERAGED = ("ema", "swa")  # of --weights
USUAL_SHARE = 0.875  # the crop over the short side, where nobody says otherwise

Opened = tuple[dict[str, Tensor], ModelCard]


def open_torchvision(name: str) -> Opened:
    """`ResNet50_Weights.IMAGENET1K_V2`, as torchvision writes it, from its cache or the internet.

    Raises UserError, StoreError.
    """
    network, weights = find_torchvision(name)
    card = card_of_torchvision(network, weights)
    check_scorable(network)
    with in_own_words(), redirect_stdout(sys.stderr):  # it says there what it downloads
        content = download_weights(ModelConfig(name=network, weights=weights.name))
    return open_content(name, content, card, "auto")


def find_torchvision(name: str) -> tuple[str, Any]:
    """The network's name and torchvision's entry. Raises UserError."""
    group, _, entry = name.partition(".")
    choices = {}
    for network in torchvision.models.list_models(module=torchvision.models):
        found = torchvision.models.get_model_weights(network)
        choices[found.__name__] = (network, found)
    if group not in choices:
        raise UserError(f"torchvision has no {group}: write for example ResNet50_Weights.IMAGENET1K_V2")
    network, found = choices[group]
    if entry not in found.__members__:
        raise UserError(f"torchvision has no {entry} of {group}: use {', '.join(found.__members__)}")
    return network, found[entry]


def card_of_torchvision(network: str, weights: Any) -> ModelCard:
    """What torchvision says of its weights: normalisation and sizes. The classes of all of them are ImageNet's."""
    shown = weights.transforms()
    return ModelCard(
        network=network, classes=wnids(), mean=tuple(shown.mean), std=tuple(shown.std),
        val_resize=shown.resize_size[0], val_crop=shown.crop_size[0], resize_mode=mode_named(shown.interpolation.value),
        weights=str(weights),
    )  # fmt: skip


def open_weight_file(name: str, weights: str, network: str) -> Opened:
    """A file or an object of a store (`s3://bucket/key`): an export of ours, a checkpoint, or anybody's state dict.

    `weights` is auto, model, ema or swa, and `network` torchvision's name, "" = what the tensors fit. Raises UserError,
    StoreError.
    """
    if what := PROGRAMS.get(PurePath(name).suffix):
        raise UserError(
            f"{name!r} is {what}, and weights are not read from one: name the run, or the .safetensors file that "
            "`make export` writes beside it"
        )
    with in_own_words():
        body = read_body(name)
        content = parse_file(body, name)
    about = metadata(body) if is_safetensors(body) else {}
    if METADATA_KEY in about:
        card = card_in(name, about[METADATA_KEY])
        if network not in ("", card.network):
            raise UserError(f"{name!r} has weights of {card.network}, as its card says: leave --network {network} out")
        if weights not in ("auto", card.weights):
            raise UserError(f"{name!r} has only {card.weights} weights: leave --weights {weights} out")
        return open_content(name, content, card, "auto")
    network = network or about.get("model", "") or find_network(name, content)
    check_scorable(network)
    run_id = run if re.fullmatch(RUN_ID_RULE, run := about.get("run", "")) else ""  # others may mean anything by it
    card = replace(usual_card(network), blur_pool=about.get(BLUR_POOL, "none"), run_id=run_id)
    blur = ", without BlurPool, of which its old version says nothing" * (NHWC in about and BLUR_POOL not in about)
    if NHWC in about:
        content, weights = of_checkpoint(name, dict(next(mappings(content))[1]), weights), "auto"
    tensors, card = open_content(name, content, card, weights)
    if head_size(tensors, network) == len(wnids()):
        card = replace(card, classes=wnids())
    classes = "classes in ImageNet's order" if card.classes else "classes without names"
    say(
        f"{name} has no model card: it is scored as {network} at {card.val_crop} px of {card.val_resize} "
        f"({card.resize_mode}), with ImageNet's mean and deviation{blur}, and {classes}; --resize and --crop choose "
        "other sizes"
    )
    return tensors, card


def check_scorable(network: str) -> None:
    """Raises UserError for a network that nobody knows, or whose weights want another input than all others."""
    with in_own_words():
        if network_of(network).refused:
            raise UserError(f"{network} cannot be scored: torchvision's weights of it want another normalisation")


def of_checkpoint(name: str, tensors: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """The weights of this trainer's own checkpoint: auto is the average where there is one. Raises UserError."""
    kinds = {key.partition(".")[0] for key in tensors} & {"model", *AVERAGED}
    kind = weights if weights != "auto" else "ema" if "ema" in kinds else "model"
    if kind not in kinds:
        raise UserError(f"{name!r} has no {kind} weights: use --weights {' or '.join(sorted(kinds)) or 'auto'}")
    return {key.removeprefix(f"{kind}."): tensor for key, tensor in tensors.items() if key.startswith(f"{kind}.")}


def card_in(name: str, text: str) -> ModelCard:
    try:
        return ModelCard.from_json(text)
    except ValueError as error:
        raise UserError(f"the model card in {name!r} is damaged ({error}): export the weights once more") from error


def find_network(name: str, content: object) -> str:
    """The one network of torchvision whose tensors these are. Raises UserError for none, or several."""
    fitting = fitting_networks(content)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"{name!r} fits {', '.join(fitting)}: say which with --network")
    with in_own_words():
        if not any(True for _ in mappings(content)):
            raise UserError(f"{name!r} {explain_misfit(content, [], Target.of('resnet50', outline('resnet50')))}")
        raise UserError(f"nobody knows the network of {name!r}: {nearest(content, '')}")


def usual_card(network: str) -> ModelCard:
    """As torchvision evaluates this network: the sizes of its first weights for the side that it is quoted for."""
    side, data = network_of(network).tested, DataConfig()
    known = [weights.transforms() for weights in torchvision.models.get_model_weights(network)]
    for shown in known:
        if shown.crop_size == [side]:
            resize, mode = shown.resize_size[0], shown.interpolation.value
            break
    else:
        resize, mode = round(side / USUAL_SHARE), "bilinear"
    return ModelCard(
        network=network, classes=(), mean=data.mean, std=data.std, val_resize=resize, val_crop=side, resize_mode=mode
    )  # fmt: skip


def open_content(name: str, content: object, card: ModelCard, weights: str) -> Opened:
    """The tensors of a file that are the network's, whole and finite. Raises UserError."""
    target = Target.of(card.network, outline(card.network))
    with in_own_words():
        place, found = chosen_place(name, content, target, weights)
        if any(key not in place.tensors for key in target.head):
            raise UserError(
                f"{name!r} has no classifier ({', '.join(sorted(target.head))}), and a random one answers at random: "
                "name weights with their classifier"
            )
        taken = {key: place.tensors[key] for key in target.own if key in place.tensors}
        check_finite(taken, target.own, name)
    if notes := [*tell_place(place, found, target), *tell_tensors(place, set(), taken, target.own)]:
        say(f"weights of {name}: {'; '.join(notes)}")
    outputs = head_size(taken, card.network)
    if card.classes and len(card.classes) != outputs:
        raise UserError(
            f"{name!r} has {outputs:,} outputs, and its card names {len(card.classes):,} classes: one of them is "
            "damaged; export the weights once more"
        )
    return taken, card


def chosen_place(name: str, content: object, target: Target, weights: str) -> tuple[Found, list[Found]]:
    """Where in a file the weights are: the model itself before an average of it, or what --weights says."""
    if weights == "auto":
        return fitting_place(content, target, name)
    found = [place for _, place in find_places(content, target.own) if place.is_average == (weights in AVERAGED)]
    if (place := choose_place(found, target, name)) is None:
        raise UserError(f"{name!r} has no {weights} weights of {target.name}: leave --weights {weights} out")
    return place, found


def head_size(tensors: Mapping[str, Tensor], network: str) -> int:
    """The number of outputs. Raises UserError where tensors of the classifier do not agree, or are not there."""
    head = {key: shape.index(CLASSES) for key, own in outline(network).items() if CLASSES in (shape := list(own.shape))}
    sizes = {tensors[key].shape[axis] for key, axis in head.items() if key in tensors and tensors[key].ndim > axis}
    if len(sizes) != 1:
        raise UserError(f"the classifier of {network} ({', '.join(head)}) has {sorted(sizes)} outputs, not one number")
    return int(sizes.pop())


@contextmanager
def in_own_words() -> Iterator[None]:
    """What reads a file is shared with training, and speaks of its options: here they have other names, or none."""
    try:
        yield
    except UserError as error:
        raise UserError(_without_options(error)) from error
    except StoreError as error:
        raise StoreError(_without_options(error), error.code, is_refusal=error.is_refusal) from error


def _without_options(error: Exception) -> str:
    return str(error).replace("--model.weights ", "").replace("--model.name", "--network")
