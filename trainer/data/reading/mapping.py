"""A file in memory, without a descriptor: the kernel keeps the file, and the limit of open files does not count it.

Python's own mmap keeps one for each file (it can be told not to since 3.13). Small shards are many: 20,000 for ImageNet
with `--train-sides 2048`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import pyarrow as pa

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


class _Region:
    """What the buffers of a file refer to. With the last one, its memory is given back."""


def map_file(path: Path) -> Any:
    """A pyarrow buffer of the whole file, read-only. Raises OSError, and ValueError if the file is empty."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not (size := os.fstat(descriptor).st_size):
            raise ValueError("it is empty")
        address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            raise OSError(number := ctypes.get_errno(), os.strerror(number), str(path))
    finally:
        os.close(descriptor)
    region = _Region()
    weakref.finalize(region, _LIBC.munmap, address, size).atexit = False  # threads may still read at the end
    return pa.foreign_buffer(address, size, region)


def advise(address: int, size: int, advice: int) -> None:
    """Tell the kernel how these bytes of a mapped file will be read; `advice` is one of mmap.MADV_…"""
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    _LIBC.madvise(first, address + size - first, advice)
