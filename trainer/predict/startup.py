"""Imports torchvision without the compiler that it asks for: two seconds less until the first answer.

`torchvision.ops.roi_align` imports torch._dynamo, 2 s of work, to ask later whether a device can compile. Only networks
for detection ever ask.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

ASKED_MODULE, ASKED_NAME = "torch._dynamo.utils", "is_compile_supported"


def import_torchvision() -> None:
    """Import it with a stand-in for that one question. Without effect where either is loaded already.

    A torchvision that wants more of the compiler gets all of it.
    """
    if ASKED_MODULE in sys.modules or "torchvision" in sys.modules:
        return
    stand_in = ModuleType(ASKED_MODULE)
    vars(stand_in).update({ASKED_NAME: _ask_compiler, "__getattr__": _from_compiler})
    sys.modules[ASKED_MODULE] = stand_in
    try:
        import torchvision  # noqa: F401
    finally:
        if sys.modules[ASKED_MODULE] is stand_in:
            del sys.modules[ASKED_MODULE]


def _ask_compiler(device_type: str) -> bool:
    """What the real one answers."""
    return bool(_from_compiler(ASKED_NAME)(device_type))


def _from_compiler(name: str) -> Any:
    """An attribute of the real module."""
    if name.startswith("__"):
        raise AttributeError(name)
    if "__getattr__" in vars(sys.modules.get(ASKED_MODULE, sys)):
        del sys.modules[ASKED_MODULE]
    return getattr(importlib.import_module(ASKED_MODULE), name)
