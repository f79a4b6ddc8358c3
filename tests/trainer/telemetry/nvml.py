"""A stand-in for NVML: a real shared library, compiled from nvml.c, that answers as a file says."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pynvml
import pytest

VARIABLE = "NVML_STANDIN"  # names the file with what differs from two healthy cards; nvml.c lists its lines


def build_nvml(folder: Path) -> Path:
    """Compile the library into the folder, which LD_LIBRARY_PATH can name.

    Raises FileNotFoundError without a compiler.
    """
    compiler = shutil.which("cc") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C compiler: on Debian, apt install g++, or make ci-deps")
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-x", "c", "-O1", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library)]
    subprocess.run([*command, str(Path(__file__).with_name("nvml.c"))], check=True)
    return library


class StandInNvml:
    """The library in this process, in the place of the driver's."""

    def __init__(self, library: Path, file: Path, monkeypatch: pytest.MonkeyPatch):
        self.file = file
        self.tell()
        loaded = ctypes.CDLL(str(library))
        loaded.standin_reset()
        monkeypatch.setattr(pynvml, "nvmlLib", loaded)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        monkeypatch.setenv(VARIABLE, str(file))
        for name in ("CUDA_VISIBLE_DEVICES", "PET_NPROC_PER_NODE", "TRAINER_GPUS"):
            monkeypatch.delenv(name, raising=False)

    def tell(self, *lines: str) -> None:
        """What differs from two healthy cards from now on; nothing without lines."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self.file)
