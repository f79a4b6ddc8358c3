"""Loads what of a file is a model's, and says what was taken and what was left out, or why nothing fits.

Which tensors of a file those are is found in `places`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torchvision
from torch import nn

from trainer.contract import UserError
from trainer.learning.places import Found, Target, Tensors, choose_place, find_places, kind, mappings, outline
from trainer.text import tell


def load_matching(model: nn.Module, name: str, content: object, origin: str) -> None:
    """Load what of a file is this model's, and say what was done. `name` is torchvision's for the model.

    A head that is missing or has another number of classes stays random. Anything else must fit: raises UserError.
    """
    own = model.state_dict()
    target = Target.of(name, own)
    place, found = fitting_place(content, target, origin)
    new = place.new_head(target)
    taken = {key: place.tensors[key] for key in own if key in place.tensors and key not in new}
    check_finite(taken, own, origin)
    with torch.no_grad():
        for key, tensor in taken.items():
            own[key].copy_(tensor)
    if notes := [*tell_place(place, found, target), *tell_tensors(place, new, taken, own)]:
        tell(f"weights of {origin}: {'; '.join(notes)}")


def check_fits(name: str, content: object, origin: str) -> None:
    """Raises UserError for a file that has no weights of a model of this name, whatever their number of classes."""
    fitting_place(content, Target.of(name, outline(name)), origin)


def fitting_place(content: object, target: Target, origin: str) -> tuple[Found, list[Found]]:
    """The place in a file whose tensors fit, and every place that has names of the model. Raises UserError for none."""
    found = [place for _, place in find_places(content, target.own)]
    if (place := choose_place(found, target, origin)) is None:
        raise UserError(f"--model.weights {origin!r} {explain_misfit(content, found, target)}")
    return place, found


def check_finite(taken: Tensors, own: Tensors, origin: str) -> None:
    """Raises UserError for numbers that are not finite, as the model would hold them."""
    for name, tensor in taken.items():
        held = tensor.to(own[name].dtype)
        if held.sum().isfinite():  # then each is; counting takes 30 times as long
            continue
        if wrong := held.numel() - int(held.isfinite().sum()):
            raise UserError(
                f"--model.weights {origin!r} cannot be used: {wrong:,} of the {tensor.numel():,} numbers of {name} are "
                "not finite; the training that wrote it had diverged, so take an earlier checkpoint of it"
            )


def tell_place(place: Found, found: list[Found], target: Target) -> list[str]:
    notes = [f"taken from {place}"] if place.path or place.prefix else []
    told = [other for other in found if other.is_of_optimizer and other.path == place.path]  # as what is beside
    others = [other for other in found if other is not place and other not in told and not other.problems(target)]
    if others:
        notes.append(f"not from {', '.join(map(str, others))}, which fits, too")
    if place.beside:
        first = sorted({name.split(".")[0] for name in place.beside})
        notes.append(f"left out: {len(place.beside)} tensors beside them ({', '.join(first[:4])})")
    return notes


def tell_tensors(place: Found, new: set[str], taken: Tensors, own: Tensors) -> list[str]:
    notes = []
    if new & place.tensors.keys():
        notes.append("the head has another number of classes and starts at random")
    elif new:
        notes.append("the file has no head of this form, so the head starts at random")
    if unknown := [name for name in place.tensors if name not in own]:
        notes.append(f"left out: {', '.join(unknown[:4])}{', …' * (len(unknown) > 4)}")
    if kinds := {kind(t) for n, t in taken.items() if own[n].is_floating_point() and t.dtype != own[n].dtype}:
        notes.append(f"{' and '.join(sorted(kinds))} become float32")
    return notes


def explain_misfit(content: object, found: list[Found], target: Target) -> str:
    """Why nothing in a file fits, and the torchvision model that it does fit, or is nearest to."""
    names = [".".join((*path, name)) for path, tensors in mappings(content) for name in tensors]
    if not names:
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        return f"is no state dict: it holds {held or 'nothing'}, and no tensors by name; save a model.state_dict()"
    if not found:
        shown = ", ".join(names[:3])
        none = f"none of its tensors has a name of it ({shown}, …)"
        return f"is no state dict of {target.name}: {none}; {nearest(content, target.name)}"
    odd = min((place.problems(target) for place in found), key=len)
    shown = "; ".join(f"{name}: {what}" for name, what in sorted(odd.items())[:3])
    more = "; …" * (len(odd) > 3)
    return f"does not fit the model: {len(odd)} tensors differ ({shown}{more}); {nearest(content, target.name)}"


def nearest(content: object, chosen: str) -> str:
    """The torchvision model whose tensors fit what is in a file, or come nearest, and the fix. Takes a second or two.

    `chosen` is the model that the file was meant for.
    """
    choose = "choose the --model.name that the weights are of"
    counts = misfits(content)
    fitting = [name for name, count in counts.items() if not count]
    if fitting:
        return f"they fit {' and '.join(fitting)}; {choose}"
    if not counts:
        hub = any("embedder.embedder" in name for _, tensors in mappings(content) for name in tensors)
        told = "they are named as in Hugging Face's transformers: timm's files on the hub have torchvision's names"
        return told if hub else "they fit no model of torchvision"
    name = min(counts, key=lambda name: counts[name])
    fix = "that is the one you chose: rename or remove those tensors in the file" if name == chosen else choose
    return (
        f"they fit no model of torchvision; the nearest is {name}, with tensors that do not fit: {counts[name]}; {fix}"
    )


def fitting_networks(content: object) -> list[str]:
    """The torchvision models that tensors of a file fit, whatever their number of classes. Takes a second or two."""
    return [name for name, count in misfits(content).items() if not count]


def misfits(content: object) -> dict[str, int]:
    """How many tensors of a file do not fit each torchvision model of the families that share most names with it."""
    families: dict[str, list[str]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        family = re.match(r"(wide_)?[a-z]+(_v\d)?", name)
        families.setdefault(family[0] if family else name, []).append(name)
    shared = {family: most_names(content, names[-1]) for family, names in families.items()}
    likely = [family for family, count in shared.items() if count and 2 * count >= max(shared.values())]
    counts: dict[str, int] = {}
    for name in (name for family in likely for name in families[family]):
        target = Target.of(name, outline(name))
        counts[name] = min(
            (len(place.problems(target)) for _, place in find_places(content, target.own)), default=len(target.own)
        )
    return counts


def most_names(content: object, name: str) -> int:
    """How many names of a torchvision model one place in a file has."""
    return max((count for count, _ in find_places(content, outline(name))), default=0)
