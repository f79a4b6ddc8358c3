"""Which tensors of a file are a model's: the containers and prefixes that people save them in, and what fits.

One rule finds them: the names of the model are looked for in every mapping of the file, behind any prefix. So
`module.`, `_orig_mod.`, `{"state_dict": …}`, Lightning's `model.` and what is still to come need no rule of their own.
What was taken and what was left out is said. Nothing that is doubtful is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainer.contract import UserError

Tensors = Mapping[str, Tensor]

DEEPEST = 4  # mappings inside of mappings
AVERAGES = frozenset({"ema", "average", "averaged", "avg", "swa", "shadow", "teacher", "target"})
OPTIMIZER = frozenset({"momentum", "momentum_buffer", "exp_avg", "exp_avg_sq", "grad", "grads"})
CLASSES = 99_991  # a size that nothing in a model has but its head
LEFT_BESIDE = ("n_averaged", "total_ops", "total_params")  # torch's average and thop leave these beside the weights
OLD_NAMES = (  # of torchvision's own files; its builders rename them, too
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)


class Shapeless(TorchFunctionMode):
    """Layers that are made meanwhile have shapes and no memory, and are not initialised."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand):
            return func(*args, **kwargs | {"device": "meta"})
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


@cache
def outline(name: str) -> Tensors:
    """A torchvision model's tensors without memory, for CLASSES classes. It takes some 40 ms."""
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with Shapeless():
        state: Tensors = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **more).state_dict()
    return state


@dataclass(frozen=True)
class Target:
    """What a model wants of a file: its tensors, and which of them are its head."""

    name: str
    own: Tensors
    head: frozenset[str]  # the tensors whose shape depends on the number of classes
    roots: tuple[str, ...]  # the prefixes under which there is nothing but a head: ("fc.",)

    @classmethod
    def of(cls, name: str, own: Tensors) -> Target:
        head = frozenset(key for key, tensor in outline(name).items() if CLASSES in tensor.shape)
        roots = set()
        for key in head:
            parts = key.split(".")
            above = [".".join(parts[:i]) + "." for i in range(1, len(parts))]
            roots.add(next(p for p in above if all(k in head for k in own if k.startswith(p))))
        return cls(name, own, head, tuple(sorted(roots)))


@dataclass(frozen=True)
class Found:
    """The tensors behind one prefix in one mapping of a file, by the names that are left."""

    path: tuple[str, ...]  # the keys of the mappings around it: ("state_dict",)
    prefix: str  # "module."
    tensors: Tensors
    beside: tuple[str, ...]  # names of the same mapping without that prefix

    @property
    def parts(self) -> set[str]:
        return {*self.path, *self.prefix.rstrip(".").split(".")}

    @property
    def is_average(self) -> bool:
        words = {word for part in self.parts for word in part.lower().split("_")}
        return bool(words & AVERAGES) or any(p == "encoder_k" or p.startswith("momentum_") for p in self.parts)

    @property
    def is_of_optimizer(self) -> bool:
        return bool(self.parts & OPTIMIZER)

    def __str__(self) -> str:
        where = [f"the mapping {'/'.join(self.path)!r}"] if self.path else []
        return " and ".join(where + [f"the prefix {self.prefix!r}"] * bool(self.prefix)) or "the top of the file"

    def new_head(self, target: Target) -> set[str]:
        """The tensors of the head that the file does not have, or has for another number of classes."""
        new: set[str] = set()
        for root in target.roots:
            head = {name for name in target.head if name.startswith(root)}
            there = {name for name in head if name in self.tensors}
            if not there or (there == head and any(self.tensors[n].shape != target.own[n].shape for n in head)):
                new |= head
        return new

    def problems(self, target: Target) -> dict[str, str]:
        """Why these are not the model's tensors: what is wrong with each one."""
        new, found = self.new_head(target), {}
        for name, wanted in target.own.items():
            tensor = self.tensors.get(name)
            if name in new or (tensor is None and name.endswith(".num_batches_tracked")):
                continue
            if tensor is None:
                found[name] = "missing"
            elif tensor.shape != wanted.shape:
                found[name] = f"{tuple(tensor.shape)} there, {tuple(wanted.shape)} here"
            elif tensor.layout != torch.strided or (wanted.is_floating_point() and not tensor.is_floating_point()):
                found[name] = f"{kind(tensor)} there, not plain {kind(wanted)}"
        replaced = tuple(root for root in target.roots if any(name.startswith(root) for name in new))
        for name in self.tensors:
            if (
                name not in target.own
                and name.split(".")[-1] not in LEFT_BESIDE
                and not name.startswith(replaced or ("\0",))
            ):
                found[name] = "not in the model"
        return found


def kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def mappings(content: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """All mappings with tensors in them, each with the keys that lead to it."""
    if isinstance(content, Mapping) and len(path) < DEEPEST:
        if tensors := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
            yield path, tensors
        for key, value in content.items():
            yield from mappings(value, (*path, str(key)))


def modern(name: str) -> str:
    for old, new in OLD_NAMES:
        name = old.sub(new, name)
    return name


def find_places(content: object, own: Tensors) -> list[tuple[int, Found]]:
    """Every place in a file that has names of the model, and how many; the one with most of them first."""
    found: list[tuple[int, Found]] = []
    for path, raw in mappings(content):
        tensors = {modern(name): tensor for name, tensor in raw.items()}
        cuts = [(name, at) for name in tensors for at in range(len(name)) if at == 0 or name[at - 1] == "."]
        for prefix, count in Counter(name[:at] for name, at in cuts if name[at:] in own).items():
            inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            beside = tuple(name for name in tensors if not name.startswith(prefix))
            found.append((count, Found(path, prefix, inside, beside)))
    return sorted(found, key=lambda pair: -pair[0])


def choose_place(found: list[Found], target: Target, origin: str) -> Found | None:
    """The only place whose tensors fit: the model itself before an average of it. Raises UserError for several."""
    all_fitting = [place for place in found if not place.problems(target)]
    fitting = [place for place in all_fitting if not place.is_of_optimizer]
    if all_fitting and not fitting:
        raise UserError(
            f"--model.weights {origin!r} has nothing that fits {target.name} but what an optimizer keeps: "
            f"{', '.join(map(str, all_fitting))}; if it is the weights, save it alone, with torch.save"
        )
    rivals = [place for place in fitting if not place.is_average] or fitting
    for other in rivals[1:]:
        first, second = rivals[0].tensors, other.tensors
        if not all(n in first and torch.equal(first[n], second[n]) for n in target.own if n in second):
            raise UserError(
                f"--model.weights {origin!r} holds several sets of weights that fit {target.name}: "
                f"{', '.join(map(str, rivals))}; save the one that you mean alone, with torch.save"
            )
    return rivals[0] if rivals else None
