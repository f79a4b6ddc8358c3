"""What a process trains on, and whether it can. A GPU that torch cannot use never becomes a CPU without a word."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from trainer.contract import MachineError, Phase, UserError
from trainer.process.counts import GPU_COUNT
from trainer.recipes.config import Config
from trainer.text import say

BF16_CAPABILITY = (8, 0)  # cuDNN has bf16 convolutions from Ampere on
RESNET50_BYTES_PER_IMAGE = 43.8e6  # kept for the backward pass at 224 px, in bf16 or fp16; counted over the graph
C_COMPILERS = ("gcc", "clang")  # where $CC names none; Triton builds a small library to launch its kernels
# CUDA's words for a GPU that fails (its runtime API, cudaError_t): any other error has a traceback.
GPU_FAULTS = ("ECC error", "NVLink error", "unspecified launch failure", "illegal memory access", "unknown error",
          "busy or unavailable", "no CUDA-capable device", "GPU is lost", "launch timed out")  # fmt: skip
SECOND_MOMENT_BYTES = 0.2e9  # of AdamW and LAMB: ResNet-50's, and its copy in a snapshot
FIXED_BYTES = 2e9  # weights, gradients, momentum, average, a snapshot: 1.0 GB with workspaces; and CUDA's own


def device_for(config: Config, local_rank: int) -> torch.device:
    """The GPU of this process, or the CPU where there is none, or where the config asks for it."""
    if config.device == "cpu" or not torch.cuda.is_available() or local_rank >= torch.cuda.device_count():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def check_device(config: Config, device: torch.device, processes: int = 1) -> None:
    """Raises MachineError where the GPUs of this machine do not work, UserError where it has not what is asked for.

    Several `processes` on GPUs of different kinds are told, by the first one: they train the same, each at the pace of
    the slowest.
    """
    if config.fused_norm:
        _check_triton(device)
    if config.device == "cpu":
        return
    listed, usable = int(os.environ.get(GPU_COUNT) or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if usable < listed:
        raise MachineError(
            f"this machine has {listed} GPU(s) by nvidia-smi or CUDA_VISIBLE_DEVICES, and torch {torch.__version__} "
            f"can use {usable} ({_why_no_gpu()}): renew the driver, or take another machine; "
            "--device cpu trains without a GPU"
        )
    if device.type == "cpu":
        if config.device == "cuda":
            _refuse_cpu(config)
        return
    _check_capability(config, device)
    kinds = sorted({torch.cuda.get_device_name(number) for number in range(min(processes, usable))})
    if len(kinds) > 1 and device.index == 0:
        say(
            f"the GPUs are of different kinds ({', '.join(kinds)}): each step takes as long as the slowest needs; "
            "CUDA_VISIBLE_DEVICES= names those to use"
        )


def _refuse_cpu(config: Config) -> None:
    if shutil.which("nvidia-smi"):  # there is a driver, so there should be a GPU
        raise MachineError(
            f"the recipe {config.recipe!r} needs a GPU, and nvidia-smi lists none ({_why_no_gpu()}): "
            "take another machine"
        )
    raise UserError(
        f"the recipe {config.recipe!r} needs a GPU, and this machine has none: use one that has, or pass --device cpu "
        "(ImageNet takes weeks on a CPU)"
    )


def _check_triton(device: torch.device) -> None:
    """Triton's interpreter (TRITON_INTERPRET=1) needs no GPU; it is for tests."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("--fused-norm needs Triton, and this environment lacks it: install triton, or leave it out")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    if device.type != "cuda":
        raise UserError(f"--fused-norm needs a GPU, and this run is on the {device.type}: leave it out")
    if "CC" not in os.environ and not any(map(shutil.which, C_COMPILERS)):
        raise UserError("--fused-norm needs a C compiler, and this machine has none: install gcc, or leave it out")
    if not (header := Path(sysconfig.get_path("include"), "Python.h")).exists():
        raise UserError(
            f"--fused-norm needs Python's headers to build Triton's launcher, and {header} is missing: "
            f"install python{sysconfig.get_python_version()}-dev, or leave it out"
        )


def _check_capability(config: Config, device: torch.device) -> None:
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    oldest = min(
        (int(arch.removeprefix("sm_")) for arch in torch.cuda.get_arch_list() if arch[3:].isdecimal()), default=0
    )
    if capability[0] * 10 + capability[1] < oldest:
        raise UserError(
            f"{name} has compute capability {capability[0]}.{capability[1]}, and torch {torch.__version__} has kernels "
            f"from {oldest // 10}.{oldest % 10} on: use a newer GPU (TYPES=g6.xlarge), or --device cpu"
        )
    if config.precision == "bf16" and capability < BF16_CAPABILITY:
        raise UserError(
            f"{name} cannot compute in bf16 (compute capability {capability[0]}.{capability[1]}, and it takes "
            f"{BF16_CAPABILITY[0]}.{BF16_CAPABILITY[1]}): pass --precision fp16"
        )


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return f"CUDA {torch.version.cuda}"


def _is_of_hardware(error: torch.AcceleratorError) -> bool:
    """Whether the GPU is to blame. What CUDA refuses to a program, such as to one that captures, is a bug here."""
    return any(words in str(error) for words in GPU_FAULTS)


def gpu_fault(error: BaseException | None) -> str:
    """A line about the GPU that failed, where that ended the work; "" where it did not.

    After such a fault nothing works on the GPU any more, cleaning up included. So what came before counts, too.
    """
    while error is not None and not (isinstance(error, torch.AcceleratorError) and _is_of_hardware(error)):
        error = error.__context__
    if error is None:
        return ""
    reason = str(error).strip().partition("\n")[0]  # torch's advice on debugging follows
    return (
        f"the GPU failed ({reason}): start again, and if it fails again, on another machine; the run continues from "
        "its newest checkpoint, and `dmesg | grep Xid` tells what the driver saw"
    )


@contextmanager
def telling_what_fits(config: Config, device: torch.device, now: Callable[[], tuple[str, int]]) -> Iterator[None]:
    """A GPU without enough memory becomes a UserError with the batch that fits. `now` tells phase and resolution."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        phase, pixels = now()
        option, images = "--device-batch-size", config.device_batch_size
        if phase == Phase.EVALUATING:
            option, images = "--val-batch-size", config.val_batch_size
        free, total = torch.cuda.mem_get_info(device)
        fits = batch_that_fits(config, images, pixels, total)
        raise UserError(
            f"the GPU has no memory left for {images} images of {pixels} px ({total / 1e9:.1f} GB, of which "
            f"{free / 1e9:.1f} GB are free; other programs may use some): pass {option} {fits}"
        ) from error


def batch_that_fits(config: Config, images: int, pixels: int, memory: float) -> int:
    """The largest batch below `images` that divides the global batch and should fit into `memory` bytes.

    Half of `images` at most, for networks whose needs nobody has counted.
    """
    limit = images // 2
    if config.model.name == "resnet50":
        scale = (pixels / 224) ** 2 * (2 if config.precision == "fp32" else 1)
        fixed = FIXED_BYTES + (SECOND_MOMENT_BYTES if config.optim.name != "sgd" else 0)
        limit = min(images - 1, int((memory - fixed) / (RESNET50_BYTES_PER_IMAGE * scale)))
    return max((n for n in range(1, limit + 1) if config.global_batch_size % n == 0), default=1)
