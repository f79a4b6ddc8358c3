"""The bytes of a checkpoint: safetensors layout (a length, a JSON header, raw tensors; no pickle)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHECKPOINT_FORMAT = 2


DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


NHWC = "channels_last"  # the key of the header's metadata that names the tensors stored with their channels last

BLUR_POOL = "blur_pool"  # the key of the header's metadata that has --model.blur-pool; older versions wrote none


def in_memory_order(tensor: Tensor) -> Tensor:
    """The tensor, or for one in channels_last format its (N, H, W, C) view, so that storing it is a plain copy."""
    is_nhwc = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 2, 3, 1) if is_nhwc and not tensor.is_contiguous() else tensor


@dataclass(frozen=True)
class Layout:
    """Where each tensor is in the file. Wide types come first, so that every tensor is aligned."""

    header: bytes
    places: Mapping[str, tuple[int, int]]  # name -> first and last byte of the file
    bytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], blur: str = "") -> Layout:
        """`blur` is the --model.blur-pool of the tensors' network, where it is known."""
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        stored = {name: in_memory_order(tensors[name]) for name in names}
        header: dict[str, Any] = {
            "__metadata__": {NHWC: " ".join(name for name in names if stored[name] is not tensors[name])}
            | ({BLUR_POOL: blur} if blur else {})
        }
        position = 0
        for name in names:
            end = position + stored[name].nbytes
            header[name] = {
                "dtype": DTYPES[stored[name].dtype],
                "shape": list(stored[name].shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64)
        start = 8 + len(text)
        places = {name: tuple(start + at for at in header[name]["data_offsets"]) for name in names}
        return cls(len(text).to_bytes(8, "little") + text, places, start + position)

    def views(self, body: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors over `body`, the file's bytes: (bytes,) uint8. Each has the shape and memory order of
        `in_memory_order` of the given one.
        """
        return {
            name: body[start:end].view(tensors[name].dtype).view(in_memory_order(tensors[name]).shape)
            for name, (start, end) in self.places.items()
        }
